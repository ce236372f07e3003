"""Arrays on disk, read a few rows at a time: .npy by memory map, .npz members as a stream.

Nothing here unpickles, and nothing holds more than one chunk of rows.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ptq.calib_data.spec import Array
from ptq.errors import CalibrationError

CHUNK_BYTES = 1 << 20
LARGEST_ROW_BYTES = 2 << 30  # more is a damaged header or an archive made to fill the memory
_DAMAGED = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError)


@dataclass(frozen=True)
class StoredArray:
    """A .npy file, or one member of an .npz file, whose rows can be streamed.

    Attributes:
        path: the file; member: the member inside an .npz, or None for a .npy.
        shape, dtype: from the header; the data has not been read.
    """

    path: Path
    member: str | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    @property
    def where(self) -> str:
        """The array's place, for messages."""
        return f"{self.path}" if self.member is None else f"{self.path}:{self.member}"

    @property
    def row_bytes(self) -> int:
        """Size of one element along dimension 0."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def chunk_rows(self) -> int:
        """How many rows make about one chunk of memory."""
        return max(1, CHUNK_BYTES // max(1, self.row_bytes))

    def rows(self, step: int) -> Iterator[Array]:
        """Yield [<= step, ...] slices along dimension 0, in order."""
        if self.row_bytes > LARGEST_ROW_BYTES:
            raise CalibrationError(
                f"{self.where}: one row of {list(self.shape)} {self.dtype} takes {self.row_bytes}"
                f" bytes; at most {LARGEST_ROW_BYTES} are read at once: put samples on dimension 0"
            )
        with _reading(self.where):
            if self.member is None:
                yield from _slices(np.load(self.path, mmap_mode="r", allow_pickle=False), step)
            elif self.fortran:
                yield from self._fortran_rows(step)
            else:
                yield from self._zip_rows(step)

    def whole(self) -> Array:
        """The whole array; for scalars and labels, not for samples."""
        if not self.shape:
            with _reading(self.where):
                return self._scalar()
        return np.concatenate(list(self.rows(self.chunk_rows()))) if self.shape[0] else self._none()

    def _none(self) -> Array:
        return np.empty(self.shape, self.dtype)

    def _scalar(self) -> Array:
        if self.member is None:
            return np.asarray(np.load(self.path, allow_pickle=False))
        with zipfile.ZipFile(self.path) as file, file.open(self.member) as stream:
            _header(stream, self.where)
            return np.frombuffer(stream.read(self.dtype.itemsize), self.dtype).reshape(())

    def _zip_rows(self, step: int) -> Iterator[Array]:
        row_bytes = self.row_bytes
        with zipfile.ZipFile(self.path) as file, file.open(self.member or "") as stream:
            _header(stream, self.where)
            for start in range(0, self.shape[0], step):
                count = min(step, self.shape[0] - start)
                data = stream.read(count * row_bytes)
                if len(data) != count * row_bytes:
                    raise EOFError(f"the data ends at row {start + len(data) // row_bytes}")
                yield np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])

    def _fortran_rows(self, step: int) -> Iterator[Array]:
        """Column-major rows are not contiguous: unpack the member to disk, then map it."""
        with tempfile.TemporaryFile() as spool:
            with zipfile.ZipFile(self.path) as file, file.open(self.member or "") as stream:
                _header(stream, self.where)
                shutil.copyfileobj(stream, spool, CHUNK_BYTES)
            spool.flush()
            yield from _slices(
                np.memmap(spool, self.dtype, "r", 0, self.shape, order="F"),
                step,
            )


def open_npy(path: Path) -> StoredArray:
    """Read the header of a .npy file.

    Raises:
        CalibrationError: not a .npy file, damaged, or it holds Python objects.
    """
    with _reading(str(path)), path.open("rb") as stream:
        shape, fortran, dtype = _header(stream, str(path))
    return StoredArray(path, None, shape, dtype, fortran)


def open_npz(path: Path) -> dict[str, StoredArray]:
    """Read the headers of all members of an .npz file, by array name."""
    arrays: dict[str, StoredArray] = {}
    with _reading(str(path)), zipfile.ZipFile(path) as file:
        for member in file.namelist():
            if member.endswith(".npy"):
                where = f"{path}:{member}"
                with file.open(member) as stream:
                    shape, fortran, dtype = _header(stream, where)
                arrays[member[:-4]] = StoredArray(path, member, shape, dtype, fortran)
    return arrays


def _slices(x: Array, step: int) -> Iterator[Array]:
    for start in range(0, x.shape[0], step):
        yield np.asarray(x[start : start + step])


def _header(stream: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read(stream)
    if dtype.hasobject or dtype.kind not in "biuf":
        raise CalibrationError(
            f"{where}: holds {dtype}; calibration takes plain numbers"
            " (object arrays are pickles and are never opened): save a numeric array"
        )
    if any(dim < 0 for dim in shape):
        raise CalibrationError(f"{where}: the header claims the shape {shape}")
    return shape, fortran, dtype


@contextmanager
def _reading(where: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        raise CalibrationError(
            f"{where}: cannot be read as numpy data: {error}; write it again with numpy.save(z)"
        ) from error
