"""Runs ONNX nodes in torch, so that gradients flow."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from ptq.errors import UnsupportedModelError, UsageError
from ptq.execute.differentiable.float_ops import FLOAT_OPS, HOST_OPERANDS
from ptq.execute.differentiable.nodes import Node, Operands, op_key
from ptq.execute.differentiable.tensors import to_tensor

OLDEST_OPSET = 7
"""Before it, operands broadcast by attributes."""


def unsupported(nodes: Iterable[ir.Node]) -> tuple[str, ...]:
    """Operators among the nodes that the float table does not have, sorted."""
    return tuple(sorted({op_key(n.op_type, n.domain) for n in nodes} - FLOAT_OPS.keys()))


def run_op(node: Node, operands: Operands) -> Sequence[Tensor]:
    """The outputs of one node, as a sequence.

    Raises:
        UnsupportedModelError: an attribute value or element type that is not supported.
    """
    try:
        results = FLOAT_OPS[node.key](operands, node)
    except Exception as error:
        shapes = [None if x is None else f"{x.dtype} {list(x.shape)}" for x in operands]
        error.add_note(f"in node {node.name} ({node.key}) of {', '.join(map(str, shapes))}")
        raise
    return [results] if isinstance(results, Tensor) else results


class FloatGraph:
    """A list of float nodes in order, executable and differentiable.

    Constants of the graph are read once and cached on the device; a value of the same name given
    to `run` takes their place, which is how learned weights get in. Where two runs must give the
    same bits on the CPU, give torch the same number of threads: sums split over threads.
    """

    def __init__(
        self,
        nodes: Iterable[ir.Node],
        opset: int,
        *,
        outputs: Collection[str] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        """Prepare nodes, which must be in topological order; neither they nor the model change.

        opset: version of ONNX's own domain. outputs: names that `run` returns, and everything else
        is let go of as soon as it is not needed; none means every computed value.

        Raises:
            UnsupportedModelError: an operator is not in the table, or the opset is too old.
        """
        self._nodes = tuple(nodes)
        missing = unsupported(self._nodes)
        if missing:
            raise UnsupportedModelError(
                f"differentiable executor: no {', '.join(missing)}; leave these nodes out of the "
                "block that is learned"
            )
        if opset < OLDEST_OPSET:
            raise UnsupportedModelError(
                f"differentiable executor: opset {opset}; wanted {OLDEST_OPSET} or later: convert "
                "the model (ptq's prepare does)"
            )
        self._plain = tuple(Node.of(node, opset) for node in self._nodes)
        self._outputs = tuple(outputs)
        self._device = torch.device(device)
        self._constants: dict[str, Tensor] = {}
        self._host: dict[str, Tensor] = {}
        self._release = self._last_uses()
        made = {v.name for node in self._nodes for v in node.outputs}
        for name in self._outputs:
            if name not in made:
                raise UsageError(f"output {name}: no node of this graph computes it")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values that `run` needs, in order of first use."""
        made = {v.name for node in self._nodes for v in node.outputs}
        read = [v for node in self._nodes for v in node.inputs if v is not None]
        needed = [str(v.name) for v in read if v.name not in made and v.const_value is None]
        return tuple(dict.fromkeys(needed))

    def run(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Computed values by name, from inputs (and replaced constants) by name.

        Raises:
            UsageError: an input is missing.
            UnsupportedModelError: an attribute value or element type that is not supported.
        """
        scope = dict(values)
        kept: dict[str, Tensor] = {}
        wanted = set(self._outputs)
        for position, (node, plain) in enumerate(zip(self._nodes, self._plain, strict=True)):
            host = HOST_OPERANDS.get(plain.key, frozenset())
            operands = [
                None if v is None else self._read(v, scope, on_host=i in host)
                for i, v in enumerate(node.inputs)
            ]
            for value, result in zip(node.outputs, run_op(plain, operands), strict=False):
                if value.name:
                    result = result.to(self._device)
                    scope[value.name] = result
                    if value.name in wanted or not wanted:
                        kept[value.name] = result
            for name in self._release[position] if wanted else ():
                scope.pop(name, None)
        return kept

    def _read(self, value: ir.Value, scope: Mapping[str, Tensor], on_host: bool) -> Tensor:
        name = str(value.name)
        if name in scope:
            return scope[name]
        if value.const_value is None:
            raise UsageError(f"value {name} is missing; wanted all of {', '.join(self.inputs)}")
        store = self._host if on_host else self._constants
        if name not in store:
            array = value.const_value.numpy()
            store[name] = to_tensor(array, "cpu" if on_host else self._device)
        return store[name]

    def _last_uses(self) -> list[tuple[str, ...]]:
        """For every node, the values that nothing after it reads."""
        last: dict[str, int] = {}
        for position, node in enumerate(self._nodes):
            for value in (*node.inputs, *node.outputs):
                if value is not None and value.name:
                    last[value.name] = position
        release: list[list[str]] = [[] for _ in self._nodes]
        for name, position in last.items():
            release[position].append(name)
        return [tuple(names) for names in release]
