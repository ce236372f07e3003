"""What `ptq quantize` does where weights alone are quantised."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ptq.report.options import preprocess_of

if TYPE_CHECKING:
    from ptq.recipe import Recipe
    from ptq.report.summary import Report

INTEGER_ONLY = {
    "residual_bits": "activations are not quantised",
    "calib_method": "activations are not quantised",
    "cpu": "products are computed by onnxruntime's own kernels",
    "resume": "it keeps no stages",
}
"""Options that mean nothing here, and why."""


def weights_to(out: Path, options: Any, recipe: Recipe) -> Report:
    """Quantise the weights, measure, write; returns the report.

    Raises:
        UsageError: an option that has no meaning without integer activations.
    """
    from ptq.evaluate import Samples
    from ptq.report.measure import measure
    from ptq.report.progress import progress
    from ptq.weights_only import quantize_weights

    _refuse(options, recipe)
    preprocess = preprocess_of(options.preprocess)
    with progress(quiet=options.quiet) as show:
        result = quantize_weights(
            options.model,
            options.calib,
            recipe,
            preprocess=preprocess,
            progress=lambda p: show(p.stage, p.done, p.total, p.detail),
            **({} if options.memory is None else {"memory_bytes": options.memory}),
        )
        report = result.report
        if options.measure:
            data = Samples(options.calib, options.evaluation, preprocess, seed=recipe.seed)
            report = measure(report, result, data, options.model, show)
        show("write", 0, None)
        result.save(out, force=options.force, report=report)
    return report


def _refuse(options: Any, recipe: Recipe) -> None:
    given = [name for name in INTEGER_ONLY if getattr(options, name, None) not in (None, False)]
    if options.any():
        given.append("budgets")
    for name in given:
        reason = INTEGER_ONLY.get(name, "widths are chosen for integer networks")
        raise click.UsageError(
            f"--{name.replace('_', '-')} with {recipe.precision}: {reason}; leave it out"
        )
