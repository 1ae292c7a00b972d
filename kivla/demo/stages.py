"""Teach a VLM to act on the tabletop, and see whether it does as it is told: what `kivla demo` and `kivla study` share.

Everything is written into one folder, stage by stage; what is there already is not done again, so that an interrupted
run goes on where it was.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, TrainerCallback, pipeline
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..modeling_kivla import KIVLAConfig, KIVLAForActionPrediction
from ..named_models import TABLETOP, model_type
from ..option_ranges import check_ranges
from ..processing import KIVLAProcessor
from ..processing.observation_history import ObservationHistory
from ..simulation import TabletopVectorEnv, make_env, make_questions
from ..simulation.recording import record_demonstrations
from ..simulation.rollout import PipelinePolicy
from ..simulation.rollout_evaluation import evaluate, replay, video_format, write_media, write_phases
from ..simulation.tabletop.answers import answer_accuracy
from ..simulation.tabletop.questions import QUESTION_KINDS
from ..simulation.tabletop.tasks import PRECISION, TASK_KINDS, TOUCHING
from ..training.arguments import KIVLATrainingArguments
from ..training.build import build_for_stage
from ..training.data.lerobot.dataset import LeRobotDataset
from ..training.data.lerobot.language import PERSISTENT_COLUMN
from ..training.data.mixture import Mixture
from ..training.data.vlm.dataset import VLMDataset
from ..training.evaluation.closed_choice import AMONG_ALL, SOFTMAXES
from ..training.evaluation.vlm_answers import ask
from ..training.parts import BACKBONE, freeze_vision
from ..training.policy_options import PolicyOptions, refuse
from ..training.recipes import Recipe, Stage, get_recipe, split_steps
from ..training.run_folder import read_json, write_json
from ..training.trainer import KIVLATrainer
from .two_heads import draw_two_heads

# Scenes of demonstrations start at seed 0 and those of co-training questions at 1,000,000 (questions and episodes with
# the same seed are not the same scenes); whatever is measured lies beyond both.
QUESTION_SEED, EVALUATION_SEED, QUESTION_EVALUATION_SEED = 1_000_000, 2_000_000, 3_000_000

EMPTY_GRIPS = 0.3  # where something is to be held
NUM_TWO_HEADS = 4  # episodes of which the paths of both heads are drawn, failures first

# What is held out -> the title of its roll-outs; see `SPLITS`.
_HELD_OUT = {
    "held_out_pairs": "target of a colour and shape never demonstrated together",
    "held_out_wordings": "wording never demonstrated",
}


def _rollouts_of_kind(kind: str) -> dict[str, tuple[str, dict]]:
    tasks = f"{kind.capitalize().replace('_', ' ')} tasks"
    found: dict[str, tuple[str, dict]] = {kind: (f"{tasks}, fresh scenes", {"kinds": [kind]})}
    for split, title in _HELD_OUT.items():
        found[f"{kind}_{split}"] = (f"{tasks}, {title}", {"kinds": [kind], "split": split})
    if kind == "put":
        title, options = "relation never demonstrated (above)", {"split": "held_out_relations"}
        found["put_held_out_relations"] = (f"{tasks}, {title}", {"kinds": [kind], **options})
    if TASK_KINDS.index(kind) not in TOUCHING:
        title, options = "swapped: the opposite direction, edge or side", {"swapped_by": "direction"}
        found[f"{kind}_other_way"] = (f"{tasks}, {title}", {"kinds": [kind], **options})
    return found


# Name of a set of roll-outs -> title, and options of the environment.
ROLLOUTS = {name: about for kind in TASK_KINDS for name, about in _rollouts_of_kind(kind).items()}
ROLLOUTS["touch_synonyms"] = (
    "Touch tasks, target named by a word never demonstrated",
    {"kinds": ["touch"], "split": "synonyms"},
)


def rollouts_of(kinds: list[str]) -> list[str]:
    """Choose the `ROLLOUTS` to try a policy in that was shown these kinds of task; the first kind's come first.

    Not "touch_synonyms": the demo's VLM has never met those words.
    """
    return [name for kind in kinds for name in _rollouts_of_kind(kind)]


@dataclass
class TabletopArguments:
    """How the policy is taught. The defaults were measured one by one, on two cores."""

    kinds: list[str] = field(
        default_factory=lambda: ["touch"], metadata={"help": f"Tasks to demonstrate: {', '.join(TASK_KINDS)}."}
    )
    subtasks: bool = field(
        default=False, metadata={"help": "Teach it to say what to do now (touch_then_touch), and to act on that."}
    )
    num_demonstrations: int = field(
        default=3000, metadata={"help": "Episodes of the scripted expert; so many for every lesson (--curriculum)."}
    )
    action_noise: float = field(
        default=0.6, metadata={"help": "Disturbance of the expert's motion, so that it shows how to recover."}
    )
    expert_precision: float = field(
        default=PRECISION, metadata={"help": "How near the expert comes before it closes or opens, in table units."}
    )
    empty_grips: float | None = field(
        default=None,
        metadata={
            "help": "Share of episodes in which the gripper closes too early, on nothing; "
            f"{EMPTY_GRIPS} where something is to be held, else 0."
        },
    )
    curriculum: bool = field(
        default=True,
        metadata={
            "help": "Where something is to be held: touch tasks first, then all, then more of put, which is hardest."
        },
    )
    chunk_size: int = field(default=8, metadata={"help": "Actions in a chunk (H)."})
    history: int = field(default=1, metadata={"help": "Frames that the policy sees."})
    history_stride: int = field(default=1, metadata={"help": "Control steps between two of them."})
    replan_every: int = field(default=4, metadata={"help": "Actions that are executed before the policy looks again."})
    state_encoding: str | None = field(
        default=None,
        metadata={
            "help": "text, continuous or none; none (it sees its gripper), or continuous if the recipe has it so."
        },
    )
    recipe: str = field(default="insulated", metadata={"help": "What trains what; `kivla recipes` lists them."})
    num_flow_samples: int = field(default=4, metadata={"help": "Noise draws for each backbone pass."})
    noise_scale: float = field(
        default=0.5, metadata={"help": "How much noise chunks start from when it acts; 1: as in training."}
    )
    rtc_max_delay: int = field(default=0, metadata={"help": "Train for real-time chunking with such delays, in steps."})
    expert_hidden_size: int = field(default=64, metadata={"help": "Width of the action expert."})
    expert_intermediate_size: int = field(default=192, metadata={"help": "Width of its MLP."})
    action_vocab_size: int = field(default=256, metadata={"help": "Codes of the FAST tokenizer."})
    action_scale: float = field(default=5.0, metadata={"help": "Resolution of the FAST tokenizer."})
    action_token_softmax: str = field(
        default=AMONG_ALL,
        metadata={
            "help": "Among which tokens an action token is predicted: all, or action_tokens.",
            "choices": list(SOFTMAXES),
        },
    )
    freeze_vision: bool = field(
        default=True, metadata={"help": "Leave the vision tower as it is: a fifth of the step is saved."}
    )
    question_share: float = field(default=0.35, metadata={"help": "Share of questions among the examples."})
    question_kinds: list[str] | None = field(
        default=None, metadata={"help": f"Ask only such: {', '.join(QUESTION_KINDS)}; all."}
    )
    batch_size: int = field(default=32, metadata={"help": "Examples in a step."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Of Muon and AdamW; falls to 0 as a cosine."})

    def __post_init__(self):
        check_ranges(self)
        if not self.kinds or set(self.kinds) - set(TASK_KINDS) or len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"--kinds takes one or more of {', '.join(TASK_KINDS)}, each once; got {self.kinds}.")
        if self.subtasks and "touch_then_touch" not in self.kinds:
            raise ValueError(f"--subtasks is for --kinds touch_then_touch, whose tasks have parts; got {self.kinds}.")
        if unknown := set(self.question_kinds or ()) - set(QUESTION_KINDS):
            raise ValueError(f"--question_kinds: there are {', '.join(QUESTION_KINDS)}; not {', '.join(unknown)}.")
        if self.replan_every > self.chunk_size:
            raise ValueError(
                f"--replan_every {self.replan_every}: a policy with --chunk_size {self.chunk_size} plans no more "
                "actions than that before it looks again."
            )
        if self.question_share == 1:
            raise ValueError("--question_share 1 leaves no demonstrations to learn from.")
        if self.learning_rate == 0:
            raise ValueError("--learning_rate must be above 0, got 0.")

    @property
    def holds(self) -> bool:
        """Whether some task is about an object that is to be held."""
        return any(TASK_KINDS.index(kind) not in TOUCHING for kind in self.kinds)

    @property
    def empty_grip_share(self) -> float:
        """`empty_grips`, or what it is by default."""
        return (EMPTY_GRIPS if self.holds else 0.0) if self.empty_grips is None else self.empty_grips

    @property
    def _idle(self) -> dict[str, str]:
        """The options that do nothing beside the others, and why."""
        recipe = get_recipe(self.recipe)
        rests = not any(BACKBONE in stage.trains for stage in recipe.stages)
        no_expert = all(stage.flow_loss_weight == 0 for stage in recipe.stages)
        of_expert = ("noise_scale", "num_flow_samples", "expert_hidden_size", "expert_intermediate_size")
        reasons = {
            "fits no FAST tokenizer": ("action_vocab_size", "action_scale") * (recipe.action_tokenizer != "fast"),
            "learns no action tokens": ("action_token_softmax",) * (recipe.action_tokenizer == "none"),
            "trains on no questions": ("question_share", "question_kinds") * (not recipe.vlm_data),
            "trains no expert": of_expert * no_expert,
            "leaves the VLM as it is": ("freeze_vision",) * rests,
            "leaves the VLM as it is, so it learns to say nothing": ("subtasks",) * rests,
        }
        idle = {name: f"recipe {self.recipe} {reason}" for reason, names in reasons.items() for name in names}
        if not self.holds:
            held = f"in --kinds {' '.join(self.kinds)} nothing is held"
            idle |= {"expert_precision": held, "curriculum": held}
        if self.question_share == 0:
            idle.setdefault("question_kinds", "--question_share is 0")
        return idle

    def refuse_what_cannot_apply(self) -> None:
        """Refuse what was told beside a recipe, or kinds of task, that have no use for it.

        Raises:
            ValueError: naming every such option.
        """
        default = TabletopArguments()
        refuse({name: why for name, why in self._idle.items() if getattr(self, name) != getattr(default, name)})

    def as_used(self) -> dict[str, Any]:
        """The options as a report has them: what a default stands for, and none that does nothing."""
        state = self.state_encoding or default_state(get_recipe(self.recipe))
        resolved = {**asdict(self), "empty_grips": self.empty_grip_share, "state_encoding": state}
        return {name: value for name, value in resolved.items() if name not in self._idle}


def default_state(recipe: Recipe) -> str:
    """How the policy is told its state where nobody says: a vector if the recipe has it so, else not at all."""
    return "continuous" if recipe.state_encoding == "continuous" else "none"


def check_together(args: TabletopArguments, vlm: str | Path) -> None:
    """Check whether the options go together and with a VLM, before anything is asked, recorded or trained.

    Raises:
        ValueError: they do not; the message names what.
    """
    if model_type(vlm, "VLM (--vlm)", known=(TABLETOP,)) == KIVLAConfig.model_type:
        raise ValueError(f"--vlm {vlm} is a policy, and a VLM is what a policy is made of. Give the VLM.")
    args.refuse_what_cannot_apply()
    env = TabletopVectorEnv(1, kinds=args.kinds, expert_precision=args.expert_precision)
    policy, recipe = options(env, args), get_recipe(args.recipe)
    policy.refuse_what_cannot_apply(recipe, recipe.action_tokenizer, "added")
    policy.history_after(ObservationHistory())
    KIVLAConfig(vlm_config=AutoConfig.from_pretrained(vlm), **policy.config_kwargs())
    env.close()


def once(path: Path, make: Callable[[], dict]) -> dict:
    """Read a JSON file; if there is none, make its content and write it, with the minutes that it took.

    What knows its `minutes` itself, because it was begun by an earlier process, says them.
    """
    if not path.is_file():
        start = time.monotonic()
        result = make()
        write_json(path, {"minutes": (time.monotonic() - start) / 60, **result})
    return read_json(path)


def record(folder: Path, args: TabletopArguments, kinds: list[str] | None = None) -> dict:
    """Record demonstrations of the scripted expert as a LeRobot dataset, with PNG pictures: these are read fastest.

    A dataset that is there already is kept: one appears under its name only when it is complete.

    Args:
        kinds: of task, in place of the arguments' own; one that is named twice is drawn twice as often.
    """
    if not folder.is_dir():
        env_options = {"kinds": kinds or args.kinds, "expert_precision": args.expert_precision}
        env = make_env("tabletop", min(args.num_demonstrations, 100), **env_options)
        noise = [args.action_noise, args.action_noise, 0.0]  # the gripper is not disturbed
        # Disturbed, it fails in some scenes of the harder tasks; only what succeeded is recorded.
        options = {"image_format": "image", "action_noise": noise, "max_failures": 20 * args.num_demonstrations}
        options["empty_grips"] = args.empty_grip_share
        record_demonstrations(env, folder, args.num_demonstrations, **options)
        env.close()
    data = LeRobotDataset(folder, 1)
    return {"episodes": data.num_episodes, "frames": len(data)}


def ask_vlm(vlm: str | Path, num_scenes: int = 500) -> dict:
    """Measure a VLM's accuracy by kind of question, on fresh scenes that are the same for every model."""
    model = AutoModelForImageTextToText.from_pretrained(vlm, dtype="float32")
    return score_answers(model, AutoProcessor.from_pretrained(vlm), num_scenes)


def ask_policy(policy: str | Path, num_scenes: int = 500) -> dict:
    """Measure as `ask_vlm` does, of a VLM that has become a policy."""
    model = KIVLAForActionPrediction.from_pretrained(policy)
    return score_answers(model, KIVLAProcessor.from_pretrained(policy).vlm_processor, num_scenes)


def score_answers(model, vlm_processor, num_scenes: int) -> dict:
    """Measure as `ask_vlm` does, of a VLM or policy in memory."""
    questions = make_questions(num_scenes, QUESTION_EVALUATION_SEED)
    return {"accuracy": answer_accuracy(questions, ask(model, vlm_processor, questions))}


def make_trainer(
    start: str | Path,
    demonstrations: Path,
    output_dir: Path,
    args: TabletopArguments,
    stage: Stage,
    max_steps: int,
    seed: int,
    made_for: Path | None = None,
    **training_options,
) -> KIVLATrainer:
    """Make the trainer of a stage, on demonstrations and, if the recipe wants them, questions.

    Args:
        start: the policy of the stage before, or the VLM of a new policy.
        made_for: demonstrations that a new policy's statistics and action tokens are of; those that it learns.
    """
    # The policy, by the one interpreter of a recipe.
    data = _read(demonstrations, args)
    all_data = data if made_for is None else _read(made_for, args)
    torch.manual_seed(seed)
    built = build_for_stage(stage, [all_data], options(data, args), **{"before" if _is_policy(start) else "vlm": start})
    for note in built.notes:
        print(note)
    model, processor = built.model, built.processor
    processor.expert_reads_response = args.subtasks
    if args.freeze_vision:
        freeze_vision(model)
    # Questions about pictures beside the demonstrations, so that the VLM goes on to talk.
    examples = data
    if args.question_share > 0 and get_recipe(args.recipe).vlm_data:
        # One question each: conversations would make the whole batch as long as they are.
        questions = VLMDataset(make_questions(5000, QUESTION_SEED + seed, kinds=args.question_kinds))
        weights = [1 - args.question_share, args.question_share]
        examples = Mixture([data, questions], weights, max_steps * args.batch_size, seed)
    # Trained from scratch or nearly so, hence Muon and a high rate.
    training_args = KIVLATrainingArguments(
        output_dir=str(output_dir),
        max_steps=max_steps,
        per_device_train_batch_size=args.batch_size,
        lr_scheduler_type="cosine",
        warmup_steps=min(50, max_steps // 10),
        learning_rate=args.learning_rate,
        muon=True,
        action_token_softmax=args.action_token_softmax,
        **stage.rate_arguments(),
        logging_steps=max(max_steps // 50, 1),
        seed=seed,
        dataloader_pin_memory=False,
        report_to="none",
        **training_options,
    )
    return KIVLATrainer(
        model,
        training_args,
        train_dataset=examples,
        eval_dataset=Subset(data, range(0, len(data), max(len(data) // 256, 1))),
        processing_class=processor,
    )


def _is_policy(model: str | Path) -> bool:
    return AutoConfig.from_pretrained(model).model_type == KIVLAConfig.model_type


def _read(demonstrations: Path, args: TabletopArguments) -> LeRobotDataset:
    data = LeRobotDataset(demonstrations, args.chunk_size, subtask_key=PERSISTENT_COLUMN if args.subtasks else None)
    data.look_back(ObservationHistory(args.history, args.history_stride))
    return data


def options(data: LeRobotDataset | TabletopVectorEnv, args: TabletopArguments) -> PolicyOptions:
    """Return the options of a new policy, for the builder that `kivla train` has, too.

    Args:
        data: the demonstrations, or where they are made.
    """
    recipe = get_recipe(args.recipe)
    fitted = {"action_vocab_size": args.action_vocab_size, "action_scale": args.action_scale}
    return PolicyOptions(
        recipe=args.recipe,
        chunk_size=args.chunk_size,
        history=args.history,
        history_stride=args.history_stride,
        max_action_dim=data.action_dim,
        max_state_dim=data.state_dim,
        state_encoding=args.state_encoding or default_state(recipe),
        num_flow_samples=args.num_flow_samples,
        noise_scale=args.noise_scale,
        rtc_max_delay=args.rtc_max_delay or None,
        expert_hidden_size=args.expert_hidden_size,
        expert_intermediate_size=args.expert_intermediate_size,
        expert_initializer_range=args.expert_hidden_size**-0.5,
        **(fitted if recipe.action_tokenizer == "fast" else {}),
    )


def seconds_per_step(vlm: str, demonstrations: Path, scratch: Path, args: TabletopArguments, num_steps: int) -> float:
    """Measure an undisturbed optimiser step on this machine; a policy is trained for some and thrown away.

    The quick quarter of the steps counts: other guests of the host, say, may make some seconds several times as long.
    """
    stage = get_recipe(args.recipe).stages[-1]
    trainer = make_trainer(
        vlm, demonstrations, scratch, args, stage, max_steps=2 * num_steps, seed=0, save_strategy="no"
    )
    times: list[float] = []
    trainer.add_callback(_StepClock(times))
    trainer.train()
    return float(np.quantile(np.diff(times[num_steps:]), 0.25))


class _StepClock(TrainerCallback):
    def __init__(self, times: list[float]):
        self.times = times

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.monotonic())


class _Worked(TrainerCallback):
    """How long a training took, all processes that had a part in it: kept with every checkpoint."""

    def __init__(self, file: Path):
        self.file, self.start = file, time.monotonic()
        self.before = read_json(file)["minutes"] if file.is_file() else 0.0

    @property
    def minutes(self) -> float:
        return self.before + (time.monotonic() - self.start) / 60

    def on_save(self, args, state, control, **kwargs):
        write_json(self.file, {"minutes": self.minutes})


def fine_tune(
    vlm: str | Path,
    demonstrations: Path,
    output_dir: Path,
    args: TabletopArguments,
    max_steps: int,
    seed: int = 0,
    save_steps: int | None = None,
    keep_all: bool = False,
    augment: str = "none",
    made_for: Path | None = None,
) -> dict:
    """Train a policy into `output_dir`, from its last checkpoint if there is one.

    From a VLM it goes through all stages of its recipe; from a policy, which has been through them, through the last.

    Args:
        save_steps: steps between checkpoints; a fifth of all.
        keep_all: keep every checkpoint, not just the last.
        augment: image augmentation (`KIVLATrainingArguments`). Without it: the camera stays where it is.
        made_for: demonstrations that a new policy's statistics and action tokens are of, where more is to come.

    Returns:
        `log_history`, and `evaluation` on frames of the demonstrations, both as the trainer has them;
        `checkpoints`, a list of (steps so far, folder); and `minutes`, those before an interruption with them.
    """
    stages, worked = get_recipe(args.recipe).stages, _Worked(output_dir / "_minutes.json")
    if _is_policy(vlm):
        stages = stages[-1:]
    start, done, log_history, checkpoints = Path(vlm), 0, [], []
    for number, (stage, steps) in enumerate(zip(stages, split_steps(stages, max_steps), strict=True), 1):
        folder = output_dir if number == len(stages) else output_dir / f"stage_{number}"
        interval = save_steps or max(max_steps // 5, 1)
        options = {"save_steps": interval, "save_total_limit": None if keep_all else 1, "augment": augment}
        trainer = make_trainer(start, demonstrations, folder, args, stage, steps, seed, made_for, **options)
        trainer.add_callback(worked)
        trainer.train(resume_from_checkpoint=trainer.newest_checkpoint())
        trainer.save_model()
        log_history += [{**entry, "step": entry["step"] + done} for entry in trainer.state.log_history]
        checkpoints += [
            (done + step, str(folder / f"{PREFIX_CHECKPOINT_DIR}-{step}")) for step in range(interval, steps, interval)
        ]
        start, done = folder, done + steps
    return {
        "max_steps": max_steps,
        "log_history": log_history,
        "evaluation": trainer.evaluate(),
        "checkpoints": checkpoints if keep_all else [],
        "minutes": worked.minutes,
    }


def roll_out(
    policy: Path, folder: Path, name: str, args: TabletopArguments, num_episodes: int, num_videos: int = 8
) -> dict:
    """Roll a policy out in one of the `ROLLOUTS`, with the swapped control; pictures go into `folder/name`."""
    title, options = ROLLOUTS[name]
    env = make_env("tabletop", min(num_episodes, 100), **options)
    pipe = pipeline("action-prediction", model=str(policy))
    seeds = range(EVALUATION_SEED, EVALUATION_SEED + num_episodes)
    policy = PipelinePolicy(pipe)
    figures, result = evaluate(policy, env, seeds, args.replan_every, env.max_steps)
    shown = replay(policy, env, result.episodes, num_videos, args.replan_every, env.max_steps)
    env.close()
    (folder / name).mkdir(parents=True, exist_ok=True)
    media = write_media(folder / name, shown, env.fps, video_format())
    # Both heads cost tokens, said one by one: of a few scenes, and not of what was held out.
    both = name in TASK_KINDS and draw_two_heads(
        folder / name / "two_heads.png", pipe, options, shown[:NUM_TWO_HEADS], args.replan_every
    )
    media = {
        "two_heads": f"{name}/two_heads.png" if both else None,
        "phases": (drawn := write_phases(folder / name, figures)) and f"{name}/{drawn}",
        "contact_sheet": media["contact_sheet"] and f"{name}/{media['contact_sheet']}",
        "videos": [{**video, "file": f"{name}/{video['file']}"} for video in media["videos"]],
    }
    return {"name": name, "title": title, **figures, "media": media}
