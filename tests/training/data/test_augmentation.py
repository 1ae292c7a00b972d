"""Augmented pictures: really changed, as told, alike for all cameras of a moment, and never in an evaluation."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from kivla import KIVLATrainingArguments
from kivla.cli import main
from kivla.training.checkpoints import OtherRunError
from kivla.training.data.augmentation import (
    AUGMENTATIONS,
    Augmentation,
    ExampleAugmentation,
    check_wrist_cameras,
    describe,
    drawn_place,
    is_wrist_camera,
    moved,
    relit,
    wrist_among,
    wrists_by_name,
)
from kivla.training.data.example_order import NumberedExamples
from tests.helpers.policies import DATASET, dataset, make_policy, make_trainer
from tests.training.data.test_mixture_resume import StopAfter, Witness, seen

ROBOT = AUGMENTATIONS["robot"]
NOTHING = Augmentation(crop=1.0, rotation=0.0, brightness=0.0, contrast=0.0, saturation=0.0)
GEOMETRY, LIGHT = replace(NOTHING, crop=0.95, rotation=5.0), replace(ROBOT, crop=1.0, rotation=0.0)


def picture(seed: int = 0, height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth colours: what a resampling does to them can be compared."""
    grid = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))


def example(**images: np.ndarray) -> dict:
    names = list(images)
    return {"images": list(images.values()), "cameras": names, "text": "go", "actions": np.zeros((2, 3))}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("operation", ["crop", "rotation", "brightness", "contrast", "saturation"])
def test_every_operation_changes_pixels(operation):
    """Seven of eight were once no-ops elsewhere, and nobody saw it."""
    change = ExampleAugmentation(replace(NOTHING, **{operation: getattr(ROBOT, operation)}))
    before = example(base=picture())
    for seed in range(5):
        (after,) = change(before, rng(seed))["images"]
        assert after.shape == before["images"][0].shape and after.dtype == np.uint8
        assert (after != before["images"][0]).mean() > 0.2, operation


def test_no_amount_changes_nothing():
    before = example(base=picture(), wrist=picture(1))
    after = ExampleAugmentation(NOTHING)(before, rng())
    for one, other in zip(after["images"], before["images"], strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_window_is_where_it_was_drawn():
    """Beside Pillow's own resizing of a part, and its own rotation."""

    def shown(image, amount):
        return moved(image, amount, drawn_place(amount, rng(3)))

    image = Image.fromarray(picture())
    draws = rng(3)
    draws.uniform(-5, 5)  # the angle
    right, down = draws.uniform(-0.5, 0.5, 2) * 0.3 * np.array(image.size)
    left, top = right + 0.15 * image.width, down + 0.15 * image.height
    part = (left, top, left + 0.7 * image.width, top + 0.7 * image.height)
    expected = image.resize(image.size, Image.Resampling.BILINEAR, box=part)
    actual = shown(image, replace(NOTHING, crop=0.7))
    inner = (slice(2, -2), slice(2, -2))
    assert np.abs(np.asarray(actual, int)[inner] - np.asarray(expected, int)[inner]).max() <= 2

    angle = rng(3).uniform(-5, 5)
    turned = np.asarray(shown(image, replace(NOTHING, rotation=5.0)), int)
    expected = np.asarray(image.rotate(angle, Image.Resampling.BILINEAR), int)
    assert np.abs(turned - expected)[4:-4, 4:-4].max() <= 2


def test_light_is_the_formula():
    pixels = picture().astype(float)
    image, grey = Image.fromarray(picture()), pixels @ [0.299, 0.587, 0.114]
    for actual, expected in (
        (relit(image, 1.3, 1, 1), pixels * 1.3),
        (relit(image, 0.7, 1, 1), pixels * 0.7),
        (relit(image, 1, 1.4, 1), grey.mean() + 1.4 * (pixels - grey.mean())),
        (relit(image, 1, 1, 0.5), grey[..., None] + 0.5 * (pixels - grey[..., None])),
    ):
        assert np.abs(np.asarray(actual) - expected.clip(0, 255)).max() <= 2


def test_all_cameras_of_a_moment_have_the_same_light():
    flat = np.full((40, 40, 3), (120, 90, 60), np.uint8)
    change, centres = ExampleAugmentation(ROBOT), []
    for seed in range(6):
        after = change(example(base=flat, side=flat, wrist=flat), rng(seed))["images"]
        colours = {tuple(image[20, 20].tolist()) for image in after}
        assert len(colours) == 1, "each camera drew its own"
        centres.append(colours.pop())
    assert len(set(centres)) == 6, "every example draws anew"


def test_places_are_drawn_for_each_camera_and_never_on_a_wrist():
    before = example(base=picture(), side=picture(), cam_left_wrist=picture())
    base, side, wrist = ExampleAugmentation(GEOMETRY)(before, rng())["images"]
    assert (base != side).mean() > 0.2
    np.testing.assert_array_equal(wrist, picture())
    told = ExampleAugmentation(GEOMETRY, ["side"])(before, rng())["images"]
    np.testing.assert_array_equal(told[1], picture())
    assert (told[2] != picture()).mean() > 0.2, "what was told goes before the name"
    of_none = ExampleAugmentation(GEOMETRY, ["none"])(before, rng())["images"]
    assert all((image != picture()).mean() > 0.2 for image in of_none)


def test_images_come_as_people_have_them():
    change = ExampleAugmentation(ROBOT)
    by_name = {"base": picture(), "wrist": None}
    given = {"images": by_name, "text": "go", "actions": np.zeros((2, 3))}
    after = change(given, rng())["images"]
    assert list(after) == ["base", "wrist"] and after["wrist"] is None
    np.testing.assert_array_equal(by_name["base"], picture(), err_msg="the example itself stays")
    in_a_list = change(example(base=picture()), rng())["images"][0]
    np.testing.assert_array_equal(after["base"], in_a_list)
    unnamed = {"images": [Image.fromarray(picture()), torch.tensor(picture())], "actions": np.zeros((2, 3))}
    assert all((image != picture()).any() for image in change(unnamed, rng())["images"])


def test_questions_and_texts_stay_as_they_are():
    change = ExampleAugmentation(ROBOT)
    for left_alone in (
        {"images": [picture()], "text": "What is left of the cup?", "response": "a spoon"},
        {"document": "Tea is a drink."},
        {"images": [], "text": "go", "actions": np.zeros((2, 3))},
    ):
        assert change(left_alone, rng()) is left_alone


@pytest.mark.parametrize(
    ("name", "is_wrist"),
    [
        ("observation.images.wrist", True),
        ("cam_left_wrist", True),
        ("robot0_eye_in_hand_image", True),
        ("observation.images.handeye", True),
        ("gripper", True),
        ("cam_high", False),
        ("observation.images.front", False),
        ("handle_view", False),
    ],
)
def test_wrist_cameras_are_known_by_their_names(name, is_wrist):
    assert is_wrist_camera(name) == is_wrist


def test_wrist_cameras_can_be_told():
    cameras = ["observation.images.front", "observation.images.cam_2"]
    assert wrist_among(cameras, None) == []
    assert wrist_among(cameras, ["cam_2"]) == ["observation.images.cam_2"]
    assert wrists_by_name(cameras, {"base": "front", "wrist": "cam_2"}) == ["observation.images.cam_2"]
    check_wrist_cameras(["none"], cameras)
    with pytest.raises(ValueError, match=r"wrist_cameras names 'cam_3', and the data's cameras are \['observation"):
        check_wrist_cameras(["cam_3"], cameras)
    said = describe("robot", cameras, ["cam_2"])
    assert "front cropped to 95%, turned by up to 5 degrees" in said and "cam_2 not (on a wrist)" in said


def test_a_draw_depends_on_seed_epoch_and_example_alone():
    frames = [example(base=picture(i)) for i in range(4)]
    change = ExampleAugmentation(ROBOT)
    numbered = NumberedExamples(frames, seed=1, augment=change)
    first = [numbered[i][1]["images"][0] for i in range(8)]  # two epochs
    for i in (5, 2, 7, 0):
        np.testing.assert_array_equal(numbered[i][1]["images"][0], first[i])
    assert all((first[i] != first[i + 4]).any() for i in range(4)), "another epoch draws anew"
    assert (NumberedExamples(frames, seed=2, augment=change)[0][1]["images"][0] != first[0]).any()


def make_witness(folder, **arguments) -> Witness:
    model, processor = make_policy(folder / "vlm")
    args = KIVLATrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        save_steps=1,
        per_device_train_batch_size=4,
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **arguments,
    )
    return Witness(model, args, train_dataset=dataset(), processing_class=processor)


def run(folder, stop_after: int = 4, **arguments) -> list[list[str]]:
    """Train until a step, and return what was seen so far."""
    trainer = make_witness(folder, **arguments)
    trainer.add_callback(StopAfter(stop_after))
    trainer.train(resume_from_checkpoint=trainer.newest_checkpoint())
    return seen(folder)


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit_with_any_number_of_workers(tmp_path):
    whole, plain = run(tmp_path / "whole", augment="robot"), run(tmp_path / "plain")
    run(tmp_path / "parts", stop_after=1, augment="robot", dataloader_num_workers=2)
    run(tmp_path / "parts", stop_after=3, augment="robot")
    assert run(tmp_path / "parts", augment="robot", dataloader_num_workers=1) == whole
    assert not {e for step in whole for e in step} & {e for step in plain for e in step}, "training sees other pictures"
    with pytest.raises(OtherRunError, match=r"training.augment: was robot, is \(nothing\)"):
        make_witness(tmp_path / "parts").newest_checkpoint()


def test_evaluation_never_sees_it(tmp_path):
    """Neither `evaluate` nor `predict` nor the processor: the same pixels with and without."""
    model, processor = make_policy(tmp_path / "vlm")
    prints = {}
    for augment in ("none", "robot"):
        trainer = make_trainer(tmp_path / augment, model, processor, augment=augment)
        loaders = {
            "training": trainer.get_train_dataloader(),
            "evaluation": trainer.get_eval_dataloader(),
            "prediction": trainer.get_test_dataloader(dataset()),
        }
        for name, loader in loaders.items():
            pixels = next(iter(loader))["pixel_values"]
            prints[name, augment] = hashlib.md5(pixels.numpy().tobytes()).hexdigest()
    for name in ("evaluation", "prediction"):
        assert prints[name, "none"] == prints[name, "robot"]
    assert prints["training", "none"] != prints["training", "robot"]
    assert "augment" not in str(processor.to_dict())


def test_check_data_draws_it(tmp_path, capsys):
    file = tmp_path / "seen" / "augmented.png"
    main(["check-data", str(DATASET), "--quick", "--augment", "robot", "--plot", str(file)])
    width, height = Image.open(file).size
    assert width > 500 and height > 700, "a row as recorded, and one for each draw"
    for words, said in (
        (["--augment", "robot"], "--augment draws a picture: give --plot FILE"),
        (["--augment", "none", "--plot", "x.png"], "--augment is robot; got none"),
        (["--wrist_cameras", "none"], "there is no --augment"),
        (["--augment", "robot", "--plot", "x.png", "--wrist_cameras", "hand"], "wrist_cameras names 'hand'"),
    ):
        with pytest.raises(SystemExit, match=said):
            main(["check-data", str(DATASET), *words])


class Stream(IterableDataset):
    def __iter__(self):
        yield from (dataset()[i] for i in range(4))


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="augment is one of none, robot, got 'robots'"):
        KIVLATrainingArguments(str(tmp_path), augment="robots", use_cpu=True)
    with pytest.raises(ValueError, match="wrist_cameras is for augment='robot'"):
        KIVLATrainingArguments(str(tmp_path), wrist_cameras=["hand"], use_cpu=True)
    model, processor = make_policy(tmp_path / "vlm")
    with pytest.raises(ValueError, match="wrist_cameras names 'hand', and the data's cameras are"):
        make_trainer(tmp_path, model, processor, augment="robot", wrist_cameras=["hand"])
    trainer = make_trainer(tmp_path, model, processor)
    with pytest.raises(ValueError, match=r"a stream .* has none"):
        type(trainer)(
            model,
            replace(trainer.args, augment="robot"),
            train_dataset=Stream(),
            processing_class=processor,
        )
