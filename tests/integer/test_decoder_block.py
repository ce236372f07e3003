"""A decoder's block on integers: rotary angles, RMSNorm, causal mask, SiLU gate, any length."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import ptq
from ptq.execute.taps import tapped
from ptq.integer.reference import Reference
from ptq.targets import TARGETS

WIDTH, HEADS, WORDS = 16, 2, 13
AUTO = torch.export.Dim.AUTO


class Decoder(nn.Module):
    """[N, T] tokens -> [N, T, WORDS] logits."""

    cos: Tensor
    sin: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.parts = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.first, self.second = nn.RMSNorm(WIDTH, 1e-5), nn.RMSNorm(WIDTH, 1e-5)
        self.gate, self.up = (nn.Linear(WIDTH, 24, bias=False) for _ in range(2))
        self.down = nn.Linear(24, WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        angles = torch.outer(torch.arange(32.0), 0.5 ** torch.arange(4)).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def attend(self, x: Tensor) -> Tensor:
        length = x.shape[1]

        def turn(y: Tensor) -> Tensor:
            left, right = y.chunk(2, -1)
            return y * self.cos[:length] + torch.cat([-right, left], -1) * self.sin[:length]

        query, key, value = (
            part(x).view(x.shape[0], length, HEADS, -1).transpose(1, 2) for part in self.parts[:3]
        )
        y = functional.scaled_dot_product_attention(turn(query), turn(key), value, is_causal=True)
        z: Tensor = self.parts[3](y.transpose(1, 2).reshape(x.shape))
        return z

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        x = x + self.attend(self.first(x))
        y = self.second(x)
        x = x + self.down(functional.silu(self.gate(y)) * self.up(y))
        logits: Tensor = self.head(x)
        return logits


def feeds() -> dict[str, np.ndarray[Any, Any]]:
    return {"ids": np.random.default_rng(1).integers(0, WORDS, (3, 11))}  # a length never seen


@pytest.fixture(scope="module")
def result() -> ptq.Result:
    torch.manual_seed(0)
    ids = torch.randint(0, WORDS, (16, 8))
    recipe = ptq.Recipe.preset("w4a8").replace(effort="fast", strict=True)
    dynamic = ({0: AUTO, 1: AUTO},)
    return ptq.quantize(
        Decoder().eval(), [{"ids": ids.numpy()}], recipe,
        example_inputs=(ids,), dynamic_shapes=dynamic,
    )  # fmt: skip


def test_rotary_angles_are_cut_as_codes(result: ptq.Result) -> None:
    assert not result.outline.islands
    cuts = [step for step in result.program.steps if getattr(step, "op_type", "") == "Slice"]
    angles = [step for step in cuts if step.inputs[0].name in result.program.code_constants]
    assert len(angles) == 2
    assert all(step.outputs[0].codes for step in angles)


@pytest.mark.parametrize("target", ["onnx", "onnx-strict"])
def test_targets_give_the_codes_of_the_reference(result: ptq.Result, target: str) -> None:
    import onnxruntime as ort

    expected = Reference(result.program).run_codes(feeds())
    names = {f"{v}_quantized": v for v in expected if v not in result.program.code_constants}
    model = tapped(TARGETS[target](result.program), list(names))
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    for name, codes in zip(names, session.run(list(names), feeds()), strict=True):
        np.testing.assert_array_equal(codes, expected[names[name]], name)
