"""Images and numbers as people have them: the same result in every form, or a refusal that says why."""

import warnings

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from kivla.processing import Normalizer
from kivla.processing.image_input import as_rgb, open_image
from kivla.processing.normalization import as_numbers
from tests.processing.test_processing_kivla import LONG, TRAJECTORIES, columns, image, make, shared

PIXELS = image()
FLOATS = PIXELS / 255


@pytest.mark.parametrize(
    "given",
    [
        FLOATS,
        FLOATS.astype(np.float32),
        FLOATS.astype(np.float16),
        FLOATS + 1e-7,
        FLOATS - 1e-8,
        FLOATS * 1.0000001,
        np.nextafter(FLOATS.astype(np.float32), np.float32(2)),
        FLOATS.transpose(2, 0, 1),
        torch.from_numpy(FLOATS).float().permute(2, 0, 1).requires_grad_(),
        torch.from_numpy(FLOATS * 255).round() / 255,
        PIXELS[::-1][::-1],
        np.asfortranarray(PIXELS),
        Image.fromarray(PIXELS).convert("CMYK").convert("RGB"),
        Image.fromarray(np.dstack([PIXELS, PIXELS[..., 0]])),
    ],
)
def test_every_form_of_an_image(given):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(np.asarray(as_rgb(given)), PIXELS)


def test_rounding_beyond_the_range_is_none():
    white = np.ones((4, 4, 3), np.float32)
    for value, level in ((1.0000001, 255), (1.0019, 255), (-1e-8, 0), (-0.0019, 0)):
        assert (np.asarray(as_rgb(white * np.float32(value))) == level).all()
    assert (np.asarray(as_rgb(torch.ones(3, 4, 4, dtype=torch.bfloat16))) == 255).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (FLOATS * 1.01, r"must lie in \[0, 1\], got 0.0.* to 1.0"),
        (FLOATS - 0.01, "must lie in"),
        (FLOATS * 255, "Pass uint8, or divide by 255"),
        (FLOATS * np.where(PIXELS.max() == PIXELS, np.inf, 1), "must lie in .* inf"),
        (np.where(PIXELS[0, 0, 0] == PIXELS, np.nan, FLOATS), "must lie in"),
        (PIXELS.astype(np.uint16), "got uint16"),
        (PIXELS > 9, "got bool"),
        (PIXELS.astype(np.int16), "got int16"),
        (PIXELS.astype(complex), "got complex"),
        (np.zeros((4, 0, 3), np.uint8), r"got \(4, 0, 3\)"),
        (np.zeros((3, 0, 0), np.float32), r"got \(0, 0, 3\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"got \(2, 4, 4, 3\)"),
        ([[1, 2], [3]], "an image must be"),
        ({"bytes": b""}, r"got \(\) \(dict\)"),
        (b"abc", "an image must be"),
        (Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 256), "mode 'I;16'"),
        (Image.fromarray(PIXELS[..., 0].astype(np.float32)), "mode 'F'"),
        (Image.new("RGB", (0, 4)), "no pixels"),
    ],
)
def test_what_is_no_image_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        as_rgb(given)


def test_palettes_and_transparency():
    """Colours as they are drawn; what is transparent keeps the colour beneath."""
    palette = Image.fromarray(PIXELS).quantize(16)
    np.testing.assert_array_equal(np.asarray(as_rgb(palette)), np.asarray(palette.convert("RGB")))
    palette.info["transparency"] = 0
    np.testing.assert_array_equal(np.asarray(as_rgb(palette)), np.asarray(palette.convert("RGB")))
    grey = Image.fromarray(PIXELS[..., 0])
    np.testing.assert_array_equal(np.asarray(as_rgb(grey.convert("LA")))[..., 1], PIXELS[..., 0])
    assert (np.asarray(as_rgb(Image.new("1", (4, 4), 1))) == 255).all()


@pytest.mark.parametrize("form", ["path", "opened", "bytes"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_photos_are_turned_upright(form, orientation, suffix, tmp_path):
    """The same for a file, a PIL image, and the bytes in a dataset: as the camera was held."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = tmp_path / f"photo.{suffix}"
    Image.fromarray(PIXELS).save(file, exif=exif)
    given = {
        "path": lambda: file,
        "opened": lambda: Image.open(file),
        "bytes": lambda: open_image(file.read_bytes()),
    }[form]()
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]
    np.testing.assert_array_equal(np.asarray(as_rgb(given)), np.rot90(PIXELS, turns))
    np.testing.assert_array_equal(np.asarray(as_rgb(as_rgb(given))), np.rot90(PIXELS, turns))


# ------------------------------------------------------------------------------------------------------------- numbers
NUMBERS = [0.5, -0.25]


@pytest.mark.parametrize(
    "given",
    [
        NUMBERS,
        tuple(NUMBERS),
        np.array(NUMBERS),
        np.array(NUMBERS, np.float16),
        torch.tensor(NUMBERS),
        torch.tensor(NUMBERS, dtype=torch.bfloat16),
        torch.tensor(NUMBERS, requires_grad=True),
        [torch.tensor(number, dtype=torch.bfloat16) for number in NUMBERS],
        [np.float32(NUMBERS[0]), torch.tensor(NUMBERS[1], requires_grad=True)],
        np.array(NUMBERS, dtype=object),
    ],
)
def test_every_form_of_numbers(given):
    assert as_numbers(given).tolist() == NUMBERS
    expected = shared()(**columns({**LONG, "state": NUMBERS, "actions": None}))["input_ids"]
    assert torch.equal(shared()(**columns({**LONG, "state": given, "actions": None}))["input_ids"], expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_tensors_of_actions(dtype):
    actions = torch.from_numpy(TRAJECTORIES[0]).to(dtype)
    expected = shared()(**columns(LONG | {"actions": actions.double().numpy()}))
    for given in (actions, list(actions), actions.tolist(), [list(row) for row in actions]):
        batch = shared()(**columns(LONG | {"actions": given}))
        assert torch.equal(batch["actions"], expected["actions"]) and torch.equal(batch["labels"], expected["labels"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["0.1", "0.2"], "Numbers were expected: got <U3"),
        ("ab", "Numbers were expected"),
        ([0.1, "x"], "Numbers were expected"),
        ([1j, 0.0], "got complex128"),
        ([0.1, [0.2]], "Numbers were expected"),
        (np.array(["2020-01-01"] * 2, "M8[D]"), "got datetime64"),
        ([b"1", b"2"], "Numbers were expected"),
        ([None, 0.1], "`state`|Numbers were expected"),
        (0.5, "must be one vector"),
        ({"a": 1}, "Numbers were expected"),
    ],
)
def test_what_is_no_state_is_refused(given, message):
    with pytest.raises(ValueError, match=f"Example 0: .*({message})"):
        shared()(**columns({**LONG, "state": given, "actions": None}))


@pytest.mark.parametrize("pad", [["False"] * 4, [0.5] * 4, [0, 1, 2, 0], [[0]] * 4])
def test_what_is_no_mask_of_padding_is_refused(pad):
    with pytest.raises(ValueError, match=r"Example 0: .*(action_is_pad|Numbers)"):
        shared()(**columns(LONG | {"action_is_pad": pad}))


def test_chunks_in_lists_go_back_to_robot_units():
    processor = make()
    chunk = Normalizer(processor.statistics["actions"]).normalize(TRAJECTORIES[0])
    np.testing.assert_allclose(processor.unnormalize_actions(chunk.tolist()), TRAJECTORIES[0], rtol=1e-5)
