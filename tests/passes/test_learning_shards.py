"""A batch in parts: the gradients of the whole, the same bits whichever thread is first."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import Tensor

from ptq.passes.learning.shards import Part, shared_batches

CPU = torch.device("cpu")


def leaf(size: int = 5) -> Tensor:
    return torch.linspace(-1, 1, size).requires_grad_()


def samples_of(rows: slice) -> Part:
    x = np.random.default_rng(9).normal(size=(32, 5)).astype(np.float32)[rows]
    return Part(len(x), {"x": x}, {}, {"y": x[:, :1]})


def halves(samples: int) -> list[Part]:
    middle = samples // 2
    return [samples_of(slice(a, b)) for a, b in ((0, middle), (middle, samples)) if a < b]


def mean_loss(weight: Tensor, part: Part) -> Tensor:
    x, y = (torch.from_numpy(a) for a in (part.given["x"], part.wanted["y"]))
    return ((x @ weight[:, None] - y) ** 2).mean()


@pytest.mark.parametrize("samples", [1, 2, 7, 32])
def test_parts_add_up_to_the_whole(samples: int) -> None:
    weight, other = leaf(), leaf()
    whole = mean_loss(other, samples_of(slice(samples)))
    whole.backward()
    with shared_batches(lambda part, _: mean_loss(weight, part), [weight], CPU, 0) as set_gradients:
        loss = set_gradients(halves(samples))
    assert loss == pytest.approx(float(whole.detach()))
    torch.testing.assert_close(weight.grad, other.grad)


def test_the_first_part_may_come_last() -> None:
    def run(slow: int) -> Tensor:
        weight = leaf()

        def loss(part: Part, noise: torch.Generator) -> Tensor:
            first = np.array_equal(part.given["x"][0], halves(9)[0].given["x"][0])
            time.sleep(0.05 * (first == (slow == 0)))
            return mean_loss(weight, part) * torch.rand((), generator=noise)

        with shared_batches(loss, [weight], CPU, 3) as set_gradients:
            set_gradients(halves(9))
        assert weight.grad is not None
        return weight.grad

    assert torch.equal(run(0), run(1))


def test_what_the_loss_does_not_reach_has_no_gradient() -> None:
    used, unused = leaf(), leaf()
    leaves = [used, unused]
    with shared_batches(lambda part, _: mean_loss(used, part), leaves, CPU, 0) as set_gradients:
        set_gradients(halves(4))
    assert used.grad is not None
    assert unused.grad is None


def test_an_error_in_a_part_is_raised() -> None:
    def loss(part: Part, noise: torch.Generator) -> Tensor:
        raise RuntimeError("no loss")

    with shared_batches(loss, [leaf()], CPU, 0) as set_gradients:  # noqa: SIM117
        with pytest.raises(RuntimeError, match="no loss"):
            set_gradients(halves(4))
