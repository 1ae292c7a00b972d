"""`kivla rollout`: a policy acts in a simulator; success with intervals, and whether the instruction matters."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..acting.chunk_schedule import RTC_METHODS, WAYS
from ..command_line import parse, policy_pipeline
from ..modeling_kivla.pipeline_kivla import DTYPE_OPTION, NOISE_SCALE_OPTION
from ..processing.camera_names import CAMERAS_HELP, parse_cameras
from ..simulation.environments import ENV_HELP, make_env, parse_options
from ..simulation.rollout import Acting, PipelinePolicy
from ..simulation.rollout_evaluation import (
    evaluate,
    format_report,
    replay,
    video_format,
    write_media,
    write_phases,
)
from ..training.evaluation.confidence import mcnemar_test
from ..training.run_folder import check_for_results


@dataclass
class RolloutArguments:
    policy: str = field(metadata={"help": "Trained KIVLA policy: a Hub id or a folder."})
    env: str = field(default="tabletop", metadata={"help": ENV_HELP})
    env_options: list[str] = field(
        default_factory=list, metadata={"help": "Options of the environment as NAME=VALUE, values as in YAML."}
    )
    num_episodes: int = field(default=200, metadata={"help": "Episodes, each in a scene of its own."})
    first_seed: int = field(
        default=1_000_000, metadata={"help": "Seed of the first scene; the others follow. Far from those of training."}
    )
    num_envs: int = field(default=50, metadata={"help": "Episodes at once: one forward pass for all."})
    replan_every: int | None = field(
        default=None, metadata={"help": "Steps from one look of the policy to the next; half of its chunk."}
    )
    way: str = field(
        default="sync",
        metadata={
            "help": f"How it acts while it thinks: {', '.join(WAYS)}. sync waits, naive takes each chunk as it "
            "comes, ensemble averages, rtc and rtc-trained go on from the last one."
        },
    )
    latency_steps: int = field(default=0, metadata={"help": "Control steps that the policy thinks, simulated."})
    fresh_noise: bool = field(
        default=True, metadata={"help": "New noise for every chunk, as on a robot; false: the same for all."}
    )
    max_steps: int = field(default=200, metadata={"help": "Longest episode."})
    swapped: bool = field(
        default=True, metadata={"help": "The same scenes again, with an instruction about another object."}
    )
    compare: str | None = field(
        default=None, metadata={"help": "Another policy, in the same scenes: paired test (McNemar)."}
    )
    cameras: list[str] | None = field(default=None, metadata={"help": CAMERAS_HELP})
    num_steps: int | None = field(default=None, metadata={"help": "Euler steps; the policy's default."})
    noise_scale: float | None = field(default=None, metadata=NOISE_SCALE_OPTION)
    dtype: str = field(default="auto", metadata=DTYPE_OPTION)
    seed: int = field(default=0, metadata={"help": "Seed of the policy's noise."})
    clip_actions: bool | None = field(
        default=None, metadata={"help": "Hold actions within the range of the policy's data; it does, if it can."}
    )
    respond: bool = field(
        default=True, metadata={"help": "Let a policy that says its sub-task do so, at every plan; false: act at once."}
    )
    num_videos: int = field(default=8, metadata={"help": "Episodes to show, failures and successes."})
    video_format: str = field(default="mp4", metadata={"help": "mp4 or gif."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the policy."})
    output_dir: str = field(default="outputs/rollout", metadata={"help": "Where table, videos and JSON go."})


def run(arguments: Sequence[str]) -> None:
    (args,) = parse((RolloutArguments,), arguments, prog="kivla rollout", positional="policy")
    check_for_results(args.output_dir, policy=args.policy, compare=args.compare)
    if args.video_format not in ("mp4", "gif"):
        raise ValueError(f"--video_format is mp4 or gif, not {args.video_format!r}.")
    if args.video_format == "mp4" and video_format() == "gif" and args.num_videos > 0:
        raise ValueError('mp4 needs PyAV (pip install "kivla[video]"); --video_format gif does not.')
    # One policy, or two that are compared in the same scenes.
    names = [args.policy] if args.compare is None else [args.policy, args.compare]
    pipes = [policy_pipeline(name, args.trust_remote_code, dtype=args.dtype) for name in names]
    replan_every = args.replan_every or max(min(pipe.processor.chunk_size for pipe in pipes) // 2, 1)
    # No more scenes at a time than episodes are asked for.
    env = make_env(args.env, min(args.num_envs, args.num_episodes), **parse_options(args.env_options))
    seeds = range(args.first_seed, args.first_seed + args.num_episodes)
    cameras = parse_cameras(args.cameras)
    policies = [
        PipelinePolicy(
            pipe,
            args.seed,
            args.num_steps,
            args.clip_actions,
            args.respond,
            cameras,
            rtc=RTC_METHODS.get(args.way),
            noise_scale=args.noise_scale,
        )
        for pipe in pipes
    ]
    for policy in policies:  # before any of them acts
        policy.check_options()
    acting = Acting(args.way, args.latency_steps, args.fresh_noise)
    # Every policy meets the same scenes, by their seeds.
    reports, results = [], []
    for name, policy in zip(names, policies, strict=True):
        figures, result = evaluate(policy, env, seeds, replan_every, args.max_steps, args.swapped, acting)
        reports.append({"policy": name, **figures, "clipped_share": policy.clipped_share, **policy.acts_with})
        results.append(result)
    # Videos are of a second run of chosen episodes: keeping all pictures of the first would take gigabytes.
    shown = replay(policies[0], env, results[0].episodes, args.num_videos, replan_every, args.max_steps, acting)
    env.close()
    # The report: figures, and for two policies whether they differ by more than chance.
    report = {**asdict(args), "replan_every": replan_every, "policies": reports, "comparison": None}
    if args.compare is not None:
        report["comparison"] = asdict(mcnemar_test(*(result.success for result in results)))
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    report["media"] = {
        **write_media(folder, shown, env.fps, args.video_format),
        "phases": write_phases(folder, reports[0]),
    }
    (folder / "rollout.json").write_text(json.dumps(report, indent=2) + "\n")
    print(format_report(report))
    pictures = ["videos", "contact sheet"] * bool(shown) + ["phases.png"] * (report["media"]["phases"] is not None)
    print(f"\nIn {folder}: {', '.join(['rollout.json', *pictures])}")
