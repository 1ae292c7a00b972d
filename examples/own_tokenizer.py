"""Teach the VLM action tokens of your own kind. Here: a few way-points of each chunk, and straight lines between them.

    python examples/own_tokenizer.py

The class is all that `kivla train` needs, in the repository's root:

    kivla train --action_tokenizer examples.own_tokenizer:WaypointTokenizer --vlm tabletop \
        --dataset tests/data/lerobot_v3_metaworld --chunk_size 16 --expert_hidden_size 64 \
        --expert_intermediate_size 256 --max_steps 20 --output_dir outputs/example_own_tokenizer

For other programs to load the policy, the package with the class names it in its pyproject.toml:

    [project.entry-points."kivla.action_tokenizers"]
    waypoints = "my_package.tokens:WaypointTokenizer"
"""

import argparse

import numpy as np

from kivla import (
    ActionDecodingFailure,
    BinningActionTokenizer,
    KIVLAForActionPrediction,
    KIVLAProcessor,
    KIVLATrainer,
    KIVLATrainingArguments,
    LeRobotDataset,
)
from kivla.processing import ActionTokenizer, Normalizer


class WaypointTokenizer(ActionTokenizer):
    """Every `stride`-th action and the last one, each value in one of 256 bins over [-1, 1]."""

    kind = "waypoints"  # saved with a policy, to find this class again
    vocab_size = 256  # tokens that the VLM gets

    def __init__(self, stride: int = 3):
        self.stride = stride

    def encode_chunk(self, chunk: np.ndarray) -> tuple[list[int], int]:
        """(H, D) normalised actions -> codes, and how many values had to be clipped."""
        waypoints = chunk[self._steps(len(chunk))]  # (n, D)
        clipped = waypoints.clip(-1, 1)
        codes = np.rint((clipped + 1) / 2 * (self.vocab_size - 1)).astype(int)
        return codes.ravel().tolist(), int((clipped != waypoints).sum())

    def decode_codes(self, codes: list[int], chunk_size: int, action_dim: int) -> np.ndarray | ActionDecodingFailure:
        """Codes -> (H, D), or why they are no chunk: the VLM may have said too few."""
        steps = self._steps(chunk_size)
        if len(codes) != len(steps) * action_dim:
            return ActionDecodingFailure("value_count", len(steps) * action_dim, len(codes))
        waypoints = np.reshape(codes, (len(steps), action_dim)) / (self.vocab_size - 1) * 2 - 1
        lines = [np.interp(np.arange(chunk_size), steps, values) for values in waypoints.T]
        return np.stack(lines, axis=1).astype(np.float32)

    def max_tokens(self, chunk_size: int, action_dim: int) -> int:
        return len(self._steps(chunk_size)) * action_dim

    def to_dict(self) -> dict:
        return {"kind": self.kind, "stride": self.stride}

    @classmethod
    def from_dict(cls, values: dict) -> "WaypointTokenizer":
        return cls(values["stride"])

    def _steps(self, chunk_size: int) -> np.ndarray:
        return np.union1d(np.arange(0, chunk_size, self.stride), chunk_size - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a policy with action tokens of your own kind.")
    parser.add_argument("--vlm", default="simulation/tabletop_vlm", help="a folder or a Hub id")
    parser.add_argument("--dataset", default="tests/data/lerobot_v3_metaworld", help="a folder or a Hub id")
    parser.add_argument("--output_dir", default="outputs/example_own_tokenizer")
    parser.add_argument("--max_steps", type=int, default=20)
    args = parser.parse_args()

    data = LeRobotDataset(args.dataset, chunk_size=16)
    chunks = Normalizer(data.statistics["actions"]).normalize(data.action_chunks(10_000))
    for tokenizer in (BinningActionTokenizer(), WaypointTokenizer()):
        cost = tokenizer.roundtrip_error(chunks)
        print(f"{tokenizer.kind:10} {cost['tokens_mean']:.0f} tokens per chunk, error {cost['rmse']:.3f} of [-1, 1]")

    sizes = {"chunk_size": 16, "max_action_dim": data.action_dim}
    robot = {"statistics": data.statistics, "cameras": data.cameras}
    processor = KIVLAProcessor.from_vlm(args.vlm, action_tokenizer=tokenizer, **robot, **sizes)
    model = KIVLAForActionPrediction.from_vlm(args.vlm, expert_config={"hidden_size": 64}, **sizes)
    training = KIVLATrainingArguments(args.output_dir, max_steps=args.max_steps, report_to="none")
    trainer = KIVLATrainer(model, training, train_dataset=data, processing_class=processor)
    trainer.train()
    trainer.save_model()

    # A saved policy names its tokenizer by `kind`, and loads where the class is known.
    print(type(KIVLAProcessor.from_pretrained(args.output_dir).action_tokenizer).__name__)


if __name__ == "__main__":
    main()
