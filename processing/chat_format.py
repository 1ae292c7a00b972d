"""What stands around a prompt and an answer in the format that a VLM was trained on."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from jinja2 import TemplateError
from transformers import ProcessorMixin

from .saved_settings import check_prompts

logger = logging.getLogger(__name__)

# Stand for the user's and the assistant's words while a chat template is rendered
_PROMPT, _ANSWER = "\u2022prompt\u2022", "\u2022answer\u2022"
# Formats of prompts with up to so many images are rendered at once and saved.
_MOST_IMAGES = 8


@dataclass
class ChatFormat:
    """What stands around a prompt and its answer.

    A question is `before + prompt + after`; the VLM answers `lead + answer + closing`.

    `before` holds the image placeholders. The closing ends the VLM's turn, and it is not empty. In a conversation the
    next question is `between + prompt + after`.
    """

    before: str
    after: str
    lead: str
    closing: str
    between: str = ""


def has_chat(vlm_processor: ProcessorMixin) -> bool:
    """Whether the VLM was trained on chats. Others (PaliGemma) get images, the prompt, and answer at once."""
    return bool(vlm_processor.chat_template)


# What stands in front of a prompt: so many images; or where videos are among them a letter for each, such as "vi"
Media = int | str
IMAGE, VIDEO = "i", "v"
_KINDS = {IMAGE: "image", VIDEO: "video"}


def media_of(letters: str) -> Media:
    """Name what stands in front of a prompt, from a letter for each."""
    return letters if VIDEO in letters else len(letters)


def chat_format(vlm_processor: ProcessorMixin, media: Media) -> ChatFormat:
    """What stands around a prompt with so many images, or these images and videos, in front of it.

    Raises:
        ValueError: a chat template that leaves out the words of the user or of the assistant.
    """
    eos = vlm_processor.tokenizer.eos_token
    letters = IMAGE * media if isinstance(media, int) else media
    if not has_chat(vlm_processor):
        return ChatFormat(vlm_processor.image_token * len(letters), "", "", eos)
    render = vlm_processor.apply_chat_template
    content = [*({"type": _KINDS[letter]} for letter in letters), {"type": "text", "text": _PROMPT}]
    question = {"role": "user", "content": content}
    answer = {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]}
    before, has_prompt, after = render([question], add_generation_prompt=True, tokenize=False).partition(_PROMPT)
    turn, has_answer, closing = render([question, answer], tokenize=False).rpartition(_ANSWER)
    if not has_prompt or not has_answer:
        missing = "answer" if has_prompt else "prompt"
        raise ValueError(
            f"The chat template of {type(vlm_processor).__name__} leaves out the {missing}: "
            'it should write {"type": "text", "text": ...} in the turns of `user` and `assistant`. Set another '
            "`vlm_processor.chat_template`, or None for a plain prompt."
        )
    # SmolVLM: "Assistant:", then " answer". What is in front of the prompt may differ (the time of day).
    answered = turn.partition(_PROMPT)[2]
    lead = answered.removeprefix(after) if answered.startswith(after) else ""
    closing = closing.strip() or eos
    again = {"role": "user", "content": [{"type": "text", "text": _PROMPT}]}
    conversation = render([question, answer, again], tokenize=False)
    between = conversation.rpartition(_ANSWER)[2].partition(_PROMPT)[0].removeprefix(closing)
    return ChatFormat(before, after, lead, closing, between)


class ChatFormats:
    """The chat formats of one processor, by number of images: rendered once, when it is made, and then kept.

    A chat template may write today's date, draw a system prompt, or be changed by a later version of a library. A
    policy has learned the prompts of its training, so these are saved with it.

    Args:
        vlm_processor: whose chat template it is.
        most_images: prompts with up to so many are rendered at once (8 at least).
        most_videos: and those with up to so many videos.
        saved: of `to_dict`, in place of what the template would write today.

    Raises:
        ValueError: a chat template that does not work, or `saved` is damaged.
    """

    def __init__(
        self,
        vlm_processor: ProcessorMixin,
        most_images: int = 0,
        saved: Mapping[str, dict] | None = None,
        most_videos: int = 0,
    ):
        self._vlm_processor = vlm_processor
        self._template = vlm_processor.chat_template
        if saved is not None:
            check_prompts(saved, [field.name for field in fields(ChatFormat)])
            self._fixed: dict[Media, ChatFormat] = {
                int(media) if media.isdecimal() else media: ChatFormat(**texts) for media, texts in saved.items()
            }
        else:
            if "strftime_now" in str(self._template):
                logger.warning(
                    f"The chat template of {type(vlm_processor).__name__} writes the date. The prompts of this policy "
                    "keep that of today: they are saved with its processor."
                )
            self._fixed = {1: chat_format(vlm_processor, 1)}  # a template that does not work is better known now
            videos = [VIDEO * number for number in range(1, most_videos + 1)]
            for media in (*range(max(most_images, _MOST_IMAGES) + 1), *videos):
                try:
                    self._fixed[media] = chat_format(vlm_processor, media)
                except (TemplateError, ValueError):  # raised again where such a prompt is asked for
                    continue
        self._others: dict[Media, ChatFormat] = {}

    def __getitem__(self, media: Media) -> ChatFormat:
        """The format of prompts with so many images, or these images and videos.

        Raises:
            ValueError: the chat template was replaced, or it refuses so many images, or there is no saved format for
                them, and the template writes something else by now.
        """
        if self._vlm_processor.chat_template != self._template:
            raise ValueError(
                "The chat template was changed after this processor was made, which keeps the prompts of the old one. "
                "Set `vlm_processor.chat_template` first, and make a new KIVLAProcessor(vlm_processor, ...)."
            )
        if media in self._fixed:
            return self._fixed[media]
        if media not in self._others:
            if chat_format(self._vlm_processor, 1) != self._fixed[1]:
                raise ValueError(
                    f"this processor has saved its prompts with {sorted(self._fixed, key=str)} images, and none with "
                    f"{media}. Its chat template writes another prompt by now than when the processor was made "
                    "(a date, or another version of a library), so it cannot be written anew. Use fewer images."
                )
            self._others[media] = chat_format(self._vlm_processor, media)
        return self._others[media]

    @property
    def written(self) -> str:
        """All that the formats write."""
        return "\n".join(text for chat in self._fixed.values() for text in asdict(chat).values())

    def to_dict(self) -> dict[str, dict]:
        """Return the formats by number of images (or by a letter for each, with videos), ready for JSON."""
        return {str(media): asdict(chat) for media, chat in sorted(self._fixed.items(), key=_order)}


def _order(entry: tuple[Media, ChatFormat]) -> tuple:
    media, _ = entry
    return (isinstance(media, str), media)


__all__ = ["IMAGE", "VIDEO", "ChatFormat", "ChatFormats", "Media", "chat_format", "has_chat", "media_of"]
