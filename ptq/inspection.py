"""What a model file holds, what of it becomes integer, and what the target will really run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir
import onnx_ir.traversal

from ptq.errors import ModelError
from ptq.integer.layer_precision import weight_bits
from ptq.integer.outline import outline
from ptq.model import load
from ptq.passes.prepare import prepare
from ptq.recipe import Recipe
from ptq.report.artifact import is_integer, is_quantized, load_manifest, load_program
from ptq.report.console import certificate_line, print_islands, print_layers, print_table, printable
from ptq.report.summary import (
    CertificateSummary,
    IslandRow,
    Layer,
    file_bytes,
    island_rows,
    layers,
    program_islands,
    summarise,
)
from ptq.targets.inspect_runtime import RuntimeGraph, runtime_graph

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class TensorRow:
    """An input or output."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Inspection:
    """A model file.

    kind: 'float', or 'quantized' if ptq's side files lie beside it.
    weight_bytes: stored type -> bytes. layers: the integer steps, those to be for a float model.
    islands: what stays float, and why. runtime: what onnxruntime runs after its optimisations,
    or None with the reason in `runtime_error`.
    """

    model: str
    kind: str
    precision: str
    bytes: int
    opset: int | None
    parameters: int
    inputs: tuple[TensorRow, ...]
    outputs: tuple[TensorRow, ...]
    operators: dict[str, int]
    weight_bytes: dict[str, int]
    layers: tuple[Layer, ...]
    islands: tuple[IslandRow, ...]
    certificates: CertificateSummary | None
    runtime: RuntimeGraph | None
    runtime_error: str = ""
    schema_version: int = SCHEMA_VERSION


def inspect_file(path: Path, recipe: Recipe | None = None) -> Inspection:
    """Inspect a float or a quantised model. recipe: what a float model would be quantised with.

    Raises:
        ModelError: invalid, unsafe, or not something that ptq can prepare.
    """
    model = load(path)
    recipe = recipe or Recipe()
    certificates = None
    if is_quantized(path) and not is_integer(path):
        manifest = load_manifest(path)
        kind, recipe = "weights only", manifest.recipe
        rows, islands = manifest.report.layers, manifest.report.islands
    elif is_quantized(path):
        kind, recipe = "quantized", load_manifest(path).recipe
        program = load_program(path).program
        rows, islands = layers(program), program_islands(program)
        certificates = summarise(program.certificates)
    else:
        kind, sketch = "float", outline(prepare(model, input_shapes=recipe.input_shapes), recipe)
        islands = island_rows(sketch)
        rows = tuple(
            Layer(
                unit.name,
                unit.kind,
                None if unit.weight is None else weight_bits(unit, recipe),
                None,
                None,
            )
            for unit in sketch.units
        )
    runtime, error = _runtime(path)
    nodes = list(onnx_ir.traversal.RecursiveGraphIterator(model.graph))
    return Inspection(
        model=str(path),
        kind=kind,
        precision=recipe.precision,
        bytes=file_bytes(path),
        opset=model.opset_imports.get(""),
        parameters=sum(value.const_value.size for value in _weights(model) if value.const_value),
        inputs=tuple(map(_tensor, model.graph.inputs)),
        outputs=tuple(map(_tensor, model.graph.outputs)),
        operators=dict(Counter(_title(node) for node in nodes).most_common()),
        weight_bytes=_weight_bytes(model),
        layers=rows,
        islands=islands,
        certificates=certificates,
        runtime=runtime,
        runtime_error=error,
    )


def _runtime(path: Path) -> tuple[RuntimeGraph | None, str]:
    try:
        return runtime_graph(path), ""
    except ModelError as error:
        return None, str(error)


def _weights(model: ir.Model) -> list[ir.Value]:
    return list(model.graph.initializers.values())


def _weight_bytes(model: ir.Model) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for value in _weights(model):
        if value.const_value is not None:
            sizes[value.const_value.dtype.name] += value.const_value.nbytes
    return dict(sizes.most_common())


def _tensor(value: ir.Value) -> TensorRow:
    shape = None
    if value.shape is not None:
        shape = tuple(d if isinstance(d, int) else d.value for d in value.shape)
    return TensorRow(str(value.name), "?" if value.dtype is None else value.dtype.name, shape)


def _title(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def print_inspection(found: Inspection, console: Console) -> None:
    """The whole of it as tables."""
    rows = [(role, *_described(t)) for role, tensors in _boundary(found) for t in tensors]
    title = f"{found.model}: {found.kind}, opset {found.opset}, {found.bytes} bytes"
    print_table(console, title, ("", "name", "type", "shape"), rows)
    stored = ", ".join(f"{name} {size} bytes" for name, size in found.weight_bytes.items())
    console.print(printable(f"{found.parameters} constants: {stored}"))
    print_table(console, "operators", ("op", "count"), list(found.operators.items()))
    if found.kind == "float":
        kinds = Counter((layer.op, layer.weight_bits) for layer in found.layers)
        steps = [(op, count, bits or "") for (op, bits), count in kinds.most_common()]
        title = f"would become integer at {found.precision}"
        print_table(console, title, ("step", "count", "weight bits"), steps)
        console.print(f"{len(found.islands)} nodes would stay float")
    else:
        print_layers(found.layers, console)
        console.print(certificate_line(found.layers, len(found.islands)))
    print_islands(found.islands, console)
    if found.runtime is None:
        console.print(printable(found.runtime_error))
        return
    runs = list(found.runtime.operators.items())
    print_table(console, "what onnxruntime runs", ("op", "count"), runs)
    if found.kind == "quantized":
        floats = found.runtime.float_ops
        console.print(printable(f"float ops inside: {', '.join(floats) or 'none'}"))


def _boundary(found: Inspection) -> list[tuple[str, tuple[TensorRow, ...]]]:
    return [("input", found.inputs), ("output", found.outputs)]


def _described(tensor: TensorRow) -> tuple[str, str, str]:
    dims = "?" if tensor.shape is None else ", ".join(str(d or "?") for d in tensor.shape)
    return tensor.name, tensor.dtype, f"[{dims}]"
