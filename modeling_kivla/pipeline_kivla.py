"""`pipeline("action-prediction", model=...)`: observations in, actions in robot units out."""

import logging
from typing import Any

import numpy as np
import torch
from transformers import Pipeline

from .configuration_kivla import check_noise_scale
from .eval_mode import eval_mode
from .forward_inputs import check_num_steps
from .real_time_chunking import RealTimeChunking, check_guidance_weight, check_horizon, check_method, whole_number
from .weights_state import weights_state

logger = logging.getLogger(__name__)

_OBSERVATION = ("images", "text", "state", "robot")
_OPTIONAL = ("cameras", "response", "previous_actions", "delay", "seed", "past")

# The option `--dtype` of every command that lets a policy act.
DTYPE_OPTION = {
    "help": "Type of the weights: bfloat16 needs half of the memory; auto is what they are stored in.",
    "choices": ["auto", "float32", "bfloat16", "float16"],
}

# And `--noise_scale`
NOISE_SCALE_OPTION = {"help": "How much noise chunks start from: 0 none, 1 as in training; the policy's default."}

_OPTIONS = ("num_steps", "noise_scale", "seed", "acts_by", "clip_actions", "reuse_prefix", "cameras")
_OPTIONS += ("rtc", "execution_horizon", "max_guidance_weight")


class ActionPredictionPipeline(Pipeline):
    """
    Predicts action chunks with a KIVLA policy.

    ```python
    pipe = pipeline("action-prediction", model=path_or_hub_id)
    pipe({"images": [base, wrist], "text": "pick up the cup", "state": [...]})   # {"actions": (H, action_dim)}
    ```

    An observation has `images` (a dict by camera name, or a list in the order of the processor's cameras, or of
    `cameras`, the names that come with it; PIL images, arrays, paths or URLs), `text`, `state` if the policy reads one
    or its actions are relative to it, and `robot` (a name) if it knows several. A list of observations gives a list of
    results, computed `batch_size` at a time (all at once by default).

    A policy whose expert reads responses (`processor.expert_reads_response`), or that acts by tokens and was taught to
    say a response first (`processor.responds_first`), says what it is about to do, and then
    does it: the result has a `response` beside the actions. An observation may bring a `response` of its own.

    Options, in the constructor or in a call: `acts_by`, "flow" (the action expert) or "tokens" (decoded action tokens;
    by default what the policy was trained for); `num_steps` (Euler steps); `noise_scale`, how much noise chunks start
    from (1: as in training; 0: none, so that an observation has one chunk); both by default as the policy's config has
    them; `seed`: with it every observation starts
    from the same noise, so its actions do not depend on what else is in the batch (tokens are decoded greedily); an
    observation may bring a `seed` of its own;
    `clip_actions`, whether actions are held within the range of the robot's data (the processor's setting by default);
    `cameras`, where observations have other names than the policy: `{"front": "observation/image"}`, the policy's name
    and theirs (None: no image; a mapping of all cameras leaves other images out; a list without names cannot be
    mapped); and `reuse_prefix`: keep what the
    expert reads of a call's observations, so that the VLM does not run if the next call has the same images and prompt
    (another chunk of the same observation, or a continuous state that moved on) and the model is as it was (same
    weights, same adapters, same mode).

    A policy with a history (`observation_history`) sees several frames: an image may then be a clip, a list of frames
    with the newest last, and `state` (n, Ds); or an observation brings its `past`, the earlier observations that belong
    to it. At the beginning of an episode there are fewer. `ChunkExecutor` and `RealTimeExecutor` keep what was observed
    and give it.

    For real-time chunking (`RealTimeChunking`), while the robot goes on executing the chunk before: `rtc`, "guidance"
    (any policy that acts by flow) or "trained" (one that was trained with `rtc_max_delay`), and for "guidance"
    `execution_horizon` and `max_guidance_weight`. An observation then has `previous_actions` (n, action_dim), in robot
    units: what is left of the chunk that is being executed, from the step of this observation on; and `delay`, how many
    steps pass before the new chunk can be used. The result is a whole chunk that begins at the observation, and goes on
    from these actions. Without `previous_actions`, as at the beginning of an episode, it is an ordinary one.

    A model that is in training acts as in eval mode, without dropout, and is in training again when the call is over.

    Where they are, a result has `clipped`: `values`, how many of the chunk's lay outside; `of`, how many it has; their
    `share`; `largest`, how far out the worst was, in widths of its dimension's range; and `dimension`, which that is
    (or None). It is absent where nothing is clipped, e.g. because the policy's statistics have no `min` and `max`.

    Where action tokens do not decode, `actions` is None and `failure` says why. (Only possible with action tokenizers
    whose codes are no whole values, such as the published FAST.)
    """

    model: Any  # KIVLAForActionPrediction, whose file imports this one
    processor: Any  # KIVLAProcessor, which this folder does not know
    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False
    _pipeline_calls_generate = False
    # The VLM's inputs, the state of its weights, and the `Prefix` of the last call
    _last_read: tuple[dict[str, torch.Tensor], tuple, object] = ({}, (), None)

    def __init__(self, model, *args, processor=None, **kwargs):
        if model.config.model_type != "kivla":
            raise ValueError(
                f'pipeline("action-prediction") needs a policy, but this is a {type(model).__name__}. '
                "KIVLAForActionPrediction.from_vlm makes one of a VLM, KIVLATrainer teaches it."
            )
        if processor is None:
            raise ValueError("Give the policy's `processor` beside the model: KIVLAProcessor.from_pretrained(...).")
        for robot in processor.robots.values():  # rather now than in front of a robot
            robot.units.check_known()
        parts = ("tokenizer", "feature_extractor", "image_processor", "video_processor", "num_workers")
        if unused := [name for name in parts if kwargs.get(name) is not None]:
            raise ValueError(f"{', '.join(unused)}: not used here. The policy's `processor` does all of it.")
        kwargs.pop("local_files_only", None)  # obeyed by now
        super().__init__(model, *args, processor=processor, **kwargs)
        self._warned_of: set[tuple[str | None, int]] = set()  # robots, and dimensions of their states
        self.check_options()

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """Save the policy: model and processor. `**kwargs` are those of the model's `save_pretrained`."""
        hub = {name: kwargs[name] for name in ("push_to_hub", "repo_id", "token", "private") if name in kwargs}
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **hub)

    def _sanitize_parameters(
        self,
        num_steps: int | None = None,
        noise_scale: float | None = None,
        seed: int | None = None,
        acts_by: str | None = None,
        clip_actions: bool | None = None,
        reuse_prefix: bool | None = None,
        cameras: dict[str, str | None] | None = None,
        rtc: str | None = None,
        execution_horizon: int | None = None,
        max_guidance_weight: float | None = None,
        **unknown,
    ):
        if unknown:
            raise TypeError(f"The pipeline has no option {next(iter(unknown))!r}. Options: {', '.join(_OPTIONS)}.")
        self.processor.check_cameras(cameras)
        if acts_by not in ("flow", "tokens", None):
            raise ValueError(f'acts_by must be "flow" or "tokens", got {acts_by!r}.')
        if rtc is not None:
            check_method(self.model.config, rtc)
        if num_steps is not None:
            check_num_steps(num_steps)
        if noise_scale is not None:
            check_noise_scale(noise_scale)
        if seed is not None:
            seed = _checked_seed(seed)
        if execution_horizon is not None:
            check_horizon(self.model.config, execution_horizon)
        if max_guidance_weight is not None:
            check_guidance_weight(max_guidance_weight)
        forward = {"num_steps": num_steps, "noise_scale": noise_scale, "seed": seed, "acts_by": acts_by}
        forward["reuse_prefix"] = reuse_prefix
        given = {name: value for name, value in forward.items() if value is not None}
        before = {"acts_by": acts_by, "cameras": cameras, "rtc": rtc}
        before |= {"execution_horizon": execution_horizon, "max_guidance_weight": max_guidance_weight}
        before = {name: value for name, value in before.items() if value is not None}
        return before, given, {} if clip_actions is None else {"clip_actions": clip_actions}

    def __call__(self, observations: dict | list[dict], batch_size: int | None = None, **options):
        before, forward, after = self._merged(options)
        batch = [observations] if isinstance(observations, dict) else list(observations)
        size = batch_size or self._batch_size or max(len(batch), 1)
        results = []
        with eval_mode(self.model):
            for start in range(0, len(batch), size):
                results += self.run_single(batch[start : start + size], before, forward, after)
        return results[0] if isinstance(observations, dict) else results

    def _merged(self, options: dict) -> tuple[dict, dict, dict]:
        """The options of a call, and those of the constructor that it does not have, for each of its three parts."""
        own = self._preprocess_params, self._forward_params, self._postprocess_params
        before, forward, after = [
            {**ours, **given} for ours, given in zip(own, self._sanitize_parameters(**options), strict=True)
        ]
        rtc, by_tokens = before.get("rtc"), self.acts_by_tokens(before.get("acts_by"))
        guidance = [name for name in ("execution_horizon", "max_guidance_weight") if name in before]
        if rtc != "guidance" and guidance:
            raise ValueError(f'{", ".join(guidance)}: only for rtc="guidance", and rtc is {rtc!r}. Leave it out.')
        if rtc is not None and by_tokens:
            raise ValueError(
                f'rtc="{rtc}" is for policies that act by flow: action tokens cannot go on from a given beginning. '
                'Leave it out, or use acts_by="flow".'
            )
        if by_tokens and (of_flow := [name for name in ("num_steps", "noise_scale") if name in forward]):
            raise ValueError(f"{of_flow[0]} is for the action expert, and here the VLM acts, by tokens. Leave it out.")
        return before, forward, after

    def check_options(self, batch_size: int | None = None, **options) -> None:
        """Check the options of a call before there is anything to call it with.

        Raises:
            TypeError: there is no such option.
            ValueError: one that no call can be made with, or some that do not go together.
        """
        self._merged(options)

    def acts_by_tokens(self, acts_by: str | None = None) -> bool:
        """Whether the VLM acts, by tokens, where the option is so; by default as the policy was trained."""
        return (acts_by or self.model.config.acts_by) == "tokens"

    def preprocess(
        self,
        observations: list[dict],
        acts_by: str | None = None,
        cameras: dict[str, str | None] | None = None,
        rtc: str | None = None,
        **guidance,
    ):
        for i, observation in enumerate(observations):
            unknown = set(observation) - {*_OBSERVATION, *_OPTIONAL}
            if "text" not in observation or unknown:
                raise ValueError(
                    f"Observation {i} has the keys {sorted(observation)}; expected are 'images', 'text' and, if the "
                    "policy reads the robot's state, 'state'."
                )
        observations = [self._with_past(i, observation) for i, observation in enumerate(observations)]
        columns = {key: [observation.get(key) for observation in observations] for key in _OBSERVATION}
        columns["images"] = [self._named(i, observation, cameras) for i, observation in enumerate(observations)]
        responses = [observation.get("response") for observation in observations]
        seeds = [self._own_seed(i, observation.get("seed")) for i, observation in enumerate(observations)]
        by_tokens = self.acts_by_tokens(acts_by)
        old_chunks = self._old_chunks(observations, rtc, guidance)
        says = self.processor.expert_reads_response or (by_tokens and self.processor.responds_first)
        if says and None in responses:
            batch = self.processor(**columns).to(self.device)
            said = self.model.generate_response(self.processor, **batch)
            responses = [own if own is not None else words for own, words in zip(responses, said, strict=True)]
        # A response of no words is none.
        inputs = self.processor(**columns, given_response=[response or None for response in responses])
        states = [self.processor.newest_state(state) for state in columns["state"]]
        self._warn_of_far_states(columns["robot"], states)
        of_robots = {"robots": columns["robot"], "states": states}
        return {"inputs": inputs, **of_robots, "responses": responses, "rtc": old_chunks, "seeds": seeds}

    def _warn_of_far_states(self, robots: list[str | None], states: list) -> None:
        """Say once for each dimension that a state is like none in the policy's data: it acts, and nobody knows how."""
        for name, state in zip(robots, states, strict=True):
            dimension = None if state is None else self.processor.robot(name).far_state(state)
            if dimension is not None and (name, dimension) not in self._warned_of:
                self._warned_of.add((name, dimension))
                logger.warning(
                    "dimension %d of the state is %g, far outside what the policy's data had: are these other units "
                    "(degrees, radians), or another order? This is said once.",
                    dimension,
                    np.asarray(state)[dimension],
                )

    def _old_chunks(self, observations: list[dict], rtc: str | None, guidance: dict) -> RealTimeChunking | None:
        """What is left of the chunks that are being executed, as the model takes it; None without `rtc`."""
        if rtc is None:
            if given := [i for i, observation in enumerate(observations) if "previous_actions" in observation]:
                raise ValueError(
                    f"Observation {given[0]} has `previous_actions`, which only real-time chunking goes on from. Give "
                    'rtc="guidance" (or "trained"), or leave them out.'
                )
            return None
        config = self.model.config
        previous = torch.zeros(len(observations), config.chunk_size, config.max_action_dim)
        num_previous, delay = (torch.zeros(len(observations), dtype=torch.long) for _ in range(2))
        for i, observation in enumerate(observations):
            try:
                rest, delay[i] = self._rest_of_chunk(observation)
            except ValueError as error:
                raise ValueError(f"Observation {i}: {error}") from error
            num_previous[i] = len(rest)
            previous[i, : rest.shape[0], : rest.shape[1]] = torch.from_numpy(rest)
        return RealTimeChunking(previous, num_previous, delay, rtc, **guidance)

    def _rest_of_chunk(self, observation: dict) -> tuple[np.ndarray, int]:
        """The previous actions of an observation, (n, action_dim), normalised; and its delay."""
        actions, delay = observation.get("previous_actions"), observation.get("delay")
        robot, chunk_size = observation.get("robot"), self.model.config.chunk_size
        if actions is not None and delay is None:
            raise ValueError(
                "there are `previous_actions`, but no `delay`: how many steps pass before the new chunk can be used (0 "
                "if the robot waits for it)."
            )
        delay = 0 if delay is None else whole_number("`delay`", delay)
        if delay < 0:
            raise ValueError(f"`delay` must not be negative, got {delay}.")
        action_dim = self.processor.robot(robot).action_dim
        if actions is None or not len(actions):
            return np.zeros((0, action_dim), dtype=np.float32), delay
        if len(actions) > chunk_size:
            raise ValueError(
                f"{len(actions)} `previous_actions`, but a chunk has {chunk_size}. Give what is left of the chunk, "
                "from the step of this observation on."
            )
        try:
            state = self.processor.newest_state(observation.get("state"))
            rest = self.processor.normalize_actions(actions, robot, state)
            self.processor.robot(robot).units.check_plausible(actions)
        except ValueError as error:
            raise ValueError(f"`previous_actions`: {error}") from error
        if rest.ndim != 2:
            raise ValueError(f"`previous_actions` must be (n, action_dim), got the shape {rest.shape}.")
        return rest, delay

    def _own_seed(self, i: int, seed: int | None) -> int | None:
        """What an observation says of the noise that its chunk starts from."""
        try:
            return None if seed is None else _checked_seed(seed)
        except ValueError as error:
            raise ValueError(f"Observation {i}: {error}") from error

    def _with_past(self, i: int, observation: dict) -> dict:
        """Clips, where there are earlier observations."""
        try:
            return self.processor.with_past(observation)
        except ValueError as error:
            raise ValueError(f"Observation {i}: {error}") from error

    def _named(self, i: int, observation: dict, cameras: dict[str, str | None] | None):
        """The images by the names of the policy's cameras."""
        try:
            robot = self.processor.robot(observation.get("robot"))
            return robot.named(observation.get("images"), observation.get("cameras"), cameras)
        except ValueError as error:
            raise ValueError(f"Example {i}: {error}") from error

    @property
    def max_delay(self) -> int | None:
        """The longest delay that the policy was trained to act with (`rtc="trained"`); None without such training."""
        return self.model.config.rtc_max_delay or None

    def check_averaging(self) -> None:
        """
        Raises:
            ValueError: chunks of this policy have no mean: some dimensions are angles that wrap, or rotations.
        """
        if self.without_mean:
            raise ValueError(
                f"{', '.join(self.without_mean)}: a mean of angles that wrap, or of rotations, is none (of 179 and "
                '-179 degrees it is 0). Choose another way of acting than "ensemble".'
            )

    @property
    def without_mean(self) -> list[str]:
        """Dimensions of which actions have no mean: angles that wrap, and rotations."""
        relatives = [robot.units.relative for robot in self.processor.robots.values()]
        return [of.name(d) for of in relatives if of is not None for d in (*of.wraps, *of.rotated)]

    @property
    def wrapping_angles(self) -> list[dict[int, tuple[float, float]]]:
        """For each robot the dimensions of actions that are angles which wrap, and their range, in robot units."""
        relatives = [robot.units.relative for robot in self.processor.robots.values()]
        return [{} if of is None else dict(of.wraps) for of in relatives]

    @property
    def observation_history(self):
        """What the policy looks back on: `frames`, and the control steps between them (`stride`)."""
        return self.processor.observation_history

    def _forward(
        self,
        model_inputs,
        num_steps: int | None = None,
        noise_scale: float | None = None,
        seed: int | None = None,
        acts_by: str | None = None,
        reuse_prefix: bool = False,
    ) -> dict:
        inputs, rtc, seeds = (model_inputs.pop(name) for name in ("inputs", "rtc", "seeds"))
        noise = None
        if self.acts_by_tokens(acts_by):
            options = {"robot": model_inputs["robots"], "max_response_tokens": 0}  # what there is to say has been said
            chunks = self.model.generate_actions(self.processor, **options, **inputs)
            return {"chunks": chunks, **model_inputs}
        seeds = [seed if own is None else own for own in seeds]
        if any(own is not None for own in seeds):
            noise = torch.stack([self._noise(own) for own in seeds]).to(self.device)
        if reuse_prefix:
            inputs = self._with_prefix(dict(inputs))
        options = {"num_steps": num_steps, "noise": noise, "rtc": rtc, "noise_scale": noise_scale}
        chunks = self.model.sample_actions(**inputs, **options).cpu().numpy()
        return {"chunks": list(chunks), **model_inputs}

    def _noise(self, seed: int | None) -> torch.Tensor:
        """What a chunk starts from, (H, D)."""
        config, generator = self.model.config, None if seed is None else torch.Generator().manual_seed(seed)
        return torch.randn(config.chunk_size, config.max_action_dim, generator=generator)

    def _with_prefix(self, inputs: dict[str, torch.Tensor]) -> dict:
        """Inputs of `sample_actions` with what the VLM made of them: the last ones' if they are the same."""
        of_expert = {name: inputs.pop(name) for name in ("action_mask", "state") if name in inputs}
        last, state, prefix = self._last_read
        is_same = last.keys() == inputs.keys() and all(torch.equal(last[name], inputs[name]) for name in inputs)
        if not is_same or state != weights_state(self.model):
            prefix = self.model.encode_prefix(**inputs)
            self._last_read = inputs, weights_state(self.model), prefix
        return {**of_expert, "prefix": prefix}

    def postprocess(self, model_outputs, clip_actions: bool | None = None) -> list[dict]:
        results = []
        rows = (model_outputs[name] for name in ("chunks", "robots", "states", "responses"))
        for chunk, robot, state, response in zip(*rows, strict=True):
            if isinstance(chunk, np.ndarray):
                actions, clipped = self.processor.unnormalize_and_clip(chunk, robot, clip_actions, state)
                result = {"actions": actions} if clipped is None else {"actions": actions, "clipped": clipped}
            else:
                result = {"actions": None, "failure": chunk}
            results.append(result if response is None else {**result, "response": response})
        return results


def _checked_seed(seed) -> int:
    """
    Raises:
        ValueError: it is no whole number that torch's generator takes.
    """
    seed = whole_number("seed", seed)
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must have at most 64 bits, got {seed}.")
    return seed


__all__ = ["ActionPredictionPipeline"]
