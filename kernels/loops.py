"""Loop nests over strided operands: as few loops as the strides allow, the outer one parallel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from tvm.tirx.script import builder as T

from ptq.kernels.kernel import Expr
from ptq.kernels.view import View, collapse

PARALLEL_FROM = 16384  # elements; starting threads for less costs more than it gains


@contextmanager
def nest(extents: Sequence[int], work: int = 1) -> Iterator[list[Expr]]:
    """Open one loop an extent and give their variables.

    The outermost is parallel if all iterations together, of `work` elements each, are worth it.
    """
    total = int(np.prod(extents, dtype=np.int64)) * work
    with ExitStack() as stack:
        indices: list[Expr] = []
        for extent in extents:
            parallel = not indices and extent > 1 and total >= PARALLEL_FROM
            loop = T.parallel(extent) if parallel else T.serial(0, extent)
            indices.append(stack.enter_context(loop))
        yield indices


def split_long(extents: Sequence[int], views: Sequence[View], block: int = 4096) -> Any:
    """One long loop as two, so that the outer one can be parallel; other nests as they are."""
    if len(extents) != 1 or extents[0] < 2 * block or extents[0] % block:
        return tuple(extents), tuple(views)
    shape = (extents[0] // block, block)
    return shape, tuple(
        View(shape, (view.strides[0] * block, view.strides[0]), view.offset) for view in views
    )


def elementwise(views: Sequence[View], body: Callable[..., None]) -> None:
    """Call `body` with the flat index into every view, for each element of one common shape."""
    extents, walked = split_long(*collapse(views))
    with nest(extents) as indices:
        body(*(view.at(indices) for view in walked))
