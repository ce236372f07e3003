"""What quantising weights only ends with: a model, its report, its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from ptq.calib_data import Lint, Preprocess
from ptq.recipe import Recipe
from ptq.report import artifact
from ptq.report.summary import (
    CertificateSummary,
    IslandRow,
    Layer,
    Report,
    file_bytes,
    model_bytes,
)
from ptq.weights_only.deploy import Spool
from ptq.weights_only.products import Product, StaysFloat
from ptq.weights_only.round_product import Outcome


@dataclass(frozen=True)
class WeightsResult:
    """A model whose products have weights of few bits, and how it was made.

    model: with MatMulNBits nodes; its new weights lie in `spool`, which goes with this object.
    float_model: the one it was made from. outcomes: by the product's name.
    samples: that were read; calib: where they came from, if that was a path.
    """

    model: ir.Model
    float_model: ir.Model
    recipe: Recipe
    products: tuple[Product, ...]
    stays_float: tuple[StaysFloat, ...]
    outcomes: Mapping[str, Outcome]
    samples: int
    preprocess: Preprocess | None = None
    lints: tuple[Lint, ...] = ()
    source: Path | None = None
    calib: str | None = None
    spool: Spool | None = field(default=None, repr=False)

    @property
    def report(self) -> Report:
        """Sizes, and what became of every node with weights."""
        given, source = self.float_model, self.source
        return Report(
            model=source.name if source is not None else str(given.graph.name or "model"),
            precision=self.recipe.precision,
            target=self.recipe.target,
            io=self.recipe.io,
            float_bytes=file_bytes(source) if source is not None else model_bytes(given),
            quantized_bytes=model_bytes(self.model),
            samples=self.samples,
            layers=tuple(self._layer(product) for product in self.products),
            islands=tuple(
                IslandRow(str(s.node.name), s.node.op_type, s.reason) for s in self.stays_float
            ),
            certificates=CertificateSummary(0, 0, 0, 0),
            lints=self.lints,
            group_size=self.recipe.block_size,
        )

    def save(self, path: str | Path, *, force: bool = False, report: Report | None = None) -> None:
        """Write the model and its manifest, both or none. report: with measurements.

        Raises:
            OutputError: `path` exists (without `force`), or cannot be written.
        """
        artifact.save_model(self, path, report or self.report, force=force, source=self.source)

    def _layer(self, product: Product) -> Layer:
        found = self.outcomes[product.name]
        error = "" if found.error is None else f"{100 * found.error:.2g} % of the output's energy"
        error += " before learning" if found.learned else ""
        error += f", inputs scaled (AWQ, exponent {found.alpha:g})" if found.alpha else ""
        return Layer(product.name, "MatMulNBits", product.bits, None, None, note=error)
