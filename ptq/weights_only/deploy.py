"""Put rounded weights into the model: a MatMulNBits, or two, for every product."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.passes.rewriting import add_initializer, unique_name
from ptq.targets.matmul_nbits import DOMAIN, DOMAIN_VERSION, HALF, BlockWeight, nodes_for
from ptq.weights_only.products import Product

Array = npt.NDArray[Any]


class Spool:
    """Arrays in a temporary file, which a model reads memory-mapped; it goes with this object."""

    FILE = "weights.bin"

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ptq-weights-"))
        self._end = 0
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def tensor(self, name: str, array: Array) -> ir.ExternalTensor:
        """Append an array and return it as a tensor in the file."""
        data = np.ascontiguousarray(array)
        with (self._folder / self.FILE).open("ab") as file:
            file.write(data.tobytes())
        offset, self._end = self._end, self._end + data.nbytes
        return ir.ExternalTensor(
            self.FILE,
            offset,
            data.nbytes,
            ir.DataType.from_numpy(data.dtype),
            shape=ir.Shape(data.shape),
            name=name,
            base_dir=self._folder,
        )


def deploy(model: ir.Model, product: Product, weight: BlockWeight, spool: Spool) -> None:
    """Replace the product's node in `model`, where it has the same name as in the float model."""
    graph = model.graph
    node = next(n for n in graph if n.name == product.name)
    old = node.inputs[1]
    x, output = node.inputs[0], node.outputs[0]
    if x is None or old is None or old.dtype is None:
        raise ValueError(f"{product.name} is no product")
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    parts = {
        part: _initializer(graph, f"{old.name}/{part}", array, spool)
        for part, array in weight.arrays(old.dtype.numpy()).items()
    }
    parts |= _decoding(graph, weight, old.dtype.numpy())
    chain = nodes_for(x, parts, weight, bias)
    chain[-1].outputs[0].type, chain[-1].outputs[0].shape = output.type, output.shape
    for number, inner in enumerate(chain[:-1]):
        inner.name = unique_name(graph, f"{product.name}/{inner.op_type}{number}")
        inner.outputs[0].name = inner.name
    graph.insert_before(node, chain)
    output.replace_all_uses_with(chain[-1].outputs[0], replace_graph_outputs=True)
    name = output.name
    graph.remove(node, safe=True)
    chain[-1].name, chain[-1].outputs[0].name = product.name, name
    model.opset_imports[DOMAIN] = DOMAIN_VERSION
    _forget(graph, old)


def _decoding(graph: ir.Graph, weight: BlockWeight, dtype: np.dtype[Any]) -> dict[str, ir.Value]:
    """The tables of a weight and the shape of its decoded codes, or what its upper halves count.

    Layers share them. dtype: of the operator's input.
    """
    if weight.halved:
        return {"step": _shared(graph, "ptq/16", np.array(1 << HALF, dtype))}
    tables = weight.tables()
    if not tables:
        return {}
    shape = np.array([*weight.scale.shape, weight.block_size * weight.width // 8])
    parts = {
        f"table_{plane}": _shared(graph, f"ptq/{weight.bits}-bit {plane}", table)
        for plane, table in tables.items()
    }
    return parts | {"shape": _shared(graph, f"ptq/shape {'x'.join(map(str, shape))}", shape)}


def _shared(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """The initializer of this name, made by whoever comes first."""
    known = graph.initializers.get(name)
    return add_initializer(graph, name, array) if known is None else known


def replace_weight(model: ir.Model, product: Product, weight: BlockWeight, spool: Spool) -> None:
    """Put other codes and scales under a product that is deployed already."""
    stem = str(product.node.inputs[1].name)  # type: ignore[union-attr]
    for part, array in weight.arrays(np.dtype(np.float32)).items():
        value = model.graph.initializers.get(f"{stem}/{part}")
        if value is None or value.const_value is None:
            raise ValueError(f"{product.name} is not deployed")
        kind = value.const_value.dtype.numpy()
        value.const_value = spool.tensor(str(value.name), array.astype(kind))


def _initializer(graph: ir.Graph, base: str, array: Array, spool: Spool) -> ir.Value:
    name = unique_name(graph, base)
    tensor = spool.tensor(name, array)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype))
    value.shape = ir.Shape(array.shape)
    graph.register_initializer(value)
    return value


def _forget(graph: ir.Graph, value: ir.Value) -> None:
    """Let go of a constant that nothing reads any more."""
    if not value.uses() and not value.is_graph_output():
        graph.initializers.pop(str(value.name), None)
