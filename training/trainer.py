"""KIVLATrainer: the library's Trainer with the combined loss, its metrics, and evaluation in robot units."""

from collections import defaultdict
from itertools import takewhile
from pathlib import Path

import torch
from accelerate.utils import DistributedType
from peft import PeftModel
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pad_sequence
from torch.profiler import record_function
from torch.utils.data import DataLoader, SequentialSampler
from tqdm.auto import tqdm
from transformers.trainer_utils import EvalLoopOutput

from ..modeling_kivla import KIVLAForActionPrediction
from ..processing import ActionDecodingFailure, KIVLAProcessor
from .collator import KIVLACollator
from .data_parallel import (
    DDPGradients,
    ShareOutAfterForward,
    keep_inputs_exact,
    own_class,
    total_norm,
    whole_weights,
)
from .evaluation_sums import ACTION_ERROR_SUMS, TOKEN_SUMS, action_error_sums, token_sums
from .mixture import Mixture
from .muon import MuonWithAdamW
from .policy_card import fine_tuned_card, trainer_facts
from .readme import joined, readme_on_hub, split, with_card
from .resumable_trainer import ResumableTrainer

_LOSS_SUMS = (*TOKEN_SUMS, "flow_loss", "action_values")
# Options of the library's `create_model_card` -> metadata of the Hub
_CARD_OPTIONS = {
    **{"tags": "tags", "language": "language"},
    **{"finetuned_from": "base_model", "tasks": "pipeline_tag", "dataset_tags": "datasets"},
}
# Of what the model says: chunks that did not decode, of how many; answers that are right, of how many.
_SAID_SUMS = ("decoding_failures", "decoded", "right_answers", "answers")


class KIVLATrainer(ResumableTrainer):
    r"""
    Fine-tunes a KIVLA model: `loss = token_loss + flow_loss_weight · flow_loss`. What it does about interruptions and
    faults is in [`ResumableTrainer`].

    Both terms are means over supervised positions of the *whole* optimiser step, across devices and accumulation steps,
    so that splitting a batch does not change its gradient. The log has `token_loss`, `flow_loss`, `token_accuracy`,
    `action_token_accuracy`, the gradient norms of both parts (before clipping) and `mean_velocity_flow_loss`, what
    always predicting the mean velocity would cost; `evaluate()` also samples chunks and reports their error in robot
    units next to that of always predicting the mean action.

    Args:
        processing_class ([`KIVLAProcessor`]): makes the batches, and is saved with every checkpoint. If the model's
            vocabulary is too small for its action tokens, the model is enlarged.
        *args, **kwargs: as for [`~transformers.Trainer`]. `data_collator` is a [`KIVLACollator`] by default.

    Raises:
        ValueError: processor and model disagree on a size; the message says which.
    """

    _tag_names = ("kivla", "robotics", "vision-language-action", "knowledge-insulation")
    # The losses are divided by the counts of the whole optimiser step.
    loss_is_scaled_for_ga = True

    def __init__(
        self, model: KIVLAForActionPrediction, *args, processing_class: KIVLAProcessor, data_collator=None, **kwargs
    ):
        _check_agreement(model, processing_class)
        rows = model.get_input_embeddings().weight.shape[0]
        if rows < processing_class.vocab_size:
            model.resize_token_embeddings(processing_class.vocab_size, pad_to_multiple_of=64)
        if data_collator is None:
            data_collator = KIVLACollator(processing_class)
        super().__init__(model, *args, processing_class=processing_class, data_collator=data_collator, **kwargs)
        self.model_accepts_loss_kwargs = True
        self._check_sharding()
        self.add_callback(ShareOutAfterForward(self.accelerator))
        self._action_token_ids = torch.as_tensor(processing_class.action_token_ids)
        self._sums = torch.zeros(len(_LOSS_SUMS))
        # Of the real actions, for each dimension: how many, their sum, the sum of their squares.
        self._moments = torch.zeros(3, model.config.max_action_dim)
        self._gradient_norms: dict[str, torch.Tensor] = {}
        self._learned: list[list[int]] = []
        self._ddp_gradients: DDPGradients | None = None
        self.card_facts: dict = {}  # what its caller knows of the policy, for the card

    # ------------------------------------------------------------------------------------------------- training
    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.accelerator.is_fsdp2:
            keep_inputs_exact(self.accelerator)

    def autocast_smart_context_manager(self, *args, **kwargs):
        """Accelerate wraps the model's forward in autocast, but not with FSDP2."""
        if self.accelerator.is_fsdp2:
            return self.accelerator.autocast()
        return super().autocast_smart_context_manager(*args, **kwargs)

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        """The library's optimiser, each parameter group split into backbone and expert with its own learning rate;
        or Muon (`args.muon`)."""
        if self.args.muon and self.optimizer is None:
            self.optimizer = MuonWithAdamW(self._named_parameters(), lr=self.args.learning_rate)
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if is_new and self.args.expert_learning_rate is not None:
            expert = {id(p) for name, p in self._named_parameters() if _is_expert(name)}
            groups = []
            for group in optimizer.param_groups:
                for is_expert in (False, True):
                    parameters = [p for p in group["params"] if (id(p) in expert) == is_expert]
                    lr = self.args.expert_learning_rate if is_expert else group["lr"]
                    if parameters:
                        groups.append({**group, "params": parameters, "lr": lr})
            optimizer.param_groups[:] = groups
        return optimizer

    def _named_parameters(self):
        return self.accelerator.unwrap_model(self.model).named_parameters()

    def _get_train_sampler(self, train_dataset=None):
        """A mixture has an order already, and a streamed source wants to be read in it."""
        train_dataset = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(train_dataset, Mixture):
            return super()._get_train_sampler(train_dataset)
        args = self.args
        wanted = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        if wanted > len(train_dataset):
            raise ValueError(
                f"The mixture has {len(train_dataset)} examples, but {args.max_steps} steps take {wanted} (examples of "
                "a device × accumulation steps × devices × steps). Make it with num_examples of at least that."
            )
        return SequentialSampler(train_dataset)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        """(2,): supervised tokens and real action values in this optimiser step, over all devices."""
        if not batch_samples:
            return None
        flag = torch.tensor(int(self.received_signal > 0))
        counts = [
            [*_supervised_counts(batch), torch.tensor(int("pixel_values" in batch)), flag] for batch in batch_samples
        ]
        counts = torch.stack([torch.stack([n.to(device) for n in row]) for row in counts])  # (batches, 4)
        counts = self.accelerator.reduce(counts, reduction="sum")
        self._learned = [row[:3] for row in counts.tolist()]
        self.stop_is_agreed = bool(counts[0, 3])
        self._check_images([with_images for _, _, with_images in self._learned])
        return counts[:, :2].sum(0)

    def _check_sharding(self) -> None:
        if self.accelerator.distributed_type == DistributedType.FSDP and not self.accelerator.is_fsdp2:
            raise ValueError(
                "FSDP version 1 puts weights of different layers into one. Set fsdp_version: 2, as fsdp2.yaml of "
                "`kivla launch-files` does."
            )
        if self._is_zero3 and self.args.sample_in_eval:
            raise ValueError(
                "With ZeRO-3 devices cannot sample actions each on its own. Give sample_in_eval=False, and measure the "
                "policy afterwards (`kivla evaluate`); or use FSDP2, which gathers the weights for it."
            )
        if self.is_fsdp_enabled and isinstance(self.model, PeftModel):
            raise ValueError(
                "FSDP cannot share out the weights that LoRA wraps. Use DDP (ddp.yaml of `kivla launch-files`): with "
                "LoRA, gradients and moments are small."
            )
        if self.args.muon and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError(
                "Muon needs whole matrices, which FSDP and DeepSpeed share out: leave out muon, or use DDP."
            )

    def _check_images(self, with_images: list[int]) -> None:
        devices = self.accelerator.num_processes
        if self._is_sharded and any(0 < n < devices for n in with_images):
            raise ValueError(
                f"In step {self.state.global_step + 1} some of the {devices} devices have a batch without any image. "
                "Where weights are shared out (FSDP, ZeRO-3) all must run the vision tower. Use larger batches, leave "
                "out examples without images, or use DDP."
            )

    @property
    def _is_sharded(self) -> bool:
        """Whether no device has all weights, so that all must run the same layers."""
        return self.is_fsdp_enabled or self._is_zero3

    @property
    def _is_zero3(self) -> bool:
        return self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3

    def get_batch_samples(self, *args, **kwargs):
        with record_function("kivla::data"):
            return super().get_batch_samples(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        inputs = {name: values for name, values in inputs.items() if name != "robot"}
        learns = {}
        if num_items_in_batch is None:
            tokens, actions = _supervised_counts(inputs)
        else:
            tokens, actions = num_items_in_batch
            # What any device learns from its batch, all take part in: sharded weights need it, and all wait anyway.
            some_tokens, some_actions, _ = self._learned.pop(0)
            # DeepSpeed keeps an old gradient where a batch gives none (seen with ZeRO-3): here every batch gives all.
            always = self.is_deepspeed_enabled
            learns = {"with_token_loss": always or some_tokens > 0, "with_flow_loss": always or some_actions > 0}
        with record_function("kivla::forward"):
            counts = {"num_supervised_tokens": tokens.clamp(min=1), "num_supervised_actions": actions.clamp(min=1)}
            outputs = model(**inputs, **counts, **learns)
        # Data-parallel training averages gradients over ranks; the counts above already span them.
        loss = outputs.loss if num_items_in_batch is None else outputs.loss * self.accelerator.num_processes
        if model.training:
            self._count(outputs, inputs, tokens, actions)
            if self._ddp_gradients is not None and model.require_backward_grad_sync:
                loss = self._ddp_gradients.touch(loss)
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _count(self, outputs, inputs, tokens, actions):
        sums = dict.fromkeys(_LOSS_SUMS, torch.zeros(()))
        if outputs.token_loss is not None:
            sums.update(token_sums(outputs.logits, inputs["labels"], self._action_token_ids))
        if outputs.flow_loss is not None and "actions" in inputs:
            sums["flow_loss"] = outputs.flow_loss * actions
            sums["action_values"] = inputs["action_mask"].sum()
            mask = inputs["action_mask"]
            real = inputs["actions"].float().masked_fill(~mask, 0.0)
            self._moments = self._moments.to(real.device)
            self._moments += torch.stack([values.float().sum((0, 1)) for values in (mask, real, real.square())])
        self._sums = self._sums.to(outputs.loss.device)
        self._sums += torch.stack([sums[name].sum().to(self._sums) for name in _LOSS_SUMS])

    def sums_since_log(self) -> dict[str, torch.Tensor]:
        return {**super().sums_since_log(), "parts": self._sums, "moments": self._moments}

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        if isinstance(model, DistributedDataParallel) and self._ddp_gradients is None:
            self._ddp_gradients = DDPGradients(model)
        with record_function("kivla::step"):
            loss = super().training_step(model, inputs, num_items_in_batch)
        if self._ddp_gradients is not None and model.require_backward_grad_sync:
            self._ddp_gradients.forget_unused(self.accelerator)
        return loss

    def _clip_grad_norm(self, model) -> torch.Tensor:
        """Backbone and expert each to `max_grad_norm` (`clip_per_part`): one norm for both would let the size of the
        expert's gradient decide how far the VLM moves, insulated or not. Returns the norm of all of it, before."""
        if self.is_deepspeed_enabled:
            return super()._clip_grad_norm(model)
        self.accelerator.unscale_gradients()
        parts: dict[str, list[nn.Parameter]] = defaultdict(list)
        for name, parameter in self._named_parameters():
            if parameter.grad is not None:
                parts["expert" if _is_expert(name) else "backbone"].append(parameter)
        norms = {part: total_norm([p.grad for p in parameters]) for part, parameters in parts.items()}
        self._gradient_norms = {f"{part}_grad_norm": norm for part, norm in norms.items()}
        whole = torch.tensor([float(norm) for norm in norms.values()]).norm()
        if self.args.max_grad_norm > 0:
            for part, parameters in parts.items():
                norm = norms[part] if self.args.clip_per_part else whole
                if norm > self.args.max_grad_norm:
                    for parameter in parameters:
                        parameter.grad.mul_(self.args.max_grad_norm / float(norm))
        return whole

    def _get_grad_norm(self, model, grad_norm=None):
        if grad_norm is None and not self.is_deepspeed_enabled:  # nothing is clipped, and the norms are wanted
            grad_norm = self._clip_grad_norm(model)
        return super()._get_grad_norm(model, grad_norm)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            sums = self.accelerator.reduce(self._sums, "sum")
            logs.update(self._summary(dict(zip(_LOSS_SUMS, sums, strict=True))))
            logs.update({name: float(norm) for name, norm in self._gradient_norms.items()})
            count, total, squares = self.accelerator.reduce(self._moments, "sum")
            if count.any():  # the variance of noise - actions: noise has 1
                variance = (squares - total.square() / count.clamp(min=1)).sum() / count.sum()
                logs["mean_velocity_flow_loss"] = 1.0 + float(variance)
            self._sums.zero_()
            self._moments.zero_()
        super().log(logs, *args, **kwargs)

    @staticmethod
    def _summary(sums: dict[str, torch.Tensor]) -> dict[str, float]:
        summary = {}
        for name, total, count in (
            ("token_loss", "token_loss", "tokens"),
            ("flow_loss", "flow_loss", "action_values"),
            ("token_accuracy", "correct_tokens", "tokens"),
            ("action_token_accuracy", "correct_action_tokens", "action_tokens"),
            ("answer_accuracy", "right_answers", "answers"),
            ("decoding_failures", "decoding_failures", "decoded"),
        ):
            if count in sums and sums[count] > 0:
                summary[name] = float(sums[total] / sums[count])
        return summary

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """The library's. Weights gathered from several devices (`state_dict`) are copies: of tied ones, one is kept."""
        model = self.accelerator.unwrap_model(self.model)
        if state_dict is not None:
            state_dict = {n: weight for n, weight in state_dict.items() if n not in model.all_tied_weights_keys}
        with own_class(model):
            super()._save(output_dir, state_dict)

    def _issue_warnings_after_load(self, load_result) -> None:
        """Resuming with half of the weights is an error, where the library would only log a warning."""
        tied = set(self.accelerator.unwrap_model(self.model).all_tied_weights_keys)
        missing = sorted(set(load_result.missing_keys) - tied)
        if missing or load_result.unexpected_keys:
            raise ValueError(
                f"The checkpoint does not fit the model: {len(missing)} weights are missing ({missing[:3]} ...) and "
                f"{len(load_result.unexpected_keys)} are unknown ({load_result.unexpected_keys[:3]} ...). Resume with "
                "the model and the versions of kivla and transformers that wrote it."
            )

    # ----------------------------------------------------------------------------------------------------- card
    def create_model_card(self, license: str | None = None, model_name: str | None = None, **options) -> None:
        """The card of the policy, as README.md in `output_dir`; `push_to_hub` writes it, and uploads it.

        What the README's author wrote, here or on the Hub, stays (see `readme`).

        Args:
            license: identifier of the Hub, e.g. "apache-2.0".
            model_name: title; the folder's name.
            **options: `tags`, `language`, `finetuned_from`, `tasks` and `dataset_tags`, as for the library's trainer.
                (Its `dataset` and `dataset_args` name results; here they go by the evaluated sets.)

        Raises:
            TypeError: another option.
        """
        if unknown := sorted(options.keys() - _CARD_OPTIONS.keys()):
            raise TypeError(f"The card has no {', '.join(unknown)}; options are {', '.join(_CARD_OPTIONS)}.")
        if not self.is_world_process_zero():
            return
        path = Path(self.args.output_dir) / "README.md"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        facts = {**trainer_facts(self), **self.card_facts}
        if self.hub_model_id is not None:
            text = joined(readme_on_hub(self.hub_model_id, self.args.hub_revision, self.args.hub_token), text)
            facts["path"] = self.hub_model_id
        card = fine_tuned_card(facts | {"name": model_name or facts["name"]}, license or split(text)[0].get("license"))
        for name, value in options.items():
            if name == "tags":
                value = list(dict.fromkeys([*card.data.tags, *([value] if isinstance(value, str) else value)]))
            card.data[_CARD_OPTIONS[name]] = value
        path.write_text(with_card(text, card), encoding="utf-8")

    # ----------------------------------------------------------------------------------------------- evaluation
    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Losses on fixed noise; and, with `sample_in_eval`, what the policy does and says.

        Metrics: `loss`, `token_loss`, `flow_loss`, `token_accuracy`, `action_token_accuracy`; on VLM data
        `answer_accuracy`, the share of (first) answers that the model gives word for word; of a policy that acts by
        tokens `decoding_failures`, the share of chunks that do not decode; and over the real values of all other chunks
        `action_mae`, `action_rmse`, `mean_action_mae` and `mean_action_rmse` (what always predicting the mean action of
        the training data would give), `times_better_than_mean` = mean_action_mae / action_mae, and `action_mae_0`, ...
        for each dimension.
        """
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        totals: dict[str, torch.Tensor] = {}
        num_samples = 0
        quiet = self.args.disable_tqdm or not self.is_world_process_zero()
        with torch.random.fork_rng(), whole_weights(model, self.accelerator):
            torch.manual_seed(self.args.seed)
            for batch in tqdm(dataloader, desc=description, disable=quiet, leave=False):
                batch = self._prepare_inputs(batch)
                with self.compute_loss_context_manager():
                    sums = self._evaluation_sums(model, batch)
                for name, values in sums.items():
                    gathered = self.accelerator.gather_for_metrics(values).double().sum(0)
                    totals[name] = totals.get(name, 0.0) + gathered
                num_samples += len(self.accelerator.gather_for_metrics(batch["input_ids"][:, 0]))
        model.train(was_training)
        metrics = self._evaluation_metrics(totals, model.config.flow_loss_weight)
        return EvalLoopOutput(
            predictions=None,
            label_ids=None,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in metrics.items()},
            num_samples=num_samples,
        )

    def _evaluation_sums(self, model: KIVLAForActionPrediction, batch: dict) -> dict[str, torch.Tensor]:
        """Per-example sums of one batch, every one (B,) or (B, D). Always the same names, so that ranks agree."""
        processor = self.processing_class
        labels = batch["labels"]
        count, device = len(labels), labels.device
        robots = batch.pop("robot", [None] * count)
        # ZeRO-3 shares out weights here, too: all devices run the same layers.
        outputs = model(**batch, with_token_loss=self._is_zero3, with_flow_loss=self._is_zero3)
        sums = {name: torch.zeros(count, device=device) for name in (*_LOSS_SUMS, *_SAID_SUMS)}
        sums |= {name: torch.zeros(count, model.config.max_action_dim, device=device) for name in ACTION_ERROR_SUMS}
        if outputs.token_loss is not None:
            sums.update(token_sums(outputs.logits, labels, self._action_token_ids))
        acts = batch["action_mask"].any((1, 2)) if "actions" in batch else labels.new_zeros(count, dtype=torch.bool)
        if outputs.flow_loss is not None and "actions" in batch:
            sums["action_values"] = batch["action_mask"].sum((1, 2)).float()
            sums["flow_loss"] = outputs.flow_loss * sums["action_values"]
        if not self.args.sample_in_eval:
            return sums
        # Everything is decoded for the whole batch, whose images cannot be taken apart; what does not apply is left.
        prompts = _prompts(batch, processor.tokenizer.pad_token_id)
        if acts.any():
            if model.config.acts_by == "flow":
                observation = {n: v for n, v in batch.items() if n not in ("labels", "actions")}
                chunks = model.sample_actions(**observation, num_steps=self.args.eval_num_steps).cpu().numpy()
            else:
                real_dimensions = batch["action_mask"].any(1, keepdim=True).expand_as(batch["action_mask"])
                chunks = model.generate_actions(processor, **prompts, action_mask=real_dimensions, synced_gpus=False)
            for i in acts.nonzero().flatten().tolist():
                sums["decoded"][i] = 1
                if isinstance(chunks[i], ActionDecodingFailure):
                    sums["decoding_failures"][i] = 1
                    continue
                for name, errors in self._action_errors(chunks[i], batch, i, robots[i]).items():
                    sums[name][i, : len(errors)] = errors.to(device)
        if not acts.all():
            answers = _first_answers(labels, processor.end_token_id)
            longest = max(map(len, answers))
            said = model.generate(
                **prompts,
                max_new_tokens=longest,
                do_sample=False,
                eos_token_id=processor.end_token_id,
                pad_token_id=processor.tokenizer.pad_token_id,
                synced_gpus=False,  # every device has all weights, and its own number of answers
            )[:, prompts["input_ids"].shape[1] :]
            for i in (~acts).nonzero().flatten().tolist():
                own = said[i, : len(answers[i])].tolist()
                sums["answers"][i], sums["right_answers"][i] = 1, own == answers[i]
        return sums

    def _action_errors(self, chunk, batch: dict, i: int, robot: str | None) -> dict[str, torch.Tensor]:
        """(D,) sums over the steps of one example, in the units of its robot."""
        processor = self.processing_class
        dim = processor.robot(robot).action_dim
        sums = action_error_sums(
            torch.as_tensor(processor.unnormalize_actions(chunk, robot))[None],
            processor.unnormalize_actions(batch["actions"][i : i + 1].cpu(), robot, clip_actions=False),
            torch.as_tensor(processor.robot(robot).mean_action, dtype=torch.float32),
            batch["action_mask"][i : i + 1, :, :dim].cpu(),
        )
        return {name: values[0] for name, values in sums.items()}

    def _evaluation_metrics(self, totals: dict[str, torch.Tensor], flow_loss_weight: float) -> dict[str, float]:
        metrics = self._summary(totals)
        metrics["loss"] = metrics.get("token_loss", 0.0) + flow_loss_weight * metrics.get("flow_loss", 0.0)
        count = totals["values"]  # (D,)
        if count.any():
            metrics["action_mae"] = float(totals["absolute_error"].sum() / count.sum())
            metrics["action_rmse"] = float((totals["squared_error"].sum() / count.sum()).sqrt())
            metrics["mean_action_mae"] = float(totals["baseline_absolute_error"].sum() / count.sum())
            metrics["mean_action_rmse"] = float((totals["baseline_squared_error"].sum() / count.sum()).sqrt())
            metrics["times_better_than_mean"] = metrics["mean_action_mae"] / metrics["action_mae"]
            for i in count.nonzero().flatten().tolist():
                metrics[f"action_mae_{i}"] = float(totals["absolute_error"][i] / count[i])
        return metrics


def _is_expert(parameter_name: str) -> bool:
    return "expert" in parameter_name.split(".")


def _supervised_counts(batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens that are learned, and action values that are real, in one batch."""
    tokens = (batch["labels"][:, 1:] != -100).sum()
    actions = batch["action_mask"].sum() if "actions" in batch else torch.tensor(0)
    return tokens, actions


def _prompts(batch: dict, pad_token_id: int) -> dict:
    """A batch for training -> the same prompts without what is learned, padded on the left as `generate` wants them."""
    labels, mask = batch["labels"], batch["attention_mask"].bool()
    learned = labels != -100
    starts = torch.where(learned.any(1), learned.int().argmax(1), mask.shape[1] - mask.flip(1).int().argmax(1))
    rows = [mask[i] & (torch.arange(mask.shape[1], device=mask.device) < start) for i, start in enumerate(starts)]
    prompts = {}
    for name, values in batch.items():
        if name in ("labels", "actions", "action_mask"):
            continue
        if values.shape == labels.shape and name != "state":
            padding = pad_token_id if name == "input_ids" else 0
            values = pad_sequence([values[i][row] for i, row in enumerate(rows)], True, padding, padding_side="left")
        prompts[name] = values
    return prompts


def _first_answers(labels: torch.Tensor, end_token_id: int) -> list[list[int]]:
    """The first learned tokens of every row, up to and with the end of the VLM's turn."""
    answers = []
    for row in labels.tolist():
        start = next((i for i, token in enumerate(row) if token != -100), len(row))
        answer = list(takewhile(lambda token: token not in (-100, end_token_id), row[start:]))
        answers.append([*answer, end_token_id] if answer else [])
    return answers


def _check_agreement(model: nn.Module, processor: KIVLAProcessor) -> None:
    for name in ("chunk_size", "max_action_dim", "max_state_dim", "state_encoding"):
        ours, theirs = getattr(model.config, name), getattr(processor, name)
        if ours != theirs:
            raise ValueError(
                f"Model and processor disagree: {name} is {ours!r} in the model's config, {theirs!r} in the processor. "
                "Make both with the same value."
            )
