"""`kivla transcode`: the same dataset with key frames where training wants them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..command_line import parse
from ..training.data.lerobot.hub_files import on_hub
from ..training.data.lerobot.transcode import CODECS, transcode_dataset


@dataclass
class TranscodeArguments:
    dataset: str = field(metadata={"help": "LeRobot dataset with videos, a Hub id or a folder; it is left as it is."})
    output_dir: str = field(metadata={"help": "Folder for the new one, which must not be there."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a dataset on the Hub."})
    keyframes_every: int = field(default=2, metadata={"help": "Frames from one key frame to the next."})
    codec: str | None = field(
        default=None, metadata={"help": "Codec of the new videos; by default each one's own.", "choices": list(CODECS)}
    )


def run(arguments: Sequence[str]) -> None:
    (options,) = parse((TranscodeArguments,), arguments, prog="kivla transcode", positional="dataset")
    target = Path(options.output_dir)
    hub = on_hub(options.dataset, options.revision)
    source = Path(options.dataset).expanduser() if hub is None else hub.fetch_all()
    count = transcode_dataset(source, target, options.keyframes_every, options.codec)
    print(f"{target}: {count} videos, a key frame every {options.keyframes_every}; all else is copied")
