"""A KIVLA policy as LeRobot's programs want one."""

import logging
from collections import deque
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import HfApi, snapshot_download
from lerobot.configs import PreTrainedConfig
from lerobot.policies import PreTrainedPolicy
from lerobot.utils.constants import ACTION
from torch import Tensor

from kivla import ActionPredictionPipeline, KIVLAForActionPrediction, KIVLAProcessor
from kivla.acting.observation_memory import ObservationMemory
from kivla.acting.rtc_method import rtc_method
from kivla.modeling_kivla.action_checks import LARGE_CLIPPED_SHARE, actions_of
from kivla.processing.observation_history import is_clip

from .configuration_kivla import KivlaConfig
from .observations import to_observations
from .rest_of_chunk import without_padding

log = logging.getLogger(__name__)

# The KIVLA policy inside of a LeRobot folder. (Both have a `config.json` of their own.)
KIVLA_FOLDER = "kivla"


class KivlaPolicy(PreTrainedPolicy):
    """Wraps a KIVLA model and its processor. Batches come as LeRobot has them, in robot units, and actions go out so.

    Args:
        config: LeRobot's side of the policy.
        model, processor: the KIVLA policy.
        dataset_stats, dataset_meta: what LeRobot passes to every policy; not used, since the processor has the
            statistics of the data that the policy learned from.

    Raises:
        ValueError: no KIVLA policy was given, the config is of another one, or it wants a `rtc` that the policy cannot.
    """

    config_class = KivlaConfig
    name = "kivla"

    def __init__(
        self,
        config: KivlaConfig,
        model: KIVLAForActionPrediction | None = None,
        processor: KIVLAProcessor | None = None,
        dataset_stats: dict | None = None,
        dataset_meta=None,
    ):
        super().__init__(config)
        if model is None or processor is None:
            raise ValueError(
                "A KIVLA policy cannot be made from nothing here (--policy.type=kivla). Train one with `kivla train`, "
                "export it with `python -m lerobot_policy_kivla.export`, and use --policy.path=FOLDER."
            )
        if config.chunk_size != processor.chunk_size:
            raise ValueError(
                f"chunk_size is {config.chunk_size}, but this policy predicts {processor.chunk_size} actions at once. "
                "To execute fewer of them use n_action_steps."
            )
        if (config.history, config.history_stride) != (processor.history, processor.history_stride):
            raise ValueError(
                f"history and history_stride are {config.history} and {config.history_stride}, but this policy sees "
                f"{processor.observation_history}: export it again."
            )
        self.model = model
        self.processor = processor
        self.spec = processor.robot(config.robot)
        if self.spec.cameras is None:
            raise ValueError(
                "This policy has no camera names, which LeRobot needs. Give them to its processor: KIVLAProcessor"
                '.from_pretrained(POLICY, cameras=["observation.images.front", ...]).save_pretrained(POLICY).'
            )
        processor.check_cameras(config.cameras)
        self._pipeline: ActionPredictionPipeline | None = None
        self._has_warned_of_clipping = self._has_warned_of_delay = False
        rtc_method(model.config, config.rtc, config.acts_by)  # refuses what this policy cannot
        self.reset()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        trust_remote_code: bool = False,
        **kwargs,
    ) -> "KivlaPolicy":
        """Load what `export` or `lerobot-train` wrote, from a folder or the Hub; in evaluation mode.

        Other keyword arguments are those that LeRobot passes to every policy; they are not used.

        Args:
            trust_remote_code: run the code that the policy brings along for its VLM. No setting of `config`, since that
                comes with the policy.

        Raises:
            FileNotFoundError: there is no KIVLA policy in it.
        """
        hub = {
            "force_download": force_download,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "revision": revision,
        }
        if config is None:
            config = PreTrainedConfig.from_pretrained(pretrained_name_or_path, **hub)
        folder = Path(pretrained_name_or_path)
        if not folder.is_dir():
            folder = Path(snapshot_download(str(pretrained_name_or_path), allow_patterns=f"{KIVLA_FOLDER}/*", **hub))
        folder = folder / KIVLA_FOLDER
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{pretrained_name_or_path} has no folder {KIVLA_FOLDER}/ with a KIVLA policy. "
                "`python -m lerobot_policy_kivla.export KIVLA_POLICY LEROBOT_FOLDER` makes what LeRobot can load."
            )
        model = KIVLAForActionPrediction.from_pretrained(
            folder, dtype=config.dtype or "auto", trust_remote_code=trust_remote_code
        )
        policy = cls(config, model, KIVLAProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code))
        return policy.to(config.device).eval()

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """`state_dict`: the weights where the modules have only a part of them (`lerobot-train` gathers them)."""
        if state_dict is not None:
            state_dict = {name.removeprefix("model."): weights for name, weights in state_dict.items()}
        folder = Path(save_directory) / KIVLA_FOLDER
        self.model.save_pretrained(folder, state_dict=state_dict)
        self.processor.save_pretrained(folder)
        self.config._save_pretrained(save_directory)

    def push_model_to_hub(self, *args, **kwargs) -> None:
        """As for any policy, and then what LeRobot leaves behind: chat templates, tokenizer models, code."""
        super().push_model_to_hub(*args, **kwargs)
        with TemporaryDirectory() as folder:
            self._save_pretrained(Path(folder))
            HfApi().upload_folder(
                repo_id=self.config.repo_id, folder_path=folder, ignore_patterns=["*.safetensors", "config.json"]
            )

    def wrap_with_peft(self, *args, **kwargs) -> None:
        raise NotImplementedError(
            "LoRA has to know which tokens are actions, and to train the expert in full. Use `kivla train --lora_rank "
            "16`, which leaves a merged policy, and export that."
        )

    # -------------------------------------------------------------------------------------------------- acting
    def reset(self) -> None:
        """A new episode: forget the actions that were not executed, and what was seen."""
        self._queue: deque[Tensor] = deque()
        self._memories: list[ObservationMemory] = []  # of each environment

    def select_action(self, batch: dict) -> Tensor:
        """The next action, (B, action_dim), robot units.

        The batch is looked at when the queue is empty, and at every step for a policy with a history.
        """
        history = self.processor.observation_history
        observations = self._observations(batch) if history.frames > 1 or not self._queue else []
        self._memories += [ObservationMemory(history) for _ in observations[len(self._memories) :]]
        observations = [memory(seen) for memory, seen in zip(self._memories, observations, strict=False)]
        if not self._queue:
            self._queue.extend(self._predict(observations)[:, : self.config.n_action_steps].unbind(1))
        return self._queue.popleft()

    def supports_rtc(self) -> bool:
        """Whether `lerobot-rollout --inference.type=rtc` may run it: what acts by flow can go on from a chunk.

        Not with a history: there LeRobot shows only the steps at which it asks.
        """
        has_history = self.processor.history > 1
        return not has_history and rtc_method(self.model.config, acts_by=self.config.acts_by) is not None

    def predict_action_chunk(
        self, batch: dict, inference_delay: int | None = None, prev_chunk_left_over: Tensor | None = None
    ) -> Tensor:
        """What `pipeline("action-prediction")` predicts: (B, chunk_size, action_dim), float32, robot units.

        The last two arguments are LeRobot's real-time chunking: the robot executes the chunk before while this one is
        computed, and this one goes on from it (`config.rtc` says how).

        Args:
            batch: observations; for a policy with a history with all moments that it sees, (B, n, ...).
            inference_delay: control steps that pass before this chunk can be used.
            prev_chunk_left_over: (n, action_dim) or (B, n, action_dim), what is left of the chunk before, from this
                observation on. In robot units, as this policy gave it: its postprocessor hands everything on as it is.
                LeRobot may have padded it at the end, see `without_padding`.

        Raises:
            ValueError: what was observed does not fit the policy, or its action tokens do not decode; a policy with a
                history that is shown single moments.
            NonFiniteActionsError: the policy computed NaN or infinity.
        """
        observations, options = self._observations(batch), {}
        if self.processor.history > 1 and not any(map(is_clip, observations[0]["images"].values())):
            raise ValueError(
                f"This policy sees {self.processor.observation_history}, and is shown single moments. In LeRobot it "
                "acts by select_action, which sees every step (lerobot-eval, lerobot-rollout --inference.type=sync)."
            )
        is_on = self.config.rtc_config is None or self.config.rtc_config.enabled
        if prev_chunk_left_over is not None and is_on:
            options = self._go_on(observations, prev_chunk_left_over, inference_delay or 0)
        return self._predict(observations, **options)

    @torch.no_grad()
    def _predict(self, observations: list[dict], **options) -> Tensor:
        """The chunks for some observations, (B, chunk_size, action_dim)."""
        self.eval()
        if self._pipeline is None or self._pipeline.device != self.model.device:
            self._pipeline = ActionPredictionPipeline(self.model, processor=self.processor, device=self.model.device)
        options |= {name: getattr(self.config, name) for name in ("num_steps", "noise_scale", "seed", "acts_by")}
        options["clip_actions"] = self.config.clip_actions
        results = self._pipeline(observations, **options)
        self._warn_of_clipping(results)
        return torch.stack([torch.from_numpy(actions_of(result)) for result in results]).to(self.model.device)

    def _go_on(self, observations: list[dict], left_over: Tensor, delay: int) -> dict:
        """Add what is left of the chunk before to the observations, and return the pipeline's options for it."""
        method = rtc_method(self.model.config, self.config.rtc, self.config.acts_by)
        left_over = left_over.float().cpu().numpy()
        left_over = left_over[None] if left_over.ndim == 2 else left_over  # (B, n, D)
        longest = self.model.config.rtc_max_delay if method == "trained" else delay
        if delay > longest and not self._has_warned_of_delay:
            self._has_warned_of_delay = True
            log.warning(
                "The policy takes %d control steps, and was trained with delays of up to %d (rtc_max_delay): chunks "
                "may jump. Make it faster, or use --policy.rtc=guidance.",
                delay,
                longest,
            )
        for observation, rest in zip(observations, left_over, strict=True):
            rest = without_padding(rest)
            observation.update(previous_actions=rest, delay=min(delay, longest, len(rest)))
        options = {"rtc": method}
        if method == "guidance" and self.config.rtc_config is not None:
            options["max_guidance_weight"] = self.config.rtc_config.max_guidance_weight
        return options

    def _warn_of_clipping(self, results: list[dict]) -> None:
        """Of the first chunk with many values outside, and not of every one."""
        share = max((result["clipped"]["share"] for result in results if "clipped" in result), default=0.0)
        if share > LARGE_CLIPPED_SHARE and not self._has_warned_of_clipping:
            self._has_warned_of_clipping = True
            log.warning("%.0f %% of a chunk lay outside the range of the policy's data: clipped.", 100 * share)

    def _observations(self, batch: dict) -> list[dict]:
        return to_observations(batch, self.spec, self.config.robot, self.config.cameras)

    # ------------------------------------------------------------------------------------------------ training
    def forward(self, batch: dict, reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """The loss of `kivla train` on this batch, and its two terms.

        Args:
            batch: observations, `action` (B, chunk_size, action_dim) in robot units, `action_is_pad` (B, chunk_size).

        Raises:
            ValueError: another reduction than the mean, which means weights for examples (`--sample_weighting`).
        """
        if reduction != "mean":
            raise ValueError(
                "KIVLA's losses are means over the tokens and action values of a batch, and cannot be weighted by "
                "example. Leave --sample_weighting out."
            )
        observations = self._observations(batch)
        columns = {name: [observation[name] for observation in observations] for name in observations[0]}
        columns |= {
            "actions": batch[ACTION].float().cpu().numpy(),
            "action_is_pad": batch["action_is_pad"].cpu().numpy(),
        }
        outputs = self.model(**self.processor(**columns).to(self.model.device))
        terms = {"token_loss": outputs.token_loss, "flow_loss": outputs.flow_loss}
        return outputs.loss, {name: term.item() for name, term in terms.items() if term is not None}

    def get_optim_params(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


__all__ = ["KIVLA_FOLDER", "KivlaPolicy"]
