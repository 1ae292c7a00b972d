"""`kivla train`: fine-tune a VLM into a policy on LeRobot datasets, by any of the recipes."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from peft import PeftModel, get_peft_model
from torch.utils.data import Dataset, Subset

from . import (
    BinningActionTokenizer,
    FASTActionTokenizer,
    KIVLAForActionPrediction,
    KIVLAProcessor,
    KIVLATrainer,
    KIVLATrainingArguments,
    LeRobotDataset,
)
from .card import write_card, write_facts
from .cli import parse
from .plots import plot_training_curves
from .processing import ActionTokenizer, Normalizer, load_action_tokenizer
from .processing.prompt_frame import has_chat
from .training.checkpoints import put_aside
from .training.data_parallel import made_whole
from .training.lerobot_dataset import joint_statistics
from .training.lora import lora_config
from .training.mixture import Mixture
from .training.policy_card import evaluated_sets
from .training.recipes import BACKBONE, RECIPES, Recipe, Stage, get_recipe, set_stage, split_steps
from .training.run_identity import weights_digest
from .training.vlm_dataset import VLMDataset


@dataclass
class ModelArguments:
    """Which VLM, which expert, and how they are trained together. See `KIVLAConfig` and `KIVLAExpertConfig`."""

    vlm: str | None = field(default=None, metadata={"help": "VLM to start from: a Hub id or a folder."})
    policy: str | None = field(default=None, metadata={"help": "Trained KIVLA policy to go on from, instead of --vlm."})
    recipe: str | None = field(
        default=None,
        metadata={"help": f"What trains what: {', '.join(RECIPES)}. insulated; with --policy, as it was trained."},
    )
    chunk_size: int = field(default=50, metadata={"help": "Actions in a chunk (H)."})
    max_action_dim: int = field(default=32, metadata={"help": "Width of a chunk; shorter actions are padded."})
    max_state_dim: int = field(default=32, metadata={"help": "Width of a continuous state."})
    state_encoding: str | None = field(
        default=None, metadata={"help": "text (in the prompt), continuous or none; the recipe's."}
    )
    backbone_gradient_scale: float | None = field(
        default=None, metadata={"help": "0 = insulation, 1 = joint training, between = partly; the recipe's."}
    )
    flow_loss_weight: float | None = field(
        default=None, metadata={"help": "loss = token_loss + this * flow_loss, where the expert is trained; 1."}
    )
    expert_reads_response: bool = field(
        default=False, metadata={"help": "Let the expert read the response (sub-task) that comes before the actions."}
    )
    num_flow_samples: int = field(default=4, metadata={"help": "Noise draws for each backbone pass."})
    num_inference_steps: int = field(default=10, metadata={"help": "Euler steps."})
    expert_hidden_size: int = field(default=1024, metadata={"help": "Width of the action expert."})
    expert_intermediate_size: int = field(default=4096, metadata={"help": "Width of its MLP."})
    expert_num_attention_heads: int | None = field(default=None, metadata={"help": "Query heads; the backbone's."})
    expert_layer_stride: int = field(default=1, metadata={"help": "Read every k-th backbone layer."})
    expert_time_conditioning: str = field(default="adarms", metadata={"help": "adarms (pi0.5) or concat (pi0)."})
    expert_initializer_range: float = field(
        default=0.02, metadata={"help": "Standard deviation of its weights; 1/sqrt(width) suits a small one."}
    )
    dtype: str = field(
        default="float32", metadata={"help": "Type of the weights. Keep float32 and add --bf16 for mixed precision."}
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, flash_attention_2, ..."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the VLM."})
    lora_rank: int | None = field(
        default=None, metadata={"help": "Train low-rank updates of the VLM's text decoder, and the expert in full."}
    )

    def __post_init__(self):
        if (self.vlm is None) == (self.policy is None):
            raise ValueError("Give either --vlm (a VLM to start from) or --policy (a KIVLA policy to go on from).")

    @property
    def chosen_recipe(self) -> Recipe | None:
        """None where a policy goes on as it was trained."""
        if self.recipe is None and self.policy is not None:
            return None
        return get_recipe(self.recipe or "insulated")

    @property
    def stages(self) -> tuple[Stage | None, ...]:
        """The recipe's, with the options given on top."""
        if self.chosen_recipe is None:
            return (None,)
        given = {name: getattr(self, name) for name in ("backbone_gradient_scale", "flow_loss_weight")}
        given = {name: value for name, value in given.items() if value is not None}
        return tuple(
            replace(stage, config={**stage.config, **given}) if stage.config["flow_loss_weight"] > 0 else stage
            for stage in self.chosen_recipe.stages
        )

    def config_kwargs(self) -> dict:
        shared = ("chunk_size", "max_action_dim", "max_state_dim", "num_flow_samples", "num_inference_steps")
        expert = {f.name.removeprefix("expert_"): getattr(self, f.name) for f in fields(self) if f.name in _EXPERT}
        encoding = self.state_encoding or self.chosen_recipe.state_encoding
        return {**{name: getattr(self, name) for name in shared}, "state_encoding": encoding, "expert_config": expert}


_EXPERT = tuple(
    f"expert_{name}"
    for name in (
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "layer_stride",
        "time_conditioning",
        "initializer_range",
    )
)


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
    vlm_split: str = field(default="train", metadata={"help": "Split of it to train on."})
    vlm_eval_split: str | None = field(default=None, metadata={"help": "Split to evaluate on; examples of vlm_split."})
    vlm_share: float = field(default=0.2, metadata={"help": "Share of VLM data among the examples."})
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
    normalization: str = field(default="quantile", metadata={"help": "quantile, mean_std or none."})
    action_tokenizer: str | None = field(
        default=None, metadata={"help": "fast (fitted on the data), bins, none, a FAST folder or Hub id; the recipe's."}
    )
    action_vocab_size: int = field(default=1024, metadata={"help": "Codes of a fitted FAST tokenizer."})
    action_scale: float = field(default=10.0, metadata={"help": "Resolution of a fitted FAST tokenizer."})
    action_token_placement: str = field(default="added", metadata={"help": "added (new tokens) or tail (openpi)."})
    action_token_skip: int = field(default=128, metadata={"help": "For tail: 128 (openpi) or 1152 (spares <loc>)."})
    max_length: int | None = field(default=None, metadata={"help": "Longest allowed sequence; longer is an error."})

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
        if not 0 < self.vlm_share < 1:
            raise ValueError(
                f"--vlm_share must lie between 0 and 1, got {self.vlm_share}. To use none, leave out --vlm_dataset."
            )


def run(arguments: Sequence[str]) -> None:
    kinds = (ModelArguments, DataArguments, KIVLATrainingArguments)
    model_args, data_args, args = parse(kinds, arguments, prog="kivla train", required=("output_dir",))
    stages, output_dir, start = model_args.stages, Path(args.output_dir), None
    if args.restart:
        with args.main_process_first(local=False):
            if args.process_index == 0:
                put_aside(output_dir)
        args = replace(args, restart=False)
    start_time = time.monotonic()
    for number, (stage, stage_args) in enumerate(zip(stages, split_run(stages, args), strict=True), 1):
        folder = Path(stage_args.output_dir)
        is_last = number == len(stages)
        facts = run_facts(model_args, args, number)
        trainer = make_trainer(model_args, data_args, stage_args, stage, start, facts)
        checkpoint = args.resume_from_checkpoint
        if checkpoint is None:
            checkpoint = trainer.newest_checkpoint()
            trainer.claim_folder(output_dir)
        if not is_last and (folder / "trainer_state.json").is_file():  # written last
            start = folder
            continue
        if len(stages) > 1:
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
        recipe = model_args.chosen_recipe
        with made_whole(args):
            write_facts(
                output_dir,
                trainer,
                load_sources(data_args, model_args.chunk_size, trainer.processing_class),
                metrics,
                arguments,
                recipe=model_args.recipe or ("insulated" if recipe else "as before"),
                what_it_is=recipe.description if recipe else "it went on as it had been trained",
                vlm=model_args.vlm or model_args.policy,
                vlm_dataset=data_args.vlm_dataset,
                trains_vlm_data=trains_vlm_data(model_args, data_args),
                minutes=(time.monotonic() - start_time) / 60,
            )
        write_card(output_dir)
        print_results(metrics, output_dir)
    if args.push_to_hub:
        trainer.push_to_hub()


def run_facts(model_args: ModelArguments, args: KIVLATrainingArguments, number: int) -> dict:
    """What the run is beside what its trainer sees; see `ResumableTrainer`. Later stages go on from earlier ones, so
    that a run of several cannot be made longer."""
    recipe = model_args.chosen_recipe
    facts = {"recipe": model_args.recipe or ("insulated" if recipe else "as before")}
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
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(metrics, indent=2) + "\n")
        trainer.accelerator.wait_for_everyone()
    return json.loads(path.read_text())


def split_run(stages: Sequence[Stage | None], args: KIVLATrainingArguments) -> list[KIVLATrainingArguments]:
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
    stage: Stage | None = None,
    start: Path | None = None,
    facts: dict | None = None,
) -> KIVLATrainer:
    """Datasets, model, processor and trainer of a stage.

    Args:
        stage: None goes on with a policy as it was trained.
        start: the policy of the stage before, if there was one.
        facts: see `run_facts`.

    Raises:
        ValueError: recipe, data and policy do not fit each other.
    """
    start = model_args.policy if start is None else start
    loaded = None if start is None else KIVLAProcessor.from_pretrained(start)
    sources = load_sources(data_args, model_args.chunk_size, loaded)
    processor = loaded or make_processor(model_args, data_args, sources)
    with made_whole(args):
        if start is not None:
            model = KIVLAForActionPrediction.from_pretrained(start, dtype=model_args.dtype)
        else:
            model = KIVLAForActionPrediction.from_vlm(
                model_args.vlm,
                dtype=model_args.dtype,
                attn_implementation=model_args.attn_implementation,
                trust_remote_code=model_args.trust_remote_code,
                **model_args.config_kwargs(),
            )
    begins_with = {"name": str(start or model_args.vlm)} | ({"expert": weights_digest(model.expert)} if start else {})
    if stage is not None:
        set_stage(model, stage)
    with_vlm_data = trains_vlm_data(model_args, data_args)
    if data_args.vlm_dataset is not None and not with_vlm_data:
        print(f"Recipe {model_args.recipe} trains on no VLM data: {data_args.vlm_dataset} is for evaluation only.")
    if model.config.acts_by == "tokens" and processor.action_tokenizer is None and not with_vlm_data:
        raise ValueError(
            "There is nothing to train: this stage has no flow loss, the processor no action tokenizer, and there is "
            'no VLM data. Leave out --action_tokenizer none, or choose a recipe with an expert ("kivla recipes").'
        )
    if model_args.lora_rank is not None:
        if stage is not None and BACKBONE not in stage.trains:
            raise ValueError(f"Recipe {model_args.recipe} freezes the VLM: leave out --lora_rank.")
        model.resize_token_embeddings(max(processor.vocab_size, model.get_input_embeddings().num_embeddings))
        model = get_peft_model(model, lora_config(model, processor, model_args.lora_rank))
    return KIVLATrainer(
        model,
        args,
        train_dataset=make_mixture(data_args, args, sources, processor, with_vlm_data),
        eval_dataset=load_evaluation(data_args, sources, processor),
        processing_class=processor,
        run_facts={**(facts or {}), "start": begins_with},
    )


def trains_vlm_data(model_args: ModelArguments, data_args: DataArguments) -> bool:
    """Whether VLM data is there to be learned from, and not to evaluate only."""
    recipe = model_args.chosen_recipe
    return data_args.vlm_dataset is not None and (recipe is None or recipe.vlm_data)


def load_sources(data_args: DataArguments, chunk_size: int, policy: KIVLAProcessor | None) -> list[LeRobotDataset]:
    """The demonstrations to train on; with the cameras and the chunk size of the policy that is to go on."""
    sources = []
    for i, name in enumerate(data_args.dataset):
        robot = data_args.robots[i] if data_args.robots else None
        cameras = data_args.cameras or (policy.robot(robot).cameras if policy else None)
        size = policy.chunk_size if policy else chunk_size
        episodes = data_args.episodes
        if data_args.eval_episodes:
            every = LeRobotDataset(name, size, episodes, cameras).episodes
            episodes = [episode for episode in every if episode not in data_args.eval_episodes]
        sources.append(LeRobotDataset(name, size, episodes, cameras, robot, data_args.frame_cache_mb))
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
        split = data_args.vlm_eval_split or data_args.vlm_split
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
        share = data_args.vlm_share
        weights = [*(weights / weights.sum() * (1 - share)), share]
        sources = [*sources, load_vlm_data(data_args, processor, data_args.vlm_split)]
    examples = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return Mixture(sources, weights, examples, args.seed)


def _spread(data: Dataset, count: int) -> Subset:
    return Subset(data, np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int)).tolist())


def make_processor(
    model_args: ModelArguments, data_args: DataArguments, sources: list[LeRobotDataset]
) -> KIVLAProcessor:
    """The VLM's processor with the robots' statistics, and an action tokenizer fitted on their chunks."""
    by_robot: dict[str | None, list[LeRobotDataset]] = {}
    for data in sources:
        by_robot.setdefault(data.robot, []).append(data)
    robots = {}
    for name, group in by_robot.items():
        if any(data.cameras != group[0].cameras for data in group):
            raise ValueError(
                f"The datasets of robot {name!r} have different cameras: {[data.cameras for data in group]}. Choose "
                "common ones with --cameras, or give the robots different names."
            )
        robots[name] = {"statistics": joint_statistics(group), "cameras": group[0].cameras}
    recipe = model_args.chosen_recipe
    return KIVLAProcessor.from_vlm(
        model_args.vlm,
        action_tokenizer=make_action_tokenizer(
            data_args.action_tokenizer or recipe.action_tokenizer, data_args, sources, robots
        ),
        chunk_size=model_args.chunk_size,
        max_action_dim=model_args.max_action_dim,
        max_state_dim=model_args.max_state_dim,
        state_encoding=model_args.state_encoding or recipe.state_encoding,
        normalization=data_args.normalization,
        action_token_placement=data_args.action_token_placement,
        action_token_skip=data_args.action_token_skip,
        expert_reads_response=model_args.expert_reads_response,
        max_length=data_args.max_length,
        **(robots.get(None) or {"robots": robots}),
    )


def make_action_tokenizer(
    kind: str, data_args: DataArguments, sources: list[LeRobotDataset], robots: dict[str | None, dict]
) -> ActionTokenizer | None:
    if kind == "none":
        return None
    if kind == "bins":
        return BinningActionTokenizer()
    if kind != "fast":
        return load_action_tokenizer(kind)
    chunks = [
        chunk
        for data in sources
        for chunk in normalized_chunks(data, robots[data.robot]["statistics"], data_args.normalization)
    ]
    return fit_fast_tokenizer(chunks, data_args.action_vocab_size, data_args.action_scale)


def normalized_chunks(
    data: LeRobotDataset, statistics: dict, normalization: str, max_chunks: int = 50_000
) -> list[np.ndarray]:
    """Action chunks of a dataset as the policy sees them, each (H, Da)."""
    normalizer = Normalizer(statistics["actions"], normalization)
    return [normalizer.normalize(chunk) for chunk in data.action_chunks(max_chunks)]


def fit_fast_tokenizer(chunks: Sequence[np.ndarray], vocab_size: int, scale: float) -> FASTActionTokenizer:
    """A FAST tokenizer for normalised chunks; prints what it costs and what it loses."""
    tokenizer = FASTActionTokenizer.fit(chunks, vocab_size=vocab_size, scale=scale)
    report = tokenizer.roundtrip_error(chunks)
    print(
        f"FAST fitted on {len(chunks)} chunks: {report['tokens_mean']:.1f} tokens a chunk (at most "
        f"{report['tokens_max']}), root-mean-square error {report['rmse']:.4f} of the normalised range [-1, 1]"
    )
    return tokenizer


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
