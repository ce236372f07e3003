"""Recipe: every choice of a run, frozen and serialisable (TOML or JSON)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from ptq.errors import RecipeError
from ptq.precision import check_map

Method = Literal["minmax", "percentile", "entropy", "mse"]
Effort = Literal["fast", "default", "best"]
Target = Literal["onnx", "onnx-qdq", "onnx-strict"]
Cpu = Literal["any", "vnni"]
Rounding = Literal["nearest", "squant", "gptq"]
GridFamily = Literal["uniform", "power", "powerquant", "auto"]
ActivationGrid = Literal["uniform", "power", "codebook"]
ResidualBits = Literal[8, 16]
GroupSize = Literal[16, 32, 64, 128, 256]
Bits = Annotated[int, msgspec.Meta(ge=2, le=8)]
PRESETS = ("w8a8", "w4a8", "w4a4", "w3a8", "w2a8")
DATA_FREE: Mapping[str, Any] = {
    "rounding": "squant", "calib_method": "minmax", "effort": "fast", "samples": 64,
    "activation_grid": "uniform",
}  # fmt: skip
"""What replaces the defaults without samples: invented ones say little about second moments and
about what a layer should learn, and their ranges are smaller than real ones."""
WEIGHTS_ONLY: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "target": (("onnx",), "weights alone are written as onnxruntime's MatMulNBits"),
    "grid": (("uniform",), "MatMulNBits has equally spaced levels"),
    "io": (("float",), "everything but weights stays float"),
    "input_shapes": (({},), "weights alone are the same for any size of an input"),
    "weight_bits": ((2, 3, 4, 8), "onnxruntime multiplies with these"),
}
"""What recipes of weights only must have, and why."""
INTEGER: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "compute": (("float",), "integer networks compute in int8 anyway; this is of w4a16"),
}
"""What all other recipes must have, and why."""
_PRECISION = re.compile(r"w([2-8])a([2-8]|16)")
DEFAULT_GROUP = 128
GROUPED_BITS = 4
FLOAT_BITS = 16
"""What the field calls activations that are not quantised."""


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `ptq.quantize` does.

    weight_bits, activation_bits: of every layer but the first and last.
    edge_bits: weights of the first and last layers, whose inputs then keep 8 bits; None: like the
        others in both.
    precision_map: pattern -> 'w4a8', 'w8', 'a4' or 'float' for single layers (ptq.precision).
    symmetric: weight zero points fixed at mid-range rather than searched per channel.
    grid: shape of the levels of weights of 2 to 6 bits. 'uniform': equally spaced; 'power': an
        exponent for every layer; 'powerquant': one for all; 'auto': uniform, or power in the layers
        whose output that costs less, if the network comes nearer to the float one on held-out
        samples.
    exponents: of power grids, one a 'layer' or one an output 'channel'.
    activation_grid: the same for what layers write with 2 to 6 bits. 'power': an exponent for every
        tensor; 'codebook': levels at the means of what rounds to them, which is more accurate. Both
        take a table of 256 entries after requantising.
    calib_method: how activation ranges are chosen from the histograms.
    rounding: 'gptq' minimises each layer's output error by second-order rounding (needs samples),
        'squant' cancels the errors of each kernel and each channel without samples, 'nearest' takes
        the nearest level.
    bias_correction: measure each layer's mean output error on the samples and subtract it.
    effort: 'fast' is closed forms only; 'default' also learns codes, biases, weight scales and
        steps of narrow activations by gradients, block by block; 'best' takes more steps with
        activations unrounded at random, and learns biases in the whole network after that.
    include, exclude: globs, or regular expressions as 're:...', over node names and op types.
    strict: refuse anything that would stay float.
    balance: rescale the channels of layer norms against the weights behind them (SmoothQuant,
        RepQ-ViT) where that lowers the held-out error of the products; of weights only, scale
        loud inputs of products down (AWQ) where what makes them takes the scales and that gains.
    residual_bits: width of sums that only layer norms read, and of what is added up in them; 16 is
        worth its time in transformers, whose residual stream has outliers.
    weights_only: weights of matrix products alone are quantised, in groups of inputs, and all is
        computed in floats ('w4a16'); the fields from here to `compute` are of this way only.
    group_size: inputs that share a scale and a zero point; None is 128 for weights only, and a
        scale a channel for integer products, where it is a small integer times the channel's.
    act_order: second-order rounding takes the inputs of the largest mean square first.
    descent: coordinate descent and refitted scales after it.
    match_float: a layer aims at what the float network has there, not at its own float product.
    compute: 'float', or 'int8': products round their input to 8 bits as it comes, block by block.
    input_shapes: input -> sizes that the model leaves open and the deployed one will have; None
        leaves one open.
    io: 'float' quantises and dequantises at the boundary, 'integer' exposes codes there.
    cpu: 'any' keeps 8-bit weights in the range where no x86 CPU's arithmetic saturates; 'vnni' uses
        all of it, and is exact as int8 only on CPUs with VNNI (and on Arm).
    samples: at most so many calibration samples.
    seed: of everything random.
    """

    weight_bits: Bits = 8
    activation_bits: Bits = 8
    edge_bits: Bits | None = 8
    precision_map: dict[str, str] = {}
    symmetric: bool = False
    grid: GridFamily = "uniform"
    exponents: Literal["layer", "channel"] = "layer"
    activation_grid: ActivationGrid = "codebook"
    calib_method: Method = "mse"
    rounding: Rounding = "gptq"
    bias_correction: bool = True
    effort: Effort = "default"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    strict: bool = False
    balance: bool = True
    residual_bits: ResidualBits = 16
    weights_only: bool = False
    group_size: GroupSize | None = None
    act_order: bool = True
    descent: bool = True
    match_float: bool = True
    compute: Literal["float", "int8"] = "float"
    input_shapes: dict[str, tuple[Annotated[int, msgspec.Meta(ge=1)] | None, ...]] = {}
    io: Literal["float", "integer"] = "float"
    cpu: Cpu = "any"
    target: Target = "onnx"
    samples: Annotated[int, msgspec.Meta(ge=1)] = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        check_map(self.precision_map, "precision_map")
        for field, (wanted, why) in (WEIGHTS_ONLY if self.weights_only else INTEGER).items():
            if getattr(self, field) not in wanted:
                raise RecipeError(
                    f"recipe: {self.precision} with {field} {getattr(self, field)!r}; wanted "
                    f"{' or '.join(map(str, wanted))}: {why}"
                )
        roomy = self.weight_bits <= GROUPED_BITS and self.grid == "uniform"
        if self.group_size is not None and not (self.weights_only or roomy):
            raise RecipeError(
                f"recipe: {self.precision}, grid {self.grid!r}, with group_size {self.group_size}; "
                f"groups of integer weights need {GROUPED_BITS} bits or fewer, uniform, so that "
                "a group's factor fits into int8: use fewer bits, or w8a16"
            )

    @staticmethod
    def preset(name: str) -> Recipe:
        """The recipe of a precision such as 'w4a8'; the presets are PRESETS, others follow suit.

        Raises:
            RecipeError: not of the form w<2-8>a<2-8>, nor w<2, 3, 4 or 8>a16 for weights only.
        """
        match = _PRECISION.fullmatch(name.lower())
        if match is None:
            raise RecipeError(
                f"--precision {name}: wanted w<2-8>a<2-8>, for instance {', '.join(PRESETS)}, or "
                "w4a16 for weights only"
            )
        if int(match[2]) == FLOAT_BITS:
            return Recipe(weight_bits=int(match[1]), edge_bits=None, weights_only=True)
        return Recipe(weight_bits=int(match[1]), activation_bits=int(match[2]))

    @staticmethod
    def from_bits(bits: int) -> Recipe:
        """`--bits N`: N-bit weights, 8-bit activations, first and last layer at 8 bits."""
        if bits not in range(2, 9):
            raise RecipeError(f"--bits {bits}: wanted 2 to 8")
        return Recipe(weight_bits=bits)

    def without_samples(self) -> Recipe:
        """The same for when there are no samples: DATA_FREE."""
        return self.replace(**DATA_FREE)

    @staticmethod
    def load(path: str | Path) -> Recipe:
        """Read a recipe from TOML or JSON, by the file's suffix.

        Raises:
            RecipeError: unreadable, an unknown key, or a value out of range.
        """
        path = Path(path)
        decode: Any = msgspec.toml.decode if path.suffix == ".toml" else msgspec.json.decode
        try:
            return decode(path.read_bytes(), type=Recipe)  # type: ignore[no-any-return]
        except (OSError, msgspec.MsgspecError, ValueError) as error:
            raise RecipeError(f"{path}: not a recipe: {error}") from error

    def to_json(self) -> str:
        """The recipe as JSON that `load` reads."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()

    def replace(self, **changes: Any) -> Recipe:
        """A copy with these fields changed, validated.

        Raises:
            RecipeError: an unknown field or a value out of range.
        """
        try:
            return msgspec.convert({**msgspec.structs.asdict(self), **changes}, Recipe)
        except msgspec.ValidationError as error:
            raise RecipeError(f"recipe: {error}") from error

    @property
    def precision(self) -> str:
        """The field's short name, for instance 'w4a8'; 'mixed' if a map chooses."""
        if self.precision_map and not self.weights_only:
            return "mixed"
        return f"w{self.weight_bits}a{FLOAT_BITS if self.weights_only else self.activation_bits}"

    @property
    def block_size(self) -> int:
        """Inputs that share a scale where weights only are quantised."""
        return self.group_size or DEFAULT_GROUP
