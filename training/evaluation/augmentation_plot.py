"""A picture of what training makes of pictures: as recorded, and some draws of the augmentation below."""

import os

import numpy as np
from matplotlib.figure import Figure

from ..data.augmentation import AUGMENTATIONS, ExampleAugmentation, describe, wrist_among
from ..data.robot_dataset import RobotDataset, evenly_spread

_DRAWS, _FRAMES = 4, 3
_SIDE = 2.2  # inches of a picture's width


def draw_augmented(
    path: str | os.PathLike, data: RobotDataset, augment: str, wrist_cameras: list[str] | None = None
) -> None:
    """Draw frames of a dataset as recorded, in the top row, and as training may see them, in the rows below.

    Every camera has a few columns, one for each frame. In a row all cameras of a frame have the same light, as they
    have it in training; another row is another epoch.

    Args:
        path: where the picture goes; the suffix decides its format.
        augment: the augmentation's name (`AUGMENTATIONS`), not "none".
        wrist_cameras: as for `ExampleAugmentation`.
    """
    amount = AUGMENTATIONS[augment]
    assert amount is not None
    change = ExampleAugmentation(amount, wrist_cameras)
    items = evenly_spread(len(data), _FRAMES + 2)[1:-1].tolist() or [0]  # not at an end, where nothing happens
    examples = [data[item] for item in items]
    seen = [examples]
    for draw in range(_DRAWS):
        seen.append([change(example, np.random.default_rng((draw, i))) for i, example in enumerate(examples)])

    on_wrist = wrist_among(data.cameras, wrist_cameras)
    columns = [(camera, frame) for camera in range(len(data.cameras)) for frame in range(len(items))]
    ratio = max(image.shape[0] / image.shape[1] for image in examples[0]["images"])
    size = (_SIDE * len(columns), _SIDE * ratio * len(seen) + 0.9)
    figure = Figure(figsize=size, layout="compressed")
    figure.suptitle(describe(augment, data.cameras, wrist_cameras), fontsize=9, parse_math=False, wrap=True)
    for row, axes in enumerate(figure.subplots(len(seen), len(columns), squeeze=False)):
        for axis, (camera, frame) in zip(axes, columns, strict=True):
            axis.imshow(seen[row][frame]["images"][camera])
            axis.set(xticks=[], yticks=[])
            name = data.cameras[camera].rpartition(".")[2]
            if row == 0:
                title = f"{name}{' (wrist)' if data.cameras[camera] in on_wrist else ''}, item {items[frame]}"
                axis.set_title(title, fontsize=8, parse_math=False)
        axes[0].set_ylabel("as recorded" if row == 0 else f"draw {row}", fontsize=8)
    figure.savefig(path, dpi=110)


__all__ = ["draw_augmented"]
