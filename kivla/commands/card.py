"""`kivla card`: the card of a trained policy, from the facts that its training left, or of a LeRobot dataset."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..command_line import parse
from ..hub_cards import lerobot_dataset_card
from ..hub_cards.hub_names import public_name
from ..training.data.lerobot.dataset import LeRobotDataset
from ..training.dataset_options import KeyOptions
from ..training.training_facts import FACTS, write, write_card


@dataclass
class CardArguments(KeyOptions):
    path: str = field(metadata={"help": "Folder of a policy from `kivla train`, or of a LeRobot dataset."})
    license: str | None = field(default=None, metadata={"help": "Identifier of the Hub, e.g. apache-2.0."})
    name: str | None = field(default=None, metadata={"help": "Title of the card; the folder's name."})


def run(arguments: Sequence[str]) -> None:
    (args,) = parse((CardArguments,), arguments, prog="kivla card", positional="path")
    folder = Path(args.path)
    keys = args.reader_arguments()
    if (folder / "meta" / "info.json").is_file():
        facts = dataset_facts(folder, args.name, **keys)
        write(folder / "README.md", partial(lerobot_dataset_card, facts), args.license)
    elif (folder / FACTS).is_file():
        if keys:
            raise ValueError(f"{', '.join(keys)} cannot apply: {folder} is a policy. Leave them out.")
        write_card(folder, args.license, args.name)
    else:
        raise ValueError(
            f"{folder} is no LeRobot dataset and has no {FACTS}, which `kivla train` leaves with a policy "
            "and from which its card is made."
        )
    print(folder / "README.md")


def dataset_facts(folder: Path, name: str | None = None, **keys) -> dict:
    """Collect what a card says of a LeRobot dataset.

    Args:
        **keys: which columns it has; see `LeRobotDataset`.
    """
    data = LeRobotDataset(folder, chunk_size=1, **keys)
    parts = {
        "actions": ("action", data.action_names, data.action_dim),
        "state": ("state", data.state_names, data.state_dim),
    }
    return {
        "name": name or folder.resolve().name,
        "path": public_name(folder),
        "version": data.version,
        "episodes": data.num_episodes,
        "frames": len(data),
        "fps": data.fps,
        "minutes": len(data) / data.fps / 60,
        "robot_type": data.robot_type,
        "tasks": list(data.tasks.values()),
        "cameras": [
            {"name": camera, "shape": list(picture.shape), "dtype": data.features[camera]["dtype"]}
            for camera, picture in zip(data.cameras, data[0]["images"], strict=True)
        ],
        "vectors": [
            {
                "title": title,
                "names": names or [f"{title} {i}" for i in range(dim)],
                **{key: values.tolist() for key, values in data.statistics[part].items()},
            }
            for part, (title, names, dim) in parts.items()
            if part in data.statistics
        ],
    }
