"""`kivla study`: which runs there are, what the rows say, and that a study which is killed goes on."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest

from kivla.cli import main
from kivla.command_line import Refused
from kivla.commands.study import plan_runs, run_once
from kivla.demo.tiny_vlm import make_tiny_vlm, train_tokenizer
from kivla.study.arguments import StudyArguments
from kivla.study.cells import Cell, choose_cells
from kivla.study.measurements import Measurements as StudyMeasurements
from kivla.study.plan import steps_that_fit
from kivla.study.report import rates_note, write_report
from kivla.study.runs import best_rates, pilot, read_rows, write_log, write_rows
from kivla.study.summary import bootstrap_seeds, compare, groups_of
from kivla.study.workshop import Rates, Workshop
from kivla.training.policy_options import PolicyOptions
from kivla.training.sole_use import IN_USE
from kivla.training.trainer import KIVLATrainer
from tests.helpers.another_process import another_process
from tests.helpers.policies import DATASET


class Killed(Exception):
    pass


TINY = {
    "num_demonstrations": 20,
    "expert_hidden_size": 32,
    "expert_intermediate_size": 48,
    "num_flow_samples": 1,
    "batch_size": 4,
    "max_steps": 4,
    "warmup_steps": 2,
    "pilot_steps": 2,
    "measure_every": 2,
    "num_episodes": 2,
    "num_held_out_frames": 4,
    "num_question_scenes": 1,
    "num_eval_texts": 3,
    "eval_text_length": 8,
}


# ---------------------------------------------------------------------------------------------------------------- cells
def test_what_would_be_no_run_of_its_own_is_left_out_and_named():
    cells, left_out = choose_cells(["insulated", "pi0", "frozen"], ["cold", "warmup", "warmup+replay"])
    assert [cell.name for cell in cells] == [
        "insulated, cold",
        "pi0, cold",
        "frozen, cold",
        "insulated, warmup",
        "insulated, warmup+replay",
    ]
    assert left_out[Cell("pi0", "warmup")] == "it has no new tokens to warm up"
    assert len(left_out) == 4


def test_a_warm_up_takes_its_steps_from_those_of_the_run():
    stages = Cell("pi0.5", "warmup").stages(max_steps=100, warmup_steps=10)
    assert [round(stage.share, 6) for stage in stages] == [10, 70, 20]
    assert [stage.share for stage in Cell("pi0.5").stages(100, 10)] == [7, 2], "cold: the recipe's own"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"conditions": ["cold", "hot"]}, "'hot'"),
        ({"conditions": ["replay"]}, "--text_dataset"),
        ({"conditions": ["anchor"]}, r"anchor\+replay"),
        ({"dataset": "somewhere", "num_episodes": 5}, "--num_episodes"),
        ({"dataset": "somewhere"}, "--eval_text_dataset"),
        ({"rollouts": ["touch", "fly"]}, "fly"),
        ({"rollouts": ["move"]}, r"--rollouts move is of tasks that are not demonstrated: --kinds \['touch'\]"),
        ({"kinds": ["fly"]}, "--kinds takes one or more of touch, move"),
        ({"kinds": ["move"], "dataset": "mine"}, "kinds"),
        ({"warmup_steps": 700}, "--warmup_steps"),
        ({"core_hours": -1}, "--core_hours must not be negative"),
        ({"core_hours": float("nan")}, "--core_hours must be a finite number"),
        ({"num_checkpoints": 9, "max_steps": 8, "conditions": ["cold"]}, "--num_checkpoints 9 are more than"),
        ({"target_success": 0.0}, "--target_success"),
        ({"target_success": 70}, "--target_success"),
    ],
)
def test_options_that_cannot_apply_are_refused_by_name(options, words):
    with pytest.raises(ValueError, match=words):
        StudyArguments(**options)


def test_a_recipe_is_compared_and_not_told(capsys):
    with pytest.raises(Refused):
        main(["study", "--recipe", "joint"])
    assert "--recipe cannot apply" in capsys.readouterr().err


def test_texts_are_opened_before_anything_is_recorded(tmp_path, capsys):
    """And those that nothing is trained on are named, as a later condition may."""
    (tmp_path / "texts.jsonl").write_text("")
    texts = ["--text_dataset", "replay.jsonl", "--eval_text_dataset", str(tmp_path / "texts.jsonl")]
    with pytest.raises(SystemExit):
        main(["study", "--output_dir", str(tmp_path / "study"), "--vlm", "tabletop", "--conditions", "cold", *texts])
    printed = capsys.readouterr()
    assert "--text_dataset replay.jsonl is not read: no condition here replays texts" in printed.out
    assert not (tmp_path / "study" / "work" / "demonstrations").exists()


def test_what_is_done_is_never_left_out(monkeypatch, capsys):
    """It was paid for; and of a budget that is spent no number of steps is advised."""
    costs = {"pilot": 1.0, "run": 2.0, "growing": 1.0, "step": 0.1}
    monkeypatch.setattr("kivla.commands.study.core_hours", lambda *_: costs)
    study = StudyArguments(recipes=["insulated", "joint"], conditions=["cold"], seeds=[0], core_hours=0.5)
    cells, left_out = [Cell("insulated"), Cell("joint")], {}
    todo = plan_runs(SimpleNamespace(study=study), cells, left_out, done={("insulated", "cold", 0)})
    assert todo == [(Cell("insulated"), 0)] and list(left_out) == ["joint, cold, seed 0"]
    said = capsys.readouterr().out
    assert "--max_steps" not in said
    assert "1 of 2 runs, together 3.0 core-hours.\nAll 2 would take 6.0 core-hours." in said, (
        "a pilot and a run of each"
    )


def test_how_many_steps_fit_a_budget():
    costs = [{"pilot": 1.0, "run": 3.0, "growing": 2.0}, {"pilot": 0.0, "run": 3.0, "growing": 2.0}]
    assert steps_that_fit(costs, num_seeds=2, max_steps=100, budget=13.0) == 100, "1 + 4 x 3 hours"
    assert steps_that_fit(costs, 2, 100, 9.0) == 50
    assert steps_that_fit(costs, 2, 100, 1.0) == 0


# ----------------------------------------------------------------------------------------------------------------- rows
def row(recipe: str, seed: int, lost: float, successes: int, condition: str = "cold") -> dict:
    """A finished run that lost so many nats a token, on four texts of ten tokens, and did so well in ten scenes."""
    bits = "1" * successes + "0" * (10 - successes)
    point = {"token_loss": 1.0, "flow_loss": 1.0, "action_token_accuracy": 0.5}
    point |= {"token_gradient": 3.0, "flow_gradient": None if recipe == "tokens" else 2.0, "cosine": 0.1}
    costs = [30 + 10 * lost, 31 + 10 * lost, 29 + 10 * lost, 30 + 10 * lost]
    texts = {"nll": costs, "tokens": [10] * 4, "of_action_tokens": 0.0}
    acted = {"told": bits, "synonym": "1" + "0" * 9, "words": ["crimson"] * 10}
    acted = {"touch_synonyms": {**acted, "told_otherwise_original": "0" * 10, "told_otherwise_named": bits}}
    return {
        "recipe": recipe,
        "condition": condition,
        "seed": seed,
        "learning_rate": 1e-4,
        "expert_learning_rate": 1e-3,
        "points": [{"step": step, **point, "texts": texts} for step in (0, 10, 20)],
        "acts": [
            {"step": 10, "action_error": {"error": [1.0, 2.0], "of_mean_action": [2.0, 4.0]}, "rollouts": acted},
            {"step": 20, "action_error": {"error": [1.0, 2.0], "of_mean_action": [2.0, 4.0]}, "rollouts": acted},
        ],
        "answers": {"accuracy": 0.8, "low": 0.7, "high": 0.9, "correct": 8, "asked": 10},
        "trials": [{"learning_rate": rate, "expert_learning_rate": 1e-3} for rate in (3e-5, 1e-4, 3e-4)],
    }


BEFORE = {
    "texts": {"nll": [30.0, 31.0, 29.0, 30.0], "tokens": [10] * 4},
    "answers": {"accuracy": 0.9, "low": 0.8, "high": 1.0},
}


def test_what_is_lost_is_the_mean_over_seeds_against_the_vlm_before():
    (group,) = groups_of([row("joint", 0, 0.1, 5), row("joint", 1, 0.3, 6)])
    lost = group.lost(BEFORE, 20)
    assert lost.mean == pytest.approx(0.2)
    assert (lost.low, lost.high) == pytest.approx((0.1, 0.3)), "the interval knows that the seeds lie apart"
    assert group.rate(group.loops[0])["successes"] == 11 and group.action_error().mean == 0.5
    assert group.steps_to(0.6) == [None, 10]
    assert group.answers()["accuracy"] == 0.8


def test_two_groups_are_compared_on_the_seeds_that_both_have():
    joint, insulated = groups_of([row("joint", 0, 0.5, 4), row("insulated", 1, 9.0, 9), row("insulated", 0, 0.1, 6)])
    found = compare(insulated, joint, BEFORE)
    assert found["lost"].mean == pytest.approx(-0.4) and found["success"].mean == pytest.approx(0.2)
    assert compare(insulated.of_seed(1), joint, BEFORE) is None


def test_the_interval_of_one_seed_is_that_of_its_texts():
    rng = np.random.default_rng(0)
    totals = rng.normal(size=(1, 400))
    found = bootstrap_seeds(totals)
    assert found.high - found.low == pytest.approx(2 * 1.96 * totals.std() / 20, rel=0.1)


def test_the_report_is_made_of_the_rows_alone(tmp_path):
    rows = [
        row("insulated", 0, 0.1, 8),
        row("joint", 0, 2.1, 7),
        row("joint", 0, 0.2, 8, "warmup"),
        row("joint", 1, 2, 7),
    ]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    (tmp_path / "before.json").write_text(json.dumps(BEFORE))
    (tmp_path / "left_out.json").write_text(json.dumps({"pi0, warmup": "it has no new tokens to warm up"}))
    tables = write_report(tmp_path, 0.7)
    assert (tmp_path / "table.md").read_text() == tables + "\n"
    assert "| joint | cold | 0.0001 / 0.001 | +2.050 (+2.000 to +2.100) | +2.10 +2.00 |" in tables
    assert "| joint, cold | insulated, cold | +2.000 (+2.000 to +2.000) | -10.0" in tables, "of seed 0 alone"
    assert "pi0, warmup (it has no new tokens to warm up)" in tables
    assert {file.name for file in tmp_path.iterdir()} >= {"study.png", "study.pdf", "over_steps.png", "points.csv"}
    assert len((tmp_path / "points.csv").read_text().splitlines()) == 1 + 4 * 3
    words = (tmp_path / "words.csv").read_text().splitlines()
    assert words[1] == "insulated,cold,0,0.0001,0.001,touch_synonyms,crimson,10,1,8"


def test_learning_rates_at_an_end_of_those_tried_are_named():
    low, middle = row("joint", 0, 0.1, 8), row("insulated", 0, 0.1, 8)
    low["learning_rate"] = 3e-5
    given = row("pi0", 0, 0.1, 8) | {"trials": [{"learning_rate": 1e-4, "expert_learning_rate": 1e-3}]}
    note = rates_note(groups_of([low, middle, given]))
    assert "tried: joint, cold: VLM (3e-05, 0.0001, 0.0003)." in note
    assert "was given: pi0, cold." in note


@pytest.mark.parametrize(
    ("errors", "said"),
    [((1.02, 1.3), "no rate did better than the mean action"), ((0.7, 0.71), "as good within 2%"), ((0.7, 0.75), "")],
)
def test_a_pilot_that_says_little_is_named(errors, said):
    trials = [{"learning_rate": 1e-4, "expert_learning_rate": 1e-3, "action_error": error} for error in errors]
    note = rates_note(groups_of([row("joint", 0, 0.1, 8) | {"trials": trials}]))
    assert (said in note and "joint, cold" in note) if said else "In the pilot" not in note


def test_a_row_that_an_interrupt_cut_off_is_left_out(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    assert read_rows(file) == []
    file.write_text('{"recipe": "a"}\n{"recipe": "joi{"recipe": "joint"}\n{"recipe": "b"}\n{"rec')
    assert read_rows(file) == [{"recipe": "a"}, {"recipe": "b"}]
    assert "line 2, was cut off by an interruption: the run is done again" in capsys.readouterr().out


def test_the_pilot_takes_the_rates_with_the_least_error_of_actions():
    trials = [
        {"learning_rate": 1e-4, "expert_learning_rate": 1e-3, "action_error": 0.8},
        {"learning_rate": 3e-4, "expert_learning_rate": 1e-3, "action_error": 0.7},
    ]
    assert best_rates(trials) == Rates(3e-4, 1e-3)
    assert best_rates([{"learning_rate": 1e-4, "expert_learning_rate": None}]) == Rates(1e-4, None)


def test_a_trial_of_the_pilot_is_run_once(tmp_path, monkeypatch):
    """Its files are enough, without the folder of work: a study can be taken to another machine."""
    study = StudyArguments(output_dir=str(tmp_path), learning_rates=[1e-4, 3e-4], expert_learning_rates=[1e-3])
    shop, cell, run = Workshop(study, PolicyOptions()), Cell("insulated"), []

    def trial(shop, cell, rates):
        if len(run) == 1 and rates.vlm == 3e-4:
            run.append(None)
            raise Killed
        run.append(rates)
        return {"action_error": rates.vlm, "texts": None}

    monkeypatch.setattr("kivla.study.runs._trial", trial)
    with pytest.raises(Killed):
        pilot(shop, cell)
    found = pilot(shop, cell)
    assert run == [Rates(1e-4, 1e-3), None, Rates(3e-4, 1e-3)], "the first is kept, the one that was killed is not"
    assert pilot(shop, cell) == found == json.loads((tmp_path / "pilot" / "insulated_cold.json").read_text())
    assert len(run) == 3 and [trial["action_error"] for trial in found] == [1e-4, 3e-4]


def test_processes_share_the_runs(tmp_path, monkeypatch, capsys):
    """What another one is at is passed over, and what it has finished in the meantime is not done again."""
    study = StudyArguments(output_dir=str(tmp_path), learning_rates=[1e-4], expert_learning_rates=[1e-3])
    shop, file, run = Workshop(study, PolicyOptions()), tmp_path / "rows.jsonl", []
    row = {"recipe": "joint", "condition": "cold"}

    def one_run(shop, cell, rates, seed):
        run.append(seed)
        assert (tmp_path / "work" / f"joint_cold_{seed}" / IN_USE).is_file(), "kept while it lasts"
        return {**row, "seed": seed}, []

    monkeypatch.setattr("kivla.commands.study.one_run", one_run)
    monkeypatch.setattr("kivla.commands.study.write_report", lambda *_: None)
    with another_process(tmp_path / "work" / "joint_cold_1"):
        for seed in (0, 1):
            run_once(shop, Cell("joint"), seed, f"seed {seed}")
    assert run == [0] and "seed 1: another process is at it." in capsys.readouterr().out
    write_rows(file, [*read_rows(file), {**row, "seed": 1}])  # by that other one
    for seed in (0, 1):
        run_once(shop, Cell("joint"), seed, f"seed {seed}")
    assert run == [0] and [found["seed"] for found in read_rows(file)] == [0, 1]


def test_a_log_has_a_line_for_each_step(tmp_path):
    write_log(
        tmp_path / "log.csv", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "train_loss": 1.5}]
    )
    assert (tmp_path / "log.csv").read_text() == "step,loss,train_loss\n1,2.0,\n2,1.0,1.5\n"


# ----------------------------------------------------------------------------------------------------------- end to end
@pytest.fixture(scope="module")
def command(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vlm")
    tokenizer = train_tokenizer(["touch the red star"] * 5)
    model, processor = make_tiny_vlm("llava", tokenizer, hidden_size=32, num_layers=1, num_vision_layers=1)
    model.save_pretrained(folder / "vlm")
    processor.save_pretrained(folder / "vlm")
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"the red star is {word} here"}) + "\n" for word in "abcdef"))
    options = {**TINY, "vlm": folder / "vlm", "eval_text_dataset": texts, "learning_rates": 1e-3}
    return ["study", *[word for name, value in options.items() for word in (f"--{name}", str(value))]]


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 2], ids=["half way", "at the end"])
def test_a_study_that_is_killed_goes_on(command, tmp_path, monkeypatch, capsys, call):
    """Killed in the middle of a measurement, it neither trains nor measures again what is there."""
    study = [*command, "--output_dir", str(tmp_path), "--recipes", "insulated", "--conditions", "cold", "--seeds", "0"]
    study += ["--expert_learning_rates", "1e-3", "3e-3"]
    real, seen = StudyMeasurements.acts, []

    def acts(self, name):
        seen.append(name)
        if len(seen) == call:
            raise Killed
        return real(self, name)

    monkeypatch.setattr(StudyMeasurements, "acts", acts)
    with pytest.raises(Killed):
        main(study)
    work = tmp_path / "work"
    first = {file: file.stat().st_mtime_ns for file in work.rglob("*.json") if "checkpoint" not in str(file)}
    main(study)
    assert {file: file.stat().st_mtime_ns for file in first if file.is_file()}.items() <= first.items()
    (done,) = read_rows(tmp_path / "rows.jsonl")
    assert [point["step"] for point in done["points"]] == [0, 2, 4]
    assert [act["step"] for act in done["acts"]] == [2, 4]
    acted = done["acts"][-1]["rollouts"]["touch_synonyms"]
    assert {len(acted.pop(told)) for told in (*acted,)} == {TINY["num_episodes"]}
    trials = json.loads((tmp_path / "pilot" / "insulated_cold.json").read_text())
    assert [trial["expert_learning_rate"] for trial in trials] == [1e-3, 3e-3]
    assert "core-hours" in capsys.readouterr().out
    assert not list(work.rglob("checkpoint-*")), "what is of no use any more is removed"


@pytest.mark.slow
def test_every_condition_at_once(command, tmp_path):
    options = ["--output_dir", str(tmp_path), "--seeds", "0", "--text_length", "8", "--expert_learning_rates", "1e-3"]
    options += ["--text_dataset", command[command.index("--eval_text_dataset") + 1], "--question_share", "0.2"]
    main([*command, *options, "--recipes", "joint", "frozen", "--conditions", "warmup+replay+anchor+questions"])
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert [point["step"] for point in row["points"]] == [0, 2, 4]
    with (tmp_path / "logs" / "joint_warmup+replay+anchor+questions_0.csv").open() as file:
        log = list(csv.DictReader(file))
    assert log[0]["new_tokens_grad_norm"] and not log[0]["backbone_grad_norm"], "the VLM rests first"
    assert log[-1]["backbone_grad_norm"] and any(line["anchor_loss"] for line in log[2:])
    assert "frozen, warmup+replay" in (tmp_path / "table.md").read_text(), "left out, and named"


@pytest.mark.slow
def test_without_a_simulator_it_is_the_error_of_held_out_actions(command, tmp_path, monkeypatch):
    tabletop = ("--num_demonstrations", "--num_episodes", "--num_question_scenes")
    options = dict(zip(command[1::2], command[2::2], strict=True))
    options = {name: value for name, value in options.items() if name not in tabletop}
    options |= {"--output_dir": str(tmp_path), "--dataset": str(DATASET), "--chunk_size": "4", "--seeds": "0"}
    words = [word for pair in options.items() for word in pair]
    precisions, train = set(), KIVLATrainer.train

    def seen_train(trainer, **options):
        precisions.add(trainer.accelerator.mixed_precision)
        return train(trainer, **options)

    monkeypatch.setattr(KIVLATrainer, "train", seen_train)
    words += ["--expert_learning_rates", "1e-3", "--bf16", "true"]
    main(["study", *words, "--recipes", "joint", "pi0", "--conditions", "cold"])
    assert precisions == {"bf16"}
    joint, pi0 = read_rows(tmp_path / "rows.jsonl")
    assert joint["acts"][-1]["rollouts"] == {} and joint["answers"] is None
    assert joint["points"][-1]["cosine"] is not None and pi0["points"][-1]["cosine"] is None
    assert (tmp_path / "study.pdf").is_file() and "does as told" not in (tmp_path / "table.md").read_text()
