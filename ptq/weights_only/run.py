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
from ptq.weights_only.scale_channels import (
    Source,
    choose_scale,
    divide_output,
    divide_rows,
    sharing,
    source_of,
)
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


@dataclass(frozen=True)
class Underway:
    """A block in work: `whole`, what its products were rounded to so far, and the quantised
    network's values."""

    network: Network
    whole: Segment
    found: dict[str, Rounded]
    states: States


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
    work = Underway(network, joined(block), {}, rounded)
    whole, found = work.whole, work.found
    for segment in block:
        moments = _collect(network, segment, exact, rounded)
        for products in sharing(segment.products):
            _round_together(work, segment, products, moments[products[0].input])
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
    work: Underway, segment: Segment, products: Sequence[Product], moments: Moments
) -> None:
    """Round products of one input, which is scaled first where that gains."""
    chosen = _scaled(work, segment, products, moments) if work.network.scales else None
    alpha, scale = chosen or (0.0, None)
    given = moments if scale is None else moments.scaled(scale)
    for product in products:
        found = _round(work.network, product, given, scale)
        work.found[product.name] = replace(found, outcome=replace(found.outcome, alpha=alpha))


def _scaled(
    work: Underway, segment: Segment, products: Sequence[Product], moments: Moments
) -> tuple[float, Array] | None:
    """Scale the products' input in what makes it: exponent and s, or None if that gains nothing."""
    plain = {p.name for p in work.whole.products if p.name in work.found and p.bias is None}
    source = source_of(work.network.deployed.graph, products, plain)
    chosen = None if source is None else choose_scale(products, moments, work.network.recipe)
    if source is None or chosen is None or not _fold(work, source, chosen[1]):
        return None
    made = products[0].input in segment.inputs
    _divide_states(work.states, products[0].input if made else source.factor, chosen[1])
    return chosen


def _fold(work: Underway, source: Source, scale: Array) -> bool:
    """Divide what makes an input by s; False where half precision cannot hold that."""
    network = work.network
    if not source.product:
        divide_rows(network.deployed.graph, source, scale)
        return True
    changed = divide_output(work.found[source.product], scale)
    if changed is None:
        return False
    product = next(p for p in work.whole.products if p.name == source.product)
    weight = changed.weight(network.recipe.compute)
    replace_weight(network.deployed, product, weight, network.spool)
    work.found[source.product] = changed
    return True


def _divide_states(states: States, name: str, scale: Array) -> None:
    """Divide a tensor that was computed before its source was divided; '' if none was."""
    for index in range(len(states)) if name else ():
        x = states[index][name]
        states.put(index, {name: (x / scale).astype(x.dtype)})


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
