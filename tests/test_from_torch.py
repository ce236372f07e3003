"""The torch front door: one network in four forms, names, shapes, refusals, and the way back."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import ptq
from ptq.cli import main
from ptq.errors import UnsafeModelError, UnsupportedModelError, UsageError
from ptq.from_torch import load_exported
from ptq.integer.reference import Reference

BATCH: Any = ({0: torch.export.Dim("batch")},)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = OrderedDict(
        stem=nn.Conv2d(1, 4, 3, padding=1, bias=False),
        norm=nn.BatchNorm2d(4),
        act=nn.ReLU6(),
        deep=nn.Conv2d(4, 4, 3, groups=4),
        silu=nn.SiLU(),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        head=nn.Linear(4, 3),
    )
    module = nn.Sequential(layers)
    module.norm.running_mean += 0.3
    return module.eval()


def samples(seed: int, count: int = 8) -> Tensor:
    return torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


def calibration() -> list[np.ndarray[Any, Any]]:
    return [samples(1).numpy()]


@pytest.fixture(scope="module")
def result() -> ptq.Result:
    return ptq.quantize(network(), calibration(), example_inputs=(samples(0),))


def codes(result: ptq.Result) -> list[np.ndarray[Any, Any]]:
    """Every code tensor on unseen samples, in the order of the program."""
    (name,) = (boundary.name for boundary in result.program.inputs)
    return list(Reference(result.program).run_codes({name: samples(2).numpy()}).values())


@pytest.fixture(scope="module")
def exported() -> torch.export.ExportedProgram:
    return torch.export.export(network(), (samples(0),), dynamic_shapes=BATCH)


def forms(exported: torch.export.ExportedProgram) -> dict[str, tuple[Any, Any]]:
    made = torch.onnx.export(exported, dynamo=True, verbose=False, opset_version=21)
    assert made is not None
    return {
        "onnx": (made.model_proto, None),
        "graph module": (torch.fx.symbolic_trace(network()), (samples(0),)),
        "exported program": (exported, None),
    }


@pytest.mark.filterwarnings("ignore")  # of torch's own, in the test's own export
def test_one_network_in_four_forms_gives_the_same_codes(
    result: ptq.Result, exported: torch.export.ExportedProgram
) -> None:
    expected = codes(result)
    for form, (model, example) in forms(exported).items():
        found = codes(ptq.quantize(model, calibration(), example_inputs=example))
        assert len(found) == len(expected), form
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs, form)


def test_nodes_are_called_after_their_modules(result: ptq.Result) -> None:
    names = {node.op_type: node.name for node in result.float_model.graph}
    assert names["Gemm"] == "head"
    assert [n.name for n in result.float_model.graph if n.op_type == "Conv"] == ["stem", "deep"]
    recipe = ptq.Recipe(exclude=("deep",))
    kept = ptq.quantize(network(), calibration(), recipe, example_inputs=(samples(0),))
    assert [i.name for i in kept.outline.islands] == ["deep"]


def test_an_example_of_one_sample_leaves_the_batch_free() -> None:
    model = ptq.load(network(), example_inputs=samples(0, 1))
    assert isinstance(model.graph.inputs[0].shape[0], ir.SymbolicDim)


def test_dynamic_shapes_are_kept() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    shapes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("length")},)
    model = ptq.load(module, example_inputs=(torch.randn(2, 3, 4),), dynamic_shapes=shapes)
    assert [str(d) for d in model.graph.inputs[0].shape] == ["batch", "length", "4"]


def test_keyword_arguments_and_a_module_in_training_mode() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout()

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.drop(left) + right

    module = Two().train()
    inputs = {"left": torch.randn(2, 3), "right": torch.randn(2, 3)}
    model = ptq.load(module, example_inputs=inputs)
    assert [v.name for v in model.graph.inputs] == ["left", "right"]
    assert [node.op_type for node in model.graph] == ["Add"]
    assert module.training
    assert module.drop.training


class Spread(nn.Module):
    """Takes what it is given under no name of its own."""

    def forward(self, *args: Tensor) -> Tensor:
        return torch.relu(sum(args))


def test_arguments_without_parameters_of_their_own() -> None:
    model = ptq.load(Spread(), example_inputs=(torch.randn(2, 3), torch.randn(2, 3)))
    assert len(model.graph.inputs) == 2
    assert all(isinstance(x.shape[0], ir.SymbolicDim) for x in model.graph.inputs)


def test_one_example_tensor_for_two_inputs_leaves_two_inputs() -> None:
    class Difference(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left - right

    shapes = {key: {0: torch.export.Dim("batch")} for key in ("left", "right")}
    same = dict.fromkeys(shapes, torch.ones(2, 3))
    model = ptq.load(Difference(), example_inputs=same, dynamic_shapes=shapes)
    (node,) = model.graph
    assert [v.name for v in node.inputs] == ["left", "right"]


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1


def test_what_cannot_be_traced_is_refused_with_a_remedy() -> None:
    with pytest.raises(UnsupportedModelError, match=r"cannot trace this Branching.*torch\.where"):
        ptq.load(Branching(), example_inputs=(torch.randn(2, 3),))


class Untranslatable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigh(x)[0]


def test_an_operator_that_onnx_lacks_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match=r"torch\.onnx cannot export it.*eigh"):
        ptq.load(Untranslatable(), example_inputs=(torch.eye(3),))


def test_a_module_without_example_inputs_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="example_inputs"):
        ptq.quantize(network(), calibration())


def test_the_module_gives_the_codes_of_the_reference_and_gradients(result: ptq.Result) -> None:
    x = samples(3).requires_grad_()
    module = result.as_module()
    y = module(x)
    (name,) = (boundary.name for boundary in result.program.inputs)
    expected = Reference(result.program).run({name: x.detach().numpy()})
    np.testing.assert_array_equal(y.detach().numpy(), next(iter(expected.values())))
    y.square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    torch.testing.assert_close(module(**{name: x}), y)
    with pytest.raises(UsageError, match=name):
        module(x, x)


@pytest.fixture
def archive(tmp_path: Path, exported: torch.export.ExportedProgram) -> Path:
    torch.export.save(exported, tmp_path / "net.pt2")
    np.savez(tmp_path / "samples.npz", samples(1).numpy())
    return tmp_path / "net.pt2"


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_an_archive_is_quantised_and_verified(archive: Path) -> None:
    samples = ("--calib", archive.with_name("samples.npz"), "--quiet")
    bits = ("--precision", "w4a8", "--edge-bits", 4, "--effort", "fast")
    done = run("quantize", archive, "--trust", "--no-measure", *bits, *samples)
    assert done.exit_code == 0, done.output
    assert archive.with_name("net.onnx").is_file()
    done = run("verify", archive.with_name("net.w4a8.onnx"), "--target", "onnx-strict", *samples)
    assert done.exit_code == 0, done.output
    again = run("quantize", archive, "--trust", "-o", archive.with_name("other.onnx"), *samples)
    assert again.exit_code == 2
    assert "net.onnx: exists already" in again.output


def test_an_archive_needs_trust(archive: Path) -> None:
    done = run("quantize", archive)
    assert done.exit_code == 3
    assert "--trust" in done.output
    assert not archive.with_name("net.onnx").exists()
    with pytest.raises(UnsafeModelError):
        load_exported(archive, trust=False)
    with pytest.raises(UnsupportedModelError, match="--trust"):
        ptq.load(archive)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_bytes(b"not an archive")
    done = run("quantize", path, "--trust")
    assert done.exit_code == 3
    assert "torch.export.save" in done.output
