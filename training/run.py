"""A training run as `kivla train` makes it: datasets, policy, trainer, all stages of a recipe, evaluation and card.

```python
model = ModelArguments(vlm="google/paligemma2-3b-pt-224", chunk_size=50)
data = DataArguments(dataset=["lerobot/aloha_sim_transfer_cube_human"])
trainer, metrics = train(model, data, KIVLATrainingArguments(output_dir="outputs/policy", max_steps=1000))
```
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from peft import PeftModel
from torch.utils.data import Dataset, Subset
from transformers import AutoModelForImageTextToText, PreTrainedModel, set_seed
from transformers.integrations import get_available_reporting_integrations
from transformers.training_args import ParallelMode

from ..hub_cards.hub_names import public_name
from ..modeling_kivla import KIVLAForActionPrediction
from ..named_models import TABLETOP, model_type
from ..processing import KIVLAProcessor
from ..processing.chat_format import has_chat
from .arguments import KIVLATrainingArguments
from .base_policy import CONTINUE
from .build import build_for_stage
from .checkpoints import RUN_MARKS, put_aside
from .data.augmentation import wrists_by_name
from .data.camera_naming import unseen_note
from .data.checks.findings import ERROR, WARNING
from .data.checks.report import check_data
from .data.collator import KIVLACollator
from .data.dataset_checks import robot_datasets
from .data.mixture import Mixture
from .data.robot_dataset import RobotDataset, evenly_spread
from .data.vlm.dataset import VLMDataset
from .data.vlm.texts import TEXT_LENGTH, TextDataset
from .data_parallel import unsharded_init
from .evaluation.plots import plot_training_curves
from .evaluation.predictions import draw
from .evaluation.text_nll import HeldOutTexts, TextScores, summarize_texts, text_tokens
from .first_process import made_by_first_process
from .idle_options import idle_options
from .last_evaluation import LastEvaluation
from .parts import BACKBONE, RATE_ARGUMENTS, freeze_vision
from .plan import TimeLeft, format_plan
from .policy_options import RelativeOptions, refuse
from .readable_log import print_readably
from .recipes import Stage, split_steps
from .relative_options import told_to_wrap
from .run_folder import check_can_write, check_is_free, relation_to, write_json
from .run_options import TEXT_SPLIT, VLM_SPLIT, DataArguments, ModelArguments
from .sole_use import sole_use
from .trainer import KIVLATrainer
from .training_facts import chunks_to_show, other_than_trained, write_card, write_facts


def train(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: KIVLATrainingArguments,
    command: Sequence[str] | None = None,
    on_claim: Callable[[], None] | None = None,
) -> tuple[KIVLATrainer, dict[str, float]]:
    """Train a policy, all stages of its recipe, and evaluate it. Called again after an interruption, it goes on.

    `output_dir` then holds the policy with its card, `training.png`, `chunks.png`, `eval_results.json` and
    `training_facts.json`.

    Args:
        command: the arguments of `kivla train` for the card, if that was it.
        on_claim: called by one process as soon as `output_dir` is this run's, before anything is trained.

    Returns:
        The trainer of the last stage, and the metrics of its evaluation.

    Raises:
        ValueError: options, data and policy do not fit each other; the message names them.
        OtherRunError: `output_dir` holds another run.
        FileExistsError: it holds other things, and no run.
        InUseError: another process trains into it.
    """
    check_options(model_args, data_args, args)
    output_dir = Path(args.output_dir)
    refuse_own_inputs(output_dir, model_args, data_args)
    check_is_free(output_dir, RUN_MARKS)
    check_can_write(output_dir)
    with ExitStack() as kept:
        made_by_first_process(lambda: kept.enter_context(sole_use(output_dir)))
        return _train(model_args, data_args, args, command, on_claim)


def _train(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: KIVLATrainingArguments,
    command: Sequence[str] | None,
    on_claim: Callable[[], None] | None,
) -> tuple[KIVLATrainer, dict[str, float]]:
    stages, output_dir, start = model_args.stages, Path(args.output_dir), None
    # The whole folder is put aside once, not that of every stage.
    if args.restart:
        with args.main_process_first(local=False):
            if args.process_index == 0:
                put_aside(output_dir)
        args = replace(args, restart=False)
    start_time, made_from = time.monotonic(), {}
    for number, (stage, stage_args) in enumerate(zip(stages, split_run(stages, args), strict=True), 1):
        folder = Path(stage_args.output_dir)
        is_last = number == len(stages)
        trainer, made = make_trainer(
            model_args, data_args, stage_args, stage, start, run_facts(model_args, data_args, args, number)
        )
        made_from = made_from or made  # what the first stage begins with
        # Before anything is written: is the folder this run's, and where was it?
        checkpoint = args.resume_from_checkpoint
        if checkpoint is None:
            checkpoint = trainer.newest_checkpoint()
            trainer.claim_folder(output_dir)
        if number == 1 and on_claim is not None and args.process_index == 0:
            on_claim()
        if not is_last and (folder / "trainer_state.json").is_file():  # written last: the stage is done
            start = folder
            continue
        if args.process_index == 0:
            print(format_plan(trainer, stages, number))
        print_readably(trainer)
        trainer.add_callback(TimeLeft())
        evaluated = LastEvaluation()
        trainer.add_callback(evaluated)
        before = answers_before(trainer, output_dir / "vlm_before.json")
        texts_then = texts_before(trainer, output_dir / "text_before.json", is_first=number == 1)
        if texts_then is not None:
            before[f"{BEFORE}_text_nll"] = texts_then.mean
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.state.log_history.insert(0, {**before, "step": 0})
        save(trainer, folder)
        start = folder
    metrics = {**before, **evaluated.of(trainer)}
    texts = None
    if texts_then is not None:
        held_out = trainer.eval_dataset["text"]
        texts = {"dataset": public_name(held_out.name), "text_length": held_out.text_length}
        texts |= summarize_texts(trainer.text_scores["eval_text"], texts_then)
        metrics |= {f"text_nll_difference{suffix}": texts["difference"][name] for name, suffix in _BOUNDS.items()}
    sources = robot_datasets(trainer.train_dataset)
    shown_chunks = chunks_to_show(trainer, sources[0], output_dir)  # on all devices: they act together
    if trainer.is_world_process_zero():
        plot_training_curves(output_dir / "training.png", trainer.state.log_history)
        write_json(output_dir / "eval_results.json", metrics)
        draw(output_dir / "chunks.png", shown_chunks, sources[0], count=4)
        recipe_name, recipe = model_args.chosen_recipe
        write_facts(
            output_dir,
            trainer,
            sources,
            metrics,
            command,
            example_text=shown_chunks["texts"][0],
            recipe=recipe_name,
            what_it_is=recipe.description,
            vlm=model_args.vlm or model_args.policy,
            made_from=made_from,
            cameras=data_args.mapping,
            texts=texts,
            vlm_dataset=data_args.vlm_dataset,
            trains_vlm_data=data_args.vlm_dataset is not None and recipe.vlm_data,
            text_dataset=data_args.text_dataset,
            text_share=data_args.shares.get("text_share"),
            minutes=(time.monotonic() - start_time) / 60,
        )
        write_card(output_dir)
    if args.push_to_hub:
        trainer.push_to_hub()
    return trainer, metrics


# Of the library's numbers, which it does not check: the least, and what they stay below
_LIBRARYS_NUMBERS = {
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
    **dict.fromkeys(("adam_epsilon", "weight_decay", "max_grad_norm", "dataloader_num_workers"), (0, math.inf)),
    **dict.fromkeys(("dataloader_prefetch_factor", "save_total_limit"), (1, math.inf)),
}


def check_options(model_args: ModelArguments, data_args: DataArguments, args: KIVLATrainingArguments) -> None:
    """Check whether the options of a run go together, before any data or weights are read.

    Raises:
        ValueError: they do not; each is named.
    """
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}.")
    for name in ("learning_rate", *RATE_ARGUMENTS.values()):
        if not 0 <= (getattr(args, name) or 0) < math.inf:
            raise ValueError(f"--{name} must not be negative, nor without end; got {getattr(args, name)}.")
    for name, (least, below) in _LIBRARYS_NUMBERS.items():
        value = getattr(args, name)
        if value is not None and not least <= value < below:
            end = "" if below == math.inf else f", and less than {below}"
            raise ValueError(f"--{name} must be at least {least}{end}; got {value}.")
    for name in ("logging_steps", "save_steps", "eval_steps"):
        if (value := getattr(args, name)) is not None and not value > 0:
            raise ValueError(f"--{name} must be more than 0, got {value:g}.")
    # The library takes any number below 1 for "by epochs", of which it has 3; -1 is its word for that.
    if args.max_steps < 1 and args.max_steps != -1:
        raise ValueError(f"--max_steps must be at least 1, got {args.max_steps}.")
    if args.max_steps < 1 and not args.num_train_epochs > 0:
        raise ValueError(f"--num_train_epochs must be more than 0, got {args.num_train_epochs:g}.")
    for name in ("seed", "data_seed"):
        if not 0 <= (getattr(args, name) or 0) < 2**32:
            raise ValueError(f"--{name} lies between 0 and {2**32 - 1}, got {getattr(args, name)}.")
    if model_args.lora_rank is not None and model_args.lora_rank < 1:
        raise ValueError(f"--lora_rank must be at least 1, got {model_args.lora_rank}. Leave it out for no LoRA.")
    (recipe_name, recipe), stages = model_args.chosen_recipe, model_args.stages
    with_vlm_data = data_args.vlm_dataset is not None and recipe.vlm_data
    if data_args.vlm_share is not None and not with_vlm_data:
        refuse({"vlm_share": f"recipe {recipe_name} trains on no VLM data"})
    with_questions = data_args.question_share is not None
    if with_questions and not recipe.vlm_data:
        refuse({"question_share": f"recipe {recipe_name} trains on no VLM data"})
    if data_args.text_dataset is not None and not recipe.vlm_data:
        reason = f"recipe {recipe_name} trains on demonstrations alone; one of your own may have vlm_data: true"
        refuse({"text_dataset": reason})
    if data_args.text_dataset is None:
        of_text = {"text_loss_weight": args.text_loss_weight != 1, "anchor_weight": args.anchor_weight != 0}
        refuse({name: "there is no --text_dataset" for name, is_given in of_text.items() if is_given})
    trained = set().union(*(stage.parts for stage in stages))
    refuse(
        {
            name: f"recipe {recipe_name} trains no {part.replace('_', ' ')}"
            for part, name in RATE_ARGUMENTS.items()
            if getattr(args, name) is not None and part not in trained
        }
    )
    if model_args.lora_rank is not None and BACKBONE not in trained:
        raise ValueError(f"Recipe {recipe_name} freezes the VLM: leave out --lora_rank.")
    if model_args.freeze_vision and BACKBONE not in trained:
        refuse({"freeze_vision": f"recipe {recipe_name} leaves the whole VLM as it is"})
    if model_args.freeze_vision and model_args.lora_rank is not None:
        refuse({"freeze_vision": "LoRA trains the text decoder alone"})
    refuse(idle_options(args))
    check_reports(args)
    if args.fsdp and args.parallel_mode != ParallelMode.DISTRIBUTED:
        reason = (
            "it shares the policy among several processes, and this is one: `kivla launch-files` writes how to start"
        )
        refuse({"fsdp": f"{reason} them (docs/several_devices.md)"})
    if args.resume_from_checkpoint is not None and len(stages) > 1:
        reason = f"a run of {len(stages)} stages finds where it was by itself, by the same command"
        refuse({"resume_from_checkpoint": reason})
    if args.resume_from_checkpoint is not None and not Path(args.resume_from_checkpoint).is_dir():
        reason = "it names a checkpoint's folder, and there is none; without it, a run goes on from its newest one"
        refuse({"resume_from_checkpoint": f"{args.resume_from_checkpoint}: {reason}"})
    is_mixed = with_vlm_data or with_questions or data_args.text_dataset is not None or len(data_args.dataset) > 1
    if args.max_steps < 1 and is_mixed:
        raise ValueError("Several sources of examples are mixed for a number of steps: give --max_steps.")
    if model_args.vlm is not None:
        model_type(model_args.vlm, "VLM (--vlm)", known=(TABLETOP,))


def refuse_own_inputs(output_dir: Path, model_args: ModelArguments, data_args: DataArguments) -> None:
    """Refuse a folder for the run that is, or holds, what the run begins with: `restart` would move it away.

    Raises:
        ValueError: naming the option.
    """
    given = {name: getattr(model_args, name) for name in ("vlm", "policy", "vlm_processor")}
    given |= {name: getattr(data_args, name) for name in ("vlm_dataset", "text_dataset", "eval_text_dataset")}
    for name, value in [*given.items(), *(("dataset", one) for one in data_args.dataset)]:
        if (relation := relation_to(output_dir, value)) is not None:
            raise ValueError(
                f"--output_dir {output_dir} {relation} what the run begins with, --{name} {value}. Give the run a "
                "folder of its own."
            )


_PACKAGES = ("trackio", "wandb", "tensorboard")  # that are documented; the library knows more


def check_reports(args: KIVLATrainingArguments) -> None:
    """Check that what the run is reported to is installed.

    Raises:
        ValueError: it is not.
    """
    installed = get_available_reporting_integrations()
    for name in args.report_to:
        if name not in installed:
            how = f": pip install {name}" if name in _PACKAGES else f", or no such thing: {', '.join(_PACKAGES)}"
            raise ValueError(f"--report_to {name} is not installed here{how}.")


def run_facts(model_args: ModelArguments, data_args: DataArguments, args: KIVLATrainingArguments, number: int) -> dict:
    """Return what the run is beside what its trainer sees; see `ResumableTrainer`.

    Later stages go on from earlier ones, so that a run of several cannot be made longer.
    """
    facts = {"recipe": model_args.chosen_recipe[0], "meaning": model_args.meaning}
    if any(camera != theirs for camera, theirs in (data_args.mapping or {}).items()):
        facts["cameras"] = data_args.mapping
    if len(model_args.stages) > 1:
        steps = {"steps": args.max_steps} if args.max_steps > 0 else {"epochs": args.num_train_epochs}
        facts |= {"stage": f"{number} of {len(model_args.stages)}", "all_stages": steps}
    return facts


def save(trainer: KIVLATrainer, folder: Path) -> None:
    """Save the policy, whole, for whatever comes next; with LoRA also the updates alone, in `adapter/`.

    With `--ema_decay` both are the averaged weights.
    """
    trainer.take_average()
    if isinstance(trainer.model, PeftModel):
        trainer.save_model(str(folder / "adapter"))
        trainer.model = trainer.model_wrapped = trainer.model.merge_and_unload()
    trainer.save_model(_internal_call=True)  # to be pushed with its card, at the end
    trainer.save_state()
    trainer.accelerator.wait_for_everyone()  # the next stage begins with what the first process writes


BEFORE = "before"
_BOUNDS = {"mean": "", "low": "_low", "high": "_high"}  # of an interval, as metrics have them


def answers_before(trainer: KIVLATrainer, path: Path) -> dict[str, float]:
    """Measure once how well the VLM answers before any training, as metrics `before_vlm_...`."""
    if "vlm" not in trainer.eval_dataset:
        return {}
    if not path.is_file():
        metrics = trainer.evaluate({"vlm": trainer.eval_dataset["vlm"]}, metric_key_prefix=BEFORE)
        if trainer.is_world_process_zero():
            write_json(path, metrics)
        trainer.accelerator.wait_for_everyone()
    return json.loads(path.read_text(encoding="utf-8"))


def texts_before(trainer: KIVLATrainer, path: Path, is_first: bool) -> TextScores | None:
    """Measure once how well the policy's VLM predicts the held-out texts before any training; None without any.

    Its new action tokens are there already. In a later stage it is too late to measure.

    Raises:
        ValueError: other texts were measured.
    """
    texts, processor = trainer.eval_dataset.get("text"), trainer.processing_class
    if texts is None or not (is_first or path.is_file()):
        return None
    if not path.is_file():
        trainer.evaluate({"text": texts}, metric_key_prefix=BEFORE)
        if trainer.is_world_process_zero():
            write_json(path, trainer.text_scores[f"{BEFORE}_text"].to_dict())
        trainer.accelerator.wait_for_everyone()
    scores = TextScores.from_dict(json.loads(path.read_text(encoding="utf-8")))
    now = text_tokens(processor.tokenizer, texts.texts, texts.text_length, processor.document_start)
    if scores.tokens.tolist() != [len(tokens) - 1 for tokens in now]:
        raise ValueError(
            f"{path} has {len(scores.tokens)} other texts than the {len(now)} of --eval_text_dataset now, and what the "
            "VLM was before this run can no longer be measured. Give the same texts and --max_eval_frames; or begin "
            "anew (--restart true)."
        )
    return scores


def split_run(stages: Sequence[Stage], args: KIVLATrainingArguments) -> list[KIVLATrainingArguments]:
    """Make the arguments of every stage: learning rates, its share of steps or epochs, and its folder.

    The last one writes the policy.
    """
    given = {name: getattr(args, name) for name in RATE_ARGUMENTS.values()}
    if len(stages) == 1:
        return [replace(args, **stages[0].rate_arguments(**given))]
    total = sum(stage.share for stage in stages)
    steps = split_steps(stages, args.max_steps) if args.max_steps > 0 else [-1] * len(stages)
    name = "_stage" if args.push_to_hub else "stage"  # names that begin with _ are not pushed to the Hub
    folders = [str(Path(args.output_dir) / f"{name}_{number}") for number in range(1, len(stages))]
    return [
        replace(
            args,
            max_steps=count,
            num_train_epochs=args.num_train_epochs * stage.share / total,
            output_dir=folder,
            **stage.rate_arguments(**given),
            push_to_hub=args.push_to_hub and folder == args.output_dir,
        )
        for stage, count, folder in zip(stages, steps, [*folders, args.output_dir], strict=True)
    ]


def make_trainer(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: KIVLATrainingArguments,
    stage: Stage,
    before: Path | None = None,
    facts: dict | None = None,
) -> tuple[KIVLATrainer, dict]:
    """Make the trainer of a stage, with datasets, model and processor; and say what the policy is made from.

    Args:
        before: the policy of the stage before, if there was one.
        facts: see `run_facts`.

    Raises:
        ValueError: data, options and policy do not fit each other (beside what `check_options` says).
    """
    # Data first: statistics, cameras and the action tokenizer of a new policy come from it.
    sources = load_sources(model_args, data_args)
    if data_args.check_data and before is None and args.process_index == 0:
        look_at(sources, model_args)
    recipe_name, recipe = model_args.chosen_recipe
    with_vlm_data = data_args.vlm_dataset is not None and recipe.vlm_data
    set_seed(args.seed)  # a new expert's weights
    with unsharded_init(args):
        start = {"before": before} if before is not None else {"vlm": model_args.vlm, "base": model_args.base}
        options = {"adapt": model_args.adapt, "lora_rank": model_args.lora_rank, "cameras": data_args.mapping}
        built = build_for_stage(stage, sources, model_args, **start, **options)
    if data_args.vlm_dataset is not None and not with_vlm_data:
        built.notes.append(
            f"recipe {recipe_name} trains on no VLM data: {data_args.vlm_dataset} is for evaluation only."
        )
    if args.augment != "none" and args.wrist_cameras is None and data_args.mapping is not None:
        names = dict.fromkeys(camera for data in sources for camera in data.cameras)
        args = replace(args, wrist_cameras=wrists_by_name(list(names), data_args.mapping) or None)
    # What was assumed or derived is said, by one process.
    if args.process_index == 0:
        for data in sources:
            for note in data.notes:
                print(f"{data.name}: {note}")
        if model_args.meaning == CONTINUE:
            built.notes.extend(note for data in sources for note in other_than_trained(model_args.policy, data))
        for note in built.notes:
            print(f"{note[0].upper()}{note[1:]}")
    model, processor = built.model, built.processor
    if model_args.freeze_vision and BACKBONE in stage.trains:
        freeze_vision(model)
    teaches_words = with_vlm_data or data_args.question_share is not None
    if model.config.acts_by == "tokens" and processor.action_tokenizer is None and not teaches_words:
        raise ValueError(
            "There is nothing to train: this stage has no flow loss, the processor no action tokenizer, and there is "
            'no VLM data. Leave out --action_tokenizer none, or choose a recipe with an expert ("kivla recipes").'
        )
    trainer = KIVLATrainer(
        model,
        args,
        train_dataset=make_mixture(data_args, args, sources, processor, with_vlm_data, BACKBONE in stage.trains),
        eval_dataset=load_evaluation(data_args, sources, processor),
        processing_class=processor,
        data_collator=KIVLACollator(processor, data_args.mapping if model_args.meaning == CONTINUE else None),
        ref_model=untouched_vlm(model_args) if args.anchor_weight > 0 and before is not None else None,
        run_facts={**(facts or {}), "start": built.begins_with},
    )
    return trainer, built.facts


def untouched_vlm(model_args: ModelArguments) -> PreTrainedModel:
    """Read the VLM that the run began with: a later stage's own has been trained."""
    if model_args.base is None:
        return AutoModelForImageTextToText.from_pretrained(model_args.vlm, **model_args.loading)
    return KIVLAForActionPrediction.from_pretrained(model_args.base.folder, **model_args.loading).vlm


def load_sources(model_args: ModelArguments, data_args: DataArguments) -> list[RobotDataset]:
    """Read the demonstrations to train on.

    For a policy that goes on they have its chunk size and history, and of their cameras the policy's, if they are all
    there.
    """
    size = {} if model_args.base is None else {"chunk_size": model_args.base.config.chunk_size}
    size |= model_args.given("chunk_size")
    if data_args.frame_cache_mb:
        size["frame_cache_mb"] = data_args.frame_cache_mb
    sources = []
    for i, name in enumerate(data_args.dataset):
        robot = data_args.robots[i] if data_args.robots else None
        mapping = data_args.mapping
        cameras = None if mapping is None else [theirs for theirs in mapping.values() if theirs is not None]
        names: list[str] = []
        if cameras is None and model_args.meaning == CONTINUE:
            names = data_args.camera_names(name)
            cameras = model_args.base.cameras_among(names, robot)
        episodes = data_args.chosen_episodes(name, also_without=data_args.eval_episodes)
        data = data_args.reader()(name, episodes=episodes, cameras=cameras, robot=robot, **size)
        data.look_back(model_args.observation_history)
        data.notes = [*data.notes, *unseen_note(data, names)]
        sources.append(data)
    return sources


def look_at(sources: list[RobotDataset], options: RelativeOptions) -> None:
    """Print the warnings of a quick `kivla check-data`; not that an angle wraps, where that was said.

    Raises:
        ValueError: it finds errors.
    """
    for data in sources:
        findings = check_data(data, quick=True, progress=False).findings
        known = told_to_wrap(data, options, [source.robot for source in sources])
        for finding in findings:
            is_known = finding.code == "jump" and {(finding.vector, name) for name in finding.dimensions} <= known
            if finding.level == WARNING and not is_known:
                print(f"Warning ({data.name}): {finding.text}")
        if errors := [finding.text for finding in findings if finding.level == ERROR]:
            raise ValueError(
                f"{data.name} cannot be trained on: {' '.join(errors)} `kivla check-data` says more; with "
                "--check_data false training begins all the same."
            )


def load_evaluation(
    data_args: DataArguments, sources: list[RobotDataset], processor: KIVLAProcessor
) -> dict[str, Dataset]:
    """Choose what to evaluate on: some training frames of each robot; held-out episodes, VLM data and texts if any."""
    robots = [data.robot for data in sources]
    names = [f"train_{robot}" if len(sources) > 1 else "train" for robot in robots]
    for i, robot in enumerate(robots):
        if robots.count(robot) > 1:  # several datasets of one robot, each by itself
            names[i] += f"_{robots[:i].count(robot) + 1}"
    evaluation = {name: _spread(data, data_args.max_eval_frames) for name, data in zip(names, sources, strict=True)}
    if data_args.eval_episodes:
        (data,) = sources
        (name,) = data_args.dataset
        held_out = data_args.reader()(name, data.chunk_size, data_args.eval_episodes, data.cameras, data.robot)
        held_out.look_back(data.observation_history)
        evaluation["held_out"] = _spread(held_out, data_args.max_eval_frames)
    if data_args.vlm_dataset is not None:
        split = data_args.vlm_eval_split or data_args.vlm_split or VLM_SPLIT
        questions = load_vlm_data(data_args, processor, split)
        first = range(min(data_args.max_eval_frames, len(questions)))  # a stream would be read to its end otherwise
        evaluation["vlm"] = Subset(questions, first) if questions.is_stream else _spread(questions, len(first))
    if data_args.eval_text_dataset is not None:
        where = (data_args.eval_text_dataset, data_args.eval_text_column, data_args.eval_text_split or TEXT_SPLIT)
        evaluation["text"] = HeldOutTexts.load(*where, data_args.eval_text_config, data_args.max_eval_frames)
    return evaluation


def load_vlm_data(data_args: DataArguments, processor: KIVLAProcessor, split: str) -> VLMDataset:
    """Read VLM data; a VLM that has no chat format learns one question at a time."""
    turns = "together" if has_chat(processor.vlm_processor) or data_args.vlm_streaming else "split"
    rows = {"num_rows": data_args.vlm_num_rows, "config": data_args.vlm_config}
    if data_args.vlm_media_dir is not None:
        rows["media_dir"] = data_args.vlm_media_dir
    return VLMDataset.load(data_args.vlm_dataset, split, streaming=data_args.vlm_streaming, turns=turns, **rows)


def load_text(data_args: DataArguments, processor: KIVLAProcessor) -> TextDataset:
    """Read the plain texts to train on."""
    return TextDataset.load(
        data_args.text_dataset,
        processor,
        data_args.text_column,
        data_args.text_split or TEXT_SPLIT,
        data_args.text_config,
        TEXT_LENGTH if data_args.text_length is None else data_args.text_length,
    )


def make_mixture(
    data_args: DataArguments,
    args: KIVLATrainingArguments,
    sources: list[RobotDataset],
    processor: KIVLAProcessor,
    with_vlm_data: bool,
    trains_backbone: bool,
) -> Dataset:
    """Make what to train on: the dataset itself if there is one, otherwise a mixture as long as the run.

    Plain text is for stages that train the VLM: one that rests has nothing to keep.
    """
    others: list[tuple[Dataset, float]] = []  # and its share
    shares = data_args.shares
    if with_vlm_data:
        vlm_data = load_vlm_data(data_args, processor, data_args.vlm_split or VLM_SPLIT)
        others.append((vlm_data, shares["vlm_share"]))
    if data_args.text_dataset is not None and trains_backbone:
        others.append((load_text(data_args, processor), shares["text_share"]))
    if data_args.question_share is not None:
        others += questions_of(sources, data_args.question_share)
    if len(sources) == 1 and not others:
        return sources[0]
    weights = np.array(data_args.dataset_weights or [len(data) for data in sources], dtype=np.float64)
    of_others = [share for _, share in others]
    weights = [*(weights / weights.sum() * (1 - sum(of_others))), *of_others]
    sources = [*sources, *(data for data, _ in others)]
    examples = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return Mixture(sources, weights, examples, args.seed if args.data_seed is None else args.data_seed)


def questions_of(sources: list[RobotDataset], share: float) -> list[tuple[Dataset, float]]:
    """Share out what is asked about frames of the demonstrations, by the numbers of questions.

    Raises:
        ValueError: nothing is.
    """
    asked = [data.questions for data in sources if len(data.questions)]
    if not asked:
        reason = "the datasets have no questions about frames of these cameras (LeRobot's column language_events)"
        refuse({"question_share": reason})
    return [(questions, share * len(questions) / sum(map(len, asked))) for questions in asked]


_EVAL_FILES = 8  # of streamed videos, which would otherwise all be fetched


def _spread(data: Dataset, count: int) -> Subset:
    if isinstance(data, RobotDataset) and data.file_windows is not None:
        return Subset(data, data.file_windows.sample(count, groups=_EVAL_FILES))
    return Subset(data, evenly_spread(len(data), count).tolist())
