"""What `forward` and sampling are given: which names there are, shapes, and what is refused before anything runs."""

import difflib
import inspect
import operator
from collections.abc import Callable, Iterable
from functools import lru_cache, wraps
from types import MethodType

import torch
from transformers import PreTrainedModel
from transformers.utils import TransformersKwargs

from .configuration_kivla import KIVLAConfig

# Arguments of `forward` that are ours; everything else is the VLM's.
EXPERT_INPUTS = ("expert_attention_mask", "actions", "action_mask", "state", "noise", "timestep", "delay")
# The cache, and its names before transformers 5.24, which the VLM then takes too.
_CACHE = ("cache", "past_key_values", "cache_params")
# Of the VLM's: what a pass that computes the losses, or a prefix, sets itself or cannot do; and what to do instead.
_SET_BY_US = {
    **dict.fromkeys(_CACHE, "the whole sequence is read in one pass; leave it out"),
    "use_cache": "nothing is decoded here, so no cache is kept; leave it out",
    "logits_to_keep": "logits are computed where a token is supervised; leave it out",
    "num_items_in_batch": "the two losses have a count each: give num_supervised_tokens and num_supervised_actions",
}


# ---------------------------------------------------------------------------------------------------------- names
def vlm_argument_names(vlm: PreTrainedModel) -> frozenset[str]:
    """Every name by which the VLM or a model inside it (which it passes arguments on to) takes an argument."""
    names = set(TransformersKwargs.__annotations__)
    for part in vlm.modules():
        if isinstance(part, PreTrainedModel):
            names.update(inspect.signature(type(part).forward).parameters)
    return frozenset(names - {"self", "args", "kwargs"})


class WithVLMArguments:
    """A `forward` whose signature, asked of a model, also names what its VLM takes.

    `Trainer` goes by it: what `forward` does not name, it drops from the dataset. So without this a plain `Trainer`
    would train without images.
    """

    def __init__(self, function: Callable):
        self.function = function
        self._naming = lru_cache(None)(self._naming)

    def __get__(self, model, owner=None):
        if model is None:
            return self.function
        return MethodType(self._naming(model.vlm_argument_names), model)

    def _naming(self, names: frozenset[str]) -> Callable:
        function = self.function

        @wraps(function)
        def forward(self, *args, **kwargs):
            return function(self, *args, **kwargs)

        *own, rest = inspect.signature(function).parameters.values()
        more = sorted(names - {parameter.name for parameter in own})
        more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in more]
        forward.__signature__ = inspect.Signature([*own, *more, rest])
        return forward


def check_names(given: Iterable[str], of_vlm: frozenset[str], *methods: Callable) -> None:
    """Refuse arguments that nothing would read.

    Args:
        methods: the policy's, for a hint.

    Raises:
        TypeError: a name that neither the VLM nor we know, which the VLM would take and drop.
    """
    old_names = _CACHE if "cache" in of_vlm else ()
    for name in given:
        if name not in of_vlm and name not in old_names:
            ours = {name for method in methods for name in inspect.signature(method).parameters}
            if name in ours:
                raise TypeError(f"`{name}` is for training, or for another method of the policy: leave it out here.")
            near = difflib.get_close_matches(name, {*of_vlm, *ours}, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise TypeError(f"`{name}` is an argument of neither the policy nor its VLM.{hint}")


def check_one_pass(vlm_inputs: dict) -> None:
    """Refuse arguments of the VLM that make no sense where it runs once over the whole sequence.

    Raises:
        ValueError: an argument of the VLM that would be ignored, or change what is computed here.
    """
    for name, reason in _SET_BY_US.items():
        value = vlm_inputs.get(name)
        is_default = value is None or (isinstance(value, int) and not value)  # None, False, 0
        if not is_default:
            raise ValueError(f"`{name}` cannot be given where the policy learns or acts: {reason}.")


def with_image_dtype(inputs: dict, dtype: torch.dtype) -> dict:
    """Cast images to the VLM's floating-point type: processors make float32, and not every VLM casts."""
    return {
        name: value.to(dtype)
        if ("pixel_values" in name or "patches" in name) and torch.is_tensor(value) and value.is_floating_point()
        else value
        for name, value in inputs.items()
    }


# --------------------------------------------------------------------------------------------------------- values
def tokens_of(vlm_inputs: dict) -> torch.Tensor:
    """The tokens (B, S), or their embeddings (B, S, width)."""
    tokens = vlm_inputs.get("input_ids", vlm_inputs.get("inputs_embeds"))
    if tokens is None:
        raise ValueError("Neither `input_ids` nor `inputs_embeds` was given.")
    return tokens


def check_actions(config: KIVLAConfig, actions: torch.Tensor, action_mask: torch.Tensor | None, batch_size: int):
    """Refuse actions of another shape than the policy's; return their mask as bool, all True by default."""
    shape = (batch_size, config.chunk_size, config.max_action_dim)
    if actions.shape != shape:
        raise ValueError(
            f"`actions` must be (batch, chunk_size, max_action_dim) = {shape}, got {tuple(actions.shape)}. "
            "KIVLAProcessor pads chunks to the model's sizes; was it made with the same ones?"
        )
    if action_mask is None:
        return torch.ones_like(actions, dtype=torch.bool)
    if action_mask.shape != shape:
        raise ValueError(f"`action_mask` must have the shape of `actions` {shape}, got {tuple(action_mask.shape)}.")
    return action_mask.bool()


def no_actions(config: KIVLAConfig, batch_size: int, device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Actions, mask and state of a batch without any, for an expert that must run all the same."""
    actions = torch.zeros(batch_size, config.chunk_size, config.max_action_dim, device=device)
    has_state = config.state_encoding == "continuous"
    state = actions.new_zeros(batch_size, config.max_state_dim) if has_state else None
    return actions, torch.zeros_like(actions, dtype=torch.bool), state


def check_state(config: KIVLAConfig, state: torch.Tensor | None, batch_size: int, n: int = 1) -> torch.Tensor | None:
    """Refuse a state that is missing, too much or of another shape; return it for n draws, (n·B, max_state_dim)."""
    if config.state_encoding != "continuous":
        if state is not None:
            raise ValueError(
                f'`state` was given, but this model has state_encoding="{config.state_encoding}": the expert '
                "has no state token. Leave `state` out, or build the model with the processor's state_encoding."
            )
        return None
    shape = (batch_size, config.max_state_dim)
    if state is None or state.shape != shape:
        given = "none" if state is None else tuple(state.shape)
        raise ValueError(f'state_encoding="continuous" needs `state` of shape {shape}, got {given}.')
    return state.repeat(n, 1)


def check_draws(
    config: KIVLAConfig,
    shape: torch.Size,
    noise: torch.Tensor,
    timestep: torch.Tensor,
    delay: torch.Tensor | None,
    is_counted: bool,
) -> None:
    """Refuse noise, times and delays that are not one for each draw, or that contradict the config.

    Args:
        shape: (N·B, H, D).
        is_counted: whether the caller says how many actions are learned, so that it must know the delays.
    """
    if noise.shape != shape or timestep.shape != shape[:1]:
        raise ValueError(
            f"`noise` and `timestep` must be {tuple(shape)} and {tuple(shape[:1])} (num_flow_samples = "
            f"{config.num_flow_samples} draws for each example), got {tuple(noise.shape)} and {tuple(timestep.shape)}."
        )
    if delay is None:
        if is_counted and config.rtc_max_delay > 0:
            raise ValueError(
                f"With rtc_max_delay = {config.rtc_max_delay} how many actions are learned depends on the delays: give "
                "`delay` beside `num_supervised_actions`, and count with count_learned_actions."
            )
    elif (
        delay.shape != shape[:1]
        or delay.is_floating_point()
        or not 0 <= delay.min() <= delay.max() <= config.rtc_max_delay
    ):
        raise ValueError(
            f"`delay` must be {tuple(shape[:1])} whole numbers between 0 and rtc_max_delay = {config.rtc_max_delay}, "
            f"got {tuple(delay.shape)}: {delay.tolist()}."
        )


def check_token_ids(config: KIVLAConfig, input_ids: torch.Tensor, num_embeddings: int) -> None:
    """Refuse token ids that the embedding has no row for."""
    # Some VLMs give their image placeholder an id beyond the embedding, and never look it up.
    unknown = (input_ids >= num_embeddings) & (input_ids != getattr(config.vlm_config, "image_token_id", None))
    if unknown.any():
        raise ValueError(
            f"Token id {int(input_ids[unknown][0])} is unknown: the VLM's embedding has {num_embeddings} rows. Action "
            "tokens are new: call model.resize_token_embeddings(processor.vocab_size) (KIVLATrainer does)."
        )


def check_prefix(config: KIVLAConfig, vlm_inputs: dict, shape: torch.Size, mask: torch.Tensor | None) -> torch.Tensor:
    """Refuse inputs from which the expert could not read the prompt, and nothing but the prompt; return the mask.

    Args:
        shape: (batch, sequence).
        mask: the `expert_attention_mask`.
    """
    if mask is None or mask.shape != shape:
        given = "none" if mask is None else tuple(mask.shape)
        raise ValueError(
            f"`expert_attention_mask` must be (batch, sequence) = {tuple(shape)}, got {given}: True "
            "where the expert may read, False on padding and action tokens. KIVLAProcessor makes it."
        )
    if not mask.any(1).all():
        raise ValueError("`expert_attention_mask` hides the whole prompt of an example from the expert.")
    text_config = config.get_text_config()
    if getattr(text_config, "use_bidirectional_attention", None) is True and "token_type_ids" not in vlm_inputs:
        raise ValueError(
            f"'{config.vlm_config.model_type}' attends in both directions over its prompt and needs "
            "`token_type_ids` (0 on image and prompt, 1 on the tokens to learn): without them the answer would "
            "leak into the prompt. KIVLAProcessor makes them."
        )
    return mask


def check_num_steps(num_steps: int) -> int:
    """Refuse anything but a positive whole number of Euler steps."""
    try:
        whole = operator.index(num_steps)
    except TypeError:
        raise ValueError(f"num_steps must be a whole number of Euler steps, got {num_steps!r}.") from None
    if whole < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
    return whole
