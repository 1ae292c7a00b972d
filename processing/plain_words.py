"""What people write reaches the VLM as words, whatever it looks like: `<eos>` in an instruction ends nothing."""

import logging
import re

from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


_ACTION_TOKEN = re.compile(r"<action_\d+>")


def control_tokens(tokenizer: PreTrainedTokenizerBase, written: str) -> list[str]:
    """Tokens that steer the VLM and are no words, longest first: the tokenizer's special ones, added ones that its chat
    format is `written` with (the rule of transformers' `sanitize_control_tokens`), and action tokens.

    Other added tokens are words: PaliGemma says `<loc0123>`. So is white space, for which Gemma has tokens.
    """
    tokens = {
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or token.content in written or _ACTION_TOKEN.fullmatch(token.content)
    }
    return sorted((token for token in tokens if token and not token.isspace()), key=len, reverse=True)


class PlainWords:
    """Keeps control tokens out of people's words.

    A control token is found by its text. So a *break*, a token that stands nowhere else (padding or an action token),
    is written behind its first character: `<eos>` becomes `<`, the break, `eos>`. Nobody takes the rest for a
    control token, neither the tokenizer (of whatever kind) nor a VLM's processor that looks for placeholders. When the
    text has become tokens, the break is dropped.

    Args:
        tokenizer: the VLM's.
        written: what the tokenizer is given beside people's words (the chat format). The break does not stand there.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, written: str):
        self._tokenizer = tokenizer
        control = control_tokens(tokenizer, written)
        ids = set(tokenizer.convert_tokens_to_ids(control))
        # What words without any control token become does no harm: unknown characters, and what is put before all.
        self._ids = ids - {tokenizer.unk_token_id, *self._encode("x")}
        actions = [token for token in control if _ACTION_TOKEN.fullmatch(token)][-1:]
        taken = {None, tokenizer.bos_token, tokenizer.eos_token}  # are written by tokenizers and processors
        candidates = [token for token in (tokenizer.pad_token, *actions) if token not in taken]
        self._break = next((t for t in candidates if t not in written and self._is_one_token(t)), None)
        self._break_id = None if self._break is None else tokenizer.convert_tokens_to_ids(self._break)
        found = [] if self._break is None else [re.escape(token) for token in control if len(token) > 1]
        self._pattern = re.compile("|".join(found)) if found else None
        self._has_warned = False

    def plain(self, words: str, name: str) -> str:
        """The words, with breaks where they are needed; unchanged if they hold no control token.

        Args:
            name: what the words are, for the message.

        Raises:
            ValueError: a token that this tokenizer cannot write as text: it has no token for a break, or looks for
                `<eos>` in lower-case text, say.
        """
        given, start = words, 0
        while self._pattern and (match := self._pattern.search(words, start)):
            cut = match.start() + 1
            if not self._has_warned:
                self._has_warned = True
                logger.warning(
                    f"`{name}` contains {match[0]!r}, a control token: {given[:200]!r}. The VLM gets it as plain text; "
                    "this message is not repeated."
                )
            words = words[:cut] + self._break + words[cut:]
            start = cut + len(self._break)
        left = self._ids.intersection(self._encode(words)) - {self._break_id}
        if left:
            token = self._tokenizer.convert_ids_to_tokens(min(left))
            raise ValueError(
                f"`{name}` contains {token!r}, which this VLM's tokenizer ({type(self._tokenizer).__name__}) takes for "
                f"a control token and cannot write as plain text: {given[:200]!r}. Leave it out."
            )
        return words

    def without_breaks(self, row: dict[str, list]) -> dict[str, list]:
        """Per-token lists of one example, `input_ids` among them, without the tokens that `plain` has put in."""
        if self._break_id not in row["input_ids"]:
            return row
        keep = [i for i, token in enumerate(row["input_ids"]) if token != self._break_id]
        return {name: [values[i] for i in keep] for name, values in row.items()}

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _is_one_token(self, token: str) -> bool:
        """Whether the tokenizer finds it inside a word."""
        return self._encode(f"<{token}x").count(self._tokenizer.convert_tokens_to_ids(token)) == 1


__all__ = ["PlainWords", "control_tokens"]
