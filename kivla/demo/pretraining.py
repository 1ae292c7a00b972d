"""`kivla pretrain-tiny`: a small VLM that sees the tabletop and answers questions about it, trained from nothing.

It stands for web pretraining where no pretrained weights can be had. The model is a Hugging Face class made from a
config, the data are conversations about pictures, and the training is the plain `transformers.Trainer`.
"""

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import datasets
import torch
import torch.nn.functional as F
from transformers import ProcessorMixin, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from ..command_line import command_line
from ..hub_cards import tabletop_vlm_card
from ..hub_cards.hub_names import public_name
from ..hub_cards.readme import write_readme
from ..processing.chat_format import chat_format
from ..simulation.tabletop.answers import answer_accuracy, format_accuracy
from ..simulation.tabletop.questions import make_questions
from ..simulation.tabletop.tasks import DIRECTIONS, EDGES, PUT_RELATIONS, WORDINGS
from ..training.data.vlm.dataset import text_of
from ..training.evaluation.vlm_answers import answer_of, ask, chat_text
from ..training.muon import MuonWithAdamW
from ..training.run_folder import claim_folder
from ..training.sole_use import sole_use
from .tiny_vlm import ARCHITECTURES, make_tiny_vlm, train_tokenizer

EVALUATION_SEED = 1_000_000  # added to the seed: scenes that were not trained on


@dataclass
class PretrainArguments:
    output_dir: str = field(metadata={"help": "Where checkpoints and the VLM (in `vlm/`) go."})
    architecture: str = field(default="llava", metadata={"help": f"Which class: {', '.join(ARCHITECTURES)}."})
    hidden_size: int = field(default=128, metadata={"help": "Width of the text model and of the vision tower."})
    num_layers: int = field(default=4, metadata={"help": "Layers of the text model."})
    num_vision_layers: int = field(default=3, metadata={"help": "Layers of the vision tower."})
    num_scenes: int = field(default=100_000, metadata={"help": "Pictures to learn from."})
    questions_per_scene: int = field(default=6, metadata={"help": "Questions about each, one conversation."})
    max_steps: int = field(default=6000, metadata={"help": "Optimiser steps."})
    batch_size: int = field(default=32, metadata={"help": "Pictures in a step."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Of Muon and AdamW; falls to 0 as a cosine."})
    save_steps: int = field(default=500, metadata={"help": "Steps between checkpoints; the same command resumes."})
    num_eval_scenes: int = field(default=2000, metadata={"help": "Fresh scenes for the accuracy, six questions each."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, scenes and order."})


def pretrain(args: PretrainArguments) -> None:
    """Train the VLM, or go on where it was interrupted; ask it about fresh scenes, and write its card."""
    # A folder belongs to one set of arguments; a run that was stopped goes on from its checkpoint.
    folder = Path(args.output_dir)
    start = time.time()
    arguments = {n: v for n, v in asdict(args).items() if n not in ("output_dir", "save_steps", "num_eval_scenes")}
    claim_folder(folder, arguments, ("checkpoint-*", "questions_*", "vlm"))
    with sole_use(folder):
        _pretrain(args, folder, start)


def _pretrain(args: PretrainArguments, folder: Path, start: float) -> None:
    questions = load_questions(folder / f"questions_{args.num_scenes}_{args.seed}", args)
    checkpoint = get_last_checkpoint(folder)
    processor, trainer = make_trainer(args, questions, checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint)
    # Saved in half precision, and measured as saved.
    vlm = folder / "vlm"
    minutes = (time.time() - start) / 60
    trainer.model.to(torch.bfloat16).save_pretrained(vlm)
    processor.save_pretrained(vlm)
    trainer.model.float()  # of the rounded weights: what the user will load

    fresh = make_questions(args.num_eval_scenes, EVALUATION_SEED + args.seed)
    table = answer_accuracy(fresh, ask(trainer.model, processor, fresh))
    report = {
        **asdict(args),
        "model_class": type(trainer.model).__name__,
        "parameters": trainer.model.num_parameters(),
        "minutes": minutes,
        "threads": torch.get_num_threads(),
        "accuracy": table,
    }
    (vlm / "accuracy.json").write_text(json.dumps(report, indent=2) + "\n")
    write_readme(vlm / "README.md", tabletop_vlm_card(report, command(args)))
    print(format_accuracy(table))
    print(f"\nThe VLM is in {vlm}")


def command(args: PretrainArguments) -> str:
    """Write the command that makes the same VLM again."""
    return command_line(
        f"kivla pretrain-tiny {shlex.quote(public_name(args.output_dir))}", args, without=["output_dir"]
    )


def load_questions(folder: Path, args: PretrainArguments) -> datasets.Dataset:
    """Conversations about `num_scenes` pictures: made once, then read from `folder`."""
    if not folder.is_dir():
        print(f"Making {args.num_scenes} pictures with questions: {folder}")
        made = make_questions(args.num_scenes, args.seed, multi_turn=True, questions_per_scene=args.questions_per_scene)
        unfinished = folder.with_name(folder.name + ".unfinished")
        made.save_to_disk(unfinished)
        unfinished.rename(folder)
    return datasets.load_from_disk(folder)


def make_trainer(
    args: PretrainArguments, questions: datasets.Dataset, checkpoint: str | None = None
) -> tuple[ProcessorMixin, Trainer]:
    # Tokenizer and VLM are new, and as small as the questions.
    tokenizer = train_tokenizer(_words(questions))
    model, processor = make_tiny_vlm(
        args.architecture,
        tokenizer,
        hidden_size=args.hidden_size,
        num_layers=args.num_layers,
        num_vision_layers=args.num_vision_layers,
        seed=args.seed,
    )
    if checkpoint is not None:
        # Checkpoints name weights as the first release of a class did, and a `Trainer` that resumes does not find them
        model = type(model).from_pretrained(checkpoint, dtype=torch.float32)
    training_args = TrainingArguments(
        output_dir=args.output_dir,
        max_steps=args.max_steps,
        per_device_train_batch_size=args.batch_size,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        logging_steps=50,
        save_steps=args.save_steps,
        save_total_limit=2,
        seed=args.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        report_to="none",
    )
    trainer = Trainer(
        model,
        training_args,
        train_dataset=questions,
        data_collator=ConversationCollator(processor),
        processing_class=processor,
        optimizers=(MuonWithAdamW(model.named_parameters(), lr=args.learning_rate), None),
    )
    return processor, trainer


def _words(questions: datasets.Dataset) -> list[str]:
    """What the tokenizer shall know: the words of questions, answers and instructions."""
    texts = [
        text_of(message)
        for messages in questions.select(range(min(len(questions), 2000)))["messages"]
        for message in messages
    ]
    for wordings in WORDINGS.values():
        for wording in wordings:
            for i in range(200):  # as often as the words of the questions
                relation = PUT_RELATIONS[i % len(PUT_RELATIONS)]
                words = {"direction": DIRECTIONS[i % len(DIRECTIONS)], "edge": EDGES[i % len(EDGES)]}
                texts.append("Task: " + wording.format(x="the object", anchor="the object", relation=relation, **words))
    return texts


class ConversationCollator:
    """Rows of `images` and `messages` -> a batch with labels on what the assistant says.

    Args:
        processor: a VLM's own. With its chat template the whole conversation is one sequence; without one (PaliGemma)
            the first question is a prefix, and its answer the suffix.
    """

    def __init__(self, processor: ProcessorMixin):
        self.processor = processor
        if processor.chat_template:
            chat = chat_format(processor, 1)
            ids = [
                processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (chat.after, chat.closing)
            ]
            self.opening, self.closing = torch.tensor(ids[0]), ids[1][0]

    def __call__(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        options = {"padding": True, "return_tensors": "pt"}
        images = [row["images"] for row in rows]
        if not self.processor.chat_template:
            text = [chat_text(self.processor, row["messages"][:1]) for row in rows]
            suffix = [answer_of(row["messages"]) for row in rows]
            return self.processor(text=text, images=images, suffix=suffix, **options)
        text = [chat_text(self.processor, row["messages"]) for row in rows]
        batch = self.processor(text=text, images=images, add_special_tokens=False, padding_side="right", **options)
        batch["labels"] = torch.where(self._says(batch["input_ids"]), batch["input_ids"], -100)
        return batch

    def _says(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, S): from behind the opening of a turn of the assistant up to and with the token that closes it."""
        places, size = torch.arange(tokens.shape[1]), len(self.opening)
        begins = F.pad((tokens.unfold(1, size, 1) == self.opening).all(-1), (size, 0))[:, : tokens.shape[1]]
        closed = F.pad(tokens == self.closing, (1, 0))[:, : tokens.shape[1]]  # by the token before
        last_begin, last_end = (torch.where(found, places, -1).cummax(1).values for found in (begins, closed))
        return (last_begin >= last_end) & (last_begin >= 0)
