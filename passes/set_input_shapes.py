"""Give inputs the sizes that they will have when deployed, where the model leaves them open.

Exporters leave the height and the width of an image open, and shape arithmetic, a mean over an
image and an interpolating resize then wait for the input. With numbers they are constants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ptq.errors import UsageError

InputShapes = Mapping[str, Sequence[int | None]]
"""Input -> its sizes; None leaves one as it is."""


def set_input_shapes(graph: ir.Graph, shapes: InputShapes) -> None:
    """Set them, in place.

    Raises:
        UsageError: no such input, another number of dimensions, or another size than the model has.
    """
    inputs = {str(value.name): value for value in graph.inputs}
    for name, wanted in shapes.items():
        if name not in inputs:
            raise UsageError(
                f"--input-shape {name}: no such input; there is {', '.join(inputs) or 'none'}"
            )
        inputs[name].shape = ir.Shape(_sizes(inputs[name], wanted))


def _sizes(value: ir.Value, wanted: Sequence[int | None]) -> list[int | ir.SymbolicDim]:
    """The sizes of one input."""
    given = [None] * len(wanted) if value.shape is None else list(value.shape)
    fits = len(given) == len(wanted) and all(
        new is None or not isinstance(old, int) or old == new
        for old, new in zip(given, wanted, strict=True)
    )
    if not fits:
        raise UsageError(
            f"--input-shape {value.name}: got {_text(wanted)}; the model has {_text(given)}, and "
            "only sizes that it leaves open can be given"
        )
    free = (f"{value.name}_{axis}" for axis in range(len(given)))
    return [
        new if new is not None else old if old is not None else ir.SymbolicDim(name)
        for old, new, name in zip(given, wanted, free, strict=True)
    ]


def _text(sizes: Sequence[object]) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in sizes)}]"
