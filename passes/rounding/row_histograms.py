"""The error of nearest rounding to any levels, at a cost that does not depend on a row's length.

With the weights of a row sorted into fine bins and running sums over the bins,

    sum_k h_k (w_k - L(w_k))^2 = sum h w^2 + sum_j L_j^2 (A_j+1 - A_j) - 2 L_j (B_j+1 - B_j)

where A and B are the sums of h and of h w below the midpoint under level j. Only the bin that a
midpoint falls into is approximate, and there both levels are about equally near.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ptq.grid import Floats

Array = npt.NDArray[np.float64]

BINS = 1024
NARROWEST = 1e-9  # width of a constant row's bins, relative to its weights


@dataclass(frozen=True)
class RowHistograms:
    """Rows of weights as running sums over BINS equal bins each.

    origin, width: [rows], the first bin's lower end and the bins' width.
    mass, moment: [rows, BINS + 1], sums of h and of h w over the bins before this one.
    energy: [rows], sum h w^2.
    """

    origin: Array
    width: Array
    mass: Array
    moment: Array
    energy: Array

    @staticmethod
    def of(w: Floats, h: Floats | None = None) -> RowHistograms:
        """Histograms of w [rows, K], its elements weighed by h [rows, K] or all by one."""
        w = np.asarray(w, np.float64)
        h = np.ones_like(w) if h is None else np.asarray(h, np.float64)
        origin = w.min(axis=1)
        largest = np.abs(w).max(axis=1)
        largest = np.where(largest > 0, largest, largest.max(initial=0.0) or 1.0)
        width = np.maximum((w.max(axis=1) - origin) / BINS, NARROWEST * largest)
        place = (w - origin[:, None]) / width[:, None]
        index = np.minimum(place.astype(np.intp), BINS - 1)
        index += BINS * np.arange(len(w))[:, None]

        def running(values: Floats) -> Array:
            """Sums over the bins below each of the BINS + 1 edges."""
            sums = np.bincount(index.ravel(), values.ravel(), BINS * len(w))
            return np.pad(sums.reshape(len(w), BINS).cumsum(axis=1), ((0, 0), (1, 0)))

        return RowHistograms(origin, width, running(h), running(h * w), (h * w * w).sum(axis=1))

    def errors(self, levels: Array) -> Array:
        """Error of every row on each of several sets of levels.

        levels: [rows, sets, n], rising -> [rows, sets], >= 0.
        """
        rows, sets, _ = levels.shape
        middles = (levels[..., 1:] + levels[..., :-1]) / 2
        edge = (middles - self.origin[:, None, None]) / self.width[:, None, None]
        index = np.clip(np.rint(edge), 0, BINS).astype(np.intp)
        index += ((BINS + 1) * np.arange(rows))[:, None, None]
        ends = np.zeros((rows, sets, 1))
        error = np.repeat(self.energy[:, None], sets, axis=1)
        for sums, factor in ((self.mass, levels * levels), (self.moment, -2.0 * levels)):
            last = np.broadcast_to(sums[:, -1, None, None], ends.shape)
            cuts = np.concatenate([ends, sums.ravel()[index], last], axis=2)
            error += np.einsum("rsn,rsn->rs", factor, np.diff(cuts, axis=2))
        return np.maximum(error, 0.0)
