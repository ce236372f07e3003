"""Every layer quantised alone, and all but it: who loses what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ptq.debug.causes import causes, evidence
from ptq.debug.diagnosis import Suspect
from ptq.debug.network import Loss, Mask, Network
from ptq.integer.units import Outline, Unit
from ptq.plan import Plan
from ptq.report.nearness import Tensor

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Group:
    """The switches that belong together: a layer's weight, and the activations that it reads.

    unit: None for an activation that no layer with a weight reads.
    """

    name: str
    unit: Unit | None
    weight: int | None
    activations: tuple[int, ...]

    @property
    def switches(self) -> tuple[int, ...]:
        """All of them."""
        return self.activations if self.weight is None else (self.weight, *self.activations)


def group_switches(network: Network, outline: Outline) -> tuple[Group, ...]:
    """One group a layer, and one for every activation that is left."""
    index = {(switch.kind, switch.name): i for i, switch in enumerate(network.switches)}
    groups: list[Group] = []
    taken: set[int] = set()
    for unit in outline.weighted:
        sites = dict.fromkeys(outline.site(name) for name in unit.inputs)
        reads = tuple(index["activation", s] for s in sites if ("activation", s) in index)
        taken.update(reads)
        groups.append(Group(unit.name, unit, index.get(("weight", unit.name)), reads))
    left = [
        Group(switch.name, None, None, (i,))
        for i, switch in enumerate(network.switches)
        if switch.kind == "activation" and i not in taken
    ]
    return (*groups, *left)


def find_suspects(
    network: Network,
    outline: Outline,
    plan: Plan,
    seen: Mapping[str, Tensor],
    progress: Progress,
) -> tuple[Suspect, ...]:
    """Measure every group, and explain it; the one that loses most alone comes first.

    seen: value name -> what was measured of it in the integer network.
    """
    groups = group_switches(network, outline)
    found = []
    for done, group in enumerate(groups, 1):
        found.append(_suspect(network, outline, plan, seen, group))
        progress(done, len(groups))
    return tuple(sorted(found, key=lambda suspect: -suspect.alone.amount))


def _suspect(
    network: Network, outline: Outline, plan: Plan, seen: Mapping[str, Tensor], group: Group
) -> Suspect:
    def alone(switches: Sequence[int]) -> Loss:
        return network.loss(mask(network, switches))

    weight = None if group.weight is None else alone([group.weight])
    activation = alone(group.activations) if group.activations else None
    both = weight if activation is None else activation if weight is None else None
    read = network.switches[group.activations[0]].name if group.activations else ""
    grid, unit = plan.activations.get(read), group.unit
    stored = None if unit is None else plan.weights.get(unit.name)
    output = seen.get(unit.output if unit is not None else group.name)
    blame = _blame(weight, activation)
    return Suspect(
        name=group.name,
        op="activation" if unit is None else unit.node.op_type,
        weight_bits=None if stored is None else stored.grid.bits,
        activation_bits=None if grid is None else grid.grid.bits,
        output_sqnr_db=None if output is None else output.fidelity.scores().sqnr_db,
        alone=both or alone(group.switches),
        weight_alone=weight,
        activation_alone=activation,
        without=network.loss(~mask(network, group.switches)),
        blame=blame,
        causes=causes(evidence(unit, stored, grid, seen.get(read), output), blame),
    )


def _blame(weight: Loss | None, activation: Loss | None) -> str:
    if weight is None or activation is None:
        return "activation" if weight is None else "weight"
    return "weight" if weight.amount >= activation.amount else "activation"


def mask(network: Network, switches: Sequence[int]) -> Mask:
    """These switches on, all others off."""
    on = np.zeros(len(network.switches), np.bool_)
    on[list(switches)] = True
    return on
