"""The two heads of one policy on one picture: the path that its VLM says in action tokens, and its expert's.

Both read the same picture and sentence, and learned from the same demonstrations. Where the heads of a trained policy
go wrong the same way, that hints at seeing or reading; where they part, at the head that acts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..simulation import TabletopVectorEnv
from ..simulation.report_media import write_title
from ..simulation.rollout import Episode, PipelinePolicy, rollout
from ..simulation.tabletop.env import STEP
from ..simulation.tabletop.tasks import LIMIT
from ..training.evaluation.plots import OTHER, PREDICTED

MOMENTS = 3  # of an episode: its first plan, one in the middle, its last


class Moment(NamedTuple):
    """What the policy saw when it planned, and what both heads wanted to do then, (H, 3) in the tabletop's units."""

    step: int
    observation: dict
    by_expert: np.ndarray
    by_tokens: np.ndarray


def draw_two_heads(path: Path, pipe, options: dict, episodes: Sequence[Episode], replan_every: int) -> bool:
    """Draw what both heads of a tabletop policy plan at some moments of episodes, a row for each.

    Args:
        path: where the picture goes.
        pipe: `pipeline("action-prediction")` of the policy.
        options: of the tabletop that the episodes were in.
        episodes: their scenes are acted in again.
        replan_every: as in these episodes.

    Returns:
        Whether there was anything to draw: not of a policy that has one head alone.
    """
    has_both = pipe.model.config.acts_by == "flow" and pipe.processor.action_tokenizer is not None
    if not has_both or not episodes:
        return False
    figure = Figure(figsize=(2.6 * MOMENTS, 2.9 * len(episodes) + 0.4), layout="constrained")
    rows = figure.subfigures(len(episodes), 1, squeeze=False)[:, 0]
    for row, episode in zip(rows, episodes, strict=True):
        write_title(row, episode)
        axes = row.subplots(1, MOMENTS)
        for axis in axes:
            axis.set_axis_off()
        for axis, moment in zip(axes, moments_of(pipe, options, episode, replan_every), strict=False):
            _draw(axis, moment)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    figure.savefig(path, dpi=110)
    return True


def moments_of(pipe, options: dict, episode: Episode, replan_every: int) -> list[Moment]:
    """Let the expert act in an episode's scene, and ask the VLM for action tokens at `MOMENTS` moments at most."""
    watched, env = _Watched(PipelinePolicy(pipe)), TabletopVectorEnv(1, **options)
    rollout(watched, env, [episode.seed], replan_every, max(episode.steps, 1), description="Both heads")
    env.close()
    chosen = np.unique(np.linspace(0, len(watched.plans) - 1, MOMENTS).round().astype(int))
    said = PipelinePolicy(pipe, acts_by="tokens")([watched.plans[i][0] for i in chosen])
    return [
        Moment(int(i) * replan_every, *watched.plans[i], by_tokens) for i, by_tokens in zip(chosen, said, strict=True)
    ]


class _Watched:
    """A policy that keeps what it was shown and what it planned, of one episode."""

    def __init__(self, policy: PipelinePolicy):
        self.policy = policy
        self.observation_history = policy.observation_history
        self.plans: list[tuple[dict, np.ndarray]] = []

    def __call__(self, observations: list[dict]) -> np.ndarray:
        chunks = self.policy(observations)
        self.plans.append((observations[0], chunks[0]))
        return chunks


def path_of(start: np.ndarray, chunk: np.ndarray) -> np.ndarray:
    """Where a chunk (H, 3) takes the gripper from `start` (2,): (H + 1, 2) table units."""
    points = [start]
    for step in STEP * np.clip(chunk[:, :2], -1, 1):
        points.append(np.clip(points[-1] + step, -LIMIT, LIMIT))
    return np.stack(points)


def _draw(axis: Axes, moment: Moment) -> None:
    """The picture, and both paths on it: a full mark where the gripper is to be closed after the step."""
    axis.imshow(moment.observation["images"]["top"], extent=(-1, 1, -1, 1), interpolation="nearest")
    heads = (
        (moment.by_expert, PREDICTED, "o", "the expert, by flow"),
        (moment.by_tokens, OTHER, "s", "the VLM, by tokens"),
    )
    for chunk, color, mark, label in heads:
        points, closes = path_of(moment.observation["state"][:2], chunk), chunk[:, 2] > 0
        axis.plot(*points.T, color=color, lw=1.8)
        inside = np.where(closes, color, "none")
        axis.scatter(*points[1:].T, s=18, marker=mark, edgecolors=color, facecolors=inside, zorder=3, label=label)
    behind = {"facecolor": "black", "alpha": 0.6, "pad": 1.5, "edgecolor": "none"}
    axis.text(-0.95, -0.93, f"step {moment.step}", color="white", fontsize=8, bbox=behind)
    axis.set(xlim=(-1, 1), ylim=(-1, 1))
