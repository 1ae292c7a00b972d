"""Examples of any kind -> one batch."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import BatchFeature

from ...processing import KIVLAProcessor

_KEYS = ("images", "text", "state", "actions", "response", "action_is_pad", "robot", "document")


class KIVLACollator:
    """Calls the processor on a list of examples; the kinds may be mixed.

    An example is a dict with `images` and `text`, and any of `state`, `actions` (with `action_is_pad`) and `response`:
    language-and-action data has actions, action-only data has actions and an empty or generic text, VLM data has a
    response and no actions. Plain text is a `document` (`KIVLAProcessor.document_tokens`) and nothing else. An example
    of a policy of several robots has `robot`, the name of its own. Other keys
    (`episode_index`, ...) are left out of the batch.

    Images are a dict by camera name, or a list whose names are in the example's `cameras` (robot datasets have them):
    they find their places by name. A list without names is in the order of the processor's cameras, and cannot be
    mapped.

    A chunk has `chunk_size` steps. At the end of an episode it may have fewer, and says so by `action_is_pad` (False
    for each step that is there): without it, a short chunk is refused, since steps that are missing in all of the data
    would be acted, but never learned.

    Args:
        processor: the policy's processor. If it has named robots, the batch has a list `robot` with a name for each
            example (None for VLM data): for the evaluation in robot units, not for the model.
        cameras: where the data have other names: the processor's camera → the name in the data.

    Raises:
        ValueError: a mapping of cameras that the processor does not have; and, when it is called, an example that is
            none, or does not fit the processor: the message says which, and what to do.
    """

    def __init__(self, processor: KIVLAProcessor, cameras: Mapping[str, str | None] | None = None):
        processor.check_cameras(cameras)
        self.processor, self.cameras = processor, cameras

    def __call__(self, examples: Sequence[Mapping]) -> BatchFeature:
        for i, example in enumerate(examples):
            if "text" not in example and "document" not in example:
                raise ValueError(
                    f"Example {i} of this batch has no `text`; it has {sorted(example)}. An example needs `images` and "
                    "`text`, and `actions` or `response` to learn from (action-only data: text = ''); or a `document`."
                )
            self._check_length(i, example)
        columns: dict[str, Any] = {key: [example.get(key) for example in examples] for key in _KEYS}
        columns["images"] = [self._images(i, example) for i, example in enumerate(examples)]
        batch = self.processor(**columns)
        if None not in self.processor.robots:
            batch["robot"] = columns["robot"]
        return batch

    def _images(self, i: int, example: Mapping):
        """By camera where they have names."""
        images, names, robots = example.get("images"), example.get("cameras"), self.processor.robots
        if example.get("robot") is None and len(robots) > 1:  # nobody knows whose cameras they are
            return images
        if example.get("actions") is None and names is None and not isinstance(images, Mapping):
            return images  # VLM data: any images, of no camera
        try:
            return self.processor.robot(example.get("robot")).named(images, names, self.cameras)
        except ValueError as error:
            raise ValueError(f"Example {i} of this batch: {error}") from error

    def _check_length(self, i: int, example: Mapping) -> None:
        actions, size = example.get("actions"), self.processor.chunk_size
        if actions is not None and len(actions) < size and example.get("action_is_pad") is None:
            raise ValueError(
                f"Example {i} of this batch has {len(actions)} actions, but the policy acts in chunks of {size}: the "
                f"other {size - len(actions)} would never be learned. Read the data with chunk_size={size}, or build "
                f"model and processor with chunk_size={len(actions)}. A chunk that is short because its episode ends "
                "has `action_is_pad`."
            )
