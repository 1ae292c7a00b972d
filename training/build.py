"""The one builder of policies for training: the interpreter of a recipe. Three meanings:

* *start* (`start_policy`): a new policy on a VLM, as the recipe and the options say.
* *continue* (`continue_policy`): a policy goes on, on data of the same robot. Nothing of it changes but how it is
  trained, and everything must agree with the data.
* *adapt* (`adapt_policy`): a base policy goes on to another robot or other data. Statistics and cameras become those of
  the data; weights and conventions (prompt, padding, square images, token placement, and the places of cameras that it
  knows) stay the base's. A converted π0 or π0.5 (`kivla convert`), with or without statistics, is such a base.

What is given and cannot apply is refused by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from peft import PeftModel

from ..modeling_kivla import KIVLAConfig, KIVLAForActionPrediction
from ..modeling_kivla.remote_vlm import load_vlm_config
from ..named_models import NOT_FOUND, not_found
from ..processing import (
    ActionTokenizer,
    BinningActionTokenizer,
    KIVLAProcessor,
    action_tokenizer_class,
    load_action_tokenizer,
)
from ..processing.action_units import ActionUnits, check_pi_dimensions
from ..processing.fast_tokenizer import MAX_CHUNKS
from ..processing.observation_history import flat_size
from ..processing.tokenizer_registry import is_action_tokenizer_class
from .base_policy import ADAPT, CONTINUE, START, BasePolicy
from .camera_places import are_same, fill_places, new_names
from .data.data_ranges import range_problems, size_differences
from .data.relative_chunks import learned_chunks, robot_statistics
from .data.robot_dataset import RobotDataset
from .first_process import made_by_first_process
from .lora import add_lora, lora_config
from .model_size import build_without_memory
from .parts import BACKBONE
from .policy_options import DEFAULT_RECIPE, EXPERT_OPTIONS, PolicyOptions, refuse
from .recipes import Stage, get_recipe, set_stage
from .relative_options import kept_relative, relative_notes, told_relative
from .run_identity import weights_digest

# Options that belong to weights or prompt of a policy: no data can change them.
_FIXED = ("max_action_dim", "max_state_dim", "state_encoding", *EXPERT_OPTIONS)
# Options that a base can be given anew.
_ADAPTABLE = (
    "chunk_size",
    "history",
    "history_stride",
    "normalization",
    "expert_reads_response",
    "action_tokenizer",
    "action_vocab_size",
    "action_scale",
    "action_token_placement",
    "action_token_skip",
)


@dataclass
class BuiltPolicy:
    """A policy to train; the model has a row of its embedding for every token of the processor.

    Attributes:
        notes: sentences for people: what was done, kept and assumed.
        facts: for the card: `meaning`, `base`, `kept` and `changed` (sentences).
        begins_with: what the run that trains it begins with, for the run's identity: `name`, and of a policy that goes
            on a digest of its `expert`.
    """

    model: KIVLAForActionPrediction | PeftModel
    processor: KIVLAProcessor
    notes: list[str] = field(default_factory=list)
    facts: dict = field(default_factory=dict)
    begins_with: dict = field(default_factory=dict)

    def __post_init__(self):
        embedding = self.model.get_input_embeddings()
        if embedding.num_embeddings < self.processor.vocab_size:
            has_rows = not embedding.weight.is_meta  # whose mean new rows begin with
            size = self.processor.vocab_size
            self.model.resize_token_embeddings(size, pad_to_multiple_of=64, mean_resizing=has_rows)


# --------------------------------------------------------------------------------------------------------- any of them
def build_for_stage(
    stage: Stage,
    sources: Sequence[RobotDataset],
    options: PolicyOptions,
    *,
    vlm: str | Path | None = None,
    base: BasePolicy | None = None,
    adapt: bool = False,
    before: str | Path | None = None,
    lora_rank: int | None = None,
    cameras: Mapping[str, str | None] | None = None,
) -> BuiltPolicy:
    """Make the policy that a stage of a recipe trains, ready for `KIVLATrainer`: what the stage freezes is frozen.

    Args:
        sources: the demonstrations, read with the policy's `chunk_size`.
        vlm: start a new policy on it: a folder or a Hub id.
        base: or go on from this policy; with `adapt`, take it to the data.
        before: or go on from what the stage before has left in this folder.
        lora_rank: train low-rank updates of the VLM's text decoder, and the expert in full. A stage that does not train
            the backbone has none.
        cameras: the policy's names → those of the data, where that was told (`DataArguments.mapping`).

    Raises:
        ValueError: recipe, data, options and policy do not fit each other.
    """
    if before is not None:
        built = next_stage(before, options)
    elif base is None:
        built = start_policy(vlm, sources, options, cameras)
    else:
        built = (adapt_policy if adapt else continue_policy)(base, sources, options, cameras)
    built.begins_with = {"name": str(before or vlm or base.path)}
    if before is not None or base is not None:
        built.begins_with["expert"] = weights_digest(built.model.expert)
    set_stage(built.model, stage)
    if lora_rank is not None and BACKBONE in stage.trains:
        built.model = add_lora(built.model, lora_config(built.model, built.processor, lora_rank))
    return built


# --------------------------------------------------------------------------------------------------------------- start
def start_policy(
    vlm: str | Path,
    sources: Sequence[RobotDataset],
    options: PolicyOptions,
    cameras: Mapping[str, str | None] | None = None,
) -> BuiltPolicy:
    """Make a new policy on a VLM; the action expert starts from random weights.

    Args:
        vlm: a folder or a Hub id.
        sources: what it will be trained on, read with `chunk_size`.
        cameras: names for its cameras → those of the data, which it has otherwise.

    Raises:
        ValueError: options that cannot apply, or that contradict each other or the data.
    """
    recipe = get_recipe(options.recipe or DEFAULT_RECIPE)
    kind = options.action_tokenizer or recipe.action_tokenizer
    options.refuse_what_cannot_apply(recipe, kind, options.action_token_placement or "added")
    notes: list[str] = []
    robots = robots_of(sources, options, notes)
    for robot in robots.values():
        robot["cameras"] = new_names(robot["cameras"], cameras)
    config = options.config_kwargs()
    shared = ("chunk_size", "max_action_dim", "max_state_dim", "state_encoding")
    processor = KIVLAProcessor.from_vlm(
        vlm,
        trust_remote_code=options.trust_remote_code,
        action_tokenizer=new_tokenizer(kind, options, sources, robots, options.normalization or "quantile", notes),
        **{name: config[name] for name in shared if name in config},
        **options.given(
            *("history", "history_stride", "normalization", "action_token_placement", "action_token_skip"),
            *("expert_reads_response", "max_length"),
        ),
        **_robot_arguments(robots),
    )
    config |= {name: getattr(processor, name) for name in ("max_action_dim", "max_state_dim")}  # as large as the data
    if options.without_weights:
        vlm_config = load_vlm_config(str(vlm), trust_remote_code=options.trust_remote_code)
        model = build_without_memory(KIVLAConfig(vlm_config=vlm_config, **config), options.dtype)
    else:
        model = KIVLAForActionPrediction.from_vlm(vlm, **config, **options.loading)
    return BuiltPolicy(model, processor, notes, {"meaning": START, "base": str(vlm), "kept": [], "changed": []})


# ------------------------------------------------------------------------------------------------------------ continue
def continue_policy(
    base: BasePolicy,
    sources: Sequence[RobotDataset],
    options: PolicyOptions,
    cameras: Mapping[str, str | None] | None = None,
) -> BuiltPolicy:
    """Load a policy to go on with, as it is, on data of the same robot.

    Args:
        cameras: the policy's names → those of the data, where they differ.

    Raises:
        ValueError: listing every option and every property of the data that does not agree with the policy, with both
            ways out.
    """
    _, recipe = base.recipe(options.recipe, CONTINUE)
    if not base.has_statistics:
        raise ValueError(
            f"{base.path} is a base model without statistics of any robot: --adapt takes it to your data's."
        )
    processor = base.processor(**options.given("max_length"))
    for robot in processor.robots.values():
        robot.units.check_known()
    # Everything that does not agree is collected first: people would rather mend it all at once.
    differences = [
        f"--{option} {given}: the policy has {base.value(option)}"
        for option, given in options.given(*_FIXED, *_ADAPTABLE).items()
        if given != base.value(option)
    ]
    if recipe.action_tokenizer != base.tokenizer_kind:
        differences.append(
            f"--recipe {options.recipe} learns the action tokens {recipe.action_tokenizer!r}, the policy has "
            f"{base.tokenizer_kind!r}"
        )
    notes = [f"{base.path} goes on as it is: statistics, cameras and action tokens stay its own"]
    for data in sources:
        found, same_sizes = _differences(processor, data, options, cameras)
        differences += found
        if same_sizes:
            problems = range_problems(processor.robot(data.robot), data)  # smaller ones are said by KIVLATrainer
            differences += [problem.text for problem in problems if problem.is_other]
    if differences:
        raise ValueError(
            f"{base.path} cannot go on as it is:\n"
            + "\n".join(f"  - {difference}" for difference in differences)
            + "\nTo go on, give data of the same robot, and leave these options out. To take the policy to this data, "
            "with new statistics and cameras, add --adapt (docs/adapting.md). For a new policy start from a VLM: --vlm."
        )
    # It agrees: what remains is what people should know.
    options.refuse_what_cannot_apply(recipe, base.tokenizer_kind, base.value("action_token_placement"))
    if recipe is base.own_recipe and not recipe.vlm_data:
        notes.append("its VLM learns nothing: it has no action tokens, and the flow loss is insulated from it")
    for data in sources:
        robot = processor.robot(data.robot)
        if robot.cameras is None:
            robot.cameras = data.cameras if cameras is None else list(cameras)
            notes.append(f"the policy named no cameras; they are {robot.cameras} from now on, in this order")
    model = base.model(processor, options, notes)
    facts = {"meaning": CONTINUE, "base": base.path, "kept": ["statistics, cameras, action tokens"], "changed": []}
    return BuiltPolicy(model, processor, notes, facts)


def _differences(
    processor: KIVLAProcessor, data: RobotDataset, options: PolicyOptions, cameras: Mapping[str, str | None] | None
) -> tuple[list[str], bool]:
    """List in what a policy and data that it is to go on with differ, and whether they have the same sizes."""
    try:
        robot = processor.robot(data.robot)
    except ValueError as error:
        return [f"{data.name}: {error}"], False
    others = []
    try:
        processor.check_cameras(cameras)
    except ValueError as error:  # about the mapping alone, by which the data's cameras were chosen
        return [f"--cameras: {error}"], False
    try:
        if robot.cameras is not None:
            robot.place(data.cameras, cameras)
    except ValueError as error:
        others.append(f"{data.name} gives the cameras {data.cameras}, the policy sees {robot.cameras}: {error}")
    units = robot.units
    told = told_relative(data, options, processor.robots)
    if options.relative_actions is not None and told != units.relative:
        others.append(f"--relative_actions: for {data.name} they say {told}, the policy has {units.relative}")
    if options.adapt_to_pi is not None and options.adapt_to_pi != units.adapt_to_pi:
        others.append(f"--adapt_to_pi {options.adapt_to_pi}: the policy has {units.adapt_to_pi}")
    sizes = size_differences(robot, data)
    return others + sizes, not sizes


# --------------------------------------------------------------------------------------------------------------- adapt
def adapt_policy(
    base: BasePolicy,
    sources: Sequence[RobotDataset],
    options: PolicyOptions,
    cameras: Mapping[str, str | None] | None = None,
) -> BuiltPolicy:
    """Load a base policy and take it to another robot or other data.

    Args:
        cameras: the base's places for cameras, or new names → those of the data; see `fill_places`.

    New: statistics, cameras, size of an action; where asked for chunk size, normalisation and action tokenizer (a
    recipe that needs another kind has it fitted). Kept: weights, prompt, padding, square images, placement of action
    tokens, and an action tokenizer that the base has.

    Raises:
        ValueError: data or options that the base cannot be given; the message names each.
    """
    name, recipe = base.recipe(options.recipe, ADAPT)
    # What is in the weights and in the prompt that they know cannot change, whatever the data.
    refuse(
        {
            option: f"{base.path} has {base.value(option)}, which its weights and its prompt were trained with. To "
            "change it, start from a VLM (--vlm)"
            for option, given in options.given(*_FIXED).items()
            if given != base.value(option)
        }
    )
    kind = options.action_tokenizer or (recipe.action_tokenizer if name is not None else base.tokenizer_kind)
    # Action tokens that the base has learned are worth more than ones fitted to the data: kept unless asked otherwise.
    keeps_tokenizer = options.action_tokenizer is None and kind == base.tokenizer_kind and base.tokenizer is not None
    if keeps_tokenizer:
        refuse(
            {
                option: f"{base.path} keeps its action tokenizer, which has {base.value(option)}. To fit another one "
                "add --action_tokenizer fast"
                for option, given in options.given("action_vocab_size", "action_scale").items()
                if given != base.value(option)
            }
        )
    if base.tokenizer is not None:
        refuse(
            {
                option: f"{base.path} has learned action tokens where they are, at {base.value(option)!r}"
                for option, given in options.given("action_token_placement", "action_token_skip").items()
                if given != base.value(option)
            }
        )
    placement = options.action_token_placement or base.settings["action_token_placement"]
    options.refuse_what_cannot_apply(recipe, kind, placement)
    _check_room(base, sources)

    # Statistics, cameras and, if it is new, the tokenizer come from the data.
    notes, changed = [], ["statistics: those of the data"]
    robots = robots_of(sources, options, notes, base)
    for robot_name, robot in robots.items():
        robot["cameras"] = fill_places(base.path, *base.cameras_of(robot_name), robot["cameras"], cameras, changed)
    normalization = options.normalization or base.settings["normalization"]
    if keeps_tokenizer:
        tokenizer = base.tokenizer
        chunks = normalized_chunks(sources, robots, normalization)
        notes.append(f"{_roundtrip(tokenizer, chunks)}. It is the base's; --action_tokenizer fast fits another one")
    else:
        tokenizer = new_tokenizer(kind, options, sources, robots, normalization, notes)
    history = options.history_after(base.observation_history)
    processor = base.processor(
        action_tokenizer=tokenizer,
        history=history.frames,
        history_stride=history.stride,
        **options.given(
            *("chunk_size", "normalization", "expert_reads_response"),
            *("action_token_placement", "action_token_skip", "max_length"),
        ),
        **_robot_arguments(robots),
    )
    # What became of the base, for people and for the card.
    before = [robot["cameras"] for robot in base.settings.get("robots", {None: base.settings}).values()]
    changed += [f"cameras: {list(robot['cameras'])}, in this order (base: {_or(before)})" for robot in robots.values()]
    changed += [
        f"{option}: {value} (base: {base.value(option)})"
        for option, value in options.given("chunk_size", "normalization", "expert_reads_response").items()
        if value != base.value(option)
    ]
    if history != base.observation_history:
        changed.append(f"sees {history} (base: {base.observation_history})")
    if tokenizer is not base.tokenizer:
        codes = "" if tokenizer is None else f", {tokenizer.vocab_size} codes"
        changed.append(f"action tokens: {kind}{codes} (base: {base.tokenizer_kind})")
    kept = [
        f"prompt {processor.action_prompt!r}",
        f"unused action dimensions {'hold noise' if processor.noise_padding else 'are zero'}",
        f"images {'become squares' if processor.square_images else 'as the VLM has them'}",
        f"state_encoding {processor.state_encoding}",
    ]
    if history == base.observation_history and history.frames > 1:
        kept.append(f"sees {history}")
    if keeps_tokenizer:
        kept.append(f"action tokens {kind}, {processor.action_token_placement}")
    notes += [f"{base.path} is adapted. New: {'; '.join(changed)}. Kept: {'; '.join(kept)}."]
    if name is not None and options.recipe is None:
        notes.append(f"recipe {name}: the base teaches its VLM no action tokens of its own (another one: --recipe)")
    model = base.model(processor, options, notes)
    return BuiltPolicy(model, processor, notes, {"meaning": ADAPT, "base": base.path, "kept": kept, "changed": changed})


def _or(cameras: list[Sequence[str] | None]) -> str:
    return "; ".join("not known" if names is None else str(list(names)) for names in cameras)


def _check_room(base: BasePolicy, sources: Sequence[RobotDataset]) -> None:
    config = base.config
    for data in sources:
        if data.action_dim > config.max_action_dim:
            raise ValueError(
                f"{data.name} has {data.action_dim}-dimensional actions, and the action expert of {base.path} has room "
                f"for max_action_dim = {config.max_action_dim}: they do not fit. Start from a VLM (--vlm) with "
                f"--max_action_dim {data.action_dim}."
            )
        if config.state_encoding == "none":
            continue
        if not data.state_dim:
            raise ValueError(
                f"{data.name} has no observation.state, and {base.path} reads one. Start from a VLM (--vlm) with "
                "--state_encoding none; a π0.5 can also be converted without it (--no_state_in_prompt)."
            )
        size = flat_size(data.state_dim, data.observation_history)
        if config.state_encoding == "continuous" and size > config.max_state_dim:
            past = "" if data.observation_history.frames == 1 else f", of which {data.observation_history} are read"
            raise ValueError(
                f"{data.name} has a state of {data.state_dim} dimensions{past}, and the action expert of {base.path} "
                f"has room for max_state_dim = {config.max_state_dim}: it does not fit. Start from a VLM (--vlm) with "
                f"--max_state_dim {size}."
            )


# ---------------------------------------------------------------------------------------------------------- next stage
def next_stage(folder: str | Path, options: PolicyOptions) -> BuiltPolicy:
    """Load the policy that the stage before has left, for the same data."""
    model = KIVLAForActionPrediction.from_pretrained(folder, **options.loading)
    return BuiltPolicy(model, KIVLAProcessor.from_pretrained(folder, trust_remote_code=options.trust_remote_code))


# ------------------------------------------------------------------------------------------------------ what both need
def robots_of(
    sources: Sequence[RobotDataset], options: PolicyOptions, notes: list[str], base: BasePolicy | None = None
) -> dict[str | None, dict]:
    """Collect what a processor is told of every robot; datasets of the same robot are taken together.

    Args:
        notes: what is said of their actions is added to it.
        base: the policy that is adapted: what it has relative stays so where nothing else is told.

    Raises:
        ValueError: datasets of one robot with different cameras or sizes, or options that do not fit a robot.
    """
    by_robot: dict[str | None, list[RobotDataset]] = {}
    for data in sources:
        by_robot.setdefault(data.robot, []).append(data)
    robots: dict[str | None, dict] = {}
    for name, group in by_robot.items():
        if not all(are_same(data.cameras, group[0].cameras) for data in group):
            raise ValueError(
                f"The datasets of robot {name!r} have different cameras: {[data.cameras for data in group]}. Choose "
                "common ones with --cameras, or give the robots different names."
            )
        if len(rates := {data.fps for data in group}) > 1:
            raise ValueError(
                f"The datasets of robot {name!r} have {', '.join(f'{rate:g}' for rate in sorted(rates))} frames a "
                "second, so that chunks of as many actions would take different times. Bring them to one rate, or give "
                "the robots different names."
            )
        relative, adapt_to_pi = told_relative(group[0], options, by_robot), bool(options.adapt_to_pi)
        if base is not None and options.relative_actions is None:
            relative = kept_relative(base.robot(name), group[0], base.path, notes)
        if base is not None and options.adapt_to_pi is None:
            adapt_to_pi = base.robot(name).get("adapt_to_pi", False)
        if adapt_to_pi:
            check_pi_dimensions(group[0].action_dim)
        # Cameras of the same names have the same places for all robots
        before = [robot["cameras"] for robot in robots.values()]
        robots[name] = {
            "statistics": made_by_first_process(partial(robot_statistics, group, relative, adapt_to_pi)),
            "cameras": next((names for names in before if set(names) == set(group[0].cameras)), group[0].cameras),
            "relative_actions": relative,
            "adapt_to_pi": adapt_to_pi,
        }
        if relative is not None:
            notes += relative_notes(name, group, relative, robots[name]["statistics"])
    rates = {name: group[0].fps for name, group in by_robot.items()}
    if len(set(rates.values())) > 1:
        said = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
        notes.append(f"the robots have other frames a second ({said}): their chunks take other times")
    return robots


def _robot_arguments(robots: dict[str | None, dict]) -> dict:
    return robots.get(None, {"robots": robots})


def new_tokenizer(
    kind: str,
    options: PolicyOptions,
    sources: Sequence[RobotDataset],
    robots: dict[str | None, dict],
    normalization: str,
    notes: list[str],
) -> ActionTokenizer | None:
    """Make an action tokenizer: "none", "bins", "fast" (fitted on the data), or the place of one that is saved.

    Raises:
        ValueError: the data do not fit it.
        FileNotFoundError: there is nothing saved of this name.
    """
    if kind == "none":
        return None
    if kind == "bins":
        return BinningActionTokenizer()
    if not is_action_tokenizer_class(kind):
        try:
            return load_action_tokenizer(kind)
        except NOT_FOUND as error:
            what = "saved action tokenizer (--action_tokenizer; by name: fast, bins or none)"
            raise not_found(kind, what, error, known=("fast", "bins", "none")) from error
    given = {"vocab_size": options.action_vocab_size, "scale": options.action_scale}
    given = {name: value for name, value in given.items() if value is not None}
    tokenizer_class = action_tokenizer_class(kind)

    def fit() -> tuple[ActionTokenizer, str]:
        chunks = normalized_chunks(sources, robots, normalization)
        try:
            tokenizer = tokenizer_class.fit(chunks, **given)
        except ValueError as error:
            names = [f"{data.name}: {', '.join(data.action_names)}" for data in sources if data.action_names]
            where = f" The dimensions of {'; '.join(names)}." if names else ""
            what = " On the command line: --action_scale, --action_vocab_size." if kind == "fast" else ""
            raise ValueError(f"{error}{what}{where}") from error
        name = "FAST" if kind == "fast" else f"the action tokenizer {kind}"
        return tokenizer, f"{name} is fitted: {_roundtrip(tokenizer, chunks)}"

    tokenizer, note = made_by_first_process(fit)
    notes.append(note)
    return tokenizer


def normalized_chunks(
    sources: Sequence[RobotDataset], robots: dict[str | None, dict], normalization: str, max_chunks: int = MAX_CHUNKS
) -> list[np.ndarray]:
    """Action chunks of the datasets as the policy sees them, each (H, Da); at most `max_chunks` of each dataset."""
    chunks = []
    for data in sources:
        robot = robots[data.robot]
        told = robot.get("relative_actions"), robot.get("adapt_to_pi", False)
        units = ActionUnits(robot["statistics"], normalization, data.action_dim, *told)
        chunks += list(units.normalizer.normalize(learned_chunks(data, units, max_chunks)))
    return chunks


def _roundtrip(tokenizer: ActionTokenizer, chunks: Sequence[np.ndarray]) -> str:
    """Say what action tokens cost and lose on these chunks."""
    report = tokenizer.roundtrip_error(chunks)
    said = (
        f"{len(chunks)} chunks take {report['tokens_mean']:.1f} action tokens each (at most {report['tokens_max']}), "
        f"root-mean-square error {report['rmse']:.4f} of the normalised range [-1, 1]"
    )
    if report["tokens_mean"] < 2:
        said += (
            ". Most chunks are a single token: they were learned by heart, and others will take many more. Give more "
            "data, or a smaller --action_vocab_size"
        )
    return said


__all__ = [
    "BuiltPolicy",
    "adapt_policy",
    "build_for_stage",
    "continue_policy",
    "new_tokenizer",
    "next_stage",
    "normalized_chunks",
    "robots_of",
    "start_policy",
]
