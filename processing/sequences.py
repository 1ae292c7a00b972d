"""Token sequences [prompt ; suffix] of one VLM: from checked examples to padded tensors, and apart again.

The prompt is images and words in the VLM's own format. The suffix is what follows: a response, action tokens, and the
end of the VLM's turn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, takewhile

import numpy as np
import torch
from PIL import Image
from transformers import ProcessorMixin

from .action_tokenizers import ActionTokenizer
from .chat_format import IMAGE, VIDEO, ChatFormats, Media, has_chat, media_of
from .plain_words import PlainWords
from .robot_spec import RobotSpec
from .token_rows import Span, extend, pad_rows
from .video_input import as_video, video_options

# What a VLM's processor is given for a document, which has no prompt: it wants words of every example
_NO_PROMPT = "text"
# What a VLM's `token_type_ids` say about tokens to be learned. PaliGemma: 0 = bidirectional prompt, 1 = causal answer;
# everybody else marks image tokens there, and text of any kind is 0.
SUFFIX_TOKEN_TYPE = {"PaliGemmaProcessor": 1}
# Processors that want all pictures of a batch in one list; others want a list for each example
ONE_LIST = ("GotOcr2Processor",)
# What a processor must be asked for, because its VLM wants it
ASKED = {"Cosmos3EdgeProcessor": {"return_mm_token_type_ids": True}}


@dataclass
class Example:
    """One example, checked and normalised.

    Attributes:
        robot: whose cameras, state and actions these are.
        clips: the frames that are there, RGB: of each camera, in their order, oldest first; perhaps none of one.
        asks_actions: whether the prompt asks for actions; otherwise it is the text as it was given.
        prompt: the words alone, without image placeholders and chat markup; of a conversation, the first question. None
            for a document, which is all suffix.
        learns: whether there is a response or a chunk.
        suffix: what follows: the response, then the action tokens, then the end of the VLM's turn.
        states: (n, Ds) float32, oldest first; None where the policy reads none.
        chunk: (chunk_size, action_dim) float32, the last action repeated where it was short.
        is_pad: (chunk_size,) bool, True on steps that are not real.
    """

    robot: RobotSpec
    clips: list[list[Image.Image]]
    asks_actions: bool
    prompt: str | None
    learns: bool
    suffix: list[Span]
    states: np.ndarray | None
    chunk: np.ndarray | None
    is_pad: np.ndarray | None


class Sequences:
    """Words of people, prompts and suffixes as one VLM reads them.

    Args:
        vlm_processor: the VLM's own processor.
        action_prompt: of `KIVLAProcessor`.
        most_images: prompts with up to so many images are prepared at once.
        most_videos: and those with up to so many videos. Above 0 a clip of several frames is a video, else images.
        prompt_frames: of `KIVLAProcessor`; None takes what the chat template writes today.
    """

    def __init__(
        self,
        vlm_processor: ProcessorMixin,
        action_prompt: str,
        most_images: int,
        prompt_frames: dict[str, dict] | None = None,
        most_videos: int = 0,
    ):
        self.vlm_processor = vlm_processor
        self.has_videos = most_videos > 0
        self.tokenizer = vlm_processor.tokenizer
        # What in a text would be taken for an image; PP-Chart2Table names nothing, its chat template writes it all
        image_ids = [i for i in vlm_processor.image_token_ids if i is not None]
        named = getattr(vlm_processor, "image_token", None)
        self.placeholders = {*([named] if named else []), *self.tokenizer.convert_ids_to_tokens(image_ids)}
        self.formats = ChatFormats(vlm_processor, most_images, prompt_frames, most_videos)
        self.words = PlainWords(self.tokenizer, self.formats.written + action_prompt)
        self._token_type = SUFFIX_TOKEN_TYPE.get(type(vlm_processor).__name__, 0)
        # What processors without a chat format write behind a text: PaliGemma's a line break, Chameleon's a separator
        self._newline = self.tokenize("\n")
        self._separator = [] if self.tokenizer.sep_token_id is None else [self.tokenizer.sep_token_id]

    # ----------------------------------------------------------------------------------------------- words of people
    def turns(self, text, response, asks_actions: bool) -> tuple[list[str], list[str]]:
        """Questions and answers; one question and no answer where nothing is to be answered.

        Raises:
            ValueError: no words, image placeholders among them, or turns that do not fit each other or the VLM.
        """
        questions = list(text) if isinstance(text, list | tuple) else [text]
        responses = list(response) if isinstance(response, list | tuple) else [response] if response is not None else []
        clean = _one_line if asks_actions else str.strip
        questions = [self.plain("text", question, clean, may_be_empty=asks_actions) for question in questions]
        responses = [self.plain("response", answer) for answer in responses]
        if len(questions) == 1 and len(responses) <= 1:
            return questions, responses
        if len(questions) != len(responses):
            raise ValueError(
                f"there are {len(questions)} questions in `text` and {len(responses)} answers in `response`. A "
                "conversation has one answer for each question."
            )
        if asks_actions:
            raise ValueError("`text` is a conversation, but actions are asked for. Give one instruction.")
        if not has_chat(self.vlm_processor):
            raise ValueError(
                f"this VLM ({type(self.vlm_processor).__name__}) has no chat template: it takes one question and one "
                f'answer, not {len(questions)}. Make an example of each pair (VLMDataset(..., turns="split")).'
            )
        return questions, responses

    def plain(self, name: str, words, clean: Callable[[str], str] = str, may_be_empty: bool = False) -> str:
        """Check words that a person gave, and keep control tokens out of them."""
        if not isinstance(words, str):
            raise ValueError(f"`{name}` must be a string, got {type(words).__name__}.")
        if not may_be_empty and not words.strip():
            raise ValueError(f"`{name}` is empty. Give the VLM some words, or pass None if there is no {name}.")
        placeholders = [token for token in self.placeholders if token in words]
        if placeholders:
            raise ValueError(
                f"`{name}` contains {placeholders[0]!r}, which stands for an image: {words!r}. Leave it out; the "
                "processor puts images in front of the text."
            )
        return self.words.plain(clean(words), name)

    # -------------------------------------------------------------------------------------------------------- tokens
    def tokenize(self, text: str) -> list[int]:
        """Ids of a text alone: nothing is put in front or behind."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.words.without_breaks({"input_ids": ids})["input_ids"]

    def document(self, text: str) -> list[int]:
        """Tokenize a plain text as language models are pretrained on it: no chat format, a start if the VLM has one."""
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"a document is a text with words in it, got {text!r:.80}.")
        return [*self.document_start, *self.tokenize(self.words.plain(text, "document"))]

    @cached_property
    def document_start(self) -> list[int]:
        """The token that begins every text; some processors without a chat format write it, not their tokenizer."""
        start = self.tokenizer.bos_token_id
        written = self.tokenizer("x")["input_ids"][:1]
        if start is not None and not has_chat(self.vlm_processor):
            picture = Image.new("RGB", (64, 64))
            written += list(self._encoded([self.formats[1].before + "x"], [[picture]])["input_ids"][0])
        return [start] if start in written else []

    def media(self, clips: list[list[Image.Image]]) -> Media:
        """What stands in front of a prompt: camera by camera its frames, oldest first, or one video of them."""
        return media_of("".join(VIDEO if self._is_video(clip) else IMAGE * len(clip) for clip in clips))

    def _is_video(self, clip: list[Image.Image]) -> bool:
        return self.has_videos and len(clip) > 1

    def answer(self, media: Media, words: str) -> list[int]:
        """Tokenize an answer as it stands after the prompt: some tokenizers put a space in front of every text."""
        chat = self.formats[media]
        context, answer = self.tokenize(chat.after), chat.lead + words
        whole = self.tokenize(chat.after + answer)
        return whole[len(context) :] if whole[: len(context)] == context else self.tokenize(answer)

    def closing(self, media: Media) -> list[int]:
        """What ends the VLM's turn."""
        return self.tokenize(self.formats[media].closing)

    def suffix(
        self,
        next_questions: list[str],
        responses: list[str],
        given_response: str | None,
        actions: list[Span],
        is_complete: bool,
        media: Media,
        expert_reads_response: bool,
    ) -> list[Span]:
        """Return what follows the prompt.

        Of a conversation the answers are learned, and the questions between them not. The VLM's turn ends when all is
        said: not after a part of a chunk.

        Args:
            actions, is_complete: of `action_spans`.
        """
        chat, closing, spans = self.formats[media], self.closing(media), []
        if given_response is not None:
            spans.append(Span(self.answer(media, given_response), False, expert_reads_response))
        for i, response in enumerate(responses):
            spans.append(Span(self.answer(media, response), True, expert_reads_response))
            if i < len(next_questions):
                spans.append(Span(closing, True))
                spans.append(Span(self.tokenize(chat.between + next_questions[i] + chat.after), False))
        spans += actions
        if is_complete and any(span.is_learned for span in spans):
            spans.append(Span(closing, True))
        return spans

    # ------------------------------------------------------------------------------------------------------- batches
    def batch(self, examples: list[Example], learns: bool, max_length: int | None) -> dict[str, torch.Tensor]:
        """Return image tensors, and padded per-token tensors of [prompt ; suffix].

        Args:
            learns: whether there are labels, and padding on the right; otherwise padding is on the left.
            max_length: longest allowed sequence.

        Raises:
            ValueError: a longer one.
        """
        encoded, tails = self._prompts(examples)
        has_images = any(clip for example in examples for clip in example.clips)
        input_ids, mask = encoded["input_ids"], encoded["attention_mask"].bool()
        per_token = {n: t for n, t in encoded.items() if torch.is_tensor(t) and t.shape == input_ids.shape}
        rows = []
        for i, (example, tail) in enumerate(zip(examples, tails, strict=True)):
            # The prompt, without the processor's padding
            row = self.words.without_breaks({n: tensor[i][mask[i]].tolist() for n, tensor in per_token.items()})
            if example.prompt is None:
                row = {name: [] for name in row}
            if tail is not None:
                ending = self._ending(row["input_ids"])
                row = {name: values[: len(values) - len(ending)] for name, values in row.items()}
                row = extend(row, tail + (ending if ending == self._separator else []), attention_mask=1)
            prefix_length = len(row["input_ids"])
            # The suffix: which of it the expert reads, and what is learned
            row["expert_attention_mask"] = [True] * prefix_length
            for span in example.suffix:
                row = self._extended(row, span.ids, span.expert_reads)
            if learns:
                row["labels"] = [-100] * prefix_length
                for span in example.suffix:
                    row["labels"] += span.ids if span.is_learned else [-100] * len(span.ids)
            if max_length is not None and len(row["input_ids"]) > max_length:
                raise ValueError(
                    f"Example {i} takes {len(row['input_ids'])} tokens, {prefix_length} of them images and prompt, but "
                    f"max_length is {max_length}. Raise it, use fewer or smaller images, or a shorter text."
                )
            rows.append(row)
        batch = {n: t for n, t in encoded.items() if n not in per_token} if has_images else {}
        return {**batch, **self._padded(rows, "right" if learns else "left")}

    def _prompts(self, examples: list[Example]) -> tuple[dict, list[list[int] | None]]:
        """What the VLM's processor makes of the prompts, and for each example the ids that are to follow.

        The VLM's processor sees the whole prompt. One exception: without a chat template it sees the image placeholders
        alone if actions are asked for, and the prompt's own tokens follow. PaliGemma's processor ends the text with a
        line break, which belongs behind a question and not behind `Action: `; Chameleon's with a separator, which
        begins the answer.
        """
        images, videos, heads, tails = [], [], [], []
        for example in examples:
            images.append([frame for clip in example.clips if not self._is_video(clip) for frame in clip])
            videos += [as_video(clip) for clip in example.clips if self._is_video(clip)]
            if example.prompt is None:
                heads.append(_NO_PROMPT)
                tails.append(None)
                continue
            chat = self.formats[self.media(example.clips)]
            apart = example.asks_actions and not has_chat(self.vlm_processor)
            words = example.prompt.strip() if has_chat(self.vlm_processor) else example.prompt
            heads.append(chat.before + ("" if apart else words) + chat.after)
            tails.append(self.tokenize(words) if apart else None)
        # PaliGemma's processor refuses a batch without images: one more example, which nobody reads, has one
        if not any(images) and not videos:
            heads.append(self.formats[1].before + self.formats[1].after)
            images.append([Image.new("RGB", (64, 64))])
        options: dict = {"padding": True, "return_tensors": "pt", **(video_options(videos) if videos else {})}
        start = self.tokenizer.bos_token
        if start and any(head.startswith(start) for head in heads):
            options["add_special_tokens"] = False  # a chat template that writes it; the tokenizer would write another
        encoded = self._encoded(heads, images, **options)
        encoded.pop("labels", None)
        return encoded, tails

    def _encoded(self, texts: list[str], images: list[list[Image.Image]], **options):
        """Call the VLM's processor as it wants to be called."""
        name = type(self.vlm_processor).__name__
        has_images = any(images)
        pictures = [picture for row in images for picture in row] if name in ONE_LIST else images
        return self.vlm_processor(text=texts, images=pictures if has_images else None, **ASKED.get(name, {}), **options)

    def _ending(self, ids: list[int]) -> list[int]:
        """What the VLM's processor has written behind a text without a chat format."""
        endings = (ending for ending in (self._newline, self._separator) if ending)
        return next((ending for ending in endings if ids[-len(ending) :] == ending), [])

    def _extended(self, row: dict[str, list], ids: list[int], expert_reads: bool) -> dict[str, list]:
        fill = {"attention_mask": 1, "expert_attention_mask": expert_reads, "token_type_ids": self._token_type}
        return extend(row, ids, **fill)

    def _padded(self, rows: list[dict[str, list]], side: str) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        padding = {"input_ids": self.tokenizer.pad_token_id, "labels": -100}
        return {n: pad_rows([row[n] for row in rows], longest, padding.get(n, 0), side) for n in rows[0]}

    # --------------------------------------------------------------------------------------------- batches, once more
    def add_responses(self, prompts, responses: Sequence[str | None], expert_reads_response: bool) -> dict:
        """Append what the VLM has said: see `KIVLAProcessor.add_responses`."""
        rows = []
        for row, words in zip(_rows(prompts), responses, strict=True):
            ids = self.answer(1, self.words.plain(words, "responses")) if words else []
            rows.append(self._extended(row, ids, expert_reads_response))
        return self._replaced(prompts, rows)

    def cut(self, batch, ends: torch.Tensor) -> dict[str, torch.Tensor]:
        """Cut every sequence of a batch at its place in `ends` (B,), and pad on the left as `generate` needs.

        `labels` and `actions` are left out.
        """
        lengths = tokens_before(batch, ends).tolist()
        kept = {name: tensor for name, tensor in batch.items() if name not in ("labels", "actions")}
        rows = [{n: v[:length] for n, v in row.items()} for row, length in zip(_rows(kept), lengths, strict=True)]
        return self._replaced(kept, rows)

    def _replaced(self, batch, rows: list[dict[str, list]]) -> dict[str, torch.Tensor]:
        """The batch with these per-token lists in place of its own."""
        device = batch["input_ids"].device
        return {**batch, **{name: tensor.to(device) for name, tensor in self._padded(rows, "left").items()}}


def action_spans(
    tokenizer: ActionTokenizer, token_ids: np.ndarray, chunk: np.ndarray, is_pad: np.ndarray
) -> tuple[list[Span], bool]:
    """The tokens of a chunk, and whether they are a whole one.

    Padded steps are not learned. A tokenizer with codes for each step (bins) leaves them out. With FAST every code is
    about all steps: there the padded ones hold the last action, as openpi and LeRobot train it, unless no step is real.

    Args:
        token_ids: (vocab_size,), the token of every code.
        chunk: (H, D), normalised.
        is_pad: (H,) bool.
    """
    if is_pad.all():
        return [], False
    (codes,) = tokenizer.encode(chunk[None])
    ids, steps = token_ids[codes], tokenizer.steps_of(codes, chunk.shape[1])
    if steps is None:
        return [Span(ids.tolist(), True)], True
    is_real = ~is_pad[steps]  # (n,)
    needed = len(is_real) - int(is_real[::-1].argmax())  # what comes after the last real one is not
    groups = groupby(zip(ids[:needed].tolist(), is_real[:needed], strict=True), lambda pair: bool(pair[1]))
    return [Span([token for token, _ in group], real) for real, group in groups], not is_pad.any()


def prompt_ends(batch) -> torch.Tensor:
    """(B,), where the suffix begins in each row of a batch for training; where there is none, the row's end.

    A document has no prompt; its first token stands for one, as a VLM wants something to go on from.
    """
    mask = batch["attention_mask"].bool()
    in_suffix = mask & ((batch["labels"] != -100) | ~batch["expert_attention_mask"])
    return _first(in_suffix, mask).clamp(min=1)


def response_ends(batch, action_token_ids: torch.Tensor) -> torch.Tensor:
    """(B,), where the action tokens begin in each row of a batch for training; where there are none, the row's end."""
    mask = batch["attention_mask"].bool()
    return _first(torch.isin(batch["labels"], action_token_ids.to(mask.device)), mask)


def are_documents(labels: torch.Tensor) -> torch.Tensor:
    """Say which examples of a batch for training are documents: (B, S) labels -> (B,) bool.

    They are learned from the start; all others have a prompt.
    """
    return labels[:, 0] != -100


def tokens_before(batch, ends: torch.Tensor) -> torch.Tensor:
    """(B,), the tokens of each row that stand before its place in `ends`; padding is none."""
    mask = batch["attention_mask"].bool()
    return (mask & (torch.arange(mask.shape[1], device=mask.device) < ends[:, None])).sum(1)


def first_answers(labels: torch.Tensor, end_token_id: int) -> list[list[int]]:
    """The first learned tokens of every row, up to and with the end of the VLM's turn."""
    answers = []
    for row in labels.tolist():
        learned = row[next((i for i, token in enumerate(row) if token != -100), len(row)) :]
        answer = list(takewhile(lambda token: token not in (-100, end_token_id), learned))
        answers.append([*answer, end_token_id] if answer else [])
    return answers


def _first(found: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B,), the first place of each row that was found; of rows without any, the place behind their last token."""
    end = mask.shape[1] - mask.flip(1).int().argmax(1)
    return torch.where(found.any(1), found.int().argmax(1), end)


def _rows(batch) -> list[dict[str, list]]:
    """Per-token lists of every example, without padding."""
    input_ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    per_token = {
        n: t
        for n, t in batch.items()
        if torch.is_tensor(t) and t.shape == input_ids.shape and n not in ("state", "labels")
    }
    return [{n: tensor[i][mask[i]].tolist() for n, tensor in per_token.items()} for i in range(len(mask))]


def _one_line(text: str) -> str:
    """An instruction as openpi and LeRobot put it into a prompt."""
    return text.strip().replace("_", " ").replace("\n", " ")


__all__ = [
    "Example",
    "Sequences",
    "action_spans",
    "are_documents",
    "first_answers",
    "prompt_ends",
    "response_ends",
    "tokens_before",
]
