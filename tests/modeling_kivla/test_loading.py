"""`from_pretrained` as a user of transformers calls it: honoured, or refused for the right reason."""

import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from kivla import KIVLAConfig, KIVLAForActionPrediction, KIVLAProcessor
from tests.helpers.families import FAMILIES, build_model
from tests.helpers.policies import save_policy

load = KIVLAForActionPrediction.from_pretrained


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("loading"))


def same_weights(a, b) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device_map": {"": "cuda:3"}}, (AssertionError, RuntimeError), "CUDA|device"),
        ({"device_map": "auto", "max_memory": "lots"}, TypeError, "indices"),
        ({"key_mapping": 3}, AttributeError, "items"),
        ({"num_inference_steps": "three"}, StrictDataclassError, "expected int"),
        ({"num_inference_steps": 0}, ValueError, "num_inference_steps must be at least 1, got 0"),
        ({"learning_rate": 1.0}, TypeError, "unexpected keyword argument 'learning_rate'"),
        ({"subfolder": "other"}, OSError, "other has no config.json"),
        ({"variant": "fp16"}, OSError, "model.fp16.safetensors"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.skipif(torch.cuda.device_count() > 3, reason="the device that must be missing is there")
def test_whole_files_are_not_blamed(saved, options, error, message):
    with pytest.raises(error, match=message) as raised:
        load(saved, **options)
    assert "damaged" not in str(raised.value) and "Download or save it again" not in str(raised.value)


def test_the_meta_device_is_not_a_damaged_file(saved):
    with pytest.raises(RuntimeError, match="anti-pattern") as raised, torch.device("meta"):
        load(saved)
    assert "in order: an argument is to blame" in raised.value.__notes__[0]


def test_damaged_files_are_blamed_whatever_the_arguments(saved, tmp_path):
    load(saved).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-10])
    for options in ({}, {"device_map": "cpu"}, {"dtype": torch.bfloat16}):
        with pytest.raises(ValueError, match="damaged, or do not fit each other"):
            load(tmp_path, **options)


@pytest.mark.parametrize("options", [{"max_shard_size": "100KB"}, {"variant": "fp16"}, {}], ids=str)
def test_saved_as_asked_it_loads_again(saved, options, tmp_path):
    model = load(saved)
    model.save_pretrained(tmp_path / "part", **options)
    files = sorted(path.name for path in (tmp_path / "part").glob("model*.safetensors"))
    assert (len(files) > 1) == ("max_shard_size" in options) and ("fp16" in files[0]) == ("variant" in options)
    where = {name: options[name] for name in options if name == "variant"}
    assert same_weights(model, load(tmp_path / "part", **where))
    assert same_weights(model, load(tmp_path, subfolder="part", **where))


def test_a_vlm_without_all_of_its_text_decoder_is_refused(tmp_path):
    """The library draws what is missing at random, and warns."""
    vlm = build_model(FAMILIES["llava"])
    vlm.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    of_tower = next(name for name in weights if "vision_tower" in name)
    save_file({name: weight for name, weight in weights.items() if name != of_tower}, file, {"format": "pt"})
    KIVLAForActionPrediction.from_vlm(tmp_path)  # the library's warning is enough
    lost = next(name for name in weights if "self_attn.k_proj" in name and "vision" not in name)
    save_file({name: weight for name, weight in weights.items() if name != lost}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of the text decoder of 'llava' \(.*k_proj\.weight\)"):
        KIVLAForActionPrediction.from_vlm(tmp_path)


def test_only_the_main_process_writes(saved, tmp_path):
    load(saved).save_pretrained(tmp_path, is_main_process=False)
    assert not list(tmp_path.glob("*.safetensors")) and not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    "options",
    [
        *({"dtype": "auto"}, {"dtype": "bfloat16"}, {"torch_dtype": torch.float16}, {"low_cpu_mem_usage": True}),
        *({"device_map": "cpu"}, {"device_map": {"": torch.device("cpu")}}, {"local_files_only": True}),
        *({"use_safetensors": True}, {"attn_implementation": "eager"}, {"max_memory": {"cpu": "1GB"}}),
    ],
    ids=str,
)
def test_usual_arguments_work(saved, options):
    model, plain = load(saved, **options), load(saved)
    wanted = {"bfloat16": torch.bfloat16, torch.float16: torch.float16}
    dtype = wanted.get(options.get("dtype", options.get("torch_dtype")), torch.float32)
    assert model.dtype == dtype and same_weights(model, plain.to(dtype))
    if "attn_implementation" in options:
        assert model.get_decoder().config._attn_implementation == "kivla_eager"


def test_every_auto_class_knows_a_policy(saved, tmp_path):
    load(saved).save_pretrained(tmp_path / "part")
    KIVLAProcessor.from_pretrained(saved).save_pretrained(tmp_path / "part")
    for folder, where in ((saved, {}), (tmp_path, {"subfolder": "part"})):
        assert isinstance(AutoConfig.from_pretrained(folder, **where), KIVLAConfig)
        for auto in (AutoModel, AutoModelForImageTextToText):
            model = auto.from_pretrained(folder, num_inference_steps=3, **where)
            assert isinstance(model, KIVLAForActionPrediction) and model.config.num_inference_steps == 3
            assert same_weights(model, load(saved))
        assert isinstance(KIVLAProcessor.from_pretrained(folder, **where), KIVLAProcessor)
    for options in ({}, {"use_fast": True}, {"use_fast": False}):
        assert isinstance(AutoProcessor.from_pretrained(saved, **options), KIVLAProcessor)
    with pytest.raises(TypeError, match=re.escape("Unknown arguments ['attn_implementation']")):
        AutoProcessor.from_pretrained(saved, attn_implementation="eager")
