"""A VLM whose code lies beside its files: every door that takes `trust_remote_code`, and other people's habits."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers.dynamic_module_utils
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, LlamaConfig, pipeline
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.llama import modeling_llama

from kivla import KIVLAConfig, KIVLAForActionPrediction, KIVLAProcessor
from kivla.cli import main
from kivla.demo.tiny_vlm import save_tiny_vlm
from kivla.modeling_kivla import UnsupportedBackboneError
from kivla.modeling_kivla.backbone_attention import _eager_attention
from tests.helpers.families import text
from tests.helpers.policies import awaken

CODE = Path(__file__).parents[1] / "out_of_tree" / "stranger_vlm.py"
CLASSES = {"AutoConfig": "StrangerConfig", "AutoModelForImageTextToText": "StrangerForConditionalGeneration"}
SIZES = {"chunk_size": 5, "max_action_dim": 3, "expert_config": {"hidden_size": 32, "intermediate_size": 48}}
PICTURE = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
OBSERVATION = {"images": {"front": PICTURE}, "text": "go left", "state": [0.1, 0.2, 0.3]}
MAPPINGS = (CONFIG_MAPPING, AutoModelForImageTextToText._model_mapping)
TRUSTED = {"trust_remote_code": True}


@pytest.fixture(autouse=True)
def process(tmp_path, monkeypatch):
    """As a new process: no type is registered from outside, and code is copied into a folder of its own."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "modules"), *sys.path])
    for mapping in MAPPINGS:
        monkeypatch.setattr(mapping, "_extra_content", dict(mapping._extra_content))
    yield lambda: CONFIG_MAPPING._extra_content.pop("stranger", None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        del sys.modules[name]


def write_vlm(folder: Path, *edits: tuple[str, str]) -> Path:
    """The stranger's config and code, with edits, beside the processor of the repository's tiny VLM."""
    save_tiny_vlm(folder, image_size=32, patch_size=16, hidden_size=32, num_layers=2)
    of_tiny = json.loads((folder / "config.json").read_text())
    code = CODE.read_text()
    takes_types = ("labels=None,", "labels=None, token_type_ids=None,")  # which this processor makes
    for before, after in (takes_types, *edits):
        assert before in code
        code = code.replace(before, after)
    (folder / "stranger_vlm.py").write_text(code)
    config = {
        "model_type": "stranger",
        "architectures": ["StrangerForConditionalGeneration"],
        "auto_map": {auto: f"stranger_vlm.{name}" for auto, name in CLASSES.items()},
        "patch_size": 16,
        "image_token_id": of_tiny["image_token_index"],
        "text_config": text("llama", vocab_size=of_tiny["text_config"]["vocab_size"]),
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    known = [dict(mapping._extra_content) for mapping in MAPPINGS]
    CONFIG_MAPPING._extra_content.pop("stranger", None)  # by it the library would write other code
    config = AutoConfig.from_pretrained(folder, **TRUSTED)
    AutoModelForImageTextToText.from_config(config, **TRUSTED).save_pretrained(folder)
    for mapping, before in zip(MAPPINGS, known, strict=True):
        mapping._extra_content = before
    return folder


@pytest.fixture
def vlm(tmp_path, process):
    return write_vlm(tmp_path / "vlm")


@pytest.fixture
def policy(tmp_path, vlm, process):
    """A saved policy on it whose VLM is not known to the process, and what it does."""
    statistics = {name: {"mean": np.zeros(3), "std": np.ones(3)} for name in ("state", "actions")}
    robot = {"statistics": statistics, "normalization": "mean_std", "cameras": ["front"]}
    processor = KIVLAProcessor.from_vlm(vlm, **robot, chunk_size=5, max_action_dim=3, **TRUSTED)
    model = KIVLAForActionPrediction.from_vlm(vlm, **SIZES, **TRUSTED)
    awaken(model)
    pipe = pipeline("action-prediction", model=model, processor=processor)
    actions = pipe(OBSERVATION, seed=0)["actions"]
    pipe.save_pretrained(tmp_path / "policy")
    process()
    return tmp_path / "policy", actions


def test_a_pipeline_of_a_policy_runs_the_code_that_it_is_told_to_trust(policy):
    folder, actions = policy
    with pytest.raises(ValueError, match=r"'stranger' is no type of model(.|\n)*trust_remote_code=True"):
        pipeline("action-prediction", model=str(folder))
    pipe = pipeline("action-prediction", model=str(folder), **TRUSTED)
    np.testing.assert_allclose(pipe(OBSERVATION, seed=0)["actions"], actions, atol=1e-5)


def test_the_auto_classes_do_so_too_and_a_config_alone_needs_no_code(policy):
    folder, _ = policy
    config = AutoConfig.from_pretrained(folder)
    assert (config.chunk_size, config.vlm_config.model_type) == (5, "stranger")
    assert config.to_dict()["vlm_config"]["patch_size"] == 16
    assert "stranger" not in CONFIG_MAPPING
    assert type(AutoProcessor.from_pretrained(folder, **TRUSTED)).__name__ == "KIVLAProcessor"
    model = AutoModelForImageTextToText.from_pretrained(folder, **TRUSTED)
    assert type(model.config.vlm_config).__name__ == "StrangerConfig"
    assert type(KIVLAConfig.from_pretrained(folder, **TRUSTED).vlm_config).__name__ == "StrangerConfig"


def test_commands_say_what_to_give_and_run_with_it(policy, vlm, tmp_path, capsys):
    folder, _ = policy
    file = tmp_path / "front.png"
    Image.fromarray(PICTURE).save(file)
    act = ["predict", str(folder), "--images", str(file), "--text", "go", "--state", "0", "0", "0"]
    look = ["inspect", str(vlm), "--output", str(tmp_path / "mask.png")]
    for command in (act, look):
        with pytest.raises(SystemExit, match="--trust_remote_code true"):
            main(command)
        main([*command, "--trust_remote_code", "true"])
    main(["inspect", str(folder), "--output", str(tmp_path / "mask.png"), "--trust_remote_code", "true"])
    printed = capsys.readouterr().out
    assert printed.count("backbone   stranger (StrangerForConditionalGeneration)") == 2


def test_other_code_of_the_same_type_takes_its_place(vlm, tmp_path):
    of_one = KIVLAForActionPrediction.from_vlm(vlm, **SIZES, **TRUSTED)
    head = "logits = self.lm_head(hidden)"
    other = write_vlm(tmp_path / "other", (head, f"{head} * 0 + 7"))
    tokens = torch.tensor([[20, 21]])
    assert (KIVLAForActionPrediction.from_vlm(other, **SIZES, **TRUSTED)(tokens).logits == 7).all()
    assert not (of_one(tokens).logits == 7).any()


def test_of_a_type_that_the_library_knows_its_classes_are_taken(tmp_path):
    save_tiny_vlm(tmp_path, image_size=32, patch_size=16, hidden_size=32, num_layers=2)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {auto: f"no_such_file.{name}" for auto, name in CLASSES.items()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = KIVLAForActionPrediction.from_vlm(tmp_path, **SIZES, **TRUSTED)
    assert type(model.vlm).__module__.startswith("transformers.models")


def test_code_without_a_class_for_images_and_text_is_refused(vlm):
    config = json.loads((vlm / "config.json").read_text())
    config["auto_map"]["AutoModelForCausalLM"] = config["auto_map"].pop("AutoModelForImageTextToText")
    (vlm / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedBackboneError, match="StrangerConfig is not known to AutoModelForImageTextToText"):
        KIVLAForActionPrediction.from_vlm(vlm, **SIZES, **TRUSTED)


@pytest.mark.parametrize(
    "edits",
    [
        pytest.param([("        **kwargs,\n    ):", "    ):"), ("            **kwargs,\n", "")], id="takes no others"),
        pytest.param([("            **kwargs,\n", "")], id="passes none on"),
    ],
)
def test_a_vlm_that_passes_no_keywords_on_is_read(tmp_path, edits):
    """Its text decoder is read all the same, and gives what it gives where they are passed on."""
    chunks = []
    for folder, changes in (("plain", []), ("edited", edits)):
        vlm = write_vlm(tmp_path / folder, *changes)
        if chunks:
            shutil.copy(tmp_path / "plain" / "model.safetensors", vlm)
        torch.manual_seed(0)
        model = KIVLAForActionPrediction.from_vlm(vlm, **SIZES, **TRUSTED)
        awaken(model)
        inputs = {"input_ids": torch.tensor([[model.config.vlm_config.image_token_id] * 4 + [20, 21]])}
        inputs["pixel_values"] = torch.ones(1, 3, 32, 32)
        chunks.append(model.sample_actions(**inputs, num_steps=2, noise=torch.ones(1, 5, 3)))
    torch.testing.assert_close(*chunks)


# A rotary embedding as people write one: its buffer is made in the constructor
OWN_ROTARY = """
class Turn(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.register_buffer("inv_freq", 10_000.0 ** -(torch.arange(0, dim, 2) / dim), persistent=False)

    def forward(self, x, position_ids):
        angles = (position_ids[:, :, None].float() * self.inv_freq).repeat(1, 1, 2)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


class StrangerForConditionalGeneration"""
PUT_IN = """self.language_model = AutoModel.from_config(text)
        self.language_model.rotary_emb = Turn(text.head_dim)"""


def test_rotary_frequencies_that_loading_would_leave_arbitrary_are_refused(tmp_path):
    edits = [("\nclass StrangerForConditionalGeneration", OWN_ROTARY)]
    vlm = write_vlm(tmp_path / "vlm", *edits, ("self.language_model = AutoModel.from_config(text)", PUT_IN))
    with pytest.raises(UnsupportedBackboneError, match=r"_init_weights.*does not compute.*rotary_emb\.inv_freq"):
        KIVLAForActionPrediction.from_vlm(vlm, **SIZES, **TRUSTED)


def test_a_layer_from_another_file_attends_as_that_file_says():
    config = LlamaConfig(hidden_size=8, num_attention_heads=2, num_key_value_heads=1)
    own = type("OwnAttention", (modeling_llama.LlamaAttention,), {"__module__": __name__})
    assert _eager_attention(own(config, 0)) is modeling_llama.eager_attention_forward
    nobodys = type("NobodysAttention", (torch.nn.Linear,), {"__module__": __name__, "forward": lambda self, x: x})
    with pytest.raises(UnsupportedBackboneError, match="no function eager_attention_forward"):
        _eager_attention(nobodys(2, 2))
