"""calib_data.sources: every kind of source gives the same checked batches, again and again."""

from __future__ import annotations

import logging
import tracemalloc
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq.calib_data import InputSpec, labelled, open_calibration
from ptq.calib_data.calibration import rebatch
from ptq.errors import CalibrationError

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
X = InputSpec("x", F32, (None, 3))
ROWS = np.arange(30, dtype=np.float32).reshape(10, 3)


class Reader:
    """onnxruntime's CalibrationDataReader, without rewind()."""

    def __init__(self, items: list[Any]) -> None:
        self.left = list(items)

    def get_next(self) -> Any:
        return self.left.pop(0) if self.left else None


class RewindingReader(Reader):
    def __init__(self, items: list[Any]) -> None:
        super().__init__(items)
        self.items = list(items)

    def rewind(self) -> None:
        self.left = list(self.items)


class Tensor:
    """As much of torch.Tensor as is used."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x
        self.on_cpu = False

    def detach(self) -> Tensor:
        return Tensor(self.x)

    def cpu(self) -> Tensor:
        moved = Tensor(self.x)
        moved.on_cpu = True
        return moved

    def numpy(self) -> np.ndarray:
        assert self.on_cpu
        return self.x


class Dataset:
    """As torch.utils.data.Dataset: no __iter__, and indexing never ends."""

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return ROWS[index % len(ROWS)], 7


def as_npz(folder: Path) -> Path:
    np.savez_compressed(folder / "d.npz", x=ROWS, labels=np.zeros(10, np.int64))
    return folder / "d.npz"


def as_npz_with_another_name(folder: Path) -> Path:
    np.savez(folder / "d.npz", pictures=ROWS, labels=np.zeros(10, np.int64))
    return folder / "d.npz"


def as_fortran_npz(folder: Path) -> Path:
    np.savez(folder / "d.npz", x=np.asfortranarray(ROWS))
    return folder / "d.npz"


def as_npy(folder: Path) -> Path:
    np.save(folder / "d.npy", ROWS.astype(np.float64))
    return folder / "d.npy"


def as_stack_of_batches(folder: Path) -> Path:
    np.save(folder / "d.npy", ROWS.reshape(2, 5, 3))
    return folder / "d.npy"


def as_folder_of_samples(folder: Path) -> Path:
    for index, row in enumerate(ROWS):
        np.save(folder / f"{index:03}.npy", row)
    return folder


def as_per_input_folder(folder: Path) -> Path:
    (folder / "x").mkdir()
    np.save(folder / "x" / "0.npy", ROWS[:4])
    np.save(folder / "x" / "1.npy", ROWS[4:])
    return folder


def as_test_data(folder: Path) -> Path:
    for index in range(2):
        (folder / f"test_data_set_{index}").mkdir()
        tensor = onnx.numpy_helper.from_array(ROWS[5 * index : 5 * index + 5])
        path = folder / f"test_data_set_{index}" / "input_0.pb"
        path.write_bytes(tensor.SerializeToString())
        path.with_name("output_0.pb").write_bytes(b"")
    return folder


def as_function(folder: Path) -> str:
    np.save(folder / "rows.npy", ROWS)
    (folder / "data.py").write_text(
        "import numpy as np\n"
        "from pathlib import Path\n"
        "def samples():\n"
        "    for row in np.load(Path(__file__).with_name('rows.npy')):\n"
        "        yield {'x': row}\n"
    )
    return f"{folder}/data.py:samples"


SOURCES = {
    "npz": as_npz,
    "npz_other_name": as_npz_with_another_name,
    "npz_fortran": as_fortran_npz,
    "npy_float64": as_npy,
    "npy_stack": as_stack_of_batches,
    "npy_folder": as_folder_of_samples,
    "per_input": as_per_input_folder,
    "test_data_set": as_test_data,
    "function": as_function,
    "reader": lambda folder: Reader([{"x": ROWS[:7]}, {"x": ROWS[7:]}]),
    "rewinding_reader": lambda folder: RewindingReader([{"x": ROWS[:7]}, {"x": ROWS[7:]}]),
    "array": lambda folder: ROWS,
    "dict_of_arrays": lambda folder: {"x": ROWS},
    "list_of_arrays": lambda folder: list(ROWS),
    "loader": lambda folder: [(Tensor(ROWS[:6]), Tensor(ROWS)), [Tensor(ROWS[6:]), 3]],
    "dataset": lambda folder: Dataset(),
    "generator": lambda folder: (row for row in ROWS),
    "factory": lambda folder: lambda: (row for row in ROWS),
}


def together(batches: Iterator[dict[str, np.ndarray]]) -> np.ndarray:
    return np.concatenate([batch["x"] for batch in batches])


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES.keys())
def test_source_yields_all_rows_in_order_and_again(make: Any, tmp_path: Path) -> None:
    calibration = open_calibration(make(tmp_path), [X])
    for _ in range(2):
        batches = list(calibration)
        assert [batch["x"].shape for batch in batches] == [(1, 3)] * 10
        assert {batch["x"].dtype for batch in batches} == {F32}
        assert np.array_equal(together(iter(batches)), ROWS)
    sizes = [len(batch["x"]) for batch in calibration.batches(4)]
    assert sizes == [4, 4, 2]


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES.keys())
def test_an_abandoned_pass_does_no_harm(make: Any, tmp_path: Path) -> None:
    calibration = open_calibration(make(tmp_path), [X])
    stream = iter(calibration)
    next(stream)
    del stream
    assert np.array_equal(together(calibration.batches(3)), ROWS)


@pytest.mark.parametrize("name", ["npz", "npy_stack", "npy_folder", "per_input"])
def test_stored_arrays_know_their_length(name: str, tmp_path: Path) -> None:
    calibration = open_calibration(SOURCES[name](tmp_path), [X])
    assert (calibration.samples, len(calibration)) == (10, 10)


def test_an_iterable_does_not_know_its_length() -> None:
    calibration = open_calibration(Reader([{"x": ROWS}]), [X])
    assert calibration.samples is None
    with pytest.raises(TypeError, match="not known"):
        len(calibration)


def test_limit_takes_a_seeded_subset_in_order(tmp_path: Path) -> None:
    path = as_npz(tmp_path)

    def rows(seed: int) -> list[float]:
        chosen = open_calibration(path, [X], limit=4, seed=seed)
        assert len(chosen) == 4
        return together(iter(chosen))[:, 0].tolist()

    assert rows(0) == sorted(rows(0)) == rows(0)
    assert len({tuple(rows(seed)) for seed in range(5)}) > 1


def test_limit_takes_the_first_of_an_iterable() -> None:
    calibration = open_calibration(iter(ROWS), [X], limit=4)
    assert np.array_equal(together(iter(calibration)), ROWS[:4])


def test_fixed_batch_is_respected(caplog: pytest.LogCaptureFixture) -> None:
    spec = InputSpec("x", F32, (4, 3))
    calibration = open_calibration([ROWS[:5], ROWS[5:]], [spec])
    assert [len(batch["x"]) for batch in calibration.batches(1)] == [4, 4]
    assert "2 samples left over" in caplog.text


def test_inputs_without_a_common_batch_come_in_steps(tmp_path: Path) -> None:
    """A dynamic batch, a fixed one (used for every step) and a scalar."""
    inputs = [X, InputSpec("fixed", F32, (2, 2)), InputSpec("scale", F32, ())]
    np.savez(tmp_path / "d.npz", x=ROWS, fixed=np.eye(2), scale=np.float32(3))
    batches = list(open_calibration(tmp_path / "d.npz", inputs))
    assert [batch["x"].shape for batch in batches] == [(1, 3)] * 10
    assert all(np.array_equal(batch["fixed"], np.eye(2)) for batch in batches)
    assert all(batch["scale"] == 3 for batch in batches)


def test_transform_is_applied_to_every_item() -> None:
    items = [{"text": row} for row in ROWS]
    calibration = open_calibration(items, [X], transform=lambda item: {"x": item["text"] + 1})
    assert np.array_equal(together(iter(calibration)), ROWS + 1)


def test_whole_floats_become_integers() -> None:
    ids = InputSpec("ids", I64, (None, 3))
    batch = next(iter(open_calibration([ROWS], [ids])))
    assert batch["ids"].dtype == I64


def test_savez_positions_feed_several_inputs(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", ROWS, ROWS[:, :1])
    calibration = open_calibration(tmp_path / "d.npz", [X, InputSpec("b", F32, (None, 1))])
    assert next(iter(calibration))["b"].shape == (1, 1)


def test_arrays_that_no_input_wants_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "ptq"):
        open_calibration(as_npz(tmp_path), [X])
    assert "ignored: labels" in caplog.text


def test_no_data_is_invented_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    image = InputSpec("x", F32, (None, 3, 64, 64))
    mask = InputSpec("attention_mask", I64, (None, None))
    ids = InputSpec("input_ids", I64, (None, None))
    calibration = open_calibration(None, [image, mask, ids], limit=3, seed=1)
    one, two = list(calibration), list(calibration)
    assert "invented" in caplog.text
    assert len(one) == 3
    assert all(np.array_equal(a[key], b[key]) for a, b in zip(one, two, strict=True) for key in a)
    x = one[0]["x"][0, 0]
    assert np.corrcoef(x[1:].ravel(), x[:-1].ravel())[0, 1] > 0.6
    assert (one[0]["attention_mask"] == 1).all()
    assert 0 < one[0]["input_ids"].min() <= one[0]["input_ids"].max() < 100


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_constant_memory_over_a_large_file(suffix: str, tmp_path: Path) -> None:
    spec = InputSpec("x", F32, (None, 1000))

    def peak(count: int) -> int:
        x = np.zeros((count, 1000), np.float32)
        if suffix == "npz":
            np.savez_compressed(tmp_path / "d.npz", x=x)
        else:
            np.save(tmp_path / "d.npy", x)
        calibration = open_calibration(tmp_path / f"d.{suffix}", [spec])
        tracemalloc.start()
        for _ in calibration:
            pass
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(2000)
    assert peak(8000) < 1.2 * peak(2000) + 100_000 < 8_000_000


def test_a_header_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "d.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (1, 1 << 40)}
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(CalibrationError, match="at most"):
        open_calibration(tmp_path / "d.npy", [InputSpec("x", F32, (None, None))])


def test_constant_memory_over_a_generator_read_twice() -> None:
    spec = InputSpec("x", F32, (None, 1000))
    calibration = open_calibration((np.zeros(1000, np.float32) for _ in range(3000)), [spec])
    tracemalloc.start()
    counts = [sum(1 for _ in calibration) for _ in range(2)]
    top = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counts == [3000, 3000]
    assert top < 2_000_000


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 12))
def test_rebatching_keeps_every_row(sizes: list[int], size: int) -> None:
    starts = np.cumsum([0, *sizes])
    parts = [{"x": np.arange(a, b)} for a, b in pairwise(starts)]
    got = [batch["x"] for batch in rebatch(iter(parts), size)]
    assert np.array_equal(np.concatenate(got), np.arange(sum(sizes)))
    assert {len(x) for x in got[:-1]} <= {size}


def test_rows_of_different_shapes_are_not_joined() -> None:
    spec = InputSpec("x", F32, (None, None))
    calibration = open_calibration([np.zeros((1, n)) for n in (2, 2, 5)], [spec])
    assert [batch["x"].shape for batch in calibration.batches(8)] == [(2, 2), (1, 5)]


def nan_at(index: int) -> np.ndarray:
    x = ROWS.copy()
    x[index, 1] = np.nan
    return x


BAD = {
    "missing input": (
        {"a": ROWS, "b": ROWS},
        r"no data for the input x float32\[\?, 3\]; found a, b",
    ),
    "wrong shape": ({"x": ROWS[:, :2]}, r"sample 0: input x: got float32\[10, 2\], wanted float32"),
    "no float is complex": ({"x": ROWS.astype(complex)}, "complex"),
    "text": ({"x": np.asarray([["a", "b", "c"]])}, "wanted an array of numbers"),
    "empty": ([], "no samples"),
    "an int": (3, "wanted a path"),
    "too few arrays": ([()], "x"),
    "overflow": ({"x": np.full((1, 3), 1e300)}, "cannot hold"),
}


@pytest.mark.parametrize(("source", "message"), BAD.values(), ids=BAD.keys())
def test_bad_data_is_refused(source: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        open_calibration(source, [X])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_names_the_sample(value: float, tmp_path: Path) -> None:
    x = ROWS.copy()
    x[7, 1] = value
    np.savez(tmp_path / "d.npz", x=x)
    with pytest.raises(CalibrationError, match="sample 7: input x: got NaN or infinity"):
        list(open_calibration(tmp_path / "d.npz", [X], limit=9, seed=3))


def test_fractions_do_not_become_integers() -> None:
    with pytest.raises(CalibrationError, match="int64 cannot hold"):
        open_calibration([ROWS + 0.5], [InputSpec("x", I64, (None, 3))])


def test_large_integers_do_not_wrap() -> None:
    with pytest.raises(CalibrationError, match="int8 cannot hold"):
        open_calibration([ROWS * 100], [InputSpec("x", np.dtype(np.int8), (None, 3))])


def test_channels_last_is_recognised() -> None:
    with pytest.raises(CalibrationError, match="looks like NHWC"):
        open_calibration([np.zeros((1, 8, 8, 3))], [InputSpec("x", F32, (None, 3, 8, 8))])


def test_raw_pixels_ask_for_a_preprocess() -> None:
    with pytest.raises(CalibrationError, match="preprocess 'imagenet'"):
        open_calibration([np.zeros((1, 8, 8, 3), np.uint8)], [InputSpec("x", F32, (None, 3, 8, 8))])


@pytest.mark.parametrize("name", ["d.npz", "d.npy"])
def test_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    (np.savez if name == "d.npz" else np.save)(tmp_path / name, ROWS)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CalibrationError, match="cannot be read as numpy data"):
        list(open_calibration(tmp_path / name, [X]))


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.asarray([{"a": 1}], object))
    with pytest.raises(CalibrationError, match="object arrays are pickles"):
        open_calibration(tmp_path / "d.npz", [X])


def test_inputs_of_different_lengths_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=ROWS, b=ROWS[:4])
    with pytest.raises(CalibrationError, match="different numbers of samples"):
        open_calibration(tmp_path / "d.npz", [X, InputSpec("b", F32, (None, 3))])


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.npz", "no such file"), ("a.txt", "got a .txt file"), ("", "nothing to calibrate with")],
)
def test_a_path_with_nothing_there(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(CalibrationError, match=message):
        open_calibration(tmp_path / name, [X])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def other(): pass", "no function 'samples'; it defines other"),
        ("import no_such_module_at_all", "ModuleNotFoundError"),
        ("def samples(): return 3", "wanted an iterable"),
    ],
)
def test_a_function_that_is_not_there(code: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text(code)
    with pytest.raises(CalibrationError, match=message):
        open_calibration(f"{tmp_path}/f.py:samples", [X])


def test_external_tensor_protos_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "test_data_set_0").mkdir()
    tensor = onnx.TensorProto(data_type=1, dims=[1, 3], data_location=1)
    tensor.external_data.add(key="location", value="/etc/hostname")
    (tmp_path / "test_data_set_0" / "input_0.pb").write_bytes(tensor.SerializeToString())
    with pytest.raises(CalibrationError, match="not followed"):
        open_calibration(tmp_path, [X])


def test_labels_come_with_their_batch(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=ROWS, y=np.arange(10) * 3)
    pairs = list(labelled(tmp_path / "d.npz", [X], batch_size=4))
    assert [len(labels) for _, labels in pairs] == [4, 4, 2]
    assert all(np.array_equal(batch["x"][:, 0], labels) for batch, labels in pairs)


def test_no_labels_are_an_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=ROWS)
    with pytest.raises(CalibrationError, match="no labels; found x"):
        list(labelled(tmp_path / "d.npz", [X]))


def test_a_torch_loader_is_read_without_importing_torch() -> None:
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.from_numpy(ROWS), torch.arange(10))
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(together(open_calibration(loader, [X]).batches(3)), ROWS)
