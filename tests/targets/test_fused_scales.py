"""ratio = other * scale / (y_scale * count) in float32, exactly, for short ratios.

Seeded and not hypothesis: a search for the worst case finds ratios (131009 / 2^17 under a scale of
1.0, say) that no scale nearby gives; those come out one float32 step away.
"""

import numpy as np
import pytest

from ptq.targets.fused_scales import Operand, fused_scales

CASES = range(300)


@pytest.fixture
def draw(rng):
    """Random short ratios and scales."""

    def make():
        bits, shift = rng.integers(1, 18), rng.integers(0, 21)
        ratio = np.asarray(rng.integers(1, 2**bits) / 2.0**shift, np.float32)
        return ratio, np.float32(np.exp(rng.uniform(-9, 2)))

    return make


def test_two_operands_share_one_output(draw):
    for _ in CASES:
        (first, y_scale), (second, _) = draw(), draw()
        scales, y = fused_scales([Operand(first), Operand(second)], y_scale)
        assert [np.float32(s) / y for s in scales] == [first, second]
        assert abs(y / y_scale - 1) < 6e-4


def test_product_and_mean(draw, rng):
    for _ in CASES:
        (ratio, y_scale), (_, other), count = draw(), draw(), rng.integers(1, 4096)
        (scale,), y = fused_scales([Operand(ratio, other, int(count))], y_scale)
        assert other * np.float32(scale) / (y * np.float32(count)) == ratio


def test_nearest_where_none_is_exact():
    ratio = np.float32(131009)
    (scale,), y = fused_scales([Operand(np.asarray(ratio), count=129)], np.float32(1))
    assert abs(np.float32(scale) / (y * np.float32(129)) - ratio) <= np.spacing(ratio)


def test_exact_scales_are_left_alone():
    (scale,), y = fused_scales([Operand(np.float32([0.5, 0.25]))], np.float32(0.1))
    assert y == np.float32(0.1)
    assert scale.tolist() == (np.float32([0.5, 0.25]) * np.float32(0.1)).tolist()
