"""Arguments of a training run: `TrainingArguments` with what interruptions and faults need, and the two losses."""

import logging
import math
from dataclasses import dataclass, field, fields

import torch
from transformers import TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_available

from .argument_rules import check_arguments
from .data.augmentation import AUGMENTATIONS
from .evaluation.closed_choice import AMONG_ALL, SOFTMAXES

logger = logging.getLogger(__name__)


@dataclass
class ResumableTrainingArguments(TrainingArguments):
    r"""
    Arguments of a [`ResumableTrainer`]: those of [`~transformers.TrainingArguments`], and what to do about
    interruptions and faults.

    Args:
        ema_decay (`float`, *optional*): average the trained weights, `average = ema_decay · average + (1 - ema_decay) ·
            weight` after every step (openpi: 0.99 or 0.999). The average is what is evaluated and what `save_model`
            writes; checkpoints have both.
        on_nonfinite (`str`, defaults to `"stop"`): what to do where loss or gradient of a step are NaN or infinite:
            "stop" with an error that names the examples, or "skip" the step with a warning (10 in a row are an error).
            Neither changes weights, optimiser or average.
        bucket_by_length (`bool`, defaults to `False`): with several micro-batches in a step, put examples of like
            length into one, for less padding. The step is the same. For datasets with a method `size_of(index)`: those
            of kivla, not streamed.
        restart (`bool`, defaults to `False`): put aside what an earlier run left in `output_dir`, and start anew. (A
            folder holds one run: another one is refused there.)

    Raises:
        ValueError: a value out of range; the message names it.
    """

    ema_decay: float | None = field(
        default=None, metadata={"help": "Average the weights, and evaluate and deploy the average; openpi: 0.99."}
    )
    on_nonfinite: str = field(
        default="stop", metadata={"help": "At a step whose loss or gradient is NaN or infinite: stop, or skip it."}
    )
    bucket_by_length: bool = field(
        default=False, metadata={"help": "Let micro-batches of a step hold examples of like length: less padding."}
    )
    restart: bool = field(
        default=False, metadata={"help": "Put aside what an earlier run left in output_dir, and start anew."}
    )

    def __post_init__(self):
        # Later versions of the library call it activation checkpointing, and warn of the name that all of them know.
        for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
            new = old.replace("gradient", "activation")
            if new in self.__dataclass_fields__ and getattr(self, new) is None:
                setattr(self, new, getattr(self, old))
        if self.deepspeed is not None and not is_deepspeed_available():
            raise ValueError("deepspeed needs DeepSpeed, which is not installed here: pip install deepspeed.")
        # Memory is pinned for an accelerator; PyTorch warns where there is none.
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.accelerator.is_available()
        super().__post_init__()
        self.check()

    def check(self) -> None:
        """Check whether the arguments are possible; also for whoever changes them later.

        Raises:
            ValueError: one of them is not; the message names it.
        """
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay lies between 0 and 1 (usually 0.99 to 0.9999), got {self.ema_decay}.")
        if self.on_nonfinite not in ("stop", "skip"):
            raise ValueError(f'on_nonfinite is "stop" or "skip", got {self.on_nonfinite!r}.')


@dataclass
class KIVLATrainingArguments(ResumableTrainingArguments):
    r"""
    As [`ResumableTrainingArguments`]; `learning_rate` is the backbone's. `docs/training_arguments.md` lists every
    argument that means something else here, or is refused. The schedule applies to all learning rates.

    Args:
        expert_learning_rate (`float`, *optional*): learning rate of the action expert, which starts from random
            weights and usually wants a larger one; the backbone's if None.
        new_token_learning_rate (`float`, *optional*): of the action tokens' rows in embedding and output layer; the
            backbone's if None. Whole weights are needed on every device: not with FSDP or DeepSpeed.
        projector_learning_rate (`float`, *optional*): of what maps pictures to the text model's width; the backbone's
            if None.
        muon (`bool`, defaults to `False`): Muon for matrices and AdamW for the rest in place of `optim`. Small models
            learn several times faster with it. `weight_decay` applies to both, `adam_beta1`, `adam_beta2` and
            `adam_epsilon` to AdamW.
        adam_beta2 (`float`, *optional*): 0.999, or 0.99 with `muon`.
        clip_per_part (`bool`, defaults to `True`): clip the gradients of VLM and expert each to `max_grad_norm`; new
            tokens and projector, too, where they have a learning rate of their own. With one norm for all (`False`, the
            library's rule) the expert's gradient would set the size of the VLM's steps, and an insulated VLM would not
            learn as it does without an expert. DeepSpeed always clips by one norm.
        text_loss_weight (`float`, defaults to 1): of plain text among the data (`TextDataset`). Its loss is a mean of
            its own, over its own tokens: how long and how many the texts are does not change what the rest weighs. It
            may be 0 beside an `anchor_weight`.
        anchor_weight (`float`, defaults to 0): of the KL divergence of the VLM's predictions of plain text from those
            of the VLM as it was when the run began, over the vocabulary that it had then; a mean over the same tokens.
            It costs a forward of the untouched VLM over the texts, and its weights in memory once more (with LoRA not).
        action_token_softmax (`str`, defaults to `"all"`): among which tokens an action token is predicted: "all" of the
            vocabulary, or "action_tokens" and the end marker alone. That is another loss: the VLM does not learn that
            words are no actions, which decoding forbids anyway (`generate_actions`); and it saves the output layer's
            cost for all other tokens. Where a policy says words before it acts, the first action token stays a choice
            among all.
        augment (`str`, defaults to `"none"`): change the pictures of training examples at random: "robot" crops
            and turns them a little and changes the light, in openpi's amounts (`AUGMENTATIONS`). Evaluation never sees
            it.
        wrist_cameras (`list[str]`, *optional*): the data's cameras that are on a wrist or a hand, which are neither
            cropped nor turned; `["none"]` for no camera. By default those with wrist, hand or gripper in their name.
        sample_in_eval (`bool`, defaults to `True`): let `evaluate()` sample action chunks and report their error in
            robot units; otherwise it reports losses only.
        eval_num_steps (`int`, *optional*): Euler steps for those chunks; the model's `num_inference_steps` if None.
        remove_unused_columns (`bool`, defaults to `False`): examples are dicts of images, text, state and actions.
        ddp_find_unused_parameters (`bool`, defaults to `False`): the trainer deals with parameters that a step does not
            use, and DDP need not search for them.

    Raises:
        ValueError: an argument that the trainer does not honour, or a value out of range; the message names it.
    """

    expert_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the action expert; the backbone's if not given."}
    )
    new_token_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the action tokens' rows; the backbone's if not given."}
    )
    projector_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the VLM's projector; the backbone's if not given."}
    )
    muon: bool = field(
        default=False, metadata={"help": "Muon for matrices, AdamW for the rest: small models learn faster."}
    )
    adam_beta2: float | None = field(
        default=None, metadata={"help": "Second beta of AdamW: 0.999; with muon 0.99, if not given."}
    )
    text_loss_weight: float = field(
        default=1.0, metadata={"help": "Of plain text among the data: loss = ... + this * text_loss."}
    )
    anchor_weight: float = field(
        default=0.0,
        metadata={"help": "Hold its predictions of the texts to the untouched VLM's: + this * KL divergence."},
    )
    action_token_softmax: str = field(
        default=AMONG_ALL,
        metadata={
            "help": "Predict action tokens among all tokens, or among action_tokens alone: another loss, and cheaper.",
            "choices": list(SOFTMAXES),
        },
    )
    augment: str = field(
        default="none", metadata={"help": f"Change pictures at random while training: {', '.join(AUGMENTATIONS)}."}
    )
    wrist_cameras: list[str] | None = field(
        default=None,
        metadata={"help": "Cameras that are not cropped or turned, or none; those called wrist, hand or gripper."},
    )
    clip_per_part: bool = field(
        default=True, metadata={"help": "Clip the gradients of every part by its own norm, not by one of all."}
    )
    sample_in_eval: bool = field(
        default=True, metadata={"help": "Sample action chunks in evaluation and report their error in robot units."}
    )
    eval_num_steps: int | None = field(
        default=None, metadata={"help": "Euler steps in evaluation; the model's num_inference_steps if not given."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Keep False: examples are dicts of images, text, state and actions."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Keep False: the trainer deals with parameters that a step does not use."}
    )

    def __post_init__(self):
        if self.adam_beta2 is None:
            self.adam_beta2 = 0.99 if self.muon else 0.999
        super().__post_init__()

    def check(self) -> None:
        """Check whether the arguments are possible; also for whoever changes them later (a hyper-parameter search).

        Raises:
            ValueError: one of them is not; the message names it.
        """
        check_arguments(self)
        super().check()
        if self.eval_num_steps is not None and (self.eval_num_steps < 1 or self.eval_num_steps % 1):
            raise ValueError(f"eval_num_steps is a number of Euler steps, at least 1, got {self.eval_num_steps}.")
        if self.eval_num_steps is not None and not self.sample_in_eval:
            raise ValueError("eval_num_steps is for sampled chunks, and sample_in_eval=False samples none.")
        for name in ("text_loss_weight", "anchor_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number that is not negative, got {getattr(self, name)}.")
        if self.text_loss_weight == self.anchor_weight == 0:
            raise ValueError("text_loss_weight = 0 leaves nothing to learn from texts: give anchor_weight as well.")
        if self.action_token_softmax not in SOFTMAXES:
            given = self.action_token_softmax
            raise ValueError(f"action_token_softmax is one of {', '.join(SOFTMAXES)}, got {given!r}.")
        if self.augment not in AUGMENTATIONS:
            raise ValueError(f"augment is one of {', '.join(AUGMENTATIONS)}, got {self.augment!r}.")
        if self.wrist_cameras is not None and AUGMENTATIONS[self.augment] is None:
            raise ValueError("wrist_cameras is for augment='robot', which does not crop them. Leave it out.")
        if self.mixed_precision == "fp16" and self.device.type == "cpu":
            raise ValueError("fp16 needs a GPU: on a CPU the library would go on in float32. Use bf16, or neither.")

    @classmethod
    def of(cls, args: TrainingArguments | None) -> "KIVLATrainingArguments":
        """Return these arguments as `KIVLATrainingArguments`; what plain ones do not have is at its default.

        Raises:
            TypeError: arguments of another trainer.
        """
        if args is None:
            return cls(output_dir="tmp_trainer")  # as the library's Trainer
        if isinstance(args, cls):
            return args
        if type(args) is not TrainingArguments:
            raise TypeError(
                f"args is a {type(args).__name__}, which belongs to another trainer. Give KIVLATrainingArguments."
            )
        logger.warning("args are plain TrainingArguments: what only KIVLATrainingArguments have is at its default.")
        given = {field.name: getattr(args, field.name) for field in fields(args) if field.init}
        return cls(**{**given, "remove_unused_columns": False})
