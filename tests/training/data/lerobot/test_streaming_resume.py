"""A run on streamed videos that is interrupted ends as an undisturbed one, and asks only for what it goes on with."""

import json

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from kivla import KIVLATrainer, KIVLATrainingArguments, LeRobotDataset
from kivla.cli import main
from kivla.demo.tiny_vlm import save_tiny_vlm
from kivla.training.data.example_order import fold_seed
from tests.commands.test_commands import TINY
from tests.helpers.lerobot_folder import write_folder
from tests.helpers.policies import CHUNK, dataset, make_policy

LENGTHS, BATCH, STEPS, STOP_AFTER = (4, 4, 4, 4), 2, 8, 5  # two steps for each video


class StopAfter(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step == STOP_AFTER


def train(folder, data, callbacks=(), num_workers=0) -> dict[str, torch.Tensor]:
    """The weights after training; what is in the folder goes on."""
    model, processor = make_policy(folder / "vlm")
    args = KIVLATrainingArguments(
        output_dir=str(folder / "run"),
        max_steps=STEPS,
        save_steps=1,
        per_device_train_batch_size=BATCH,
        dataloader_num_workers=num_workers,
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = KIVLATrainer(model, args, train_dataset=data, processing_class=processor, callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder / "run") if (folder / "run").is_dir() else None)
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def test_an_interrupted_run_ends_as_an_undisturbed_one(hub, tmp_path):
    keys = ("action", "observation.state", dataset().cameras[0])
    hub.upload("user/small", write_folder(tmp_path / "small", lengths=LENGTHS, keys=keys, dim=4))
    videos = {name: len(content) for name, content in hub.repos["user/small"]["main"].items() if name.endswith(".mp4")}

    def opened():
        return LeRobotDataset("user/small", CHUNK, streaming=True, stream_gb=2 * max(videos.values()) / 1e9)

    undisturbed = train(tmp_path / "undisturbed", opened())
    data = opened()
    train(tmp_path / "interrupted", data, [StopAfter()], num_workers=2)
    for path in data._stream.files():  # as on another machine
        path.unlink()
    hub.log.clear()
    ended = train(tmp_path / "interrupted", opened(), num_workers=2)
    log = [path for method, path in hub.log if method == "GET" and path.endswith(".mp4")]
    assert ended.keys() == undisturbed.keys()
    assert all(torch.equal(weight, undisturbed[name]) for name, weight in ended.items())

    left = list(data.file_windows.epoch(fold_seed(42, 0)))[STOP_AFTER * BATCH :]
    episodes = dict.fromkeys(item // LENGTHS[0] for item in left)
    assert len(episodes) == 2, "half of the third video is left, and the fourth"
    assert sorted(path[-10:-4] for path in log) == sorted(f"{episode:06d}" for episode in episodes)


def test_the_command_fetches_only_what_it_trains_and_evaluates_on(hub, tmp_path, capsys):
    hub.upload("user/long", write_folder(tmp_path / "long", lengths=[4] * 40, dim=4))
    save_tiny_vlm(tmp_path / "vlm", image_size=32, patch_size=16, hidden_size=32, num_layers=2)
    settings = {**TINY, "vlm": tmp_path / "vlm", "dataset": "user/long", "output_dir": tmp_path / "policy"}
    settings |= {"max_steps": 2, "per_device_train_batch_size": 2, "streaming": "true", "stream_gb": 0.02}
    main(["train", *(word for name, value in settings.items() for word in (f"--{name}", str(value)))])
    assert "Videos are streamed, and at most 0.02 GB of them kept" in capsys.readouterr().out
    assert "Videos are streamed" in json.dumps(json.loads((tmp_path / "policy/training_facts.json").read_text()))
    videos = {path for method, path in hub.log if method == "GET" and path.endswith(".mp4")}
    assert 0 < len(videos) <= 25, "of 40: the first check, two steps, eight for evaluation, eight chunks to show"
