"""The loss of a network with any of its tensors quantised, on a few samples held in memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.debug.switchboard import SWITCHES, Switchboard
from ptq.distances import divergences
from ptq.execute.class_axis import class_axis
from ptq.report.session import Batch, Session, open_session

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Loss:
    """What quantising costs at the outputs, against the float network.

    sqnr_db: None if nothing is lost. kl: mean KL divergence of the first output's softmax, in nats;
    None if it has no classes. agreement: part of the same classes.
    """

    sqnr_db: float | None
    noise: float
    kl: float | None
    agreement: float | None

    @property
    def amount(self) -> float:
        """One figure to rank by: the divergence where there are classes, else relative noise."""
        return self.noise if self.kl is None else self.kl


class Network:
    """A switchboard with its samples, and the float network's answers to them."""

    def __init__(self, board: Switchboard, batches: Iterable[Batch]) -> None:
        """batches: float inputs by name; all of them are kept."""
        self.switches = board.switches
        self._session: Session = open_session(board.model, name="simulation")
        self._batches = list(batches)
        self._wanted = self._run(np.zeros(len(board.switches), np.bool_))

    @property
    def samples(self) -> int:
        """How many there are."""
        return sum(max((len(x) for x in b.values() if x.ndim), default=1) for b in self._batches)

    def loss(self, on: Mask) -> Loss:
        """The loss with these switches on. on: [switches] bool."""
        return output_loss(self._wanted, self._run(on))

    def _run(self, on: Mask) -> list[list[Array]]:
        """Outputs of every batch."""
        return [
            [x.astype(np.float64) for x in self._session.run({**b, SWITCHES: on}).values()]
            for b in self._batches
        ]


def output_loss(wanted: Sequence[list[Array]], got: Sequence[list[Array]]) -> Loss:
    """The loss of outputs `got` for outputs `wanted`, both a list a batch."""
    pairs = [pair for w, g in zip(wanted, got, strict=True) for pair in zip(w, g, strict=True)]
    noise = sum(float(np.square(x - y).sum()) for x, y in pairs)
    signal = sum(float(np.square(x).sum()) for x, _ in pairs)
    kl, agreement = _divergence([(w[0], g[0]) for w, g in zip(wanted, got, strict=True)])
    share = noise / signal if signal else math.inf
    return Loss(-10 * math.log10(share) if share > 0 else None, share, kl, agreement)


def _divergence(pairs: Sequence[tuple[Array, Array]]) -> tuple[float | None, float | None]:
    """Mean KL(softmax wanted || softmax got), and how often the class is the same."""
    axis = class_axis(pairs[0][0].shape)
    if axis is None:
        return None, None
    divergence, same = [], []
    for x, y in pairs:
        divergence.append(divergences(x, y, axis).reshape(-1))
        same.append((x.argmax(axis) == y.argmax(axis)).reshape(-1))
    return float(np.concatenate(divergence).mean()), float(np.concatenate(same).mean())
