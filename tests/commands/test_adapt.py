"""`kivla train --policy ...`: a policy goes on, a converted base model is adapted, and the card tells which it was."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, pipeline

from kivla import KIVLAConfig, KIVLAProcessor
from kivla.cli import main
from kivla.command_line import Refused
from tests.conversion.test_convert import CHUNK, add_norm_stats, statistics, write
from tests.helpers import pi_reference as reference
from tests.helpers.policies import DATASET, dataset
from tests.helpers.vlm_processors import KINDS

RUN = {
    "dataset": DATASET,
    "max_steps": 1,
    "per_device_train_batch_size": 2,
    "dataloader_num_workers": 0,
    "warmup_steps": 0,
    "max_eval_frames": 2,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


def train(output_dir, *words, **options):
    options = {**RUN, "output_dir": output_dir, **options}
    main(["train", *words, *(str(word) for name, value in options.items() for word in (f"--{name}", value))])
    facts = json.loads((output_dir / "training_facts.json").read_text())
    return facts["made_from"], (output_dir / "README.md").read_text()


@pytest.fixture(scope="module")
def paligemma(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paligemma")
    KINDS["paligemma"].processor().save_pretrained(folder)
    return folder


def converted(folder, variant, *words, with_statistics=False):
    """By `kivla convert`, of a tiny checkpoint."""
    source = write(folder / "source", reference.random_weights(variant), action_horizon=CHUNK)
    if with_statistics:
        add_norm_stats(source, {"state": statistics(4), "actions": statistics(4)})
    main(["convert", str(source), str(folder / "base"), *map(str, words)])
    return folder / "base"


def test_a_converted_base_model_is_adapted_by_one_command(tmp_path, paligemma):
    """As `docs/adapting.md` has it: π0.5 without statistics, on data of one's own."""
    base = converted(tmp_path, "pi05", "--vlm_processor", paligemma)
    made_from, card = train(tmp_path / "policy", "--adapt", policy=base)
    processor = KIVLAProcessor.from_pretrained(tmp_path / "policy")
    for name, values in dataset().statistics["actions"].items():
        np.testing.assert_array_equal(processor.statistics["actions"][name], values)
    assert processor.cameras == dataset().cameras and processor.action_dim == 4
    kept = (processor.noise_padding, processor.square_images, processor.normalization, processor.action_prompt)
    assert kept == (True, True, "quantile", "Task: {text}, State: {state};\nAction: "), "openpi's conventions"
    assert processor.action_tokenizer.kind == "fast", "insulated: the VLM learns tokens"
    batch = processor(**{name: [dataset()[0][name]] for name in ("images", "text", "state", "actions")})
    assert batch["action_mask"].all(), "the padded dimension is learned, as openpi trains it"

    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "policy" / "model.safetensors")
    moved = [name for name in before if not torch.equal(after[name][: len(before[name])], before[name])]
    largest = max((after[name][: len(before[name])] - before[name]).abs().max() for name in moved)
    assert moved and largest < 1e-3, "one small step from the base's weights"
    observation = {name: dataset()[0][name] for name in ("images", "text", "state")}
    assert np.isfinite(pipeline("action-prediction", model=str(tmp_path / "policy"))(observation)["actions"]).all()

    assert made_from["meaning"] == "adapt" and made_from["base"] == str(base)
    assert f"from the policy\n`./{base.name}`" in card and "was adapted to other data" in card
    assert "unused action dimensions hold noise" in card and "cameras: " in card


def test_the_vlm_s_processor_may_come_later(tmp_path, paligemma):
    base = converted(tmp_path, "pi0")
    with pytest.raises(Refused, match=r"without the VLM's processor: .* google/paligemma-3b-pt"):
        train(tmp_path / "policy", "--adapt", policy=base)
    train(tmp_path / "policy", "--adapt", policy=base, vlm_processor=paligemma)
    processor = KIVLAProcessor.from_pretrained(tmp_path / "policy")
    assert (processor.action_prompt, processor.normalization) == ("{text}\n", "mean_std")
    assert processor.action_tokenizer is None, "π0 goes on as it was trained: by flow, into the VLM"
    config = KIVLAConfig.from_pretrained(tmp_path / "policy")
    assert config.backbone_gradient_scale == 1.0
    assert config.vlm_config.image_token_id == processor.vlm_processor.image_token_id

    finished = KIVLAProcessor.from_pretrained(
        base, vlm_processor=AutoProcessor.from_pretrained(paligemma), statistics=dataset().statistics
    )
    assert finished.noise_padding and finished.statistics is not None, "in Python"


def test_a_base_without_statistics_neither_acts_nor_continues(tmp_path, paligemma):
    base = converted(tmp_path, "pi05", "--vlm_processor", paligemma)
    with pytest.raises(ValueError, match="needs the statistics of your robot's data"):
        KIVLAProcessor.from_pretrained(base)
    with pytest.raises(SystemExit, match="base model without statistics of any robot: --adapt"):
        train(tmp_path / "policy", policy=base)
    main(["convert", str(base), str(tmp_path / "lerobot"), "--to", "lerobot"])
    assert not (tmp_path / "lerobot" / "policy_preprocessor.json").exists(), "weights alone go back"


def test_a_converted_policy_with_statistics_continues_or_adapts_as_told(tmp_path, paligemma):
    base = converted(tmp_path, "pi0", "--vlm_processor", paligemma, with_statistics=True)
    with pytest.raises(SystemExit, match="its checkpoint does not say"):
        train(tmp_path / "policy", policy=base)
    KIVLAProcessor.from_pretrained(base, relative_actions="none").save_pretrained(base)
    with pytest.raises(SystemExit, match=r"cannot go on as it is:(.|\n)*lie far outside(.|\n)*--adapt"):
        train(tmp_path / "policy", policy=base)
    made_from, _ = train(tmp_path / "adapted", "--adapt", policy=base)
    assert made_from["meaning"] == "adapt"
    made_from, card = train(tmp_path / "continued", policy=tmp_path / "adapted", num_flow_samples=2)
    assert made_from["meaning"] == "continue" and "went on, on data of the same robot" in card
    before, after = (KIVLAProcessor.from_pretrained(tmp_path / name) for name in ("adapted", "continued"))
    assert before.to_dict() == after.to_dict()
    assert json.loads((tmp_path / "continued" / "config.json").read_text())["num_flow_samples"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vlm": "x", "vlm_processor": "y"}, "--vlm_processor cannot apply: it is for --policy"),
        ({"vlm": "x", "adapt": True}, "--adapt cannot apply: it is for --policy"),
        ({"vlm": "x", "vlm_share": 0.5}, "--vlm_share cannot apply: there is no --vlm_dataset"),
        ({"vlm": "x", "vlm_num_rows": 5}, "--vlm_num_rows cannot apply: there is no --vlm_dataset"),
        ({"vlm": "x", "vlm_dataset": "z", "vlm_num_rows": 5}, "--vlm_num_rows cannot apply: it is for --vlm_streaming"),
        ({"vlm": "x", "dataset_weights": 2.0}, "--dataset_weights cannot apply: there is one dataset"),
    ],
)
def test_options_that_cannot_apply_are_named(tmp_path, options, message):
    with pytest.raises(Refused, match=message):
        train(tmp_path, **options)


def test_a_gradient_scale_out_of_range_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(Refused, match="--backbone_gradient_scale is a share, at most 1, got 2"):
        train(tmp_path, vlm="nowhere", recipe="joint", backbone_gradient_scale=2.0)
    assert not list(tmp_path.iterdir())
