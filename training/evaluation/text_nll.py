"""How well a VLM, or a policy that was one, still predicts plain text: its knowledge of language, in nats a token.

The texts are read as the VLM was pretrained on them: no chat format, no prompt, and no picture. What tells a policy
from the VLM that it was made of is the *difference on the same texts*: its interval is far narrower than theirs.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...modeling_kivla import KIVLAForActionPrediction
from ...modeling_kivla.eval_mode import eval_mode
from ...processing.plain_words import PlainWords
from ..data.robot_dataset import evenly_spread
from ..data.vlm.text_rows import TEXT_COLUMN, load_texts
from .confidence import bootstrap_interval

NUM_TEXTS, TEXT_LENGTH = 256, 256


@dataclass(frozen=True, eq=False)
class TextScores:
    """What a model makes of some texts, summed up over the tokens of each: two models are compared text by text.

    Attributes:
        nll: (n,) negative log-likelihood in nats, over the model's whole vocabulary.
        action_nll: (n,) how much of it is due to action tokens, whose probability the text's tokens do not get; 0 for a
            model that has none.
        tokens: (n,) how many tokens were predicted; 0 for a text of one token.
    """

    nll: np.ndarray
    action_nll: np.ndarray
    tokens: np.ndarray

    @property
    def mean(self) -> float:
        """Nats a token, over the tokens of all texts."""
        return float(self.nll.sum() / self.tokens.sum())

    def to_dict(self) -> dict[str, list]:
        """Ready for JSON."""
        return {entry.name: getattr(self, entry.name).tolist() for entry in fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, list]) -> "TextScores":
        """Back from JSON."""
        return cls(**{name: np.asarray(column) for name, column in values.items()})


class HeldOutTexts(Dataset):
    """Texts to measure a policy on: an `eval_dataset` of `KIVLATrainer`, or one of several; its metric is `nll`.

    Args:
        texts: plain text.
        text_length: tokens of each that count, from its beginning.
        name: of the set, for reports.
    """

    def __init__(self, texts: Sequence[str], text_length: int = TEXT_LENGTH, name: str | None = None):
        if not texts or text_length < 2:
            raise ValueError(
                f"Got {len(texts)} texts and text_length={text_length}: give a text or more, and at least 2 tokens of "
                "each, since the first is not predicted."
            )
        self.texts, self.text_length, self.name = list(texts), text_length, name

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        column: str | None = None,
        split: str = "train",
        config: str | None = None,
        num_texts: int = NUM_TEXTS,
        text_length: int = TEXT_LENGTH,
    ) -> "HeldOutTexts":
        """Take texts of a set, spread evenly; rows that are blank are left out.

        Args:
            name_or_path, column, split, config: see `load_texts`.
            num_texts: at most so many.

        Raises:
            ValueError: all chosen rows are blank; and what `load_texts` raises.
        """
        rows = load_texts(name_or_path, column, split, config)
        chosen = rows[evenly_spread(len(rows), num_texts).tolist()][TEXT_COLUMN]
        texts = [text for text in chosen if text and not text.isspace()]
        if not texts:
            raise ValueError(f"{name_or_path}: all {len(chosen)} rows that were looked at are blank.")
        return cls(texts, text_length, str(name_or_path))

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, str]:
        return {TEXT_COLUMN: self.texts[index]}


@torch.no_grad()
def text_nll(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    text_length: int = TEXT_LENGTH,
    batch_size: int = 8,
    action_token_ids: Sequence[int] = (),
    start: Sequence[int] | None = None,
) -> TextScores:
    """Let a model predict every token of some texts from those before it.

    Args:
        model: a VLM; or a policy, with or without LoRA, whose VLM it then is.
        tokenizer: the VLM's.
        texts: plain text; control tokens in it are words like others.
        text_length: tokens of each that count, from its beginning.
        batch_size: texts at once.
        action_token_ids: of a policy; see `TextScores.action_nll`.
        start: what stands in front of every text (`KIVLAProcessor.document_start`: PaliGemma's processor writes a start
            token that its tokenizer does not); by default what the tokenizer writes. Behind one, the first word is
            predicted, too.
    """
    vlm = _vlm_of(model)
    device = vlm.get_input_embeddings().weight.device
    pieces = [torch.tensor(tokens) for tokens in text_tokens(tokenizer, texts, text_length, start)]
    actions = torch.as_tensor(action_token_ids, dtype=torch.long, device=device)
    nll, action_nll = np.zeros((2, len(pieces)))
    # Texts of like length go together: the fewer tokens are padding, the faster it is.
    order = sorted((i for i, piece in enumerate(pieces) if len(piece) > 1), key=lambda i: len(pieces[i]))
    for start in tqdm(range(0, len(order), batch_size), desc="Reading texts", unit="batch", leave=False):
        chosen = order[start : start + batch_size]
        lengths = torch.tensor([len(pieces[i]) for i in chosen])
        # Any token will do as padding: it is masked, and comes after those that count.
        tokens = pad_sequence([pieces[i] for i in chosen], batch_first=True, padding_value=int(pieces[chosen[0]][0]))
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        with eval_mode(vlm):
            logits = vlm(**text_inputs(vlm, tokens.to(device), mask.to(device))).logits
        for row, i in enumerate(chosen):
            targets = tokens[row, 1 : len(pieces[i])].to(logits.device)
            nll[i], action_nll[i] = _sums(logits[row, : len(targets)], targets, actions.to(logits.device))
    return TextScores(nll, action_nll, np.array([max(len(piece) - 1, 0) for piece in pieces]))


def text_tokens(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], text_length: int, start: Sequence[int] | None = None
) -> list[list[int]]:
    """The first tokens of every text; see `text_nll`."""
    words = PlainWords(tokenizer, written="")
    rows = (tokenizer(words.plain(text, "text"), add_special_tokens=start is None) for text in texts)
    tokens = [words.without_breaks(dict(row))["input_ids"] for row in rows]
    return [[*(start or ()), *row][:text_length] for row in tokens]


def text_inputs(vlm: PreTrainedModel, tokens: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor | bool]:
    """What a VLM is given to read texts (B, S), each token in the light of those before it alone."""
    inputs = {"input_ids": tokens, "attention_mask": mask.long(), "use_cache": False}
    if getattr(vlm.config.get_text_config(), "use_bidirectional_attention", None) is True:
        # PaliGemma reads a prompt in both directions: it would see the words that it is to predict. 1 = no prompt.
        inputs["token_type_ids"] = torch.ones_like(tokens)
    return inputs


def _vlm_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return base.vlm if isinstance(base, KIVLAForActionPrediction) else base


def _sums(logits: torch.Tensor, targets: torch.Tensor, actions: torch.Tensor) -> tuple[float, float]:
    """Of logits (n, vocabulary) and tokens (n,): nats, and how many of them the action tokens cost."""
    log_probabilities = logits.float().log_softmax(-1)
    nll = -log_probabilities.gather(1, targets[:, None]).double().sum()
    words = log_probabilities.index_fill(1, actions, -torch.inf).logsumexp(-1)  # (n,) of all that is no action token
    return float(nll), float(-words.double().sum()) if len(actions) else 0.0


def summarize_texts(scores: TextScores, before: TextScores | None = None) -> dict:
    """Nats a token with 95 % bootstrap intervals over texts; and how they differ from those before, on the same texts.

    Args:
        before: of the VLM that the policy was made of.

    Returns:
        `num_texts`, `num_tokens`, `nll` and `of_action_tokens`; `before` and `difference` (after - before), or None.
        `nll`, `before` and `difference` are `{"mean", "low", "high"}`.

    Raises:
        ValueError: fewer than two texts; or `before` is of other texts or of another tokenizer.
    """
    if before is not None and not np.array_equal(scores.tokens, before.tokens):
        raise ValueError(
            f"The two models were not asked for the same tokens: {scores.tokens.sum()} of {len(scores.tokens)} texts, "
            f"and {before.tokens.sum()} of {len(before.tokens)}. Compare a policy with the VLM that it was made of, on "
            "the same texts."
        )
    difference = None if before is None else _rate(scores.nll - before.nll, scores.tokens)
    return {
        "num_texts": int((scores.tokens > 0).sum()),
        "num_tokens": int(scores.tokens.sum()),
        "nll": _rate(scores.nll, scores.tokens),
        "of_action_tokens": float(scores.action_nll.sum() / scores.tokens.sum()),
        "before": None if before is None else _rate(before.nll, before.tokens),
        "difference": difference,
    }


def _rate(totals: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    return asdict(bootstrap_interval(totals, counts))


def format_texts(report: dict) -> str:
    """What `summarize_texts` returns, in words."""
    lines = [
        f"{report['num_texts']} texts, {report['num_tokens']} tokens: {_with_interval(report['nll'])} nats a token"
    ]
    if report["of_action_tokens"] > 0:
        lines.append(f"    of it because of action tokens: {report['of_action_tokens']:.4f}")
    if report["difference"] is not None:
        lines.append(f"    before: {_with_interval(report['before'])}")
        lines.append(f"    difference on the same texts: {_with_interval(report['difference'])}")
    return "\n".join(lines)


def _with_interval(rate: dict[str, float]) -> str:
    return f"{rate['mean']:.4f} ({rate['low']:.4f} to {rate['high']:.4f})"


__all__ = [
    "NUM_TEXTS",
    "TEXT_LENGTH",
    "HeldOutTexts",
    "TextScores",
    "format_texts",
    "summarize_texts",
    "text_inputs",
    "text_nll",
    "text_tokens",
]
