"""passes.collect_ranges: one pass, every tensor, nothing stored."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from ptq.errors import CalibrationError
from ptq.passes.collect_ranges import choose_range, collect

SHARED = Path(os.environ.get("PTQ_SHARED", Path(__file__).parents[3] / "shared"))


class Doubler:
    """A runner whose tensors are 'same' = x and 'double' = 2 x; one group a tensor if split."""

    def __init__(self, names: tuple[str, ...] = ("same", "double"), groups: int = 1) -> None:
        self.names = names
        self.groups = groups

    def split(self, batch: Mapping[str, np.ndarray]) -> Iterator[Doubler]:
        for names in [self.names] if self.groups == 1 else [(name,) for name in self.names]:
            yield Doubler(names)

    def run(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: batch["x"] * {"same": 1, "double": 2}[name] for name in self.names}


def batches(count: int, size: int = 100) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal(size).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("groups", [1, 2])
def test_every_tensor_is_counted_over_all_batches(groups: int) -> None:
    data = batches(7)
    x = np.concatenate([batch["x"] for batch in data])
    found = collect(Doubler(groups=groups), data, ["same", "double"])
    assert [h.total for h in found.values()] == [700, 700]
    assert (found["double"].min, found["double"].max) == (2 * x.min(), 2 * x.max())


def test_tensors_that_nobody_asked_for_are_left_out() -> None:
    assert list(collect(Doubler(), batches(2), ["same"])) == ["same"]


def test_progress_counts_batches() -> None:
    seen: list[int] = []
    collect(Doubler(groups=2), batches(3), ["same"], seen.append)
    assert seen == [1, 2, 3, 4, 5, 6]


def test_an_iterator_serves_one_group() -> None:
    assert collect(Doubler(), iter(batches(3)), ["same"])["same"].total == 300
    with pytest.raises(CalibrationError, match="only once"):
        collect(Doubler(groups=2), iter(batches(3)), ["same"])


def test_no_batches_are_refused() -> None:
    with pytest.raises(CalibrationError, match="no samples"):
        collect(Doubler(), [], ["same"])


def test_nan_names_the_tensor_and_the_batch() -> None:
    data = [*batches(2), {"x": np.float32([1, np.nan])}]
    with pytest.raises(CalibrationError, match=r"same: batch 2: got NaN"):
        collect(Doubler(), data, ["same"])


def test_memory_does_not_grow_with_the_samples() -> None:
    def peak(count: int) -> int:
        rng = np.random.default_rng(0)
        stream = ({"x": rng.standard_normal(50_000)} for _ in range(count))
        tracemalloc.start()
        collect(Doubler(), stream, ["same", "double"])
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(2)
    assert peak(60) < 1.1 * peak(6)


@pytest.mark.slow
@pytest.mark.skipif(
    not (SHARED / "models").is_dir(), reason="no shared/ data beside the repository"
)
def test_real_images_through_a_real_network() -> None:
    import onnx_ir as ir

    from ptq.calib_data import input_specs, open_calibration
    from ptq.execute.float import FloatRunner

    model = ir.load(SHARED / "models" / "resnet20_cifar10.onnx")
    data = open_calibration(
        SHARED / "data" / "cifar10_calib.npz", input_specs(model), preprocess="imagenet", limit=32
    )
    names = [node.outputs[0].name or "" for node in model.graph if node.op_type == "Relu"]
    found = collect(FloatRunner(model, names), data, names)
    assert len(found) == 19
    for histogram in found.values():
        low, high = choose_range(histogram, "mse", 8)
        assert low == 0 < high <= histogram.max
        assert high > 0.4 * histogram.max
