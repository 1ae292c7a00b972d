"""The sums of an evaluation, by hand."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from kivla.modeling_kivla import KIVLAOutput
from kivla.training.evaluation.action_error import (
    ACTION_ERROR_SUMS,
    action_error,
    action_error_sums,
    error_of_chunks,
)
from kivla.training.evaluation.demonstrations import WithDemonstrations
from kivla.training.evaluation.token_sums import TOKEN_SUMS, token_sums


def test_token_sums():
    labels = torch.tensor([[-100, -100, 3, 7], [-100, 8, -100, -100]])
    logits = torch.zeros(3, 10)  # predict the tokens 3, 7 and 8
    logits[0, 3] = logits[1, 1] = logits[2, 8] = 5.0
    sums = token_sums(KIVLAOutput(logits=logits), labels, action_token_ids=torch.tensor([7, 8, 9]))
    assert tuple(sums) == TOKEN_SUMS
    assert sums["tokens"].tolist() == [2, 1] and sums["correct_tokens"].tolist() == [1, 1]
    assert sums["action_tokens"].tolist() == [1, 1] and sums["correct_action_tokens"].tolist() == [0, 1]
    expected = cross_entropy(logits, torch.tensor([3, 7, 8]), reduction="sum").item()
    assert sums["token_loss"].sum().item() == pytest.approx(expected)


def test_action_error():
    """Padding counts for nothing, also where it is NaN; and sums of several batches add up."""
    demonstrated = torch.tensor([[[1.0, 2.0], [3.0, torch.nan]]])
    predicted = torch.tensor([[[2.0, 2.0], [1.0, 99.0]]])
    real = ~demonstrated.isnan()
    sums = action_error_sums(predicted, demonstrated, real)
    assert tuple(sums) == ACTION_ERROR_SUMS
    assert sums["absolute_error"].tolist() == [[3.0, 0.0]] and sums["squared_error"].tolist() == [[5.0, 0.0]]
    assert sums["values"].tolist() == [[2, 1]]
    figures = {"mae": 1.0, "rmse": pytest.approx((5 / 3) ** 0.5), "mae_per_dimension": [1.5, 0.0]}
    assert action_error(sums) == figures
    assert action_error({name: torch.cat([values, values]) for name, values in sums.items()}) == figures
    nothing = action_error_sums(predicted, demonstrated, torch.zeros_like(real))
    assert action_error(nothing) == {"mae": None, "rmse": None, "mae_per_dimension": [None, None]}
    constant = error_of_chunks([0.0, 1.0], demonstrated, np.array([[True, False]]))
    assert constant["mae_per_dimension"] == [1.0, 1.0], "one action for all steps"


def test_demonstrations_are_the_examples_own():
    """In robot units and at full precision; NaN where there is nothing."""
    collate = WithDemonstrations(lambda examples: {"n": len(examples)}, chunk_size=3, action_dim=2)
    padded = {"actions": np.array([[1e6, 2.0], [3.0, 4.0], [5.0, 6.0]]), "action_is_pad": [False, True, True]}
    short = {"actions": torch.tensor([[0.25], [0.5]], dtype=torch.bfloat16)}
    batch = collate([padded, {"response": "yes"}, short])
    nan = np.nan
    expected = [[[1e6, 2], [nan, nan], [nan, nan]], [[nan, nan]] * 3, [[0.25, nan], [0.5, nan], [nan, nan]]]
    np.testing.assert_array_equal(batch.pop("demonstrated").numpy(), np.array(expected, np.float32))
    assert batch.pop("robot_state") == [None] * len(expected)
    assert batch == {"n": 3}
