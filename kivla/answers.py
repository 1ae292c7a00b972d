"""Ask a VLM, or a policy that was one, and count the right answers by kind of question."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from .simulation.questions import QUESTION_KINDS, place_distance
from .simulation.statistics import wilson_interval
from .training.vlm_dataset import text_of

PLACE_KINDS = ("place", "cell", "gripper_place", "gripper_cell")


@torch.no_grad()
def ask(
    model: PreTrainedModel,
    vlm_processor: ProcessorMixin,
    questions: Dataset,
    batch_size: int = 128,
    max_new_tokens: int = 12,
) -> list[str]:
    """Greedy answers, one for each row.

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
    """A conversation in the VLM's own format, ready to be continued if the user spoke last. Without a chat template:
    an image placeholder and the question."""
    asks = messages[-1]["role"] == "user"
    if vlm_processor.chat_template:
        return vlm_processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
    return vlm_processor.image_token + text_of(messages[0])


def answer_of(messages: list[dict]) -> str:
    return text_of(messages[1])


def answer_accuracy(questions: Dataset, answers: Sequence[str]) -> dict[str, dict]:
    """By kind of question, and for "all": `correct`, `asked`, `accuracy` with the bounds `low` and `high` of a 95 %
    Wilson interval, and `chance` (what a constant answer scores at most). Kinds that ask for a place have a second
    entry, "... to one cell": right or a neighbour.
    """
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for kind, messages, answer in zip(questions["kind"], questions["messages"], answers, strict=True):
        truth = answer_of(messages)
        outcomes["all"].append(answer == truth)
        outcomes[kind].append(answer == truth)
        if kind in PLACE_KINDS:
            distance = place_distance(answer, truth)
            outcomes[f"{kind} to one cell"].append(distance is not None and distance <= 1)
    table = {}
    for kind in sorted(outcomes):
        correct, asked = sum(outcomes[kind]), len(outcomes[kind])
        low, high = wilson_interval(correct, asked)
        table[kind] = {
            "correct": correct,
            "asked": asked,
            "accuracy": correct / asked,
            "low": low,
            "high": high,
            "chance": QUESTION_KINDS.get(kind),
        }
    return table


def format_accuracy(table: dict[str, dict]) -> str:
    lines = [f"{'question':28}{'right':>9}{'95 % interval':>18}{'chance':>9}{'asked':>8}"]
    for kind, row in table.items():
        chance = "" if row["chance"] is None else f"{100 * row['chance']:.1f} %"
        interval = f"{100 * row['low']:.1f} - {100 * row['high']:.1f} %"
        lines.append(f"{kind:28}{100 * row['accuracy']:7.1f} %{interval:>18}{chance:>9}{row['asked']:>8}")
    return "\n".join(lines)
