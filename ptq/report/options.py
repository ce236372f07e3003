"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ptq.errors import UsageError
from ptq.report.commands import remember_debug

if TYPE_CHECKING:
    from ptq.calib_data import Preprocess
    from ptq.recipe import Recipe

T = TypeVar("T", int, float)

METHODS = ("minmax", "percentile", "entropy", "mse")
EFFORTS = ("fast", "default", "best")
CPUS = ("any", "vnni")
GRIDS = ("uniform", "power", "powerquant", "auto")
ACTIVATION_GRIDS = ("uniform", "power", "codebook")
TARGETS = ("onnx", "onnx-qdq", "onnx-strict")
RESIDUAL_BITS = (8, 16)
GROUP_SIZES = (16, 32, 64, 128, 256)
COMPUTES = ("float", "int8")
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
QUIET = (
    click.option("--quiet", is_flag=True, help="No progress and no warnings."),
    click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        callback=remember_debug,
        help="Print the traceback of an error.",
    ),
)
COMMON = (
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout."),
    *QUIET,
)
CALIB = click.option(
    "--calib",
    metavar="DATA",
    help="Samples: .npz, .npy, a folder of images or arrays, or file.py:function. "
    "Without it samples are invented.",
)
EVAL = click.option(
    "--eval",
    "evaluation",
    metavar="DATA",
    type=click.Path(exists=True, path_type=Path),
    help="Labelled samples to measure accuracy on (.npz with `labels`, or a folder of images).",
)
PREPROCESS = click.option(
    "--preprocess",
    metavar="SPEC",
    help="What is done to 8-bit pixels: a preset such as imagenet, or mean=127,std=128.",
)
SEED = click.option(
    "--seed", type=click.IntRange(min=0), help="Of everything random.  [default: 0]"
)
THREADS = click.option("--threads", type=click.IntRange(min=1), help="Default: all CPUs.")
SIZE = click.option(
    "--size",
    multiple=True,
    metavar="AXIS=N",
    help="Of a compiled module: size of a named axis behind the first, such as length=128; may be "
    "repeated.",
)
FLOAT = click.option("--float", "float_path", type=FILE, help="The float model, if it has moved.")
RECIPE = (
    click.option(
        "--bits",
        type=click.IntRange(2, 8),
        help="Weight bits. N means wNa8 with the first and the last layer at 8 bits.",
    ),
    click.option(
        "--precision",
        metavar="wNaM",
        help="Such as w4a8, w8a8, w4a4; w4a16 quantises the weights of matrix products only.  "
        "[default: w8a8]",
    ),
    click.option(
        "--edge-bits",
        type=click.IntRange(2, 8),
        help="Weights of the first and last layers.  [default: 8]",
    ),
    click.option(
        "--residual-bits",
        type=click.Choice(RESIDUAL_BITS),
        help="Codes of what transformers add up between their layer norms.  [default: 16]",
    ),
    click.option(
        "--balance/--no-balance",
        default=None,
        help="Even out the channels of layer norms where that gains.  [default: balance]",
    ),
    click.option(
        "--group-size",
        type=click.Choice(GROUP_SIZES),
        help="Inputs of a product that share a scale, for weights of 2 to 4 bits.  "
        "[default: 128 with w4a16, else a channel]",
    ),
    click.option(
        "--compute",
        type=click.Choice(COMPUTES),
        help="With w4a16: products in floats, or of inputs rounded to int8.  [default: float]",
    ),
    click.option(
        "--precision-map",
        type=FILE,
        help="Pattern -> w4a8, w8, a4 or float for single layers, in TOML or JSON.",
    ),
    click.option(
        "--input-shape",
        "input_shapes",
        multiple=True,
        metavar="NAME=SIZES",
        help="Sizes that the model leaves open, such as x=?,3,48,192; ? leaves one open. With "
        "several inputs repeated.",
    ),
    click.option("--recipe", "recipe_path", type=FILE, help="A recipe in TOML or JSON."),
    click.option(
        "--include", multiple=True, metavar="P", help="Quantise only nodes or ops like P."
    ),
    click.option(
        "--exclude", multiple=True, metavar="P", help="Leave nodes or ops like P in float."
    ),
    click.option("--strict", is_flag=True, help="Fail if anything would stay float."),
)


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every command."""

    as_json: bool
    quiet: bool


@dataclass(frozen=True, kw_only=True)
class Choices(Common):
    """What a recipe is made of."""

    bits: int | None
    precision: str | None
    edge_bits: int | None
    residual_bits: int | None
    balance: bool | None
    group_size: int | None
    compute: str | None
    precision_map: Path | None
    input_shapes: tuple[str, ...]
    recipe_path: Path | None
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    strict: bool

    def recipe(self, **given: Any) -> Recipe:
        """The file or the preset, changed by what else was given (None: not given)."""
        from ptq.precision import load_map
        from ptq.recipe import Recipe

        chosen = {"--bits": self.bits, "--precision": self.precision, "--recipe": self.recipe_path}
        names = [name for name, value in chosen.items() if value is not None]
        if len(names) > 1:
            raise click.UsageError(f"{' and '.join(names)} contradict each other; give one of them")
        if self.recipe_path is not None:
            base = Recipe.load(self.recipe_path)
        elif self.precision is not None:
            base = Recipe.preset(self.precision)
        else:
            base = Recipe() if self.bits is None else Recipe.from_bits(self.bits)
        own = ("edge_bits", "residual_bits", "balance", "group_size", "compute")
        given |= {name: getattr(self, name) for name in own}
        given["precision_map"] = self.precision_map and load_map(self.precision_map)
        given["input_shapes"] = input_shapes_of(self.input_shapes) or None
        changes = {name: value for name, value in given.items() if value is not None}
        for name in ("include", "exclude", "strict"):
            if getattr(self, name):
                changes[name] = getattr(self, name)
        return base.replace(**changes)


def preprocess_of(text: str | None) -> Preprocess | None:
    """What --preprocess says.

    Raises:
        UsageError: an unknown preset or a malformed specification.
    """
    from ptq.calib_data import parse_preprocess

    return None if text is None else parse_preprocess(text)


def numbers(kind: type[T]) -> Callable[[click.Context, click.Parameter, str], tuple[T, ...]]:
    """A callback that reads numbers between commas; nothing is an empty tuple."""

    def read(context: click.Context, parameter: click.Parameter, text: str) -> tuple[T, ...]:
        try:
            return tuple(kind(part) for part in text.split(",") if part.strip())
        except ValueError as error:
            raise click.BadParameter(f"got {text!r}; wanted numbers such as 0,1") from error

    return read


def input_shapes_of(pairs: Sequence[str]) -> dict[str, tuple[int | None, ...]]:
    """--input-shape NAME=SIZES, as a table.

    Raises:
        UsageError: not of that form.
    """
    found = {}
    for pair in pairs:
        name, _, text = pair.rpartition("=")  # names may have it, sizes do not
        sizes = [size.strip() for size in text.split(",")]
        if not name or not all(size == "?" or (size.isdigit() and int(size)) for size in sizes):
            raise UsageError(
                f"--input-shape {pair}: wanted NAME=SIZES, such as x=?,3,224,224, ? for a size "
                "that stays open"
            )
        found[name] = tuple(None if size == "?" else int(size) for size in sizes)
    return found


def sizes_of(pairs: Sequence[str]) -> dict[str, int]:
    """--size AXIS=N, as a table.

    Raises:
        UsageError: not of that form.
    """
    found = {}
    for pair in pairs:
        name, _, size = pair.partition("=")
        if not name or not size.isdigit() or int(size) < 1:
            raise UsageError(f"--size {pair}: wanted AXIS=N, such as length=128")
        found[name] = int(size)
    return found
