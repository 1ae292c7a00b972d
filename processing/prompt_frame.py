"""What stands around a prompt and an answer in the format that a VLM was trained on."""

from dataclasses import dataclass

from transformers import ProcessorMixin

# Stand for the user's and the assistant's words while a chat template is rendered
_PROMPT, _ANSWER = "\u2022prompt\u2022", "\u2022answer\u2022"


@dataclass
class PromptFrame:
    """A question is `before + prompt + after`; the VLM answers `lead + answer + closing`.

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


def prompt_frame(vlm_processor: ProcessorMixin, num_images: int) -> PromptFrame:
    """The frame for a prompt with so many images in front of it.

    Raises:
        ValueError: a chat template that leaves out the words of the user or of the assistant.
    """
    eos = vlm_processor.tokenizer.eos_token
    if not has_chat(vlm_processor):
        return PromptFrame(vlm_processor.image_token * num_images, "", "", eos)
    render = vlm_processor.apply_chat_template
    content = [*({"type": "image"} for _ in range(num_images)), {"type": "text", "text": _PROMPT}]
    question = {"role": "user", "content": content}
    answer = {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]}
    asked = render([question], add_generation_prompt=True, tokenize=False)
    before, has_prompt, after = asked.partition(_PROMPT)
    turn, has_answer, closing = render([question, answer], tokenize=False).rpartition(_ANSWER)
    if not has_prompt or not has_answer:
        missing = "answer" if has_prompt else "prompt"
        raise ValueError(
            f"The chat template of {type(vlm_processor).__name__} leaves out the {missing}: "
            'it should write {"type": "text", "text": ...} in the turns of `user` and `assistant`. Set another '
            "`vlm_processor.chat_template`, or None for a plain prompt."
        )
    lead = turn.removeprefix(asked) if turn.startswith(asked) else ""  # SmolVLM: "Assistant:", then " answer"
    closing = closing.strip() or eos
    again = {"role": "user", "content": [{"type": "text", "text": _PROMPT}]}
    conversation = render([question, answer, again], tokenize=False)
    between = conversation.rpartition(_ANSWER)[2].partition(_PROMPT)[0].removeprefix(closing)
    return PromptFrame(before, after, lead, closing, between)
