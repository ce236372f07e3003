"""What the float model makes of the samples: the targets of every block, and losses on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from ptq.execute.differentiable import FloatGraph, to_array, to_tensor
from ptq.integer.blocks import Block
from ptq.passes.context import Context
from ptq.passes.learning.fisher import fisher_diagonals
from ptq.passes.learning.learn_block import device_of_choice
from ptq.passes.learning.losses import Array, Loss, divergence, fisher_error, squared_error
from ptq.passes.learning.samples import Index, SampleStore, run_parts
from ptq.passes.learning.steps import BlockSteps


class Targets:
    """The float model's tensors between blocks.

    exact: where they are kept. ends: names of the model's inputs and outputs.
    """

    def __init__(
        self, context: Context, blocks: Sequence[Block], exact: SampleStore, loss: str
    ) -> None:
        self.context, self.blocks, self.exact, self._loss = context, blocks, exact, loss
        self.opset = context.model.opset_imports.get("", 21)
        self.results = [str(value.name) for value in context.model.graph.outputs]
        self.ends = {str(value.name) for value in context.model.graph.inputs} | set(self.results)
        self.device = device_of_choice()
        self._fisher: Mapping[str, Array] = {}

    def prepare(self) -> None:
        """What the loss needs of the whole float model before the first block."""
        if self._loss == "fisher":
            seed = self.context.recipe.seed
            self._fisher = fisher_diagonals(self.blocks, self.opset, self.exact, self.results, seed)
        if self._loss == "kl":
            self._run([n for block in self.blocks for n in block.nodes], self.results)

    def run(self, block: Block) -> None:
        """The float outputs of a block, from its float inputs."""
        self._run(block.nodes, block.outputs)

    def loss(self, index: int) -> Loss:
        """What is minimised in a block."""
        if self._loss == "fisher":
            return fisher_error(self._fisher)
        if self._loss == "kl":
            return divergence(self._rest(index))
        return squared_error

    def wanted(self, block: Block) -> list[str]:
        """Float tensors that the loss of a block compares with."""
        names = dict.fromkeys(block.outputs)
        if self._loss == "kl":
            later = (n for other in self.blocks for n in other.inputs if n in self.exact)
            names |= dict.fromkeys([*self.results, *later])
        return [name for name in names if self.exact.dtype(name).kind == "f"]

    def float_outputs(self, block: BlockSteps) -> bool:
        """The block makes something that can be compared."""
        return any(self.exact.dtype(ref.name).kind == "f" for ref in block.outputs)

    def _rest(self, index: int) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
        """From a block's outputs to the network's, in floats."""
        nodes = [node for block in self.blocks[index + 1 :] for node in block.nodes]
        made = [name for name in self.results if name not in self.blocks[index].outputs]
        graph = FloatGraph(nodes, self.opset, outputs=made, device=self.device) if nodes else None

        def rest(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            known = dict(values) if graph is None else {**values, **graph.run(values)}
            return {name: known[name] for name in self.results if name in known}

        return rest

    def _run(self, nodes: Sequence[ir.Node], outputs: Sequence[str]) -> None:
        graph = FloatGraph(nodes, self.opset, outputs=outputs, device=self.device)
        inputs = [name for name in graph.inputs if name in self.exact]

        def run(index: Index) -> dict[str, Array]:
            with torch.inference_mode():
                values = self.exact.take(inputs, index)
                found = graph.run({n: to_tensor(x, self.device) for n, x in values.items()})
                return {n: to_array(x) for n, x in found.items()}

        for index, found in run_parts(run, self.exact.layout.all_parts()):
            self.exact.write(index, found)
