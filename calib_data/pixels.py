"""Decoding images and applying a `Preprocess` to arrays of pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ptq.calib_data.preprocess import Preprocess
from ptq.calib_data.spec import Array, InputSpec
from ptq.errors import CalibrationError

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
_CHANNELS = (1, 3, 4)


def decode(path: Path) -> Array:
    """Read one image file: uint8 [1, height, width, 3], RGB.

    Raises:
        CalibrationError: the file is not an image, is damaged, or is absurdly large.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))[None]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CalibrationError(
            f"{path}: cannot be read as an image ({error}); repair or remove it"
        ) from error


def is_pixels(x: Array, spec: InputSpec) -> bool:
    """Whether `x` is 8-bit pixels, with any batch, for an image input."""
    return x.dtype == np.uint8 and x.ndim in (3, 4) and spec.is_image


def channels_last(spec: InputSpec, preprocess: Preprocess) -> bool:
    """Whether the model wants NHWC: as the preprocess says, else as its shape shows."""
    if preprocess.layout is not None:
        return preprocess.layout == "NHWC"
    return spec.shape[3] in _CHANNELS and spec.shape[1] not in _CHANNELS


def apply(preprocess: Preprocess, x: Array, spec: InputSpec) -> Array:
    """Turn pixels into what `spec` wants.

    x: uint8 [N, H, W, C], [N, C, H, W] or [N, H, W]. Returns: `spec.dtype`, [N, C, H, W] or
    [N, H, W, C]; an integer input gets rounded, clipped values.
    """
    pixels = _color(_last(x), preprocess)
    last = channels_last(spec, preprocess)
    height, width = preprocess.size or _target(spec, last)
    pixels = _fit(pixels, height or pixels.shape[1], width or pixels.shape[2], preprocess)
    y = pixels.astype(np.float32) * _row(preprocess.scale, pixels) - _row(preprocess.mean, pixels)
    y /= _row(preprocess.std, pixels)
    y = y if last else np.ascontiguousarray(y.transpose(0, 3, 1, 2))
    if np.issubdtype(spec.dtype, np.integer):
        info = np.iinfo(spec.dtype)
        y = np.clip(np.rint(y), info.min, info.max)
    return y.astype(spec.dtype, copy=False)


def _target(spec: InputSpec, last: bool) -> tuple[int | None, int | None]:
    return (spec.shape[1], spec.shape[2]) if last else (spec.shape[2], spec.shape[3])


def _last(x: Array) -> Array:
    """Channels last, whatever the layout was."""
    if x.ndim == 3:
        return x[..., None]
    if x.shape[3] not in _CHANNELS and x.shape[1] in _CHANNELS:
        return x.transpose(0, 2, 3, 1)
    return x


def _row(values: tuple[float, ...], pixels: Array) -> Array:
    if len(values) not in (1, pixels.shape[3]):
        raise CalibrationError(
            f"preprocess: {len(values)} numbers for images with {pixels.shape[3]} channels;"
            " give one, or one a channel"
        )
    return np.asarray(values, np.float32)


_LUMA = np.asarray([0.299, 0.587, 0.114], np.float32)


def _color(pixels: Array, preprocess: Preprocess) -> Array:
    if preprocess.color == "L" and pixels.shape[3] >= 3:
        grey: Array = pixels[..., :3].astype(np.float32) @ _LUMA
        return np.asarray(np.rint(grey), np.uint8)[..., None]
    if preprocess.color == "BGR" and pixels.shape[3] == 3:
        return pixels[..., ::-1]
    return pixels


def _fit(pixels: Array, height: int, width: int, preprocess: Preprocess) -> Array:
    if pixels.shape[1:3] == (height, width):
        return pixels
    return np.stack([_fit_one(image, height, width, preprocess) for image in pixels])


def _fit_one(pixels: Array, height: int, width: int, preprocess: Preprocess) -> Array:
    """pixels: uint8 [h, w, c] -> uint8 [height, width, c]."""
    from PIL import Image

    resample = Image.Resampling[preprocess.interpolation.upper()]
    grey = pixels.shape[2] == 1
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if grey else pixels))
    if preprocess.fit == "stretch":
        image = image.resize((width, height), resample)
    else:
        image = _scaled(image, height, width, preprocess, resample)
    fitted = np.asarray(image)
    return fitted[..., None] if grey else fitted


def _scaled(
    image: Image.Image,
    height: int,
    width: int,
    preprocess: Preprocess,
    resample: Image.Resampling,
) -> Image.Image:
    """Keep the aspect ratio: cover (crop) or stay inside (pad) the target, then cut the centre."""
    ratios = height / image.height, width / image.width
    crop = preprocess.fit == "crop"
    factor = max(ratios) / preprocess.crop_fraction if crop else min(ratios)
    new_width = max(1, round(image.width * factor))
    new_height = max(1, round(image.height * factor))
    image = image.resize((new_width, new_height), resample)
    left, top = round((new_width - width) / 2), round((new_height - height) / 2)
    return image.crop((left, top, left + width, top + height))
