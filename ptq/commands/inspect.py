"""`ptq inspect`: parses, calls, prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from ptq.report.commands import emit, options_as
from ptq.report.options import COMMON, FILE, RECIPE, Choices


@dataclass(frozen=True, kw_only=True)
class _Inspect(Choices):
    model: Path


@click.command()
@options_as(_Inspect, click.argument("model", type=FILE), *RECIPE, *COMMON)
def inspect(options: _Inspect) -> None:
    """Show a model's operators, sizes, float islands and why, and what will really run.

    Of a compiled module: which kernel runs where, and its share of the time.
    """
    from ptq.inspection import inspect_file, print_inspection
    from ptq.report.compiled import is_compiled as is_module

    if is_module(options.model):
        from ptq.report.kernel_times import inspect_module, print_module

        emit(options, {"command": "inspect"}, inspect_module(options.model), print_module)
        return
    found = inspect_file(options.model, options.recipe())
    emit(options, {"command": "inspect"}, found, print_inspection)
