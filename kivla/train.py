"""`kivla train`: fine-tune a VLM into a policy on LeRobot datasets, by any of the recipes."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from peft import PeftModel, get_peft_model
from torch.utils.data import Dataset, Subset
from transformers import set_seed

from . import KIVLAProcessor, KIVLATrainer, KIVLATrainingArguments, LeRobotDataset
from .card import write_card, write_facts
from .cli import parse
from .plots import plot_training_curves
from .processing.prompt_frame import has_chat
from .run_folder import write_json
from .training.build import (
    ADAPT,
    CONTINUE,
    START,
    Base,
    adapt_policy,
    continue_policy,
    next_stage,
    start_policy,
)
from .training.checkpoints import put_aside
from .training.data_parallel import made_whole
from .training.lerobot_dataset import camera_names
from .training.lora import lora_config
from .training.mixture import Mixture
from .training.policy_card import evaluated_sets
from .training.policy_options import DEFAULT_RECIPE, PolicyOptions, refuse
from .training.recipes import BACKBONE, EXPERT, Recipe, Stage, get_recipe, set_stage, split_steps
from .training.run_identity import weights_digest
from .training.vlm_dataset import VLMDataset


@dataclass
class ModelArguments(PolicyOptions):
    """What to start from, and what is new about it (`docs/adapting.md`). A new policy starts on --vlm; --policy goes on
    as it is, on data that it agrees with; with --adapt it is taken to the data."""

    vlm: str | None = field(default=None, metadata={"help": "Start a new policy on this VLM: a Hub id or a folder."})
    policy: str | None = field(
        default=None, metadata={"help": "KIVLA policy to go on from, instead of --vlm: same robot, or --adapt."}
    )
    adapt: bool = field(
        default=False,
        metadata={
            "help": "Take --policy to a new robot or new data: statistics, cameras and sizes are the data's; weights, "
            "prompt and padding the policy's."
        },
    )
    vlm_processor: str | None = field(
        default=None, metadata={"help": "For a --policy that was converted without it: the VLM's processor."}
    )
    lora_rank: int | None = field(
        default=None, metadata={"help": "Train low-rank updates of the VLM's text decoder, and the expert in full."}
    )

    def __post_init__(self):
        if (self.vlm is None) == (self.policy is None):
            raise ValueError("Give either --vlm (a VLM to start from) or --policy (a KIVLA policy to go on from).")
        if self.policy is None:
            given = {"adapt": self.adapt, "vlm_processor": self.vlm_processor}
            refuse({name: "it is for --policy, and this starts from --vlm" for name in given if given[name]})

    @property
    def meaning(self) -> str:
        return START if self.policy is None else ADAPT if self.adapt else CONTINUE

    @cached_property
    def base(self) -> Base | None:
        return None if self.policy is None else Base(self.policy, self.vlm_processor, self.trust_remote_code)

    @property
    def chosen_recipe(self) -> tuple[str, Recipe]:
        """Its name and itself."""
        if self.base is None:
            name = self.recipe or DEFAULT_RECIPE
            return name, get_recipe(name)
        name, recipe = self.base.recipe(self.recipe, self.meaning)
        return name or "as before", recipe

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The recipe's, with the options given on top."""
        return self.stages_of(self.chosen_recipe[1])


VLM_SPLIT, VLM_SHARE = "train", 0.2


@dataclass
class DataArguments:
    """Which demonstrations and VLM data, and how they become inputs."""

    dataset: list[str] = field(metadata={"help": "LeRobot datasets (v2.1 or v3.0): Hub ids or folders."})
    robots: list[str] | None = field(
        default=None, metadata={"help": "For several datasets the name of each one's robot; its numbers are its own."}
    )
    dataset_weights: list[float] | None = field(
        default=None, metadata={"help": "Share of each dataset; by default by their numbers of frames."}
    )
    vlm_dataset: str | None = field(
        default=None, metadata={"help": "Images with questions and answers: a Hub id, or a folder of `datasets`."}
    )
    vlm_split: str | None = field(default=None, metadata={"help": "Split of it to train on; train."})
    vlm_eval_split: str | None = field(default=None, metadata={"help": "Split to evaluate on; examples of vlm_split."})
    vlm_share: float | None = field(default=None, metadata={"help": "Share of VLM data among the examples; 0.2."})
    vlm_config: str | None = field(default=None, metadata={"help": "Configuration of it, where it has several."})
    vlm_streaming: bool = field(default=False, metadata={"help": "Stream it instead of downloading it first."})
    vlm_num_rows: int | None = field(default=None, metadata={"help": "Rows of a stream, where its info lacks them."})
    episodes: list[int] | None = field(default=None, metadata={"help": "Episodes to use; all but --eval_episodes."})
    eval_episodes: list[int] | None = field(default=None, metadata={"help": "Episodes held out for evaluation."})
    max_eval_frames: int = field(default=512, metadata={"help": "Evaluate on at most so many examples of each set."})
    cameras: list[str] | None = field(default=None, metadata={"help": "Cameras to use, in this order; all."})
    frame_cache_mb: float = field(
        default=0, metadata={"help": "Megabytes of decoded frames that every data-loader worker keeps in memory."}
    )

    def __post_init__(self):
        self.dataset = [self.dataset] if isinstance(self.dataset, str) else list(self.dataset)
        if self.robots is None and len(self.dataset) > 1:
            raise ValueError(
                f"{len(self.dataset)} datasets need --robots with a name for each: datasets of the same name are one "
                "robot, whose statistics are taken together."
            )
        for name in ("robots", "dataset_weights"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.dataset):
                raise ValueError(f"--{name} has {len(values)} entries for {len(self.dataset)} datasets.")
        if len(self.dataset) > 1 and (self.episodes or self.eval_episodes):
            raise ValueError("--episodes and --eval_episodes are for a single dataset.")
        if self.dataset_weights is not None and len(self.dataset) == 1:
            refuse({"dataset_weights": "there is one dataset, and its weight is the whole"})
        if self.vlm_dataset is None:
            names = ("vlm_split", "vlm_eval_split", "vlm_share", "vlm_config", "vlm_streaming", "vlm_num_rows")
            refuse({name: "there is no --vlm_dataset" for name in names if getattr(self, name)})
        if self.vlm_num_rows is not None and not self.vlm_streaming:
            refuse({"vlm_num_rows": "it is for --vlm_streaming"})
        if self.vlm_share is not None and not 0 < self.vlm_share < 1:
            raise ValueError(
                f"--vlm_share must lie between 0 and 1, got {self.vlm_share}. To use none, leave out --vlm_dataset."
            )


def run(arguments: Sequence[str]) -> None:
    kinds = (ModelArguments, DataArguments, KIVLATrainingArguments)
    model_args, data_args, args = parse(kinds, arguments, prog="kivla train", required=("output_dir",))
    stages, output_dir, start = model_args.stages, Path(args.output_dir), None
    if args.resume_from_checkpoint is not None and len(stages) > 1:
        reason = f"a run of {len(stages)} stages finds where it was by itself, by the same command"
        refuse({"resume_from_checkpoint": reason})
    if args.restart:
        with args.main_process_first(local=False):
            if args.process_index == 0:
                put_aside(output_dir)
        args = replace(args, restart=False)
    start_time, made_from = time.monotonic(), {}
    for number, (stage, stage_args) in enumerate(zip(stages, split_run(stages, args), strict=True), 1):
        folder = Path(stage_args.output_dir)
        is_last = number == len(stages)
        facts = run_facts(model_args, args, number)
        trainer, made = make_trainer(model_args, data_args, stage_args, stage, start, facts)
        made_from = made_from or made  # what the first stage begins with
        checkpoint = args.resume_from_checkpoint
        if checkpoint is None:
            checkpoint = trainer.newest_checkpoint()
            trainer.claim_folder(output_dir)
        if not is_last and (folder / "trainer_state.json").is_file():  # written last
            start = folder
            continue
        if len(stages) > 1 and args.process_index == 0:
            print(f"\nStage {number} of {len(stages)}: trains {' and '.join(stage.trains)}, {stage.config}")
        before = answers_before(trainer, output_dir / "vlm_before.json")
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.state.log_history.insert(0, {**before, "step": 0})
        save(trainer, folder)
        start = folder
    metrics = {**before, **trainer.evaluate()}
    if trainer.is_world_process_zero():
        plot_training_curves(output_dir / "training.png", trainer.state.log_history)
        (output_dir / "eval_results.json").write_text(json.dumps(metrics, indent=2) + "\n")
        recipe_name, recipe = model_args.chosen_recipe
        with made_whole(args):
            write_facts(
                output_dir,
                trainer,
                load_sources(model_args, data_args),
                metrics,
                arguments,
                recipe=recipe_name,
                what_it_is=recipe.description,
                vlm=model_args.vlm or model_args.policy,
                made_from=made_from,
                vlm_dataset=data_args.vlm_dataset,
                trains_vlm_data=data_args.vlm_dataset is not None and recipe.vlm_data,
                minutes=(time.monotonic() - start_time) / 60,
            )
        write_card(output_dir)
        print_results(metrics, output_dir)
    if args.push_to_hub:
        trainer.push_to_hub()


def run_facts(model_args: ModelArguments, args: KIVLATrainingArguments, number: int) -> dict:
    """What the run is beside what its trainer sees; see `ResumableTrainer`. Later stages go on from earlier ones, so
    that a run of several cannot be made longer."""
    facts = {"recipe": model_args.chosen_recipe[0], "meaning": model_args.meaning}
    if len(model_args.stages) > 1:
        steps = {"steps": args.max_steps} if args.max_steps > 0 else {"epochs": args.num_train_epochs}
        facts |= {"stage": f"{number} of {len(model_args.stages)}", "all_stages": steps}
    return facts


def save(trainer: KIVLATrainer, folder: Path) -> None:
    """The policy, whole, for whatever comes next; with LoRA also the updates alone, in `adapter/`. With `--ema_decay`
    both are the averaged weights."""
    trainer.take_average()
    if isinstance(trainer.model, PeftModel):
        trainer.save_model(str(folder / "adapter"))
        trainer.model = trainer.model_wrapped = trainer.model.merge_and_unload()
    trainer.save_model(_internal_call=True)  # to be pushed with its card, at the end
    trainer.save_state()
    trainer.accelerator.wait_for_everyone()  # the next stage begins with what the first process writes


BEFORE = "before"


def answers_before(trainer: KIVLATrainer, path: Path) -> dict[str, float]:
    """How well the VLM answers before any training, as metrics `before_vlm_...`; measured once."""
    if "vlm" not in trainer.eval_dataset:
        return {}
    if not path.is_file():
        metrics = trainer.evaluate({"vlm": trainer.eval_dataset["vlm"]}, metric_key_prefix=BEFORE)
        if trainer.is_world_process_zero():
            write_json(path, metrics)
        trainer.accelerator.wait_for_everyone()
    return json.loads(path.read_text(encoding="utf-8"))


def split_run(stages: Sequence[Stage], args: KIVLATrainingArguments) -> list[KIVLATrainingArguments]:
    """The arguments of every stage: its share of steps or epochs, and its folder; the last one writes the policy."""
    if len(stages) == 1:
        return [args]
    total = sum(stage.share for stage in stages)
    steps = split_steps(stages, args.max_steps) if args.max_steps > 0 else [-1] * len(stages)
    folders = [str(Path(args.output_dir) / f"stage_{number}") for number in range(1, len(stages))]
    return [
        replace(
            args,
            max_steps=count,
            num_train_epochs=args.num_train_epochs * stage.share / total,
            output_dir=folder,
            push_to_hub=args.push_to_hub and folder == args.output_dir,
        )
        for stage, count, folder in zip(stages, steps, [*folders, args.output_dir], strict=True)
    ]


def make_trainer(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: KIVLATrainingArguments,
    stage: Stage,
    start: Path | None = None,
    facts: dict | None = None,
) -> tuple[KIVLATrainer, dict]:
    """Datasets, model, processor and trainer of a stage; and what the policy is made from, for its card.

    Args:
        start: the policy of the stage before, if there was one.
        facts: see `run_facts`.

    Raises:
        ValueError: recipe, data, options and policy do not fit each other.
    """
    sources = load_sources(model_args, data_args)
    recipe_name, recipe = model_args.chosen_recipe
    with_vlm_data = data_args.vlm_dataset is not None and recipe.vlm_data
    if data_args.vlm_share is not None and not with_vlm_data:
        refuse({"vlm_share": f"recipe {recipe_name} trains on no VLM data"})
    if args.expert_learning_rate is not None and not any(EXPERT in stage.trains for stage in model_args.stages):
        refuse({"expert_learning_rate": f"recipe {recipe_name} trains no expert"})
    if model_args.lora_rank is not None and BACKBONE not in stage.trains:
        raise ValueError(f"Recipe {recipe_name} freezes the VLM: leave out --lora_rank.")
    set_seed(args.seed)  # a new expert's weights
    with made_whole(args):
        if start is not None:
            built = next_stage(start, model_args)
        elif model_args.meaning == START:
            built = start_policy(model_args.vlm, sources, model_args)
        else:
            build = adapt_policy if model_args.adapt else continue_policy
            built = build(model_args.base, sources, model_args)
    if data_args.vlm_dataset is not None and not with_vlm_data:
        built.notes.append(
            f"recipe {recipe_name} trains on no VLM data: {data_args.vlm_dataset} is for evaluation only."
        )
    if args.process_index == 0:
        for note in built.notes:
            print(f"{note[0].upper()}{note[1:]}")
    model, processor = built.model, built.processor
    begins_with = {"name": str(start or model_args.vlm or model_args.policy)}
    if start is not None or model_args.policy is not None:
        begins_with["expert"] = weights_digest(model.expert)
    set_stage(model, stage)
    if model.config.acts_by == "tokens" and processor.action_tokenizer is None and not with_vlm_data:
        raise ValueError(
            "There is nothing to train: this stage has no flow loss, the processor no action tokenizer, and there is "
            'no VLM data. Leave out --action_tokenizer none, or choose a recipe with an expert ("kivla recipes").'
        )
    if model_args.lora_rank is not None:
        model = get_peft_model(model, lora_config(model, processor, model_args.lora_rank))
    trainer = KIVLATrainer(
        model,
        args,
        train_dataset=make_mixture(data_args, args, sources, processor, with_vlm_data),
        eval_dataset=load_evaluation(data_args, sources, processor),
        processing_class=processor,
        run_facts={**(facts or {}), "start": begins_with},
    )
    return trainer, built.facts


def load_sources(model_args: ModelArguments, data_args: DataArguments) -> list[LeRobotDataset]:
    """The demonstrations to train on; for a policy that goes on with its chunk size, and its cameras if they are all
    there."""
    size = {} if model_args.base is None else {"chunk_size": model_args.base.config.chunk_size}
    size |= model_args.given("chunk_size")
    sources = []
    for i, name in enumerate(data_args.dataset):
        robot = data_args.robots[i] if data_args.robots else None
        cameras, episodes = data_args.cameras, data_args.episodes
        if cameras is None and model_args.meaning == CONTINUE:
            cameras = model_args.base.cameras_among(camera_names(name), robot)
        read = partial(LeRobotDataset, name, cameras=cameras, robot=robot, **size)
        if data_args.eval_episodes:
            every = read(episodes=episodes).episodes
            episodes = [episode for episode in every if episode not in data_args.eval_episodes]
        sources.append(read(episodes=episodes, frame_cache_mb=data_args.frame_cache_mb))
    return sources


def load_evaluation(
    data_args: DataArguments, sources: list[LeRobotDataset], processor: KIVLAProcessor
) -> dict[str, Subset]:
    """Some of the training frames (of each robot), held-out episodes and VLM data if there are any."""
    names = [f"train_{data.robot}" if len(sources) > 1 else "train" for data in sources]
    evaluation = {name: _spread(data, data_args.max_eval_frames) for name, data in zip(names, sources, strict=True)}
    if data_args.eval_episodes:
        (data,) = sources
        held_out = LeRobotDataset(data.name, data.chunk_size, data_args.eval_episodes, data.cameras, data.robot)
        evaluation["held_out"] = _spread(held_out, data_args.max_eval_frames)
    if data_args.vlm_dataset is not None:
        split = data_args.vlm_eval_split or data_args.vlm_split or VLM_SPLIT
        questions = load_vlm_data(data_args, processor, split)
        first = range(min(data_args.max_eval_frames, len(questions)))  # a stream would be read to its end otherwise
        evaluation["vlm"] = Subset(questions, first) if questions.is_stream else _spread(questions, len(first))
    return evaluation


def load_vlm_data(data_args: DataArguments, processor: KIVLAProcessor, split: str) -> VLMDataset:
    turns = "together" if has_chat(processor.vlm_processor) or data_args.vlm_streaming else "split"
    rows = {"num_rows": data_args.vlm_num_rows, "config": data_args.vlm_config}
    return VLMDataset.load(data_args.vlm_dataset, split, streaming=data_args.vlm_streaming, turns=turns, **rows)


def make_mixture(
    data_args: DataArguments,
    args: KIVLATrainingArguments,
    sources: list[LeRobotDataset],
    processor: KIVLAProcessor,
    with_vlm_data: bool,
) -> Dataset:
    """What to train on: the dataset itself if there is one, otherwise a mixture as long as the run."""
    if len(sources) == 1 and not with_vlm_data:
        return sources[0]
    if args.max_steps < 1:
        raise ValueError("Several sources of examples are mixed for a number of steps: give --max_steps.")
    weights = np.array(data_args.dataset_weights or [len(data) for data in sources], dtype=np.float64)
    if with_vlm_data:
        share = VLM_SHARE if data_args.vlm_share is None else data_args.vlm_share
        weights = [*(weights / weights.sum() * (1 - share)), share]
        sources = [*sources, load_vlm_data(data_args, processor, data_args.vlm_split or VLM_SPLIT)]
    examples = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return Mixture(sources, weights, examples, args.seed if args.data_seed is None else args.data_seed)


def _spread(data: Dataset, count: int) -> Subset:
    return Subset(data, np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int)).tolist())


def print_results(metrics: dict[str, float], folder: Path) -> None:
    """The evaluation as a table, in robot units, and whether the VLM still answers."""
    print(f"\n{'evaluated on':20}{'mean abs. error':>18}{'of the mean action':>22}{'times better':>16}")
    for name, row in evaluated_sets(metrics).items():
        error, mean, times = row.values()
        print(f"{name:20}{error:18.4f}{mean:22.4f}{times:16.2f}")
    if f"{BEFORE}_vlm_answer_accuracy" in metrics:
        before, after = metrics[f"{BEFORE}_vlm_answer_accuracy"], metrics["eval_vlm_answer_accuracy"]
        print(f"\nVLM data: {100 * before:.1f} % of the answers word for word before, {100 * after:.1f} % after")
    print(f"\nPolicy, eval_results.json and training.png are in {folder}")
