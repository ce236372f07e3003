"""The best scale of rows whose codes are fixed, and descent over codes and scales in turn.

A row is s t with t = T[codes], so the error (s t - w) H (s t - w)^T = s^2 tHt - 2 s tHw + wHw has
its minimum at s = tHw / tHt.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ptq.grid import Codes, Floats, Grid, Integers
from ptq.integer.pairs import Pairs
from ptq.passes.rounding.coordinate import coordinate_descent
from ptq.passes.rounding.layer_error import by_group

Snap = Callable[[Floats], Floats]

ROUNDS = 4
SETTLED = 0.003


def refit_scale(
    w: Floats,
    codes: Codes,
    gram: Floats,
    grid: Grid,
    scale: Floats,
    zero_point: Integers,
    snap: Snap,
) -> Floats:
    """Scales with a lower error for these codes, where snapping leaves one: [rows] as `snap` made.

    w: [rows, K]; gram: [groups, K, K]; scale, zero_point: [rows]. A row whose snapped optimum is
    no better than its present scale keeps that.
    """
    table = by_group(grid.decode(codes, zero_point).astype(np.float64), gram)
    pulled = table @ gram
    curvature = np.einsum("gok,gok->go", pulled, table).reshape(-1)
    slope = np.einsum("gok,gok->go", pulled, by_group(w, gram)).reshape(-1)
    sound = (curvature > 0) & (slope > 0)
    old = np.asarray(scale, np.float64)
    wanted = np.where(sound, slope / np.where(sound, curvature, 1.0), old)
    snapped = snap(wanted)
    new = np.asarray(snapped, np.float64)
    gain = (old - new) * ((old + new) * curvature - 2.0 * slope)
    return np.where(sound & (gain > 0), snapped, scale)


def refine(  # noqa: PLR0913 - the operands of `gptq`, and what bounds them
    w: Floats,
    codes: Codes,
    gram: Floats,
    grid: Grid,
    scale: Floats,
    zero_point: Integers,
    snap: Snap,
    *,
    pairs: Pairs | None = None,
) -> tuple[Codes, Floats]:
    """Coordinate descent on the codes and refitted scales in turn; the error never rises.

    scale: [rows], already snapped. pairs: see `coordinate_descent`.
    Ends when a turn moves fewer than SETTLED of the codes and no sweep gains as much of the error.
    Returns codes [rows, K] uint8 and scales [rows].
    """
    for _ in range(ROUNDS):
        before = codes
        codes = coordinate_descent(
            w, before, gram, grid, scale, zero_point, pairs=pairs, settled=SETTLED
        )
        refitted = refit_scale(w, codes, gram, grid, scale, zero_point, snap)
        if np.array_equal(refitted, scale):
            break
        scale = refitted
        if np.count_nonzero(codes != before) <= SETTLED * codes.size:
            break
    return codes, scale
