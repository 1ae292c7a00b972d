"""Ask a VLM, or a policy that was one."""

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from ..data.vlm.dataset import text_of


@torch.no_grad()
def ask(
    model: PreTrainedModel,
    vlm_processor: ProcessorMixin,
    questions: Dataset,
    batch_size: int = 128,
    max_new_tokens: int = 12,
) -> list[str]:
    """Ask questions about pictures; the answers are greedy, one for each row.

    Args:
        model: a VLM, or a KIVLA policy (which generates as its VLM does).
        vlm_processor: the VLM's own processor (of a policy: `processor.vlm_processor`).
        questions: `make_questions(...)` with one question a row.
        max_new_tokens: longest answer.
    """
    tokenizer = vlm_processor.tokenizer
    was_training = model.training
    model.eval()
    answers = []
    for start in tqdm(range(0, len(questions), batch_size), desc="Asking", unit="batch", leave=False):
        rows = questions[start : start + batch_size]
        prompts = [chat_text(vlm_processor, messages[:1]) for messages in rows["messages"]]
        batch = vlm_processor(
            text=prompts,
            images=rows["images"],
            padding=True,
            padding_side="left",
            add_special_tokens=not vlm_processor.chat_template,
            return_tensors="pt",
        ).to(model.device)
        tokens = model.generate(
            **batch, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        answers += tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    model.train(was_training)
    return [answer.strip() for answer in answers]


def chat_text(vlm_processor: ProcessorMixin, messages: list[dict]) -> str:
    """Write a conversation in the VLM's own format, ready to be continued if the user spoke last.

    Without a chat template it is an image placeholder and the question.
    """
    asks = messages[-1]["role"] == "user"
    if vlm_processor.chat_template:
        return vlm_processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
    return vlm_processor.image_token + text_of(messages[0])


def answer_of(messages: list[dict]) -> str:
    """Return the true answer of a conversation of one question."""
    return text_of(messages[1])
