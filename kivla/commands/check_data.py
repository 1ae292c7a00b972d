"""`kivla check-data`: what a dataset of robot demonstrations is, and what to mend before anything is trained on it."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from matplotlib.backend_bases import FigureCanvasBase

from ..command_line import parse
from ..training.data.augmentation import AUGMENTATIONS, check_wrist_cameras
from ..training.data.checks.findings import Finding
from ..training.data.checks.page import format_report
from ..training.data.checks.report import DataReport, check_data
from ..training.data.lerobot.dataset import LeRobotDataset
from ..training.dataset_options import DatasetOptions
from ..training.evaluation.augmentation_plot import draw_augmented
from ..training.evaluation.data_plot import draw_episode
from ..training.policy_options import refuse
from ..training.run_folder import check_can_write_file


@dataclass
class CheckDataArguments(DatasetOptions):
    """Exit status: 0 without errors, 1 with errors (with --strict also with warnings)."""

    dataset: str = field(metadata={"help": "LeRobot dataset: a Hub id or a folder."})
    cameras: list[str] | None = field(default=None, metadata={"help": "Cameras to look at; all."})
    quick: bool = field(default=False, metadata={"help": "Look at 100 episodes and few pictures, as `train` does."})
    strict: bool = field(default=False, metadata={"help": "Warnings fail, too."})
    json: str | None = field(default=None, metadata={"help": "Write everything that was found to this file."})
    plot: str | None = field(default=None, metadata={"help": "Draw an episode, pictures over traces, to this file."})
    plot_episode: int | None = field(default=None, metadata={"help": "The episode to draw; the first."})

    augment: str | None = field(
        default=None,
        metadata={"help": "With --plot: draw what `train --augment` makes of the pictures; robot."},
    )
    wrist_cameras: list[str] | None = field(
        default=None, metadata={"help": "With --augment: as for `train`, which neither crops nor turns them."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.augment is not None and AUGMENTATIONS.get(self.augment) is None:
            known = [name for name, amount in AUGMENTATIONS.items() if amount is not None]
            raise ValueError(f"--augment is {', '.join(known)}; got {self.augment}.")
        if self.augment is not None and self.plot is None:
            raise ValueError("--augment draws a picture: give --plot FILE.")
        if self.augment is not None and self.plot_episode is not None:
            refuse({"plot_episode": "--augment draws frames of the whole dataset"})
        if self.wrist_cameras is not None and self.augment is None:
            refuse({"wrist_cameras": "there is no --augment"})
        if self.plot_episode is not None and self.plot is None:
            refuse({"plot_episode": "there is no --plot"})

    def reader(self) -> partial:
        """Make what opens a dataset; NaN and infinity in it are a finding among others."""
        given = super().reader()
        return partial(type(given.func.__name__, (given.func,), {"takes_unfinite": True}), **given.keywords)


def run(arguments: Sequence[str]) -> None:
    (args,) = parse((CheckDataArguments,), arguments, prog="kivla check-data", positional="dataset")
    for file in filter(None, (args.json, args.plot)):
        check_can_write_file(file)
    formats = FigureCanvasBase.get_supported_filetypes()
    if args.plot is not None and Path(args.plot).suffix[1:].lower() not in formats:
        raise ValueError(f"--plot {args.plot}: pictures end in .{', .'.join(formats)}.")
    try:
        data = args.open(args.dataset, 1, args.cameras, robot=None)
    except (FileNotFoundError, ValueError) as error:  # what a reader refuses is a finding like others
        data, report = None, DataReport(args.dataset, findings=[Finding("cannot_open", str(error))])
    else:
        if args.plot_episode is not None:
            data.episode_range(args.plot_episode)
        if args.tolerance_s is not None and isinstance(data, LeRobotDataset) and not data.video_files():
            refuse({"tolerance_s": "no camera of the data is stored as video"})
        if args.wrist_cameras is not None:
            check_wrist_cameras(args.wrist_cameras, data.cameras)
        if args.augment is not None and not data.cameras:
            refuse({"augment": "no camera of the data is looked at"})
        report = check_data(data, args.quick)
    print(format_report(report))
    if args.json is not None:
        _parent(args.json).write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
    if args.plot is not None and data is not None:
        if args.augment is not None:
            draw_augmented(_parent(args.plot), data, args.augment, args.wrist_cameras)
        else:
            draw_episode(_parent(args.plot), data, report, args.plot_episode)
    if report.has_failed(args.strict):
        sys.exit(1)


def _parent(file: str) -> Path:
    """The path of a file, its folder made."""
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
