"""The contract of the model on a GPU: what is computed there is what a CPU computes, and insulation holds there, too.

Sums come in another order on a GPU, and not always in the same: values are compared within roundings.
"""

import copy

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version

from kivla.modeling_kivla import KIVLAForActionPrediction
from kivla.processing import BinningActionTokenizer
from tests.helpers.families import FAMILIES, drop_suffix, each_family, make_example
from tests.helpers.gpu import DEVICE, is_rehearsal, needs_gpu, whole_float32  # noqa: F401 (a fixture of every test)
from tests.helpers.tolerance import assert_close_relative, assert_gradients_close
from tests.modeling_kivla.test_contract import (
    CHUNK,
    SPECIAL_IDS,
    WIDTH,
    assert_alone_equals_in_a_batch,
    backbone_gradients,
    checkpointing,
    policy,
    to_device,
    training_batch,
)
from tests.modeling_kivla.test_fast_paths import observation
from tests.modeling_kivla.test_modeling import STATE, make_batch, make_model
from tests.modeling_kivla.test_real_time_chunking import MAX_DELAY, rest_of_chunks
from tests.processing.test_processing_kivla import FAST, LONG, SHORT, columns, make
from tests.processing.test_processing_kivla import observation as seen
from tests.processing.test_processing_kivla import policy as processor_policy

pytestmark = needs_gpu

# Roundings of the largest value, float32: 1e-4 and 5e-4 of it. TF32 would be off by as much in one product.
VALUES, GRADIENTS = 1024, 4096
# A few kinds of masks and positions, for what does not depend on the family
SOME = pytest.mark.parametrize("name", ["llava", "paligemma", "gemma3", "qwen2_5_vl", "smolvlm"])


def gradients_of(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    loss.backward()
    return {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def assert_a_step_is_the_cpus(on_gpu: KIVLAForActionPrediction, on_cpu: KIVLAForActionPrediction, batch: dict) -> None:
    """Losses, outputs and the gradient of every parameter."""
    out, expected = on_gpu(**to_device(batch, DEVICE)), on_cpu(**batch)
    for what in ("token_loss", "flow_loss", "velocity", "logits", "candidate_logits"):
        found, wanted = getattr(out, what), getattr(expected, what)
        assert (found is None) == (wanted is None), what
        if found is not None:
            assert found.device.type == DEVICE, f"{what} is on another device"
            assert_close_relative(found, wanted, VALUES, what=what)
    assert_gradients_close(gradients_of(on_gpu, out.loss), gradients_of(on_cpu, expected.loss), GRADIENTS)


def draws(count: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(count, CHUNK, WIDTH, generator=generator)
    return {"noise": noise, "timestep": torch.rand(count, generator=generator)}


def both(**settings) -> tuple[KIVLAForActionPrediction, KIVLAForActionPrediction]:
    """A policy on the CPU, and its like on the GPU."""
    model = make_model(**settings)
    return model, copy.deepcopy(model).to(DEVICE)


# ---------------------------------------------------------------------------- compiled: first, as it takes the longest
@pytest.mark.skipif(is_rehearsal, reason="torch has no gradient of flex_attention on a CPU")
@pytest.mark.parametrize("name", ["paligemma"])  # of those whose heads are as large as the kernel wants them, 16
def test_flex_attention(name):
    on_cpu, on_gpu = policy(name), policy(name).to(DEVICE)
    on_gpu.set_attn_implementation({"text_config": "flex_attention"})
    assert_a_step_is_the_cpus(on_gpu, on_cpu, training_batch(name))


@pytest.mark.parametrize("mode", [None] if is_rehearsal else [None, "reduce-overhead"])
def test_the_compiled_expert(mode):
    """Actions for prompts of two lengths, and a step of training."""
    on_cpu = make_model()
    on_gpu = copy.deepcopy(on_cpu).to(DEVICE)
    on_gpu.compile_expert(mode)
    for lengths in ((4,), (4, 7)):
        inputs = observation(lengths=lengths)
        found = on_gpu.sample_actions(**to_device(inputs, DEVICE), num_steps=3)
        assert_close_relative(found, on_cpu.sample_actions(**inputs, num_steps=3), VALUES, what="actions")
    assert_a_step_is_the_cpus(on_gpu, on_cpu, make_batch(**draws(2)))


# --------------------------------------------------------------------------------------------------- every family
@each_family
@checkpointing
def test_losses_and_gradients_are_the_cpus(name, checkpointed):
    on_cpu, on_gpu = (policy(name, checkpointed=checkpointed) for _ in range(2))
    assert_a_step_is_the_cpus(on_gpu.to(DEVICE), on_cpu, training_batch(name))


@each_family
def test_insulation_holds(name):
    batch = to_device(training_batch(name), DEVICE)
    insulated, joint = (policy(name, scale).to(DEVICE) for scale in (0.0, 1.0))
    gradients = backbone_gradients(insulated, insulated(**batch).flow_loss)
    touched = [n for n, g in gradients.items() if g is not None]
    assert not touched, f"insulated flow loss gave a gradient to {touched[:5]}"
    silent = [n for n, p in insulated.expert.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent, f"expert parameters without gradient: {silent[:5]}"
    full = backbone_gradients(joint, joint(**batch).flow_loss)
    assert any(g is not None and g.any() for g in full.values()), "joint training gives the backbone no gradient"
    # The token loss's gradient, with the expert's part and without it
    out = insulated(**batch)
    together = backbone_gradients(insulated, out.token_loss + out.flow_loss)
    text_only = {k: v for k, v in batch.items() if k not in ("actions", "noise", "timestep", "expert_attention_mask")}
    alone = backbone_gradients(insulated, insulated(**text_only).token_loss)
    assert_gradients_close(together, alone)


@each_family
def test_actions_are_the_cpus(name):
    prompt = drop_suffix(make_example(FAMILIES[name], num_images=2))
    on_cpu, on_gpu = policy(name), policy(name).to(DEVICE)
    inputs = to_device(prompt, DEVICE)
    noise = torch.randn(1, CHUNK, WIDTH, generator=torch.Generator().manual_seed(1))
    expected = on_cpu.sample_actions(**prompt, noise=noise, num_steps=3)
    found = on_gpu.sample_actions(**inputs, noise=noise, num_steps=3)
    assert found.device.type == DEVICE and found.dtype == torch.float32
    assert_close_relative(found, expected, VALUES, what="actions")
    again = on_gpu.sample_actions(prefix=on_gpu.encode_prefix(**inputs), noise=noise, num_steps=3)
    assert_close_relative(again, expected, VALUES, what="actions of a prefix")
    # One seed of a CPU generator is one noise, wherever the model is
    seeded = [
        model.sample_actions(**given, generator=torch.Generator().manual_seed(3), num_steps=2)
        for model, given in ((on_gpu, inputs), (on_cpu, prompt))
    ]
    assert_close_relative(*seeded, VALUES, what="actions of a seed")
    own = [
        on_gpu.sample_actions(**inputs, generator=torch.Generator(DEVICE).manual_seed(3), num_steps=2) for _ in range(2)
    ]
    assert_close_relative(*own, VALUES, what="actions of a seed on the device")


@each_family
def test_alone_equals_in_a_batch_padded_right(name):
    assert_alone_equals_in_a_batch(name, "right", DEVICE)


@each_family
def test_alone_equals_in_a_batch_padded_left(name):
    assert_alone_equals_in_a_batch(name, "left", DEVICE)


@each_family
def test_words_are_the_cpus(name):
    """Token by token, up to one about which the CPU's logits are undecided."""
    prompt = drop_suffix(make_example(FAMILIES[name]))
    length = prompt["input_ids"].shape[1]
    options = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": SPECIAL_IDS}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    expected = policy(name).generate(**prompt, **options)
    found = policy(name).to(DEVICE).generate(**to_device(prompt, DEVICE), **options)
    tokens, wanted = (output.sequences[0, -len(output.logits) :].tolist() for output in (found, expected))
    assert found.sequences.shape[1] >= length or name in ("blip-2", "instructblip", "instructblipvideo", "kosmos-2")
    for i, (token, best) in enumerate(zip(tokens, wanted, strict=False)):
        assert_close_relative(found.logits[i], expected.logits[i], VALUES, what=f"logits of token {i}")
        if token != best:
            break  # the logits are equal within rounding, so it was a tie


@each_family
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_weights_of_half_precision(name, dtype, tmp_path):
    if name == "gemma3n" and dtype == torch.float16 and Version(transformers.__version__) < Version("5.20"):
        pytest.skip("the library fills a buffer with 1e10, which float16 does not have: torch refuses it on a GPU")
    batch, prompt = training_batch(name), drop_suffix(make_example(FAMILIES[name]))
    with torch.no_grad():
        expected = policy(name)(**batch)
    policy(name).save_pretrained(tmp_path)
    model = KIVLAForActionPrediction.from_pretrained(tmp_path, dtype=dtype, device_map=DEVICE).eval()
    assert model.device.type == DEVICE and model.expert.dtype == dtype
    out, prompt = model(**to_device(batch, DEVICE)), to_device(prompt, DEVICE)
    assert_close_relative(out.token_loss, expected.token_loss, 16, dtype=torch.bfloat16, what="token loss")
    assert_close_relative(out.flow_loss, expected.flow_loss, 16, dtype=torch.bfloat16, what="flow loss")
    wrong = [n for n, g in gradients_of(model, out.loss).items() if g is not None and not g.isfinite().all()]
    assert not wrong, f"gradients that are not finite: {wrong[:5]}"
    assert model.sample_actions(**prompt, num_steps=2).isfinite().all()
    assert model.generate(**prompt, max_new_tokens=1).numel()


@each_family
def test_a_step_in_mixed_precision(name):
    batch = training_batch(name)
    on_cpu, on_gpu = policy(name), policy(name, checkpointed=True).to(DEVICE)
    expected = on_cpu(**batch)
    learns = {n for n, g in gradients_of(on_cpu, expected.loss).items() if g is not None}
    batch = to_device(batch, DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        out = on_gpu(**batch)
    assert_close_relative(out.token_loss, expected.token_loss, 16, dtype=torch.bfloat16, what="token loss")
    assert_close_relative(out.flow_loss, expected.flow_loss, 16, dtype=torch.bfloat16, what="flow loss")
    gradients = {n: g for n, g in gradients_of(on_gpu, out.loss).items() if g is not None}
    assert gradients.keys() == learns, f"other parameters learn: {sorted(gradients.keys() ^ learns)[:5]}"
    wrong = [n for n, g in gradients.items() if g.dtype != torch.float32 or not g.isfinite().all()]
    assert not wrong, f"gradients that are not finite, or not float32: {wrong[:5]}"
    with torch.autocast(DEVICE, torch.bfloat16):
        flow_loss = on_gpu(**batch).flow_loss
    touched = [n for n, g in backbone_gradients(on_gpu, flow_loss).items() if g is not None]
    assert not touched, f"insulated flow loss gave a gradient to {touched[:5]}"


# ---------------------------------------------------------------------------------------------------- some families
@SOME
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations(name, implementation):
    on_cpu, on_gpu = policy(name), policy(name).to(DEVICE)
    on_gpu.set_attn_implementation(implementation)
    assert_a_step_is_the_cpus(on_gpu, on_cpu, training_batch(name))


# ------------------------------------------------------------------------------------------- kinds of policy and call
@pytest.mark.parametrize("conditioning", ["adarms", "concat"])
@pytest.mark.parametrize("state_encoding", ["none", "continuous"])
@pytest.mark.parametrize("max_delay", [0, MAX_DELAY])
def test_kinds_of_experts(conditioning, state_encoding, max_delay):
    on_cpu, on_gpu = both(
        state_encoding=state_encoding, rtc_max_delay=max_delay, expert_config={"time_conditioning": conditioning}
    )
    state = {"state": torch.ones(2, STATE)} if state_encoding == "continuous" else {}
    delay = {"delay": torch.tensor([0, 2])} if max_delay else {}
    assert_a_step_is_the_cpus(on_gpu, on_cpu, make_batch(**draws(2), **state, **delay))
    inputs = observation(**state)
    methods = ["guidance", *(["trained"] if max_delay else [])]
    for rtc in (None, *(rest_of_chunks(method=method) for method in methods)):
        expected = on_cpu.sample_actions(**inputs, rtc=rtc, num_steps=3)
        found = on_gpu.sample_actions(**to_device(inputs, DEVICE), rtc=rtc, num_steps=3)
        assert_close_relative(found, expected, VALUES, what=f"actions, rtc {rtc and rtc.method}")


def test_what_is_not_given_is_drawn_on_the_device():
    """Noise, times and delays."""
    model = make_model(rtc_max_delay=MAX_DELAY).to(DEVICE)
    out = model(**to_device(make_batch(), DEVICE))
    out.loss.backward()
    assert out.flow_loss.isfinite() and out.velocity.device.type == DEVICE
    inputs = to_device(observation(), DEVICE)
    del inputs["noise"]
    assert model.sample_actions(**inputs).device.type == DEVICE


@pytest.mark.parametrize("name", ["llava", "paligemma"])  # an output layer of its own, and that of the embedding
def test_action_tokens_among_candidates(name):
    on_cpu, on_gpu = both(name=name)
    batch = make_batch(name, **draws(2))
    learned = batch["labels"] != -100
    candidates = batch["labels"][learned].unique()
    last = learned & (torch.arange(learned.shape[1]) >= learned.shape[1] - 3)
    assert_a_step_is_the_cpus(on_gpu, on_cpu, {**batch, "candidates": candidates, "candidates_mask": last})


@pytest.mark.parametrize("tokenizer", [FAST, BinningActionTokenizer(16)], ids=["FAST", "bins"])
@pytest.mark.parametrize("responds", [False, True], ids=["acts", "responds"])
def test_actions_as_tokens_are_the_cpus(tokenizer, responds):
    processor = make(action_tokenizer=tokenizer, responds_first=responds)
    on_cpu = copy.deepcopy(processor_policy())
    on_cpu.resize_token_embeddings(processor.vocab_size)
    on_gpu = copy.deepcopy(on_cpu).to(DEVICE)
    inputs = processor(**columns(seen(LONG), seen(SHORT)))
    options = {"max_response_tokens": 3} if responds else {}
    expected = on_cpu.generate_actions(processor, **inputs, **options)
    found = on_gpu.generate_actions(processor, **inputs.to(DEVICE), **options)
    assert_close_relative(np.stack(found), np.stack(expected), VALUES, dtype=torch.float32, what="chunks")
    sampled = on_gpu.generate_actions(processor, **inputs.to(DEVICE), do_sample=True, temperature=0.7, **options)
    assert np.isfinite(np.stack(sampled)).all()
    if responds:
        words = [model.generate_response(processor, 3, **inputs.to(model.device)) for model in (on_cpu, on_gpu)]
        assert words[0] == words[1]


def test_a_step_on_what_a_processor_makes():
    """A batch of demonstrations with and without words, as the collator gives it."""
    processor, on_cpu = make(), copy.deepcopy(processor_policy())
    on_gpu = copy.deepcopy(on_cpu).to(DEVICE)
    generator = torch.Generator().manual_seed(0)
    batch = {**processor(**columns(LONG, SHORT))}
    batch["noise"] = torch.randn(batch["actions"].shape, generator=generator)
    batch["timestep"] = torch.rand(2, generator=generator)
    assert_a_step_is_the_cpus(on_gpu, on_cpu, batch)
