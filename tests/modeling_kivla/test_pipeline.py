"""`pipeline("action-prediction")` against the model and processor that it wraps."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, TorchAoConfig, pipeline

from kivla import ActionDecodingFailure, ActionPredictionPipeline, KIVLAForActionPrediction, KIVLAProcessor
from kivla.modeling_kivla.eval_mode import eval_mode
from tests.helpers.policies import CHUNK, SIZES, awaken, dataset, make_policy, save_policy
from tests.helpers.tolerance import assert_close_relative


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


def test_a_state_like_none_in_the_data_is_said_once(saved, caplog):
    pipe = pipeline("action-prediction", model=str(saved))
    pipe(observations())
    assert "far outside" not in caplog.text
    far = observations()[0]
    far["state"] = np.array(far["state"], np.float32)
    far["state"][2] += 1e4
    for _ in range(2):
        assert np.isfinite(pipe(far)["actions"]).all()
    assert caplog.text.count("dimension 2 of the state is 1") == caplog.text.count("far outside") == 1
    still = pipe.processor.robot().state  # where a value hardly varies in the data, a little more is not far
    still._scale, still._inverse_scale = np.full_like(still._scale, 1e-6), np.full_like(still._scale, 1e6)
    near = observations()[0]
    near["state"] = still._offset * 1.01
    assert pipe.processor.robot().far_state(near["state"]) is None


def test_how_much_noise_a_chunk_starts_from(saved):
    """In a call, or as the policy's own default; none of it gives one chunk whatever the seed."""
    pipe = pipeline("action-prediction", model=str(saved))
    observation = observations()[0]
    processor, model = KIVLAProcessor.from_pretrained(saved), KIVLAForActionPrediction.from_pretrained(saved).eval()
    batch = processor(**{key: [value] for key, value in observation.items()})
    noise = torch.randn(1, CHUNK, SIZES["max_action_dim"], generator=torch.Generator().manual_seed(3))
    for scale in (0, 0.5, 2.0):
        expected = processor.unnormalize_actions(model.sample_actions(**batch, noise=scale * noise))[0]
        assert_close_relative(pipe(observation, seed=3, noise_scale=scale)["actions"], expected, what=f"{scale}")
        model.config.noise_scale = scale
        by_default = processor.unnormalize_actions(model.sample_actions(**batch, noise=noise))[0]
        assert_close_relative(by_default, expected, what=f"config.noise_scale = {scale}")
        model.config.noise_scale = 1.0
    still, again = (pipe(observation, noise_scale=0)["actions"] for _ in range(2))
    np.testing.assert_array_equal(still, again)
    assert np.abs(pipe(observation, seed=3)["actions"] - still).max() > 1e-3


@pytest.mark.parametrize("scale", [-0.1, float("nan"), float("inf"), "1", True])
def test_no_amount_of_noise(saved, scale):
    with pytest.raises(ValueError, match=r"noise_scale is a number, 0 \(no noise\) or more"):
        pipeline("action-prediction", model=str(saved), noise_scale=scale)


def test_the_expert_s_options_are_refused_where_the_vlm_acts(saved):
    pipe = pipeline("action-prediction", model=str(saved), acts_by="tokens")
    for options in ({"noise_scale": 0.5}, {"num_steps": 3}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is for the action expert"):
            pipe(observations()[0], **options)


def test_an_observation_may_bring_its_own_seed(saved):
    pipe = pipeline("action-prediction", model=str(saved))
    first, second, third = observations()
    results = pipe([{**first, "seed": 5}, second, {**third, "seed": 6}], seed=0)
    by_numpy = pipe({**first, "seed": np.int64(5)})["actions"]
    assert_close_relative(by_numpy, results[0]["actions"], what="a seed that NumPy drew")
    for seed, message in (("5", "must be a whole number, got '5'"), (2**64, "must have at most 64 bits")):
        with pytest.raises(ValueError, match=f"Observation 1: seed {message}"):
            pipe([first, {**second, "seed": seed}])
    for result, observation, seed in zip(results, (first, second, third), (5, 0, 6), strict=True):
        assert_close_relative(result["actions"], pipe(observation, seed=seed)["actions"], what=f"seed {seed}")
    a, b = ([result["actions"] for result in pipe([{**first, "seed": 5}, second])] for _ in range(2))
    np.testing.assert_array_equal(a[0], b[0])
    assert np.abs(a[1] - b[1]).max() > 1e-3, "who brings none starts from new noise"


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


@pytest.mark.parametrize(
    "options",
    [
        *({"device_map": "cpu"}, {"device_map": "auto"}, {"device": "cpu"}, {"use_fast": True}, {"dtype": "float32"}),
        *({"torch_dtype": torch.float32}, {"batch_size": 2}, {"revision": "main"}, {"local_files_only": True}),
        {"model_kwargs": {"attn_implementation": "eager"}},
        {"model_kwargs": {"dtype": torch.float32, "device_map": {"": "cpu"}}},
        {"model_kwargs": {"subfolder": "policy"}},
    ],
    ids=str,
)
def test_what_every_pipeline_takes(saved, options):
    """In particular nothing that is meant for the model is refused by the processor."""
    folder = saved.parent if "subfolder" in str(options) else saved
    pipe = pipeline("action-prediction", model=str(folder), **options)
    expected = pipeline("action-prediction", model=str(saved))(observations(), seed=0)
    for result, wanted in zip(pipe(observations(), seed=0), expected, strict=True):
        assert_close_relative(result["actions"], wanted["actions"])
    assert "action" not in repr(pipe.dtype) and "KIVLAForActionPrediction" in repr(pipe)
    implementation = options.get("model_kwargs", {}).get("attn_implementation", "sdpa")
    assert pipe.model.get_decoder().config._attn_implementation == f"kivla_{implementation}"


def test_a_lower_precision(saved):
    for options in ({"dtype": torch.bfloat16}, {"dtype": "bfloat16"}, {"model_kwargs": {"dtype": "bfloat16"}}):
        pipe = pipeline("action-prediction", model=str(saved), **options)
        assert pipe.model.dtype == torch.bfloat16 and np.isfinite(pipe(observations()[0])["actions"]).all()


@pytest.mark.quantization
def test_a_quantised_policy(saved):
    torchao = pytest.importorskip("torchao.quantization")
    quantised = {"quantization_config": TorchAoConfig(torchao.Int8WeightOnlyConfig())}
    pipe = pipeline("action-prediction", model=str(saved), model_kwargs=quantised)
    q_proj = pipe.model.get_decoder().layers[0].self_attn.q_proj
    assert type(q_proj.weight.data).__name__ == "Int8Tensor"
    exact = pipeline("action-prediction", model=str(saved))(observations()[0], seed=0)["actions"]
    error = np.abs(pipe(observations()[0], seed=0)["actions"] - exact).max()
    assert 0 < error < 0.2 * np.abs(exact).max(), error


def test_arguments_that_nothing_would_obey_are_refused(saved):
    model, processor = KIVLAForActionPrediction.from_pretrained(saved), KIVLAProcessor.from_pretrained(saved)
    with pytest.raises(ValueError, match="num_workers: not used here"):
        pipeline("action-prediction", model=model, processor=processor, num_workers=2)
    with pytest.raises(ValueError, match="tokenizer: not used here"):
        ActionPredictionPipeline(model, processor=processor, tokenizer=processor.tokenizer)
    with pytest.raises(ValueError, match="Give the policy's `processor`"):
        ActionPredictionPipeline(model)
    with pytest.raises(ValueError, match="needs a policy, but this is a PaliGemma"):
        ActionPredictionPipeline(model.vlm, processor=processor)
    with pytest.raises(ValueError, match="clip_action"):
        pipeline("action-prediction", model=str(saved), model_kwargs={"clip_action": True})


def test_a_saved_pipeline_is_the_whole_policy(saved, tmp_path):
    pipe = pipeline("action-prediction", model=str(saved))
    pipe.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    again = pipeline("action-prediction", model=str(tmp_path))
    assert_close_relative(again(observations()[0], seed=0)["actions"], pipe(observations()[0], seed=0)["actions"])


# ------------------------------------------------------------------------------------- a model that is in training
def with_dropout(saved) -> KIVLAForActionPrediction:
    model = KIVLAForActionPrediction.from_pretrained(saved)
    for layer in model.get_decoder().layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    model.vlm.model.vision_tower.eval()  # e.g. frozen, on purpose
    return model


def test_it_acts_without_dropout_and_goes_on_training(saved):
    model, processor = with_dropout(saved), KIVLAProcessor.from_pretrained(saved)
    pipe = pipeline("action-prediction", model=model, processor=processor, seed=0)
    expected = pipe(observations()[0])["actions"]
    model.train()
    model.vlm.model.vision_tower.eval()
    modes = [module.training for module in model.modules()]
    np.testing.assert_array_equal(pipe(observations()[0])["actions"], expected)
    assert [module.training for module in model.modules()] == modes and any(modes) and not all(modes)
    with pytest.raises(ValueError, match="has the keys"):
        pipe({"texts": "x"})
    assert [module.training for module in model.modules()] == modes, "left behind by an error"


def test_threads_that_act_at_once_put_the_mode_back_once(saved):
    model = with_dropout(saved)
    modes = [module.training for module in model.modules()]
    start = threading.Barrier(4)

    def act(_):
        start.wait()
        seen = set()
        for _ in range(50):
            with eval_mode(model):
                seen |= {module.training for module in model.modules()}
        return seen

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(act, range(4))) == [{False}] * 4, "one call ended another's eval mode"
    assert [module.training for module in model.modules()] == modes


# --------------------------------------------------------------------------------------- a prefix that no longer holds
def change_in_place(model):
    with torch.no_grad():
        model.get_decoder().layers[0].mlp.down_proj.weight.mul_(2)


def load_a_state(model):
    model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()})


def replace_a_weight(model):
    layer = model.get_decoder().layers[0].mlp.down_proj
    layer.weight = torch.nn.Parameter(2 * layer.weight.detach())


def new_memory(model):
    layer = model.get_decoder().layers[0].mlp.down_proj
    layer.weight.data = 2 * layer.weight.data


def an_unseen_optimizer(model):
    """As those with 8 bits do, it writes where torch does not look."""

    class Raw(torch.optim.SGD):
        def step(self):
            model.get_decoder().layers[0].mlp.down_proj.weight.data.mul_(2)

    Raw(model.parameters(), lr=1.0).step()


def another_precision(model):
    model.to(torch.bfloat16).to(torch.float32)


def another_adapter(model):
    model.set_adapter("second")


def no_adapter(model):
    model.disable_adapters()


def scaled_adapter(model):
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.scaling["first"] *= 3


CHANGES = (change_in_place, load_a_state, replace_a_weight, new_memory, an_unseen_optimizer, another_precision)
ADAPTERS = (another_adapter, no_adapter, scaled_adapter)


@pytest.mark.parametrize("change", [*CHANGES, *ADAPTERS], ids=lambda change: change.__name__)
def test_a_prefix_does_not_outlive_the_weights(saved, change, passes):
    model, processor = KIVLAForActionPrediction.from_pretrained(saved), KIVLAProcessor.from_pretrained(saved)
    if change in ADAPTERS:
        for name in ("second", "first"):
            model.add_adapter(LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False), name)
        model.set_adapter("first")
    pipe = pipeline("action-prediction", model=model, processor=processor, seed=0, reuse_prefix=True)
    before = pipe(observations()[0])["actions"]
    np.testing.assert_array_equal(pipe(observations()[0])["actions"], before)
    assert len(passes) == 1, "nothing has changed, and the VLM ran again"
    change(model)
    after = pipe(observations()[0])["actions"]
    assert_close_relative(after, pipe(observations()[0], reuse_prefix=False)["actions"])
    assert np.abs(after - before).max() > 1e-4, "the change does not show: this test says nothing"


@pytest.mark.quantization
def test_a_quantised_prefix_is_kept_and_dropped(saved, passes):
    torchao = pytest.importorskip("torchao.quantization")
    quantised = {"quantization_config": TorchAoConfig(torchao.Int8WeightOnlyConfig())}
    pipe = pipeline("action-prediction", model=str(saved), model_kwargs=quantised, seed=0, reuse_prefix=True)
    before = pipe(observations()[0])["actions"]
    pipe(observations()[0])
    assert len(passes) == 1
    weight = pipe.model.get_decoder().layers[0].self_attn.v_proj.weight
    with torch.no_grad():
        weight.qdata.mul_(-1)
    assert np.abs(pipe(observations()[0])["actions"] - before).max() > 1e-4
    assert len(passes) == 2
