"""The dry run of `benchmarks.real_weights`: every row runs on tiny twins, and what is damaged fails in its own row."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import real_weights, twins


def table(capsys, *arguments: str, locate=None) -> tuple[list[list[str]], str, int]:
    """Source, check, outcome and numbers of each row; what was printed; how many failed."""
    failed = real_weights.main(["--dry_run", "--device", "cpu", *arguments], locate)
    printed = capsys.readouterr().out
    rows = [
        [cell.strip().strip("*") for cell in line.split(" | ")] for line in printed.splitlines() if line[:2] == "| "
    ]
    return [[row[0].removeprefix("| "), *row[1:4]] for row in rows[1:]], printed, failed


@pytest.mark.slow
def test_every_check_runs_on_twins_and_nothing_more_is_claimed(capsys, tmp_path):
    rows, printed, failed = table(capsys, "--output", str(tmp_path / "table.md"))
    assert failed == 0, printed
    assert {row[0] for row in rows} == set(real_weights.SOURCES)
    not_run = {row[1]: row[3] for row in rows if row[2] == "not run"}
    assert set(not_run) <= {
        "actions beside LeRobot's code",
        "actions beside openpi's code",
        "FAST beside its own code",
    }, "a check that needs nothing but a twin was not run"
    assert all(row[2] == "pass" for row in rows if row[1] not in not_run)
    conversion = next(row[3] for row in rows if row[1].startswith("conversion"))
    assert conversion.startswith("111 used, equal bit for bit; 2 dropped (")
    assert "Dry run" in printed and "tiny twins with random weights" in printed
    assert (tmp_path / "table.md").read_text() == printed
    assert str(tmp_path) not in printed and "/tmp" not in printed


def change_weights(change):
    def damage(folder):
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def cut_off(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def another_scale(folder):
    config = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps({**config, "scale": "ten"}))


KEY = "model.paligemma_with_expert.gemma_expert.model.layers.1.mlp.up_proj.weight"
DAMAGE = {
    "a missing key": ("pi05_base", change_weights(lambda w: w.pop(KEY)), "conversion", "1 missing keys"),
    "an unknown key": ("pi05_base", change_weights(lambda w: w.update(more=torch.ones(2))), "conversion", "more"),
    "NaN": ("pi05_base", change_weights(lambda w: w[KEY].fill_(torch.nan)), "conversion", "NaN or infinite"),
    "a cut off file": ("pi05_base", cut_off, "conversion", "damaged or incomplete"),
    "a VLM's cut off file": ("smolvlm", cut_off, "generate", "SafetensorError"),
    "FAST's settings": ("fast", another_scale, "FAST, there and back", "scale"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_twin_fails_in_its_row_and_the_rest_goes_on(what, capsys, tmp_path):
    name, damage, check, reason = DAMAGE[what]
    make = twins.in_folder(tmp_path)

    def locate(source, repo):
        found = make(source, repo)
        if source == name:
            damage(found[0])
        return found

    others = ["fast"] if name != "fast" else ["pi05_base"]
    rows, printed, failed = table(capsys, "--only", name, *others, locate=locate)
    (row,) = [row for row in rows if row[0] == name and row[1].startswith(check)]
    assert row[2] == "FAIL" and reason in row[3], printed
    assert failed == sum(row[2] == "FAIL" for row in rows) and not any(
        row[2] == "FAIL" for row in rows if row[0] in others
    )
    assert str(tmp_path) not in printed


def test_other_actions_other_words_and_a_download_that_fails_are_failures(capsys, monkeypatch):
    true_actions = real_weights.pi_reference.sample_actions
    monkeypatch.setattr(real_weights.pi_reference, "sample_actions", lambda *a, **k: true_actions(*a, **k) * 1.01)
    rows, _, failed = table(capsys, "--only", "pi05_base")
    assert failed == 1 and {row[2] for row in rows if row[1] == "actions beside the formulas"} == {"FAIL"}

    true_words = real_weights.KIVLAForActionPrediction.generate
    monkeypatch.setattr(
        real_weights.KIVLAForActionPrediction, "generate", lambda *a, **k: true_words(*a, **k).roll(1, -1)
    )
    rows, _, failed = table(capsys, "--only", "smolvlm")
    assert failed == 1 and next(row for row in rows if row[2] == "FAIL")[1].startswith("generate")

    def offline(name, repo):
        raise OSError(f"no connection to fetch {repo}")

    rows, _, failed = table(capsys, "--only", "fast", "smolvlm", locate=offline)
    assert failed == 2 and all(row[2] == "FAIL" and "no connection" in row[3] for row in rows)


def test_a_gradient_that_leaks_is_seen(capsys, monkeypatch):
    """Joint training in the place of insulation."""
    true = real_weights.new_policy

    def joint(source):
        model = true(source)
        model.config.backbone_gradient_scale = 1.0
        return model

    monkeypatch.setattr(real_weights, "new_policy", joint)
    rows, _, failed = table(capsys, "--only", "paligemma2")
    (row,) = [row for row in rows if row[2] == "FAIL"]
    assert failed == 1 and row[1] == "one insulated step" and "reaches" in row[3]
