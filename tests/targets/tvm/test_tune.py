"""Tiles by trial: the fastest is taken, once for each kernel and machine, and changes no code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed: pip install 'ptq-compiler[tvm]'")

from ptq.errors import UsageError
from ptq.kernels.packed_convolution import PackedConvolution, Tile
from ptq.kernels.requantize import Rounding
from ptq.targets.tvm import tune
from ptq.targets.tvm.module import CompileOptions, compile_program
from tests.execute.small_programs import random_program
from tests.kernels.test_fast_kernels import needs_avx2
from tests.targets.tvm.test_module import assert_same_codes

KERNEL = PackedConvolution("avx2", Tile(4, 2, 2), (0,), 16, 0, 16, 1, 9, 24, Rounding(118, 3, 250))


def test_the_fastest_tile_is_taken_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A candidate of three pixels returns at once, the others take a while."""

    def alone(kernel: PackedConvolution, target: Any) -> Any:
        slow = kernel.tile.pixels != 3
        return lambda: np.ones(200_000).sum() if slow else None

    monkeypatch.setattr(tune, "on_zeros", alone)
    cache = tmp_path / "cache" / "tiles.json"
    wanted = Tile(3, 3, 2)
    assert tune.Tuner(4, None, "here", cache)(KERNEL) == wanted
    monkeypatch.setattr(tune, "on_zeros", None)
    assert tune.Tuner(4, None, "here", cache)(KERNEL) == wanted
    with pytest.raises(TypeError):
        tune.Tuner(4, None, "elsewhere", cache)(KERNEL)


@needs_avx2
def test_a_tuned_module_gives_equal_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    result, feeds = random_program(0, residual_bits=8)
    assert_same_codes(result.program, feeds, tmp_path, tune=2)
    assert (tmp_path / "ptq" / "tiles.json").is_file()


def test_tiles_are_not_tried_for_other_machines() -> None:
    program = random_program(0, residual_bits=8)[0].program
    with pytest.raises(UsageError, match="needs --target llvm:native"):
        compile_program(program, CompileOptions("llvm:x86-64", tune=2))
