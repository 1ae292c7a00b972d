"""What a training run is: everything that its result depends on, as plain data that a checkpoint carries.

Two runs with the same identity may go on from each other's checkpoints. Left out is what changes how fast, where or how
loudly a run goes (devices, loader workers, logging, evaluation, saving), where its data lie, and how many steps it has:
a run may be made longer. The parts of an identity:

    facts       what the caller says of the run: recipe, stage, ...
    start       the weights that it begins with, and which of them are trained
    model       the model's config
    processor   statistics, cameras, action tokenizer, and the VLM's own processor
    data        the training examples, by content: a dataset that was recorded anew is another one, a moved one is not
    training    the hyper-parameters of `MATTERS`, and how many examples a step has
    versions    of kivla, transformers and torch: said where they differ, but no reason to refuse
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import fields
from enum import Enum
from functools import singledispatch
from importlib.metadata import version

import datasets
import numpy as np
import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainingArguments

from ..modeling_kivla import KIVLAForActionPrediction
from ..processing import KIVLAProcessor
from .data.lerobot.vector_keys import USUAL_KEYS
from .data.mixture import Mixture
from .data.robot_dataset import RobotDataset, evenly_spread
from .data.vlm.dataset import VLMDataset
from .data.vlm.streaming import StreamedRows
from .data.vlm.texts import TextDataset
from .parts import RATE_ARGUMENTS

# The training arguments that a run's result depends on. (What splits a step's examples among devices and micro-batches
# is not among them, but their product is.)
MATTERS = (
    *("learning_rate", *RATE_ARGUMENTS.values(), "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("optim", "optim_args", "optim_target_modules", "muon", "weight_decay", "adam_beta1", "adam_beta2"),
    *("adam_epsilon", "max_grad_norm", "clip_per_part", "ema_decay", "neftune_noise_alpha", "bf16", "fp16"),
    *("seed", "data_seed", "bucket_by_length", "dataloader_drop_last", "train_sampling_strategy"),
    *("text_loss_weight", "anchor_weight", "augment", "wrist_cameras", "action_token_softmax"),
)
# Those of them that came later, with their defaults, at which they are not said: runs from before may go on.
_LATER = {
    "new_token_learning_rate": None,
    "projector_learning_rate": None,
    "text_loss_weight": 1.0,
    "anchor_weight": 0.0,
    "augment": "none",
    "wrist_cameras": None,
    "action_token_softmax": "all",
}
# Those that do not: where and how fast it runs, what is logged, evaluated and saved, what to do about faults; how many
# steps it has; and what the trainer refuses or does not look at.
DOES_NOT_MATTER = (
    *("output_dir", "restart", "resume_from_checkpoint", "do_train", "do_eval", "do_predict", "debug", "on_nonfinite"),
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "local_rank"),
    *("auto_find_batch_size", "average_tokens_across_devices", "label_smoothing_factor", "label_names", "tf32"),
    *("activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing", "use_cache"),
    *("gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend", "torch_compile_mode"),
    *("use_liger_kernel", "liger_kernel_config", "torch_empty_cache_steps", "full_determinism", "use_cpu"),
    *("logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "logging_nan_inf_filter"),
    *("include_num_input_tokens_seen", "log_level", "log_level_replica", "disable_tqdm", "report_to", "run_name"),
    *("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "skip_memory_metrics"),
    *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "eval_do_concat_batches", "sample_in_eval"),
    *("per_device_eval_batch_size", "eval_use_gather_object", "eval_accumulation_steps", "eval_num_steps"),
    *("prediction_loss_only", "include_for_metrics", "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval"),
    *("save_only_model", "save_strategy", "save_steps", "save_on_each_node", "save_total_limit"),
    *("enable_jit_checkpoint", "load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
    *("hub_revision", "ignore_data_skip", "restore_callback_states_from_checkpoint", "accelerator_config"),
    *("parallelism_config", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order"),
    *("remove_unused_columns", "length_column_name", "ddp_find_unused_parameters", "ddp_bucket_cap_mb"),
    *("ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout", "fsdp", "fsdp_config", "deepspeed"),
)
IMAGE_BACKEND = ("processor", "image_backend")
STAGE, START, MODEL, DATA = ("facts", "stage"), "start", "model", "data"
# In configs: where a model came from, and what the library changes when a run begins or its model is saved (weights are
# looked at with their types)
_PASSED_OVER = (
    *("_name_or_path", "transformers_version", "architectures", "auto_map", "use_cache", "torch_dtype", "dtype"),
)
_TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
_ADAPTER = ("peft_type", "r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora", "bias")
_SAMPLES = {"values": 512, "rows": 64}  # of a tensor or a dataset, evenly spread
_SHOWN = 20  # differences in a message


# -------------------------------------------------------------------------------------------------------------- making
def run_identity(
    facts: dict,
    start: dict,
    model: PreTrainedModel | PeftModel,
    processing_class: ProcessorMixin | PreTrainedTokenizerBase | None,
    data: Dataset,
    args: TrainingArguments,
) -> dict:
    """Collect the identity of a run, ready for JSON.

    Args:
        facts: what the caller says; `facts["start"]` is joined with `start`.
        start: see `start_of`.
        processing_class: what the trainer saves with the model.
    """
    facts = dict(facts)
    start = {**facts.pop("start", {}), **start}
    examples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    identity = {
        "facts": facts,
        "training": {"examples_in_a_step": examples} | _training(args),
        "data": describe(data),
        "start": start,
        "model": _without(json.loads(model.config.to_json_string(use_diff=False)), (*_PASSED_OVER, *_TOKEN_IDS)),
        "processor": describe_processing(processing_class),
        "versions": {name: version(name) for name in ("kivla", "transformers", "torch")},
    }
    return json.loads(json.dumps(identity, default=_as_json))


def _training(args: TrainingArguments) -> dict:
    known = {field.name for field in fields(args)}
    values = {name: getattr(args, name) for name in MATTERS if name in known}
    return {name: value for name, value in values.items() if name not in _LATER or value != _LATER[name]}


def start_of(model: PreTrainedModel | PeftModel) -> dict:
    """Describe the weights that a run begins with, and which of them are trained; before the first step.

    Of every tensor of a policy's backbone some values are taken. Left out is what begins at random and comes back with
    a checkpoint: the expert, low-rank updates, and tensors with a row for each token, as some tokens may be new. Of
    other models it is not known what begins at random, and no values are taken.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    start = {}
    if isinstance(base, KIVLAForActionPrediction):
        num_tokens = base.get_input_embeddings().weight.shape[0]
        weights = [
            (name, weight)
            for name, weight in base.vlm.named_parameters()
            if num_tokens not in weight.shape[:1] and not (isinstance(model, PeftModel) and weight.requires_grad)
        ]
        start["weights"] = weights_digest(weights)
    trained = [(name, tuple(weight.shape)) for name, weight in model.named_parameters() if weight.requires_grad]
    start |= {
        "trained_parameters": sum(math.prod(shape) for _, shape in trained),
        "trained": _digest(repr(trained).encode()),
    }
    if isinstance(model, PeftModel):
        adapter = model.peft_config[model.active_adapter].to_dict()
        start["adapter"] = {name: adapter[name] for name in _ADAPTER if name in adapter}
    return start


def weights_digest(weights: nn.Module | list[tuple[str, torch.Tensor]]) -> str:
    """Make a short digest of some values of every tensor: other weights have another one, and it takes no time."""
    named = list(weights.named_parameters()) if isinstance(weights, nn.Module) else weights
    digest = hashlib.sha256()
    for name, weight in named:
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        # Devices that wait for the first one's weights have none yet; quantised tensors cannot be indexed.
        if type(weight.data) is torch.Tensor and not weight.is_meta and weight.numel():
            places = torch.linspace(0, weight.numel() - 1, min(_SAMPLES["values"], weight.numel()), dtype=torch.float64)
            values = weight.detach().flatten()[places.round().long().to(weight.device)]
            digest.update(values.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@singledispatch
def describe(data) -> dict:
    """Say what a dataset is, by its content.

    Register a function for datasets of your own (`describe.register(MyDataset)`): of those that are not known here,
    class and length count.
    """
    length = {"examples": len(data)} if hasattr(type(data), "__len__") else {}
    return {"class": type(data).__qualname__, **length}


@describe.register
def _(data: RobotDataset) -> dict:
    described = {"name": data.name, "episodes": data.num_episodes, "frames": len(data), "content": data.content_digest}
    described |= {"cameras": data.cameras, "robot": data.robot, "chunk_size": data.chunk_size}
    # The usual ones are not said: runs of the time when there were no others may go on.
    keys = {"action_key": list(data.action_key), "state_key": list(data.state_key)}
    described |= {name: key for name, key in keys.items() if key and key != USUAL_KEYS[name]}
    if data.file_windows is not None:  # on which the order depends
        described["window_bytes"] = data.file_windows.window_bytes
    return described | ({} if data.subtask_key is None else {"subtask_key": data.subtask_key})


@describe.register
def _(data: VLMDataset) -> dict:
    how = {name: getattr(data, name) for name in ("layout", "columns", "turns", "prompt", "box_format")}
    return {**how, **describe(data.rows)}


@describe.register
def _(data: TextDataset) -> dict:
    return {"length": data.length, **describe(data.rows)}


@describe.register
def _(rows: StreamedRows) -> dict:
    info = rows.stream.info
    return {"stream": info.dataset_name, "config": info.config_name, "split": str(rows.stream.split), "rows": len(rows)}


@describe.register
def _(rows: datasets.Dataset) -> dict:
    places = _spread(len(rows))
    sample = rows.with_format("arrow")[places].to_pylist() if places else []
    return {"rows": len(rows), "content": _digest(repr([_without_paths(row) for row in sample]).encode())}


@describe.register
def _(data: Mixture) -> dict:
    # Not its length: a longer one begins with the same examples.
    return {"sources": [describe(s) for s in data.sources], "weights": data.weights.tolist(), "seed": data.seed}


@describe.register
def _(data: Subset) -> dict:
    indices = np.asarray(data.indices, np.int64)
    return {**describe(data.dataset), "examples": len(indices), "chosen": _digest(indices.tobytes())}


@describe.register
def _(data: ConcatDataset) -> dict:
    return {"one_after_the_other": [describe(part) for part in data.datasets]}


@singledispatch
def describe_processing(processing_class) -> dict:
    """Say what makes the batches; of classes that are not known here, their name counts."""
    return {"class": type(processing_class).__qualname__}


@describe_processing.register
def _(tokenizer: PreTrainedTokenizerBase) -> dict:
    return {"class": type(tokenizer).__qualname__, "vocabulary": _vocabulary_digest(tokenizer)}


@describe_processing.register
def _(processor: KIVLAProcessor) -> dict:
    described = json.loads(json.dumps(processor.to_dict(), default=_as_json))
    described.pop("prompt_frames")  # of the chat template, on the day of the start: what goes on keeps them
    if described["action_tokenizer"] is not None:
        content = {name: v for name, v in described["action_tokenizer"].items() if isinstance(v, dict)}
        described["action_tokenizer"] = {
            **{name: v for name, v in described["action_tokenizer"].items() if name not in content},
            **{name: _digest(json.dumps(v, sort_keys=True).encode()) for name, v in content.items()},
        }
    vlm = json.loads(json.dumps(processor.vlm_processor.to_dict(), default=_as_json))
    vlm["chat_template"] = _digest(repr(processor.vlm_processor.chat_template).encode())
    vlm["vocabulary"] = _vocabulary_digest(processor.tokenizer)
    return {**described, "vlm_processor": _without(vlm, (*_PASSED_OVER, "name_or_path", "processor_class"))}


def _vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    return _digest(repr(sorted(tokenizer.get_vocab().items())).encode())


# ----------------------------------------------------------------------------------------------------------- comparing
def differences(before: dict, now: dict) -> list[str]:
    """List the differences between two identities, a line for each; empty where they are one run.

    Numbers are the same within 1e-6 of the largest of their list: statistics are computed anew on every start. A name
    (where data or weights lie) is no difference by itself. What only one of two versions of a library knows is none. A
    folder whose run is at another stage is compared in what all stages share.
    """
    is_other_version = before["versions"] != now["versions"]
    skipped = {"versions"}
    if _at(before, STAGE) != _at(now, STAGE) and None not in (_at(before, STAGE), _at(now, STAGE)):
        # Its data, too, may be another part of the run's: a VLM that rests learns from no texts.
        skipped |= {START, MODEL, DATA, ".".join(STAGE), *(f"training.{name}" for name in RATE_ARGUMENTS.values())}
    if IMAGE_BACKEND[1] not in before.get(IMAGE_BACKEND[0], {}):
        skipped.add(".".join(IMAGE_BACKEND))  # runs from before it was saved
    old, new = (dict(_leaves(identity, skipped)) for identity in (before, now))
    different = {
        name: (old.get(name, _ABSENT), new.get(name, _ABSENT))
        for name in [*old, *(name for name in new if name not in old)]
        if not _is_same(old.get(name, _ABSENT), new.get(name, _ABSENT))
    }
    if is_other_version:
        configs = ("model.", "processor.vlm_processor.", "training.")
        different = {n: v for n, v in different.items() if not (n.startswith(configs) and _ABSENT in v)}
    groups = {name.rpartition(".")[0] for name in different if not name.endswith(".name")}
    return [
        f"{name}: was {_shown(was)}, is {_shown(is_now)}"
        for name, (was, is_now) in different.items()
        if not name.endswith(".name") or name.rpartition(".")[0] in groups
    ]


def format_differences(lines: list[str]) -> str:
    """Write differences below each other, not too many of them."""
    more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "".join(f"\n  {line}" for line in [*lines[:_SHOWN], *more])


_ABSENT = "(nothing)"


def _leaves(value, skipped: set[str], path: str = "") -> Iterator[tuple[str, object]]:
    """Go through dotted name and value of all that is no map, nor a list of maps."""
    if path in skipped:
        return
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        items = enumerate(value, 1)
    else:
        yield path, value
        return
    for name, item in items:
        yield from _leaves(item, skipped, f"{path}.{name}" if path else str(name))


def _is_same(before, now) -> bool:
    if isinstance(before, float) or isinstance(now, float):
        before, now = [before], [now]
    if before == now or not (_are_numbers(before) and _are_numbers(now) and len(before) == len(now)):
        return before == now
    return bool(np.allclose(before, now, rtol=0.0, atol=1e-6 * np.abs([*before, *now]).max(), equal_nan=True))


def _are_numbers(values) -> bool:
    return isinstance(values, list) and all(type(value) in (int, float) for value in values)


def _at(identity: dict, path: tuple[str, str]):
    return identity[path[0]].get(path[1])


def _shown(value) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        value = f"[{', '.join(map(_shown, value))}]"
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# ------------------------------------------------------------------------------------------------------------- helpers
def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _spread(length: int) -> list[int]:
    return evenly_spread(length, _SAMPLES["rows"]).tolist() if length else []


def _without(value, names: tuple[str, ...]):
    """Leave out these entries of maps, however deep."""
    if isinstance(value, dict):
        return {name: _without(item, names) for name, item in value.items() if name not in names}
    return [_without(item, names) for item in value] if isinstance(value, list) else value


def _without_paths(value):
    """A row, with digests for its pictures; of one that is a file, its name and not its folder."""
    if isinstance(value, dict):
        if value.keys() == {"bytes", "path"}:
            is_here = value["bytes"] is not None
            return _digest(value["bytes"]) if is_here else str(value["path"]).rpartition("/")[2]
        return {name: _without_paths(item) for name, item in value.items()}
    return [_without_paths(item) for item in value] if isinstance(value, list) else value


def _as_json(value):
    """What JSON does not have: enumerations by their value, arrays as lists, sets in order, all else by its name."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)


__all__ = [
    "DOES_NOT_MATTER",
    "MATTERS",
    "describe",
    "describe_processing",
    "differences",
    "format_differences",
    "run_identity",
    "start_of",
    "weights_digest",
]
