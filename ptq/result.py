"""What a run ends with: the model and everything that was decided on the way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from ptq.calib_data import Lint, Preprocess
from ptq.integer.outline import Outline
from ptq.integer.program import Program
from ptq.plan import Plan
from ptq.recipe import Recipe
from ptq.report import artifact
from ptq.report.rungs import Rung
from ptq.report.summary import Report, make_report

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Result:
    """A quantised model and everything that was decided on the way.

    model: what the target made of the program. float_model: the prepared float model.
    samples: calibration samples that were read. preprocess: what was applied to them.
    source: the float model's file, if it came from one. ladder: what each stage gained.
    calib: where the samples came from, if that was a path.
    """

    model: ir.Model
    float_model: ir.Model
    outline: Outline
    program: Program
    plan: Plan
    recipe: Recipe
    samples: int
    preprocess: Preprocess | None = None
    lints: tuple[Lint, ...] = ()
    source: Path | None = None
    ladder: tuple[Rung, ...] = ()
    calib: str | None = None

    @property
    def report(self) -> Report:
        """Sizes, precision, certificates and islands, layer by layer."""
        return make_report(self, self.source)

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the model, its manifest and its integer program; all of them or none.

        Raises:
            OutputError: `path` exists (without `force`), or cannot be written.
        """
        artifact.save(self, path, force=force, source=self.source)

    def as_module(self) -> torch.nn.Module:
        """The quantised network as a torch module: the same codes, and gradients to its inputs.

        Raises:
            UnsupportedModelError: a float island has an operator that runs in onnxruntime only.
        """
        from ptq.execute.differentiable.module import ProgramModule

        return ProgramModule(self.program)
