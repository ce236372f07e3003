"""One ONNX node by itself, in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

Array = npt.NDArray[Any]
CUSTOM_DOMAINS = (("com.microsoft", 1),)
IR_VERSION = 10
ERRORS_ONLY = 3


def run_node(node: onnx.NodeProto, feeds: Mapping[str, Array], opset: int) -> list[Array]:
    """Its outputs, for inputs by name; `feeds` also has what its bodies capture.

    Raises what onnxruntime raises.
    """
    import onnxruntime as ort

    inputs = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape
        )
        for name, a in feeds.items()
    ]
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output]
    graph = onnx.helper.make_graph([node], "node", inputs, outputs)
    imports = [onnx.helper.make_opsetid(*pair) for pair in (("", opset), *CUSTOM_DOMAINS)]
    proto = onnx.helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    given = {name: np.asarray(x) for name, x in feeds.items()}  # arithmetic makes scalars of []
    results: Sequence[Any] = session.run(None, given)
    return [np.asarray(result) for result in results]
