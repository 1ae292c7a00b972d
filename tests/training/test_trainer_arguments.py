"""Every argument of the library's Trainer is honoured or refused by name, in the installed version of the library."""

import dataclasses
import inspect
from pathlib import Path

import pytest
import torch
from accelerate import ParallelismConfig
from transformers import Trainer, TrainingArguments

from kivla import KIVLATrainer, KIVLATrainingArguments
from kivla.training.argument_rules import (
    DIFFERENT,
    DIFFERENT_PARAMETERS,
    REFUSED,
    REFUSED_PARAMETERS,
    REFUSED_WITH_MUON,
    as_markdown,
)
from tests.helpers.policies import CHUNK, dataset, losses, make_policy, make_trainer

DOCS = Path(__file__).parents[2] / "docs" / "training_arguments.md"

# A value of each that is refused.
WRONG = {
    "label_smoothing_factor": 0.1,
    "average_tokens_across_devices": False,
    "remove_unused_columns": True,
    "label_names": ["labels", "actions"],
    "use_cache": True,
    "bf16_full_eval": True,
    "fp16_full_eval": True,
    "use_liger_kernel": True,
    "torch_compile": True,
    "train_sampling_strategy": "group_by_length",
    "include_for_metrics": ["inputs"],
    "batch_eval_metrics": True,
    "eval_do_concat_batches": False,
    "eval_use_gather_object": True,
    "enable_jit_checkpoint": True,
    "save_on_each_node": True,
    "parallelism_config": ParallelismConfig(),
    "accelerator_config.split_batches": True,
    "accelerator_config.dispatch_batches": True,
    "ddp_find_unused_parameters": True,
    "ddp_static_graph": True,
}
# What the library does with it needs nothing of ours: a value that a run of two steps takes.
AS_THE_LIBRARYS = {
    "activation_checkpointing": True,
    "activation_checkpointing_kwargs": {"use_reentrant": False},
    "adam_beta1": 0.8,
    "adam_epsilon": 1e-6,
    "accelerator_config": {"non_blocking": True, "even_batches": False},
    "bf16": True,
    "data_seed": 3,
    "dataloader_drop_last": True,
    "dataloader_in_order": False,
    "dataloader_multiprocessing_context": "fork",
    "dataloader_num_workers": 1,
    "dataloader_persistent_workers": True,
    "dataloader_pin_memory": False,
    "dataloader_prefetch_factor": 3,
    "ddp_broadcast_buffers": False,
    "ddp_bucket_cap_mb": 30,
    "debug": "underflow_overflow",
    "disable_tqdm": False,
    "do_eval": True,
    "do_predict": True,
    "do_train": True,
    "eval_delay": 1,
    "eval_on_start": True,
    "eval_steps": 2,
    "eval_strategy": "steps",
    "full_determinism": True,
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "greater_is_better": False,
    "ignore_data_skip": True,
    "include_num_input_tokens_seen": "non_padding",
    "length_column_name": "size",
    "liger_kernel_config": {"rope": True},
    "load_best_model_at_end": True,
    "local_rank": -1,
    "log_level": "error",
    "log_level_replica": "error",
    "log_on_each_node": False,
    "logging_first_step": True,
    "logging_steps": 2,
    "logging_strategy": "epoch",
    "lr_scheduler_kwargs": {"num_cycles": 0.4},
    "lr_scheduler_type": "cosine",
    "max_steps": 2,
    "neftune_noise_alpha": 5.0,
    "num_train_epochs": 2.0,
    "optim": "adafactor",
    "optim_args": "clip_threshold=0.9",
    "optim_target_modules": None,
    "per_device_eval_batch_size": 5,
    "per_device_train_batch_size": 3,
    "project": "robots",
    "report_to": "none",
    "restore_callback_states_from_checkpoint": True,
    "resume_from_checkpoint": None,
    "run_name": "mine",
    "save_steps": 2,
    "save_strategy": "best",
    "save_total_limit": 1,
    "skip_memory_metrics": False,
    "torch_empty_cache_steps": 1,
    "use_cpu": True,
    "warmup_steps": 1,
}
# What cannot be tried on one CPU and without the Hub; other tests have several devices and a stand-in for the Hub.
ELSEWHERE = {
    *("ddp_backend", "ddp_timeout", "deepspeed", "fsdp", "fsdp_config", "tf32"),
    *("hub_always_push", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy", "hub_token"),
    *("output_dir", "push_to_hub", "trackio_bucket_id", "trackio_space_id", "trackio_static_space_id"),
    *("torch_compile_backend", "torch_compile_mode"),  # they switch on torch_compile
}
TOGETHER = {
    "load_best_model_at_end": {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1},
    "save_strategy": {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss"},
    "eval_delay": {"eval_strategy": "steps", "eval_steps": 1},
    "save_total_limit": {"save_strategy": "steps", "save_steps": 1},
    "save_steps": {"save_strategy": "steps"},
    "lr_scheduler_kwargs": {"lr_scheduler_type": "cosine"},
    "optim_args": {"optim": "adafactor"},
    "dataloader_in_order": {"dataloader_num_workers": 1},
    "dataloader_multiprocessing_context": {"dataloader_num_workers": 1},
    "dataloader_persistent_workers": {"dataloader_num_workers": 1},
    "dataloader_prefetch_factor": {"dataloader_num_workers": 1},
    "activation_checkpointing_kwargs": {"activation_checkpointing": True},
    "gradient_checkpointing_kwargs": {"gradient_checkpointing": True},
}
FIELDS = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]


def arguments(folder, **given) -> KIVLATrainingArguments:
    return KIVLATrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", **given)


def test_every_field_of_the_installed_version_was_looked_at():
    known = {*REFUSED, *DIFFERENT, *AS_THE_LIBRARYS, *ELSEWHERE}
    new = sorted(set(FIELDS) - known)
    assert not new, f"transformers has new arguments {new}: try each, and enter it in argument_rules or in this test"
    ours = {field.name for field in dataclasses.fields(KIVLATrainingArguments)}
    stale = sorted({name.split(".")[0] for name in (*REFUSED, *REFUSED_WITH_MUON, *DIFFERENT)} - ours)
    assert not stale, f"argument_rules names {stale}, which no argument is called"


def test_every_parameter_of_the_installed_version_was_looked_at():
    named = {name for names in (*REFUSED_PARAMETERS, *DIFFERENT_PARAMETERS) for name in names.split(", ")}
    new = set(inspect.signature(Trainer.__init__).parameters) - named - {"self", "model", "model_init", "callbacks"}
    assert not new, f"Trainer has new parameters {sorted(new)}: honour or refuse them"


def test_the_page_is_the_table():
    assert DOCS.read_text().endswith(as_markdown()), (
        "docs/training_arguments.md differs from argument_rules.as_markdown(): paste what that returns"
    )


@pytest.mark.parametrize("name", REFUSED)
def test_refused_arguments_are_named(tmp_path, name):
    field, *rest = name.split(".")
    value = WRONG[name]
    with pytest.raises(ValueError, match=rf"(?s)^{name}=.* is not possible with KIVLATrainer. [A-Za-z]"):
        arguments(tmp_path, **{field: {rest[0]: value} if rest else value})


@pytest.mark.parametrize("given", [{"torch_compile_backend": "eager"}, {"torch_compile_mode": "max-autotune"}], ids=str)
def test_what_switches_on_compiling_is_refused_with_it(tmp_path, given):
    with pytest.raises(ValueError, match=r"^torch_compile=True is not possible with KIVLATrainer"):
        arguments(tmp_path, **given)


def test_compiling_that_accelerate_is_told_of_is_refused_too(tmp_path, monkeypatch, policy):
    """As `accelerate launch --dynamo_backend` tells it."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "eager")
    with pytest.raises(ValueError, match=r"dynamo_backend=EAGER.*compile_expert"):
        make_trainer(tmp_path, *policy)


@pytest.mark.parametrize(
    ("name", "value"),
    [("optim", "sgd"), ("optim_args", "a=1"), ("optim_target_modules", "all-linear")],
)
def test_arguments_that_are_refused_with_muon(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"^{name}=.* with muon=True is not possible"):
        arguments(tmp_path, muon=True, **{name: value})
    arguments(tmp_path, **{name: value})


def test_half_precision_that_a_cpu_does_not_have(tmp_path):
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        arguments(tmp_path, fp16=True)


@pytest.mark.parametrize("steps", [0, 1.5])
def test_euler_steps_are_a_whole_number(tmp_path, steps):
    with pytest.raises(ValueError, match="eval_num_steps is a number of Euler steps"):
        arguments(tmp_path, eval_num_steps=steps)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return make_policy(tmp_path_factory.mktemp("policy"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FIELDS if name in AS_THE_LIBRARYS])
def test_a_run_takes_the_argument(tmp_path, name):
    value = AS_THE_LIBRARYS[name]
    given = {"max_steps": 2, "eval_num_steps": 1, **TOGETHER.get(name, {}), name: value}
    trainer = make_trainer(tmp_path, **given)
    trainer.eval_dataset = torch.utils.data.Subset(dataset(), range(4))
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        trainer.train()
    finally:
        torch.use_deterministic_algorithms(deterministic)
    assert trainer.state.global_step == 2, f"{name}={value!r} ended the run after {trainer.state.global_step} steps"


@pytest.mark.parametrize("name", [*REFUSED_PARAMETERS])
def test_refused_parameters_are_named(tmp_path, policy, name):
    with pytest.raises(ValueError, match=f"^{name} is not possible with KIVLATrainer. [A-Za-z]"):
        KIVLATrainer(policy[0], arguments(tmp_path), processing_class=policy[1], **{name: lambda *values: values[0]})


def test_an_optimiser_of_ones_own(tmp_path, policy):
    model, processor = policy
    mine = torch.optim.SGD(model.parameters(), lr=0.1)
    for given in ({"muon": True}, {"expert_learning_rate": 1e-3}, {"new_token_learning_rate": 1e-3}):
        with pytest.raises(ValueError, match=f"{next(iter(given))} is about the one that the trainer would make"):
            KIVLATrainer(model, arguments(tmp_path, **given), processing_class=processor, optimizers=(mine, None))
    trainer = KIVLATrainer(model, arguments(tmp_path), processing_class=processor, optimizers=(mine, None))
    assert trainer.create_optimizer() is mine
    made = (torch.optim.SGD, {"lr": 0.1})
    with pytest.raises(ValueError, match="optimizer_cls_and_kwargs and muon"):
        KIVLATrainer(model, arguments(tmp_path, muon=True), processing_class=processor, optimizer_cls_and_kwargs=made)
    args = arguments(tmp_path, expert_learning_rate=0.3)
    optimizer = KIVLATrainer(model, args, processing_class=processor, optimizer_cls_and_kwargs=made).create_optimizer()
    assert {group["lr"] for group in optimizer.param_groups} == {0.1, 0.3}


def test_muon_takes_decay_betas_and_epsilon(tmp_path, policy):
    model, processor = policy
    args = arguments(tmp_path, muon=True, weight_decay=0.5, adam_beta1=0.8, adam_beta2=0.7, adam_epsilon=1e-4)
    optimizer = KIVLATrainer(model, args, processing_class=processor).create_optimizer()
    assert {group["betas"] for group in optimizer.adamw.param_groups} == {(0.8, 0.7)}
    assert {group["eps"] for group in optimizer.adamw.param_groups} == {1e-4}
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.5 if parameter.ndim > 1 else 0.0), name
    assert arguments(tmp_path, muon=True).adam_beta2 == 0.99
    assert arguments(tmp_path).adam_beta2 == 0.999


def test_model_and_processor_of_another_kind(tmp_path, policy):
    model, processor = policy
    with pytest.raises(TypeError, match="processing_class must be the policy's KIVLAProcessor, got Tok"):
        KIVLATrainer(model, arguments(tmp_path), processing_class=processor.tokenizer)
    with pytest.raises(TypeError, match=r"processing_class must be .* got NoneType"):
        KIVLATrainer(model, arguments(tmp_path))
    with pytest.raises(TypeError, match="model must be a KIVLAForActionPrediction, got PaliGemma"):
        KIVLATrainer(model.vlm, arguments(tmp_path), processing_class=processor)


def test_plain_training_arguments_give_the_same_run(tmp_path):
    ours = make_trainer(tmp_path / "ours", max_steps=2)
    ours.train()
    given = {f: getattr(ours.args, f) for f in FIELDS if f not in ("remove_unused_columns", "output_dir", "optim_args")}
    model, processor = make_policy(tmp_path / "vlm")
    args = TrainingArguments(output_dir=str(tmp_path / "run"), **given)
    plain = KIVLATrainer(model, args, train_dataset=dataset(), eval_dataset=dataset(), processing_class=processor)
    plain.train()
    assert losses(plain) == losses(ours)
    assert plain.args.output_dir == str(tmp_path / "run")

    @dataclasses.dataclass
    class Others(TrainingArguments):
        beta: float = 0.1

    with pytest.raises(TypeError, match="args is a Others, which belongs to another trainer"):
        KIVLATrainer(model, Others(output_dir=str(tmp_path)), processing_class=processor)


def test_positional_arguments_come_in_the_librarys_order(tmp_path, policy):
    collator = len
    trainer = KIVLATrainer(policy[0], arguments(tmp_path), collator, dataset(), dataset(), policy[1])
    assert trainer.data_collator is collator and trainer.train_dataset is trainer.eval_dataset is dataset()


def test_model_init(tmp_path):
    """A search over hyper-parameters makes a new model for every trial."""
    folder = tmp_path / "vlm"
    _, processor = make_policy(folder)
    args = arguments(tmp_path / "run", max_steps=2, logging_steps=1, save_strategy="no", per_device_train_batch_size=2)
    trainer = KIVLATrainer(
        None, args, train_dataset=dataset(), processing_class=processor, model_init=lambda: make_policy(folder)[0]
    )
    rows = trainer.model.get_input_embeddings().weight.shape[0]
    assert rows >= processor.vocab_size, "the model has no room for the action tokens"
    first = trainer.model
    trainer.train()
    once = losses(trainer)
    trainer.train()
    assert trainer.model is not first and losses(trainer) == once


def test_arguments_that_are_changed_later_are_checked_when_training_begins(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.args.label_smoothing_factor = 0.1
    with pytest.raises(ValueError, match=r"label_smoothing_factor=0.1 is not possible"):
        trainer.train()


def test_several_gpus_in_one_process(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.args._n_gpu = 4
    with pytest.raises(ValueError, match=r"sees 4 GPUs.*accelerate launch.*CUDA_VISIBLE_DEVICES=0"):
        trainer.train()


def test_dropping_the_only_batch(tmp_path):
    with pytest.raises(ValueError, match="dataloader_drop_last=True leaves nothing to train on: there are 182"):
        make_trainer(tmp_path, dataloader_drop_last=True, per_device_train_batch_size=183)


def test_the_best_of_several_evaluation_sets(tmp_path, policy):
    sets = {"near": dataset(), "far": dataset()}
    steps = {"eval_strategy": "steps", "save_strategy": "steps", "load_best_model_at_end": True}
    given = {"eval_dataset": sets, "processing_class": policy[1]}
    with pytest.raises(ValueError, match="'loss' is a metric of no evaluation set: there are near, far"):
        KIVLATrainer(policy[0], arguments(tmp_path, **steps), **given)
    KIVLATrainer(policy[0], arguments(tmp_path, metric_for_best_model="eval_far_loss", **steps), **given)


@pytest.mark.slow
def test_running_out_of_memory_with_smaller_batches(tmp_path, monkeypatch):
    """`auto_find_batch_size` starts again with a smaller batch."""
    trainer = make_trainer(tmp_path, auto_find_batch_size=True, per_device_train_batch_size=8, max_steps=2)
    compute_loss, sizes = trainer.compute_loss, []

    def limited(model, inputs, **kwargs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 4:
            raise RuntimeError("CUDA out of memory.")
        return compute_loss(model, inputs, **kwargs)

    monkeypatch.setattr(trainer, "compute_loss", limited)
    trainer.train()
    assert trainer.state.global_step == 2 and sizes[0] == 8 and sizes[-1] <= 4, sizes


@pytest.mark.parametrize("short", [3, CHUNK])
def test_steps_that_no_example_has(tmp_path, caplog, short):
    """A stream cannot tell its chunk size: what was never learned is said."""

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            for i in range(16):
                example = dict(dataset()[i])
                example |= {name: example[name][:short] for name in ("actions", "action_is_pad")}
                yield example

    model, processor = make_policy(tmp_path / "vlm")
    args = arguments(tmp_path, max_steps=2, per_device_train_batch_size=2, save_strategy="no")
    with caplog.at_level("WARNING"):
        KIVLATrainer(model, args, train_dataset=Stream(), processing_class=processor).train()
    said = [message for message in caplog.messages if "never learned" in message]
    assert len(said) == (short < CHUNK), caplog.messages
    if said:
        assert "None of 4 examples had more than 3 real actions, but the policy acts in chunks of 6" in said[0]


def test_the_module_names_nothing_twice():
    assert not REFUSED.keys() & DIFFERENT.keys(), "an argument is refused, or means something else"
