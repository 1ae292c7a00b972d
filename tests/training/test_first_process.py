"""What the first process makes, all have."""

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from kivla.training.first_process import made_by_first_process


def _make(rank: int) -> list[int]:
    return [rank, 1]


def _refuse() -> None:
    raise ValueError("dimension 4")


def _run(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    assert made_by_first_process(lambda: _make(rank)) == [0, 1]
    with pytest.raises(ValueError, match="dimension 4"):
        made_by_first_process(_refuse)
    dist.destroy_process_group()


def test_the_first_process_makes_it_for_all(tmp_path):
    mp.spawn(_run, (str(tmp_path),), nprocs=2)


def test_a_single_process_makes_it_itself():
    assert made_by_first_process(lambda: _make(5)) == [5, 1]
    with pytest.raises(ValueError, match="dimension 4"):
        made_by_first_process(_refuse)
