"""Which steps have a fast kernel, and that a step without one is named with the reason."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed: pip install 'ptq-compiler[tvm]'")

from ptq.compilation import compile_file
from ptq.integer.program import Convolve, Gemm, Program
from ptq.kernels.requantize import floats_are_exact
from ptq.pipeline import quantize
from ptq.recipe import Recipe
from ptq.report import artifact
from ptq.targets.tvm.module import CompileOptions
from tests.conv_net import conv_net, conv_samples
from tests.kernels.test_fast_kernels import needs_avx2
from tests.many_convolutions import many_program, many_samples
from tests.targets.tvm.test_module import assert_same_codes

RECIPE = Recipe.preset("w8a8").replace(effort="fast")


def unproved(program: Program) -> Program:
    """The program with 24-bit multipliers, for which no float32 product is proved exact."""

    def changed(step: Any) -> Any:
        if not isinstance(step, Convolve | Gemm):
            return step
        r = step.requantizer
        long = (r.multiplier << np.maximum(30 - r.shift, 1)) + 1
        shift = np.maximum(30, r.shift + 1)
        return replace(step, requantizer=replace(r, multiplier=long, shift=shift))

    return replace(program, steps=tuple(changed(step) for step in program.steps))


@needs_avx2
def test_requantisation_that_floats_cannot_do_ends_fast_kernels_on_int64(tmp_path: Path) -> None:
    x = conv_samples(64)
    program = unproved(quantize(conv_net(), [{"x": x}], RECIPE).program)
    assert not any(
        floats_are_exact(step.requantizer)
        for step in program.steps
        if isinstance(step, Convolve | Gemm)
    )
    made = assert_same_codes(program, {"x": x[:3]}, tmp_path)
    assert {"PackedConvolution"} <= {kernels[-1] for kernels in made.kernels.values()}
    assert not made.plain


@needs_avx2
@pytest.mark.parametrize("batch", [None, 3])
def test_every_kind_of_2d_convolution_has_a_fast_kernel(tmp_path: Path, batch: int | None) -> None:
    made = assert_same_codes(many_program(), {"x": many_samples(3)}, tmp_path, batch=batch)
    assert not made.plain


def test_steps_with_plain_loops_are_named_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = quantize(conv_net(), [{"x": conv_samples(64)}], RECIPE)
    artifact.save(result, tmp_path / "m.onnx")
    with caplog.at_level(logging.WARNING, logger="ptq"):
        found = compile_file(tmp_path / "m.onnx", tmp_path / "m.so", CompileOptions("c"))
    layers = [s.name for s in result.program.steps if isinstance(s, Convolve | Gemm)]
    assert sorted(found.plain_loops) == sorted(layers)
    assert f"compute {layers[0]}, {layers[1]}" in caplog.text
    assert "the target has no vector instructions" in caplog.text
