"""What LeRobot has to know of a KIVLA policy: the `config.json` of a LeRobot folder."""

from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig
from lerobot.policies.rtc.configuration_rtc import RTCConfig

DTYPES = ("float32", "bfloat16", "float16")


def _no_normalization() -> dict[str, NormalizationMode]:
    return dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)


@PreTrainedConfig.register_subclass("kivla")
@dataclass
class KivlaConfig(PreTrainedConfig):
    """Settings of a KIVLA policy that LeRobot reads or that may be changed on its command line (`--policy.seed=0`).

    What the policy *is* (VLM, expert, cameras, normalisation, tokens) is in the KIVLA policy itself, which lies in the
    sub-folder `kivla/`. `python -m lerobot_policy_kivla.export` writes both.

    Args:
        chunk_size: actions that the policy predicts at once; a property of the policy.
        history, history_stride: frames (and states) that the policy sees, and the control steps between them;
            properties of the policy. `lerobot-train` then reads them, and the policy keeps what `select_action` was
            shown.
        n_action_steps: actions of a chunk to execute before the policy looks again, at most `chunk_size`.
        cameras: where observations have other names than the policy: the policy's camera → LeRobot's key or the last
            part of it (`--policy.cameras='{"wrist": "observation.images.image2"}'`). If it has every camera of the
            policy, other images are left out.
        robot: whose cameras, state and actions these are, for a policy of several robots.
        acts_by: "flow" (the action expert) or "tokens" (the VLM's own); None for what the policy was trained for.
        num_steps: Euler steps of the action expert; the policy's own number if None.
        noise_scale: how much noise chunks start from: 0 none, 1 as in training; the policy's own if None.
        dtype: type of the weights, "float32", "bfloat16" (half of the memory) or "float16"; None for what they are
            stored in. To act: what is trained should be float32.
        seed: with it every chunk starts from the same noise; None draws noise from torch's random state.
        clip_actions: hold actions within the range of the policy's data; None for what its processor says (it does).
        rtc: how a chunk goes on from the one before in `lerobot-rollout --inference.type=rtc`: "guidance" (any policy
            that acts by flow) or "trained" (one that was trained with `rtc_max_delay`); None for what it can best.
        rtc_config: LeRobot's own settings of it, which `lerobot-rollout` puts here. Of them `enabled` and
            `max_guidance_weight` are used; `execution_horizon` decides how much of a chunk LeRobot hands back. The
            weights always fall exponentially, as in the paper (`prefix_attention_schedule`).
        normalization_mapping: must be IDENTITY throughout, because KIVLA's processor normalises.
        optimizer_lr, optimizer_weight_decay, optimizer_grad_clip_norm, scheduler_warmup_steps,
            scheduler_decay_steps, scheduler_decay_lr: of `lerobot-train`: AdamW, linear warm-up, cosine decay.

    Raises:
        ValueError: `n_action_steps` that do not fit, a `dtype` that is none, or a normalisation that would come on top
            of the policy's own.
    """

    chunk_size: int = 50
    history: int = 1
    history_stride: int = 1
    n_action_steps: int = 50
    cameras: dict[str, str] | None = None
    robot: str | None = None
    acts_by: str | None = None
    num_steps: int | None = None
    noise_scale: float | None = None
    dtype: str | None = None
    seed: int | None = None
    clip_actions: bool | None = None
    rtc: str | None = None
    rtc_config: RTCConfig | None = None
    normalization_mapping: dict[str, NormalizationMode] = field(default_factory=_no_normalization)
    optimizer_lr: float = 5e-5
    optimizer_weight_decay: float = 0.0
    optimizer_grad_clip_norm: float = 1.0
    scheduler_warmup_steps: int = 1000
    scheduler_decay_steps: int = 30_000
    scheduler_decay_lr: float = 5e-6

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ValueError(
                f"n_action_steps must be between 1 and chunk_size = {self.chunk_size}, got {self.n_action_steps}."
            )
        if self.dtype not in (None, *DTYPES):
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}.")
        if any(mode != NormalizationMode.IDENTITY for mode in self.normalization_mapping.values()):
            raise ValueError(
                f"normalization_mapping must be IDENTITY for KIVLA policies, got {self.normalization_mapping}: their "
                "own processor normalises, and LeRobot's normalisation would come on top of it. Leave it out."
            )

    def validate_features(self) -> None:
        """Nothing to check: names are checked with every batch, where `--rename_map` has been applied."""

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(
            lr=self.optimizer_lr,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        return CosineDecayWithWarmupSchedulerConfig(
            peak_lr=self.optimizer_lr,
            decay_lr=self.scheduler_decay_lr,
            num_warmup_steps=self.scheduler_warmup_steps,
            num_decay_steps=self.scheduler_decay_steps,
        )

    @property
    def observation_delta_indices(self) -> list[int] | None:
        if self.history == 1:
            return None
        return [-back * self.history_stride for back in reversed(range(self.history))]

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None


__all__ = ["KivlaConfig"]
