"""Folders that demo, study and pretrain-tiny fill: with one set of arguments, and with files that are whole."""

import json
import os
from pathlib import Path

import pytest

from kivla.cli import main
from kivla.demo.stages import once
from kivla.training.run_folder import check_can_write, check_can_write_file, claim_folder, write_json


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_arguments_go_on_and_others_are_named(tmp_path):
    claim_folder(tmp_path, {"max_steps": 3, "kinds": ["touch"], "vlm": None}, ("plan.json",))
    claim_folder(tmp_path, {"max_steps": 3, "kinds": ["touch"], "vlm": None}, ("plan.json",))
    before = files(tmp_path)
    with pytest.raises(ValueError, match="other arguments") as error:
        claim_folder(tmp_path, {"max_steps": 100, "kinds": ["touch", "move"], "vlm": None}, ("plan.json",))
    message = str(error.value)
    assert "\n  --max_steps: was 3, is 100\n  --kinds: was ['touch'], is ['touch', 'move']\n" in message
    assert "vlm" not in message
    assert "Give another --output_dir; or remove the folder to start anew." in message
    assert files(tmp_path) == before


def test_results_of_unknown_arguments_are_refused_and_so_is_a_folder_of_other_things_but_not_a_log(tmp_path):
    (tmp_path / "log.txt").touch()
    claim_folder(tmp_path / "a", {"seed": 0}, ("plan.json",))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "log.txt").touch()
    claim_folder(tmp_path / "b", {"seed": 0}, ("plan.json",))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "plan.json").write_text("{}")
    with pytest.raises(ValueError, match=r"plan\.json is there, and nothing says with which arguments it was made"):
        claim_folder(tmp_path / "c", {"seed": 0}, ("plan.json",))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"d is not empty: it holds thesis\.tex"):
        claim_folder(tmp_path / "d", {"seed": 0}, ("plan.json",))
    assert list(files(tmp_path / "d")) == ["thesis.tex"]
    with pytest.raises(FileExistsError, match=r"thesis\.tex is a file"):
        claim_folder(tmp_path / "d" / "thesis.tex", {"seed": 0}, ("plan.json",))


@pytest.mark.parametrize(
    ("command", "option", "found"),
    [
        (["demo", "--max_steps", "3"], ["--max_steps", "4"], "--max_steps: was 3, is 4"),
        (["demo", "--max_steps", "3"], ["--learning_rate", "0.5"], "--learning_rate: was 0.001, is 0.5"),
        (["study", "--max_steps", "300"], ["--num_episodes", "7"], "--num_episodes: was 100, is 7"),
        (["pretrain-tiny", "--max_steps", "3"], ["--hidden_size", "64"], "--hidden_size: was 128, is 64"),
    ],
)
def test_a_command_does_not_give_the_results_of_other_arguments(tmp_path, monkeypatch, command, option, found):
    class Began(Exception):
        pass

    def began(*args, **kwargs):
        raise Began

    for place in ("commands.demo.ask_vlm", "commands.study.Workshop", "demo.pretraining.load_questions"):
        monkeypatch.setattr(f"kivla.{place}", began)
    name, *rest = command
    given = [name, "--output_dir", str(tmp_path / "out"), *rest]
    for _ in range(2):
        with pytest.raises(Began):
            main(given)
    with pytest.raises(SystemExit) as error:
        main([*given, *option])
    assert found in str(error.value)


def test_a_study_may_get_more_recipes_and_seeds(tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr("kivla.commands.study._run", lambda *args: runs.append(args))
    for options in ([], ["--seeds", "5", "--recipes", "joint", "--target_success", "0.9"]):
        main(["study", "--output_dir", str(tmp_path), "--core_hours", "0", *options])
    assert len(runs) == 2


def test_json_files_are_whole_whenever_the_process_is_killed(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_json(file, {"n": 1})

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(file, {"n": 2})
    with pytest.raises(KeyboardInterrupt):
        once(tmp_path / "b.json", lambda: {"n": 3})
    assert json.loads(file.read_text()) == {"n": 1}
    assert not (tmp_path / "b.json").exists()


def test_a_damaged_file_says_what_to_do(tmp_path):
    claim_folder(tmp_path / "run", {"n": 1}, ())
    (tmp_path / "run" / "arguments.json").write_text('{"n": ')
    with pytest.raises(
        ValueError, match=r"arguments\.json is damaged .*Give another --output_dir; or remove the folder"
    ):
        claim_folder(tmp_path / "run", {"n": 1}, ())
    (tmp_path / "b.json").write_text("")
    with pytest.raises(ValueError, match=r"b\.json is damaged .*Take it away"):
        once(tmp_path / "b.json", lambda: {"n": 2})


@pytest.mark.parametrize(
    "command",
    [
        ["rollout", "no/policy", "--output_dir"],
        ["evaluate", "no/policy", "--dataset", "no/data", "--output_dir"],
        ["predict", "no/policy", "--dataset", "no/data", "--output_dir"],
        ["tokenizers", "no/data", "--output"],
        ["inspect", "no/vlm", "--output"],
        ["check-data", "no/data", "--json"],
        ["check-data", "no/data", "--plot"],
        ["profile", "--vlm", "tabletop", "--dataset", "no/data", "--output_dir"],
        ["train", "--vlm", "tabletop", "--dataset", "no/data", "--output_dir"],
        ["assemble-vlm", "--text_model", "no/text", "--vision_tower", "no/tower", "--output_dir"],
        ["demo", "--output_dir"],
        ["study", "--output_dir"],
        ["pretrain-tiny", "--output_dir"],
        ["teach-vlm", "--vlm", "no/vlm", "--output_dir"],
    ],
    ids=lambda command: command[0],
)
def test_a_place_that_nothing_can_be_written_to_is_refused_before_any_work(tmp_path, capsys, command):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SystemExit) as stopped:
        main([*command, str(tmp_path / "thesis.tex" / "results" / "here")])
    said = str(stopped.value) + capsys.readouterr().err
    assert "Nothing can be written to" in said and "thesis.tex (Not a directory). Name another place." in said
    assert list(files(tmp_path)) == ["thesis.tex"]


def test_the_trial_of_a_place_leaves_nothing_and_a_folder_is_no_file(tmp_path):
    check_can_write(tmp_path / "a" / "b")
    check_can_write_file(tmp_path / "report.json")
    check_can_write_file("/dev/null")
    assert not list(tmp_path.iterdir())
    with pytest.raises(IsADirectoryError, match=r"is a folder\. Name a file"):
        check_can_write_file(tmp_path)
