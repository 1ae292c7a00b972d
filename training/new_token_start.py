"""A start from which brand-new action tokens can be learned: likely where they are said, and as unlikely elsewhere."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch

from ..modeling_kivla import KIVLAForActionPrediction
from .parts import vocabulary_weights

RIDGE = 0.1  # of the mean squared state: less fits the few examples, more reaches no action (measured: 0.01 to 1)


@torch.no_grad()
def aim_new_tokens(model: KIVLAForActionPrediction, batches: Iterable[Mapping], token_ids: Sequence[int]) -> None:
    """Put the rows of new tokens, in place, where a VLM says them with half of its probability, all together.

    The library's start is the mean row. Its logit is the mean of all, so that the loss begins above the logarithm of
    the vocabulary, by as much as the VLM is sure of another word; what the VLM is then taught first is to be less sure.
    Here a step is added to the mean row, the same for all new tokens: by least squares over the text model's last
    states it gives what the mean row lacks where an action token comes next, and nothing elsewhere in the prompts.

    Args:
        model: a policy on a pretrained VLM whose new tokens have learned nothing yet.
        batches: some demonstrations, as the collator makes them.
        token_ids: the new tokens.

    Raises:
        ValueError: no action token is learned in these batches.
    """
    new = torch.as_tensor(token_ids, device=model.device)
    head = model.get_output_embeddings()
    old = torch.ones(len(head.weight), dtype=torch.bool, device=new.device).index_fill_(0, new, False)
    rows, mean = head.weight[old], head.weight[old].mean(0)
    # The last states of the text model where action tokens come next, and everywhere else.
    said, elsewhere = [], []
    for batch in batches:
        inputs = {n: v for n, v in batch.items() if n in model.vlm_argument_names and n != "labels"}
        inputs = {n: v.to(model.device) if torch.is_tensor(v) else v for n, v in inputs.items()}
        states: list[torch.Tensor] = []
        hook = head.register_forward_pre_hook(lambda module, given, states=states: states.append(given[0][:, :-1]))
        try:
            model.vlm(**inputs, use_cache=False)
        finally:
            hook.remove()
        is_said = torch.isin(batch["labels"][:, 1:].to(new.device), new)
        said.append(states[0][is_said].float())
        elsewhere.append(states[0][inputs["attention_mask"][:, :-1].bool() & ~is_said].float())
    actions, others = torch.cat(said), torch.cat(elsewhere)
    if not len(actions):
        raise ValueError("These batches teach no action token: give some of demonstrations.")
    lacks = (actions @ rows.T.float()).logsumexp(-1) - actions @ mean.float() - math.log(len(new))
    # Both kinds of places weigh the same, however many there are.
    x = torch.cat([actions / len(actions) ** 0.5, others / len(others) ** 0.5])
    y = torch.cat([lacks / len(actions) ** 0.5, lacks.new_zeros(len(others))])
    ridge = RIDGE * x.square().sum() / x.shape[1] * torch.eye(x.shape[1], device=x.device)
    step = torch.linalg.solve(x.T @ x + ridge, x.T @ y)
    # An embedding that is not the output layer keeps its start: what it says is not what is said.
    for weight in vocabulary_weights(model):
        if weight is head.weight:
            weight[new] += step.to(weight.dtype)


__all__ = ["aim_new_tokens"]
