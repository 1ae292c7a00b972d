"""Rivals' own code raced against KIVLA in one run: training steps, chunks of actions, memory.

python -m benchmarks.rivals setup           # environments for LeRobot and OpenTau, from PyPI: minutes
python -m benchmarks.rivals race            # 8 GB of memory; --write keeps the table in rivals.md
python -m benchmarks.rivals race --quick    # tiny sizes: shows that it works, no more

Every side runs in a process of its own, with the interpreter and the libraries that it needs, and all take turns, so
that a slow moment of the machine hits all of them; with one thread the time is the processor's. They get the same
weights and inputs, and nothing is timed before losses, gradients or actions are the same. A rival that is not installed
is left out, and the table says why.
"""

import argparse
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file

from kivla.conversion.pi_weights import lerobot_name
from kivla.training.run_folder import write_whole

from .options import count
from .policies import PROPORTIONED, TINY, Size, action_inputs, flow_draws, observation, policy, token_batch
from .report import Comparison, Measurement, as_markdown
from .rival_worker import CODES, INDICATOR, codes_of
from .timing import interleaved

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / "outputs" / "rivals"
PAGE = Path(__file__).with_name("rivals.md")

# π0.5 at a quarter of its widths and a third of its layers, but for two cameras of 144 tokens and a prompt of 32
QUARTER = Size(512, 4096, 6, 64, 256, 1024, 168, 32, 40 + len(INDICATOR), 50, 32_768, vision=(288, 1076, 9, 4))
# The other benchmarks' proportions: a narrower expert, chunks of 16
NARROW = replace(PROPORTIONED, vision=(256, 512, 2, 4), suffix_length=40 + len(INDICATOR), vocab_size=32_768)
QUICK = replace(TINY, vision=(16, 32, 1, 2), suffix_length=4 + len(INDICATOR), vocab_size=4096)
SIZES = {"quarter": QUARTER, "narrow": NARROW}
VOCABULARIES = (4096, 32_768, 257_152)
STEPS, DRAWS, STEP_BATCH = 10, 4, 1


@dataclass(frozen=True)
class Rival:
    """A package, what its policy's code needs, and the modules that it imports and a race never runs."""

    package: str
    needs: tuple[str, ...]
    stand_ins: tuple[str, ...]


# Neither allows the torch that is compared (LeRobot: below 2.12), nor this Python (3.12 and newer; 3.10 alone). So they
# are installed without their dependencies, and their libraries beside them, transformers as each of them asks for it.
RIVALS = {
    "LeRobot": Rival(
        "lerobot==0.6.1",
        ("transformers>=5.4,<5.6", "draccus", "einops", "gymnasium", "opencv-python-headless", "pillow", "requests"),
        (
            *("torchvision", "lerobot.processor", "lerobot.motors", "lerobot.utils.io_utils"),
            *("lerobot.transforms", "lerobot.datasets"),
        ),
    ),
    "OpenTau": Rival(
        "opentau==0.14.0",
        ("transformers>=4.57,<4.58", "accelerate", "draccus", "einops", "pillow", "requests"),
        ("imageio", "opentau.datasets"),
    ),
}


# ------------------------------------------------------------------------------------------------------------- setup
def setup(folder: Path) -> None:
    """Make an environment for each rival; where that fails, note the reason and go on."""
    for name, rival in RIVALS.items():
        environment = folder / name
        pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        commands = (
            [sys.executable, "-m", "venv", "--clear", str(environment)],
            [*pip, f"torch=={torch.__version__}", "numpy", *rival.needs],  # the torch that KIVLA has here
            [*pip, "--no-deps", "--ignore-requires-python", rival.package],
        )
        print(f"{name}: {rival.package} into {environment}")
        done = None
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                break
        reason = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1] if done.returncode else ""
        write_whole(folder / f"{name}.txt", reason)
        print(f"{name}: {reason or 'ready'}")


def missing(folder: Path) -> dict[str, str]:
    """Rivals that cannot take part -> why."""
    reasons = {}
    for name in RIVALS:
        note = folder / f"{name}.txt"
        reason = note.read_text() if note.is_file() else "run `python -m benchmarks.rivals setup`"
        if reason:
            reasons[name] = reason
    return reasons


# ------------------------------------------------------------------------------------------------------------- sides
@dataclass(frozen=True)
class Job:
    """What one side does: "step" or "chunk", on inputs "flow", "tokens" or "observation"."""

    side: str
    what: str
    inputs: str
    options: tuple[tuple[str, object], ...] = ()


def describe(job: Job, size: Size, files: Path, repeats: int) -> dict:
    """What a worker is told."""
    rival = RIVALS.get(job.side)
    return asdict(job) | {
        "size": asdict(size),
        "prefix_length": size.prefix_length,
        "options": dict(job.options),
        "inputs": str(files / f"{job.inputs}.safetensors"),
        "weights": str(files / "weights.safetensors"),
        "threads": torch.get_num_threads(),
        "steps": STEPS,
        "repeats": repeats,
        "stand_ins": list(rival.stand_ins) if rival else [],
    }


class Worker:
    """A process that does a job when it is asked."""

    def __init__(self, job: Job, size: Size, files: Path, environments: Path, repeats: int):
        rival = RIVALS.get(job.side)
        python = environments / job.side / "bin" / "python" if rival else sys.executable
        self.log = files / f"{id(self)}.log"
        file = files / f"{id(self)}.json"
        file.write_text(json.dumps(describe(job, size, files, repeats)))
        self.process = subprocess.Popen(
            [str(python), "-m", "benchmarks.rival_worker", str(file)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
        )

    def ready(self) -> dict[str, str]:
        """Wait until its side is built; its versions."""
        return self._answer()

    def ask(self, *command: str):
        print(json.dumps(command), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"A side of the race has died:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def size_of(values: dict) -> Size:
    return Size(**{**values, "vision": tuple(values["vision"])})


def write_files(size: Size, files: Path) -> None:
    """Weights, under LeRobot's names, and inputs of all jobs."""
    model = policy(size)
    weights = {lerobot_name(name).removeprefix("model."): p.detach() for name, p in model.named_parameters()}
    save_file(weights, files / "weights.safetensors")

    # Without tokens: a step on actions alone, and a chunk
    seen = observation(size, STEP_BATCH)
    draws = flow_draws(size, DRAWS * STEP_BATCH)
    actions = action_inputs(size, STEP_BATCH)["actions"]
    alone = {"actions": actions, "expert_attention_mask": seen["attention_mask"].clone(), **draws}
    save_file(seen | alone, files / "flow.safetensors")
    noise = flow_draws(size, 1)["noise"]
    save_file(observation(size, 1) | {"noise": noise}, files / "observation.safetensors")

    # With tokens to learn: three that announce them, as OpenTau has it, and then codes
    batch = token_batch(size, STEP_BATCH) | action_inputs(size, STEP_BATCH) | draws
    begin, first = size.prefix_length, size.prefix_length + len(INDICATOR)
    batch["input_ids"][:, begin:first] = torch.tensor(INDICATOR)
    batch["input_ids"][:, first:] = codes_of(size.vocab_size)[batch["input_ids"][:, first:] % CODES]
    batch["labels"][:, begin:first] = -100
    batch["labels"][:, first:] = batch["input_ids"][:, first:]
    batch["expert_attention_mask"] = batch["expert_attention_mask"].contiguous()
    save_file(batch, files / "tokens.safetensors")


# -------------------------------------------------------------------------------------------------------------- race
@dataclass
class Race:
    """Jobs of one size, side by side.

    Attributes:
        checks: (name, name of the rival's, the results that must be the same).
        pairs: (name, name of the rival's) whose times are compared.
    """

    title: str
    jobs: dict[str, Job]
    checks: list[tuple[str, str, tuple[str, ...]]]
    pairs: list[tuple[str, str]]
    repeats: int = 1
    memory: bool = False


FLOW_GRADIENTS = ("gradient of paligemma_with_expert.gemma_expert", "gradient of action_out_proj")
FLOW = ("flow loss", *FLOW_GRADIENTS)
ALL = ("loss", "flow loss", "token loss", "gradient", "actions")


def races(size: Size, code_folder: str, compile_modes: list[str]) -> list[tuple[Size, Race]]:
    """The races of one size; those with tokens once for each vocabulary."""
    joint, compiled = (("joint", True),), (("compiled", code_folder),)
    plans = []
    flow = {
        "KIVLA": Job("KIVLA", "step", "flow", joint),
        "LeRobot": Job("LeRobot", "step", "flow"),
        "KIVLA as π0": Job("KIVLAAsPI0", "step", "flow"),
        "PI0": Job("PI0", "step", "flow"),
    }
    both = [("KIVLA", "LeRobot"), ("KIVLA as π0", "PI0")]
    plans.append((size, Race("A step on actions alone, jointly", flow, [(*p, ALL) for p in both], both)))

    rival = "OpenTau, one draw"
    exact, among = "tokens among all", "tokens among action tokens"
    draws, candidates = (("num_draws", DRAWS),), (("candidates", True),)
    tokens = {
        exact: Job("KIVLA", "step", "tokens"),
        among: Job("KIVLA", "step", "tokens", candidates),
        f"{exact}, {DRAWS} draws": Job("KIVLA", "step", "tokens", draws),
        rival: Job("OpenTau", "step", "tokens"),
    }
    checks = [(exact, rival, FLOW), (among, rival, ALL)]
    ours = [name for name in tokens if name != rival]
    vocabularies = VOCABULARIES if size is QUARTER else (size.vocab_size,)
    for vocabulary in vocabularies:
        title = f"A step with knowledge insulation, vocabulary {vocabulary:,}"
        race = Race(title, tokens, checks, [(name, rival) for name in ours], memory=True)
        plans.append((replace(size, vocab_size=vocabulary), race))

    eager = {
        "KIVLA": Job("KIVLA", "chunk", "observation"),
        "LeRobot": Job("LeRobot", "chunk", "observation"),
        "OpenTau": Job("OpenTau", "chunk", "observation"),
        "KIVLA as π0": Job("KIVLAAsPI0", "chunk", "observation"),
        "PI0": Job("PI0", "chunk", "observation"),
    }
    pairs = [("KIVLA", "LeRobot"), ("KIVLA", "OpenTau"), ("KIVLA as π0", "PI0")]
    title = f"A chunk of {size.chunk_size} actions, prefix and {STEPS} steps"
    plans.append((size, Race(title, eager, [(*p, ALL) for p in pairs], pairs, repeats=3)))

    packed = "KIVLA, weights packed"
    whole = {
        "KIVLA": Job("KIVLA", "chunk", "observation", compiled),
        packed: Job("KIVLA", "chunk", "observation", (*compiled, ("pack_weights", True))),
    }
    for mode in compile_modes:
        whole[f"LeRobot, {mode}"] = Job("LeRobot", "chunk", "observation", (("compile_mode", mode),))
    pairs = [(ours, name) for name in whole if name.startswith("LeRobot") for ours in ("KIVLA", packed)]
    title = f"Compiled, a chunk of {size.chunk_size} actions"
    plans.append((size, Race(title, whole, [(*p, ALL) for p in pairs], pairs, repeats=3)))
    return plans


def run(race: Race, size: Size, environments: Path, repetitions: int) -> tuple[Measurement, dict[str, dict]]:
    """Check, time, and measure the memory of what can take part; the versions that did."""
    absent = missing(environments)
    jobs = {name: job for name, job in race.jobs.items() if job.side not in absent}
    pairs = [pair for pair in race.pairs if jobs.keys() >= set(pair)]
    jobs = {name: job for name, job in jobs.items() if any(name in pair for pair in pairs)}
    batch = STEP_BATCH if race.memory or "alone" in race.title else 1
    measurement = Measurement(
        race.title,
        f"Text model {size.hidden_size} wide, {size.num_layers} layers, vocabulary {size.vocab_size:,}; expert "
        f"{size.expert_hidden_size}; batch {batch}, prefix {size.prefix_length}"
        + f", {size.suffix_length - len(INDICATOR)} action tokens" * race.memory
        + f", chunk {size.chunk_size}.",
    )
    with TemporaryDirectory() as folder, ExitStack() as stack:
        files = Path(folder)
        write_files(size, files)
        make = partial(Worker, size=size, files=files, environments=environments, repeats=race.repeats)
        workers = {name: stack.enter_context(make(job)) for name, job in jobs.items()}
        versions = {race.jobs[name].side: worker.ready() for name, worker in workers.items()}
        peaks = {name: worker.ask("memory") for name, worker in workers.items()} if race.memory else {}
        for name, worker in workers.items():
            worker.ask("save", str(files / f"{name}.safetensors"))
        for ours, theirs, what in race.checks:
            if {ours, theirs} <= jobs.keys():
                a, b = (load_file(files / f"{name}.safetensors") for name in (ours, theirs))
                for key in sorted(a.keys() & b.keys()):
                    if key.startswith(what):
                        tolerance = 1e-4 if key.startswith("gradient") else 1e-5
                        measurement.check_equal(f"{ours} and {theirs}: {key}", a[key], b[key], tolerance)
        seconds = {name: [] for name in workers}

        def turn(name: str) -> None:
            seconds[name].append(workers[name].ask("run"))

        interleaved(race.title, {name: partial(turn, name) for name in workers}, repetitions)
    for ours, theirs in pairs:  # the first turn is a warm-up
        measurement.comparisons.append(Comparison(ours, seconds[ours][1:], theirs, seconds[theirs][1:]))
    for ours, theirs in pairs if race.memory else ():
        rows = peaks[ours], theirs, peaks[theirs]
        measurement.comparisons.append(Comparison(f"peak memory, {ours}", *rows, unit="bytes"))
    for name, values in seconds.items() if race.memory else ():
        rate = batch * dict(jobs[name].options).get("num_draws", 1) / median(values[1:])
        measurement.setting += f" {name[0].upper()}{name[1:]}: {rate:.2g} flow samples a second."
    return measurement, versions


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rivals", description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("setup", "race"))
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, help="a folder (default: %(default)s)")
    parser.add_argument("--size", choices=SIZES, nargs="+", default=list(SIZES), help="default: all")
    parser.add_argument("--only", default="", help="races whose title begins so")
    modes = {"nargs": "+", "default": ["default"]}
    parser.add_argument("--compile_modes", **modes, help="LeRobot's compile_mode (its own default: max-autotune)")
    parser.add_argument("--threads", type=count, default=1)
    parser.add_argument("--repetitions", type=count, default=9)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, two repetitions")
    parser.add_argument("--write", action="store_true", help=f"keep the table in {PAGE.name}")
    options = parser.parse_args(arguments)
    if options.what == "setup":
        return setup(options.environments)
    torch.set_num_threads(options.threads)
    measurements, versions = [], {}
    with TemporaryDirectory() as code:
        for size in [QUICK] if options.quick else [SIZES[name] for name in options.size]:
            for sized, race in races(size, code, options.compile_modes):
                if race.title.startswith(options.only):
                    done, seen = run(race, sized, options.environments, 2 if options.quick else options.repetitions)
                    measurements.append(done)
                    versions |= seen
    report = page(measurements, versions, missing(options.environments))
    if options.write:
        write_whole(PAGE, report)
    else:
        print(report)


def page(measurements: list[Measurement], versions: dict[str, dict], absent: dict[str, str]) -> str:
    """The whole table, with machine and versions."""
    lines = ["# Rivals' own code beside KIVLA", "", "`python -m benchmarks.rivals race --write`.", ""]
    for name, of_side in versions.items():
        package = RIVALS[name].package if name in RIVALS else name
        lines.append(f"* {package}: " + ", ".join(f"{library} {version}" for library, version in of_side.items()))
    lines += [f"* {name} is not here: {reason}" for name, reason in absent.items()]
    return "\n".join([*lines, "", as_markdown(measurements), ""])


if __name__ == "__main__":
    main()
