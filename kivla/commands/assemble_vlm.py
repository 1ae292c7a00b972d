"""`kivla assemble-vlm`: a VLM of a language model and a vision tower that were pretrained apart."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..assembly import assemble_vlm, load_text_model, load_vision_tower
from ..assembly.pretrained_parts import DTYPES
from ..command_line import parse
from ..named_models import model_type
from ..training.run_folder import check_can_write, check_is_free


@dataclass
class AssembleArguments:
    output_dir: str = field(metadata={"help": "Where the VLM goes: a folder like any VLM's of the Hub."})
    text_model: str = field(metadata={"help": "The language model: Hub id or folder."})
    vision_tower: str = field(
        metadata={"help": "SigLIP, CLIP, DINOv2, ..., or a VLM whose tower is taken: Hub id or folder."}
    )
    gguf_file: str | None = field(
        default=None, metadata={"help": "File of the language model's weights, if they are GGUF (extra `gguf`)."}
    )
    vision_feature_layer: int | None = field(
        default=None,
        metadata={"help": "Which hidden states of the tower are taken; by default the VLM's own, else LLaVA's, -2."},
    )
    chat_template: str | None = field(
        default=None, metadata={"help": "File with a Jinja template, in place of the language model's own."}
    )
    dtype: str = field(
        default="auto",
        metadata={
            "help": "Precision of the saved weights; `auto`: the language model's.",
            "choices": ["auto", *DTYPES],
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of the new projector."})


def run(arguments: Sequence[str]) -> None:
    (args,) = parse((AssembleArguments,), arguments, prog="kivla assemble-vlm", positional="output_dir")
    check_is_free(Path(args.output_dir))
    check_can_write(args.output_dir)
    template = args.chat_template and Path(args.chat_template).read_text(encoding="utf-8")
    if args.gguf_file is None:
        model_type(args.text_model, "language model (--text_model)")
    model_type(args.vision_tower, "vision tower (--vision_tower)")
    text_model, tokenizer = load_text_model(args.text_model, args.gguf_file, args.dtype)
    tower = load_vision_tower(args.vision_tower, args.dtype, args.vision_feature_layer)
    vlm, processor = assemble_vlm(text_model, tokenizer, tower, template, args.seed)
    vlm.save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)
    new = sum(weight.numel() for weight in vlm.model.multi_modal_projector.parameters())
    print(f"{type(text_model).__name__} and {type(tower.model).__name__}: {vlm.num_parameters():,} parameters.")
    print(
        f"An image is {vlm.config.image_seq_length} tokens. The projector ({new:,}) is new: train it on images first."
    )
    if not processor.chat_template:
        print("There is no chat template: prompts are plain. `--chat_template FILE` gives one.")
    print(f"The VLM is in {args.output_dir}")
