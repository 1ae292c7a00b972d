"""What a damaged or hostile processor or action tokenizer may not do: each is refused, with words."""

import json

import numpy as np
import pytest

from kivla import BinningActionTokenizer, FASTActionTokenizer, KIVLAProcessor
from kivla.processing import Normalizer, load_action_tokenizer
from tests.helpers.policies import save_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def settings(policy):
    """`processor_config.json`, put back after the test."""
    file = policy / "processor_config.json"
    text = file.read_text()
    yield file
    file.write_text(text)


@pytest.mark.parametrize(
    "change",
    [
        {"chunk_size": "8"},
        {"chunk_size": 10**12},
        {"max_action_dim": -1},
        {"normalization": 3},
        {"expert_reads_response": "yes"},
        {"cameras": [1, 2]},
        {"statistics": {"actions": [1.0]}},
        {"action_tokenizer": "fast"},
        {"unknown": 1},
        {"action_prompt": "{text:9999999}"},
        {"action_prompt": "{text!r}"},
    ],
    ids=str,
)
def test_settings_of_wrong_types_and_sizes(change, policy, settings):
    settings.write_text(json.dumps(json.loads(settings.read_text()) | change))
    with pytest.raises(ValueError):
        KIVLAProcessor.from_pretrained(policy)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{"], ids=["deep", "list", "cut off"])
def test_settings_that_are_no_map(text, policy, settings):
    settings.write_text(text)
    with pytest.raises(ValueError):
        KIVLAProcessor.from_pretrained(policy)


@pytest.fixture
def fast(tmp_path):
    chunks = np.random.default_rng(0).uniform(-1, 1, (50, 4, 2))
    FASTActionTokenizer.fit(chunks, vocab_size=64).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "change",
    [{"scale": 0}, {"scale": "10"}, {"scale": 1e300}, {"vocab_size": 1.5}, {"min_token": [1]}],
    ids=str,
)
def test_fast_with_settings_that_cannot_be(change, fast):
    file = fast / FASTActionTokenizer.CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match="not of a FAST tokenizer"):
        FASTActionTokenizer.from_pretrained(fast)


def test_fast_with_a_damaged_tokenizer(fast):
    (fast / FASTActionTokenizer.TOKENIZER_FILE).write_text('{"model": {"type": "none"}}')
    with pytest.raises(ValueError, match="its tokenizer is damaged"):
        FASTActionTokenizer.from_pretrained(fast)


@pytest.mark.parametrize(
    "change", [{"num_bins": 10**12}, {"num_bins": True}, {"low": "a"}, {"high": float("inf")}, {"low": 2}], ids=str
)
def test_bins_that_cannot_be(change, tmp_path):
    BinningActionTokenizer().save_pretrained(tmp_path)
    file = tmp_path / BinningActionTokenizer.FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError):
        BinningActionTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", [None, [], {"a": 1}, "x" * 10_000], ids=["none", "list", "map", "long"])
def test_a_kind_of_action_tokenizer_that_there_is_not(kind):
    with pytest.raises(ValueError, match="Unknown action tokenizer") as error:
        load_action_tokenizer({"kind": kind})
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("values", [[["a"]], [[10**400]], [[1.0], [1.0, 2.0]]], ids=range(3))
def test_what_is_no_number(values):
    normalizer = Normalizer({"q01": np.zeros(1), "q99": np.ones(1)}, "quantile")
    with pytest.raises(ValueError, match="Numbers were expected"):
        normalizer.normalize(values)


# A prefix that is longer than a token: `tokenizers` panics, with what is no `Exception`
PANICS = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "continuing_subword_prefix": "xxx"}


def test_a_tokenizer_that_panics(fast):
    file = fast / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model": PANICS}))
    with pytest.raises(ValueError, match="its tokenizer is damaged: range end index"):
        load_action_tokenizer(fast)


def test_a_vlm_tokenizer_that_panics(policy):
    file = policy / "vlm_processor" / "tokenizer.json"
    whole = file.read_text()
    file.write_text(json.dumps(json.loads(whole) | {"model": PANICS}))
    with pytest.raises(ValueError, match=r"vlm_processor cannot be loaded .*range end index"):
        KIVLAProcessor.from_pretrained(policy)
    file.write_text(whole)
