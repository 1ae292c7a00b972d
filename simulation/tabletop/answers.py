"""Count right answers about tabletop scenes, by kind of question."""

from collections import defaultdict
from collections.abc import Sequence

from datasets import Dataset

from ...training.evaluation.confidence import wilson_interval
from ...training.evaluation.right_answers import is_right
from ...training.evaluation.vlm_answers import answer_of
from .questions import QUESTION_KINDS, place_distance

PLACE_KINDS = ("place", "cell", "gripper_place", "gripper_cell")


def answer_accuracy(questions: Dataset, answers: Sequence[str]) -> dict[str, dict]:
    """By kind of question, and for "all": `correct`, `asked`, `accuracy` with the bounds `low` and `high` of a 95 %
    Wilson interval, and `chance` (what a constant answer scores at most). Kinds that ask for a place have a second
    entry, "... to one cell": right or a neighbour.
    """
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for kind, messages, answer in zip(questions["kind"], questions["messages"], answers, strict=True):
        truth = answer_of(messages)
        outcomes["all"].append(is_right(answer, [truth]))
        outcomes[kind].append(outcomes["all"][-1])
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
