"""`kivla study`: the table follows from the rows, and the command runs, resumes and appends."""

import json

import pytest

from kivla.cli import main
from kivla.demo.tiny_vlm import make_tiny_vlm, train_tokenizer
from kivla.simulation.rollout_evaluation import success_rate
from kivla.study.runs import format_table, read_rows, steps_to

TINY = {
    "num_demonstrations": 20,
    "expert_hidden_size": 32,
    "expert_intermediate_size": 48,
    "num_flow_samples": 1,
    "batch_size": 4,
    "max_steps": 4,
    "num_checkpoints": 2,
    "num_episodes": 4,
    "num_curve_episodes": 2,
    "num_question_scenes": 2,
}


def rate(successes: int, episodes: int) -> dict:
    return success_rate([True] * successes + [False] * (episodes - successes))


def row(recipe: str, seed: int, successes: int) -> dict:
    answers = {"correct": 9, "asked": 10, "accuracy": 0.9, "low": 0.6, "high": 0.98, "chance": None}
    return {
        "recipe": recipe,
        "seed": seed,
        "curve": [{"step": 10, **rate(1, 10)}, {"step": 20, **rate(6, 10)}, {"step": 30, **rate(successes, 10)}],
        "success": rate(successes, 10),
        "held_out": rate(2, 10),
        "swapped": rate(1, 10),
        "questions_before": answers,
        "questions_after": answers,
    }


def test_the_table_has_every_run_and_pools_the_seeds():
    lines = format_table([row("insulated", 0, 8), row("joint", 0, 3), row("insulated", 1, 9)], 0.5).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["insulated", "insulated", "**insulated**", "joint"]
    assert "85.0 %" in lines[4], "17 of 20 episodes of both seeds"
    assert lines[2].split("|")[-2].strip() == "20", "6 of 10 reach the target of 50 %"


def test_steps_to_a_success_that_is_never_reached():
    assert steps_to([{"step": 10, "rate": 0.2}, {"step": 20, "rate": 0.4}], 0.5) is None
    assert steps_to([{"step": 10, "rate": 0.5}], 0.5) == 10


def test_a_row_that_an_interrupt_cut_off_is_left_out(tmp_path):
    file = tmp_path / "runs.jsonl"
    assert read_rows(file) == []
    file.write_text(json.dumps({"recipe": "joint"}) + "\n" + '{"recipe": "ins')
    assert read_rows(file) == [{"recipe": "joint"}]


def test_a_row_after_one_that_was_cut_off_does_not_stop_later_starts(tmp_path, capsys):
    """What earlier versions left: they wrote the next row onto the cut one."""
    file = tmp_path / "runs.jsonl"
    file.write_text('{"recipe": "a"}\n{"recipe": "joi{"recipe": "joint"}\n{"recipe": "b"}\n')
    assert read_rows(file) == [{"recipe": "a"}, {"recipe": "b"}]
    assert "line 2, was cut off by an interruption: the run is done again" in capsys.readouterr().out


@pytest.mark.slow
def test_two_recipes_with_two_seeds_from_end_to_end(tmp_path):
    vlm, study = tmp_path / "vlm", tmp_path / "study"
    tokenizer = train_tokenizer(["touch the red star"] * 5)
    model, processor = make_tiny_vlm("llava", tokenizer, hidden_size=32, num_layers=1, num_vision_layers=1)
    model.save_pretrained(vlm)
    processor.save_pretrained(vlm)
    options = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]
    command = ["study", "--output_dir", str(study), "--vlm", str(vlm), *options, "--kinds", "touch"]
    main([*command, "--seeds", "0"])
    first = (study / "runs.jsonl").read_text()
    main([*command, "--seeds", "0", "1"])
    text = (study / "runs.jsonl").read_text()
    assert text.startswith(first), "finished runs are kept as they are"
    rows = read_rows(study / "runs.jsonl")
    assert [(r["recipe"], r["seed"]) for r in rows] == [("insulated", 0), ("joint", 0), ("insulated", 1), ("joint", 1)]
    assert [r["settings"]["recipe"] for r in rows] == ["insulated", "joint"] * 2
    assert all([point["step"] for point in r["curve"]] == [2, 4] for r in rows)
    assert (study / "table.md").read_text() == format_table(rows, 0.5) + "\n"
