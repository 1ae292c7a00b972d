"""KIVLATrainer: the library's Trainer with the combined loss, its metrics, and evaluation in robot units."""

import difflib
import inspect
import logging
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import DistributedType, DynamoBackend
from peft import PeftModel
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function
from torch.utils.data import Dataset, SequentialSampler
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import has_length

from ..modeling_kivla import KIVLAForActionPrediction, count_learned_actions
from ..modeling_kivla.real_time_chunking import draw_delays
from ..modeling_kivla.token_ids import check_new_tokens
from ..processing import KIVLAProcessor
from ..processing.sequences import are_documents
from .anchor import Anchor
from .argument_rules import REFUSED, check_trainer_arguments
from .arguments import KIVLATrainingArguments
from .data.augmentation import AUGMENTATIONS, ExampleAugmentation
from .data.camera_naming import name_cameras
from .data.collator import KIVLACollator
from .data.dataset_checks import check_augmentation, check_ranges
from .data.mixture import Mixture
from .data_parallel import (
    DDPGradients,
    ReshardAfterForward,
    keep_inputs_exact,
    original_class,
    total_norm,
)
from .evaluating_trainer import EvaluatingTrainer
from .evaluation.closed_choice import AMONG_ALL, choice_arguments
from .evaluation.evaluation_step import LOSS_SUMS, summary
from .evaluation.token_sums import token_sums
from .muon import MuonWithAdamW
from .parts import (
    BACKBONE,
    EXPERT,
    NEW_TOKENS,
    PARTS,
    RATE_ARGUMENTS,
    TokenRows,
    part_of,
    split_groups,
    vocabulary_weights,
)
from .policy_card import with_author_words, write_trainer_card
from .trained_dtype import check_mixed_precision, check_trained_dtype

logger = logging.getLogger(__name__)

EXAMPLES_BEFORE_WARNING = 256


class KIVLATrainer(EvaluatingTrainer):
    r"""
    Fine-tunes a KIVLA model: `loss = token_loss + flow_loss_weight · flow_loss`, and with plain text among the data
    `+ text_loss_weight · text_loss + anchor_weight · anchor_loss`.

    What it does about interruptions and faults is in [`ResumableTrainer`].

    All terms are means over supervised positions of the *whole* optimiser step, across devices and accumulation steps,
    so that splitting a batch does not change its gradient. The log has `token_loss`, `flow_loss`, `text_loss`,
    `token_accuracy`, `action_token_accuracy`, the gradient norms of all parts (before clipping) and
    `mean_velocity_flow_loss`, what always predicting the mean velocity would cost; `evaluate()` also samples chunks and
    reports their error in robot units next to that of always predicting the mean action.

    Parts are the backbone and the expert; new tokens and projector, too, where they have a learning rate of their own,
    or the rest of the VLM rests (`recipes.set_stage`). Each part has its norm, by which it is clipped.

    Args:
        model: a [`KIVLAForActionPrediction`], with or without LoRA. If its vocabulary is too small for the processor's
            action tokens, it is enlarged.
        args: [`KIVLATrainingArguments`].
        data_collator: a [`KIVLACollator`] by default.
        train_dataset, eval_dataset: examples as dicts; chunk size, cameras (by name, in any order) and action size must
            be the processor's. Cameras with other names are mapped by `KIVLACollator(processor, cameras={...})`. To
            evaluate on, plain texts may be among them: [`HeldOutTexts`].
        processing_class ([`KIVLAProcessor`]): makes the batches, and is saved with every checkpoint. If it has no names
            for its cameras, it gets those of the training data.
        ref_model: for `anchor_weight`, the untouched VLM, where the model's own has been trained already. By default
            the model's is untouched, and a copy of it is kept (with LoRA none is needed).
        **kwargs: as for [`~transformers.Trainer`]. What differs is listed in `docs/training_arguments.md`.

    Raises:
        ValueError: an argument that is not honoured, or processor, model and data disagree on a size; the message
            names it, and says what to do.
        TypeError: a model, processor or arguments of another kind.
    """

    train_dataset: Dataset
    _tag_names = ("kivla", "robotics", "vision-language-action", "knowledge-insulation")
    # The losses are divided by the counts of the whole optimiser step.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: KIVLAForActionPrediction | PeftModel | None = None,
        args: TrainingArguments | None = None,
        data_collator=None,
        train_dataset=None,
        eval_dataset=None,
        processing_class: KIVLAProcessor | None = None,
        ref_model: PreTrainedModel | None = None,
        **kwargs,
    ):
        args = KIVLATrainingArguments.of(args)
        known = {*inspect.signature(Trainer.__init__).parameters, "run_facts"}
        if unknown := sorted(kwargs.keys() - known):
            near = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else " The policy's processor is `processing_class`."
            raise TypeError(f"KIVLATrainer has no argument `{unknown[0]}`.{hint}")
        check_trainer_arguments(args, kwargs)
        if not isinstance(processing_class, KIVLAProcessor):
            raise TypeError(
                f"processing_class must be the policy's KIVLAProcessor, got {type(processing_class).__name__}: it "
                "makes the batches, and is saved with the policy. See KIVLAProcessor.from_vlm."
            )
        self.processing_class = processing_class  # `call_model_init` wants it before the library sets it
        if model is not None:
            self._fit(model)
        if data_collator is None:
            data_collator = KIVLACollator(processing_class)
        mapping = data_collator.cameras if isinstance(data_collator, KIVLACollator) else None
        camera_notes = name_cameras(processing_class, train_dataset, mapping)  # before the run's identity is taken
        super().__init__(
            model,
            args,
            data_collator,
            train_dataset,
            eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = True
        self._check_devices()
        self._check_parts()
        if self.is_world_process_zero():
            for note in camera_notes:
                logger.warning("%s", note)
        self._check_datasets()
        check_mixed_precision(cast(Any, self.model).config.vlm_config.model_type, self.accelerator.mixed_precision)
        check_trained_dtype(self.model, self.accelerator)
        self.add_callback(ReshardAfterForward(self.accelerator))
        self._action_token_ids = torch.as_tensor(processing_class.action_token_ids)
        self._sums = torch.zeros(len(LOSS_SUMS))
        # Of the real actions, for each dimension: how many, their sum, the sum of their squares.
        self._moments = torch.zeros(3, processing_class.max_action_dim)
        # Of the examples so far, for each step of a chunk: how many had a real action there.
        self._real_steps = torch.zeros(processing_class.chunk_size)
        self._has_said_steps = False
        self._gradient_norms: dict[str, float] = {}
        self._rows = TokenRows([], [], old_rows_rest=False)
        self._stop_is_asked = False  # by a signal that any device has received: the counts of a step say so
        self._learned: list[list[int]] = []
        self._step_has_documents = False
        self._anchor: Anchor | None = None
        self._anchor_sum = torch.zeros(())
        if args.anchor_weight > 0:
            self._anchor = Anchor(self.model, self._action_token_ids, processing_class.vocab_size, ref_model)
        self._ddp_gradients: DDPGradients | None = None
        self.card_facts: dict = {}  # what its caller knows of the policy, for the card

    def _fit(self, model: nn.Module) -> None:
        """Check that model and processor have the same sizes, and give the model a row for every token."""
        policy = model.get_base_model() if isinstance(model, PeftModel) else model
        if not isinstance(policy, KIVLAForActionPrediction):
            raise TypeError(
                f"model must be a KIVLAForActionPrediction, got {type(policy).__name__}. To make one of a VLM, use "
                "KIVLAForActionPrediction.from_vlm."
            )
        if policy._hf_peft_config_loaded:  # it would save the adapter alone, whatever was trained
            raise ValueError(
                "This model was loaded from an adapter, which is frozen. To go on with the adapter, give the trainer "
                "kivla.training.lora.load_lora(folder, is_trainable=True); to train all weights, "
                "load_lora(folder).merge_and_unload()."
            )
        _check_agreement(policy, self.processing_class)
        if policy.get_input_embeddings().weight.shape[0] < self.processing_class.vocab_size:
            policy.resize_token_embeddings(self.processing_class.vocab_size, pad_to_multiple_of=64)

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """As the library does; a model without weights, of which only a plan is made, has nothing to move."""
        if not next(model.parameters()).is_meta:
            super()._move_model_to_device(model, device)

    def call_model_init(self, trial=None) -> nn.Module:
        model = super().call_model_init(trial)
        self._fit(model)
        self._ddp_gradients = None
        return model

    def _hp_search_setup(self, trial) -> None:
        """Check again when training begins: arguments may have changed since the trainer was made."""
        super()._hp_search_setup(trial)
        self.args.check()
        self._check_devices()
        self._check_parts()

    # ------------------------------------------------------------------------------------------------- training
    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.accelerator.is_fsdp2:
            keep_inputs_exact(self.accelerator)

    def autocast_smart_context_manager(self, *args, **kwargs):
        """Autocast with FSDP2 too, where accelerate does not wrap the model's forward in it."""
        if self.accelerator.is_fsdp2:
            return self.accelerator.autocast()
        return super().autocast_smart_context_manager(*args, **kwargs)

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        """Make the library's optimiser, or Muon (`args.muon`), with the rows and the learning rates of the parts."""
        if self.optimizer is not None:
            return super().create_optimizer(*args, **kwargs)
        if self._splits_rows:
            ids = self.processing_class.action_token_ids.tolist()
            self._rows = TokenRows(vocabulary_weights(self._policy), ids, self._policy.trains_new_rows_only)
        if self.args.muon:
            self.optimizer = MuonWithAdamW(
                ((name, parameter) for name, _, parameter in self._trained()),
                lr=self.args.learning_rate,
                betas=(self.args.adam_beta1, cast(float, self.args.adam_beta2)),
                eps=self.args.adam_epsilon,
                weight_decay=self.args.weight_decay,
            )
        optimizer = super().create_optimizer(*args, **kwargs)
        if self._rates or self._splits_rows:
            self._split_groups(optimizer)
        return optimizer

    def _split_groups(self, optimizer: torch.optim.Optimizer) -> None:
        """Give an optimiser rows in the place of whole weights, and a group for each part of its groups."""
        parts = {parameter: part for _, part, parameter in self._trained()}
        if isinstance(optimizer, MuonWithAdamW):  # has the rows already
            optimizer.split_groups(parts, self._rates)
        else:
            for group in optimizer.param_groups:
                group["params"] = [piece for weight in group["params"] for _, piece in self._pieces(weight, BACKBONE)]
            if parts.keys() != {parameter for group in optimizer.param_groups for parameter in group["params"]}:
                given = [RATE_ARGUMENTS[part] for part in self._rates] or ["the stage that trains new tokens alone"]
                raise ValueError(
                    f"The optimiser {self.args.optim!s} does not take the parts' weights as groups of their own: leave "
                    f"out {', '.join(given)}, or use another optim."
                )
            optimizer.param_groups[:] = split_groups(optimizer.param_groups, parts, self._rates)
        optimizer.register_step_pre_hook(self._rows.follow)

    @property
    def _policy(self) -> KIVLAForActionPrediction:
        model = self.accelerator.unwrap_model(self.model)
        return cast(KIVLAForActionPrediction, model.get_base_model() if isinstance(model, PeftModel) else model)

    @property
    def _rates(self) -> dict[str, float]:
        """Learning rates of the parts that have one of their own."""
        rates = {part: getattr(self.args, name) for part, name in RATE_ARGUMENTS.items()}
        return {part: rate for part, rate in rates.items() if rate is not None}

    @property
    def _splits_rows(self) -> bool:
        """Whether new rows are trained otherwise than old ones. LoRA has new rows as parameters of their own."""
        is_wanted = self._policy.trains_new_rows_only or NEW_TOKENS in self._rates
        return is_wanted and not isinstance(self.accelerator.unwrap_model(self.model), PeftModel)

    def _trained(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        """Go through names, parts and tensors of all that is trained, as an optimiser gets it."""
        for name, parameter in self._named_parameters():
            if parameter.requires_grad:
                for part, piece in self._pieces(parameter, part_of(name)):
                    yield name, part, piece

    def _pieces(self, parameter: nn.Parameter, part: str) -> list[tuple[str, nn.Parameter]]:
        rows = self._rows.of(parameter)
        return [(part, parameter)] if rows is None else rows

    def _named_parameters(self):
        return self.accelerator.unwrap_model(self.model).named_parameters()

    def _get_train_sampler(self, train_dataset=None):
        """Take a mixture as it comes: it has an order already, and a streamed source wants to be read in it."""
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
        """Count supervised tokens, real action values and tokens of documents (among the former), over all devices.

        Returns:
            (3,), of this optimiser step.
        """
        if not batch_samples:
            return None
        for batch in batch_samples:
            self._draw_delays(batch)
        flag = torch.tensor(int(self.received_signal > 0))
        responds = self.processing_class.has_response_before_actions
        counts = [
            [
                *_supervised_counts(batch),
                flag,
                responds(batch["labels"]).sum(),
                *_has_images_and_videos(batch),
            ]
            for batch in batch_samples
        ]
        counts = torch.stack([torch.stack([n.to(device) for n in row]) for row in counts])  # (batches, 7)
        counts = self.accelerator.reduce(counts, reduction="sum")
        rows = counts.tolist()  # a GPU is waited for once
        self._learned = [row[:3] for row in rows]
        self._step_has_documents = any(texts for _, _, texts in self._learned)
        self._stop_is_asked = bool(rows[0][3])
        if any(row[4] for row in rows):
            self.processing_class.responds_first = True  # it acts as it is taught: saved with the policy
        self._check_images([number for row in rows for number in row[5:]])
        return counts[:, :3].sum(0)

    def _draw_delays(self, batch: dict) -> None:
        """Draw the delays of a batch here, where it is counted what is learned, if the policy is trained with them."""
        config = self._policy.config
        if config.rtc_max_delay > 0 and "delay" not in batch:
            draws = config.num_flow_samples * len(batch["labels"])
            batch["delay"] = draw_delays(draws, config.rtc_max_delay).to(batch["labels"].device)

    def _signal_to_obey(self) -> int:
        """Ask the devices which signal it is only where one has said with its counts that there is one."""
        return super()._signal_to_obey() if self._stop_is_asked or self.args.world_size == 1 else 0

    def resume_processing(self, checkpoint: Path) -> None:
        """Keep the prompts that the run began with: a chat template may write the date."""
        self.processing_class.set_prompts(KIVLAProcessor.saved_settings(checkpoint).get("prompt_frames"))

    def _check_devices(self) -> None:
        if self.args.n_gpu > 1:
            raise ValueError(
                f"This one process sees {self.args.n_gpu} GPUs, and the library would copy the model to all of them "
                "in every step (DataParallel), which a policy cannot do. Start one process for each: `accelerate "
                "launch` (ddp.yaml of `kivla launch-files`); or show it one GPU: CUDA_VISIBLE_DEVICES=0."
            )
        if self.accelerator.distributed_type == DistributedType.FSDP and not self.accelerator.is_fsdp2:
            raise ValueError(
                "FSDP version 1 puts weights of different layers into one. Set fsdp_version: 2, as fsdp2.yaml of "
                "`kivla launch-files` does."
            )
        dynamo = self.accelerator.state.dynamo_plugin.backend
        if dynamo != DynamoBackend.NO:
            raise ValueError(
                f"accelerate was told to compile (dynamo_backend={dynamo.value}). {REFUSED['torch_compile'][1]}"
            )
        if self.is_zero3 and self.args.sample_in_eval:
            raise ValueError(
                "With ZeRO-3 devices cannot sample actions each on its own. Give sample_in_eval=False, and measure the "
                "policy afterwards (`kivla evaluate`); or use FSDP2, which gathers the weights for it."
            )
        if self.args.anchor_weight > 0 and self._is_sharded:
            raise ValueError(
                "anchor_weight compares with the untouched VLM, which every device needs whole: with FSDP and ZeRO-3 "
                "none has it. Leave out anchor_weight, or use DDP (ddp.yaml of `kivla launch-files`)."
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
        if self.is_deepspeed_enabled and self.args.clip_per_part and self.args.max_grad_norm > 0:
            logger.warning(
                "DeepSpeed clips gradients by one norm for VLM and expert: the expert's gradient has a say in how far "
                "an insulated VLM moves. With DDP and FSDP2 each has its own norm."
            )

    def _check_parts(self) -> None:
        """Check that every part with a learning rate is trained, and that rows can be where they are to be."""
        trained = {part_of(name) for name, parameter in self._named_parameters() if parameter.requires_grad}
        if self.args.action_token_softmax != AMONG_ALL and not len(self.processing_class.action_token_ids):
            raise ValueError(
                f"action_token_softmax={self.args.action_token_softmax!r} is about action tokens, and the processor "
                "has no action tokenizer: nothing would be learned that way. Leave it out."
            )
        if self._splits_rows:
            alone = "a stage that trains new tokens without the rest of the VLM"
            wanted = alone if self._policy.trains_new_rows_only else RATE_ARGUMENTS[NEW_TOKENS]
            if not len(self.processing_class.action_token_ids):
                raise ValueError(f"The processor has no action tokenizer: there are no new tokens for {wanted}.")
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError(
                    f"FSDP and DeepSpeed share out the rows of new tokens, and {wanted} needs them whole: use DDP, or "
                    "leave it out."
                )
            if self.optimizer is not None:
                raise ValueError(
                    f"optimizers= brings an optimiser, and {wanted} is about the one that the trainer would make: give "
                    "either of them."
                )
            if any(weight.requires_grad for weight in vocabulary_weights(self._policy)):
                trained.add(NEW_TOKENS)
        if idle := [name for part, name in RATE_ARGUMENTS.items() if part in self._rates and part not in trained]:
            raise ValueError(f"{idle[0]} is the learning rate of a part that is not trained here. Leave it out.")

    def _check_datasets(self) -> None:
        sets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"evaluation": self.eval_dataset}
        for dataset in (self.train_dataset, *sets.values()):
            self._check_dataset(dataset)
        check_augmentation(self.train_dataset, self.args.augment, self.args.wrist_cameras, self.processing_class)
        if self.is_world_process_zero():
            check_ranges(self.train_dataset, self.processing_class)
        args, metric = self.args, self.args.metric_for_best_model
        examples = args.train_batch_size * args.world_size
        if args.dataloader_drop_last and has_length(self.train_dataset) and len(self.train_dataset) < examples:
            raise ValueError(
                f"dataloader_drop_last=True leaves nothing to train on: there are {len(self.train_dataset)} examples, "
                f"and a batch of all devices has {examples}."
            )
        names = list(self.eval_dataset) if isinstance(self.eval_dataset, dict) else []
        is_known = metric is None or any(metric.removeprefix("eval_").startswith(f"{name}_") for name in names)
        if names and args.eval_strategy != "no" and not is_known:
            raise ValueError(
                f"metric_for_best_model={metric!r} is a metric of no evaluation set: there are "
                f"{', '.join(map(str, names))}. Name one of them, as in 'eval_{names[0]}_loss'."
            )

    def augmentation(self) -> ExampleAugmentation | None:
        amount = AUGMENTATIONS[self.args.augment]
        return None if amount is None else ExampleAugmentation(amount, self.args.wrist_cameras)

    def _check_images(self, with_images: list[int]) -> None:
        """`with_images`: how many devices have images in a batch, and how many videos, of any number of batches."""
        devices = self.accelerator.num_processes
        if self._is_sharded and any(0 < n < devices for n in with_images):
            raise ValueError(
                f"In step {self.state.global_step + 1} some of the {devices} devices have a batch without any image "
                "(or without any video, which clips may be). Where weights are shared out (FSDP, "
                "ZeRO-3) all must run the vision tower equally often. Use larger batches, leave out examples without "
                "images, or use DDP."
            )

    @property
    def _is_sharded(self) -> bool:
        """Whether no device has all weights, so that all must run the same layers."""
        return self.is_fsdp_enabled or self.is_zero3

    def get_batch_samples(self, *args, **kwargs):
        with record_function("kivla::data"):
            return super().get_batch_samples(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch: torch.Tensor | None = None):
        inputs = {name: values for name, values in inputs.items() if name != "robot"}
        learns: dict[str, Any] = {}
        if num_items_in_batch is None:
            self._draw_delays(inputs)
            tokens, actions, texts = _supervised_counts(inputs)
        else:
            tokens, actions, texts = num_items_in_batch
            # What any device learns from its batch, all take part in: sharded weights need it, and all wait anyway.
            some_tokens, some_actions, _ = self._learned.pop(0)
            # DeepSpeed keeps an old gradient where a batch gives none (seen with ZeRO-3): here every batch gives all.
            always = self.is_deepspeed_enabled
            learns = {"with_token_loss": always or some_tokens > 0, "with_flow_loss": always or some_actions > 0}
            if self._step_has_documents:
                learns["token_loss_weights"] = self._token_loss_weights(inputs, tokens, texts)
        anchor = self._anchor if model.training and are_documents(inputs["labels"]).any() else None
        if anchor is not None:
            with record_function("kivla::anchor"), self.accelerator.autocast():
                predictions = anchor.predictions(inputs)
        with record_function("kivla::forward"):
            counts = {"num_supervised_tokens": tokens.clamp(min=1), "num_supervised_actions": actions.clamp(min=1)}
            choice = choice_arguments(self.processing_class, self.args.action_token_softmax, inputs["labels"])
            outputs = model(**inputs, **counts, **learns, **choice)
        # Data-parallel training averages gradients over ranks; the counts above already span them.
        loss = outputs.loss
        if anchor is not None:
            is_left_out = choice.get("candidates_mask")
            divergence = anchor.divergence(outputs.logits, predictions, inputs["labels"], is_left_out)
            self._anchor_sum = self._anchor_sum.to(loss.device) + divergence.detach()
            loss = loss + self.args.anchor_weight * divergence / texts
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        if model.training:
            self._count(outputs, {**inputs, **choice}, tokens, actions)
            if self._ddp_gradients is not None and model.require_backward_grad_sync:
                loss = self._ddp_gradients.touch(loss)
        return (loss, outputs) if return_outputs else loss

    def _token_loss_weights(self, batch: dict, tokens: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Weigh the tokens of each example, (B,), so that documents are a term of their own: the token loss is then
        the mean over all other tokens, and `text_loss_weight` times the mean over those of documents.

        A document has many times the tokens of a chunk. In one mean it would take the loss for itself.
        """
        of_documents = self.args.text_loss_weight * tokens / texts.clamp(min=1)
        others = tokens / (tokens - texts).clamp(min=1)
        return torch.where(are_documents(batch["labels"]), of_documents, others)

    @torch.no_grad()
    def _count(self, outputs, inputs, tokens, actions):
        sums: dict[str, torch.Tensor] = {name: torch.zeros(()) for name in LOSS_SUMS}
        if outputs.token_loss is not None:
            choice = inputs.get("candidates"), inputs.get("candidates_mask")
            sums.update(token_sums(outputs, inputs["labels"], self._action_token_ids, *choice))
        if outputs.flow_loss is not None and "actions" in inputs:
            sums["flow_loss"] = outputs.flow_loss * actions
            sums["action_values"] = count_learned_actions(inputs["action_mask"], inputs.get("delay"))
            mask = inputs["action_mask"]
            real = inputs["actions"].float().masked_fill(~mask, 0.0)
            self._moments = self._moments.to(real.device)
            self._moments += torch.stack([values.float().sum((0, 1)) for values in (mask, real, real.square())])
            self._real_steps = self._real_steps.to(real.device)
            self._real_steps += mask.any(2).sum(0)
        self._sums = self._sums.to(outputs.loss.device)
        self._sums += torch.stack([sums[name].sum().to(self._sums) for name in LOSS_SUMS])

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

    def _clip_grad_norm(self, model) -> torch.Tensor | None:
        """Clip every part to `max_grad_norm` (`clip_per_part`); return the norm of all of it, before.

        One norm for all would let the size of the expert's gradient, or of new tokens' at first, decide how far the VLM
        moves, insulated or not.
        """
        if self.is_deepspeed_enabled:
            return super()._clip_grad_norm(model)
        self._rows.follow()
        self.accelerator.unscale_gradients()
        trained = list(self._trained())
        backbone_rests = all(part != BACKBONE for _, part, _ in trained)
        own = PARTS if backbone_rests else (BACKBONE, EXPERT, *self._rates)
        parts: dict[str, list[torch.Tensor]] = defaultdict(list)
        for _, part, parameter in trained:
            if parameter.grad is not None:
                parts[part if part in own else BACKBONE].append(parameter.grad)
        # A GPU is waited for once, for all norms together.
        norms = [total_norm(gradients).to(self.args.device) for gradients in parts.values()]
        norms = dict(zip(parts, torch.stack(norms).tolist() if norms else [], strict=True))
        self._gradient_norms = {f"{part}_grad_norm": norm for part, norm in norms.items()}
        whole = torch.tensor([*norms.values()]).norm()
        if self.args.max_grad_norm > 0:
            for part, gradients in parts.items():
                norm = norms[part] if self.args.clip_per_part else whole.item()
                if norm > self.args.max_grad_norm:
                    torch._foreach_mul_(gradients, self.args.max_grad_norm / norm)  # pyright: ignore[reportPrivateImportUsage]
        return whole

    def _get_grad_norm(self, model, grad_norm=None):
        if grad_norm is None and not self.is_deepspeed_enabled:  # nothing is clipped, and the norms are wanted
            grad_norm = self._clip_grad_norm(model)
        return super()._get_grad_norm(model, grad_norm)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs or "train_loss" in logs:
            self._say_steps_that_are_not_learned(at_end="train_loss" in logs)
        if "loss" in logs:
            sums = dict(zip(LOSS_SUMS, self.accelerator.reduce(self._sums, "sum"), strict=True))
            logs.update(summary(sums))
            if self._anchor is not None and sums["text_tokens"] > 0:
                divergence = self.accelerator.reduce(self._anchor_sum.to(self.args.device), "sum")
                logs["anchor_loss"] = float(divergence / sums["text_tokens"])
                self._anchor_sum.zero_()
            logs.update(self._gradient_norms)
            count, total, squares = self.accelerator.reduce(self._moments.to(self.args.device), "sum")
            if count.any():  # the variance of noise - actions: noise has 1
                variance = (squares - total.square() / count.clamp(min=1)).sum() / count.sum()
                logs["mean_velocity_flow_loss"] = 1.0 + float(variance)
            self._sums.zero_()
            self._moments.zero_()
        super().log(logs, *args, **kwargs)

    def _say_steps_that_are_not_learned(self, at_end: bool) -> None:
        """Warn of data whose chunks are all too short: of other than LeRobot datasets its examples alone tell."""
        if self._has_said_steps:
            return
        real = self.accelerator.reduce(self._real_steps.to(self.args.device), "sum")
        enough = real[0] >= EXAMPLES_BEFORE_WARNING or (at_end and real[0] > 0)
        if enough and not real.all():
            self._has_said_steps = True
            logger.warning(
                "None of %d examples had more than %d real actions, but the policy acts in chunks of %d: it would act "
                "%d steps that it never learned. Build model and processor with a smaller chunk_size, read the data "
                "with a longer one, or let the policy act fewer steps of every chunk (`replan_every`).",
                int(real[0]),
                int(real.count_nonzero()),
                len(real),
                len(real) - int(real.count_nonzero()),
            )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """As the library's. Weights gathered from several devices (`state_dict`) are copies: one of tied ones stays."""
        model = self.accelerator.unwrap_model(self.model)
        if state_dict is not None:
            state_dict = {n: weight for n, weight in state_dict.items() if n not in model.all_tied_weights_keys}
        with original_class(model):
            super()._save(output_dir, state_dict)
        if isinstance(model, PeftModel) and self.args.should_save:  # which policy the adapter is one of
            model.config.save_pretrained(output_dir or self.args.output_dir)

    def _issue_warnings_after_load(self, load_result) -> None:
        """Refuse to resume with half of the weights, where the library would only log a warning."""
        tied = set(self.accelerator.unwrap_model(self.model).all_tied_weights_keys)
        missing = sorted(set(load_result.missing_keys) - tied)
        if missing or load_result.unexpected_keys:
            raise ValueError(
                f"The checkpoint does not fit the model: {len(missing)} weights are missing ({missing[:3]} ...) and "
                f"{len(load_result.unexpected_keys)} are unknown ({load_result.unexpected_keys[:3]} ...). Resume with "
                "the model and the versions of kivla and transformers that wrote it."
            )

    # ----------------------------------------------------------------------------------------------------- card
    def init_hf_repo(self, *args, **kwargs) -> None:
        """As the library's. README.md here, which every push uploads, gets the words of its author on the Hub."""
        super().init_hf_repo(*args, **kwargs)
        path = Path(cast(str, self.args.output_dir)) / "README.md"
        if self.is_world_process_zero() and path.is_file():
            path.write_text(with_author_words(self, path.read_text(encoding="utf-8")), encoding="utf-8")

    def create_model_card(self, license: str | None = None, model_name: str | None = None, **options) -> None:
        """Write the card of the policy, README.md in `output_dir`; `push_to_hub` does so, and uploads it.

        What the README's author wrote, here or on the Hub, stays (see `readme`).

        Args:
            license: identifier of the Hub, e.g. "apache-2.0".
            model_name: title; the folder's name.
            **options: `tags`, `language`, `finetuned_from`, `tasks` and `dataset_tags`, as for the library's trainer.
                (Its `dataset` and `dataset_args` name results; here they go by the evaluated sets.)

        Raises:
            TypeError: another option.
        """
        if self.is_world_process_zero():
            write_trainer_card(self, license, model_name, options)


def _supervised_counts(batch: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Count in one batch the tokens that are learned, the action values that are, and the tokens of documents."""
    is_learned = batch["labels"][:, 1:] != -100
    actions = torch.tensor(0)
    if "actions" in batch:
        actions = count_learned_actions(batch["action_mask"], batch.get("delay")).sum()
    return is_learned.sum(), actions, is_learned[are_documents(batch["labels"])].sum()


def _check_agreement(model: KIVLAForActionPrediction, processor: KIVLAProcessor) -> None:
    for name in ("chunk_size", "max_action_dim", "max_state_dim", "state_encoding"):
        ours, theirs = getattr(model.config, name), getattr(processor, name)
        if ours != theirs:
            raise ValueError(
                f"Model and processor disagree: {name} is {ours!r} in the model's config, {theirs!r} in the processor. "
                f"Make both with the same value: KIVLAForActionPrediction.from_vlm(..., {name}={theirs!r})."
            )
    check_new_tokens(model.config.vlm_config, processor.action_token_ids.tolist())


def _has_images_and_videos(batch: dict) -> torch.Tensor:
    """(2,), each 0 or 1. A VLM's tower runs once for all images of a batch, and once for all videos."""
    pictures = [name for name in batch if "pixel_values" in name]
    return torch.tensor(
        [any("video" not in name for name in pictures), any("video" in name for name in pictures)]
    ).int()
