"""`compile_policy`: the same actions from compiled code, made once for prompts of any length and any weights."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig
from torch import nn
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler
from torch.utils._pytree import tree_unflatten

from kivla.modeling_kivla import KIVLAForActionPrediction, compiled_policy, modeling_kivla
from tests.helpers.families.lanes import FAST
from tests.helpers.tolerance import assert_close_relative
from tests.modeling_kivla.test_fast_paths import observation
from tests.modeling_kivla.test_modeling import STATE, make_batch, make_model
from tests.modeling_kivla.test_real_time_chunking import MAX_DELAY, rest_of_chunks

compiles = pytest.mark.slow  # half a minute for each code


@pytest.fixture(scope="session")
def cache(request) -> Path:
    """Where code of these tests stays, until a source changes that it is made of."""
    everything = request.config.cache.mkdir("compiled_policies")
    of_now = compiled_policy._own_sources()
    for folder in everything.iterdir():
        if folder.name != of_now:
            shutil.rmtree(folder, ignore_errors=True)  # another process may do the same
    return everything / of_now


@pytest.fixture
def loaded(monkeypatch) -> list[str]:
    """The codes that are loaded from here on, whether they are on disk already or not."""
    paths, load = [], torch._inductor.aoti_load_package

    def noting(path):
        paths.append(path)
        return load(path)

    monkeypatch.setattr(torch._inductor, "aoti_load_package", noting)
    return paths


def assert_same_actions(model, plain, num_steps: int = 3, **inputs) -> None:
    """Twice: at first, code is made and compared."""
    expected = plain.sample_actions(**inputs, num_steps=num_steps)
    for _ in range(2):
        assert_close_relative(model.sample_actions(**inputs, num_steps=num_steps), expected, 1024, what="actions")


@compiles
@pytest.mark.parametrize("name", ["paligemma", "smolvlm"])
def test_it_gives_the_same_actions_and_is_compiled_once(name, loaded, cache):
    """PyTorch 2.13 compiles SmolVLM as a whole wrongly, which is noticed: then its text decoder is compiled, too."""
    model = make_model(name)
    plain = copy.deepcopy(model)
    model.compile_policy(cache)
    assert_same_actions(model, plain, **observation(name, (4,)))
    codes = set(loaded)
    assert len(codes) == 2 or name == "smolvlm", f"not one code for the VLM and one for the expert: {codes}"
    for length, num_steps in ((9, 3), (6, 3), (4, 5)):
        assert_same_actions(model, plain, num_steps, **observation(name, (length,)))
    assert len(loaded) == len(codes), "other code for another length"

    # Another policy of the same sizes, as in another process: what is on disk will do.
    other = make_model(name)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.25)
    plain = copy.deepcopy(other)
    other.compile_policy(cache)
    assert_same_actions(other, plain, **observation(name, (7,)))
    assert set(loaded) == codes, "other code for other weights"


# Their experts take as many tokens as a router gives them: PyTorch 2.13 makes no code of that.
NO_CODE = ("ernie4_5_vl_moe",)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(FAST.values())))
def test_what_is_noted_of_each_kind_of_vlm_gives_the_same_actions(name, monkeypatch, tmp_path, caplog):
    """What the compiler gets to see is right, for all lengths; here it runs in place of its code."""
    noted: dict[str, torch.export.ExportedProgram] = {}

    def package(program, package_path, inductor_configs):
        args, kwargs = program.example_inputs
        program.module()(*args, **kwargs)  # what has no code fails here, too
        noted[Path(package_path).name.partition(".")[0]] = program
        Path(package_path).touch()

    def load(path):
        program = noted[Path(path).stem]

        def run(flat: list[torch.Tensor]) -> list[torch.Tensor]:
            args, kwargs = tree_unflatten(flat, program.call_spec.in_spec)
            return list(program.module()(*args, **kwargs))

        return SimpleNamespace(loader=SimpleNamespace(run=run))

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", package)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", load)
    model = make_model(name)
    plain = copy.deepcopy(model)
    model.compile_policy(tmp_path)
    for length in (4, 9):
        assert_same_actions(model, plain, **observation(name, (length,)))
    assert len(noted) == 2 - (name in NO_CODE), "not one for the VLM or its text decoder, and one for the expert"
    assert "other values" not in caplog.text


@pytest.mark.parametrize(("error", "tries"), [(ValueError("by values"), 1), (OSError("no space left"), 2)])
def test_what_cannot_be_compiled_is_not_tried_in_every_process(error, tries, monkeypatch, tmp_path, caplog):
    tried = []

    def export(module, *args, **kwargs):
        tried.append(module)
        raise error

    monkeypatch.setattr(torch.export, "export", export)
    for _ in range(2):  # as in two processes
        model = make_model("llava")
        plain = copy.deepcopy(model)
        model.compile_policy(tmp_path)
        caplog.clear()
        assert_same_actions(model, plain, **observation("llava", (4,)))
        assert f"is not compiled, and runs as it is. _ExpertStep: {error}" in caplog.text
    assert len(tried) == tries * 3  # the VLM, its text decoder, the expert


@compiles
def test_padded_prompts_a_state_and_what_is_left_of_a_chunk(cache):
    """Guidance needs the gradient of the expert, which the code has not: it runs as without."""
    model = make_model("llava", state_encoding="continuous", rtc_max_delay=MAX_DELAY)
    plain = copy.deepcopy(model)
    model.compile_policy(cache)
    inputs = observation("llava", (4, 7), state=torch.randn(2, STATE))
    for rtc in (None, rest_of_chunks(method="trained"), rest_of_chunks()):
        assert_same_actions(model, plain, rtc=rtc, **inputs)


@compiles
def test_it_follows_the_weights_of_its_own_policy(cache):
    model = make_model("llava")
    model.compile_policy(cache)
    inputs = observation("llava", (4,))
    model.sample_actions(**inputs, num_steps=1)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(1.25)  # in place
    for m in (model, copied):
        plain = copy.deepcopy(m)
        plain.compiled_policy = None
        assert_same_actions(m, plain, **inputs)
    for parameter in copied.parameters():
        parameter.data = parameter.data * 0.5  # at another address
    plain = copy.deepcopy(copied)
    plain.compiled_policy = None
    assert_same_actions(copied, plain, **inputs)


@pytest.mark.parametrize("learns", ["words and actions", "actions"])
def test_training_is_as_before(learns, tmp_path):
    model = make_model("llava")
    batch = make_batch("llava")
    if learns == "actions":
        del batch["labels"]
    model.compile_policy(tmp_path)
    assert model.train()(**batch).loss.requires_grad
    assert not list(tmp_path.iterdir()), "training compiled something"


@compiles
def test_pictures_without_their_tokens_are_refused(cache):
    """As the library does: the code itself does not look."""
    model = make_model("llava")
    model.compile_policy(cache)
    inputs = observation("llava", (4,))
    model.sample_actions(**inputs, num_steps=1)
    ids = inputs["input_ids"].clone()
    ids[ids == model.config.vlm_config.image_token_id] = int(ids[0, -1])
    with pytest.raises(ValueError, match=r"[Ii]mage features and image tokens do not match"):
        model.sample_actions(**{**inputs, "input_ids": ids}, num_steps=1)


@compiles
def test_of_a_vlm_that_reads_image_grids_the_decoder_is_compiled(loaded, cache, capsys):
    """Its forward depends on values on its way. The text decoder, the larger part, does not."""
    model = make_model("qwen2_5_vl")
    plain = copy.deepcopy(model)
    model.compile_policy(cache)
    for length in (4, 9):
        assert_same_actions(model, plain, **observation("qwen2_5_vl", (length,)))
    assert len(loaded) == 2, "not one code for the decoder and one for the expert"
    assert "def forward" not in capsys.readouterr().err


def test_a_policy_on_two_devices_is_refused(tmp_path):
    model = make_model("llava")
    model.expert.to("meta")
    with pytest.raises(ValueError, match="the whole policy on the CPU, and it is on cpu, meta"):
        model.compile_policy(tmp_path)


class _AsItWas:
    """In place of a package of code: a module as it was when the code was made, with the weights that it is given."""

    def __init__(self, module: nn.Module, held: dict, inputs: dict):
        self.loader, self.kind, self.is_stale = self, type(module).__name__, False
        self.autocast = {"enabled": torch.is_autocast_enabled("cpu"), "dtype": torch.get_autocast_dtype("cpu")}
        self.module, self.held, self.inputs = copy.deepcopy(module), list(held), list(inputs)

    def right(self, given: list[torch.Tensor]) -> list[torch.Tensor]:
        assert not self.is_stale, f"{self.kind} was asked, which is for another policy"
        assert all(x.is_contiguous() for x in given[len(self.held) :]), "code asks no input how it lies in memory"
        held = dict(zip(self.held, given[: len(self.held)], strict=True))
        inputs = dict(zip(self.inputs, given[len(self.held) :], strict=True))
        with torch.autocast("cpu", **self.autocast):
            return torch.func.functional_call(self.module, held, (inputs,))

    run = right


@pytest.fixture
def made(monkeypatch) -> dict[str, _AsItWas]:
    """What is made in place of code, in no time."""
    codes = {}

    def compile_to(path, module, held, inputs, *_):
        path.touch()
        path.with_suffix(".json").write_text("[2, null, null]")
        codes[str(path)] = _AsItWas(module, held, inputs)
        return True

    monkeypatch.setattr(compiled_policy, "compile_to", compile_to)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path: codes[path])
    return codes


def attention_layer(model: KIVLAForActionPrediction) -> nn.Module:
    return model.get_decoder().layers[0].self_attn


def replace_the_vlm(model):
    model.vlm = make_model("llava").vlm
    with torch.no_grad():
        model.vlm.get_input_embeddings().weight.mul_(2.0)


def replace_the_expert(model):
    model.expert = copy.deepcopy(model.expert)
    with torch.no_grad():
        model.expert.action_in_proj.weight.mul_(2.0)


def lay_weights_otherwise(model):
    weight = attention_layer(model).q_proj.weight
    weight.data = weight.data.t().contiguous().t()


def add_an_adapter(model):
    model.add_adapter(LoraConfig(target_modules=["q_proj"], init_lora_weights=False))


def replace_a_forward(model):
    forward = attention_layer(model).o_proj.forward
    attention_layer(model).o_proj.forward = lambda x: 2.0 * forward(x)


VLM, EXPERT = "_PromptPass", "_ExpertStep"
# By name: what is done to a policy, and of which parts no code may be asked any more
CHANGES = {
    "bfloat16": (lambda model: model.bfloat16(), (VLM, EXPERT)),
    "another attention": (lambda model: model.set_attn_implementation("eager"), (VLM,)),
    "new tokens": (lambda model: model.resize_token_embeddings(len(model.get_input_embeddings().weight) + 8), (VLM,)),
    "another VLM": (replace_the_vlm, ()),
    "another expert": (replace_the_expert, ()),
    "weights that lie otherwise": (lay_weights_otherwise, (VLM,)),
    "another config": (lambda model: setattr(model.vlm.config, "vision_feature_layer", -1), (VLM,)),
    "another setting of a layer": (lambda model: setattr(attention_layer(model), "scaling", 3.0), (VLM,)),
    "another layer": (lambda model: setattr(model.get_decoder().layers[0].mlp, "act_fn", nn.ReLU()), (VLM,)),
    "an adapter": (add_an_adapter, (VLM, EXPERT)),
    "a hook of the VLM": (lambda model: attention_layer(model).register_forward_hook(lambda *_: None), (VLM,)),
    "a hook of the expert": (lambda model: model.expert.register_forward_hook(lambda *a: 2.0 * a[2]), (EXPERT,)),
    "another forward": (replace_a_forward, (VLM,)),
    "training mode": (lambda model: model.train(), (VLM, EXPERT)),
}


def spoil(made: dict[str, _AsItWas], kinds: tuple[str, ...]) -> None:
    for code in made.values():
        code.is_stale = code.is_stale or code.kind in kinds


def assert_acts_as_without_code(model, **inputs) -> None:
    plain = copy.deepcopy(model)
    plain.compiled_policy = None
    assert_same_actions(model, plain, **inputs)


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_done_to_a_policy_later_holds(change, made, tmp_path):
    model = make_model("llava")
    model.compile_policy(tmp_path)
    inputs = observation("llava", (4,))
    before = model.sample_actions(**inputs, num_steps=2)
    assert {code.kind for code in made.values()} == {VLM, EXPERT}
    do, kinds = CHANGES[change]
    do(model)
    spoil(made, kinds)
    assert_acts_as_without_code(model, **inputs)
    if change in ("another VLM", "another expert", "another config", "another layer", "an adapter", "another forward"):
        assert not torch.equal(model.sample_actions(**inputs, num_steps=2), before), "the change is no change"


@pytest.mark.parametrize("change", ["off", "scaled", "merged"])
def test_what_is_done_to_an_adapter_later_holds(change, made, tmp_path):
    model = make_model("llava")
    add_an_adapter(model)
    model.compile_policy(tmp_path)
    inputs = observation("llava", (4,))
    before = model.sample_actions(**inputs, num_steps=2)
    if change == "off":
        model.disable_adapters()
    for layer in (attention_layer(model).q_proj, *(part.self_attn.q_proj for part in model.expert.layers)):
        if change == "scaled":
            layer.set_scale("default", 3.0)
        elif change == "merged":
            layer.merge()
    spoil(made, (VLM, EXPERT))
    assert_acts_as_without_code(model, **inputs)
    if change != "merged":
        assert not torch.equal(model.sample_actions(**inputs, num_steps=2), before)


def test_autocast_and_threads_have_code_of_their_own(made, tmp_path):
    model = make_model("llava")
    model.compile_policy(tmp_path)
    inputs = observation("llava", (4,))
    model.sample_actions(**inputs, num_steps=2)
    spoil(made, (VLM, EXPERT))
    with torch.autocast("cpu", torch.bfloat16):
        assert_acts_as_without_code(model, **inputs)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert_acts_as_without_code(model, **inputs)
    finally:
        torch.set_num_threads(threads)


def test_a_policy_that_is_moved_runs_as_it_is(made, tmp_path, monkeypatch, caplog):
    """The meta device stands for a GPU."""
    monkeypatch.setattr(modeling_kivla, "check_finite", lambda chunks: None)
    model = make_model("llava")
    model.compile_policy(tmp_path)
    inputs = observation("llava", (4,))
    model.sample_actions(**inputs, num_steps=2)
    spoil(made, (EXPERT,))
    model.expert.to("meta")
    for _ in range(2):
        assert model.sample_actions(**inputs, num_steps=2).device.type == "meta"
    assert caplog.text.count("ActionExpert runs as it is, not as compiled code: `") == 1
    assert "` is on meta." in caplog.text


def test_inputs_may_come_in_any_order_and_lie_anywhere(made, tmp_path):
    model = make_model("llava")
    plain = copy.deepcopy(model)
    model.compile_policy(tmp_path)
    inputs = observation("llava", (4,))
    assert_same_actions(model, plain, **inputs)
    turned = {name: torch.stack([x, x], dim=-1)[..., 0] for name, x in reversed(inputs.items())}
    assert not turned["input_ids"].is_contiguous()
    assert_same_actions(model, plain, **turned)
    assert len(made) == 2


def test_a_chunk_looks_its_code_up_once(made, tmp_path, monkeypatch):
    """For the VLM, and for all steps of the expert."""
    model = make_model("llava")
    model.compile_policy(tmp_path)
    inputs = observation("llava", (4,))
    model.sample_actions(**inputs, num_steps=2)
    asked, structure = [], compiled_policy.structure
    monkeypatch.setattr(compiled_policy, "structure", lambda module: asked.append(module) or structure(module))
    model.sample_actions(**inputs, num_steps=5)
    assert len(asked) == 2


REFUSED: dict[str, Callable] = {
    "is on cpu, meta": lambda model: model.expert.to("meta"),
    "`vlm.lm_head.weight` is a": lambda model: nn.Module.register_parameter(
        model.vlm.lm_head, "weight", nn.Parameter(model.vlm.lm_head.weight.to_sparse())
    ),
    "has hooks": lambda model: model.vlm.register_forward_hook(lambda *_: None),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_compiled_is_refused(message, tmp_path):
    model = make_model("llava")
    REFUSED[message](model)
    with pytest.raises(ValueError, match=message):
        model.compile_policy(tmp_path)


def test_what_is_asked_for_is_checked_at_once(tmp_path, monkeypatch):
    model, file = make_model("llava"), tmp_path / "a"
    file.write_text("")
    with pytest.raises(ValueError, match=r"cache_dir is a folder for the code, and .* is a file"):
        model.compile_policy(file)
    with pytest.raises(ValueError, match="Inductor has no option 'nonsense'"):
        model.compile_policy(tmp_path, {"max_autotune": True, "nonsense": True})

    def without(*_):
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", without)
    for compiles in (model.compile_policy, model.compile_expert):
        with pytest.raises(ValueError, match=rf"{compiles.__name__} needs a C.. compiler on a CPU, and there is none"):
            compiles()
    assert model.compiled_policy is None


@pytest.mark.parametrize("damage", ["code", "lengths", "no lengths"])
def test_damaged_code_is_made_anew(damage, made, tmp_path, monkeypatch, caplog):
    compile_to, load, times = compiled_policy.compile_to, torch._inductor.aoti_load_package, []

    def counting(path, *args):
        times.append(path)
        path.write_bytes(b"")
        return compile_to(path, *args)

    def loading(path):
        if Path(path).read_bytes():
            raise RuntimeError("Failed to initialize zip archive")  # PyTorch's words
        return load(path)

    monkeypatch.setattr(compiled_policy, "compile_to", counting)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", loading)
    plain = make_model("llava")
    for _ in range(2):
        model = copy.deepcopy(plain)
        model.compile_policy(tmp_path)
        assert_same_actions(model, plain, **observation("llava", (4,)))
        for file in tmp_path.glob("*.pt2" if damage == "code" else "*.json"):
            file.write_bytes(b"PK") if damage != "no lengths" else file.unlink()
    assert len(set(times)) > 0 and len(times) == 2 * len(set(times))
    assert ("cannot be read" in caplog.text) == (damage != "no lengths")


def in_place(model):
    with torch.no_grad():
        attention_layer(model).q_proj.weight.mul_(2.0)


def at_another_address(model):
    weight = model.expert.layers[0].mlp.up_proj.weight
    weight.data = weight.data * 2.0


def by_an_optimiser(model):
    model.vlm.get_input_embeddings().weight.grad = torch.ones_like(model.vlm.get_input_embeddings().weight)
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def from_a_file(model):
    model.load_state_dict({name: 0.5 * x for name, x in model.state_dict().items()})


@pytest.mark.parametrize("change", [in_place, at_another_address, by_an_optimiser, from_a_file])
def test_packed_weights_are_seen_to_change(change, made, tmp_path):
    """They are part of the code: other weights have other code, and the same ones the same."""
    model = make_model("llava")
    before = copy.deepcopy(model.state_dict())
    model.compile_policy(tmp_path, pack_weights=True)
    inputs = observation("llava", (4,))
    for do in (lambda _: None, change):
        do(model)
        plain = copy.deepcopy(model)
        plain.compiled_policy = None
        assert_same_actions(model, plain, **inputs)
    codes = len(made)
    assert codes > 2, "no other code for other weights"
    model.load_state_dict(before)
    plain = make_model("llava")
    assert_same_actions(model, plain, **inputs)
    assert len(made) == codes, "other code for the weights from before"


@compiles
def test_packed_weights_give_the_same_actions(loaded, cache):
    plain = make_model("llava")
    for i in range(2):  # the second as in another process: what is on disk will do
        model = copy.deepcopy(plain)
        model.compile_policy(cache, pack_weights=True)
        for length in (4, 9):
            assert_same_actions(model, plain, **observation("llava", (length,)))
        assert len(loaded) == 2 * (i + 1) and len(set(loaded)) == 2
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_packed_weights_must_be_seen_to_change(tmp_path):
    with torch.inference_mode():
        model = make_model("llava")
    with pytest.raises(ValueError, match="writes to these"):
        model.compile_policy(tmp_path, pack_weights=True)


@pytest.mark.parametrize("fault", ["no code", "wrong code", "for shorter prompts"])
def test_where_there_is_no_right_code_the_model_runs_as_it_is(fault, made, tmp_path, monkeypatch, caplog):
    compile_to, wanted = compiled_policy.compile_to, []

    def faulty(path, module, *args):
        wanted.append(type(module).__name__)
        compile_to(path, module, *args)
        path.with_suffix(".json").write_text("[2, 3, null]" if fault == "for shorter prompts" else "[2, null, null]")
        return fault != "no code"

    monkeypatch.setattr(compiled_policy, "compile_to", faulty)
    if fault == "wrong code":
        monkeypatch.setattr(_AsItWas, "run", lambda self, given: [0.0 * x for x in _AsItWas.right(self, given)])
    model = make_model("llava")
    plain = copy.deepcopy(model)
    model.compile_policy(tmp_path)
    assert_same_actions(model, plain, **observation("llava", (4,)))
    assert wanted == [VLM, "_DecoderPass", EXPERT]
    assert ("gives other values" in caplog.text) == (fault == "wrong code")
