"""Learn rounding: block by block, by gradients, on the integers that will run.

Inputs of a block are codes that the already learned prefix makes, targets are the float model's
outputs of the same block (BRECQ, arXiv 2102.05426); activations are left unrounded at random while
learning if `drop` says so (QDrop, arXiv 2203.05740). Scales stay as they are, and so do the
multipliers.

1. A block is kept only if it lowers its output's error on samples it has not seen.
2. All of it is kept only if the outputs of the network come nearer to the float model's there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ptq.integer.blocks import Block, find_blocks, whole_network, written
from ptq.integer.lower import lower
from ptq.integer.program import Convolve, Gemm, Program, Step
from ptq.passes.context import Context, Progress
from ptq.plan import Plan

if TYPE_CHECKING:
    from ptq.passes.learning.learn_block import Batch, Options
    from ptq.passes.learning.samples import SampleStore
    from ptq.passes.learning.steps import BlockSteps

Array = npt.NDArray[Any]

_LOG = logging.getLogger("ptq")

HELD_OUT = 8
"""One sample of so many is not learned on."""
LARGEST_BATCH = 32
SMALLEST_BATCH = 4
BATCH_SHARE = 4
"""A step keeps a block's activations within so small a share of what a pass over the samples may
take: they stay near the processor, and gradients take several times the room."""


@dataclass(frozen=True)
class LearnRounding:
    """Learned codes and biases of every weight on an affine uniform grid.

    iterations: steps of Adam a block. batch: samples a step.
    lr: of codes, in codes; bias_lr: of biases, in codes of the layer's output.
    drop: probability that an element of an activation is left unrounded.
    whole: the network is one block: what is left to gain once the blocks are good.
    variable: 'latent' (any code, straight-through) or 'adaround' (one of two, soft).
    regulariser: what drives adaround's soft codes to integers.
    memory_bytes: for tensors of all samples; more goes to a temporary file.
    """

    iterations: int = 300
    batch: int = 32
    lr: float = 1e-2
    bias_lr: float = 5e-3
    drop: float = 0.0
    whole: bool = False
    variable: Literal["latent", "adaround"] = "latent"
    regulariser: float = 1e-5
    memory_bytes: int = 2 << 30

    def __call__(self, context: Context, plan: Plan) -> Plan:
        """A plan with learned codes and biases, or the same plan if they are no better."""
        from ptq.passes.learning.samples import SampleStore

        if self.whole:
            blocks: tuple[Block, ...] = (whole_network(context.model, context.outline),)
        else:
            blocks = find_blocks(context.model, context.outline)
        samples = _count(context)
        reason = _obstacle(context, samples)
        if reason is not None:
            _LOG.warning("rounding is not learned: %s", reason)
            return plan
        half = self.memory_bytes // 2
        stores = SampleStore(samples, half), SampleStore(samples, half)
        with _one_thread(), stores[0] as given, stores[1] as exact:
            return _Run(self, context, plan, blocks, given, exact).learn()


class _Run:
    """One run of the pass: the tensors between blocks, and what was learned so far."""

    def __init__(
        self,
        how: LearnRounding,
        context: Context,
        plan: Plan,
        blocks: Sequence[Block],
        given: SampleStore,
        exact: SampleStore,
    ) -> None:
        from ptq.passes.learning.steps import block_steps

        self.how, self.context, self.plan, self.blocks = how, context, plan, blocks
        self.program: Program = lower(context.model, context.outline, plan)
        self.parts = [block_steps(self.program, block) for block in blocks]
        self.given, self.exact = given, exact
        order = context.generator().permutation(given.samples)
        held = max(1, given.samples // HELD_OUT)
        self.held_out, self.seen = np.sort(order[:held]), np.sort(order[held:])
        self.started = time.monotonic()

    def learn(self) -> Plan:
        """Learn block after block."""
        self._read_samples()
        start = self.plan
        plan = start
        for index, (block, part) in enumerate(zip(self.blocks, self.parts, strict=True)):
            self._run_float(block)
            steps = self._learn_block(index, block, part)
            plan = with_steps(self.program, plan, part.steps, steps)
            self._run_integers(part, steps)
            self._forget(index)
        return plan if self._gains() else start

    def _learn_block(self, index: int, block: Block, part: BlockSteps) -> tuple[Step, ...]:
        """The block's learned steps, or its own if those are no better on held-out samples."""
        from ptq.passes.learning.layers import learnable_layers
        from ptq.passes.learning.learn_block import learn_block

        layers = learnable_layers(part.steps, block.weighted, self.plan)
        if not layers or not self._has_float_output(part):
            return part.steps
        before = self._block_error(part, part.steps)
        total = self.how.iterations * len(self.blocks)

        def report(done: int, loss: float) -> None:
            whole = index * self.how.iterations + done
            left_s = (time.monotonic() - self.started) * (total - whole) / whole
            detail = f"{block.name}: error {loss:.3g}, {left_s:.0f} s left"
            stage = "learn rounding of the whole" if self.how.whole else "learn rounding"
            self.context.report(Progress(stage, whole, total, detail))

        options = self._options(index)
        learned = learn_block(
            self.program, part, layers, lambda g: self._draw(block, part, g), options, report
        )
        after = self._block_error(part, learned)
        return learned if after < before else part.steps

    def _options(self, index: int) -> Options:
        from ptq.passes.learning.learn_block import Options

        how = self.how
        rates = {"codes": how.lr, "bias": how.bias_lr}
        seed = self.context.recipe.seed * 10_007 + index
        return Options(how.iterations, rates, how.drop, how.variable, how.regulariser, seed)

    def _draw(self, block: Block, part: BlockSteps, generator: np.random.Generator) -> Batch:
        from ptq.passes.learning.learn_block import Batch

        size = self._batch(block)
        index = np.sort(generator.choice(self.seen, size, replace=False))
        inputs, outputs = _names(part)
        return Batch(
            self.given.take(inputs, index),
            self.exact.take(inputs, index),
            self.exact.take(outputs, index),
        )

    def _batch(self, block: Block) -> int:
        """Samples a step: fewer where they are large, which then have as many more positions."""
        made = [name for item in block.items for name in written(item)]
        fitting = max(SMALLEST_BATCH, self.context.batch_size(made) // BATCH_SHARE)
        return min(self.how.batch, fitting, len(self.seen))

    def _has_float_output(self, part: BlockSteps) -> bool:
        return any(self.exact[name].dtype.kind == "f" for name in _names(part)[1])

    def _block_error(self, part: BlockSteps, steps: tuple[Step, ...]) -> float:
        """Squared error of the block's outputs over their energy on held-out samples."""
        from ptq.passes.learning.learn_block import hard_run

        run = hard_run(self.program, part, steps)
        inputs, outputs = _names(part)
        error = dict.fromkeys(outputs, 0.0)
        energy = dict.fromkeys(outputs, 1e-12)
        for index in _chunks(self.held_out):
            found = run(self.given.take(inputs, index))
            for name, wanted in self.exact.take(outputs, index).items():
                if wanted.dtype.kind == "f":
                    x = self._value(name, found[name])
                    error[name] += float(np.square(x - wanted, dtype=np.float64).sum())
                    energy[name] += float(np.square(wanted, dtype=np.float64).sum())
        return sum(error[name] / energy[name] for name in outputs)

    def _value(self, name: str, x: Array) -> Array:
        return self.program.codes[name].dequantize(x) if x.dtype == np.uint8 else x

    def _read_samples(self) -> None:
        start = 0
        for batch in self.context.batches(LARGEST_BATCH):
            self.given.write(start, batch)
            self.exact.write(start, batch)
            start += len(next(iter(batch.values())))

    def _run_float(self, block: Block) -> None:
        """The float model's outputs of a block, from its outputs of the blocks before."""
        import torch

        from ptq.execute.differentiable import FloatGraph, to_array, to_tensor
        from ptq.passes.learning.learn_block import device_of_choice

        device = device_of_choice()
        opset = self.context.model.opset_imports.get("", 21)
        graph = FloatGraph(block.nodes, opset, outputs=block.outputs, device=device)
        with torch.inference_mode():
            for index in _chunks(np.arange(self.exact.samples)):
                values = self.exact.take(block.inputs, index)
                found = graph.run({name: to_tensor(x, device) for name, x in values.items()})
                self.exact.write(int(index[0]), {n: to_array(x) for n, x in found.items()})

    def _run_integers(self, part: BlockSteps, steps: tuple[Step, ...]) -> None:
        from ptq.passes.learning.learn_block import hard_run

        run = hard_run(self.program, part, steps)
        for index in _chunks(np.arange(self.given.samples)):
            self.given.write(int(index[0]), run(self.given.take(_names(part)[0], index)))

    def _forget(self, index: int) -> None:
        """Drop tensors that no later block and no comparison needs."""
        ends = [*self.context.model.graph.inputs, *self.context.model.graph.outputs]
        later = {name for block in self.blocks[index + 1 :] for name in block.inputs}
        needed = later | {str(value.name) for value in ends}
        self.given.keep(needed)
        self.exact.keep(needed)

    def _gains(self) -> bool:
        """On held-out samples the outputs are nearer to the float model's than before.

        Few samples make each measure noisy, KL most (a few close calls decide it), so their product
        must fall.
        """
        outputs = [str(value.name) for value in self.context.model.graph.outputs]
        outputs = [name for name in outputs if name in self.given and name in self.exact]
        before = after = np.zeros(2)
        for index in _chunks(self.held_out):
            wanted, learned = self.exact.take(outputs, index), self.given.take(outputs, index)
            first = self._run_start(index)
            for name in outputs:
                if wanted[name].dtype.kind == "f":
                    before = before + distances(wanted[name], self._value(name, first[name]))
                    after = after + distances(wanted[name], self._value(name, learned[name]))
        return bool(after.prod() < before.prod())

    def _run_start(self, index: npt.NDArray[np.intp]) -> Mapping[str, Array]:
        """All tensors between blocks under the plan that learning started from."""
        from ptq.passes.learning.learn_block import hard_run

        names = [str(value.name) for value in self.context.model.graph.inputs]
        values = self.given.take(names, index)
        for part in self.parts:
            values |= hard_run(self.program, part, part.steps)(values)
        return values


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums of floats depend on the number of threads; one also never waits for a busy core."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def distances(wanted: Array, found: Array) -> npt.NDArray[np.float64]:
    """[KL, squared error] of outputs; KL only of [n, classes], else squared error twice."""
    squared = float(np.square(found - wanted, dtype=np.float64).sum())
    if wanted.ndim != 2 or wanted.shape[1] < 2:
        return np.array([squared, squared])
    p, q = (_log_softmax(x.astype(np.float64)) for x in (wanted, found))
    return np.array([(np.exp(p) * (p - q)).sum(), squared])


def with_steps(program: Program, plan: Plan, before: Sequence[Step], after: Sequence[Step]) -> Plan:
    """The plan whose lowering gives the changed steps: their codes and their biases."""
    for old, new in zip(before, after, strict=True):
        if new is old or not isinstance(new, Convolve | Gemm):
            continue
        if new.stored is None or new.bias is None:
            continue
        unit = new.stored.scale.astype(np.float64) * float(program.codes[new.input].scale)
        plan = plan.with_weights({new.name: new.stored})
        plan = plan.with_biases({new.name: new.bias * unit})
    return plan


def _log_softmax(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    x = x - x.max(axis=-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))


def _names(part: BlockSteps) -> tuple[list[str], list[str]]:
    return [ref.name for ref in part.inputs], [ref.name for ref in part.outputs]


def _chunks(index: npt.NDArray[np.intp]) -> Iterator[npt.NDArray[np.intp]]:
    for start in range(0, len(index), LARGEST_BATCH):
        yield index[start : start + LARGEST_BATCH]


def _count(context: Context) -> int:
    if context.samples is not None:
        return context.samples
    return sum(len(next(iter(batch.values()))) for batch in context.batches(LARGEST_BATCH))


def _obstacle(context: Context, samples: int) -> str | None:
    """Why nothing can be learned, or None."""
    from ptq.execute.differentiable import unsupported

    shapes = [value.shape for value in context.model.graph.inputs]
    if samples < 2:
        return "it needs two samples at least"
    if not context.outline.weighted:
        return "no layer has a weight"
    if any(not shape or isinstance(shape[0], int) for shape in shapes):
        return "the model's batch size is fixed"
    if missing := unsupported(context.model.graph):
        return f"no gradients of {', '.join(missing)}"
    return None
