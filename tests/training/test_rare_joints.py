"""A joint that rests in 99 % of the frames and then turns: it trains, and the motion survives every step of the way."""

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from kivla import FASTActionTokenizer, KIVLAForActionPrediction, KIVLAProcessor, KIVLATrainer, KIVLATrainingArguments
from kivla.demo.tiny_vlm import save_tiny_vlm
from kivla.processing import Normalizer
from kivla.training.build import normalized_chunks
from kivla.training.data.episode_dataset import EpisodeDataset
from kivla.training.data.robot_dataset import joint_statistics

CHUNK, LENGTH, RARE, GRIPPER = 8, 60, 4, 6
NAMES = ["shoulder", "elbow", "wrist", "tilt", "turntable", "held", "gripper"]
TURN = np.sin(np.linspace(0, np.pi, 20)).astype(np.float32)  # there and back


class RareJoint(EpisodeDataset):
    """Like recordings of a Dobot CR5: in one of 40 episodes the turntable turns by 0.7, and the gripper closes."""

    def __init__(self, name="rare", chunk_size=CHUNK, episodes=None, cameras=None, robot=None):
        lengths = dict.fromkeys(range(40), LENGTH)
        super().__init__(
            name, chunk_size, episodes, cameras, robot, lengths=lengths, all_cameras=["front"], fps=10,
            action_names=NAMES, state_names=NAMES,
        )  # fmt: skip

    def read_vectors(self, episode):
        rng = np.random.default_rng(episode)
        moves = rng.normal(0, 0.05, (LENGTH, len(NAMES))).cumsum(0)
        moves[:, RARE] = rng.choice([-1e-3, 0, 1e-3], LENGTH)
        moves[:, 5] = 0.3 + rng.normal(0, 1e-5, LENGTH)
        moves[:, GRIPPER] = rng.normal(0, 1e-5, LENGTH)
        if episode == 0:
            moves[20:40, RARE] = 0.7 * TURN
            moves[45:55, GRIPPER] = 1.0
        return {"actions": moves, "state": moves}

    def read_images(self, episode, frame):
        return [np.full((8, 8, 3), 4 * frame, np.uint8)]

    def read_text(self, episode, frame):
        return "turn it"


@pytest.fixture(scope="module")
def data():
    return RareJoint()


def test_they_are_named(data):
    joint_statistics([data])
    joint_statistics([data])
    assert sorted(note.split(" (")[0] for note in data.notes) == sorted(
        f"{part}: {text}"
        for part in ("actions", "state")
        for text in ("turntable moves rarely", "gripper moves rarely")
    )
    assert "98 % of its values span 0.29 % of its range, -0.001 to 0.6976)" in data.notes[0]


def test_what_moves_is_normalised_as_it_was(data):
    """By the quantiles, exactly."""
    values = np.concatenate(list(data.vectors("actions"))).astype(np.float64)
    ordinary = [0, 1, 2, 3]
    q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
    expected = ((values - q01) / (q99 - q01 + 1e-6) * 2 - 1)[:, ordinary]
    normalized = Normalizer(data.statistics["actions"]).normalize(values)
    np.testing.assert_allclose(normalized[:, ordinary], expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["quantile", "mean_std"])
def test_the_motion_survives_normalisation_and_fast(data, mode):
    """Error of a whole chunk with the motion: at most 2 % of the joint's range."""
    statistics = data.statistics["actions"]
    chunks = normalized_chunks([data], {None: {"statistics": data.statistics}}, mode)
    fast = FASTActionTokenizer.fit(chunks)
    normalizer = Normalizer(statistics, mode)
    frames = data.episode_range(0)[12:56]
    actions = np.stack([data[frame]["actions"] for frame in frames])
    back = normalizer.unnormalize(np.stack(fast.decode(fast.encode(normalizer.normalize(actions)), CHUNK, len(NAMES))))
    assert fast.num_clipped == 0
    error = np.sqrt(np.mean((back - actions) ** 2, axis=1)) / (statistics["max"] - statistics["min"])
    for joint in (RARE, GRIPPER):
        assert error[:, joint].max() <= 0.02, f"{NAMES[joint]}: {100 * error[:, joint].max():.1f} % of max - min"


def make_trainer(folder, data, fit_on, mode="quantile", **arguments) -> KIVLATrainer:
    save_tiny_vlm(folder / "vlm", image_size=32, patch_size=16, hidden_size=32, num_layers=2)
    sizes = {"chunk_size": CHUNK, "max_action_dim": len(NAMES), "max_state_dim": len(NAMES)}
    settings = {**sizes, "state_encoding": "continuous"}
    robot = {"statistics": data.statistics, "cameras": data.cameras}
    processor = KIVLAProcessor.from_vlm(folder / "vlm", normalization=mode, **robot, **settings)
    torch.manual_seed(0)
    expert = {"hidden_size": 64, "intermediate_size": 192, "initializer_range": 0.125}
    model = KIVLAForActionPrediction.from_vlm(folder / "vlm", expert_config=expert, num_flow_samples=4, **settings)
    args = KIVLATrainingArguments(
        output_dir=str(folder / "run"),
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **arguments,
    )
    return KIVLATrainer(model, args, train_dataset=fit_on, processing_class=processor)


@pytest.mark.parametrize("mode", ["quantile", "mean_std"])
@pytest.mark.parametrize("only", [None, (18, 54)])
def test_the_flow_loss_is_small_from_the_first_step(data, mode, only, tmp_path):
    """Also where every chunk has the rare motion."""
    frames = data if only is None else Subset(data, range(*only))
    trainer = make_trainer(tmp_path, data, frames, mode, max_steps=4, per_device_train_batch_size=16)
    trainer.train()
    losses = [entry["flow_loss"] for entry in trainer.state.log_history if "flow_loss" in entry]
    assert len(losses) == 4 and max(losses) < 3, losses


@pytest.mark.slow
def test_an_overfitted_policy_repeats_the_motion(data, tmp_path):
    frames = data.episode_range(0)
    arguments = {"max_steps": 400, "per_device_train_batch_size": 16, "learning_rate": 3e-3}
    trainer = make_trainer(tmp_path, data, Subset(data, frames), lr_scheduler_type="cosine", **arguments)
    trainer.train()
    model, processor = trainer.model.eval(), trainer.processing_class
    items = [data[frame] for frame in frames[::CHUNK]]
    inputs = processor(
        images=[item["images"] for item in items],
        text=[item["text"] for item in items],
        state=[item["state"] for item in items],
    )
    with torch.no_grad():
        chunks = model.sample_actions(**inputs, generator=torch.Generator().manual_seed(0))
    acted = np.concatenate(list(processor.unnormalize_actions(chunks.numpy())))[:LENGTH]
    recorded = next(iter(data.vectors("actions")))
    for joint, size in ((RARE, 0.7), (GRIPPER, 1.0)):
        error = np.abs(acted[:, joint] - recorded[:, joint])
        assert error.mean() < 0.05 * size, f"{NAMES[joint]}: {error.mean():.3f}, and it moves by {size}"
        assert acted[:, joint].max() > 0.9 * size, f"{NAMES[joint]} moves by {acted[:, joint].max():.3f} only"
