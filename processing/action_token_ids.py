"""Where action tokens are in the VLM's vocabulary."""

import numpy as np
from transformers import PreTrainedTokenizerBase


def place_action_tokens(tokenizer: PreTrainedTokenizerBase, num_codes: int, placement: str, skip: int) -> np.ndarray:
    """Token id of every code, (num_codes,).

    Args:
        tokenizer: gets new tokens with "added".
        placement, skip: see `KIVLAProcessor`.

    Raises:
        ValueError: with "tail", the ids would be those of special tokens, or there are too few.
    """
    codes = np.arange(num_codes)
    if not num_codes:
        return codes
    if placement == "added":
        names = [f"<action_{code}>" for code in codes]
        tokenizer.add_tokens(names)
        return np.array(tokenizer.convert_tokens_to_ids(names), dtype=np.int64)
    ids = tokenizer.vocab_size - 1 - skip - codes
    taken = sorted(set(ids.tolist()) & set(tokenizer.all_special_ids))
    if ids[-1] < 0 or taken:
        reason = f"would overwrite the special tokens {taken}" if taken else "does not fit"
        raise ValueError(
            f'action_token_placement="tail" with {num_codes} codes and action_token_skip = {skip} {reason} in a '
            f"vocabulary of {tokenizer.vocab_size}. Use another skip, a smaller action tokenizer, or "
            'action_token_placement="added".'
        )
    return ids


__all__ = ["place_action_tokens"]
