"""Gradients of a step's samples in parts, in threads.

The number of threads is fixed and gradients are added in order, so that results depend neither
on the number of processors nor on which thread is first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]

THREADS = {"cpu": 2}
"""By the kind of device; elsewhere it is one."""


@dataclass(frozen=True)
class Part:
    """Some samples of a step, all of the same shapes.

    given: inputs of the block in the integer network; exact: the same in the float model (read
    only where quantisation is dropped); wanted: what the loss compares with.
    """

    samples: int
    given: Mapping[str, Array]
    exact: Mapping[str, Array]
    wanted: Mapping[str, Array]


Gradients = tuple[float, Sequence[Tensor | None]]
"""A loss and its gradient by leaf."""
LossOf = Callable[[Part, torch.Generator], Tensor]
"""What is minimised, a mean over the samples, and random numbers for it."""


def threads_of(device: torch.device) -> int:
    """How many parts are differentiated at a time."""
    return THREADS.get(device.type, 1)


@contextmanager
def shared_batches(
    loss_of: LossOf, leaves: Sequence[Tensor], device: torch.device, seed: int
) -> Iterator[Callable[[Sequence[Part]], float]]:
    """A function that leaves the gradients of the loss of all samples of a step in the leaves, and
    returns the loss.

    loss_of: called in several threads at a time. seed: each thread has its own random numbers.
    """
    threads = threads_of(device)
    noise = [torch.Generator(device).manual_seed(seed + i) for i in range(threads)]
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield partial(_set_gradients, pool, loss_of, leaves, noise)


def _set_gradients(
    pool: ThreadPoolExecutor,
    loss_of: LossOf,
    leaves: Sequence[Tensor],
    noise: Sequence[torch.Generator],
    parts: Sequence[Part],
) -> float:
    """Every thread takes every so-many-th part; a sample weighs the same wherever it is."""
    threads, samples = len(noise), sum(part.samples for part in parts)

    def gradients(mine: Sequence[Part], generator: torch.Generator) -> list[Gradients]:
        return [of_one(part, generator) for part in mine]

    def of_one(part: Part, generator: torch.Generator) -> Gradients:
        loss = loss_of(part, generator) * (part.samples / samples)
        return float(loss.detach()), torch.autograd.grad(loss, leaves, allow_unused=True)

    shares = [parts[thread::threads] for thread in range(threads)]
    every = [one for share in pool.map(gradients, shares, noise) for one in share]
    losses, found = zip(*every, strict=True)
    for leaf, terms in zip(leaves, zip(*found, strict=True), strict=True):
        known = [term for term in terms if term is not None]
        leaf.grad = sum(known[1:], known[0]) if known else None
    return float(sum(losses))
