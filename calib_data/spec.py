"""What the model wants to be fed: names, types and shapes of its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

Array = npt.NDArray[Any]
Batch = dict[str, Array]


@dataclass(frozen=True)
class InputSpec:
    """One model input.

    Attributes:
        name: the ONNX value name.
        dtype: the element type it must have.
        shape: one entry a dimension; None is a dynamic dimension. Dimension 0 is the batch.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        dims = ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.dtype}[{dims}]"

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def is_image(self) -> bool:
        """Rank 4 with 1, 3, 4 or an unknown number of channels, first or last."""
        return self.rank == 4 and any(dim in (1, 3, 4, None) for dim in self.shape[1::2])


def input_specs(model: ir.Model) -> tuple[InputSpec, ...]:
    """The inputs of `model` that a caller has to feed (initialisers are not among them)."""
    graph = model.graph
    return tuple(
        _spec(value)
        for value in graph.inputs
        if value.name is not None and value.name not in graph.initializers
    )


def _spec(value: ir.Value) -> InputSpec:
    dims = () if value.shape is None else tuple(value.shape)
    return InputSpec(
        name=value.name or "",
        dtype=np.dtype(np.float32) if value.dtype is None else np.dtype(value.dtype.numpy()),
        shape=tuple(dim if isinstance(dim, int) else None for dim in dims),
    )


def batch_rows(batch: Mapping[str, Array]) -> int | None:
    """The common length of dimension 0, or None if the arrays do not share one."""
    counts = {x.shape[0] if x.ndim else None for x in batch.values()}
    return counts.pop() if len(counts) == 1 else None


def samples_in(batch: Mapping[str, Array], inputs: Sequence[InputSpec]) -> int:
    """How many samples a batch holds: one that comes as it is where inputs share no batch."""
    stackable, _ = common_batch(inputs)
    return (batch_rows(batch) if stackable else None) or 1


def common_batch(inputs: Sequence[InputSpec]) -> tuple[bool, int | None]:
    """Whether rows of all inputs can be stacked along dimension 0, and the size if it is fixed.

    (True, None): any batch size; (True, 8): exactly eight rows; (False, None): some input has
    no batch dimension, so a natural batch of the source must be fed as it comes.
    """
    if not inputs or any(spec.rank == 0 for spec in inputs):
        return False, None
    sizes = {spec.shape[0] for spec in inputs}
    return (True, sizes.pop()) if len(sizes) == 1 else (False, None)
