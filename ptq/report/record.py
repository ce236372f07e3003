"""Whatever ptq returns as JSON: plain data, nothing that runs when it is read."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


def to_json(found: Any) -> str:
    """A report, verification, benchmark, comparison, regression, diagnosis or page as JSON.

    Each carries its `schema_version`; infinities and what was not measured are null.
    """
    return msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n"


def from_json(text: str | bytes, kind: type[T]) -> T:
    """Read what `to_json` wrote. kind: the class that was written.

    Raises:
        msgspec.MsgspecError: it is not one.
    """
    return msgspec.json.decode(text, type=kind)
