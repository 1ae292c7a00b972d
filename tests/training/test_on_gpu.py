"""Training, evaluating and acting with what was trained, on a GPU as on a CPU."""

import copy
import re

import numpy as np
import pytest
import torch
from peft import get_peft_model
from transformers import pipeline

from kivla import KIVLACollator, KIVLAForActionPrediction, KIVLATrainer, KIVLATrainingArguments
from kivla.training.evaluation.gradient_conflict import gradient_conflict
from kivla.training.evaluation.text_nll import text_nll
from kivla.training.lora import lora_config
from kivla.training.new_token_start import aim_new_tokens
from tests.helpers.fixed_noise import FixedNoiseCollator
from tests.helpers.gpu import DEVICE, is_rehearsal, needs_gpu, whole_float32  # noqa: F401 (a fixture of every test)
from tests.helpers.policies import SHORT_RUN
from tests.helpers.tolerance import assert_close_relative
from tests.processing.test_processing_kivla import QUESTION, TRAJECTORIES, image, make, observation, policy

pytestmark = needs_gpu

VALUES = 1024  # roundings
TEXTS = ("a cup holds tea", "the table has four legs", "coffee is dark")
DEMONSTRATIONS = [
    {
        "images": [image(i)],
        "text": f"task {i % 3}",
        "state": np.array([0.1 * i, -0.2]),
        "actions": TRAJECTORIES[i],
        "action_is_pad": np.zeros(len(TRAJECTORIES[i]), bool),
        "episode_index": 0,
        "frame_index": i,
    }
    for i in range(12)
]
OBSERVATIONS = [observation(example) for example in DEMONSTRATIONS[:3]]


def with_vlm_data() -> list[dict]:
    """Demonstrations, a question, and plain texts."""
    documents = [{"document": make().document_tokens(text)} for text in TEXTS]
    others = [{**part, "episode_index": 1, "frame_index": i} for i, part in enumerate([QUESTION, *documents])]
    return [*DEMONSTRATIONS[:8], *others]


def make_trainer(folder, device=DEVICE, examples=DEMONSTRATIONS, lora=False, config=None, **arguments) -> KIVLATrainer:
    """Of a tiny PaliGemma. Where a test has several, each is made after the one before has run."""
    processor, model = make(), copy.deepcopy(policy())
    for name, value in (config or {}).items():
        setattr(model.config, name, value)
    if lora:
        torch.manual_seed(0)
        model = get_peft_model(model, lora_config(model, processor, rank=4))
    settings = {**SHORT_RUN, "max_steps": 3, "use_cpu": device == "cpu"}
    args = KIVLATrainingArguments(output_dir=str(folder), **{**settings, **arguments})
    data = {"train_dataset": examples, "eval_dataset": examples, "data_collator": FixedNoiseCollator(processor)}
    trainer = KIVLATrainer(model, args, processing_class=processor, **data)
    assert trainer.args.device.type == device
    return trainer


def weights(trainer: KIVLATrainer) -> torch.Tensor:
    """All that is trained, in one row."""
    return torch.cat([p.detach().cpu().double().flatten() for p in trainer.model.parameters() if p.requires_grad])


def log_of(trainer: KIVLATrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "grad_norm" in entry]


def assert_same_run(found: KIVLATrainer, expected: KIVLATrainer, start: torch.Tensor, share: float) -> None:
    """The same logs up to a share of each number, and weights that are apart by a share of the way that they went.

    (Adam moves a weight by as much for a gradient that is rounding as for any other: not all of them are the same.)
    """
    for entry, wanted in zip(log_of(found), log_of(expected)[-len(log_of(found)) :], strict=True):
        assert entry.keys() == wanted.keys()
        for name, value in wanted.items():
            assert entry[name] == pytest.approx(value, rel=share, abs=1e-6), f"{name} of step {wanted['step']}"
    way, error = (weights(expected) - start).norm().item(), (weights(found) - weights(expected)).norm().item()
    assert way > 0, "nothing was learned"
    assert error <= share * way, f"weights are off by {error / way:.1%} of the way that they went"


# ----------------------------------------------------------------------------------------------------------- training
RUNS = {
    "sgd": {"optim": "sgd", "learning_rate": 0.05},
    "adamw": {"gradient_accumulation_steps": 2, "max_grad_norm": 0.3, "weight_decay": 0.1, "ema_decay": 0.9},
    "rates": {"new_token_learning_rate": 5e-3, "projector_learning_rate": 2e-3, "expert_learning_rate": 3e-3},
    "muon": {"muon": True, "new_token_learning_rate": 5e-3, "weight_decay": 0.1},
    "candidates": {"action_token_softmax": "action_tokens", "optim": "sgd", "learning_rate": 0.05},
    "texts": {"text_loss_weight": 0.5, "anchor_weight": 0.5, "optim": "sgd", "learning_rate": 0.05},
    "delays": {"config": {"rtc_max_delay": 2}, "optim": "sgd", "learning_rate": 0.05},
    "lora": {"lora": True, "dataloader_num_workers": 1},
}


# A softmax does not see what is added to all of its keys: their gradient is zero on paper, and Adam makes a whole step
# of the rounding that is in its place.
KEY_BIASES = r"vision_tower.*\.k_proj\.bias$"


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_is_the_cpus(kind, tmp_path):
    examples = with_vlm_data() if kind == "texts" else DEMONSTRATIONS
    runs = []
    for device in ("cpu", DEVICE):
        trainer = make_trainer(tmp_path / f"{len(runs)}", device, examples, **RUNS[kind])
        start = weights(trainer)
        trainer.train()
        runs.append(trainer)
    assert_same_run(runs[1], runs[0], start, share=0.02)
    if runs[0].average is not None:
        for name, average in runs[0].average.weights.items():
            if re.search(KEY_BIASES, name):
                continue
            assert_close_relative(runs[1].average.weights[name], average, 2**14, what=f"average of {name}")


@pytest.mark.parametrize("options", [{"bf16": True}, {"fp16": True}], ids=["bf16", "fp16"])
def test_a_run_in_mixed_precision(options, tmp_path):
    """With gradient checkpointing, and what is saved acts."""
    if is_rehearsal and "fp16" in options:
        pytest.skip("float16 is trained on a GPU alone")
    exact = make_trainer(tmp_path / "exact")
    exact.train()
    trainer = make_trainer(tmp_path / "mixed", gradient_checkpointing=True, **options)
    trainer.train()
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    for entry, wanted in zip(log_of(trainer), log_of(exact), strict=True):
        for name in ("token_loss", "flow_loss"):
            assert entry[name] == pytest.approx(wanted[name], rel=0.1), f"{name} of step {wanted['step']}"
    trainer.save_model()
    trainer.evaluate()
    saved = KIVLAForActionPrediction.from_pretrained(tmp_path / "mixed")
    assert all(torch.equal(a, b.cpu()) for a, b in zip(saved.parameters(), trainer.model.parameters(), strict=True))


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "lora"])
def test_a_resumed_run_goes_on_as_if_nothing_had_been(lora, tmp_path, record_property):
    """In bfloat16, with gradient checkpointing and an average."""
    options = {"bf16": True, "gradient_checkpointing": True, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    options |= {"lora": lora, "ema_decay": 0.9}
    undisturbed = make_trainer(tmp_path / "run", **options)
    start = weights(undisturbed)
    undisturbed.train()
    resumed = make_trainer(tmp_path / "again", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert [entry["step"] for entry in log_of(resumed)][-3:] == [4, 5, 6]
    assert_same_run(resumed, undisturbed, start, share=0.05)
    record_property("same bit for bit", torch.equal(weights(resumed), weights(undisturbed)))


def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit_where_torch_is_deterministic(tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    options = {"gradient_checkpointing": True, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    runs = []
    torch.use_deterministic_algorithms(True)
    try:
        for name, checkpoint in (("run", None), ("again", str(tmp_path / "run" / "checkpoint-2"))):
            trainer = make_trainer(tmp_path / name, **options)
            trainer.train(resume_from_checkpoint=checkpoint)
            runs.append(trainer)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    names = "loss", "token_loss", "flow_loss", "grad_norm"
    last = [[entry[name] for name in names] for trainer in runs for entry in log_of(trainer)[-1:]]
    assert last[0] == last[1]


# --------------------------------------------------------------------------------------------------------- evaluating
@pytest.mark.parametrize("acts_by", ["flow", "tokens"])
def test_an_evaluation_is_the_cpus(acts_by, tmp_path):
    """Noise and times are drawn on the device: what depends on them is not compared."""
    config = {} if acts_by == "flow" else {"flow_loss_weight": 0.0}
    results = []
    for device in ("cpu", DEVICE):
        trainer = make_trainer(tmp_path / f"{len(results)}", device, with_vlm_data(), config=config)
        predictions = trainer.predict(trainer.eval_dataset)
        results.append((predictions, trainer.evaluate()))
    (expected, expected_metrics), (found, metrics) = results
    assert metrics.keys() == expected_metrics.keys()
    compared = ["eval_token_loss", "eval_text_loss", "eval_token_accuracy", "eval_answer_accuracy"]
    compared += ["eval_mean_action_mae", *(["eval_action_mae"] if acts_by == "tokens" else [])]
    for name in compared:
        assert metrics[name] == pytest.approx(expected_metrics[name], rel=1e-3), name
    assert np.array_equal(np.isnan(found.predictions), np.isnan(expected.predictions))
    assert_close_relative(np.nan_to_num(found.label_ids), np.nan_to_num(expected.label_ids), 4, what="demonstrated")
    if acts_by == "tokens":
        assert_close_relative(np.nan_to_num(found.predictions), np.nan_to_num(expected.predictions), VALUES)


def test_measurements_are_the_cpus():
    processor = make()
    batch = KIVLACollator(processor)(DEMONSTRATIONS[:3])
    batch |= {"noise": torch.randn(batch["actions"].shape), "timestep": torch.rand(3)}
    on_cpu = copy.deepcopy(policy())
    on_gpu = copy.deepcopy(on_cpu).to(DEVICE)
    here = {n: v.to(DEVICE) if torch.is_tensor(v) else v for n, v in batch.items()}
    found, expected = (
        gradient_conflict(model, given, processor.action_token_ids)
        for model, given in ((on_gpu, here), (on_cpu, batch))
    )
    assert found == pytest.approx(expected, rel=1e-3)
    scores = [text_nll(model, processor.tokenizer, TEXTS, text_length=8) for model in (on_gpu, on_cpu)]
    assert_close_relative(scores[0].nll, scores[1].nll, VALUES, dtype=torch.float32, what="nll")
    for model in (on_gpu, on_cpu):
        aim_new_tokens(model, [batch], processor.action_token_ids)
    rows = [model.get_output_embeddings().weight for model in (on_gpu, on_cpu)]
    assert_close_relative(*rows, 2**14, what="rows of new tokens")


# ------------------------------------------------------------------------------------------------------------- acting
def test_the_pipeline_gives_what_it_gives_on_a_cpu(tmp_path):
    copy.deepcopy(policy()).save_pretrained(tmp_path)
    make().save_pretrained(tmp_path)
    on_cpu, on_gpu = (pipeline("action-prediction", model=str(tmp_path), device=name) for name in ("cpu", DEVICE))
    assert on_gpu.model.device.type == DEVICE
    if not is_rehearsal:
        assert pipeline("action-prediction", model=str(tmp_path)).model.device.type == DEVICE, "a GPU is the default"
    calls: list[dict] = [{"seed": 3}, {"seed": 3, "num_steps": 2}, {"acts_by": "tokens"}, {"seed": 0, "batch_size": 2}]
    calls += [{"seed": 3, "reuse_prefix": True}] * 2
    for options in calls:
        for found, expected in zip(on_gpu(OBSERVATIONS, **options), on_cpu(OBSERVATIONS, **options), strict=True):
            assert_close_relative(found["actions"], expected["actions"], VALUES, what=f"actions with {options}")
    old = on_cpu(OBSERVATIONS[0], seed=1)["actions"]
    begun = {**OBSERVATIONS[0], "previous_actions": old[1:], "delay": 1}
    found, expected = (pipe(begun, seed=2, rtc="guidance")["actions"] for pipe in (on_gpu, on_cpu))
    assert_close_relative(found, expected, VALUES, what="actions that go on from old ones")
