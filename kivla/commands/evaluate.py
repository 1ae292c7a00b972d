"""`kivla evaluate`: what a policy predicts against what was demonstrated, and what it still knows of language.

The first in figures and on one page of plots; the second by texts and questions, and beside the VLM that it was.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel

from ..command_line import parse, policy_pipeline
from ..named_models import find_vlm, model_type
from ..processing import KIVLAProcessor
from ..processing.vlm_processor import load_vlm_processor
from ..training.evaluation.policy_evaluation import (
    draw,
    format_answers,
    format_report,
    measure_answers,
    measure_chunks,
    predict,
)
from ..training.evaluation.text_nll import (
    NUM_TEXTS,
    TEXT_LENGTH,
    HeldOutTexts,
    TextScores,
    format_texts,
    summarize_texts,
    text_nll,
)
from ..training.evaluation.tokenizer_error import measure
from ..training.policy_data_options import PolicyDataOptions
from ..training.policy_options import refuse
from ..training.run_folder import check_for_results

# What an option is about that is of no use without it
_OF_TEXTS = ("text_column", "text_split", "text_config", "num_texts", "text_length")
_OF_ALL = ("trust_remote_code", "dtype", "output_dir")
_NOT_OF_CHUNKS = ("policy", "dataset", "before", "vlm_dataset", "batch_size", "text_dataset", *_OF_TEXTS, *_OF_ALL)


@dataclass
class EvaluateArguments(PolicyDataOptions):
    policy: str = field(metadata={"help": "Trained KIVLA policy: a Hub id or a folder. Or a VLM, without --dataset."})
    dataset: str | None = field(
        default=None, metadata={"help": "LeRobot dataset to measure on, best on held-out episodes."}
    )
    num_frames: int = field(default=256, metadata={"help": "Frames to predict at, spread evenly."})
    batch_size: int = field(default=16, metadata={"help": "Observations, questions or texts at once."})
    acts_by: str | None = field(default=None, metadata={"help": "flow or tokens; the policy's own way."})
    text_dataset: str | None = field(
        default=None,
        metadata={"help": "Held-out texts to predict: a Hub id, a folder of `datasets`, JSON or Parquet."},
    )
    text_column: str | None = field(default=None, metadata={"help": "Column of the texts; text, or the only one."})
    text_split: str = field(default="train", metadata={"help": "Split of them."})
    text_config: str | None = field(default=None, metadata={"help": "Configuration of it, where it has several."})
    num_texts: int = field(default=NUM_TEXTS, metadata={"help": "So many of them, spread evenly."})
    text_length: int = field(default=TEXT_LENGTH, metadata={"help": "Tokens of each text, from its beginning."})
    vlm_dataset: str | None = field(
        default=None,
        metadata={"help": "Questions to ask as well: a Hub id, a folder of `datasets` with images and messages; JSON."},
    )
    before: str | None = field(
        default=None, metadata={"help": "The VLM that the policy was made of: the same texts and questions for it."}
    )
    num_plots: int = field(default=4, metadata={"help": "Chunks to draw, spread evenly."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the policy or VLM."})
    output_dir: str = field(default="outputs/evaluate", metadata={"help": "Where figures and plots go."})

    def __post_init__(self):
        super().__post_init__()
        if not (self.dataset or self.text_dataset or self.vlm_dataset):
            raise ValueError("There is nothing to measure on: give --dataset, --text_dataset or --vlm_dataset.")
        given = [entry.name for entry in fields(self) if getattr(self, entry.name) != entry.default]
        if self.dataset is None:
            refuse({name: "there is no --dataset" for name in given if name not in _NOT_OF_CHUNKS})
        if self.text_dataset is None:
            refuse({name: "there is no --text_dataset" for name in given if name in _OF_TEXTS})
        if self.before is not None and not (self.text_dataset or self.vlm_dataset):
            refuse({"before": "it is compared in texts and answers, and there is no --text_dataset or --vlm_dataset"})


class Speaker(NamedTuple):
    """A VLM, or a policy that was one, as it predicts texts and answers questions; its processor is a policy's."""

    model: PreTrainedModel
    processor: KIVLAProcessor

    @classmethod
    def load(cls, name: str, trust: bool, device: torch.device | str, dtype: torch.dtype | str = "auto") -> "Speaker":
        """A VLM or a policy of this name; its own code is run if it is to be trusted."""
        name = find_vlm(name)
        if model_type(name, "policy or VLM") == "kivla":
            pipe = policy_pipeline(name, trust, device=device, dtype=dtype)
            return cls(pipe.model, pipe.processor)
        code = {"trust_remote_code": trust}
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, **code).to(device)
        processor = KIVLAProcessor(load_vlm_processor(name, **code), state_encoding="none", normalization="none")
        return cls(model, processor)

    def read(self, texts: HeldOutTexts, batch_size: int) -> TextScores:
        processor = self.processor
        options = {"action_token_ids": processor.action_token_ids, "start": processor.document_start}
        return text_nll(self.model, processor.tokenizer, texts.texts, texts.text_length, batch_size, **options)

    def answer(self, folder: str, batch_size: int) -> dict:
        return measure_answers(self.model, self.processor.vlm_processor, folder, batch_size)


def run(arguments: Sequence[str]) -> None:
    (args,) = parse((EvaluateArguments,), arguments, prog="kivla evaluate", positional="policy")
    check_for_results(args.output_dir, policy=args.policy, dataset=args.dataset)
    if args.dataset is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        speaker = Speaker.load(args.policy, args.trust_remote_code, device, args.dtype)
        report, chunks = asdict(args), None
    else:
        pipe = policy_pipeline(args.policy, args.trust_remote_code, dtype=args.dtype)
        chunks, data, report = act(pipe, args)
        speaker = Speaker(pipe.model, pipe.processor)
    report |= know(speaker, args)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluate.json").write_text(json.dumps(report, indent=2) + "\n")
    lines = [] if chunks is None else [format_report(report)]
    if report["texts"] is not None:
        lines.append(f"{args.text_dataset}, {format_texts(report['texts'])}")
    answers = {"": report["answers"], "before: ": report["answers_before"]}
    lines += [f"{name}{format_answers(row)}" for name, row in answers.items() if row is not None]
    files = [folder / "evaluate.json"]
    if chunks is not None:
        files.append(folder / "evaluate.png")
        draw(files[-1], chunks, report, data.fps, args.num_plots)
    print("\n\n".join([*lines, "\n".join(map(str, files))]))


def act(pipe, args: EvaluateArguments) -> tuple:
    """Predict at frames of the demonstrations: chunks, the dataset, and the figures for the report."""
    options = args.acting_options(pipe)
    data = args.open_for(pipe, args.policy, args.dataset)
    if args.acts_by is not None:
        options["acts_by"] = args.acts_by
    chunks = predict(pipe, data, args.num_frames, args.batch_size, **options)
    acts_by = args.acts_by or pipe.model.config.acts_by
    report = {**asdict(args), "acts_by": acts_by, **measure_chunks(chunks, data), "tokenizer": None}
    if pipe.processor.action_tokenizer is not None:
        robot = pipe.processor.robot(args.robot)
        learned = robot.units.learned(chunks["demonstrated"], chunks["states"])
        report["tokenizer"] = measure(pipe.processor.action_tokenizer, learned, robot.actions)
    return chunks, data, report


def know(speaker: Speaker, args: EvaluateArguments) -> dict:
    """Let it predict texts and answer questions, and the VLM before as well: the figures for the report."""
    report = {"texts": None, "answers": None, "answers_before": None}
    # Both compute in the same type: the difference is of what was learned.
    before = None
    if args.before is not None:
        before = Speaker.load(args.before, args.trust_remote_code, speaker.model.device, speaker.model.dtype)
    if args.text_dataset is not None:
        where = (args.text_dataset, args.text_column, args.text_split, args.text_config)
        texts = HeldOutTexts.load(*where, args.num_texts, args.text_length)
        scores = speaker.read(texts, args.batch_size)
        scores_before = None if before is None else before.read(texts, args.batch_size)
        report["texts"] = {
            **summarize_texts(scores, scores_before),
            "text_by_text": scores.to_dict(),
            "text_by_text_before": None if scores_before is None else scores_before.to_dict(),
        }
    if args.vlm_dataset is not None:
        report["answers"] = speaker.answer(args.vlm_dataset, args.batch_size)
        if before is not None:
            report["answers_before"] = before.answer(args.vlm_dataset, args.batch_size)
    return report
