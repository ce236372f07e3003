"""Small integer programs and how to run them on a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from ptq.grid import Grid
from ptq.integer.arithmetic import Requantizer, exact_shift, short_multiplier
from ptq.integer.program import Boundary, Dequantize, Program, Quantize, Step
from ptq.integer.reference import Reference
from ptq.plan import ActivationPlan
from ptq.targets import TARGETS

Shapes = Mapping[str, tuple[int | str, ...]]
Codes = npt.NDArray[np.uint8]


def make_program(
    shapes: Shapes,
    steps: tuple[Step, ...],
    codes: Mapping[str, ActivationPlan],
    outputs: tuple[str, ...] = ("y",),
    **fields: Any,
) -> Program:
    """Quantise every input, run `steps`, dequantise every output."""
    return Program(
        inputs=tuple(Boundary(n, ir.DataType.FLOAT, s) for n, s in shapes.items()),
        outputs=tuple(Boundary(n, ir.DataType.FLOAT, None) for n in outputs),
        steps=(
            *(Quantize(f"{n}/quantize", n) for n in shapes),
            *steps,
            *(Dequantize(f"{n}/dequantize", n) for n in outputs),
        ),
        codes=codes,
        **fields,
    )


def make_requantizer(
    ratio: npt.ArrayLike, y: ActivationPlan, spare_bits: int = 0, bits: int = 24
) -> Requantizer:
    """The short multiplier nearest to `ratio` that is exact in float32."""
    limit = exact_shift(y.zero_point, y.low, y.high) - spare_bits
    multiplier, shift = short_multiplier(np.asarray(ratio, np.float64), limit, bits)
    return Requantizer(multiplier, shift, y.zero_point, y.low, y.high)


def run_model(model: ir.Model, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Outputs of a model in onnxruntime, by name."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(feeds)), strict=True))


def count_mismatches(program: Program, target: str, feeds: Mapping[str, Codes]) -> int:
    """Output codes of `target` that differ from the reference; feeds are codes."""
    raw = {name: program.codes[name].dequantize(codes) for name, codes in feeds.items()}
    wanted = Reference(program).run_codes(raw)
    found = run_model(TARGETS[target](program, io="integer"), feeds)
    assert all(array.dtype == np.uint8 for array in found.values())
    assert all(found[name].shape == wanted[name].shape for name in found)
    return sum(int((found[name] != wanted[name]).sum()) for name in found)


def activation(
    scale: float = 0.05, zero_point: int = 0, low: int = 0, high: int = 255
) -> ActivationPlan:
    """A grid of 8-bit containers."""
    return ActivationPlan(Grid(), np.float32(scale), zero_point, low, high)


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded random numbers."""
    return np.random.default_rng(20)


@pytest.fixture(scope="session")
def program_of() -> Callable[..., Program]:
    """`make_program`."""
    return make_program


@pytest.fixture(scope="session")
def requantizer_of() -> Callable[..., Requantizer]:
    """`make_requantizer`."""
    return make_requantizer


@pytest.fixture(scope="session")
def grid_of() -> Callable[..., ActivationPlan]:
    """`activation`."""
    return activation


@pytest.fixture(scope="session")
def mismatches() -> Callable[[Program, str, Mapping[str, Codes]], int]:
    """`count_mismatches`."""
    return count_mismatches


@pytest.fixture(scope="session")
def run() -> Callable[..., dict[str, Any]]:
    """`run_model`."""
    return run_model
