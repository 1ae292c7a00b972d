"""LoRA for three kinds of backbones: insulated, saved, loaded on a fresh base, merged."""

import copy
import json
import shutil
import types

import numpy as np
import peft
import pytest
import torch
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText, TorchAoConfig, pipeline

from kivla import KIVLAForActionPrediction, KIVLAProcessor
from kivla.training.lora import load_lora, lora_config
from tests.helpers.families import FAMILIES as ALL_FAMILIES
from tests.helpers.families import each_family
from tests.helpers.families.settings import since
from tests.helpers.policies import dataset, make_policy, make_trainer, save_policy
from tests.helpers.tolerance import assert_close_relative
from tests.modeling_kivla.test_contract import policy as family_policy
from tests.modeling_kivla.test_contract import training_batch
from tests.modeling_kivla.test_new_tokens import TAKEN
from tests.processing.test_processing_kivla import CHUNK, LONG, SHORT, WIDTH, columns, make, observation, policy

load = KIVLAForActionPrediction.from_pretrained

FAMILIES = ("paligemma", "qwen2_5_vl", "smolvlm")  # bidirectional prompt; M-RoPE; chat template
DRAWS = {"noise": torch.randn(2, CHUNK, WIDTH + 1, generator=torch.Generator().manual_seed(0))}
DRAWS["timestep"] = torch.tensor([0.3, 0.8])


def with_lora(name):
    base, processor = copy.deepcopy(policy(name)), make(name)
    base.resize_token_embeddings(processor.vocab_size)
    fresh = copy.deepcopy(base)
    torch.manual_seed(0)
    return get_peft_model(base, lora_config(base, processor, rank=4)), fresh, processor


@pytest.mark.parametrize("name", FAMILIES)
def test_the_flow_loss_reaches_the_expert_alone(name):
    model, _, processor = with_lora(name)
    batch = processor(**columns(LONG, SHORT))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapters = {name for name in trained if "expert" not in name.split(".")}
    assert adapters and any("lora_A" in name for name in adapters)
    model(**batch, **DRAWS).flow_loss.backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name in adapters:
            assert parameter.grad is None, f"the flow loss reaches {parameter_name}"
    assert all(parameter.grad is not None for n, parameter in model.named_parameters() if n in trained - adapters)
    model.zero_grad()
    model(**batch, **DRAWS).token_loss.backward()
    assert any(parameter.grad is not None for n, parameter in model.named_parameters() if n in adapters)
    assert all(parameter.grad is None for n, parameter in model.named_parameters() if n not in adapters)


@pytest.mark.parametrize("name", FAMILIES)
def test_saved_loaded_and_merged_it_is_the_same(name, tmp_path):
    model, fresh, processor = with_lora(name)
    batch = processor(**columns(LONG, SHORT))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    before = model(**batch, **DRAWS).loss.item()
    for _ in range(4):
        optimizer.zero_grad()
        model(**batch, **DRAWS).loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        expected = model(**batch, **DRAWS)
    assert expected.loss.item() < before, "nothing was learned"
    inputs = processor(**columns(observation(LONG), observation(SHORT)))
    chunk = model.sample_actions(**inputs, noise=DRAWS["noise"], num_steps=3)

    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(fresh, tmp_path).eval()
    with torch.no_grad():
        again = loaded(**batch, **DRAWS)
    weights = dict(loaded.named_parameters())
    assert all(torch.equal(weights[n], weight) for n, weight in model.named_parameters())
    assert_close_relative(again.logits, expected.logits, what="logits")
    assert_close_relative(again.velocity, expected.velocity, what="velocity")
    actions = loaded.sample_actions(**inputs, noise=DRAWS["noise"], num_steps=3)
    assert_close_relative(actions, chunk, what="actions")

    # Merged, sums come in another order: compared in float64, where that leaves next to nothing.
    def outputs(model):
        precise = [{**given, "pixel_values": given["pixel_values"].double()} for given in (batch, inputs)]
        with torch.no_grad():
            out = model(**precise[0], **DRAWS)
        return out.logits, out.velocity, model.sample_actions(**precise[1], noise=DRAWS["noise"], num_steps=3)

    wanted = outputs(model.double())
    found = outputs(model.merge_and_unload())
    for what, a, b in zip(("logits", "velocity", "actions"), found, wanted, strict=True):
        error = ((a - b).norm() / b.norm()).item()
        assert error <= 1e-6, f"{what}: relative error {error:.1e}"


def test_a_model_without_room_for_action_tokens_is_refused():
    processor = make("paligemma")
    model = copy.deepcopy(policy("paligemma"))
    model.resize_token_embeddings(processor.vocab_size - 1)
    with pytest.raises(ValueError, match="but the processor's vocabulary is"):
        lora_config(model, processor)


def test_an_embedding_that_peft_does_not_know_is_refused():
    """It normalises what it looks up; peft would compute the look-up alone."""
    if "muse_glimmer" not in ALL_FAMILIES:
        pytest.skip("not in this transformers")
    model = family_policy("muse_glimmer")
    tokens = types.SimpleNamespace(vocab_size=200, action_token_ids=np.arange(100, 116))
    with pytest.raises(ValueError, match=r"'muse_glimmer' does more with its new tokens .* without LoRA"):
        lora_config(model, tokens)


@pytest.mark.quantization
def test_a_quantised_backbone_learns_through_lora(tmp_path):
    """QLoRA: int8 weights, float updates; insulated, and the same when the updates are loaded on a fresh base."""
    torchao = pytest.importorskip("torchao.quantization")
    processor = make()
    policy("paligemma").vlm.save_pretrained(tmp_path / "vlm")

    def quantised():
        torch.manual_seed(0)
        sizes = {name: getattr(processor, name) for name in ("chunk_size", "max_action_dim", "max_state_dim")}
        model = KIVLAForActionPrediction.from_vlm(
            tmp_path / "vlm",
            quantization_config=TorchAoConfig(torchao.Int8WeightOnlyConfig()),
            expert_config={"hidden_size": 32, "intermediate_size": 48},
            **sizes,
        )
        model.resize_token_embeddings(processor.vocab_size)
        return model

    base = quantised()
    attention = base.get_decoder().layers[0].self_attn
    assert type(attention.q_proj.weight.data).__name__ == "Int8Tensor", "the backbone is not quantised"
    assert type(base.expert.layers[0].self_attn.q_proj.weight.data) is torch.Tensor, "the expert is"
    model = get_peft_model(base, lora_config(base, processor, rank=4))
    batch = processor(**columns(LONG, SHORT))
    model(**batch, **DRAWS).flow_loss.backward()
    assert not [n for n, p in model.named_parameters() if "lora_" in n and p.grad is not None], "not insulated"
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(**batch, **DRAWS).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0], losses
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(quantised(), tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = model.eval()(**batch, **DRAWS).velocity
        assert_close_relative(loaded(**batch, **DRAWS).velocity, expected, what="velocity")


# ------------------------------------------------------------------------- an adapter's folder, and the base it states
def train_lora(folder, model, processor, **options):
    peft_model = get_peft_model(model, lora_config(model, processor, rank=4, **options))
    trainer = make_trainer(folder, peft_model, processor, max_steps=3, learning_rate=5e-3, save_strategy="steps")
    trainer.args.save_steps = trainer.state.save_steps = 3
    trainer.train()
    trainer.save_model(str(folder / "run" / "adapter"))
    return trainer, peft_model.eval()


@pytest.fixture(scope="module", params=["on a VLM", "on a policy"])
def trained(request, tmp_path_factory):
    """The folder of a LoRA run, and what its policy computes."""
    folder = tmp_path_factory.mktemp("lora")
    if request.param == "on a VLM":
        model, processor = make_policy(folder / "vlm")
        model.resize_token_embeddings(processor.vocab_size, pad_to_multiple_of=64)  # rows that no token has
    else:
        model, processor = load(save_policy(folder)), KIVLAProcessor.from_pretrained(folder / "policy")
    trainer, model = train_lora(folder, model, processor)
    batch = trainer.data_collator([dataset()[5], dataset()[60]])
    noise = torch.randn(batch["actions"].shape, generator=torch.Generator().manual_seed(0))
    batch |= {"noise": noise, "timestep": torch.tensor([0.3, 0.8])}
    with torch.no_grad():
        return folder / "run", batch, model(**batch)


@pytest.mark.parametrize("name", ["checkpoint-3", "adapter"])
@pytest.mark.parametrize("route", ["from_pretrained", "AutoModel", "load_lora", "saved again"])
def test_an_adapter_folder_is_the_trained_policy(trained, name, route, tmp_path):
    """Base, updates, expert and new rows are those that were trained."""
    folder, batch, expected = trained
    loaders = {
        "from_pretrained": load,
        "AutoModel": AutoModelForImageTextToText.from_pretrained,
        "load_lora": load_lora,
        "saved again": load,
    }
    model = loaders[route](folder / name).eval()
    if route == "saved again":
        if since("5.24") and Version(peft.__version__) < Version("0.22"):
            pytest.skip("transformers 5.24 saves adapters with peft 0.22 and newer")
        model.save_pretrained(tmp_path)
        assert not (tmp_path / "model.safetensors").exists()
        model = load(tmp_path)
    with torch.no_grad():
        found = model(**batch)
    for what in ("logits", "velocity"):
        assert_close_relative(found[what], expected[what], what=what)


def test_a_pipeline_of_an_adapter_folder(trained):
    folder, _, _ = trained
    observation = {key: dataset()[5][key] for key in ("images", "text", "state")}
    found = pipeline("action-prediction", model=str(folder / "adapter"), seed=0)(observation)["actions"]
    processor = KIVLAProcessor.from_pretrained(folder / "adapter")
    wanted = pipeline("action-prediction", model=load_lora(folder / "adapter").eval(), processor=processor, seed=0)
    assert_close_relative(found, wanted(observation)["actions"])


def test_training_goes_on_with_an_adapter(trained, tmp_path):
    folder, _, _ = trained
    processor = KIVLAProcessor.from_pretrained(folder / "adapter")
    model = load_lora(folder / "adapter", is_trainable=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = make_trainer(tmp_path, model, processor, max_steps=1)
    trainer.train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert any("lora_B" in name for name in moved) and any("modules_to_save" in name for name in moved)
    assert not any("base_layer" in name or "original_module" in name for name in moved)
    frozen = load(folder / "adapter")
    with pytest.raises(ValueError, match="loaded from an adapter, which is frozen"):
        make_trainer(tmp_path / "other", frozen, processor)


def test_an_adapter_that_says_too_little_is_refused(trained, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(trained[0] / "adapter", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": ""}))
    with pytest.raises(ValueError, match="names no base"):
        load(folder)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "config.json").unlink()
    if config["base_model_name_or_path"].endswith("vlm"):
        with pytest.raises(ValueError, match=r"no config\.json that says which policy was made of it"):
            load(folder)
    else:
        assert isinstance(load(folder), KIVLAForActionPrediction), "a policy as base says it all"


def test_an_adapter_without_the_expert_is_refused(tmp_path):
    """On a VLM, the rest would be drawn at random; on a policy it is there."""
    model, processor = make_policy(tmp_path / "vlm")
    model.resize_token_embeddings(processor.vocab_size)
    own = LoraConfig(target_modules=["q_proj"], exclude_modules=".*expert.*")
    get_peft_model(model, own).save_pretrained(tmp_path / "adapter")
    model.config.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"rows 1412 to \d+ of .*embed_tokens, expert\."):
        load(tmp_path / "adapter")


@pytest.mark.slow
@each_family
def test_every_family_learns_through_lora(name):
    """Insulated; every update gets a gradient; merged it is the same within rounding."""
    batch = training_batch(name)
    learned = batch["labels"] != -100
    batch["input_ids"][learned] = torch.arange(int(learned.sum())) % 16 + 100
    batch["labels"] = batch["input_ids"].masked_fill(~learned, -100)
    model = family_policy(name)
    model(**batch).token_loss.backward()  # some layers of new models are multiplied by zero
    idle = [n.removesuffix(".weight") for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    model.zero_grad()
    rows = model.get_input_embeddings().num_embeddings
    if name not in TAKEN:  # new rows are updated, too
        model.resize_token_embeddings(rows + 16)
    tokens = types.SimpleNamespace(vocab_size=rows, action_token_ids=np.arange(100, 116))
    model = get_peft_model(model, lora_config(model, tokens, rank=4))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name or "trainable_tokens" in parameter_name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model(**batch).flow_loss.backward()
    own = {n: p for n, p in model.named_parameters() if p.requires_grad and "expert" not in n.split(".")}
    assert not [n for n, p in own.items() if p.grad is not None], "the flow loss reaches the VLM's updates"
    model.zero_grad()
    model(**batch).token_loss.backward()
    updates = {n: p for n, p in own.items() if "lora_B" in n and not any(f".{layer}.lora_B" in n for layer in idle)}
    silent = [n for n, p in updates.items() if p.grad is None or not p.grad.any()]
    assert updates and not silent, f"without a gradient: {silent[:3]}"
    model.eval()
    with torch.no_grad():
        before, after = model(**batch), model.merge_and_unload()(**batch)
    for what in ("logits", "velocity"):
        assert_close_relative(after[what], before[what], what=what)
