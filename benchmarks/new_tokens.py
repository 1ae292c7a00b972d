"""`python -m benchmarks.new_tokens`: how do brand-new action tokens learn while the VLM rests?

Warm-ups on the tabletop's demonstrations, in which only the new tokens' rows learn, or the projector, too: at several
learning rates, and from several starts of the rows. Of each the token loss by step, what texts cost afterwards (nats a
token, and how many of them are because action tokens take probability), and the norm of the new rows' first gradient.

Every row goes to OUTPUT/row_*.json when it is measured; the same command goes on where it was stopped.
"""

import argparse
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from kivla import KIVLATrainer, KIVLATrainingArguments, LeRobotDataset
from kivla.demo.stages import TabletopArguments, once, options, record
from kivla.named_models import TABLETOP_VLM
from kivla.training.build import BuiltPolicy, build_for_stage
from kivla.training.data.robot_dataset import evenly_spread
from kivla.training.evaluation.text_nll import HeldOutTexts, text_nll
from kivla.training.new_token_start import aim_new_tokens
from kivla.training.parts import vocabulary_weights
from kivla.training.recipes import Stage

from .options import Distinct, claim, count, natural

PROJECTOR_RATE = 3e-4
LAST = 10  # steps that the last loss is the mean of


def sampled(old: torch.Tensor, count: int) -> torch.Tensor:
    """Rows with the mean and the covariance of the others."""
    return old.mean(0) + torch.randn(count, len(old)) @ (old - old.mean(0)) / len(old) ** 0.5


def small(old: torch.Tensor, count: int) -> torch.Tensor:
    """Small random rows around zero."""
    return 0.1 * old.std() * torch.randn(count, old.shape[1])


MEAN, AIMED = "mean", "aimed"  # what `resize_token_embeddings` does; and `aim_new_tokens` after it
STARTS = {function.__name__: function for function in (sampled, small)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.new_tokens", description=__doc__)
    parser.add_argument("--vlm", default=str(TABLETOP_VLM), help="(default: the tabletop's small one)")
    parser.add_argument(
        "--rates", type=float, nargs="+", action=Distinct, default=[3e-4, 1e-3, 3e-3, 1e-2], help="of the new rows"
    )
    parser.add_argument(
        "--starts", nargs="+", action=Distinct, choices=(MEAN, AIMED, *STARTS), default=[MEAN], help="of the new rows"
    )
    parser.add_argument(
        "--parts", nargs="+", action=Distinct, default=["new_tokens", "projector"], help="(default: both)"
    )
    parser.add_argument("--max_steps", type=count, default=60, help="(default: 60)")
    parser.add_argument("--batch_size", type=count, default=4, help="(default: 4)")
    parser.add_argument(
        "--seeds",
        type=natural,
        nargs="+",
        action=Distinct,
        default=[0],
        help="of rows and data (default: 0)",
    )
    parser.add_argument("--num_demonstrations", type=count, default=200, help="(default: 200)")
    parser.add_argument("--texts", help="held-out texts: see `load_texts`")
    parser.add_argument("--num_texts", type=count, default=32, help="(default: 32)")
    parser.add_argument("--output", type=Path, default=Path("outputs/new_tokens"), help="where everything goes")
    given = parser.parse_args(arguments)
    facts = {
        name: getattr(given, name)
        for name in ("vlm", "max_steps", "batch_size", "num_demonstrations", "texts", "num_texts")
    }
    claim(parser, given.output, facts, ("*.json", "demonstrations"))
    demonstrations = given.output / "demonstrations"
    record(demonstrations, TabletopArguments(num_demonstrations=given.num_demonstrations))
    rows = []
    for seed, start, rate in itertools.product(given.seeds, given.starts, given.rates):
        path = given.output / f"row_{start}_{rate:g}_{seed}.json"
        rows.append(once(path, lambda cell=(start, rate, seed): measure(given, demonstrations, *cell)))
        print(format_rows(rows[-1:], with_head=len(rows) == 1), flush=True)


def measure(given: argparse.Namespace, demonstrations: Path, start: str, rate: float, seed: int) -> dict:
    """One warm-up."""
    data = LeRobotDataset(demonstrations, TabletopArguments.chunk_size)
    torch.manual_seed(seed)
    policy = options(data, TabletopArguments(recipe="pi0-fast"))
    built = build_for_stage(Stage(tuple(given.parts), flow_loss_weight=0.0), [data], policy, vlm=given.vlm)
    texts = None if given.texts is None else HeldOutTexts.load(given.texts, num_texts=given.num_texts)
    args = KIVLATrainingArguments(
        output_dir=str(given.output / "run"),
        max_steps=given.max_steps,
        per_device_train_batch_size=given.batch_size,
        learning_rate=PROJECTOR_RATE,
        new_token_learning_rate=rate,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        restart=True,
        seed=seed,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = KIVLATrainer(built.model, args, train_dataset=data, processing_class=built.processor)
    begin(trainer, start)
    before = None if texts is None else language(built, texts)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "token_loss" in entry]
    return {
        "start": start,
        "rate": rate,
        "seed": seed,
        "token_loss": [entry["token_loss"] for entry in log],
        "first_norm": log[0]["new_tokens_grad_norm"],
        "unigram_entropy": unigram_entropy(trainer),
        "texts_before": before,
        "texts_after": None if texts is None else language(built, texts),
    }


@torch.no_grad()
def begin(trainer: KIVLATrainer, start: str, num_examples: int = 16) -> None:
    """Draw the new rows of embedding and output layer."""
    model, data, ids = trainer.model, trainer.train_dataset, torch.as_tensor(trainer.processing_class.action_token_ids)
    if start == AIMED:
        examples = [data[i] for i in evenly_spread(len(data), num_examples).tolist()]
        aim_new_tokens(model, [trainer.data_collator(examples)], ids)
    for weight in vocabulary_weights(model) if start in STARTS else ():
        weight[ids] = STARTS[start](weight[: model.rows_of_base], len(ids))


def language(built: BuiltPolicy, texts: HeldOutTexts) -> dict:
    """Nats a token of the texts, and how many of them are because of action tokens."""
    ids = built.processor.action_token_ids.tolist()
    scores = text_nll(built.model, built.processor.tokenizer, texts.texts, texts.text_length, action_token_ids=ids)
    return {"nll": scores.mean, "of_action_tokens": float(scores.action_nll.sum() / scores.tokens.sum())}


def unigram_entropy(trainer: KIVLATrainer, num_frames: int = 256) -> float:
    """The token loss of a model that has learned how frequent each supervised token is, and no more."""
    counts: Counter[int] = Counter()
    for index in evenly_spread(len(trainer.train_dataset), num_frames).tolist():
        labels = trainer.data_collator([trainer.train_dataset[index]])["labels"]
        counts.update(labels[labels != -100].tolist())
    shares = np.array(list(counts.values())) / counts.total()
    return float(-(shares * np.log(shares)).sum())


def format_rows(rows: list[dict], with_head: bool = True) -> str:
    lines = []
    if with_head:
        lines = [f"{'start':13}{'rate':>8}{'seed':>6}{'first':>8}{'last':>8}{'unigrams':>10}{'norm':>8}  texts"]
    for row in rows:
        loss = row["token_loss"]
        texts = ""
        if row["texts_after"] is not None:
            before, after = row["texts_before"], row["texts_after"]
            texts = f"{before['nll']:.3f} -> {after['nll']:.3f} ({after['of_action_tokens']:.3f} action tokens)"
        lines.append(
            f"{row['start']:13}{row['rate']:8g}{row['seed']:6}{loss[0]:8.2f}{np.mean(loss[-LAST:]):8.2f}"
            f"{row['unigram_entropy']:10.2f}{row['first_norm']:8.1f}  {texts}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
