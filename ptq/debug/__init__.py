"""Where the accuracy of a quantised model goes, and what brings it back."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ptq.calib_data import input_specs
from ptq.debug.diagnosis import Diagnosis, Measured, Repair
from ptq.debug.network import Loss, Network, output_loss
from ptq.debug.repair import Choice, choose_repair
from ptq.debug.suspects import find_suspects, group_switches
from ptq.debug.switchboard import switchboard
from ptq.errors import UsageError
from ptq.integer.outline import outline
from ptq.model import load
from ptq.passes.prepare import prepare
from ptq.pipeline import quantize
from ptq.plan import Plan
from ptq.recipe import Recipe
from ptq.report.artifact import float_source, load_manifest, load_program
from ptq.report.comparison import Labelled
from ptq.report.manifest import Manifest
from ptq.report.measure import Samples
from ptq.report.metrics import Accuracy
from ptq.report.nearness import Tensor, tensors
from ptq.report.session import Session, open_session
from ptq.report.summary import file_bytes
from ptq.report.verification import Subject
from ptq.targets.names import code_names

Show = Callable[[str, int, int | None], None]

__all__ = ["DebugOptions", "Diagnosis", "debug_file"]


@dataclass(frozen=True)
class DebugOptions:
    """How to look.

    samples: calibration data; `samples.samples` of it diagnose, all of it quantises a repair, and
    `samples.evaluation`, if given, measures it (else the samples that diagnosed).
    float_path: None is the float model that the manifest remembers.
    regain: part of the loss that the repair should take back. apply: quantise with it and measure.
    batch: samples at a time.
    """

    samples: Samples
    float_path: Path | None = None
    regain: float = 0.75
    apply: bool = True
    batch: int = 8


def debug_file(model: Path, options: DebugOptions, show: Show | None = None) -> Diagnosis:
    """Diagnose a model that ptq wrote, and try a repair.

    show: called with stage, done, total; an exception raised in it cancels the run.

    Raises:
        InvalidModelError: the model or its side files are missing or damaged.
        UsageError: the float model is not there.
    """
    show = show or _silent
    target = load(model)
    manifest, saved = load_manifest(model), load_program(model)
    source = options.float_path or float_source(model, manifest)
    if source is None:
        raise UsageError(f"{model}: its float model is not where it was, or has changed: --float")
    samples = replace(options.samples, preprocess=options.samples.preprocess or manifest.preprocess)
    float_model = prepare(load(source), input_shapes=manifest.recipe.input_shapes)
    sketch = outline(float_model, manifest.recipe)
    batches = [b for b, _ in replace(samples, evaluation=None).batches(input_specs(float_model))]
    names = code_names(saved.program, manifest.recipe.io)
    subject = Subject(target, saved.program, names, float_model)
    seen = tensors(subject, batches, lambda done: show("compare tensors", done, None))
    network = Network(switchboard(float_model, sketch, saved.plan), batches)
    found = find_suspects(
        network, sketch, saved.plan, seen, lambda done, total: show("layers alone", done, total)
    )
    total = network.loss(np.ones(len(network.switches), np.bool_))
    groups, sizes = group_switches(network, sketch), _elements(network, saved.plan, seen)
    choice = choose_repair(network, groups, found, sizes, options.regain)
    repair = None
    if choice is not None and options.apply:
        repair = _apply(model, source, manifest, samples, choice, show)
    widened = {} if choice is None else choice.precision_map
    return Diagnosis(str(model), network.samples, total, found, widened, repair)


def _elements(network: Network, plan: Plan, seen: Mapping[str, Tensor]) -> list[int]:
    """How large every switch's tensor is; an activation for one sample."""
    return [
        plan.weights[switch.name].require_codes().size
        if switch.kind == "weight"
        else seen[switch.name].fidelity.elements // network.samples
        if switch.name in seen
        else 0
        for switch in network.switches
    ]


def _apply(
    model: Path, source: Path, manifest: Manifest, samples: Samples, choice: Choice, show: Show
) -> Repair:
    """Quantise with the map, and measure both models on integers."""
    recipe = repaired(manifest.recipe, choice)
    made = quantize(
        source,
        samples.calib,
        recipe,
        preprocess=samples.preprocess,
        progress=lambda p: show(p.stage, p.done, p.total),
    )
    reference = open_session(source, name="float model")
    specs = input_specs(made.float_model)
    with tempfile.TemporaryDirectory(prefix="ptq-debug-") as folder:
        path = Path(folder) / model.name
        made.save(path)
        before, after = (
            _measure(file, reference, samples.batches(specs), show) for file in (model, path)
        )
    float_top1, count = _top1(reference, samples.batches(specs))
    title = samples.title if samples.evaluation is not None else "the samples that diagnosed"
    return Repair(choice.predicted, before, after, float_top1, title, count)


def repaired(recipe: Recipe, choice: Choice) -> Recipe:
    """The recipe with the repair after what it says of single layers already."""
    return recipe.replace(precision_map={**recipe.precision_map, **choice.precision_map})


def _measure(path: Path, reference: Session, data: Iterable[Labelled], show: Show) -> Measured:
    session = open_session(path, name=path.name)
    accuracy, wanted, got = Accuracy(), [], []
    for done, (batch, labels) in enumerate(data, 1):
        wanted.append([x.astype(np.float64) for x in reference.predict(batch).values()])
        got.append([x.astype(np.float64) for x in session.predict(batch).values()])
        if labels is not None:
            accuracy.add(got[-1][0], labels)
        show("measure the repair", done, None)
    loss: Loss = output_loss(wanted, got)
    return Measured(loss, accuracy.top1, file_bytes(path))


def _top1(session: Session, data: Iterable[Labelled]) -> tuple[float | None, int]:
    accuracy, samples = Accuracy(), 0
    for batch, labels in data:
        samples += max((len(x) for x in batch.values() if x.ndim), default=1)
        if labels is not None:
            accuracy.add(next(iter(session.predict(batch).values())), labels)
    return accuracy.top1, samples


def _silent(stage: str, done: int, total: int | None) -> None:
    pass
