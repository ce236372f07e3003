"""ratio = other * scale / (y_scale * count) in float32, exactly, for short ratios."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ptq.targets.fused_scales import Operand, fused_scales

SCALES = st.floats(2**-17, 8, width=32).map(np.float32)
RATIOS = st.tuples(st.integers(1, 2**17), st.integers(0, 20)).map(lambda r: r[0] / 2 ** r[1])


@given(first=RATIOS, second=RATIOS, y_scale=SCALES)
def test_two_operands_share_one_output(first, second, y_scale):
    ratios = [np.asarray(r, np.float32) for r in (first, second)]
    scales, y = fused_scales([Operand(r) for r in ratios], y_scale)
    assert [np.float32(s) / y for s in scales] == ratios
    assert abs(y / y_scale - 1) < 1e-5


@given(ratio=RATIOS, other=SCALES, y_scale=SCALES, count=st.integers(1, 4096))
def test_product_and_mean(ratio, other, y_scale, count):
    wanted = np.asarray(ratio, np.float32)
    (scale,), y = fused_scales([Operand(wanted, other, count)], y_scale)
    assert other * np.float32(scale) / (y * np.float32(count)) == wanted


def test_exact_scales_are_left_alone():
    (scale,), y = fused_scales([Operand(np.float32([0.5, 0.25]))], np.float32(0.1))
    assert y == np.float32(0.1)
    assert scale.tolist() == (np.float32([0.5, 0.25]) * np.float32(0.1)).tolist()
