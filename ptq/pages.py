"""Gather what a quantised model's report says: from its side files, its float model, samples."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import onnx_ir as ir

from ptq.errors import UsageError
from ptq.files import check_output, staged
from ptq.integer.outline import outline
from ptq.integer.units import Unit
from ptq.mixed.explore import Exploration
from ptq.model import load
from ptq.passes.prepare import prepare
from ptq.recipe import Recipe
from ptq.report.artifact import float_source, load_manifest, load_program
from ptq.report.console import decibel, megabytes, percent
from ptq.report.manifest import Manifest
from ptq.report.measure import Samples
from ptq.report.nearness import Tensor, tensors
from ptq.report.page.content import Fact, Front, Page, Point
from ptq.report.page.forms import FORMS
from ptq.report.page.rows import graph_nodes, layer_rows
from ptq.report.print_benchmark import surroundings_line
from ptq.report.summary import Report
from ptq.report.verification import Subject
from ptq.targets.names import code_names
from ptq.targets.storage import PLANES
from ptq.verify import boundary_specs

_STORED_BITS = {bits: sum(planes) for bits, planes in PLANES.items()}


@dataclass(frozen=True)
class PageOptions:
    """What to look at besides the model's side files.

    samples: to compare every tensor with the float model's on; None leaves these figures out.
    float_path: None is the float model that the manifest remembers. front: a file with the models
    of a Pareto front.
    """

    samples: Samples | None = None
    float_path: Path | None = None
    front: Path | None = None


def make_page(
    model: Path,
    options: PageOptions | None = None,
    show: Callable[[str, int, int | None], None] | None = None,
) -> Page:
    """The content of the report of a model that ptq wrote.

    show: called with stage, done, total; an exception raised in it cancels the run.

    Raises:
        InvalidModelError: the model or its side files are missing or damaged.
        UsageError: samples, but no float model to compare with.
    """
    options = options or PageOptions()
    load(model)  # checked before anything else reads it
    manifest, program = load_manifest(model), load_program(model).program
    source = options.float_path or float_source(model, manifest)
    shapes = manifest.recipe.input_shapes
    float_model = None if source is None else prepare(load(source), input_shapes=shapes)
    subject = Subject(load(model), program, code_names(program, manifest.recipe.io), float_model)
    measured = _measured(subject, manifest, options.samples, show)
    report = manifest.report
    return Page(
        model=model.name,
        precision=manifest.recipe.precision,
        target=manifest.recipe.target,
        facts=tuple(_facts(report)),
        certificates=report.certificates,
        layers=layer_rows(program, _units(float_model, manifest.recipe), measured, _STORED_BITS),
        islands=report.islands,
        graph=graph_nodes(program),
        lints=report.lints,
        provenance=_provenance(manifest),
        comparison=report.comparison,
        measured_on=report.measured_on,
        latency=report.latency,
        ladder=report.ladder,
        front=None if options.front is None else load_front(options.front, model),
    )


def _units(model: ir.Model | None, recipe: Recipe) -> dict[str, Unit]:
    if model is None:
        return {}
    return {unit.name: unit for unit in outline(model, recipe).units}


def _measured(
    subject: Subject,
    manifest: Manifest,
    samples: Samples | None,
    show: Callable[[str, int, int | None], None] | None,
) -> dict[str, Tensor]:
    if samples is None:
        return {}
    if subject.float_model is None:
        raise UsageError(
            "the float model is not where it was, or has changed: give it with --float, or leave "
            "the samples out"
        )
    preprocess = samples.preprocess or manifest.preprocess
    data = Samples(samples.calib, None, preprocess, samples.samples, samples.seed)
    batches = (batch for batch, _ in data.batches(boundary_specs(subject.program)))
    return tensors(subject, batches, show and (lambda n: show("compare tensors", n, None)))


def _facts(report: Report) -> list[Fact]:
    """The summary: what the float model and the integer one are and do."""
    ratio = report.float_bytes / max(report.quantized_bytes, 1)
    small = f"{megabytes(report.quantized_bytes)} ({ratio:.1f} x smaller)"
    facts = [Fact("size", megabytes(report.float_bytes), small)]
    found, timed = report.comparison, report.latency
    if found is not None:
        if found.first_top1 is not None:
            right = percent(found.first_top1), percent(found.second_top1)
            facts.append(Fact("top-1 accuracy", *right))
        for name, scores in found.outputs.items():
            agreement = scores.top1_agreement
            same = "" if agreement is None else f", same top-1 {percent(agreement)}"
            facts.append(Fact(f"output {name}", "", f"SQNR {decibel(scores.sqnr_db)}{same}"))
    if timed is not None:
        low, high = timed.speedup_intervals[1]
        first, second = timed.timings[:2]
        speed = f"{second.p50_ms:.3f} ms ({timed.speedups[1]:.2f} x, {low:.2f} to {high:.2f})"
        label = f"latency, batch {timed.batch}, {timed.threads} threads"
        facts.append(Fact(label, f"{first.p50_ms:.3f} ms", speed))
    return facts


def _provenance(manifest: Manifest) -> dict[str, str]:
    """What it takes to make this model again."""
    found = {}
    if manifest.source is not None:
        found["float model"] = f"{manifest.source.path} (sha256 {manifest.source.sha256})"
    found |= {record.path: f"sha256 {record.sha256}" for record in manifest.files}
    found["seed"] = str(manifest.seed)
    found["samples"] = str(manifest.report.samples)
    found["preprocess"] = "none" if manifest.preprocess is None else str(manifest.preprocess)
    found["versions"] = ", ".join(
        f"{name} {version}" for name, version in manifest.versions.items()
    )
    found["recipe"] = json.dumps(msgspec.to_builtins(manifest.recipe))
    if manifest.report.latency is not None:
        found["timed on"] = surroundings_line(manifest.report.latency.surroundings)
    return found


def save_page(page: Page, path: Path, *, force: bool = False) -> None:
    """Write the page in the form that the path's suffix says: .html, .md or .json.

    Raises:
        UsageError: another suffix. OutputError: not writable, or it exists and `force` is not set.
    """
    if path.suffix not in FORMS:
        raise UsageError(f"{path}: wanted a name that ends in {', '.join(FORMS)}")
    check_output(path, force=force)
    with staged(path.parent, force=force) as stage:
        (stage / path.name).write_text(FORMS[path.suffix](page), encoding="utf-8")


def load_front(path: Path, model: Path) -> Front:
    """Read the models of a Pareto front: what `ptq explore` wrote, or JSON laid out as `Front` is.

    Raises:
        UsageError: neither.
    """
    try:
        text = path.read_bytes()
        if b'"rank_correlation"' in text:
            found = _explored(msgspec.json.decode(text, type=Exploration))
        else:
            found = msgspec.json.decode(text, type=Front)
    except (OSError, msgspec.MsgspecError) as error:
        raise UsageError(f"{path}: not a Pareto front ({error})") from error
    points = (replace(p, this=p.this or p.label == model.name) for p in found.points)
    return Front(found.quality, tuple(points))


def _explored(found: Exploration) -> Front:
    """Higher is better: the loss against the float model, in decibels below one."""
    points = (*found.points, *found.uniform)
    return Front(
        "-10 log10 loss",
        tuple(
            Point(p.name, p.size_bytes, -10 * math.log10(max(p.quality.loss, 1e-12)))
            for p in points
        ),
    )
