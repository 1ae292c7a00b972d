"""`action_token_softmax="action_tokens"`: action tokens are learned as a choice among themselves."""

import pytest
import torch
import torch.nn.functional as F

from kivla import KIVLACollator, KIVLATrainer, KIVLATrainingArguments
from kivla.training.evaluation.closed_choice import chosen_among_actions
from tests.helpers.policies import dataset, make_policy, make_trainer
from tests.helpers.tolerance import assert_close_relative

NO, WORD, END = -100, 5, 2
CODES = torch.tensor([10, 11, 12])


@pytest.mark.parametrize(
    ("labels", "alone", "after_words"),
    [
        ([NO, NO, 10, 11, END, NO], [0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 0]),
        ([NO, WORD, WORD, 10, 12, END], [0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1]),  # when to act is one among all
        ([NO, NO, WORD, END, NO, NO], [0] * 6, [0] * 6),  # an answer, with its end
        ([NO, 10, END, WORD, NO, NO], [0, 1, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0]),  # what a chat template puts behind it
        ([WORD, 10, 11, END, NO, NO], [0] * 6, [0] * 6),  # a document, in which a code is a rare word
    ],
)
def test_which_tokens_are_a_choice_among_actions(labels, alone, after_words):
    for responds_first, expected in ((False, alone), (True, after_words)):
        found = chosen_among_actions(torch.tensor([labels]), CODES, END, responds_first)
        assert found[0].int().tolist() == expected, f"responds_first={responds_first}"


def masked_loss(model, processor, batch) -> torch.Tensor:
    """The formula: at every action token and the end behind, all other tokens have no probability."""
    ours = ("labels", "expert_attention_mask", "actions", "action_mask", "robot")
    logits = model.vlm(**{name: values for name, values in batch.items() if name not in ours}).logits[:, :-1]
    ids = [*processor.action_token_ids.tolist(), processor.end_token_id]
    others = torch.ones(logits.shape[-1], dtype=torch.bool)
    others[ids] = False
    labels = batch["labels"][:, 1:]
    is_choice = torch.zeros_like(labels, dtype=torch.bool)
    for row, tokens in zip(is_choice, labels.tolist(), strict=True):
        codes = [i for i, token in enumerate(tokens) if token in ids[:-1]]
        row[codes] = True
        row[[i + 1 for i in codes if i + 1 < len(tokens) and tokens[i + 1] == ids[-1]]] = True
    assert is_choice.any()
    return F.cross_entropy(
        logits.masked_fill(is_choice[..., None] & others, -torch.inf).flatten(0, 1), labels.flatten()
    )


def test_the_trainer_learns_and_measures_it(tmp_path):
    """Demonstrations beside a question, whose words are learned among all tokens."""
    trainer = make_trainer(tmp_path, action_token_softmax="action_tokens")
    model, processor = trainer.model.eval(), trainer.processing_class
    question = {"images": dataset()[0]["images"], "text": "what is it?", "response": "a drawer"}
    batch = KIVLACollator(processor)([dataset()[0], question, dataset()[70]])
    trainer._sums.zero_()
    model.train()
    loss, outputs = trainer.compute_loss(model, dict(batch), return_outputs=True)
    assert_close_relative(outputs.token_loss, masked_loss(model, processor, batch), what="token loss")
    # What is logged is of the same choice.
    assert_close_relative(trainer._sums[0] / trainer._sums[1], outputs.token_loss, what="logged token loss")
    gradient = torch.autograd.grad(loss, model.get_output_embeddings().weight, retain_graph=True)[0]
    assert gradient.isfinite().all()


def test_it_trains_and_evaluates(tmp_path):
    trainer = make_trainer(tmp_path, action_token_softmax="action_tokens", max_steps=2, logging_steps=1)
    trainer.train()
    assert all(entry["token_loss"] > 0 for entry in trainer.state.log_history if "token_loss" in entry)
    choices = torch.tensor(len(trainer.processing_class.action_token_ids) + 1)
    metrics = trainer.evaluate(dataset())
    assert metrics["eval_token_loss"] < 1.5 * choices.log()
    trainer.args.action_token_softmax = "all"
    assert trainer.evaluate(dataset())["eval_token_loss"] > metrics["eval_token_loss"]


def test_it_is_refused_where_it_means_nothing(tmp_path):
    with pytest.raises(ValueError, match="action_token_softmax is one of all, action_tokens, got 'codes'"):
        KIVLATrainingArguments(output_dir=str(tmp_path), action_token_softmax="codes").check()
    model, processor = make_policy(tmp_path / "policy")
    args = KIVLATrainingArguments(output_dir=str(tmp_path), use_cpu=True, action_token_softmax="action_tokens")
    processor.action_token_ids = processor.action_token_ids[:0]
    with pytest.raises(ValueError, match="the processor has no action tokenizer"):
        KIVLATrainer(model, args, train_dataset=dataset(), processing_class=processor)
