"""A mixture of three sources, interrupted anywhere: the same examples in the same order, however it is loaded.

Run as a script it trains for some steps and writes down what it saw:
accelerate launch ... -m tests.training.data.test_mixture_resume FOLDER MAX_STEPS STOP_AFTER NUM_WORKERS BATCH_SIZE
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from kivla import KIVLACollator, KIVLATrainer, KIVLATrainingArguments, LeRobotDataset
from kivla.simulation import make_questions
from kivla.training.data.mixture import Mixture
from kivla.training.data.vlm.dataset import VLMDataset
from kivla.training.data_parallel import ended_process_group
from tests.helpers.patience import PATIENCE
from tests.helpers.policies import CHUNK, DATASET, make_policy, several_cpus_resume

ROOT = Path(__file__).parents[3]
STEPS, BATCH = 6, 4


class Witness(KIVLATrainer):
    """Writes down a fingerprint of every example that it trains on, with the step."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        prints = []
        for ids, mask, pixels in zip(
            *(inputs[n] for n in ("input_ids", "attention_mask", "pixel_values")), strict=True
        ):
            content = ids[mask.bool()].numpy().tobytes() + pixels.numpy().tobytes()
            prints.append(hashlib.md5(content).hexdigest())
        line = {"step": self.state.global_step, "rank": self.args.process_index, "examples": prints}
        with (Path(self.args.output_dir) / f"seen_{self.args.process_index}.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        return super().training_step(model, inputs, num_items_in_batch)


class StopAfter(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step == self.step


def train(folder: Path, stop_after: int, num_workers: int, batch_size: int = BATCH) -> None:
    model, processor = make_policy(folder / f"vlm_{os.environ.get('RANK', 0)}")  # processes do not share a file
    data = [LeRobotDataset(DATASET, CHUNK, episodes=[episode]) for episode in (0, 1)]
    questions = VLMDataset(make_questions(3, seed=0))
    args = KIVLATrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        save_steps=1,
        per_device_train_batch_size=batch_size,
        dataloader_num_workers=num_workers,
        dataloader_pin_memory=False,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    mixture = Mixture([*data, questions], [2, 1, 1], STEPS * batch_size * args.world_size, seed=1)
    collator = KIVLACollator(processor)
    trainer = Witness(model, args, train_dataset=mixture, processing_class=processor, data_collator=collator)
    trainer.add_callback(StopAfter(stop_after))
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder))


def seen(folder: Path) -> list[list[str]]:
    """Examples of every step, over all ranks; of a step that was begun twice, what was seen last."""
    steps: dict[int, dict[int, list[str]]] = {}
    for file in folder.glob("seen_*.jsonl"):
        for line in map(json.loads, file.read_text().splitlines()):
            steps.setdefault(line["step"], {})[line["rank"]] = line["examples"]
    return [[example for rank in sorted(steps[step]) for example in steps[step][rank]] for step in sorted(steps)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    train(folder, STEPS, num_workers=0)
    examples = seen(folder)
    assert len(examples) == STEPS and len({e for step in examples for e in step}) > STEPS
    return examples


@pytest.mark.parametrize(("stop_after", "num_workers"), [(1, 0), (4, 0), (3, 2)])
def test_an_interrupted_run_sees_what_an_undisturbed_one_sees(tmp_path, undisturbed, stop_after, num_workers):
    train(tmp_path, stop_after, num_workers)
    assert len(seen(tmp_path)) == stop_after
    train(tmp_path, STEPS, num_workers)
    assert seen(tmp_path) == undisturbed


@several_cpus_resume
@pytest.mark.slow
def test_two_processes_share_out_the_same_examples(tmp_path, undisturbed):
    """Also where the number of loader workers changes in between."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    for stop_after, num_workers in ((2, 2), (4, 2), (STEPS, 0)):
        script = ["-m", "tests.training.data.test_mixture_resume", str(tmp_path), str(stop_after), str(num_workers)]
        result = subprocess.run(
            [*launch, *script, str(BATCH // 2)],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert result.returncode == 0, result.stderr[-3000:]
    assert [sorted(step) for step in seen(tmp_path)] == [sorted(step) for step in undisturbed]


def test_a_mixture_that_is_too_short_is_refused(tmp_path):
    model, processor = make_policy(tmp_path / "vlm")
    mixture = Mixture([VLMDataset(make_questions(1, seed=0))], [1], 10)
    args = KIVLATrainingArguments(output_dir=str(tmp_path), max_steps=6, per_device_train_batch_size=2, use_cpu=True)
    trainer = KIVLATrainer(model, args, train_dataset=mixture, processing_class=processor)
    with pytest.raises(ValueError, match="has 10 examples, but 6 steps take 12"):
        trainer.train()


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, stop_after, num_workers, batch_size = sys.argv[1:]
    with ended_process_group():
        train(Path(folder), int(stop_after), int(num_workers), int(batch_size))
