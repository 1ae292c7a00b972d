"""`compile_policy`: the same actions from compiled code, made once for prompts of any length and any weights."""

import copy

import pytest
import torch

from kivla.modeling_kivla import compiled_policy
from tests.helpers.tolerance import assert_close_relative
from tests.modeling_kivla.test_fast_paths import observation
from tests.modeling_kivla.test_modeling import STATE, make_batch, make_model
from tests.modeling_kivla.test_real_time_chunking import MAX_DELAY, rest_of_chunks

compiles = pytest.mark.slow  # half a minute for each code


@pytest.fixture
def compiled_files(monkeypatch) -> list:
    """What is compiled from here on."""
    files, compile_to = [], compiled_policy.compile_to

    def noting(path, *args):
        files.append(path)
        return compile_to(path, *args)

    monkeypatch.setattr(compiled_policy, "compile_to", noting)
    return files


def assert_same_actions(model, plain, num_steps: int = 3, **inputs) -> None:
    """Twice: what comes for the first time is the model's own."""
    expected = plain.sample_actions(**inputs, num_steps=num_steps)
    for _ in range(2):
        assert_close_relative(model.sample_actions(**inputs, num_steps=num_steps), expected, 1024, what="actions")


@compiles
@pytest.mark.parametrize("name", ["paligemma", "smolvlm"])
def test_it_gives_the_same_actions_and_is_compiled_once(name, compiled_files, tmp_path):
    """PyTorch 2.13 compiles SmolVLM as a whole wrongly, which is noticed: then its text decoder is compiled, too."""
    model = make_model(name)
    plain = copy.deepcopy(model)
    model.compile_policy(tmp_path)
    assert_same_actions(model, plain, **observation(name, (4,)))
    made = len(compiled_files)
    assert made == 2 or name == "smolvlm", f"not one code for the VLM and one for the expert: {compiled_files}"
    for length, num_steps in ((9, 3), (6, 3), (4, 5)):
        assert_same_actions(model, plain, num_steps, **observation(name, (length,)))
    assert len(compiled_files) == made, "compiled again for another length"

    # Another policy of the same sizes, as in another process: what is on disk will do.
    other = make_model(name)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.25)
    plain = copy.deepcopy(other)
    other.compile_policy(tmp_path)
    assert_same_actions(other, plain, **observation(name, (7,)))
    assert len(compiled_files) == made, "compiled again for other weights"


@compiles
def test_padded_prompts_a_state_and_what_is_left_of_a_chunk(tmp_path):
    """Guidance needs the gradient of the expert, which the code has not: it runs as without."""
    model = make_model("llava", state_encoding="continuous", rtc_max_delay=MAX_DELAY)
    plain = copy.deepcopy(model)
    model.compile_policy(tmp_path)
    inputs = observation("llava", (4, 7), state=torch.randn(2, STATE))
    for rtc in (None, rest_of_chunks(method="trained"), rest_of_chunks()):
        assert_same_actions(model, plain, rtc=rtc, **inputs)


@compiles
def test_it_follows_the_weights_of_its_own_policy(tmp_path):
    model = make_model("llava")
    model.compile_policy(tmp_path)
    inputs = observation("llava", (4,))
    model.sample_actions(**inputs, num_steps=1)
    copied = copy.deepcopy(model)
    assert copied.compiled_policy.expert is copied.expert
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


def test_training_and_words_are_as_before(tmp_path):
    model = make_model("llava")
    model.compile_policy(tmp_path)
    assert model.train()(**make_batch("llava")).loss.requires_grad
    assert not list(tmp_path.iterdir()), "training compiled something"


@compiles
def test_pictures_without_their_tokens_are_refused(tmp_path):
    """As the library does: the code itself does not look."""
    model = make_model("llava")
    model.compile_policy(tmp_path)
    inputs = observation("llava", (4,))
    model.sample_actions(**inputs, num_steps=1)
    ids = inputs["input_ids"].clone()
    ids[ids == model.config.vlm_config.image_token_id] = int(ids[0, -1])
    with pytest.raises(ValueError, match=r"[Ii]mage features and image tokens do not match"):
        model.sample_actions(**{**inputs, "input_ids": ids}, num_steps=1)


@compiles
def test_of_a_vlm_that_reads_image_grids_the_decoder_is_compiled(compiled_files, tmp_path, capsys):
    """Its forward depends on values on its way. The text decoder, the larger part, does not."""
    model = make_model("qwen2_5_vl")
    plain = copy.deepcopy(model)
    model.compile_policy(tmp_path)
    for length in (4, 9):
        assert_same_actions(model, plain, **observation("qwen2_5_vl", (length,)))
    assert len(list(tmp_path.glob("*.pt2"))) == 2, "not one code for the decoder and one for the expert"
    assert "def forward" not in capsys.readouterr().err


def test_a_policy_on_two_devices_is_refused(tmp_path):
    model = make_model("llava")
    model.expert.to("meta")
    with pytest.raises(ValueError, match="the whole policy on the CPU, and it is on cpu, meta"):
        model.compile_policy(tmp_path)


class _Zeros:
    """In place of a package of code: one that gives zeros."""

    def __init__(self, module: torch.nn.Module, inputs: dict):
        self.loader, self.like = self, module(inputs)

    def run(self, _) -> list[torch.Tensor]:
        return [torch.zeros_like(x) for x in self.like]


@pytest.mark.parametrize("fault", ["no code", "wrong code", "for shorter prompts"])
def test_where_there_is_no_right_code_the_model_runs_as_it_is(fault, tmp_path, monkeypatch, caplog):
    made = []

    def compile_to(path, module, weights, inputs, *_):
        path.touch()
        path.with_suffix(".json").write_text("[2, 3]" if fault == "for shorter prompts" else "[2, null]")
        made.append(_Zeros(module, {name: value.clone() for name, value in inputs.items()}))
        return fault != "no code"

    monkeypatch.setattr(compiled_policy, "compile_to", compile_to)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda _: made[-1])
    model = make_model("llava")
    plain = copy.deepcopy(model)
    model.compile_policy(tmp_path)
    assert_same_actions(model, plain, **observation("llava", (4,)))
    assert len(made) == 3, "not once for the VLM, its decoder and the expert"
    assert ("gives other values" in caplog.text) == (fault == "wrong code")
