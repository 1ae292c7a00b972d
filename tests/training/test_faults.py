"""What happens when something outside of the run goes wrong: what is lost, what is said, and that the run can go on.

Lost are at most the steps since the last checkpoint; the tests resume from it and compare with an undisturbed run.
Run as a script it trains until it is told to stop: python -m tests.training.test_faults FOLDER [killed]
"""

import errno
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from kivla import KIVLAForActionPrediction, LeRobotDataset
from kivla.training.checkpoints import CheckpointError, checkpoints, problem_of
from kivla.training.preemption import Interrupted, Preempted, bear_signals
from tests.helpers.patience import PATIENCE
from tests.helpers.policies import CHUNK, DATASET, make_policy, make_trainer

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "max_steps": 6,
    "per_device_train_batch_size": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 1,
    "lr_scheduler_type": "constant",
    "ema_decay": 0.9,
}


class AtStep(TrainerCallback):
    """Does something at the end of a step, once."""

    def __init__(self, step: int, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


def trainer_with(folder: Path, step: int, action, **settings):
    trainer = make_trainer(folder, **{**SETTINGS, **settings})
    trainer.add_callback(AtStep(step, action))
    return trainer


def checkpoints_in(folder: Path) -> list[str]:
    names = sorted(path.name for path in (folder / "run").iterdir() if path.is_dir())
    assert all(problem_of(folder / "run" / name) is None for name in names), names
    return names


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    trainer = make_trainer(tmp_path_factory.mktemp("undisturbed"), **SETTINGS)
    trainer.train()
    return trainer


def assert_resumes(folder: Path, undisturbed, **settings):
    """The same program again ends with the undisturbed run's weights."""
    trainer = make_trainer(folder, **{**SETTINGS, **settings})
    trainer.train(resume_from_checkpoint=True)
    for name, weight in undisturbed.model.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[name], weight), name


# ------------------------------------------------------------------------------------------------------------- signals
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(tmp_path, undisturbed, caplog):
    before = signal.getsignal(signal.SIGTERM)
    trainer = trainer_with(tmp_path, 3, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Preempted) as stop:
        trainer.train()
    assert stop.value.code == 143
    assert checkpoints_in(tmp_path) == [f"checkpoint-{trainer.state.global_step}"]
    assert trainer.state.global_step in (3, 4), "the running step, or the next if it came at the very end of one"
    assert "Stopped by SIGTERM. Everything up to here is in" in caplog.text
    assert "start the same command again" in caplog.text
    assert signal.getsignal(signal.SIGTERM) == before
    assert_resumes(tmp_path, undisturbed)


def test_ctrl_c_ends_the_run_as_a_signal_does_and_twice_at_once(tmp_path, undisturbed, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted):
        trainer_with(tmp_path / "once", 3, lambda: signal.raise_signal(signal.SIGINT)).train()
    assert len(checkpoints_in(tmp_path / "once")) == 1
    assert_resumes(tmp_path / "once", undisturbed)

    def press_twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # as a launcher passes it on
        monkeypatch.setattr("kivla.training.preemption._SAME_KEY", 0.0)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stop:
        trainer_with(tmp_path / "twice", 1, press_twice).train()
    assert not isinstance(stop.value, Interrupted) and not checkpoints_in(tmp_path / "twice")
    assert signal.getsignal(signal.SIGINT) is before


def test_slurms_signal_stops_a_run_that_keeps_no_checkpoints(tmp_path):
    with pytest.raises(Preempted) as stop:
        trainer_with(tmp_path, 2, lambda: signal.raise_signal(signal.SIGUSR1), save_strategy="no").train()
    assert stop.value.code == 138
    assert len(checkpoints_in(tmp_path)) == 1


def test_a_stopped_run_does_not_evaluate_first(tmp_path):
    trainer = trainer_with(
        tmp_path, 2, lambda: signal.raise_signal(signal.SIGTERM), eval_strategy="steps", eval_steps=1, max_steps=9
    )
    evaluated = []
    trainer.evaluate = lambda *args, **kwargs: evaluated.append(trainer.state.global_step) or {}
    with pytest.raises(Preempted):
        trainer.train()
    assert evaluated == list(range(1, trainer.state.global_step))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who sent a signal")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_bear_a_signal_while_a_policy_is_evaluated(tmp_path, number):
    trainer = make_trainer(tmp_path, dataloader_num_workers=1, per_device_eval_batch_size=2)
    batches = iter(trainer.get_eval_dataloader(trainer.train_dataset))
    next(batches)
    for worker in multiprocessing.active_children():  # from another process, as a terminal or a scheduler sends it
        subprocess.run(["kill", f"-{int(number)}", str(worker.pid)], check=True)
    assert sum(1 for _ in batches) == (len(trainer.train_dataset) - 1) // 2


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells who sent a signal")
def test_workers_bear_a_signal_from_their_first_moment_on():
    """Before they are initialised, too: blocked when they are forked, and no more so in the parent."""
    loader = DataLoader(range(2), num_workers=1, worker_init_fn=_blocked_at_first)
    bear_signals(loader)
    loader.worker_init_fn = loader.worker_init_fn.then  # without what blocks them later
    batches = list(loader)
    assert len(batches) == 2
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGTERM, signal.SIGINT}


def _blocked_at_first(worker_id: int) -> None:
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1} <= signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.slow
def test_all_processes_of_a_run_may_get_the_signal(tmp_path):
    """As schedulers send it: the loader workers get it, too, and have to work on."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.training.test_faults", str(tmp_path)]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stderr=log, start_new_session=True)
    deadline = time.monotonic() + PATIENCE
    while not any((tmp_path / "run").glob("checkpoint-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    for _ in range(3):
        os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=PATIENCE) == 143, (tmp_path / "log").read_text()[-3000:]
    assert "start the same command again to go on" in (tmp_path / "log").read_text()
    (name,) = checkpoints_in(tmp_path)
    state = json.loads((tmp_path / "run" / name / "trainer_state.json").read_text())
    assert 2 <= state["global_step"] < 10_000


# -------------------------------------------------------------------------------------------------------------- disk
def test_disk_full_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    trainer = make_trainer(tmp_path, **SETTINGS)
    with pytest.raises(OSError, match=r"0\.0 MB free, but a checkpoint and .* take about \d\.\d MB") as full:
        trainer.train()
    assert full.value.errno == errno.ENOSPC
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("allowed", [30_000, 300_000])
def test_disk_full_while_a_checkpoint_is_written(tmp_path, undisturbed, allowed):
    """The operating system refuses to write files larger than this, at step 3: some earlier, some later file."""
    sizes = resource.getrlimit(resource.RLIMIT_FSIZE)
    trainer = trainer_with(tmp_path, 3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, sizes[1])))
    try:
        with pytest.raises(CheckpointError) as error:
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, sizes)
    message = str(error.value)
    assert "checkpoint-4 could not be written" in message
    assert "Nothing half-written was left. checkpoint-2 is whole: start the same command again" in message
    assert checkpoints_in(tmp_path) == ["checkpoint-2"]
    assert_resumes(tmp_path, undisturbed)


def test_disk_full_while_the_policy_is_written(tmp_path):
    """The policy that was there before stays, whole."""
    model, processor = make_policy(tmp_path / "vlm")
    trainer = make_trainer(tmp_path, model, processor)
    trainer.save_model()
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    torch.nn.init.zeros_(next(model.parameters()))
    sizes = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, sizes[1]))
        with pytest.raises(Exception, match=r"File too large|os error 27"):
            trainer.save_model()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, sizes)
    found = KIVLAForActionPrediction.from_pretrained(tmp_path / "run").state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_the_output_folder_is_removed_while_training(tmp_path, undisturbed, caplog):
    trainer = trainer_with(tmp_path, 3, lambda: shutil.rmtree(tmp_path / "run"))
    trainer.train()
    assert "run was removed while training. It is made anew; earlier checkpoints are gone." in caplog.text
    assert checkpoints_in(tmp_path) == ["checkpoint-6"]
    for name, weight in undisturbed.model.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[name], weight), name


# -------------------------------------------------------------------------------------------------------------- data
def test_a_video_is_damaged_while_training(tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(DATASET, folder)
    videos = sorted(folder.glob("videos/**/*.mp4"))

    def damage():
        for video in videos:
            video.write_bytes(bytes(video.stat().st_size))

    trainer = trainer_with(tmp_path, 3, damage)
    trainer.train_dataset = LeRobotDataset(folder, chunk_size=CHUNK)
    trainer.args.max_steps = 60
    with pytest.raises(Exception, match=r"\.mp4") as error:
        trainer.train()
    (note,) = error.value.__notes__
    assert "is kept: the same command goes on from there" in note
    (last,) = checkpoints_in(tmp_path)
    assert last in note


def kill_a_loader_worker() -> None:
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_loader_worker_is_killed(tmp_path, undisturbed):
    """In a process of its own: the error comes wherever that is (in a step, between two, while it writes a checkpoint),
    and may come twice."""
    command = [sys.executable, "-m", "tests.training.test_faults", str(tmp_path), "killed"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 1, result.stderr[-3000:]
    # One that dies while it hands over a batch is a broken connection.
    assert re.search(r"DataLoader worker \(pid|Connection\w*Error|EOFError", result.stderr), result.stderr[-3000:]
    newest, *older = checkpoints(tmp_path / "run")  # the removal of an older one may have been interrupted, too
    assert problem_of(newest) is None
    kept = re.findall(r"Everything up to .*(checkpoint-\d+) is kept: the same command goes on", result.stderr)
    assert kept and set(kept) <= {path.name for path in (newest, *older)}, result.stderr[-3000:]
    if int(newest.name.partition("-")[2]) <= SETTINGS["max_steps"]:
        assert_resumes(tmp_path, undisturbed, dataloader_num_workers=2)


if __name__ == "__main__":
    trainer = make_trainer(sys.argv[1], **{**SETTINGS, "max_steps": 10_000, "dataloader_num_workers": 2})
    if sys.argv[2:] == ["killed"]:
        trainer.add_callback(AtStep(3, kill_a_loader_worker))
    try:
        trainer.train()
    except Exception:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler may raise again, while Python prints the error
        raise
