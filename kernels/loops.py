"""Loop nests over strided operands: as few loops as the strides allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ptq.kernels.binding import Binding
from ptq.kernels.view import View, collapse


def elementwise(on: Binding, views: Sequence[View], body: Callable[..., None]) -> None:
    """Call `body` with the flat index into every view, for each element of one common shape."""
    extents, walked = collapse(views)
    with on.nest(extents) as indices:
        body(*(view.at(indices) for view in walked))
