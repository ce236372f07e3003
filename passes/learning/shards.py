"""Gradients of a batch in parts, each part in a thread of its own.

The number of parts is fixed and their gradients are added in order, so that results depend neither
on the number of processors nor on which thread is first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

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


class Shards:
    """Threads that share a batch.

    loss_of: called in several threads at a time. groups: the optimizer's; their tensors are given
    gradients. seed: each part has its own random numbers.
    """

    def __init__(
        self,
        loss_of: LossOf,
        groups: Sequence[Mapping[str, Any]],
        device: torch.device,
        seed: int,
    ) -> None:
        self._loss_of = loss_of
        self._leaves: list[Tensor] = [x for group in groups for x in group["params"]]
        parts = PARTS.get(device.type, 1)
        self._noise = [torch.Generator(device).manual_seed(seed + i) for i in range(parts)]
        self._pool = ThreadPoolExecutor(parts, initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def set_gradients(self, batch: Batch) -> float:
        """Leave the gradients of the batch's loss in the tensors; returns the loss."""
        bounds = np.linspace(0, len(batch), min(len(self._noise), len(batch)) + 1).astype(int)
        shares = np.diff(bounds) / len(batch)
        parts = [batch.rows(slice(a, b)) for a, b in pairwise(bounds)]
        found = list(self._pool.map(self._gradients, parts, self._noise))
        for index, leaf in enumerate(self._leaves):
            terms = [
                float(share) * gradients[index]
                for share, (_, gradients) in zip(shares, found, strict=True)
                if gradients[index] is not None
            ]
            leaf.grad = sum(terms[1:], terms[0]) if terms else None
        return float(sum(share * loss for share, (loss, _) in zip(shares, found, strict=True)))

    def _gradients(self, part: Batch, noise: torch.Generator) -> tuple[float, Sequence[Any]]:
        loss = self._loss_of(part, noise)
        return float(loss.detach()), torch.autograd.grad(loss, self._leaves, allow_unused=True)
