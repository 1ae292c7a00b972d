"""What a race of rivals hands to every side, and what it says without them; no rival is needed."""

import importlib
import json
import sys

import torch
from safetensors.torch import load_file

from benchmarks import rivals
from benchmarks.rival_worker import CODES, COMPARED, INDICATOR, SIDES, StandIns, codes_of


def test_files_hold_lerobots_names_and_codes_to_learn(tmp_path):
    size = rivals.QUICK
    rivals.write_files(size, tmp_path)
    weights = load_file(tmp_path / "weights.safetensors")
    assert set(COMPARED) <= weights.keys()
    assert not any("lm_head" in name or name.startswith("model.") for name in weights)
    batch = load_file(tmp_path / "tokens.safetensors")
    first = size.prefix_length + len(INDICATOR)
    learned = batch["labels"] != -100
    assert learned[:, first:].all() and not learned[:, :first].any()
    assert torch.isin(batch["labels"][learned], codes_of(size.vocab_size)).all() and len(codes_of(5000)) == CODES
    assert batch["expert_attention_mask"][:, : size.prefix_length].all()
    assert not batch["expert_attention_mask"][:, size.prefix_length :].any()


def test_our_side_of_a_race_runs_without_rivals(tmp_path):
    """Tokens among all and among action tokens have the same flow loss; the rival is left out."""
    plans = rivals.races(rivals.QUICK, str(tmp_path / "code"), ["default"])
    ((size, race),) = [plan for plan in plans if plan[1].title.startswith("A step with knowledge")]
    files = tmp_path / "files"
    files.mkdir()
    rivals.write_files(size, files)
    losses = []
    for job in race.jobs.values():
        if job.side == "KIVLA":
            about = rivals.describe(job, size, files, repeats=1)
            side = SIDES[job.side](json.loads(json.dumps(about)))
            losses.append(side.results())
    exact, among, draws = losses
    assert exact["flow loss"] == among["flow loss"] != draws["flow loss"]
    assert among["token loss"] < exact["token loss"]
    assert rivals.missing(tmp_path) == dict.fromkeys(rivals.RIVALS, "run `python -m benchmarks.rivals setup`")


def test_every_pair_of_a_race_is_checked_or_has_more_draws():
    for size in (rivals.QUARTER, rivals.QUICK):
        for _, race in rivals.races(size, "code", ["default"]):
            checked = {(ours, theirs) for ours, theirs, _ in race.checks}
            assert all(pair in checked or "draws" in pair[0] for pair in race.pairs)
            assert all(name in race.jobs for pair in race.pairs for name in pair)


def test_the_page_names_versions_and_who_is_missing():
    page = rivals.page([], {"LeRobot": {"torch": "2.0", "transformers": "5.5"}}, {"OpenTau": "no network"})
    assert f"* {rivals.RIVALS['LeRobot'].package}: torch 2.0, transformers 5.5" in page
    assert "* OpenTau is not here: no network" in page


def test_stand_ins_take_whatever_an_import_asks_for(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [StandIns(["not_there"]), *sys.meta_path])
    part = importlib.import_module("not_there.at_all")
    thing = part.Thing
    assert thing[int] is thing and part.decorator(abs) is abs
    assert issubclass(type("Sub", (thing,), {}), thing)
    for name in ("not_there", "not_there.at_all"):
        monkeypatch.delitem(sys.modules, name)
