"""`kivla convert`: what comes out computes what went in, every key is accounted for, and bad input leaves nothing."""

import json
import math
import pickle
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, pipeline

from kivla import KIVLAConfig, KIVLAForActionPrediction, KIVLAProcessor
from kivla.cli import main
from kivla.conversion.convert import REPORT, ConvertArguments, convert
from kivla.conversion.pi_config import IMAGE_TOKEN, empty_model, expected_weights, make_config
from kivla.conversion.pi_weights import LEROBOT_UNUSED, OUTPUT_LAYER, check, lerobot_name, plan, read_sizes
from kivla.conversion.weight_files import WEIGHTS, CheckpointError, Entry, Weights, write_weights
from tests.helpers import pi_reference as reference
from tests.helpers.pi_reference import EXPERT, PUBLISHED, TINY, VISION, VLM, Size
from tests.helpers.tolerance import assert_close_relative
from tests.helpers.vlm_processors import KINDS
from tests.modeling_kivla import test_pi0_parity

CHUNK, STATE_DIM, ACTION_DIM = 6, 3, 4
NONE = ["--relative_actions", "none"]  # what openpi's checkpoints do not say
variants = pytest.mark.parametrize("variant", ["pi0", "pi05"])
EMBED = VLM + "model.language_model.embed_tokens.weight"
HEAD = VLM + "lm_head.weight"


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints
# ---------------------------------------------------------------------------------------------------------------------


def openpi(weights: dict) -> dict:
    return weights


def lerobot(weights: dict) -> dict:
    """As LeRobot saves: everything under `model.`, the embedding twice."""
    return {f"model.{name}": tensor for name, tensor in {**weights, EMBED: weights[HEAD].clone()}.items()}


def newer(weights: dict) -> dict:
    """Of a newer transformers: no level `vision_model`; embed_tokens in the place of lm_head."""
    moved = {name.replace("vision_tower.vision_model.", "vision_tower."): t for name, t in weights.items()}
    moved[EMBED] = moved.pop(HEAD)
    return moved


def older(weights: dict) -> dict:
    """Of an older transformers: the language model with its own head and its own level `model`."""
    moved = {}
    for name, tensor in weights.items():
        name = name.replace(VLM + "lm_head", VLM + "language_model.lm_head")
        name = name.replace(VLM + "model.language_model.", VLM + "language_model.model.")
        moved[name.replace(VLM + "model.", VLM)] = tensor
    return moved


LAYOUTS = [openpi, lerobot, newer, older]


def write(folder: Path, weights: dict, **config) -> Path:
    folder.mkdir(parents=True)
    save_file({name: tensor.clone() for name, tensor in weights.items()}, folder / WEIGHTS)
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def shard(folder: Path, weights: dict, count: int = 3) -> dict:
    """Rewrite the weights of a folder in shards; returns the index."""
    (folder / WEIGHTS).unlink()
    names = list(weights)
    weight_map = {}
    for i in range(count):
        file = f"model-{i}.safetensors"
        part = names[i::count]
        save_file({name: weights[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"weight_map": weight_map}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    return index


def run(source, output, **options):
    return convert(ConvertArguments(source=str(source), output_dir=str(output), **options))


@pytest.fixture(scope="module")
def vlm_processor(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("paligemma")
    KINDS["paligemma"].processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """(variant, layout) -> the converted folder and its report."""
    done = {}

    def policy(variant: str, layout=openpi):
        if (variant, layout) not in done:
            root = tmp_path_factory.mktemp("policy")
            source = write(root / "source", layout(reference.random_weights(variant)), action_horizon=CHUNK)
            done[variant, layout] = root / "kivla", run(source, root / "kivla")
        return done[variant, layout]

    return policy


# ---------------------------------------------------------------------------------------------------------------------
# What comes out computes what went in
# ---------------------------------------------------------------------------------------------------------------------


def observation(variant: str, side: str = "right") -> tuple[dict, dict]:
    """Two observations, for the reference and for KIVLA; the second lacks the first camera and has a shorter prompt."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 2, 3, TINY.image, TINY.image, generator=generator) * 2 - 1
    image_mask = torch.tensor([[True, True], [False, True]])
    images[~image_mask] = -1
    tokens = torch.randint(5, 1000, (2, 9), generator=generator)
    token_mask = torch.ones(2, 9, dtype=torch.bool)
    token_mask[1, 6:] = False
    noise = torch.randn(2, CHUNK, TINY.dim, generator=generator)
    state = {"state": torch.randn(2, TINY.dim, generator=generator)} if variant == "pi0" else {}
    theirs = {"images": images, "image_mask": image_mask, "tokens": tokens, "token_mask": token_mask, **state}

    rows = [
        torch.cat([torch.full((int(cameras.sum()) * TINY.patches,), IMAGE_TOKEN), words[real]])
        for cameras, words, real in zip(image_mask, tokens, token_mask, strict=True)
    ]
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side=side)
    attention_mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], True, padding_side=side)
    ours = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": torch.zeros_like(input_ids),
        "pixel_values": images[image_mask],
        **state,
    }
    return {**theirs, "noise": noise}, {**ours, "noise": noise}


@pytest.mark.parametrize(("layout", "side"), [*((layout, "right") for layout in LAYOUTS), (openpi, "left")])
@variants
def test_sampled_actions_are_those_of_the_formulas(policies, variant, layout, side):
    folder, report = policies(variant, layout)
    assert (report.variant, report.layout) == (variant, "LeRobot" if layout is lerobot else "openpi")
    theirs, ours = observation(variant, side)
    expected = reference.sample_actions(reference.random_weights(variant), **theirs)
    model = KIVLAForActionPrediction.from_pretrained(folder)
    assert_close_relative(model.sample_actions(**ours), expected, what="actions")


def swap(tensor: torch.Tensor, order: list[int], dim: int) -> torch.Tensor:
    parts = tensor.chunk(len(order), dim)
    return torch.cat([parts[i] for i in order], dim)


MISTAKES = {
    "scale and shift": ("pi05", r".dense.", [1, 0, 2], 0),
    "shift and gate": ("pi05", r".dense.", [0, 2, 1], 0),
    "sines and cosines": ("pi05", "expert.time_mlp_in.weight", [1, 0], 1),
    "actions and time": ("pi0", "expert.action_time_mlp_in.weight", [1, 0], 1),
    "rotary halves": ("pi05", "expert.layers.1.self_attn.q_proj", [1, 0], 0),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_would_see(policies, mistake):
    variant, part, order, dim = MISTAKES[mistake]
    theirs, ours = observation(variant)
    expected = reference.sample_actions(reference.random_weights(variant), **theirs)
    model = KIVLAForActionPrediction.from_pretrained(policies(variant)[0])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.copy_(swap(parameter, order, dim))
    assert (model.sample_actions(**ours) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("original_format", [True, False])
def test_transformers_pi0(tmp_path, original_format):
    """Under the names of LeRobot, as the library saves by default, or its own."""
    pi0 = test_pi0_parity.pi0_model()
    pi0.save_pretrained(tmp_path / "pi0", save_original_format=original_format)
    report = run(tmp_path / "pi0", tmp_path / "kivla")
    assert report.layout == ("openpi" if original_format else "transformers")
    model = KIVLAForActionPrediction.from_pretrained(tmp_path / "kivla")
    theirs, ours = test_pi0_parity.observation(padded=True)
    theirs["pixel_attention_mask"] = torch.tensor([[True, True], [False, True]])
    tokens = test_pi0_parity.TOKENS_PER_IMAGE
    for batch in (theirs, ours):  # the second observation lacks the first camera
        for name in ("input_ids", "attention_mask"):
            row = batch[name][1]
            batch[name] = torch.stack([batch[name][0], torch.cat([row[tokens:], torch.zeros_like(row[:tokens])])])
    ours["pixel_values"] = theirs["pixel_values"][theirs["pixel_attention_mask"]]
    ours["position_ids"] = ours["attention_mask"].cumsum(-1) - 1
    ours["expert_attention_mask"] = ours["attention_mask"].bool()
    noise = torch.randn(2, test_pi0_parity.CHUNK, test_pi0_parity.ACTION_DIM)
    expected = pi0.sample_actions(**theirs, noise=noise.clone())
    assert_close_relative(model.sample_actions(**ours, noise=noise), expected, what="actions")


# ---------------------------------------------------------------------------------------------------------------------
# Every key is accounted for
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@variants
def test_report_accounts_for_every_key(policies, variant, layout):
    folder, report = policies(variant, layout)
    source = load_file(folder.parent / "source" / WEIGHTS)
    written = load_file(folder / WEIGHTS)
    assert source.keys() == report.used.keys() | report.dropped.keys()
    assert not report.used.keys() & report.dropped.keys()
    assert set(report.used.values()) == written.keys()
    for key, name in report.used.items():
        assert torch.equal(source[key], written[name]), key
    dropped = {f"model.{EXPERT}lm_head.weight", f"model.{HEAD}"} if layout is lerobot else {f"{EXPERT}lm_head.weight"}
    assert report.dropped.keys() == dropped
    assert report.missing == {OUTPUT_LAYER: "tied: it is embed_tokens"}
    assert json.loads((folder / REPORT).read_text())["used"] == report.used


@variants
def test_nothing_is_left_over_when_the_policy_is_loaded(policies, variant):
    folder, _ = policies(variant)
    _, info = KIVLAForActionPrediction.from_pretrained(folder, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    config = json.loads((folder / "config.json").read_text())
    assert "AutoModelForImageTextToText" in config["auto_map"] and (folder / "modeling_kivla.py").is_file()


@pytest.mark.parametrize("names", [openpi, lerobot])
@variants
def test_published_sizes(variant, names):
    """All keys of the published checkpoints by name and shape; nothing is allocated."""
    shapes = reference.shapes(variant, PUBLISHED)

    def total(*prefixes: str) -> int:
        return sum(math.prod(s) for n, s in shapes.items() if n.startswith(prefixes) and n != EXPERT + "lm_head.weight")

    assert total(VLM) == 2_923_335_408
    assert total(EXPERT) == (427_932_672 if variant == "pi05" else 311_464_960)
    if variant == "pi05":
        assert total("action", "time") == 2_165_792

    meta = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    if names is lerobot:
        meta = {f"model.{name}": tensor for name, tensor in {**meta, EMBED: meta[HEAD]}.items()}
    found = {name: tuple(tensor.shape) for name, tensor in meta.items()}
    planned = plan(found, same=lambda a, b: {a, b} == {f"model.{EMBED}", f"model.{HEAD}"})
    sizes = read_sizes({target: found[source] for target, source in planned.sources.items()})
    config = make_config(sizes, {"chunk_size": 50}, planned.is_tied)
    expected = {name: shape for name, (_, shape) in expected_weights(empty_model(config)).items()}
    check(planned.sources, found, expected)
    assert len(planned.sources) + len(planned.dropped) == len(found)
    text, vision = config.vlm_config.text_config, config.vlm_config.vision_config
    assert (text.head_dim, text.num_key_value_heads, vision.num_attention_heads, vision.image_size) == (256, 1, 16, 224)
    assert {lerobot_name(target) for target in planned.sources} <= {
        *(name if names is lerobot else f"model.{name}" for name in found),
        f"model.{EMBED}",
    }


def test_weights_in_shards_and_pickles(tmp_path):
    weights = reference.random_weights("pi05")
    run(write(tmp_path / "whole", weights, chunk_size=CHUNK), tmp_path / "a")
    whole = load_file(tmp_path / "a" / WEIGHTS)
    shard(write(tmp_path / "shards", weights, chunk_size=CHUNK), weights)
    run(tmp_path / "shards", tmp_path / "b")
    pickles = write(tmp_path / "pickles", weights, chunk_size=CHUNK)
    (pickles / WEIGHTS).unlink()
    torch.save(weights, pickles / "pytorch_model.bin")
    run(pickles, tmp_path / "c", allow_pickle=True)
    (pickles / "pytorch_model.bin").rename(pickles / "any.pt")
    run(pickles / "any.pt", tmp_path / "d", allow_pickle=True)
    for folder in "bcd":
        written = load_file(tmp_path / folder / WEIGHTS)
        assert written.keys() == whole.keys()
        assert all(torch.equal(written[name], whole[name]) for name in whole)


def test_embedding_and_output_layer_that_differ(tmp_path):
    weights = lerobot(reference.random_weights("pi05"))
    weights[f"model.{HEAD}"] = weights[f"model.{HEAD}"] + 1
    report = run(write(tmp_path / "source", weights, chunk_size=CHUNK), tmp_path / "kivla", keep_untied=True)
    assert not report.missing and report.dropped.keys() == {LEROBOT_UNUSED}
    model = KIVLAForActionPrediction.from_pretrained(tmp_path / "kivla")
    assert torch.equal(model.get_input_embeddings().weight, weights[f"model.{EMBED}"])
    assert torch.equal(model.get_output_embeddings().weight, weights[f"model.{HEAD}"])
    run(tmp_path / "kivla", tmp_path / "back", to="lerobot")
    back = load_file(tmp_path / "back" / WEIGHTS)
    assert torch.equal(back[f"model.{HEAD}"], weights[f"model.{HEAD}"])
    assert torch.equal(back[f"model.{EMBED}"], weights[f"model.{EMBED}"])


def test_weights_of_several_dtypes(tmp_path):
    """As openpi saves in bfloat16: norms and patch embedding stay float32. Nothing is rounded."""
    weights = {
        name: tensor if "norm" in name or "patch_embedding" in name else tensor.bfloat16()
        for name, tensor in reference.random_weights("pi05").items()
    }
    source = write(tmp_path / "source", weights, chunk_size=CHUNK)
    report = run(source, tmp_path / "kivla")
    assert report.dtypes.keys() == {"bfloat16", "float32"} and any("several dtypes" in note for note in report.notes)
    written = load_file(tmp_path / "kivla" / WEIGHTS)
    model = KIVLAForActionPrediction.from_pretrained(tmp_path / "kivla").state_dict()
    for key, name in report.used.items():
        assert written[name].dtype == weights[key].dtype and torch.equal(written[name], weights[key])
        assert model[name].dtype == torch.float32 and torch.equal(model[name], weights[key].float())
    report = run(source, tmp_path / "cast", dtype="bfloat16")
    assert report.cast_to == "bfloat16"
    written = load_file(tmp_path / "cast" / WEIGHTS)
    assert all(torch.equal(written[name], weights[key].bfloat16()) for key, name in report.used.items())
    assert KIVLAForActionPrediction.from_pretrained(tmp_path / "cast").dtype == torch.bfloat16


def test_one_tensor_at_a_time(tmp_path):
    alive, shape = [], (7, 3)

    def read(i: int) -> torch.Tensor:
        assert not any(other() is not None for other in alive), "a tensor outlives the reading of the next one"
        tensor = torch.full(shape, float(i))
        alive.append(weakref.ref(tensor))
        return tensor

    entries = [Entry(f"w{i}", shape, torch.float32, lambda i=i: read(i)) for i in range(4)]
    for dtype in (None, torch.bfloat16):
        alive.clear()
        write_weights(tmp_path / "a.safetensors", entries, dtype)
        assert len(alive) == 4
        written = load_file(tmp_path / "a.safetensors")
        assert all(torch.equal(written[f"w{i}"], torch.full(shape, float(i), dtype=dtype)) for i in range(4))


def test_weights_are_read_when_asked_for(tmp_path, monkeypatch):
    """Planning and comparing need names and shapes alone, and some rows at a time."""
    a = torch.arange(60.0).reshape(20, 3)
    others = {"c": a + torch.eye(20, 3), "d": a[:10].clone(), "e": a.bfloat16()}
    save_file({"a": a, "b": a.clone(), **others}, tmp_path / "w.safetensors")
    weights = Weights(tmp_path / "w.safetensors")
    sizes = []
    for name, read in list(weights._read.items()):
        monkeypatch.setitem(weights._read, name, lambda rows, read=read: sizes.append(len(read(rows))) or read(rows))
    assert weights.shapes["d"] == (10, 3) and not sizes
    assert weights.same("a", "b", rows=8) and sizes == [8, 8, 8, 8, 4, 4]
    assert not weights.same("a", "c", rows=8) and not weights.same("a", "d") and weights.same("a", "e")
    assert torch.equal(weights["a"], a)


# ---------------------------------------------------------------------------------------------------------------------
# There and back
# ---------------------------------------------------------------------------------------------------------------------

_random = np.random.default_rng(0)


def statistics(dim: int) -> dict[str, list[float]]:
    low = _random.normal(size=dim)
    spread = _random.uniform(0.5, 2, dim)
    return {
        "mean": (low + spread / 2).tolist(),
        "std": (spread / 4).tolist(),
        "min": (low - 0.1).tolist(),
        "max": (low + spread + 0.1).tolist(),
        "q01": low.tolist(),
        "q99": (low + spread).tolist(),
    }


NORM_STATS = {"state": statistics(STATE_DIM), "actions": statistics(ACTION_DIM)}
CAMERAS = ["observation.images.base", "observation.images.wrist"]


def add_norm_stats(folder: Path, values: dict = NORM_STATS, asset: str = "robot") -> None:
    file = folder / "assets" / asset / "norm_stats.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"norm_stats": values}))


def add_lerobot_files(folder: Path, mode: str, *more: dict, norm_map: dict | None = None) -> None:
    """Preprocessor as LeRobot saves it."""
    tensors = {
        f"{feature}.{kind}": torch.tensor(values, dtype=torch.float64)
        for name, feature in (("state", "observation.state"), ("actions", "action"))
        for kind, values in NORM_STATS[name].items()
    }
    save_file({**tensors, "action.count": torch.tensor([182.0])}, folder / "state.safetensors")
    norm_map = {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode} if norm_map is None else norm_map
    normalizer = {
        "registry_name": "normalizer_processor",
        "config": {"eps": 1e-8, "features": {}, "norm_map": norm_map},
        "state_file": "state.safetensors",
    }
    steps = [{"registry_name": "to_batch_processor", "config": {}}, *more, normalizer]
    (folder / "policy_preprocessor.json").write_text(json.dumps({"name": "policy_preprocessor", "steps": steps}))


def lerobot_config() -> dict:
    image = {"type": "VISUAL", "shape": [3, 8, 8]}
    features = {**dict.fromkeys(CAMERAS, image), "observation.images.empty_camera_0": image}
    features["observation.state"] = {"type": "STATE", "shape": [STATE_DIM]}
    return {"type": "pi05", "chunk_size": CHUNK, "max_state_dim": 9, "input_features": features}


@variants
@pytest.mark.parametrize("layout", [openpi, lerobot])
def test_statistics_come_along(tmp_path, vlm_processor, variant, layout):
    config = lerobot_config() if layout is lerobot else {"action_horizon": CHUNK}
    folder = write(tmp_path / "source", layout(reference.random_weights(variant)), **config)
    if layout is lerobot:
        add_lerobot_files(folder, "QUANTILES" if variant == "pi05" else "MEAN_STD")
    else:
        add_norm_stats(folder)
    told = {} if layout is lerobot else {"relative_actions": ["none"]}
    run(folder, tmp_path / "kivla", vlm_processor=vlm_processor, **told)
    processor = KIVLAProcessor.from_pretrained(tmp_path / "kivla")
    slots = ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"]
    assert processor.cameras == (CAMERAS if layout is lerobot else slots)
    chunk = _random.normal(size=(CHUNK, TINY.dim))
    of = {name: {kind: np.array(v) for kind, v in values.items()} for name, values in NORM_STATS.items()}
    state = np.array([0.3, -0.2, 1.0])
    if variant == "pi05":
        expected = (chunk[:, :ACTION_DIM] + 1) / 2 * (of["actions"]["q99"] - of["actions"]["q01"] + 1e-6)
        expected += of["actions"]["q01"]
        normalised = (state - of["state"]["q01"]) / (of["state"]["q99"] - of["state"]["q01"] + 1e-6) * 2 - 1
    else:
        expected = chunk[:, :ACTION_DIM] * (of["actions"]["std"] + 1e-6) + of["actions"]["mean"]
        normalised = (state - of["state"]["mean"]) / (of["state"]["std"] + 1e-6)
    actions = processor.unnormalize_actions(chunk, clip_actions=False)  # neither openpi nor LeRobot clips
    assert_close_relative(actions, expected, roundings=16, dtype=torch.float32, what="actions")

    image = Image.new("RGB", (8, 8))
    given = [image, *([None] * (len(processor.cameras) - 1))]
    batch = processor(images=[given], text=["pick_up the cup"], state=[state])
    words = processor.tokenizer.decode(batch["input_ids"][0])
    if variant == "pi05":
        bins = np.digitize(normalised, np.linspace(-1, 1, 257)[:-1]) - 1  # openpi; -1 below the range
        assert words.endswith(f"<bos>Task: pick up the cup, State: {' '.join(map(str, bins))};\nAction: ")
    else:
        assert words.endswith("<bos>pick up the cup\n")
        assert_close_relative(batch["state"][0], [*normalised, 0, 0], roundings=16, what="state")
    assert batch["action_mask"].all() and batch["action_mask"].shape == (1, CHUNK, TINY.dim), "all dimensions get noise"


@pytest.mark.parametrize("layout", [openpi, lerobot])
@variants
def test_to_lerobot_and_back(tmp_path, vlm_processor, variant, layout):
    given = lerobot_config() if layout is lerobot else {"action_horizon": CHUNK}
    delays = {"rtc_training_max_delay": 3} if (layout, variant) == (lerobot, "pi05") else {}
    given |= delays
    source = write(tmp_path / "source", layout(reference.random_weights(variant)), **given, num_inference_steps=7)
    add_norm_stats(source)
    run(source, tmp_path / "kivla", vlm_processor=vlm_processor, relative_actions=["none"])
    assert KIVLAConfig.from_pretrained(tmp_path / "kivla").rtc_max_delay == (3 if delays else 0)
    report = run(tmp_path / "kivla", tmp_path / "lerobot", to="lerobot")
    run(tmp_path / "lerobot", tmp_path / "again", vlm_processor=vlm_processor)

    exported, original = load_file(tmp_path / "lerobot" / WEIGHTS), lerobot(reference.random_weights(variant))
    assert exported.keys() == original.keys() - {f"model.{EMBED}"}, "LeRobot reads strictly, and makes embed_tokens"
    assert all(torch.equal(exported[name], original[name]) for name in exported.keys() - {LEROBOT_UNUSED})
    assert not exported[LEROBOT_UNUSED].any() and report.missing.keys() == {LEROBOT_UNUSED}
    config = json.loads((tmp_path / "lerobot" / "config.json").read_text())
    assert (config["type"], config["num_inference_steps"]) == (variant, 7)
    assert {name: config[name] for name in config if name.startswith("rtc")} == delays
    assert any("rtc_training_max_delay" in note for note in report.notes) == bool(delays)

    first, again = load_file(tmp_path / "kivla" / WEIGHTS), load_file(tmp_path / "again" / WEIGHTS)
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)
    for file in ("config.json", "processor_config.json"):
        assert json.loads((tmp_path / "again" / file).read_text()) == json.loads(
            (tmp_path / "kivla" / file).read_text()
        )
    steps = json.loads((tmp_path / "lerobot" / "policy_postprocessor.json").read_text())["steps"]
    assert (tmp_path / "lerobot" / steps[0]["state_file"]).is_file()


def test_what_lerobot_cannot_hold(tmp_path, vlm_processor, policies):
    """A policy of two robots is refused; one that keeps unused dimensions at zero, without normalisation, is noted."""
    folder, _ = policies("pi05")
    for name, of in (("two", {"robots": {"a": {"action_dim": 3}, "b": {}}}), ("one", {"action_dim": ACTION_DIM})):
        shutil.copytree(folder, tmp_path / name)
        processor = AutoProcessor.from_pretrained(vlm_processor)
        sizes = {"chunk_size": CHUNK, "max_action_dim": TINY.dim, "max_state_dim": TINY.dim}
        KIVLAProcessor(processor, normalization="none", **sizes, **of).save_pretrained(tmp_path / name)
    outcome(tmp_path / "two", tmp_path, r"of one robot, this one has \['a', 'b'\]", to="lerobot")
    report = run(tmp_path / "one", tmp_path / "lerobot", to="lerobot")
    assert any("zeros in 1 unused action dimensions" in note for note in report.notes)
    assert not list((tmp_path / "lerobot").glob("policy_*.safetensors"))
    run(tmp_path / "lerobot", tmp_path / "again", vlm_processor=vlm_processor)
    again = KIVLAProcessor.from_pretrained(tmp_path / "again")
    assert again.normalization == "none" and again.statistics is None and again.action_dim == ACTION_DIM


def test_a_converted_policy_acts_in_a_pipeline(tmp_path, vlm_processor):
    source = write(tmp_path / "source", reference.random_weights("pi05"), action_horizon=CHUNK)
    add_norm_stats(source)
    main(["convert", str(source), str(tmp_path / "kivla"), "--vlm_processor", vlm_processor, *NONE])
    pipe = pipeline("action-prediction", model=str(tmp_path / "kivla"))
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    images = {"left_wrist_0_rgb": image[::-1], "base_0_rgb": image, "right_wrist_0_rgb": None}
    given = {"images": images, "text": "pick up the cup", "state": [0.1, 0.2, 0.3]}
    actions = pipe(given, seed=0, clip_actions=False)["actions"]  # openpi does not
    assert actions.shape == (CHUNK, ACTION_DIM) and np.isfinite(actions).all()

    # the same by hand: pixels in [-1, 1], the prompt's tokens, the noise of this seed
    tokens = pipe.processor(images=[given["images"]], text=[given["text"]], state=[given["state"]])["input_ids"][0]
    tokens = tokens[tokens != pipe.model.config.vlm_config.image_token_id][None]
    pixels = torch.from_numpy(np.stack([image, image[::-1]])).permute(0, 3, 1, 2)[None] / 127.5 - 1
    noise = torch.randn((1, CHUNK, TINY.dim), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 2, dtype=torch.bool), torch.ones_like(tokens, dtype=torch.bool)
    chunk = reference.sample_actions(reference.random_weights("pi05"), pixels, mask[0], tokens, mask[1], noise)[0]
    low, high = np.array(NORM_STATS["actions"]["q01"]), np.array(NORM_STATS["actions"]["q99"])
    expected = (chunk[:, :ACTION_DIM].numpy() + 1) / 2 * (high - low + 1e-6) + low
    assert_close_relative(actions, expected, dtype=torch.float32, what="actions")


def test_pi05_that_does_not_see_the_state(tmp_path, vlm_processor):
    source = write(tmp_path / "source", reference.random_weights("pi05"), action_horizon=CHUNK)
    add_norm_stats(source)
    told = {"no_state_in_prompt": True, "relative_actions": ["none"]}
    run(source, tmp_path / "kivla", vlm_processor=vlm_processor, **told)
    processor = KIVLAProcessor.from_pretrained(tmp_path / "kivla")
    ids = processor(images=[[Image.new("RGB", (8, 8)), None, None]], text=["go"])["input_ids"][0]
    assert processor.tokenizer.decode(ids).endswith("<image><bos>go\n")
    report = run(tmp_path / "kivla", tmp_path / "lerobot", to="lerobot")
    assert any("LeRobot's prompt is 'Task" in note for note in report.notes)


def test_statistics_that_were_padded(tmp_path, vlm_processor):
    """openpi's older checkpoints: 32 dimensions, those that the robot does not have all zero."""
    padded = {
        name: {kind: numbers + [0.0] * (TINY.dim - len(numbers)) for kind, numbers in values.items()}
        for name, values in NORM_STATS.items()
    }
    source = write(tmp_path / "source", reference.random_weights("pi05"), action_horizon=CHUNK)
    add_norm_stats(source, padded)
    report = run(source, tmp_path / "padded", vlm_processor=vlm_processor)
    assert any(f"--state_dim {STATE_DIM}" in note for note in report.notes)
    assert any(f"--action_dim {ACTION_DIM}" in note for note in report.notes)
    report = run(source, tmp_path / "cut", vlm_processor=vlm_processor, state_dim=STATE_DIM, action_dim=ACTION_DIM)
    assert not any("_dim" in note for note in report.notes)
    processor = KIVLAProcessor.from_pretrained(tmp_path / "cut")
    assert processor.action_dim == ACTION_DIM
    assert processor.statistics["state"]["q99"].tolist() == NORM_STATS["state"]["q99"]


def test_steps_that_kivla_does_not_do_are_told(tmp_path, vlm_processor):
    steps = [
        {"registry_name": "unheard_of_processor", "config": {"enabled": True, "joints": ["gripper"]}},
        {"registry_name": "other_processor", "config": {"enabled": False}},
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {"front": "base"}}},
    ]
    source = write(tmp_path / "source", lerobot(reference.random_weights("pi05")), **lerobot_config())
    add_lerobot_files(source, "QUANTILES", *steps)
    notes = "\n".join(run(source, tmp_path / "kivla", vlm_processor=vlm_processor).notes)
    assert "unheard_of_processor" in notes and "gripper" in notes
    assert "other_processor" not in notes and "{'front': 'base'}" in notes


# ---------------------------------------------------------------------------------------------------------------------
# Bad input leaves nothing
# ---------------------------------------------------------------------------------------------------------------------

NORM = "post_layernorm.bias"
Q_PROJ = EXPERT + "model.layers.1.self_attn.q_proj.weight"


class _Code:
    def __reduce__(self):
        return print, ("this must not run",)


def as_pickle(folder: Path, content) -> None:
    (folder / WEIGHTS).unlink()
    with open(folder / "pytorch_model.bin", "wb") as file:
        pickle.dump(content, file)


def without(weights: dict, *parts: str) -> dict:
    return {name: tensor for name, tensor in weights.items() if not any(part in name for part in parts)}


PI0_PARTS = {name: torch.zeros(shape) for name, shape in reference.shapes("pi0").items() if "state_proj" in name}
# what is wrong -> the weights, from those of π0.5, and the message
BAD_WEIGHTS = {
    "missing": (lambda w: without(w, Q_PROJ), r"1 missing keys: expert\.layers\.1\.self_attn\.q_proj"),
    "missing, size unknown": (lambda w: without(w, "action_in_proj.weight"), "has no expert.action_in_proj.weight"),
    "no embedding": (lambda w: without(w, HEAD), "has no vlm.model.language_model.embed_tokens.weight"),
    "layer missing": (lambda w: without(w, VISION + "encoder.layers.0."), "has no vlm.model.vision_tower.*layers.0"),
    "extra": (lambda w: {**w, "adapter.weight": torch.zeros(1)}, "1 unexpected keys: adapter.weight"),
    "extra layer": (
        lambda w: {**w, Q_PROJ.replace("layers.1", "layers.9"): w[Q_PROJ]},
        r"1 unexpected keys: .*layers\.9",
    ),
    "early LeRobot": (
        lambda w: {**lerobot(w), "normalize_inputs.buffer_observation_state.mean": torch.zeros(3)},
        "migrate_policy_normalization",
    ),
    "misshapen": (lambda w: {**w, Q_PROJ: w[Q_PROJ][:-1]}, r"q_proj.weight is \(31, 16\), expected \(32, 16\)"),
    "misshapen, size unknown": (lambda w: {**w, HEAD: w[HEAD][0]}, r"embed_tokens.weight is \(32,\), expected 2"),
    "heads that do not fit": (
        lambda w: reference.random_weights("pi05", Size(vision_hidden=24)),
        "16 vision heads do not fit",
    ),
    "quantised": (lambda w: {**w, Q_PROJ: w[Q_PROJ].to(torch.int8)}, "quantised checkpoints"),
    "not a number": (lambda w: {**w, Q_PROJ: w[Q_PROJ] * math.nan}, "NaN or infinite: the checkpoint is damaged"),
    "untied": (lambda w: {**w, EMBED: w[HEAD] + 1}, "two different matrices.*--keep_untied"),
    "untied by size": (lambda w: {**w, EMBED: w[HEAD][1:].clone()}, "two different matrices"),
    "twice": (lambda w: {**w, f"{VLM}model.vision_tower.{NORM}": w[VISION + NORM]}, "there twice, under two names"),
    "two layouts": (lambda w: {**w, f"model.{Q_PROJ}": w[Q_PROJ]}, "a mixture of LeRobot and openpi"),
    "no layout": (lambda w: {"x": torch.zeros(1)}, "none of them; it has x"),
    "no expert": (lambda w: without(w, EXPERT, "action", "time"), "neither π0 .* nor π0.5"),
    "π0 and π0.5": (lambda w: {**w, **PI0_PARTS}, "neither π0 .* nor π0.5"),
}


def outcome(source, tmp_path: Path, message: str, **options) -> None:
    with pytest.raises(CheckpointError, match=message):
        run(source, tmp_path / "out" / "kivla", **options)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir()), "something was left behind"


@pytest.mark.parametrize("what", BAD_WEIGHTS)
def test_bad_weights(tmp_path, what):
    change, message = BAD_WEIGHTS[what]
    source = write(tmp_path / "source", change(reference.random_weights("pi05")), action_horizon=CHUNK)
    outcome(source, tmp_path, message)


def cut_off(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def in_shards(folder: Path, change) -> None:
    weights = load_file(folder / WEIGHTS)
    index = shard(folder, weights)
    change(folder, index["weight_map"])
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def double(folder: Path, weight_map: dict) -> None:
    save_file(load_file(folder / "model-0.safetensors"), folder / "model-9.safetensors")
    weight_map["more"] = "model-9.safetensors"


BAD_FILES = {
    "cut off": (cut_off, {}, "is damaged or incomplete"),
    "shard missing": (
        lambda f: in_shards(f, lambda f, _: (f / "model-1.safetensors").unlink()),
        {},
        "lacks 1 of 3 files",
    ),
    "key not in its shard": (
        lambda f: in_shards(f, lambda _, m: m.update(x="model-1.safetensors")),
        {},
        "one side only: x",
    ),
    "key in two shards": (lambda f: in_shards(f, double), {}, "is in two files"),
    "nothing": (lambda f: (f / WEIGHTS).unlink(), {}, "has no weights"),
    "pickle": (lambda f: as_pickle(f, {}), {}, "pickles can run code.*--allow_pickle"),
    "pickle with code": (lambda f: as_pickle(f, {"a": _Code()}), {"allow_pickle": True}, "cannot be read as weights"),
    "pickle of no weights": (
        lambda f: (as_pickle(f, {}), torch.save({"epoch": 1}, f / "pytorch_model.bin")),
        {"allow_pickle": True},
        "not a dictionary of tensors",
    ),
    "chunk size unknown": (lambda f: (f / "config.json").unlink(), {}, "Pass --chunk_size"),
    "too large for float16": (
        lambda f: save_file({**load_file(f / WEIGHTS), Q_PROJ: torch.full((32, 16), 1e6)}, f / WEIGHTS),
        {"dtype": "float16"},
        "torch.float16 cannot hold it",
    ),
    "statistics of two robots": (
        lambda f: (add_norm_stats(f), add_norm_stats(f, asset="other")),
        {},
        "statistics of 2 robots.*--norm_stats",
    ),
    "no statistics": (
        lambda f: add_norm_stats(f, {"state": NORM_STATS["state"]}),
        {},
        r"should be norm_stats.json.*it has \['state'\]",
    ),
    "statistics not found": (lambda f: None, {"norm_stats": "nowhere.json"}, "nowhere.json should be .* not exist"),
    "statistics of unequal lengths": (
        lambda f: add_norm_stats(f, {**NORM_STATS, "state": {"mean": [0.0], "std": [1.0, 1.0]}}),
        {},
        "statistics of .* are damaged: Statistics must all have the shape",
    ),
    "statistics that are not finite": (
        lambda f: add_norm_stats(f, {**NORM_STATS, "state": {"mean": [math.nan], "std": [1.0]}}),
        {},
        "are damaged: .*must be finite",
    ),
    "damaged config.json": (lambda f: (f / "config.json").write_text("{"), {}, "config.json is damaged"),
    "statistics that lack quantiles": (
        lambda f: add_norm_stats(f, {n: {k: v[k] for k in ("mean", "std")} for n, v in NORM_STATS.items()}),
        {},
        "No processor can be made.*needs the statistics",
    ),
    "statistics that are too wide": (
        lambda f: add_norm_stats(f, {**NORM_STATS, "actions": statistics(9)}),
        {},
        "Actions have 9 dimensions",
    ),
    "normalisation by extremes": (lambda f: add_lerobot_files(f, "MIN_MAX"), {}, "normalises by MIN_MAX"),
    "normalisation of two kinds": (
        lambda f: add_lerobot_files(f, "", norm_map={"STATE": "QUANTILES", "ACTION": "MEAN_STD"}),
        {},
        "normalises by MEAN_STD and QUANTILES",
    ),
    "LeRobot's statistics missing": (
        lambda f: (add_lerobot_files(f, "QUANTILES"), (f / "state.safetensors").unlink()),
        {},
        "names state.safetensors, which is not there",
    ),
    "wrong direction": (lambda f: None, {"to": "lerobot"}, "starts from a KIVLA policy, but .* openpi layout"),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_bad_files(tmp_path, vlm_processor, what):
    change, options, message = BAD_FILES[what]
    source = write(tmp_path / "source", reference.random_weights("pi05"), action_horizon=CHUNK)
    change(source)
    outcome(source, tmp_path, message, **{"vlm_processor": vlm_processor, **options})


def test_other_mistakes(tmp_path, policies):
    folder, _ = policies("pi0")
    outcome(folder, tmp_path, "is a KIVLA policy already")
    outcome(folder.parent / "source", tmp_path, "π0 never has the state", no_state_in_prompt=True)
    outcome(tmp_path / "nowhere", tmp_path, "does not exist")
    with pytest.raises(CheckpointError, match="exists and is not an empty folder"):
        run(folder.parent / "source", folder)
    config = json.loads((folder / "config.json").read_text())
    copy = write(tmp_path / "copy", load_file(folder / WEIGHTS), **{**config, "state_encoding": "text"})
    outcome(copy, tmp_path, "cannot hold this policy: pi0 with state_encoding=text", to="lerobot")


def test_an_interrupted_conversion_leaves_nothing(tmp_path, policies, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("kivla.conversion.convert.write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(policies("pi05")[0].parent / "source", tmp_path / "out" / "kivla")
    assert not list((tmp_path / "out").iterdir())


def test_the_command(tmp_path, capsys):
    source = write(tmp_path / "source", reference.random_weights("pi05"))
    with pytest.raises(SystemExit, match="Pass --chunk_size"):
        main(["convert", str(source), str(tmp_path / "kivla")])
    (tmp_path / "kivla").mkdir()  # an empty folder will do
    main(["convert", str(source), str(tmp_path / "kivla"), "--chunk_size", "6"])
    printed = capsys.readouterr().out
    assert "pi05, openpi layout -> KIVLA" in printed and "dropped paligemma_with_expert.gemma_expert.lm_head" in printed
    main(["convert", "--to", "lerobot", "--source", str(tmp_path / "kivla"), "--output_dir", str(tmp_path / "lerobot")])
    assert "LeRobot builds only the published sizes" in capsys.readouterr().out
