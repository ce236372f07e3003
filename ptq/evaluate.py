"""Compare and time model files, float and quantised ones alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ptq import runtime
from ptq.calib_data import (
    Batch,
    Calibration,
    InputSpec,
    Preprocess,
    input_specs,
    labelled,
    open_calibration,
)
from ptq.calib_data.synthetic import synthetic_source
from ptq.errors import UsageError
from ptq.model import load
from ptq.report.artifact import (
    float_source,
    is_integer,
    is_quantized,
    load_manifest,
    load_program,
)
from ptq.report.benchmark import Benchmark, BenchOptions, bench
from ptq.report.comparison import Comparison, compare
from ptq.report.compiled import is_compiled, open_file
from ptq.report.cpu import pinned
from ptq.report.measure import Samples, evaluation_batches, first_rows
from ptq.report.metrics import Accuracy, MeasuredAccuracy
from ptq.report.perplexity import MASK, Perplexity, Surprise, token_input
from ptq.report.profile import NodeTime, profile, profile_compiled
from ptq.verify import boundary_specs, sizes_of

__all__ = [
    "Evaluation",
    "Samples",
    "accuracy_of",
    "bench_files",
    "check_evaluation",
    "compare_files",
    "first_rows",
    "float_inputs",
    "perplexity_of",
    "with_preprocess",
]


def float_inputs(path: Path) -> tuple[InputSpec, ...]:
    """What a model wants to be fed, in floats even if its boundary is codes.

    Raises:
        ModelError: it cannot be read.
    """
    if is_compiled(path):
        batch = runtime.load(path).fixed_batch
        return boundary_specs(load_program(path).program, sizes_of(load_manifest(path)), batch)
    model = load(path)  # checked before anything else, whoever wrote it
    return boundary_specs(load_program(path).program) if is_integer(path) else input_specs(model)


def check_evaluation(model: Path, data: Path, preprocess: Preprocess | None) -> None:
    """Read the first labelled samples, so that a mistake is found before an hour of calibration.

    Raises:
        CalibrationError: they do not fit the model.
    """
    next(evaluation_batches(data, float_inputs(model), preprocess or Preprocess()))


def compare_files(
    first: Path,
    second: Path,
    samples: Samples,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Run both models on the samples. progress: called with the number of samples done.

    Raises:
        ModelError: one of them cannot be read or run.
        CalibrationError: the samples do not fit, or the models are not of one network.
    """
    specs = float_inputs(first)
    float_inputs(second)
    names = (first.name, second.name) if first.name != second.name else (str(first), str(second))
    sessions = [
        open_file(path, name=n, threads=1 if is_compiled(path) else None)
        for path, n in zip((first, second), names, strict=True)
    ]
    batches = with_preprocess(samples, (first, second)).batches(specs)
    return compare(sessions[0], sessions[1], batches, progress)


@dataclass(frozen=True)
class Evaluation:
    """What one model is measured on, and how. samples: at most so many, None is all."""

    data: Path
    preprocess: Preprocess | None = None
    samples: int | None = None
    threads: int | None = None
    batch: int = 8


def accuracy_of(
    model: Path, how: Evaluation, progress: Callable[[int], None] = lambda done: None
) -> MeasuredAccuracy:
    """Top-1 accuracy of a model's first output. progress: called with the number of samples done.

    Raises:
        ModelError: it cannot be read or run.
        CalibrationError: the samples do not fit, or have no labels.
    """
    specs = float_inputs(model)
    session = open_file(model, name=model.name, threads=how.threads)
    preprocess = with_preprocess(Samples(preprocess=how.preprocess), (model,)).preprocess
    right = Accuracy()
    for batch, labels in labelled(
        how.data, specs, preprocess, batch_size=how.batch, limit=how.samples
    ):
        right.add(next(iter(session.predict(batch).values())), labels)
        progress(right.rows)
    return MeasuredAccuracy(model.name, right.rows, right.top1)


def perplexity_of(
    model: Path,
    how: Evaluation,
    ids: str | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Perplexity:
    """Perplexity of a causal language model. ids: its input of tokens, where several could be.

    An input called attention_mask says which tokens count (0: not).

    Raises:
        ModelError: it cannot be read or run.
        UsageError: it is no language model, or the tokens do not fit it.
    """
    specs = float_inputs(model)
    name = token_input(specs, ids)
    session = open_file(model, name=model.name, threads=how.threads)
    surprise = Surprise(str(how.data))
    samples = open_calibration(str(how.data), specs, limit=how.samples)
    for batch in samples.batches(how.batch):
        surprise.add(batch[name], session.predict(batch), batch.get(MASK))
        progress(surprise.samples)
    return surprise.found(model.name)


def bench_files(
    models: Sequence[Path],
    samples: Samples,
    options: BenchOptions | None = None,
    *,
    baseline: Path | None = None,
    batch_size: int = 1,
    profiled: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Benchmark:
    """Time the models interleaved; the first is the baseline.

    models: ONNX files, and modules that `ptq compile` wrote (.so); the first one is an ONNX file.
    baseline: a float model to put first. One quantised model alone is timed against the float
    model that its manifest remembers. profiled: profile them afterwards, node by node.

    Raises:
        UsageError: one model, and nothing to compare it with.
        ModelError: one of them cannot be read or run.
    """
    options = options or BenchOptions()
    paths = [*([] if baseline is None else [baseline]), *models]
    if len(paths) == 1:
        paths = [_float_of(paths[0]), *paths]
    if is_compiled(paths[0]):
        raise UsageError(
            f"{paths[0]}: a compiled module is timed against an ONNX file; put it first"
        )
    specs = [float_inputs(path) for path in paths]
    fixed = next((s for s, path in zip(specs, paths, strict=True) if is_compiled(path)), specs[0])
    batch = one_batch(with_preprocess(samples, paths), fixed, batch_size)
    named = _named(paths)
    with pinned(options.cpus):
        sessions = {n: open_file(p, name=n, threads=options.threads) for n, p in named}
        found = bench(sessions, batch, options, progress)
        if profiled:
            profiles = {n: _profile(p, n, batch, options.threads) for n, p in named}
            found = replace(found, profiles=profiles)
    return found


def _profile(path: Path, name: str, batch: Batch, threads: int | None) -> tuple[NodeTime, ...]:
    if is_compiled(path):
        return profile_compiled(path, batch, threads=threads)
    return profile(path, batch, name=name, threads=threads)


def one_batch(samples: Samples, specs: tuple[InputSpec, ...], size: int) -> Batch:
    """The first `size` samples; invented ones do as well for timing."""
    if samples.calib is None:
        data = Calibration(synthetic_source(specs, size, samples.seed), specs)
    else:
        data = open_calibration(
            samples.calib, specs, preprocess=samples.preprocess, limit=size, seed=samples.seed
        )
    return next(data.batches(size))


def _float_of(path: Path) -> Path:
    source = float_source(path, load_manifest(path)) if is_quantized(path) else None
    if source is None:
        raise UsageError(
            f"{path}: nothing to time it against; give a second model, or --float with its float "
            "model"
        )
    return source


def _named(paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """Short names, unless two files share one."""
    unique = len({path.name for path in paths}) == len(paths)
    names = [path.name if unique else f"{i + 1}: {path}" for i, path in enumerate(paths)]
    return list(zip(names, paths, strict=True))


def with_preprocess(samples: Samples, paths: Sequence[Path]) -> Samples:
    """The samples with the preprocess of a manifest, if none is given."""
    if samples.preprocess is not None:
        return samples
    known = (load_manifest(path).preprocess for path in paths if is_quantized(path))
    return replace(samples, preprocess=next((p for p in known if p is not None), None))
