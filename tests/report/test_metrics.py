"""Metrics against their formulas, and batch by batch against all at once."""

from __future__ import annotations

import numpy as np
import pytest

from ptq.report.metrics import Accuracy, Fidelity, class_axis


def test_scores_are_their_formulas() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 10)).astype(np.float32)
    y = (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32)
    fidelity = Fidelity()
    fidelity.add(x, y)
    scores = fidelity.scores()
    a, b = x.astype(float), y.astype(float)
    assert scores.sqnr_db == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()))
    assert scores.cosine == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    assert scores.top1_agreement == (x.argmax(1) == y.argmax(1)).mean()
    assert scores.max_error == pytest.approx(np.abs(a - b).max())
    assert scores.elements == 500


def test_batches_add_up() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 30, 4))
    whole, parts = Fidelity(), Fidelity()
    whole.add(x, y)
    for rows in (slice(0, 7), slice(7, 8), slice(8, 30), slice(30, 30)):
        parts.add(x[rows], y[rows])
    a, b = whole.scores(), parts.scores()
    assert (a.elements, a.top1_agreement) == (b.elements, b.top1_agreement)
    assert a.sqnr_db == pytest.approx(b.sqnr_db)


def test_equal_tensors_have_no_finite_sqnr() -> None:
    fidelity = Fidelity()
    fidelity.add(np.eye(3), np.eye(3))
    scores = fidelity.scores()
    assert (scores.sqnr_db, scores.max_error, scores.top1_agreement) == (None, 0, 1)
    assert scores.cosine == pytest.approx(1)


def test_zeros_do_not_divide() -> None:
    fidelity = Fidelity()
    fidelity.add(np.zeros(3), np.ones(3))
    assert fidelity.scores().sqnr_db is None
    assert fidelity.scores().cosine is None
    assert Fidelity().scores().top1_agreement is None


def test_integers_do_not_wrap() -> None:
    fidelity = Fidelity()
    fidelity.add(np.array([200], np.uint8), np.array([255], np.uint8))
    assert fidelity.scores().max_error == 55


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="wanted"):
        Fidelity().add(np.zeros((2, 3)), np.zeros((3, 2)))


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((), None), ((5,), None), ((5, 1), None), ((5, 9), 1), ((5, 7, 9), 2), ((5, 9, 4, 4), 1)],
)
def test_classes_are_where_networks_have_them(shape: tuple[int, ...], axis: int | None) -> None:
    assert class_axis(shape) == axis


def test_accuracy_takes_labels_as_a_column_too() -> None:
    accuracy = Accuracy()
    assert accuracy.top1 is None
    accuracy.add(np.array([[1, 2], [4, 3]]), np.array([1, 1]))
    accuracy.add(np.array([[[9.0]], [[8.0]]]).reshape(2, 1, 1), np.array([[0], [0]]))
    assert accuracy.top1 == 0.75
