"""The contract of the model, held for every VLM family with gradient checkpointing on and off."""

import copy
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import pytest
import torch
from transformers import AutoModelForImageTextToText

from kivla.modeling_kivla import KIVLAConfig, KIVLAForActionPrediction
from tests.helpers.families import (
    FAMILIES,
    TEXT_IDS,
    VOCAB_SIZE,
    build_model,
    collate,
    drop_suffix,
    each_family,
    make_example,
    randomize_zero_parameters,
)
from tests.helpers.tolerance import assert_close_relative, assert_gradients_close

CHUNK, WIDTH = 5, 3
SPECIAL_IDS = list(range(TEXT_IDS.stop, VOCAB_SIZE))
checkpointing = pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])


@cache
def _shared_policy(name: str) -> KIVLAForActionPrediction:
    torch.manual_seed(0)
    config = KIVLAConfig(
        vlm_config=FAMILIES[name].config(),
        expert_config={"hidden_size": 32, "intermediate_size": 48, "initializer_range": 0.2},
        chunk_size=CHUNK,
        max_action_dim=WIDTH,
        num_flow_samples=2,
    )
    model = KIVLAForActionPrediction(config).eval()
    randomize_zero_parameters(model)  # adaRMS starts as the identity, which would hide the prefix
    return model


def policy(name: str, scale: float = 0.0, checkpointed: bool = False) -> KIVLAForActionPrediction:
    model = copy.deepcopy(_shared_policy(name))
    model.config.backbone_gradient_scale = scale
    if checkpointed:
        model.train()  # checkpointing is active in training mode only
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def training_batch(name: str, lengths=(6, 3), images=(2, 1), side: str = "right") -> dict:
    family = FAMILIES[name]
    examples = [
        make_example(family, num_images=n, text_length=length, seed=i)
        for i, (length, n) in enumerate(zip(lengths, images, strict=True))
    ]
    batch = collate(family, examples, side)
    generator = torch.Generator().manual_seed(7)
    rows = len(examples)
    batch["actions"] = torch.randn(rows, CHUNK, WIDTH, generator=generator)
    batch["noise"] = torch.randn(2 * rows, CHUNK, WIDTH, generator=generator)
    batch["timestep"] = torch.rand(2 * rows, generator=generator)
    return batch


def to_device(batch: dict, device: str) -> dict:
    return {name: values.to(device) for name, values in batch.items()}


def backbone_gradients(model: KIVLAForActionPrediction, loss: torch.Tensor) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    loss.backward()
    return {n: None if p.grad is None else p.grad.clone() for n, p in model.vlm.named_parameters()}


@each_family
@checkpointing
def test_flow_loss_reaches_the_backbone_only_when_it_may(name, checkpointed):
    batch = training_batch(name)
    insulated = policy(name, 0.0, checkpointed)
    gradients = backbone_gradients(insulated, insulated(**batch).flow_loss)
    touched = [n for n, g in gradients.items() if g is not None]
    assert not touched, f"insulated flow loss gave a gradient to {touched[:5]}"
    silent = [n for n, p in insulated.expert.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent, f"expert parameters without gradient: {silent[:5]}"

    joint = policy(name, 1.0, checkpointed)
    full = backbone_gradients(joint, joint(**batch).flow_loss)
    assert any(g is not None and g.any() for g in full.values()), "joint training gives the backbone no gradient"
    half = policy(name, 0.5, checkpointed)
    halved = backbone_gradients(half, half(**batch).flow_loss)
    assert_gradients_close(halved, {n: None if g is None else 0.5 * g for n, g in full.items()})


@each_family
@checkpointing
def test_token_gradient_is_untouched_by_the_expert(name, checkpointed):
    batch = training_batch(name)
    model = policy(name, 0.0, checkpointed)
    out = model(**batch)
    together = backbone_gradients(model, out.token_loss + out.flow_loss)
    text_only = {k: v for k, v in batch.items() if k not in ("actions", "noise", "timestep", "expert_attention_mask")}
    alone = backbone_gradients(model, model(**text_only).token_loss)
    assert any(g is not None and g.any() for g in alone.values())
    for n, g in alone.items():
        assert (g is None) == (together[n] is None), n
        assert g is None or torch.equal(g, together[n]), f"{n}: the expert changed the token loss's gradient"


@each_family
def test_suffix_and_expert_do_not_see_each_other(name):
    model = policy(name)
    batch = training_batch(name)
    suffix = batch["labels"] != -100
    other = {**batch, "input_ids": torch.where(suffix, batch["input_ids"].roll(1, 0) % 50 + 60, batch["input_ids"])}
    assert (other["input_ids"] != batch["input_ids"])[suffix].any()
    with torch.no_grad():
        out, changed_suffix = model(**batch), model(**other)
        changed_expert = model(**{**batch, "noise": batch["noise"] + 1, "timestep": batch["timestep"] * 0.5})
    # Not bit for bit: a mixture of experts may sum in another order.
    assert_close_relative(changed_suffix.velocity, out.velocity, what="action tokens leak into the expert: velocity")
    assert not torch.equal(out.logits, changed_suffix.logits)
    assert torch.equal(out.logits, changed_expert.logits), "the expert's input leaks into the VLM"
    assert not torch.equal(out.velocity, changed_expert.velocity)


@each_family
def test_expert_reads_the_prompt(name):
    """The other side of the coin: text and images must reach the actions."""
    model, family = policy(name), FAMILIES[name]
    examples = [drop_suffix(make_example(family, seed=i)) for i in range(2)]
    noise = torch.randn(1, CHUNK, WIDTH, generator=torch.Generator().manual_seed(0))
    chunks = [model.sample_actions(**example, noise=noise, num_steps=2) for example in examples]
    assert (chunks[0] - chunks[1]).abs().max() > 1e-5, "another prompt gives the same actions"


@each_family
def test_values_do_not_depend_on_insulation(name):
    batch = training_batch(name)
    with torch.no_grad():
        outputs = [policy(name, scale)(**batch) for scale in (0.0, 0.3, 1.0)]
    for out in outputs[1:]:
        assert torch.equal(out.velocity, outputs[0].velocity)
        assert torch.equal(out.logits, outputs[0].logits)


def assert_alone_equals_in_a_batch(name: str, side: str, device: str = "cpu") -> None:
    model, family = policy(name).to(device), FAMILIES[name]
    examples = [
        drop_suffix(make_example(family, num_images=n, text_length=length, seed=i))
        for i, (n, length) in enumerate([(1, 3), (2, 7)])
    ]
    noise = torch.randn(2, CHUNK, WIDTH, generator=torch.Generator().manual_seed(1))
    together = model.sample_actions(**to_device(collate(family, examples, side), device), noise=noise, num_steps=3)
    for i, example in enumerate(examples):
        alone = model.sample_actions(**to_device(example, device), noise=noise[i : i + 1], num_steps=3)
        assert_close_relative(together[i], alone[0], what=f"actions of example {i}")


@each_family
def test_alone_equals_in_a_batch_padded_right(name):
    assert_alone_equals_in_a_batch(name, "right")


@each_family
def test_alone_equals_in_a_batch_padded_left(name):
    assert_alone_equals_in_a_batch(name, "left")


@each_family
def test_without_expert_it_is_its_vlm(name):
    family = FAMILIES[name]
    vlm = build_model(family)
    model = KIVLAForActionPrediction(copy.deepcopy(_shared_policy(name).config), vlm=copy.deepcopy(vlm)).eval()
    example = drop_suffix(make_example(family))
    example.pop("expert_attention_mask", None)
    with torch.no_grad():
        assert torch.equal(model(**example).logits, vlm(**example).logits)
    options = {"max_new_tokens": 4, "do_sample": False, "use_cache": True}
    assert torch.equal(model.generate(**example, **options), vlm.generate(**example, **options))


@each_family
def test_supervised_logits_are_the_vlms(name):
    """Logits at supervised positions only equal the VLM's own logits there, and so does the loss."""
    model, batch = policy(name), training_batch(name)
    batch = {k: v for k, v in batch.items() if k not in ("actions", "noise", "timestep", "expert_attention_mask")}
    labels = batch.pop("labels")
    with torch.no_grad():
        full, out = model(**batch).logits, model(**batch, labels=labels)
    expected = full[:, :-1][labels[:, 1:] != -100]
    assert_close_relative(out.logits, expected, what="logits")
    loss = torch.nn.functional.cross_entropy(full[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert_close_relative(out.token_loss, loss, what="token loss")


@each_family
def test_save_and_load(name, tmp_path):
    """The weights come back bit for bit; loaded, they lie at other addresses, where products take other kernels."""
    model, batch = policy(name), training_batch(name)
    model.save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.iterdir() if p.suffix in {".safetensors", ".bin"}] == ["model.safetensors"]
    loaded, info = KIVLAForActionPrediction.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    saved, found = model.state_dict(), loaded.state_dict()
    assert saved.keys() == found.keys()
    different = [
        n for n, weight in saved.items() if weight.dtype != found[n].dtype or not torch.equal(weight, found[n])
    ]
    assert not different, f"{len(different)} weights differ: {different[:5]}"
    for (n, a), (_, b) in zip(model.named_buffers(), loaded.named_buffers(), strict=True):
        assert torch.equal(a, b), f"buffer {n}"
    with torch.no_grad():
        expected, again = model(**batch), loaded(**batch)
    assert_close_relative(again.velocity, expected.velocity, what="velocity")
    assert_close_relative(again.logits, expected.logits, what="logits")
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight), "tie lost"
    assert loaded.config.kv_layers == model.config.kv_layers


@each_family
def test_from_vlm_keeps_the_pretrained_weights(name, tmp_path):
    vlm = build_model(FAMILIES[name])
    vlm.save_pretrained(tmp_path)
    model = KIVLAForActionPrediction.from_vlm(
        tmp_path, chunk_size=CHUNK, max_action_dim=WIDTH, expert_config={"hidden_size": 32, "intermediate_size": 48}
    )
    reference = AutoModelForImageTextToText.from_pretrained(tmp_path)
    for (n, a), (_, b) in zip(model.vlm.named_parameters(), reference.named_parameters(), strict=True):
        assert torch.equal(a, b), n


def calls_of_every_kind(model: KIVLAForActionPrediction, name: str) -> list[Callable[[], torch.Tensor]]:
    """Calls on one model, with prompts, pictures and batches of different sizes."""
    family, calls = FAMILIES[name], []
    for i in range(2):
        examples = [make_example(family, 1 + (i + j) % 2, 3 + 2 * i + j, seed=10 * i + j) for j in range(1 + i)]
        prompt = collate(family, [drop_suffix(example) for example in examples], "left")
        noise = torch.randn(len(examples), CHUNK, WIDTH, generator=torch.Generator().manual_seed(i))
        words = {n: v for n, v in prompt.items() if n != "expert_attention_mask"}
        batch = training_batch(name, lengths=(3 + i, 5))
        calls += [
            partial(model.sample_actions, **prompt, noise=noise, num_steps=2),
            # Gemma 3n cannot read the ids above that it may say
            partial(model.generate, **prompt, max_new_tokens=3, do_sample=False, suppress_tokens=SPECIAL_IDS),
            lambda words=words: model(**words).logits.detach(),
            lambda batch=batch: model(**batch).velocity.detach(),
            lambda batch=batch: model(**batch).logits.detach(),
        ]
    return calls


def assert_threads_give_what_one_gives(calls: list[Callable], repeats: int = 2) -> None:
    """Four threads at once, switched as often as Python can, against one call after the other."""
    expected = [call() for call in calls]
    order = [i for _ in range(repeats) for i in torch.randperm(len(calls)).tolist()]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(lambda i: calls[i](), order))
    finally:
        sys.setswitchinterval(interval)
    for i, result in zip(order, found, strict=True):
        if torch.is_tensor(result) and result.is_floating_point():
            assert_close_relative(result, expected[i], 1024, what=f"call {i}")
        else:
            assert str(result) == str(expected[i]), f"call {i}: {result} instead of {expected[i]}"


@each_family
def test_threads_do_not_disturb_each_other(name):
    assert_threads_give_what_one_gives(calls_of_every_kind(policy(name), name))


@each_family
def test_pictures_as_processors_make_them_reach_a_model_of_another_type(name, tmp_path):
    """Processors give float32; the weights are loaded as bfloat16, but for those that the VLM keeps in float32."""
    batch = training_batch(name)
    prompt = drop_suffix(make_example(FAMILIES[name]))
    assert batch[FAMILIES[name].image_argument].dtype == torch.float32
    with torch.no_grad():
        expected = policy(name)(**batch)
        policy(name).save_pretrained(tmp_path)
        model = KIVLAForActionPrediction.from_pretrained(tmp_path, dtype=torch.bfloat16)
        found = model(**batch)
        words = {n: v for n, v in prompt.items() if n != "expert_attention_mask"}
        assert model.get_input_embeddings().weight.dtype == torch.bfloat16
        assert model(**words).logits.isfinite().all()
    assert_close_relative(found.token_loss, expected.token_loss, 16, dtype=torch.bfloat16, what="token loss")
    assert_close_relative(found.flow_loss, expected.flow_loss, 16, dtype=torch.bfloat16, what="flow loss")
    assert model.sample_actions(**prompt, num_steps=1).isfinite().all()
    assert model.generate(**prompt, max_new_tokens=1).shape[1] == prompt["input_ids"].shape[1] + 1
