"""The one shape that every calibration source is brought to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

RawBatch = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """Where samples come from, before they are checked against the model.

    Attributes:
        name: for messages: a path, or the type of the object.
        read: starts from the beginning and yields natural batches by input name, values as
            arrays of any convertible type; may be called again and again.
        samples: how many samples there are, or None if only reading them all would tell.
        limited: whether `read` already respects the limit and the seed.
        synthetic: the samples are invented.
    """

    name: str
    read: Callable[[], Iterator[RawBatch]]
    samples: int | None = None
    limited: bool = False
    synthetic: bool = False
