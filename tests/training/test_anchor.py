"""Anchoring: the VLM's predictions of plain text are held to those of the untouched VLM."""

import pytest
import torch
from peft import get_peft_model
from torch.distributions import Categorical, kl_divergence

from kivla import KIVLACollator, KIVLAForActionPrediction
from kivla.cli import main
from kivla.training.anchor import Anchor, kl_to_reference
from kivla.training.lora import lora_config
from tests.commands.test_train_recipes import command, sources
from tests.helpers.policies import dataset, make_policy
from tests.training.test_text_replay import TEXTS, gradients, make_trainer, steps

__all__ = ["sources"]  # a fixture


def documents(processor) -> list[dict]:
    return [{"document": processor.document_tokens(text)} for text in TEXTS["text"]]


def moved(model) -> None:
    """Another VLM than before."""
    with torch.no_grad():
        for parameter in model.vlm.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def test_the_divergence_is_torchs():
    logits, reference = torch.randn(5, 9), torch.randn(5, 7)
    tokens = torch.tensor([0, 1, 2, 5])
    ours, theirs = (Categorical(logits=scores[:, tokens]) for scores in (logits, reference))
    torch.testing.assert_close(kl_to_reference(logits, reference, tokens), kl_divergence(theirs, ours))
    logits[:, [3, 4, 6, 7, 8]] += 100
    torch.testing.assert_close(kl_to_reference(logits, reference, tokens), kl_divergence(theirs, ours))


def test_it_compares_documents_with_the_vlm_as_it_was(tmp_path):
    trainer = make_trainer(tmp_path, anchor_weight=1.0, text_loss_weight=0.0)
    model, processor = trainer.model, trainer.processing_class
    collate = KIVLACollator(processor)
    before = {n: p.clone() for n, p in model.vlm.named_parameters()}
    batch = collate([dataset()[0], *documents(processor)])
    at_start = gradients(trainer, [batch])
    rest = gradients(trainer, [collate([dataset()[0]])])
    for name, gradient in rest.items():
        assert (at_start[name] - gradient).norm() <= 1e-6 * gradient.norm() + 1e-9, f"{name}: nothing to hold back yet"
    moved(model)
    # Written out: a mean over the tokens of the documents, of what the untouched VLM knew.
    texts = collate(documents(processor))
    inputs = {n: v for n, v in texts.items() if n in ("input_ids", "attention_mask", "token_type_ids")}
    learned = texts["labels"][:, 1:] != -100
    with torch.no_grad():
        now = model.vlm(**inputs).logits[:, :-1][learned]
        kept = {n: p.clone() for n, p in model.vlm.named_parameters()}
        model.vlm.load_state_dict(before, strict=False)
        then = model.vlm(**inputs).logits[:, :-1][learned]
        model.vlm.load_state_dict(kept, strict=False)
    known = [i for i in range(processor.vocab_size) if i not in set(processor.action_token_ids.tolist())]
    expected = kl_to_reference(now, then, torch.tensor(known)).mean()
    count = trainer._get_num_items_in_batch([texts], torch.device("cpu"))
    loss = trainer.compute_loss(model, texts, num_items_in_batch=count)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0, check_dtype=False)
    # However the step is split; and the expert has no part in it.
    whole = gradients(trainer, [collate([dataset()[0], *documents(processor)])])
    split = gradients(trainer, [collate([dataset()[0]]), texts])
    for name, gradient in whole.items():
        assert (gradient - split[name]).norm() <= 1e-6 * gradient.norm() + 1e-9, name
    gradients(trainer, [texts])
    assert all(p.grad is None or not p.grad.any() for p in model.expert.parameters())


def test_with_lora_the_untouched_vlm_is_the_policy_without_adapters(tmp_path):
    model, processor = make_policy(tmp_path)
    model.resize_token_embeddings(processor.vocab_size)
    batch = KIVLACollator(processor)(documents(processor))
    ids = torch.as_tensor(processor.action_token_ids)
    expected = Anchor(model, ids, processor.vocab_size).predictions(batch)
    model = get_peft_model(model, lora_config(model, processor, rank=2)).train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    training = [module.training for module in model.modules()]
    anchor = Anchor(model, ids, processor.vocab_size)
    torch.testing.assert_close(anchor.predictions(batch), expected)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trained
    assert [module.training for module in model.modules()] == training
    assert anchor._vlm is model.get_base_model().vlm, "no copy"


def test_anchored_texts_stay_closer_to_the_untouched_vlm(tmp_path):
    divergences = {}
    for weight in (1e-9, 3.0):
        settings = {"max_steps": 25, "anchor_weight": weight, "text_loss_weight": 0.0, "learning_rate": 3e-3}
        trainer = make_trainer(tmp_path / str(weight), num_examples=100, **settings)
        log = [entry["anchor_loss"] for entry in steps(trainer) if "anchor_loss" in entry]  # steps with texts
        divergences[weight] = sum(log[-10:])
    assert divergences[3.0] < 0.7 * divergences[1e-9], divergences


def test_a_later_stage_is_anchored_to_the_vlm_that_the_run_began_with(sources, tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text(
        "description: tokens, then both\nstages:\n  - {trains: [backbone], flow_loss_weight: 0}\n"
        "  - {trains: [backbone, expert]}\n"
    )
    TEXTS.to_json(tmp_path / "texts.jsonl")
    given = []
    monkeypatch.setattr(
        "kivla.training.trainer.Anchor",
        lambda *args: given.append(args) or Anchor(*args),
    )
    options = {"text_dataset": tmp_path / "texts.jsonl", "text_share": 0.5, "anchor_weight": 0.5, "max_steps": 4}
    options |= {"recipe": tmp_path / "recipe.yaml", "vlm_dataset": None, "per_device_train_batch_size": 4}
    main(command(sources, tmp_path / "policy", **options))
    (*_, first), (*_, second) = given
    assert first is None, "the first stage's own VLM is untouched"
    untouched = KIVLAForActionPrediction.from_vlm(sources / "vlm", chunk_size=6).vlm
    for name, weight in untouched.named_parameters():
        assert torch.equal(second.get_parameter(name), weight), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anchor_weight": 0.5}, "--anchor_weight cannot apply: there is no --text_dataset"),
        ({"anchor_weight": -0.5, "text_dataset": "x"}, "anchor_weight must be a number that is not negative"),
        ({"text_loss_weight": 0, "text_dataset": "x"}, "text_loss_weight = 0 leaves nothing to learn from texts"),
    ],
)
def test_what_cannot_apply_is_refused_in_a_line(sources, tmp_path, options, message, capsys):
    with pytest.raises(SystemExit) as error:
        main(command(sources, tmp_path, **options))
    assert error.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_model_that_is_made_again_has_no_untouched_vlm(tmp_path):
    trainer = make_trainer(tmp_path)
    with pytest.raises(ValueError, match="model_init makes a model again and again"):
        type(trainer)(
            args=make_trainer(tmp_path, anchor_weight=1.0).args,
            model_init=lambda: trainer.model,
            train_dataset=dataset(),
            processing_class=trainer.processing_class,
        )
