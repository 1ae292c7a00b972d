"""The benchmark of augmentation: its views, its table from known outcomes; from end to end in the slow lane."""

import numpy as np
import pytest
import torch

from benchmarks import augmentation
from benchmarks.augmentation import AUGMENTED, PLAIN, VIEWS, SeenDifferently, View, see
from kivla.simulation import TabletopVectorEnv


def test_the_table_stays_and_the_view_changes():
    seeds = [2_000_000, 2_000_001]
    plain, _ = TabletopVectorEnv(2).reset(seed=seeds)
    for view in VIEWS:
        env = SeenDifferently(2, view)
        observation, _ = env.reset(seed=seeds)
        np.testing.assert_array_equal(observation["state"], plain["state"])
        is_same = (observation["images"]["top"] == plain["images"]["top"]).all()
        assert is_same == (view.name == "as recorded")
        again, _ = env.reset(seed=seeds[::-1])
        np.testing.assert_array_equal(again["images"]["top"][::-1], observation["images"]["top"], "a scene's own view")
    lights = SeenDifferently(2, View("", (0.7, 1.3)))
    lights.reset(seed=seeds)
    assert lights.light[0] != lights.light[1] and all(0.7 <= light <= 1.3 for light in lights.light)


def test_a_shift_moves_what_is_seen():
    image = np.zeros((20, 20, 3), np.uint8)
    image[5, 8] = 200
    seen = see(image, 0.5, np.array([3.0, -2.0]))
    assert seen[3, 11].tolist() == [100] * 3 and seen[5, 8].tolist() == [0] * 3


def test_the_table_says_what_was_measured():
    outcomes = {view.name: {PLAIN: [True, False] * 50, AUGMENTED: [True] * 100} for view in VIEWS}
    page = augmentation.format_rows(outcomes, [0, 1])
    row = "| 30 % darker | 50.0 % (40.4 - 59.6) | 100.0 % (96.3 - 100.0) | +50.0 (+39.7 to +59.6) |"
    assert row in page.split("\n")
    assert "2 runs of each (seeds [0, 1]), 50 scenes each" in page


@pytest.mark.slow
def test_from_end_to_end_and_again(tmp_path, capsys):
    threads = torch.get_num_threads()
    sizes = [
        "--first_steps",
        "2",
        "--max_steps",
        "2",
        "--num_episodes",
        "3",
        "--num_demonstrations",
        "2",
        "--output",
        str(tmp_path / "out"),
    ]
    augmentation.main([*sizes, "--seeds", "0"])
    torch.set_num_threads(threads)
    assert "| as recorded |" in capsys.readouterr().out
    results = sorted((tmp_path / "out").glob("[pr]o*.json"))
    times = [path.stat().st_mtime_ns for path in results]
    augmentation.main([*sizes, "--seeds", "0"])
    assert len(results) == 13 and times == [path.stat().st_mtime_ns for path in results], "nothing was done again"
