"""calib_data: preprocess grammar, pixels, image folders and class labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ptq.calib_data import (
    PRESETS,
    InputSpec,
    Preprocess,
    guess_preprocess,
    labelled,
    open_calibration,
    parse_preprocess,
)
from ptq.calib_data.pixels import apply
from ptq.errors import CalibrationError

F32 = np.dtype(np.float32)
NCHW = InputSpec("x", F32, (None, 3, 8, 8))
NHWC = InputSpec("x", F32, (None, 8, 8, 3))
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mean=127,std=128", Preprocess(mean=(127,), std=(128,))),
        ("scale=1/255", Preprocess(scale=(1 / 255,))),
        (
            "scale=1/255, mean=.485,.456,.406, std=.229,.224,.225, fit=crop, crop_fraction=.875",
            PRESETS["imagenet"],
        ),
        ("lite", PRESETS["lite"]),
        ("raw,size=32x24,color=bgr,layout=nhwc", Preprocess((32, 24), color="BGR", layout="NHWC")),
        ('{"mean": [1, 2, 3], "size": 7}', Preprocess((7, 7), mean=(1, 2, 3))),
    ],
)
def test_preprocess_grammar(text: str, expected: Preprocess) -> None:
    assert parse_preprocess(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagnet", "one of imagenet"),
        ("means=3", "unknown key 'means'"),
        ("mean=x", "a number"),
        ("scale=1/0", "a number"),
        ("std=0", "other than 0"),
        ("mean=1,2,std=1,2,3", "one a channel"),
        ("fit=squeeze", "one of crop, stretch, pad"),
        ("crop_fraction=2", r"\(0, 1\]"),
        ("{", "preprocess:"),
        ("[1]", "one of imagenet"),
        ("none.toml", "cannot be read"),
    ],
)
def test_preprocess_errors(text: str, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        parse_preprocess(text)


def test_preprocess_from_toml(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('preset = "lite"\nsize = [8, 9]\nscale = "1/2"\n')
    got = parse_preprocess(f"{tmp_path}/p.toml")
    assert (got.mean, got.size, got.scale) == ((127.0,), (8, 9), (0.5,))


def test_preprocess_from_hugging_face(tmp_path: Path) -> None:
    config = {
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "rescale_factor": 0.00392156862745098,
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "size": {"shortest_edge": 256},
        "resample": 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    got = parse_preprocess(f"{tmp_path}/preprocessor_config.json")
    assert (got.size, got.fit, got.crop_fraction) == ((224, 224), "crop", 0.875)
    assert (got.mean, got.interpolation) == ((0.5,) * 3, "bicubic")


@pytest.mark.parametrize("channels_first", [False, True])
def test_pixels_are_scaled_then_shifted_then_divided(channels_first: bool) -> None:
    x = PIXELS.transpose(0, 3, 1, 2) if channels_first else PIXELS
    got = apply(parse_preprocess("scale=1/2,mean=1,2,3,std=4"), x, NCHW)
    expected = (PIXELS.transpose(0, 3, 1, 2) / 2 - np.reshape([1, 2, 3], (1, 3, 1, 1))) / 4
    assert got.dtype == F32
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_layout_follows_the_model() -> None:
    assert np.array_equal(apply(Preprocess(), PIXELS, NHWC), PIXELS)


def test_bgr_reverses_the_channels() -> None:
    got = apply(Preprocess(color="BGR"), PIXELS, NHWC)
    assert np.array_equal(got, PIXELS[..., ::-1])


def test_grey_images_need_no_channel_axis() -> None:
    spec = InputSpec("x", F32, (None, 1, 8, 8))
    calibration = open_calibration([PIXELS[..., 0]], [spec], preprocess="unit")
    got = np.concatenate([batch["x"] for batch in calibration])
    np.testing.assert_allclose(got, PIXELS[:, None, :, :, 0] / 255.0, rtol=1e-6)


def test_an_integer_input_keeps_its_pixels() -> None:
    spec = InputSpec("x", np.dtype(np.uint8), (None, 3, 8, 8))
    got = np.concatenate([batch["x"] for batch in open_calibration([PIXELS], [spec])])
    assert np.array_equal(got, PIXELS.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
def test_every_fit_gives_the_models_size(fit: str) -> None:
    x = np.full((1, 20, 30, 3), 200, np.uint8)
    got = apply(parse_preprocess(f"fit={fit}"), x, NCHW)
    assert got.shape == (1, 3, 8, 8)
    assert (got == 0).any() == (fit == "pad")


def test_an_image_of_the_right_size_is_not_cropped() -> None:
    assert np.array_equal(apply(Preprocess(crop_fraction=0.5), PIXELS, NHWC), PIXELS)


def test_centre_crop_keeps_the_centre() -> None:
    x = np.zeros((1, 16, 16, 3), np.uint8)
    x[:, 4:12, 4:12] = 255
    got = apply(parse_preprocess("crop_fraction=.5,interpolation=nearest"), x, NCHW)
    assert (got == 255).all()


def save_images(folder: Path, names: list[str]) -> None:
    for value, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(folder / name)


def test_image_folder(tmp_path: Path) -> None:
    save_images(tmp_path, ["003.png", "001.png"])
    calibration = open_calibration(tmp_path, [NCHW], preprocess="raw")
    assert len(calibration) == 2
    assert [batch["x"].max() for batch in calibration] == [1, 0]


def test_preprocess_beside_the_images_is_used(tmp_path: Path) -> None:
    save_images(tmp_path, ["0.png"])
    (tmp_path / "preprocess.toml").write_text("mean = 5\n")
    assert next(iter(open_calibration(tmp_path, [NCHW])))["x"].max() == -5


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["001.png", "7_a.png", "007.png"], [1, 7, 7]),
        (["cat/a.png", "dog/b.png"], [0, 1]),
        (["10/a.png", "9/b.png"], [10, 9]),
    ],
)
def test_class_from_the_name(names: list[str], labels: list[int], tmp_path: Path) -> None:
    save_images(tmp_path, names)
    pairs = list(labelled(tmp_path, [NCHW], "raw", batch_size=1))
    got = {int(batch["x"].max()): int(label[0]) for batch, label in pairs}
    assert got == dict(enumerate(labels))


def test_a_name_without_a_class_is_an_error(tmp_path: Path) -> None:
    save_images(tmp_path, ["cat.png"])
    with pytest.raises(CalibrationError, match="no class index"):
        list(labelled(tmp_path, [NCHW], "raw"))


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"\xff\xd8\xff nothing")
    with pytest.raises(CalibrationError, match=r"1\.jpg: cannot be read as an image"):
        open_calibration(tmp_path, [NCHW], preprocess="raw")


def test_images_do_not_feed_two_inputs(tmp_path: Path) -> None:
    save_images(tmp_path, ["1.png"])
    with pytest.raises(CalibrationError, match="feeds one image input"):
        open_calibration(tmp_path, [NCHW, InputSpec("y", F32, (None,))], preprocess="raw")


def test_guess_finds_the_preprocess_of_a_classifier(tmp_path: Path) -> None:
    """A classifier of 4 brightness levels that was trained on (x - 127) / 128."""
    x = np.repeat(np.arange(4) * 64 + 32, 8).astype(np.uint8)
    np.savez(tmp_path / "d.npz", images=np.broadcast_to(x[:, None, None, None], (32, 8, 8, 3)))

    def predict(batch: dict[str, np.ndarray]) -> np.ndarray:
        centres = (np.arange(4) * 64 + 32 - 127) / 128
        return -200 * np.square(batch["x"].mean(axis=(1, 2, 3))[:, None] - centres)

    guess = guess_preprocess(predict, tmp_path / "d.npz", [NCHW])
    assert guess is not None
    assert guess.preset == "lite"


def test_nothing_is_guessed_for_floats(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 3, 8, 8), np.float32))
    assert guess_preprocess(lambda batch: batch["x"], tmp_path / "d.npz", [NCHW]) is None
