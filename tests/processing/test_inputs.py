"""Images and numbers as people have them: the same result in every form, or a refusal that says why."""

import base64
import threading
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import datasets
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from kivla.processing import Normalizer
from kivla.processing.image_input import _say_16_bit, as_rgb, open_image
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
        ({"bytes": b""}, "an image must be a path, .* got dict"),
        (b"abc", "an image file cannot be read: it is damaged, or none of PNG"),
        ("no/such/file.png", "'no/such/file.png' cannot be read: .*No such file"),
        ("data:image/png;base64,abcd", "cannot be read: it is damaged"),
        (Image.fromarray(PIXELS[..., 0].astype(np.int32)), "mode 'I'.*range is not known"),
        (Image.fromarray(PIXELS[..., 0].astype(np.float32)), r"must lie in \[0, 1\], got .* to 2"),
        (Image.new("RGB", (0, 4)), "no pixels"),
    ],
)
def test_what_is_no_image_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        as_rgb(given)


# Every mode of a picture, and what it is as RGB; worked out from the pixels, not by Pillow where that is possible.
GREY = PIXELS[..., 0]
SIXTEEN_BITS = GREY.astype(np.uint16) * 256 + 99


def _palette() -> Image.Image:
    """Four colours, of which one is transparent."""
    image = Image.fromarray((GREY // 64).astype(np.uint8), mode="P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    return image


PALETTE = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)[GREY // 64]
ALPHA = np.where(GREY > 99, 255, 0).astype(np.uint8)
AS_GREY = np.dstack([GREY] * 3)
MODES = {  # how to make it, file type, options of `save`, the pixels
    "RGB": (lambda: Image.fromarray(PIXELS), "png", {}, PIXELS),
    "grey": (lambda: Image.fromarray(GREY), "png", {}, AS_GREY),
    "black and white": (lambda: Image.fromarray(GREY > 99), "png", {}, (AS_GREY > 99) * np.uint8(255)),
    "palette": (_palette, "png", {}, PALETTE),
    "palette with a transparent colour": (_palette, "png", {"transparency": 0}, PALETTE),
    "palette with alpha": (_palette, "png", {"transparency": bytes([0, 99, 255, 7])}, PALETTE),
    "GIF": (_palette, "gif", {"transparency": 0}, PALETTE),
    "grey and alpha": (lambda: Image.fromarray(np.dstack([GREY, ALPHA])), "png", {}, AS_GREY),
    "RGBA": (lambda: Image.fromarray(np.dstack([PIXELS, ALPHA])), "png", {}, PIXELS),
    "CMYK": (lambda: Image.fromarray(np.dstack([255 - PIXELS, GREY * 0]), mode="CMYK"), "tiff", {}, PIXELS),
    "floats": (lambda: Image.fromarray(GREY / np.float32(255)), "tiff", {}, AS_GREY),
    "16 bits": (lambda: Image.fromarray(SIXTEEN_BITS), "png", {}, AS_GREY),
    "16 bits in TIFF": (lambda: Image.fromarray(SIXTEEN_BITS), "tiff", {}, AS_GREY),
    "16 bits, high byte first": (lambda: Image.fromarray(SIXTEEN_BITS.astype(">u2")), "tiff", {}, AS_GREY),
    "16 bits, turned": (lambda: Image.fromarray(SIXTEEN_BITS), "png", {"orientation": 6}, np.rot90(AS_GREY, 3)),
    "palette, turned": (_palette, "png", {"orientation": 8}, np.rot90(PALETTE)),
}


def _vlm_data(file):
    """As `datasets` decodes it."""
    feature = datasets.Image()
    return feature.decode_example({"bytes": file.read_bytes(), "path": None})


DOORS = {
    "path": lambda file: file,
    "text path": str,
    "data URI": lambda file: f"data:image/{file.suffix[1:]};base64,{base64.b64encode(file.read_bytes()).decode()}",
    "bytes": lambda file: file.read_bytes(),
    "opened": Image.open,
    "decoded": lambda file: open_image(file.read_bytes()),
    "VLM data": _vlm_data,
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("mode", MODES)
def test_every_picture_through_every_door(mode, door, tmp_path):
    """The same pixels for a path, bytes, a PIL image and VLM data. What is transparent keeps the colour beneath."""
    make, suffix, options, expected = MODES[mode]
    options = dict(options)
    if orientation := options.pop("orientation", None):
        options["exif"] = Image.Exif()
        options["exif"][ExifTags.Base.Orientation] = orientation
    file = tmp_path / f"picture.{suffix}"
    make().save(file, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pixels = np.asarray(as_rgb(DOORS[door](file)))
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("door", ["path", "bytes", "opened", "VLM data"])
@pytest.mark.parametrize("suffix", ["gif", "tiff", "webp"])
def test_the_first_frame_of_several_is_taken(suffix, door, tmp_path):
    red, blue = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    file = tmp_path / f"two.{suffix}"
    red.save(file, save_all=True, append_images=[blue], **({"lossless": True} if suffix == "webp" else {}))
    assert Image.open(file).n_frames == 2
    assert (np.asarray(as_rgb(DOORS[door](file))) == [255, 0, 0]).all()


def test_16_bits_are_said_once(caplog):
    _say_16_bit.cache_clear()
    for _ in range(2):
        as_rgb(Image.fromarray(SIXTEEN_BITS))
    assert [r.message.split(":")[0] for r in caplog.records] == ["There are images with 16 bits a channel"]


def test_a_url(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"")
    Image.fromarray(PIXELS).save(tmp_path / "picture.png")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    np.testing.assert_array_equal(np.asarray(as_rgb(url + "picture.png")), PIXELS)
    with pytest.raises(ValueError, match=r"missing.png' cannot be read: HTTP Error 404"):
        as_rgb(url + "missing.png")
    server.shutdown()
    server.server_close()


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
