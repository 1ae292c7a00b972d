"""Fine-tune with little memory: low-rank updates (LoRA) of the VLM, and the whole action expert.

    python examples/lora.py
    python examples/lora.py --vlm google/paligemma2-3b-pt-224 --dataset lerobot/your_dataset --chunk_size 50 \
        --expert_width 1024 --max_steps 10000 --bf16

`kivla train --lora_rank 16` does the same from the command line. A quantised VLM (QLoRA) is
`KIVLAForActionPrediction.from_vlm(..., quantization_config=...)`, as for any model of transformers.
"""

import argparse
from pathlib import Path

from peft import get_peft_model

from kivla import (
    BinningActionTokenizer,
    KIVLAForActionPrediction,
    KIVLAProcessor,
    KIVLATrainer,
    KIVLATrainingArguments,
    LeRobotDataset,
)
from kivla.training.lora import load_lora, lora_config


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune a VLM into a robot policy with LoRA.")
    parser.add_argument("--vlm", default="simulation/tabletop_vlm", help="a folder or a Hub id")
    parser.add_argument("--dataset", default="tests/data/lerobot_v3_metaworld", help="a folder or a Hub id")
    parser.add_argument("--output_dir", default="outputs/example_lora")
    parser.add_argument("--chunk_size", type=int, default=8, help="actions that the policy predicts at a time")
    parser.add_argument("--expert_width", type=int, default=64, help="of the action expert; 1024 for a VLM of 3B")
    parser.add_argument("--rank", type=int, default=16, help="rank of the updates")
    parser.add_argument("--max_steps", type=int, default=50)
    parser.add_argument("--bf16", action="store_true", help="mixed precision, for GPUs")
    args = parser.parse_args()

    data = LeRobotDataset(args.dataset, chunk_size=args.chunk_size)
    sizes = {"chunk_size": args.chunk_size, "max_action_dim": data.action_dim}
    robot = {"statistics": data.statistics, "cameras": data.cameras}
    processor = KIVLAProcessor.from_vlm(args.vlm, action_tokenizer=BinningActionTokenizer(), **robot, **sizes)
    width = args.expert_width
    expert = {"hidden_size": width, "intermediate_size": 4 * width, "initializer_range": width**-0.5}
    model = KIVLAForActionPrediction.from_vlm(args.vlm, expert_config=expert, num_flow_samples=4, **sizes)
    model.resize_token_embeddings(processor.vocab_size)  # the action tokens' rows are trained, too

    model = get_peft_model(model, lora_config(model, processor, rank=args.rank))
    model.print_trainable_parameters()
    training = KIVLATrainingArguments(
        args.output_dir,
        max_steps=args.max_steps,
        learning_rate=2e-4,
        bf16=args.bf16,
        logging_steps=max(args.max_steps // 5, 1),
        report_to="none",
    )
    trainer = KIVLATrainer(model, training, train_dataset=data, processing_class=processor)
    trainer.train()

    # The updates alone, on the VLM that they were trained on ...
    adapter, merged = Path(args.output_dir) / "adapter", Path(args.output_dir) / "merged"
    trainer.save_model(str(adapter))
    policy = load_lora(str(adapter))
    # ... or a policy of its own, which needs neither peft nor the VLM's files.
    policy = policy.merge_and_unload()
    policy.save_pretrained(merged)
    processor.save_pretrained(merged)
    print(f"Updates in {adapter}, the whole policy in {merged}")


if __name__ == "__main__":
    main()
