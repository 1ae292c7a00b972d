"""`kivla record`: demonstrations of a simulator's scripted expert as a LeRobot dataset."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..command_line import parse
from ..simulation.environments import ENV_HELP, make_env, parse_options
from ..simulation.recording import record_demonstrations


@dataclass
class RecordArguments:
    output_dir: str = field(metadata={"help": "Where the dataset will be; must not exist, or be empty."})
    env: str = field(default="tabletop", metadata={"help": ENV_HELP})
    env_options: list[str] = field(
        default_factory=list, metadata={"help": "Options of the environment as NAME=VALUE, values as in YAML."}
    )
    num_episodes: int = field(default=500, metadata={"help": "Successful episodes to write."})
    num_envs: int = field(default=50, metadata={"help": "Episodes at once."})
    seed: int = field(default=0, metadata={"help": "Seed of the first episode; the others follow."})
    action_noise: list[float] | None = field(
        default=None,
        metadata={"help": "Disturb what is executed, not what is recorded: standard deviation of each dimension."},
    )
    empty_grips: float = field(
        default=0.0,
        metadata={"help": "Share of episodes in which the gripper closes too early: the expert shows how to go on."},
    )
    image_format: str = field(default="lossless_video", metadata={"help": "lossless_video, video or image."})


def run(arguments: Sequence[str]) -> None:
    (args,) = parse((RecordArguments,), arguments, prog="kivla record", positional="output_dir")
    env = make_env(args.env, min(args.num_envs, args.num_episodes), **parse_options(args.env_options))
    seeds = record_demonstrations(
        env,
        args.output_dir,
        args.num_episodes,
        seed=args.seed,
        image_format=args.image_format,
        action_noise=args.action_noise,
        empty_grips=args.empty_grips,
    )
    env.close()
    print(f"{len(seeds)} episodes, seeds {seeds[0]} to {seeds[-1]}, as a LeRobot v3.0 dataset in {args.output_dir}")
