"""What a figure was measured on."""

import os
import platform
from pathlib import Path

import torch
import transformers


def environment_info() -> dict:
    """`cpu`, `cores`, `threads`, `gpu` (None without one), `python`, `torch` and `transformers`."""
    names = [line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _cpu_lines() -> list[str]:
    file = Path("/proc/cpuinfo")  # Linux alone has it
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
