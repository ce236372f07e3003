"""The whole integer program as a torch module, for those who evaluate in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ptq.errors import UsageError
from ptq.execute.differentiable.program_graph import ProgramGraph
from ptq.execute.differentiable.tensors import to_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ptq.integer.program import Program


class ProgramModule(torch.nn.Module):
    """Float tensors in, float tensors out, on exactly the codes that the deployed model has.

    Rounding passes gradients straight through (see `ProgramGraph`), so gradients reach the inputs.
    It has no parameters: what was quantised is final. Devices: wherever the inputs are.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.input_names = tuple(boundary.name for boundary in program.inputs)
        self.output_names = tuple(boundary.name for boundary in program.outputs)
        self._program = program
        self._graphs: dict[torch.device, ProgramGraph] = {}
        self._graph(torch.device("cpu"))

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        """Inputs in the model's order or by name; the output, or a tuple of several.

        Raises:
            UsageError: an input is missing, or there is one too many.
        """
        given = self._named(inputs, named)
        graph = self._graph(next(iter(given.values())).device)
        raw: Mapping[str, Tensor] = graph.run(raw=given).raw
        results = tuple(
            raw[name] if name in raw else self._constant(name) for name in self.output_names
        )
        return results[0] if len(results) == 1 else results

    def _named(self, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> dict[str, Tensor]:
        given = {**dict(zip(self.input_names, inputs, strict=False)), **named}
        fits = len(inputs) + len(named) == len(given) and given.keys() == set(self.input_names)
        if not fits:
            raise UsageError(
                f"module: got {len(inputs)} inputs and {', '.join(named) or 'no names'}; wanted "
                f"{', '.join(self.input_names)}, each once"
            )
        return given

    def _graph(self, device: torch.device) -> ProgramGraph:
        if device not in self._graphs:
            self._graphs[device] = ProgramGraph(self._program, device=device)
        return self._graphs[device]

    def _constant(self, name: str) -> Tensor:
        constant: Any = self._program.constants[name]
        return to_tensor(constant.numpy() if hasattr(constant, "numpy") else constant)
