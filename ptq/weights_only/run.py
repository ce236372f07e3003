"""Round a network's products segment after segment, each on the inputs that it will really have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import onnx_ir as ir

from ptq.passes.context import Progress
from ptq.recipe import Recipe
from ptq.weights_only.deploy import Spool, deploy
from ptq.weights_only.products import Product
from ptq.weights_only.round_product import Moments, Rounded, round_product
from ptq.weights_only.run_segment import SegmentRunner
from ptq.weights_only.segments import Segment
from ptq.weights_only.states import States


@dataclass(frozen=True)
class Network:
    """A float model (read only), its copy that is turned into the quantised one, and choices.

    spool: where the copy's new weights go. report: called with every Progress.
    """

    model: ir.Model
    deployed: ir.Model
    recipe: Recipe
    spool: Spool
    report: Callable[[Progress], None]

    def put(self, product: Product, rounded: Rounded) -> None:
        """Deploy one product."""
        deploy(self.deployed, product, rounded.weight(), self.spool, self.recipe.compute)


def round_alone(network: Network, products: Sequence[Product]) -> dict[str, Rounded]:
    """Round every product by its weights alone."""
    found = {}
    for done, product in enumerate(products, 1):
        found[product.name] = _round(network, product, None)
        network.report(Progress("round weights", done, len(products), product.name))
    return found


def round_segment(
    network: Network, segment: Segment, exact: States, rounded: States
) -> dict[str, Rounded]:
    """Round the products of a segment, and move both networks' states to its end.

    exact: the float network's values, and rounded: the quantised one's, at the segment's inputs.
    """
    moments = _collect(network, segment, exact, rounded)
    found = {p.name: _round(network, p, moments[p.input]) for p in segment.products}
    advance(network.deployed, segment, rounded)
    return found


def advance(model: ir.Model, segment: Segment, states: States) -> None:
    """Compute a segment's outputs from its inputs."""
    runner = SegmentRunner(model, segment, segment.outputs)
    for index in range(len(states)):
        if segment.outputs:
            states.put(index, runner.run(states[index]))
        states.keep(index, segment.alive)
    runner.close()


def blocks_of(segments: Sequence[Segment]) -> Iterator[tuple[Segment, ...]]:
    """Consecutive segments up to where one tensor crosses, or to the end."""
    part: list[Segment] = []
    for segment in segments:
        part.append(segment)
        if segment.joint is not None:
            yield tuple(part)
            part = []
    if part:
        yield tuple(part)


def _collect(
    network: Network, segment: Segment, exact: States, rounded: States
) -> dict[str, Moments]:
    """Second moments of the inputs of a segment's products; `exact` moves to the segment's end."""
    taps = {p.input: Moments.of(p.shape[1]) for p in segment.products}
    floats = SegmentRunner(network.model, segment, (*taps, *segment.outputs))
    behind = SegmentRunner(network.model, segment, tuple(taps))
    for index in range(len(exact)):
        wanted, found = floats.run(exact[index]), behind.run(rounded[index])
        for name, moments in taps.items():
            moments.add(wanted[name], found[name])
        exact.put(index, {name: wanted[name] for name in segment.outputs})
        exact.keep(index, segment.alive)
    floats.close()
    behind.close()
    return taps


def _round(network: Network, product: Product, moments: Moments | None) -> Rounded:
    found = round_product(product.rows(), product.bits, network.recipe, moments)
    network.put(product, found)
    for tensor in (value.const_value for value in product.node.inputs if value is not None):
        if isinstance(tensor, ir.ExternalTensor):
            with suppress(AttributeError):
                tensor.release()
    return found
