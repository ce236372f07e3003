"""Hostile models, made here, each refused with the place and the remedy; honest ones pass."""

from __future__ import annotations

import os
import resource
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ptq.errors import InvalidModelError, ModelError, UnsafeModelError, UnsupportedModelError
from ptq.finite import check_finite
from ptq.model import load
from ptq.safety import SafetyLimits, check


def tiny(*initializers: TensorProto, nodes: list[onnx.NodeProto] | None = None) -> onnx.ModelProto:
    """y = Relu(x), with initializers beside it."""
    graph = helper.make_graph(
        nodes or [helper.make_node("Relu", ["x"], ["y"], "relu")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        list(initializers),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def raw(dims: list[int], data: bytes, dtype: int = TensorProto.FLOAT) -> TensorProto:
    return TensorProto(name="w", dims=dims, data_type=dtype, raw_data=data)


def external(dims: list[int], **entries: str) -> TensorProto:
    tensor = TensorProto(name="w", dims=dims, data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def saved(folder: Path, *initializers: TensorProto) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(tiny(*initializers).SerializeToString())
    return path


# ---- tensors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "error", "text"),
    [
        (raw([-1, 4], b""), InvalidModelError, "negative dimension"),
        (raw([2, 2], b"\0" * 15), InvalidModelError, "needs 16 bytes of raw_data, got 15"),
        (raw([2, 2], b"\0" * 17), InvalidModelError, "got 17"),
        (raw([2], b"\0" * 8, 99), InvalidModelError, "data_type 99"),
        (raw([2], b"\0" * 8, 0), InvalidModelError, "data_type 0"),
        (raw([2**31, 2**31, 4], b""), UnsafeModelError, "more than"),
        (raw([2**62, 4, 0], b""), UnsafeModelError, "more than"),
        (raw([3], b"\0", TensorProto.INT4), InvalidModelError, "needs 2 bytes"),
        (
            TensorProto(name="w", dims=[3], data_type=TensorProto.FLOAT, float_data=[1, 2]),
            InvalidModelError,
            "needs 3 entries of float_data, got 2",
        ),
        (
            TensorProto(name="w", dims=[2], data_type=TensorProto.FLOAT, int64_data=[1, 2]),
            InvalidModelError,
            "wanted float_data",
        ),
        (
            TensorProto(
                name="w", dims=[1], data_type=TensorProto.FLOAT, float_data=[1], raw_data=b"\0" * 4
            ),
            InvalidModelError,
            "raw_data and float_data",
        ),
    ],
)
def test_a_tensor_that_lies_is_refused_by_name(
    tensor: TensorProto, error: type[ModelError], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        check(tiny(tensor))
    assert str(caught.value).startswith("w (graph)")


def test_a_lying_constant_inside_a_node_is_refused() -> None:
    node = helper.make_node("Constant", [], ["y"], "c", value=raw([2], b"\0" * 4))
    with pytest.raises(InvalidModelError, match=r"graph: c"):
        check(tiny(nodes=[node]))


def test_negative_dims_of_an_input_are_refused() -> None:
    model = tiny()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = -4
    with pytest.raises(InvalidModelError, match="graph: x: shape"):
        check(model)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.bool_, np.complex64])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_honest_tensors_pass(dtype: type, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, dtype)
    check(tiny(onnx.numpy_helper.from_array(array, "w")))
    typed = helper.make_tensor("w", helper.np_dtype_to_tensor_dtype(array.dtype), shape, array)
    check(tiny(typed))


def test_packed_and_string_tensors_pass() -> None:
    check(tiny(helper.make_tensor("w", TensorProto.INT4, [3], [1, 2, 3])))
    check(tiny(helper.make_tensor("w", TensorProto.STRING, [2], [b"a", b"b"])))


# ---- structure ----------------------------------------------------------------------------------


def function(name: str, *callees: str) -> onnx.FunctionProto:
    nodes = [
        helper.make_node(callee, [f"v{i}"], [f"v{i + 1}"], domain="f")
        for i, callee in enumerate(callees)
    ] or [helper.make_node("Relu", ["v0"], ["v1"])]
    last = nodes[-1].output[0]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("f", 1)]
    return helper.make_function("f", name, ["v0"], [last], nodes, opsets)


def with_functions(*functions: onnx.FunctionProto) -> onnx.ModelProto:
    model = tiny(nodes=[helper.make_node("f0", ["x"], ["y"], domain="f")])
    model.opset_import.append(helper.make_opsetid("f", 1))
    model.functions.extend(functions)
    return model


def test_twenty_doublings_are_counted_not_expanded() -> None:
    model = with_functions(
        *(function(f"f{i}", f"f{i + 1}", f"f{i + 1}") for i in range(20)), function("f20")
    )
    tracemalloc.start()
    try:
        with pytest.raises(UnsafeModelError, match=f"{2**20} nodes after its functions"):
            check(model)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2**20  # less than a byte for each node


def test_recursion_is_refused() -> None:
    with pytest.raises(UnsafeModelError, match="calls itself"):
        check(with_functions(function("f0", "f1"), function("f1", "f0")))
    with pytest.raises(UnsafeModelError, match="calls itself"):
        check(with_functions(function("f0", "f0")))


def test_a_long_chain_of_calls_is_refused() -> None:
    chain = [function(f"f{i}", f"f{i + 1}") for i in range(100)]
    with pytest.raises(UnsafeModelError, match="nested more than"):
        check(with_functions(*chain, function("f100")))


def test_honest_functions_pass() -> None:
    check(with_functions(function("f0", "f1", "f1"), function("f1")))


def test_too_many_nodes_are_refused() -> None:
    with pytest.raises(UnsafeModelError, match="2 nodes"):
        check(
            tiny(
                nodes=[
                    helper.make_node("Relu", ["x"], ["h"]),
                    helper.make_node("Relu", ["h"], ["y"]),
                ]
            ),
            limits=SafetyLimits(nodes=1),
        )


def nested(depth: int) -> onnx.ModelProto:
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["o"])], "leaf", [], [out])
    for _ in range(depth):
        node = helper.make_node("If", ["c"], ["o"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([node], "g", [], [out])
    model = tiny()
    model.graph.node.extend(graph.node)
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    return model


def test_deep_subgraphs_are_refused() -> None:
    # Each level doubles a tree, so let only one branch be deep.
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["o"])], "leaf", [], [out])
    for _ in range(27):
        node = helper.make_node("If", ["c"], ["o"], then_branch=graph)
        graph = helper.make_graph([node], "g", [], [out])
    model = tiny()
    model.graph.node.extend(graph.node)
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    with pytest.raises(UnsafeModelError, match="nested more than"):
        check(model)


def test_shallow_subgraphs_pass() -> None:
    check(nested(3))


def test_a_value_with_two_makers_is_refused() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Abs", ["x"], ["y"])]
    with pytest.raises(InvalidModelError, match="y: made 2 times"):
        check(tiny(nodes=nodes))


@pytest.mark.parametrize(
    ("version", "error"), [(0, InvalidModelError), (999, UnsupportedModelError)]
)
def test_opset_out_of_range(version: int, error: type[ModelError]) -> None:
    model = tiny()
    model.opset_import[0].version = version
    with pytest.raises(error, match="opset"):
        check(model)


# ---- external data ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "location",
    [
        "../secret.bin",
        "a/../../secret.bin",
        "..\\secret.bin",
        "/etc/passwd",
        "C:\\x",
        "\\\\h\\x",
        "file:///etc/passwd",
        "",
        " ",
        "a\0b",
    ],
)
def test_locations_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(b"\0" * 16)
    path = saved(tmp_path / "m", external([4], location=location))
    with pytest.raises(UnsafeModelError, match="location of its external data"):
        load(path)


def test_symlink_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(b"\0" * 16)
    path = saved(tmp_path / "m", external([4], location="w.bin"))
    (path.parent / "w.bin").symlink_to("../secret.bin")
    with pytest.raises(UnsafeModelError, match="link out of the model's folder"):
        load(path)


def test_symlinked_folder_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "w.bin").write_bytes(b"\0" * 16)
    path = saved(tmp_path / "m", external([4], location="sub/w.bin"))
    (path.parent / "sub").symlink_to(tmp_path / "other")
    with pytest.raises(UnsafeModelError, match="link out of the model's folder"):
        load(path)


def test_hardlink_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(b"\0" * 16)
    path = saved(tmp_path / "m", external([4], location="w.bin"))
    os.link(tmp_path / "secret.bin", path.parent / "w.bin")
    with pytest.raises(UnsafeModelError, match="hard links"):
        load(path)


def test_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    path = saved(tmp_path / "m", external([4], location="w.bin"))
    os.mkfifo(path.parent / "w.bin")
    with pytest.raises(UnsafeModelError, match="not a regular file"):
        load(path)


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"location": "w.bin", "offset": "8"}, "needs bytes 8 to 24"),
        ({"location": "w.bin", "length": "8"}, "claims 8"),
        ({"location": "w.bin", "offset": "-4"}, "whole number"),
        ({"location": "w.bin", "offset": "1e2"}, "whole number"),
        ({"location": "w.bin", "offset": "9" * 400}, "whole number"),
        ({"location": "gone.bin"}, "cannot be read"),
        ({"offset": "0"}, "no location"),
    ],
)
def test_offsets_and_lengths_that_lie(tmp_path: Path, entries: dict[str, str], text: str) -> None:
    path = saved(tmp_path, external([4], **entries))
    (tmp_path / "w.bin").write_bytes(b"\0" * 16)
    with pytest.raises(InvalidModelError, match=text):
        load(path)


def test_external_data_without_a_folder_is_refused() -> None:
    data = tiny(external([4], location="w.bin")).SerializeToString()
    with pytest.raises(InvalidModelError, match="Give the model's path"):
        load(data)


def test_honest_external_data_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path, external([2, 2], location="sub/w.bin", offset="4", length="16"))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(np.arange(6, dtype=np.float32).tobytes())
    tensor = load(path).graph.initializers["w"].const_value
    np.testing.assert_array_equal(tensor.numpy(), [[1, 2], [3, 4]])


def hugging_face(tmp_path: Path) -> tuple[Path, Path]:
    """(model link, data link) in a snapshot of a Hugging Face cache."""
    repo = tmp_path / "models--a--b"
    snapshot = repo / "snapshots" / "0123" / "onnx"
    (repo / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    model, data = repo / "blobs" / "aaaa", repo / "blobs" / "bbbb"
    model.write_bytes(tiny(external([4], location="model.onnx_data")).SerializeToString())
    data.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    for name, blob in (("model.onnx", model), ("model.onnx_data", data)):
        (snapshot / name).symlink_to(f"../../../blobs/{blob.name}")
    return snapshot / "model.onnx", snapshot / "model.onnx_data"


def test_hugging_face_cache_is_read(tmp_path: Path) -> None:
    model, _ = hugging_face(tmp_path)
    tensor = load(model).graph.initializers["w"].const_value
    np.testing.assert_array_equal(tensor.numpy(), [0, 1, 2, 3])


def test_hugging_face_link_to_elsewhere_is_refused(tmp_path: Path) -> None:
    model, data = hugging_face(tmp_path)
    (tmp_path / "secret.bin").write_bytes(b"\0" * 16)
    data.unlink()
    data.symlink_to(tmp_path / "secret.bin")
    with pytest.raises(UnsafeModelError, match="link out"):
        load(model)


def test_more_than_two_gib_opens_in_little_memory(tmp_path: Path) -> None:
    count = 600_000_000  # 2.4 GB of float32, a sparse file
    path = saved(tmp_path, external([count], location="w.bin", length=str(4 * count)))
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(4 * count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = load(path)
    grown_bytes = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert model.graph.initializers["w"].const_value.nbytes == 4 * count
    assert grown_bytes < 64 << 20


# ---- numbers ------------------------------------------------------------------------------------


def gemm(array: np.ndarray) -> bytes:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return tiny(onnx.numpy_helper.from_array(array, "w"), nodes=[node]).SerializeToString()


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(dtype: str, bad: float) -> None:
    import ml_dtypes

    array = np.ones((4, 4), getattr(ml_dtypes, dtype, dtype))
    check_finite(load(gemm(array)))
    array[2, 1] = bad
    kind = "NaN" if np.isnan(bad) else "Inf"
    with pytest.raises(InvalidModelError, match=rf"w: {kind} at \[2, 1\]"):
        check_finite(load(gemm(array)))


def test_nan_in_external_data_is_found_across_chunks(tmp_path: Path) -> None:
    array = np.zeros(3_000_001, np.float32)
    array[2_500_000] = np.nan
    path = saved(tmp_path, external([array.size], location="w.bin"))
    (tmp_path / "w.bin").write_bytes(array.tobytes())
    with pytest.raises(InvalidModelError, match=r"w: NaN at \[2500000\]"):
        check_finite(load(path))


def test_an_infinite_mask_is_no_weight() -> None:
    mask = np.array([0, -np.inf, 0, 0], np.float32)
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    model = tiny(onnx.numpy_helper.from_array(mask, "w"), nodes=nodes)
    check_finite(load(model))


@pytest.mark.parametrize("make", [lambda m: m, lambda m: m.SerializeToString()])
def test_checks_run_on_messages_and_bytes(make: Callable[[onnx.ModelProto], object]) -> None:
    with pytest.raises(InvalidModelError):
        load(make(tiny(raw([-1], b""))))  # type: ignore[arg-type]
