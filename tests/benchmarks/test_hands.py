"""The benchmark of hands: rows that are one change each, the table of known outcomes, and from end to end, slowly."""

import argparse
import json
from dataclasses import fields

import numpy as np
import pytest
import torch

from benchmarks import hands
from kivla.demo.stages import TabletopArguments
from kivla.simulation.rollout_evaluation import success_rate
from kivla.simulation.tabletop.phases import PHASES


def options_of(folder, **changes):
    known = {"kinds": ["move"], "num_episodes": 4, "max_steps": 6, "num_demonstrations": 3, "vlm": "tabletop"}
    known |= {"rows": ["base", "twice", "by-tokens"], "seeds": [0], "held_out": False, "output": folder}
    return argparse.Namespace(**{**known, **changes})


def outcomes(reached: list[int], of: int = 4) -> dict:
    phases = [
        {"name": name, "reached": success_rate([True] * count + [False] * (of - count)), "stopped": 0}
        for name, count in zip(PHASES["move"], reached, strict=True)
    ]
    bits = [True] * reached[-1] + [False] * (of - reached[-1])
    return {"success": bits, "swapped_original": [False] * of, "swapped_done": bits, "phases": phases, "mean_steps": 9}


def answers(right: int, of: int = 10) -> dict:
    return {"accuracy": {"all": {"correct": right, "asked": of, "accuracy": right / of}}}


def test_every_row_is_arguments_of_the_demo(tmp_path):
    names = {field.name for field in fields(TabletopArguments)}
    defaults = hands.arguments_of(options_of(tmp_path), hands.BASE)
    for name, row in hands.ROWS.items():
        assert set(row.changes) <= names
        args = hands.arguments_of(options_of(tmp_path), name)
        changed = {name for name in names if getattr(args, name) != getattr(defaults, name)}
        assert changed == {n for n in row.changes if row.changes[n] != getattr(defaults, n)}
        acts = row.acts_by or row.closes_above or row.noise_scale != 1 or not row.fresh_noise
        is_change = changed or row.steps != 1 or row.touch_first or acts
        assert bool(is_change) == (name != hands.BASE), f"{name} is the first row again"
        assert not row.acts or set(row.changes) <= {"replan_every"}, f"{name} would have to be trained"
        assert row.acts is None or row.acts in hands.ROWS


def test_the_table_says_what_was_measured(tmp_path):
    for name, seeds in {"base": ([4, 1, 1, 0, 0], [2, 1, 0, 0, 0]), "twice": ([4, 4, 4, 3, 2],)}.items():
        for seed, reached in enumerate(seeds):
            (tmp_path / f"policy_{name}_{seed}.json").write_text("{}")
            (tmp_path / f"row_{name}_{seed}_move.json").write_text(json.dumps(outcomes(reached)))
            (tmp_path / f"answers_{name}_{seed}.json").write_text(json.dumps(answers(right=6 - seed)))
    (tmp_path / "answers_before.json").write_text(json.dumps(answers(right=8)))
    printed = hands.measure(options_of(tmp_path, seeds=[0, 1], rows=["base", "twice"]))
    base, twice, _, *asked = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("| ")][1:]
    assert base[0].strip() == hands.ROWS["base"].title and base[1].strip() == "0.0 % (0.0 - 32.4)"
    assert [cell.split("%")[0].strip() for cell in base[6:10]] == ["75.0", "25.0", "12.5", "0.0"], "both seeds together"
    assert [cell.split("%")[0].strip() for cell in (twice[1], *twice[4:6])] == ["50.0", "0.0", "50.0"]
    assert base[2:4] == [" 0 % 0 % ", " - "] and twice[2] == " 50 % "
    assert twice[3].startswith(" +50.0 ("), "beside the one seed that both have"
    assert [line[1].split("%")[0].strip() for line in asked] == ["80.0", "55.0", "60.0"], (
        "before, and all seeds of each"
    )
    assert asked[1][2] == " 60.0 % 50.0 % "
    assert printed.endswith("Not trained yet: twice (seed 1).") and "Move tasks, fresh scenes" in printed
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("hands.png", "hands_move.png"))
    assert (tmp_path / "table.md").read_text() == printed + "\n"


def test_a_gripper_that_closes_late():
    chunks = np.array([[[1.0, 0.0, 0.4], [0.0, 1.0, 0.6]]])
    acts = hands.closing_above(0.5, lambda observations: chunks)
    np.testing.assert_allclose(acts([{}]), [[[1.0, 0.0, -0.1], [0.0, 1.0, 0.1]]])


@pytest.mark.slow
def test_from_end_to_end_and_again(tmp_path, capsys):
    threads = torch.get_num_threads()
    sizes = ["--max_steps", "3", "--num_episodes", "2", "--num_demonstrations", "3", "--output", str(tmp_path / "out")]
    sizes += ["--rows", "base", "touch-first", "by-tokens", "closes-late", "--kinds", "move", "put"]
    hands.main(["train", *sizes])
    hands.main(["measure", *sizes])
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    for name in ("base", "touch-first", "by-tokens", "closes-late"):
        own = hands.ROWS[name].acts is None
        assert printed.count(f"| {hands.ROWS[name].title} |") == 2 + own, "a line for each kind, one for the answers"
    files = sorted((tmp_path / "out").glob("[pr]o*.json"))
    assert len(files) == 3 + 4 * 2, "two policies, one of them in two parts; four rows of two kinds"
    times = [path.stat().st_mtime_ns for path in files]
    hands.main(["train", *sizes])
    hands.main(["measure", *sizes])
    assert times == [path.stat().st_mtime_ns for path in files], "nothing was done again"
    with pytest.raises(SystemExit):
        hands.main(["train", *sizes, "--kinds", "push"])
    assert "--kinds: was ['move', 'put'], is ['push']" in capsys.readouterr().err
