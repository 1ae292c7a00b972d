"""The GPU script runs; its numbers are for a GPU."""

import json

import pytest
import torch

from benchmarks import gpu
from benchmarks.policies import TINY, policy
from kivla import KIVLAForActionPrediction


@pytest.mark.slow
def test_it_runs_at_toy_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "CAMERAS", (1, 2))
    monkeypatch.setattr(gpu, "STEPS", (2,))
    monkeypatch.setattr(
        KIVLAForActionPrediction, "compile_expert", lambda self, mode: None
    )  # test_fast_paths.py compiles
    gpu.main(["--tiny", "--output", str(tmp_path / "gpu.json")])
    result = json.loads((tmp_path / "gpu.json").read_text())
    rows = [(row["way"], row["cameras"]) for row in result["sampling"]]
    assert rows == [("eager", 1), ("eager", 2), ("compiled expert", 2)]
    assert all(row["floor_ms"] > 0 and row["chunk_ms"] > 0 for row in result["sampling"])
    assert len(result["training"]) == 10 and all(row["examples_per_s"] > 0 for row in result["training"])


@pytest.mark.quantization
@pytest.mark.parametrize("kind", gpu.QUANTIZED)
@torch.no_grad()
def test_quantised_weights_are_timed_and_act_as_before(kind, monkeypatch):
    made = []
    monkeypatch.setattr(KIVLAForActionPrediction, "compile_expert", lambda self, mode: made.append(self))
    monkeypatch.setattr(gpu, "STEPS", (2,))
    device = gpu.Device("cpu", torch.float32, 2)
    rows = list(gpu.quantized([kind], TINY, device, {"flops": 1e30, "bytes": 1.0}))
    assert [row["way"] for row in rows] == [f"{kind} weights, eager", f"{kind} weights, compiled expert"]
    inputs = gpu.observation(TINY, 1) | {"noise": torch.randn(1, TINY.chunk_size, gpu.ACTION_DIM)}
    exact = gpu.new_policy(TINY, device).eval().sample_actions(**inputs)
    error = (made[0].sample_actions(**inputs) - exact).abs().max() / exact.abs().max()
    assert 0 < error < 0.2, f"off by {error} of the largest value"
    plain = gpu.floor_seconds(made[0], TINY, 2, 2, {"flops": 1e30, "bytes": 1.0})
    assert plain / 4 < rows[0]["floor_ms"] / 1e3 < plain, "a weight of one byte in place of four"


def test_a_wrong_result_stops_it(monkeypatch):
    chunks = iter([torch.ones(1), torch.full((1,), 1.1)])  # of the reference, and on the device
    monkeypatch.setattr(gpu.KIVLAForActionPrediction, "sample_actions", lambda self, **_: next(chunks))
    with pytest.raises(AssertionError, match=r"actions in torch.float32 is off by 1.0e-01"):
        gpu.check(gpu.Device("cpu", torch.float32, 1))


def test_the_floor_is_what_the_formula_says():
    """Two cameras of 4 patches, 8 prompt tokens, 2 layers; one operation or byte a second."""
    model = policy(TINY)
    floors = [gpu.floor_seconds(model, TINY, 2, steps, {"flops": 1e30, "bytes": 1.0}) for steps in (0, 1, 2)]
    text, vision = model.vlm.model.language_model.layers, model.vlm.model.vision_tower
    read = (*text[:-1], text[-1].self_attn.k_proj, text[-1].self_attn.v_proj, vision)
    weights = sum(p.numel() for part in read for p in part.parameters())
    assert floors[0] == 4 * weights
    assert floors[2] - floors[1] == pytest.approx(floors[1] - floors[0])
    modulations = sum(p.numel() for name, p in model.expert.named_parameters() if "dense" in name)
    read = sum(p.numel() for p in model.expert.parameters()) - modulations + 2 * 2 * 16 * 8
    assert floors[1] - floors[0] == pytest.approx(4 * read)
