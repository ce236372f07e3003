"""Joined results in compiled modules: codes become floats in their places in the output."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed: pip install 'ptq-compiler[tvm]'")

from ptq import runtime
from ptq.errors import UnsupportedModelError
from ptq.integer.reference import Reference
from ptq.pipeline import quantize
from ptq.recipe import Recipe
from ptq.targets.tvm.module import compile_program
from tests.detector import detector, images
from tests.graphs import GraphBuilder


@pytest.mark.parametrize("turned", [False, True])
def test_outputs_equal_the_reference(turned: bool, tmp_path: Path) -> None:
    x = images(16)
    program = quantize(detector(turned=turned), [{"x": x}], Recipe(effort="fast")).program
    path = tmp_path / "net.so"
    compile_program(program).export(path)
    wanted = next(iter(Reference(program).run({"x": x[:3]}).values()))
    np.testing.assert_array_equal(runtime.load(path)(x[:3]), wanted)


def test_places_without_an_order_are_named() -> None:
    b = GraphBuilder(np.random.default_rng(0))
    parts = [b.node("Relu", [b.node("Conv", ["x", b.weight(4, 3, 1, 1)])]) for _ in range(2)]
    y = b.node("Concat", parts, axis=1)
    y = b.node("Gather", [y, b.constant(np.array([5, 0, 2, 7, 3]))], axis=1)
    model = b.model({"x": (3, 4, 4)}, {y: (5, 4, 4)})
    program = quantize(model, [{"x": images(8)[:, :, :4, :4]}], Recipe(effort="fast")).program
    with pytest.raises(UnsupportedModelError, match=r"in no regular order: use --target onnx"):
        compile_program(program)
