"""Convert π0 and π0.5 of openpi, LeRobot and transformers into a KIVLA policy, and back to LeRobot.

No number is changed, none is guessed, and the report says of every key what became of it. The result is a single
`model.safetensors` (LeRobot reads no other), however many shards there were; see `weight_files` for memory, and
`pi_processors` for what differs between the three in normalisation.
"""

import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers.dynamic_module_utils import custom_object_save

from ..modeling_kivla import KIVLAConfig, KIVLAForActionPrediction
from ..processing import KIVLAProcessor
from ..processing.relative_actions import RelativeActions
from ..processing.relative_words import RELATIVE_HELP, RobotDimensions, parse_relative_actions, preset_size
from ..processing.robot_spec import UNKNOWN, RobotSpec
from ..processing.vlm_processor import load_vlm_processor
from .lerobot_relative import read_relative
from .pi_config import empty_model, expected_weights, is_published_size, lerobot_variant, make_config
from .pi_processors import (
    PREPROCESSOR,
    UnfinishedProcessor,
    cameras_of,
    crop_statistics,
    export_notes,
    finished_processor,
    lerobot_action_dim,
    make_processor,
    read_statistics,
    step_notes,
    write_lerobot_files,
)
from .pi_weights import EMBEDDING, LEROBOT_UNUSED, OUTPUT_LAYER, check, detect_layout, lerobot_name, plan, read_sizes
from .weight_files import WEIGHTS, CheckpointError, Entry, Weights, locate, read_json, write_json, write_weights

REPORT = "conversion_report.json"
# What every user of a converted processor should know
DIFFERENCES = (
    "images are padded to squares as in openpi and LeRobot (square_images), and resized by PaliGemma's own processor",
    "openpi adds 1e-6 to the spread when it normalises, and so does KIVLA; LeRobot does not",
    "padded action dimensions hold noise, as in training (noise_padding)",
    "images go by the names of the cameras; None leaves one out, as openpi masks it",
)


@dataclass
class ConvertArguments:
    """`kivla convert SOURCE OUTPUT_DIR`: layout and variant of the source are found out from its weights."""

    source: str = field(metadata={"help": "Checkpoint: a folder, a file, or a Hub id."})
    output_dir: str = field(metadata={"help": "A new folder."})
    to: str = field(default="kivla", metadata={"choices": ["kivla", "lerobot"], "help": "Layout to write."})
    vlm_processor: str | None = field(
        default=None,
        metadata={"help": "PaliGemma's processor, a folder or Hub id. Without it the policy cannot act yet."},
    )
    norm_stats: str | None = field(
        default=None, metadata={"help": "openpi's norm_stats.json, if not a single one in SOURCE/assets."}
    )
    state_dim: int | None = field(
        default=None, metadata={"help": "Dimensions of the state, where statistics are padded."}
    )
    action_dim: int | None = field(default=None, metadata={"help": "Dimensions of an action, likewise."})
    no_state_in_prompt: bool = field(
        default=False,
        metadata={"help": 'π0.5 that does not see the state (openpi\'s pi05_libero): prompt "{text}\\n".'},
    )
    relative_actions: list[str] | None = field(
        default=None, metadata={"help": f"{RELATIVE_HELP} openpi's files do not say it, and nothing acts until you do."}
    )
    adapt_to_pi: bool = field(
        default=False, metadata={"help": "openpi's option of ALOHA: joints and grippers in the units of pi0."}
    )
    chunk_size: int | None = field(default=None, metadata={"help": "Actions in a chunk, if no config.json says."})
    dtype: str | None = field(
        default=None,
        metadata={
            "choices": ["float32", "bfloat16", "float16"],
            "help": "Cast every weight; by default kept as it is.",
        },
    )
    keep_untied: bool = field(default=False, metadata={"help": "Keep lm_head and embed_tokens apart if they differ."})
    allow_pickle: bool = field(default=False, metadata={"help": "Read .bin, .pt and .pth too (weights only)."})


@dataclass
class Report:
    """What became of every key of the checkpoint.

    Attributes:
        used: key -> name in what was written.
        dropped: key -> why nothing is lost without it.
        missing: name in what was written or in its model -> what stands there, where the checkpoint has no key for it.
        dtypes: how many of the used weights are of each dtype, as read.
    """

    source: str
    layout: str
    variant: str
    to: str
    used: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)
    cast_to: str | None = None
    notes: list[str] = field(default_factory=list)
    does_not_act: str | None = None

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} in {dtype}" for dtype, count in self.dtypes.items())
        lines = [
            f"{self.source}: {self.variant}, {self.layout} layout -> {self.to}",
            f"{len(self.used)} weights used ({kinds}; "
            + (f"cast to {self.cast_to})" if self.cast_to else "kept as they are)"),
            *(f"dropped {key}: {reason}" for key, reason in self.dropped.items()),
            *(f"missing {key}: {stand_in}" for key, stand_in in self.missing.items()),
            *(f"note: {note}" for note in self.notes),
            *([f"\nIT DOES NOT ACT YET: {self.does_not_act}"] if self.does_not_act else []),
        ]
        return "\n".join(lines)


def convert(args: ConvertArguments) -> Report:
    """Read a checkpoint, write a folder; the folder appears when it is complete.

    Raises:
        CheckpointError: a checkpoint that is incomplete, damaged or not understood; an output folder that is not empty.
    """
    output = Path(args.output_dir)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(f"{output} exists and is not an empty folder. Name a new one.")
    if args.to == "lerobot" and (args.relative_actions is not None or args.adapt_to_pi):
        raise CheckpointError(
            "--relative_actions and --adapt_to_pi are for the way to KIVLA: on the way to LeRobot the policy says it."
        )
    # Which layout it is shows in the names of the weights.
    source = locate(args.source, args.allow_pickle)
    weights = Weights(source, args.allow_pickle)
    folder = source if source.is_dir() else source.parent
    layout = detect_layout(weights.shapes)
    if args.to == "lerobot" and layout != "KIVLA":
        raise CheckpointError(
            f"--to lerobot starts from a KIVLA policy, but {args.source} has the {layout} layout. Convert it to KIVLA "
            "first."
        )
    if args.to == "kivla" and layout == "KIVLA":
        raise CheckpointError(f"{args.source} is a KIVLA policy already. Use --to lerobot to export it.")
    # Written aside, and moved when it is whole.
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output.parent, prefix=f".{output.name}_") as unfinished:
        written = Path(unfinished) / "policy"
        written.mkdir()
        if args.to == "lerobot":
            report = to_lerobot(weights, folder, written, args)
        else:
            report = to_kivla(weights, folder, written, args, layout)
        write_json(written / REPORT, asdict(report))
        os.replace(written, output)
    return report


def to_kivla(weights: Weights, folder: Path, output: Path, args: ConvertArguments, layout: str) -> Report:
    given = read_json(folder / "config.json")
    planned = plan(weights.shapes, weights.same, args.keep_untied)
    sizes = read_sizes({target: weights.shapes[source] for target, source in planned.sources.items()})
    vlm_processor = None if args.vlm_processor is None else load_vlm_processor(args.vlm_processor)
    image_token = None if vlm_processor is None else vlm_processor.image_token_id
    reads_state = not args.no_state_in_prompt
    config = make_config(sizes, given, planned.is_tied, args.chunk_size, reads_state, image_token)
    model = empty_model(config)
    model_names = expected_weights(model)
    check(planned.sources, weights.shapes, {target: shape for target, (_, shape) in model_names.items()})

    names = {source: model_names[target][0] for target, source in planned.sources.items()}
    report = Report(args.source, layout, sizes.variant, "KIVLA", used=names, dropped=planned.dropped)
    if planned.is_tied:
        report.missing[OUTPUT_LAYER] = "tied: it is embed_tokens"
    processor = _processor(vlm_processor, config, given, folder, args, report)  # what can fail comes before the weights
    _write(output, weights, report, args.dtype)
    _save_config(model, config, output, report)
    processor.save_pretrained(output)
    return report


def to_lerobot(weights: Weights, folder: Path, output: Path, args: ConvertArguments) -> Report:
    config = KIVLAConfig.from_pretrained(folder)
    variant = lerobot_variant(config)
    processor = finished_processor(folder)
    if processor is not None and len(processor.robots) > 1:
        raise CheckpointError(f"LeRobot's policies are of one robot, this one has {sorted(processor.robots)}.")
    if processor is not None:
        _check_lerobot_actions(processor.robot())
    planned = plan(weights.shapes, weights.same, keep_untied=True)
    expected = expected_weights(empty_model(config))
    check(planned.sources, weights.shapes, {target: shape for target, (_, shape) in expected.items()})
    sources = dict(planned.sources)
    if planned.is_tied:  # LeRobot's published files hold lm_head alone, and its reader copies it
        sources[OUTPUT_LAYER] = sources.pop(EMBEDDING)

    names = {source: lerobot_name(target) for target, source in sources.items()}
    report = Report(args.source, "KIVLA", variant, "LeRobot", used=names, dropped=planned.dropped)
    report.missing[LEROBOT_UNUSED] = "zeros: LeRobot insists on it, and nothing reads it"
    shape = (config.vlm_config.text_config.vocab_size, config.expert_config.hidden_size)
    dtype = max((weights.dtypes[source] for source in names), key=lambda kind: kind.itemsize)
    zeros = Entry(LEROBOT_UNUSED, shape, dtype, lambda: torch.zeros(shape, dtype=dtype))
    write_lerobot_files(output, variant, config, processor)
    _write(output, weights, report, args.dtype, zeros)
    report.notes += export_notes(variant, config, processor)
    if not is_published_size(config):
        report.notes.append("LeRobot builds only the published sizes and vocabulary: it cannot load this policy")
    return report


def _write(output: Path, weights: Weights, report: Report, dtype: str | None, *more: Entry) -> None:
    kinds = Counter(str(weights.dtypes[source]).removeprefix("torch.") for source in report.used)
    report.dtypes, report.cast_to = dict(kinds), dtype
    entries = [*(weights.entry(source, name) for source, name in report.used.items()), *more]
    write_weights(output / WEIGHTS, entries, None if dtype is None else getattr(torch, dtype))


def _save_config(model: KIVLAForActionPrediction, config: KIVLAConfig, output: Path, report: Report) -> None:
    """What `save_pretrained` writes beside weights."""
    report.notes.append(f"the time embedding is computed in {config.expert_config.time_embedding_dtype}")
    widest = reduce(torch.promote_types, [getattr(torch, name) for name in report.dtypes])
    config.dtype = report.cast_to or str(widest).removeprefix("torch.")
    if report.cast_to is None and len(report.dtypes) > 1:
        report.notes.append(
            f"weights of several dtypes are kept in the file; from_pretrained reads all of them as {config.dtype}, in "
            "which nothing is lost, or as it is told (dtype=torch.bfloat16)"
        )
    config.architectures = [type(model).__name__]
    custom_object_save(model, output, config=config)
    config.save_pretrained(output)
    model.generation_config.save_pretrained(output)


def _processor(
    vlm_processor, config: KIVLAConfig, given: dict, folder: Path, args: ConvertArguments, report: Report
) -> KIVLAProcessor | UnfinishedProcessor:
    notes = report.notes
    statistics, mode = read_statistics(folder, report.variant, args.norm_stats)
    adapt = "`kivla train --policy ... --adapt` takes it to a robot's data"
    if statistics is None and mode != "none":
        notes.append(
            f"a base model: the checkpoint has no normalisation statistics (--norm_stats), and cannot act; {adapt}"
        )
    if vlm_processor is None:
        notes.append("the VLM's processor is not in it: say where PaliGemma's is with --vlm_processor, now or then")
    statistics = crop_statistics(statistics or {}, {"state": args.state_dim, "actions": args.action_dim}, notes)
    notes += step_notes(folder)
    if config.state_encoding == "text" and report.layout == "LeRobot":
        notes.append(
            "LeRobot before 0.5 pads the state with zeros before it writes it into the prompt (bin 128 for every "
            "padded value); later ones, openpi and KIVLA write the robot's own dimensions"
        )
    notes += DIFFERENCES
    action_dim = None if statistics else args.action_dim or lerobot_action_dim(given)  # statistics tell it themselves
    sizes = {name: len(next(iter(values.values()))) for name, values in statistics.items()}
    size = sizes.get("actions") or action_dim or preset_size(args.relative_actions)
    robot = RobotDimensions(size, sizes.get("state") or args.state_dim or size)
    relative = _relative(args, folder, given, robot, has_statistics=bool(statistics))
    if relative == UNKNOWN:
        report.does_not_act = (
            "the checkpoint does not say whether its actions are relative to the state (openpi's DeltaActions). "
            "Convert it with --relative_actions none, or what they are (aloha, droid, 0-5)"
        )
    else:
        notes.append(f"actions: {relative or 'absolute'}")
    actions = {"relative": relative, "adapt_to_pi": args.adapt_to_pi}
    return make_processor(vlm_processor, config, statistics or None, mode, cameras_of(given), action_dim, **actions)


def _relative(
    args: ConvertArguments, folder: Path, given: dict, robot: RobotDimensions, has_statistics: bool
) -> RelativeActions | str | None:
    """Which actions are relative: as LeRobot's files say, or as it was told; "unknown" where neither says it."""
    preprocessor = folder / f"{PREPROCESSOR}.json"
    is_lerobot = args.norm_stats is None and (preprocessor.is_file() or "use_relative_actions" in given)
    if not is_lerobot and args.relative_actions is None:
        return UNKNOWN if has_statistics else None
    try:
        told = None if args.relative_actions is None else parse_relative_actions(args.relative_actions, robot)
    except ValueError as error:
        raise CheckpointError(f"--relative_actions: {error}") from error
    if not is_lerobot:
        return told
    found = read_relative(preprocessor, given, robot.action_dim)
    if args.relative_actions is not None and told != found:
        raise CheckpointError(
            f"LeRobot's files say of the actions: {found or 'absolute'}; --relative_actions says {told or 'absolute'}. "
            "Leave it out."
        )
    return found


def _check_lerobot_actions(robot: RobotSpec) -> None:
    """Refuse what LeRobot's own classes would act out wrongly."""
    try:
        robot.units.check_known()
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if robot.adapt_to_pi:
        raise CheckpointError(
            "LeRobot's π0 and π0.5 do not convert ALOHA's joints and grippers, as this policy does (adapt_to_pi). Its "
            "plugin runs the policy as it is: python -m lerobot_policy_kivla.export."
        )
