"""A transformer block on integers: the residual stream in 16 bits, all targets, any length."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import ptq
from ptq.execute.differentiable import ProgramGraph
from ptq.execute.taps import tapped
from ptq.integer.program import Add
from ptq.integer.reference import Reference
from ptq.targets import TARGETS
from tests.execute.small_programs import assert_equal_codes

WIDTH = 8
AUTO = torch.export.Dim.AUTO


class Block(nn.Module):
    """Embedding, causal attention and a multilayer perceptron, norms before or after them."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.words = nn.Embedding(11, WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def attend(self, x: Tensor) -> Tensor:
        heads = [part(x)[:, None] for part in (self.query, self.key, self.value)]
        y = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        z: Tensor = self.out(y[:, 0])
        return z

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        if self.norm_first:
            x = x + self.attend(self.first(x))
            x = x + self.narrow(functional.gelu(self.wide(self.second(x))))
        else:
            x = self.first(x + self.attend(x))
            x = self.second(x + self.narrow(functional.gelu(self.wide(x))))
        y: Tensor = self.head(x)
        return y


def quantized(norm_first: bool, precision: str, **changes: Any) -> tuple[Block, ptq.Result]:
    torch.manual_seed(0)
    module = Block(norm_first).eval()
    ids = torch.randint(0, 11, (16, 6))
    recipe = ptq.Recipe.preset(precision).replace(effort="fast", **changes)
    calib = [{"ids": ids.numpy()}]
    dynamic = ({0: AUTO, 1: AUTO},)
    return module, ptq.quantize(
        module, calib, recipe, example_inputs=(ids,), dynamic_shapes=dynamic
    )


def feeds() -> dict[str, np.ndarray[Any, Any]]:
    return {"ids": np.random.default_rng(1).integers(0, 11, (3, 9))}  # a length never seen


@pytest.mark.parametrize("norm_first", [True, False])
def test_targets_and_torch_give_the_codes_of_the_reference(norm_first: bool) -> None:
    import onnxruntime as ort

    module, result = quantized(norm_first, "w8a8")
    assert not result.outline.islands
    expected = Reference(result.program).run_codes(feeds())
    assert {c.dtype for c in expected.values()} == {np.dtype(np.uint8), np.dtype(np.uint16)}
    names = {f"{v}_quantized": v for v in expected if v not in result.program.code_constants}
    for target in ("onnx", "onnx-strict"):
        model = tapped(TARGETS[target](result.program), list(names))
        session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
        for name, codes in zip(names, session.run(list(names), feeds()), strict=True):
            dtype = expected[names[name]].dtype
            stays_wide = target == "onnx" and dtype == np.uint16  # float64 up to the next layer
            assert codes.dtype == dtype or (stays_wide and codes.dtype == np.float64)
            np.testing.assert_array_equal(codes, expected[names[name]], f"{target}: {name}")
    assert_equal_codes(ProgramGraph(result.program), result.program, feeds())
    y = module(torch.tensor(feeds()["ids"])).detach().numpy()
    assert relative_error(result, y) < 0.05
    model = TARGETS["onnx-qdq"](result.program)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    assert np.linalg.norm(session.run(None, feeds())[0] - y) / np.linalg.norm(y) < 0.05


def relative_error(result: ptq.Result, y: np.ndarray[Any, Any]) -> float:
    (found,) = Reference(result.program).run(feeds()).values()
    return float(np.linalg.norm(found - y) / np.linalg.norm(y))


def test_sixteen_bits_only_in_the_residual_stream() -> None:
    _, result = quantized(True, "w8a8")
    wide = {site.name for site in result.outline.sites.values() if site.bits == 16}
    kinds = {unit.kind for unit in result.outline.units for n in unit.outputs if n in wide}
    assert kinds == {"gemm", "add"}
    _, narrow = quantized(True, "w8a8", residual_bits=8)
    assert {site.bits for site in narrow.outline.sites.values()} == {8}


@pytest.mark.parametrize("norm_first", [True, False])
def test_sums_of_16_bits_only_add(norm_first: bool) -> None:
    _, result = quantized(norm_first, "w8a8")
    codes = result.program.codes
    (step,) = [
        s
        for s in result.program.steps
        if isinstance(s, Add) and {codes[n].high for n in (s.a, s.b, s.output)} == {2**16 - 1}
    ]
    assert (step.multipliers, int(step.requantizer.shift)) == ((1, 1), 0)
    graph = TARGETS["onnx"](result.program).graph
    printed = [n.op_type for n in graph if str(n.name).startswith(f"{step.name}/")]
    assert printed == ["Add", "Clip"]


def test_an_outlier_in_the_residual_stream_costs_little() -> None:
    def error(bits: int) -> float:
        torch.manual_seed(0)
        module = Block(False).eval()
        with torch.no_grad():
            module.out.bias[0] += 100  # one channel is a hundred times larger than the others,
            module.first.weight.copy_(torch.tensor([0.0] + [40.0] * 7))  # and says nothing
        ids = torch.randint(0, 11, (16, 6))
        recipe = ptq.Recipe(residual_bits=bits, calib_method="minmax")
        calib = [{"ids": ids.numpy()}]
        dynamic = ({0: AUTO, 1: AUTO},)
        result = ptq.quantize(module, calib, recipe, example_inputs=(ids,), dynamic_shapes=dynamic)
        return relative_error(result, module(torch.tensor(feeds()["ids"])).detach().numpy())

    assert error(16) < error(8) / 4
