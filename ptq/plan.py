"""Plan: what every tensor is quantised to. Passes take a plan and return a new one.

Activations are keyed by the float graph's value name, weights and biases by the name of the unit
(the float node) that uses them, so that a tensor shared by two layers may have two precisions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ptq.errors import InvalidModelError
from ptq.grid import Codes, Grid, container

PLAN_VERSION = 1

LayerGrid = Grid | tuple[Grid, ...]
"""One grid, or one for each channel, which differ in their power only."""


@dataclass(frozen=True)
class ActivationPlan:
    """An affine activation: value = scale * (code - zero_point), code in low .. high.

    The codes live in uint8 containers, or in uint16 ones if there are more than 256. zero_point is
    even, so that adding it before or after rounding half to even is the same function.
    levels: the 8-bit codes that occur, ascending, where they are not equally spaced (grid.bits says
        how many there may be); () is all of low .. high.
    """

    grid: Grid
    scale: np.float32
    zero_point: int
    low: int = 0
    high: int = 255
    levels: tuple[int, ...] = ()

    @property
    def table(self) -> Codes:
        """The nearest level of every 8-bit code, the lower of two: [256] uint8."""
        levels = np.asarray(self.levels)
        middles = (levels[1:] + levels[:-1]) / 2
        return levels[np.searchsorted(middles, np.arange(256))].astype(np.uint8)

    @property
    def dtype(self) -> Any:
        """The container of the codes."""
        return container(self.high)

    def quantize(self, x: npt.ArrayLike) -> Codes:
        """Codes as onnxruntime's QuantizeLinear makes them: float32 division, half to even."""
        with np.errstate(over="ignore"):  # a value out of float32's reach saturates
            codes = np.rint(np.asarray(x, np.float32) / self.scale) + np.float32(self.zero_point)
        within = np.asarray(np.clip(codes, self.low, self.high), self.dtype)
        return self.table[within] if self.levels else within

    def dequantize(self, codes: Codes) -> npt.NDArray[np.float32]:
        """Values of the codes, float32."""
        return (codes.astype(np.float32) - np.float32(self.zero_point)) * self.scale


@dataclass(frozen=True)
class WeightPlan:
    """A weight: value = scale[channel] * multiplier[channel, block] * T[zero_point[channel]][code].

    axis: the output-channel axis of the float tensor.
    scale: [channels] float32, zero_point: [channels] int64.
    codes: uint8 of the weight's shape, or None while only grid and scales are chosen.
    block_size: input elements that share a block multiplier; 0 is one block a channel.
    powers: [channels] float64, the exponent of each channel's levels, or None: `grid.power` in all.
    block_multiplier: [channels, blocks] int8 or None (all ones): an integer second level of scale
        (VS-Quant, arXiv 2102.04503), so that per-group scales run as plain int8 weights.
    """

    grid: Grid
    axis: int
    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[np.int64]
    codes: Codes | None = None
    block_size: int = 0
    block_multiplier: npt.NDArray[np.int8] | None = None
    powers: npt.NDArray[np.float64] | None = None

    def require_codes(self) -> Codes:
        """The codes; a plan without them is not finished."""
        if self.codes is None:
            raise InvalidModelError("plan: weights without codes; run a rounding pass first")
        return self.codes

    @property
    def uniform(self) -> bool:
        """True if the levels of all channels are equally spaced."""
        return self.grid.uniform and self.powers is None

    def tables(self) -> npt.NDArray[np.int8]:
        """The decode table of every channel: [channels, 2^bits] int8."""
        if self.powers is None:
            return self.grid.tables(self.zero_point)
        shapes = zip(self.powers, self.zero_point, strict=True)
        return np.stack([replace(self.grid, power=float(p)).table(int(z)) for p, z in shapes])

    def decode(self) -> npt.NDArray[np.int8]:
        """The int8 weight that the integer program multiplies with, of the weight's shape."""
        codes = np.moveaxis(self.require_codes(), self.axis, 0)
        index = codes.reshape(len(codes), -1).astype(np.intp)
        rows = np.take_along_axis(self.tables(), index, axis=1)
        if self.block_multiplier is not None:
            factor = np.repeat(self.block_multiplier, self.block_size, axis=1)[:, : rows.shape[1]]
            rows = (rows.astype(np.int16) * factor).astype(np.int8)
        return np.ascontiguousarray(np.moveaxis(rows.reshape(codes.shape), 0, self.axis))

    def dequantize(self) -> npt.NDArray[np.float64]:
        """The weight's value after quantisation, float64 of the weight's shape."""
        shape = [1] * self.require_codes().ndim
        shape[self.axis] = -1
        return self.decode() * self.scale.astype(np.float64).reshape(shape)


@dataclass(frozen=True)
class Plan:
    """Everything that was decided about a model's tensors.

    activations: float value name -> ActivationPlan.
    weights: unit name -> WeightPlan.
    biases: unit name -> [channels] float64, corrected; units without an entry keep the model's.
    grids: unit name -> the grid that its weight is to be quantised to, where one was searched.
    """

    activations: Mapping[str, ActivationPlan] = field(default_factory=dict)
    weights: Mapping[str, WeightPlan] = field(default_factory=dict)
    biases: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    grids: Mapping[str, LayerGrid] = field(default_factory=dict)

    def with_activations(self, changes: Mapping[str, ActivationPlan]) -> Plan:
        """A copy with these activations replaced or added."""
        return replace(self, activations={**self.activations, **changes})

    def with_weights(self, changes: Mapping[str, WeightPlan]) -> Plan:
        """A copy with these weights replaced or added."""
        return replace(self, weights={**self.weights, **changes})

    def with_biases(self, changes: Mapping[str, npt.NDArray[np.float64]]) -> Plan:
        """A copy with these biases replaced or added."""
        return replace(self, biases={**self.biases, **changes})

    def with_grids(self, changes: Mapping[str, LayerGrid]) -> Plan:
        """A copy with these grids of weights replaced or added."""
        return replace(self, grids={**self.grids, **changes})

    def save(self, path: str | Path) -> None:
        """Write `path` (safetensors; scalars as JSON in its header)."""
        from safetensors.numpy import save

        arrays: dict[str, npt.NDArray[Any]] = {}
        scalars: dict[str, Any] = {
            "version": PLAN_VERSION,
            "activations": {},
            "weights": {},
            "grids": {name: _records(grid) for name, grid in self.grids.items()},
        }
        for name, act in self.activations.items():
            record = asdict(act)
            scalars["activations"][name] = {**record, "scale": float(act.scale)}
        for name, weight in self.weights.items():
            scalars["weights"][name] = {
                "grid": asdict(weight.grid),
                "axis": weight.axis,
                "block_size": weight.block_size,
            }
            for key in ("scale", "zero_point", "codes", "block_multiplier", "powers"):
                if getattr(weight, key) is not None:
                    arrays[f"{key}:{name}"] = np.ascontiguousarray(getattr(weight, key))
        arrays |= {f"bias:{name}": np.ascontiguousarray(b) for name, b in self.biases.items()}
        metadata = {"plan": msgspec.json.encode(scalars).decode()}
        Path(path).write_bytes(save(arrays, metadata))

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read what `save` wrote.

        Raises:
            InvalidModelError: not a plan, or one of another version.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), "np") as file:
                scalars = msgspec.json.decode((file.metadata() or {})["plan"])
                arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, KeyError, ValueError, SafetensorError, msgspec.DecodeError) as error:
            raise InvalidModelError(f"{path}: not a ptq plan ({error})") from error
        if scalars.get("version") != PLAN_VERSION:
            raise InvalidModelError(
                f"{path}: plan version {scalars.get('version')}; wanted {PLAN_VERSION}"
            )
        return Plan(
            activations={
                name: _activation(record) for name, record in scalars["activations"].items()
            },
            weights={
                name: WeightPlan(
                    grid=Grid(**r["grid"]),
                    axis=r["axis"],
                    scale=arrays[f"scale:{name}"],
                    zero_point=arrays[f"zero_point:{name}"],
                    codes=arrays.get(f"codes:{name}"),
                    block_size=r["block_size"],
                    block_multiplier=arrays.get(f"block_multiplier:{name}"),
                    powers=arrays.get(f"powers:{name}"),
                )
                for name, r in scalars["weights"].items()
            },
            biases={k.removeprefix("bias:"): v for k, v in arrays.items() if k.startswith("bias:")},
            grids={name: _grids(found) for name, found in scalars["grids"].items()},
        )


def _activation(record: Mapping[str, Any]) -> ActivationPlan:
    grid, scale = Grid(**record["grid"]), np.float32(record["scale"])
    return ActivationPlan(
        **{**record, "grid": grid, "scale": scale, "levels": tuple(record["levels"])}
    )


def _records(grid: LayerGrid) -> Any:
    return asdict(grid) if isinstance(grid, Grid) else [asdict(each) for each in grid]


def _grids(found: Any) -> LayerGrid:
    return Grid(**found) if isinstance(found, dict) else tuple(Grid(**each) for each in found)
