"""ProgramGraph without learning: the reference's codes, and clear refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptq.errors import UnsupportedModelError, UsageError
from ptq.execute.differentiable import (
    ProgramGraph,
    to_array,
    to_tensor,
)
from ptq.integer.program import (
    Apply,
    Lookup,
    Quantize,
    Ref,
)
from ptq.integer.reference import Reference
from tests.execute.small_programs import (
    assert_equal_codes,
    gemm,
    grid,
    program,
    random_program,
)


@pytest.mark.parametrize("first", range(0, 20, 5))
def test_random_programs_give_the_references_codes(first: int) -> None:
    for seed in range(first, first + 5):
        result, feeds = random_program(seed)
        assert_equal_codes(ProgramGraph(result.program), result.program, feeds)
        double = ProgramGraph(result.program, dtype=torch.float64)
        assert_equal_codes(double, result.program, feeds)


def test_raw_outputs_are_the_references() -> None:
    result, feeds = random_program(3)
    expected = Reference(result.program).run(feeds)
    found = ProgramGraph(result.program).run(raw={n: to_tensor(a) for n, a in feeds.items()}).raw
    for name, array in expected.items():
        np.testing.assert_array_equal(to_array(found[name]), array)


@pytest.mark.parametrize("seed", range(4))
def test_a_block_run_from_codes_gives_the_whole_programs_codes(seed: int) -> None:
    result, feeds = random_program(seed)
    steps = result.program.steps
    block = [s for s in steps if not isinstance(s, Quantize)][: len(steps) // 2]
    expected = Reference(result.program).run_codes(feeds)
    names = {name for s in block for name in [getattr(s, "output", None)] if name}
    graph = ProgramGraph(result.program, block, outputs=names)
    (entry,) = (s.value for s in steps if isinstance(s, Quantize))
    found = graph.run(codes=graph.codes_of({entry: expected[entry]}))
    assert names <= found.codes.keys()
    for name in names:
        np.testing.assert_array_equal(to_array(found.codes[name]), expected[name])


def test_a_wide_accumulator_needs_float64_and_gets_it() -> None:
    # 66.5 * 2^18 + 1 rounds up; float32 loses the 1 and rounds the tie to 66.
    bias = 66 * 2**18 + 2**17 + 1
    p = program([gemm([[1]], [bias], shift=18)], {"x": grid(1.0), "y": grid()})
    x = np.zeros((1, 1), np.float32)
    assert Reference(p).run_codes({"x": x})["y"].item() == 67
    assert ProgramGraph(p).run(raw={"x": to_tensor(x)}).codes["y"].item() == 67
    narrow = ProgramGraph(p, exact=False).run(raw={"x": to_tensor(x)})
    assert narrow.codes["y"].item() == 66


def test_unknown_operator_is_refused_when_the_graph_is_made() -> None:
    step = Apply("n", "NonZero", "", (Ref("x", True),), (Ref("y", True),))
    with pytest.raises(UnsupportedModelError, match="no NonZero;"):
        ProgramGraph(program([step], {"x": grid(), "y": grid()}))


def test_unknown_override_is_a_usage_error() -> None:
    graph = ProgramGraph(program([gemm([[1]])], {"x": grid(), "y": grid()}))
    with pytest.raises(UsageError, match="override fc.wieght"):
        graph.run(raw={"x": torch.ones(1, 1)}, overrides={"fc.wieght": torch.ones(1, 1)})


def test_missing_operand_is_a_usage_error() -> None:
    p = program([gemm([[1]])], {"x": grid(), "y": grid()})
    with pytest.raises(UsageError, match="fc: its operand 'x' is missing"):
        ProgramGraph(p, [s for s in p.steps if s.name == "fc"]).run()


def test_unknown_output_is_a_usage_error() -> None:
    p = program([gemm([[1]])], {"x": grid(), "y": grid()})
    with pytest.raises(UsageError, match="outputs z"):
        ProgramGraph(p, outputs=["z"])


def test_only_outputs_are_kept() -> None:
    p = program([gemm([[1]])], {"x": grid(), "y": grid()})
    found = ProgramGraph(p, outputs=["y"]).run(raw={"x": torch.ones(1, 1)})
    assert (found.codes.keys(), found.raw.keys()) == ({"y"}, {"y"})


def test_overrides_with_the_programs_own_tensors_change_nothing() -> None:
    result, feeds = random_program(1)
    graph = ProgramGraph(result.program)
    keys = sorted(key for key in graph._learnable if not key.endswith(".table"))
    raw = {n: to_tensor(a) for n, a in feeds.items()}
    plain = graph.run(raw=raw).codes
    again = graph.run(raw=raw, overrides={key: graph.own(key) for key in keys}).codes
    for name, codes in plain.items():
        assert torch.equal(again[name], codes), name


def test_channel_tables_are_picked_along_their_axis() -> None:
    rng = np.random.default_rng(0)
    table = rng.integers(0, 256, (3, 256), dtype=np.uint8)
    step = Lookup("prelu", "x", "y", table, axis=-2)
    p = program([step], {"x": grid(1.0), "y": grid()})
    x = rng.integers(0, 256, (2, 3, 4)).astype(np.float32)
    assert_equal_codes(ProgramGraph(p), p, {"x": x})


def test_forward_codes_do_not_depend_on_the_number_of_threads() -> None:
    result, feeds = random_program(4)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert_equal_codes(ProgramGraph(result.program), result.program, feeds)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("first", range(0, 20, 5))
def test_gpu_gives_the_references_codes(first: int) -> None:
    for seed in range(first, first + 5):
        result, feeds = random_program(seed)
        assert_equal_codes(ProgramGraph(result.program, device="cuda"), result.program, feeds)
