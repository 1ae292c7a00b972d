import json
import math
import os
import pickle
import random

import numpy as np
import pytest
import torch
from scipy.fft import dct, idct
from tokenizers import ByteLevelBPETokenizer
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from kivla.processing import ActionDecodingFailure, BinningActionTokenizer, FASTActionTokenizer, load_action_tokenizer
from tests.helpers.tolerance import assert_close_relative

H, D = 12, 3


def smooth_chunks(count, seed=0, steps=H, dims=D):
    """Sums of slow sines, about -1..1, with a gripper as the last dimension: (count, steps, dims)."""
    rng = np.random.default_rng(seed)
    time = np.linspace(0, 1, steps)[:, None]
    frequency, phase, size = (rng.uniform(low, high, (count, 1, dims)) for low, high in ((0.2, 2), (0, 6), (0.2, 0.9)))
    chunks = size * np.sin(2 * np.pi * frequency * time + phase) + rng.normal(0, 0.02, (count, steps, dims))
    chunks[..., -1] = np.where(time[:, 0] < rng.uniform(size=(count, 1)), -1, 1)
    return chunks


def published_fit(chunks, folder, vocab_size=512, scale=10):
    """What the published class does: a byte-level BPE whose alphabet is chr(0..max-min), saved by transformers."""
    coefficients = [np.around(dct(chunk, axis=0, norm="ortho") * scale).astype(int) for chunk in chunks]
    low, high = (int(f([f(c) for c in coefficients])) for f in (np.min, np.max))
    bpe = ByteLevelBPETokenizer()._tokenizer
    alphabet = [chr(c) for c in range(high - low + 1)]
    trainer = BpeTrainer(vocab_size=vocab_size, show_progress=False, initial_alphabet=alphabet, max_token_length=10000)
    bpe.train_from_iterator(("".join(map(chr, (c - low).flatten())) for c in coefficients), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, clean_up_tokenization_spaces=False)
    tokenizer.save_pretrained(folder)
    config = {
        "action_dim": None,
        "auto_map": {"AutoProcessor": "processing_action_tokenizer.UniversalActionProcessor"},
        "min_token": low,
        "processor_class": "UniversalActionProcessor",
        "scale": scale,
        "time_horizon": None,
        "vocab_size": vocab_size,
    }
    (folder / "processor_config.json").write_text(json.dumps(config))
    return low, high


def published_encode(folder, chunks):
    """The published class's encoding, from the files alone."""
    config = json.loads((folder / "processor_config.json").read_text())
    bpe = PreTrainedTokenizerFast.from_pretrained(folder)
    coefficients = np.around(dct(chunks, axis=1, norm="ortho") * config["scale"])
    characters = np.maximum(coefficients.reshape(len(chunks), -1) - config["min_token"], 0).astype(int)
    return [bpe("".join(map(chr, row)))["input_ids"] for row in characters]


def published_decode(folder, codes, steps=H, dims=D):
    config = json.loads((folder / "processor_config.json").read_text())
    bpe = PreTrainedTokenizerFast.from_pretrained(folder)
    coefficients = np.array([ord(character) for character in bpe.decode(codes)]) + config["min_token"]
    return idct(coefficients.reshape(steps, dims) / config["scale"], axis=0, norm="ortho")


def from_coefficients(rows, scale=10):
    """Chunks whose rounded DCT coefficients are exactly these: (B, H, D) -> (B, H, D)."""
    return idct(np.asarray(rows) / scale, axis=1, norm="ortho")


@pytest.fixture(scope="module")
def fast():
    return FASTActionTokenizer.fit(smooth_chunks(300), vocab_size=400)


@pytest.fixture(scope="module")
def published_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    published_fit(smooth_chunks(300), folder)
    return folder


@pytest.fixture(params=["fast", "published", "binning"])
def tokenizer(request, fast, published_folder):
    """A fresh object of each kind: fitted FAST, byte-level FAST from published files, bins."""
    if request.param == "fast":
        return FASTActionTokenizer.from_dict(fast.to_dict())
    if request.param == "published":
        return FASTActionTokenizer.from_pretrained(published_folder)
    return BinningActionTokenizer(num_bins=64)


# --- every tokenizer ---


def test_roundtrip_stays_within_the_stated_bounds(tokenizer):
    chunks = np.clip(smooth_chunks(300), -1, 1) if isinstance(tokenizer, BinningActionTokenizer) else smooth_chunks(300)
    tokens = tokenizer(chunks)
    decoded = tokenizer.decode(tokens, chunk_size=H, action_dim=D)
    assert tokenizer.num_clipped == 0
    assert all(chunk.shape == (H, D) and chunk.dtype == np.float32 for chunk in decoded)
    errors = np.stack(decoded) - chunks
    assert np.abs(errors).max() <= tokenizer.quantization_error_bound(H) + 1e-6
    assert np.sqrt((errors**2).mean(axis=(1, 2))).max() <= tokenizer.rms_error_bound + 1e-6
    assert all(0 <= code < tokenizer.vocab_size for codes in tokens for code in codes)
    assert max(map(len, tokens)) <= tokenizer.max_tokens(H, D)


def test_one_chunk_a_batch_and_a_list_of_shapes_encode_alike(tokenizer):
    chunks = smooth_chunks(3) * 0.9
    tokens = tokenizer.encode(chunks)
    assert tokenizer.encode(chunks[1]) == tokens[1:2]
    assert tokenizer.encode(list(chunks)) == tokens
    ragged = [chunks[0], chunks[1][:5], chunks[2][:, :2]]
    decoded = [tokenizer.decode([c], *r.shape)[0] for c, r in zip(tokenizer.encode(ragged), ragged, strict=True)]
    assert [chunk.shape for chunk in decoded] == [(H, D), (5, D), (H, 2)]
    assert tokenizer.encode([]) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_by_name(tokenizer, bad):
    chunks = smooth_chunks(3)
    chunks[2, 4, 1] = bad
    with pytest.raises(ValueError, match=r"chunk 2 is .*(nan|inf) at step 4, dimension 1"):
        tokenizer.encode(chunks)


@pytest.mark.parametrize("shape", [(3,), (1, 2, 3, 4), (2, 0, 3)])
def test_shapes_that_are_no_chunks_are_refused(tokenizer, shape):
    with pytest.raises(ValueError, match="shape"):
        tokenizer.encode(np.zeros(shape))


def test_no_sequence_of_codes_makes_decode_raise(tokenizer):
    rng = random.Random(0)
    outcomes = set()
    sequences = [[], [-1], [2**70], [tokenizer.vocab_size], [None], [0.5], ["7"], [0] * (H * D)]
    # Valid codes only, of any length, and the same with a foreign code put in.
    for _ in range(5000):
        valid = [rng.randrange(tokenizer.num_codes) for _ in range(rng.randrange(H * D + 2))]
        foreign = rng.choice([-1, -(2**40), 2**31, 2**32, 2**64, tokenizer.vocab_size])
        sequences += [valid, [*valid, foreign]]
    decoded = tokenizer.decode(sequences, chunk_size=H, action_dim=D)
    assert len(decoded) == len(sequences)
    for result in decoded:
        if isinstance(result, ActionDecodingFailure):
            assert str(result)
            outcomes.add(result.reason)
        else:
            assert result.shape == (H, D)
            assert np.isfinite(result).all()
    assert {"foreign_code", "value_count"} <= outcomes
    assert len(outcomes) == 2 or isinstance(tokenizer, FASTActionTokenizer)


def test_a_failure_says_why_and_spares_its_neighbours(tokenizer):
    good, other = tokenizer.encode(smooth_chunks(2) * 0.9)
    decoded = tokenizer.decode([good, good + other, [*good[:-1], -3], other], chunk_size=H, action_dim=D)
    assert decoded[1] == ActionDecodingFailure("value_count", expected=H * D, got=2 * H * D)
    assert (decoded[2].reason, decoded[2].got) == ("foreign_code", -3)
    for index, codes in ((0, good), (3, other)):
        np.testing.assert_array_equal(decoded[index], tokenizer.decode([codes], H, D)[0])


def test_decode_takes_integer_arrays_and_refuses_a_flat_sequence(tokenizer):
    codes = tokenizer.encode(smooth_chunks(1) * 0.9)
    expected = tokenizer.decode(codes, H, D)
    np.testing.assert_array_equal(tokenizer.decode(np.array(codes), H, D), expected)
    with pytest.raises(TypeError, match="list of sequences"):
        tokenizer.decode(codes[0], H, D)
    with pytest.raises(ValueError, match="positive"):
        tokenizer.decode(codes, 0, D)


def test_what_does_not_fit_is_clipped_counted_and_logged_once(tokenizer, caplog):
    chunks = smooth_chunks(2) * 0.5
    chunks[0, :, 0] = 50
    (first, second), again = tokenizer.encode(chunks), tokenizer.encode(chunks[0])
    assert again == [first]
    # FAST: only the constant part of one dimension is too large. Bins: every step is.
    per_chunk = H if isinstance(tokenizer, BinningActionTokenizer) else 1
    assert tokenizer.num_clipped == 2 * per_chunk
    assert [record.message.startswith(f"Clipped {per_chunk} of {H * D}") for record in caplog.records] == [True]
    clipped, untouched = tokenizer.decode([first, second], H, D)
    assert np.abs(clipped[:, 1:] - chunks[0, :, 1:]).max() <= tokenizer.quantization_error_bound(H) + 1e-6
    assert np.abs(untouched - chunks[1]).max() <= tokenizer.quantization_error_bound(H) + 1e-6
    assert 0.5 < clipped[:, 0].min() < 50, "the clipped dimension must keep its sign and lose size only"


def test_saving_and_dictionaries_keep_everything(tokenizer, tmp_path):
    chunks = smooth_chunks(20, seed=5)
    tokenizer.save_pretrained(tmp_path / "new" / "folder")
    copies = [
        type(tokenizer).from_pretrained(tmp_path / "new" / "folder"),
        load_action_tokenizer(str(tmp_path / "new" / "folder")),
        load_action_tokenizer(json.loads(json.dumps(tokenizer.to_dict()))),
    ]
    for copy in copies:
        assert type(copy) is type(tokenizer)
        assert copy.to_dict() == tokenizer.to_dict()
        assert copy.encode(chunks) == tokenizer.encode(chunks)
        assert copy.num_clipped <= tokenizer.num_clipped


def test_an_interrupted_save_leaves_the_old_files(tokenizer, tmp_path, monkeypatch):
    tokenizer.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(path, text, **kwargs):
        path.write_bytes(text[: len(text) // 2].encode())
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.write_text", full_disk)
    with pytest.raises(OSError, match="disk full"):
        tokenizer.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_data_loader_workers_can_copy_it(tokenizer):
    chunks = smooth_chunks(2)
    assert pickle.loads(pickle.dumps(tokenizer)).encode(chunks) == tokenizer.encode(chunks)


def test_roundtrip_error_reports_what_it_measures(tokenizer):
    chunks = smooth_chunks(10) * 0.9
    tokens = tokenizer.encode(chunks)
    errors = np.stack(tokenizer.decode(tokens, H, D)) - chunks
    report = tokenizer.roundtrip_error(chunks)
    assert report["tokens_mean"] == np.mean([len(codes) for codes in tokens])
    assert report["tokens_max"] == max(len(codes) for codes in tokens)
    assert report["rmse"] == pytest.approx(np.sqrt((errors**2).mean()))
    assert report["max_error"] == pytest.approx(np.abs(errors).max())
    assert report["clipped"] == 0


# --- FAST, fitted ---


def test_every_coefficient_string_survives_the_bpe():
    # All characters of the range, each between all kinds of others: letters, digits, spaces, control and accents.
    low, high = -300, 330
    rng = np.random.default_rng(0)
    rows = rng.integers(low, high + 1, (200, H, D))
    rows[0, 0, :2] = low, high
    fast = FASTActionTokenizer.fit(from_coefficients(rows), vocab_size=1000)
    assert (fast.min_token, fast.max_token) == (low, high)
    everything = np.concatenate([np.arange(low, high + 1), rng.integers(low, high + 1, 1001)])  # 1632 values
    unseen = np.stack([np.resize(np.roll(everything, shift), (H, D)) for shift in range(0, len(everything), H * D)])
    decoded = fast.decode(fast.encode(from_coefficients(unseen)), H, D)
    np.testing.assert_array_equal(np.around(dct(decoded, axis=1, norm="ortho") * 10), unseen)
    assert fast.num_clipped == 0


def test_tokens_compress_smooth_motion(fast):
    report = fast.roundtrip_error(smooth_chunks(50, seed=9))
    assert report["tokens_mean"] < 0.7 * H * D


def test_fit_learns_the_same_from_a_list_and_from_an_array(fast):
    assert FASTActionTokenizer.fit(list(smooth_chunks(300)), vocab_size=400).to_dict() == fast.to_dict()


def test_fit_takes_chunks_of_unequal_length():
    chunks = [chunk[: 4 + index % 8] for index, chunk in enumerate(smooth_chunks(40))]
    fast = FASTActionTokenizer.fit(chunks, vocab_size=300)
    decoded = [fast.decode(fast.encode(chunk), *chunk.shape)[0] for chunk in chunks]
    assert all(np.abs(d - c).max() <= fast.quantization_error_bound(H) for d, c in zip(decoded, chunks, strict=True))


def test_codes_that_little_data_never_learned_are_foreign():
    fast = FASTActionTokenizer.fit(smooth_chunks(2), vocab_size=5000)
    assert fast.vocab_size == 5000
    assert fast.decode([[4999]], H, D)[0].reason == "foreign_code"


def test_fit_refuses_a_vocabulary_smaller_than_the_range_of_the_data():
    chunks = smooth_chunks(5)
    chunks[0, 0, 0] = 1000
    with pytest.raises(ValueError, match=r"vocab_size=1024.*outliers"):
        FASTActionTokenizer.fit(chunks)
    chunks[0, 0, 0] = 1e5
    with pytest.raises(ValueError, match="surrogates"):
        FASTActionTokenizer.fit(chunks, vocab_size=10**7)


def test_fit_names_the_dimension_that_does_not_fit():
    chunks = smooth_chunks(20)
    chunks[7, :, 2] += 500.0
    with pytest.raises(ValueError, match="The largest is of dimension 2, counted from 0"):
        FASTActionTokenizer.fit(chunks)


def test_fit_learns_from_some_and_covers_all():
    """Merges of a few chunks, spread evenly; the range of coefficients is that of all."""
    chunks = smooth_chunks(300)
    chunks[1] *= 3.0  # not among those that are chosen
    chosen = chunks[np.linspace(0, 299, 30).round().astype(int)]
    some = FASTActionTokenizer.fit(chunks, vocab_size=400, max_chunks=30)
    alone = FASTActionTokenizer.fit(chosen, vocab_size=400)
    assert some.roundtrip_error(chunks)["clipped"] == 0 < alone.roundtrip_error(chunks)["clipped"]
    assert len(some.tokenizer.get_vocab()) < len(FASTActionTokenizer.fit(chunks, vocab_size=400).tokenizer.get_vocab())


def test_fit_refuses_no_data_and_no_scale():
    with pytest.raises(ValueError, match="at least one"):
        FASTActionTokenizer.fit([])
    with pytest.raises(ValueError, match="scale must be positive"):
        FASTActionTokenizer.fit(np.zeros((2, H, D)), scale=0)


def test_a_larger_scale_is_more_exact_and_takes_more_codes():
    chunks = smooth_chunks(100)
    coarse, fine = (FASTActionTokenizer.fit(chunks, scale=scale).roundtrip_error(chunks) for scale in (5, 50))
    assert fine["rmse"] < coarse["rmse"] / 5
    assert fine["tokens_mean"] > coarse["tokens_mean"]


def test_the_error_bound_of_a_single_value_is_reached(fast):
    # The worst chunk: every coefficient off by almost half a step, all with the sign of the basis at one time step.
    basis = idct(np.eye(H), axis=0, norm="ortho")
    step = np.abs(basis).sum(axis=1).argmax()
    chunk = (basis @ (np.sign(basis[step]) * 0.4999 / fast.scale))[:, None]
    error = np.abs(fast.decode(fast.encode(chunk), H, 1)[0] - chunk).max()
    assert 0.999 * fast.quantization_error_bound(H) < error <= fast.quantization_error_bound(H)


# --- FAST, published files ---


def test_published_files_give_the_published_codes_and_chunks(published_folder):
    fast = FASTActionTokenizer.from_pretrained(published_folder)
    chunks = smooth_chunks(300)
    tokens = fast.encode(chunks)
    assert tokens == published_encode(published_folder, chunks)
    decoded = fast.decode(tokens, H, D)
    expected = [published_decode(published_folder, codes) for codes in tokens]
    assert_close_relative(np.stack(decoded), np.stack(expected), dtype=torch.float32, what="chunks")


def test_fitted_files_are_read_alike_by_the_published_way(tmp_path):
    rows = np.random.default_rng(0).integers(0, 130, (300, H, D))
    rows[0, 0, :2] = 0, 129
    rows[1:, 5, 0], rows[1:, 5, 1] = ord(" "), ord(".")  # what tokenizers of text like to tidy up
    chunks = from_coefficients(rows)
    fast = FASTActionTokenizer.fit(chunks, vocab_size=300)
    fast.save_pretrained(tmp_path)
    names = ["processor_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(os.listdir(tmp_path)) == names
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path).clean_up_tokenization_spaces is False
    tokens = fast.encode(chunks)
    assert published_encode(tmp_path, chunks) == tokens
    expected = [published_decode(tmp_path, codes) for codes in tokens]
    decoded = fast.decode(tokens, H, D)
    assert_close_relative(np.stack(decoded), np.stack(expected), dtype=torch.float32, what="chunks")


def test_published_vocabularies_may_be_larger_than_their_config_says(tmp_path):
    published_fit(smooth_chunks(50), tmp_path, vocab_size=60)
    fast = FASTActionTokenizer.from_pretrained(tmp_path)
    assert max(code for codes in fast.encode(smooth_chunks(50)) for code in codes) >= 60
    assert fast.vocab_size == len(fast.tokenizer.get_vocab())


def test_coefficients_that_published_files_lose_are_counted_not_dropped(tmp_path):
    # Even coefficients only: the bytes of odd ones are in no published vocabulary.
    rng = np.random.default_rng(0)
    rows = 2 * rng.integers(0, 20, (100, H, D))
    rows[0, 0, :2] = 0, 38
    published_fit(from_coefficients(rows), tmp_path)
    chunk = from_coefficients(np.where(np.arange(H * D).reshape(1, H, D) == 7, 5, rows[:1]))
    lost = published_encode(tmp_path, chunk)[0]
    fast = FASTActionTokenizer.from_pretrained(tmp_path)
    assert fast.decode([lost], H, D)[0] == ActionDecodingFailure("value_count", expected=H * D, got=H * D - 1)
    decoded = fast.decode(fast.encode(chunk), H, D)[0]
    assert fast.num_clipped == 1
    moved = np.around(dct(decoded - chunk[0], axis=0, norm="ortho") * 10).ravel()
    assert abs(moved[7]) == 1, "the coefficient 5 moves to its nearest neighbour, 4 or 6"
    assert not np.delete(moved, 7).any()


def test_codes_of_absurd_actions_are_failures(tmp_path):
    # Single bytes have codes in a published vocabulary. Put together by a model, they may form no character (U+FFFD,
    # which the published class decodes to a coefficient of 65533) or one that no training chunk ever had.
    rows = np.random.default_rng(0).integers(0, 330, (300, H, D))
    rows[0, 0, :2] = 0, 329
    published_fit(from_coefficients(rows), tmp_path)
    fast = FASTActionTokenizer.from_pretrained(tmp_path)
    assert (fast.min_token, fast.max_token) == (0, 329)
    lead, follow = (fast.tokenizer.token_to_id(chr(byte)) for byte in "\u01ff".encode())
    assert np.abs(published_decode(tmp_path, [lead, lead], 2, 1)).max() > 5000
    broken, beyond = fast.decode([[lead, lead], [lead, follow]], 1, 1)
    assert broken.reason == "undecodable_bytes"
    assert beyond == ActionDecodingFailure("out_of_range", "DCT coefficients 0..329", 0x1FF)


def test_loading_says_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no processor_config\.json"):
        load_action_tokenizer(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"processor_class": "PaliGemmaProcessor"}')
    with pytest.raises(ValueError, match="not of a FAST tokenizer: it lacks"):
        FASTActionTokenizer.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        FASTActionTokenizer.from_pretrained(tmp_path / "absent")
    with pytest.raises(ValueError, match="Unknown action tokenizer 'vq'"):
        load_action_tokenizer({"kind": "vq"})


def test_a_hub_id_downloads_data_files_only(published_folder, monkeypatch):
    requested = {}

    def snapshot_download(repo_id, **kwargs):
        requested.update(repo_id=repo_id, **kwargs)
        return str(published_folder)

    monkeypatch.setattr("kivla.processing.saved_files.snapshot_download", snapshot_download)
    fast = load_action_tokenizer("physical-intelligence/fast", revision="main")
    assert fast.encode(smooth_chunks(1))
    assert (requested["repo_id"], requested["revision"]) == ("physical-intelligence/fast", "main")
    assert all(pattern.endswith(".json") for pattern in requested["allow_patterns"])


# --- bins ---


def test_bins_have_equal_width_and_decode_to_their_centres():
    bins = BinningActionTokenizer(num_bins=4, low=-2, high=2)
    values = np.array([[-2.0, -1.0001, -1.0, 0.0, 1.9999, 2.0]])
    assert bins.encode(values) == [[0, 0, 1, 2, 3, 3]]
    np.testing.assert_allclose(bins.decode([[0, 1, 2, 3]], 2, 2)[0], [[-1.5, -0.5], [0.5, 1.5]])
    assert bins.num_clipped == 0


def test_bins_need_a_range():
    for arguments in ({"num_bins": 1}, {"low": 1, "high": 1}, {"high": math.nan}):
        with pytest.raises(ValueError, match="num_bins >= 2 and finite low < high"):
            BinningActionTokenizer(**arguments)
