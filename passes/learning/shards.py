"""Gradients of a batch in parts, each part in a thread of its own.

The number of parts is fixed and their gradients are added in order, so that results depend neither
on the number of processors nor on which thread is first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]

PARTS = {"cpu": 2}
"""Of a batch, by the kind of device; elsewhere it stays whole."""


@dataclass(frozen=True)
class Batch:
    """given: inputs of the block in the integer network; exact: the same in the float model (read
    only where quantisation is dropped); wanted: what the loss compares with. Arrays [n, ...].
    """

    given: Mapping[str, Array]
    exact: Mapping[str, Array]
    wanted: Mapping[str, Array]

    def __len__(self) -> int:
        return len(next(iter(self.given.values())))

    def rows(self, part: slice) -> Batch:
        """Some of its samples."""
        fields = (self.given, self.exact, self.wanted)
        return Batch(*({name: x[part] for name, x in field.items()} for field in fields))


LossOf = Callable[[Batch, torch.Generator], Tensor]
"""What is minimised, a mean over the samples, and random numbers for it."""


@contextmanager
def shared_batches(
    loss_of: LossOf, leaves: Sequence[Tensor], device: torch.device, seed: int
) -> Iterator[Callable[[Batch], float]]:
    """A function that leaves the gradients of a batch's loss in the leaves, and returns the loss.

    loss_of: called in several threads at a time. seed: each part has its own random numbers.
    """
    parts = PARTS.get(device.type, 1)
    noise = [torch.Generator(device).manual_seed(seed + i) for i in range(parts)]
    with ThreadPoolExecutor(parts, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield partial(_set_gradients, pool, loss_of, leaves, noise)


def _set_gradients(
    pool: ThreadPoolExecutor,
    loss_of: LossOf,
    leaves: Sequence[Tensor],
    noise: Sequence[torch.Generator],
    batch: Batch,
) -> float:
    bounds = np.linspace(0, len(batch), min(len(noise), len(batch)) + 1).astype(int)
    parts = [batch.rows(slice(a, b)) for a, b in pairwise(bounds)]

    def gradients(part: Batch, generator: torch.Generator) -> tuple[float, Sequence[Tensor | None]]:
        loss = loss_of(part, generator) * (len(part) / len(batch))
        return float(loss.detach()), torch.autograd.grad(loss, leaves, allow_unused=True)

    losses, found = zip(*pool.map(gradients, parts, noise), strict=True)
    for leaf, terms in zip(leaves, zip(*found, strict=True), strict=True):
        known = [term for term in terms if term is not None]
        leaf.grad = sum(known[1:], known[0]) if known else None
    return float(sum(losses))
