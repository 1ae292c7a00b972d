"""What a policy can be told when it is made, or goes on: the options of `kivla train`, and which of them apply when."""

from dataclasses import dataclass, field, replace

from ..modeling_kivla import KIVLAExpertConfig
from ..processing.observation_history import ObservationHistory
from ..processing.relative_words import RELATIVE_HELP, ROTATIONS_HELP, WRAPS_HELP
from .parts import BACKBONE, NEW_TOKENS
from .recipes import RECIPES, Recipe, Stage, get_recipe

DEFAULT_RECIPE = "insulated"
NUM_FLOW_SAMPLES = 4  # of a new policy: the backbone's pass costs most
# Settings that any policy can be given at any time
MODEL_SETTINGS = ("num_flow_samples", "num_inference_steps", "noise_scale", "rtc_max_delay")
_EXPERT_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "layer_stride",
    "time_conditioning",
    "initializer_range",
)
EXPERT_OPTIONS = tuple(f"expert_{name}" for name in _EXPERT_FIELDS)


@dataclass(kw_only=True)
class RelativeOptions:
    """Which actions are relative to the robot's state."""

    relative_actions: list[str] | None = field(default=None, metadata={"help": f"{RELATIVE_HELP} By default none."})
    wrapping_angles: list[str] | None = field(default=None, metadata={"help": WRAPS_HELP})
    rotations: list[str] | None = field(default=None, metadata={"help": ROTATIONS_HELP})


@dataclass
class PolicyOptions(RelativeOptions):
    """None means: not told. Then the recipe, the policy that goes on, or the default decides (in this order).

    See `KIVLAConfig`, `KIVLAExpertConfig` and `KIVLAProcessor`, which have the defaults.
    """

    recipe: str | None = field(
        default=None,
        metadata={
            "help": f"What trains what: {', '.join(RECIPES)}, or a YAML file of your own. insulated; with --policy, as "
            "it was trained."
        },
    )
    chunk_size: int | None = field(default=None, metadata={"help": "Actions in a chunk (H); 50."})
    history: int | None = field(
        default=None, metadata={"help": "Frames of each camera (and states) that the policy sees; 1, the present one."}
    )
    history_stride: int | None = field(default=None, metadata={"help": "Control steps between two of them; 1."})
    max_action_dim: int | None = field(
        default=None,
        metadata={"help": "Width of a chunk; shorter actions are padded; 32, or the data's if that is more."},
    )
    max_state_dim: int | None = field(
        default=None, metadata={"help": "Width of a continuous state; 32, or the data's if that is more."}
    )
    state_encoding: str | None = field(
        default=None, metadata={"help": "text (in the prompt), continuous or none; the recipe's."}
    )
    backbone_gradient_scale: float | None = field(
        default=None, metadata={"help": "0 = insulation, 1 = joint training, between = partly; the recipe's."}
    )
    flow_loss_weight: float | None = field(
        default=None, metadata={"help": "loss = token_loss + this * flow_loss, where the expert is trained; 1."}
    )
    expert_reads_response: bool | None = field(
        default=None,
        metadata={
            "help": "Let the expert read the response (sub-task) that comes before the actions; no.",
            "nargs": "?",
            "const": True,
        },
    )
    num_flow_samples: int | None = field(default=None, metadata={"help": "Noise draws for each backbone pass; 4."})
    num_inference_steps: int | None = field(default=None, metadata={"help": "Euler steps; 10."})
    noise_scale: float | None = field(
        default=None, metadata={"help": "How much noise chunks start from when it acts: 0 none; 1, as in training."}
    )
    rtc_max_delay: int | None = field(
        default=None,
        metadata={"help": "Train for real-time chunking with delays of up to so many control steps; 0, no such delay."},
    )
    expert_hidden_size: int | None = field(default=None, metadata={"help": "Width of the action expert; 1024."})
    expert_intermediate_size: int | None = field(default=None, metadata={"help": "Width of its MLP; 4096."})
    expert_num_attention_heads: int | None = field(default=None, metadata={"help": "Query heads; the backbone's."})
    expert_layer_stride: int | None = field(default=None, metadata={"help": "Read every k-th backbone layer; 1."})
    expert_time_conditioning: str | None = field(
        default=None, metadata={"help": "adarms (pi0.5) or concat (pi0); adarms."}
    )
    expert_initializer_range: float | None = field(
        default=None,
        metadata={"help": "Standard deviation of its weights; 0.02. 1/sqrt(width) suits a small one."},
    )
    normalization: str | None = field(default=None, metadata={"help": "quantile, mean_std or none; quantile."})
    action_tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "fast (fitted on the data), bins, none, a saved one's folder or Hub id, or pkg.module:Class; the "
            "recipe's."
        },
    )
    action_vocab_size: int | None = field(default=None, metadata={"help": "Codes of a fitted FAST tokenizer; 1024."})
    action_scale: float | None = field(default=None, metadata={"help": "Resolution of a fitted FAST tokenizer; 10."})
    action_token_placement: str | None = field(
        default=None, metadata={"help": "added (new tokens) or tail (openpi); added."}
    )
    action_token_skip: int | None = field(
        default=None, metadata={"help": "For tail: 128 (openpi) or 1152 (spares <loc>); 128."}
    )
    adapt_to_pi: bool | None = field(
        default=None,
        metadata={
            "help": "ALOHA's joints and grippers in the units that pi0 was pretrained in (openpi's option); no.",
            "nargs": "?",
            "const": True,
        },
    )
    max_length: int | None = field(default=None, metadata={"help": "Longest allowed sequence; longer is an error."})
    dtype: str = field(
        default="float32", metadata={"help": "Type of the weights. Keep float32 and add --bf16 for mixed precision."}
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, flash_attention_2, ..."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the VLM."})
    # No option: for a plan, the policy has sizes and no memory
    without_weights = False

    def given(self, *names: str) -> dict:
        """Return those of these options that were told."""
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def history_after(self, before: ObservationHistory) -> ObservationHistory:
        """Return the history of a policy that had this one before, with what was told in its place.

        Raises:
            ValueError: a number below 1, or a stride where there is only one moment.
        """
        frames = before.frames if self.history is None else self.history
        stride = self.history_stride
        if stride is None:
            stride = before.stride if frames > 1 else 1
        return ObservationHistory(frames, stride)

    @property
    def loading(self) -> dict:
        """Options of `from_pretrained`: how weights are read."""
        return {"dtype": self.dtype, **self.given("attn_implementation"), "trust_remote_code": self.trust_remote_code}

    def config_kwargs(self) -> dict:
        """Return the fields of the `KIVLAConfig` of a new policy."""
        expert = {name.removeprefix("expert_"): value for name, value in self.given(*EXPERT_OPTIONS).items()}
        config = KIVLAExpertConfig(**expert)
        return {
            **self.given("chunk_size", "max_action_dim", "max_state_dim"),
            "state_encoding": self.state_encoding or get_recipe(self.recipe or DEFAULT_RECIPE).state_encoding,
            "num_flow_samples": NUM_FLOW_SAMPLES,
            **self.given(*MODEL_SETTINGS),
            "expert_config": {name: getattr(config, name) for name in _EXPERT_FIELDS},
        }

    def stages_of(self, recipe: Recipe) -> tuple[Stage, ...]:
        """Return the recipe's stages, with the options given on top where the expert is trained.

        Raises:
            ValueError: an option out of its range.
        """
        weight, scale = self.given("flow_loss_weight"), self.given("backbone_gradient_scale")
        # The scale is for stages that train the backbone; a recipe without any refuses it.
        has_backbone = any(BACKBONE in stage.trains for stage in recipe.stages)
        stages = []
        for stage in recipe.stages:
            given = weight | scale if BACKBONE in stage.trains or not has_backbone else weight
            stages.append(replace(stage, **given) if stage.flow_loss_weight > 0 else stage)
        return tuple(stages)

    def refuse_what_cannot_apply(self, recipe: Recipe, tokenizer: str, placement: str) -> None:
        """Refuse options that another one makes meaningless.

        Args:
            tokenizer, placement: what the policy will have: an `action_tokenizer` and an `action_token_placement`.

        Raises:
            ValueError: naming every option that another one makes meaningless.
        """
        name = self.recipe or "the policy's own"
        problems = {
            f"recipe {name} trains no expert, so there is no flow loss": (
                self.given("backbone_gradient_scale", "flow_loss_weight", "rtc_max_delay")
                if all(stage.flow_loss_weight == 0 for stage in recipe.stages)
                else {}
            ),
            f"recipe {name} leaves the VLM as it is, so it can learn no action tokens": (
                self.given("action_tokenizer")
                if tokenizer != "none" and not any(NEW_TOKENS in stage.parts for stage in recipe.stages)
                else {}
            ),
            f"only a FAST tokenizer that is fitted on the data has them, and the action tokenizer is {tokenizer}": (
                self.given("action_vocab_size", "action_scale") if tokenizer != "fast" else {}
            ),
            "there are no action tokens to place": (
                self.given("action_token_placement", "action_token_skip") if tokenizer == "none" else {}
            ),
            f'it is for --action_token_placement tail, and the placement is "{placement}"': (
                self.given("action_token_skip") if tokenizer != "none" and placement != "tail" else {}
            ),
        }
        refuse({option: reason for reason, options in problems.items() for option in options})


def refuse(reasons: dict[str, str]) -> None:
    """Refuse options that cannot apply, all of them at once.

    Args:
        reasons: option -> why it cannot apply.

    Raises:
        ValueError: there are any.
    """
    if reasons:
        lines = [f"--{option} cannot apply: {reason}. Leave it out." for option, reason in reasons.items()]
        raise ValueError("\n".join(lines))


__all__ = ["DEFAULT_RECIPE", "EXPERT_OPTIONS", "MODEL_SETTINGS", "PolicyOptions", "RelativeOptions", "refuse"]
