"""The profile finds the parts that it names."""

import torch

from benchmarks import profiles
from benchmarks.policies import TINY
from kivla import KIVLAForActionPrediction


def test_parts_of_a_denoising_step(monkeypatch):
    compiled = []
    monkeypatch.setattr(KIVLAForActionPrediction, "compile_expert", lambda self: compiled.append(self))
    parts = profiles.denoising(TINY, repetitions=1)
    assert len(compiled) == 1
    assert parts["compiled graph"] == 0, "nothing was compiled here"
    assert parts["bare products"] > 0 and parts["around it"] > 0


def test_parts_of_the_experts_training_step():
    parts = profiles.training(TINY, repetitions=1)
    assert all(time > 0 for time in parts.values()), parts


def test_self_times_count_one_call():
    a = torch.ones(400, 400)
    times = profiles.self_times(lambda: a @ a, repetitions=3)
    assert times["aten::mm"] > 0
