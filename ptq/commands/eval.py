"""`ptq eval`: parses, calls, prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from ptq.report.commands import emit, options_as
from ptq.report.options import COMMON, FILE, PREPROCESS, THREADS, Common, preprocess_of


@dataclass(frozen=True, kw_only=True)
class _Eval(Common):
    model: Path
    data: Path
    ppl: bool
    ids: str | None
    samples: int | None
    preprocess: str | None
    threads: int | None


@click.command(name="eval")
@options_as(
    _Eval,
    click.argument("model", type=FILE),
    click.option(
        "--data",
        metavar="DATA",
        type=click.Path(exists=True, path_type=Path),
        required=True,
        help="Labelled samples; with --ppl tokens [samples, tokens] as .npz or .npy.",
    ),
    click.option("--ppl", is_flag=True, help="Perplexity of a language model, not accuracy."),
    click.option(
        "--ids", metavar="NAME", help="The input with the tokens.  [default: the one there is]"
    ),
    click.option("--samples", type=click.IntRange(min=1), help="Use at most so many samples."),
    PREPROCESS,
    THREADS,
    *COMMON,
)
def evaluate(options: _Eval) -> None:
    """Measure MODEL, float or quantised: top-1 accuracy, or perplexity with --ppl."""
    from ptq.evaluate import Evaluation, accuracy_of, perplexity_of
    from ptq.report.console import print_accuracy, print_perplexity
    from ptq.report.progress import progress

    if options.ids is not None and not options.ppl:
        raise click.UsageError("--ids names the tokens of a language model: give --ppl with it")
    how = Evaluation(
        options.data, preprocess_of(options.preprocess), options.samples, options.threads
    )
    with progress(quiet=options.quiet) as show:

        def report(done: int) -> None:
            show("evaluate", done, None)

        if options.ppl:
            perplexity = perplexity_of(options.model, how, options.ids, report)
        else:
            accuracy = accuracy_of(options.model, how, report)
    head = {"command": "eval"}
    if options.ppl:
        emit(options, head, perplexity, print_perplexity)
    else:
        emit(options, head, accuracy, print_accuracy)
