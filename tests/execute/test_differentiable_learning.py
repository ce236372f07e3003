"""What learning needs of ProgramGraph: straight-through gradients, soft tensors, QDrop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq.execute.differentiable import (
    ProgramGraph,
    Rounding,
    drop_quantization,
    interpolate,
    round_through,
    to_array,
    to_tensor,
)
from ptq.integer.program import (
    Add,
    Convolve,
    Dequantize,
    Lookup,
    Mean,
    Multiply,
    Program,
    Softmax,
    Step,
)
from ptq.integer.reference import Reference
from tests.execute.small_programs import (
    assert_equal_codes,
    gemm,
    grid,
    program,
    random_program,
    requantizer,
)


def test_gradients_of_a_layer_are_the_straight_through_ones() -> None:
    # y = clamp(round((x @ w + b) * r)): dy/dw = x r, dy/db = r, dy/dr = acc, where not clamped.
    p = program([gemm([[3], [-2]], [5], multiplier=1, shift=2)], {"x": grid(1.0), "y": grid()})
    graph = ProgramGraph(p, outputs=["y"])
    names = ("fc.weight", "fc.bias", "fc.ratio")
    leaves = {name: graph.own(name).requires_grad_() for name in names}
    x = torch.tensor([[7.0, 4.0]])
    y = graph.run(raw={"x": x}, overrides=leaves).codes["y"]
    assert y.item() == 4  # 18 / 4 = 4.5, half to even
    y.sum().backward()
    gradients = [leaves[name].grad for name in names]
    assert gradients[0] is not None
    torch.testing.assert_close(gradients[0], x.T / 4)
    torch.testing.assert_close(gradients[1], torch.tensor([0.25]))
    torch.testing.assert_close(gradients[2], torch.tensor(18.0))


def test_a_soft_weight_is_not_rounded() -> None:
    p = program([gemm([[3]], shift=0)], {"x": grid(1.0), "y": grid()})
    found = ProgramGraph(p).run(
        raw={"x": torch.tensor([[10.0]])}, overrides={"fc.weight": torch.tensor([[2.56]])}
    )
    assert found.codes["y"].item() == 26


@pytest.mark.parametrize(("x", "slope"), [(-3.0, 0.0), (100.0, 1.0), (300.0, 0.0)])
def test_clamp_stops_the_gradient_outside_its_bounds(x: float, slope: float) -> None:
    p = program([gemm([[1]])], {"x": grid(1.0, 0), "y": grid(1.0)})
    raw = torch.tensor([[x]], requires_grad=True)
    ProgramGraph(p).run(raw={"x": raw}).codes["x"].sum().backward()
    assert raw.grad is not None
    assert raw.grad.item() == slope


def test_a_learned_scale_gets_lsqs_gradient() -> None:
    # d/ds of s * (clamp(round(x / s))): round(v) - v inside, the bound outside (LSQ, eq. 3).
    p = program([gemm([[1]])], {"x": grid(0.5), "y": grid(0.5)})
    steps = [s for s in p.steps if s.name == "x/quantize"]
    graph = ProgramGraph(p, [*steps, Dequantize("x/dequantize", "x")])
    scale = torch.tensor(0.5, requires_grad=True)
    raw = torch.tensor([1.2, 3.4, 500.0])
    both = {"x/quantize.scale": scale, "x/dequantize.scale": scale}
    y = graph.run(raw={"x": raw}, overrides=both).raw["x"]
    found = [torch.autograd.grad(v, scale, retain_graph=True)[0].item() for v in y]
    v = (raw / 0.5)[:2]
    np.testing.assert_allclose(found, [*(v.round() - v).tolist(), 255.0], atol=1e-5)


def test_every_learnable_part_gets_a_gradient() -> None:
    codes = {name: grid(0.05, 4) for name in "xabcdefgy"}
    table = np.arange(256, dtype=np.uint8)
    conv = Convolve(
        "conv", "x", "a", np.array([[[2]], [[1]]], np.int8), np.array([1, 2], np.int32),
        requantizer([3, 1], [2, 1], 4), (1,), (1,), (0, 0), 1, np.ones(2, np.float32),
    )  # fmt: skip
    steps: list[Step] = [
        conv,
        Lookup("table", "a", "b", table),
        Add("add", "a", "b", "c", (2, -1), requantizer(1, 1, 4)),
        Multiply("mul", "b", "c", "d", requantizer(1, 5, 4)),
        Mean("mean", "d", "y", (2,), True, 5, requantizer(1, 2, 4)),
    ]
    p = program(steps, codes)
    graph = ProgramGraph(p)
    leaves = {key: graph.own(key).requires_grad_() for key in sorted(graph._learnable)}
    x = {"x": torch.linspace(0.1, 2.0, 5).reshape(1, 1, 5)}
    assert_equal_codes(graph, p, {"x": to_array(x["x"])})
    graph.run(raw=x, overrides=leaves).raw["y"].sum().backward()
    for key, leaf in leaves.items():
        assert leaf.grad is not None, key
        assert leaf.grad.abs().sum() > 0, key


def test_table_is_exact_at_codes_and_linear_between() -> None:
    table = torch.arange(256, dtype=torch.float32) ** 2
    x = torch.tensor([0.0, 3.0, 3.5, 255.0, 300.0], requires_grad=True)
    y = interpolate(table, x)
    assert y[:4].tolist() == [0.0, 9.0, 12.5, 65025.0]
    y[1].backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 6.0, 0.0, 0.0, 0.0]  # (16 - 4) / 2


def softmax_program(scale: float, high: int = 255) -> Program:
    distance = np.arange(256) * scale
    table = np.rint(2.0**15 * np.exp(-distance)).astype(np.int32)
    step = Softmax("softmax", "x", "y", -1, table, 256, high)
    return program([step], {"x": grid(scale), "y": grid(1 / 256, 0, high)})


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.01, 0.1, 1.0, 20.0]))
def test_softmax_gives_the_references_codes(seed: int, scale: float) -> None:
    p = softmax_program(scale)
    size = int(np.random.default_rng(seed).integers(1, 40))
    codes = np.random.default_rng(seed).integers(0, 256, (4, size))
    assert_equal_codes(ProgramGraph(p), p, {"x": (codes * np.float32(scale)).astype(np.float32)})


def test_softmax_rounds_half_to_even() -> None:
    p = softmax_program(1.0)
    x = np.zeros((1, 512), np.float32)  # 256 / 512 = 0.5
    assert_equal_codes(ProgramGraph(p), p, {"x": x})
    assert (Reference(p).run_codes({"x": x})["y"] == 0).all()


def test_gradient_of_softmax_is_that_of_the_smooth_one() -> None:
    p, scale = softmax_program(0.05), np.float32(0.05)
    codes = torch.tensor([[40.0, 50.0, 60.0, 45.0]], requires_grad=True)
    graph = ProgramGraph(p, [s for s in p.steps if isinstance(s, Softmax)])
    weights = torch.tensor([1.0, -2.0, 3.0, 0.5])
    (graph.run(codes={"x": codes}).codes["y"] * weights).sum().backward()
    smooth = codes.detach().clone().requires_grad_()
    (256 * torch.softmax(smooth * scale, -1) * weights).sum().backward()
    torch.testing.assert_close(codes.grad, smooth.grad, rtol=1e-3, atol=1e-3)


@given(st.floats(-1e6, 1e6, width=32))
def test_round_through_rounds_half_to_even_exactly(value: float) -> None:
    x = torch.tensor(value, requires_grad=True)
    y = round_through(x)
    assert y.item() == np.rint(np.float32(value))
    y.backward()
    assert x.grad is not None
    assert x.grad.item() == 1


def drop_run(probability: float, seed: int = 0) -> dict[str, torch.Tensor]:
    result, feeds = random_program(1)
    generator = torch.Generator().manual_seed(seed)
    graph = ProgramGraph(result.program)
    raw = {n: to_tensor(a) for n, a in feeds.items()}
    return dict(graph.run(raw=raw, quantiser=drop_quantization(probability, generator)).codes)


def test_dropping_nothing_is_the_hard_program() -> None:
    result, feeds = random_program(1)
    expected = Reference(result.program).run_codes(feeds)
    for name, codes in drop_run(0.0).items():
        np.testing.assert_array_equal(to_array(codes), expected[name])


def test_dropping_half_leaves_about_half_of_the_input_unrounded() -> None:
    result, feeds = random_program(1)
    (entry,) = feeds
    codes = drop_run(0.5)[entry]
    inside = (codes > 0) & (codes < 255)
    share = (codes[inside] != codes[inside].round()).float().mean().item()
    assert 0.3 < share < 0.7
    assert result.program.codes[entry].high >= codes.max()


def test_the_same_seed_drops_the_same_elements() -> None:
    first, again, other = drop_run(0.5, 7), drop_run(0.5, 7), drop_run(0.5, 8)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_quantiser_sees_clamped_codes_of_every_rounded_activation() -> None:
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def spy(name: str, rounding: Rounding) -> torch.Tensor:
        seen[name] = rounding.unrounded(), rounding.rounded()
        return seen[name][1]

    p = program([gemm([[9]], multiplier=1, shift=1)], {"x": grid(1.0, 4), "y": grid(1.0)})
    raw = {"x": torch.tensor([[-9.0], [0.3], [999.0]])}
    ProgramGraph(p).run(raw=raw, quantiser=spy)
    assert seen.keys() == {"x", "y"}
    torch.testing.assert_close(seen["x"][0], torch.tensor([[0.0], [4.3], [255.0]]))
    assert seen["x"][1].flatten().tolist() == [0.0, 4.0, 255.0]
