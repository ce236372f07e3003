"""A model as the user will run it: stock onnxruntime with all its optimisations, on the CPU."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.cpus import usable_cpus
from ptq.errors import CalibrationError, PtqError, UnsupportedModelError
from ptq.grid import Grid
from ptq.plan import ActivationPlan

Array = npt.NDArray[Any]
Batch = Mapping[str, Array]
Source = Path | ir.Model

LARGEST_PROTO_BYTES = 1_900_000_000
CODES_KEY = "ptq.codes."


def cpu_threads() -> int:
    """How many CPUs this process may use."""
    return len(usable_cpus())


@dataclass(frozen=True)
class Session:
    """An open model.

    name: for messages. handle: the onnxruntime.InferenceSession.
    grids: boundary values that are codes (`--io integer`), from the model's own metadata.
    """

    name: str
    handle: Any
    grids: Mapping[str, ActivationPlan]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return tuple(value.name for value in self.handle.get_inputs())

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(value.name for value in self.handle.get_outputs())

    def feeds(self, batch: Batch) -> dict[str, Array]:
        """What the model is fed for a batch of float inputs: codes where it wants codes.

        Raises:
            CalibrationError: the batch lacks an input.
        """
        missing = [name for name in self.inputs if name not in batch]
        if missing:
            raise CalibrationError(
                f"{self.name}: wants input {missing[0]!r}; the samples have "
                f"{', '.join(batch) or 'nothing'}"
            )
        grids = self.grids
        return {
            name: grids[name].quantize(batch[name]) if name in grids else batch[name]
            for name in self.inputs
        }

    def run(self, feeds: Batch) -> dict[str, Array]:
        """Outputs as the model gives them, by name, for what `feeds` returned.

        Raises:
            CalibrationError: onnxruntime cannot run it on these.
            PtqError: a compiled module cannot run.
        """
        try:
            results = self.handle.run(None, dict(feeds))
        except PtqError:
            raise
        except Exception as error:  # onnxruntime's own classes are private
            shapes = {name: f"{x.dtype}{list(x.shape)}" for name, x in feeds.items()}
            raise CalibrationError(
                f"{self.name}: onnxruntime cannot run it on {shapes}: {_first_line(error)}; "
                "check the samples against the model's inputs"
            ) from error
        return dict(zip(self.outputs, results, strict=True))

    def predict(self, batch: Batch) -> dict[str, Array]:
        """Float outputs by name from float inputs, whatever the boundary is."""
        found = self.run(self.feeds(batch))
        return {
            name: self.grids[name].dequantize(x) if name in self.grids else x
            for name, x in found.items()
        }


def open_session(
    source: Source,
    *,
    name: str = "model",
    threads: int | None = None,
    profile_prefix: str | None = None,
) -> Session:
    """Open a model file, or a model in memory.

    threads: of one operator; None is all CPUs. profile_prefix: where onnxruntime's profile begins
    to be written, until the handle's `end_profiling`.

    Raises:
        UnsupportedModelError: onnxruntime does not load it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or cpu_threads()
    options.log_severity_level = 3
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix

    def load(model: str | bytes) -> Any:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    try:
        if isinstance(source, Path):
            handle = load(str(source))
        elif size_bytes(source) <= LARGEST_PROTO_BYTES and not has_external(source):
            handle = load(ir.to_proto(source).SerializeToString())
        else:
            with tempfile.TemporaryDirectory(prefix="ptq-") as folder:
                path = Path(folder) / "model.onnx"
                ir.save(source, path, external_data="model.onnx.data")
                handle = load(str(path))
    except Exception as error:  # onnxruntime's own classes are private
        raise UnsupportedModelError(
            f"{name}: onnxruntime {onnxruntime.__version__} cannot load it: {_first_line(error)}"
        ) from error
    return Session(name, handle, boundary_grids(handle.get_modelmeta().custom_metadata_map))


def boundary_grids(metadata: Mapping[str, str]) -> dict[str, ActivationPlan]:
    """Grids of boundary codes from a model's metadata."""
    grids = {}
    for key, text in metadata.items():
        if key.startswith(CODES_KEY):
            record = json.loads(text)
            grids[key.removeprefix(CODES_KEY)] = ActivationPlan(
                Grid(),
                np.float32(record["scale"]),
                int(record["zero_point"]),
                int(record["low"]),
                int(record["high"]),
            )
    return grids


def size_bytes(model: ir.Model) -> int:
    """Bytes of the weights of a model."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def has_external(model: ir.Model) -> bool:
    """True if weights of the model lie in files of their own."""
    return any(
        isinstance(value.const_value, ir.ExternalTensor)
        for value in model.graph.initializers.values()
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
