"""Mixed precision on a small network: what is held out, kept, chosen within budgets and picked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from ptq.cli import main
from ptq.errors import BudgetError, UsageError
from ptq.mixed import budgets, rounding
from ptq.mixed.budgets import Budgets, with_overhead, within
from ptq.mixed.explore import Exploration, explore, pick
from ptq.mixed.front import ExploreOptions, explore_model
from ptq.mixed.latency import Confirmation, confirm, layer_latencies, runtime_of
from ptq.mixed.metric import load_metric
from ptq.mixed.open_workshop import Options, open_workshop
from ptq.mixed.points import Point, Quality, Workshop
from ptq.mixed.promote import promote
from ptq.mixed.runtimes import OnnxRuntime, TvmModules, shares_of
from ptq.passes.allocate_bits import Allocation, Problem, allocate_bits
from ptq.passes.context import Batch
from ptq.precision import Precision, load_map
from ptq.recipe import Recipe
from ptq.report.profile import NodeTime
from tests.small_cnn import small_cnn, write_cnn


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mixed")
    write_cnn(made)
    # large enough for narrow codes to be packed
    wide = np.random.default_rng(4).normal(size=(96, 3, 3, 3)).astype(np.float32)
    onnx.save(small_cnn(weight=wide), made / "model.onnx")
    return made


@pytest.fixture(scope="module")
def workshop(folder: Path) -> Workshop:
    return open_workshop(
        folder / "model.onnx", folder / "samples.npz", Recipe(), Options(folder / "work")
    )


def rows(stream: Iterator[Batch]) -> list[bytes]:
    return [row.tobytes() for batch in stream for row in batch["x"]]


def test_a_quarter_of_the_samples_is_held_out_whatever_the_batches(workshop: Workshop) -> None:
    study = workshop.study
    used, held = rows(study.context.batches(7)), rows(study.held_out(3))
    assert (len(used), len(held)) == (30, 10)
    assert not set(used) & set(held)
    assert used == rows(study.context.batches(40))


def test_a_weight_is_rounded_once_at_each_width(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = rounding.jobs_at(workshop.study, workshop.study.run, (2, 5))
    first = rounding.round_all(workshop.study, jobs)
    monkeypatch.setattr(rounding, "_round", None)  # would raise if it were called
    again = rounding.round_all(workshop.study, jobs)
    assert {job.unit.precision.weight_bits for job in jobs} == {2, 5}
    for key, found in first.items():
        np.testing.assert_array_equal(found.weight.decode(), again[key].weight.decode())
        np.testing.assert_array_equal(found.bias, again[key].bias)


def test_every_width_of_a_layer_has_the_better_grid_type(folder: Path, workshop: Workshop) -> None:
    options = Options(folder / "auto")
    auto = open_workshop(
        folder / "model.onnx", folder / "samples.npz", Recipe(grid="auto"), options
    )
    studies = {"uniform": workshop.study, "auto": auto.study}
    found = {
        name: rounding.round_all(study, rounding.jobs_at(study, study.run, (2, 4, 8)))
        for name, study in studies.items()
    }
    grids = {r.weight.grid for r in found["auto"].values()}
    assert any(grid.power > 1 for grid in grids)
    assert all(grid.power == 1 for grid in grids if grid.bits == 8)
    assert all(r.weight.grid.power == 1 for r in found["uniform"].values())
    narrow = {choice.layer: Precision(2) for choice in auto.chooser.problem.choices}
    assert auto.measure(narrow).quality.loss < 1


def test_average_bits_and_size_are_kept_by_the_file_itself(workshop: Workshop) -> None:
    _, narrow = within(workshop, Budgets(average_bits=3.0))
    assert narrow.average_bits <= 3.0
    _, wide = within(workshop, Budgets())
    limit = (narrow.size_bytes + wide.size_bytes) // 2
    precisions, point = within(workshop, Budgets(size_bytes=limit))
    assert point.size_bytes <= limit
    assert point.size_bytes == workshop.measure(precisions).size_bytes
    assert point.quality.loss <= narrow.quality.loss


def test_bounded_bit_operations_narrow_activations_and_the_network_has_them(folder: Path) -> None:
    options = Options(folder / "work", activation_widths=(4, 8))
    workshop = open_workshop(
        folder / "model.onnx", folder / "samples.npz", Recipe(edge_bits=None), options
    )
    # both layers of this network are edges, which keep their inputs: only weights can give way
    full = workshop.chooser.allocate({}).costs["bops"]
    _, point = within(workshop, Budgets(bops=full / 2))
    assert point.bops <= full / 2


def test_a_drop_is_kept_and_what_cannot_be_kept_says_what_can(workshop: Workshop) -> None:
    _, loose = within(workshop, Budgets(drop=100.0))
    _, tight = within(workshop, Budgets(drop=10.0))
    assert tight.quality.drop is not None
    assert tight.quality.drop <= 10.0
    assert loose.size_bytes <= tight.size_bytes
    with pytest.raises(BudgetError, match=r"average_bits: got 1\.5 bits.*reaches is 2"):
        within(workshop, Budgets(average_bits=1.5))


def test_promotion_raises_measured_layers_until_it_is_good_enough(workshop: Workshop) -> None:
    problem = with_overhead(workshop)
    narrow = {c.layer: c.options[0].precision for c in problem.choices}
    start = workshop.measure(narrow)
    steps = promote(
        workshop, problem, narrow, {}, lambda p: p.quality.loss < start.quality.loss / 4
    )
    losses = [start.quality.loss, *(point.quality.loss for _, point in steps)]
    assert len(steps) > 0
    assert losses == sorted(losses, reverse=True)
    assert promote(workshop, problem, narrow, {"average_bits": 2.0}, lambda p: False) == []


def test_exploring_again_measures_nothing_again(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = explore(workshop, 5, lambda progress: None)
    assert len(found.points) >= 2
    assert [p.name for p in found.uniform] == [
        "uniform w8",
        "uniform w4",
        "uniform w3",
        "uniform w2",
    ]
    monkeypatch.setattr(Workshop, "build", None)
    assert explore(workshop, 5, lambda progress: None) == found


@pytest.mark.slow
def test_points_in_parallel_are_the_same_points(folder: Path, tmp_path: Path) -> None:
    model, calib = folder / "model.onnx", str(folder / "samples.npz")
    found = [
        explore_model(
            model, calib, Recipe(), ExploreOptions(tmp_path / str(jobs), 4, timed=False, jobs=jobs)
        )
        for jobs in (1, 2)
    ]
    assert found[0] == found[1]
    for jobs, timed, data in ((2, True, calib), (2, False, [object()]), (10**6, False, calib)):
        with pytest.raises(UsageError, match="jobs"):
            options = ExploreOptions(tmp_path / "other", timed=timed, jobs=jobs)
            explore_model(model, data, Recipe(), options)


def front(*points: tuple[int, float, float]) -> Exploration:
    made = [
        Point(str(size), {}, 4.0, 1.0, size, loss, Quality(100, loss, 1.0, None, drop))
        for size, loss, drop in points
    ]
    return Exploration(tuple(made), (), None, tuple(range(len(made))))


def test_picking_from_a_front() -> None:
    found = front((100, 1.0, 30.0), (120, 0.02, 2.0), (200, 0.015, 1.0), (400, 0.01, 0.5))
    assert pick(found, "knee").size_bytes == 120
    assert pick(found, "size=0.25kB").size_bytes == 200
    assert pick(found, "drop=1.5").size_bytes == 200
    with pytest.raises(BudgetError, match="smallest point has 100"):
        pick(found, "size=99")
    with pytest.raises(BudgetError, match=r"is 0\.5"):
        pick(found, "drop=0.1")
    with pytest.raises(UsageError, match="wanted knee"):
        pick(found, "best")


def test_a_metric_of_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "measure.py"
    path.write_text("def half(predict):\n    return predict({})['y'] / 2\n")
    assert load_metric(f"{path}:half")(lambda batch: {"y": np.float32(1)}) == 0.5
    with pytest.raises(UsageError, match="no such Python file"):
        load_metric("nowhere.py:f")
    with pytest.raises(UsageError, match="KeyError"):
        load_metric(f"{path}:half")(lambda batch: {})


def test_the_command_line_explores_picks_and_replays(folder: Path, tmp_path: Path) -> None:
    common = [str(folder / "model.onnx"), "--calib", str(folder / "samples.npz"), "--quiet"]
    out = tmp_path / "front"
    arguments = ["explore", *common, "-o", str(out), "--points", "3", "--no-latency"]
    result = CliRunner().invoke(main, [*arguments, "--pick", "knee"])
    assert result.exit_code == 0, result.output
    assert {"explore.json", "explore.png", "picked.onnx", "picked.map.json"} <= {
        path.name for path in out.iterdir()
    }
    assert load_map(out / "picked.map.json")
    replay = ["--precision-map", str(out / "picked.map.json"), "-o", str(tmp_path / "r.onnx")]
    result = CliRunner().invoke(main, ["quantize", *common, *replay, "--no-measure"])
    assert result.exit_code == 0, result.output


def test_a_budget_that_nothing_fits_exits_with_5_and_leaves_no_file(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "q.onnx"
    arguments = [str(folder / "model.onnx"), "--calib", str(folder / "samples.npz"), "-o", str(out)]
    work = ["--work", str(folder / "work")]
    result = CliRunner().invoke(main, ["quantize", *arguments, *work, "--target-size", "1kB"])
    assert result.exit_code == 5
    assert "size_bytes" in result.output
    assert not out.exists()


def test_time_belongs_to_the_layer_with_the_longest_name_before_it() -> None:
    nodes = tuple(
        NodeTime(name, "QLinearConv", 1.0, share)
        for name, share in (("/a/Conv/QLinearConv", 0.5), ("/a/Conv/b/QGemm", 0.25), ("/c/Q", 0.25))
    )
    assert shares_of(nodes, ["/a/Conv", "/a/Conv/b"]) == {"/a/Conv": 0.5, "/a/Conv/b": 0.25}


def test_a_latency_that_no_width_reaches_says_what_the_network_takes(workshop: Workshop) -> None:
    found = layer_latencies(workshop, OnnxRuntime())
    total_ms = found.predict_ms(dict.fromkeys(found.layers, 8))
    assert found.rest_ms < total_ms
    assert layer_latencies(workshop, OnnxRuntime()) == found  # kept, not timed again
    with pytest.raises(BudgetError, match="latency_ms"):
        within(workshop, Budgets(latency_ms=total_ms / 100))
    _, point = within(workshop, Budgets(latency_ms=2 * total_ms, average_bits=4))
    assert point.average_bits <= 4


def test_a_network_that_takes_too_long_when_measured_is_chosen_again(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = layer_latencies(workshop, OnnxRuntime())
    wanted_ms = 3 * found.predict_ms(dict.fromkeys(found.layers, 8))
    measured = [1.25 * wanted_ms, 1.02 * wanted_ms, 0.99 * wanted_ms]
    bounds = list[float]()

    def allocate(problem: Problem, limits: Mapping[str, float], *rest: str) -> Allocation:
        bounds.append(limits["latency_ms"])
        return allocate_bits(problem, limits, *rest)

    monkeypatch.setattr(budgets, "allocate_bits", allocate)
    monkeypatch.setattr(
        budgets, "confirm", lambda *_: Confirmation(wanted_ms, measured[len(bounds) - 1])
    )
    within(workshop, Budgets(latency_ms=wanted_ms, average_bits=4))
    assert bounds == pytest.approx([wanted_ms, wanted_ms / 1.25, wanted_ms / 1.25 / 1.02])
    measured[:] = [4 * wanted_ms] * 9  # a bound of 3 / 4 of what any width takes cannot be met
    bounds.clear()
    with pytest.raises(BudgetError, match=rf"network found takes {4 * wanted_ms:.4g} ms"):
        within(workshop, Budgets(latency_ms=wanted_ms))


def test_latencies_of_other_sizes_are_kept_apart() -> None:
    short, long = (runtime_of("llvm:native", {"length": n}) for n in (16, 128))
    assert short.name != long.name
    assert runtime_of("llvm:native", {}).name in short.name


@pytest.mark.slow
def test_latency_of_compiled_modules_is_by_layer_and_width(folder: Path) -> None:
    pytest.importorskip("tvm")
    recipe, options = Recipe(residual_bits=8), Options(folder / "compiled")
    workshop = open_workshop(folder / "model.onnx", folder / "samples.npz", recipe, options)
    runtime = TvmModules("llvm:native")
    found = layer_latencies(workshop, runtime)
    assert set(found.layers) == {choice.layer for choice in workshop.chooser.problem.choices}
    assert all(set(times) == {2, 3, 4, 5, 6, 8} for times in found.layers.values())
    assert all(ms > 0 for times in found.layers.values() for ms in times.values())
    narrow = {layer: Precision(4) for layer in found.layers}
    took = confirm(workshop, narrow, runtime)
    assert took.measured_ms > 0
    assert abs(took.error) < 0.5  # of some microseconds; benchmarks/ has the real figure
