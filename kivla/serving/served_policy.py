"""A policy as the server serves it: pipeline, observation keys and limits put together."""

import asyncio
import logging
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..acting.chunk_schedule import RTC_METHODS, WAYS
from ..acting.rtc_method import rtc_method
from ..modeling_kivla import actions_of
from ..modeling_kivla.pipeline_kivla import DTYPE_OPTION, NOISE_SCALE_OPTION
from ..processing.camera_names import CAMERAS_HELP, check_names, parse_cameras
from .client_memory import ClientMemory, frames_seen
from .observation_presets import PRESET_NAMES, ObservationReader
from .policy_server import PolicyServer, RequestRefused

logger = logging.getLogger(__name__)


@dataclass
class ServeArguments:
    model: str = field(metadata={"help": "Trained KIVLA policy: a Hub id or a folder."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the policy."})
    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on; this machine alone by default."})
    port: int = field(default=8000, metadata={"help": "Port to listen on."})
    preset: str = field(
        default="plain", metadata={"help": f"How clients name what they observe: {', '.join(PRESET_NAMES)}."}
    )
    cameras: list[str] | None = field(default=None, metadata={"help": CAMERAS_HELP})
    default_prompt: str | None = field(default=None, metadata={"help": "Instruction for clients that send none."})
    robot: str | None = field(default=None, metadata={"help": "Which robot it is, of a policy of several."})
    acts_by: Literal["flow", "tokens"] | None = field(
        default=None, metadata={"help": "Flow or tokens; by default what the policy was trained for."}
    )
    num_steps: int | None = field(default=None, metadata={"help": "Euler steps; the policy's default."})
    noise_scale: float | None = field(default=None, metadata=NOISE_SCALE_OPTION)
    seed: int | None = field(default=None, metadata={"help": "Start every chunk from the same noise."})
    execute: int | None = field(default=None, metadata={"help": "Send only so many actions of a chunk; all."})
    dtype: str = field(default="auto", metadata=DTYPE_OPTION)
    compile_expert: bool = field(
        default=False,
        metadata={"help": "Compile the action expert: chunks come sooner, but the first two take up to a minute."},
    )
    compile_policy: bool = field(
        default=False,
        metadata={"help": "Compile VLM and expert, on a CPU: the first chunk takes minutes, the next process none."},
    )
    pack_weights: bool = field(
        default=False,
        metadata={"help": "With --compile_policy: a second copy of the weights, in the processor's own order; faster."},
    )
    clip_actions: bool | None = field(
        default=None, metadata={"help": "Hold actions within the range of the policy's data; it does, if it can."}
    )
    reuse_prefix: bool = field(
        default=False,
        metadata={"help": "Keep what the expert reads of the last observation, for a robot that asks again about it."},
    )
    max_observation_age_ms: float | None = field(
        default=None,
        metadata={"help": "Refuse observations without a timestamp (Unix time in seconds) or one further from now."},
    )
    api_key: str | None = field(
        default=None, metadata={"help": "Key that clients must send; the environment's KIVLA_API_KEY by default."}
    )
    max_message_mb: float = field(default=64, metadata={"help": "Longest message."})
    max_connections: int = field(default=16, metadata={"help": "Clients at a time."})
    max_waiting: int = field(default=8, metadata={"help": "Requests that wait while others are running."})
    max_batch_size: int | None = field(
        default=None,
        metadata={"help": "Most requests, of several robots, in one pass of the policy; 8, or 1 with --reuse_prefix."},
    )
    max_batch_wait_ms: float = field(
        default=0.0, metadata={"help": "How long a request waits for others to join it; those that wait anyway do."}
    )
    rtc: Literal["guidance", "trained"] | None = field(
        default=None,
        metadata={"help": "How chunks continue what is left of the ones before; by default as the policy can best."},
    )

    def __post_init__(self):
        if not 0 <= self.port < 2**16:
            raise ValueError(f"--port must be from 0 (any that is free) to {2**16 - 1}, got {self.port}.")
        if self.pack_weights and not self.compile_policy:
            raise ValueError("--pack_weights is about what --compile_policy makes: give both, or neither.")
        if self.max_batch_size is None:
            self.max_batch_size = 1 if self.reuse_prefix else 8
        elif self.max_batch_size > 1 and self.reuse_prefix:
            raise ValueError("--reuse_prefix is for one robot that asks again: leave it or --max_batch_size out.")


class ServedPolicy:
    """A pipeline as a server needs it: an observation -> `actions` and, if the policy says something, `response`.

    Args:
        pipe: `pipeline("action-prediction", ...)`.
        robot: of observations that do not say it.
        execute: only the first so many actions of each chunk, or None.
        rtc: how a chunk goes on from the `previous_actions` of an observation; None if the policy cannot.
        cameras: the policy's names of cameras → those that observations have.

    Raises:
        ValueError: `execute` is not between 1 and the length of a chunk, or the robot or a camera is unknown.
    """

    def __init__(
        self,
        pipe,
        robot: str | None = None,
        execute: int | None = None,
        cameras: Mapping[str, str | None] | None = None,
        rtc: str | None = None,
    ):
        chunk_size = pipe.processor.chunk_size
        if execute is not None and not 1 <= execute <= chunk_size:
            raise ValueError(f"--execute must be from 1 to {chunk_size}, the actions of a chunk, got {execute}.")
        if robot is not None:
            pipe.processor.robot(robot)
        pipe.processor.check_cameras(cameras)
        self.pipe, self.robot, self.execute = pipe, robot, execute
        options = {"cameras": cameras, "rtc": rtc}
        self.options = {name: value for name, value in options.items() if value is not None}

    def __call__(self, observation: dict) -> dict:
        try:
            result = self.pipe({"robot": self.robot, **observation}, **self.options)
        except ValueError as error:  # what the policy says of an observation: the client's doing, not a failure
            raise RequestRefused(str(error)) from error
        return self._sent(observation, result)

    def together(self, observations: list[dict]) -> list[dict]:
        """The same for several observations, in one pass.

        Raises:
            ValueError: the policy refuses one of them, or the action tokens of one do not decode.
        """
        results = self.pipe([{"robot": self.robot, **observation} for observation in observations], **self.options)
        return [self._sent(*pair) for pair in zip(observations, results, strict=True)]

    def _sent(self, observation: dict, result: dict) -> dict:
        sent = {**result, "actions": actions_of(result)[: self.execute]}
        if "past" in observation:
            sent["history"] = {"seen": frames_seen(observation["past"]), "of": self.pipe.observation_history.frames}
        return sent


def make_server(pipe, args: ServeArguments) -> PolicyServer:
    """
    Raises:
        ValueError: options that do not fit the policy.
    """
    if args.preset not in PRESET_NAMES:
        raise ValueError(f"--preset is one of {', '.join(PRESET_NAMES)}, not {args.preset!r}.")
    names, is_plain = parse_cameras(args.cameras), args.preset == "plain"
    check_names(names or {})
    pipe.processor.check_cameras(names)
    # In the plain form clients name robot and cameras, which the pipeline places; a preset's keys are placed here
    rtc = rtc_method(pipe.model.config, args.rtc, args.acts_by)
    policy = ServedPolicy(pipe, args.robot, args.execute, names if is_plain else None, rtc)
    robot = {}
    if not is_plain:
        spec = pipe.processor.robot(args.robot)
        robot = {"cameras": spec.cameras, "known_as": spec.known_as, "names": names}
    read = ObservationReader(
        args.preset, default_text=args.default_prompt, max_age_ms=args.max_observation_age_ms, **robot
    )
    metadata = {"policy": args.model, "preset": args.preset, "chunk_size": args.execute or pipe.processor.chunk_size}
    metadata["clips_actions"] = _clips_actions(pipe, args.clip_actions)
    metadata["rtc"] = rtc
    impossible = {"ensemble"} if pipe.without_mean else set()
    metadata["ways"] = [way for way in WAYS if RTC_METHODS.get(way) in (None, rtc) and way not in impossible]
    if any(of_robots := pipe.wrapping_angles):
        metadata["wrapping_angles"] = [[[d, *ends] for d, ends in wraps.items()] for wraps in of_robots]
    if rtc == "trained":
        metadata["max_delay"] = pipe.model.config.rtc_max_delay
    history = pipe.observation_history
    if history.frames > 1:
        metadata |= {"history": history.frames, "history_stride": history.stride}
    if read.cameras is not None:
        metadata["cameras"] = read.cameras
    elif names is not None:
        metadata["cameras"] = names
    return PolicyServer(
        policy,
        read,
        metadata,
        infer_together=policy.together,
        max_batch_size=args.max_batch_size,
        max_batch_wait_ms=args.max_batch_wait_ms,
        open_session=lambda: ClientMemory(history),
        api_key=args.api_key or os.environ.get("KIVLA_API_KEY") or None,
        max_message_mb=args.max_message_mb,
        max_connections=args.max_connections,
        max_waiting=args.max_waiting,
    )


def _clips_actions(pipe, clip_actions: bool | None) -> bool:
    """Whether every robot's actions are held within the range of its data."""
    wanted = pipe.processor.clip_actions if clip_actions is None else clip_actions
    return wanted and all(robot.action_range is not None for robot in pipe.processor.robots.values())


async def serve_until_stopped(server: PolicyServer, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with server.listen(host, port) as port:
        print(f"Serving {server.metadata['policy']} on ws://{host}:{port}", flush=True)
        for camera, key in server.metadata.get("cameras", {}).items():
            print(f"  {camera} {'stays empty' if key is None else f'is what clients send as {key}'}", flush=True)
        if not server.metadata["clips_actions"]:
            print("Actions are not clipped to the range of the data (the policy has none, or --clip_actions false).")
        if server.api_key is None and host not in ("127.0.0.1", "::1", "localhost"):
            print("Whoever reaches this port can use the policy: there is no --api_key.", flush=True)
        await stop.wait()
        # Not printed: whoever read the address may have closed the pipe.
        logger.info("Stopping: the running request is answered first.")
