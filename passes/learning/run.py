"""One run of learned rounding: block after block, on what the learned prefix makes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ptq.integer.blocks import Block, written
from ptq.integer.lower import lower
from ptq.integer.program import Program, Step, before_levels
from ptq.passes.context import Context, Progress
from ptq.passes.learning.into_plan import with_scales, with_steps
from ptq.passes.learning.judge import block_error
from ptq.passes.learning.layers import Layer, learnable_layers
from ptq.passes.learning.learn_block import (
    Options,
    Task,
    hard_run,
    learn_block,
    with_learned,
)
from ptq.passes.learning.learned import Learned
from ptq.passes.learning.samples import PART, SampleStore, run_parts
from ptq.passes.learning.scales import Scales, learnable_sites
from ptq.passes.learning.shards import Part, threads_of
from ptq.passes.learning.steps import BlockSteps, block_steps
from ptq.passes.learning.targets import Targets
from ptq.plan import Plan

if TYPE_CHECKING:
    from ptq.passes.learn_rounding import LearnRounding

_LOG = logging.getLogger("ptq")

SMALLEST_BATCH = 4
BATCH_SHARE = 4
"""A step keeps a block's activations within so small a share of what a pass over the samples may
take: they stay near the processor, and gradients take several times the room."""


class Run:
    """The tensors between blocks, and what was learned so far."""

    def __init__(
        self,
        how: LearnRounding,
        context: Context,
        plan: Plan,
        blocks: Sequence[Block],
        stores: tuple[SampleStore, SampleStore],
    ) -> None:
        self.how, self.context, self.blocks = how, context, blocks
        self._adopt(plan)
        self.given, exact = stores
        self.held_out = context.held_out()
        self.seen = np.setdiff1d(np.arange(exact.layout.samples), self.held_out)
        self.targets = Targets(context, blocks, exact, how.loss)
        self.started, self.resumed = time.monotonic(), 0

    def learn(self) -> Plan:
        """Learn block after block; the same plan if no block gained."""
        self._read_samples()
        self.targets.prepare()
        first = self._resume()
        for index, block in enumerate(self.blocks):
            self.targets.run(block)
            if index >= first:
                self._learn_block(index, block)
                self._save(index + 1)
            self._run_integers(self.parts[index])
            self._forget(index)
        return self.plan

    def _adopt(self, plan: Plan) -> None:
        self.plan = plan
        self.program: Program = lower(self.context.model, self.context.outline, plan)
        self.become = before_levels(self.program)
        self.parts = [block_steps(self.program, block) for block in self.blocks]

    def _resume(self) -> int:
        """Take up the plan of the last block that an interrupted run finished: blocks done."""
        checkpoints = self.context.checkpoints
        if checkpoints is not None:
            self.resumed, plan = checkpoints.load(repr(self.how))
            if plan is not None:
                self._adopt(plan)
                _LOG.warning("resumed after block %d of %d", self.resumed, len(self.blocks))
        return self.resumed

    def _save(self, done: int) -> None:
        if self.context.checkpoints is not None:
            self.context.checkpoints.save(repr(self.how), done, self.plan)

    def _learn_block(self, index: int, block: Block) -> None:
        """Learn a block, and keep what is better on held-out samples."""
        part = self.parts[index]
        layers = learnable_layers(part.steps, block.weighted, self.plan)
        if not layers or not self.targets.float_outputs(part):
            return
        learned, scales = learn_block(self._task(index, block, layers), self._options(index))
        before = self._error(part, part.steps)
        if scales:
            self._keep_scales(index, learned, scales, before)
            return
        steps = with_learned(part.steps, learned)
        if self._error(part, steps) < before:
            self.plan = with_steps(self.program, self.plan, part.steps, steps)
            self.parts[index] = BlockSteps(steps, part.inputs, part.outputs)

    def _keep_scales(
        self, index: int, learned: Sequence[Learned], scales: Scales, before: float
    ) -> None:
        """Go on with learned scales, which change the program, if the block is better for it."""
        kept = self.plan
        self._adopt(with_scales(self.context.outline, self.program, kept, learned, scales))
        if not self._error(self.parts[index], self.parts[index].steps) < before:
            self._adopt(kept)

    def _task(self, index: int, block: Block, layers: Sequence[Layer]) -> Task:
        part, site_of = self.parts[index], self._site
        return Task(
            self.program,
            part,
            layers,
            learnable_sites(self.program, part.steps, part.inputs, part.outputs, site_of),
            site_of,
            lambda generator: self._draw(block, part, generator),
            self.targets.loss(index),
            self._reporter(index, block),
        )

    def _site(self, name: str) -> str:
        return self.context.outline.site(self.become.get(name, name))

    def _error(self, part: BlockSteps, steps: Sequence[Step]) -> float:
        return block_error(self.program, part, steps, self.given, self.targets.exact, self.held_out)

    def _options(self, index: int) -> Options:
        how = self.how
        return Options(
            how.iterations,
            how.rates,
            how.drop,
            how.variable,
            how.optimizer,
            how.regulariser,
            self.context.recipe.seed * 10_007 + index,
        )

    def _draw(self, block: Block, part: BlockSteps, generator: np.random.Generator) -> list[Part]:
        index = np.sort(generator.choice(self.seen, self._batch(block), replace=False))
        inputs, exact = [ref.name for ref in part.inputs], self.targets.exact
        return [
            Part(
                len(some),
                self.given.take(inputs, some),
                exact.take(inputs, some) if self.how.drop else {},
                exact.take(self.targets.wanted(block), some),
            )
            for some in exact.layout.parts(index, -(-len(index) // threads_of(self.targets.device)))
        ]

    def _batch(self, block: Block) -> int:
        """Samples a step: fewer where they are large, which then have as many more positions."""
        made = [name for item in block.items for name in written(item)]
        fitting = max(SMALLEST_BATCH, self.context.batch_size(made) // BATCH_SHARE)
        return min(self.how.batch, fitting, len(self.seen))

    def _reporter(self, index: int, block: Block) -> Callable[[int, float], None]:
        iterations, total = self.how.iterations, self.how.iterations * len(self.blocks)

        def report(done: int, loss: float) -> None:
            whole = index * iterations + done
            here = whole - self.resumed * iterations
            left_s = (time.monotonic() - self.started) * (total - whole) / here
            detail = f"{block.name}: loss {loss:.3g}, {left_s:.0f} s left"
            self.context.report(Progress(self.how.title, whole, total, detail))

        return report

    def _read_samples(self) -> None:
        start = 0
        for batch in self.context.batches(PART):
            index = np.arange(start, start + self.context.samples_in(batch))
            self.given.write(index, batch)
            self.targets.exact.write(index, batch)
            start += len(index)

    def _run_integers(self, part: BlockSteps) -> None:
        run = hard_run(self.program, part, part.steps)
        inputs = [ref.name for ref in part.inputs]
        every = self.given.layout.all_parts()
        for index, found in run_parts(lambda some: run(self.given.take(inputs, some)), every):
            self.given.write(index, found)

    def _forget(self, index: int) -> None:
        """Drop tensors that no later block and no comparison needs."""
        later = {name for block in self.blocks[index + 1 :] for name in block.inputs}
        needed = later | self.targets.ends
        self.given.keep(needed)
        self.targets.exact.keep(needed)
