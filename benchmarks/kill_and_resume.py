"""`python -m benchmarks.kill_and_resume`: kill `kivla train` at random moments, start it again, compare the weights.

A small policy is trained on simulated demonstrations and questions about pictures (a mixture, two loader workers,
gradient accumulation, averaged weights), with a checkpoint after every second step. SIGKILL hits it again and again: at
any moment (start-up included), while a checkpoint is being written, or while the final policy is. Each time the same
command is started anew. At the end all weights, averages, optimiser states and logged values are compared, bit for bit,
with those of a run that nobody disturbed. Writes `outputs/kill_and_resume.json`; `--write` also
`benchmarks/kill_and_resume.md`.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from tqdm import tqdm

from kivla import cli
from kivla.commands import record, train  # noqa: F401  all imported once, before the processes are forked
from kivla.demo.tiny_vlm import save_tiny_vlm
from kivla.hub_cards.environment_info import environment_info
from kivla.simulation import make_questions
from kivla.training.checkpoints import MANIFEST, UNFINISHED, checkpoints, problem_of

from .options import count

REPORT = Path(__file__).with_suffix(".md")
ANY_MOMENT, WHILE_SAVING, AT_THE_END = "any moment", "while a checkpoint is written", "while the policy is written"


@dataclass
class Kill:
    """
    Attributes:
        aim: when it was meant to hit.
        seconds: since the process was started.
        step_before, step_after: of the newest checkpoint when the process was started, and when it was killed.
        was_saving: whether a checkpoint or policy was half-written.
        damaged: folders called checkpoint-N that are not whole; only such that were being removed may be.
    """

    aim: str
    seconds: float
    step_before: int
    step_after: int
    was_saving: bool
    damaged: list[str]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kill_and_resume", description=__doc__)
    parser.add_argument("--kills", type=count, default=50)
    parser.add_argument("--steps", type=count, help="of the training run (default: 16 for each kill)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, default=Path("outputs/kill_and_resume"), help="for data and both runs")
    parser.add_argument("--write", action="store_true", help=f"renew {REPORT.name}, too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # what is forked must not have started others
    tqdm.set_lock(threading.RLock())  # by default one lock for all processes, and some are killed while they hold it
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    report = measure(options.folder, options.kills, options.steps or 16 * options.kills, options.seed)
    options.folder.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    text = as_markdown(report)
    print(f"\n{text}")
    if options.write:
        REPORT.write_text(text)
    if report["different"] or report["resumed_past_damage"]:
        sys.exit("The killed run is not the undisturbed one.")


def measure(folder: Path, kills: int, steps: int, seed: int) -> dict:
    run_forked(lambda: make_data(folder), folder / "data.log")
    undisturbed, killed = folder / "undisturbed", folder / "killed"
    start = time.monotonic()
    run_forked(lambda: cli.main(command(folder, undisturbed, steps)), folder / "undisturbed.log")
    seconds = time.monotonic() - start
    rng = random.Random(seed)
    done = []
    with tqdm(total=kills, desc="kills") as bar:
        for number in range(kills):
            aim = AT_THE_END if number == kills - 1 else rng.choice((ANY_MOMENT, WHILE_SAVING))
            done.append(kill_once(folder, killed, steps, aim, rng))
            bar.update()
            bar.set_postfix_str(f"step {done[-1].step_after} of {steps}")
    run_forked(lambda: cli.main(command(folder, killed, steps)), folder / "killed.log")
    return {
        "machine": environment_info(),
        "steps": steps,
        "undisturbed_seconds": seconds,
        "kills": [asdict(kill) for kill in done],
        "different": differences(undisturbed, killed, steps),
        "resumed_past_damage": [path.name for path in killed.glob("_damaged-*")],
        "compared": len(tensors(undisturbed, steps)),
    }


def make_data(folder: Path) -> None:
    save_tiny_vlm(folder / "vlm", image_size=32, patch_size=16, hidden_size=32, num_layers=2)
    record.run([str(folder / "demonstrations"), "--num_episodes", "8", "--num_envs", "8", "--image_format", "image"])
    make_questions(20, seed=0).save_to_disk(folder / "questions")


def command(folder: Path, output_dir: Path, steps: int) -> list[str]:
    """The `kivla train` command: the same after every kill."""
    data = ["--dataset", folder / "demonstrations", "--vlm_dataset", folder / "questions", "--vlm_share", "0.3"]
    sizes = ["--chunk_size", "6", "--expert_hidden_size", "32", "--expert_intermediate_size", "64"]
    rhythm = ["--max_steps", steps, "--save_steps", "2", "--save_total_limit", "2", "--logging_steps", "5"]
    batches = ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"]
    others = ["--dataloader_num_workers", "2", "--ema_decay", "0.99", "--max_eval_frames", "2", "--use_cpu", "true"]
    options = [*data, *sizes, *rhythm, *batches, *others, "--report_to", "none", "--learning_rate", "1e-3"]
    return ["train", "--vlm", str(folder / "vlm"), *map(str, options), "--output_dir", str(output_dir)]


# --------------------------------------------------------------------------------------------------------- processes
def start_forked(work: Callable[[], None], log: Path) -> int:
    """Runs `work` in a process of its own, with everything imported already; gives its id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.setpgid(0, 0)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        work()
        status = 0
    except BaseException:  # the process must not go on as its parent
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run_forked(work: Callable[[], None], log: Path) -> None:
    _, status = os.waitpid(start_forked(work, log), 0)
    if status:
        raise RuntimeError(f"The process ended with status {os.waitstatus_to_exitcode(status)}; see {log}.")


def kill_once(folder: Path, killed: Path, steps: int, aim: str, rng: random.Random) -> Kill:
    """Starts the command, and kills it once."""
    before, start = newest_step(killed), time.time()
    process = start_forked(lambda: cli.main(command(folder, killed, steps)), folder / "killed.log")
    if aim == ANY_MOMENT:
        wait(process, seconds=rng.uniform(0, 5), until=lambda: newest_step(killed) >= steps - 4)
    elif aim == WHILE_SAVING:
        target = before + 2 * rng.randint(1, 12)
        wait(process, until=lambda: newest_step(killed) >= min(target, steps - 4))
        wait(process, until=lambda: any((killed / UNFINISHED).glob("checkpoint-*/*")))
        time.sleep(rng.uniform(0, 0.02))
    else:
        wait(process, until=lambda: (killed / UNFINISHED / "model" / "config.json").exists())
    os.kill(process, signal.SIGKILL)
    seconds = time.time() - start
    _, status = os.waitpid(process, 0)
    if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        raise RuntimeError(f"The run ended before it was killed: more steps are needed. See {folder / 'killed.log'}.")
    damaged = [path.name for path in checkpoints(killed) if problem_of(path) is not None]
    unfinished = killed / UNFINISHED
    was_saving = unfinished.is_dir() and unfinished.stat().st_mtime > start  # and not left by an earlier kill
    return Kill(aim, round(seconds, 3), before, newest_step(killed), was_saving, damaged)


def wait(process: int, seconds: float = 600.0, until: Callable[[], bool] = lambda: False) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not until():
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.001)


def newest_step(folder: Path) -> int:
    whole = (path for path in checkpoints(folder) if (path / MANIFEST).is_file())
    return next((int(path.name.removeprefix("checkpoint-")) for path in whole), 0)


# -------------------------------------------------------------------------------------------------------- comparison
def tensors(output_dir: Path, steps: int) -> dict[str, torch.Tensor]:
    """All that a run leaves: the policy, and in its last checkpoint weights, averages and what the optimiser keeps."""
    last = output_dir / f"checkpoint-{steps}"
    found = {f"policy {name}": value for name, value in load_file(output_dir / "model.safetensors").items()}
    found |= {f"weight {name}": value for name, value in load_file(last / "model.safetensors").items()}
    found |= {f"average {name}": value for name, value in load_file(last / "ema.safetensors").items()}
    for number, state in torch.load(last / "optimizer.pt", weights_only=True)["state"].items():
        found |= {f"{name} of parameter {number}": torch.as_tensor(value) for name, value in state.items()}
    return found


def logged(output_dir: Path) -> list[dict]:
    history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]


def differences(undisturbed: Path, killed: Path, steps: int) -> list[str]:
    expected, found = tensors(undisturbed, steps), tensors(killed, steps)
    different = [name for name in expected if name not in found or not torch.equal(found[name], expected[name])]
    different += sorted(found.keys() - expected.keys())
    return different + (["the log"] if logged(killed) != logged(undisturbed) else [])


def as_markdown(report: dict) -> str:
    kills = report["kills"]
    aims = Counter(kill["aim"] for kill in kills)
    saving = Counter(kill["aim"] for kill in kills if kill["was_saving"])
    rows = [f"| {aim} | {count} | {saving[aim]} |" for aim, count in aims.items()]
    lost = [kill["step_before"] for kill in kills if kill["step_after"] < kill["step_before"]]
    result = "**none**" if not report["different"] else f"**{len(report['different'])}** ({report['different'][:3]})"
    about = report["machine"]
    return "\n".join(
        [
            "# Killed and started again\n",
            "Written by `python -m benchmarks.kill_and_resume --write`, whose docstring says what is done.\n",
            "| killed | times | of which something was half-written |",
            "|---|--:|--:|",
            *rows,
            f"| together | {len(kills)} | {saving.total()} |\n",
            "| at the end | |",
            "|---|--:|",
            f"| optimiser steps | {report['steps']} |",
            f"| tensors compared: policy, weights, averages, optimiser | {report['compared']} |",
            f"| of which different from the undisturbed run, or the log | {result} |",
            f"| checkpoints that were lost | {len(lost)} |",
            f"| damaged checkpoints that were met when resuming | {len(report['resumed_past_damage'])} |\n",
            f"{about['cpu']}, one thread; undisturbed, the run takes {report['undisturbed_seconds']:.0f} s.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
