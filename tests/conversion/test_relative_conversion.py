"""`kivla convert` and relative actions: LeRobot's come along and go back, openpi's have to be told."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import pipeline

from kivla import KIVLAProcessor
from kivla.conversion.convert import UNKNOWN
from kivla.conversion.lerobot_relative import lerobot_settings, read_relative
from kivla.conversion.weight_files import CheckpointError
from kivla.processing.relative_actions import RelativeActions, Rotation
from tests.conversion.test_convert import (
    CHUNK,
    add_norm_stats,
    lerobot,
    lerobot_config,
    run,
    statistics,
    vlm_processor,  # noqa: F401
    write,
)
from tests.helpers import pi_reference as reference
from tests.helpers.pi_reference import TINY

DIM = 4
NAMES = ["waist", "elbow", "wrist", "gripper"]
STEP = {"enabled": True, "exclude_joints": ["gripper"], "action_names": NAMES}
STATE = np.array([0.3, -0.2, 1.0, 0.5])
STATISTICS = {"state": statistics(DIM), "actions": statistics(DIM)}
MASK = np.array([1, 1, 1, 0])


def lerobot_folder(folder: Path, variant: str = "pi05", step: dict | None = STEP) -> Path:
    """A checkpoint as LeRobot writes it: the differences are normalised."""
    mode = "QUANTILES" if variant == "pi05" else "MEAN_STD"
    write(folder, lerobot(reference.random_weights(variant)), **{**lerobot_config(), "type": variant})
    norm_map = {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode}
    relative = [] if step is None else [{"registry_name": "relative_actions_processor", "config": step}]
    normalizer = {
        "registry_name": "normalizer_processor",
        "config": {"eps": 1e-8, "features": {}, "norm_map": norm_map},
    }
    steps = [*relative, {**normalizer, "state_file": "state.safetensors"}]
    (folder / "policy_preprocessor.json").write_text(json.dumps({"name": "policy_preprocessor", "steps": steps}))
    theirs = {"state": "observation.state", "actions": "action"}
    tensors = {f"{theirs[n]}.{kind}": torch.tensor(v, dtype=torch.float64) for n, of in STATISTICS.items()
               for kind, v in of.items()}  # fmt: skip
    save_file(tensors, folder / "state.safetensors")
    return folder


def openpi_folder(folder: Path) -> Path:
    write(folder, reference.random_weights("pi05"), action_horizon=CHUNK)
    add_norm_stats(folder, STATISTICS)
    return folder


# -------------------------------------------------------------------------------------------------- LeRobot and back
@pytest.mark.parametrize("variant", ["pi0", "pi05"])
def test_lerobot_to_kivla_and_back(tmp_path, vlm_processor, variant):  # noqa: F811
    source = lerobot_folder(tmp_path / "source", variant)
    report = run(source, tmp_path / "kivla", vlm_processor=vlm_processor)
    assert any(
        "actions: relative to the state: waist, elbow, wrist; absolute: gripper" in note for note in report.notes
    )
    processor = KIVLAProcessor.from_pretrained(tmp_path / "kivla")
    assert processor.robot().units.relative == RelativeActions((0, 1, 2, None))
    assert processor.statistics.keys() == {"state", "relative_actions"}

    run(tmp_path / "kivla", tmp_path / "lerobot", to="lerobot")
    before, after = (
        json.loads((tmp_path / "lerobot" / f"policy_{name}.json").read_text())["steps"]
        for name in ("preprocessor", "postprocessor")
    )
    names = [step["registry_name"] for step in before]
    assert names.index("relative_actions_processor") == names.index("normalizer_processor") - 1
    assert next(step for step in before if step["registry_name"] == "relative_actions_processor")["config"] == STEP
    assert [step["registry_name"] for step in after[:2]] == ["unnormalizer_processor", "absolute_actions_processor"]
    assert after[1]["config"] == {"enabled": True}
    config = json.loads((tmp_path / "lerobot" / "config.json").read_text())
    assert config["use_relative_actions"] and config["relative_exclude_joints"] == ["gripper"]
    assert config["action_feature_names"] == NAMES
    given, kept = load_file(source / "state.safetensors"), load_file(tmp_path / "lerobot" / after[0]["state_file"])
    assert given.keys() == kept.keys() and all(torch.equal(given[name], kept[name]) for name in given)

    run(tmp_path / "lerobot", tmp_path / "again", vlm_processor=vlm_processor)
    for file in ("config.json", "processor_config.json"):
        first, again = (json.loads((tmp_path / folder / file).read_text()) for folder in ("kivla", "again"))
        assert first == again, file


def test_what_lerobot_does_is_done(tmp_path, vlm_processor):  # noqa: F811
    """Through the pipeline: LeRobot's own formulas, with the state added to all but the gripper."""
    run(lerobot_folder(tmp_path / "source"), tmp_path / "kivla", vlm_processor=vlm_processor)
    pipe = pipeline("action-prediction", model=str(tmp_path / "kivla"))
    chunk = np.random.default_rng(0).normal(size=(CHUNK, TINY.dim)).astype(np.float32)
    pipe.model.sample_actions = lambda **inputs: torch.from_numpy(chunk[None])
    images = dict.fromkeys(pipe.processor.cameras, np.zeros((8, 8, 3), np.uint8))
    found = pipe({"images": images, "text": "go", "state": STATE})["actions"]
    low, high = (np.array(STATISTICS["actions"][name]) for name in ("q01", "q99"))
    expected = (chunk[:, :DIM] + 1) / 2 * (high - low) + low + STATE * MASK
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(ValueError, match="no `state`"):
        pipe({"images": images, "text": "go"})


def test_what_lerobot_files_can_say(tmp_path):
    """Its rule: a name that contains one of the words is absolute; without names all are relative."""
    file = tmp_path / "policy_preprocessor.json"

    def found(settings: dict | None = None, **config):
        if config:
            step = {"registry_name": "relative_actions_processor", "config": config}
            file.write_text(json.dumps({"steps": [step]}))
        relative = read_relative(file, settings or {}, DIM)
        return None if relative is None else relative.state_dimensions

    in_config = {"use_relative_actions": True, "relative_exclude_joints": ["grip"], "action_feature_names": NAMES}
    assert found(in_config) == (0, 1, 2, None), "where there are no processor files"
    assert found(enabled=False, exclude_joints=[], action_names=NAMES) is None
    assert found(in_config) is None, "the step decides"
    assert found(enabled=True, exclude_joints=["WAIST", "grip"], action_names=NAMES) == (None, 1, 2, None)
    assert found(enabled=True, exclude_joints=["gripper"], action_names=None) == (0, 1, 2, 3)
    assert found(enabled=True, exclude_joints=["gripper"], action_names=NAMES[2:]) == (0, None, 2, 3)
    assert found(enabled=True, exclude_joints=["a", "e", "i"], action_names=NAMES) is None


def test_older_lerobot_files_are_absolute(tmp_path, vlm_processor):  # noqa: F811
    run(lerobot_folder(tmp_path / "source", step=None), tmp_path / "kivla", vlm_processor=vlm_processor)
    assert "relative_actions" not in json.loads((tmp_path / "kivla" / "processor_config.json").read_text())
    message = r"LeRobot's files say of the actions: absolute; --relative_actions says relative"
    with pytest.raises(CheckpointError, match=message):
        run(tmp_path / "source", tmp_path / "other", vlm_processor=vlm_processor, relative_actions=["0-2"])


def test_what_lerobot_cannot_say_is_refused():
    for relative, what in (
        (RelativeActions((0, None), {0: (-180.0, 180.0)}), "angles that wrap"),
        (RelativeActions((0, 1, 2), rotations=(Rotation((0, 1, 2), "axis_angle"),)), "rotations"),
        (RelativeActions((1, 0)), "other dimensions of the state"),
        (RelativeActions((None, 1), names=("j1", "j10")), "names that contain each other"),
    ):
        with pytest.raises(CheckpointError, match=rf"have no {what}.*lerobot_policy_kivla.export"):
            lerobot_settings(relative)
    assert lerobot_settings(RelativeActions((None, *range(1, 12))))["exclude_joints"] == ["action_000"]
    assert lerobot_settings(RelativeActions((0, 1)))["exclude_joints"] == []


# ------------------------------------------------------------------------------------------------------------ openpi
def test_openpi_has_to_be_told(tmp_path, vlm_processor):  # noqa: F811
    source = openpi_folder(tmp_path / "source")
    report = run(source, tmp_path / "kivla", vlm_processor=vlm_processor)
    assert (
        str(report).splitlines()[-1].startswith("IT DOES NOT ACT YET: the checkpoint does not say whether its actions")
    )
    assert json.loads((tmp_path / "kivla" / "processor_config.json").read_text())["relative_actions"] == UNKNOWN
    with pytest.raises(ValueError, match=r"not known whether .* kivla convert \.\.\. --relative_actions none"):
        pipeline("action-prediction", model=str(tmp_path / "kivla"))
    with pytest.raises(CheckpointError, match="not known whether"):
        run(tmp_path / "kivla", tmp_path / "lerobot", to="lerobot")
    KIVLAProcessor.from_pretrained(tmp_path / "kivla", relative_actions="none").save_pretrained(tmp_path / "kivla")
    pipeline("action-prediction", model=str(tmp_path / "kivla"))

    run(source, tmp_path / "told", vlm_processor=vlm_processor, relative_actions=["0-2"])
    processor = KIVLAProcessor.from_pretrained(tmp_path / "told")
    chunk = np.random.default_rng(0).normal(size=(CHUNK, TINY.dim))
    low, high = (np.array(STATISTICS["actions"][name]) for name in ("q01", "q99"))
    expected = (chunk[:, :DIM] + 1) / 2 * (high - low + 1e-6) + low + STATE * MASK
    np.testing.assert_allclose(processor.unnormalize_actions(chunk, state=STATE), expected, atol=1e-5)
    for words, message in (
        (["aloha"], "preset aloha is for actions of 14"),
        (["gripper"], "'gripper' is no dimension"),
    ):
        with pytest.raises(CheckpointError, match=f"--relative_actions: .*{message}"):
            run(source, tmp_path / "wrong", vlm_processor=vlm_processor, relative_actions=words)
    with pytest.raises(CheckpointError, match="are for the way to KIVLA"):
        run(tmp_path / "told", tmp_path / "lerobot", to="lerobot", relative_actions=["0-2"])


def test_without_the_vlms_processor_it_is_kept_for_later(tmp_path):
    run(openpi_folder(tmp_path / "source"), tmp_path / "told", relative_actions=["0-2"])
    settings = KIVLAProcessor.saved_settings(tmp_path / "told")
    assert settings["relative_actions"]["state_dimensions"] == [0, 1, 2, None]
    assert settings["statistics"].keys() == {"state", "relative_actions"}
    base = write(tmp_path / "base_source", reference.random_weights("pi05"), action_horizon=CHUNK)
    run(base, tmp_path / "base")
    assert "relative_actions" not in json.loads((tmp_path / "base" / "processor_config.json").read_text()), (
        "a base model without statistics acts only on those of new data"
    )


def test_aloha_in_pi_units(tmp_path, vlm_processor):  # noqa: F811
    """openpi's order: other units, then the difference, then normalised; and back."""
    wide = dataclasses.replace(TINY, dim=14)
    folder = tmp_path / "source"
    write(folder, reference.random_weights("pi05", wide), action_horizon=CHUNK)
    add_norm_stats(folder, {"state": statistics(14), "actions": statistics(14)})
    options = {"relative_actions": ["aloha"], "adapt_to_pi": True}
    run(folder, tmp_path / "kivla", vlm_processor=vlm_processor, **options)
    processor = KIVLAProcessor.from_pretrained(tmp_path / "kivla")
    chunk, state = np.random.default_rng(1).normal(size=(CHUNK, 14)), np.random.default_rng(2).uniform(0, 1, 14)
    flips = np.array([1, -1, -1, 1, 1, 1, 1] * 2)
    in_pi = processor.robot().actions.unnormalize(chunk).astype(np.float64)
    joints = [*range(6), *range(7, 13)]
    in_pi[:, joints] += (flips * state)[joints]
    expected = flips * in_pi
    expected[:, [6, 13]] = (expected[:, [6, 13]] + 0.5476 + 0.6213) / (1.4910 + 0.6213)
    np.testing.assert_allclose(processor.unnormalize_actions(chunk, state=state), expected, atol=1e-5)
    with pytest.raises(CheckpointError, match="adapt_to_pi"):
        run(tmp_path / "kivla", tmp_path / "lerobot", to="lerobot")
