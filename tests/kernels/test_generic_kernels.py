"""Every generic kernel gives what its numpy oracle gives, bit for bit, over odd strides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed: pip install 'ptq-compiler[tvm]'")

from ptq.kernels import boundary, convolution, elementwise, movement, normalization, reduction
from ptq.kernels.requantize import Rounding
from ptq.kernels.softmax import Mask, Softmax
from ptq.kernels.view import View
from ptq.targets.tvm.layout import view_of
from tests.kernels.run_kernel import run

LAST = view_of((2, 5, 3, 4), True)
ROWS = view_of((2, 5, 3, 4), False)
HALF = Rounding(4, 2, 250, (3, 5))
PER_CHANNEL = Rounding(100, 0, 255)
CHANNEL = View((2, 5, 3, 4), (0, 256, 0, 0))

KERNELS: dict[str, Any] = {
    "quantize": boundary.Quantize(ROWS, LAST, 0.0123, 128, 3, 250),
    "dequantize": boundary.Dequantize(LAST, ROWS, 0.0123, 128),
    "add": elementwise.Add(LAST, ROWS, LAST, (77, -91), (3, 130), Rounding(128, 0, 255, (1, 7))),
    "add_of_large_multipliers": elementwise.Add(
        LAST, ROWS, LAST, (1 << 17, 1 << 16), (3, 130), Rounding(128, 0, 255, (1, 18))
    ),
    "add_broadcast": elementwise.Add(
        view_of((5, 1, 1), False).broadcast(LAST.shape), ROWS, LAST, (7, 9), (3, 130), HALF
    ),
    "multiply": elementwise.Multiply(LAST, ROWS, ROWS, (7, 200), Rounding(128, 0, 255, (5, 9))),
    "lookup": elementwise.Lookup(LAST, View(LAST.shape, (0,) * 4), ROWS),
    "lookup_per_channel": elementwise.Lookup(LAST, CHANNEL, LAST),
    "mean": reduction.Mean(
        View((2, 5), (60, 1)), View((3, 4), (20, 5)), View((2, 5), (5, 1)), 30,
        Rounding(2, 0, 255, (9, 7)),
    ),
    "softmax": Softmax(
        (View((4,), (9,)), View((4,), (9,))), (View((9,), (1,)), View((9,), (1,))), 256, 255
    ),
    "masked_softmax": Softmax(
        (View((2, 4), (36, 9)), View((2, 4), (36, 9))), (View((9,), (1,)), View((9,), (1,))),
        255, 255, Mask(View((2, 4), (0, 9), 2), View((9,), (1,)), "int64"),
    ),
    "softmax_of_what_is_masked": Softmax(
        (View((4,), (9,)), View((4,), (9,))), (View((9,), (1,)), View((9,), (1,))),
        256, 255, Mask(View((4,), (9,)), View((9,), (1,)), "int32", True),
    ),
    "rows": movement.Rows(View((3, 4), (5, 1), 1), 6, 7, "int64", "uint16"),
    "rows_by_int32": movement.Rows(View((4,), (1,)), 6, 7, "int32"),
    "layer_norm": normalization.Normalize(
        (View((4,), (9,)), View((4,), (9,))), (View((9,), (1,)), View((9,), (1,))),
        120, True, 8, 77, 3, 30, Rounding(128, 0, 255, (1, 34)),
    ),
    "layer_norm_of_16_bits": normalization.Normalize(
        (View((4,), (9,)), View((4,), (9,))), (View((9,), (1,)), View((9,), (1,))),
        30000, True, 0, 77, 3, 30, Rounding(32768, 0, 65535, (1, 26)), "uint16",
    ),
    "add_of_16_bits": elementwise.Add(
        LAST, ROWS, LAST, (1 << 17, -(1 << 16)), (30000, 130),
        Rounding(32768, 0, 65535, (1, 17)), ("uint16", "uint8"),
    ),
    "lookup_to_16_bits": elementwise.Lookup(LAST, CHANNEL, LAST, "uint16"),
    "take_of_16_bits": movement.Take(30, View((12,), (1,)), "uint16"),
    "dequantize_of_16_bits": boundary.Dequantize(LAST, ROWS, 0.0123, 30000, "uint16"),
    "rms_norm": normalization.Normalize(
        (View((4,), (9,)), View((4,), (9,))), (View((9,), (1,)), View((9,), (1,))),
        120, False, 0, 77, 3, 20, Rounding(128, 0, 255, (1, 30)),
    ),
    "max_pool": reduction.MaxPool(
        view_of((2, 3, 7, 6), True), view_of((2, 3, 4, 3), True), (3, 2), (2, 2), (1, 2), (1, 1)
    ),
    "min_pool": reduction.MaxPool(
        view_of((2, 3, 7, 6), True), view_of((2, 3, 4, 3), True), (3, 2), (2, 2), (1, 2), (1, 1),
        smallest=True,
    ),
    "copy": movement.Copy(View((3, 4), (1, 3)), View((3, 4), (8, 2), 5)),
    "widen": movement.Widen(View((3, 4), (1, 3)), View((3, 4), (8, 2), 5), 200),
    "fill": movement.Fill(View((3, 4), (8, 2), 5), 17),
    "pad": movement.Pad((2, 3, 4, 2, 3), (2, 5, 7, 2, 4), (1, 2), 17),
    "border": movement.Border((2, 6, 7, 3), (1, 2), (2, 1), 17),
    "border_of_one_row": movement.Border((2, 1, 7, 3), (0, 2), (0, 1), 17),
    "border_of_rows": movement.Border((2, 4, 7, 3), (1, 0), (0, 0), 17),
    "take": movement.Take(30, View((12,), (1,))),
    "convolve": convolution.Convolve(
        view_of((2, 4, 6, 5), True), view_of((2, 6, 3, 4), True), (6, 2, 3, 2),
        (2, 1), (1, 2), (1, 0), 2, 120, PER_CHANNEL,
    ),
    "convolve_1d_one_ratio": convolution.Convolve(
        view_of((2, 4, 9), False), view_of((2, 3, 9), False), (3, 4, 3), (1,), (1,), (1,), 1, 120,
        Rounding(100, 0, 255, (3, 9)),
    ),
    "matmul_of_weights": convolution.MatMul(
        view_of((2, 3, 7), False), View((2, 7, 5), (0, 5, 1)), view_of((2, 3, 5), False),
        (120, 0), "int8", PER_CHANNEL,
    ),
    "matmul_of_activations": convolution.MatMul(
        view_of((2, 3, 7), False), view_of((2, 7, 5), False), view_of((2, 3, 5), False),
        (120, 99), "uint8", Rounding(100, 0, 255, (3, 9)),
    ),
}  # fmt: skip

VECTORS: dict[str, Any] = {
    "layer_norm_by_vectors": normalization.Normalize(
        (View((4,), (24,)), View((4,), (24,))), (View((24,), (1,)), View((24,), (1,))),
        30000, True, 0, 77, 3, 30, Rounding(32768, 0, 65535, (1, 26)), "uint16", 8,
    ),
}  # fmt: skip
"""For CPUs: TVM's C and CUDA have no such vectors."""


def arguments(kernel: Any, rng: np.random.Generator) -> list[np.ndarray]:
    """Random contents of every buffer but the last."""
    ranges = {
        "multiplier": (1, 1 << 24),
        "shift": (22, 34),
        "bias": (-3000, 3000),
        "exp_table": (1, 1 << 15),
        "index": (-1, 30),
        "gain": (-(1 << 14), 1 << 14),
        "mask": (0, 2),
        "offset": (-(1 << 20), 1 << 20),
    }
    made = []
    for p in kernel.parameters()[:-1]:
        if p.dtype == "float32":
            made.append((3 * rng.normal(size=p.size)).astype(np.float32))
            continue
        if p.name == "index" and isinstance(kernel, movement.Rows):
            made.append(rng.integers(-kernel.rows, kernel.rows, p.size).astype(p.dtype))
            continue
        low, high = ranges.get(p.name) or (np.iinfo(p.dtype).min, np.iinfo(p.dtype).max + 1)
        made.append(rng.integers(low, high, p.size).astype(p.dtype))
    return made


CASES = [(name, target) for name in KERNELS for target in ("llvm:native", "llvm", "c")]
CASES += [(name, "llvm:native") for name in VECTORS]


@pytest.mark.parametrize(("name", "target"), CASES)
def test_kernel_equals_its_oracle(name: str, target: str) -> None:
    kernel = {**KERNELS, **VECTORS}[name]
    arrays = arguments(kernel, np.random.default_rng(5))
    wanted = kernel.oracle(*arrays)
    found = run(kernel, *arrays, target=target)
    view = getattr(kernel, "y", None)
    found = found.reshape(wanted.shape) if view is None else view.read(found)
    np.testing.assert_array_equal(found, wanted)
    assert len(np.unique(found)) > 1 or name == "fill"
