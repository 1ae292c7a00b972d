"""Plain text among the training data: a loss of its own, exact however a step is split, and known to its run."""

import json

import datasets
import pytest
import torch
from torch.nn.functional import cross_entropy

from kivla import KIVLACollator, KIVLATrainer, KIVLATrainingArguments
from kivla.cli import main
from kivla.training.data.mixture import Mixture
from kivla.training.data.vlm.texts import TextDataset
from kivla.training.run_identity import describe
from tests.commands.test_train_recipes import command, sources
from tests.helpers.policies import SHORT_RUN, dataset, make_policy

__all__ = ["sources"]  # a fixture

TEXTS = datasets.Dataset.from_dict({"text": ["A cup holds tea.", "Coffee is dark. " * 20, "The table has four legs."]})
QUESTION = {"images": [], "text": "is it red?", "response": "no"}


def make_trainer(folder, num_examples=12, **arguments) -> KIVLATrainer:
    model, processor = make_policy(folder / "vlm")
    model.double()  # the loss itself is in float32
    settings = {**SHORT_RUN, "max_steps": 3, "use_cpu": True, "dataloader_pin_memory": False}
    args = KIVLATrainingArguments(output_dir=str(folder / "run"), **{**settings, **arguments})
    texts = TextDataset(TEXTS, processor, length=24)
    mixture = Mixture([dataset(), texts, [QUESTION]], [2, 2, 1], num_examples, seed=2)
    return KIVLATrainer(model, args, train_dataset=mixture, processing_class=processor)


def steps(trainer: KIVLATrainer) -> list[dict]:
    trainer.train()
    return [entry for entry in trainer.state.log_history if "grad_norm" in entry]


def gradients(trainer: KIVLATrainer, batches: list[dict]) -> dict[str, torch.Tensor]:
    """Of the VLM, from one optimiser step of these micro-batches."""
    trainer.model.train().zero_grad()
    torch.manual_seed(0)
    count = trainer._get_num_items_in_batch(batches, torch.device("cpu"))
    for batch in batches:
        trainer.compute_loss(trainer.model, batch, num_items_in_batch=count).backward()
    return {n: p.grad.clone() for n, p in trainer.model.vlm.named_parameters() if p.grad is not None}


def test_text_is_a_term_of_its_own(tmp_path):
    """Its gradient adds to that of the rest, which it does not dilute, however long the text is."""
    trainer = make_trainer(tmp_path, text_loss_weight=0.5)
    model, processor = trainer.model, trainer.processing_class
    documents = [{"document": processor.document_tokens(text)} for text in (TEXTS[0]["text"], TEXTS[1]["text"])]
    rest = [dataset()[0], dataset()[70], QUESTION]
    collate = KIVLACollator(processor)
    alone = gradients(trainer, [collate(rest)])
    text = gradients(trainer, [collate(documents)])
    together = gradients(trainer, [collate([rest[0], documents[0], rest[1], documents[1], rest[2]])])
    for name, gradient in together.items():
        expected = alone.get(name, 0) + text.get(name, 0)
        assert (gradient - expected).norm() <= 1e-6 * expected.norm() + 1e-9, name
    # And 0.5 times the mean cross-entropy of the documents' tokens, written out.
    model.zero_grad()
    total, count = 0.0, 0
    for document in documents:
        ids = torch.tensor([document["document"]])
        given = collate([document])
        inputs = {n: v for n, v in given.items() if n not in ("labels", "expert_attention_mask")}
        total = total + cross_entropy(model.vlm(**inputs).logits[0, :-1], ids[0, 1:], reduction="sum")
        count += ids.shape[1] - 1
    (0.5 * total / count).backward()
    for name, parameter in model.vlm.named_parameters():
        if parameter.grad is not None:
            assert (parameter.grad - text[name]).norm() <= 1e-6 * text[name].norm() + 1e-9, name


def test_splitting_a_step_changes_nothing(tmp_path):
    """Also where one micro-batch is documents alone, and another has none."""
    trainer = make_trainer(tmp_path)
    processor, collate = trainer.processing_class, KIVLACollator(trainer.processing_class)
    documents = [{"document": processor.document_tokens(text)} for text in TEXTS["text"]]
    whole = gradients(trainer, [collate([dataset()[0], *documents, QUESTION])])
    split = gradients(trainer, [collate([dataset()[0]]), collate(documents), collate([QUESTION])])
    for name, gradient in whole.items():
        assert (gradient - split[name]).norm() <= 1e-6 * gradient.norm() + 1e-9, name


def test_the_log_says_both_losses(tmp_path):
    trainer = make_trainer(tmp_path, text_loss_weight=2.0)
    for entry in steps(trainer):
        terms = entry.get("token_loss", 0) + entry.get("flow_loss", 0) + 2.0 * entry.get("text_loss", 0)
        assert entry["loss"] == pytest.approx(terms, rel=1e-4)
    assert any("text_loss" in entry and "token_loss" in entry for entry in trainer.state.log_history)


def test_an_evaluation_has_the_loss_of_texts_apart(tmp_path):
    trainer = make_trainer(tmp_path)
    texts = TextDataset(TEXTS, trainer.processing_class, length=1000)
    metrics = trainer.evaluate([texts[0], texts[2]])
    assert metrics["eval_loss"] == metrics["eval_text_loss"] > 1 and "eval_answer_accuracy" not in metrics
    mixed = trainer.evaluate([dataset()[0], texts[0], QUESTION, texts[2]])
    assert mixed["eval_text_loss"] == pytest.approx(metrics["eval_text_loss"], rel=1e-4)
    assert {"eval_action_mae", "eval_answer_accuracy"} <= set(mixed)
    without = trainer.evaluate([dataset()[0], QUESTION])
    assert mixed["eval_token_loss"] == pytest.approx(without["eval_token_loss"], rel=1e-4)


def test_a_run_knows_its_texts(tmp_path):
    _, processor = make_policy(tmp_path)
    texts = TextDataset(TEXTS, processor, length=24)
    assert describe(texts) == describe(TextDataset(TEXTS.select([0, 1, 2]), processor, length=24))
    others = TextDataset(TEXTS.select([0, 1]), processor, length=24), TextDataset(TEXTS, processor, length=25)
    assert all(describe(other) != describe(texts) for other in others)


def test_kivla_train_mixes_texts_in(sources, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in TEXTS))
    options = {"text_dataset": file, "text_share": 0.5, "text_length": 16, "max_steps": 3, "logging_steps": 1}
    main(command(sources, tmp_path / "policy", **options, vlm_dataset=None, per_device_train_batch_size=4))
    history = json.loads((tmp_path / "policy/trainer_state.json").read_text())["log_history"]
    assert any("text_loss" in entry for entry in history)
    assert "Plain text, 50 % of the examples: `./texts.jsonl`" in (tmp_path / "policy/README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_share": 0.5}, "--text_share cannot apply: there is no --text_dataset"),
        ({"text_loss_weight": 0.5}, "--text_loss_weight cannot apply: there is no --text_dataset"),
        ({"text_dataset": "x", "text_share": 1.5}, "--text_share must lie between 0 and 1, got 1.5"),
        ({"text_dataset": "x", "text_share": 0.8, "vlm_share": 0.3}, "less than 1 together"),
        ({"text_dataset": "x", "recipe": "pi0"}, "--text_dataset cannot apply: recipe pi0 trains on demonstrations"),
        ({"text_dataset": "x", "max_steps": -1}, "give --max_steps"),
        ({"text_dataset": "x", "text_loss_weight": -1}, "text_loss_weight must be a number that is not negative"),
    ],
)
def test_what_cannot_apply_is_refused_in_a_line(sources, tmp_path, options, message, capsys):
    with pytest.raises(SystemExit) as error:
        main(command(sources, tmp_path, **options))
    assert error.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
