"""Closed-form corrections of a layer's weight and output; all of them fold into constants."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ptq.grid import Floats
from ptq.passes.rounding.layer_error import by_group, damped

Array = npt.NDArray[np.float64]


def target_weight(w: Floats, cross: Floats, gram: Floats, ridge: float = 0.01) -> Array:
    """The weight that gives the float output best from quantised inputs: [rows, K] float64.

        W* = argmin |W X - W* X^|^2 + r |W* - W|^2 = W (X X^^T + r I) (X^ X^^T + r I)^-1

    w: [rows, K]. cross: [groups, K, K], sum or mean of x x^^T (float input first); gram: the same
    of x^ x^^T. r = ridge * mean(diag gram). Rounding W* with `gram` then compensates what the
    quantised inputs have lost (the first step of ERQ, arXiv 2407.06794).
    """
    rows = by_group(w, gram)
    left = rows @ (cross - gram)
    solved = np.linalg.solve(damped(gram, ridge), left.swapaxes(1, 2))
    return (rows + solved.swapaxes(1, 2)).reshape(w.shape)


def bias_shift(w: Floats, w_hat: Floats, mean_x: Floats, mean_x_hat: Floats) -> Array:
    """What to add to the bias so that the mean output is the float one's: [rows] float64.

        W E[x] - W^ E[x^]

    w, w_hat: [rows, K]; mean_x, mean_x_hat: [groups, K].
    """
    exact = by_group(w, mean_x) * mean_x[:, None, :]
    rounded = by_group(w_hat, mean_x_hat) * mean_x_hat[:, None, :]
    return np.asarray((exact - rounded).sum(axis=2)).reshape(-1)


def affine(
    covariance: Floats, variance: Floats, mean: Floats, mean_hat: Floats, ridge: float = 0.0
) -> tuple[Array, Array]:
    """alpha, beta that bring alpha y^ + beta nearest to y, per channel (QwT-v2, arXiv 2505.21591).

        alpha = (cov(y, y^) + r var(y^)) / (var(y^) + r var(y^)),  beta = E[y] - alpha E[y^]

    covariance, variance, mean, mean_hat: [channels]; ridge: r, pulls alpha towards 1. A channel
    that is constant, or that runs against the float one, keeps alpha = 1.
    """
    sound = (variance > 0) & (covariance > 0)
    safe = np.where(sound, variance, 1.0)
    alpha = np.where(sound, (covariance / safe + ridge) / (1.0 + ridge), 1.0)
    return alpha, np.asarray(mean - alpha * mean_hat)
