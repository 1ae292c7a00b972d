"""`python -m benchmarks.text_weight`: how hard should plain text pull while a policy learns its action tokens?

The recipe insulated on the tabletop's demonstrations, without texts and with them at several weights: `--weights` are
`text_loss_weight:anchor_weight`, and "none" is no text at all. Of each the token loss of the actions by step, and what
held-out texts cost before and afterwards (nats a token). And once, before any step, the norms of both gradients on the
VLM, and the weight that texts would have if they shared one mean over tokens with the actions.

Every row goes to OUTPUT/row_*.json when it is measured; the same command goes on where it was stopped.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from kivla import KIVLACollator, KIVLATrainer, KIVLATrainingArguments, LeRobotDataset
from kivla.demo.stages import TabletopArguments, once, options, record
from kivla.named_models import TABLETOP_VLM
from kivla.training.build import BuiltPolicy, build_for_stage
from kivla.training.data.mixture import Mixture
from kivla.training.data.vlm.texts import TextDataset
from kivla.training.evaluation.text_nll import HeldOutTexts, text_nll
from kivla.training.recipes import INSULATED

from .options import Distinct, claim, count

NONE = "none"
LAST = 10  # steps that the last losses are the mean of


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.text_weight", description=__doc__)
    parser.add_argument("--vlm", default=str(TABLETOP_VLM), help="(default: the tabletop's small one)")
    parser.add_argument("--texts", required=True, help="to train on: see `load_texts`")
    parser.add_argument("--held_out_texts", required=True, help="to measure on, of another source")
    parser.add_argument(
        "--weights",
        nargs="+",
        action=Distinct,
        default=[NONE, "1:0", "10:0", "0:1"],
        help="(default: none 1:0 10:0 0:1)",
    )
    parser.add_argument("--share", type=float, default=0.5, help="of texts among the examples (default: 0.5)")
    parser.add_argument("--text_length", type=count, default=96, help="tokens of a text (default: 96)")
    parser.add_argument("--num_texts", type=count, default=32, help="held-out ones (default: 32)")
    parser.add_argument("--max_steps", type=count, default=60, help="(default: 60)")
    parser.add_argument("--batch_size", type=count, default=4, help="(default: 4)")
    parser.add_argument("--learning_rate", type=float, default=3e-4, help="(default: 3e-4)")
    parser.add_argument("--num_demonstrations", type=count, default=200, help="(default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--output", type=Path, default=Path("outputs/text_weight"), help="where everything goes")
    given = parser.parse_args(arguments)
    facts = {name: value for name, value in vars(given).items() if name not in ("weights", "output")}
    claim(parser, given.output, facts, ("*.json", "demonstrations"))
    demonstrations = given.output / "demonstrations"
    record(demonstrations, TabletopArguments(num_demonstrations=given.num_demonstrations))
    start = once(given.output / "start.json", lambda: measure_start(given, demonstrations))
    print(
        f"Before training the gradient norm is {start['of_actions']:.1f} of actions, {start['of_texts']:.1f} of texts, "
        f"and held-out texts cost {start['nll']:.3f} nats a token.\n"
        f"One mean over the tokens of both would be text_loss_weight = {start['one_mean']:.1f}.\n"
    )
    print("| text : anchor weight | token loss of actions, last steps | text | KL | held-out texts, nats a token |")
    print("|---|--:|--:|--:|--:|")
    for weights in given.weights:
        path = given.output / f"row_{weights.replace(':', '_')}.json"
        row = once(path, lambda weights=weights: measure(given, demonstrations, weights))
        cells = [row["weights"], *(last(row[name]) for name in ("token_loss", "text_loss", "anchor_loss"))]
        print(f"| {' | '.join(cells)} | {row['nll']:.3f} |", flush=True)


def last(losses: Sequence[float | None]) -> str:
    """The mean over the last steps that have one."""
    known = [loss for loss in losses[-LAST:] if loss is not None]
    return f"{np.mean(known):.3f}" if known else ""


def build(given: argparse.Namespace, demonstrations: Path) -> tuple[LeRobotDataset, BuiltPolicy]:
    data = LeRobotDataset(demonstrations, TabletopArguments.chunk_size)
    torch.manual_seed(given.seed)
    policy = options(data, TabletopArguments(recipe="insulated"))
    return data, build_for_stage(INSULATED, [data], policy, vlm=given.vlm)


def make_trainer(given: argparse.Namespace, demonstrations: Path, weights: str) -> KIVLATrainer:
    data, built = build(given, demonstrations)
    text, anchor = (1.0, 0.0) if weights == NONE else map(float, weights.split(":"))
    if weights != NONE:
        texts = TextDataset.load(given.texts, built.processor, length=given.text_length)
        data = Mixture([data, texts], [1 - given.share, given.share], given.max_steps * given.batch_size, given.seed)
    args = KIVLATrainingArguments(
        output_dir=str(given.output / "run"),
        max_steps=given.max_steps,
        per_device_train_batch_size=given.batch_size,
        learning_rate=given.learning_rate,
        text_loss_weight=text,
        anchor_weight=anchor,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=5,
        logging_steps=1,
        save_strategy="no",
        restart=True,
        seed=given.seed,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    return KIVLATrainer(built.model, args, train_dataset=data, processing_class=built.processor)


def measure_start(given: argparse.Namespace, demonstrations: Path) -> dict[str, float]:
    """Gradient norms on the VLM before training, and the weight that one mean over all tokens would give to texts."""
    data, built = build(given, demonstrations)
    texts = TextDataset.load(given.texts, built.processor, length=given.text_length)
    collate, n = KIVLACollator(built.processor), given.batch_size
    batches = {"of_actions": collate([data[i * len(data) // n] for i in range(n)])}
    batches["of_texts"] = collate([texts[i] for i in range(n)])
    start = {}
    for name, batch in batches.items():
        built.model.zero_grad()
        built.model(**{key: values for key, values in batch.items() if key != "robot"}).token_loss.backward()
        gradients = [p.grad for p in built.model.vlm.parameters() if p.grad is not None]
        start[name] = float(torch.stack([gradient.norm() for gradient in gradients]).norm())
    tokens = {name: int((batch["labels"][:, 1:] != -100).sum()) for name, batch in batches.items()}
    ratio = tokens["of_texts"] / tokens["of_actions"]
    built.model.zero_grad()
    return {
        **start,
        "one_mean": ratio * given.share / (1 - given.share),
        "nll": held_out(given, built.model, built.processor),
    }


def measure(given: argparse.Namespace, demonstrations: Path, weights: str) -> dict:
    """One run."""
    trainer = make_trainer(given, demonstrations, weights)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    losses = {
        name: [entry.get(name) for entry in log] for name in ("token_loss", "text_loss", "anchor_loss", "flow_loss")
    }
    return {"weights": weights, **losses, "nll": held_out(given, trainer.model, trainer.processing_class)}


def held_out(given: argparse.Namespace, model, processor) -> float:
    texts = HeldOutTexts.load(given.held_out_texts, num_texts=given.num_texts)
    return text_nll(model, processor.tokenizer, texts.texts, given.text_length).mean


if __name__ == "__main__":
    main()
