"""load() takes what the caller has, and says what is wrong with what it cannot take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from ptq.errors import InvalidModelError, UnsupportedModelError
from ptq.model import load

TEXT = (
    '<ir_version: 10, opset_import: ["" : 21]> g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }'
)


@pytest.fixture
def proto() -> onnx.ModelProto:
    return onnx.parser.parse_model(TEXT)


def test_every_source_gives_the_same_graph(proto: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    for source in (path, str(path), proto, proto.SerializeToString(), load(proto)):
        model = load(source)
        assert isinstance(model, ir.Model)
        assert [node.op_type for node in model.graph] == ["Relu"]


def test_sizes_declared_as_minus_one_or_nothing_are_unknown(proto: onnx.ModelProto) -> None:
    for value, sizes in ((proto.graph.input[0], (-1, 0)), (proto.graph.output[0], (-1, 0))):
        for dim, size in zip(value.type.tensor_type.shape.dim, sizes, strict=True):
            dim.dim_value = size
    model = load(proto)
    assert [str(d) for d in model.graph.inputs[0].shape or ()] == ["x_0", "x_1"]
    assert [str(d) for d in model.graph.outputs[0].shape or ()] == ["y_0", "y_1"]


@pytest.mark.parametrize("keep", [1, 10, 0.5, -1])
def test_truncated_file(proto: onnx.ModelProto, tmp_path: Path, keep: float) -> None:
    data = proto.SerializeToString()
    size = int(len(data) * keep) if isinstance(keep, float) else keep
    path = tmp_path / "m.onnx"
    path.write_bytes(data[:size])
    with pytest.raises(InvalidModelError, match=r"m\.onnx"):
        load(path)


@pytest.mark.parametrize("text", ["hello", "", "{}", "\n\n", "<html></html>", "12345"])
def test_text_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_text(text)
    with pytest.raises(InvalidModelError, match=r"m\.onnx: (not an ONNX|the file is empty)"):
        load(path)


def test_a_compiled_library_is_told_from_a_broken_model(tmp_path: Path) -> None:
    (tmp_path / "m.so").write_bytes(b"\x7fELF\x02\x01\x01")
    with pytest.raises(InvalidModelError, match=r"m\.so: a compiled library, not an ONNX model"):
        load(tmp_path / "m.so")


def test_missing_file_folder_and_device(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match="no such file"):
        load(tmp_path / "gone.onnx")
    with pytest.raises(InvalidModelError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(InvalidModelError, match="not a regular file"):
        load("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidModelError, match="not a regular file"):
        load(tmp_path / "pipe")


def test_subgraphs_that_would_exhaust_the_parser(proto: onnx.ModelProto) -> None:
    # Length-delimited by hand: protobuf's own writer refuses this depth.
    def field(number: int, data: bytes) -> bytes:
        size, varint = len(data), b""
        while size >= 128:
            varint += bytes([size & 127 | 128])
            size >>= 7
        return bytes([number << 3 | 2]) + varint + bytes([size]) + data

    graph = b""
    for _ in range(2000):
        attribute = field(6, graph)  # AttributeProto.g
        graph = field(1, field(5, attribute))  # GraphProto.node, NodeProto.attribute
    with pytest.raises(InvalidModelError, match="nested too deep"):
        load(field(7, graph))


def parsed(body: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(TEXT.replace("{ y = Relu(x) }", f"{{ {body} }}"))


def test_nodes_out_of_order_are_sorted() -> None:
    model = load(parsed("y = Relu(h) h = Exp(x)"))
    assert [node.op_type for node in model.graph] == ["Exp", "Relu"]


def test_a_cycle_is_refused() -> None:
    with pytest.raises(InvalidModelError, match="cycle"):
        load(parsed("a = Add(x, b) b = Relu(a) y = Relu(b)"))


def test_a_value_that_nothing_makes_is_refused() -> None:
    with pytest.raises(InvalidModelError, match="gone: read by Add in graph"):
        load(parsed("y = Add(x, gone)"))


def test_anything_else_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"builtins\.int"):
        load(3)  # type: ignore[arg-type]


def test_bytes_of_numbers_are_not_copied_to_the_wrong_type(proto: onnx.ModelProto) -> None:
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(array, "w"))
    np.testing.assert_array_equal(load(proto).graph.initializers["w"].const_value.numpy(), array)


def test_loading_imports_neither_torch_nor_onnxruntime() -> None:
    code = "import sys, ptq.model; print({'torch', 'onnxruntime', 'onnxsim'} & set(sys.modules))"
    printed = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert printed.stdout.strip() == "set()"
