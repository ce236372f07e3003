"""Precision of single layers: 'w4a8', 'w8', 'a4' or 'float', and maps from patterns to them.

A map is a TOML or JSON file of pattern -> precision, in order. A later pattern has the last word on
what it says, so that `"*" = "w4a8"` and then `"fc" = "w8"` leave fc at w8a8.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ptq.errors import RecipeError

FLOAT = "float"
_PRECISION = re.compile(r"(?:w([2-8]))?(?:a([2-8]))?")
_WANTED = "wanted w<2-8>, a<2-8>, both as in w4a8, or 'float'"


@dataclass(frozen=True)
class Precision:
    """What is said about one layer; None is not said.

    weight_bits: of its weight. activation_bits: of the codes it reads. float: it stays float.
    """

    weight_bits: int | None = None
    activation_bits: int | None = None
    float: bool = False

    @staticmethod
    def parse(text: str) -> Precision:
        """Read 'w4a8', 'w8', 'a4' or 'float'.

        Raises:
            RecipeError: none of these.
        """
        if text.lower() == FLOAT:
            return Precision(float=True)
        match = _PRECISION.fullmatch(text.lower())
        if not text or match is None:
            raise RecipeError(f"precision {text!r}: {_WANTED}")
        weight, activation = (None if group is None else int(group) for group in match.groups())
        return Precision(weight, activation)

    def __str__(self) -> str:
        if self.float:
            return FLOAT
        weight = "" if self.weight_bits is None else f"w{self.weight_bits}"
        activation = "" if self.activation_bits is None else f"a{self.activation_bits}"
        return weight + activation

    def then(self, later: Precision) -> Precision:
        """This, where `later` says nothing else; a width takes 'float' back."""
        if later.float:
            return later
        return Precision(
            self.weight_bits if later.weight_bits is None else later.weight_bits,
            self.activation_bits if later.activation_bits is None else later.activation_bits,
        )


UNSAID = Precision()


def load_map(path: Path) -> dict[str, str]:
    """Read a precision map, TOML by its suffix or else JSON.

    Raises:
        RecipeError: unreadable, or a value that is no precision.
    """
    decode: Any = msgspec.toml.decode if path.suffix == ".toml" else msgspec.json.decode
    try:
        found: dict[str, str] = decode(path.read_bytes(), type=dict[str, str])
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        raise RecipeError(
            f"{path}: not a precision map: {error}; wanted pattern -> precision, for instance "
            '"layer1.*" = "w4a8" in TOML'
        ) from error
    check_map(found, str(path))
    return found


def check_map(precision_map: Mapping[str, str], where: str) -> None:
    """Make sure that all precisions and regular expressions of a map can be read.

    Raises:
        RecipeError: one of them cannot.
    """
    for pattern, text in precision_map.items():
        try:
            Precision.parse(text)
            re.compile(pattern.removeprefix("re:") if pattern.startswith("re:") else "")
        except (RecipeError, re.error) as error:
            raise RecipeError(f"{where}: pattern {pattern!r}: {error}") from error


def save_map(precision_map: Mapping[str, str], path: Path) -> None:
    """Write a map that `load_map` reads; TOML by the suffix, or else JSON."""
    if path.suffix != ".toml":
        path.write_bytes(msgspec.json.format(msgspec.json.encode(precision_map), indent=2))
        return
    lines = [" = ".join(map(_quoted, pair)) for pair in precision_map.items()]
    path.write_text("".join(f"{line}\n" for line in lines))


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()  # a JSON string is a TOML string too
