"""`--cameras POLICY_NAME=THEIR_NAME` from training to evaluation: what the commands do with other names of cameras."""

import json

import numpy as np
import pytest
from PIL import Image

from kivla import KIVLAProcessor, LeRobotDataset
from kivla.cli import main
from kivla.command_line import Refused
from kivla.demo.tiny_vlm import save_tiny_vlm
from kivla.simulation import LeRobotWriter

CHUNK = 4
SMALL = [
    "--chunk_size",
    CHUNK,
    "--expert_hidden_size",
    32,
    "--expert_intermediate_size",
    48,
    "--action_tokenizer",
    "none",
]
RUN = [
    *("--max_steps", 1, "--per_device_train_batch_size", 2, "--max_eval_frames", 2, "--report_to", "none"),
    *("--use_cpu", "true", "--disable_tqdm", "true", "--dataloader_pin_memory", "false"),
    *("--dataloader_num_workers", 0, "--augment", "none", "--warmup_steps", 0),
]


def record(folder, **shades):
    """Demonstrations with a camera of each name, all pictures of it of one shade."""
    names, rng = [f"joint_{i}" for i in range(3)], np.random.default_rng(0)
    sizes = dict.fromkeys(shades, (32, 32))
    with LeRobotWriter(folder, 10, sizes, names, names, robot_type="arm", image_format="image") as writer:
        values = rng.uniform(-1, 1, (20, 3)).astype(np.float32)
        pictures = {name: np.full((20, 32, 32, 3), shade, np.uint8) for name, shade in shades.items()}
        writer.add_episode(pictures, values, values, task="go")
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A VLM, the same demonstrations under two namings, and a policy that was trained on the first under names of its
    own."""
    folder = tmp_path_factory.mktemp("world")
    save_tiny_vlm(folder / "vlm", image_size=32, patch_size=16, hidden_size=32, num_layers=2)
    record(folder / "data", cam_0=250, cam_1=10)
    record(folder / "other", right=10, left=250)
    train(
        folder,
        "policy",
        "data",
        "--vlm",
        folder / "vlm",
        *SMALL,
        "--recipe",
        "pi0",
        "--cameras",
        "hand=cam_1",
        "top=cam_0",
    )
    return folder


def train(folder, output, data, *words):
    main(["train", *map(str, ["--output_dir", folder / output, "--dataset", folder / data, *RUN, *words])])
    return json.loads((folder / output / "training_facts.json").read_text())


def predicted(world, name, data, *words):
    """`kivla evaluate`: its errors depend on what each camera sees."""
    output = world / name
    options = ["--dataset", world / data, "--num_frames", 4, "--num_plots", 1, "--output_dir", output]
    main(["evaluate", *map(str, [world / "policy", *options, *words])])
    return json.loads((output / "evaluate.json").read_text())["action_error"]


def test_a_new_policy_has_the_names_that_it_was_given(world):
    processor = KIVLAProcessor.from_pretrained(world / "policy")
    assert processor.cameras == ["hand", "top"]
    facts = json.loads((world / "policy" / "training_facts.json").read_text())
    assert facts["cameras"] == {"hand": "cam_1", "top": "cam_0"}
    example = LeRobotDataset(world / "data", CHUNK)[0]
    by_name = dict(zip(example["cameras"], example["images"], strict=True))
    pixels = processor(images=[by_name], text=["go"], state=[example["state"]])["pixel_values"].mean((1, 2, 3))
    assert pixels[0] < 0 < pixels[1], "the hand's are dark, the top's bright, whatever the data's order"


def test_evaluation_finds_the_cameras_or_asks(world):
    known = predicted(world, "known", "data")
    with pytest.raises(Refused, match="hand=THEIR_NAME top=THEIR_NAME"):
        predicted(world, "unknown", "other")
    assert predicted(world, "mapped", "other", "--cameras", "hand=right", "top=left") == known
    assert predicted(world, "swapped", "other", "--cameras", "hand=left", "top=right") != known, "it matters"
    with pytest.raises(Refused, match="has no camera 'wrist'"):
        predicted(world, "wrong", "other", "--cameras", "wrist=right")


def test_a_policy_goes_on_with_data_of_other_names_when_they_are_mapped(world):
    with pytest.raises(SystemExit, match=r"cannot go on as it is(.|\n)*--cameras hand=THEIR_NAME top=THEIR_NAME"):
        train(world, "refused", "other", "--policy", world / "policy")
    mapping = ["--cameras", "hand=right", "top=left"]
    facts = train(world, "continued", "other", "--policy", world / "policy", *mapping)
    assert facts["cameras"] == {"hand": "right", "top": "left"}
    before, after = (KIVLAProcessor.from_pretrained(world / name) for name in ("policy", "continued"))
    assert before.to_dict() == after.to_dict(), "the policy's names stay"


def test_a_camera_that_the_policy_does_not_have_is_left_out_and_said(world, capsys):
    record(world / "three", top=250, side=99, hand=10)
    said = "The policy does not see the data's camera observation.images.side."
    train(world, "three_policy", "three", "--policy", world / "policy")
    assert said in capsys.readouterr().out
    predicted(world, "three_errors", "three")
    assert said in capsys.readouterr().out
    main(["predict", str(world / "policy"), "--dataset", str(world / "three"), "--output_dir", str(world / "chunks")])
    assert said in capsys.readouterr().out


def test_pictures_too_few_are_refused(world, tmp_path):
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    words = ["--images", str(tmp_path / "a.png"), "--text", "go", "--state", *"000"]
    with pytest.raises(SystemExit, match="got 1 images for 2 cameras"):
        main(["predict", str(world / "policy"), *words])


def test_an_adapted_policy_keeps_the_places_of_its_base(world):
    facts = train(
        world, "adapted", "other", "--policy", world / "policy", "--adapt", "--cameras", "hand=right", "top=left"
    )
    processor = KIVLAProcessor.from_pretrained(world / "adapted")
    assert processor.cameras == ["observation.images.right", "observation.images.left"]
    changed = "; ".join(facts["made_from"]["changed"])
    assert "base's places: hand is observation.images.right, top is observation.images.left" in changed
    images = [{"top": np.full((32, 32, 3), 250, np.uint8), "hand": np.full((32, 32, 3), 10, np.uint8)}]
    pixels = processor(images=images, text=["go"], state=[np.zeros(3)])["pixel_values"].mean((1, 2, 3))
    assert pixels[0] < 0 < pixels[1], "by the base's names, too"


def test_pictures_on_the_command_line_may_be_named(world, tmp_path, capsys):
    from PIL import Image

    for name, shade in (("bright", 250), ("dark", 10)):
        Image.new("RGB", (32, 32), (shade,) * 3).save(tmp_path / f"{name}.png")
    state = ["--text", "go", "--state", "0", "0", "0"]
    printed = []
    for words in (
        ["--images", str(tmp_path / "dark.png"), str(tmp_path / "bright.png")],
        ["--images", str(tmp_path / "bright.png"), str(tmp_path / "dark.png"), "--cameras", "top", "hand"],
    ):
        main(["predict", str(world / "policy"), *words, *state])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
