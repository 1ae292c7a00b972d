"""Steps after the end of an episode are not learned, neither as numbers nor as tokens."""

import numpy as np
import pytest
import torch

from kivla.processing import BinningActionTokenizer
from tests.processing.test_processing_kivla import CHUNK, FAST, LONG, TRAJECTORIES, WIDTH, columns, make, policy

BINS = BinningActionTokenizer(16)
PADS = [[False, True, True, True], [False, False, False, True], [False, True, False, True], [True, True, False, False]]
GARBAGE = np.full((CHUNK, WIDTH), 1e6)


def batch_of(processor, pad, values=TRAJECTORIES[0], **more):
    return processor(**columns(LONG | {"actions": values, "action_is_pad": pad, **more}))


def learned(processor, batch) -> list[int]:
    """Codes that are learned; -1 for the end, -2 for words."""
    code_of = {token: code for code, token in enumerate(processor.action_token_ids.tolist())}
    code_of[processor.end_token_id] = -1
    return [code_of.get(token, -2) for token in batch["labels"][0].tolist() if token != -100]


@pytest.mark.parametrize("tokenizer", [BINS, FAST], ids=["bins", "fast"])
@pytest.mark.parametrize("pad", PADS)
def test_what_stands_in_padded_steps_changes_nothing(tokenizer, pad):
    processor = make(action_tokenizer=tokenizer)
    expected = batch_of(processor, pad)
    for other in (GARBAGE, -GARBAGE, GARBAGE * np.nan, TRAJECTORIES[1]):
        batch = batch_of(processor, pad, np.where(np.array(pad)[:, None], other, TRAJECTORIES[0]))
        for name in expected:
            assert torch.equal(batch[name], expected[name]), f"{name} depends on steps that are not real"
    assert not processor.action_tokenizer.num_clipped


@pytest.mark.parametrize("pad", PADS)
def test_bins_of_padded_steps_are_not_learned(pad):
    processor = make(action_tokenizer=BINS)
    whole = learned(processor, batch_of(processor, [False] * CHUNK))
    assert len(whole) == CHUNK * WIDTH + 1 and whole[-1] == -1
    batch = batch_of(processor, pad)
    codes = np.array(whole[:-1]).reshape(CHUNK, WIDTH)
    assert learned(processor, batch) == codes[~np.array(pad)].ravel().tolist(), "real steps alone, and no end"
    # Up to the last real step nothing is missing: later codes are said after all earlier ones, as in acting.
    tokens = np.isin(batch["input_ids"][0], processor.action_token_ids).sum()
    assert tokens == (CHUNK - np.argmin(pad[::-1])) * WIDTH
    assert torch.isfinite(policy()(**batch).loss)


def test_fast_holds_the_last_action():
    """Its codes are each about all steps. openpi and LeRobot hold the last action, and learn it."""
    processor = make(action_tokenizer=FAST)
    for real in range(1, CHUNK + 1):
        batch = batch_of(processor, [step >= real for step in range(CHUNK)])
        held = TRAJECTORIES[0][np.minimum(np.arange(CHUNK), real - 1)]
        assert learned(processor, batch) == learned(processor, batch_of(processor, None, held))
        short = batch_of(processor, None, TRAJECTORIES[0][:real])
        assert learned(processor, short) == learned(processor, batch)
        assert batch["action_mask"].sum() == real * WIDTH


@pytest.mark.parametrize("tokenizer", [BINS, FAST], ids=["bins", "fast"])
def test_a_chunk_without_a_real_step_is_not_learned(tokenizer):
    processor = make(action_tokenizer=tokenizer)
    batch = batch_of(processor, [True] * CHUNK, GARBAGE)
    assert not learned(processor, batch) and not batch["action_mask"].any() and not batch["actions"].any()
    together = processor(**columns(LONG, LONG | {"action_is_pad": [True] * CHUNK}))
    alone = processor(**columns(LONG))
    generator = torch.Generator().manual_seed(0)
    noise, time = torch.randn(2, CHUNK, WIDTH + 1, generator=generator), torch.rand(2, generator=generator)
    with torch.no_grad():
        loss = policy()(**together, noise=noise, timestep=time).loss
        expected = policy()(**alone, noise=noise[:1], timestep=time[:1]).loss
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)
    response = learned(processor, batch_of(processor, [True] * CHUNK, response="go"))
    assert response == [-2] * len("go"), "words are learned; actions would follow, so there is no end"


def test_an_end_follows_words_where_the_vlm_says_no_actions():
    """π0's kind: a response and a chunk, but no action tokens."""
    processor = make(action_tokenizer=None)
    batch = batch_of(processor, [True] * CHUNK, response="go")
    assert learned(processor, batch)[-1] == -1
