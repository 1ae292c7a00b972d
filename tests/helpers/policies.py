"""A tiny policy on the real dataset of the tests, for the trainer's tests."""

from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version

from kivla import (
    FASTActionTokenizer,
    KIVLAForActionPrediction,
    KIVLAProcessor,
    KIVLATrainer,
    KIVLATrainingArguments,
    LeRobotDataset,
)
from kivla.demo.tiny_vlm import save_tiny_vlm
from kivla.processing import Normalizer

DATASET = Path(__file__).parents[1] / "data" / "lerobot_v3_metaworld"
CHUNK = 6
SIZES = {"chunk_size": CHUNK, "max_action_dim": 5, "max_state_dim": 6}
SHORT_RUN = {  # arguments of a run of a few steps, of which only the log is looked at
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}

several_cpus_resume = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"),
    reason="transformers 5.17 restores the optimiser of several CPU processes to 'cpu:0', which torch refuses",
)


@cache
def dataset() -> LeRobotDataset:
    return LeRobotDataset(DATASET, chunk_size=CHUNK)


@cache
def _action_tokenizer() -> FASTActionTokenizer:
    chunks = Normalizer(dataset().statistics["actions"]).normalize(dataset().action_chunks(182))
    return FASTActionTokenizer.fit(chunks, vocab_size=128)


def make_policy(folder, **config) -> tuple[KIVLAForActionPrediction, KIVLAProcessor]:
    """A policy of about 0.1M parameters on a tiny PaliGemma that is written to `folder`."""
    save_tiny_vlm(folder, image_size=32, patch_size=16, hidden_size=32, num_layers=2)
    encoding = {name: config[name] for name in ("state_encoding",) if name in config}
    processor = KIVLAProcessor.from_vlm(
        folder,
        action_tokenizer=_action_tokenizer(),
        statistics=dataset().statistics,
        cameras=dataset().cameras,
        **SIZES,
        **encoding,
    )
    torch.manual_seed(0)
    model = KIVLAForActionPrediction.from_vlm(
        folder, expert_config={"hidden_size": 32, "intermediate_size": 64}, **SIZES, **config
    )
    return model, processor


def awaken(model: KIVLAForActionPrediction) -> None:
    """Larger random weights in the expert: adaRMS starts as the identity, which would hide the observation."""
    for module in model.expert.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.3)


def save_policy(folder: Path) -> Path:
    """A whole policy in `folder/policy`, whose actions depend on what it observes."""
    model, processor = make_policy(folder / "vlm")
    model.resize_token_embeddings(processor.vocab_size)
    awaken(model)
    model.save_pretrained(folder / "policy")
    processor.save_pretrained(folder / "policy")
    return folder / "policy"


def make_trainer(folder, model=None, processor=None, collator=None, **arguments) -> KIVLATrainer:
    if model is None:
        model, processor = make_policy(Path(folder) / "vlm")
    settings = {
        **SHORT_RUN,
        "max_steps": 6,
        "per_device_eval_batch_size": 16,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    args = KIVLATrainingArguments(output_dir=str(Path(folder) / "run"), **{**settings, **arguments})
    return KIVLATrainer(
        model,
        args,
        train_dataset=dataset(),
        eval_dataset=dataset(),
        processing_class=processor,
        data_collator=None if collator is None else collator(processor),
    )


def losses(trainer: KIVLATrainer) -> list[tuple[float, float]]:
    return [(e["token_loss"], e["flow_loss"]) for e in trainer.state.log_history if "token_loss" in e]
