"""Modules for GPUs: the reference's codes, by a stand-in for nvcc and the driver; real ones too.

The stand-ins (tests/cuda_shim) run the CUDA text and the module's host code on this CPU.
"""

from __future__ import annotations

import ctypes
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("tvm", reason="TVM is not installed: pip install 'ptq-compiler[tvm]'")

from click.testing import CliRunner

from ptq import runtime
from ptq.cli import main
from ptq.errors import MissingDependencyError, UnsupportedModelError, UsageError
from ptq.integer.program import Mean, Program
from ptq.integer.reference import Reference
from ptq.pipeline import quantize
from ptq.recipe import Recipe
from ptq.report.compiled import open_compiled
from ptq.report.kernel_times import inspect_module
from ptq.targets.tvm.description import Description
from ptq.targets.tvm.module import Compiled, CompileOptions, compile_program
from tests.cuda_shim import shim
from tests.execute import small_programs
from tests.execute.small_programs import random_program
from tests.graphs import GraphBuilder
from tests.many_convolutions import SHAPE, many_program, many_samples

pytestmark = shim.needs_gpp
DATA = Path(__file__).parents[3] / "calib_data"
Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shim.build_driver(tmp_path_factory.mktemp("driver"))


def wide_net() -> Any:
    """Channels with weights enough for codes to be smaller; runs of 60 and of 160 bytes."""
    b = GraphBuilder(np.random.default_rng(3))
    y = b.node("Conv", ["x", b.weight(20, 3, 3, 3), b.bias(20)], pads=[1, 1, 1, 1])
    y = b.node("Relu", [y])
    y = b.node("Relu", [b.node("Conv", [y, b.weight(160, 20, 3, 3), b.bias(160)])])
    y = b.node("Relu", [b.node("Conv", [y, b.weight(9, 160, 1, 1), b.bias(9)])])
    return b.model({"x": SHAPE}, {y: (9, 7, 5)})


def has_gpu() -> bool:
    """True if the system's own driver finds a device."""
    try:
        return ctypes.CDLL("libcuda.so.1").cuInit(0) == 0
    except OSError:
        return False


def assert_same_codes(
    program: Program, feeds: dict[str, Array], folder: Path, driver: Path | None, **options: Any
) -> Compiled:
    """Every code tensor of the module is the reference's; `driver` None is the system's own."""
    target = options.pop("target", "cuda")
    compiled = compile_program(program, CompileOptions(target, reuse=False, **options))
    compiled.export(folder / "m.so")
    np.savez(folder / "feeds.npz", **feeds)  # type: ignore[arg-type]
    script = shim.HERE / "run_module.py"
    words = [script, folder / "m.so", folder / "feeds.npz", folder / "found.npz"]
    done = shim.run_python(words, driver)
    assert done.returncode == 0, done.stderr
    found = np.load(folder / "found.npz")
    wanted = Reference(program).run_codes(feeds)
    compared = 0
    for name, view in compiled.code_views.items():
        if view.view.shape:
            codes = np.concatenate([view.read(arena) for arena in found["arenas"]])
            np.testing.assert_array_equal(codes, wanted[name], name)
            compared += codes.size
    assert compared > 10
    for name, array in Reference(program).run(feeds).items():
        np.testing.assert_array_equal(found[f"out_{name}"], array, name)
    return compiled


@pytest.mark.parametrize("seed", range(2))
def test_random_graphs_give_equal_codes(
    seed: int, tmp_path: Path, driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVCC", str(shim.HERE / "nvcc"))
    result, feeds = random_program(seed)
    assert_same_codes(result.program, feeds, tmp_path, driver)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 40))
def test_more_random_graphs_give_equal_codes(
    seed: int, tmp_path: Path, driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test_random_graphs_give_equal_codes(seed, tmp_path, driver, monkeypatch)


@pytest.mark.parametrize(("target", "batch"), [("cuda", 3), ("cuda:sm_75", None)])
def test_every_kind_of_2d_convolution_has_a_fast_kernel(
    target: str, batch: int | None, tmp_path: Path, driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVCC", str(shim.HERE / "nvcc"))
    feeds = {"x": many_samples(3)}
    made = assert_same_codes(many_program(), feeds, tmp_path, driver, target=target, batch=batch)
    assert not made.plain
    products = {names[-1] for names in made.kernels.values()} - {"Quantize", "Mean", "Dequantize"}
    assert products - {"Copy"} == {"PackedConvolution"} | (
        {"TensorConvolution"} if target == "cuda" else set()
    )


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["w4a8", "w3a8", "w2a8"])
def test_packed_weights_are_smaller_and_give_equal_codes(
    precision: str, tmp_path: Path, driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVCC", str(shim.HERE / "nvcc"))
    recipe = Recipe.preset(precision).replace(effort="fast", edge_bits=int(precision[1]))
    program = quantize(wide_net(), [{"x": many_samples(16)}], recipe).program
    feeds = {"x": many_samples(2)}
    made = assert_same_codes(program, feeds, tmp_path, driver, weights="packed")
    plain = compile_program(program, CompileOptions("cuda"))
    assert len(made.weights) < len(plain.weights)


@pytest.mark.slow
def test_commands_quantise_verify_inspect_and_time(tmp_path: Path, driver: Path) -> None:
    """`ptq quantize --target tvm:cuda:sm_90`, then what takes its file."""
    out = tmp_path / "digits.so"
    made = shim.run_python(
        ["-m", "ptq.cli", "quantize", DATA / "digits_cnn.onnx", "-o", out, "--bits", 4,
         "--samples", 32, "--calib", DATA / "digits_calib.npz", "--target", "tvm:cuda:sm_90",
         "--no-measure", "--effort", "fast", "--quiet"],
        driver,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    verify = ["-m", "ptq.cli", "verify", out, "--calib", DATA / "digits_eval.npz"]
    done = shim.run_python([*verify, "--samples", 5, "--json", "--quiet"], driver)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["mismatches"], found["samples"]) == (0, 5)
    assert found["tensors"] > 15
    inspected = shim.run_python(["-m", "ptq.cli", "inspect", out, "--json"], driver)
    assert sum(json.loads(inspected.stdout)["share"].values()) == pytest.approx(1)


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
def test_without_a_driver_it_is_said_what_is_missing_and_the_kernels_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVCC", str(shim.HERE / "nvcc"))
    result, feeds = random_program(0, residual_bits=8)
    compile_program(result.program, CompileOptions("cuda")).export(tmp_path / "m.so")
    module = runtime.load(tmp_path / "m.so")
    missing = r"compiled for cuda:sm_80\+sm_90: this module runs on an NVIDIA GPU"
    with pytest.raises(MissingDependencyError, match=missing):
        module.run(feeds)
    found = inspect_module(tmp_path / "m.so")
    assert re.search(missing, found.untimed)
    assert [call.kernel for call in found.calls] == [call.kernel for call in module.calls]
    assert found.calls[0].microseconds is None
    with pytest.raises(MissingDependencyError, match=missing):
        open_compiled(tmp_path / "m.so", name="m").run(feeds)


def test_missing_nvcc_is_said_before_anything_is_quantised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVCC", "no-such-nvcc")
    out = tmp_path / "d.so"
    words = ["quantize", DATA / "digits_cnn.onnx", "-o", out, "--target", "tvm:cuda:sm_90"]
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == MissingDependencyError.exit_code
    assert "needs no-such-nvcc, which is not on the PATH" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_gpu_that_nvcc_does_not_know_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC", str(shim.HERE / "nvcc"))
    with pytest.raises(UsageError, match=r"does not compile for sm_61; wanted some of sm_75, "):
        Description.parse("cuda:sm_61+sm_80").require_tools()


def test_what_has_no_kernel_is_named_before_nvcc_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NVCC", "no-such-nvcc")
    step = Mean("mean", "x", "y", (1,), True, 5, small_programs.requantizer(shift=9))
    grids = {"x": small_programs.grid(high=65535), "y": small_programs.grid()}
    mean = small_programs.program([step], grids)
    with pytest.raises(UnsupportedModelError, match=r"mean \(Mean: reads 16-bit codes"):
        compile_program(mean, CompileOptions("cuda"))


@pytest.mark.slow
@shim.needs_nvcc
def test_nvcc_compiles_a_network_to_the_same_bytes_twice(tmp_path: Path) -> None:
    compiled = [
        compile_program(many_program(), CompileOptions("cuda:sm_80+sm_90")) for _ in range(2)
    ]
    for number, one in enumerate(compiled):
        one.export(tmp_path / f"{number}.so")
    first, second = ((tmp_path / f"{number}.so").read_bytes() for number in range(2))
    assert first == second


@pytest.mark.skipif(not has_gpu(), reason="there is no GPU here")
def test_on_a_gpu_networks_give_equal_codes(tmp_path: Path) -> None:
    assert_same_codes(many_program(), {"x": many_samples(3)}, tmp_path, None)
    for seed in range(8):
        result, feeds = random_program(seed)
        assert_same_codes(result.program, feeds, tmp_path, None)
