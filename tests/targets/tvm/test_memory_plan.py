"""No two tensors that live at the same time overlap."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from ptq.targets.tvm.memory_plan import SLACK_BYTES, Lifetime, plan_memory

LIVES = st.lists(
    st.tuples(st.integers(1, 5000), st.integers(0, 12), st.integers(0, 5)), min_size=1, max_size=14
).map(lambda rows: {f"t{i}": Lifetime(s, a, a + n) for i, (s, a, n) in enumerate(rows)})


@given(LIVES)
def test_tensors_that_meet_do_not_overlap(tensors: dict[str, Lifetime]) -> None:
    plan = plan_memory(tensors)
    for a, b in combinations(tensors, 2):
        if tensors[a].meets(tensors[b]):
            first, second = sorted((a, b), key=lambda name: plan.offsets[name])
            end = plan.offsets[first] + tensors[first].size + SLACK_BYTES
            assert end <= plan.offsets[second]
    assert all(plan.offsets[n] + t.size + SLACK_BYTES <= plan.size for n, t in tensors.items())


def test_memory_of_the_dead_is_used_again() -> None:
    chain = {f"t{i}": Lifetime(1000, i, i + 1) for i in range(10)}
    assert plan_memory(chain).size < 4 * 1000
    assert plan_memory(chain, reuse=False).size > 10 * 1000
