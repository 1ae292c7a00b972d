"""Turn a VLM into a robot policy, in Python.

    kivla record outputs/demonstrations --num_episodes 1000 --action_noise 0.6 0.6 0    # data of the simulated table
    python examples/train.py

With a pretrained VLM and data of your own robot, on a GPU:

    python examples/train.py --vlm google/paligemma2-3b-pt-224 --dataset lerobot/your_dataset --chunk_size 50 \
        --expert_width 1024 --max_steps 30000 --learning_rate 5e-5 --bf16

`kivla train` does the same from the command line, with many more options.
"""

import argparse

from kivla import (
    FASTActionTokenizer,
    KIVLAForActionPrediction,
    KIVLAProcessor,
    KIVLATrainer,
    KIVLATrainingArguments,
    LeRobotDataset,
)
from kivla.processing import Normalizer


def main() -> None:
    parser = argparse.ArgumentParser(description="Turn a VLM into a robot policy.")
    parser.add_argument("--vlm", default="simulation/tabletop_vlm", help="a folder or a Hub id")
    parser.add_argument("--dataset", default="outputs/demonstrations", help="a LeRobot dataset: a folder or a Hub id")
    parser.add_argument("--output_dir", default="outputs/example_policy")
    parser.add_argument("--chunk_size", type=int, default=8, help="actions that the policy predicts at a time")
    parser.add_argument("--expert_width", type=int, default=64, help="of the action expert; 1024 for a VLM of 3B")
    parser.add_argument("--max_steps", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--bf16", action="store_true", help="mixed precision, for GPUs")
    args = parser.parse_args()

    data = LeRobotDataset(args.dataset, chunk_size=args.chunk_size)
    sizes = {"chunk_size": args.chunk_size, "max_action_dim": data.action_dim}

    # FAST, the action tokenizer, is fitted on normalised chunks of the data.
    normalize = Normalizer(data.statistics["actions"]).normalize
    fast = FASTActionTokenizer.fit(normalize(data.action_chunks(10_000)), vocab_size=256, scale=5)
    processor = KIVLAProcessor.from_vlm(
        args.vlm, action_tokenizer=fast, statistics=data.statistics, cameras=data.cameras, **sizes
    )
    width = args.expert_width
    expert = {"hidden_size": width, "intermediate_size": 4 * width, "initializer_range": width**-0.5}
    model = KIVLAForActionPrediction.from_vlm(args.vlm, expert_config=expert, num_flow_samples=4, **sizes)

    training = KIVLATrainingArguments(
        args.output_dir,
        max_steps=args.max_steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        muon=True,
        lr_scheduler_type="cosine",
        warmup_steps=args.max_steps // 20,
        bf16=args.bf16,
        logging_steps=max(args.max_steps // 20, 1),
        report_to="none",
    )
    trainer = KIVLATrainer(model, training, train_dataset=data, processing_class=processor)
    trainer.train()
    trainer.save_model()  # model and processor


if __name__ == "__main__":
    main()
