"""Weights outside the model file: only from the model's own folder, and only what is there.

A location is refused when it is absolute, climbs with `..`, or reaches a file outside the folder
through a symbolic link. A file with a second hard link is refused too: it may be a file from
elsewhere under another name. One layout of links is allowed, the Hugging Face cache:

    models--org--name/snapshots/<revision>/.../model.onnx_data -> models--org--name/blobs/<hash>
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PureWindowsPath

from onnx import StringStringEntryProto, TensorProto

from ptq.errors import InvalidModelError, UnsafeModelError

_BESIDE = "Keep the data file in the model's folder and the model unchanged."


class ExternalFiles:
    """The data files of one model, each checked once; `bind` says where they really are."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._files: dict[str, tuple[Path, int]] = {}
        self._entries: list[StringStringEntryProto] = []

    def check(self, tensor: TensorProto, size_bytes: int, name: str) -> None:
        """Refuse external data that is not in the folder, or not the tensor's size.

        Raises:
            InvalidModelError: a file is missing or too short, or an entry is malformed.
            UnsafeModelError: the data lies outside the model's folder.
        """
        entries = {entry.key: entry for entry in tensor.external_data}
        if len(entries) != len(tensor.external_data) or "location" not in entries:
            raise InvalidModelError(
                f"{name}: its external data has no location, or an entry twice. "
                f"Export the model again."
            )
        location = entries["location"].value
        if location not in self._files:
            self._files[location] = self._open(location, name)
        self._entries.append(entries["location"])
        file_bytes = self._files[location][1]
        offset = _number(entries, "offset", name, 0)
        length = _number(entries, "length", name, size_bytes)
        if length != size_bytes:
            raise InvalidModelError(
                f"{name}: its shape needs {size_bytes} bytes, its external data claims {length}. "
                f"The file is damaged or forged; export or download it again."
            )
        if offset + length > file_bytes:
            raise InvalidModelError(
                f"{name}: needs bytes {offset} to {offset + length} of {location!r}, which has "
                f"{file_bytes}. The data file is cut short; download it again."
            )

    def bind(self) -> Path | None:
        """The directory of the data files; blobs get their real names in the model's entries."""
        if self._folder is None:
            return None
        blobs = _blobs_of(self._folder)
        in_blobs = {
            location
            for location, (real, _) in self._files.items()
            if blobs is not None and real.parent == blobs
        }
        if blobs is None or not in_blobs:
            return self._folder.resolve()
        if len(in_blobs) != len(self._files):
            raise UnsafeModelError(
                "model: some data files are links into the Hugging Face cache and some are not. "
                "Copy all of them into one folder."
            )
        for entry in self._entries:
            entry.value = self._files[entry.value][0].name
        return blobs

    def _open(self, location: str, name: str) -> tuple[Path, int]:
        """The real path and size of a data file that passes every rule."""
        if self._folder is None:
            raise InvalidModelError(
                f"{name}: its data is in the file {location[:200]!r}, but a model given as bytes "
                f"or as a message has no folder. Give the model's path instead."
            )
        _check_location(location, name)
        try:
            real = (self._folder / location).resolve(strict=True)
            status = real.stat()
        except (OSError, RuntimeError) as error:
            raise InvalidModelError(
                f"{name}: its data file {location[:200]!r} cannot be read in {self._folder} "
                f"({error.__class__.__name__}). Put the file beside the model."
            ) from error
        blobs = _blobs_of(self._folder)
        if not real.is_relative_to(self._folder.resolve()) and real.parent != blobs:
            raise UnsafeModelError(
                f"{name}: its data file {location[:200]!r} is a link out of the model's folder, "
                f"to {real}. {_BESIDE} If the link is yours, copy the file instead."
            )
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeModelError(f"{name}: {location[:200]!r} is not a regular file. {_BESIDE}")
        if status.st_nlink > 1:
            raise UnsafeModelError(
                f"{name}: its data file {location[:200]!r} has {status.st_nlink} hard links, so it "
                f"may be a file from elsewhere. If the links are yours, copy the file instead."
            )
        return real, status.st_size


def _check_location(location: str, name: str) -> None:
    windows = PureWindowsPath(location)
    reasons = {
        "is empty": not location.strip(),
        "is an absolute path": location.startswith("/")
        or bool(windows.drive or windows.root)
        or "://" in location,
        "climbs out with '..'": ".." in windows.parts,
        "has control characters": any(ord(char) < 32 for char in location),
    }
    for reason, holds in reasons.items():
        if holds:
            raise UnsafeModelError(
                f"{name}: the location of its external data, {location[:200]!r}, {reason}; "
                f"wanted a file in the model's folder. Do not use this model unless you know who "
                f"made it; export it again."
            )


def _blobs_of(folder: Path) -> Path | None:
    """The blobs directory when `folder` is a snapshot in a Hugging Face cache."""
    absolute = Path(os.path.normpath(Path.cwd() / folder))  # resolve() would follow the links
    for parent in absolute.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            blobs = parent.parent / "blobs"
            return blobs.resolve() if blobs.is_dir() and not blobs.is_symlink() else None
    return None


def _number(entries: dict[str, StringStringEntryProto], key: str, name: str, default: int) -> int:
    if key not in entries:
        return default
    text = entries[key].value
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise InvalidModelError(
            f"{name}: the {key} of its external data is {text[:40]!r}; wanted a whole number of "
            f"bytes, 0 or more. Export the model again."
        )
    return int(text)
