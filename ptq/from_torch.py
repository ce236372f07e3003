"""From PyTorch to ONNX: torch.export, then torch's own ONNX exporter, into an onnx_ir model.

Nodes are called after the modules they came from ("layers.0.fc1"), so that reports, --include and
--exclude speak of the network as its author does. torch is imported when this is used.
"""

from __future__ import annotations

import ast
import inspect
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import onnx_ir.passes.common as common

from ptq.errors import UnsafeModelError, UnsupportedModelError, UsageError
from ptq.files import check_output, staged

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

OPSET = 21
LARGEST_PROTO_BYTES = 1_900_000_000
SUFFIXES = (".pt2",)
_SCOPES = "pkg.torch.onnx.name_scopes"
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LayerNormalization", "Gather")


def is_torch(source: object) -> bool:
    """True for an nn.Module (a GraphModule is one) or an ExportedProgram; imports no torch."""
    bases = [base for base in type(source).__mro__ if base.__module__.startswith("torch.")]
    return any(base.__name__ in ("Module", "ExportedProgram") for base in bases)


def from_torch(
    source: torch.nn.Module | ExportedProgram,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
) -> ir.Model:
    """The ONNX model of a torch network, with weights in memory and nodes named after modules.

    example_inputs: one tensor, a tuple of arguments, or a mapping of keyword arguments; an
        ExportedProgram needs none.
    dynamic_shapes: as torch.export takes them; None leaves the first dimension of every input
        free, where the network allows it.

    Raises:
        UsageError: a module without example inputs.
        UnsupportedModelError: torch.export cannot trace it, or ONNX has no such operator.
    """
    with _quiet():
        program = _exported(source, example_inputs, dynamic_shapes)
        model = _onnx_of(program, dynamic_shapes)
    _name_after_modules(model.graph)
    common.ClearMetadataAndDocStringPass()(model)
    return model


def load_exported(path: Path, *, trust: bool) -> ExportedProgram:
    """Read what torch.export.save wrote.

    Raises:
        UnsafeModelError: not trusted; reading such a file may run code that is in it.
        UnsupportedModelError: torch cannot read it.
    """
    import torch

    if not trust:
        raise UnsafeModelError(
            f"{path}: a torch.export archive can run code while it is read. Pass --trust if you "
            "know who made it, or give its ONNX export"
        )
    try:
        with _quiet():
            return torch.export.load(path)
    except Exception as error:  # torch has no common class for them
        raise UnsupportedModelError(
            f"{path}: torch {torch.__version__} cannot read it ({_first_line(error)}). Wanted a "
            "file that torch.export.save wrote with this version of torch"
        ) from error


def write_onnx(path: Path, out: Path, *, trust: bool, force: bool = False) -> None:
    """Export the archive `path` to the ONNX file `out`, whole or not at all.

    Raises:
        UnsafeModelError: not trusted.
        UnsupportedModelError: it cannot be read or exported.
        OutputError: `out` exists (without `force`), or cannot be written.
    """
    check_output(out, force=force, sources=[path])
    model = from_torch(load_exported(path, trust=trust))
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    beside = f"{out.name}.data" if weights > LARGEST_PROTO_BYTES else None
    with staged(out.parent, force=force) as stage:
        ir.save(model, stage / out.name, external_data=beside)


def _exported(source: Any, example_inputs: Any, dynamic_shapes: Any) -> ExportedProgram:
    import torch

    if isinstance(source, torch.export.ExportedProgram):
        return source
    if example_inputs is None:
        raise UsageError(
            f"model: a {type(source).__name__} without example_inputs; torch.export traces it on "
            "them: pass ptq.quantize(..., example_inputs=(tensor, ...)), for instance one batch"
        )
    args, kwargs = _distinct(_arguments(example_inputs))
    if dynamic_shapes is None:
        args, kwargs = _two_samples(args), _two_samples(kwargs)
    with _evaluating(source):
        try:
            if dynamic_shapes is None:
                bound = inspect.signature(source.forward).bind(*args, **kwargs)
                dynamic_shapes = _first_free(dict(bound.arguments))
            return torch.export.export(source, args, kwargs, dynamic_shapes=dynamic_shapes)
        except Exception as error:  # dynamo, fx and the module itself raise what they like
            raise UnsupportedModelError(
                f"model: torch.export cannot trace this {type(source).__name__}: "
                f"{_first_line(error)}. Write branches on values as torch.where or torch.cond, "
                "keep lists of fixed length, or quantise the submodules that can be traced"
            ) from error


def _arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of one call."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def _distinct(inputs: Any) -> Any:
    """Tensors given twice, copied: torch.export takes two inputs that are one tensor for one."""
    import torch

    seen: set[int] = set()

    def distinct(x: torch.Tensor) -> torch.Tensor:
        again = id(x) in seen
        seen.add(id(x))
        return x.clone() if again else x

    return torch.utils._pytree.tree_map_only(torch.Tensor, distinct, inputs)


def _two_samples(inputs: Any) -> Any:
    """Tensors of one sample doubled: torch.export takes a size of one for a constant."""
    import torch

    leaves = torch.utils._pytree.tree_leaves(inputs)
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    if not tensors or any(x.ndim == 0 or x.shape[0] != 1 for x in tensors):
        return inputs
    return torch.utils._pytree.tree_map_only(torch.Tensor, lambda x: torch.cat([x, x]), inputs)


def _first_free(inputs: Any) -> Any:
    """Dynamic shapes in which the first dimension of every tensor is free if it can be."""
    import torch

    def free(x: Any) -> Any:
        return {0: torch.export.Dim.AUTO} if isinstance(x, torch.Tensor) and x.ndim else None

    return torch.utils._pytree.tree_map(free, inputs)


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Every submodule in evaluation mode (batch norm, dropout), each put back afterwards."""
    training = [m for m in module.modules() if m.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporters warn of their own deprecations, and of packages that nobody asked for."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _onnx_of(program: ExportedProgram, dynamic_shapes: Any) -> ir.Model:
    """The exporter's model; `dynamic_shapes` only names the free dimensions here."""
    import torch

    try:
        made = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, dynamic_shapes=dynamic_shapes, verbose=False
        )
    except Exception as error:  # torch.onnx's classes are private
        where = error.__cause__ or error
        why = where
        while why.__cause__ is not None:
            why = why.__cause__
        told = dict.fromkeys((_first_line(where), _first_line(why)))
        raise UnsupportedModelError(
            f"model: torch.onnx cannot export it: {'; '.join(told)}. Replace the operator, or "
            "register a translation and give ptq the ONNX model that torch.onnx.export makes"
        ) from error
    if made is None:
        raise UnsupportedModelError("model: torch.onnx.export returned nothing: upgrade torch")
    model: ir.Model = made.model
    return model


def _name_after_modules(graph: ir.Graph) -> None:
    """Call every node after its module: "fc", where it has the weight, or "fc/Add"."""
    weighted = {_module_of(n) for n in graph if n.op_type in _WEIGHTED}
    taken: Counter[str] = Counter()
    for node in graph:
        module = _module_of(node)
        bare = node.op_type in _WEIGHTED or module not in weighted
        name = module if bare and not taken[module] else f"{module}/{node.op_type}"
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name] - 1}"


def _module_of(node: ir.Node) -> str:
    """The path of the module that made a node; of the outermost one's own, the call's name.

    A weight knows best: the exporter calls a convolution that it folded a batch norm into after
    the batch norm.
    """
    recorded = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    scopes = [str(s) for s in recorded if s and not str(s).startswith("_empty_")]
    module = (scopes[-2:] or [str(node.outputs[0].name)])[0]
    weight = node.inputs[1] if node.op_type in ("Conv", "Gemm") and len(node.inputs) > 1 else None
    name = str(weight.name) if weight is not None and weight.const_value is not None else ""
    return name.removesuffix(".weight") if name.endswith(".weight") else module


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
