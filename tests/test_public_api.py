"""The names of `import ptq`."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import ptq
from ptq.cli import main


@pytest.mark.parametrize("name", ptq.__all__)
def test_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(ptq, name)
    assert name in dir(ptq)
    if name != "__version__":
        assert inspect.getdoc(value)
        assert value.__module__.startswith("ptq.")


def test_every_command_has_a_function_of_the_api() -> None:
    page = (Path(__file__).parents[1] / "docs/pages/python.md").read_text()
    rows = re.findall(r"^\| `(\w+)[^|]*\|([^|]*)\|", page, re.MULTILINE)
    assert {command for command, _ in rows} == set(main.commands)
    functions = [name for _, cell in rows for name in re.findall(r"ptq\.(\w+)", cell)]
    assert set(functions) <= set(ptq.__all__)
    assert all(callable(getattr(ptq, name)) for name in functions)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'quantise'"):
        _ = ptq.quantise  # type: ignore[attr-defined]


def test_everything_typed_is_exported() -> None:
    assert set(ptq._HOMES) | {"__version__"} == set(ptq.__all__)
