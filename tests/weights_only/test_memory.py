"""Memory is that of one layer: a model that would not fit under a limit is quantised there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

WIDTH = 512
LAYER_BYTES = 4 * WIDTH * WIDTH

# RLIMIT_DATA counts private writable memory: heaps and buffers, not mapped files.
SCRIPT = """
import resource, sys
from pathlib import Path
import numpy as np
import onnxruntime, scipy.optimize  # what is loaded is not what is used
import ptq, ptq.weights_only

model, rounding, room = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
used = int(status["VmData"].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + room, used + room))
x = np.random.default_rng(1).normal(size=(64, 512)).astype(np.float32)
recipe = ptq.Recipe.preset("w4a16").replace(symmetric=True, rounding=rounding, descent=False)
ptq.quantize_weights(model, [x], recipe).save(model.with_name("out.onnx"))
try:
    np.ones(model.with_name("weights.bin").stat().st_size // 4, np.float32)
except MemoryError:
    print("the whole model does not fit")
"""


def deep_model(layers: int, folder: Path) -> Path:
    """x + tanh(x w) again and again, its weights in a file of their own."""
    rng = np.random.default_rng(0)
    nodes, weights, x = [], [], "x"
    with (folder / "weights.bin").open("wb") as file:
        for i in range(layers):
            tensor = TensorProto(
                name=f"w{i}", dims=[WIDTH, WIDTH], data_type=TensorProto.FLOAT,
                data_location=TensorProto.EXTERNAL,
            )  # fmt: skip
            entries = {"location": file.name.rpartition("/")[2], "offset": file.tell()}
            for key, value in {**entries, "length": LAYER_BYTES}.items():
                tensor.external_data.add(key=key, value=str(value))
            file.write((rng.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32).tobytes())
            weights.append(tensor)
            nodes += [
                helper.make_node("MatMul", [x, f"w{i}"], [f"y{i}"], f"product{i}"),
                helper.make_node("Tanh", [f"y{i}"], [f"t{i}"], f"tanh{i}"),
                helper.make_node("Add", [x, f"t{i}"], [f"x{i}"], f"add{i}"),
            ]
            x = f"x{i}"
    graph = helper.make_graph(
        nodes,
        "deep",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", WIDTH])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = folder / "deep.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and sets RLIMIT_DATA")
@pytest.mark.parametrize(
    ("rounding", "layers", "layers_of_room"),
    [("nearest", 64, 48), pytest.param("gptq", 160, 140, marks=pytest.mark.slow)],
)
def test_a_model_larger_than_the_memory_goes_through(
    rounding: str, layers: int, layers_of_room: int, tmp_path: Path
) -> None:
    """Room for fewer layers than the model has; rounding itself takes some layers' worth."""
    model, room = deep_model(layers, tmp_path), layers_of_room * LAYER_BYTES
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model), rounding, str(room)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "the whole model does not fit"
    proto = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    products = [node for node in proto.graph.node if node.op_type == "MatMulNBits"]
    assert len(products) == layers
    assert (tmp_path / "out.onnx.data").stat().st_size < layers * LAYER_BYTES / 7
