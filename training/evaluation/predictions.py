"""Action chunks that a policy predicts on a dataset, beside those that were demonstrated."""

from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ...processing.observation_history import newest_state
from ...processing.relative_actions import nearest_turn
from ..data.example_order import fold_seed
from ..data.robot_dataset import RobotDataset, evenly_spread
from .action_error import error_of_chunks
from .plots import plot_chunks


def predict_dataset(
    pipe, data: RobotDataset, num_frames: int, batch_size: int = 16, seed: int | None = None, **options
) -> dict:
    """Predict at evenly spread frames and compare with what was demonstrated.

    Args:
        data: looks back as far as the policy does (`look_back`).
        seed: of the noise, which is every frame's own: one noise for all would be a part of the error. None: not fixed.
        **options: of the pipeline.

    Returns:
        `episodes` and `frames` (n,) and `texts`; `predicted` and `demonstrated` (n, H, D) in robot units (predicted
        angles that wrap are written as the turn nearest to the demonstrated ones), `is_pad` (n, H) bool;
        `mean_action` (D,), that of the policy's training data, and `mean_chunks` (n, H, D) of it; `decoded` (n,) bool,
        False where action tokens were no chunk (`predicted` is NaN there); `states` (n, Ds), None without any; and over
        all other real values `action_mae`, `mean_action_mae` (always the mean action) and `times_better_than_mean`.

    Raises:
        ValueError: no chunk decoded.
    """
    # Predict, batch by batch; the policy sees the observation alone.
    frames = evenly_spread(len(data), num_frames)
    predicted, examples, observed = [], [], ("images", "cameras", "text", "state", "robot")
    for start in tqdm(range(0, len(frames), batch_size), desc="Predicting", leave=False):
        numbers = [int(i) for i in frames[start : start + batch_size]]
        batch = [data[i] for i in numbers]
        observations = [{key: e[key] for key in observed if key in e} for e in batch]
        if seed is not None:
            observations = [{**o, "seed": fold_seed(seed, i)} for o, i in zip(observations, numbers, strict=True)]
        predicted += [result["actions"] for result in pipe(observations, **options)]
        examples += batch
    # Sequences of action tokens that are no chunk count as failures, and have no error.
    decoded = np.array([chunk is not None for chunk in predicted])
    if not decoded.any():
        raise ValueError(
            f"None of the {len(decoded)} sequences of action tokens is a chunk of {data.chunk_size} x "
            f"{data.action_dim} values: there is nothing to measure. Train the policy longer, or let it act by flow."
        )
    missing = np.full((data.chunk_size, data.action_dim), np.nan, dtype=np.float32)
    predicted = np.stack([missing if chunk is None else chunk for chunk in predicted])
    demonstrated = np.stack([e["actions"] for e in examples])
    is_pad = np.stack([e["action_is_pad"] for e in examples])
    # Beside a guess that looks at nothing: the average action, held for the whole chunk.
    robot = pipe.processor.robot(data.robot)
    mean = robot.mean_action if robot.statistics else None
    if mean is None:  # the policy does not know its data's
        mean = data.statistics["actions"]["mean"]
    real = ~is_pad & decoded[:, None]
    predicted, guessed = (
        nearest_turn(np.broadcast_to(actions, demonstrated.shape), demonstrated, robot.units.relative)
        for actions in (predicted, mean)
    )
    error, mean_error = (error_of_chunks(actions, demonstrated, real)["mae"] for actions in (predicted, guessed))
    return {
        "episodes": [e["episode_index"] for e in examples],
        "frames": [e["frame_index"] for e in examples],
        "predicted": predicted,
        "decoded": decoded,
        "states": np.stack([newest_state(e["state"]) for e in examples]) if data.state_dim else None,
        "demonstrated": demonstrated,
        "is_pad": is_pad,
        "mean_action": mean,
        "mean_chunks": guessed,
        "texts": [e["text"] for e in examples],
        "action_mae": error,
        "mean_action_mae": mean_error,
        "times_better_than_mean": mean_error / error,
    }


def draw(path: Path, results: dict, data: RobotDataset, count: int) -> None:
    """Draw some of the predicted chunks against the demonstrated ones."""
    chosen, above = spread_out(len(results["frames"]), count), titles(results)
    plot_chunks(
        path,
        results["predicted"][chosen],
        results["demonstrated"][chosen],
        data.fps,
        [above[i] for i in chosen],
        data.action_names,
    )


def titles(results: dict) -> list[str]:
    """What stands over each chunk in a picture."""
    places = zip(results["texts"], results["episodes"], results["frames"], strict=True)
    return [f"{text}\nepisode {episode}, frame {frame}" for text, episode, frame in places]


def spread_out(length: int, count: int) -> np.ndarray:
    """Choose from the middle of each of `count` equal stretches: the ends of episodes are mostly padding."""
    return ((np.arange(count) + 0.5) * length / count).astype(int)
