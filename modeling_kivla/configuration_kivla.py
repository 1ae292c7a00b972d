"""Configuration of a KIVLA model: any VLM config, the action expert's config, and how the two are trained together."""

import math
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .backbone_probe import probe_backbone
from .checked_config import CheckedConfig
from .damaged_files import check_counts, check_size
from .hub_card import hub_id
from .remote_vlm import UnreadVLMConfig, known_config, register_vlm_code

# The constructor makes configs of dicts, and measures layers that are not given. Once it is done a field holds a
# config, whose attributes depend on the VLM's family: a type checker is not to doubt them.
if TYPE_CHECKING:
    _Config = _Layers = Any
else:
    _Config = PreTrainedConfig | dict | None  # checked in this order: to refuse one, the library writes it out
    _Layers = list[dict] | None

# For `pipeline("action-prediction", ..., trust_remote_code=True)` without kivla
CUSTOM_PIPELINES = {
    "action-prediction": {"impl": "pipeline_kivla.ActionPredictionPipeline", "pt": ["AutoModelForImageTextToText"]}
}


def check_noise_scale(scale: float) -> float:
    """Refuse what is no standard deviation of noise.

    Raises:
        ValueError: it is negative, infinite, or not a number.
    """
    if isinstance(scale, bool) or not isinstance(scale, Real) or not 0 <= scale < math.inf:
        raise ValueError(f"noise_scale is a number, 0 (no noise) or more; 1 is as in training. Got {scale!r}.")
    return float(scale)


@strict
class KIVLAExpertConfig(CheckedConfig):
    r"""
    The action expert, a small transformer with one layer for each backbone layer that it reads.

    Heads, head size and rotary embedding of each layer follow from the backbone (`KIVLAConfig.kv_layers`).

    Args:
        hidden_size (`int`, defaults to 1024): width of the residual stream (π0, π0.5: 1024).
        intermediate_size (`int`, defaults to 4096): width of the gated MLP.
        num_attention_heads (`int`, *optional*): query heads in every layer; the backbone layer's own number if None.
        layer_stride (`int`, defaults to 1): read every k-th backbone layer (always including the last one).
        time_conditioning (`str`, defaults to `"adarms"`): `"adarms"` lets the flow time set scale, shift and gate of
            every norm (π0.5, knowledge insulation); `"concat"` joins it to the noisy actions (π0).
        hidden_act (`str`, defaults to `"gelu_pytorch_tanh"`): activation of the gated MLP.
        rms_norm_eps (`float`, defaults to 1e-6): what the norms add to the mean square.
        min_period, max_period (`float`, defaults to 4e-3 and 4.0): range of the sinusoidal time embedding's periods.
        time_embedding_dtype (`str`, defaults to `"float64"`): precision of that embedding's angles; `"float64"` is
            openpi's and LeRobot's, `"float32"` that of transformers' PI0.
        initializer_range (`float`, defaults to 0.02): standard deviation of the first weights.
    """

    model_type = "kivla_expert"
    base_config_key = "expert_config"

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_attention_heads: int | None = None
    layer_stride: int = 1
    time_conditioning: Literal["adarms", "concat"] = "adarms"
    hidden_act: str = "gelu_pytorch_tanh"
    rms_norm_eps: float = 1e-6
    min_period: float = 4e-3
    max_period: float = 4.0
    time_embedding_dtype: Literal["float64", "float32"] = "float64"
    initializer_range: float = 0.02

    def validate_architecture(self):
        """Part of `@strict`-powered validation."""
        if self.hidden_size < 2 or self.hidden_size % 2:
            raise ValueError(
                f"expert_config.hidden_size must be a positive even number (half sine, half cosine in the time "
                f"embedding), got {self.hidden_size}."
            )
        if self.intermediate_size < 1:
            raise ValueError(f"expert_config.intermediate_size must be at least 1, got {self.intermediate_size}.")
        if self.layer_stride < 1:
            raise ValueError(f"expert_config.layer_stride must be at least 1, got {self.layer_stride}.")
        if not 0 < self.min_period < self.max_period:
            raise ValueError(
                f"The time embedding needs 0 < min_period < max_period, got {self.min_period} and {self.max_period}."
            )


@strict
class KIVLAConfig(CheckedConfig):
    r"""
    A vision-language-action model made of any vision-language model and an action expert.

    Args:
        vlm_config (`PreTrainedConfig` or `dict`): config of any model that `AutoModelForImageTextToText` knows.
        expert_config (`KIVLAExpertConfig` or `dict`, *optional*): the action expert.
        chunk_size (`int`, defaults to 50): number of action steps H in a chunk.
        max_action_dim (`int`, defaults to 32): width D of a chunk; shorter actions are zero-padded and masked.
        max_state_dim (`int`, defaults to 32): width of the continuous state; shorter states are zero-padded.
        state_encoding (`str`, defaults to `"text"`): `"text"`, state bins in the prompt (π0.5); `"continuous"`, one
            token in front of the action tokens (π0); `"none"`.
        backbone_gradient_scale (`float`, defaults to 0.0): what part of the flow loss's gradient reaches the VLM:
            0 = knowledge insulation, 1 = plain joint training, between = partly insulated.
        flow_loss_weight (`float`, defaults to 1.0): α in `loss = token_loss + α · flow_loss`. With 0 the action expert
            is left alone, and the policy acts by decoding action tokens.
        num_flow_samples (`int`, defaults to 1): noise draws N for each backbone pass while training.
        num_inference_steps (`int`, defaults to 10): Euler steps.
        noise_scale (`float`, defaults to 1.0): standard deviation of the noise that chunks start from when the policy
            acts. 1: as it was trained. 0: always the same chunk for an observation. Less noise is steadier; where an
            observation allows for several ways, it chooses among fewer of them.
        time_sampling_alpha, time_sampling_beta, time_sampling_scale, time_sampling_offset (`float`): flow time is
            `scale · Beta(alpha, beta) + offset`, 1 = noise (π0: 1.5, 1.0, 0.999, 0.001).
        rtc_max_delay (`int`, defaults to 0): the longest delay, in control steps, that the expert is trained to make up
            for: while training, up to so many actions at the beginning of a chunk are given, and the others learned
            (`RealTimeChunking` with the method "trained"). 0: none.
        kv_layers (`list[dict]`, *optional*): what the expert can read, as `probe_backbone` measures it. Measured when
            None, and kept so that a saved model never has to be measured again.

    Raises:
        UnsupportedBackboneError: the VLM gives the expert nothing to read (see `probe_backbone`).
        ValueError: a setting is out of range or contradicts another one; the message says which and what to do.
    """

    model_type = "kivla"
    sub_configs: ClassVar[dict] = {"vlm_config": AutoConfig, "expert_config": KIVLAExpertConfig}
    has_no_defaults_at_init = True

    vlm_config: _Config = None
    expert_config: _Config = None
    chunk_size: int = 50
    max_action_dim: int = 32
    max_state_dim: int = 32
    state_encoding: Literal["text", "continuous", "none"] = "text"
    backbone_gradient_scale: float = 0.0
    flow_loss_weight: float = 1.0
    num_flow_samples: int = 1
    num_inference_steps: int = 10
    noise_scale: float | int = 1.0
    time_sampling_alpha: float = 1.5
    time_sampling_beta: float = 1.0
    time_sampling_scale: float = 0.999
    time_sampling_offset: float = 0.001
    rtc_max_delay: int = 0
    kv_layers: _Layers = None

    def __post_init__(self, **kwargs):
        if not __name__.startswith("transformers_modules"):
            # Where kivla is installed the library knows its pipeline, and would insist on remote code if told of one.
            kwargs.pop("custom_pipelines", None)
        check_counts(kwargs | {"vlm_config": self.vlm_config, "expert_config": self.expert_config})
        if self.vlm_config is None:
            raise ValueError(
                "KIVLAConfig needs `vlm_config`: the config of a vision-language model, e.g. "
                'AutoConfig.from_pretrained("google/paligemma2-3b-pt-224"). '
                "KIVLAForActionPrediction.from_vlm(name) does this for you."
            )
        if isinstance(self.vlm_config, dict):
            if "model_type" not in self.vlm_config:
                raise ValueError(
                    "`vlm_config` was given as a dict without `model_type`, so its class cannot be known. Add "
                    f"'model_type', or pass a config object. Keys given: {sorted(self.vlm_config)}."
                )
            self.vlm_config = UnreadVLMConfig(self.vlm_config)
            if self.kv_layers is None or self.vlm_config.model_type in CONFIG_MAPPING:
                self.read_vlm_config()
        if self.expert_config is None:
            self.expert_config = KIVLAExpertConfig()
        elif isinstance(self.expert_config, dict):
            self.expert_config = KIVLAExpertConfig(**self.expert_config)
        if self.kv_layers is None:
            with torch.device("cpu"):  # whatever the default device is
                self.kv_layers = probe_backbone(self.vlm_config)
        super().__post_init__(**kwargs)

    def read_vlm_config(self) -> None:
        """Make a config of what a file has of the VLM, where that was not done because its code was not known yet.

        Raises:
            ValueError: the code is not known.
        """
        if isinstance(self.vlm_config, UnreadVLMConfig):
            self.vlm_config = known_config(self.vlm_config.values)

    def is_complete(self) -> bool:
        parts = (self.vlm_config, self.expert_config)
        return self.kv_layers is not None and all(isinstance(part, PreTrainedConfig) for part in parts)

    @property
    def expert_layers(self) -> list[dict]:
        """The entries of `kv_layers` that an expert layer reads: every k-th one, the last included."""
        stride = self.expert_config.layer_stride
        return self.kv_layers[(len(self.kv_layers) - 1) % stride :: stride]

    @property
    def action_positions(self) -> Literal["rotary", "sinusoidal"]:
        """What tells the expert's tokens apart: the VLM's rotary embedding, counting on from the prompt, or none there.

        Keys of a decoder without rotary embedding hold no rotation that queries could follow. The expert then adds
        sines and cosines of each action's place in the chunk to its tokens (Vaswani et al., 2017, section 3.5).
        """
        return "rotary" if any(layer["rope"] for layer in self.expert_layers) else "sinusoidal"

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        """As for any config, but a folder without one is named: there is no policy without a VLM.

        With `trust_remote_code=True` the code that the policy brings along for its VLM is made known.
        """
        trusted = kwargs.pop("trust_remote_code", False)
        config, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not config:
            folder = "/".join(filter(None, (str(pretrained_model_name_or_path), kwargs.get("subfolder"))))
            raise OSError(f"{folder} has no config.json, so it holds no policy.")
        if trusted:
            register_vlm_code(config.get("vlm_config", {}), pretrained_model_name_or_path, **kwargs)
        return config, rest

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As for any config; fields that are given beside it are checked as in the constructor."""
        check_counts(config_dict)
        expert_config = config_dict.get("expert_config")
        if isinstance(expert_config, dict):
            config_dict = {**config_dict, "expert_config": KIVLAExpertConfig.from_dict(expert_config)}
        loaded = super().from_dict(config_dict, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).validate()
        return loaded

    def to_dict(self) -> dict:
        """As for any config. A VLM's name on the Hub is kept; the folder where it lay on this machine is not."""
        values = super().to_dict()
        if isinstance(vlm := values.get("vlm_config"), dict) and hub_id(vlm.get("_name_or_path")) is None:
            vlm["_name_or_path"] = ""
        return values

    def save_pretrained(self, save_directory, **kwargs):
        """As for any config; a policy that brings its code along says which pipeline is in it."""
        if self._auto_class is not None:
            self.custom_pipelines = CUSTOM_PIPELINES
        super().save_pretrained(save_directory, **kwargs)
        if self._auto_class is not None:
            del self.custom_pipelines

    @property
    def acts_by(self) -> str:
        """How the policy acts unless told otherwise: "flow" (the action expert) or "tokens" (the VLM's own)."""
        return "flow" if self.flow_loss_weight > 0 else "tokens"

    def get_text_config(self, decoder=None, encoder=None) -> PreTrainedConfig:
        """The VLM's text config: vocabulary, tied embeddings and the like are the VLM's."""
        return self.vlm_config.get_text_config(decoder=decoder, encoder=encoder)

    def validate_architecture(self):
        """Part of `@strict`-powered validation: impossible or contradictory settings are refused here."""
        # Sizes
        for name in ("chunk_size", "max_action_dim", "num_flow_samples", "num_inference_steps"):
            check_size(name, getattr(self, name))
        if self.state_encoding == "continuous" and self.max_state_dim < 1:
            raise ValueError(
                f'state_encoding="continuous" needs max_state_dim of at least 1, got {self.max_state_dim}. '
                'Use state_encoding="none" for a robot without state.'
            )
        check_noise_scale(self.noise_scale)
        # How the two parts learn together
        if not 0.0 <= self.backbone_gradient_scale <= 1.0:
            raise ValueError(
                "backbone_gradient_scale must be between 0 (knowledge insulation) and 1 (joint training), got "
                f"{self.backbone_gradient_scale}. To weigh the two losses, use flow_loss_weight."
            )
        if not self.flow_loss_weight >= 0.0:
            raise ValueError(f"flow_loss_weight must not be negative, got {self.flow_loss_weight}.")
        # Flow times: 1 is noise, 0 is data
        if not (self.time_sampling_alpha > 0 and self.time_sampling_beta > 0):
            raise ValueError(
                "The flow time's Beta distribution needs positive parameters, got "
                f"({self.time_sampling_alpha}, {self.time_sampling_beta})."
            )
        low, high = self.time_sampling_offset, self.time_sampling_offset + self.time_sampling_scale
        if not 0.0 <= low < high <= 1.0 + 1e-9:
            raise ValueError(
                f"Flow times must lie in [0, 1], but time_sampling_offset and time_sampling_scale give [{low}, {high}]."
            )
        # Delays that the expert makes up for
        if not 0 <= self.rtc_max_delay < self.chunk_size:
            raise ValueError(
                f"rtc_max_delay must be at least 0 and less than chunk_size = {self.chunk_size}, got "
                f"{self.rtc_max_delay}: of a chunk that is given as a whole nothing is left to learn."
            )
        # What the expert reads of this VLM
        stride = self.expert_config.layer_stride
        if stride > len(self.kv_layers):
            raise ValueError(
                f"expert_config.layer_stride = {stride} leaves next to nothing to read: only {len(self.kv_layers)} "
                f"layers of '{self.vlm_config.model_type}' have keys and values. Use at most {len(self.kv_layers)}."
            )
        heads = self.expert_config.num_attention_heads
        for layer in self.expert_layers:
            if heads is not None and heads % layer["num_key_value_heads"]:
                raise ValueError(
                    f"expert_config.num_attention_heads = {heads} is not a multiple of the "
                    f"{layer['num_key_value_heads']} key/value heads of backbone layer {layer['layer']}. Use a "
                    "multiple, or None for the backbone's own number."
                )


__all__ = ["KIVLAConfig", "KIVLAExpertConfig", "check_noise_scale"]
