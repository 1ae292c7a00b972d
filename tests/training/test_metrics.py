"""The sums of an evaluation, by hand."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from kivla.training.evaluation.evaluation_sums import ACTION_ERROR_SUMS, TOKEN_SUMS, action_error_sums, token_sums


def test_token_sums():
    labels = torch.tensor([[-100, -100, 3, 7], [-100, 8, -100, -100]])
    logits = torch.zeros(3, 10)  # predict the tokens 3, 7 and 8
    logits[0, 3] = logits[1, 1] = logits[2, 8] = 5.0
    sums = token_sums(logits, labels, action_token_ids=torch.tensor([7, 8, 9]))
    assert tuple(sums) == TOKEN_SUMS
    assert sums["tokens"].tolist() == [2, 1] and sums["correct_tokens"].tolist() == [1, 1]
    assert sums["action_tokens"].tolist() == [1, 1] and sums["correct_action_tokens"].tolist() == [0, 1]
    expected = cross_entropy(logits, torch.tensor([3, 7, 8]), reduction="sum").item()
    assert sums["token_loss"].sum().item() == pytest.approx(expected)


def test_action_error_sums():
    actions = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    predicted = torch.tensor([[[2.0, 2.0], [1.0, 99.0]]])
    mask = torch.tensor([[[True, True], [True, False]]])
    sums = action_error_sums(predicted, actions, torch.tensor([0.0, 1.0]), mask)
    assert tuple(sums) == ACTION_ERROR_SUMS
    assert sums["absolute_error"].tolist() == [[3.0, 0.0]] and sums["squared_error"].tolist() == [[5.0, 0.0]]
    assert sums["baseline_absolute_error"].tolist() == [[4.0, 1.0]]
    assert sums["baseline_squared_error"].tolist() == [[10.0, 1.0]]
    assert sums["values"].tolist() == [[2, 1]]
