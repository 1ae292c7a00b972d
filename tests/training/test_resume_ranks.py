"""Two processes: they stop at the same step, resume to the same weights, and leave out the same steps.

Run as a script it does all that is compared, each in a folder of its own:
accelerate launch ... -m tests.training.test_resume_ranks FOLDER
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from torch.utils.data import Subset
from transformers import TrainerCallback

from kivla import KIVLACollator
from kivla.training.checkpoints import problem_of
from kivla.training.data_parallel import ended_process_group
from kivla.training.loss_watch import NonFiniteError
from kivla.training.preemption import Preempted
from tests.helpers.fixed_noise import FixedNoiseCollator
from tests.helpers.patience import PATIENCE
from tests.helpers.policies import dataset, make_policy, make_trainer, several_cpus_resume

pytestmark = several_cpus_resume

ROOT = Path(__file__).parents[2]
STEPS = 8  # of three in an epoch
SETTINGS = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "logging_steps": 3,
    "save_strategy": "steps",
    "save_steps": 100,
    "ema_decay": 0.9,
}


class SignalToOne(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3 and args.process_index == 1:
            signal.raise_signal(signal.SIGTERM)


class NaNOnOne(FixedNoiseCollator):
    """The second process has a NaN in its second batch."""

    calls = 0

    def __call__(self, examples):
        batch = super().__call__(examples)
        self.calls += 1
        if int(os.environ["RANK"]) == 1 and self.calls == 2:
            batch["noise"][0] = torch.nan
        return batch


def make(folder: Path, **settings):
    with PartialState().main_process_first():
        model, processor = make_policy(folder / "vlm")
    trainer = make_trainer(folder, model, processor, **{**SETTINGS, **settings})
    trainer.train_dataset = Subset(dataset(), range(0, 184, 9)[:20])
    return trainer


def noise_of(trainer) -> list[float]:
    """The first number of each noise that is drawn while training, and then in an evaluation."""
    drawn, draw = [], torch.randn_like

    def noted(*args, **kwargs):
        noise = draw(*args, **kwargs)
        drawn.append(float(noise.flatten()[0]))
        return noise

    torch.randn_like = noted
    trainer.train()
    trainer.evaluate(trainer.train_dataset)
    torch.randn_like = draw
    return drawn


def run(folder: Path, rank: int) -> None:
    facts = {}
    make(folder / "undisturbed").train()
    trainer = make(folder / "stopped")
    trainer.add_callback(SignalToOne())
    try:
        trainer.train()
    except Preempted as stop:
        facts |= {"status": stop.code, "stopped_at": trainer.state.global_step}
    make(folder / "stopped").train(resume_from_checkpoint=True)
    skipping = make(folder / "skipping", collator=NaNOnOne, on_nonfinite="skip", max_steps=3)
    skipping.train()
    facts["skipped"] = skipping.skipped_steps
    facts["weights"] = [float(weight.double().sum()) for weight in skipping.model.state_dict().values()]
    try:
        make(folder / "stopping", collator=NaNOnOne, max_steps=3).train()
    except NonFiniteError as error:
        facts["error"] = str(error)
    facts["noise"] = noise_of(make(folder / "drawing", collator=KIVLACollator, max_steps=2))
    (folder / f"facts_{rank}.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [*launch, "-m", "tests.training.test_resume_ranks", str(folder)]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr[-5000:]
    return folder, [json.loads((folder / f"facts_{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
def test_all_stop_at_the_same_step_when_one_is_asked_to(done):
    folder, facts = done
    assert facts[0]["status"] == facts[1]["status"] == 143
    assert facts[0]["stopped_at"] == facts[1]["stopped_at"] == 5, "told before the step after the one that was running"
    assert problem_of(folder / "stopped" / "run" / "checkpoint-5") is None
    files = {path.name for path in (folder / "stopped" / "run" / "checkpoint-5").iterdir()}
    assert {"progress_0.json", "progress_1.json", "rng_state_0.pth", "rng_state_1.pth"} <= files


@pytest.mark.slow
def test_resumed_in_the_second_epoch_they_end_as_undisturbed_ones(done):
    folder, _ = done
    last = [folder / name / "run" / f"checkpoint-{STEPS}" for name in ("undisturbed", "stopped")]
    for file in ("model.safetensors", "ema.safetensors"):
        expected, found = (load_file(checkpoint / file) for checkpoint in last)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], weight) for name, weight in expected.items()), file
    expected, found = (json.loads((checkpoint / "trainer_state.json").read_text()) for checkpoint in last)
    assert expected["log_history"] == found["log_history"]


@pytest.mark.slow
def test_all_leave_out_the_step_with_nan_on_one(done):
    _, facts = done
    assert facts[0]["skipped"] == facts[1]["skipped"] == 1
    assert facts[0]["weights"] == facts[1]["weights"]
    assert all(map(torch.isfinite, map(torch.tensor, facts[0]["weights"])))
    assert "losses are finite here, the gradient is nan in step 1 on device 0" in facts[0]["error"]
    assert facts[1]["error"].startswith("The loss is nan in step 1 on device 1. In this batch: ")


@pytest.mark.slow
def test_each_draws_noise_of_its_own(done):
    _, facts = done
    ours, theirs = facts[0]["noise"], facts[1]["noise"]
    assert len(ours) == len(theirs) > 4, "two steps of two batches, and the evaluation"
    assert len({*ours, *theirs}) == len(ours) + len(theirs)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with ended_process_group():
        run(Path(sys.argv[1]), int(os.environ["RANK"]))
