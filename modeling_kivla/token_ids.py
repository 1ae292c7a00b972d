"""Which token ids a VLM can learn anew, and making room for them."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from transformers import PreTrainedConfig


def check_new_tokens(vlm_config: PreTrainedConfig, token_ids: Iterable[int]) -> None:
    """Refuse new tokens with ids that the VLM takes for something else than text.

    Gemma 3n looks up every id from its image and audio towers' `vocab_offset` on in tables of these towers. Inkling 2
    drops the logits of every id from `unpadded_vocab_size` on, and the output layer of Apertus 1.5 may end at
    `output_vocab_size`, so that what comes after is never said.

    Raises:
        ValueError: it does so with one of these ids; the message says what to do.
    """
    offsets = {name: getattr(getattr(vlm_config, name), "vocab_offset", None) for name in vlm_config.sub_configs}
    for name in ("unpadded_vocab_size", "output_vocab_size"):
        offsets[name] = getattr(vlm_config.get_text_config(), name, None)
    name, first = min(
        ((n, i) for n, i in offsets.items() if i is not None), key=lambda pair: pair[1], default=("", None)
    )
    taken = [] if first is None else [token for token in token_ids if token >= first]
    if taken:
        raise ValueError(
            f"A new token would get the id {min(taken)}, but '{vlm_config.model_type}' takes every id from {first} on "
            f"for other things than text ({name}). Write the action tokens over existing ids: KIVLAProcessor(..., "
            'action_token_placement="tail"), on the command line --action_token_placement tail.'
        )


@contextmanager
def without_advice_on_new_rows() -> Iterator[None]:
    """Leave out what the library says at every resizing, of how new rows are drawn. Other messages pass."""
    logger = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return "use `mean_resizing=False`" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


__all__ = ["check_new_tokens", "without_advice_on_new_rows"]
