"""Every tensor of the integer network beside the float one's: how near, and how it is spread."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.execute.float import FloatRunner
from ptq.execute.taps import graph_values, tapped
from ptq.histogram import Histogram
from ptq.report.metrics import Fidelity
from ptq.report.session import Batch, open_session
from ptq.report.verification import Runners, Subject

Array = npt.NDArray[Any]


@dataclass
class Tensor:
    """One activation. histogram: of the float values. fidelity: of the codes' values to them.

    error: sum of the errors of every channel (axis 1), [channels], and rows: errors in each sum.
    """

    fidelity: Fidelity = field(default_factory=Fidelity)
    histogram: Histogram = field(default_factory=Histogram)
    error: Array | float = 0.0
    rows: int = 0

    def add(self, wanted: Array, got: Array) -> None:
        """Add one batch."""
        self.fidelity.add(wanted, got)
        self.histogram.update(wanted)
        if wanted.ndim > 1 and wanted.size:
            axes = tuple(axis for axis in range(wanted.ndim) if axis != 1)
            self.error = self.error + (got.astype(np.float64) - wanted).sum(axis=axes)
            self.rows += wanted.size // wanted.shape[1]

    @property
    def shift_share(self) -> float | None:
        """Part of the squared error that is the mean error of its channel; None if unknown."""
        if not self.rows or not self.fidelity.noise:
            return None
        return float(np.square(self.error).sum() / self.rows / self.fidelity.noise)


def tensors(
    subject: Subject, batches: Iterable[Batch], progress: Callable[[int], None] | None = None
) -> dict[str, Tensor]:
    """Run both networks on every batch; value name -> what was seen, where both have the tensor.

    Nothing without a float model, and for compiled modules, which have no names for tensors.
    batches: float inputs by name. progress: called with the number of samples done.

    Raises:
        UnsupportedModelError: onnxruntime does not load the target.
        CalibrationError: the samples do not fit.
    """
    if subject.float_model is None or isinstance(subject.target, Runners):
        return {}
    visible, known = graph_values(subject.target), graph_values(subject.float_model)
    names = {
        name: codes
        for name, codes in subject.code_names.items()
        if codes in visible and name in known and known[name].dtype == ir.DataType.FLOAT
    }
    session = open_session(tapped(subject.target, list(names.values())), name="tapped target")
    runner = FloatRunner(subject.float_model, list(names))
    found = {name: Tensor() for name in names}
    samples = 0
    for batch in batches:
        codes = session.run(session.feeds(batch))
        for part in runner.split(batch):
            for name, x in part.run(batch).items():
                grid = subject.program.codes[name]
                found[name].add(x, grid.dequantize(codes[names[name]]))
        samples += max((len(x) for x in batch.values() if x.ndim), default=1)
        if progress is not None:
            progress(samples)
    return found
