"""Round a network's products segment after segment, each on the inputs that it will really have."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from ptq.passes.context import Progress
from ptq.recipe import Effort, Recipe
from ptq.weights_only.deploy import Spool, deploy, replace_weight
from ptq.weights_only.products import Product
from ptq.weights_only.round_product import Moments, Outcome, Rounded, round_product
from ptq.weights_only.run_segment import SegmentRunner
from ptq.weights_only.scale_channels import choose_scale, fold_scale, rows_of_source, sharing
from ptq.weights_only.segments import Segment
from ptq.weights_only.states import States

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Rates:
    """Learning: steps a block; rates of codes, in codes, and of scales, in their logarithms."""

    iterations: int = 150
    codes: float = 3e-3
    scales: float = 1e-3


LEARNED: dict[Effort, Rates | None] = {"fast": None, "default": None, "best": Rates()}
"""Learning on top of the closed forms only where it is asked for: see docs/decisions.md."""


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

    @property
    def follows_floats(self) -> bool:
        """True if the float network's values are needed beside the quantised one's."""
        return self.recipe.match_float or LEARNED[self.recipe.effort] is not None

    @property
    def scales(self) -> bool:
        """True if inputs may be scaled; learned weights are those of the float network's inputs."""
        return self.recipe.balance and LEARNED[self.recipe.effort] is None

    def put(self, product: Product, rounded: Rounded) -> None:
        """Deploy one product."""
        deploy(self.deployed, product, rounded.weight(self.recipe.compute), self.spool)


def round_alone(network: Network, products: Sequence[Product]) -> dict[str, Outcome]:
    """Round every product by its weights alone."""
    found = {}
    for done, product in enumerate(products, 1):
        found[product.name] = _round(network, product, None).outcome
        network.report(Progress("round weights", done, len(products), product.name))
    return found


def round_block(
    network: Network, block: Sequence[Segment], exact: States, rounded: States
) -> dict[str, Outcome]:
    """Round the products of a block, and move both networks' states to its end.

    exact: the float network's values, and rounded: the quantised one's, at the block's inputs.
    """
    whole, found = joined(block), dict[str, Rounded]()
    for segment in block:
        moments = _collect(network, segment, exact, rounded)
        for products in sharing(segment.products):
            found |= _round_together(network, segment, products, moments[products[0].input])
        advance(network.deployed, segment, rounded, hold=whole.inputs)
    rates = LEARNED[network.recipe.effort]
    if rates is not None and whole.joint is not None:
        found |= _learn(network, whole, found, rates, exact, rounded)
        advance(network.deployed, whole, rounded)
    return {name: each.outcome for name, each in found.items()}


def advance(model: ir.Model, segment: Segment, states: States, hold: Collection[str] = ()) -> None:
    """Compute a segment's outputs from its inputs. hold: what is kept beside what is read later."""
    runner = SegmentRunner(model, segment, segment.outputs)
    for index in range(len(states)):
        if segment.outputs:
            states.put(index, runner.run(states[index]))
        states.keep(index, segment.alive | set(hold))
    runner.close()


def _learn(
    network: Network,
    whole: Segment,
    found: Mapping[str, Rounded],
    rates: Rates,
    exact: States,
    rounded: States,
) -> dict[str, Rounded]:
    """What learning changes of a block, deployed already."""
    from ptq.weights_only.learn_block import Block, can_learn, learn_block

    nodes = [node for node in network.model.graph if node.name in set(whole.nodes)]
    block = Block(
        nodes,
        network.model.opset_imports.get("", 21),
        whole.products,
        str(whole.joint),
        [{name: rounded[i][name] for name in whole.inputs} for i in range(len(rounded))],
        [exact[i][str(whole.joint)] for i in range(len(exact))],
    )
    if not can_learn(block):
        return {}
    network.report(Progress("learn rounding", 0, None, whole.products[-1].name))
    learned = learn_block(block, found, rates, network.recipe.seed)
    for product in whole.products:
        replace_weight(
            network.deployed,
            product,
            learned[product.name].weight(network.recipe.compute),
            network.spool,
        )
    return learned


def joined(block: Sequence[Segment]) -> Segment:
    """Consecutive segments as one."""
    made = {name for segment in block for name in segment.outputs}
    inputs = {name for segment in block for name in segment.inputs} - made
    return Segment(
        tuple(name for segment in block for name in segment.nodes),
        tuple(product for segment in block for product in segment.products),
        tuple(sorted(inputs)),
        tuple(sorted(made & block[-1].alive)),
        block[-1].alive,
        block[-1].joint,
    )


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
        found = behind.run(rounded[index])
        wanted = floats.run(exact[index]) if network.follows_floats else {}
        for name, moments in taps.items():
            moments.add(found[name], wanted.get(name))
        exact.put(index, {name: wanted[name] for name in segment.outputs if name in wanted})
        exact.keep(index, segment.alive)
    floats.close()
    behind.close()
    return taps


def _round_together(
    network: Network, segment: Segment, products: Sequence[Product], moments: Moments
) -> dict[str, Rounded]:
    """Round products of one input, scaled first where the segment makes it and that gains."""
    graph, chosen = network.deployed.graph, None
    rows = rows_of_source(graph, products) if network.scales else []
    if rows and rows[0][0].name in segment.nodes:
        chosen = choose_scale(products, moments, network.recipe)
    if chosen is None:
        return {p.name: _round(network, p, moments) for p in products}
    alpha, scale = chosen
    fold_scale(graph, products, scale)
    scaled = moments.scaled(scale)
    found = {p.name: _round(network, p, scaled, scale) for p in products}
    return {
        name: replace(each, outcome=replace(each.outcome, alpha=alpha))
        for name, each in found.items()
    }


def _round(
    network: Network, product: Product, moments: Moments | None, scale: Array | None = None
) -> Rounded:
    """Round and deploy a product whose inputs were divided by `scale`, [K], if that is given."""
    weight = product.rows() if scale is None else product.rows() * scale
    found = round_product(weight, product.bits, network.recipe, moments)
    network.put(product, found)
    for tensor in (value.const_value for value in product.node.inputs if value is not None):
        if isinstance(tensor, ir.ExternalTensor):
            with suppress(AttributeError):
                tensor.release()
    return found
