"""Policies of relative actions: statistics over all chunks, and the same absolute targets through every door."""

import asyncio
import json

import numpy as np
import pytest
import torch

from kivla import ActionPredictionPipeline, KIVLAForActionPrediction, KIVLAProcessor, KIVLATrainer, LeRobotDataset
from kivla.acting import ActionLimits, ChunkExecutor
from kivla.cli import main
from kivla.processing import compute_statistics
from kivla.processing.relative_actions import to_relative
from kivla.serving.observation_presets import ObservationReader
from kivla.serving.policy_server import PolicyServer, RequestRefused
from kivla.serving.served_policy import ServedPolicy
from kivla.simulation import LeRobotWriter
from kivla.simulation.rollout import Acting, PipelinePolicy, rollout
from kivla.training import KIVLATrainingArguments
from kivla.training.base_policy import BasePolicy
from kivla.training.build import adapt_policy, continue_policy, start_policy
from kivla.training.data.data_ranges import range_problems
from kivla.training.data.relative_chunks import chunk_states, in_radians, offsets_already, robot_statistics
from kivla.training.evaluation.predictions import predict_dataset
from kivla.training.policy_options import PolicyOptions
from kivla.training.relative_options import relative_notes, told_relative
from tests.commands.test_commands import TINY
from tests.helpers.fake_reach import FakeReachVectorEnv
from tests.serving.test_policy_server import ask, connect

CHUNK, LENGTHS = 6, (23, 17)
JOINTS = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll"]
NAMES = {
    "aloha": [
        f"{side}_{name}" for side in ("left", "right") for name in [*(f"joint_{i}" for i in range(6)), "gripper"]
    ],
    "so101": [f"{joint}.pos" for joint in [*JOINTS, "gripper"]],
}
# A preset, and what it cannot know: that SO-101's last joint turns past the end of its range
WORDS = {
    "aloha": {"relative_actions": ["aloha"]},
    "so101": {"relative_actions": ["so101"], "wrapping_angles": ["wrist_roll=-180:180"]},
}
SMALL = {
    **{"chunk_size": CHUNK, "max_action_dim": 16, "max_state_dim": 16, "action_tokenizer": "bins"},
    **{"expert_hidden_size": 32, "expert_intermediate_size": 48, "normalization": "quantile"},
}


def record(folder, robot: str, deltas: bool = False) -> LeRobotDataset:
    """Demonstrations of absolute joint targets, in radians or degrees; every picture has a colour of its own."""
    names, rng = NAMES[robot], np.random.default_rng(7)
    grippers = [i for i, name in enumerate(names) if "gripper" in name]
    scale = 1.0 if robot == "aloha" else 60.0
    with LeRobotWriter(folder, 10, {"front": (8, 8)}, names, names, robot_type=robot, image_format="image") as writer:
        for episode, length in enumerate(LENGTHS):
            steps = rng.normal(scale=scale / 10, size=(length + 1, len(names)))
            state = rng.uniform(-scale, scale, len(names)) + steps.cumsum(axis=0)
            state[:, grippers] = rng.uniform(0, 1, (length + 1, len(grippers)))
            if robot == "so101":
                state[:, 4] = -180 + np.mod(state[:, 4] + 350, 360)  # near the end of its range
            actions = (
                np.diff(state, axis=0) if deltas else state[1:] + rng.normal(scale=scale / 100, size=state[1:].shape)
            )
            if robot == "so101" and not deltas:
                actions[:, 4] = -180 + np.mod(actions[:, 4] + 180, 360)
            pictures = np.zeros((length, 8, 8, 3), np.uint8)
            pictures[..., 0], pictures[..., 1] = 10 * np.arange(length)[:, None, None], 100 * episode
            writer.add_episode(
                {"front": pictures}, state[:-1].astype(np.float32), actions.astype(np.float32), task="pick up the cube"
            )
    return LeRobotDataset(folder, CHUNK)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return {robot: record(tmp_path_factory.mktemp(robot) / "data", robot) for robot in NAMES}


@pytest.fixture(scope="module")
def policies(tmp_path_factory, vlm, recorded):
    """(robot, state encoding, whether relative) → the folder of a new policy."""
    made = {}

    def policy(robot: str, encoding: str, relative: bool):
        key = (robot, encoding, relative)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("policy")
            words = WORDS[robot] if relative else {}
            built = start_policy(vlm, [recorded[robot]], PolicyOptions(**SMALL, **words, state_encoding=encoding))
            built.model.save_pretrained(made[key])
            built.processor.save_pretrained(made[key])
        return made[key]

    return policy


def acts_like_demonstrations(monkeypatch, processor: KIVLAProcessor, data: LeRobotDataset) -> None:
    """Let any policy predict, normalised, exactly what was demonstrated where it sees this picture."""
    known = {}
    for i in range(len(data)):
        example = {name: [value] for name, value in data[i].items() if name in ("images", "text", "state", "actions")}
        batch = processor(**example, action_is_pad=[np.zeros(CHUNK, bool)])
        known[batch["pixel_values"][0].numpy().tobytes()] = batch["actions"][0]
    assert len(known) == len(data)

    def sample_actions(self, pixel_values, **inputs):
        return torch.stack([known[pixels.cpu().numpy().tobytes()] for pixels in pixel_values])

    monkeypatch.setattr(KIVLAForActionPrediction, "sample_actions", sample_actions)


def observation(example: dict) -> dict:
    return {"images": {"front": example["images"][0]}, **{name: example[name] for name in ("text", "state")}}


# ------------------------------------------------------------------------------------------------------- every door
@pytest.mark.parametrize("encoding", ["text", "none"])
@pytest.mark.parametrize("is_relative", [True, False], ids=["relative", "absolute"])
@pytest.mark.parametrize("robot", NAMES)
def test_every_door_gives_the_demonstrated_targets(
    policies, recorded, monkeypatch, tmp_path, robot, is_relative, encoding
):
    folder, data = policies(robot, encoding, is_relative), recorded[robot]
    processor = KIVLAProcessor.from_pretrained(folder)
    acts_like_demonstrations(monkeypatch, processor, data)
    pipe = ActionPredictionPipeline(model=KIVLAForActionPrediction.from_pretrained(folder), processor=processor)
    examples = [data[i] for i in range(0, len(data), 5)]
    targets = np.stack([example["actions"] for example in examples])

    def same(actions, what: str, expected=targets) -> None:
        np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-5 * np.abs(targets).max(), err_msg=what)

    observations = [observation(example) for example in examples]
    chunks = processor(
        **{name: [e[name] for e in examples] for name in ("images", "text", "state", "actions")},
        action_is_pad=[np.zeros(CHUNK, bool)] * len(examples),
    )["actions"]
    states = np.stack([example["state"] for example in examples])
    same(processor.unnormalize_actions(chunks.numpy(), state=states), "processor")
    same(np.stack([result["actions"] for result in pipe(observations)]), "pipeline")
    assert all(result["clipped"]["values"] == 0 for result in pipe(observations)), "recorded actions are in range"
    same(PipelinePolicy(pipe)(observations), "roll-out")
    executor = ChunkExecutor(pipe)
    same(np.stack([executor(observations[0]) for _ in range(CHUNK)]), "executor", targets[0])
    served = ServedPolicy(pipe)
    same(np.stack([served(given)["actions"] for given in observations]), "served policy")
    results = predict_dataset(pipe, data, num_frames=9)
    real = ~results["is_pad"]
    same(results["predicted"][real], "predict", results["demonstrated"][real])
    args = KIVLATrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = KIVLATrainer(pipe.model, args, train_dataset=data, processing_class=processor)
    output = trainer.predict(examples)
    real = ~np.isnan(output.label_ids)
    same(output.predictions[real], "trainer", output.label_ids[real])


def test_action_tokens_are_of_relative_chunks(policies, recorded):
    data, processor = recorded["so101"], KIVLAProcessor.from_pretrained(policies("so101", "text", True))
    batch = processor(**{name: [data[3][name]] for name in ("images", "text", "state", "actions")})
    (chunk,) = processor.decode_actions(batch["labels"])
    np.testing.assert_allclose(chunk, batch["actions"][0, :, :6].clip(-1, 1), atol=1.01 / 256, rtol=0)


def test_over_the_network(policies, recorded, monkeypatch):
    folder, data = policies("so101", "none", True), recorded["so101"]
    processor = KIVLAProcessor.from_pretrained(folder)
    acts_like_demonstrations(monkeypatch, processor, data)
    pipe = ActionPredictionPipeline(model=KIVLAForActionPrediction.from_pretrained(folder), processor=processor)

    async def answers(given: dict) -> dict:
        async with (
            PolicyServer(ServedPolicy(pipe), ObservationReader()).listen(port=0) as port,
            connect(port) as client,
        ):
            await client.recv()
            return await ask(client, given)

    found = asyncio.run(answers(observation(data[3])))["actions"]
    np.testing.assert_allclose(found, data[3]["actions"], rtol=1e-5, atol=1e-3)


def test_commands(policies, recorded, monkeypatch, tmp_path):
    folder, data = policies("so101", "none", True), recorded["so101"]
    acts_like_demonstrations(monkeypatch, KIVLAProcessor.from_pretrained(folder), data)
    main(
        ["predict", str(folder), "--dataset", data.name, "--num_frames", "9", "--output_dir", str(tmp_path / "predict")]
    )
    report = json.loads((tmp_path / "predict" / "predict.json").read_text())
    assert report["action_mae"] < 1e-4 and report["mean_action_mae"] > 1
    main(["evaluate", str(folder), "--dataset", data.name, "--num_frames", "9", "--output_dir", str(tmp_path / "own")])
    report = json.loads((tmp_path / "own" / "evaluate.json").read_text())
    assert report["action_error"]["mae"] < 1e-4
    assert report["tokenizer"]["rmse_robot_units"] < 3, "a 256th of the offsets, not of the whole range"


@pytest.mark.parametrize("encoding", ["text", "none"])
def test_without_a_state_no_door_opens(policies, recorded, encoding):
    folder, data = policies("aloha", encoding, True), recorded["aloha"]
    processor = KIVLAProcessor.from_pretrained(folder)
    pipe = ActionPredictionPipeline(model=KIVLAForActionPrediction.from_pretrained(folder), processor=processor)
    given = {name: value for name, value in observation(data[0]).items() if name != "state"}
    for door, error in (
        (lambda: pipe(given), ValueError),
        (lambda: ChunkExecutor(pipe)(given), ValueError),
        (lambda: PipelinePolicy(pipe)([given]), ValueError),
        (lambda: ServedPolicy(pipe)(given), RequestRefused),
        (lambda: processor.unnormalize_actions(np.zeros((CHUNK, 16))), ValueError),
    ):
        with pytest.raises(error, match="no `state`, and this policy's actions are relative"):
            door()
    stateless = LeRobotDataset(data.name, CHUNK, state_key="none")
    with pytest.raises(ValueError, match="a state of 0 dimensions, the policy needs 14"):
        continue_policy(BasePolicy(folder), [stateless], PolicyOptions())
    args = KIVLATrainingArguments(output_dir=str(folder / "run"), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="has no state"):
        KIVLATrainer(pipe.model, args, train_dataset=stateless, processing_class=processor)


# --------------------------------------------------------------------------------------------------------- statistics
@pytest.mark.parametrize("robot", NAMES)
def test_statistics_are_those_of_all_chunks(policies, recorded, robot):
    """Brute force over the items: every real step of every chunk against the state that the item has."""
    data, processor = recorded[robot], KIVLAProcessor.from_pretrained(policies(robot, "none", True))
    relative, offsets = processor.robot().units.relative, []
    for i in range(len(data)):
        item = data[i]
        chunk = item["actions"][~item["action_is_pad"]].astype(np.float64) - 0.0
        for dimension in relative.dimensions:
            chunk[:, dimension] -= item["state"][dimension].astype(np.float64)
        if robot == "so101":
            chunk[:, 4] = (chunk[:, 4] + 180) % 360 - 180
        offsets += list(chunk)
    expected = compute_statistics(np.array(offsets).astype(np.float32))
    found = processor.statistics["relative_actions"]
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
    assert len(offsets) == sum(min(CHUNK, length - i) for length in LENGTHS for i in range(length))
    np.testing.assert_array_equal(processor.statistics["actions"]["max"], data.statistics["actions"]["max"])


def test_fast_is_fitted_on_relative_chunks(vlm, recorded):
    """What it was fitted on are the chunks that training gives it."""
    data = recorded["so101"]
    options = {**SMALL, "action_tokenizer": "fast", "action_vocab_size": 200}
    built = start_policy(vlm, [data], PolicyOptions(**options, **WORDS["so101"], state_encoding="none"))
    relative = built.processor.robot().units.relative
    np.testing.assert_array_equal(chunk_states(data, 9), [data[int(i)]["state"] for i in np.linspace(0, 39, 9).round()])
    whole = [data[i] for i in range(len(data)) if not data[i]["action_is_pad"].any()]
    chunks = built.processor.robot().actions.normalize(
        to_relative(np.stack([e["actions"] for e in whole]), np.stack([e["state"] for e in whole]), relative)
    )
    before = built.processor.action_tokenizer.num_clipped
    built.processor.action_tokenizer.encode(chunks)
    assert built.processor.action_tokenizer.num_clipped == before, "all of its coefficients were seen"
    assert any("relative to the state: shoulder_pan.pos" in note for note in built.notes)


def test_offsets_are_not_made_relative_twice(tmp_path, recorded):
    for robot, data in recorded.items():
        spec = told(data, **WORDS[robot])
        assert offsets_already([data], spec) == []
    deltas = record(tmp_path / "deltas", "aloha", deltas=True)
    found = offsets_already([deltas], told(deltas, relative_actions=["aloha"]))
    assert len(found) == 12, "all joints"


@pytest.mark.parametrize(
    "angles, message",
    [
        ({"wrapping_angles": ["wrist_roll=-3.14:3.14"]}, "wrist_roll.pos is said to wrap from -3.14 to 3.14, and was"),
        ({"wrapping_angles": ["wrist_roll=0:360"]}, "wrist_roll.pos is said to wrap from 0 to 360"),
        ({"rotations": ["0,1,2=euler_xyz"]}, "part of a rotation as euler_xyz, whose values are within ±6.283"),
        ({"rotations": ["0,1,2=axis_angle"]}, "part of a rotation as axis_angle"),
        ({"rotations": ["0,1,2,3=quaternion_xyzw"]}, "part of a rotation as quaternion_xyzw, whose .* within ±1"),
    ],
)
def test_angles_in_other_units_are_refused(recorded, angles, message):
    data = recorded["so101"]
    relative = told(data, relative_actions=["so101"], **angles)
    with pytest.raises(ValueError, match=message):
        robot_statistics([data], relative)


def test_radians_that_are_said_to_be_degrees_are_told(recorded):
    data = recorded["aloha"]
    relative = told(
        data, relative_actions=["aloha"], wrapping_angles=["0=-180:180"], rotations=["3,4,5=euler_xyz_degrees"]
    )
    ends = {"min": np.full(14, -3.0), "max": np.full(14, 3.1)}
    statistics = {**robot_statistics([data], relative), "state": ends, "actions": ends}
    assert in_radians(relative, statistics) == [0, 3, 4, 5]
    assert any("the values look like radians" in note for note in relative_notes(None, [data], relative, statistics))
    relative = told(recorded["so101"], relative_actions=["so101"], wrapping_angles=["wrist_roll=-180:180"])
    assert in_radians(relative, robot_statistics([recorded["so101"]], relative)) == []


def test_the_error_of_an_angle_is_the_shorter_way(policies, recorded, monkeypatch, tmp_path):
    """A degree beyond the end of the range is a degree, and not a whole turn but one degree."""
    data = recorded["so101"]
    folder = policies("so101", "text", True)
    processor = KIVLAProcessor.from_pretrained(folder, clip_actions=False)
    pipe = ActionPredictionPipeline(model=KIVLAForActionPrediction.from_pretrained(folder), processor=processor)
    acts_like_demonstrations(monkeypatch, processor, data)
    exact, normalize = KIVLAForActionPrediction.sample_actions, processor.robot().units.normalizer.normalize
    one_degree = normalize(np.eye(6)[4]) - normalize(np.zeros(6))

    def a_degree_too_far(self, pixel_values, **inputs):
        chunk = exact(self, pixel_values, **inputs).clone()
        chunk[..., :6] += torch.as_tensor(one_degree, dtype=chunk.dtype)
        return chunk

    monkeypatch.setattr(KIVLAForActionPrediction, "sample_actions", a_degree_too_far)
    predicted = predict_dataset(pipe, data, len(data))
    wrapped = np.abs(predicted["demonstrated"][..., 4]) > 179
    assert wrapped.any(), "the data turns beyond the end of its range"
    np.testing.assert_allclose(predicted["action_mae"], 1 / 6, rtol=1e-3)
    trainer = KIVLATrainer(pipe.model, KIVLATrainingArguments(str(tmp_path), use_cpu=True), processing_class=processor)
    found = trainer.predict(data)
    np.testing.assert_allclose(found.metrics["test_action_mae"], 1 / 6, rtol=1e-3)
    np.testing.assert_allclose(np.nanmean(np.abs(found.predictions - found.label_ids)), 1 / 6, rtol=1e-3)


def test_what_has_no_mean_is_not_averaged(policies):
    def pipe(robot: str) -> ActionPredictionPipeline:
        folder = policies(robot, "text", True)
        model = KIVLAForActionPrediction.from_pretrained(folder)
        return ActionPredictionPipeline(model=model, processor=KIVLAProcessor.from_pretrained(folder))

    with pytest.raises(ValueError, match=r"wrist_roll\.pos: a mean of angles that wrap"):
        ChunkExecutor(pipe("so101"), way="ensemble")
    with pytest.raises(ValueError, match=r"wrist_roll\.pos: a mean of angles that wrap"):
        rollout(PipelinePolicy(pipe("so101")), FakeReachVectorEnv(1), [0], 1, 1, acting=Acting("ensemble"))
    ChunkExecutor(pipe("aloha"), way="ensemble")
    # Nor are its angles turned the long way round by limits.
    with pytest.raises(ValueError, match=r"ActionLimits\(\.\.\., wraps=\{4: \(-180\.0, 180\.0\)\}"):
        ChunkExecutor(pipe("so101"), limits=ActionLimits(30, max_speed=90))
    ChunkExecutor(pipe("so101"), limits=ActionLimits(30, max_speed=90, wraps={4: (-180, 180)}))
    ChunkExecutor(pipe("aloha"), limits=ActionLimits(50, max_speed=2))


def test_actions_in_other_units_are_noticed(policies, recorded):
    units = KIVLAProcessor.from_pretrained(policies("so101", "text", True)).robot().units
    actions = recorded["so101"][3]["actions"]
    units.check_plausible(actions)
    with pytest.raises(ValueError, match=r"widths of the recorded range .* are they in robot units"):
        units.check_plausible(np.radians(90) * 57.3 * actions)


def told(data: LeRobotDataset, **options):
    return told_relative(data, PolicyOptions(**options))


# ---------------------------------------------------------------------------------------------------- training goes on
def test_training(vlm, recorded, tmp_path, capsys):
    """`kivla train` says what it learns, saves it, and goes on with it."""
    data, folder = recorded["so101"], tmp_path / "run"
    options = [f"--{name}={value}" for name, value in {**TINY, "max_action_dim": 6}.items()]
    given = [*options, "--dataset", data.name, "--relative_actions", "all", "--wrapping_angles", "wrist_roll=-180:180"]
    main(["train", "--vlm", str(vlm), "--output_dir", str(folder), "--max_steps", "2", *given])
    said = capsys.readouterr().out
    assert "relative to the state: shoulder_pan.pos" in said and "absolute: gripper.pos" in said
    metrics = json.loads((folder / "eval_results.json").read_text())
    assert np.isfinite(metrics["eval_train_action_mae"]) and metrics["eval_train_action_mae"] < 60, "near the state"
    processor = KIVLAProcessor.from_pretrained(folder)
    assert processor.robot().units.relative.wraps == {4: (-180.0, 180.0)}
    assert "cannot act without the state" in (folder / "README.md").read_text()
    continue_policy(BasePolicy(folder), [data], PolicyOptions())
    with pytest.raises(ValueError, match=r"--relative_actions: .* the policy has relative"):
        continue_policy(BasePolicy(folder), [data], PolicyOptions(relative_actions=["none"]))


def test_adapting(policies, recorded, tmp_path):
    base, data = policies("so101", "text", True), recorded["so101"]
    kept = adapt_policy(BasePolicy(base), [data], PolicyOptions())
    assert kept.processor.robot().units.relative == KIVLAProcessor.from_pretrained(base).robot().units.relative
    other = adapt_policy(BasePolicy(base), [data], PolicyOptions(relative_actions=["none"]))
    assert other.processor.robot().units.relative is None and "relative_actions" not in other.processor.statistics
    with pytest.raises(ValueError, match=r"it is not plain which of .* Say it with --relative_actions"):
        adapt_policy(BasePolicy(base), [recorded["aloha"]], PolicyOptions())
    moved = adapt_policy(BasePolicy(base), [recorded["aloha"]], PolicyOptions(relative_actions=["aloha"]))
    assert moved.processor.robot().units.relative.dimensions == [*range(6), *range(7, 13)]
    pi = adapt_policy(
        BasePolicy(base), [recorded["aloha"]], PolicyOptions(relative_actions=["aloha"], adapt_to_pi=True)
    )
    assert pi.processor.robot().adapt_to_pi
    mean = recorded["aloha"].statistics["state"]["mean"][[1, 8]]
    np.testing.assert_allclose(pi.processor.statistics["state"]["mean"][[1, 8]], -mean, rtol=1e-5)
    assert range_problems(pi.processor.robot(), recorded["aloha"]) == []


def test_options_that_cannot_apply_are_named(recorded):
    data = recorded["so101"]
    with pytest.raises(ValueError, match="--wrapping_angles cannot apply: there are no --relative_actions"):
        told(data, wrapping_angles=["wrist_roll=-180:180"])
    with pytest.raises(ValueError, match=r"--relative_actions for .*: 'elbow' is no dimension"):
        told(data, relative_actions=["elbow"])
    stateless = LeRobotDataset(data.name, CHUNK, state_key="none")
    with pytest.raises(ValueError, match="has no state, so that no action can be relative"):
        told(stateless, relative_actions=["so101"])


def test_a_robot_of_several_has_its_own_words(vlm, recorded):
    options = PolicyOptions(relative_actions=["arm:so101", "pair:aloha"])
    arm = LeRobotDataset(recorded["so101"].name, CHUNK, robot="arm")
    pair = LeRobotDataset(recorded["aloha"].name, CHUNK, robot="pair")
    robots = ["arm", "pair"]
    assert told_relative(arm, options, robots).dimensions == [0, 1, 2, 3, 4]
    assert len(told_relative(pair, options, robots).dimensions) == 12
    built = start_policy(vlm, [arm, pair], PolicyOptions(**SMALL, relative_actions=options.relative_actions))
    for data in (arm, pair):
        example = {
            name: [value] for name, value in data[3].items() if name in ("images", "text", "state", "actions", "robot")
        }
        chunk = built.processor(**example)["actions"].numpy()
        back = built.processor.unnormalize_actions(chunk, data.robot, state=data[3]["state"])
        np.testing.assert_allclose(back[0], data[3]["actions"], rtol=1e-5, atol=1e-3)


def test_what_is_left_of_a_chunk_is_seen_from_the_new_state(policies, recorded, monkeypatch):
    """Real-time chunking through the pipeline: absolute actions come in, the model has them relative to the new
    state."""
    folder, data = policies("so101", "none", True), recorded["so101"]
    processor = KIVLAProcessor.from_pretrained(folder)
    pipe = ActionPredictionPipeline(model=KIVLAForActionPrediction.from_pretrained(folder), processor=processor)
    seen = []

    def sample_actions(rtc, **inputs):
        seen.append(rtc)
        return rtc.previous

    monkeypatch.setattr(pipe.model, "sample_actions", sample_actions)
    old, new = data[4], data[6]
    left = old["actions"][2:]  # two steps later
    given = {**observation(new), "previous_actions": left, "delay": 1}
    found = pipe(given, rtc="guidance")["actions"]
    (rtc,) = seen
    expected = processor.robot().actions.normalize(to_relative(left, new["state"], processor.robot().units.relative))
    np.testing.assert_allclose(rtc.previous[0, : len(left), :6], expected, atol=1e-5)
    np.testing.assert_allclose(found[: len(left)], left, rtol=1e-5, atol=1e-3)
    del given["state"]
    with pytest.raises(ValueError, match="no `state`"):
        pipe(given, rtc="guidance")
