"""Measure a policy in a simulator: success with intervals, the control with swapped instructions, and videos."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..training.evaluation.confidence import mcnemar_test, paired_difference, wilson_interval
from .report_media import choose_episodes, plot_phases, title, write_contact_sheet, write_video
from .rollout import AT_ONCE, Acting, Episode, Policy, RolloutResult, rollout, swapped_instructions

# Figures of a task → how they are called in the table
OF_TASK = {"original": "swapped, original done", "swapped": "swapped, done as told", "time_outs": "time-outs"}


def evaluate(
    policy: Policy,
    env,
    seeds: Sequence[int],
    replan_every: int,
    max_steps: int,
    swapped: bool = True,
    acting: Acting = AT_ONCE,
) -> tuple[dict, RolloutResult]:
    """Run roll-outs and, with `swapped`, the control: the same scenes with an instruction about another object.

    Returns:
        Figures for JSON, and the roll-outs with the true instructions. The figures: `success`, and `swapped` (or None)
        with `original` and `swapped` (how often the original and the swapped instruction were fulfilled), each as
        `{"successes", "episodes", "rate", "low", "high"}` with the bounds of a 95 % Wilson interval; `mean_steps`,
        `mean_held_steps` and `mean_squared_jerk` of an episode; and the outcomes episode by episode. Where instructions
        have words that were never demonstrated, `plain` (else None): see `_plain_words`. Where the environment says how
        far an episode came, `phases` (else None), also of the control, about the swapped instruction: see
        `count_phases`. `time_outs`: how many were over undecided. Where scenes are of several tasks, `tasks` (else
        None): of each `success`, `time_outs` and, with the control, `original` and `swapped`.
    """
    options = {"replan_every": replan_every, "max_steps": max_steps, "acting": acting}
    result = rollout(policy, env, seeds, **options, description="True instructions")
    figures = {
        "success": success_rate(result.success),
        "swapped": None,
        "plain": None,
        "phases": count_phases(result.episodes),
        "time_outs": success_rate([episode.timed_out for episode in result.episodes]),
        "tasks": None,
        "mean_steps": float(result.steps.mean()),
        "mean_held_steps": float(np.mean([episode.held_steps for episode in result.episodes])),
        "mean_squared_jerk": mean_jerk(result.episodes),
        "episodes": [_outcome(episode) for episode in result.episodes],
    }
    if swapped:
        sentences = swapped_instructions(env, seeds)
        control = rollout(policy, env, seeds, **options, instructions=sentences, description="Swapped instructions")
        figures["swapped"] = {
            "original": success_rate(control.success),
            "swapped": success_rate([episode.swapped_success for episode in control.episodes]),
            "phases": count_phases(control.episodes),
            "episodes": [_outcome(episode) for episode in control.episodes],
        }
    figures["tasks"] = _by_task(result, control if swapped else None)
    sentences = [episode.plain_instruction for episode in result.episodes]
    if None not in sentences:
        plain = rollout(policy, env, seeds, **options, instructions=sentences, description="Demonstrated words")
        figures["plain"] = _plain_words(result, plain)
    return figures, result


def _by_task(result: RolloutResult, control: RolloutResult | None) -> dict | None:
    """The figures of each task, by its name in the order of names; None where there are not several."""
    names = sorted({episode.task for episode in result.episodes if episode.task is not None})
    if len(names) < 2:
        return None
    tasks = {}
    for name in names:
        own = [episode for episode in result.episodes if episode.task == name]
        tasks[name] = {
            "success": success_rate([episode.success for episode in own]),
            "time_outs": success_rate([episode.timed_out for episode in own]),
        }
        if control is not None:
            told = [episode for episode in control.episodes if episode.task == name]
            tasks[name]["original"] = success_rate([episode.success for episode in told])
            tasks[name]["swapped"] = success_rate([episode.swapped_success for episode in told])
    return tasks


def count_phases(episodes: Sequence[Episode]) -> list[dict] | None:
    """Count how far episodes came with what the policy was told; None where the environment does not say.

    Returns:
        For each phase, in order, its `name`; `reached`, how many of the episodes that have such a phase got there, as
        `success_rate` has it; and `stopped`, of how many it is the first one that they did not reach. Each episode is
        counted there once at most: those that came to the end stopped nowhere.
    """
    outcomes: dict[str, list[bool]] = {}
    for episode in episodes:
        for name, reached in (episode.phases or {}).items():
            outcomes.setdefault(name, []).append(reached)
    stopped = [episode.stopped_before for episode in episodes]
    return [
        {"name": name, "reached": success_rate(reached), "stopped": stopped.count(name)}
        for name, reached in outcomes.items()
    ] or None


def _plain_words(result: RolloutResult, plain: RolloutResult) -> dict:
    """Compare words that were never demonstrated with those that were, in the same scenes.

    Returns:
        `success` with demonstrated words; `difference` (`mean`, `low` and `high`) of the success with the others from
        it, paired; `p_value` of McNemar's exact test; and `words`: of each that was never demonstrated `success`, and
        `plain` in the same scenes.
    """
    words = {}
    for word in sorted({episode.word for episode in result.episodes}):
        chosen = [i for i, episode in enumerate(result.episodes) if episode.word == word]
        words[word] = {"success": success_rate(result.success[chosen]), "plain": success_rate(plain.success[chosen])}
    return {
        "success": success_rate(plain.success),
        "difference": asdict(paired_difference(result.success, plain.success)),
        "p_value": mcnemar_test(result.success, plain.success).p_value,
        "words": words,
        "episodes": [_outcome(episode) for episode in plain.episodes],
    }


def replay(
    policy: Policy,
    env,
    episodes: Sequence[Episode],
    count: int,
    replan_every: int,
    max_steps: int,
    acting: Acting = AT_ONCE,
) -> list[Episode]:
    """Choose at most `count` of some episodes, failures and successes, run them once more, and keep their frames.

    So any episode can be shown, however rare, and no others are kept in memory. A policy does the same again in the
    same scene, up to rounding. An episode that this tips over into another outcome is not shown, since what is shown is
    what was counted; others are tried in its place, at most as many as `count` again.
    """
    tried: dict[int, Episode | None] = {}  # by seed; None where the outcome was another one
    while len(tried) < 2 * count:
        candidates = [episode for episode in episodes if tried.get(episode.seed, episode) is not None]
        new = [episode for episode in choose_episodes(candidates, count) if episode.seed not in tried]
        if not (new := new[: 2 * count - len(tried)]):
            break
        options = {"record": len(new), "acting": acting, "description": "To be shown"}
        again = rollout(policy, env, [episode.seed for episode in new], replan_every, max_steps, **options).episodes
        for old, run in zip(new, again, strict=True):
            outcomes = [(one.success, one.stopped_before, one.timed_out) for one in (old, run)]
            tried[old.seed] = run if outcomes[0] == outcomes[1] else None
    return choose_episodes([tried[episode.seed] for episode in episodes if tried.get(episode.seed)], count)


def video_format() -> str:
    """The format of videos that can be written here: "mp4" with PyAV, otherwise "gif"."""
    return "mp4" if find_spec("av") else "gif"


def mean_jerk(episodes: Sequence[Episode]) -> float | None:
    """Mean of the episodes' mean squared jerks; None where all were too short to have one."""
    jerks = [episode.jerk for episode in episodes if episode.jerk is not None]
    return float(np.mean(jerks)) if jerks else None


def success_rate(outcomes: Sequence[bool]) -> dict:
    """Successes, episodes, rate, and the bounds of its 95 % Wilson interval."""
    successes, episodes = int(sum(outcomes)), len(outcomes)
    low, high = wilson_interval(successes, episodes)
    return {"successes": successes, "episodes": episodes, "rate": successes / episodes, "low": low, "high": high}


def write_media(folder: Path, episodes: Sequence[Episode], fps: int, video_format: str) -> dict:
    """Write a video of each episode and a contact sheet of all.

    Returns:
        `contact_sheet` and `videos` (file names, with titles), for JSON.
    """
    if not episodes:
        return {"contact_sheet": None, "videos": []}
    write_contact_sheet(folder / "contact_sheet.png", episodes)
    videos = []
    for episode in episodes:
        file = f"episode_{episode.seed}.{video_format}"
        write_video(folder / file, episode, fps)
        videos.append({"file": file, "title": title(episode), "success": episode.success})
    return {"contact_sheet": "contact_sheet.png", "videos": videos}


def write_phases(folder: Path, figures: dict) -> str | None:
    """Draw `phases.png` of what `evaluate` returns; return its name, or None where there are no phases."""
    series = {"true instruction": figures["phases"], "swapped instruction": (figures["swapped"] or {}).get("phases")}
    series = {told: phases for told, phases in series.items() if phases}
    if not series:
        return None
    plot_phases(folder / "phases.png", series)
    return "phases.png"


def format_report(report: dict) -> str:
    """The figures of rollout.json as a table."""
    lines = []
    for figures in report["policies"]:
        acts = f"re-planning every {report['replan_every']} steps"
        if "way" in report:  # reports of earlier versions have none, and neither have the next figures
            acts += f", {report['way']}, {report['latency_steps']} steps late"
        lines.append(f"{figures['policy']} in {report['env']}, {acts}")
        lines.append(format_rates(figures))
        if "mean_held_steps" in figures:
            lines.append(f"{'steps':42}{figures['mean_steps']:10.1f}")
            lines.append(f"{'of these without a new action':42}{figures['mean_held_steps']:10.1f}")
        if figures.get("mean_squared_jerk") is not None:
            lines.append(f"{'mean squared jerk of the actions':42}{figures['mean_squared_jerk']:10.3g}")
        if figures.get("clipped_share") is not None:  # absent where other policies than pipelines act
            lines.append(f"{'action values clipped to their range':42}{100 * figures['clipped_share']:8.2f} %")
        lines.append("")
    if (test := report["comparison"]) is not None:
        lines.append(
            f"On the same scenes only the first succeeds on {test['only_first']} and only the second on "
            f"{test['only_second']}: p = {test['p_value']:.4f} (McNemar's exact test)"
        )
    return "\n".join(lines).rstrip()


def format_rates(figures: dict) -> str:
    """What `evaluate` returns as a table."""
    plain = figures.get("plain")  # figures of earlier versions have none
    lines = [
        f"{'':42}{'success':>10}{'95 % interval':>20}{'episodes':>14}",
        _row("true instruction" if plain is None else "words never demonstrated", figures["success"]),
    ]
    if plain is not None:
        lines.append(_row("the same in demonstrated words", plain["success"]))
    if figures["swapped"] is not None:
        lines += [
            _row("swapped instruction, original done", figures["swapped"]["original"]),
            _row("swapped instruction, done as told", figures["swapped"]["swapped"]),
        ]
    if plain is not None:
        mean, low, high = (100 * plain["difference"][name] for name in ("mean", "low", "high"))
        lines.append(
            f"Words never demonstrated less demonstrated ones, in the same scenes: {mean:+.1f} points ({low:+.1f} to "
            f"{high:+.1f}; p = {plain['p_value']:.4f}, McNemar's exact test)"
        )
        lines += [_row(f"    {word}", row["success"]) for word, row in plain["words"].items()]
    if figures.get("time_outs") is not None:
        lines.append(_row("over undecided (time-outs)", figures["time_outs"]))
    for name, task in (figures.get("tasks") or {}).items():
        lines.append(_row(f"  {name}", task["success"]))
        lines += [_row(f"      {label}", task[what]) for what, label in OF_TASK.items() if what in task]
    lines += _phase_rows("how far it came", figures.get("phases"))
    lines += _phase_rows("swapped instruction: how far it came", (figures["swapped"] or {}).get("phases"))
    return "\n".join(lines)


def _phase_rows(title: str, phases: list[dict] | None) -> list[str]:
    """A line for each phase; none where there are no phases."""
    if not phases:
        return []
    head = f"{title:42}{'reached':>10}{'95 % interval':>20}{'episodes':>14}{'stopped before':>18}"
    return [head, *(f"{_row('    ' + phase['name'], phase['reached']):86}{phase['stopped']:>18}" for phase in phases)]


def _row(name: str, rate: dict) -> str:
    interval = f"{100 * rate['low']:.1f} - {100 * rate['high']:.1f} %"
    return f"{name:42}{100 * rate['rate']:8.1f} %{interval:>20}{rate['successes']:>8} / {rate['episodes']}"


def _outcome(episode: Episode) -> dict:
    return {
        "seed": episode.seed,
        "instruction": episode.instruction,
        "success": episode.success,
        "swapped_success": episode.swapped_success,
        "steps": episode.steps,
        "held_steps": episode.held_steps,
        "jerk": episode.jerk,
        **({} if episode.phases is None else {"stopped_before": episode.stopped_before}),
        **({} if episode.word is None else {"word": episode.word}),
    }
