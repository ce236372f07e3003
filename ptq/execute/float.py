"""The float model in onnxruntime, with chosen tensors made visible (tapped)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.errors import CalibrationError, UnsupportedModelError
from ptq.execute.taps import group, tap_bytes, tapped

if TYPE_CHECKING:
    import onnxruntime

Array = npt.NDArray[Any]
Batch = Mapping[str, Array]

LARGEST_PROTO_BYTES = 1_900_000_000
"""Protobuf ends at 2 GiB; a larger model goes to onnxruntime through a file."""


class FloatRunner:
    """Runs the float model and returns the values of chosen tensors.

    onnxruntime's graph optimisations are off: they fuse a node into its neighbour only where nobody
    looks at the tensor between, so with them a tensor's value depends on what else is tapped.
    The session is made at the first `run`; a runner holds one session and no samples.
    """

    def __init__(
        self,
        model: ir.Model,
        taps: Sequence[str],
        *,
        threads: int = 2,
        memory_mb: int = 1024,
    ) -> None:
        """Prepare to run `model`, which is not changed.

        taps: names of values of the main graph; none means the model's outputs.
        memory_mb: what the tapped tensors of one batch may take together; see `split`.

        Raises:
            UsageError: a tap that is not a value of the graph.
        """
        self._model = model
        self._threads = threads
        self._memory_mb = memory_mb
        self.taps = tuple(taps) or tuple(str(value.name) for value in model.graph.outputs)
        self._inputs = {str(value.name) for value in model.graph.inputs}
        self._fetched = [name for name in dict.fromkeys(self.taps) if name not in self._inputs]
        self._tapped = tapped(model, self._fetched)
        self._session: onnxruntime.InferenceSession | None = None

    def run(self, batch: Batch) -> dict[str, Array]:
        """Values of the tapped tensors, by name, for one batch of inputs.

        Raises:
            UnsupportedModelError: onnxruntime cannot load the model.
            CalibrationError: it cannot run it on this batch.
        """
        values: dict[str, Array] = {name: batch[name] for name in self.taps if name in batch}
        if self._fetched:
            session = self.open()
            feed = {
                name: np.ascontiguousarray(x) for name, x in batch.items() if name in self._inputs
            }
            results = _run(session, self._fetched, feed)
            values |= dict(zip(self._fetched, results, strict=True))
        return {name: values[name] for name in self.taps}

    def split(self, batch: Batch) -> Iterator[Self]:
        """Runners for groups of the taps that stay within the memory budget on such a batch.

        Yields this runner alone if everything fits. Each other one is closed when the next begins,
        so that one session exists at a time.
        """
        budget = self._memory_mb << 20
        groups = group(tap_bytes(self._model, self.taps, batch, self._probe), budget)
        if len(groups) == 1:
            yield self
            return
        self.close()
        for names in groups:
            part = type(self)(self._model, names, threads=self._threads, memory_mb=self._memory_mb)
            yield part
            part.close()

    def open(self) -> onnxruntime.InferenceSession:
        """The session, made if it is not there yet.

        Raises:
            UnsupportedModelError: onnxruntime cannot load the model.
        """
        if self._session is None:
            self._session = start_session(self._tapped, self._threads)
        return self._session

    def close(self) -> None:
        """Let go of the session; the next run makes a new one."""
        self._session = None

    def _probe(self, model: ir.Model, batch: Batch, names: Sequence[str]) -> list[Array]:
        session = start_session(model, self._threads)
        return _run(session, names, batch)


def _run(session: onnxruntime.InferenceSession, names: Sequence[str], feed: Batch) -> list[Array]:
    try:
        return list(session.run(list(names), dict(feed)))
    except Exception as error:  # onnxruntime's own classes are private
        raise cannot_run(feed, _first_line(error)) from error


def cannot_run(batch: Batch, reason: str) -> CalibrationError:
    """The error for samples that the model does not take."""
    shapes = {name: f"{x.dtype}{list(x.shape)}" for name, x in batch.items()}
    return CalibrationError(
        f"onnxruntime cannot run the model on {shapes}: {reason}; check the samples against the "
        "model's inputs, or give real ones (--calib) where they are invented"
    )


def start_session(model: ir.Model, threads: int) -> onnxruntime.InferenceSession:
    """An onnxruntime session that computes node by node, as the graph says.

    Raises:
        UnsupportedModelError: onnxruntime cannot load the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    def load(source: str | bytes) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    try:
        if not needs_file(model):
            return load(ir.to_proto(model).SerializeToString())
        with tempfile.TemporaryDirectory(prefix="ptq-float-") as folder:
            path = Path(folder) / "model.onnx"
            ir.save(model, path, external_data="model.data")
            return load(str(path))
    except Exception as error:  # onnxruntime's own classes are private
        raise UnsupportedModelError(
            f"onnxruntime {onnxruntime.__version__} cannot load the float model:"
            f" {_first_line(error)}; calibration needs to run it"
        ) from error


def needs_file(model: ir.Model) -> bool:
    """True if the model is too large to be one protobuf."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    external = any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
    return external or sum(t.nbytes for t in tensors if t is not None) > LARGEST_PROTO_BYTES


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
