"""Two processes do not fill one folder at once."""

import errno
import fcntl
import os

import pytest

from kivla.cli import main
from kivla.training import checkpoints
from kivla.training import sole_use as module
from kivla.training.run_folder import check_is_free, claim_folder
from kivla.training.sole_use import IN_USE, InUseError, sole_use
from tests.helpers.another_process import another_process


def impatient(folder, patience=None):
    """It waits for nobody, whatever it is told."""
    return sole_use(folder, patience=0)


def test_a_folder_is_kept_by_one_process_at_a_time(tmp_path):
    folder = tmp_path / "new"
    with sole_use(folder), sole_use(folder):
        assert (folder / IN_USE).read_text().startswith(f"process {os.getpid()} on ")
        lock = os.open(folder / IN_USE, os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(lock)
        (folder / "result").touch()
    assert [path.name for path in folder.iterdir()] == ["result"], "nothing else stays behind"
    with sole_use(tmp_path / "outputs" / "policy"):
        pass
    assert not (tmp_path / "outputs").exists(), "nor an empty folder that was made for it"
    said = r"new is being filled by process 7 on robot\. .* another output_dir"
    with another_process(folder), pytest.raises(InUseError, match=said):
        sole_use(folder, patience=0).__enter__()
    with sole_use(folder, patience=0):
        pass


def test_the_next_process_waits_for_one_that_ends(tmp_path, monkeypatch, caplog):
    other = another_process(tmp_path)
    other.__enter__()
    monkeypatch.setattr(module.time, "sleep", lambda seconds: other.__exit__(None, None, None))
    with sole_use(tmp_path):
        assert "is being filled by process 7 on robot: waiting" in caplog.text


def test_a_lock_on_a_file_that_was_taken_away_does_not_count(tmp_path, monkeypatch):
    """The process before took it away between our opening and locking it; a third one may have made its own."""
    is_locked, seen = module._is_locked, []

    def late(lock, file):
        if not seen:
            file.unlink()
        seen.append(lock)
        return is_locked(lock, file)

    monkeypatch.setattr(module, "_is_locked", late)
    with sole_use(tmp_path):
        assert len(seen) == 2
        assert (tmp_path / IN_USE).is_file()


def test_without_locks_on_the_file_system_it_goes_on_and_says_so(tmp_path, monkeypatch, caplog):
    def flock(lock, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with sole_use(tmp_path):
        assert "without locks" in caplog.text
    monkeypatch.setattr(fcntl, "flock", lambda lock, operation: os.close(-1))
    with pytest.raises(OSError, match="Bad file descriptor"):
        sole_use(tmp_path).__enter__()


def test_the_lock_is_no_part_of_a_run(tmp_path):
    (tmp_path / "config.json").touch()
    with sole_use(tmp_path):
        aside = checkpoints.put_aside(tmp_path)
        assert [path.name for path in aside.iterdir()] == ["config.json"]
        assert (tmp_path / IN_USE).is_file()
    (tmp_path / "free").mkdir()
    (tmp_path / "free" / IN_USE).touch()
    check_is_free(tmp_path / "free")


@pytest.mark.parametrize("command", ["demo", "pretrain-tiny", "teach-vlm", "train"])
def test_commands_refuse_a_folder_that_another_process_fills(command, tmp_path, monkeypatch, capsys):
    where = {"demo": "commands.demo", "pretrain-tiny": "demo.pretraining", "teach-vlm": "demo.teaching"}
    monkeypatch.setattr(f"kivla.{where.get(command, 'training.run')}.sole_use", impatient)
    monkeypatch.setattr("kivla.training.run_folder.sole_use", impatient)
    options = {"teach-vlm": ["--vlm", "tabletop"], "train": ["--vlm", "tabletop", "--dataset", "no/data"]}
    with another_process(tmp_path / "out"), pytest.raises(SystemExit):
        main([command, *options.get(command, []), "--output_dir", str(tmp_path / "out")])
    assert "is being filled by process 7 on robot" in capsys.readouterr().err


def test_of_two_that_claim_a_folder_at_once_one_is_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr("kivla.training.run_folder.sole_use", impatient)
    with another_process(tmp_path), pytest.raises(InUseError, match="process 7 on robot"):
        claim_folder(tmp_path, {"n": 1}, ())
    claim_folder(tmp_path, {"n": 1}, ())
    with pytest.raises(ValueError, match="--n: was 1, is 2"):
        claim_folder(tmp_path, {"n": 2}, ())
