"""ResumableTrainer: the library's Trainer for runs that last long, and are interrupted."""

import contextlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PredictionOutput, rotate_checkpoints

from .arguments import ResumableTrainingArguments
from .checkpoints import (
    MANIFEST,
    UNFINISHED,
    CheckpointError,
    OtherRunError,
    check_folder,
    check_is_same_run,
    check_output_folder,
    checkpoints,
    claim,
    newest_good_checkpoint,
    not_written,
    problem_of,
    publish,
    put_aside,
    run_of,
    write_run_file,
    written_aside,
)
from .data.example_order import ExampleOrder, NumberedCollator, NumberedExamples, SeedEveryStep
from .data.length_buckets import StepBuckets
from .data.robot_dataset import RobotDataset
from .ema import EMA_FILE, WeightAverage
from .loss_watch import LossWatch, NonFiniteError, name_examples
from .preemption import StopSignals, bear_signals
from .run_identity import run_identity, start_of
from .sole_use import sole_use

logger = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 10
# Learning-rate schedules that do not ask how long the run is
_ENDLESS = ("constant", "constant_with_warmup", "inverse_sqrt", "reduce_lr_on_plateau")


class ResumableTrainer(Trainer):
    r"""
    The library's Trainer for runs that may be interrupted at any moment, and must not go wrong unseen.

    Beside what the library does it has:

    * **Exact resumption.** A run that is killed and started again, however often, ends with the same weights, bit for
      bit, as one that is not, on the same kind and number of devices and threads. Beside what the library saves, this
      takes an order of examples and random numbers that depend on seed and position alone (`example_order`), and the
      losses since the last log entry.
    * **One run, one folder** (`run_identity`): a checkpoint knows what made it, and another run neither goes on from it
      nor writes beside it; nor does a second process of the same one (`sole_use`).
    * **Whole checkpoints** (`checkpoints`): written aside, hashed, and named at the end; damaged ones are recognised.
    * **Pre-emption** (`preemption`): SIGTERM, SIGUSR1 and Ctrl-C end the run after the step, with a checkpoint.
    * **An average of the weights** (`ema_decay`): evaluated, and written by `save_model`.
    * **Non-finite** losses and gradients reach neither weights, optimiser nor average (`on_nonfinite`).

    For any model of the library, and for any dataset with a length. [`KIVLATrainer`] adds what a policy needs.

    Args:
        args: [`ResumableTrainingArguments`].
        run_facts: what the run is beside its model, processor, data and arguments, which are looked at anyway. A dict,
            ready for JSON, that must be the same when the run goes on: `"recipe"`, say, and `"start": {"name": ...}` of
            the VLM or policy that it begins with, shown where its weights differ. `"stage"` ("1 of 2") is for runs of
            several stages whose last one writes into the folder above the others' (`claim_folder`).
        **kwargs: as for [`~transformers.Trainer`].

    Raises:
        TypeError: other arguments than `ResumableTrainingArguments`.
        ValueError: `ema_decay` with FSDP version 1 or DeepSpeed, `on_nonfinite="skip"` with DeepSpeed, or
            `save_on_each_node`.
    """

    def __init__(self, *args, run_facts: dict | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, ResumableTrainingArguments):
            raise TypeError(f"args must be ResumableTrainingArguments, got {type(self.args).__name__}.")
        if self.args.save_on_each_node:
            raise ValueError("Checkpoints need one output_dir that all nodes share: leave out save_on_each_node.")
        is_fsdp1 = self.is_fsdp_enabled and not self.accelerator.is_fsdp2
        if self.args.ema_decay is not None and (is_fsdp1 or self.is_deepspeed_enabled):
            raise ValueError("ema_decay works on one device, with DDP and with FSDP version 2.")
        if self.is_deepspeed_enabled and self.args.on_nonfinite == "skip":
            raise ValueError("DeepSpeed takes its step before the gradient can be looked at: use on_nonfinite='stop'.")
        self.average: WeightAverage | None = None
        self.skipped_steps = 0
        self._signals = StopSignals()
        self._order: ExampleOrder | None = None
        self._facts = run_facts or {}
        self._start = start_of(self.model)
        self._run: dict | None = None  # what this run is, known on the first device while it trains
        self._restarts = self.args.restart
        self._resumed_from: Path | None = None
        self._verified: Path | None = None
        self._aside: Path | None = None  # where a checkpoint is being written
        self._newest: Path | None = None  # what this process wrote or read last
        self._loss_before = 0.0  # sum of the losses that were logged before this process began
        # Of the running step: losses, examples and what had been summed up before it.
        self._step_losses: list[torch.Tensor] = []
        self._step_origins: list[list[dict]] = []
        self._sums_before: dict[str, torch.Tensor] = {}
        self._step_is_skipped = False
        self._skipped_in_a_row = 0
        self.add_callback(SeedEveryStep())
        self.add_callback(LossWatch())
        self.add_callback(_Hooks(self))

    # --------------------------------------------------------------------------------------------------------- resume
    def newest_checkpoint(self) -> str | None:
        """Find the newest checkpoint in `output_dir` that is whole; None if there is none. To be called on all devices.

        Raises:
            OtherRunError: the folder holds another run.
        """

        def find() -> Path | None:
            folder, run = Path(self.args.output_dir), self._identity()
            self._restart_once()
            check_folder(folder, run)
            found = newest_good_checkpoint(folder)
            if found is not None:
                check_is_same_run(run_of(found), run, found, "Give this run an output_dir of its own, or use restart.")
            return found

        self._verified = self._from_first_device(find)
        return None if self._verified is None else str(self._verified)

    def claim_folder(self, folder: str | Path) -> None:
        """Write down that a folder beside `output_dir` is this run's. To be called on all devices.

        Raises:
            OtherRunError: it holds another run.
        """
        self._from_first_device(lambda: claim(Path(folder), self._identity()))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """Train, from the beginning or from a checkpoint.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or True for the newest whole one in `output_dir`.

        Raises:
            ValueError: there is none.
            OtherRunError: the checkpoint, or what is in `output_dir`, is of another run, or has more steps than this
                one is to have; or a checkpoint in `output_dir` is of this one, and `resume_from_checkpoint` was not
                given.
            CheckpointError: the one that was named is damaged; or a checkpoint could not be written.
            NonFiniteError: see `on_nonfinite`.
            Preempted, Interrupted: the run was asked to stop, by a signal or by Ctrl-C, and has written a checkpoint.
            InUseError: another process trains into `output_dir`, and did not end within a minute.
            OSError: `output_dir` cannot be written to, or its disk is full.
        """
        if resume_from_checkpoint and self._restarts:
            raise ValueError("Give either restart or resume_from_checkpoint, not both.")
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self.newest_checkpoint()
            if resume_from_checkpoint is None:
                raise ValueError(f"There is no checkpoint to resume from in {self.args.output_dir}.")
        with contextlib.ExitStack() as kept:
            self._from_first_device(lambda: kept.enter_context(sole_use(self.args.output_dir)))
            return self._train(resume_from_checkpoint, *args, **kwargs)

    def _train(self, resume_from_checkpoint: str | None, *args, **kwargs):
        self._resumed_from = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        self._run = self._from_first_device(self._check_run)
        self._newest = self._resumed_from
        if self._resumed_from is not None:
            self.resume_processing(self._resumed_from)
        try:
            with self._signals:
                return super().train(resume_from_checkpoint or None, *args, **kwargs)
        except OtherRunError:
            raise
        except Exception as error:
            if self._newest is not None:
                error.add_note(f"Everything up to {self._newest} is kept: the same command goes on from there.")
            raise

    def resume_processing(self, checkpoint: Path) -> None:
        """Give `processing_class` what a run that goes on keeps of it; here that is nothing. For subclasses."""

    def _identity(self) -> dict:
        return run_identity(
            self._facts, self._start, self._unwrapped(), self.processing_class, self.train_dataset, self.args
        )

    def _unwrapped(self):
        return self.accelerator.unwrap_model(self.model)

    def _from_first_device(self, find: Callable):
        """Let the first device look, and give all devices what it finds, or its error."""
        found = None
        if self.is_world_process_zero():
            try:
                found = find()
            except (ValueError, CheckpointError) as error:
                found = error
        (found,) = broadcast_object_list([found])
        if isinstance(found, Exception):
            raise found
        return found

    def _restart_once(self) -> None:
        if self._restarts:
            self._restarts = False
            put_aside(Path(self.args.output_dir))

    def _check_run(self) -> dict:
        """Look at what the run goes on from and at what is in its folder, and return the run's identity."""
        folder, checkpoint, run = Path(self.args.output_dir), self._resumed_from, self._identity()
        if checkpoint is None:
            self._restart_once()
        elif checkpoint != self._verified:
            if problem := problem_of(checkpoint):
                raise CheckpointError(f"{checkpoint} cannot be resumed from: {problem}.")
            before = run_of(checkpoint)
            if before is None:  # named by a person, who may know
                logger.warning(
                    "%s does not say which run made it: whether it is of this one was not checked.", checkpoint
                )
                return run
            check_is_same_run(before, run, checkpoint, "Start anew in an output_dir of its own.")
        check_folder(folder, run)
        if checkpoint is None and (whole := [c for c in checkpoints(folder) if (c / MANIFEST).is_file()]):
            raise OtherRunError(
                f"{folder} holds {whole[0].name} of this very run. Go on from there with resume_from_checkpoint=True; "
                "or start anew with restart, which puts it aside, or in another output_dir."
            )
        return run

    def sums_since_log(self) -> dict[str, torch.Tensor]:
        """Return what this device has summed up since the last log entry; the tensors themselves."""
        return {"loss": self._tr_loss}

    def _progress(self) -> dict:
        return {
            "world_size": self.args.world_size,
            "sums": {name: values.tolist() for name, values in self.sums_since_log().items()},
            "logged_loss": self._loss_before + self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "skipped_steps": self.skipped_steps,
        }

    def _load_progress(self, progress: dict) -> None:
        for name, values in self.sums_since_log().items():
            values.copy_(torch.tensor(progress["sums"][name]))
        self._loss_before = progress["logged_loss"]
        self._globalstep_last_logged = progress["last_logged"]
        self.skipped_steps = progress["skipped_steps"]
        if progress["world_size"] != self.args.world_size:
            logger.warning(
                "Resuming on %d devices what was trained on %d: other examples come together, and the result is not "
                "that of an undisturbed run.",
                self.args.world_size,
                progress["world_size"],
            )

    def _progress_file(self, folder: Path) -> Path:
        return folder / f"progress_{self.args.process_index}.json"

    def _begin(self) -> None:
        """Prepare the first step; model, optimiser and scheduler are those of the checkpoint by now."""
        self._check_room()
        self._loss_before, self.skipped_steps, self._skipped_in_a_row = 0.0, 0, 0
        checkpoint = self._resumed_from
        if checkpoint is not None:
            self._check_steps(checkpoint)
        if checkpoint is not None and self._progress_file(checkpoint).is_file():
            self._load_progress(json.loads(self._progress_file(checkpoint).read_text()))
        self.average = None
        if self.args.ema_decay is not None:
            self.average = WeightAverage(self.accelerator.unwrap_model(self.model), self.args.ema_decay)
            if checkpoint is not None:
                self.average.load(checkpoint)
        elif checkpoint is not None and (checkpoint / EMA_FILE).is_file():
            raise ValueError(f"{checkpoint} has an average of the weights: resume with the same ema_decay.")

    def _check_steps(self, checkpoint: Path) -> None:
        """Say how the run goes on, with as many steps as it was to have or with another number."""
        before = json.loads((checkpoint / "trainer_state.json").read_text())
        done, planned, steps = before["global_step"], before["max_steps"], self.state.max_steps
        if done > steps:
            raise OtherRunError(
                f"{checkpoint} has {done} steps, but this run is to have {steps}: they cannot be taken back. Give at "
                f"least {done}, resume from an earlier checkpoint by its name, or start anew in another output_dir."
            )
        if not self.is_world_process_zero():
            return
        message = f"Going on from {checkpoint.name}, with {steps - done} of {steps} steps to go."
        if done == steps:
            message = f"This run is done: {checkpoint.name} has all of its {steps} steps. Nothing is trained."
        if planned != steps:
            message += f" It was to have {planned} steps."
            schedule = self.args.lr_scheduler_type.value
            if schedule not in _ENDLESS:
                message += (
                    f" The learning rate ({schedule}) follows the schedule of {steps} steps from here, and the result "
                    f"is not that of a run which had {steps} from its beginning."
                )
        logger.warning("%s", message)

    def _get_dataloader(self, dataset: Dataset, *args, sampler_fn=None, is_training: bool = False, **kwargs):
        """Number the training examples; streams, which have no positions, stay as they are."""
        if not is_training or isinstance(dataset, IterableDataset):
            loader = super()._get_dataloader(dataset, *args, sampler_fn=sampler_fn, is_training=is_training, **kwargs)
            base: DataLoader = loader.base_dataloader
            bear_signals(base)
            return loader
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed

        def order(numbered):
            sampler = sampler_fn(dataset)
            if type(sampler) not in (RandomSampler, SequentialSampler):
                return sampler
            windows = dataset.file_windows if isinstance(dataset, RobotDataset) else None
            epoch_order = None if windows is None else windows.epoch
            self._order = ExampleOrder(len(numbered), seed, isinstance(sampler, RandomSampler), epoch_order)
            if not self.args.bucket_by_length:
                return self._order
            step_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            return StepBuckets(self._order, step_size, lambda number: dataset.size_of(number % len(dataset)))

        numbered = NumberedExamples(dataset, seed, self.augmentation())
        loader = super()._get_dataloader(numbered, *args, sampler_fn=order, is_training=True, **kwargs)
        base: DataLoader = loader.base_dataloader
        base.collate_fn = NumberedCollator(base.collate_fn)
        base.worker_init_fn = None
        bear_signals(base)
        base.generator = torch.Generator().manual_seed(seed)  # otherwise it draws from the model's random numbers
        return loader

    def augmentation(self) -> Callable[[Mapping, np.random.Generator], Mapping] | None:
        """Return what changes training examples, and those alone, when they are read; here nothing. For subclasses."""
        return None

    def get_batch_samples(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:
            return [], None  # resumed at the end: the library would take one more step
        batches, counts = super().get_batch_samples(*args, **kwargs)
        self._step_origins = [batch.pop("origins", []) for batch in batches]
        self._step_losses = []
        self._sums_before = {name: values.clone() for name, values in self.sums_since_log().items()}
        return batches, counts

    # --------------------------------------------------------------------------------------------------- checkpoints
    def _get_output_dir(self, trial) -> str:
        return super()._get_output_dir(trial) if self._aside is None else str(self._aside)

    def _save_checkpoint(self, model, trial) -> None:
        # Written aside and published by one rename: a crash in between leaves no checkpoint that only looks whole.
        final = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self._newest == final and final.is_dir():
            return  # nothing has happened since it was written
        best = self.state.best_model_checkpoint
        aside = final.parent / UNFINISHED
        try:
            if self.is_world_process_zero():
                self._clear(aside)
            self.accelerator.wait_for_everyone()
            self._aside = aside
            super()._save_checkpoint(model, trial)
            self._aside = None
            self.state.best_model_checkpoint = self._best_checkpoint(final, best)
            if self.average is not None:
                self.average.save(aside / final.name, self.args.should_save)
            self.accelerator.wait_for_everyone()  # all have written their part
            if self.is_world_process_zero():
                self.state.save_to_json(str(aside / final.name / "trainer_state.json"))
                publish(aside / final.name, final, self._run)
                aside.rmdir()
        except Exception as error:
            self._aside = None
            if self.is_world_process_zero():
                shutil.rmtree(aside, ignore_errors=True)
            raise not_written(final, error) from error
        # It is there: now it may be uploaded, and older ones may go.
        self.accelerator.wait_for_everyone()
        self._newest = final
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(final))
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(final.parent),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _clear(self, aside: Path) -> None:
        if not aside.parent.is_dir():
            logger.warning(
                "%s was removed while training. It is made anew; earlier checkpoints are gone.", aside.parent
            )
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)

    def _best_checkpoint(self, final: Path, before: str | None) -> str | None:
        if not self.state.best_global_step:
            return before
        best = final.with_name(f"checkpoint-{self.state.best_global_step}")
        return str(best) if best == final or best.is_dir() else before

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Do nothing: `_save_checkpoint` pushes once the checkpoint has its name."""

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self._progress_file(Path(output_dir)).write_text(json.dumps(self._progress()))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self._aside is not None:
            return super()._save(output_dir, state_dict)
        with written_aside(Path(output_dir or self.args.output_dir), self.args.should_save) as aside:
            super()._save(str(aside), state_dict)
            if self.is_world_process_zero():
                write_run_file(aside, self._run or self._identity())

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the library's; with `ema_decay` the averaged weights. (Checkpoints have both.)"""
        with self._deployed_weights() if self._aside is None else contextlib.nullcontext():
            super().save_model(output_dir, _internal_call)

    def disk_use(self, max_steps: int, num_epochs: float) -> tuple[int, int, int]:
        """Estimate the bytes of a checkpoint, of the final model, and of all that will be there together.

        A checkpoint has the weights, two numbers of an optimiser for each trained one, and the average.
        """
        model = self.accelerator.unwrap_model(self.model)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        averaged = sum(4 * p.numel() for p in model.parameters() if p.requires_grad and self.args.ema_decay is not None)
        checkpoint = weights + 2 * trained + averaged
        save_steps = self.args.save_steps * (max_steps if self.args.save_steps < 1 else 1)
        kept = math.ceil(max_steps / max(math.ceil(save_steps), 1))  # the last step is saved in any case
        if self.args.save_strategy == "epoch":
            kept = math.ceil(num_epochs)
        if self.args.save_total_limit:
            kept = min(kept, self.args.save_total_limit + 1)  # the old one goes when the new one is whole
        if self.args.save_strategy == "no":
            checkpoint = kept = 0
        return checkpoint, weights, kept * checkpoint + weights

    def _check_room(self) -> None:
        """Check the disk's room."""
        checkpoint, weights, whole = self.disk_use(self.state.max_steps, self.state.num_train_epochs)
        check_output_folder(Path(self.args.output_dir), checkpoint + weights, whole)

    # ------------------------------------------------------------------------------------------------------- average
    def _deployed_weights(self):
        return contextlib.nullcontext() if self.average is None else self.average.in_place()

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """As the library's; with `ema_decay` of the averaged weights."""
        with self._deployed_weights():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args, **kwargs) -> PredictionOutput:
        """As the library's; with `ema_decay` by the averaged weights."""
        with self._deployed_weights():
            return super().predict(*args, **kwargs)

    def take_average(self) -> None:
        """Make the averaged weights the model's, after training."""
        if self.average is not None:
            self.average.take()
            self.average = None

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.average is not None:
            self.average.load(Path(self.state.best_model_checkpoint))

    # -------------------------------------------------------------------------------------------------- watchfulness
    def training_step(self, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self._step_losses.append(loss)
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        """Decide whether the step is taken: all devices see the same norm, and NaN anywhere is NaN in it."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if isinstance(grad_norm, DTensor):
            grad_norm = grad_norm.full_tensor()
        self._step_is_skipped = False
        # float16's loss scaling has overflows of its own, which it deals with
        is_fault = not math.isfinite(grad_norm) and (self.accelerator.scaler is None or self._is_any_loss_nonfinite())
        if is_fault:
            self._report(float(grad_norm))
            model.zero_grad()  # without gradients, an optimiser changes nothing
            self._step_is_skipped = True
            for name, values in self.sums_since_log().items():
                values.copy_(self._sums_before[name])
            self.skipped_steps += 1
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if is_fault else 0
        return grad_norm

    def _is_any_loss_nonfinite(self) -> bool:
        bad = torch.stack([~torch.isfinite(loss) for loss in self._step_losses]).any()
        return bool(self.accelerator.reduce(bad.int(), "max"))

    def _report(self, grad_norm: float) -> None:
        losses = torch.stack(self._step_losses).tolist()
        bad = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
        named = [origin for i in bad or range(len(losses)) for origin in self._step_origins[i]]
        what = f"The loss is {losses[bad[0]]}" if bad else f"The losses are finite here, the gradient is {grad_norm}"
        where = f" on device {self.args.process_index}" if self.args.world_size > 1 else ""
        kept = "" if self.is_deepspeed_enabled else " Weights and optimiser were left as they were."
        message = (
            f"{what} in step {self.state.global_step + 1}{where}. In {'this batch' if bad else 'these batches'}: "
            f"{name_examples(self.train_dataset, named)}.{kept}"
        )
        if self.args.on_nonfinite == "stop":
            raise NonFiniteError(f"{message} (`kivla train --on_nonfinite skip` goes on without such steps.)")
        if self._skipped_in_a_row + 1 >= MAX_SKIPPED_IN_A_ROW:
            raise NonFiniteError(f"{message} It is the {MAX_SKIPPED_IN_A_ROW}th step in a row.")
        logger.warning("%s The step is skipped.", message)

    def _after_optimizer(self, optimizer) -> None:
        if self.average is not None and not self._step_is_skipped and not optimizer.step_was_skipped:
            self.average.update()

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs and self.skipped_steps:
            last = next((entry for entry in reversed(self.state.log_history) if "loss" in entry), {"step": 0})
            steps = self.state.global_step - last["step"]
            good = steps - (self.skipped_steps - last.get("skipped_steps", 0))
            logs["loss"] = logs["loss"] * steps / good if good else math.nan
            logs["skipped_steps"] = self.skipped_steps
        if "train_loss" in logs:  # of the whole run, not since it was resumed
            total = self._loss_before + self._total_loss_scalar
            logs["train_loss"] = total / max(self.state.global_step - self.skipped_steps, 1)
        super().log(logs, *args, **kwargs)

    # -------------------------------------------------------------------------------------------------- pre-emption
    @property
    def received_signal(self) -> int:
        """The signal that this process has received, 0 if none."""
        return self._signals.received or 0

    def _signal_to_obey(self) -> int:
        """The signal on which all devices stop after this step; 0 if none has received one."""
        if self.args.world_size == 1:
            return self.received_signal
        return int(self.accelerator.reduce(torch.tensor(self.received_signal, device=self.args.device), "max"))


class _Hooks(TrainerCallback):
    """Where the library calls back, for what needs the trainer."""

    def __init__(self, trainer: ResumableTrainer):
        self.trainer = trainer
        self._signal = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self._signal = 0
        self.trainer._begin()

    def on_epoch_begin(self, args, state, control, **kwargs):
        if (
            self.trainer._order is not None
        ):  # accelerate does not reach the sampler of a resumed epoch on several devices
            self.trainer._order.set_epoch(int(state.epoch or 0))

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.trainer._after_optimizer(optimizer)

    def on_step_end(self, args, state, control, **kwargs):
        self._signal = self.trainer._signal_to_obey()
        if self._signal:
            control.should_save, control.should_evaluate = True, False

    def on_save(self, args, state, control, **kwargs):
        if self._signal:
            self.trainer._signals.stop(str(self.trainer._newest), self._signal)


__all__ = ["ResumableTrainer"]
