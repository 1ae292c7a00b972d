"""What is done for speed changes no value: room for keys, a prefix that is used again, compiling, fewer logits."""

import copy

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode

from kivla.modeling_kivla import KIVLAForActionPrediction
from kivla.modeling_kivla.action_expert import Prefix, join
from kivla.modeling_kivla.backbone_attention import decoder_layers, find_text_decoder, logits_of
from kivla.modeling_kivla.flow_matching import euler_times
from tests.helpers.families import FAMILIES, collate, drop_suffix, each_family, make_example, randomize_zero_parameters
from tests.helpers.tolerance import assert_close_relative, assert_gradients_close
from tests.modeling_kivla.test_modeling import CHUNK, STATE, WIDTH, make_batch, make_model


def observation(name="llava", lengths=(4, 7), **extra) -> dict:
    """Prompts of different lengths, so that one of them is padded and a mask is needed."""
    family = FAMILIES[name]
    batch = collate(family, [drop_suffix(make_example(family, text_length=n, seed=n)) for n in lengths])
    noise = torch.randn(len(lengths), CHUNK, WIDTH, generator=torch.Generator().manual_seed(1))
    return {**batch, "noise": noise, **extra}


def plain_sampling(model: KIVLAForActionPrediction, num_steps: int, noise: torch.Tensor, state=None, **inputs):
    """Euler steps as the formula says, every one through the path that training takes: keys joined anew each time."""
    prefix = model.encode_prefix(**inputs)
    layout = model.expert.suffix_layout(prefix, model.config.chunk_size)
    x = noise
    for t in euler_times(num_steps, x.device):
        velocity = model.expert(x, model.expert.time_condition(t.expand(len(x))), prefix, layout, state)
        x = x - velocity / num_steps
    return x


@torch.no_grad()
@pytest.mark.parametrize("conditioning", ["adarms", "concat"])
@pytest.mark.parametrize("state_encoding", ["none", "continuous"])
@pytest.mark.parametrize("lengths", [(4,), (4, 7)], ids=["one", "padded"])
def test_sampling_equals_the_plain_loop(conditioning, state_encoding, lengths):
    model = make_model(state_encoding=state_encoding, expert_config={"time_conditioning": conditioning})
    inputs = observation(lengths=lengths)
    if state_encoding == "continuous":
        inputs["state"] = torch.randn(len(lengths), STATE)
    expected = plain_sampling(model, 4, **inputs)
    assert_close_relative(model.sample_actions(**inputs, num_steps=4), expected, what="actions")


def test_a_prefix_serves_several_chunks():
    """With other noise and steps, and unchanged by them."""
    model = make_model()
    inputs = observation()
    noise = inputs.pop("noise")
    prefix = model.encode_prefix(**inputs)
    for num_steps in (3, 5):
        for start in (noise, -noise):
            again = model.sample_actions(prefix=prefix, noise=start, num_steps=num_steps)
            assert torch.equal(again, model.sample_actions(**inputs, noise=start, num_steps=num_steps))
    with pytest.raises(ValueError, match=r"Give a `prefix` or what it is made of, not both: got .*input_ids"):
        model.sample_actions(prefix=prefix, **inputs)


class CountProducts(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm)
        return func(*args, **(kwargs or {}))


def products_of_a_prompt(model, name) -> tuple[Prefix, int]:
    with CountProducts() as products:
        prefix = model.encode_prefix(**{n: x for n, x in observation(name).items() if n != "noise"})
    return prefix, products.count


@each_family
def test_the_vlm_stops_when_all_is_read(name):
    """From its second pass on, with the same keys, values, positions and mask. Training needs all of it."""
    model = make_model(name)
    passes = [products_of_a_prompt(model, name) for _ in range(3)]
    (whole, of_whole), *others = passes
    for prefix, count in others:
        assert count < of_whole, f"{count} products, as in a whole pass"
        for found, expected in zip(prefix.key_values, whole.key_values, strict=True):
            assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
        assert torch.equal(prefix.next_position, whole.next_position)
        assert (prefix.mask is None) == (whole.mask is None)
        assert prefix.mask is None or torch.equal(prefix.mask, whole.mask)
    logits = model(**make_batch(name)).logits
    assert torch.isfinite(logits).all() and logits.requires_grad


def test_layers_that_are_added_later_are_read():
    """A layer that stands twice among the layers keeps what it keeps the second time."""
    model = make_model("llava")
    products_of_a_prompt(model, "llava")
    decoder = find_text_decoder(model.vlm)
    decoder.layers.append(copy.deepcopy(decoder.layers[-1]))
    decoder.config.num_hidden_layers += 1
    expected = products_of_a_prompt(copy.deepcopy(model), "llava")[0].key_values
    for _ in range(2):
        found = products_of_a_prompt(model, "llava")[0].key_values
        assert all(torch.equal(a, b) for both in zip(found, expected, strict=True) for a, b in zip(*both, strict=True))


@pytest.mark.parametrize("where", ["last layer", "everywhere"])
def test_whoever_watches_sees_the_whole_pass(where):
    model = make_model("llava")
    mlp = decoder_layers(find_text_decoder(model.vlm))[-1].mlp
    products_of_a_prompt(model, "llava")
    calls = []
    note = lambda module, args, output: calls.append(module)  # noqa: E731
    handle = mlp.register_forward_hook(note) if where == "last layer" else register_module_forward_hook(note)
    try:
        products_of_a_prompt(model, "llava")
    finally:
        handle.remove()
    assert mlp in calls
    calls.clear()
    products_of_a_prompt(model, "llava")
    assert not calls


def test_noise_draws_read_their_own_example():
    """N·B suffixes, draw 0 of every example first, over B prefixes: as with prefixes that are repeated."""
    prefix, own = torch.randn(2, 3, 4, 5), torch.randn(6, 3, 2, 5)
    assert torch.equal(join(prefix, own, 4), torch.cat([prefix.repeat(3, 1, 1, 1), own], dim=2))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiled_expert_gives_the_same_actions_and_is_compiled_once(dtype):
    """One graph for all steps and calls; prompts of other lengths make it compile once more, for any length."""
    model = make_model().to(dtype)
    plain = copy.deepcopy(model)
    model.compile_expert()
    lengths = [(4,), (6,), (9,), (12,), (4,)]
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()  # of what this process compiled before
    graphs = []
    for length in lengths:
        inputs = observation(lengths=length)
        actions = model.sample_actions(**inputs, num_steps=3)
        # Fused, sums come in another order, and bfloat16 is rounded to less often
        roundings = 256 if dtype == torch.float32 else 8
        expected = plain.sample_actions(**inputs, num_steps=3)
        assert_close_relative(actions, expected, roundings, dtype=dtype, what="actions")
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == 1 and not counters["graph_break"], f"not one graph: {counters['graph_break']}"
    assert graphs[-1] == graphs[1] <= 2, f"compiled again for each length: {graphs}"


def test_a_mode_that_a_cpu_would_ignore_is_refused():
    with pytest.raises(ValueError, match=r"mode='reduce-overhead'\) is for a GPU.*compile_policy"):
        make_model().compile_expert("reduce-overhead")


@pytest.mark.slow
@torch.no_grad()
def test_policies_of_more_kinds_than_torch_keeps_code_for_go_on_as_they_are():
    """A robot does not stop for it. Torch counts the kinds of all compiled policies of the process together."""
    torch._dynamo.reset()
    plain = [make_model(expert_config={"hidden_size": width}) for width in (16, 24, 32)]
    compiled = copy.deepcopy(plain)
    for model in compiled:
        model.compile_expert()
    with torch._dynamo.config.patch(recompile_limit=2):
        for model, same in zip(compiled, plain, strict=True):
            actions = model.sample_actions(**observation(), num_steps=2)
            assert_close_relative(actions, same.sample_actions(**observation(), num_steps=2), what="actions")
    torch._dynamo.reset()


@pytest.mark.slow
def test_training_through_the_compiled_expert_gives_the_same_gradients():
    """And the VLM still gets none of the flow loss."""
    plain = make_model()
    compiled = copy.deepcopy(plain)
    compiled.compile_expert()
    batch = make_batch("llava")
    batch |= {"noise": torch.randn_like(batch["actions"]), "timestep": torch.rand(len(batch["actions"]))}
    for model in (plain, compiled):
        model.train()(**batch).loss.backward()
    found, expected = ({n: p.grad for n, p in model.named_parameters()} for model in (compiled, plain))
    assert_gradients_close(found, expected)
    compiled.zero_grad()
    compiled(**{key: value for key, value in batch.items() if key != "labels"}).loss.backward()
    assert all(parameter.grad is None for parameter in compiled.vlm.parameters())


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "paligemma", "qwen2_5_vl", "smolvlm"])
def test_logits_of_some_tokens_are_the_vlms_own(name):
    model = make_model(name)
    randomize_zero_parameters(model)
    ours = ("actions", "expert_attention_mask", "labels")
    batch = {key: value for key, value in make_batch(name).items() if key not in ours}
    tokens = torch.tensor([3, 11, 20])
    full = model(**batch).logits
    with logits_of(model.vlm, tokens):
        some = model(**batch).logits
    assert_close_relative(some[..., tokens], full[..., tokens], what="logits")
    others = torch.ones(full.shape[-1], dtype=torch.bool).index_fill(0, tokens, False)
    assert (some[..., others] == -torch.inf).all()
    assert torch.equal(model(**batch).logits, full), "not put back"
