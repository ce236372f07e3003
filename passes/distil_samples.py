"""Invent samples that look to the network as its training data did (ZeroQ, arXiv 2001.00281).

Equation 3 there: starting from invented images x, Adam lowers

    sum_layers mean((E[y] - beta)^2 + (S[y] - |gamma|)^2) / (gamma^2 + e)

over x, where y is a layer's output before its activation, E and S its mean and standard deviation
over samples and positions, and beta, |gamma| what batch normalisation says they were in training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.passes.batch_norm_statistics import Statistics
from ptq.passes.context import Batch, Progress

Array = npt.NDArray[Any]

LEAST_SHARE = 0.01  # of the layer's mean gamma^2: dead channels do not count for ever


@dataclass(frozen=True)
class DistilSamples:
    """iterations: steps of Adam a batch; lr: of pixels, in standard deviations of the start."""

    iterations: int = 60
    lr: float = 0.05

    def __call__(
        self,
        model: ir.Model,
        statistics: Mapping[str, Statistics],
        batches: Sequence[Batch],
        report: Callable[[Progress], None],
    ) -> list[Batch]:
        """The batches, every second of them moved until it matches the statistics.

        The others stay: what matches on average has fewer extremes, and ranges depend on those.
        statistics: of values of the prepared model. Every batch has one input, of floats.
        """
        import torch

        from ptq.execute.differentiable import FloatGraph

        opset = model.opset_imports.get("", 21)
        graph = FloatGraph(model.graph, opset, outputs=list(statistics))
        with torch.enable_grad():
            return [
                batch
                if done % 2
                else self._distil(graph, statistics, batch, Stage(report, done, len(batches)))
                for done, batch in enumerate(batches)
            ]

    def _distil(
        self, graph: Any, statistics: Mapping[str, Statistics], batch: Batch, stage: Stage
    ) -> Batch:
        import torch

        ((name, start),) = batch.items()
        x = torch.tensor(np.asarray(start, np.float32), requires_grad=True)
        optimizer = torch.optim.Adam([x], lr=self.lr * float(start.std()))
        for done in range(self.iterations):
            found = graph.run({name: x})
            loss = sum(mismatch(found[layer], known) for layer, known in statistics.items())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            stage.report(done + 1, self.iterations)
        return {name: x.detach().numpy()}


@dataclass(frozen=True)
class Stage:
    """Progress of one batch of several."""

    send: Callable[[Progress], None]
    batch: int
    batches: int

    def report(self, done: int, total: int) -> None:
        """Tell how many iterations are done."""
        self.send(Progress("distil samples", self.batch * total + done, self.batches * total))


def mismatch(y: Any, known: Statistics) -> Any:
    """How far a layer's output [n, channels, ...] is from its statistics: a scalar tensor."""
    import torch

    axes = [axis for axis in range(y.ndim) if axis != 1]
    gamma, beta = torch.tensor(known.deviation), torch.tensor(known.mean)
    unit = gamma.square() + LEAST_SHARE * gamma.square().mean() + 1e-12
    deviation = y.var(axes, correction=0).clamp(min=1e-12).sqrt()
    apart = (y.mean(axes) - beta).square() + (deviation - gamma).square()
    return (apart / unit).mean()


def can_distil(model: ir.Model, statistics: Mapping[str, Statistics]) -> dict[str, Statistics]:
    """The statistics that the prepared model can be matched to; none if it has no gradients.

    One float input with a free batch size is what a batch of samples is learned for.
    """
    from ptq.execute.differentiable import unsupported

    made = {str(value.name) for node in model.graph for value in node.outputs}
    inputs = model.graph.inputs
    shape = inputs[0].shape if len(inputs) == 1 else None
    plain = shape is not None and len(shape) == 4 and not isinstance(shape[0], int)
    if not plain or inputs[0].dtype != ir.DataType.FLOAT or unsupported(model.graph):
        return {}
    return {name: known for name, known in statistics.items() if name in made}
