"""`kivla demo` from end to end on a tiny VLM, and again where it was interrupted."""

import json
import re
import shlex
from itertools import combinations

import pytest
import torch
from huggingface_hub import ModelCard, metadata_load
from safetensors.torch import load_file

from kivla.cli import main
from kivla.commands.demo import DemoArguments, _summary, command
from kivla.demo.report import write_report
from kivla.demo.stages import ROLLOUTS, TabletopArguments, rollouts_of
from kivla.demo.stages import seconds_per_step as measured
from kivla.demo.tiny_vlm import make_tiny_vlm, train_tokenizer
from kivla.hub_cards import policy_card
from kivla.simulation import TabletopVectorEnv, make_questions
from kivla.simulation.rollout_evaluation import success_rate
from kivla.simulation.tabletop.answers import answer_accuracy
from kivla.simulation.tabletop.tasks import TASK_KINDS


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    tokenizer = train_tokenizer(["touch the red star"] * 5)
    model, processor = make_tiny_vlm("llava", tokenizer, hidden_size=32, num_layers=1, num_vision_layers=1)
    model.save_pretrained(folder / "vlm")
    processor.save_pretrained(folder / "vlm")
    arguments = ["demo", "--vlm", str(folder / "vlm"), "--output_dir", str(folder / "demo"), "--max_steps", "2"]
    arguments += ["--num_episodes", "3", "--num_question_scenes", "4", "--num_demonstrations", "10"]
    arguments += ["--batch_size", "4", "--expert_hidden_size", "32", "--expert_intermediate_size", "48"]
    main(arguments)
    return folder / "demo", arguments


def index_of(policy) -> list[dict]:
    """The model index of a card, as it stands in the file."""
    (entry,) = metadata_load(policy / "README.md")["model-index"]
    return entry["results"]


@pytest.mark.slow
def test_it_leaves_report_policy_and_card(demo, capsys, monkeypatch):
    folder, _ = demo
    report = json.loads((folder / "report.json").read_text())
    assert report["rollouts"][0]["name"] == "touch"
    assert all("move" not in result["name"] for result in report["rollouts"]), "what was not demonstrated is not tried"
    assert report["rollouts"][0]["success"]["episodes"] == 3
    assert set(report["questions"]["before"]) == set(report["questions"]["after"])
    assert (folder / "report.html").stat().st_size > 10_000
    card = ModelCard.load(folder / "policy" / "README.md")
    assert card.data.pipeline_tag == "robotics"
    assert card.data.eval_results[0].metric_value == report["rollouts"][0]["success"]["rate"]
    names = [(result["dataset"]["name"], result["dataset"]["config"]) for result in index_of(folder / "policy")]
    assert names == [(result["title"], result["title"]) for result in report["rollouts"]], "a set lost its name"
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", card.text)
    assert set(pictures) == {"training.png", "chunks.png", "contact_sheet.png", "phases.png"}
    assert all((folder / "policy" / picture).stat().st_size > 1000 for picture in pictures)
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.S)
    monkeypatch.chdir(folder.parent / "demo")
    exec(code, {})
    assert "[[" in capsys.readouterr().out, "the code prints a chunk"


@pytest.mark.slow
def test_what_is_done_is_not_done_again(demo):
    folder, arguments = demo
    kept = folder / "training.json"
    before = kept.stat().st_mtime_ns, (folder / "report.json").read_text()
    (folder / "rollout_touch.json").unlink()  # as if it had been interrupted there
    main(arguments)
    report = json.loads((folder / "report.json").read_text())
    assert kept.stat().st_mtime_ns == before[0]
    assert report["rollouts"][0]["episodes"] == json.loads(before[1])["rollouts"][0]["episodes"], "same seeds, same end"


def test_too_little_time_is_refused():
    with pytest.raises(SystemExit, match="minutes must be at least 4"):
        main(["demo", "--minutes", "1"])


def test_the_cards_command_has_the_steps_that_were_taken():
    assert command(DemoArguments(minutes=30), TabletopArguments(), 812) == "kivla demo --max_steps 812 --seed 0"
    demo = DemoArguments(output_dir="/home/me/demo", vlm="/home/me/my vlm", num_episodes=5, seed=2, from_scratch=True)
    options = TabletopArguments(kinds=["touch", "move"], freeze_vision=False, learning_rate=3e-4)
    assert command(demo, options, 700) == (
        "kivla demo --vlm './my vlm' --from_scratch true --max_steps 700 --num_episodes 5 --seed 2 --kinds touch move "
        "--freeze_vision false --learning_rate 0.0003"
    )


@pytest.mark.slow
def test_the_cards_command_makes_the_same_policy(demo, monkeypatch, tmp_path):
    """A run that was given minutes and planned its steps itself."""
    folder, arguments = demo
    planned = [word for word in arguments if word not in ("--max_steps", "2")]
    planned[planned.index("--output_dir") + 1] = str(tmp_path / "planned")
    monkeypatch.setattr("kivla.commands.demo.seconds_per_step", lambda *args, num_steps: measured(*args, 2) and 16.0)
    main([*planned, "--minutes", "4", "--question_share", "0.5", "--seed", "3"])
    monkeypatch.chdir(folder.parent)  # where the card says that the VLM is
    text = (tmp_path / "planned" / "policy" / "README.md").read_text()
    (line,) = re.findall(r"```bash\n(.*?)\n```", text, re.S)
    assert "--max_steps 3 " in line and str(folder) not in text and str(tmp_path) not in text
    main([*shlex.split(line)[1:], "--output_dir", str(tmp_path / "again")])
    first, second = (load_file(tmp_path / name / "policy" / "model.safetensors") for name in ("planned", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first), "the card's command made another policy"


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [["move"], ["push", "put"]], ids=" ".join)
def test_any_kinds_of_task_end_in_a_report(demo, tmp_path, kinds):
    _, arguments = demo
    arguments = [*arguments, "--kinds", *kinds, "--num_episodes", "1"]
    arguments[arguments.index("--max_steps") + 1] = "3"  # one for every lesson
    arguments[arguments.index("--output_dir") + 1] = str(tmp_path / "demo")
    main(arguments)
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["rollouts"][0]["name"] == kinds[0]
    assert {result["name"] for result in report["rollouts"] if result["name"] in TASK_KINDS} == set(kinds)
    for kind in kinds:
        assert any(sentence.startswith(f"{kind.capitalize()} tasks") for sentence in report["summary"])
    page = (tmp_path / "demo" / "report.html").read_text()
    assert f"{kinds[0].capitalize()} tasks, fresh scenes" in page
    card = ModelCard.load(tmp_path / "demo" / "policy" / "README.md")
    assert len(card.data.eval_results) == len(report["rollouts"])


def test_the_report_takes_any_kinds_of_task(tmp_path):
    """Of every subset of the kinds: summary, page and card, from roll-outs as they are measured."""
    questions = make_questions(2, seed=0)
    table = {"accuracy": answer_accuracy(questions, ["yes"] * len(questions))}
    rate, pictures = success_rate([True, False]), {"contact_sheet": None, "phases": None, "videos": []}
    rest = {
        "machine": dict.fromkeys(("cpu", "threads", "torch", "transformers"), "?"),
        "minutes": {},
        "recipe": "learns",
    }
    rest |= {"title": "t", "log_history": [], "chunks": None, "policy": "policy"}
    rest["questions"] = {"before": table["accuracy"], "after": table["accuracy"]}
    for number in range(1, len(TASK_KINDS) + 1):
        for kinds in map(list, combinations(TASK_KINDS, number)):
            swapped = {"original": rate, "swapped": rate, "phases": None}
            rollouts = [
                {"name": name, "title": ROLLOUTS[name][0], "success": rate, "swapped": swapped}
                | {"phases": None, "mean_steps": 1.0, "media": pictures}
                for name in rollouts_of(kinds)
            ]
            summary = _summary(rollouts, table, table, 1.0)
            settings = {"kinds": kinds, "recipe": "insulated"}
            report = {**rest, "summary": summary, "rollouts": rollouts, "settings": settings}
            assert len(summary) == 2 * len(kinds) + 2 and rollouts[0]["name"] == kinds[0]
            page = write_report(tmp_path, report).read_text()
            card = policy_card(report, "kivla demo").text
            for result in rollouts:
                assert result["title"] in page and f"| {result['title']} |" in card
                env = TabletopVectorEnv(1, image_size=24, **ROLLOUTS[result["name"]][1])
                assert set(env.kinds) <= set(kinds), "what was not demonstrated is tried"
                env.reset(seed=[0])


def test_kinds_that_there_are_not_are_refused():
    kinds = "touch, move, push, put, touch_then_touch"
    with pytest.raises(SystemExit, match=f"kivla demo: --kinds takes one or more of {kinds}, each once"):
        main(["demo", "--kinds", "fly"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--replan_every 9", "--replan_every 9: a policy with --chunk_size 8 plans no more actions than that"),
        ("--chunk_size 2", "--replan_every 4: a policy with --chunk_size 2"),
        ("--chunk_size 0", "--chunk_size must be at least 1, got 0"),
        ("--max_steps 0", "--max_steps must be at least 1, got 0"),
        ("--num_episodes 0", "--num_episodes must be at least 1, got 0"),
        ("--seed 1000000", "--seed lies between 0 and 999999, got 1000000"),
        ("--minutes nan", "--minutes must be a finite number, got nan"),
        ("--action_noise -1", "--action_noise must not be negative, got -1"),
        ("--empty_grips 2", "--empty_grips is a share, at most 1, got 2"),
        ("--question_share 1", "--question_share 1 leaves no demonstrations to learn from"),
        ("--learning_rate 0", "--learning_rate must be above 0, got 0"),
        ("--kinds put --minutes 60 --expert_precision 1", "expert_precision=1.0: it lies between 0 and the reach"),
        ("--history 2 --history_stride 0", "--history_stride must be at least 1, got 0"),
        ("--recipe nosuch", "There is no recipe 'nosuch'"),
        ("--state_encoding nosuch", "'state_encoding' expected one of ('text', 'continuous', 'none'), got nosuch"),
        ("--expert_hidden_size 63", "expert_config.hidden_size must be a positive even number"),
        ("--rtc_max_delay 8", "rtc_max_delay must be at least 0 and less than chunk_size = 8"),
        ("--recipe pi0-fast --rtc_max_delay 2", "--rtc_max_delay cannot apply: recipe pi0-fast trains no expert"),
        ("--recipe pi0-fast --noise_scale 0.3", "--noise_scale cannot apply: recipe pi0-fast trains no expert"),
        ("--recipe pi0-fast --expert_hidden_size 128", "--expert_hidden_size cannot apply: recipe pi0-fast"),
        (
            "--recipe frozen --freeze_vision false",
            "--freeze_vision cannot apply: recipe frozen leaves",
        ),
        ("--expert_precision 0.02", "--expert_precision cannot apply: in --kinds touch nothing is held"),
        ("--curriculum false", "--curriculum cannot apply: in --kinds touch nothing is held"),
        ("--max_steps 5 --minutes 20", "--minutes cannot apply: --max_steps says how long it trains"),
        ("--kinds put move --max_steps 2", "2 optimiser steps are too few: 3 lessons"),
        (
            "--recipe insulated-warmup --max_steps 1",
            "1 optimiser steps are too few: 1 lessons",
        ),
        ("--recipe pi0 --action_vocab_size 9", "--action_vocab_size cannot apply: recipe pi0 fits no FAST tokenizer"),
        ("--recipe frozen --question_share 0.1", "--question_share cannot apply: recipe frozen trains on no questions"),
        (
            "--recipe frozen --kinds touch_then_touch --subtasks",
            "--subtasks cannot apply: recipe frozen leaves the VLM",
        ),
        ("--question_share 0 --question_kinds at", "--question_kinds cannot apply: --question_share is 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_done(words, said, tmp_path, capsys):
    """Not after the training; and the folder stays free for the right options."""
    with pytest.raises(SystemExit):
        main(["demo", "--output_dir", str(tmp_path / "demo"), *words.split()])
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())
