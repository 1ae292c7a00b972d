"""`kivla train`: fine-tune a VLM into a policy on a LeRobot dataset."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from torch.utils.data import Subset
from transformers.trainer_utils import get_last_checkpoint

from . import (
    BinningActionTokenizer,
    FASTActionTokenizer,
    KIVLAForActionPrediction,
    KIVLAProcessor,
    KIVLATrainer,
    KIVLATrainingArguments,
    LeRobotDataset,
)
from .cli import parse
from .plots import plot_training_curves
from .processing import Normalizer, load_action_tokenizer


@dataclass
class ModelArguments:
    """Which VLM, which expert, and how they are trained together. See `KIVLAConfig` and `KIVLAExpertConfig`."""

    vlm: str | None = field(default=None, metadata={"help": "VLM to start from: a Hub id or a folder."})
    policy: str | None = field(default=None, metadata={"help": "Trained KIVLA policy to go on from, instead of --vlm."})
    chunk_size: int = field(default=50, metadata={"help": "Actions in a chunk (H)."})
    max_action_dim: int = field(default=32, metadata={"help": "Width of a chunk; shorter actions are padded."})
    max_state_dim: int = field(default=32, metadata={"help": "Width of a continuous state."})
    state_encoding: str = field(default="text", metadata={"help": "text (in the prompt), continuous or none."})
    backbone_gradient_scale: float = field(
        default=0.0, metadata={"help": "0 = knowledge insulation, 1 = joint training, between = partly insulated."}
    )
    flow_loss_weight: float = field(default=1.0, metadata={"help": "loss = token_loss + this * flow_loss."})
    num_flow_samples: int = field(default=4, metadata={"help": "Noise draws for each backbone pass."})
    num_inference_steps: int = field(default=10, metadata={"help": "Euler steps."})
    expert_hidden_size: int = field(default=1024, metadata={"help": "Width of the action expert."})
    expert_intermediate_size: int = field(default=4096, metadata={"help": "Width of its MLP."})
    expert_num_attention_heads: int | None = field(default=None, metadata={"help": "Query heads; the backbone's."})
    expert_layer_stride: int = field(default=1, metadata={"help": "Read every k-th backbone layer."})
    expert_time_conditioning: str = field(default="adarms", metadata={"help": "adarms (pi0.5) or concat (pi0)."})
    dtype: str = field(
        default="float32", metadata={"help": "Type of the weights. Keep float32 and add --bf16 for mixed precision."}
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, flash_attention_2, ..."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the VLM."})

    def config_kwargs(self) -> dict:
        shared = ("chunk_size", "max_action_dim", "max_state_dim", "state_encoding")
        ours = (*shared, "backbone_gradient_scale", "flow_loss_weight", "num_flow_samples", "num_inference_steps")
        expert = {f.name.removeprefix("expert_"): getattr(self, f.name) for f in fields(self) if "expert_" in f.name}
        return {**{name: getattr(self, name) for name in ours}, "expert_config": expert}


@dataclass
class DataArguments:
    """Which demonstrations, and how they become inputs."""

    dataset: str = field(metadata={"help": "LeRobot dataset (v2.1 or v3.0): a Hub id or a folder."})
    episodes: list[int] | None = field(default=None, metadata={"help": "Episodes to use; all but --eval_episodes."})
    eval_episodes: list[int] | None = field(default=None, metadata={"help": "Episodes held out for evaluation."})
    max_eval_frames: int = field(default=512, metadata={"help": "Evaluate on at most so many frames of each set."})
    cameras: list[str] | None = field(default=None, metadata={"help": "Cameras to use, in this order; all."})
    normalization: str = field(default="quantile", metadata={"help": "quantile, mean_std or none."})
    action_tokenizer: str = field(
        default="fast", metadata={"help": "fast (fitted on the data), bins, none, or a FAST folder or Hub id."}
    )
    action_vocab_size: int = field(default=1024, metadata={"help": "Codes of a fitted FAST tokenizer."})
    action_scale: float = field(default=10.0, metadata={"help": "Resolution of a fitted FAST tokenizer."})
    action_token_placement: str = field(default="added", metadata={"help": "added (new tokens) or tail (openpi)."})
    action_token_skip: int = field(default=128, metadata={"help": "For tail: 128 (openpi) or 1152 (spares <loc>)."})
    max_length: int | None = field(default=None, metadata={"help": "Longest allowed sequence; longer is an error."})


def run(arguments: Sequence[str]) -> None:
    model_args, data_args, args = parse(
        (ModelArguments, DataArguments, KIVLATrainingArguments), arguments, prog="kivla train"
    )
    trainer = make_trainer(model_args, data_args, args)
    last_checkpoint = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or last_checkpoint)
    trainer.save_model()
    trainer.save_state()
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        folder = Path(args.output_dir)
        plot_training_curves(folder / "training.png", trainer.state.log_history)
        (folder / "eval_results.json").write_text(json.dumps(metrics, indent=2) + "\n")
        print_results(metrics, folder)


def make_trainer(model_args: ModelArguments, data_args: DataArguments, args: KIVLATrainingArguments) -> KIVLATrainer:
    """Datasets, model, processor and trainer of a run.

    Raises:
        ValueError: neither or both of `vlm` and `policy` are given, or data and policy do not fit each other.
    """
    if (model_args.vlm is None) == (model_args.policy is None):
        raise ValueError("Give either --vlm (a VLM to start from) or --policy (a KIVLA policy to go on from).")
    if model_args.policy is not None:
        processor = KIVLAProcessor.from_pretrained(model_args.policy)
        chunk_size, cameras = processor.chunk_size, data_args.cameras or processor.cameras
    else:
        chunk_size, cameras = model_args.chunk_size, data_args.cameras
    data, evaluation = load_datasets(data_args, chunk_size, cameras)
    if model_args.policy is not None:
        model = KIVLAForActionPrediction.from_pretrained(model_args.policy, dtype=model_args.dtype)
    else:
        processor = make_processor(model_args, data_args, data)
        model = KIVLAForActionPrediction.from_vlm(
            model_args.vlm,
            dtype=model_args.dtype,
            attn_implementation=model_args.attn_implementation,
            trust_remote_code=model_args.trust_remote_code,
            **model_args.config_kwargs(),
        )
    return KIVLATrainer(model, args, train_dataset=data, eval_dataset=evaluation, processing_class=processor)


def load_datasets(
    data_args: DataArguments, chunk_size: int, cameras: Sequence[str] | None
) -> tuple[LeRobotDataset, dict[str, Subset]]:
    """Training data, and what to evaluate on: some of the training frames, and held-out episodes if there are any."""
    held_out = data_args.eval_episodes or []
    episodes = data_args.episodes
    if held_out:
        every = LeRobotDataset(data_args.dataset, chunk_size, episodes, cameras).episodes
        episodes = [episode for episode in every if episode not in held_out]
    data = LeRobotDataset(data_args.dataset, chunk_size, episodes, cameras)
    evaluation = {"train": _spread(data, data_args.max_eval_frames)}
    if held_out:
        evaluation["held_out"] = _spread(
            LeRobotDataset(data_args.dataset, chunk_size, held_out, data.cameras), data_args.max_eval_frames
        )
    return data, evaluation


def _spread(data: LeRobotDataset, count: int) -> Subset:
    return Subset(data, np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int)).tolist())


def make_processor(model_args: ModelArguments, data_args: DataArguments, data: LeRobotDataset) -> KIVLAProcessor:
    """The VLM's processor with this robot's statistics, and an action tokenizer fitted on its chunks."""
    return KIVLAProcessor.from_vlm(
        model_args.vlm,
        action_tokenizer=make_action_tokenizer(data_args, data),
        statistics=data.statistics,
        chunk_size=model_args.chunk_size,
        max_action_dim=model_args.max_action_dim,
        max_state_dim=model_args.max_state_dim,
        state_encoding=model_args.state_encoding,
        normalization=data_args.normalization,
        cameras=data.cameras,
        action_token_placement=data_args.action_token_placement,
        action_token_skip=data_args.action_token_skip,
        max_length=data_args.max_length,
    )


def make_action_tokenizer(data_args: DataArguments, data: LeRobotDataset):
    if data_args.action_tokenizer == "none":
        return None
    if data_args.action_tokenizer == "bins":
        return BinningActionTokenizer()
    if data_args.action_tokenizer != "fast":
        return load_action_tokenizer(data_args.action_tokenizer)
    return fit_fast_tokenizer(data, data_args.normalization, data_args.action_vocab_size, data_args.action_scale)


def fit_fast_tokenizer(data: LeRobotDataset, normalization: str, vocab_size: int, scale: float) -> FASTActionTokenizer:
    """A FAST tokenizer for the chunks of a dataset; prints what it costs and what it loses."""
    normalizer = Normalizer(data.statistics["actions"], normalization)
    chunks = np.stack([normalizer.normalize(chunk) for chunk in data.action_chunks(max_chunks=50_000)])
    tokenizer = FASTActionTokenizer.fit(chunks, vocab_size=vocab_size, scale=scale)
    report = tokenizer.roundtrip_error(chunks)
    print(
        f"FAST fitted on {len(chunks)} chunks: {report['tokens_mean']:.1f} tokens a chunk (at most "
        f"{report['tokens_max']}), root-mean-square error {report['rmse']:.4f} of the normalised range [-1, 1]"
    )
    return tokenizer


def print_results(metrics: dict[str, float], folder: Path) -> None:
    """The evaluation as a table, in robot units."""
    sets = [n.removeprefix("eval_").removesuffix("_action_mae") for n in metrics if n.endswith("_action_mae")]
    sets = [name for name in sets if not name.endswith("mean")]
    print(f"\n{'evaluated on':14}{'mean abs. error':>18}{'of the mean action':>22}{'times better':>16}")
    for name in sets:
        error, mean = metrics[f"eval_{name}_action_mae"], metrics[f"eval_{name}_mean_action_mae"]
        print(f"{name:14}{error:18.4f}{mean:22.4f}{mean / error:16.2f}")
    print(f"\nPolicy, eval_results.json and training.png are in {folder}")
