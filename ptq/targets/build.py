"""Print an integer program as an ONNX graph: names, initialisers, nodes, shapes, boundary.

Every ONNX target is a table {step class: function(builder, step)}; what they share is here.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from ptq import __version__
from ptq.errors import PtqError, UnsupportedModelError
from ptq.execute.taps import MOVED
from ptq.integer.program import Boundary, Program, Ref
from ptq.plan import ActivationPlan
from ptq.targets.names import Io, exposed_values, free_name, value_names
from ptq.targets.shapes import infer_like, infer_types

Array = npt.NDArray[Any]
Emitter = Callable[["Builder", Any], None]

MICROSOFT = "com.microsoft"
DOMAIN_VERSIONS = {MICROSOFT: 1, "ai.onnx.ml": 3}
MIN_OPSET = 21


def print_program(
    program: Program,
    emitters: Mapping[type, Emitter],
    io: Io,
    moved: Mapping[str, float] | None = None,
) -> ir.Model:
    """Emit every step of `program` by its class's function; moved: see `Builder`.

    Raises:
        UnsupportedModelError: a step that the target has no function for.
    """
    builder = Builder(program, io, moved)
    for step in program.steps:
        emitter = emitters.get(type(step))
        if emitter is None:
            raise UnsupportedModelError(
                f"{step.name}: this target cannot print a {type(step).__name__} step; "
                "choose another target"
            )
        builder.scope = step.name
        emitter(builder, step)
    return builder.finish()


class Builder:
    """Collects the nodes and initialisers of one emitted graph.

    Program values and the nodes that make them have names that people know; whatever else there
    is, initialisers above all, is numbered (w1, s1, ...), because names are much of a small file.

    scope: name of the step that is being emitted; new nodes are called `<scope>/<op_type>`.
    opset: of the default domain; weights stored in few bits raise it.
    doubles: codes that are at hand as float64 integers, too, by name.
    moved: what is added to those of some names, which the model's metadata tell as `ptq.moved`.
    """

    def __init__(self, program: Program, io: Io, moved: Mapping[str, float] | None = None) -> None:
        self.program = program
        self.scope = ""
        self.opset = max(program.opset, MIN_OPSET)
        self.exposed = set() if io == "float" else exposed_values(program)
        self.names = value_names(program, io)
        self._taken = set(self.names.values())
        self._numbers: Counter[str] = Counter()
        self.doubles: dict[str, ir.Value] = {}
        self.moved = dict(moved or {})
        self._values: dict[Ref, ir.Value] = {}
        self._late: dict[Ref, Callable[[], ir.Value]] = {}
        self._constants: dict[tuple[object, ...], ir.Value] = {}
        self._initializers: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self.inputs = [self._input(boundary) for boundary in program.inputs]

    def has(self, ref: Ref) -> bool:
        """True if the value was made already, or will be where it is read."""
        return ref in self._values or ref in self._late

    def plan(self, name: str) -> ActivationPlan:
        """The grid of the codes of `name`."""
        return self.program.codes[name]

    def codes(self, name: str) -> ir.Value:
        """The code tensor of `name`."""
        return self.value(Ref(name, True))

    def value(self, ref: Ref) -> ir.Value:
        """A value as an operand; constants become initialisers when first used.

        Raises:
            PtqError: the program uses a value before it is made.
        """
        if ref in self._late:
            self._values[ref] = self._late.pop(ref)()
        if ref in self._values:
            return self._values[ref]
        if not ref.codes and ref.name in self.exposed:
            return self.bind(ref, self.dequantize(ref.name))
        source = self.program.code_constants if ref.codes else self.program.constants
        if ref.name not in source:
            raise PtqError(f"{self.scope}: reads {ref.name} before any step makes it")
        constant = source[ref.name]
        tensor = ir.tensor(constant) if isinstance(constant, np.ndarray) else constant
        return self._initializer(ref, self.names[ref], tensor)

    def bind(self, ref: Ref, value: ir.Value) -> ir.Value:
        """Give a computed value its name in the program."""
        value.name = self.names[ref]
        self._values[ref] = value
        return value

    def bind_late(self, ref: Ref, value: ir.Value, convert: Callable[[], ir.Value]) -> None:
        """Name another form of a value, which is converted where something reads the value."""
        value.name = self.names[ref]
        self._late[ref] = convert

    def bind_codes(self, name: str, value: ir.Value) -> ir.Value:
        """Give a computed code tensor its name in the program."""
        return self.bind(Ref(name, True), value)

    def constant(self, array: npt.ArrayLike, dtype: npt.DTypeLike, hint: str) -> ir.Value:
        """An initialiser; equal arrays share one. hint: the letter before its number."""
        data = np.ascontiguousarray(array, dtype).reshape(np.shape(array))
        key = (data.dtype.name, data.shape, hashlib.sha256(data.tobytes()).digest())
        if key not in self._constants:
            name = self._numbered(hint)
            self._constants[key] = self._initializer(None, name, ir.tensor(data))
        return self._constants[key]

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        hint: str | None = None,
    ) -> ir.Value:
        """Append a standard node with one output and return that output.

        hint: the letter before the node's number; unless given, its name tells the step.
        """
        node = ir.node(op_type, inputs, attributes)
        outputs = self.append(node, hint)
        infer_types(node, outputs, self.opset)
        return outputs[0]

    def vendor_node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None,
        like: tuple[str, Sequence[ir.Value]],
        dtype: ir.DataType = ir.DataType.UINT8,
    ) -> ir.Value:
        """Append a com.microsoft node that returns codes, or what `dtype` says.

        like: a standard operator and its operands, whose output has the same shape.
        """
        output = self.append(ir.node(op_type, inputs, attributes, domain=MICROSOFT))[0]
        infer_like(*like, output, self.opset, dtype)
        return output

    def append(self, node: ir.Node, hint: str | None = None) -> Sequence[ir.Value]:
        """Append a node; it and its outputs get free names."""
        title = f"{self.scope}/{node.op_type}"
        node.name = free_name(title, self._taken) if hint is None else self._numbered(hint)
        for output in node.outputs:
            output.name = self._numbered("v")
        self._nodes.append(node)
        return node.outputs

    def quantize(self, name: str, source: ir.Value, scale: np.float32 | None = None) -> ir.Value:
        """Codes of `source` on the grid of `name`, narrowed to those that the grid allows."""
        plan = self.plan(name)
        factor = self.scale(plan) if scale is None else self.real(scale)
        codes = self.node("QuantizeLinear", [source, factor, self.zero_point(plan)])
        return codes if plan.dtype is not np.uint8 else self.clip(codes, plan.low, plan.high)

    def dequantize(
        self, name: str, codes: ir.Value | None = None, scale: np.float32 | None = None
    ) -> ir.Value:
        """float32 values of codes on the grid of `name`; its own codes and scale unless given."""
        plan = self.plan(name)
        factor = self.scale(plan) if scale is None else self.real(scale)
        operands = [codes or self.codes(name), factor, self.zero_point(plan)]
        return self.node("DequantizeLinear", operands)

    def scale(self, plan: ActivationPlan) -> ir.Value:
        """The activation's scale, [] float32."""
        return self.real(plan.scale)

    def zero_point(self, plan: ActivationPlan) -> ir.Value:
        """The activation's zero point, [] of the codes' type."""
        return self.constant(plan.zero_point, plan.dtype, "z")

    def real(self, scale: npt.ArrayLike) -> ir.Value:
        """A scale as an initialiser, float32."""
        return self.constant(scale, np.float32, "s")

    def code(self, code: int) -> ir.Value:
        """A code as an initialiser, [] uint8."""
        return self.constant(np.uint8(code), np.uint8, "z")

    def clip(self, codes: ir.Value, low: int, high: int) -> ir.Value:
        """Saturate uint8 codes where low .. high is narrower than the container."""
        if (low, high) == (0, 255):
            return codes
        return self.node("Clip", [codes, self.code(low), self.code(high)])

    def finish(self) -> ir.Model:
        """The model: graph, boundary, opsets and metadata."""
        outputs = [self._output(boundary) for boundary in self.program.outputs]
        self._forget_types(outputs)
        domains = {n.domain for n in self._nodes} - {""}
        opsets = {"": self.opset, **{d: DOMAIN_VERSIONS.get(d, 1) for d in sorted(domains)}}
        graph = ir.Graph(
            self.inputs,
            outputs,
            nodes=self._nodes,
            initializers=self._initializers,
            opset_imports=opsets,
            name="ptq",
        )
        wanted = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", self.opset)])
        return ir.Model(
            graph,
            ir_version=max(10, wanted),
            producer_name="ptq",
            producer_version=__version__,
            metadata_props=self._metadata(),
        )

    def _metadata(self) -> dict[str, str]:
        grids = {f"ptq.codes.{n}": self._grid_json(n) for n in sorted(self.exposed)}
        moved = {self.names[Ref(name, True)]: far for name, far in self.moved.items()}
        return {**grids, MOVED: json.dumps(moved)} if moved else grids

    def _forget_types(self, outputs: Sequence[ir.Value]) -> None:
        """Leave out what every runtime infers again: types and shapes of the values inside."""
        kept = {id(value) for value in outputs}
        made = [value for node in self._nodes for value in node.outputs]
        for value in (*made, *self._initializers):
            if id(value) not in kept:
                value.type = value.shape = None

    def _numbered(self, letter: str) -> str:
        """A free name: the letter and a number."""
        while True:
            self._numbers[letter] += 1
            name = f"{letter}{self._numbers[letter]}"
            if name not in self._taken:
                self._taken.add(name)
                return name

    def _initializer(self, ref: Ref | None, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        tensor.name = name
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        self._initializers.append(value)
        if ref is not None:
            self._values[ref] = value
        return value

    def _input(self, boundary: Boundary) -> ir.Value:
        codes = boundary.name in self.exposed
        value = ir.Value(name=boundary.name)
        self._type_boundary(value, boundary)
        self._values[Ref(boundary.name, codes)] = value
        return value

    def _output(self, boundary: Boundary) -> ir.Value:
        value = self.value(Ref(boundary.name, boundary.name in self.exposed))
        if value.producer() is None:
            value = self.node("Identity", [value])
            value.name = boundary.name
        self._type_boundary(value, boundary)
        return value

    def _type_boundary(self, value: ir.Value, boundary: Boundary) -> None:
        codes = boundary.name in self.exposed
        dtype = boundary.dtype
        if codes:
            dtype = ir.DataType.from_numpy(np.dtype(self.plan(boundary.name).dtype))
        value.type = ir.TensorType(dtype)
        if boundary.shape is not None:
            value.shape = ir.Shape(boundary.shape)

    def _grid_json(self, name: str) -> str:
        plan = self.plan(name)
        record = {"scale": float(plan.scale), "zero_point": plan.zero_point}
        return json.dumps({**record, "low": plan.low, "high": plan.high})
