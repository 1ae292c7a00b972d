"""A processor on disk and on the Hub: `processor_config.json`, and the VLM's own processor in a folder beside it."""

import json
import logging
import os
from pathlib import Path
from typing import Self

from transformers.dynamic_module_utils import custom_object_save

from .observation_history import ObservationHistory
from .robot_spec import UNKNOWN, robot_from_json, sizes_for
from .saved_files import local_folder, read_json, write_files
from .saved_settings import ROBOT_TYPES, check_saved, panics_as_errors, shortened
from .tokenizer_registry import load_action_tokenizer
from .vlm_processor import image_backend, keep_image_backend, load_vlm_processor

logger = logging.getLogger(__name__)

VLM_PROCESSOR_FOLDER = "vlm_processor"
CONFIG_FILE = "processor_config.json"
# Saved as they are; action tokenizer and robots are saved in a form of their own
SETTINGS = (
    "chunk_size",
    "max_action_dim",
    "max_state_dim",
    "state_encoding",
    "normalization",
    "action_token_placement",
    "action_token_skip",
    "action_prompt",
    "expert_reads_response",
    "noise_padding",
    "square_images",
    "max_length",
    "clip_actions",
    "responds_first",
    "history",
    "history_stride",
    "clips_as_video",
)
_ROBOT_ARGUMENTS = ("statistics", "cameras", "action_dim", "relative_actions", "adapt_to_pi", "robots")
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
_VLM_PROCESSOR_ARGUMENTS = ("trust_remote_code", "use_fast")
# What AutoProcessor and `pipeline` pass on to every processor; none of it concerns this one.
_LIBRARY_ARGUMENTS = ("_from_auto", "_from_pipeline", "_commit_hash", "code_revision", "dtype")


class SavedProcessor:
    """Makes a processor from a VLM, and moves it to and from folders and the Hub. A base of `KIVLAProcessor`."""

    @classmethod
    def from_vlm(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> Self:
        """Make a processor for a policy on this VLM (Hub id or folder).

        `max_action_dim` and, for a continuous state, `max_state_dim` are at least the sizes of the statistics, if they
        are not given: the model is then made with `max_action_dim=processor.max_action_dim`.

        Keyword arguments are those of the class, and for the VLM's processor `revision`, `subfolder`, `token`,
        `cache_dir`, `force_download`, `local_files_only`, `trust_remote_code` and `use_fast`.
        """
        hub = {name: kwargs.pop(name) for name in (*HUB_ARGUMENTS, *_VLM_PROCESSOR_ARGUMENTS) if name in kwargs}
        history = ObservationHistory(kwargs.get("history", 1), kwargs.get("history_stride", 1))
        sizes = sizes_for(kwargs.get("robots") or {None: kwargs}, kwargs.get("state_encoding", "text"), history)
        vlm_processor = load_vlm_processor(pretrained_model_name_or_path, **hub)
        if isinstance(vlm_processor, SavedProcessor):
            raise ValueError(
                f"{pretrained_model_name_or_path} is a KIVLA policy, not a VLM. Go on from it by kivla train --policy; "
                "in Python KIVLAProcessor.from_pretrained."
            )
        return cls(vlm_processor, **{**sizes, **kwargs})

    def to_dict(self) -> dict:
        """Return everything but the VLM's processor, ready for JSON."""
        tokenizer = None if self.action_tokenizer is None else self.action_tokenizer.saved()
        settings = {name: getattr(self, name) for name in SETTINGS}
        if self.history == 1:  # nothing, where policies from before there was a history say nothing
            del settings["history"], settings["history_stride"], settings["clips_as_video"]
        robots = {name: robot.to_dict() for name, robot in self.robots.items()}
        robots = robots.get(None, {"robots": robots})
        if (backend := image_backend(self.vlm_processor)) is not None:
            settings["image_backend"] = backend
        written = {"action_tokenizer": tokenizer, "prompt_frames": self.sequences.formats.to_dict(), **robots}
        return {"processor_class": type(self).__name__, **settings, **written}

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs):
        """Write the processor: `processor_config.json`, and the VLM's own processor in `vlm_processor/`.

        The config is written last and in one move, so that a folder with it is complete. After
        `register_for_auto_class()` this module and its siblings are written too (`trust_remote_code`).
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).unlink(missing_ok=True)
        settings = self.to_dict()
        if self._auto_class is not None:
            custom_object_save(self, folder, config=settings)
        self.vlm_processor.save_pretrained(folder / VLM_PROCESSOR_FOLDER)
        write_files(folder, {CONFIG_FILE: json.dumps(settings, indent=2, ensure_ascii=False)})
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)
        return [str(folder / CONFIG_FILE)]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> Self:
        """Load from a folder or the Hub.

        Keyword arguments are `revision`, `subfolder`, `token`, `cache_dir`, `force_download`, `local_files_only`,
        `trust_remote_code` and `use_fast` (for the VLM's processor), and those of the class, which take the place of
        what was saved: `from_pretrained(base, statistics=data.statistics, cameras=data.cameras)` is for a new robot,
        and `vlm_processor=` for a base that was converted without one.

        Images are prepared by the backend that was saved, torchvision or Pillow, unless `use_fast` or `vlm_processor`
        says otherwise; a warning says so where that is not installed.

        Raises:
            FileNotFoundError: the folder holds no KIVLA processor, or half of one.
            ImportError: the VLM's processor wants a library that is not installed.
            ValueError: a file is damaged.
            TypeError: an argument that is none of these.
        """
        if kwargs.get("_from_pipeline") is not None:
            # `pipeline()` hands everybody what is meant for the model, which refuses what it does not know.
            known = {*SETTINGS, *_ROBOT_ARGUMENTS, *HUB_ARGUMENTS, *_VLM_PROCESSOR_ARGUMENTS}
            kwargs = {name: value for name, value in kwargs.items() if name in known}
        for name in _LIBRARY_ARGUMENTS:
            kwargs.pop(name, None)
        of_vlm = {name: kwargs.pop(name) for name in _VLM_PROCESSOR_ARGUMENTS if name in kwargs}
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        vlm_processor = kwargs.pop("vlm_processor", None)
        folder = _local_folder(pretrained_model_name_or_path, **hub)
        settings = cls.saved_settings(folder)
        backend = settings.pop("image_backend", None)  # a property of the VLM's processor
        if vlm_processor is None and not (folder / VLM_PROCESSOR_FOLDER).is_dir():
            raise FileNotFoundError(
                f"{folder} holds no complete KIVLA processor: {VLM_PROCESSOR_FOLDER}/ is missing. Pass the VLM's "
                "(vlm_processor=AutoProcessor.from_pretrained(...)); if saving was interrupted, save again."
            )
        unknown = sorted(kwargs.keys() - settings.keys() - {*SETTINGS, *_ROBOT_ARGUMENTS})
        if unknown:
            known = [*settings, *HUB_ARGUMENTS, *_VLM_PROCESSOR_ARGUMENTS, "vlm_processor"]
            raise TypeError(f"Unknown arguments {unknown}; known are {known}.")
        if "robots" in kwargs or ("statistics" in kwargs and "robots" in settings):  # other robots
            settings = {name: value for name, value in settings.items() if name not in _ROBOT_ARGUMENTS}
        if "statistics" in kwargs:
            settings["action_dim"] = None  # that of the new statistics
            if settings.get("relative_actions") == UNKNOWN:  # that was about the old ones
                settings["relative_actions"] = None
        if vlm_processor is not None:
            return _with_warning(cls(vlm_processor, **{**settings, **kwargs}), folder)
        try:
            with panics_as_errors():
                vlm_processor = load_vlm_processor(folder / VLM_PROCESSOR_FOLDER, **of_vlm)
                if backend is not None and of_vlm.get("use_fast") is None:
                    keep_image_backend(vlm_processor, folder / VLM_PROCESSOR_FOLDER, backend, **of_vlm)
        except (OSError, ImportError):
            raise
        except Exception as error:  # tokenizers raises nothing more special
            raise ValueError(
                f"{folder / VLM_PROCESSOR_FOLDER} cannot be loaded ({type(error).__name__}: {shortened(error, 500)}). "
                "If it is damaged, download or save it again."
            ) from error
        return _with_warning(cls(vlm_processor, **{**settings, **kwargs}), folder)

    @classmethod
    def saved_settings(cls, pretrained_model_name_or_path: str | os.PathLike, **hub) -> dict:
        """Read the arguments that a saved processor was made with, from a folder or the Hub; without the VLM's one.

        A base model without data of its own (`kivla convert`) has them too: its conventions, and no statistics.

        Raises:
            FileNotFoundError: there are none.
            ValueError: the file is damaged.
        """
        folder = _local_folder(pretrained_model_name_or_path, **hub)
        file = folder / CONFIG_FILE
        settings = read_json(file) if file.is_file() else {}
        if settings.get("processor_class") != cls.__name__:
            raise FileNotFoundError(
                f"{folder} holds no complete KIVLA processor: expected is {CONFIG_FILE} of a {cls.__name__} (found: "
                f"{settings.get('processor_class')}). To make one for a VLM, use KIVLAProcessor.from_vlm; if saving "
                "was interrupted, save again."
            )
        del settings["processor_class"]
        settings.pop("auto_map", None)
        check_saved(file, settings)
        if settings["action_tokenizer"] is not None:
            settings["action_tokenizer"] = load_action_tokenizer(settings["action_tokenizer"])
        if "robots" in settings:
            settings["robots"] = {name: robot_from_json(values) for name, values in settings["robots"].items()}
        else:
            settings |= robot_from_json({name: settings[name] for name in ROBOT_TYPES})
        return settings


def _with_warning(processor, folder: Path):
    """Say once, where a policy is loaded, that it does not know its cameras."""
    if any(robot.cameras is None for robot in processor.robots.values()):
        logger.warning(
            "The policy in %s has no names for its cameras: it takes images as a list alone, and cannot tell whether "
            "their number and order are those of its training. To name them: KIVLAProcessor.from_pretrained(..., "
            "cameras=[...]).save_pretrained(...), in the order of its training.",
            folder,
        )
    return processor


def _local_folder(path: str | os.PathLike, subfolder: str | None = None, **hub) -> Path:
    patterns = [str(Path(subfolder or "") / name) for name in (CONFIG_FILE, f"{VLM_PROCESSOR_FOLDER}/*")]
    return local_folder(path, patterns, **hub) / (subfolder or "")


__all__ = ["CONFIG_FILE", "SETTINGS", "VLM_PROCESSOR_FOLDER", "SavedProcessor"]
