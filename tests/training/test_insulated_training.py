"""Insulated, the VLM's training is that of training without an expert; and trained weights can take small steps."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from kivla import KIVLAForActionPrediction
from kivla.training import trained_dtype
from kivla.training.trained_dtype import check_mixed_precision
from tests.helpers.fixed_noise import FixedNoiseCollator
from tests.helpers.policies import SIZES, awaken, make_policy, make_trainer

EXPERT = {"hidden_size": 32, "intermediate_size": 64}


def backbone_after(folder, with_expert: bool, dtype: torch.dtype, **settings) -> dict[str, torch.Tensor]:
    """The VLM after training, with an expert whose gradient is larger than the VLM's, or with one at rest."""
    model, processor = make_policy(folder / "vlm")
    awaken(model)
    model.to(dtype)
    model.expert.requires_grad_(with_expert)
    given = {"max_steps": 30, "lr_scheduler_type": "constant", "weight_decay": 0.1, "max_grad_norm": 0.5, **settings}
    if not with_expert:
        given.pop("expert_learning_rate", None)
    trainer = make_trainer(folder, model, processor, collator=FixedNoiseCollator, **given)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["backbone_grad_norm"] > given["max_grad_norm"] or not given["max_grad_norm"], "nothing is clipped"
    if with_expert:
        assert first["expert_grad_norm"] > 2 * first["backbone_grad_norm"], "the expert could not disturb the VLM"
    return {name: weight.detach().clone() for name, weight in model.vlm.named_parameters()}


def largest_difference(ours: dict, theirs: dict) -> float:
    """Of any tensor, relative to its norm."""
    return max(float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs)


SETTINGS = {
    "AdamW": {},
    "AdamW, accumulated": {"max_steps": 6, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    "without clipping": {"max_steps": 6, "max_grad_norm": 0.0},
    "learning rates of their own": {"max_steps": 6, "expert_learning_rate": 1e-2, "new_token_learning_rate": 5e-3},
    "Muon": {"max_steps": 6, "muon": True},
    "Adafactor": {"max_steps": 6, "optim": "adafactor"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_expert_does_not_disturb_the_vlm(tmp_path, name):
    """In float64 the two trainings differ by rounding alone: over thirty steps, over six with other settings."""
    with_it, without = (
        backbone_after(tmp_path / str(trained), trained, torch.float64, **SETTINGS[name]) for trained in (True, False)
    )
    difference = largest_difference(with_it, without)
    assert difference < 1e-9, f"the VLM moved otherwise, by {difference:.1e} of a tensor's norm"


def test_one_norm_for_both_parts_does_disturb_it(tmp_path):
    """What `clip_per_part=False`, the library's rule, does: the test above can fail."""
    settings = {"clip_per_part": False, "max_steps": 6}
    with_it, without = (
        backbone_after(tmp_path / str(trained), trained, torch.float64, **settings) for trained in (True, False)
    )
    assert largest_difference(with_it, without) > 1e-5


def test_scaled_losses(tmp_path):
    """float16's loss scaling: norms and steps are those of the gradients themselves."""
    runs = []
    for scale in (None, 2.0**12):
        model, processor = make_policy(tmp_path / "vlm")
        trainer = make_trainer(tmp_path, model, processor, collator=FixedNoiseCollator, max_steps=3, max_grad_norm=0.5)
        if scale is not None:  # a CPU has none of its own; autocast stays off
            trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            trainer.accelerator.native_amp = True
            trainer.accelerator.state._mixed_precision = "fp16"
            trainer.accelerator.autocast_handler = None
            trainer.accelerator.prepare_model = lambda model, **options: model
        trainer.train()
        runs.append(trainer)
    ours, theirs = (run.state.log_history[:3] for run in runs)
    for name in ("grad_norm", "backbone_grad_norm", "expert_grad_norm", "loss"):
        assert [e[name] for e in theirs] == pytest.approx([e[name] for e in ours], rel=1e-4), name


@pytest.fixture(scope="module")
def stored_in_bfloat16(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vlm")
    _, processor = make_policy(folder)
    AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder, processor


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_type_of_trained_weights(stored_in_bfloat16, tmp_path, caplog, dtype):
    """A policy to be trained has float32 weights, whatever the files are; another type is honoured, and warned of."""
    folder, processor = stored_in_bfloat16
    given = {} if dtype is None else {"dtype": dtype}
    model = KIVLAForActionPrediction.from_vlm(folder, expert_config=EXPERT, **SIZES, **given)
    wanted = dtype or torch.float32
    assert {weight.dtype for weight in model.parameters()} == {wanted}
    with caplog.at_level("WARNING"):
        trainer = make_trainer(tmp_path, model, processor, max_steps=1)
    warned = [message for message in caplog.messages if "trained weights are bfloat16" in message]
    assert len(warned) == (wanted == torch.bfloat16), caplog.messages
    trainer.train()
    moments = {state["exp_avg"].dtype for state in trainer.optimizer.state.values()}
    assert moments == {wanted}
    model.save_pretrained(tmp_path / "saved")
    assert KIVLAForActionPrediction.from_pretrained(tmp_path / "saved").dtype == wanted, "a saved policy keeps its type"


def test_mixed_precision_that_the_library_cannot_do_is_refused(monkeypatch):
    monkeypatch.setattr(trained_dtype.transformers, "__version__", "5.17.0")
    with pytest.raises(
        ValueError, match=r"SmolVLM cannot .* \(bf16\) with transformers 5.17.0. Install transformers 5.18"
    ):
        check_mixed_precision("smolvlm", "bf16")
    check_mixed_precision("smolvlm", "no")
    check_mixed_precision("paligemma", "bf16")
    monkeypatch.setattr(trained_dtype.transformers, "__version__", "5.18.0")
    check_mixed_precision("smolvlm", "bf16")


def test_frozen_weights_may_have_any_type(stored_in_bfloat16, tmp_path, caplog):
    folder, processor = stored_in_bfloat16
    model = KIVLAForActionPrediction.from_vlm(folder, expert_config=EXPERT, dtype=torch.bfloat16, **SIZES)
    model.vlm.requires_grad_(False)
    model.expert.float()
    with caplog.at_level("WARNING"):
        make_trainer(tmp_path, model, processor)
    assert "trained weights" not in caplog.text
