"""Policies with a history: trained by the command, saved, gone on with, adapted, and the same at every door."""

import json

import numpy as np
import pytest
import torch
from transformers import pipeline

from kivla import ActionPredictionPipeline, KIVLAProcessor, LeRobotDataset
from kivla.acting import ChunkExecutor
from kivla.cli import main
from kivla.processing.observation_history import NO_HISTORY, ObservationHistory
from kivla.training.base_policy import BasePolicy
from kivla.training.build import adapt_policy, continue_policy
from kivla.training.evaluation.predictions import predict_dataset
from kivla.training.policy_options import PolicyOptions
from kivla.training.run_options import ModelArguments
from tests.commands.test_commands import TINY
from tests.helpers.policies import DATASET, make_policy

HISTORY = ObservationHistory(2, 3)


def words(**options) -> list[str]:
    return [str(word) for name, value in options.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="module")
def policy(vlm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy") / "run"
    options = {**TINY, "vlm": vlm, "dataset": DATASET, "output_dir": folder, "max_steps": 2, "augment": "robot"}
    main(["train", *words(**options, history=2, history_stride=3, eval_episodes=1, bucket_by_length="true")])
    return folder


def test_it_is_trained_evaluated_and_saved(policy, capsys, tmp_path):
    processor = KIVLAProcessor.from_pretrained(policy)
    assert processor.observation_history == HISTORY
    assert {"history": 2, "history_stride": 3}.items() <= processor.to_dict().items()
    metrics = json.loads((policy / "eval_results.json").read_text())
    assert np.isfinite(metrics["eval_held_out_action_mae"])
    main(["evaluate", str(policy), *words(dataset=DATASET, num_frames=6, output_dir=tmp_path / "evaluate")])
    main(["predict", str(policy), *words(dataset=DATASET, num_frames=6, output_dir=tmp_path / "predict")])
    assert "| sees | 2 frames, 3 control steps apart |" in (policy / "README.md").read_text()


@pytest.mark.slow
def test_the_same_command_goes_on_and_another_history_is_another_run(policy, vlm, tmp_path):
    options = {**TINY, "vlm": vlm, "dataset": DATASET, "output_dir": tmp_path, "save_steps": 1, "max_steps": 1}
    main(["train", *words(**options, history=2, history_stride=3)])
    main(["train", *words(**{**options, "max_steps": 2}, history=2, history_stride=3)])
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 2
    with pytest.raises(SystemExit, match="history"):
        main(["train", *words(**{**options, "max_steps": 3}, history=2, history_stride=4)])


def test_a_stride_alone_is_refused(vlm, tmp_path):
    with pytest.raises(SystemExit, match="history_stride = 3 is for a history of several frames"):
        main(["train", *words(**TINY, vlm=vlm, dataset=DATASET, output_dir=tmp_path, history_stride=3)])


def test_every_door_sees_the_same(policy):
    """The dataset's clips, a past of earlier observations, and an executor that is given one frame at a time."""
    pipe = pipeline("action-prediction", model=str(policy), seed=3)
    data = LeRobotDataset(DATASET, pipe.processor.chunk_size).look_back(pipe.observation_history)
    plain = LeRobotDataset(DATASET, pipe.processor.chunk_size)
    predicted = predict_dataset(pipe, data, num_frames=len(data), batch_size=32)
    act = ChunkExecutor(pipe, replan_every=1)
    for step in (0, 1, 2, 3, 4, 5, 6):
        observation = {name: plain[step][name] for name in ("images", "cameras", "text", "state")}
        chunk = predicted["predicted"][step]
        np.testing.assert_allclose(act(observation), chunk[0], rtol=1e-4, atol=1e-5)
        past = [{name: plain[step - 3][name] for name in ("images", "state")}] if step >= 3 else []
        np.testing.assert_allclose(pipe({**observation, "past": past})["actions"], chunk, rtol=1e-4, atol=1e-5)
    assert predicted["states"].shape == (len(data), data.state_dim)


def test_the_past_matters_and_reused_prefixes_know_it(tmp_path):
    model, _ = make_policy(tmp_path / "vlm")
    data = LeRobotDataset(DATASET, 6).look_back(HISTORY)
    processor = KIVLAProcessor.from_vlm(
        tmp_path / "vlm",
        statistics=data.statistics,
        cameras=data.cameras,
        **{"chunk_size": 6, "max_action_dim": 5, "max_state_dim": 6, "history": 2, "history_stride": 3},
    )
    for module in model.expert.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.3)
    pipe = ActionPredictionPipeline(model, processor=processor, seed=0, reuse_prefix=True)
    example = {name: data[30][name] for name in ("images", "cameras", "text", "state")}
    other = {
        **example,
        "images": [[np.zeros_like(frame) for frame in clip[:1]] + clip[1:] for clip in example["images"]],
    }
    first, again, changed = (pipe(one)["actions"] for one in (example, example, other))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - changed).max() > 1e-5, "the older frame makes no difference"


def test_a_policy_that_goes_on_keeps_its_history(policy):
    base = BasePolicy(policy)
    assert ModelArguments(policy=str(policy)).observation_history == HISTORY
    data = LeRobotDataset(DATASET, 6).look_back(HISTORY)
    assert continue_policy(base, [data], PolicyOptions()).processor.observation_history == HISTORY
    with pytest.raises(ValueError, match="--history 3: the policy has 2"):
        continue_policy(base, [data], PolicyOptions(history=3))


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, HISTORY),
        ({"history": 4}, ObservationHistory(4, 3)),
        ({"history": 3, "history_stride": 7}, ObservationHistory(3, 7)),
        ({"history": 1}, NO_HISTORY),
    ],
)
def test_an_adapted_policy_takes_another_history(policy, told, expected):
    options = ModelArguments(policy=str(policy), adapt=True, **told)
    assert options.observation_history == expected
    data = LeRobotDataset(DATASET, 6).look_back(expected)
    built = adapt_policy(BasePolicy(policy), [data], options)
    assert built.processor.observation_history == expected
    facts = built.facts["changed"] if told else built.facts["kept"]
    assert any(fact.startswith(f"sees {expected}") for fact in facts)
