"""Verify a quantised model file with nothing but itself, its side files and some samples."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ptq import runtime
from ptq.calib_data import InputSpec, Preprocess, open_calibration
from ptq.errors import MissingDependencyError
from ptq.integer.program import Program
from ptq.model import load
from ptq.passes.prepare import prepare
from ptq.report.artifact import float_source, load_manifest, load_program
from ptq.report.manifest import Manifest
from ptq.report.verification import Runners, Subject, Verification, verify
from ptq.targets import TARGETS
from ptq.targets.names import code_names
from ptq.targets.tvm.runners import Deployed, tapped_twin

_LOG = logging.getLogger("ptq")


@dataclass(frozen=True)
class VerifyOptions:
    """How to verify.

    calib: samples as `ptq.calib_data.open_calibration` takes them; None invents some.
    preprocess: None is the one that the model was quantised with.
    float_path: the float model; None is the one that the manifest remembers.
    compare_float: compare with the float model at all.
    target: print the program for this target and verify that instead of the file.
    batch: samples at a time.
    """

    calib: Any = None
    samples: int = 100
    preprocess: Preprocess | None = None
    float_path: Path | None = None
    compare_float: bool = True
    target: str | None = None
    batch: int = 4
    threads: int | None = None
    seed: int = 0


def verify_file(
    model: Path,
    options: VerifyOptions | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Verification:
    """Compare the model with the reference, code by code, and with the float model.

    progress: called with samples done, and their number if it is known.

    Raises:
        InvalidModelError: the model or its side files are missing or damaged.
        CalibrationError: the samples do not fit the model.
    """
    options = options or VerifyOptions()
    manifest, program = load_manifest(model), load_program(model).program
    io = manifest.recipe.io
    target: ir.Model | Runners
    if options.target is not None:
        target = TARGETS[options.target](program, io=io)
    else:
        target = _compiled(model, program, options) if model.suffix == ".so" else load(model)
    calibration = open_calibration(
        options.calib,
        boundary_specs(program, sizes_of(manifest), _fixed_batch(target)),
        preprocess=options.preprocess or manifest.preprocess,
        limit=options.samples,
        seed=options.seed,
    )
    subject = Subject(
        target, program, code_names(program, io), _float_model(model, manifest, options)
    )
    total = calibration.samples
    return verify(
        subject,
        calibration.batches(options.batch),
        threads=options.threads,
        progress=None if progress is None else lambda done: progress(done, total),
    )


def sizes_of(manifest: Manifest) -> Mapping[str, int]:
    """Of named axes, where the model was compiled for some."""
    return {} if manifest.compiled is None else manifest.compiled.sizes


def boundary_specs(
    program: Program, sizes: Mapping[str, int] | None = None, batch: int | None = None
) -> tuple[InputSpec, ...]:
    """What the program is fed; sizes: of named axes. batch: of an open first axis."""
    known = sizes or {}

    def size(axis: int, found: Any) -> int | None:
        if isinstance(found, int):
            return found
        return batch if axis == 0 and batch else known.get(str(found))

    return tuple(
        InputSpec(
            boundary.name,
            np.dtype(boundary.dtype.numpy()),
            tuple(size(axis, found) for axis, found in enumerate(boundary.shape or ())),
        )
        for boundary in program.inputs
    )


def _fixed_batch(target: ir.Model | Runners) -> int | None:
    """How many samples a compiled module takes a call, if it takes no other number."""
    deployed = target.deployed if isinstance(target, Runners) else None
    return deployed.module.fixed_batch if isinstance(deployed, Deployed) else None


def _compiled(model: Path, program: Program, options: VerifyOptions) -> Runners:
    """A compiled module, and its tapped twin if the compiler is there."""
    module = runtime.load(model, threads=options.threads or 1)
    try:
        twin = tapped_twin(program, module, options.threads or 1)
    except MissingDependencyError as error:
        _LOG.warning("%s: outputs only are compared, because %s", model, error)
        return Runners(Deployed(module), None, {})
    return Runners(Deployed(module), twin, {name: name for name in twin.views})


def _float_model(model: Path, manifest: Manifest, options: VerifyOptions) -> ir.Model | None:
    if not options.compare_float:
        return None
    path = options.float_path or float_source(model, manifest)
    if path is None:
        _LOG.warning(
            "%s: its float model is not where it was, or has changed: integers only are compared; "
            "give --float for more",
            model,
        )
        return None
    return prepare(load(path), input_shapes=manifest.recipe.input_shapes)
