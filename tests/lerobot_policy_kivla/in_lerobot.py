"""Checks that run where LeRobot is installed; `test_plugin.py` starts this file and reads its last line.

python in_lerobot.py WORK DATASET: WORK holds `policy/` (KIVLA, one camera), `two_cameras/` (KIVLA, the cameras "front"
and "observation.images.wrist") and `observations.npz`; DATASET is the LeRobot dataset that both were made for.

The last line of the output is a JSON object: name of each check -> "ok", or the traceback.
"""

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.envs import preprocess_observation
from lerobot.policies import make_policy, make_pre_post_processors
from lerobot.policies.utils import prepare_observation_for_inference
from lerobot.utils.import_utils import register_third_party_plugins
from transformers import pipeline

from kivla import KIVLAForActionPrediction, KIVLAProcessor

WORK, DATASET = Path(sys.argv[1]), Path(sys.argv[2])
OBSERVATIONS = np.load(WORK / "observations.npz")
TEXTS = [str(text) for text in OBSERVATIONS["texts"]]
CAMERA = "corner2"


def run(*command: str, **environment: str) -> str:
    """Runs a program and returns what it printed; its last lines are the error if it fails."""
    result = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{os.environ['PYTHONPATH']}", **environment},
        cwd=WORK,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-4000:]
    return result.stdout


def load(folder: Path, *options: str, env: str = CAMERA, rename_map: dict | None = None):
    """As `lerobot-eval --policy.path=... OPTIONS` does: policy and preprocessor, postprocessor."""
    from tiny_env import TinyEnvConfig

    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=list(options))
    config.pretrained_path = folder
    policy = make_policy(cfg=config, env_cfg=TinyEnvConfig(camera=env), rename_map=rename_map or {})
    overrides = {
        "device_processor": {"device": str(policy.config.device)},
        "rename_observations_processor": {"rename_map": rename_map or {}},
    }
    return policy, *make_pre_post_processors(config, str(folder), preprocessor_overrides=overrides)


def observed(*cameras: str) -> dict:
    """The observations as `lerobot-eval` has them before the policy's preprocessor."""
    pixels = dict.fromkeys(cameras, OBSERVATIONS["images"])
    return {**preprocess_observation({"pixels": pixels, "agent_pos": OBSERVATIONS["state"]}), "task": list(TEXTS)}


def by_pipeline(folder: Path, images: list, dtype: str = "auto", **options) -> np.ndarray:
    """(B, H, D), what `pipeline` predicts for the same observations."""
    state = list(OBSERVATIONS["state"])
    observations = [{"images": i, "text": t, "state": s} for i, t, s in zip(images, TEXTS, state, strict=True)]
    results = pipeline("action-prediction", model=str(folder), dtype=dtype)(observations, **options)
    return np.stack([result["actions"] for result in results])


def training_batch(chunk_size: int) -> dict:
    """As LeRobot's data loader makes one; the last chunk ends with its episode."""
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor([-1.0, -1.0, -1.0, 0.0]), torch.tensor([1.0, 1.0, 1.0, 1.0])
    actions = low + (high - low) * torch.rand(len(TEXTS), chunk_size, 4, generator=generator)
    is_pad = torch.zeros(len(TEXTS), chunk_size, dtype=torch.bool)
    is_pad[-1, chunk_size // 2 :] = True
    return {**observed(CAMERA), "action": actions, "action_is_pad": is_pad}


# ------------------------------------------------------------------------------------------------------- checks
def discovery():
    assert "kivla" in PreTrainedConfig.get_known_choices(), PreTrainedConfig.get_known_choices()
    assert PreTrainedConfig.get_choice_class("kivla").__module__ == "lerobot_policy_kivla.configuration_kivla"


def export():
    run("-m", "lerobot_policy_kivla.export", "policy", "lerobot")
    run("-m", "lerobot_policy_kivla.export", "two_cameras", "lerobot_two", "--image_size", "96", "96")
    config = json.loads((WORK / "lerobot" / "config.json").read_text())
    assert config["type"] == "kivla" and config["device"] is None
    assert config["n_action_steps"] == config["chunk_size"] == 6
    assert set(config["input_features"]) == {f"observation.images.{CAMERA}", "observation.state"}
    assert config["output_features"]["action"]["shape"] == [4]
    two = json.loads((WORK / "lerobot_two" / "config.json").read_text())["input_features"]
    assert two["observation.images.front"]["shape"] == two["observation.images.wrist"]["shape"] == [3, 96, 96]


def same_chunks_as_the_pipeline():
    policy, preprocess, postprocess = load(WORK / "lerobot", "--seed=3", "--num_steps=4")
    batch = preprocess(observed(CAMERA))
    chunk = policy.predict_action_chunk(batch)
    expected = by_pipeline(WORK / "policy", [[image] for image in OBSERVATIONS["images"]], seed=3, num_steps=4)
    assert chunk.dtype == torch.float32 and np.ptp(expected, axis=0).max() > 1e-3
    np.testing.assert_array_equal(postprocess(chunk).numpy(), expected)


def acting_by_tokens():
    policy, preprocess, _ = load(WORK / "lerobot", "--acts_by=tokens")
    expected = by_pipeline(WORK / "policy", [[image] for image in OBSERVATIONS["images"]], acts_by="tokens")
    np.testing.assert_array_equal(policy.predict_action_chunk(preprocess(observed(CAMERA))).numpy(), expected)


def weights_of_half_the_size():
    policy, preprocess, _ = load(WORK / "lerobot", "--seed=3", "--dtype=bfloat16")
    assert {weights.dtype for weights in policy.model.parameters()} == {torch.bfloat16}
    chunk = policy.predict_action_chunk(preprocess(observed(CAMERA))).numpy()
    images = [[image] for image in OBSERVATIONS["images"]]
    np.testing.assert_array_equal(chunk, by_pipeline(WORK / "policy", images, seed=3, dtype="bfloat16"))


def without_a_seed_torch_decides():
    policy, preprocess, _ = load(WORK / "lerobot")
    batch, chunks = preprocess(observed(CAMERA)), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        chunks.append(policy.predict_action_chunk(batch))
    assert torch.equal(chunks[0], chunks[1]) and not torch.equal(chunks[0], chunks[2])


def one_action_at_a_time():
    policy, preprocess, postprocess = load(WORK / "lerobot", "--seed=3", "--n_action_steps=4")
    batch = preprocess(observed(CAMERA))
    later = preprocess({**observed(CAMERA), "task": TEXTS[::-1]})
    with torch.inference_mode():
        first, second = policy.predict_action_chunk(batch), policy.predict_action_chunk(later)
        assert not torch.equal(first, second)
        actions = [postprocess(policy.select_action(batch))]
        actions += [postprocess(policy.select_action(later)) for _ in range(4)]
        torch.testing.assert_close(torch.stack(actions[:4], 1), first[:, :4], rtol=0, atol=0)
        assert torch.equal(actions[4], second[:, 0])
        policy.reset()
        assert torch.equal(policy.select_action(batch), first[:, 0])


def a_history():
    """It remembers what every step showed, and trains on LeRobot's own windows."""
    run("-m", "lerobot_policy_kivla.export", "history", "lerobot_history")
    policy, preprocess, postprocess = load(WORK / "lerobot_history", "--seed=3", "--n_action_steps=2")
    assert policy.config.observation_delta_indices == [-1, 0] and not policy.supports_rtc()
    batch = preprocess(observed(CAMERA))
    later = {**batch, f"observation.images.{CAMERA}": batch[f"observation.images.{CAMERA}"].flip(0)}
    pipe, images = pipeline("action-prediction", model=str(WORK / "history")), list(OBSERVATIONS["images"])
    with torch.inference_mode():
        for _ in range(2):
            policy.reset()
            actions = [postprocess(policy.select_action(seen)) for seen in (batch, batch, later)]
            for i, text in enumerate(TEXTS):
                state = OBSERVATIONS["state"][i]
                clip = {"images": [[images[i], images[-1 - i]]], "state": np.stack([state, state])}
                for action, seen in ((actions[0], {"images": [[images[i]]], "state": state}), (actions[2], clip)):
                    expected = pipe({**seen, "text": text}, seed=3)["actions"][0]
                    np.testing.assert_allclose(action[i].numpy(), expected, rtol=1e-4, atol=1e-5)
    try:
        policy.predict_action_chunk(batch)
    except ValueError as error:
        assert "acts by select_action" in str(error)
    else:
        raise AssertionError("single moments were taken")


def on_a_robot():
    """As `lerobot-rollout` does it: one frame, and the sentence as a string."""
    policy, preprocess, postprocess = load(WORK / "lerobot", "--seed=3")
    image, state = OBSERVATIONS["images"][1], OBSERVATIONS["state"][1].astype(np.float32)
    frame = {f"observation.images.{CAMERA}": image.copy(), "observation.state": state.copy()}
    with torch.inference_mode():
        batch = prepare_observation_for_inference(frame, torch.device("cpu"), task=TEXTS[1], robot_type="so101")
        action = postprocess(policy.select_action(preprocess(batch)))
    pipe = pipeline("action-prediction", model=str(WORK / "policy"))
    expected = pipe({"images": [image], "text": TEXTS[1], "state": state}, seed=3)["actions"]
    np.testing.assert_array_equal(action.numpy(), expected[:1])


def one_of_several_robots():
    old = KIVLAProcessor.from_pretrained(WORK / "policy")
    actions = {name: 3 * values for name, values in old.statistics["actions"].items()}
    robots = {
        "narrow": {"statistics": old.statistics, "cameras": old.cameras},
        "wide": {"statistics": {**old.statistics, "actions": actions}, "cameras": old.cameras},
    }
    KIVLAProcessor.from_pretrained(WORK / "policy", robots=robots).save_pretrained(WORK / "robots")
    KIVLAForActionPrediction.from_pretrained(WORK / "policy").save_pretrained(WORK / "robots")
    export = ("-m", "lerobot_policy_kivla.export", "robots")
    try:
        run(*export, "lerobot_none")
    except AssertionError as error:
        assert "robots ['narrow', 'wide']" in str(error), error
    else:
        raise AssertionError("a policy of two robots was exported for none")
    chunks = {}
    for name in robots:
        run(*export, f"lerobot_{name}", "--robot", name)
        policy, preprocess, _ = load(WORK / f"lerobot_{name}", "--seed=3")
        chunks[name] = policy.predict_action_chunk(preprocess(observed(CAMERA)))
    torch.testing.assert_close(chunks["wide"], 3 * chunks["narrow"], rtol=1e-3, atol=1e-3)


def names_of_cameras():
    message = r'--rename_map=\'{"observation.images.other": "observation.images.corner2"}\''.replace("\\", "")
    for make in (lambda: load(WORK / "lerobot", env="other"), lambda: load(WORK / "lerobot", rename_map={"a": "b"})):
        try:
            policy, preprocess, _ = make()
            policy.select_action(preprocess(observed("other")))
        except ValueError as error:
            refusal = str(error)
        assert "rename_map" in refusal and "observation.images.other" in refusal, refusal
    assert message in refusal, refusal  # the second one is ours: LeRobot leaves names alone where there is a map

    names = {"observation.images.other": f"observation.images.{CAMERA}"}
    policy, preprocess, _ = load(WORK / "lerobot", "--seed=3", env="other", rename_map=names)
    expected = by_pipeline(WORK / "policy", [[image] for image in OBSERVATIONS["images"]], seed=3)
    np.testing.assert_array_equal(policy.predict_action_chunk(preprocess(observed("other"))).numpy(), expected)


def a_missing_camera():
    policy, preprocess, _ = load(WORK / "lerobot_two", "--seed=3", env="wrist")
    images = [{"front": None, "observation.images.wrist": image} for image in OBSERVATIONS["images"]]
    expected = by_pipeline(WORK / "two_cameras", images, seed=3)
    np.testing.assert_array_equal(policy.predict_action_chunk(preprocess(observed("wrist"))).numpy(), expected)
    both = policy.predict_action_chunk(preprocess(observed("wrist", "front"))).numpy()
    assert np.abs(both - expected).max() > 1e-3


def real_time_chunking():
    """As `lerobot-rollout --inference.type=rtc` does it: what is left of a chunk comes back padded, in robot units."""
    from lerobot.policies.rtc.configuration_rtc import RTCConfig
    from lerobot.rollout.inference.rtc import _normalize_prev_actions_length, supports_rtc_inference

    policy, preprocess, _ = load(WORK / "lerobot", "--seed=3")
    assert supports_rtc_inference(policy)
    policy.config.rtc_config = RTCConfig(max_guidance_weight=2.0)
    observation = {key: value[:1] for key, value in observed(CAMERA).items()}
    batch = preprocess(observation)
    left_over = policy.predict_action_chunk(preprocess({**observation, "task": TEXTS[1:2]}))[0, 2:]
    handed_back = _normalize_prev_actions_length(left_over, target_steps=10)
    assert len(handed_back) == 10
    chunk = policy.predict_action_chunk(batch, inference_delay=2, prev_chunk_left_over=handed_back)
    pipe = pipeline("action-prediction", model=str(WORK / "policy"))
    asked = {"images": [OBSERVATIONS["images"][0]], "text": TEXTS[0], "state": OBSERVATIONS["state"][0]}
    asked |= {"previous_actions": left_over.numpy(), "delay": 2}
    expected = pipe(asked, seed=3, rtc="guidance", max_guidance_weight=2.0)["actions"]
    np.testing.assert_array_equal(chunk[0].numpy(), expected)
    plain = policy.predict_action_chunk(batch, inference_delay=0, prev_chunk_left_over=None)
    assert not torch.equal(plain, chunk)
    policy.config.rtc_config = RTCConfig(enabled=False)
    assert torch.equal(policy.predict_action_chunk(batch, 2, handed_back), plain), "LeRobot then appends chunks"

    by_tokens, _, _ = load(WORK / "lerobot", "--acts_by=tokens")
    assert not supports_rtc_inference(by_tokens)
    try:
        load(WORK / "lerobot", "--rtc=trained")
    except ValueError as error:
        assert "not trained with delays" in str(error), error
    else:
        raise AssertionError("a policy without delays was taken for one with them")


def refusals():
    for option, message in (
        ('--normalization_mapping={"STATE": "MEAN_STD"}', "normalises"),
        ("--n_action_steps=7", "between 1 and chunk_size = 6"),
        ("--chunk_size=10", "predicts 6 actions at once"),
        ("--dtype=half", "must be one of float32, bfloat16, float16"),
    ):
        try:
            load(WORK / "lerobot", option)
        except Exception as error:
            assert message in f"{error} {error.__cause__}", f"{option}: {error}"
        else:
            raise AssertionError(f"{option} was accepted")
    policy, preprocess, _ = load(WORK / "lerobot")
    batch = preprocess(observed(CAMERA))
    for call, message in (
        (policy.wrap_with_peft, "kivla train --lora"),
        (lambda: policy(training_batch(6), reduction="none"), "--sample_weighting"),
        (lambda: type(policy)(policy.config), "--policy.path"),
        (lambda: type(policy).from_pretrained(WORK / "policy", config=policy.config), "lerobot_policy_kivla.export"),
    ):
        try:
            call()
        except (NotImplementedError, ValueError, FileNotFoundError) as error:
            assert message in str(error), error
        else:
            raise AssertionError(f"{message}: was accepted")
    for change, message in (
        ({"task": TEXTS[:1]}, "one `task` for each of the 3 observations"),
        ({f"observation.images.{CAMERA}": batch[f"observation.images.{CAMERA}"] * 255}, r"must lie in [0, 1]"),
        ({f"observation.images.{CAMERA}": batch[f"observation.images.{CAMERA}"][:, :1]}, "(batch, 3, height, width)"),
        ({"observation.state": batch["observation.state"][:, :2]}, "`state`"),
    ):
        try:
            policy.predict_action_chunk({**batch, **change})
        except ValueError as error:
            assert message in str(error), error
        else:
            raise AssertionError(f"{message}: was accepted")


def same_loss_as_without_lerobot():
    """And no statistics of LeRobot's come in between, though `lerobot-train` hands them to every policy."""
    policy, _, _ = load(WORK / "lerobot")
    wild = {"mean": torch.full((4,), 50.0), "std": torch.full((4,), 9.0)}
    features = {**policy.config.input_features, **policy.config.output_features}
    overrides = {
        "device_processor": {"device": "cpu"},
        "rename_observations_processor": {"rename_map": {}},
        "normalizer_processor": {
            "features": features,
            "norm_map": policy.config.normalization_mapping,
            "stats": {"action": wild, "observation.state": wild},
        },
    }
    preprocess, _ = make_pre_post_processors(
        policy.config, str(WORK / "lerobot"), dataset_stats={"action": wild}, preprocessor_overrides=overrides
    )
    batch = training_batch(6)
    policy.train()
    torch.manual_seed(5)
    loss, terms = policy(preprocess(dict(batch)))

    model = KIVLAForActionPrediction.from_pretrained(WORK / "policy").train()
    processor = KIVLAProcessor.from_pretrained(WORK / "policy")
    inputs = processor(
        images=[[image] for image in OBSERVATIONS["images"]],
        text=TEXTS,
        state=list(OBSERVATIONS["state"]),
        actions=batch["action"].numpy(),
        action_is_pad=batch["action_is_pad"].numpy(),
    )
    torch.manual_seed(5)
    expected = model(**inputs)
    assert torch.equal(loss, expected.loss)
    assert terms == {"token_loss": expected.token_loss.item(), "flow_loss": expected.flow_loss.item()}
    loss.backward()
    expected.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in policy.model.named_parameters():
        assert (parameter.grad is None) == (gradients[name] is None), name
        assert parameter.grad is None or torch.equal(parameter.grad, gradients[name]), name


def gathered_weights():
    """Where training is sharded `lerobot-train` saves with weights that it has gathered."""
    policy, preprocess, _ = load(WORK / "lerobot", "--seed=3")
    batch = preprocess(observed(CAMERA))
    weights = {name: 1.1 * values for name, values in policy.state_dict().items()}
    policy.save_pretrained(WORK / "gathered", state_dict=weights)
    policy.load_state_dict(weights)
    saved = type(policy).from_pretrained(WORK / "gathered", config=policy.config)
    assert torch.equal(saved.predict_action_chunk(batch), policy.predict_action_chunk(batch))


def to_the_hub_and_back():
    """An uploaded folder is found by its name. What `lerobot-train` pushes is complete: LeRobot selects by suffixes."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
    from hub_stand_in import hub_stand_in

    with hub_stand_in() as (endpoint, hub):
        online = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"}
        run("-c", PUSH, **online, HF_HOME=str(WORK / "pusher"))
        run("-c", ACT, **online, HF_HOME=str(WORK / "robot"))
        uploaded, pushed = hub.repos["user/uploaded"]["main"], hub.repos["user/pushed"]["main"]
    images = [[image] for image in OBSERVATIONS["images"]]
    np.testing.assert_array_equal(np.load(WORK / "chunk.npy"), by_pipeline(WORK / "policy", images, seed=3))
    of_kivla = {name for name in uploaded if name.startswith("kivla/")}
    assert {name for name in pushed if name.startswith("kivla/")} == of_kivla, "not all of the policy was pushed"
    assert any(not name.endswith((".json", ".safetensors")) for name in of_kivla), "this test can no longer fail"


PUSH = """
from types import SimpleNamespace
from huggingface_hub import HfApi, ModelCard
from lerobot.policies import get_policy_class
from lerobot.utils.import_utils import register_third_party_plugins
register_third_party_plugins()
HfApi().create_repo("user/uploaded")
HfApi().upload_folder(repo_id="user/uploaded", folder_path="lerobot")
policy = get_policy_class("kivla").from_pretrained("lerobot")
policy.config.repo_id = "user/pushed"
ModelCard.validate = lambda self: None  # asks the Hub
training = SimpleNamespace(steps=1, batch_size=1, seed=0, optimizer=None, save_pretrained=lambda folder: None)
training.dataset = SimpleNamespace(repo_id="user/data")
policy.push_model_to_hub(training)
"""
ACT = """
import numpy as np
from pathlib import Path
from lerobot.configs import PreTrainedConfig
from lerobot.envs import preprocess_observation
from lerobot.policies import get_policy_class, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins
register_third_party_plugins()
config = PreTrainedConfig.from_pretrained("user/uploaded", cli_overrides=["--seed=3"])
policy = get_policy_class(config.type).from_pretrained(Path("user/uploaded"), config=config, revision=None)
preprocess, postprocess = make_pre_post_processors(config, "user/uploaded")
data = np.load("observations.npz")
batch = preprocess_observation({"pixels": {"corner2": data["images"]}, "agent_pos": data["state"]})
batch["task"] = [str(text) for text in data["texts"]]
np.save("chunk.npy", postprocess(policy.predict_action_chunk(preprocess(batch))).numpy())
"""


def lerobot_eval():
    """The command, with two environments side by side; every action is the pipeline's."""
    (WORK / "actions.jsonl").unlink(missing_ok=True)
    run(
        *("-m", "lerobot.scripts.lerobot_eval", "--policy.path=lerobot", "--policy.seed=3"),
        *("--policy.n_action_steps=1", "--env.discover_packages_path=tiny_env", "--env.type=tiny"),
        *(f"--env.camera={CAMERA}", "--eval.n_episodes=2", "--eval.batch_size=2", "--output_dir=eval"),
        *("--eval.use_async_envs=false", "--policy.device=cpu"),
        TINY_ENV_DATA=str(WORK / "observations.npz"),
    )
    overall = json.loads((WORK / "eval" / "eval_info.json").read_text())["overall"]
    assert overall["n_episodes"] == 2 and overall["pc_success"] == 100.0, overall
    actions = np.array([json.loads(line) for line in (WORK / "actions.jsonl").read_text().splitlines()])
    assert actions.shape == (10, 4)  # two environments of five steps, that see the same
    state = list(OBSERVATIONS["state"])
    observations = [
        {"images": [image], "text": TEXTS[0], "state": s}
        for image, s in zip(OBSERVATIONS["images"], state, strict=True)
        for _ in range(2)
    ]
    pipe, expected = pipeline("action-prediction", model=str(WORK / "policy")), []
    for step in range(5):
        start = 2 * (step % len(state))
        expected += [result["actions"][0] for result in pipe(observations[start : start + 2], seed=3)]
    np.testing.assert_array_equal(actions.astype(np.float32), np.stack(expected))


def lerobot_train():
    """The command on a real dataset: it learns, its checkpoint is a KIVLA policy again, and LeRobot loads it."""
    printed = run(
        *("-m", "lerobot.scripts.lerobot_train", "--policy.path=lerobot", "--policy.push_to_hub=false"),
        *("--policy.optimizer_lr=1e-3", "--dataset.repo_id=local/metaworld", f"--dataset.root={DATASET}"),
        *("--dataset.video_backend=pyav", "--batch_size=8", "--steps=4", "--log_freq=1", "--num_workers=0"),
        *("--output_dir=train", "--policy.device=cpu", "--env_eval_freq=0", "--save_freq=4", "--wandb.enable=false"),
    )
    assert "flow_loss" in printed or "token_loss" in printed, printed[-3000:]
    folder = WORK / "train" / "checkpoints" / "last" / "pretrained_model"
    policy, preprocess, postprocess = load(folder, "--seed=3")
    chunk = postprocess(policy.predict_action_chunk(preprocess(observed(CAMERA)))).numpy()
    images = [[image] for image in OBSERVATIONS["images"]]
    np.testing.assert_array_equal(chunk, by_pipeline(folder / "kivla", images, seed=3))
    assert np.abs(chunk - by_pipeline(WORK / "policy", images, seed=3)).max() > 1e-4, "nothing was learned"


CHECKS = (
    discovery,
    export,
    same_chunks_as_the_pipeline,
    acting_by_tokens,
    weights_of_half_the_size,
    without_a_seed_torch_decides,
    one_action_at_a_time,
    a_history,
    on_a_robot,
    one_of_several_robots,
    names_of_cameras,
    a_missing_camera,
    real_time_chunking,
    refusals,
    same_loss_as_without_lerobot,
    gathered_weights,
    to_the_hub_and_back,
    lerobot_eval,
    lerobot_train,
)

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    os.environ["TINY_ENV_DATA"] = str(WORK / "observations.npz")
    os.environ.setdefault("PYTHONPATH", "")
    register_third_party_plugins()
    results = {}
    for check in CHECKS:
        try:
            check()
            results[check.__name__] = "ok"
        except Exception:
            results[check.__name__] = traceback.format_exc()
    print(json.dumps(results))
