"""Amounts as people write them: 2MB, 1.5G, 3ms."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ptq.errors import UsageError

_AMOUNT = re.compile(r"([0-9.]+)\s*([a-zA-Z]*)")
BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9,
          "kib": 2**10, "mib": 2**20, "gib": 2**30}  # fmt: skip
OPERATIONS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
MILLISECONDS = {"": 1, "ms": 1, "us": 1e-3, "s": 1e3}


def amount(text: str, units: Mapping[str, float]) -> float:
    """Read '2MB' or '3.5ms'.

    Raises:
        UsageError: no number, or another unit.
    """
    match = _AMOUNT.fullmatch(text.strip())
    try:
        return float(match[1]) * units[match[2].lower()]  # type: ignore[index]
    except (TypeError, KeyError, ValueError) as error:
        names = ", ".join(name for name in units if name)
        raise UsageError(f"{text!r}: wanted a number, and maybe a unit of {names}") from error


def size(text: str) -> float:
    """Bytes of '2MB' or '300 kB'."""
    return amount(text, BYTES)


def operations(text: str) -> float:
    """Operations of '1.5G'."""
    return amount(text, OPERATIONS)


def milliseconds(text: str) -> float:
    """Milliseconds of '3ms'."""
    return amount(text, MILLISECONDS)
