"""A saved policy that a new run goes on from: what it is, by which recipe it goes on, and how it is loaded."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from ..modeling_kivla import KIVLAConfig, KIVLAForActionPrediction
from ..named_models import download, model_type
from ..processing import ActionTokenizer, BinningActionTokenizer, KIVLAProcessor
from ..processing.camera_names import place_cameras
from ..processing.observation_history import ObservationHistory
from ..processing.saved_processor import CONFIG_FILE, SETTINGS, VLM_PROCESSOR_FOLDER
from ..processing.vlm_processor import load_vlm_processor
from .model_size import build_without_memory
from .parts import BACKBONE, EXPERT
from .policy_options import DEFAULT_RECIPE, EXPERT_OPTIONS, MODEL_SETTINGS, PolicyOptions, refuse
from .recipes import Recipe, Stage, get_recipe

# What is done with a VLM or a policy; see `training/build.py`.
START, CONTINUE, ADAPT = "start", "continue", "adapt"


class BasePolicy:
    """A saved policy to go on from.

    Args:
        path: a folder or a Hub id.
        vlm_processor: of a base that was converted without one: a folder or a Hub id.
        trust_remote_code: for the VLM's processor.

    Attributes:
        config: the model's.
        settings: arguments of its processor, `KIVLAProcessor.saved_settings`.

    Raises:
        ValueError: it is no KIVLA policy, or it does not say how observations become inputs.
    """

    def __init__(self, path: str | Path, vlm_processor: str | None = None, trust_remote_code: bool = False):
        self.path = str(path)
        self.folder = download(path, "policy (--policy)")
        if (self.folder / "adapter_config.json").is_file():
            raise ValueError(
                f"{path} holds the updates of LoRA alone. `kivla train` goes on from a whole policy: the one that it "
                "leaves in --output_dir has them merged. (In Python: kivla.training.lora.load_lora.)"
            )
        # Is it one of ours, and whole? Better to know before weights are loaded.
        kind = model_type(self.folder, "policy")
        if kind != KIVLAConfig.model_type:
            raise ValueError(
                f"{path} is no KIVLA policy: its config.json has model_type = {kind!r}. A VLM to start from is --vlm; "
                "π0 and π0.5 of openpi, LeRobot or transformers become KIVLA policies by `kivla convert`."
            )
        self.config = KIVLAConfig.from_pretrained(self.folder)
        if not (self.folder / CONFIG_FILE).is_file():
            raise ValueError(
                f"{path} has a model and no {CONFIG_FILE}, so that its prompt, padding and normalisation are not "
                "known. If it was converted, convert it again: `kivla convert` writes them. Otherwise save its "
                "processor into the same folder (processor.save_pretrained)."
            )
        # Settings that an older version did not save are the defaults of today.
        defaults = KIVLAProcessor.__init__.__kwdefaults__
        self.settings = {name: defaults[name] for name in SETTINGS} | KIVLAProcessor.saved_settings(self.folder)
        has_vlm_processor = (self.folder / VLM_PROCESSOR_FOLDER).is_dir()
        if has_vlm_processor and vlm_processor is not None:
            refuse({"vlm_processor": f"{path} has the VLM's processor already"})
        if not has_vlm_processor and vlm_processor is None:
            raise ValueError(
                f"{path} was converted without the VLM's processor: say where it is, for π0 and π0.5 with "
                "--vlm_processor google/paligemma-3b-pt-224."
            )
        self._vlm_processor = vlm_processor
        self._trust = {"trust_remote_code": trust_remote_code}

    @property
    def has_statistics(self) -> bool:
        robots = self.settings.get("robots", {None: self.settings})
        return self.settings["normalization"] == "none" or all(robot["statistics"] for robot in robots.values())

    @property
    def observation_history(self) -> ObservationHistory:
        return ObservationHistory(self.settings["history"], self.settings["history_stride"])

    @property
    def tokenizer(self) -> ActionTokenizer | None:
        return self.settings["action_tokenizer"]

    @property
    def tokenizer_kind(self) -> str:
        """As the option and the recipes have it: bins have the kind "binning"."""
        kind = "none" if self.tokenizer is None else self.tokenizer.kind
        return "bins" if kind == BinningActionTokenizer.kind else kind

    def robot(self, name: str | None) -> dict:
        """Return what is saved of a robot of its own: that of this name, or its first."""
        robots = self.settings.get("robots", {None: self.settings})
        return robots[name if name in robots else next(iter(robots))]

    def cameras_of(self, robot: str | None) -> tuple[list[str] | None, dict[str, str]]:
        """Return the names of a robot's cameras, and what else they are known as; None if it names none."""
        cameras = self.robot(robot)["cameras"]
        return (None if cameras is None else list(cameras)), dict(cameras) if isinstance(cameras, dict) else {}

    def cameras_among(self, names: Sequence[str], robot: str | None) -> list[str] | None:
        """Return those of a dataset's names that are the cameras of a robot, if it has all of them; None otherwise."""
        cameras, known_as = self.cameras_of(robot)
        if not cameras:
            return None
        try:
            return list(place_cameras(names, cameras, known_as, selects=True).values())
        except ValueError:  # the differences are said where all of them are
            return None

    @cached_property
    def own_recipe(self) -> Recipe:
        """The recipe by which it goes on as it was trained."""
        weight, scale = self.config.flow_loss_weight, self.config.backbone_gradient_scale
        learns_tokens = self.tokenizer is not None
        if weight > 0 and scale == 0 and not learns_tokens:
            parts = (EXPERT,)
        else:
            parts = (BACKBONE, EXPERT) if weight > 0 else (BACKBONE,)
        return Recipe(
            "it went on as it had been trained",
            action_tokenizer=self.tokenizer_kind,
            state_encoding=self.config.state_encoding,
            vlm_data=BACKBONE in parts,
            stages=(Stage(parts, weight, scale),),
        )

    def recipe(self, name: str | None, meaning: str) -> tuple[str | None, Recipe]:
        """Return the recipe that it goes on with and its name; None for its own.

        Without a name its own; but a base whose own teaches the VLM nothing (a converted π0.5) is adapted with
        insulation and action tokens.

        Raises:
            ValueError: a recipe for another state encoding.
        """
        if name is None and (meaning == CONTINUE or self.own_recipe.vlm_data):
            return None, self.own_recipe
        is_continuous = self.config.state_encoding == "continuous"
        if name is None:
            name = "insulated-continuous-state" if is_continuous else DEFAULT_RECIPE
        recipe = get_recipe(name)
        if (recipe.state_encoding == "continuous") != is_continuous:
            raise ValueError(
                f"--recipe {name} has state_encoding={recipe.state_encoding!r}, and {self.path} "
                f"{self.config.state_encoding!r}: which of the two cannot change, it is in the weights. Choose another "
                "recipe (`kivla recipes`), or start from a VLM with --vlm."
            )
        return name, recipe

    def value(self, option: str):
        """Return what it has for an option of `PolicyOptions`."""
        if option == "action_tokenizer":
            return self.tokenizer_kind
        if option == "action_vocab_size":
            return getattr(self.tokenizer, "vocab_size", None)
        if option == "action_scale":
            return getattr(self.tokenizer, "scale", None)
        if option in EXPERT_OPTIONS:
            return getattr(self.config.expert_config, option.removeprefix("expert_"))
        return self.settings[option]

    def processor(self, **changes) -> KIVLAProcessor:
        if self._vlm_processor is not None:
            changes["vlm_processor"] = load_vlm_processor(self._vlm_processor, **self._trust)
        return KIVLAProcessor.from_pretrained(self.folder, **self._trust, **changes)

    def model(self, processor: KIVLAProcessor, options: PolicyOptions, notes: list[str]) -> KIVLAForActionPrediction:
        """Load its model with the processor's chunk size, and with settings that any policy can be given."""
        config = KIVLAConfig.from_pretrained(self.folder)
        config.chunk_size = processor.chunk_size
        for name, value in options.given(*MODEL_SETTINGS).items():
            setattr(config, name, value)
        token = processor.vlm_processor.image_token_id
        if self._vlm_processor is not None and config.vlm_config.image_token_id != token:
            notes.append(f"image token {config.vlm_config.image_token_id} -> {token}, that of {self._vlm_processor}")
            config.vlm_config.image_token_id = token
        if options.without_weights:
            return build_without_memory(config, options.dtype)
        return KIVLAForActionPrediction.from_pretrained(self.folder, config=config, **options.loading)


__all__ = ["ADAPT", "CONTINUE", "START", "BasePolicy"]
