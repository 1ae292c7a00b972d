"""The demo's demonstrations and policy, for measurements on real data."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from kivla.demo.stages import TabletopArguments, options, record
from kivla.modeling_kivla import KIVLAForActionPrediction
from kivla.named_models import TABLETOP_VLM
from kivla.processing import KIVLAProcessor
from kivla.training.build import start_policy
from kivla.training.data.lerobot.dataset import LeRobotDataset


@contextmanager
def demonstrated(args: TabletopArguments) -> Iterator[tuple[LeRobotDataset, KIVLAForActionPrediction, KIVLAProcessor]]:
    """Demonstrations, and an untrained policy on the small pretrained VLM; the files are there while the context is."""
    with TemporaryDirectory() as folder:
        demonstrations = Path(folder) / "demonstrations"
        record(demonstrations, args)
        data = LeRobotDataset(demonstrations, args.chunk_size)
        built = start_policy(TABLETOP_VLM, [data], options(data, args))
        yield data, built.model, built.processor
