"""KIVLA: any vision-language model as a robot policy, with knowledge insulation."""

import dataclasses
import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import ModelOutput
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from .action_checks import check_finite
from .action_expert import ActionExpert, ExpertRMSNorm, Modulation, Prefix
from .adapter_loading import adapter_in, load_with_adapter
from .backbone_attention import find_language_head, find_text_decoder, record_attention
from .compiled_policy import CompiledPolicy
from .compiling import CompilingMixin
from .configuration_kivla import KIVLAConfig, KIVLAExpertConfig, check_noise_scale
from .damaged_files import check_all_weights, check_text_weights, damaged_files_named
from .flow_matching import euler_times, flow_matching_loss, interpolate, sample_flow_time
from .forward_inputs import (
    WithVLMArguments,
    check_actions,
    check_draws,
    check_names,
    check_num_steps,
    check_one_pass,
    check_prefix,
    check_state,
    check_token_ids,
    no_actions,
    tokens_of,
    vlm_argument_names,
    with_image_dtype,
)
from .frozen_parts import set_frozen_to_eval
from .generation_kivla import KIVLAGenerationMixin
from .hub_card import PushedWithCard
from .knowledge_insulation import insulate
from .next_token import ClosedChoice, choice_losses, closed_choice, next_token_loss, supervised_tokens
from .pipeline_kivla import ActionPredictionPipeline  # noqa: F401 (belongs to the code that is saved with a policy)
from .real_time_chunking import RealTimeChunking, draw_delays, first_steps, guided_velocity
from .remote_vlm import is_known_without_files, load_vlm_config, save_vlm_code
from .token_ids import check_new_tokens, without_advice_on_new_rows
from .vlm_pass import read_prompt, rotary_frequencies, run_vlm

_HUB_ARGUMENTS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "token",
    "revision",
    "subfolder",
    "trust_remote_code",
)


@dataclass
class KIVLAOutput(ModelOutput):
    """The losses of a batch, and what they were computed from.

    Args:
        loss: `token_loss + flow_loss_weight · flow_loss`, of those that are present; with `output_router_logits` also
            the load balancing loss of the VLM's mixture of experts, weighted as the VLM does.
        token_loss: mean cross-entropy over supervised next tokens; None if no token is supervised.
        flow_loss: mean squared velocity error over real action values; None if there are none.
        logits: (n, vocabulary), the logits that predict the n supervised tokens, in batch order; the full
            (B, S, vocabulary) is never made. None if no token is supervised.
        velocity: (N·B, H, D), float32, the predicted velocity; None without `actions`.
        aux_loss, hidden_states, attentions, router_logits: the VLM's, where they are asked for.
        candidate_logits: (m, k), of the m supervised positions that choose among k candidates; `logits` then has the
            others. None without `candidates`.
    """

    loss: torch.Tensor | None = None
    token_loss: torch.Tensor | None = None
    flow_loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    velocity: torch.Tensor | None = None
    aux_loss: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    router_logits: tuple[torch.Tensor, ...] | None = None
    candidate_logits: torch.Tensor | None = None


class KIVLAPreTrainedModel(PushedWithCard, PreTrainedModel):
    """What the library asks of every model: its config, its capabilities, how new weights are drawn."""

    config: KIVLAConfig
    # Its losses are means over what they supervise, whatever else the optimiser step has (KIVLATrainer counts itself).
    accepts_loss_kwargs = False
    config_class = KIVLAConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012 (the library's form)
    output_modalities = ("text",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["ExpertLayer"]  # noqa: RUF012 (the library's form)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module):
        """Only the expert's modules arrive here: the VLM is a model of its own and has its own rule.

        Of those, the library leaves out custom modules without parameters of their own.
        """
        if isinstance(module, Modulation):  # adaRMS starts as the identity
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, ExpertRMSNorm):
            init.zeros_(module.weight)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=self.config.expert_config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)


class KIVLAForActionPrediction(KIVLAGenerationMixin, CompilingMixin, KIVLAPreTrainedModel):
    """A vision-language-action model: a VLM that learns tokens, and an action expert that reads it.

    Args:
        config: which VLM, which expert, how they are trained together.
        vlm: a loaded VLM to build on; by default a new one is made from `config.vlm_config`. To start from a
            pretrained VLM use `from_vlm`.
    """

    vlm: PreTrainedModel

    def __init__(self, config: KIVLAConfig, vlm: PreTrainedModel | None = None):
        config.read_vlm_config()
        super().__init__(config)
        self.vlm = AutoModelForImageTextToText.from_config(config.vlm_config) if vlm is None else vlm
        if vlm is not None:
            self.name_or_path = vlm.name_or_path  # peft states it as the base of an adapter
        self.rows_of_base = len(self.get_input_embeddings().weight)  # what files have; new tokens come after
        # Whether training is to leave the other rows of embedding and output layer as they are (KIVLATrainer does).
        self.trains_new_rows_only = False
        self.compiled_policy: CompiledPolicy | None = None
        config.vlm_config = self.vlm.config
        self.vlm_argument_names = vlm_argument_names(self.vlm)
        # The VLM knows what it ties; peft looks for it here, at the root.
        self._tied_weights_keys = {
            f"vlm.{to}": f"vlm.{source}" for to, source in self.vlm.all_tied_weights_keys.items()
        }
        name_of = {module: name for name, module in self.vlm.named_modules()}
        # What is tied, not what is one tensor by now: a model that is being loaded ties its weights at the end.
        config.tie_word_embeddings = f"{name_of[self.get_output_embeddings()]}.weight" in self.vlm.all_tied_weights_keys
        record_attention(self.vlm)
        # The library puts hooks for hidden states on layers when they are first asked for. A view for one call of
        # `generate` would put them there again each time, and every state would come twice.
        maybe_install_capturing_hooks(self.vlm)
        self.expert = ActionExpert(config)
        self.generation_config = self.vlm.generation_config
        self.post_init()
        self._no_split_modules = _repeated_layers(self)

    # ------------------------------------------------------------------------------------------ construction
    @classmethod
    def from_vlm(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        expert_config: KIVLAExpertConfig | dict | None = None,
        **kwargs,
    ) -> "KIVLAForActionPrediction":
        """A new policy on a pretrained VLM; the expert starts from random weights.

        Args:
            pretrained_model_name_or_path: a Hub id or a folder of any VLM for `AutoModelForImageTextToText`.
            expert_config: the action expert.
            **kwargs: fields of `KIVLAConfig` (`chunk_size`, `max_action_dim`, ...); everything else goes to the VLM's
                `from_pretrained` (`device_map`, `attn_implementation`, `quantization_config`, ...). `dtype` is float32
                by default, whatever the files are: the policy is to be trained, and most of an optimiser's steps are
                too small for bfloat16. (`bf16=True` trains in mixed precision.)

        Raises:
            UnsupportedBackboneError: before any weights are loaded, if the VLM gives the expert nothing to read.
            ValueError: weights of the text decoder are not in the files, or not under the names that are looked for.
        """
        # Which arguments are the policy's, and which the VLM's? A misspelt one of ours would vanish among the VLM's.
        own = {f.name for f in dataclasses.fields(KIVLAConfig)} - {f.name for f in dataclasses.fields(PreTrainedConfig)}
        config_kwargs = {name: kwargs.pop(name) for name in list(kwargs) if name in own}
        for name in kwargs:
            if near := difflib.get_close_matches(name, own, n=1, cutoff=0.8):
                raise TypeError(f"KIVLAConfig has no field `{name}`. Did you mean `{near[0]}`?")
        # The config first: a VLM that gives the expert nothing to read is refused before its weights are loaded.
        hub_kwargs = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
        vlm_config = load_vlm_config(pretrained_model_name_or_path, **hub_kwargs)
        config = KIVLAConfig(vlm_config=vlm_config, expert_config=expert_config, **config_kwargs)
        kwargs["trust_remote_code"] = not is_known_without_files(vlm_config.model_type)
        if not {"dtype", "torch_dtype"} & kwargs.keys():
            kwargs["dtype"] = torch.float32
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            pretrained_model_name_or_path, config=vlm_config, **kwargs, output_loading_info=True
        )
        vlm, loading_info = loaded
        check_text_weights(vlm, loading_info["missing_keys"])
        training = vlm.training
        model = cls(config, vlm=vlm).train(training)
        model.expert.to(vlm.device, vlm.dtype)
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs) -> "KIVLAForActionPrediction":
        """As for any model; of a folder with an adapter (LoRA), the base that it states with the adapter on it.

        Raises:
            OSError: config or weights are missing.
            ValueError: they are damaged, or do not fit each other. Unlike for other models, no weight may be missing.
        """
        adapter = adapter_in(pretrained_model_name_or_path, kwargs)
        if adapter is not None:
            if adapter != pretrained_model_name_or_path:
                kwargs.pop("config", None)  # an Auto class read the base's
            return load_with_adapter(cls, adapter, kwargs)
        load: Any = super().from_pretrained
        where = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
        if where.get("trust_remote_code"):
            KIVLAConfig.get_config_dict(pretrained_model_name_or_path, **where)  # makes the VLM's code known
        if isinstance(kwargs.get("config"), KIVLAConfig):  # an Auto class read it before
            kwargs["config"].read_vlm_config()
        with damaged_files_named(
            pretrained_model_name_or_path, lambda: load(pretrained_model_name_or_path, device_map="meta", **where)
        ):
            return load(pretrained_model_name_or_path, *args, **kwargs)

    @staticmethod
    def _finalize_model_loading(model, load_config, loading_info):
        """Called by `from_pretrained` before it makes room for the weights that the files lack, and draws them."""
        check_all_weights(model, load_config, loading_info)
        return PreTrainedModel._finalize_model_loading(model, load_config, loading_info)

    def save_pretrained(self, save_directory, save_original_format: bool = False, **kwargs):
        """As for any model, but weights keep the names that they have in the model.

        By default the library would write many VLMs under the names of their first releases, which resuming a `Trainer`
        run then does not find, without an error.
        """
        if kwargs.get("is_main_process", True):
            save_vlm_code(self.vlm, save_directory)
        super().save_pretrained(save_directory, save_original_format=save_original_format, **kwargs)
        if self._hf_peft_config_loaded and kwargs.get("is_main_process", True):
            self.config.save_pretrained(save_directory)  # which policy the adapter is one of

    def adjust_generation_fn(self, *args, **kwargs):
        """Called by `from_pretrained` to read `generation_config.json`, which is the VLM's."""
        cast(Any, self.vlm).adjust_generation_fn(*args, **kwargs)
        self.generation_config = self.vlm.generation_config

    @classmethod
    def can_generate(cls) -> bool:
        return True

    def get_input_embeddings(self) -> nn.Embedding:
        return cast(nn.Embedding, self.vlm.get_input_embeddings())

    def set_input_embeddings(self, value):
        self.vlm.set_input_embeddings(value)

    def get_output_embeddings(self):
        return find_language_head(self.vlm).get_output_embeddings()

    def set_output_embeddings(self, value):
        find_language_head(self.vlm).set_output_embeddings(value)

    @property
    def vocab_size(self) -> int:
        return self.config.get_text_config().vocab_size

    def get_decoder(self):
        return find_text_decoder(self.vlm)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs) -> nn.Embedding:
        """Make room for new tokens in the VLM, e.g. `model.resize_token_embeddings(len(processor.tokenizer))`."""
        rows = self.get_input_embeddings().weight.shape[0]
        check_new_tokens(self.config.vlm_config, range(rows, new_num_tokens or rows))
        with without_advice_on_new_rows():
            embedding = find_language_head(self.vlm).resize_token_embeddings(new_num_tokens, *args, **kwargs)
        self.config.get_text_config().vocab_size = embedding.num_embeddings  # a model inside has a copy of its config
        return embedding

    def set_attn_implementation(self, attn_implementation: str | dict, **kwargs):
        """As for any model, applied to the VLM; the text decoder's attention goes on being recorded (`kivla_eager`).

        Args:
            attn_implementation: a name for all of the VLM, or a dict: `{"vlm_config": ...}` as `from_pretrained` takes
                it, or by parts of the VLM (`{"text_config": ..., "vision_config": ...}`).
        """
        wanted = attn_implementation
        if isinstance(wanted, dict):
            parts = self.vlm.config.sub_configs.keys()
            unknown = wanted.keys() - ({"vlm_config"} if "vlm_config" in wanted else {"", *parts})
            if unknown:
                raise ValueError(
                    f"There is no attention to set for {sorted(unknown)} here: the action expert has one of its own. "
                    f"Give 'vlm_config' alone, or parts of the VLM: {sorted(parts)}."
                )
            wanted = wanted.get("vlm_config", wanted)
        self.vlm.set_attn_implementation(wanted, **kwargs)
        record_attention(self.vlm)
        self.config._attn_implementation_internal = self.vlm.config._attn_implementation

    def _set_gradient_checkpointing(self, enable=True, gradient_checkpointing_func=checkpoint, **kwargs):
        if enable:
            self._refuse_reentrant(gradient_checkpointing_func)
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, **kwargs)

    def enable_input_require_grads(self) -> None:
        """Make embeddings need gradients, which reentrant checkpointing must have.

        The library calls this for checkpointing of any kind. The other kind does without: a frozen VLM's backward pass
        would be computed for nothing, and a shared vocabulary would lose its one gradient (`token_logits`).
        """
        layers = [m for m in self.modules() if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing]
        if not layers or any(_is_reentrant(cast(Callable, m._gradient_checkpointing_func)) for m in layers):
            super().enable_input_require_grads()

    def _refuse_reentrant(self, checkpointing_func: Callable) -> None:
        if _is_reentrant(checkpointing_func) and self.config.backbone_gradient_scale > 0:
            raise ValueError(
                "Reentrant gradient checkpointing would silently drop the expert's gradient to the backbone, but "
                f"backbone_gradient_scale is {self.config.backbone_gradient_scale}. Use "
                'gradient_checkpointing_kwargs={"use_reentrant": False}, or insulate the backbone (scale 0).'
            )

    def train(self, mode: bool = True) -> "KIVLAForActionPrediction":
        """As for any model, but what is frozen stays as it is.

        A part none of whose parameters is trained keeps the statistics of its norms and applies no dropout: the whole
        VLM, the expert, or of a VLM that is trained in part what holds nothing else (a vision tower, the layers below).
        """
        super().train(mode)
        if mode:
            set_frozen_to_eval(self.vlm)
            set_frozen_to_eval(self.expert)
        return self

    # ------------------------------------------------------------------------------------------------ forward
    @WithVLMArguments
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        *,
        labels: torch.Tensor | None = None,
        expert_attention_mask: torch.Tensor | None = None,
        actions: torch.Tensor | None = None,
        action_mask: torch.Tensor | None = None,
        state: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        delay: torch.Tensor | None = None,
        num_supervised_tokens: torch.Tensor | float | None = None,
        num_supervised_actions: torch.Tensor | float | None = None,
        token_loss_weights: torch.Tensor | None = None,
        candidates: torch.Tensor | None = None,
        candidates_mask: torch.Tensor | None = None,
        with_token_loss: bool = False,
        with_flow_loss: bool = False,
        return_dict: bool | None = None,
        **vlm_inputs,
    ) -> KIVLAOutput | ModelOutput | tuple:
        """Token loss and flow loss of a batch. Without `labels` and `actions` this is the VLM's own forward.

        Args:
            input_ids: (B, S), or `inputs_embeds` (B, S, width) in its place.
            labels: (B, S), the token at each position where it is to be learned, -100 elsewhere (M^ℓ of the paper).
            expert_attention_mask: (B, S) bool, prefix positions that the expert may read: not padding, not the action
                tokens. Needed with `actions`.
            actions: (B, H, D), normalised chunk, zero-padded.
            action_mask: (B, H, D) bool, True where a value is real (M^act); all by default. Dimensions that are
                never real are kept at zero, noise included.
            state: (B, max_state_dim), with `state_encoding="continuous"` only.
            noise, timestep: (N·B, H, D) and (N·B,), draw 0 of every example first; drawn if None.
            delay: (N·B,) int, with `rtc_max_delay` only: how many actions at the beginning of each draw are given clean
                (flow time 0) and not learned; drawn if None.
            num_supervised_tokens, num_supervised_actions: denominators of the two means, for gradient accumulation
                and several devices; by default what this batch has. With delays, give these as well, and count with
                `count_learned_actions`.
            token_loss_weights: (B,), what the tokens of each example weigh in the sum of the token loss; 1 by default.
            candidates, candidates_mask: (k,) token ids and (B, S) bool. Labels where the mask is True are learned among
                these tokens alone (another loss: nothing is learned there of all other tokens), at k / vocabulary of
                the output layer's cost.
            with_token_loss, with_flow_loss: go through that loss even with nothing to learn there. It is 0 then, with
                gradients of zero. Devices that share out the weights must run the same layers: as soon as one has
                something to learn, all take part.
            return_dict: False for a tuple; by default as the config says.
            **vlm_inputs: what the VLM takes (`attention_mask`, `pixel_values`, `token_type_ids`, ...).

        Raises:
            TypeError: an argument that neither the VLM nor we know.
            ValueError: shapes that do not fit the config, missing inputs, nothing to learn.
        """
        # With nothing to learn, the policy is its VLM.
        return_dict = self.config.return_dict if return_dict is None else return_dict
        vlm_inputs = self._for_vlm({"input_ids": input_ids, **vlm_inputs})
        if labels is None and actions is None and not with_token_loss and not with_flow_loss:
            return self.vlm(**vlm_inputs, return_dict=return_dict)

        # What is there to learn? A loss that nothing in the batch asks for is not computed at all, unless another
        # device needs this one to take part.
        tokens = tokens_of(vlm_inputs)
        rows, targets = supervised_tokens(labels, tokens)
        closed = closed_choice(rows, targets, candidates, candidates_mask)
        if actions is None and with_flow_loss:
            actions, action_mask, state = no_actions(self.config, len(tokens), tokens.device)
        some_actions = actions is not None
        if actions is not None:
            some_actions = with_flow_loss or action_mask is None or bool(action_mask.any())
            action_mask = check_actions(self.config, actions, action_mask, len(tokens))
        learns_tokens = with_token_loss or len(rows) > 0
        learns_actions = self.config.flow_loss_weight > 0 and some_actions
        if not learns_tokens and not learns_actions:
            raise ValueError(
                "This batch has nothing to learn: every label is -100, and no action value is real or flow_loss_weight "
                "is 0. Check that the examples have a response or actions, and the processor an action tokenizer."
            )

        # One pass of the VLM, for both losses.
        # Under insulation the flow loss needs no backbone graph: without labels the VLM does no backward work at all.
        flow_trains_backbone = learns_actions and self.config.backbone_gradient_scale > 0
        if flow_trains_backbone and torch.is_grad_enabled():  # the scale may have been set after checkpointing
            for module in find_text_decoder(self.vlm).modules():
                if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
                    self._refuse_reentrant(cast(Callable, module._gradient_checkpointing_func))
        backbone_graph = torch.is_grad_enabled() and (learns_tokens or flow_trains_backbone)
        with torch.set_grad_enabled(backbone_graph), record_function("kivla::backbone"):
            vlm_output, both_logits, prefix = self._encode(
                vlm_inputs, rows, expert_attention_mask, read=learns_actions, closed=closed
            )

        # The two terms, each a mean over what it supervises, and their sum.
        logits = candidate_logits = token_loss = flow_loss = velocity = loss = None
        if learns_tokens:
            logits, candidate_logits = both_logits
            weights = None if token_loss_weights is None else token_loss_weights[rows // tokens.shape[1]]
            losses = choice_losses(logits, candidate_logits, targets, closed)
            token_loss = next_token_loss(losses, num_supervised_tokens, weights)
            loss = token_loss
            if vlm_output.get("aux_loss") is not None:
                # A mean over this batch; in a larger step it weighs what its tokens weigh.
                share = 1.0 if num_supervised_tokens is None else len(rows) / num_supervised_tokens
                coefficient = self.config.get_text_config().router_aux_loss_coef
                loss = loss + share * coefficient * vlm_output.aux_loss.to(loss.device)
        if learns_actions:
            with record_function("kivla::expert"):
                draws = noise, timestep, delay
                velocity, flow_loss = self._flow(prefix, actions, action_mask, state, draws, num_supervised_actions)
            weighted = self.config.flow_loss_weight * flow_loss
            loss = weighted if loss is None else loss.to(weighted.device) + weighted
        also = {name: vlm_output.get(name) for name in ("aux_loss", "hidden_states", "attentions", "router_logits")}
        also |= {"loss": loss, "token_loss": token_loss, "flow_loss": flow_loss, "velocity": velocity}
        output = KIVLAOutput(**also, logits=logits, candidate_logits=candidate_logits)
        return output if return_dict else output.to_tuple()

    def _for_vlm(self, inputs: dict) -> dict:
        """The VLM's arguments as it wants them, what the config asks for among them."""
        check_names(inputs, self.vlm_argument_names, type(self).forward, type(self).sample_actions)
        inputs = {name: value for name, value in inputs.items() if value is not None}
        asked = ("output_attentions", "output_hidden_states")
        inputs = {name: True for name in asked if getattr(self.config, name)} | inputs
        return with_image_dtype(inputs, self.vlm.dtype)

    def _flow(self, prefix, actions, action_mask, state, draws, num_supervised):
        """Velocity and flow loss of N draws (noise, time, delay) for one backbone pass, on the expert's device."""
        config, n, device = self.config, self.config.num_flow_samples, self.expert.device
        noise, timestep, delay = draws
        actions = actions.to(device, torch.float32).repeat(n, 1, 1)  # (N·B, H, D)
        action_mask = action_mask.to(device).repeat(n, 1, 1)
        if timestep is None:
            timestep = sample_flow_time(
                len(actions),
                config.time_sampling_alpha,
                config.time_sampling_beta,
                config.time_sampling_scale,
                config.time_sampling_offset,
                device,
            )
        if noise is None:
            noise = torch.randn_like(actions)
        # Given noise, times and delays make a draw reproducible; they must be one for each of the N·B rows.
        check_draws(config, actions.shape, noise, timestep, delay, num_supervised is not None)
        noise, timestep = noise.to(device, torch.float32), timestep.to(device, torch.float32)
        noise = noise * action_mask.any(1, keepdim=True)  # dimensions that a robot does not have stay zero
        noisy = interpolate(actions, noise, timestep)
        # Training for delays: the first actions are given clean, and only the others are learned.
        given = None
        if config.rtc_max_delay > 0:
            delay = draw_delays(len(actions), config.rtc_max_delay) if delay is None else delay
            given = first_steps(delay.to(device), config.chunk_size)  # (N·B, H)
            noisy = torch.where(given[..., None], actions, noisy)
            action_mask = action_mask & ~given[..., None]
        velocity = self.expert(
            noisy,
            self.expert.time_condition(timestep, ahead=False, with_given=given is not None),
            prefix,
            self.expert.suffix_layout(prefix, config.chunk_size, n, given),
            check_state(config, state, len(actions) // n, n),
        )
        if num_supervised is not None:
            num_supervised = num_supervised * n
        return velocity, flow_matching_loss(velocity, noise - actions, action_mask, num_supervised)

    def _encode(
        self,
        vlm_inputs: dict,
        rows: torch.Tensor,
        expert_attention_mask: torch.Tensor | None,
        read: bool,
        closed: ClosedChoice | None = None,
        acts: bool = False,
    ) -> tuple[Any, tuple[torch.Tensor, torch.Tensor | None], Prefix | None]:
        """Run the VLM once: its `ModelOutput`; logits at flat positions `rows`, those that choose among candidates
        apart; and what the expert reads, if it does (`read`). Of a policy that `acts` only the last is wanted.
        """
        check_one_pass(vlm_inputs)
        vlm_inputs = {name: value for name, value in vlm_inputs.items() if name != "use_cache"}  # there is no cache
        if "input_ids" in vlm_inputs:
            check_token_ids(self.config, vlm_inputs["input_ids"], self.get_input_embeddings().weight.shape[0])
        visible = None
        if read:
            visible = check_prefix(self.config, vlm_inputs, tokens_of(vlm_inputs).shape[:2], expert_attention_mask)
            visible = visible.bool()  # (B, S)
            # Columns that no example reads (action tokens, padding) are cut off, so that often no mask is left at all.
            # Asked here, before the pass: a GPU would have to end it before it answers.
            read_columns = visible.any(0).nonzero()
            columns = slice(int(read_columns.min()), int(read_columns.max()) + 1)
            is_all_read = bool(visible[:, columns].all())

        # The VLM's own forward, with three things noted on the way: keys and values, positions, logits at some rows.
        layers = self.config.expert_layers
        output: Any = None
        logits: Any = None
        acts = acts and not vlm_inputs.get("output_router_logits")
        if acts and self.compiled_policy is not None:
            key_values, position = self.compiled_policy.read_prompt(self.vlm, layers, vlm_inputs)
        elif acts:
            key_values, position = read_prompt(self.vlm, layers, vlm_inputs)
        else:
            output, logits, key_values, position = run_vlm(self.vlm, layers, read, rows, closed, **vlm_inputs)
        if vlm_inputs.get("output_router_logits") and output.get("aux_loss") is None:
            raise ValueError(
                f"'{self.config.vlm_config.model_type}' has no router loss: leave out output_router_logits."
            )

        # The positions that the VLM gave its tokens, (B, S): the expert's tokens count on from there. Without rotary
        # embedding there is no position to count on from.
        position = rows.new_zeros(1, 1) if position is None else position
        if position.ndim == 3:  # M-RoPE
            if "input_ids" not in vlm_inputs and "position_ids" not in vlm_inputs:
                raise ValueError(
                    f"'{self.config.vlm_config.model_type}' finds the images' positions in `input_ids`, and without "
                    "them takes those of an earlier call. Give `input_ids`, or `position_ids` beside `inputs_embeds`."
                )
            position = position.amax(0)  # the largest of the axes
        if visible is None:
            return output, logits, None

        # What the expert may read of it, with the gradient that insulation leaves.
        visible = visible.to(position.device)
        next_position = position.expand_as(visible).masked_fill(~visible, -1).amax(1) + 1  # (B,)
        scale = self.config.backbone_gradient_scale
        inv_freq = rotary_frequencies(find_text_decoder(self.vlm), layers)
        key_values = [(insulate(k[:, :, columns], scale), insulate(v[:, :, columns], scale)) for k, v in key_values]
        return output, logits, Prefix(key_values, None if is_all_read else visible[:, columns], next_position, inv_freq)

    # -------------------------------------------------------------------------------------------------- acting
    @torch.no_grad()
    def encode_prefix(self, expert_attention_mask: torch.Tensor | None = None, **vlm_inputs) -> Prefix:
        """What the expert reads of an observation: one pass of the VLM, for any number of `sample_actions(prefix=...)`.

        Args:
            expert_attention_mask, **vlm_inputs: as in `forward`; by default the expert reads all but padding.
        """
        vlm_inputs = self._for_vlm(vlm_inputs)
        if "labels" in vlm_inputs:
            raise ValueError("`labels` are for `forward`: acting learns nothing. Leave them out.")
        tokens = tokens_of(vlm_inputs)
        if expert_attention_mask is None:
            expert_attention_mask = vlm_inputs.get("attention_mask", tokens.new_ones(tokens.shape[:2]))
        no_rows, _ = supervised_tokens(None, tokens)
        return cast(Prefix, self._encode(vlm_inputs, no_rows, expert_attention_mask, read=True, acts=True)[2])

    @torch.inference_mode(mode=False)  # a caller in inference mode could have no guidance: it takes gradients
    @torch.no_grad()
    def sample_actions(
        self,
        num_steps: int | None = None,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        action_mask: torch.Tensor | None = None,
        state: torch.Tensor | None = None,
        prefix: Prefix | None = None,
        rtc: RealTimeChunking | None = None,
        noise_scale: float | None = None,
        **inputs,
    ) -> torch.Tensor:
        """Turn noise into action chunks: the VLM runs once, the expert `num_steps` times.

        Args:
            num_steps: Euler steps; `config.num_inference_steps` by default.
            noise: (B, H, D), to start from; drawn (with `generator`) if None.
            action_mask: (B, H, D) bool; dimensions that are False throughout stay zero.
            state: as in `forward`.
            prefix: of `encode_prefix`, in place of `**inputs`, when the observation has not changed.
            rtc: what is left of the chunks that are being executed; the new ones go on from it.
            noise_scale: what the noise, given or drawn, is multiplied by; `config.noise_scale` by default.
            **inputs: of `encode_prefix`; what `processor(...)` gives without actions.

        Returns:
            (B, H, D) float32, normalised. `processor.unnormalize_actions` turns them into robot units.

        Raises:
            ValueError: shapes that do not fit the config, or an expert that was never trained, or not for this `rtc`.
            NonFiniteActionsError: the actions are NaN or infinite.
        """
        config = self.config
        if config.acts_by != "flow":
            raise ValueError(
                "This policy was trained with flow_loss_weight = 0: its action expert knows nothing. Let it act by "
                'tokens: model.generate_actions(...), or acts_by="tokens" in a pipeline.'
            )
        num_steps = check_num_steps(config.num_inference_steps if num_steps is None else num_steps)
        noise_scale = check_noise_scale(config.noise_scale if noise_scale is None else noise_scale)
        if prefix is not None and inputs:
            raise ValueError(f"Give a `prefix` or what it is made of, not both: got {', '.join(inputs)} beside it.")

        # Where the integration starts: noise, and zero in the dimensions that a robot does not have.
        batch_size = len(tokens_of(inputs) if prefix is None else prefix.next_position)
        device = self.expert.device
        shape = (batch_size, config.chunk_size, config.max_action_dim)
        if noise is None:
            noise = torch.randn(shape, generator=generator, device=device if generator is None else generator.device)
        if noise.shape != shape:
            raise ValueError(
                f"`noise` must be (batch, chunk_size, max_action_dim) = {shape}, got {tuple(noise.shape)}."
            )
        real = torch.ones(shape, dtype=torch.bool) if action_mask is None else action_mask
        real = real.to(device).any(1, keepdim=True)  # (B, 1, D)
        state = check_state(config, state, batch_size)
        x = noise.to(device, torch.float32) * noise_scale * real
        step = real / num_steps  # (B, 1, D)

        # What is left of the old chunks: the new ones are given its beginning, or are guided towards it.
        given = guide = None
        rtc = None if rtc is None else rtc.checked(config, batch_size, device)
        if rtc is not None and rtc.method == "trained":
            given = rtc.held  # (B, H)
            x = torch.where(given[..., None], rtc.previous * real, x)
            step = step * ~given[..., None]  # where they stay
        elif rtc is not None:
            guide = rtc.previous, rtc.weights[..., None] * real, rtc.max_guidance_weight

        # Everything that does not change from step to step is computed once.
        prefix = self.encode_prefix(**inputs) if prefix is None else prefix
        layout = self.expert.suffix_layout(prefix, config.chunk_size, given=given)
        times = euler_times(num_steps, device)
        conditions = self.expert.time_condition(times, with_given=given is not None).rows()
        prefix = self.expert.with_room(prefix, config.chunk_size + (state is not None) if guide is None else 0)
        expert: Callable = partial(self.expert, prefix=prefix, layout=layout, state=state)
        if self.compiled_policy is not None and guide is None:
            expert = self.compiled_policy.expert_step(self.expert, x, conditions[0], prefix, layout, state)

        # Euler steps from t = 1 (noise) to t = 0 (actions).
        for t, condition in zip(times, conditions, strict=True):
            velocity_of = partial(expert, time=condition)
            velocity = velocity_of(x) if guide is None else guided_velocity(velocity_of, x, t, *guide)
            x = x - velocity * step
        check_finite(x)
        return x


def _is_reentrant(checkpointing_func: Callable) -> bool:
    # The library binds the options with functools.partial.
    return bool(getattr(checkpointing_func, "keywords", {}).get("use_reentrant"))


def _repeated_layers(model: KIVLAForActionPrediction) -> set[str]:
    """Class names of the repeated layers of VLM and expert: what FSDP shards as one, and device maps keep whole.

    Every family says so by deriving them from `GradientCheckpointingLayer`; beside them what the VLM names itself, if
    the model has it (families also name parts of towers that this model may lack, which accelerate refuses).
    """
    classes = {type(module).__name__ for module in model.modules()}
    repeated = {type(module).__name__ for module in model.modules() if isinstance(module, GradientCheckpointingLayer)}
    return repeated | (set(model.vlm._no_split_modules or ()) & classes)


__all__ = ["KIVLAForActionPrediction", "KIVLAOutput", "KIVLAPreTrainedModel"]
