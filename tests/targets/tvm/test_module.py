"""Compiled modules: the reference's codes for any network, loaded without the compiler."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

pytest.importorskip("tvm", reason="TVM is not installed: pip install 'ptq-compiler[tvm]'")

from ptq import runtime
from ptq.cli import main
from ptq.errors import (
    CalibrationError,
    InvalidModelError,
    MissingDependencyError,
    UnsupportedModelError,
)
from ptq.integer.program import Apply, Mean, Program, Ref
from ptq.integer.reference import Reference
from ptq.pipeline import quantize
from ptq.recipe import Recipe
from ptq.targets.tvm.module import Compiled, CompileOptions, compile_program
from ptq.targets.tvm.runners import Tapped
from tests.conv_net import conv_net, conv_samples
from tests.execute.small_programs import grid, program, random_program, requantizer
from tests.kernels.test_fast_kernels import needs_avx2
from tests.passes.small_graphs import draw, graph

DATA = Path(__file__).parents[3] / "calib_data"
Array = npt.NDArray[Any]


def run_cli(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits model at w4a8 as a compiled module, straight from the float model."""
    out = tmp_path_factory.mktemp("digits") / "digits.so"
    done = run_cli(
        "quantize", DATA / "digits_cnn.onnx", "-o", out, "--bits", 4, "--samples", 64,
        "--calib", DATA / "digits_calib.npz", "--target", "tvm:llvm:native", "--no-measure",
        "--effort", "fast",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return out


def test_verify_counts_no_mismatch_in_any_tensor(digits: Path) -> None:
    done = run_cli(
        "verify", digits, "--calib", DATA / "digits_eval.npz", "--samples", 20, "--json", "--quiet"
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["mismatches"] == 0
    assert found["samples"] == 20
    assert found["tensors"] > 15


def test_commands_feed_a_module_as_many_samples_as_it_takes(tmp_path: Path) -> None:
    out = tmp_path / "three.so"
    quantised = tmp_path / "digits.onnx"
    done = run_cli(
        "quantize", DATA / "digits_cnn.onnx", "-o", quantised, "--samples", 64, "--calib",
        DATA / "digits_calib.npz", "--no-measure", "--effort", "fast",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    done = run_cli("compile", quantised, "-o", out, "--batch", 3)
    assert done.exit_code == 0, done.output
    done = run_cli(
        "verify", out, "--calib", DATA / "digits_eval.npz", "--samples", 7, "--json", "--quiet"
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["samples"], found["mismatches"]) == (6, 0)
    done = run_cli("eval", out, "--data", DATA / "digits_eval.npz", "--samples", 7, "--json")
    assert done.exit_code == 0, done.output
    done = run_cli("bench", out, "--seconds", 0.1, "--json")
    assert done.exit_code == 0, done.output


def test_verify_notices_another_program(digits: Path, tmp_path: Path) -> None:
    """The side files say what is right: with a bias changed there, the module is wrong."""
    from ptq.integer import serial

    other = tmp_path / "other.so"
    side = {suffix: f"{suffix}.ptq" for suffix in ("json", "safetensors")}
    for suffix in side:
        source = digits.with_name(f"{digits.name}.ptq.{suffix}")
        (tmp_path / f"other.so.ptq.{suffix}").write_bytes(source.read_bytes())
    other.write_bytes(digits.read_bytes())
    saved = serial.load(tmp_path / "other.so.ptq.safetensors")
    steps = list(saved.program.steps)
    place = next(i for i, s in enumerate(steps) if type(s).__name__ == "Gemm")
    steps[place] = replace(steps[place], bias=steps[place].bias + 5000)  # type: ignore[union-attr, operator]
    changed = replace(saved.program, steps=tuple(steps))
    serial.save(changed, saved.plan, tmp_path / "other.so.ptq.safetensors")
    done = run_cli("verify", other, "--calib", DATA / "digits_eval.npz", "--samples", 4, "--quiet")
    assert done.exit_code == 1, done.output


def test_module_loads_without_the_compiler_and_takes_any_batch(digits: Path) -> None:
    code = (
        "import sys, numpy as np, ptq.runtime\n"
        f"module = ptq.runtime.load({str(digits)!r}, threads=1)\n"
        "x = np.random.default_rng(0).normal(size=(5, 1, 16, 16)).astype(np.float32)\n"
        "one = np.concatenate([module(x[i : i + 1]) for i in range(5)])\n"
        "assert one.shape == (5, 10) and (module(x) == one).all() and len(np.unique(one)) > 9\n"
        "print(sorted({'tvm', 'tvm_ffi', 'onnx', 'onnxruntime', 'msgspec'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_threads_change_no_code(digits: Path) -> None:
    """Within a sample, over the samples of a batch, and from several callers at once."""
    x = np.random.default_rng(0).normal(size=(7, 1, 16, 16)).astype(np.float32)
    wanted = runtime.load(digits)(x)
    module, other = runtime.load(digits, threads=2), runtime.load(digits, threads=3)
    np.testing.assert_array_equal(np.concatenate([module(x[i : i + 1]) for i in range(7)]), wanted)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda i: (module, other)[i % 2](x), range(40)):
            np.testing.assert_array_equal(found, wanted)


def test_profile_gives_every_kernel_its_time(digits: Path) -> None:
    module = runtime.load(digits)
    feeds = {"image": np.zeros((3, 1, 16, 16), np.float32)}
    found = module.profile(feeds)
    assert len(found) == len(module.calls) > 20
    assert min(found) > 0
    assert module.calls[0].kernel == "Quantize"


def test_inspect_says_which_kernel_runs_where_and_how_long(digits: Path) -> None:
    done = run_cli("inspect", digits, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["calls"][0]["kernel"] == "Quantize"
    assert sum(found["share"].values()) == pytest.approx(1)
    assert {"Mean", "Dequantize"} <= set(found["share"])
    assert "Dequantize" in run_cli("inspect", digits).output


def test_tensors_are_taken_by_dlpack(digits: Path) -> None:
    import torch

    x = torch.rand(2, 1, 16, 16)
    module = runtime.load(digits)
    np.testing.assert_array_equal(module(x), module(x.numpy()))


def test_wrong_shapes_are_named(digits: Path) -> None:
    module = runtime.load(digits)
    with pytest.raises(CalibrationError, match=r"shape \[2, 1, 16, 15\]; wanted \[N, 1, 16, 16\]"):
        module(np.zeros((2, 1, 16, 15), np.float32))
    with pytest.raises(CalibrationError, match="is missing"):
        module.run({})


def test_a_file_that_is_no_module_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.so").write_bytes(b"nothing")
    with pytest.raises(InvalidModelError, match="not a module"):
        runtime.load(tmp_path / "x.so")


def assert_same_codes(
    program: Program, feeds: dict[str, Array], tmp_path: Path, **options: Any
) -> Compiled:
    """Every code tensor of the module is the reference's."""
    compiled = compile_program(program, CompileOptions(**options, reuse=False))
    path = tmp_path / f"{compiled.entry['identity']}.so"
    compiled.export(path)
    tapped = Tapped(runtime.load(path), compiled.code_views)
    wanted = Reference(program).run_codes(feeds)
    for name, codes in tapped.run(feeds).items():
        np.testing.assert_array_equal(codes, wanted[name], name)
    outputs = tapped.module.run(feeds)
    for name, array in Reference(program).run(feeds).items():
        np.testing.assert_array_equal(outputs[name], array, name)
    return compiled


def test_a_file_that_was_replaced_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    for seed in range(2):
        program = random_program(seed, residual_bits=8)[0].program
        compile_program(program).export(tmp_path / "m.so")
        if seed == 0:
            runtime.load(tmp_path / "m.so")
    with pytest.raises(InvalidModelError, match="older file of this name"):
        runtime.load(tmp_path / "m.so")


def test_a_step_that_cannot_read_codes_of_16_bits_is_named() -> None:
    step = Mean("mean", "x", "y", (1,), True, 5, requantizer(shift=9))
    mean = program([step], {"x": grid(high=65535), "y": grid()})
    with pytest.raises(UnsupportedModelError, match=r"mean \(Mean: reads 16-bit codes, x\)"):
        compile_program(mean, CompileOptions())


@pytest.mark.parametrize("seed", range(6))
def test_random_graphs_give_equal_codes(seed: int, tmp_path: Path) -> None:
    result, feeds = random_program(seed)
    assert_same_codes(result.program, feeds, tmp_path)


def test_codes_whose_samples_lie_along_another_axis(tmp_path: Path) -> None:
    turn = "Transpose<perm = [1, 0, 2]>"
    text = f"{{ h = MatMul(x, w) t = {turn}(h) e = Tanh(t) y = {turn}(e) }}"
    model = graph(f"(float[N, 3, 4] x) => (float[N, 3, 5] y) {text}", {"w": draw(4, 5)})
    samples = {"x": draw(8, 3, 4)}
    result = quantize(model, [samples], Recipe(effort="fast"))
    compiled = assert_same_codes(result.program, samples, tmp_path)
    assert {view.axis for view in compiled.code_views.values()} == {0, 1}


def test_moves_in_a_row_are_one_copy(tmp_path: Path) -> None:
    """A shuffle of channels: what lies between its three operators is never in memory."""
    body = "a = Reshape(h, s) b = Transpose<perm = [0, 2, 1, 3, 4]>(a) c = Reshape(b, t)"
    text = f"{{ h = Conv(x, w) {body} y = Conv(c, w) }}"
    constants = {
        "w": draw(32, 32, 1, 1),
        "s": np.array([-1, 2, 16, 5, 4]),
        "t": np.array([-1, 32, 5, 4]),
    }
    model = graph(f"(float[N, 32, 5, 4] x) => (float[N, 32, 5, 4] y) {text}", constants)
    samples = {"x": draw(8, 32, 5, 4)}
    result = quantize(model, [samples], Recipe(effort="fast"))
    compiled = assert_same_codes(result.program, samples, tmp_path)
    names = [name for step in compiled.kernels.values() for name in step]
    assert names.count("Copy") == 1
    assert not {"Take", "Fill"} & set(names)


def test_module_in_c_gives_equal_codes(tmp_path: Path) -> None:
    result, feeds = random_program(2)
    assert_same_codes(result.program, feeds, tmp_path, target="c")


@pytest.mark.parametrize("weights", ["int8", "packed"])
@pytest.mark.parametrize("cpu", ["x86-64-v3", "alderlake", "cascadelake", "sapphirerapids"])
def test_every_processor_gives_equal_codes(cpu: str, weights: str, tmp_path: Path) -> None:
    x = conv_samples(64)
    program = quantize(conv_net(), [{"x": x}], Recipe.preset("w4a8")).program
    try:
        assert_same_codes(program, {"x": x[:3]}, tmp_path, target=f"llvm:{cpu}", weights=weights)
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the feature is one of x86-64")
def test_code_for_another_processor_is_refused(tmp_path: Path) -> None:
    result, feeds = random_program(2)
    target = "llvm:native+amx-complex"
    compile_program(result.program, CompileOptions(target=target)).export(tmp_path / "m.so")
    with pytest.raises(MissingDependencyError, match="this processor.* has no amx-complex"):
        runtime.load(tmp_path / "m.so").run(feeds)


@needs_avx2
def test_packed_weights_are_smaller_and_give_equal_codes(tmp_path: Path) -> None:
    x = conv_samples(64)
    program = quantize(conv_net(), [{"x": x}], Recipe.preset("w4a8")).program
    sizes = {}
    for weights in ("int8", "packed"):
        made = assert_same_codes(program, {"x": x[:3]}, tmp_path, weights=weights)
        sizes[weights] = len(made.weights)
    assert sizes["packed"] < sizes["int8"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4, 40))
def test_more_random_graphs_give_equal_codes(seed: int, tmp_path: Path) -> None:
    test_random_graphs_give_equal_codes(seed, tmp_path)


def test_steps_without_a_kernel_are_named_before_anything_is_compiled() -> None:
    program = random_program(0)[0].program
    island = Apply(
        "einsum_7", "Einsum", "", (Ref("x", False),), (Ref("z", False),), (), "no integer form"
    )
    with pytest.raises(UnsupportedModelError, match=r"einsum_7 \(Einsum: .*no integer form\)"):
        compile_program(replace(program, steps=(*program.steps, island)))


def test_command_refuses_an_unknown_target_before_calibration(tmp_path: Path) -> None:
    out = tmp_path / "d.so"
    done = run_cli("quantize", DATA / "digits_cnn.onnx", "-o", out, "--target", "tvm:quantum")
    assert done.exit_code == 2
    assert "wanted llvm" in done.output
    assert not list(tmp_path.iterdir())
