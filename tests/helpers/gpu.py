"""The GPU on which tests hold what the other tests hold on a CPU; without one they are skipped.

`KIVLA_TEST_DEVICE=cpu` rehearses them on the CPU, where they must pass, too.
"""

import os

import pytest
import torch

DEVICE = os.environ.get("KIVLA_TEST_DEVICE", "cuda")
needs_gpu = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU with CUDA")
is_rehearsal = DEVICE == "cpu"


@pytest.fixture(autouse=True)
def whole_float32():
    """Products and convolutions in float32 with all of their digits, and not in TF32."""
    kinds = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [kind.allow_tf32 for kind in kinds]
    for kind in kinds:
        kind.allow_tf32 = False
    yield
    for kind, allowed in zip(kinds, before, strict=True):
        kind.allow_tf32 = allowed
