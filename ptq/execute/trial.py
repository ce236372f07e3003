"""Try the float model once in a child process: onnxruntime itself may crash on samples.

Samples that a model does not expect, invented ones above all, have ended processes by a division
by zero inside an operator. The child has the sandbox's limits of time and memory too.
"""

from __future__ import annotations

import io
import json

import numpy as np
import onnx
import onnx_ir as ir

from ptq.execute.float import Batch, cannot_run, needs_file, start_session
from ptq.sandbox import call

LENGTH_BYTES = 8


def try_in_child(model: ir.Model, batch: Batch) -> None:
    """Run the model once where a crash of the runtime takes nothing with it.

    A model too large for a protobuf is not tried.

    Raises:
        CalibrationError: it cannot be run on this batch.
    """
    if needs_file(model):
        return
    arrays = io.BytesIO()
    np.savez(arrays, *batch.values())
    names = json.dumps(list(batch)).encode()
    parts = [names, ir.to_proto(model).SerializeToString(), arrays.getvalue()]
    packed = b"".join(len(part).to_bytes(LENGTH_BYTES, "little") + part for part in parts)
    outcome = call(run_in_child, packed)
    if outcome.output is None:
        raise cannot_run(batch, " ".join(outcome.failure.split()))


def run_in_child(payload: bytes) -> bytes:
    """What the child does: run the model that `try_in_child` packed on its arrays."""
    parts = []
    while payload:
        size = int.from_bytes(payload[:LENGTH_BYTES], "little")
        parts.append(payload[LENGTH_BYTES : LENGTH_BYTES + size])
        payload = payload[LENGTH_BYTES + size :]
    names, proto, packed = parts
    arrays = np.load(io.BytesIO(packed), allow_pickle=False)
    feed = {name: arrays[f"arr_{i}"] for i, name in enumerate(json.loads(names))}
    start_session(ir.from_proto(onnx.ModelProto.FromString(proto)), 1).run(None, feed)
    return b"ran"
