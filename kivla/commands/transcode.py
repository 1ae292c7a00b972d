"""`kivla transcode`: the same dataset with key frames where training wants them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..command_line import parse
from ..training.data.lerobot.transcode import CODECS, transcode_dataset


@dataclass
class TranscodeArguments:
    dataset: str = field(metadata={"help": "Folder of a LeRobot dataset with videos; it is left as it is."})
    output_dir: str = field(metadata={"help": "Folder for the new one, which must not be there."})
    keyframes_every: int = field(default=2, metadata={"help": "Frames from one key frame to the next."})
    codec: str | None = field(
        default=None, metadata={"help": "Codec of the new videos; by default each one's own.", "choices": list(CODECS)}
    )

    def __post_init__(self):
        if self.keyframes_every < 1:
            raise ValueError(f"--keyframes_every is a number of frames, at least 1, got {self.keyframes_every}.")


def run(arguments: Sequence[str]) -> None:
    (options,) = parse((TranscodeArguments,), arguments, prog="kivla transcode", positional="dataset")
    target = Path(options.output_dir)
    count = transcode_dataset(Path(options.dataset), target, options.keyframes_every, options.codec)
    print(f"{target}: {count} videos, a key frame every {options.keyframes_every}; all else is copied")
