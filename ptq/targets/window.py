"""A convolution's window as ONNX attributes."""

from __future__ import annotations

from ptq.integer.program import Convolve


def window(step: Convolve) -> dict[str, int | tuple[int, ...]]:
    """The attributes that differ from their defaults, and kernel_shape, which some parsers want."""
    spatial = step.weight.ndim - 2
    defaults: dict[str, int | tuple[int, ...]] = {
        "strides": (1,) * spatial,
        "dilations": (1,) * spatial,
        "pads": (0,) * (2 * spatial),
        "group": 1,
    }
    wanted: dict[str, int | tuple[int, ...]] = {
        "kernel_shape": step.weight.shape[2:],
        "strides": tuple(step.strides),
        "dilations": tuple(step.dilations),
        "pads": tuple(step.pads),
        "group": step.groups,
    }
    return {name: value for name, value in wanted.items() if value != defaults.get(name)}
