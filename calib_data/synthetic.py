"""Invented samples, for when there are none: seeded, and smooth as natural images are."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from ptq.calib_data.source import RawBatch, Source
from ptq.calib_data.spec import Array, InputSpec, common_batch

SAMPLES = 32
_IMAGE_SIDE = 224
_LENGTH = 64
_ONES = re.compile(r"mask", re.IGNORECASE)
_ZEROS = re.compile(r"token_type|segment", re.IGNORECASE)
_COUNTING = re.compile(r"position", re.IGNORECASE)


def synthetic_source(inputs: Sequence[InputSpec], samples: int, seed: int) -> Source:
    """Samples of every input, each from its own seed, so that reading again gives the same."""
    rows = common_batch(inputs)[1] or 1
    draws = -(-samples // rows)

    def read() -> Iterator[RawBatch]:
        for index in range(draws):
            yield {
                spec.name: sample(spec, np.random.default_rng([seed, index, _number(spec.name)]))
                for spec in inputs
            }

    return Source("synthetic samples", read, draws * rows, limited=True, synthetic=True)


def _number(name: str) -> int:
    return zlib.crc32(name.encode())


def sample(spec: InputSpec, rng: np.random.Generator) -> Array:
    """One sample; a dynamic batch is 1, other dynamic sizes are 224 (images) or 64."""
    side = _IMAGE_SIDE if spec.rank == 4 else _LENGTH
    shape = tuple(
        (1 if axis == 0 else side) if dim is None else dim for axis, dim in enumerate(spec.shape)
    )
    if spec.is_image and spec.shape[1] is None and spec.shape[3] is None:
        shape = (shape[0], 3, *shape[2:])
    if spec.dtype.kind in "biu":
        return _integers(spec, shape, rng)
    if spec.rank == 4:
        return _natural(shape, rng, last=spec.shape[3] in (1, 3, 4) and spec.shape[1] != 3).astype(
            spec.dtype
        )
    return rng.standard_normal(shape).astype(spec.dtype)


def _integers(spec: InputSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if spec.dtype.kind == "b" or _ONES.search(spec.name):
        return np.ones(shape, spec.dtype)
    if _ZEROS.search(spec.name):
        return np.zeros(shape, spec.dtype)
    if _COUNTING.search(spec.name) and shape:
        return np.broadcast_to(np.arange(shape[-1]), shape).astype(spec.dtype)
    if spec.rank == 4 and spec.dtype == np.uint8:
        last = spec.shape[3] in (1, 3, 4) and spec.shape[1] != 3
        pixels = 127.5 + 64.0 * _natural(shape, rng, last=last)
        return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return rng.integers(1, 16, shape).astype(spec.dtype)


def _natural(shape: tuple[int, ...], rng: np.random.Generator, *, last: bool) -> Array:
    """Noise with the 1/f amplitude spectrum of natural images, channels 0.9 correlated.

    Returns: float32 of `shape` ([N, C, H, W], or [N, H, W, C] if `last`), mean 0, deviation 1.
    """
    batch, channels, height, width = (
        (shape[0], shape[3], shape[1], shape[2]) if last else (shape[0], *shape[1:])
    )
    noise = rng.standard_normal((batch, channels + 1, height, width))
    noise = 0.9**0.5 * noise[:, :1] + 0.1**0.5 * noise[:, 1:]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(noise) / np.maximum(frequency, 1.0 / max(height, width))
    x = np.fft.irfft2(spectrum, s=(height, width))
    x /= np.maximum(x.std(axis=(1, 2, 3), keepdims=True), 1e-9)
    return (x.transpose(0, 2, 3, 1) if last else x).astype(np.float32)
