"""Swapped, renamed, missing and extra cameras are right or refused at every door: by name, never by position."""

import re
import sys
import types

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from kivla import (
    ActionPredictionPipeline,
    KIVLACollator,
    KIVLAProcessor,
    KIVLATrainer,
    KIVLATrainingArguments,
    LeRobotDataset,
)
from kivla.processing.camera_names import match_cameras, parse_cameras, place_cameras
from kivla.serving.observation_presets import PRESETS, ObservationReader
from kivla.serving.served_policy import ServeArguments, make_server
from kivla.simulation import LeRobotWriter
from kivla.simulation.rollout import PipelinePolicy
from kivla.training.data.camera_naming import name_cameras
from kivla.training.data.mixture import Mixture
from tests.helpers.policies import CHUNK, dataset, make_policy

WORDS = ("top", "wrist", "front", "left", "right", "side", "head", "arm.wrist", "gripper_cam", "cam_0")
FORMS = ("{}", "observation.images.{}", "observation/{}", "images/{}", "observation.{}")


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A tiny model, and a function that makes its processor for these cameras."""
    folder = tmp_path_factory.mktemp("policy")
    model, processor = make_policy(folder / "vlm")
    model.resize_token_embeddings(processor.vocab_size)
    processor.save_pretrained(folder / "processor")

    def processor_for(cameras) -> KIVLAProcessor:
        processor.robot().__init__(dataset().statistics, cameras, None, "quantile", True, processor.max_action_dim)
        return processor

    return model.eval(), processor_for, folder


def picture(number: int) -> np.ndarray:
    return np.full((32, 32, 3), 20 * number + 10, np.uint8)


def cameras_of(rng, count: int) -> tuple[list[str], dict[str, np.ndarray]]:
    """A policy's cameras, and their pictures."""
    words = rng.choice([word for word in WORDS if word != "arm.wrist"], count, replace=False)
    cameras = [f"observation.images.{word}" for word in words]
    return cameras, {camera: picture(i) for i, camera in enumerate(cameras)}


# --------------------------------------------------------------------------------------------------------------- doors
# Each takes images by name (and a mapping), and returns the pixels that the model would see.
class Seen(Exception):
    """Carries what the processor made."""


def pixels_of(batch) -> torch.Tensor:
    return batch["pixel_values"] if "pixel_values" in batch else torch.empty(0)


def by_pipeline(policy, processor, images, names=None):
    pipe = ActionPredictionPipeline(policy[0], processor=processor)
    observation = {"images": images, "text": "go", "state": np.zeros(4)}
    return pixels_of(pipe.preprocess([observation], cameras=names)["inputs"])


def by_collator(policy, processor, images, names=None):
    """As a robot dataset has them: a list, and the names beside it."""
    example = {"text": "go", "state": np.zeros(4), "actions": np.zeros((CHUNK, 4), np.float32)}
    example |= {"images": list(images.values()), "cameras": list(images)}
    return pixels_of(KIVLACollator(processor, names)([example]))


def by_server(policy, processor, images, names=None):
    words = None if names is None else [f"{camera}={theirs or ''}" for camera, theirs in names.items()]
    pipe = ActionPredictionPipeline(policy[0], processor=processor)
    server = make_server(pipe, ServeArguments(model="tiny", cameras=words))
    observation = server.read({"images": images, "text": "go", "state": np.zeros(4)})
    return pixels_of(pipe.preprocess([observation], **server.infer.options)["inputs"])


def by_rollout(policy, processor, images, names=None):
    pipe = ActionPredictionPipeline(policy[0], processor=processor)
    acting = PipelinePolicy(pipe, cameras=names)
    seen = []
    acting.pipe = types.SimpleNamespace(processor=processor)

    class Recorder:
        def __init__(self):
            self.processor = processor

        def __call__(self, observations, cameras=None, **options):
            seen.append(pixels_of(pipe.preprocess(observations, cameras=cameras)["inputs"]))
            return [{"actions": np.zeros((CHUNK, 4))}]

    acting.pipe = Recorder()
    acting([{"images": images, "text": "go", "state": np.zeros(4)}])
    return seen[0]


def by_plugin(policy, processor, images, names=None):
    """LeRobot's batches, which have no None: a missing camera is absent."""
    from lerobot_policy_kivla.observations import to_observations

    batch = {
        name: torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        for name, image in images.items()
        if image is not None
    }
    batch |= {"observation.state": torch.zeros(1, 4), "task": ["go"]}
    (observation,) = to_observations(batch, processor.robot(), True, names=names)
    columns = {name: [observation[name]] for name in ("images", "text", "state")}
    return pixels_of(processor(**columns))


DOORS = {
    "collator": by_collator,
    "pipeline": by_pipeline,
    "server": by_server,
    "roll-out": by_rollout,
    "plugin": by_plugin,
}


@pytest.fixture(autouse=True)
def lerobot(monkeypatch):
    """The four constants of LeRobot that the plugin's reading of observations needs (LeRobot is not installed here)."""
    constants = types.ModuleType("lerobot.utils.constants")
    constants.OBS_IMAGE, constants.OBS_IMAGES = "observation.image", "observation.images"
    constants.OBS_PREFIX, constants.OBS_STATE = "observation.", "observation.state"
    package = types.ModuleType("lerobot_policy_kivla")
    package.__path__ = ["lerobot_policy_kivla"]
    fakes = {"lerobot": types.ModuleType("lerobot"), "lerobot.utils": types.ModuleType("lerobot.utils")}
    for name, module in {**fakes, "lerobot.utils.constants": constants, "lerobot_policy_kivla": package}.items():
        monkeypatch.setitem(sys.modules, name, module)
    yield
    sys.modules.pop("lerobot_policy_kivla.observations", None)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("door", DOORS)
def test_cameras_are_right_or_refused(policy, door, seed):
    rng = np.random.default_rng(seed)
    own, images = cameras_of(rng, int(rng.integers(1, 5)))
    processor = policy[1](own)
    see = DOORS[door]
    expected = pixels_of(processor(images=[list(images.values())], text=["go"], state=[np.zeros(4)]))

    # In another order, and by other forms of the same names
    shuffled = rng.permutation(own)
    torch.testing.assert_close(see(policy, processor, {name: images[name] for name in shuffled}), expected)
    forms = ("observation.images.{}",) if door == "plugin" else FORMS
    form = forms[rng.integers(len(forms))]
    given = {form.format(name.rpartition(".")[2]): images[name] for name in shuffled}
    torch.testing.assert_close(see(policy, processor, given), expected)

    # One that is missing: None leaves its tokens out
    lost = own[int(rng.integers(len(own)))]
    if len(own) > 1 and door != "collator":
        torch.testing.assert_close(
            see(policy, processor, {**images, lost: None}),
            expected[[i for i, name in enumerate(own) if name != lost]],
        )
    if door != "plugin":
        with pytest.raises(ValueError, match=lost):
            see(policy, processor, {name: image for name, image in images.items() if name != lost})

    # One that nobody knows
    other = "observation.images.unheard_of"
    renamed = {other if name == lost else name: image for name, image in images.items()}
    with pytest.raises(ValueError, match=rf"{lost}.*unheard_of|unheard_of.*{lost}"):
        see(policy, processor, renamed)
    torch.testing.assert_close(see(policy, processor, renamed, {lost: other}), expected)
    extra = {**images, other: picture(9)}
    with pytest.raises(ValueError, match=r"no camera 'observation.images.unheard_of'"):
        see(policy, processor, extra)
    torch.testing.assert_close(see(policy, processor, extra, {name: name for name in own}), expected)

    # Names that are the policy's own, but mean other cameras: what was told goes before what looks right
    turned = dict(zip(own, [*own[1:], own[0]], strict=True))
    given = {turned[name]: image for name, image in images.items()}
    torch.testing.assert_close(see(policy, processor, given, turned), expected)


def test_a_list_without_names_is_not_mapped(policy):
    own, images = cameras_of(np.random.default_rng(3), 2)
    processor, (first, second), listed = policy[1](own), own, list(images.values())
    expected = by_pipeline(policy, processor, images)
    for same in ({first: first}, {first: first.rpartition(".")[2], second: second}):
        torch.testing.assert_close(by_pipeline(policy, processor, listed, same), expected)
    example = {"images": listed, "text": "go", "state": np.zeros(4), "actions": np.zeros((CHUNK, 4), np.float32)}
    for mapping in ({first: "c1", second: None}, {first: second, second: first}, {second: None}, {first: "c1"}):
        with pytest.raises(ValueError, match=r"a list without names, but cameras=.*Give a dict by name"):
            by_pipeline(policy, processor, listed, mapping)
        with pytest.raises(ValueError, match="Example 0 of this batch: images are a list without names"):
            KIVLACollator(processor, mapping)([example])
        # Questions about pictures have no cameras
        question = {"images": [picture(5)], "text": "what?", "response": "a cup"}
        torch.testing.assert_close(
            KIVLACollator(processor, mapping)([question])["pixel_values"],
            KIVLACollator(processor)([question])["pixel_values"],
        )


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_find_their_keys_by_name(policy, preset):
    keys = PRESETS[preset].cameras
    request = {key: picture(i) for i, key in enumerate(keys)}
    request |= {PRESETS[preset].text: "go"}
    names = [f"observation.images.{names[0]}" for names in keys.values()]
    for order in (range(len(names)), reversed(range(len(names)))):
        order = list(order)
        images = ObservationReader(preset, [names[i] for i in order])(request)["images"]
        assert [int(image[0, 0, 0]) for image in images] == [20 * i + 10 for i in order]


# ----------------------------------------------------------------------------------------------------- the trainer
class Listed(Dataset):
    """Somebody's own examples."""

    def __init__(self, *examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The same recording under other names of its cameras, and in other orders: the first picture is bright."""

    def record(*cameras, bright=None):
        folder = tmp_path_factory.mktemp("data") / "demonstrations"
        names = [f"joint_{i}" for i in range(4)]
        sizes, rng = dict.fromkeys(cameras, (32, 32)), np.random.default_rng(0)
        with LeRobotWriter(folder, 10, sizes, names, names, robot_type="arm", image_format="image") as writer:
            values = rng.uniform(-1, 1, (12, 4)).astype(np.float32)
            pictures = {
                camera: np.full((12, 32, 32, 3), 250 if camera == (bright or cameras[0]) else 10, np.uint8)
                for camera in cameras
            }
            writer.add_episode(pictures, values, values, task="go")
        return LeRobotDataset(folder, CHUNK)

    return record


def trained(policy, processor, data, folder, **given) -> KIVLATrainer:
    args = KIVLATrainingArguments(
        str(folder), max_steps=1, use_cpu=True, report_to="none", save_strategy="no", per_device_train_batch_size=2
    )
    trainer = KIVLATrainer(policy[0], args, train_dataset=data, processing_class=processor, **given)
    trainer.train()
    return trainer


def brightness(trainer, example) -> list[float]:
    return trainer.data_collator([example])["pixel_values"].mean((1, 2, 3)).tolist()


def test_a_dataset_in_another_order_trains_right(policy, recorded, tmp_path):
    own, turned = recorded("top", "wrist"), recorded("wrist", "top", bright="top")
    processor = policy[1](own.cameras)
    length = len(own)
    for name, data in {
        "turned": turned,
        "one after the other": ConcatDataset([own, turned]),
        "a mixture": Mixture([own, turned], [1, 1], 4),
        "a part": Subset(turned, [0, 3]),
    }.items():
        trainer = trained(policy, processor, data, tmp_path / name)
        assert brightness(trainer, own[0]) == brightness(trainer, turned[0]), name
    assert len(own) == length and processor.cameras == own.cameras


def test_other_names_are_refused_until_they_are_mapped(policy, recorded, tmp_path):
    own, other = recorded("top", "wrist"), recorded("right", "left", bright="left")
    processor = policy[1](own.cameras)
    with pytest.raises(
        ValueError, match=r"--cameras top=THEIR_NAME wrist=THEIR_NAME .*KIVLACollator\(processor, cameras="
    ):
        trained(policy, processor, other, tmp_path)
    mapped = KIVLACollator(processor, cameras={"top": "left", "wrist": "right"})
    trainer = trained(policy, processor, other, tmp_path, data_collator=mapped, eval_dataset=other)
    plain = KIVLACollator(processor)([own[0]])["pixel_values"]
    torch.testing.assert_close(trainer.data_collator([other[0]])["pixel_values"], plain)
    with pytest.raises(ValueError, match=r"none is of 'observation.images.wrist'"):
        trained(policy, processor, recorded("top"), tmp_path)


def test_a_policy_gets_its_cameras_names_from_what_it_learns(policy, recorded, tmp_path, caplog):
    data = recorded("top", "wrist")
    example = {name: value for name, value in data[0].items() if name not in ("images", "cameras")}
    by_name = {"hand": picture(1), "head": picture(2)}
    for examples, cameras in (
        (data, data.cameras),
        (Subset(ConcatDataset([data]), [1]), data.cameras),
        (Listed({**example, "images": by_name}), ["hand", "head"]),
        (Listed({**example, "images": [picture(1), picture(2)]}), ["camera_0", "camera_1"]),
    ):
        processor = policy[1](None)
        with caplog.at_level("WARNING"):
            trained(policy, processor, examples, tmp_path / cameras[0])
        assert processor.cameras == cameras and str(cameras) in caplog.text
        pipe = ActionPredictionPipeline(policy[0], processor=processor)
        for wrong in ([], [picture(1)], [picture(1)] * 3):
            with pytest.raises(ValueError, match=f"got {len(wrong)} images for 2 cameras"):
                pipe({"images": wrong, "text": "go", "state": np.zeros(4)})


def test_vlm_data_name_no_cameras(policy):
    processor = policy[1](None)
    question = {"images": [picture(0)], "text": "what?", "response": "a cup"}
    assert name_cameras(processor, Listed(question)) == [] and processor.cameras is None


# --------------------------------------------------------------------------------------------- policies without names
def test_an_old_policy_says_so_and_takes_lists_or_a_mapping(policy, caplog):
    processor = policy[1](None)
    processor.save_pretrained(policy[2] / "old")
    with caplog.at_level("WARNING"):
        old = KIVLAProcessor.from_pretrained(policy[2] / "old")
    assert sum("has no names for its cameras" in record.message for record in caplog.records) == 1
    images = {"a": picture(1), "b": picture(2)}
    expected = by_pipeline(policy, old, list(images.values()))
    with pytest.raises(ValueError, match=r"no camera names, hence no order.*--cameras"):
        by_pipeline(policy, old, images)
    torch.testing.assert_close(by_pipeline(policy, old, images, {"first": "a", "second": "b"}), expected)
    torch.testing.assert_close(by_collator(policy, old, images), expected)


# ------------------------------------------------------------------------------------------------------------ messages
@pytest.mark.parametrize(
    ("given", "names", "options"),
    [
        (["top"], None, "use None for one that is missing, or say so: --cameras top wrist= (in Python"),
        (["c1"], {"top": "c1"}, "or say so: --cameras top=c1 wrist= (in Python cameras={'top': 'c1', 'wrist': None})"),
        (["top", "wrist"], {"top": "wrist"}, "Say which is which: --cameras top=wrist wrist=top (in Python"),
        (["top", "wrist", "side"], {"top": "side"}, "or choose: --cameras top=side wrist (in Python"),
        (["top", "wrist", "side"], None, "or choose: --cameras top wrist (in Python"),
        ([], None, "use None for one that is missing."),
    ],
)
def test_what_a_refusal_suggests_is_taken(given, names, options):
    own = ["observation.images.top", "observation.images.wrist"]
    with pytest.raises(ValueError, match=re.escape(options)) as refusal:
        place_cameras(given, own, names=names)
    if "--cameras" in options:
        words = str(refusal.value).partition("--cameras ")[2].partition(" (in Python")[0].split()
        assert None not in place_cameras(given, own, names=parse_cameras(words)).values() or "wrist=" in words


# ------------------------------------------------------------------------------------------------------------ matching
def test_what_matches():
    def match(given, *cameras):
        return match_cameras(given, cameras)

    assert match(["front"], "observation.images.front") == {"observation.images.front": "front"}
    assert match(["observation/image"], "observation.images.image") == {"observation.images.image": "observation/image"}
    assert match(["observation.image"], "image") == {"image": "observation.image"}
    assert match(["wrist"], "left.wrist", "right.wrist") == {}, "which of the two?"
    assert match(["left.wrist", "right.wrist"], "wrist") == {}
    assert match(["right.wrist"], "left.wrist") == {}, "another arm's"
    both = {"observation.images.left.wrist": "left/wrist", "observation.images.right.wrist": "right/wrist"}
    assert match(["right/wrist", "left/wrist"], *both) == both
    assert match(["wrist_image"], "image") == {}


def test_the_option():
    assert parse_cameras(None) is None
    assert parse_cameras(["front=observation/image", "wrist", "right="]) == {
        "front": "observation/image",
        "wrist": "wrist",
        "right": None,
    }
    for wrong in (["=a"], ["a", "a=b"]):
        with pytest.raises(ValueError, match="POLICY_NAME=THEIR_NAME"):
            parse_cameras(wrong)


def test_a_second_name_is_saved(policy, tmp_path):
    policy[1]({"base": "observation.images.front", "hand": "wrist"}).save_pretrained(tmp_path)
    processor = KIVLAProcessor.from_pretrained(tmp_path)
    assert processor.cameras == ["base", "hand"]
    expected = by_pipeline(policy, processor, [picture(1), picture(2)])
    for names in (("base", "hand"), ("front", "observation/wrist"), ("base", "wrist")):
        given = dict(reversed(list(zip(names, (picture(1), picture(2)), strict=True))))
        torch.testing.assert_close(by_pipeline(policy, processor, given), expected)
    with pytest.raises(ValueError, match="cannot be known as 'hand'"):
        policy[1]({"base": "hand", "hand": "wrist"})
    with pytest.raises(ValueError, match="must be a list of names"):
        policy[1]("top")


def test_a_camera_that_is_told_a_wrong_name_is_not_called_unknown():
    with pytest.raises(ValueError, match="there is no 'nothing' for 'top'") as error:
        place_cameras(["top"], ["top"], names={"top": "nothing"})
    assert "the policy has no camera" not in str(error.value) and "--cameras top " in str(error.value)
