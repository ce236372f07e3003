"""From a quantised model, or its program, to a compiled module with its side files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ptq.errors import RecipeError, UnsupportedModelError
from ptq.model import load
from ptq.passes.set_input_shapes import InputShapes, set_input_shapes
from ptq.recipe import Recipe
from ptq.report import artifact
from ptq.report.artifact import Library
from ptq.report.manifest import CompiledRecord
from ptq.report.summary import Quantized, Report
from ptq.targets.tvm.description import Description
from ptq.targets.tvm.module import Compiled, CompileOptions, compile_program

if TYPE_CHECKING:
    from rich.console import Console

_LOG = logging.getLogger("ptq")
NAMED = 3
"""Steps that a warning names."""


@dataclass(frozen=True)
class Compilation:
    """What was compiled.

    kernels: step -> the kernels that compute it, in order. arena_bytes: scratch memory of a
    call.
    plain_loops: step -> why it has no fast kernel.
    """

    target: str
    size_bytes: int
    arena_bytes: int
    weights_bytes: int
    dynamic_batch: bool
    kernels: dict[str, tuple[str, ...]]
    plain_loops: dict[str, str]
    schema_version: int = 1


def compile_file(
    model: Path, out: Path, options: CompileOptions | None = None, *, force: bool = False
) -> Compilation:
    """Compile the program beside a quantised model into `out`, and write its side files again.

    Raises:
        InvalidModelError: the side files are missing or damaged.
        UnsupportedModelError: a step has no kernel.
        OutputError: `out` cannot be written.
    """
    options = options or CompileOptions()
    artifact.check(out, force=force, sources=[model])
    saved, manifest = artifact.load_program(model), artifact.load_manifest(model)
    compiled = compile_program(saved.program, options)
    _warn_of_plain_loops(compiled.plain)
    source = artifact.float_source(model, manifest)
    artifact.save_again(
        saved, manifest, out, _library(compiled, options), force=force, source=source
    )
    return _summary(compiled, out)


def check_target(target: str, recipe: Recipe) -> Recipe:
    """Refuse before calibration what could not be compiled after it; nothing may stay float.

    Raises:
        UsageError: an unknown target, or codes at the boundary.
        MissingDependencyError: TVM, or nvcc for a GPU, is not installed.
    """
    Description.parse(target).require_tools()
    if recipe.io != "float":
        raise RecipeError(f"--io {recipe.io}: a TVM module takes and gives float32; leave it out")
    return recipe.replace(strict=True)


def check_sizes(model: Path, sizes: Mapping[str, int], shapes: InputShapes) -> None:
    """Refuse before calibration what could not be compiled after it, for want of a size.

    sizes: of named axes. shapes: of whole inputs.

    Raises:
        UnsupportedModelError: an input has a named axis behind the first, whose size is not given.
        UsageError: the shapes do not fit the model.
    """
    graph = load(model).graph
    set_input_shapes(graph, shapes)
    for value in graph.inputs:
        free = [d.value for d in list(value.shape or ())[1:] if not isinstance(d, int)]
        missing = [name for name in free if name not in sizes]
        if missing:
            raise UnsupportedModelError(
                f"input {value.name}: a TVM module has fixed sizes behind the first axis; give "
                + " ".join(f"--size {name}=N" for name in missing)
            )


def save_compiled(
    result: Quantized,
    out: Path,
    options: CompileOptions,
    *,
    force: bool = False,
    report: Report | None = None,
    source: Path | None = None,
) -> Compilation:
    """Compile a quantised network and write it with its side files.

    Raises:
        UnsupportedModelError: a step has no kernel.
        OutputError: `out` cannot be written.
    """
    compiled = compile_program(result.program, options)
    _warn_of_plain_loops(compiled.plain)
    library = _library(compiled, options)
    artifact.save(result, out, force=force, report=report, source=source, library=library)
    return _summary(compiled, out)


def _library(compiled: Compiled, options: CompileOptions) -> Library:
    return Library(
        compiled.export,
        CompiledRecord(
            compiled.target, options.batch, options.weights, options.tune, dict(options.sizes)
        ),
    )


def _summary(compiled: Compiled, out: Path) -> Compilation:
    return Compilation(
        compiled.target,
        out.stat().st_size,
        compiled.entry["scratch_bytes"],
        len(compiled.weights),
        compiled.entry["dynamic_batch"],
        dict(compiled.kernels),
        dict(compiled.plain),
    )


def _warn_of_plain_loops(plain: Mapping[str, str]) -> None:
    """Name what will be slow, by reason."""
    for reason in dict.fromkeys(plain.values()):
        steps = [step for step, why in plain.items() if why == reason]
        more = f" and {len(steps) - NAMED} more" if len(steps) > NAMED else ""
        _LOG.warning(
            "plain loops, which are slow, compute %s%s: %s", ", ".join(steps[:NAMED]), more, reason
        )


def print_compilation(found: Compilation, console: Console) -> None:
    """Size, memory, and how many steps each kernel computes."""
    counts: dict[str, int] = {}
    for names in found.kernels.values():
        for name in names:
            counts[name] = counts.get(name, 0) + 1
    batch = "any number of samples" if found.dynamic_batch else "a fixed number of samples"
    console.print(f"target    {found.target}, {batch}", highlight=False)
    console.print(
        f"size      {found.size_bytes / 1e3:.1f} kB, constants {found.weights_bytes / 1e3:.1f} kB, "
        f"scratch memory {found.arena_bytes / 1e3:.1f} kB",
        highlight=False,
    )
    kernels = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    console.print(f"kernels   {kernels}", highlight=False)
