"""`python -m benchmarks.soak`: thousands of requests to a running `kivla serve`, with everything that can go wrong.

Well-behaved clients ask, check every answer against the pipeline's, bit for bit, and connect anew now and then. Beside
them others send what no robot should, leave while they wait, do not read, or never finish a sentence.
"""

import argparse
import asyncio
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm
from transformers import pipeline
from websockets.asyncio.client import ClientConnection

from kivla.hub_cards.environment_info import environment_info

from .options import count
from .policies import TINY
from .serving import make_observation, make_pipeline
from .soak_faults import ANSWERED, API_KEY, FAULTS, Target, Unexpected

REPORT = Path(__file__).with_suffix(".md")
PICTURE = Path(__file__).with_suffix(".png")
SEED = 0
NUM_OBSERVATIONS = 32
CONNECT_ANEW_EVERY = 100  # requests of one client
FAULTY_CLIENTS = 4
BETWEEN_FAULTS = 0.1  # seconds of each faulty client
MOST_GROWTH = 1.05  # of memory, from a fifth of the run to its end


@dataclass
class Answers:
    """What the well-behaved clients saw, one entry for each answer."""

    asked: int = 0
    wrong: int = 0
    lost: list[str] = field(default_factory=list)
    total_ms: list[float] = field(default_factory=list)  # from sending to decoded answer
    served_ms: list[float] = field(default_factory=list)  # the server's work: decode, policy, encode
    policy_ms: list[float] = field(default_factory=list)
    queue_depth: list[int] = field(default_factory=list)


@dataclass
class Memory:
    """Resident memory of the server."""

    seconds: list[float] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)

    def add(self, pid: int, start: float, answered: int) -> None:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
        self.seconds.append(time.perf_counter() - start)
        self.answered.append(answered)
        self.megabytes.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)

    def growth(self) -> float:
        """MB for each 1000 answers: the slope of a straight line after the first fifth."""
        skipped = len(self.answered) // 5
        return float(1000 * np.polyfit(self.answered[skipped:], self.megabytes[skipped:], 1)[0])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=count, default=10_000, help="of the well-behaved clients (default: 10000)")
    parser.add_argument("--clients", type=count, default=16, help="well-behaved clients (default: 16)")
    parser.add_argument("--threads", type=count, default=1, help="CPU threads of each process (default: 1)")
    parser.add_argument("--write", action="store_true", help="put report and picture into benchmarks/")
    parser.add_argument("--output", type=Path, default=Path("outputs/soak.json"), help="where the numbers go")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    observations = [make_observation(seed, pixels=56) for seed in range(NUM_OBSERVATIONS)]
    with TemporaryDirectory() as folder:
        save_policy(Path(folder) / "policy", observations)
        pipe = pipeline("action-prediction", model=f"{folder}/policy", seed=SEED)
        expected = [pipe(observation)["actions"] for observation in observations]
        if len({actions.tobytes() for actions in expected}) < NUM_OBSERVATIONS:
            raise AssertionError("The policy gives the same actions for several observations: nothing can be checked.")
        log = Path(folder) / "server.log"
        with serving(Path(folder) / "policy", log, options) as (port, process):
            target = Target(port, observations, expected)
            report = asyncio.run(soak(target, pipe, process, options.requests, options.clients))
            process.send_signal(signal.SIGTERM)
            report["exit_code"] = process.wait(60)
        report["server_log"] = summary_of_log(log.read_text())
    report = {"machine": environment_info(), "options": {**vars(options), "output": str(options.output)}, **report}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    page = as_markdown(report)
    print(page)
    if options.write:
        REPORT.write_text(page + "\n")
        draw_memory(PICTURE, report["memory"])
    if problems := problems_of(report):
        print("\n".join(problems), file=sys.stderr)
    return 1 if problems else 0


def save_policy(folder: Path, observations: list[dict]) -> None:
    """Random weights whose actions depend on the observation, and a range that they sometimes leave."""
    statistics = {
        "state": _statistics(np.stack([observation["state"] for observation in observations])),
        "actions": _statistics(np.random.default_rng(1).normal(size=(100, 14))),
    }
    pipe = make_pipeline(TINY, normalization="quantile", statistics=statistics)
    pipe.model.save_pretrained(folder)
    pipe.processor.save_pretrained(folder)


def _statistics(values: np.ndarray) -> dict[str, np.ndarray]:
    q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
    return {
        "mean": values.mean(0),
        "std": values.std(0),
        "min": values.min(0),
        "max": values.max(0),
        "q01": q01,
        "q99": q99,
    }


@contextmanager
def serving(policy: Path, log: Path, options) -> Iterator[tuple[int, subprocess.Popen]]:
    """The command `kivla serve` in a process of its own; yields its port and the process."""
    # Room for everybody: well-formed requests wait, and none is refused because others wait.
    room = options.clients + 64
    settings = {
        "port": 0,
        "seed": SEED,
        "max_message_mb": 1,
        "max_connections": room,
        "max_waiting": room,
        "max_batch_size": 1,  # requests that share a pass agree with the pipeline within rounding only
        "max_observation_age_ms": 60_000,
    }
    words = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
    environment = {"KIVLA_API_KEY": API_KEY, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "kivla.cli", "serve", str(policy), *words],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **environment},
        )
        try:
            line = process.stdout.readline()
            found = re.fullmatch(r"Serving .* on ws://127\.0\.0\.1:(\d+)\n", line)
            if found is None:
                raise RuntimeError(f"kivla serve did not start: {log.read_text(encoding='utf-8')[-2000:]}")
            yield int(found[1]), process
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


async def soak(target: Target, pipe, process: subprocess.Popen, requests: int, clients: int) -> dict:
    """Quiet, crowded, quiet again; numbers for JSON."""
    quiet, bare_ms = Answers(), []
    each = max(requests // 100, 10)
    await _alone(target, pipe, each, quiet, bare_ms)
    crowded, memory = Answers(), Memory()
    faults: Counter[str] = Counter()
    surprises: list[str] = []
    start = time.perf_counter()
    with tqdm(total=requests, desc="Soak", unit="request") as progress:
        numbers = iter(range(requests))
        is_over = asyncio.Event()
        # Each kind once, and again and again while there are requests
        again = itertools.takewhile(lambda _: not is_over.is_set(), itertools.cycle(FAULTS.items()))
        kinds = itertools.chain(FAULTS.items(), again)
        async with asyncio.TaskGroup() as everybody:
            watch = everybody.create_task(_watch(process.pid, start, crowded, memory))
            misbehaving = [
                everybody.create_task(_misbehave(target, kinds, faults, surprises)) for _ in range(FAULTY_CLIENTS)
            ]
            await asyncio.gather(*(_behave(target, numbers, crowded, progress) for _ in range(clients)))
            seconds = time.perf_counter() - start
            is_over.set()
            await asyncio.gather(*misbehaving)
            watch.cancel()
    await _alone(target, pipe, each, quiet, bare_ms)
    memory.add(process.pid, start, len(crowded.total_ms))
    return {
        "seconds": seconds,
        "crowded": asdict(crowded),
        "quiet": asdict(quiet),
        "bare_ms": bare_ms,
        "faults": dict(faults),
        "surprises": surprises,
        "memory": asdict(memory),
        "memory_growth_mb_per_1000": memory.growth(),
        "server_metrics": await target.metrics(),
    }


async def _alone(target: Target, pipe, requests: int, answers: Answers, bare_ms: list[float]) -> None:
    """One client and nobody else; and, in turn with it, the pipeline without a server."""
    async with target.connection() as client:
        for number in range(1 + requests):
            index = number % len(target.observations)
            begin = time.perf_counter()
            pipe(target.observations[index])
            bare = 1e3 * (time.perf_counter() - begin)
            if number == 0:  # to warm up
                await target.ask(client, index)
                continue
            bare_ms.append(bare)
            await _ask(target, client, index, answers)


async def _behave(target: Target, numbers: Iterator[int], answers: Answers, progress: tqdm) -> None:
    """Ask as long as there are numbers, and connect anew now and then."""
    is_over = False
    while not is_over:
        async with target.connection() as client:
            for _ in range(CONNECT_ANEW_EVERY):
                number = next(numbers, None)
                if is_over := number is None:
                    break
                await _ask(target, client, number % len(target.observations), answers)
                progress.update()


async def _ask(target: Target, client: ClientConnection, index: int, answers: Answers) -> None:
    answers.asked += 1
    begin = time.perf_counter()
    try:
        answer = await target.ask(client, index)
    except Exception as error:
        answers.lost.append(f"{type(error).__name__}: {error}")
        raise
    answers.total_ms.append(1e3 * (time.perf_counter() - begin))
    answers.served_ms.append(answer["server_timing"]["infer_ms"])
    answers.policy_ms.append(answer["policy_timing"]["infer_ms"])
    answers.queue_depth.append(answer["server_timing"]["queue_depth"])
    answers.wrong += not target.is_right(answer, index)


async def _misbehave(target: Target, kinds: Iterator, faults: Counter, surprises: list[str]) -> None:
    """One fault after the other. What is `Unexpected` is noted, and a server that hangs is, too."""
    for name, fault in kinds:
        try:
            async with asyncio.timeout(60):
                await fault(target)
            faults[name] += 1
        except (Unexpected, TimeoutError, OSError) as error:
            surprises.append(f"{name}: {type(error).__name__}: {error}")
        await asyncio.sleep(BETWEEN_FAULTS)


async def _watch(pid: int, start: float, answers: Answers, memory: Memory) -> None:
    while True:
        memory.add(pid, start, len(answers.total_ms))
        await asyncio.sleep(0.5)


def summary_of_log(text: str) -> dict:
    """Counts of what should be there, and lines that should not."""
    bad = ("never retrieved", "was destroyed", "Exception in callback", "unexpected internal error")
    return {
        "refused": text.count(" was refused: "),
        "policy_failed": text.count(": the policy failed"),
        "warnings_of_clipping": text.count(" were clipped, "),
        "bad": [line for line in text.splitlines() if any(words in line for words in bad)],
    }


def problems_of(report: dict) -> list[str]:
    """Sentences; none if all is well."""
    found = [f"{len(report[phase]['lost'])} requests were lost: {report[phase]['lost'][:3]}" for phase in _lost(report)]
    found += [
        f"{report[phase]['wrong']} answers were not the pipeline's" for phase in _PHASES if report[phase]["wrong"]
    ]
    answered, asked = len(report["crowded"]["total_ms"]), report["options"]["requests"]
    if answered != asked:
        found.append(f"{answered} of {asked} requests were answered")
    # Those who left while they waited may have been answered, or not
    all_answers = answered + len(report["quiet"]["total_ms"]) + _WARM_UPS
    all_answers += sum(report["faults"].get(name, 0) * count for name, count in ANSWERED.items())
    undecided = report["faults"].get("leaves while it waits", 0)
    counted = report["server_metrics"]["kivla_answers_total"]
    if not all_answers <= counted <= all_answers + undecided and not report["surprises"]:
        found.append(
            f"the server counted {counted:.0f} answers, its clients {all_answers} to {all_answers + undecided}"
        )
    megabytes = report["memory"]["megabytes"]
    first, last = megabytes[len(megabytes) // 5], megabytes[-1]
    if last > MOST_GROWTH * first:
        found.append(f"the server's memory grew from {first:.0f} MB after a fifth of the run to {last:.0f} MB")
    if report["surprises"]:
        found.append(f"{len(report['surprises'])} faults were met in another way than expected: {report['surprises']}")
    if missing := sorted(FAULTS.keys() - report["faults"].keys()):
        found.append(f"faults that were never tried, or never met as expected: {missing}")
    if failures := report["server_metrics"]["kivla_failures_total"]:
        found.append(f"the policy failed on {failures:.0f} requests, and none gave it reason to")
    if report["exit_code"] != 0:
        found.append(f"the server ended with the code {report['exit_code']}")
    if report["server_log"]["bad"]:
        found.append(f"in the server's log: {report['server_log']['bad'][:3]}")
    return found


_PHASES = ("crowded", "quiet")
_WARM_UPS = 2  # one before each quiet phase


def _lost(report: dict) -> list[str]:
    return [phase for phase in _PHASES if report[phase]["lost"]]


# ----------------------------------------------------------------------------------------------------------- report
def ratios(report: dict) -> dict[str, tuple[float, float]]:
    """Median and 99th percentile, each divided by that of the bare pipeline."""
    bare = np.quantile(report["bare_ms"], [0.5, 0.99])
    crowded, quiet = report["crowded"], report["quiet"]
    turns = np.array(crowded["queue_depth"]) + 1
    columns = {
        "one client: from request to answer": quiet["total_ms"],
        "one client: the policy in the server": quiet["policy_ms"],
        "many clients: the policy in the server": crowded["policy_ms"],
        "many clients: decoding, policy, checks, encoding": crowded["served_ms"],
        "many clients: from request to answer, for each turn": np.array(crowded["total_ms"]) / turns,
    }
    return {name: tuple(np.quantile(values, [0.5, 0.99]) / bare) for name, values in columns.items()}


def as_markdown(report: dict) -> str:
    options, memory, about = report["options"], report["memory"], report["machine"]
    bare = np.quantile(report["bare_ms"], [0.5, 0.99])
    crowded = report["crowded"]
    wrong = sum(report[phase]["wrong"] for phase in _PHASES)
    lost = sum(len(report[phase]["lost"]) for phase in _PHASES)
    settled = memory["megabytes"][len(memory["megabytes"]) // 5 :]
    lines = [
        "# The policy server under load",
        "",
        f"Written by `python -m benchmarks.soak --requests {options['requests']} --clients {options['clients']} "
        f"--write`: {about['cpu']}, {about['cores']} cores; threads of each process: "
        f"{options['threads']}.",
        "",
        "A tiny policy (its time is Python's, not the model's), served by `kivla serve` in a process of its own. "
        "Clients ask as fast as they are answered, so that nearly all of them wait for their turn; `--max_waiting` is "
        "above their number, because a request that is refused with 1013 would be right, too, and would test less.",
        "",
        "| | |",
        "|---|--:|",
        f"| well-formed requests, {options['clients']} clients | {len(crowded['total_ms']):,} |",
        f"| lost | {lost} |",
        f"| answers other than the pipeline's, bit for bit | {wrong} |",
        f"| misbehaving clients, {len(report['faults'])} kinds | {sum(report['faults'].values()):,} |",
        f"| of them met in another way than they should be | {len(report['surprises'])} |",
        f"| server's exit code after SIGTERM | {report['exit_code']} |",
        f"| memory of the server after a fifth of the run; at its end | {settled[0]:.0f} MB; {settled[-1]:.0f} MB |",
        f"| growth over the rest, straight line | {report['memory_growth_mb_per_1000']:+.2f} MB per 1,000 requests |",
        f"| requests a second | {len(crowded['total_ms']) / report['seconds']:.0f} |",
        "",
        "![resident memory of the server](soak.png)",
        "",
        f"Times, divided by those of the pipeline called directly in the same run (median {bare[0]:.1f} ms, 99th "
        f"percentile {bare[1]:.1f} ms). A request waits for those before it, so its time is divided by their number "
        "and its own, too. What else the machine does shows in the 99th percentiles.",
        "",
        "| | median | 99th percentile |",
        "|---|--:|--:|",
        *(f"| {name} | {middle:.2f} | {slow:.2f} |" for name, (middle, slow) in ratios(report).items()),
        "",
        "What misbehaving clients did, and how often:",
        "",
        "| | |",
        "|---|--:|",
        *(f"| {name} | {count} |" for name, count in sorted(report["faults"].items())),
    ]
    return "\n".join(lines)


def draw_memory(path: Path, memory: dict) -> None:
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axis = figure.subplots()
    axis.plot(memory["answered"], memory["megabytes"], color="#00798c")
    axis.set_ylim(0, 1.15 * max(memory["megabytes"]))
    axis.set_xlabel("requests answered")
    axis.set_ylabel("MB resident")
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
