"""Published checkpoints, on a machine that has the Hub and room: do they come through, and do they act the same?

    python -m benchmarks.real_weights                      # π0.5 (base, LIBERO), PaliGemma 2, SmolVLM, FAST
    python -m benchmarks.real_weights --only fast smolvlm
    python -m benchmarks.real_weights --dry_run            # tiny twins with random weights: shows that this code runs

It prints a table that can be pasted into an issue. A row that fails says why, and the next one runs. What could not be
run here is "not run", never "pass". π0.5 takes 15 GB of disk for each of two copies, and 16 GB of memory beside the
reference's own 16; weights are read as they are, everything is computed in float32.
"""

import argparse
import math
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from huggingface_hub import snapshot_download
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from kivla import BinningActionTokenizer, FASTActionTokenizer, KIVLAForActionPrediction, KIVLAProcessor
from kivla.conversion.convert import ConvertArguments, convert
from kivla.conversion.pi_weights import kivla_name, lerobot_name
from kivla.conversion.weight_files import WEIGHTS, Weights
from kivla.hub_cards.environment_info import environment_info
from kivla.training.evaluation.vlm_answers import chat_text
from tests.helpers import pi_reference

# Name -> where it is published, and what kind of thing it is
SOURCES = {
    "pi05_base": ("lerobot/pi05_base", "policy"),
    "pi05_libero": ("lerobot/pi05_libero_base", "policy"),
    "paligemma2": ("google/paligemma2-3b-pt-224", "vlm"),
    "smolvlm": ("HuggingFaceTB/SmolVLM2-500M-Video-Instruct", "vlm"),
    "fast": ("physical-intelligence/fast", "fast"),
}
# The matrix of words: openpi's files have the first name, LeRobot's both
HEAD = pi_reference.VLM + "lm_head.weight"
EMBEDDING = pi_reference.VLM + "model.language_model.embed_tokens.weight"
NUM_STEPS = 2  # Euler steps of a comparison: the formulas run the whole prefix in each
CHUNK, ACTION_DIM = 8, 7  # of a new policy on a VLM


class NotRun(Exception):
    """A check that cannot be made here; the message says what is missing."""


class Failed(Exception):
    """A check that was made and does not hold; the message has the numbers."""


@dataclass
class Source:
    """`folder` is where it lies, `revision` the commit of the Hub."""

    name: str
    kind: str
    folder: Path
    revision: str
    device: str
    is_twin: bool = False
    trust_remote_code: bool = False


@dataclass
class Row:
    """`outcome` is "pass", "FAIL" or "not run"."""

    source: str
    check: str
    outcome: str
    numbers: str
    seconds: float = 0.0
    memory: float = 0.0  # GB


# ------------------------------------------------------------------------------------------------------------- policies
def check_policy(source: Source, work: Path) -> Iterable[tuple[str, Callable[[], str]]]:
    converted = work / source.name
    yield "conversion, key by key", lambda: conversion(source, converted)
    yield "loads whole", lambda: loads_whole(converted)
    yield "actions beside the formulas", lambda: beside_formulas(source, converted)
    yield "actions beside LeRobot's code", lambda: beside_lerobot(source, converted)
    yield "actions beside openpi's code", lambda: beside_openpi()
    yield "a chunk of 10 steps", lambda: chunk_time(source, converted)


def conversion(source: Source, converted: Path) -> str:
    report = convert(ConvertArguments(source=str(source.folder), output_dir=str(converted)))
    before, after = Weights(source.folder), Weights(converted / WEIGHTS)
    accounted = report.used.keys() | report.dropped.keys()
    if lost := sorted(before.shapes.keys() ^ accounted):
        raise Failed(f"{len(lost)} keys are neither used nor dropped, e.g. {lost[:3]}")
    if extra := sorted(after.shapes.keys() ^ set(report.used.values())):
        raise Failed(f"{len(extra)} keys were written that no key became, e.g. {extra[:3]}")
    other = [key for key, name in report.used.items() if not torch.equal(before[key], after[name])]
    if other:
        raise Failed(f"{len(other)} of {len(report.used)} weights are not what the file holds, e.g. {other[:3]}")
    reasons = "; ".join(f"{key}: {why}" for key, why in report.dropped.items()) or "none"
    missing = "; ".join(f"{key}: {stand_in}" for key, stand_in in report.missing.items()) or "none"
    return f"{len(report.used)} used, equal bit for bit; {len(report.dropped)} dropped ({reasons}); missing: {missing}"


def loads_whole(converted: Path) -> str:
    model, info = KIVLAForActionPrediction.from_pretrained(converted, output_loading_info=True)
    if left := {name: sorted(keys)[:3] for name, keys in info.items() if keys}:
        raise Failed(f"left over: {left}")
    return f"{model.num_parameters() / 1e6:.4g} million parameters, nothing missing or unexpected"


def beside_formulas(source: Source, converted: Path) -> str:
    """The published formulas in plain torch (`tests/helpers/pi_reference.py`), on the weights of the file itself."""
    model = KIVLAForActionPrediction.from_pretrained(converted, dtype=torch.float32).to(source.device).eval()
    theirs, ours = observation(model.config, source.device)
    found = model.sample_actions(**ours, num_steps=NUM_STEPS).cpu()
    del model
    file = Weights(source.folder)
    names = {lerobot_name(name).removeprefix("model."): name for name in file.shapes if kivla_name(name)}
    weights = {openpi: file[name].float().to(source.device) for openpi, name in names.items()}
    weights[HEAD] = weights.get(EMBEDDING, weights.get(HEAD))  # the formulas read words from it, under openpi's name
    with torch.no_grad(), torch.device(source.device):
        expected = pi_reference.sample_actions(weights, **theirs, num_steps=NUM_STEPS).cpu()
    return close(found, expected)


def beside_lerobot(source: Source, converted: Path) -> str:
    if find_spec("lerobot") is None:
        raise NotRun("LeRobot is not installed here")
    if source.is_twin:
        raise NotRun("LeRobot builds the published sizes only")
    from lerobot.policies.pi05.modeling_pi05 import PI05Policy

    model = KIVLAForActionPrediction.from_pretrained(converted, dtype=torch.float32).to(source.device).eval()
    theirs, ours = observation(model.config, source.device)
    found = model.sample_actions(**ours, num_steps=NUM_STEPS).cpu()
    del model
    policy = PI05Policy.from_pretrained(source.folder).to(source.device).float().eval()
    images, masks = list(theirs["images"].unbind(1)), list(theirs["image_mask"].unbind(1))
    options = {"noise": theirs["noise"], "num_steps": NUM_STEPS}
    expected = policy.model.sample_actions(images, masks, theirs["tokens"], theirs["token_mask"], **options)
    return close(found, expected.float().cpu())


def beside_openpi() -> str:
    if find_spec("openpi") is None:
        raise NotRun("openpi is not installed here")
    raise NotRun("openpi's PyTorch code changes transformers 4.53 itself, and cannot run beside transformers 5")


def chunk_time(source: Source, converted: Path) -> str:
    model = KIVLAForActionPrediction.from_pretrained(converted, dtype=torch.float32).to(source.device).eval()
    _, ours = observation(model.config, source.device)
    seconds = []
    for _ in range(4):
        synchronise(source.device)
        start = time.perf_counter()
        chunk = model.sample_actions(**ours, num_steps=10)
        synchronise(source.device)
        seconds.append(time.perf_counter() - start)
    rows = ours["input_ids"].shape
    return (
        f"{1000 * min(seconds[1:]):.0f} ms for {len(chunk)} chunks of {chunk.shape[1]} actions, prompts {tuple(rows)}"
    )


def observation(config, device: str) -> tuple[dict, dict]:
    """Two observations of two cameras, for the formulas and for KIVLA; the second lacks one and has a short prompt."""
    vision, generator = config.vlm_config.vision_config, torch.Generator().manual_seed(1)
    patches = (vision.image_size // vision.patch_size) ** 2
    images = torch.rand(2, 2, 3, vision.image_size, vision.image_size, generator=generator) * 2 - 1
    image_mask = torch.tensor([[True, True], [False, True]])
    images[~image_mask] = -1
    tokens = torch.randint(5, min(1000, config.vlm_config.text_config.vocab_size), (2, 24), generator=generator)
    token_mask = torch.ones(2, 24, dtype=torch.bool)
    token_mask[1, 15:] = False
    noise = torch.randn(2, config.chunk_size, config.max_action_dim, generator=generator)
    theirs = {"images": images, "image_mask": image_mask, "tokens": tokens, "token_mask": token_mask, "noise": noise}
    image_token = config.vlm_config.image_token_id
    rows = [
        torch.cat([torch.full((int(cameras.sum()) * patches,), image_token), words[real]])
        for cameras, words, real in zip(image_mask, tokens, token_mask, strict=True)
    ]
    pad = torch.nn.utils.rnn.pad_sequence
    input_ids = pad(rows, batch_first=True)
    ours = {
        "input_ids": input_ids,
        "attention_mask": pad([torch.ones_like(row) for row in rows], batch_first=True),
        "token_type_ids": torch.zeros_like(input_ids),
        "pixel_values": images[image_mask],
        "noise": noise,
    }
    return on(theirs, device), on(ours, device)


# ----------------------------------------------------------------------------------------------------------------- VLMs
def check_vlm(source: Source, work: Path) -> Iterable[tuple[str, Callable[[], str]]]:
    yield "generate beside the VLM's own", lambda: generates_the_same(source)
    yield "one insulated step", lambda: insulated_step(source)


def new_policy(source: Source) -> KIVLAForActionPrediction:
    torch.manual_seed(0)
    sizes = {"chunk_size": CHUNK, "max_action_dim": ACTION_DIM, "state_encoding": "none"}
    expert = {"hidden_size": 64, "intermediate_size": 128} if source.is_twin else {}
    return KIVLAForActionPrediction.from_vlm(source.folder, expert, dtype=torch.float32, **sizes).to(source.device)


def generates_the_same(source: Source) -> str:
    vlm_processor = AutoProcessor.from_pretrained(source.folder)
    conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    inputs = vlm_processor(
        text=[chat_text(vlm_processor, conversation)],
        images=[[picture()]],
        add_special_tokens=not vlm_processor.chat_template,
        return_tensors="pt",
    ).to(source.device)
    options = {"max_new_tokens": 24, "do_sample": False}
    vlm = AutoModelForImageTextToText.from_pretrained(source.folder, dtype=torch.float32).to(source.device).eval()
    expected = vlm.generate(**inputs, **options).cpu()
    del vlm
    found = new_policy(source).eval().generate(**inputs, **options).cpu()
    if not torch.equal(found, expected):
        raise Failed(f"the policy says {found[0, -24:].tolist()}, the VLM {expected[0, -24:].tolist()}")
    length = inputs["input_ids"].shape[1]
    return f"the same {expected.shape[1] - length} tokens after a prompt of {length}"


def insulated_step(source: Source) -> str:
    processor = KIVLAProcessor.from_vlm(
        source.folder,
        action_tokenizer=BinningActionTokenizer(),
        normalization="none",
        **{"chunk_size": CHUNK, "max_action_dim": ACTION_DIM, "state_encoding": "none"},
    )
    model = new_policy(source).train()
    model.resize_token_embeddings(max(processor.vocab_size, model.get_input_embeddings().num_embeddings))
    actions = np.random.default_rng(0).uniform(-1, 1, (2, CHUNK, ACTION_DIM)).astype(np.float32)
    batch = processor(images=[[picture()], [picture()]], text=["pick it up", "put it down"], actions=list(actions))
    batch = on(dict(batch), source.device)
    without_labels = {name: values for name, values in batch.items() if name != "labels"}
    without_actions = {name: values for name, values in batch.items() if name not in ("actions", "action_mask")}
    start = time.perf_counter()
    both = gradients(model, batch)
    synchronise(source.device)
    seconds = time.perf_counter() - start
    flow, tokens = gradients(model, without_labels), gradients(model, without_actions)
    reached = [name for name, gradient in flow.items() if name.startswith("vlm.") and gradient is not None]
    if reached:
        raise Failed(f"the flow loss reaches {len(reached)} weights of the VLM, e.g. {reached[:3]}")
    if not any(gradient is not None and gradient.any() for gradient in flow.values()):
        raise Failed("the flow loss gives the expert no gradient either")
    learned = [name for name, gradient in tokens.items() if name.startswith("vlm.") and gradient is not None]
    difference = max(relative(both[name], tokens[name]) for name in learned)
    if not difference <= 1e-5:
        raise Failed(f"the token loss's gradient differs by {difference:.1e} of its largest value with the expert")
    return (
        f"flow loss: gradient None on all of the VLM; token loss: the same gradient on {len(learned)} weights with and "
        f"without the expert (largest difference {difference:.0e} of a weight's largest); {seconds:.2f} s"
    )


def gradients(model, batch: dict) -> dict[str, torch.Tensor | None]:
    model.zero_grad(set_to_none=True)
    model(**batch).loss.backward()
    return {name: None if p.grad is None else p.grad.detach().cpu() for name, p in model.named_parameters()}


# ----------------------------------------------------------------------------------------------------------------- FAST
def check_fast(source: Source, work: Path) -> Iterable[tuple[str, Callable[[], str]]]:
    yield "FAST, there and back", lambda: fast_round_trip(source)
    yield "FAST beside its own code", lambda: beside_published_fast(source)


def smooth_chunks(count: int = 64) -> np.ndarray:
    """(count, 50, 7), within [-1, 1]"""
    rng, time_ = np.random.default_rng(0), np.linspace(0, 1, 50)[None, :, None]
    frequency, phase = rng.uniform(0.2, 2, (count, 1, 7)), rng.uniform(0, 2 * np.pi, (count, 1, 7))
    return 0.9 * np.sin(2 * np.pi * frequency * time_ + phase)


def fast_round_trip(source: Source) -> str:
    tokenizer, chunks = FASTActionTokenizer.from_pretrained(source.folder), smooth_chunks()
    codes = tokenizer.encode(chunks)
    decoded = tokenizer.decode(codes, *chunks.shape[1:])
    if failures := [str(chunk) for chunk in decoded if not isinstance(chunk, np.ndarray)]:
        raise Failed(f"{len(failures)} of {len(chunks)} chunks do not come back: {failures[0]}")
    rms = float(np.sqrt(np.mean((np.stack(decoded) - chunks) ** 2)))
    bound = tokenizer.rms_error_bound
    lengths = [len(row) for row in codes]
    if not rms <= bound:
        raise Failed(f"root-mean-square error {rms:.4f}, more than rounding allows ({bound:.4f})")
    return (
        f"{len(chunks)} chunks of 50 x 7: {np.mean(lengths):.1f} codes on average, at most {max(lengths)}; "
        f"root-mean-square error {rms:.4f}, rounding allows {bound:.4f}; {tokenizer.num_clipped} coefficients clipped"
    )


def beside_published_fast(source: Source) -> str:
    if not list(source.folder.glob("*.py")):
        raise NotRun("its folder has no code")
    if not source.trust_remote_code:
        raise NotRun("that code comes with the checkpoint: --trust_remote_code runs it")
    theirs = AutoProcessor.from_pretrained(source.folder, trust_remote_code=True)
    ours, chunks = FASTActionTokenizer.from_pretrained(source.folder), smooth_chunks()
    expected, found = [list(map(int, row)) for row in theirs(chunks)], ours.encode(chunks)
    if other := [i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b]:
        raise Failed(f"{len(other)} of {len(chunks)} chunks have other codes, the first is chunk {other[0]}")
    decoded = theirs.decode(expected, time_horizon=chunks.shape[1], action_dim=chunks.shape[2])
    return (
        f"the same codes; {close(torch.tensor(np.stack(ours.decode(found, *chunks.shape[1:]))), torch.tensor(decoded))}"
    )


# -------------------------------------------------------------------------------------------------------------- helpers
CHECKS = {"policy": check_policy, "vlm": check_vlm, "fast": check_fast}


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8))


def on(tensors: dict, device: str) -> dict:
    return {name: values.to(device) for name, values in tensors.items()}


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, of the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny))


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-3) -> str:
    """Raises `Failed` unless the largest difference is within `tolerance` of the largest expected value."""
    difference = relative(found.double(), expected.double())
    words = f"largest difference {difference:.1e} of the largest value {float(expected.abs().max()):.2f}"
    if not difference <= tolerance or not math.isfinite(float(found.abs().max())):
        raise Failed(words)
    return words


def attempt(source: str, check: str, call: Callable[[], str], device: str = "cpu") -> Row:
    """One row, whatever happens."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    try:
        outcome, numbers = "pass", call()
    except NotRun as reason:
        outcome, numbers = "not run", str(reason)
    except Failed as reason:
        outcome, numbers = "FAIL", str(reason)
    except Exception as error:  # of any library: the next rows are to run all the same
        traceback.print_exc()
        outcome, numbers = "FAIL", f"{type(error).__name__}: {error}"
    return Row(source, check, outcome, numbers, time.perf_counter() - start, peak_memory(device))


def peak_memory(device: str) -> float:
    """GB: of the GPU in this row, or of this process so far."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def run_source(name: str, locate: Callable[[str, str], tuple[Path, str]], options) -> tuple[str, list[Row]]:
    """The revision of a source, and its rows."""
    repo, kind = SOURCES[name]
    try:
        folder, revision = locate(name, repo)
    except Exception as error:  # no network, no access to a gated model, ...
        row = Row(name, "download", "FAIL", f"{type(error).__name__}: {error}")
        return "not downloaded", [row]
    source = Source(name, kind, folder, revision, options.device, options.dry_run, options.trust_remote_code)
    with TemporaryDirectory(dir=options.work) as work:
        rows = [attempt(name, *check, options.device) for check in CHECKS[kind](source, Path(work))]
        for row in rows:  # where things lie on this machine is of no use in an issue
            row.numbers = row.numbers.replace(str(folder), repo).replace(work, "converted")
    return revision, rows


def from_hub(name: str, repo: str) -> tuple[Path, str]:
    patterns = ["*.json", "*.safetensors", "*.model", "*.py", "*.jinja", "*.txt"]
    folder = Path(snapshot_download(repo, allow_patterns=patterns))
    return folder, folder.name  # the cache names a snapshot's folder by its commit


def as_table(about: dict, revisions: dict[str, str], rows: list[Row], is_dry: bool) -> str:
    """Markdown, to be pasted into an issue."""
    lines = [f"{about['gpu'] or about['cpu']}, torch {about['torch']}, transformers {about['transformers']}", ""]
    if is_dry:
        lines = ["**Dry run**: tiny twins with random weights. It says nothing about the published ones.", "", *lines]
    lines += [f"* {name}: {'a twin of ' if is_dry else ''}`{SOURCES[name][0]}`, {at}" for name, at in revisions.items()]
    lines += ["", "| source | check | | numbers | seconds | GB |", "|---|---|---|---|--:|--:|"]
    for row in rows:
        numbers = " ".join(row.numbers.split()).replace("|", "\\|")
        outcome = f"**{row.outcome}**" if row.outcome == "FAIL" else row.outcome
        lines.append(f"| {row.source} | {row.check} | {outcome} | {numbers} | {row.seconds:.1f} | {row.memory:.1f} |")
    count = {outcome: sum(row.outcome == outcome for row in rows) for outcome in ("pass", "FAIL", "not run")}
    lines += ["", f"{count['pass']} passed, {count['FAIL']} failed, {count['not run']} were not run."]
    return "\n".join(lines)


def main(arguments: list[str] | None = None, locate: Callable | None = None) -> int:
    """Returns the number of rows that failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=SOURCES, default=list(SOURCES), help="some of the sources")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, ..."
    )
    parser.add_argument("--dry_run", action="store_true", help="tiny twins with random weights, without the Hub")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code that comes with FAST")
    parser.add_argument("--work", type=Path, help="where converted policies lie meanwhile (15 GB)")
    parser.add_argument("--output", type=Path, help="where the table goes, too")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as folder:
        if options.dry_run and locate is None:
            from benchmarks import twins  # made of the tests' own parts, which need pytest

            locate = twins.in_folder(Path(folder))
        done = {name: run_source(name, locate or from_hub, options) for name in options.only}
    revisions = {name: revision for name, (revision, _) in done.items()}
    rows = [row for _, found in done.values() for row in found]
    table = as_table(environment_info(), revisions, rows, options.dry_run)
    print(table)
    if options.output is not None:
        options.output.write_text(table + "\n", encoding="utf-8")
    return sum(row.outcome == "FAIL" for row in rows)


if __name__ == "__main__":
    sys.exit(main() > 0)
