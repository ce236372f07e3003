"""Choose the precision map that repairs a model: the fewest bytes that take back enough loss."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ptq.debug.diagnosis import Suspect
from ptq.debug.network import Loss, Network
from ptq.debug.suspects import Group

REPAIRED_BITS = 8


@dataclass(frozen=True)
class Choice:
    """A map, and the loss that the simulation expects with it."""

    precision_map: dict[str, str]
    predicted: Loss


@dataclass(frozen=True)
class _Part:
    """The weight or the activations of one layer.

    loss: what it loses alone. bytes: how much more there is to store, or to read a sample.
    """

    layer: str
    letter: str
    switches: tuple[int, ...]
    loss: float
    bytes: float


def choose_repair(
    network: Network,
    groups: Sequence[Group],
    suspects: Sequence[Suspect],
    elements: Sequence[int],
    regain: float,
) -> Choice | None:
    """Widen the worst parts to 8 bits, as few as regain that part of the loss in the simulation.

    elements: of every switch's tensor, one sample of an activation. Parts are taken in the order of
    what they lose alone a byte (the greedy order of the knapsack); how many are needed is found by
    bisection, with all the others quantised. None if nothing is narrower than 8 bits.
    """
    parts = _parts(groups, suspects, elements)
    if not parts:
        return None
    everything = np.ones(len(network.switches), np.bool_)
    wanted = (1 - regain) * network.loss(everything).amount

    def trial(count: int) -> Loss:
        on = everything.copy()
        on[[switch for part in parts[:count] for switch in part.switches]] = False
        return network.loss(on)

    low, high = 0, len(parts)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if trial(middle).amount <= wanted else (middle, high)
    return Choice(_as_map(parts[:high]), trial(high))


def _parts(
    groups: Sequence[Group], suspects: Sequence[Suspect], elements: Sequence[int]
) -> list[_Part]:
    """What could be wider, the worst for its bytes first."""
    by_name = {group.name: group for group in groups}
    found = []
    for suspect in suspects:
        group = by_name[suspect.name]
        weight = () if group.weight is None else (group.weight,)
        for letter, bits, switches, loss in (
            ("w", suspect.weight_bits, weight, suspect.weight_alone),
            ("a", suspect.activation_bits, group.activations, suspect.activation_alone),
        ):
            if group.unit is None or loss is None or bits is None or bits >= REPAIRED_BITS:
                continue
            added = (REPAIRED_BITS - bits) / 8 * sum(elements[i] for i in switches)
            found.append(_Part(suspect.name, letter, switches, loss.amount, added))
    return sorted(found, key=lambda part: -part.loss / max(part.bytes, 1.0))


def _as_map(parts: Sequence[_Part]) -> dict[str, str]:
    """Layer -> 'w8', 'a8' or 'w8a8', in the order of the worst part."""
    letters: dict[str, set[str]] = {}
    for part in parts:
        letters.setdefault(part.layer, set()).add(part.letter)
    return {
        literal_pattern(layer): "".join(f"{c}{REPAIRED_BITS}" for c in "wa" if c in found)
        for layer, found in letters.items()
    }


def literal_pattern(name: str) -> str:
    """A glob that matches this name only, whatever characters are in it."""
    escaped = re.sub(r"([*?\[])", r"[\1]", name)
    return f"[r]{escaped[1:]}" if escaped.startswith("re:") else escaped
