"""Closed-form corrections, compared with least squares on explicit samples."""

from __future__ import annotations

import numpy as np
import pytest

from ptq.passes.rounding import affine, bias_shift, target_weight


def samples(seed: int, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """x and x^ [groups, K, n]: x^ is x clipped and rounded, as quantised inputs are."""
    generator = np.random.default_rng(seed)
    mix = generator.normal(size=(groups, 8, 8))
    x = mix @ generator.normal(size=(groups, 8, 400)) + 0.5
    return x, np.clip(np.rint(x), -2, 3)


def test_target_weight_is_ridge_regression_towards_the_weight() -> None:
    x, x_hat = samples(1, groups=1)
    w = np.random.default_rng(2).normal(size=(5, 8))
    gram, cross = x_hat @ x_hat.swapaxes(1, 2), x @ x_hat.swapaxes(1, 2)
    ridge = 0.05
    root = np.sqrt(ridge * np.diag(gram[0]).mean())
    inputs = np.concatenate([x_hat[0].T, root * np.eye(8)])
    outputs = np.concatenate([x[0].T @ w.T, root * w.T])
    expected = np.linalg.lstsq(inputs, outputs, rcond=None)[0].T
    np.testing.assert_allclose(target_weight(w, cross, gram, ridge), expected, rtol=1e-8)


def test_target_weight_lowers_the_output_error_of_each_group() -> None:
    x, x_hat = samples(3, groups=3)
    w = np.random.default_rng(4).normal(size=(6, 8))
    gram, cross = x_hat @ x_hat.swapaxes(1, 2), x @ x_hat.swapaxes(1, 2)
    better = target_weight(w, cross, gram, 1e-6)
    for g in range(3):
        part = slice(2 * g, 2 * g + 2)
        wanted = w[part] @ x[g]
        old, new = (np.square(v[part] @ x_hat[g] - wanted).sum() for v in (w, better))
        assert new < 0.9 * old


def test_equal_inputs_need_no_other_weight() -> None:
    x, _ = samples(5, groups=2)
    w = np.random.default_rng(6).normal(size=(4, 8))
    gram = x @ x.swapaxes(1, 2)
    np.testing.assert_allclose(target_weight(w, gram, gram), w)


@pytest.mark.parametrize("groups", [1, 3])
def test_bias_shift_restores_the_mean_output(groups: int) -> None:
    x, x_hat = samples(7, groups)
    generator = np.random.default_rng(8)
    w = generator.normal(size=(6, 8))
    w_hat = w + generator.normal(size=w.shape) * 0.1
    shift = bias_shift(w, w_hat, x.mean(axis=2), x_hat.mean(axis=2))
    exact = (w.reshape(groups, -1, 8) @ x).mean(axis=2).reshape(-1)
    rounded = (w_hat.reshape(groups, -1, 8) @ x_hat).mean(axis=2).reshape(-1)
    np.testing.assert_allclose(rounded + shift, exact)
    assert np.abs(shift).max() > 1e-3


def test_affine_is_least_squares_per_channel() -> None:
    generator = np.random.default_rng(9)
    y_hat = generator.normal(size=(4, 300)) + 1
    y = y_hat * np.array([[0.7], [1.3], [1.0], [2.0]]) + 0.4 + generator.normal(size=y_hat.shape)
    covariance = ((y - y.mean(1, keepdims=True)) * y_hat).mean(axis=1)
    alpha, beta = affine(covariance, y_hat.var(axis=1), y.mean(axis=1), y_hat.mean(axis=1))
    for channel in range(4):
        slope, offset = np.polyfit(y_hat[channel], y[channel], 1)
        assert alpha[channel] == pytest.approx(slope)
        assert beta[channel] == pytest.approx(offset)


def test_affine_of_hopeless_channels_only_moves_the_mean() -> None:
    """Constant, and running against the float output."""
    alpha, beta = affine(np.array([0.0, -1.0]), np.array([0.0, 1.0]), np.ones(2), np.zeros(2))
    np.testing.assert_array_equal(alpha, 1.0)
    np.testing.assert_array_equal(beta, 1.0)


def test_ridge_pulls_the_slope_towards_one() -> None:
    one = np.ones(1)
    slopes = [affine(2 * one, one, one, one, ridge)[0][0] for ridge in (0.0, 1.0, 1e9)]
    assert slopes == pytest.approx([2.0, 1.5, 1.0])
