"""A compiled transformer: token ids and an attention mask go in as integers, lengths are fixed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

pytest.importorskip("tvm", reason="TVM is not installed: pip install 'ptq-compiler[tvm]'")

import ptq
from ptq import runtime
from ptq.errors import CalibrationError, UnsupportedModelError, UsageError
from ptq.evaluate import float_inputs
from ptq.integer.program import Softmax
from ptq.targets.tvm.module import CompileOptions, compile_program
from tests.targets.tvm.test_module import assert_same_codes, run_cli

WORDS, WIDTH, HEADS, LENGTH = 11, 16, 2, 9


class Encoder(nn.Module):
    """Words and positions, masked attention of two heads, norms behind the sums."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(32, WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        def heads(part: nn.Module) -> Tensor:
            y: Tensor = part(x)
            return y.view(*x.shape[:2], HEADS, WIDTH // HEADS).transpose(1, 2)

        parts = map(heads, (self.query, self.key, self.value))
        y = functional.scaled_dot_product_attention(*parts, attn_mask=self.seen(mask))
        z: Tensor = self.out(y.transpose(1, 2).reshape(x.shape))
        return z

    def seen(self, mask: Tensor) -> Tensor:
        """What may be attended to: [samples, 1, 1 or length, length] bool."""
        return mask[:, None, None] != 0

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.first(self.words(ids) + self.places(torch.arange(ids.shape[1])[None]))
        x = self.second(x + self.attend(x, mask))
        y: Tensor = x + self.narrow(functional.gelu(self.wide(x)))
        return y


class Indexed(Encoder):
    """With a mask that is looked up by index, and combined with one that hides nothing."""

    def seen(self, mask: Tensor) -> Tensor:
        samples, length = (torch.arange(size) for size in mask.shape)
        chosen = mask.bool()[samples[:, None, None, None], length[None, None, None]]
        return torch.ones(1, 1, mask.shape[1], 1, dtype=torch.bool) & chosen


def feeds(samples: int, length: int = LENGTH) -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng(samples)
    mask = rng.integers(0, 2, (samples, length))
    mask[0] = 1
    return {"ids": rng.integers(0, WORDS, (samples, length)), "mask": mask}


@pytest.fixture(scope="module")
def quantized() -> ptq.Result:
    torch.manual_seed(0)
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=32)}
    result = ptq.quantize(
        Encoder().eval(), [feeds(16)], ptq.Recipe(effort="fast"),
        example_inputs={k: torch.tensor(v) for k, v in feeds(2, 5).items()},
        dynamic_shapes={"ids": free, "mask": free},
    )  # fmt: skip
    assert not result.outline.islands
    assert any(isinstance(s, Softmax) and s.keep is not None for s in result.program.steps)
    return result


@pytest.mark.parametrize("options", [{}, {"target": "c"}, {"batch": 3}])
def test_codes_are_the_reference_s(
    quantized: ptq.Result, options: dict[str, Any], tmp_path: Path
) -> None:
    sizes = {"length": LENGTH}
    compiled = assert_same_codes(quantized.program, feeds(3), tmp_path, sizes=sizes, **options)
    assert {grid.dtype for grid in quantized.program.codes.values()} == {np.uint8, np.uint16}
    assert compiled.entry["inputs"][0]["dtype"] == "int64"


def test_a_mask_that_is_looked_up_by_index(tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = ptq.quantize(
        Indexed().eval(), [feeds(16)], ptq.Recipe(effort="fast", strict=True),
        example_inputs={k: torch.tensor(v) for k, v in feeds(2).items()},
    )  # fmt: skip
    assert any(isinstance(s, Softmax) and s.keep is not None for s in result.program.steps)
    assert_same_codes(result.program, feeds(3), tmp_path)


def test_ids_are_checked_before_any_row_is_read(quantized: ptq.Result, tmp_path: Path) -> None:
    options = CompileOptions(sizes={"length": LENGTH})
    compile_program(quantized.program, options).export(tmp_path / "m.so")
    module = runtime.load(tmp_path / "m.so")
    given = feeds(2)
    wanted = module.run(given)
    given["ids"] -= WORDS  # counted from the end
    np.testing.assert_array_equal(*(next(iter(x.values())) for x in (module.run(given), wanted)))
    given["ids"][1, 3] = WORDS
    with pytest.raises(CalibrationError, match=r"input 0 holds 11; wanted -11 to 10"):
        module.run(given)
    with pytest.raises(CalibrationError, match="ids is float64; wanted int64"):
        module.run({**given, "ids": np.zeros((2, LENGTH))})


def test_commands_take_sizes_and_remember_them(quantized: ptq.Result, tmp_path: Path) -> None:
    quantized.save(tmp_path / "m.onnx")
    np.savez(tmp_path / "calib.npz", **feeds(16))
    module, calib = tmp_path / "m.so", tmp_path / "calib.npz"
    done = run_cli("compile", tmp_path / "m.onnx", "-o", module, "--size", f"length={LENGTH}")
    assert done.exit_code == 0, done.output
    done = run_cli("verify", module, "--calib", calib, "--samples", 6, "--json", "--quiet")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["mismatches"] == 0
    assert found["tensors"] > 25
    specs = float_inputs(module)
    assert [spec.shape for spec in specs] == [(None, LENGTH)] * 2
    assert run_cli("compile", tmp_path / "m.onnx", "--size", "length").exit_code == 2


def test_sizes_that_are_missing_or_of_no_axis_are_named(quantized: ptq.Result) -> None:
    with pytest.raises(UnsupportedModelError, match="fixed sizes .* --size length=N"):
        compile_program(quantized.program)
    with pytest.raises(UsageError, match="--size width: no such axis .* there is length"):
        compile_program(quantized.program, CompileOptions(sizes={"length": 4, "width": 3}))
