"""What the rows of a study say: for each recipe and condition knowledge kept, success and actions, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..simulation.rollout_evaluation import success_rate
from ..training.evaluation.confidence import Interval, bootstrap_interval, mcnemar_test, wilson_interval


@dataclass(frozen=True)
class Group:
    """The runs of one recipe under one condition, one of each seed."""

    recipe: str
    condition: str
    rows: list[dict]

    @property
    def name(self) -> str:
        return f"{self.recipe}, {self.condition}"

    @property
    def seeds(self) -> list[int]:
        return [row["seed"] for row in self.rows]

    def of_seed(self, *seeds: int) -> "Group":
        """Some of its runs."""
        return replace(self, rows=[row for row in self.rows if row["seed"] in seeds])

    # -------------------------------------------------------------------------------------------------- knowledge
    def lost(self, before: dict, step: int) -> Interval | None:
        """How much more the held-out texts cost than before, in nats a token; None without texts.

        The mean over seeds, with a bootstrap interval over texts, paired with those before.
        """
        if before["texts"] is None:
            return None
        return bootstrap_interval(self._lost_by_text(before, step), before["texts"]["tokens"])

    def _lost_by_text(self, before: dict, step: int) -> np.ndarray:
        costs = [np.array(_at(row["points"], step)["texts"]["nll"]) for row in self.rows]
        return np.mean(costs, axis=0) - np.array(before["texts"]["nll"])

    def lost_against(self, other: "Group", before: dict) -> Interval | None:
        """How much more the held-out texts cost at the end than after another group's runs, with a paired interval."""
        if before["texts"] is None:
            return None
        ours, theirs = (group._lost_by_text(before, group.last_step) for group in (self, other))
        return bootstrap_interval(ours - theirs, before["texts"]["tokens"])

    @property
    def last_step(self) -> int:
        return self.rows[0]["points"][-1]["step"]

    def answers(self) -> dict | None:
        """The answers at the end, of all seeds together."""
        found = [row["answers"] for row in self.rows if row["answers"] is not None]
        if not found:
            return None
        correct, asked = sum(score["correct"] for score in found), sum(score["asked"] for score in found)
        low, high = wilson_interval(correct, asked)
        return {"accuracy": correct / asked, "low": low, "high": high}

    # ----------------------------------------------------------------------------------------------------- actions
    @property
    def rollouts(self) -> list[str]:
        """The closed loops that were tried; the first one also with swapped instructions."""
        return [name for name in self.rows[0]["acts"][0] if name not in ("step", "action_error")]

    def outcomes(self, rollouts: str, step: int | None = None, outcome: str = "success") -> list[bool]:
        """The outcomes of a closed loop, seed by seed and scene by scene; at the end by default."""
        return [bit == "1" for row in self.rows for bit in _at(row["acts"], step)[rollouts][outcome]]

    def rate(self, rollouts: str, step: int | None = None, outcome: str = "success") -> dict:
        """The share of these outcomes, with Wilson's interval over all episodes."""
        return success_rate(self.outcomes(rollouts, step, outcome))

    def action_error(self, step: int | None = None) -> Interval:
        """The error of held-out actions as a share of that of always doing the mean action.

        The mean over seeds, with a bootstrap interval over episodes.
        """
        found = [_at(row["acts"], step)["action_error"] for row in self.rows]
        own = np.mean([error["error"] for error in found], axis=0)
        return bootstrap_interval(own, found[0]["of_mean_action"])

    def steps_to(self, target: float) -> list[int | None]:
        """For each seed the first step at which the policy acted with so much success."""
        return [
            next((act["step"] for act in row["acts"] if _share(act[self.rollouts[0]]["success"]) >= target), None)
            for row in self.rows
        ]

    def acts_at(self) -> list[int]:
        return [act["step"] for act in self.rows[0]["acts"]]


def groups_of(rows: Sequence[dict]) -> list[Group]:
    """Group the rows by recipe and condition, in the order of their first ones."""
    keys = dict.fromkeys((row["recipe"], row["condition"]) for row in rows)
    return [Group(*key, [row for row in rows if (row["recipe"], row["condition"]) == key]) for key in keys]


def compare(first: Group, second: Group, before: dict) -> dict | None:
    """Compare two groups at the end, on the same seeds, scenes and texts; None if they have no seed in common.

    Returns:
        `lost`: how much more the texts cost after the first (an `Interval`, or None); `success`: how much more of the
        first closed loop's scenes it succeeds in, and `p_value` of that (McNemar's exact test), or None.
    """
    both = [seed for seed in first.seeds if seed in second.seeds]
    if not both:
        return None
    first, second = (group.of_seed(*both) for group in (first, second))
    found: dict = {"lost": first.lost_against(second, before), "success": None, "p_value": None}
    if first.rollouts and second.rollouts:
        ours, theirs = (group.outcomes(first.rollouts[0]) for group in (first, second))
        found["success"] = float(np.mean(ours) - np.mean(theirs))
        found["p_value"] = mcnemar_test(ours, theirs).p_value
    return found


def _at(entries: list[dict], step: int | None) -> dict:
    return entries[-1] if step is None else next(entry for entry in entries if entry["step"] == step)


def _share(bits: str) -> float:
    return bits.count("1") / len(bits)
