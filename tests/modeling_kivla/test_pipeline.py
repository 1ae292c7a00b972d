"""`pipeline("action-prediction")` against the model and processor that it wraps."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from kivla import ActionDecodingFailure, KIVLAForActionPrediction, KIVLAProcessor
from tests.tolerance import assert_close_relative
from tests.training.policies import CHUNK, SIZES, awaken, dataset, make_policy, save_policy


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("pipeline"))


def observations() -> list[dict]:
    return [{key: dataset()[i][key] for key in ("images", "text", "state")} for i in (0, 70, 140)]


def test_robot_units(saved):
    pipe = pipeline("action-prediction", model=str(saved))
    result = pipe(observations()[1], seed=3, num_steps=4)
    assert result["actions"].shape == (CHUNK, 4) and result["actions"].dtype == np.float32

    processor, model = KIVLAProcessor.from_pretrained(saved), KIVLAForActionPrediction.from_pretrained(saved).eval()
    batch = processor(**{key: [value] for key, value in observations()[1].items()})
    noise = torch.randn(1, CHUNK, SIZES["max_action_dim"], generator=torch.Generator().manual_seed(3))
    expected = processor.unnormalize_actions(model.sample_actions(**batch, noise=noise, num_steps=4))
    assert_close_relative(result["actions"], expected[0], what="actions")


def test_a_batch_gives_what_each_gives_alone(saved):
    pipe = pipeline("action-prediction", model=str(saved))
    together = pipe(observations(), seed=0)
    in_pairs = pipe(observations(), seed=0, batch_size=2)
    for observation, a, b in zip(observations(), together, in_pairs, strict=True):
        alone = pipe(observation, seed=0)["actions"]
        assert_close_relative(a["actions"], alone, what="actions")
        assert_close_relative(b["actions"], alone, what="actions, in pairs")
    assert np.abs(together[0]["actions"] - together[1]["actions"]).max() > 1e-3


def test_images_in_every_form(saved, tmp_path):
    pipe = pipeline("action-prediction", model=str(saved))
    observation = observations()[0]
    expected = pipe(observation, seed=0)["actions"]
    pixels = observation["images"][0]
    Image.fromarray(pixels).save(tmp_path / "camera.png")
    for image in (Image.fromarray(pixels), torch.from_numpy(pixels), str(tmp_path / "camera.png"), pixels / 255.0):
        np.testing.assert_array_equal(pipe({**observation, "images": [image]}, seed=0)["actions"], expected)
    by_name = {**observation, "images": {dataset().cameras[0]: pixels}}
    np.testing.assert_array_equal(pipe(by_name, seed=0)["actions"], expected)


def test_unknown_keys_are_refused(saved):
    pipe = pipeline("action-prediction", model=str(saved))
    with pytest.raises(ValueError, match=r"has the keys \['image', 'text'\]; expected are 'images', 'text'"):
        pipe({"image": None, "text": "x"})


def test_auto_classes_know_us(saved):
    assert isinstance(AutoModelForImageTextToText.from_pretrained(saved), KIVLAForActionPrediction)
    assert isinstance(AutoProcessor.from_pretrained(saved), KIVLAProcessor)


def test_acting_by_tokens(saved):
    pipe = pipeline("action-prediction", model=str(saved), acts_by="tokens")
    results = pipe(observations())
    processor, model = KIVLAProcessor.from_pretrained(saved), KIVLAForActionPrediction.from_pretrained(saved).eval()
    for observation, result in zip(observations(), results, strict=True):
        (chunk,) = model.generate_actions(processor, **processor(**{k: [v] for k, v in observation.items()}))
        assert_close_relative(result["actions"], processor.unnormalize_actions(chunk), roundings=16, what="actions")
    by_flow = pipe(observations()[0], acts_by="flow", seed=0)["actions"]
    assert np.abs(by_flow - results[0]["actions"]).max() > 1e-3
    with pytest.raises(ValueError, match='acts_by must be "flow" or "tokens", got \'both\''):
        pipe(observations()[0], acts_by="both")


@pytest.fixture
def passes(monkeypatch):
    """Counts the passes of the VLM, by prompt length."""
    lengths = []
    encode = KIVLAForActionPrediction.encode_prefix

    def counted(self, **inputs):
        lengths.append(inputs["input_ids"].shape[1])
        return encode(self, **inputs)

    monkeypatch.setattr(KIVLAForActionPrediction, "encode_prefix", counted)
    return lengths


def test_what_the_vlm_read_is_kept_on_request(saved, passes):
    pipe = pipeline("action-prediction", model=str(saved), reuse_prefix=True)
    first, second, _ = observations()
    expected = [pipe(o, seed=s, reuse_prefix=False)["actions"] for o, s in ((first, 0), (first, 1), (second, 1))]
    passes.clear()
    calls = [(first, 0, 0, 1), (first, 1, 1, 1), (second, 1, 2, 2), (second, 1, 2, 2), (first, 0, 0, 3)]
    for observation, seed, number, count in calls:
        np.testing.assert_array_equal(pipe(observation, seed=seed)["actions"], expected[number])
        assert len(passes) == count
    dark = {**first, "images": [np.zeros_like(image) for image in first["images"]]}
    assert np.abs(pipe(dark, seed=0)["actions"] - expected[0]).max() > 1e-3 and len(passes) == 4
    pipe([dark, dark], seed=0)
    assert len(passes) == 5, "another batch"


def test_a_continuous_state_moves_on_without_the_vlm(tmp_path, passes):
    model, processor = make_policy(tmp_path / "vlm", state_encoding="continuous")
    awaken(model)
    pipe = pipeline("action-prediction", model=model.eval(), processor=processor, seed=0)
    observation = observations()[0]
    moved = {**observation, "state": np.asarray(observation["state"]) + 0.1}
    expected = pipe(moved)["actions"]
    passes.clear()
    before = pipe(observation, reuse_prefix=True)["actions"]
    np.testing.assert_array_equal(pipe(moved, reuse_prefix=True)["actions"], expected)
    assert len(passes) == 1 and np.abs(before - expected).max() > 1e-3


def test_a_sequence_that_does_not_decode_is_a_reason(saved, monkeypatch):
    pipe = pipeline("action-prediction", model=str(saved))
    failure = ActionDecodingFailure("value_count", 24, 7)
    chunk = np.zeros((CHUNK, 4), dtype=np.float32)
    monkeypatch.setattr(pipe.model, "generate_actions", lambda processor, **inputs: [chunk, failure, chunk])
    first, second, third = pipe(observations(), acts_by="tokens")
    assert second == {"actions": None, "failure": failure}
    assert first["actions"].shape == third["actions"].shape == (CHUNK, 4)


def test_saying_a_sub_task_and_doing_it(saved, tmp_path):
    """π0.5's two steps: the VLM says what it will do, the expert reads it. A person may say it in its place."""
    processor = KIVLAProcessor.from_pretrained(saved, expert_reads_response=True)
    processor.save_pretrained(tmp_path)
    KIVLAForActionPrediction.from_pretrained(saved).save_pretrained(tmp_path)
    pipe = pipeline("action-prediction", model=str(tmp_path))
    assert pipe.processor.expert_reads_response
    observation = observations()[0]
    own = pipe(observation, seed=0)
    told = pipe({**observation, "response": "open the drawer"}, seed=0)
    assert isinstance(own["response"], str) and told["response"] == "open the drawer"
    assert np.abs(own["actions"] - told["actions"]).max() > 1e-4, "the expert does not read the response"
    again = pipe({**observation, "response": own["response"]}, seed=0)
    assert_close_relative(again["actions"], own["actions"], what="actions")
