"""Run one segment of a model, with the weights of that segment alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.execute.float import FloatRunner
from ptq.weights_only.segments import Segment

Array = npt.NDArray[Any]


class SegmentRunner:
    """The nodes of a segment as a model of its own."""

    def __init__(self, model: ir.Model, segment: Segment, wanted: Sequence[str]) -> None:
        """Prepare to compute the values `wanted`, made in the segment or before it."""
        self.inputs = segment.inputs
        self.wanted = tuple(dict.fromkeys(wanted))
        self._model = model
        self._runner: FloatRunner | None = None

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """The wanted values from the segment's inputs."""
        made = [name for name in self.wanted if name not in batch]
        if made and self._runner is None:
            self._runner = self._open(made, batch)
        found = self._runner.run(batch) if self._runner is not None else {}
        return {name: found[name] if name in found else batch[name] for name in self.wanted}

    def close(self) -> None:
        """Let go of the session."""
        if self._runner is not None:
            self._runner.close()

    def _open(self, made: Sequence[str], batch: Mapping[str, Array]) -> FloatRunner:
        graph = ir.convenience.extract(self._model.graph, self.inputs, made)
        for value in graph.inputs:
            x = batch[str(value.name)]
            value.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(x.dtype)))
            value.shape = ir.Shape([None] * x.ndim)
        graph.opset_imports.update(self._model.opset_imports)
        return FloatRunner(ir.Model(graph, ir_version=self._model.ir_version), made, threads=1)
