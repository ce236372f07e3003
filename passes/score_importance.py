"""Score importance: what each tensor loses at each width, in nats of KL to the float model.

A network whose tensor t is off by delta is, to second order, off by

    KL(float || quantised) = 1/2 E_x [delta^T F(x) delta],  F = J^T (diag(p) - p p^T) J

with J the Jacobian of the logits and p their softmax: the Fisher information, for which no label is
needed. With e of independent signs, v = sqrt(p) * e - p (sqrt(p) . e) has that covariance, so the
gradient g of v . logits gives 1/2 E[(g . delta)^2]: HAWQ's trace (arXiv 2011.10680) without the
assumption that delta is spread evenly, BRECQ's Fisher weight (arXiv 2102.05426) for a direction.

1. delta of a weight is what its layer adds to its output, with the bias corrected.
2. delta of an activation is what its grid rounds and clips away.
3. Outputs that are no scores of classes count their squared error over their energy instead of KL.

All candidates of all tensors are scored in one pass over the samples. Scores never rise with bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.execute.class_axis import class_axis
from ptq.integer.units import Unit
from ptq.passes.context import Context, Progress
from ptq.plan import ActivationPlan

if TYPE_CHECKING:
    import torch

    from ptq.execute.differentiable import FloatGraph

Array = npt.NDArray[Any]
Table = dict[str, dict[int, float]]
"""Tensor -> bits -> nats."""


@dataclass(frozen=True)
class WeightError:
    """What rounding does to a layer.

    weight: rounded minus float, in the layout and units of the graph's own constant.
    shift: [channels] float32, what bias correction adds.
    """

    weight: npt.NDArray[np.float32]
    shift: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Importance:
    """Nats of KL by unit name and weight bits, and by site name and activation bits."""

    weights: Table
    activations: Table


@dataclass(frozen=True)
class ScoreImportance:
    """probes: random directions of the output that are differentiated, for every sample."""

    probes: int = 4

    def __call__(
        self,
        context: Context,
        errors: Mapping[str, Mapping[int, WeightError]],
        grids: Mapping[str, Mapping[int, ActivationPlan]],
    ) -> Importance:
        """Score every (unit, bits) of `errors` and every (site, bits) of `grids`.

        Raises:
            UnsupportedModelError: an operator that the differentiable executor does not have.
        """
        import torch

        units = {unit.name: unit for unit in context.outline.weighted if unit.name in errors}
        network = _Network.of(context, list(units.values()), list(grids))
        layers = {name: _Layer.of(context, units[name], found) for name, found in errors.items()}
        sums: dict[str, Table] = {
            "weights": {name: dict.fromkeys(found, 0.0) for name, found in errors.items()},
            "activations": {name: dict.fromkeys(found, 0.0) for name, found in grids.items()},
        }
        noise = torch.Generator().manual_seed(context.recipe.seed)
        size = max(1, context.batch_size(network.taps) // self.probes)
        samples = 0
        for done, batch in enumerate(context.batches(size), 1):
            values, gradients = network.differentiate(batch, self.probes, noise)
            for name, layer in layers.items():
                for bits, squares in layer.squares(values, gradients).items():
                    sums["weights"][name][bits] += squares
            for name, candidates in grids.items():
                for bits, grid in candidates.items():
                    delta = _rounding_error(values[name], grid)
                    sums["activations"][name][bits] += _squares(gradients[name], delta)
            samples += network.rows
            context.report(Progress("score importance", done, context.batches_of(size)))
        scale = 0.5 / (self.probes * max(samples, 1))
        return Importance(
            *(
                {t: falling(s, scale) for t, s in sums[k].items()}
                for k in ("weights", "activations")
            )
        )


def falling(scores: Mapping[int, float], scale: float = 1.0) -> dict[int, float]:
    """Scores times `scale`, in ascending bits and made to fall: at least what more bits score."""
    bits = sorted(scores, reverse=True)
    highest = np.maximum.accumulate([scores[b] * scale for b in bits])
    return {b: float(score) for b, score in zip(bits[::-1], highest[::-1], strict=True)}


@dataclass
class _Network:
    """The float model, differentiable with respect to the tapped tensors."""

    graph: FloatGraph
    outputs: tuple[str, ...]
    taps: tuple[str, ...]
    trained: dict[str, torch.Tensor]
    rows: int = 0

    @staticmethod
    def of(context: Context, units: Sequence[Unit], sites: Sequence[str]) -> _Network:
        import torch

        from ptq.execute.differentiable import FloatGraph

        model = context.model
        outputs = tuple(dict.fromkeys(_scores_of(v) for v in model.graph.outputs))
        written = [str(unit.node.outputs[0].name) for unit in units]
        taps = tuple(dict.fromkeys([*written, *(u.inputs[0] for u in units), *sites]))
        inputs = {str(v.name) for v in model.graph.inputs}
        graph = FloatGraph(
            model.graph,
            model.opset_imports[""],
            outputs=[name for name in dict.fromkeys([*outputs, *taps]) if name not in inputs],
        )
        # Something upstream of every tensor has to want a gradient, even where inputs are integers.
        trained = {
            str(v.name): torch.from_numpy(v.const_value.numpy().copy()).requires_grad_()
            for v in model.graph.initializers.values()
            if v.const_value is not None
            and v.const_value.dtype == ir.DataType.FLOAT
            and v.const_value.shape.rank() > 1
        }
        return _Network(graph, outputs, taps, trained)

    def differentiate(
        self, batch: Mapping[str, Array], probes: int, noise: torch.Generator
    ) -> tuple[dict[str, torch.Tensor], dict[str, list[torch.Tensor]]]:
        """Tapped values, and their gradients under each probe, by name."""
        import torch

        given = {name: torch.from_numpy(np.array(x)) for name, x in batch.items()}
        self.rows = max((len(x) for x in given.values() if x.ndim), default=1)
        for x in given.values():
            x.requires_grad_(x.is_floating_point())
        values = given | self.graph.run({**given, **self.trained})
        taps = [name for name in self.taps if values[name].requires_grad]
        gradients: dict[str, list[torch.Tensor]] = {name: [] for name in self.taps}
        for probe in range(probes):
            target = torch.stack([_probe(values[name], noise) for name in self.outputs]).sum()
            found = torch.autograd.grad(
                target, [values[n] for n in taps], retain_graph=probe + 1 < probes,
                allow_unused=True,
            )  # fmt: skip
            for name, gradient in zip(taps, found, strict=True):
                if gradient is not None:
                    gradients[name].append(gradient)
        return {name: values[name].detach() for name in self.taps}, gradients


@dataclass
class _Layer:
    """One weighted node, run with what rounding adds to its weight and bias."""

    graph: FloatGraph
    unit: Unit
    axis: int
    errors: dict[int, tuple[torch.Tensor, torch.Tensor]]

    @staticmethod
    def of(context: Context, unit: Unit, errors: Mapping[int, WeightError]) -> _Layer:
        import torch

        from ptq.execute.differentiable import FloatGraph

        graph = FloatGraph([unit.node], context.model.opset_imports[""])
        found = {
            b: (torch.from_numpy(e.weight), torch.from_numpy(e.shift)) for b, e in errors.items()
        }
        return _Layer(graph, unit, 1 if unit.kind == "conv" else -1, found)

    def squares(
        self, values: Mapping[str, torch.Tensor], gradients: Mapping[str, list[torch.Tensor]]
    ) -> dict[int, float]:
        """Bits -> the sum over samples and probes of (g . delta)^2."""
        import torch

        node = self.unit.node
        output, (x, w, *others) = str(node.outputs[0].name), [v for v in node.inputs if v]
        found = {}
        for bits, (weight, shift) in self.errors.items():
            given = {str(x.name): values[self.unit.inputs[0]], str(w.name): weight}
            given |= {str(v.name): torch.zeros_like(shift) for v in others}  # its bias is no error
            with torch.no_grad():
                delta = self.graph.run(given)[output]
                shape = [1] * delta.ndim
                shape[self.axis] = -1
                found[bits] = _squares(gradients[output], delta + shift.reshape(shape))
        return found


def _squares(gradients: Sequence[torch.Tensor], delta: torch.Tensor) -> float:
    """Sum over probes and rows of (g . delta)^2; rows are samples if they lead, and else finer."""
    rows = delta.shape[0] if delta.ndim else 1
    dots = [(g * delta).reshape(rows, -1).sum(dim=1) for g in gradients]
    return float(sum(dot.double().square().sum() for dot in dots))


def _rounding_error(x: torch.Tensor, grid: ActivationPlan) -> torch.Tensor:
    codes = (x / float(grid.scale)).round() + grid.zero_point
    return (codes.clamp(grid.low, grid.high) - grid.zero_point) * float(grid.scale) - x


def _scores_of(output: ir.Value) -> str:
    """The scores under a model's final Softmax, or the output itself."""
    producer = output.producer()
    if producer is not None and producer.op_type in ("Softmax", "LogSoftmax"):
        return str(producer.inputs[0].name)  # type: ignore[union-attr]
    return str(output.name)


def _probe(output: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """v . output, where v has the covariance that this output's error is weighed with."""
    import torch

    signs = 2.0 * torch.randint(0, 2, output.shape, generator=noise).to(output.dtype) - 1.0
    exact = output.detach()
    axis = class_axis(tuple(output.shape))
    if axis is None:
        energy = exact.square().reshape(len(exact), -1).sum(dim=1).clamp(min=1e-12)
        scale = energy.rsqrt().reshape(-1, *[1] * (output.ndim - 1))
        return (output * signs * scale).sum()
    root = torch.softmax(exact, axis).sqrt()
    direction = root * signs - root.square() * (root * signs).sum(dim=axis, keepdim=True)
    return (output * direction).sum()
