"""Options of a training run: what to start from, and which data."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch

from ..named_models import find_vlm
from ..processing.camera_names import check_names, parse_cameras
from ..processing.observation_history import NO_HISTORY, ObservationHistory
from .base_policy import ADAPT, CONTINUE, START, BasePolicy
from .data.episode_selection import parse_episodes
from .dataset_options import DatasetOptions
from .policy_options import DEFAULT_RECIPE, PolicyOptions, refuse
from .recipes import Recipe, Stage, get_recipe, recipe_name


@dataclass
class ModelArguments(PolicyOptions):
    """What to start from, and what is new about it (`docs/adapting.md`). A new policy starts on --vlm; --policy goes on
    as it is, on data that it agrees with; with --adapt it is taken to the data."""

    _argument_group_name: ClassVar[str] = "what to start from, and the policy"

    vlm: str | None = field(
        default=None, metadata={"help": "VLM to start a new policy on: a Hub id, a folder, or tabletop."}
    )
    policy: str | None = field(
        default=None, metadata={"help": "KIVLA policy to go on from, instead of --vlm: same robot, or --adapt."}
    )
    adapt: bool = field(
        default=False,
        metadata={
            "help": "Take --policy to a new robot or new data: statistics, cameras and sizes are the data's; weights, "
            "prompt and padding the policy's."
        },
    )
    vlm_processor: str | None = field(
        default=None, metadata={"help": "For a --policy that was converted without it: the VLM's processor."}
    )
    freeze_vision: bool = field(
        default=False,
        metadata={"help": "Leave the vision tower as it is: less memory and time. The projector behind it learns."},
    )
    lora_rank: int | None = field(
        default=None, metadata={"help": "Train low-rank updates of the VLM's text decoder, and the expert in full."}
    )

    def __post_init__(self):
        if (self.vlm is None) == (self.policy is None):
            raise ValueError("Give either --vlm (a VLM to start from) or --policy (a KIVLA policy to go on from).")
        kind = getattr(torch, self.dtype, None)
        if self.dtype != "auto" and not (isinstance(kind, torch.dtype) and kind.is_floating_point):
            raise ValueError(f"--dtype is float32, bfloat16, float16 or auto (as it is stored), got {self.dtype!r}.")
        self.vlm = self.vlm and find_vlm(self.vlm)
        if self.policy is None:
            given = {"adapt": self.adapt, "vlm_processor": self.vlm_processor}
            refuse({name: "it is for --policy, and this starts from --vlm" for name in given if given[name]})

    @property
    def meaning(self) -> str:
        return START if self.policy is None else ADAPT if self.adapt else CONTINUE

    @cached_property
    def base(self) -> BasePolicy | None:
        return None if self.policy is None else BasePolicy(self.policy, self.vlm_processor, self.trust_remote_code)

    @property
    def observation_history(self) -> ObservationHistory:
        """What the policy looks back on: as told, or as the policy that goes on does."""
        return self.history_after(NO_HISTORY if self.base is None else self.base.observation_history)

    @property
    def chosen_recipe(self) -> tuple[str, Recipe]:
        """The recipe's name and the recipe."""
        if self.base is None:
            name = self.recipe or DEFAULT_RECIPE
            return recipe_name(name), get_recipe(name)
        name, recipe = self.base.recipe(self.recipe, self.meaning)
        return "as before" if name is None else recipe_name(name), recipe

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The recipe's stages, with the options given on top."""
        return self.stages_of(self.chosen_recipe[1])


VLM_SPLIT, VLM_SHARE = "train", 0.2
TEXT_SPLIT, TEXT_SHARE = "train", 0.2


@dataclass
class DataArguments(DatasetOptions):
    """Which demonstrations and VLM data, and how they become inputs."""

    _argument_group_name: ClassVar[str] = "data"

    dataset: list[str] = field(metadata={"help": "LeRobot datasets (v2.0, v2.1, v3.0): Hub ids or folders."})
    robots: list[str] | None = field(
        default=None, metadata={"help": "For several datasets the name of each one's robot; its numbers are its own."}
    )
    dataset_weights: list[float] | None = field(
        default=None, metadata={"help": "Share of each dataset; by default by their numbers of frames."}
    )
    vlm_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Images with questions and answers: a Hub id, a folder of `datasets`, or JSON beside its pictures."
        },
    )
    vlm_media_dir: str | None = field(
        default=None, metadata={"help": "Folder that paths of its pictures are relative to; its own."}
    )
    vlm_split: str | None = field(default=None, metadata={"help": "Split of it to train on; train."})
    vlm_eval_split: str | None = field(default=None, metadata={"help": "Split to evaluate on; examples of vlm_split."})
    vlm_share: float | None = field(default=None, metadata={"help": "Share of VLM data among the examples; 0.2."})
    subtask_key: str | None = field(
        default=None,
        metadata={"help": "Column with each frame's sub-task, to be said first: language_persistent, subtask, ..."},
    )
    question_share: float | None = field(
        default=None,
        metadata={"help": "Share of the demonstrations' own questions about frames (language_events); none."},
    )
    vlm_config: str | None = field(default=None, metadata={"help": "Configuration of it, where it has several."})
    vlm_streaming: bool = field(default=False, metadata={"help": "Stream it instead of downloading it first."})
    vlm_num_rows: int | None = field(default=None, metadata={"help": "Rows of a stream, where its info lacks them."})
    text_dataset: str | None = field(
        default=None,
        metadata={"help": "Plain texts, to keep the VLM's language: a Hub id, a folder, or a JSON or Parquet file."},
    )
    text_column: str | None = field(default=None, metadata={"help": "Column of it with the texts; text."})
    text_split: str | None = field(default=None, metadata={"help": "Split of it to train on; train."})
    text_config: str | None = field(default=None, metadata={"help": "Configuration of it, where it has several."})
    text_share: float | None = field(default=None, metadata={"help": "Share of texts among the examples; 0.2."})
    text_length: int | None = field(
        default=None, metadata={"help": "Most tokens of a text in an example; of a longer text a random piece. 256."}
    )
    eval_episodes: list[str] | None = field(
        default=None, metadata={"help": "Episodes held out for evaluation, given like --episodes."}
    )
    eval_text_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Held-out texts that the VLM predicts at every evaluation, and before: a Hub id, a folder, JSON or "
            "Parquet."
        },
    )
    eval_text_column: str | None = field(default=None, metadata={"help": "Column of the texts; text, or the only one."})
    eval_text_split: str | None = field(default=None, metadata={"help": "Split of them; train."})
    eval_text_config: str | None = field(default=None, metadata={"help": "Configuration of it, where it has several."})
    max_eval_frames: int = field(default=512, metadata={"help": "Evaluate on at most so many examples of each set."})
    cameras: list[str] | None = field(
        default=None,
        metadata={"help": "Cameras to use, in this order; all. POLICY_NAME=DATA_NAME where names differ."},
    )
    check_data: bool = field(
        default=True, metadata={"help": "Look at the data first, as `kivla check-data --quick`: errors end the run."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Fetch videos from the Hub while training, instead of all before."}
    )
    stream_gb: float | None = field(
        default=None, metadata={"help": "Gigabytes of streamed videos that are kept on this machine; 20."}
    )
    frame_cache_mb: float = field(
        default=0, metadata={"help": "Megabytes of decoded frames that every data-loader worker keeps in memory."}
    )

    def reader_arguments(self) -> dict:
        """What of the dataset's options is given, by the names that `LeRobotDataset` has for it."""
        given = {"subtask_key": self.subtask_key, "streaming": self.streaming or None, "stream_gb": self.stream_gb}
        return super().reader_arguments() | {name: value for name, value in given.items() if value is not None}

    @property
    def mapping(self) -> dict[str, str | None] | None:
        """The policy's name of each camera → the data's; None if no cameras were chosen."""
        return parse_cameras(self.cameras)

    def __post_init__(self):
        super().__post_init__()
        self.eval_episodes = parse_episodes(self.eval_episodes, "eval_episodes")
        if both := sorted(set(self.exclude_episodes or ()) & set(self.eval_episodes or ())):
            raise ValueError(
                f"--exclude_episodes and --eval_episodes both name the episodes {both}: those that are left out are "
                "not evaluated on, and those that are held out are not trained on anyway. Name each once."
            )
        check_names(self.mapping or {})
        self.dataset = [self.dataset] if isinstance(self.dataset, str) else list(self.dataset)
        if self.robots is None and len(self.dataset) > 1:
            raise ValueError(
                f"{len(self.dataset)} datasets need --robots with a name for each: datasets of the same name are one "
                "robot, whose statistics are taken together."
            )
        for name in ("robots", "dataset_weights"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.dataset):
                raise ValueError(f"--{name} has {len(values)} entries for {len(self.dataset)} datasets.")
        if not all(0 < weight < math.inf for weight in self.dataset_weights or ()):
            raise ValueError(f"--dataset_weights are numbers above 0, got {self.dataset_weights}.")
        if len(self.dataset) > 1 and (self.episodes or self.exclude_episodes or self.eval_episodes):
            raise ValueError("--episodes, --exclude_episodes and --eval_episodes are for a single dataset.")
        if self.stream_gb is not None and not self.streaming:
            refuse({"stream_gb": "it is for --streaming true"})
        if self.streaming and self.question_share is not None:
            refuse({"question_share": "the questions are about frames all over the dataset, which --streaming avoids"})
        if self.streaming and self.dataset_format != "lerobot":
            refuse({"streaming": f"it is for LeRobot datasets, and --dataset_format is {self.dataset_format}"})
        if self.frame_cache_mb and self.dataset_format != "lerobot":
            refuse({"frame_cache_mb": f"it is for LeRobot datasets, and --dataset_format is {self.dataset_format}"})
        if self.dataset_weights is not None and len(self.dataset) == 1:
            refuse({"dataset_weights": "there is one dataset, and its weight is the whole"})
        if self.vlm_dataset is None:
            names = ("split", "eval_split", "share", "config", "streaming", "num_rows", "media_dir")
            names = [f"vlm_{name}" for name in names]
            refuse({name: "there is no --vlm_dataset" for name in names if getattr(self, name)})
        if self.eval_text_dataset is None:
            names = [f"eval_text_{name}" for name in ("column", "split", "config")]
            refuse({name: "there is no --eval_text_dataset" for name in names if getattr(self, name) is not None})
        if self.vlm_num_rows is not None and not self.vlm_streaming:
            refuse({"vlm_num_rows": "it is for --vlm_streaming"})
        if self.dataset_format != "lerobot":
            reason = f"it is for LeRobot datasets, and --dataset_format is {self.dataset_format}"
            refuse({name: reason for name in ("subtask_key", "question_share") if getattr(self, name) is not None})
        learned = (self.text_dataset, self.text_config, self.text_split or TEXT_SPLIT)
        tested = (self.eval_text_dataset, self.eval_text_config, self.eval_text_split or TEXT_SPLIT)
        if self.text_dataset is not None and learned == tested:
            raise ValueError(
                f"--text_dataset and --eval_text_dataset are both {self.text_dataset}: texts that are learned do not "
                "tell what is kept. Hold out another split or, better, another source."
            )
        if self.text_dataset is None:
            names = [f"text_{name}" for name in ("column", "split", "config", "share", "length")]
            refuse({name: "there is no --text_dataset" for name in names if getattr(self, name) is not None})
        shares = self.shares
        for name, share in shares.items():
            if not 0 < share < 1:
                whose = "it" if name == "question_share" else f"--{name.removesuffix('_share')}_dataset"
                raise ValueError(f"--{name} must lie between 0 and 1, got {share}. To use none, leave out {whose}.")
        if not sum(shares.values()) < 1:
            given = ", ".join(f"--{name} {share}" for name, share in shares.items())
            raise ValueError(f"Shares must be less than 1 together, so that demonstrations are left: {given}.")

    @property
    def shares(self) -> dict[str, float]:
        """Of everything beside the demonstrations, the share among the examples."""
        shares = {}
        if self.vlm_dataset is not None:
            shares["vlm_share"] = VLM_SHARE if self.vlm_share is None else self.vlm_share
        if self.text_dataset is not None:
            shares["text_share"] = TEXT_SHARE if self.text_share is None else self.text_share
        if self.question_share is not None:
            shares["question_share"] = self.question_share
        return shares
