"""How long it takes to measure what an expert can read of a VLM, and how much memory: every type that is held.

    python -m benchmarks.probe                            # all types of the installed transformers
    python -m benchmarks.probe --types kimi_k25 llama4
    python -m benchmarks.probe --write                    # also refresh the table in benchmarks/probe.md

No published configuration is read: there is no network. A type is measured at the size of its configuration's defaults,
which are mostly those of a released model; where the defaults are no model, at the size of a released one as
`tests/helpers/families` has it ("not run" where that is missing, or a library). Each type has a process of its own.
Seconds are the processor's; memory is what the process takes at most beyond what it had after its imports.
"""

import argparse
import multiprocessing
import resource
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import transformers
from tqdm import tqdm
from transformers import CONFIG_MAPPING, PreTrainedConfig

from kivla.modeling_kivla import UnsupportedBackboneError
from kivla.modeling_kivla.backbone_probe import build_without_weights, probe_backbone
from tests.helpers.every_type import every_type, held_types
from tests.helpers.families import FAMILIES

PAGE = Path(__file__).with_name("probe.md")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probe", description=__doc__)
    parser.add_argument("--types", nargs="+", help="model types (default: every one)")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds until a type is given up (default: 120)")
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/probe.md")
    options = parser.parse_args(arguments)
    if options.write and options.types:
        parser.error("--write keeps the table of every type: leave out --types")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    rows = [in_a_process(name, options.limit) for name in tqdm(options.types or every_type(), desc="types")]
    table = "\n".join(
        [
            f"transformers {transformers.__version__}, torch {torch.__version__}, one thread.",
            "",
            "| type | parameters | layers read | seconds | MB | |",
            "|---|---|---|---|---|---|",
            *("| " + " | ".join(row) + " |" for row in rows),
        ]
    )
    print(table)
    if options.write:
        PAGE.write_text(f"# Measuring a VLM\n\nWritten by `python -m benchmarks.probe --write`.\n\n{table}\n")


def in_a_process(name: str, limit: float) -> tuple[str, ...]:
    """One row of the table. A fork has all imports done, so that what it takes is the measuring's own."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(name, send))
    process.start()
    send.close()
    if not receive.poll(limit):
        process.kill()
        return name, "", "", f"more than {limit:g}", "", ""
    row = receive.recv()
    process.join()
    return row


def measure(name: str, send: Connection) -> None:
    """Send the row of one type."""
    try:
        config = config_of(name)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        kv_layers = probe_backbone(config)
        seconds = time.process_time() - start
        megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        size = sum(parameter.numel() for parameter in build_without_weights(config).parameters())
        layers = f"{len(kv_layers)} of {config.get_text_config().num_hidden_layers}"
        send.send((name, f"{size / 1e9:.1f}B", layers, f"{seconds:.1f}", f"{megabytes:.0f}", ""))
    except UnsupportedBackboneError as error:
        send.send((name, "", "", "", "", f"refused: {str(error).split('. ')[0]}"))
    except Exception as error:  # a row that fails says why, and the next one runs
        send.send((name, "", "", "", "", f"not run: {type(error).__name__}: {str(error).strip().splitlines()[0]}"))


def config_of(name: str) -> PreTrainedConfig:
    """The type's defaults, or where they are no model the settings of a released one."""
    published = [FAMILIES[family].published for family in held_types().get(name, ())]
    return CONFIG_MAPPING[name](**next(filter(None, published), {}))


if __name__ == "__main__":
    main()
