"""`kivla teach-vlm`: a pretrained VLM learns to see the tabletop, and keeps what it knows.

First the projector alone, on the words for what patches show; then it and low-rank updates (LoRA) of the language
model, on questions about pictures mixed with plain texts. The updates are merged: what is left is an ordinary VLM.
"""

import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import datasets
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel
from torch.utils.data import Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor, ProcessorMixin, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from ..command_line import command_line
from ..hub_cards.hub_names import public_name
from ..modeling_kivla.next_token import next_token_loss, supervised_tokens, token_losses
from ..simulation.tabletop.answers import answer_accuracy, format_accuracy
from ..simulation.tabletop.questions import make_questions
from ..training.data.vlm.text_rows import load_texts
from ..training.evaluation.text_nll import text_tokens
from ..training.evaluation.vlm_answers import ask
from ..training.lora import add_lora
from ..training.run_folder import claim_folder, write_json
from ..training.sole_use import sole_use
from .pretraining import EVALUATION_SEED, ConversationCollator
from .word_alignment import align_words


@dataclass
class TeachArguments:
    output_dir: str = field(metadata={"help": "Where checkpoints and the VLM (in `vlm/`) go."})
    vlm: str = field(metadata={"help": "A LLaVA, as `kivla assemble-vlm` makes it: Hub id or folder."})
    text_dataset: str | None = field(
        default=None, metadata={"help": "Plain texts to replay: a Hub id, a folder of `datasets`, JSON or Parquet."}
    )
    text_share: float = field(default=0.25, metadata={"help": "Share of the rows that are texts, where there are any."})
    text_length: int = field(default=128, metadata={"help": "Tokens of a text, at most."})
    kinds: list[str] = field(
        default_factory=lambda: ["place", "at", "color", "shape", "held", "gripper_place"],
        metadata={"help": "Kinds of questions."},
    )
    num_scenes: int = field(default=20_000, metadata={"help": "Pictures to learn from."})
    alignment_steps: int = field(default=300, metadata={"help": "Steps of the projector alone on words; seconds."})
    max_steps: int = field(default=1500, metadata={"help": "Steps with the language model."})
    batch_size: int = field(default=2, metadata={"help": "Rows in a step: pictures and texts."})
    learning_rate: float = field(default=4e-4, metadata={"help": "Of the updates (AdamW); falls to 0 as a cosine."})
    projector_learning_rate: float = field(default=3e-5, metadata={"help": "Of the projector beside them."})
    lora_rank: int = field(default=16, metadata={"help": "Rank of the updates, on all linear layers."})
    bf16: bool = field(
        default=False,
        metadata={
            "help": "Mixed precision: float32 weights, layers in bfloat16. Faster where there are such products."
        },
    )
    save_steps: int = field(default=100, metadata={"help": "Steps between checkpoints; the same command resumes."})
    num_eval_scenes: int = field(default=200, metadata={"help": "Fresh scenes for the accuracy."})
    seed: int = field(default=0, metadata={"help": "Seed of scenes, order and updates."})


def teach(args: TeachArguments) -> None:
    """Teach the VLM, or go on where it was interrupted; ask it about fresh scenes."""
    folder = Path(args.output_dir)
    start = time.time()
    arguments = {n: v for n, v in asdict(args).items() if n not in ("output_dir", "save_steps", "num_eval_scenes")}
    claim_folder(folder, arguments, ("checkpoint-*", "aligned", "updates", "vlm"))
    with sole_use(folder):
        _teach(args, folder, start)


def _teach(args: TeachArguments, folder: Path, start: float) -> None:
    processor = AutoProcessor.from_pretrained(args.vlm)
    # The projector alone; then all together.
    if not (folder / "aligned").is_dir():
        vlm = AutoModelForImageTextToText.from_pretrained(args.vlm, dtype=torch.float32)
        share = align_words(vlm, processor, num_steps=args.alignment_steps, seed=args.seed)
        print(f"Of the objects' patches {share:.1%} are nearest to the word for their colour.")
        save_vlm(vlm, processor, folder / "aligned")
    vlm = AutoModelForImageTextToText.from_pretrained(folder / "aligned", dtype=torch.float32)
    trainer = make_trainer(args, vlm, processor)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder))
    save_updates(trainer.model, folder / "updates")
    save_vlm(trainer.model.merge_and_unload(), processor, folder / "vlm")
    # Measured as saved.
    vlm = AutoModelForImageTextToText.from_pretrained(folder / "vlm", dtype=torch.float32)
    fresh = make_questions(args.num_eval_scenes, EVALUATION_SEED + args.seed, kinds=args.kinds)
    table = answer_accuracy(fresh, ask(vlm, processor, fresh, batch_size=32))
    report = {
        **asdict(args),
        "command": command(args),
        "minutes": (time.time() - start) / 60,
        "threads": torch.get_num_threads(),
        "accuracy": table,
    }
    write_json(folder / "vlm" / "accuracy.json", report)
    print(format_accuracy(table))
    print(f"\nThe VLM is in {folder / 'vlm'}")


def command(args: TeachArguments) -> str:
    """Write the command that makes the same VLM again."""
    return command_line(f"kivla teach-vlm {shlex.quote(public_name(args.output_dir))}", args, without=["output_dir"])


def save_vlm(vlm, processor: ProcessorMixin, folder: Path) -> None:
    """In half precision, and whole or not there."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    vlm.to(torch.bfloat16).save_pretrained(unfinished)
    processor.save_pretrained(unfinished)
    unfinished.rename(folder)


def save_updates(model: PeftModel, folder: Path) -> None:
    """What was learned alone, a few megabytes beside the VLM: projector and low-rank updates, in half precision.

    The model then has them rounded alike, so that whoever merges what is saved gets the same VLM.
    """
    for parameter in (p for p in model.parameters() if p.requires_grad):
        parameter.data = parameter.data.bfloat16().float()
    model.peft_config["default"].base_model_name_or_path = None  # a folder of this machine
    weights = {name: weight.bfloat16() for name, weight in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=weights, save_embedding_layers=False)
    (folder / "README.md").unlink()  # peft's form for a card, with nothing filled in


def make_trainer(args: TeachArguments, vlm, processor: ProcessorMixin) -> "TeachingTrainer":
    options = {"kinds": args.kinds, "questions_per_scene": len(args.kinds)}
    questions = make_questions(args.num_scenes, args.seed, multi_turn=True, **options)
    texts = args.text_dataset and load_texts(args.text_dataset)
    torch.manual_seed(args.seed)
    lora = LoraConfig(
        r=args.lora_rank,
        lora_alpha=2 * args.lora_rank,
        target_modules="all-linear",
        exclude_modules=r".*(vision_tower|multi_modal_projector).*",
        modules_to_save=["multi_modal_projector"],
    )
    model = add_lora(vlm, lora)
    projector = [p for name, p in model.named_parameters() if p.requires_grad and "multi_modal_projector" in name]
    updates = [p for name, p in model.named_parameters() if p.requires_grad and "multi_modal_projector" not in name]
    optimizer = torch.optim.AdamW(
        [{"params": updates, "lr": args.learning_rate}, {"params": projector, "lr": args.projector_learning_rate}],
        betas=(0.9, 0.99),
        weight_decay=0.0,
    )
    training_args = TrainingArguments(
        output_dir=args.output_dir,
        max_steps=args.max_steps,
        per_device_train_batch_size=args.batch_size,
        lr_scheduler_type="cosine",
        warmup_steps=min(30, args.max_steps // 10),
        logging_steps=10,
        save_steps=args.save_steps,
        save_total_limit=2,
        seed=args.seed,
        bf16=args.bf16,
        use_cpu=not torch.accelerator.is_available(),  # else the library refuses bf16 there
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        report_to="none",
    )
    return TeachingTrainer(
        model,
        training_args,
        train_dataset=MixedRows(questions, texts, args.text_share if texts else 0.0),
        data_collator=LessonCollator(processor, args.text_length),
        processing_class=processor,
        optimizers=(optimizer, None),
    )


class MixedRows(Dataset):
    """All questions, and so many texts between them that these are the given share; texts repeat if they must."""

    def __init__(self, questions: datasets.Dataset, texts: datasets.Dataset | None, text_share: float):
        self.questions, self.texts = questions, texts
        self.num_texts = round(len(questions) * text_share / (1 - text_share))

    def __len__(self) -> int:
        return len(self.questions) + self.num_texts

    def __getitem__(self, index: int) -> dict:
        if index < len(self.questions):
            return self.questions[index]
        return self.texts[(index - len(self.questions)) % len(self.texts)]


class LessonCollator:
    """Rows with `messages` and rows with `text` -> one batch, and `is_text` (B,) that tells them apart."""

    def __init__(self, processor: ProcessorMixin, text_length: int):
        self.tokenizer, self.text_length = processor.tokenizer, text_length
        self.conversations = ConversationCollator(processor)

    def __call__(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        talks = [row for row in rows if "messages" in row]
        texts = text_tokens(self.tokenizer, [row["text"] for row in rows if "text" in row], self.text_length)
        parts = [dict(self.conversations(talks))] if talks else []
        for ids in texts:
            tokens = torch.tensor([ids])
            parts.append({"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens})
        longest = max(part["input_ids"].shape[1] for part in parts)
        padding = {"input_ids": self.tokenizer.pad_token_id, "attention_mask": 0, "labels": -100}
        batch = {
            name: torch.cat([F.pad(p[name], (0, longest - p[name].shape[1]), value=value) for p in parts])
            for name, value in padding.items()
        }
        if talks:
            batch["pixel_values"] = parts[0]["pixel_values"]
        batch["is_text"] = torch.tensor([False] * len(talks) + [True] * len(texts))
        return batch


class TeachingTrainer(Trainer):
    """Loss: the mean over answers plus that over texts. Logits are made where something is learned alone."""

    model: PeftModel

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        labels, is_text = inputs.pop("labels"), inputs.pop("is_text")
        vlm = self.accelerator.unwrap_model(model).get_base_model()
        hidden = vlm.model(**inputs).last_hidden_state  # (B, S, W)
        loss = hidden.new_zeros(())
        for name, rows in (("answers", ~is_text), ("texts", is_text)):
            if rows.any():
                places, targets = supervised_tokens(labels.where(rows[:, None], -100), labels)
                part = next_token_loss(token_losses(vlm.lm_head(hidden.flatten(0, 1)[places]), targets))
                self.sums.setdefault(name, []).append(part.item())
                loss = loss + part
        return loss

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.sums: dict[str, list[float]] = {}

    def log(self, logs: dict, *args, **kwargs) -> None:
        if "loss" in logs:
            logs = {**logs, **{name: round(sum(v) / len(v), 4) for name, v in self.sums.items() if v}}
            self.sums = {}
        super().log(logs, *args, **kwargs)
