"""The names of `import ptq`."""

from __future__ import annotations

import inspect

import pytest

import ptq


@pytest.mark.parametrize("name", ptq.__all__)
def test_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(ptq, name)
    assert name in dir(ptq)
    if name != "__version__":
        assert inspect.getdoc(value)
        assert value.__module__.startswith("ptq.")


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'quantise'"):
        _ = ptq.quantise  # type: ignore[attr-defined]


def test_everything_typed_is_exported() -> None:
    assert set(ptq._HOMES) | {"__version__"} == set(ptq.__all__)
