"""What the rows of a study say: for each recipe and condition knowledge kept, success and actions, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..simulation.rollout_evaluation import success_rate
from ..training.evaluation.confidence import Interval, wilson_interval


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
        """How much more the held-out texts cost than before, in nats a token; None without texts."""
        if before["texts"] is None:
            return None
        return bootstrap_seeds(self.text_costs(step) - np.array(before["texts"]["nll"]), before["texts"]["tokens"])

    def text_costs(self, step: int) -> np.ndarray:
        """What every text costs after each seed's run, (seeds, texts)."""
        return np.array([_at(row["points"], step)["texts"]["nll"] for row in self.rows])

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
    def loops(self) -> list[tuple[str, str]]:
        """What was tried in closed loop: the name of the roll-outs and how it was told; the first is the main one."""
        found = self.rows[0]["acts"][0]["rollouts"]
        return [(name, told) for name in found for told in ("told", "synonym") if told in found[name]]

    def outcomes(self, loop: tuple[str, str], step: int | None = None) -> np.ndarray:
        """The outcomes of a closed loop, (seeds, scenes) bool; at the end by default."""
        name, told = loop
        found = [_at(row["acts"], step)["rollouts"][name][told] for row in self.rows]
        return np.array([[bit == "1" for bit in bits] for bits in found])

    def rate(self, loop: tuple[str, str], step: int | None = None) -> dict:
        """The share of these outcomes, with Wilson's interval over all episodes."""
        return success_rate(self.outcomes(loop, step).flatten())

    def action_error(self, step: int | None = None) -> Interval:
        """The error of held-out actions, episode by episode, as a share of that of always doing the mean action."""
        found = [_at(row["acts"], step)["action_error"] for row in self.rows]
        return bootstrap_seeds(np.array([error["error"] for error in found]), found[0]["of_mean_action"])

    def steps_to(self, target: float) -> list[int | None]:
        """For each seed the first step at which the main closed loop had so much success."""
        rates = {step: self.outcomes(self.loops[0], step).mean(1) for step in self.acts_at()}
        return [next((step for step in rates if rates[step][i] >= target), None) for i in range(len(self.rows))]

    def acts_at(self) -> list[int]:
        return [act["step"] for act in self.rows[0]["acts"]]


def groups_of(rows: Sequence[dict]) -> list[Group]:
    """Group the rows by recipe and condition, in the order of their first ones."""
    keys = dict.fromkeys((row["recipe"], row["condition"]) for row in rows)
    return [Group(*key, [row for row in rows if (row["recipe"], row["condition"]) == key]) for key in keys]


def compare(first: Group, second: Group, before: dict) -> dict[str, Interval | None] | None:
    """Compare two groups at the end, on the same seeds, scenes and texts; None if they have no seed in common.

    Returns:
        `lost`: how much more the texts cost after the first; `success`: of how many more of the first closed loop's
        scenes it does as told, as a share. None where there is no such measurement.
    """
    both = [seed for seed in first.seeds if seed in second.seeds]
    if not both:
        return None
    first, second = first.of_seed(*both), second.of_seed(*both)
    lost = success = None
    if before["texts"] is not None:
        costs = first.text_costs(first.last_step) - second.text_costs(second.last_step)
        lost = bootstrap_seeds(costs, before["texts"]["tokens"])
    if first.loops and second.loops:
        ours, theirs = (group.outcomes(first.loops[0]).astype(float) for group in (first, second))
        success = bootstrap_seeds(ours - theirs)
    return {"lost": lost, "success": success}


def bootstrap_seeds(totals: np.ndarray, counts: Sequence[float] | None = None, num_resamples: int = 4000) -> Interval:
    """Mean over seeds and things (texts, scenes, episodes), with a 95 % bootstrap interval that draws both anew.

    Things are the same for every seed, and are drawn together. With one seed the interval knows nothing of seeds; with
    two or three it is about as wide as they lie apart.

    Args:
        totals: (seeds, n), one sum for each.
        counts: (n,), of how many values each is the sum; by default one.
    """
    seeds, things = totals.shape
    counts = np.ones(things) if counts is None else np.asarray(counts, np.float64)
    rng = np.random.default_rng(0)
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), num_resamples) / seeds  # (resamples, seeds)
    of_things = rng.multinomial(things, np.full(things, 1 / things), num_resamples)  # (resamples, n)
    means = ((of_seeds @ totals) * of_things).sum(1) / (of_things @ counts)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(totals.sum() / (seeds * counts.sum())), float(low), float(high))


def _at(entries: list[dict], step: int | None) -> dict:
    return entries[-1] if step is None else next(entry for entry in entries if entry["step"] == step)
