"""Normalisation, cameras and prompt of π0 and π0.5: openpi's norm_stats.json, LeRobot's processor files, KIVLA's
processor.

* Padded action dimensions: openpi and LeRobot train all dimensions of a chunk, noise included, where KIVLA keeps unused
  ones at zero. A converted processor has `noise_padding=True`; `action_dim` stays the robot's own.
* Normalisation: openpi adds 1e-6 to the spread of every dimension, and so does KIVLA. LeRobot divides by the quantile
  range itself and by `std + 1e-8`: a relative difference of about 1e-6 / spread. Statistics are taken as they are.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import ProcessorMixin

from ..modeling_kivla import KIVLAConfig
from ..processing import KIVLAProcessor
from ..processing.camera_names import PI_SLOTS, short_name
from ..processing.normalization import plain_statistics, statistics_from_json
from ..processing.relative_actions import RelativeActions
from ..processing.robot_spec import RobotSpec
from ..processing.saved_processor import CONFIG_FILE, VLM_PROCESSOR_FOLDER
from . import lerobot_relative
from .lerobot_relative import ABSOLUTE_STEP, RELATIVE_STEP
from .pi_config import lerobot_settings
from .weight_files import CheckpointError, read_json, write_json

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor", "policy_postprocessor"
PROMPT_WITHOUT_STATE = "{text}\n"
_MODES = {"QUANTILES": "quantile", "MEAN_STD": "mean_std", "IDENTITY": "none"}  # LeRobot's name -> ours
_FEATURES = {"state": "observation.state", "actions": "action"}  # our name -> LeRobot's
LEARNED = {"actions": "relative_actions"}  # whose statistics a checkpoint has, where its actions are relative
# LeRobot's default, openpi's formula
_VARIANT_MODES = {"pi0": "mean_std", "pi05": "quantile"}
# What KIVLAProcessor and the VLM's own processor stand for
_KNOWN_STEPS = {
    "rename_observations_processor",
    "to_batch_processor",
    "normalizer_processor",
    "unnormalizer_processor",
    RELATIVE_STEP,
    ABSOLUTE_STEP,
    "pi0_new_line_processor",
    "pi05_prepare_state_tokenizer_processor_step",
    "tokenizer_processor",
    "device_processor",
}

Statistics = dict[str, dict[str, np.ndarray]]


# ------------------------------------------------------------------------------------------------------- reading
def conventions(config: KIVLAConfig, mode: str) -> dict:
    """How these policies turn observations into inputs, as arguments of `KIVLAProcessor`."""
    prompt = {} if config.state_encoding == "text" else {"action_prompt": PROMPT_WITHOUT_STATE}
    return {
        **{name: getattr(config, name) for name in ("chunk_size", "max_action_dim", "max_state_dim", "state_encoding")},
        "normalization": mode,
        "noise_padding": True,
        "square_images": True,
        **prompt,
    }


@dataclass
class UnfinishedProcessor:
    """What is known of the processor of a base model without statistics of a robot, or without the VLM's processor.

    `kivla train --adapt` makes it whole, and so does `KIVLAProcessor.from_pretrained(folder, statistics=...,
    vlm_processor=...)`.
    """

    settings: dict
    vlm_processor: ProcessorMixin | None

    def save_pretrained(self, folder: Path) -> None:
        write_json(folder / CONFIG_FILE, {"processor_class": KIVLAProcessor.__name__, **self.settings})
        if self.vlm_processor is not None:
            self.vlm_processor.save_pretrained(folder / VLM_PROCESSOR_FOLDER)


def make_processor(
    vlm_processor: ProcessorMixin | None,
    config: KIVLAConfig,
    statistics: Statistics | None,
    mode: str,
    cameras: list[str],
    action_dim: int | None,
    relative: RelativeActions | str | None = None,
    adapt_to_pi: bool = False,
) -> KIVLAProcessor | UnfinishedProcessor:
    """The processor of a converted policy.

    Args:
        relative: which of its actions are relative to the state; "unknown" where nobody has said it.
        adapt_to_pi: of `KIVLAProcessor`.

    Raises:
        CheckpointError: statistics that do not fit the policy or the mode.
    """
    settings = conventions(config, mode)
    if isinstance(relative, RelativeActions) and statistics is not None:
        statistics = {LEARNED.get(name, name): values for name, values in statistics.items()}
    robot = {"statistics": statistics, "cameras": cameras, "action_dim": action_dim}
    if relative is not None:
        robot["relative_actions"] = relative
    if adapt_to_pi:
        robot["adapt_to_pi"] = True
    has_statistics = statistics is not None or mode == "none"
    try:
        if vlm_processor is not None and has_statistics:
            return KIVLAProcessor(vlm_processor, **settings, **robot)
        if has_statistics:
            shared = {"normalization": mode, "max_action_dim": config.max_action_dim}
            robot = RobotSpec(**robot, reads_state=config.state_encoding != "none", **shared).to_dict()
        elif isinstance(relative, RelativeActions):
            robot["relative_actions"] = relative.to_json()
    except ValueError as error:
        raise CheckpointError(f"No processor can be made of the checkpoint's statistics: {error}") from error
    return UnfinishedProcessor({**settings, "action_tokenizer": None, **robot}, vlm_processor)


def read_statistics(folder: Path, variant: str, norm_stats: str | None = None) -> tuple[Statistics | None, str]:
    """Normalisation of a checkpoint: statistics as KIVLAProcessor has them (None if there are none), and the mode.

    Args:
        variant: "pi0" or "pi05".
        norm_stats: openpi's file; by default LeRobot's files in the folder, or the only norm_stats.json in assets/.

    Raises:
        CheckpointError: several norm_stats.json, a damaged one, or a normalisation that KIVLA does not have.
    """
    preprocessor = folder / f"{PREPROCESSOR}.json"
    if norm_stats is None and preprocessor.is_file():
        return _lerobot_statistics(preprocessor)
    files = [Path(norm_stats)] if norm_stats else sorted((folder / "assets").rglob("norm_stats.json"))
    if len(files) > 1:
        raise CheckpointError(
            f"There are statistics of {len(files)} robots: {', '.join(map(str, files))}. Pass one with --norm_stats."
        )
    if not files:
        return None, _VARIANT_MODES[variant]
    values = read_json(files[0]).get("norm_stats", {})
    if not _FEATURES.keys() <= values.keys():
        raise CheckpointError(
            f'{files[0]} should be norm_stats.json of openpi, {{"norm_stats": {{"state", "actions"}}}}; it '
            + (f"has {sorted(values)}." if files[0].is_file() else "does not exist.")
        )
    known = {name: {kind: v for kind, v in values[name].items() if v is not None} for name in _FEATURES}
    return _checked(known, files[0]), _VARIANT_MODES[variant]


def crop_statistics(statistics: Statistics, dims: dict[str, int | None], notes: list[str]) -> Statistics:
    """Statistics of the first `dims[name]` dimensions (all if None); those that look padded are noted.

    Older openpi checkpoints were normalised after padding to 32 dimensions, with zeros as their statistics.
    """
    cropped = {}
    for name, values in statistics.items():
        dim = dims[name]
        cropped[name] = {kind: numbers[:dim] for kind, numbers in values.items()}
        varies = np.any(list(cropped[name].values()), axis=0)
        real = int(varies.nonzero()[0].max(initial=-1)) + 1
        if real < len(varies):
            notes.append(
                f"the statistics of {name} have {len(varies)} dimensions, the last {len(varies) - real} of them zero "
                f"throughout. If those are padding, pass --{name.removesuffix('s')}_dim {real}"
            )
    return cropped


def cameras_of(settings: dict) -> list[str]:
    """Names of the cameras in LeRobot's config.json, without the empty ones that it pads with; openpi's three slots
    where there are none."""
    features = settings.get("input_features") or {}
    names = [name for name, feature in features.items() if feature["type"] == "VISUAL" and "empty_camera" not in name]
    return [short_name(name) if short_name(name) in PI_SLOTS else name for name in names] or list(PI_SLOTS)


def lerobot_action_dim(settings: dict) -> int | None:
    """Dimensions of an action in LeRobot's config.json; None if it does not tell."""
    feature = (settings.get("output_features") or {}).get("action")
    return None if feature is None else feature["shape"][0]


def step_notes(folder: Path) -> list[str]:
    """What LeRobot's processor files do and KIVLAProcessor does not."""
    notes = []
    for file in (f"{PREPROCESSOR}.json", f"{POSTPROCESSOR}.json"):
        for step in read_json(folder / file).get("steps", []):
            name, config = step.get("registry_name") or step.get("class"), step.get("config") or {}
            if name not in _KNOWN_STEPS and config.get("enabled", True):
                notes.append(f"{file} has the step {name}, which KIVLA does not do: {config}")
            if config.get("rename_map"):
                notes.append(f"LeRobot renames observations, KIVLA takes the new names: {config['rename_map']}")
    return notes


def _lerobot_statistics(file: Path) -> tuple[Statistics | None, str]:
    steps = [step for step in read_json(file)["steps"] if step.get("registry_name") == "normalizer_processor"]
    if len(steps) != 1:
        raise CheckpointError(f"{file} has {len(steps)} steps named normalizer_processor, expected one.")
    modes = {steps[0]["config"]["norm_map"].get(kind, "IDENTITY") for kind in ("STATE", "ACTION")}
    if len(modes) > 1 or not modes <= _MODES.keys():
        raise CheckpointError(
            f"{file} normalises by {' and '.join(sorted(modes))}; KIVLA normalises state and actions alike, by one of "
            f"{', '.join(_MODES)}."
        )
    mode = _MODES[modes.pop()]
    state_file = steps[0].get("state_file")
    if state_file is None:
        return None, mode
    if not (file.parent / state_file).is_file():
        raise CheckpointError(f"{file} names {state_file}, which is not there. Download the checkpoint again.")
    tensors = {name: tensor.numpy() for name, tensor in load_file(file.parent / state_file).items()}
    statistics = {
        ours: {name.rpartition(".")[2]: v for name, v in tensors.items() if name.rpartition(".")[0] == theirs}
        for ours, theirs in _FEATURES.items()
    }
    return (_checked(statistics, file) if all(statistics.values()) else None), mode


def _checked(statistics: dict[str, dict], file: Path) -> Statistics:
    try:
        return {name: statistics_from_json(values) for name, values in statistics.items()}
    except ValueError as error:
        raise CheckpointError(f"The statistics of {file} are damaged: {error}") from error


def finished_processor(folder: Path) -> KIVLAProcessor | None:
    """Of a KIVLA policy; None if it has no statistics, or not the VLM's processor."""
    if not (folder / VLM_PROCESSOR_FOLDER).is_dir():
        return None
    settings = KIVLAProcessor.saved_settings(folder)
    is_base = "robots" not in settings and settings["statistics"] is None and settings.get("normalization") != "none"
    return None if is_base else KIVLAProcessor.from_pretrained(folder)


# ------------------------------------------------------------------------------------------------------- writing
def write_lerobot_files(output: Path, variant: str, config: KIVLAConfig, processor: KIVLAProcessor | None) -> None:
    """LeRobot's config.json and, if the policy has a processor, the pipelines around it.

    They normalise, write the prompt, tokenize; and normalise back.
    """
    # config.json: what LeRobot makes the policy of.
    statistics = (processor.statistics if processor is not None else None) or {}
    relative = None if processor is None else processor.robot().units.relative
    if relative is not None:
        statistics = {"state": statistics["state"], "actions": statistics["relative_actions"]} if statistics else {}
    features = _features(config, processor, statistics)
    ours = processor.normalization if processor is not None else _VARIANT_MODES[variant]
    mode = next(theirs for theirs, name in _MODES.items() if name == ours)
    norm_map = {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode}
    actions = {"action": features["action"]}
    settings = {
        "type": variant,
        "n_obs_steps": 1,
        **lerobot_settings(config),
        "normalization_mapping": norm_map,
        "input_features": {name: feature for name, feature in features.items() if name != "action"},
        "output_features": actions,
    }
    if relative is not None:
        told = lerobot_relative.lerobot_settings(relative)
        settings |= {
            "use_relative_actions": True,
            "relative_exclude_joints": told["exclude_joints"],
            "action_feature_names": told["action_names"],
        }
    write_json(output / "config.json", settings)
    if processor is None:
        return

    # The steps before the policy, in the order of LeRobot's own; then those after it.
    tokenizer = _step(
        "tokenizer_processor",
        max_length=200 if variant == "pi05" else 48,
        task_key="task",
        padding_side="right",
        padding="max_length",
        truncation=True,
        tokenizer_name="google/paligemma-3b-pt-224",
    )
    device = _step("device_processor", device="cpu", float_dtype=None)
    before = [_step("rename_observations_processor", rename_map={}), _step("to_batch_processor")]
    normalizer = _step("normalizer_processor", eps=1e-8, features=features, norm_map=norm_map)
    if variant == "pi05":  # the prompt holds the normalised state
        prompt = _step("pi05_prepare_state_tokenizer_processor_step", max_state_dim=config.max_state_dim)
        before += [normalizer, prompt, tokenizer, device]
    else:
        before += [_step("pi0_new_line_processor"), tokenizer, device, normalizer]
    after = [_step("unnormalizer_processor", eps=1e-8, features=actions, norm_map=norm_map), device]
    if relative is not None:  # the differences are normalised
        before.insert(before.index(normalizer), _step(RELATIVE_STEP, enabled=True, **told))
        after.insert(1, _step(ABSOLUTE_STEP, enabled=True))
    # Statistics go into a file beside each step that needs them.
    tensors = {
        f"{_FEATURES[name]}.{kind}": torch.from_numpy(numbers)  # float64: LeRobot rounds when it reads
        for name, values in statistics.items()
        for kind, numbers in plain_statistics(values).items()
    }
    for name, steps in ((PREPROCESSOR, before), (POSTPROCESSOR, after)):
        for i, step in enumerate(steps):
            if "norm_map" in step["config"] and tensors:
                step["state_file"] = f"{name}_step_{i}_{step['registry_name']}.safetensors"
                save_file(tensors, output / step["state_file"])
        write_json(output / f"{name}.json", {"name": name, "steps": steps})


def export_notes(variant: str, config: KIVLAConfig, processor: KIVLAProcessor | None) -> list[str]:
    """Where LeRobot will not do what the policy was trained for."""
    if processor is None:
        return ["no processor files were written: the policy has no processor"]
    prompt = "Task: {text}, State: {state};\nAction: " if variant == "pi05" else PROMPT_WITHOUT_STATE
    unused = range(processor.action_dim, config.max_action_dim)
    differences = {
        f"LeRobot's prompt is {prompt!r}, this policy's {processor.action_prompt!r}": processor.action_prompt != prompt,
        "LeRobot lets the action expert act: it does not know this policy's action tokens": (
            processor.action_tokenizer is not None
        ),
        f"this policy was trained with zeros in {len(unused)} unused action dimensions, LeRobot puts noise there": (
            len(unused) > 0 and not processor.noise_padding
        ),
        "LeRobot's π0 does not know that this policy was trained with delays (rtc_max_delay)": (
            variant == "pi0" and config.rtc_max_delay > 0
        ),
        "only a LeRobot that knows rtc_training_max_delay (2026) reads its config": (
            variant == "pi05" and config.rtc_max_delay > 0
        ),
    }
    return [note for note, applies in differences.items() if applies]


def _step(name: str, **config) -> dict:
    return {"registry_name": name, "config": config}


def _lerobot_name(camera: str) -> str:
    return camera if camera.startswith("observation.") else f"observation.images.{camera}"


def _features(config: KIVLAConfig, processor: KIVLAProcessor | None, statistics: Statistics) -> dict[str, dict]:
    size = config.vlm_config.vision_config.image_size
    cameras = (processor.cameras if processor is not None else None) or []
    dims = {name: len(next(iter(values.values()))) for name, values in statistics.items()}
    action_dim = config.max_action_dim if processor is None else processor.action_dim
    return {
        **{_lerobot_name(name): {"type": "VISUAL", "shape": [3, size, size]} for name in cameras},
        _FEATURES["state"]: {"type": "STATE", "shape": [dims.get("state", config.max_state_dim)]},
        _FEATURES["actions"]: {"type": "ACTION", "shape": [action_dim]},
    }
