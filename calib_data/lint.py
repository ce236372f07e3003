"""Signs that calibration data is not what the network was made for.

Each finding has a code:

    synthetic      the samples are invented
    too-few        fewer than 16 samples
    constant       an input never changes
    duplicates     some samples are equal
    unnormalised   a float image input gets 0..255
    layout         the channels are where the model does not look for them
    noise          an image input whose neighbouring pixels have nothing to do with each other
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ptq.calib_data.calibration import Calibration
from ptq.calib_data.spec import Array, InputSpec

FEWEST_SAMPLES = 16
_LOOKED_AT = 512
_CORRELATED = 0.15
_MASK_LIKE = ("mask", "segment", "token_type", "position")


@dataclass(frozen=True)
class Lint:
    """One finding: a stable code, and a sentence for the user."""

    code: str
    message: str


@dataclass
class _Seen:
    """What was seen of one input."""

    low: float = np.inf
    high: float = -np.inf
    shape: tuple[int, ...] = ()
    products: list[float] = field(default_factory=lambda: [0.0, 0.0])
    whole_numbers: bool = True

    def add(self, x: Array) -> None:
        self.low = min(self.low, float(x.min()))
        self.high = max(self.high, float(x.max()))
        self.shape = x.shape
        self.whole_numbers = self.whole_numbers and bool((x == np.rint(x)).all())
        if x.ndim == 4 and min(x.shape[1:3]) > 0:
            y = x.astype(np.float64) - x.mean()
            self.products[0] += float((y[..., 1:, :] * y[..., :-1, :]).sum())
            self.products[1] += float((y[..., 1:, :] * y[..., 1:, :]).sum())

    @property
    def correlation(self) -> float:
        """Between neighbours along the last axis but one (a spatial axis in either layout)."""
        return self.products[0] / self.products[1] if self.products[1] else 1.0


def lint(calibration: Calibration, inputs: Sequence[InputSpec]) -> list[Lint]:
    """Look at up to 512 samples, one at a time.

    Raises:
        CalibrationError: a sample that does not fit the model at all.
    """
    seen = {spec.name: _Seen() for spec in inputs}
    digests: set[bytes] = set()
    count = 0
    for batch in calibration:
        digest = hashlib.blake2b(digest_size=16)
        for spec in inputs:
            x = batch[spec.name]
            digest.update(np.ascontiguousarray(x).tobytes())
            if x.size:
                seen[spec.name].add(x)
        digests.add(digest.digest())
        count += 1
        if count == _LOOKED_AT:
            break
    rows = count * (calibration.fixed_batch or 1)
    found = _about_all(calibration, rows, count - len(digests))
    for spec in inputs:
        found += [
            Lint(code, f"input {spec.name}: {message}")
            for code, rule in _RULES.items()
            if (message := rule(seen[spec.name], spec, count))
        ]
    return found


def _about_all(calibration: Calibration, rows: int, repeated: int) -> list[Lint]:
    if calibration.source.synthetic:
        return [
            Lint("synthetic", "the samples are invented: measured ranges are guesses; give --calib")
        ]
    found = []
    if rows < FEWEST_SAMPLES:
        found.append(
            Lint("too-few", f"{rows} samples; at least {FEWEST_SAMPLES} are wanted, 100 are better")
        )
    if repeated:
        found.append(Lint("duplicates", f"{repeated} samples are equal to others"))
    return found


def _constant(seen: _Seen, spec: InputSpec, count: int) -> str:
    mask = any(word in spec.name.lower() for word in _MASK_LIKE)
    if seen.low == seen.high and not (mask and spec.dtype.kind in "biu"):
        return f"always {seen.low:g}; give real samples"
    return ""


def _unnormalised(seen: _Seen, spec: InputSpec, count: int) -> str:
    if spec.dtype.kind == "f" and spec.rank == 4 and seen.low >= 0 and 32 < seen.high <= 255:
        whole = " whole numbers" if seen.whole_numbers else ""
        return (
            f"{whole and 'got'}{whole or 'got values'} from {seen.low:g} to {seen.high:g}, like raw"
            " pixels; if the network was trained on normalised images, give a preprocess"
        )
    return ""


def _layout(seen: _Seen, spec: InputSpec, count: int) -> str:
    if spec.rank != 4 or len(seen.shape) != 4:
        return ""
    first, last = seen.shape[1] in (1, 3, 4), seen.shape[3] in (1, 3, 4)
    if spec.dtype.kind == "f" and last and not first and spec.shape[3] is None:
        return f"got {list(seen.shape)}, channels last; ONNX networks take NCHW: transpose it"
    return ""


def _noise(seen: _Seen, spec: InputSpec, count: int) -> str:
    images = len(seen.shape) == 4 and spec.is_image and min(sorted(seen.shape[1:])[1:]) >= 8
    if images and seen.low < seen.high and seen.correlation < _CORRELATED:
        return (
            f"neighbouring pixels correlate by {seen.correlation:.2f}, as in random noise (images:"
            " about 0.9); ranges of noise are not those of images: give real samples"
        )
    return ""


_RULES: Mapping[str, Callable[[_Seen, InputSpec, int], str]] = {
    "constant": _constant,
    "unnormalised": _unnormalised,
    "layout": _layout,
    "noise": _noise,
}
