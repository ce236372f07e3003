"""What onnxruntime runs is read from its own optimised graph."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from ptq.errors import InvalidModelError
from ptq.targets.inspect_runtime import float_ops, runtime_graph

MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[N, 8, 4, 4] x) => (float[N, 8, 4, 4] y)
<float scale = {0.1}, uint8 zero = {128}>
{
    codes = QuantizeLinear(x, scale, zero)
    NODES
}
"""


def model(*nodes):
    return onnx.parser.parse_model(MODEL.replace("NODES", "\n".join(nodes))).SerializeToString()


def test_boundary_is_no_float_op():
    found = runtime_graph(
        model(
            "big = MaxPool<kernel_shape = [1, 1]>(codes)", "y = DequantizeLinear(big, scale, zero)"
        )
    )
    assert found.float_ops == []
    assert found.operators["QuantizeLinear"] == 1


def test_float_island_is_listed_with_its_name():
    data = model("v = DequantizeLinear(codes, scale, zero)", "[wave] y = Sin(v)")
    assert "Sin: wave" in float_ops(data)
    assert any(op.startswith("DequantizeLinear") for op in float_ops(data))


def test_float_convolution_is_float_though_its_layout_changed():
    weight = onnx.numpy_helper.from_array(np.ones((16, 8, 1, 1), np.float32), "w")
    graph = onnx.parser.parse_graph(
        "g (float[1, 8, 8, 8] x) => (float[1, 16, 6, 6] y) {"
        "[conv] c = Conv(x, w) y = MaxPool<kernel_shape = [3, 3]>(c)}"
    )
    graph.initializer.append(weight)
    opset = onnx.helper.make_opsetid("", 21)
    proto = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    assert len(float_ops(proto.SerializeToString())) >= 2


def test_sizes_of_what_stays_in_memory():
    data = model("y = DequantizeLinear(codes, scale, zero)")
    assert runtime_graph(data).weight_bytes == {"FLOAT": 4, "UINT8": 1}


def test_what_does_not_load_is_refused(tmp_path):
    with pytest.raises(InvalidModelError, match="does not load"):
        float_ops(b"not a model")
    with pytest.raises(InvalidModelError, match=r"missing\.onnx"):
        float_ops(tmp_path / "missing.onnx")


def test_weights_in_another_file_are_not_looked_for_beside_the_dump(tmp_path: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 64]) for n in "xy"]
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [weight])
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10
    )
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    assert runtime_graph(path).weight_bytes == {"FLOAT": 4 * 64 * 64}
