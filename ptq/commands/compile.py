"""`ptq compile`: parses, calls, prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from ptq.report.commands import emit, options_as
from ptq.report.options import COMMON, FILE, SIZE, Common, sizes_of


@dataclass(frozen=True, kw_only=True)
class _Compile(Common):
    model: Path
    output: Path | None
    target: str
    batch: int | None
    size: tuple[str, ...]
    weights: str
    tune: int
    force: bool


@click.command()
@options_as(
    _Compile,
    click.argument("model", type=FILE),
    click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: IN.so."),
    click.option(
        "--target",
        default="llvm:native",
        show_default=True,
        metavar="T",
        help="llvm, llvm:native, llvm:CPU, llvm:TRIPLE:CPU, c and c:TRIPLE (portable, slow), "
        "cuda and cuda:sm_80+sm_90, opencl.",
    ),
    click.option(
        "--batch", type=click.IntRange(min=1), help="Samples a call.  [default: any number]"
    ),
    SIZE,
    click.option(
        "--weights",
        type=click.Choice(("auto", "int8", "packed")),
        default="auto",
        show_default=True,
        help="In the module: int8, or 2 to 4 bits where the model has no more; auto is the faster.",
    ),
    click.option(
        "--tune",
        type=click.IntRange(min=0),
        default=0,
        metavar="N",
        help="Time N tiles for each shape here; the best are remembered in ~/.cache/ptq.",
    ),
    click.option("--force", is_flag=True, help="Replace OUT if it exists."),
    *COMMON,
)
def compile(options: _Compile) -> None:
    """Compile a quantised MODEL, with its side files, into a shared library by TVM.

    Python runs it by ptq.runtime.load(OUT)(x).
    """
    from ptq.compilation import compile_file, print_compilation
    from ptq.report.progress import progress
    from ptq.targets.tvm.module import CompileOptions

    out = options.output or options.model.with_suffix(".so")
    with progress(quiet=options.quiet) as show:
        show("compile", 0, None)
        how = CompileOptions(
            options.target, options.batch, weights=options.weights, tune=options.tune,
            sizes=sizes_of(options.size),
        )  # fmt: skip
        found = compile_file(options.model, out, how, force=options.force)
    emit(options, {"command": "compile", "output": str(out)}, found, print_compilation)
    if not (options.as_json or options.quiet):
        click.echo(f"wrote {out}")
