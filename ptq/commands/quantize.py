"""`ptq quantize`: parses, calls, prints."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ptq.commands.budget_options import BUDGETS, BudgetChoices
from ptq.commands.reproduce import REPRODUCE, check_again, redo
from ptq.commands.weights_only import weights_to
from ptq.report.commands import emit, options_as
from ptq.report.options import (
    ACTIVATION_GRIDS,
    CALIB,
    COMMON,
    CPUS,
    EFFORTS,
    EVAL,
    FILE,
    GRIDS,
    METHODS,
    PREPROCESS,
    RECIPE,
    SEED,
    SIZE,
    Choices,
    preprocess_of,
    sizes_of,
)
from ptq.report.resources import RUN, kept_if_interrupted
from ptq.report.target_option import Target, is_compiled

if TYPE_CHECKING:
    from ptq.recipe import Recipe
    from ptq.report.summary import Report


@dataclass(frozen=True, kw_only=True)
class _Quantize(BudgetChoices, Choices):
    model: Path
    output: Path | None
    calib: str | None
    calib_method: str | None
    samples: int | None
    preprocess: str | None
    evaluation: Path | None
    grid: str | None
    activation_grid: str | None
    effort: str | None
    target: str | None
    size: tuple[str, ...]
    io: str | None
    cpu: str | None
    seed: int | None
    measure: bool
    force: bool
    trust: bool
    memory: int | None
    resume: bool
    from_manifest: Path | None
    check_reproducible: bool


@click.command()
@options_as(
    _Quantize,
    click.argument("model", type=FILE),
    click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: IN.wNaM.onnx."),
    *RECIPE,
    *BUDGETS,
    CALIB,
    click.option("--calib-method", type=click.Choice(METHODS), help="How ranges are chosen."),
    click.option("--samples", type=click.IntRange(min=1), help="Use at most so many samples."),
    PREPROCESS,
    EVAL,
    click.option(
        "--grid", type=click.Choice(GRIDS), help="Levels of the weights.  [default: uniform]"
    ),
    click.option(
        "--activation-grid",
        type=click.Choice(ACTIVATION_GRIDS),
        help="Levels of activations of 2 to 6 bits.  [default: codebook; without --calib: uniform]",
    ),
    click.option(
        "--effort", type=click.Choice(EFFORTS), help="Time for accuracy.  [default: default]"
    ),
    click.option("--target", type=Target(), help="What to write.  [default: onnx]"),
    SIZE,
    click.option("--io", type=click.Choice(("float", "integer")), help="Type of in- and outputs."),
    click.option(
        "--cpu",
        type=click.Choice(CPUS),
        help="Where 8-bit weights must not saturate: 'vnni' is finer, exact as int8 only on such "
        "CPUs.  [default: any]",
    ),
    SEED,
    click.option("--measure/--no-measure", default=True, help="Compare and time the result."),
    click.option("--force", is_flag=True, help="Replace OUT if it exists."),
    click.option("--trust", is_flag=True, help="Read a .pt2 MODEL, which may run code in it."),
    *RUN,
    *REPRODUCE,
    *COMMON,
)
def quantize(options: _Quantize) -> None:
    """Quantise MODEL, an ONNX file, and write an integer-only one.

    A torch.export archive (.pt2) is exported to a float ONNX file beside OUT first.
    """
    from ptq.report import artifact
    from ptq.report.console import print_report

    if options.from_manifest is not None:
        redo(options, options.from_manifest)
        return
    recipe = options.recipe(
        **_for_the_data(options),
        grid=options.grid,
        target=None if is_compiled(options.target) else options.target,
        io=options.io,
        cpu=options.cpu,
        seed=options.seed,
    )
    stem = options.model.name.removesuffix(".onnx").removesuffix(".pt2")
    precision = "mixed" if options.any() else recipe.precision
    suffix = ".so" if is_compiled(options.target) else ".onnx"
    out = options.output or options.model.with_name(f"{stem}.{precision}{suffix}")
    artifact.check(out, force=options.force, sources=[options.model])
    if options.model.suffix == ".pt2":
        options = replace(options, model=_exported(options, out.with_name(f"{stem}.onnx")))
    if options.bits is not None and not options.quiet:
        click.echo(_what_bits_mean(recipe), err=True)
    report = _quantize_to(out, options, recipe)
    emit(options, {"command": "quantize", "output": str(out)}, report, print_report)
    if not (options.as_json or options.quiet):
        click.echo(f"wrote {out}")
    if options.check_reproducible:
        check_again(options.model, out, quiet=options.quiet)


def _for_the_data(options: _Quantize) -> dict[str, Any]:
    """Choices that depend on whether there are samples; a recipe file has made them already."""
    from ptq.recipe import DATA_FREE

    given = {
        "calib_method": options.calib_method,
        "samples": options.samples,
        "effort": options.effort,
        "activation_grid": options.activation_grid,
    }
    defaults = DATA_FREE if options.calib is None and options.recipe_path is None else {}
    return {**defaults, **{name: value for name, value in given.items() if value is not None}}


def _exported(options: _Quantize, out: Path) -> Path:
    """Export the archive MODEL to the float ONNX file `out`, which later commands compare with."""
    from ptq.from_torch import write_onnx

    write_onnx(options.model, out, trust=options.trust, force=options.force)
    if not options.quiet:
        click.echo(f"exported {options.model} to {out}", err=True)
    return out


def _what_bits_mean(recipe: Recipe) -> str:
    return (
        f"--bits {recipe.weight_bits} means {recipe.precision}: {recipe.weight_bits}-bit weights "
        f"and {recipe.activation_bits}-bit activations; the first and the last layer have "
        f"{recipe.edge_bits}-bit weights (--edge-bits)"
    )


def _quantize_to(out: Path, options: _Quantize, recipe: Recipe) -> Report:
    """Quantise, measure, write; returns the report."""
    if recipe.weights_only:
        return weights_to(out, options, recipe)
    from ptq.compilation import check_sizes, check_target, save_compiled
    from ptq.evaluate import Samples, check_evaluation
    from ptq.mixed.within import quantize_within
    from ptq.opening import RunOptions
    from ptq.pipeline import quantize
    from ptq.report import artifact
    from ptq.report.measure import measure
    from ptq.report.progress import progress
    from ptq.report.summary import make_report
    from ptq.targets.tvm.module import CompileOptions

    preprocess = preprocess_of(options.preprocess)
    memory = options.memory or RunOptions.memory_bytes
    compiled = options.target if is_compiled(options.target) else None
    sizes = sizes_of(options.size)
    if sizes and compiled is None:
        raise click.UsageError(
            "--size: only a compiled module has fixed sizes; give --target tvm:..."
        )
    if compiled is not None:
        recipe = check_target(compiled, recipe)
        check_sizes(options.model, sizes, recipe.input_shapes)
    with progress(quiet=options.quiet) as show, kept_if_interrupted(out) as work:
        if options.evaluation is not None:
            check_evaluation(options.model, options.evaluation, preprocess)
        run = (
            partial(quantize_within, budgets=options.budgets(compiled, sizes), folder=options.work)
            if options.any()
            else quantize
        )
        result = run(
            options.model,
            options.calib,
            recipe,
            preprocess=preprocess,
            progress=lambda p: show(p.stage, p.done, p.total, p.detail),
            how=RunOptions(work, options.resume, memory),
        )
        report = make_report(result, options.model)
        if options.measure:
            data = Samples(options.calib, options.evaluation, result.preprocess, seed=recipe.seed)
            report = measure(report, result, data, options.model, show)
        show("write", 0, None)
        if compiled is not None:
            save_compiled(
                result, out, CompileOptions(compiled, sizes=sizes),
                force=options.force, report=report, source=options.model,
            )  # fmt: skip
        else:
            artifact.save(result, out, force=options.force, report=report, source=options.model)
    return report
