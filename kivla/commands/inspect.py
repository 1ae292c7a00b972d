"""`kivla inspect`: what the action expert reads of a VLM or policy, in words and as a picture of the attention mask."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..command_line import parse
from ..modeling_kivla import KIVLAConfig, KIVLAForActionPrediction
from ..modeling_kivla.backbone_attention import PrefixRecorder, find_text_decoder, handed_over
from ..modeling_kivla.backbone_probe import build_without_weights, fill_with_tiny_weights
from ..modeling_kivla.remote_vlm import load_vlm_config
from ..named_models import TABLETOP, find_vlm, model_type
from ..processing import BinningActionTokenizer, KIVLAProcessor
from ..processing.vlm_processor import backend_name, image_backend, load_vlm_processor
from ..training.evaluation.plots import plot_attention_mask
from ..training.model_size import (
    ExampleShape,
    build_without_memory,
    expert_shares,
    key_value_numbers,
    part_sizes,
    suggest_expert,
)
from ..training.run_folder import check_can_write_file


@dataclass
class InspectArguments:
    """Works from the config alone: no weights are read."""

    model: str = field(metadata={"help": "A VLM or a KIVLA policy: a folder, a Hub id, or tabletop."})
    num_images: int = field(default=1, metadata={"help": "Images in the example."})
    history: int = field(default=1, metadata={"help": "For a VLM: frames of each image's camera."})
    text: str = field(default="pick up the cup", metadata={"help": "Instruction in the example."})
    layer_stride: int = field(default=1, metadata={"help": "For a VLM: read every k-th layer."})
    chunk_size: int = field(default=50, metadata={"help": "For a VLM: actions in a chunk."})
    max_parameter_share: float = field(
        default=0.1, metadata={"help": "For a VLM: suggest an expert of at most this share of its parameters."}
    )
    max_step_share: float = field(
        default=0.15, metadata={"help": "For a VLM: and of the arithmetic of its training step."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})
    output: str = field(default="outputs/inspect.png", metadata={"help": "Where the picture of the mask goes."})


def run(arguments: Sequence[str]) -> None:
    (args,) = parse((InspectArguments,), arguments, prog="kivla inspect", positional="model")
    check_can_write_file(path := Path(args.output))
    args.model = find_vlm(args.model)
    kind = model_type(args.model, "policy or VLM", known=(TABLETOP,))
    code = {"trust_remote_code": args.trust_remote_code}
    is_policy = kind == KIVLAConfig.model_type
    if is_policy:
        config = KIVLAConfig.from_pretrained(args.model, trust_remote_code=args.trust_remote_code)
        processor = KIVLAProcessor.from_pretrained(args.model, **code)
        if args.history != 1:
            raise ValueError(f"--history is for a VLM; this policy sees {processor.observation_history}. Leave it out.")
    else:
        expert = {"layer_stride": args.layer_stride}
        vlm = load_vlm_config(args.model, **code)
        config = KIVLAConfig(vlm_config=vlm, expert_config=expert, chunk_size=args.chunk_size, state_encoding="none")
        processor = example_processor(args.model, config, args.trust_remote_code, args.history)
    model = build_without_memory(config)
    print(describe(config, model))
    print(f"\nsees       {processor.observation_history}")
    batch = example_batch(processor, args.num_images, args.text)
    image_ids = processor.tokenizer.convert_tokens_to_ids(sorted(processor.sequences.placeholders))
    mask, groups = attention_mask(config, batch, image_ids)
    print(describe_tokens(processor, batch))
    print("\n" + describe_sizes(config, model, shape := example_shape(config, processor, batch)))
    if not is_policy:
        print(describe_suggestion(config, shape, args.max_parameter_share, args.max_step_share))
    path.parent.mkdir(parents=True, exist_ok=True)
    plot_attention_mask(path, mask, groups)
    print(f"\nAttention mask, layer {config.expert_layers[0]['layer']}: {path}")


def describe(config: KIVLAConfig, model: KIVLAForActionPrediction) -> str:
    """Backbone and expert in words: layers that are read, heads, rotary embedding, parameters."""
    vlm, expert = (sum(p.numel() for p in part.parameters()) for part in (model.vlm, model.expert))
    text = config.get_text_config()
    scale = config.backbone_gradient_scale
    lines = [
        f"backbone   {config.vlm_config.model_type} ({type(model.vlm).__name__}), {vlm / 1e6:,.1f}M parameters, "
        f"vocabulary {text.vocab_size:,}",
        f"expert     {expert / 1e6:,.1f}M parameters, width {config.expert_config.hidden_size}, time by "
        f"{config.expert_config.time_conditioning}, state: {config.state_encoding}",
        f"actions    chunks of {config.chunk_size} steps, up to {config.max_action_dim} dimensions",
        f"gradient   {scale:g} of the flow loss's gradient reaches the backbone"
        + (" (knowledge insulation)" if scale == 0 else ""),
        f"reads      {len(config.expert_layers)} of {text.num_hidden_layers} layers"
        + (f"; {len(config.kv_layers)} have keys and values" if len(config.kv_layers) < text.num_hidden_layers else ""),
        "",
        "layers          heads  key/value heads  key size  value size  rotary embedding",
    ]
    # Layers that are alike, one after the other, share a line.
    shown = ("num_attention_heads", "num_key_value_heads", "key_dim", "value_dim", "rope", "rope_start", "inv_freq")
    runs: list[tuple[tuple, list[int]]] = []
    for layer in config.expert_layers:
        kind = tuple(layer[name] for name in shown)
        if not runs or runs[-1][0] != kind:
            runs.append((kind, []))
        runs[-1][1].append(layer["layer"])
    for (heads, kv_heads, key_dim, value_dim, rope, start, buffer), layers in runs:
        span = str(layers[0]) if len(layers) == 1 else f"{layers[0]} - {layers[-1]}"
        if len(layers) > 1 and layers != list(range(layers[0], layers[-1] + 1)):
            span += f" ({len(layers)})"
        where = "none" if rope is None else f"{rope}, from value {start}, {buffer}"
        lines.append(f"{span:<15}{heads:>6}{kv_heads:>17}{key_dim:>10}{value_dim:>12}  {where}")
    return "\n".join(lines)


def example_processor(name: str, config: KIVLAConfig, trust_remote_code: bool, history: int = 1) -> KIVLAProcessor:
    """A processor for a VLM that has none yet: two-dimensional actions in 16 bins, enough to see where tokens go."""
    return KIVLAProcessor(
        load_vlm_processor(name, trust_remote_code=trust_remote_code),
        action_tokenizer=BinningActionTokenizer(num_bins=16),
        chunk_size=config.chunk_size,
        max_action_dim=config.max_action_dim,
        max_state_dim=config.max_state_dim,
        state_encoding="none",
        normalization="none",
        action_dim=2,
        history=history,
    )


def example_batch(processor: KIVLAProcessor, num_images: int, text: str) -> dict:
    """One made-up training example."""
    num_images = len(processor.cameras) if processor.cameras else num_images
    image = Image.new("RGB", (224, 224), "grey")
    robot, state = processor.robot(), None
    if robot.needs_state:
        relative = robot.units.relative
        size = 1 if relative is None else relative.state_size
        state = [processor.statistics["state"]["mean"] if processor.statistics else np.zeros(size)]
    actions = np.zeros((min(8, processor.chunk_size), processor.action_dim))
    if robot.mean_action is not None:
        actions += robot.mean_action
    clip = [image] * processor.history
    return processor(images=[[clip] * num_images], text=[text], state=state, actions=[actions])


def attention_mask(config: KIVLAConfig, batch: dict, image_ids: list[int]) -> tuple[np.ndarray, list[tuple[str, int]]]:
    """Who sees whom in training, as it really is: the backbone's own mask is recorded, not drawn from memory.

    Args:
        image_ids: the tokens that stand for images.

    Returns:
        (T, T) with T = sequence + suffix of the expert; 0 = hidden, 1 = seen, 2 = seen with the gradient stopped; and
        the names and lengths of the groups of tokens.
    """
    # The VLM in small, as long as the vocabulary holds the batch's tokens.
    layer = config.expert_layers[0]["layer"]
    vocabulary = int(batch["input_ids"].max()) + 1
    config = copy.deepcopy(config)
    text = config.vlm_config.get_text_config()
    text.vocab_size = max(text.vocab_size, vocabulary)
    vlm = build_without_weights(config.vlm_config)
    fill_with_tiny_weights(vlm)
    # One pass, in which the attention of one layer says which mask it was given.
    recorder = PrefixRecorder([layer])
    ours = ("labels", "expert_attention_mask", "actions", "action_mask", "state")
    with torch.no_grad(), handed_over(recorder, find_text_decoder(vlm)):
        vlm(**{n: v for n, v in batch.items() if n not in ours}, use_cache=False)
    # No mask is either full or causal attention; numbers are 0 where a token is seen; bools say so.
    length = batch["input_ids"].shape[1]
    backbone = recorder.masks[layer]
    if backbone is None:
        backbone = torch.ones(length, length)
        backbone = backbone.tril() if recorder.is_causal[layer] else backbone
    else:
        backbone = backbone[0, 0]
        backbone = backbone if backbone.dtype == torch.bool else backbone == 0

    # Below the VLM's rows those of the expert: what it reads of the prefix, and its own tokens.
    state = int(config.state_encoding == "continuous")
    suffix = state + config.chunk_size
    mask = np.zeros((length + suffix, length + suffix), dtype=int)
    mask[:length, :length] = backbone.int().numpy()
    visible = batch["expert_attention_mask"][0].numpy()
    mask[length:, :length] = visible * (2 if config.backbone_gradient_scale == 0 else 1)
    mask[length:, length:] = 1
    if state:
        mask[length, length + 1 :] = 0
    # What each column is, in runs, for the picture's edges.
    is_learned = batch["labels"][0] != -100 if "labels" in batch else torch.zeros(length, dtype=torch.bool)
    is_image = torch.isin(batch["input_ids"][0], torch.tensor(image_ids))
    names = ["learned" if a else "image" if b else "text" for a, b in zip(is_learned, is_image, strict=True)]
    names += ["state"] * state + ["noisy actions"] * config.chunk_size
    return mask, [(name, len(list(run))) for name, run in groupby(names)]


def describe_tokens(processor: KIVLAProcessor, batch: dict) -> str:
    ids, length = batch["input_ids"][0].tolist(), int(processor.prompt_lengths(batch)[0])
    prompt, suffix = ids[:length], ids[length:]
    shown = processor.decode(prompt)
    lines = [f"prompt     {len(prompt)} tokens: ...{shown[-160:]!r}"]
    if suffix:
        lines.append(
            f"learned    {len(suffix)} tokens: {processor.decode(suffix[:4])!r} ... {processor.decode(suffix[-2:])!r}"
        )
    if len(processor.action_token_ids):
        ids = processor.action_token_ids
        lines.append(f"actions    {len(ids)} codes, ids {ids[0]} ... {ids[-1]} ({processor.action_token_placement})")
    if (backend := image_backend(processor.vlm_processor)) is not None:
        lines.append(f"images     prepared by {backend_name(backend)}")
    return "\n".join(lines)


def example_shape(config: KIVLAConfig, processor: KIVLAProcessor, batch: dict) -> ExampleShape:
    """How many tokens the example has, for the VLM and for the expert."""
    prompt = int(processor.prompt_lengths(batch)[0])
    chunk = config.chunk_size + (config.state_encoding == "continuous")
    return ExampleShape(prompt, batch["input_ids"].shape[1] - prompt, chunk, config.num_flow_samples)


def describe_sizes(config: KIVLAConfig, model: KIVLAForActionPrediction, shape: ExampleShape) -> str:
    """Parameters of each part, in the type of the files and in float32; and what the expert reads and costs."""
    stored = config.vlm_config.dtype or config.get_text_config().dtype or torch.float32
    types = dict.fromkeys([stored, torch.float32])  # a policy is trained in float32 unless told otherwise
    names = [str(dtype).removeprefix("torch.") for dtype in types]
    lines = [f"{'part':<17}{'parameters':>16}" + "".join(f"{'in ' + name:>15}" for name in names)]
    for part, size in part_sizes(model).items():
        lines.append(f"{part:<17}{size:>16,}" + "".join(f"{_memory(size * dtype.itemsize):>15}" for dtype in types))
    numbers = key_value_numbers(config)
    of_size, of_step = expert_shares(model, shape)
    draws = f"{shape.draws} noise draw" + "s" * (shape.draws > 1)
    return "\n".join(
        [
            *lines,
            "",
            f"keys, values   {_memory(numbers * 4)} a prompt token in float32, which the expert reads: "
            f"{_memory(numbers * 4 * shape.prompt)} for the {shape.prompt} of this prompt",
            f"expert costs   {of_size:.1%} of the VLM's parameters, and {of_step:.1%} of the arithmetic of the text "
            f"layers in a training step ({shape.prompt} + {shape.learned} tokens, chunk of {shape.chunk}, {draws})",
        ]
    )


def _memory(size: float) -> str:
    unit, name = next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if size >= u), (1, "bytes"))
    return f"{size / unit:,.{0 if unit == 1 else 1}f} {name}"


def describe_suggestion(
    config: KIVLAConfig, shape: ExampleShape, max_parameter_share: float, max_step_share: float
) -> str:
    """The expert that fits a budget, as options of `kivla train`."""
    budget = f"{max_parameter_share:.0%} of the parameters and {max_step_share:.0%} of the step"
    one = suggest_expert(config, shape, max_parameter_share, max_step_share)
    if one is None:
        return (
            f"suggested      none: no expert keeps to {budget}; allow more with --max_parameter_share and "
            "--max_step_share"
        )
    return (
        f"suggested      --expert_hidden_size {one.hidden_size} --expert_intermediate_size {one.intermediate_size} "
        f"--expert_layer_stride {one.layer_stride}: {one.parameter_share:.1%} and {one.step_share:.1%} "
        f"(at most {budget})"
    )
