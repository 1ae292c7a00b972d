"""`kivla rollout`: a policy acts in a simulator; success with intervals, and whether the instruction matters."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

import yaml
from transformers import pipeline

from .cli import parse
from .simulation.environments import ENVIRONMENTS, make_env
from .simulation.report_media import choose_episodes, title, write_contact_sheet, write_video
from .simulation.rollout import Episode, PipelinePolicy, Policy, RolloutResult, rollout, swapped_instructions
from .simulation.statistics import mcnemar_test, wilson_interval


@dataclass
class RolloutArguments:
    policy: str = field(metadata={"help": "Trained KIVLA policy: a Hub id or a folder."})
    env: str = field(default="tabletop", metadata={"help": f"Environment: {', '.join(ENVIRONMENTS)}."})
    env_options: list[str] = field(
        default_factory=list, metadata={"help": "Options of the environment as NAME=VALUE, values as in YAML."}
    )
    num_episodes: int = field(default=200, metadata={"help": "Episodes, each in a scene of its own."})
    first_seed: int = field(
        default=1_000_000, metadata={"help": "Seed of the first scene; the others follow. Far from those of training."}
    )
    num_envs: int = field(default=50, metadata={"help": "Episodes at once: one forward pass for all."})
    replan_every: int | None = field(
        default=None, metadata={"help": "Actions of a chunk that are executed before the policy looks again; half."}
    )
    max_steps: int = field(default=200, metadata={"help": "Longest episode."})
    swapped: bool = field(
        default=True, metadata={"help": "The same scenes again, with an instruction about another object."}
    )
    compare: str | None = field(
        default=None, metadata={"help": "Another policy, in the same scenes: paired test (McNemar)."}
    )
    num_steps: int | None = field(default=None, metadata={"help": "Euler steps; the policy's default."})
    seed: int = field(default=0, metadata={"help": "Seed of the policy's noise."})
    clip_actions: bool | None = field(
        default=None, metadata={"help": "Hold actions within the range of the policy's data; it does, if it can."}
    )
    num_videos: int = field(default=8, metadata={"help": "Episodes to show, failures and successes."})
    video_format: str = field(default="mp4", metadata={"help": "mp4 or gif."})
    output_dir: str = field(default="outputs/rollout", metadata={"help": "Where table, videos and JSON go."})


def run(arguments: Sequence[str]) -> None:
    (args,) = parse((RolloutArguments,), arguments, prog="kivla rollout", positional="policy")
    if args.video_format not in ("mp4", "gif"):
        raise SystemExit(f"kivla rollout: --video_format is mp4 or gif, not {args.video_format!r}.")
    if args.video_format == "mp4" and video_format() == "gif" and args.num_videos > 0:
        raise SystemExit('kivla rollout: mp4 needs PyAV (pip install "kivla[video]"); --video_format gif does not.')
    names = [args.policy] if args.compare is None else [args.policy, args.compare]
    pipes = [pipeline("action-prediction", model=name) for name in names]
    replan_every = args.replan_every or max(min(pipe.processor.chunk_size for pipe in pipes) // 2, 1)
    env = make_env(args.env, min(args.num_envs, args.num_episodes), **parse_options(args.env_options))
    seeds = range(args.first_seed, args.first_seed + args.num_episodes)
    policies = [PipelinePolicy(pipe, args.seed, args.num_steps, args.clip_actions) for pipe in pipes]
    reports, results = [], []
    for name, policy in zip(names, policies, strict=True):
        figures, result = evaluate(policy, env, seeds, replan_every, args.max_steps, args.swapped)
        reports.append({"policy": name, **figures, "clipped_share": policy.clipped_share})
        results.append(result)
    shown = choose_episodes(results[0].episodes, args.num_videos)
    shown = replay(policies[0], env, shown, replan_every, args.max_steps)
    env.close()
    report = {**asdict(args), "replan_every": replan_every, "policies": reports, "comparison": None}
    if args.compare is not None:
        report["comparison"] = asdict(mcnemar_test(*(result.success for result in results)))
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    report["media"] = write_media(folder, shown, env.fps, args.video_format)
    (folder / "rollout.json").write_text(json.dumps(report, indent=2) + "\n")
    print(format_report(report))
    print(f"\nrollout.json, videos and contact sheet are in {folder}")


def evaluate(
    policy: Policy,
    env,
    seeds: Sequence[int],
    replan_every: int,
    max_steps: int,
    swapped: bool = True,
) -> tuple[dict, RolloutResult]:
    """Roll-outs and, with `swapped`, the control: the same scenes with an instruction about another object.

    Returns:
        Figures for JSON, and the roll-outs with the true instructions. The figures: `success`, and `swapped` (or None)
        with `original` and `swapped` (how often the original and the swapped instruction were fulfilled), each as
        `{"successes", "episodes", "rate", "low", "high"}` with the bounds of a 95 % Wilson interval; `mean_steps`; and
        the outcomes episode by episode.
    """
    result = rollout(policy, env, seeds, replan_every, max_steps, description="True instructions")
    figures = {
        "success": success_rate(result.success),
        "swapped": None,
        "mean_steps": float(result.steps.mean()),
        "episodes": [_outcome(episode) for episode in result.episodes],
    }
    if swapped:
        sentences = swapped_instructions(env, seeds)
        control = rollout(
            policy, env, seeds, replan_every, max_steps, instructions=sentences, description="Swapped instructions"
        )
        figures["swapped"] = {
            "original": success_rate(control.success),
            "swapped": success_rate([episode.swapped_success for episode in control.episodes]),
            "episodes": [_outcome(episode) for episode in control.episodes],
        }
    return figures, result


def replay(policy: Policy, env, episodes: Sequence[Episode], replan_every: int, max_steps: int) -> list[Episode]:
    """The same episodes once more, now with their frames: any of them can be shown, however rare, and no others are
    kept in memory.

    A policy does the same again in the same scene, up to rounding. An episode that this tips over into another outcome
    is left out: what is shown is what was counted.
    """
    if not episodes:
        return []
    seeds = [episode.seed for episode in episodes]
    again = rollout(policy, env, seeds, replan_every, max_steps, record=len(seeds), description="To be shown").episodes
    return [new for old, new in zip(episodes, again, strict=True) if new.success == old.success]


def video_format() -> str:
    """What can be written here: "mp4" with PyAV, otherwise "gif"."""
    return "mp4" if find_spec("av") else "gif"


def success_rate(outcomes: Sequence[bool]) -> dict:
    """Counts, rate, and the bounds of its 95 % Wilson interval."""
    successes, episodes = int(sum(outcomes)), len(outcomes)
    low, high = wilson_interval(successes, episodes)
    return {"successes": successes, "episodes": episodes, "rate": successes / episodes, "low": low, "high": high}


def write_media(folder: Path, episodes: Sequence[Episode], fps: int, video_format: str) -> dict:
    """A video of each episode and a contact sheet of all.

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


def format_report(report: dict) -> str:
    """The JSON's figures as a table."""
    lines = []
    for figures in report["policies"]:
        lines.append(f"{figures['policy']} in {report['env']}, re-planning every {report['replan_every']} steps")
        lines.append(format_rates(figures))
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
    lines = [
        f"{'':42}{'success':>10}{'95 % interval':>20}{'episodes':>14}",
        _row("true instruction", figures["success"]),
    ]
    if figures["swapped"] is not None:
        lines += [
            _row("swapped instruction, original target", figures["swapped"]["original"]),
            _row("swapped instruction, swapped target", figures["swapped"]["swapped"]),
        ]
    return "\n".join(lines)


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
    }


def parse_options(options: Sequence[str]) -> dict:
    """`["size=48", "tasks=[touch, push]"]` -> `{"size": 48, "tasks": ["touch", "push"]}`.

    Raises:
        ValueError: an option without "=".
    """
    pairs = [option.partition("=") for option in options]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise ValueError(f"Options of an environment are written NAME=VALUE, got {wrong[0]!r}.")
    return {name: yaml.safe_load(value) for name, _, value in pairs}
