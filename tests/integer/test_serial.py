"""A program and its plan survive the file, bit for bit, and nothing else comes out of one."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from safetensors.numpy import save_file

from ptq.errors import InvalidModelError
from ptq.grid import Grid
from ptq.integer import serial
from ptq.integer.program import Apply, Boundary, Program, Ref
from ptq.integer.reference import Reference
from ptq.pipeline import quantize
from ptq.plan import ActivationPlan, Plan
from ptq.recipe import Recipe
from tests.graphs import random_graph


def same(a: Any, b: Any) -> bool:
    """`b` is `a` after the file: equal to the bit and in type; tensors have become arrays."""
    if isinstance(a, ir.TensorProtocol):
        a = a.numpy()
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, ir.Attr):
        return ir.to_proto(a) == ir.to_proto(b)
    if is_dataclass(a):
        return type(a) is type(b) and all(
            same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a)
        )
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("seed", range(6))
def test_random_programs_survive(tmp_path: Path, seed: int) -> None:
    proto, shapes = random_graph(seed)
    rng = np.random.default_rng(seed)
    batch = {n: rng.normal(size=(4, *s)).astype(np.float32) for n, s in shapes.items()}
    made = quantize(proto, [batch], Recipe.from_bits(4).replace(rounding="nearest", effort="fast"))
    serial.save(made.program, made.plan, tmp_path / "p")
    saved = serial.load(tmp_path / "p")
    assert same(serial.Saved(made.program, made.plan), saved)
    expected = Reference(made.program).run_codes(batch)
    for name, codes in Reference(saved.program).run_codes(batch).items():
        np.testing.assert_array_equal(codes, expected[name])
    serial.save(saved.program, saved.plan, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "p").read_bytes()


def odd_program() -> Program:
    """Everything that is not in an ordinary network: bodies, odd types, names, empty arrays."""
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["outer"], ["inner"])],
        "body",
        [],
        [onnx.helper.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, None)],
    )
    attribute = onnx.helper.make_attribute("then_branch", body)
    attributes = (
        ir.serde.deserialize_attribute(attribute),
        ir.AttrString("mode", "nearest"),
        ir.AttrFloat32("alpha", float("inf")),
        ir.AttrInt64s("axes", [1, -1]),
    )
    step = Apply(
        "if:0 [x]", "If", "", (Ref("c", False), None), (Ref("y", False),), attributes, "a body"
    )
    scale = np.float32(0.1)
    return Program(
        inputs=(Boundary("x", ir.DataType.BFLOAT16, ("N", 3, None)),),
        outputs=(Boundary("y", ir.DataType.FLOAT, None),),
        steps=(step,),
        codes={"x\n\u2603": ActivationPlan(Grid(), scale, 128)},
        constants={
            "scalar": np.array(7, np.int64),
            "empty": np.zeros((0, 3), np.float32),
            "texts": np.array(["a", "\u00fc"], object),
            "truth": np.array([True, False]),
            "half": np.array([1.5, np.nan], ml_dtypes.bfloat16),
            "nibbles": np.array([-8, 7, 1], ml_dtypes.int4),
            "tensor": ir.tensor(np.arange(4, dtype=np.uint16)),
            "strided": np.arange(12.0).reshape(3, 4).T,
        },
    )


def test_odd_values_survive(tmp_path: Path) -> None:
    program = odd_program()
    serial.save(program, Plan(), tmp_path / "p")
    found = serial.load(tmp_path / "p").program
    texts = found.constants["texts"]
    assert isinstance(texts, np.ndarray)
    assert texts.tolist() == ["a", "\u00fc"]
    others = {k: v for k, v in program.constants.items() if k != "texts"}
    loaded = {k: v for k, v in found.constants.items() if k != "texts"}
    assert same(replace(program, constants=others), replace(found, constants=loaded))


def test_an_array_used_twice_is_stored_once(tmp_path: Path) -> None:
    big = np.zeros(100_000, np.float64)
    serial.save(replace(odd_program(), constants={"a": big, "b": big}), Plan(), tmp_path / "p")
    assert (tmp_path / "p").stat().st_size < 900_000


def write(path: Path, record: object, arrays: dict[str, Any] | None = None) -> None:
    header = {"ptq.program": msgspec.json.encode(record).decode()}
    save_file(arrays or {}, str(path), metadata=header)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"$": "Path", "v": {}},
        {"$": "Saved", "v": {"program": None}},
        {"$": "Saved", "v": {"surprise": 1}},
        {"$": "Boundary", "v": {"name": "x", "dtype": 99, "shape": None}},
        {"$": "array", "v": ["missing", "float32", [1]]},
        {"$": "array", "v": ["a", "float64", [1]]},
        {"$": "array", "v": ["a", "object", [3]]},
        {"$": "array", "v": ["a", "os", [3]]},
        {"$": "array", "v": ["a", "uint8", [1 << 40]]},
        {"$": "attribute", "v": ["a", "uint8", [3]]},
        {"v": 1},
        {"$": {}, "v": 1},
    ],
    ids=str,
)
def test_a_forged_file_is_refused(tmp_path: Path, value: object) -> None:
    write(tmp_path / "p", {"version": 1, "value": value}, {"a": np.array([1, 2, 3], np.uint8)})
    with pytest.raises(InvalidModelError):
        serial.load(tmp_path / "p")


def test_another_version_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "p", {"version": 99, "value": None})
    with pytest.raises(InvalidModelError, match="99"):
        serial.load(tmp_path / "p")


def test_nesting_without_end_is_refused(tmp_path: Path) -> None:
    text = '{"version": 1, "value": ' + "[" * 50_000 + "]" * 50_000 + "}"
    save_file({}, str(tmp_path / "p"), metadata={"ptq.program": text})
    with pytest.raises(InvalidModelError):
        serial.load(tmp_path / "p")


def test_an_unknown_kind_cannot_be_saved(tmp_path: Path) -> None:
    program = replace(odd_program(), constants={"x": object()})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="object"):
        serial.save(program, Plan(), tmp_path / "p")
    assert list(tmp_path.iterdir()) == []
