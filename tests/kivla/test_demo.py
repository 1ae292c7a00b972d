"""`kivla demo` from end to end on a tiny VLM, and again where it was interrupted."""

import json
import re

import pytest
from huggingface_hub import ModelCard

from kivla.cli import main
from kivla.demo import DemoArguments, command
from kivla.tiny_vlm import make_tiny_vlm, train_tokenizer


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


@pytest.mark.slow
def test_it_leaves_report_policy_and_card(demo, capsys):
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
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", card.text)
    assert len(pictures) == 3
    assert all((folder / "policy" / picture).stat().st_size > 1000 for picture in pictures)
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.S)
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


def test_the_cards_command_has_the_budget():
    assert command(DemoArguments(minutes=30)) == "kivla demo --minutes 30 --seed 0"
    assert command(DemoArguments(max_steps=700, seed=2)) == "kivla demo --max_steps 700 --seed 2"
