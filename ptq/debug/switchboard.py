"""The float network with a switch for every tensor: off is float, on is as the plan quantises it.

One network, opened once, then runs every combination: each layer alone, all but one, any repair. It
simulates in float what the integer program computes; a repair is measured on integers in the end.

    activation site x   If(quantized[i]) scale * (clip(round(x / scale) + z, low, high) - z) else x
    weight w            If(quantized[j]) W^ else W, and the corrected bias with it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.execute.taps import graph_values
from ptq.integer.claims import real
from ptq.integer.units import Outline, Unit
from ptq.integer.weights import unit_bias
from ptq.plan import ActivationPlan, Plan

SWITCHES = "ptq.quantized"


@dataclass(frozen=True)
class Switch:
    """What one switch quantises: the weight of a unit, or the activation of a site."""

    kind: Literal["weight", "activation"]
    name: str


@dataclass(frozen=True)
class Switchboard:
    """model: has one more input, SWITCHES, bool [len(switches)]."""

    model: ir.Model
    switches: tuple[Switch, ...]


def switchboard(model: ir.Model, outline: Outline, plan: Plan) -> Switchboard:
    """Put the switches in; `model`, which the outline is of, is not changed."""
    weights = [unit for unit in outline.weighted if unit.name in plan.weights]
    values = graph_values(model)
    sites = [name for name in outline.sites if name in plan.activations and name in values]
    switches = (
        *(Switch("weight", unit.name) for unit in weights),
        *(Switch("activation", name) for name in sites),
    )
    wiring = _Wiring(model.clone(), len(switches))
    for index, unit in enumerate(weights):
        wiring.switch_weight(index, unit, plan)
    for index, name in enumerate(sites, len(weights)):
        wiring.switch_activation(index, name, plan.activations[name])
    wiring.graph.sort()
    return Switchboard(wiring.model, switches)


class _Wiring:
    """A copy of the model while switches are put in."""

    def __init__(self, model: ir.Model, switches: int) -> None:
        self.model, self.graph = model, model.graph
        self.values = graph_values(model)
        self.nodes = {node.name: node for node in model.graph}
        self.input = ir.Value(
            name=SWITCHES, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([switches])
        )
        model.graph.inputs.append(self.input)
        self._made = 0

    def switch_weight(self, index: int, unit: Unit, plan: Plan) -> None:
        """The weight's own input of the unit's node; the shift of its bias behind the node."""
        node = self.nodes[unit.node.name]
        assert unit.weight is not None
        place = [v and v.name for v in unit.node.inputs].index(unit.weight.name)
        alpha = real(unit.node, "alpha", 1.0) if unit.node.op_type == "Gemm" else 1.0
        rounded = self.constant((plan.weights[unit.name].dequantize() / alpha).astype(np.float32))
        original = node.inputs[place]
        assert original is not None
        node.replace_input_with(place, self._choose(index, [], rounded, original))
        self._shift_bias(index, unit, node, plan)

    def _shift_bias(self, index: int, unit: Unit, node: ir.Node, plan: Plan) -> None:
        if unit.name not in plan.biases:
            return
        shift = (plan.biases[unit.name] - unit_bias(unit)).astype(np.float32)
        tail = unit.weight.shape if unit.weight is not None else None
        spatial = 0 if tail is None or node.op_type in ("Gemm", "MatMul") else len(tail) - 2
        added = self.constant(shift.reshape(-1, *[1] * spatial))
        output = node.outputs[0]
        users = list(output.uses())
        moved = self.node("Add", [output, added])
        value = self._choose(index, [moved.producer()], moved, output)
        self._rewire(output, users, value)

    def switch_activation(self, index: int, name: str, grid: ActivationPlan) -> None:
        """Whoever reads the value reads its quantised form instead."""
        value = self.values[name]
        users = list(value.uses())
        scale, zero = self.constant(np.float32(grid.scale)), np.float32(grid.zero_point)
        bounds = [self.constant(np.float32(code) - zero) for code in (grid.low, grid.high)]
        shares = self.node("Div", [value, scale])
        steps = self.node("Round", [shares])
        inner = [shares, steps, self.node("Clip", [steps, *bounds])]
        if grid.levels:
            inner += self._nearest_levels(inner[-1], grid)
        result = self.node("Mul", [inner[-1], scale])
        nodes = [made.producer() for made in (*inner, result)]
        self._rewire(value, users, self._choose(index, nodes, result, value))

    def _nearest_levels(self, steps: ir.Value, grid: ActivationPlan) -> list[ir.Value]:
        """From codes without their zero point to the nearest levels without it."""
        zero = np.float32(grid.zero_point)
        codes = self.node("Add", [steps, self.constant(zero)])
        index = self.node("Cast", [codes], [ir.AttrInt64("to", ir.DataType.INT64)])
        table = self.constant(grid.table.astype(np.float32) - zero)
        return [codes, index, self.node("Gather", [table, index])]

    def _rewire(self, value: ir.Value, users: Sequence[Any], other: ir.Value) -> None:
        for node, place in users:
            node.replace_input_with(place, other)
        for place, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[place] = other

    def _choose(
        self, index: int, inner: Sequence[ir.Node | None], then: ir.Value, other: ir.Value
    ) -> ir.Value:
        """If(quantized[index]) then the value that `inner` computes, else the other one."""
        flag = self.outer("Gather", [self.input, self.constant(np.int64(index))])
        nodes = [node for node in inner if node is not None]
        branches = []
        for made, value in ((nodes, then), ([], other)):
            copy = self.node("Identity", [value])
            result = copy.producer()
            assert result is not None
            branches.append(
                ir.Graph(
                    [],
                    [copy],
                    nodes=[*made, result],
                    opset_imports=self.graph.opset_imports,
                    name=self._name("branch"),
                )
            )
        attributes = [
            ir.AttrGraph(name, branch)
            for name, branch in zip(("then_branch", "else_branch"), branches, strict=True)
        ]
        return self.outer("If", [flag], attributes)

    def constant(self, array: npt.ArrayLike) -> ir.Value:
        """A new initialiser."""
        array = np.asarray(array)
        tensor = ir.tensor(array, name=self._name("constant"))
        value = ir.Value(
            name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape),
            const_value=tensor,
        )  # fmt: skip
        self.graph.register_initializer(value)
        return value

    def node(
        self, op: str, inputs: Sequence[ir.Value], attributes: Sequence[ir.Attr] = ()
    ) -> ir.Value:
        """The output of a new node that is in no graph yet."""
        output = ir.Value(name=self._name(op), type=ir.TensorType(ir.DataType.FLOAT))
        ir.Node("", op, inputs, attributes, outputs=[output], name=self._name(op))
        return output

    def outer(
        self, op: str, inputs: Sequence[ir.Value], attributes: Sequence[ir.Attr] = ()
    ) -> ir.Value:
        """The output of a new node of the main graph."""
        output = self.node(op, inputs, attributes)
        if op == "Gather":
            output.type = ir.TensorType(ir.DataType.BOOL)
        made = output.producer()
        assert made is not None
        self.graph.append(made)
        return output

    def _name(self, hint: str) -> str:
        self._made += 1
        return f"ptq.switch.{hint}{self._made}"


def feed(batch: dict[str, npt.NDArray[Any]], on: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """The batch with the switches. on: [switches] bool."""
    return {**batch, SWITCHES: on}
