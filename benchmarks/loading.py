"""Whether data keeps up: loading a batch beside a training step on it, and beside decoding its pictures."""

import io
from functools import partial

import numpy as np
import torch
from PIL import Image

from kivla.demo.stages import TabletopArguments
from kivla.training.data.collator import KIVLACollator
from kivla.training.muon import MuonWithAdamW
from kivla.training.parts import freeze_vision

from .demo import demonstrated
from .policies import millions
from .report import Comparison, Measurement
from .timing import interleaved


def measure(quick: bool) -> Measurement:
    args = TabletopArguments(num_demonstrations=2 if quick else 100, batch_size=4 if quick else 32)
    with demonstrated(args) as (data, model, processor):
        freeze_vision(model)  # as in the demo
        optimizer = MuonWithAdamW(model.named_parameters(), lr=1e-9)
        collate = KIVLACollator(processor)
        chosen = np.random.default_rng(0).integers(len(data), size=args.batch_size).tolist()
        examples = [data[i] for i in chosen]
        batch = collate(examples)
        files = [_png(example["images"][0]) for example in examples]
        chunks = np.stack([example["actions"] for example in examples])
        columns = {name: [example[name] for example in examples] for name in ("text", "state", "actions")}
        columns["images"] = [[None] for _ in examples]  # a camera that is missing
        measurement = Measurement(
            "Loading data",
            f"Demonstrations of the demo: {args.batch_size} random frames of {len(data)} with one picture of "
            f"{examples[0]['images'][0].shape[1]} x {examples[0]['images'][0].shape[0]} pixels (PNG), a chunk of "
            f"{args.chunk_size} actions, FAST tokens, prompt; read and collated in this process. The step is the "
            f"demo's: {millions(model)} parameters, {args.num_flow_samples} noise draws, optimiser.",
        )
        for file, example in zip(files, examples, strict=True):
            measurement.check_equal(
                "A decoded picture and the dataset's",
                torch.from_numpy(_decode(file).astype(np.float32)),
                torch.from_numpy(example["images"][0].astype(np.float32)),
            )
        del measurement.checks[1:]
        load, step = "loading a batch", "a training step on it"
        decode, process, encode = "decoding its pictures", "processing it without pictures", "FAST encoding alone"
        calls = {
            load: lambda: collate([data[i] for i in chosen]),
            step: partial(train, model, optimizer, batch),
            decode: lambda: [_decode(file) for file in files],
            process: lambda: processor(**columns),
            encode: lambda: processor.action_tokenizer.encode(processor.robot().actions.normalize(chunks)),
        }
        seconds = interleaved(measurement.title, calls, repetitions=2 if quick else 20)
    per_second = args.batch_size / np.median(seconds[process])
    measurement.setting += f" Without pictures the processor makes {per_second:,.0f} examples a second."
    measurement.comparisons = [
        Comparison(a, seconds[a], b, seconds[b]) for a, b in ((load, step), (load, decode), (process, encode))
    ]
    return measurement


def _png(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG")
    return stream.getvalue()


def _decode(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def train(model, optimizer, batch) -> None:
    optimizer.zero_grad()
    model(**batch).loss.backward()
    optimizer.step()
