"""The layer error tr(dW H dW^T), row by row, and the one convention for Gram matrices.

Weights are [rows, K]: one row an output channel. Gram matrices are always [groups, K, K] and
diagonals [groups, K]: a dense layer has one group, a grouped convolution a block a group, a
depthwise convolution as many groups as rows. Rows of a group are consecutive, rows % groups == 0.
No function loops over groups in Python.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ptq.grid import Floats

Array = npt.NDArray[np.float64]


def by_group(w: Floats, moments: Floats) -> Array:
    """The rows of every group: [rows, K], [groups, K(, K)] -> [groups, rows / groups, K] float64.

    Raises:
        ValueError: the shapes do not belong together.
    """
    groups, size = moments.shape[0], moments.shape[-1]
    square = moments.ndim == 2 or moments.shape[1] == size
    if w.ndim != 2 or w.shape[1] != size or len(w) % groups or not square:
        raise ValueError(
            f"weight {w.shape} and moments {moments.shape}; wanted [rows, K] and [groups, K, K] "
            "or [groups, K], rows a multiple of groups"
        )
    return np.asarray(w, np.float64).reshape(groups, -1, size)


def row_errors(w: Floats, w_hat: Floats, gram: Floats) -> Array:
    """d H d^T of every row, d = w_hat - w: [rows, K], [rows, K], [groups, K, K] -> [rows]."""
    d = by_group(w_hat, gram) - by_group(w, gram)
    return np.asarray(np.einsum("gok,gok->go", d @ gram, d)).reshape(-1)


def damped(gram: Floats, damp: float) -> Array:
    """H + damp * mean(diag H) * I, a new array; a group without any signal becomes I."""
    result = np.array(gram, np.float64)
    diagonal = np.einsum("gkk->gk", result)
    extra = damp * diagonal.mean(axis=1, keepdims=True)
    extra[diagonal.max(axis=1, keepdims=True) <= 0] = 1.0
    diagonal += extra
    return result
