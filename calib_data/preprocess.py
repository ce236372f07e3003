"""From 8-bit pixels to what the network was trained on.

The formula, on pixels x in 0..255, per channel:  y = (x * scale - mean) / std

A `Preprocess` is written as text in one of three ways (`parse_preprocess`):

1. a preset, then `key=value` pairs that change it, separated by commas. A piece without `=`
   is one more number of the key before it, and numbers may be fractions:
       mean=127,std=128
       scale=1/255,mean=.485,.456,.406,std=.229,.224,.225
       imagenet,size=192,fit=stretch
2. the path of a TOML or JSON file with the same keys (`preset = "imagenet"` is one of them),
   or a Hugging Face `preprocessor_config.json`;
3. a JSON object: {"mean": 127, "std": 128}.

Keys: size (224 or 224x192: height x width; default: the model's input), fit (crop: the shorter
side to size / crop_fraction, then the centre; stretch; pad), crop_fraction, interpolation
(bilinear, bicubic, nearest, lanczos), mean, std, scale, layout (NCHW, NHWC; default: the
model's), color (RGB, BGR, L). An image that already has the right size is never resized.

Presets: imagenet (torchvision), lite (EfficientNet-Lite: (x - 127) / 128), inception (x/127.5 - 1),
unit (x / 255), raw (0..255), clip, caffe (BGR minus the mean).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ptq.errors import CalibrationError

Floats = tuple[float, ...]
Fit = Literal["crop", "stretch", "pad"]
Layout = Literal["NCHW", "NHWC"]
Color = Literal["RGB", "BGR", "L"]
Interpolation = Literal["bilinear", "bicubic", "nearest", "lanczos"]


@dataclass(frozen=True)
class Preprocess:
    """y = (x * scale - mean) / std on pixels 0..255, after fitting the image to `size`.

    Attributes:
        size: (height, width) in pixels; None takes them from the model's input.
        fit: how an image of another size is brought to `size`.
        crop_fraction: with fit="crop", the part of the shorter side that is kept, in (0, 1].
        mean, std: one number, or one a channel, in the order of `color`.
        layout: where the channels go; None takes it from the model's input.
        color: order of the channels that the model wants; "L" is one grey channel.
    """

    size: tuple[int, int] | None = None
    fit: Fit = "crop"
    crop_fraction: float = 1.0
    interpolation: Interpolation = "bilinear"
    scale: Floats = (1.0,)
    mean: Floats = (0.0,)
    std: Floats = (1.0,)
    layout: Layout | None = None
    color: Color = "RGB"

    def __post_init__(self) -> None:
        if not 0.0 < self.crop_fraction <= 1.0:
            raise _wrong("crop_fraction", self.crop_fraction, "a number in (0, 1]")
        if any(value == 0.0 for value in self.std):
            raise _wrong("std", self.std, "numbers other than 0")
        if self.size is not None and min(self.size) < 1:
            raise _wrong("size", self.size, "positive pixels")
        lengths = {len(value) for value in (self.scale, self.mean, self.std)} - {1}
        if len(lengths) > 1:
            raise _wrong("scale, mean, std", sorted(lengths), "one number, or one a channel")


_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_BYTE = (1.0 / 255.0,)

PRESETS: Mapping[str, Preprocess] = {
    "imagenet": Preprocess(
        scale=_BYTE, mean=_IMAGENET_MEAN, std=_IMAGENET_STD, crop_fraction=0.875
    ),
    "lite": Preprocess(mean=(127.0,), std=(128.0,), crop_fraction=0.875, interpolation="bicubic"),
    "inception": Preprocess(mean=(127.5,), std=(127.5,), crop_fraction=0.875),
    "unit": Preprocess(scale=_BYTE),
    "raw": Preprocess(),
    "clip": Preprocess(scale=_BYTE, mean=_CLIP_MEAN, std=_CLIP_STD, interpolation="bicubic"),
    "caffe": Preprocess(color="BGR", mean=(103.939, 116.779, 123.68), crop_fraction=0.875),
}


def parse_preprocess(text: str) -> Preprocess:
    """Read a `Preprocess` from a preset, `key=value` pairs, JSON, or a file (see the module).

    Raises:
        CalibrationError: an unknown key, a value that cannot be, or an unreadable file.
    """
    text = text.strip()
    if text.startswith("{"):
        return from_mapping(_loads(text, json.loads, "preprocess"))
    if text.lower().endswith((".toml", ".json")):
        return read_preprocess(Path(text))
    head, _, tail = text.partition(",")
    if "=" in head or not head:
        return from_mapping(_pairs(text))
    return from_mapping({"preset": head.strip(), **_pairs(tail)})


def read_preprocess(path: Path) -> Preprocess:
    """Read a `Preprocess` from a .toml or .json file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{path}: cannot be read as a preprocess file: {error}") from error
    loads = tomllib.loads if path.suffix.lower() == ".toml" else json.loads
    return from_mapping(_loads(text, loads, str(path)))


def from_mapping(table: Mapping[str, Any]) -> Preprocess:
    """Build a `Preprocess` from keys and values, as TOML or JSON give them."""
    if any(key in table for key in _HUGGING_FACE_KEYS):
        return _from_hugging_face(table)
    preset = str(table.get("preset", "raw"))
    if preset not in PRESETS:
        raise _wrong("preset", preset, "one of " + ", ".join(PRESETS))
    known = {field.name for field in fields(Preprocess)}
    values = {key: value for key, value in table.items() if key != "preset"}
    for key in values:
        if key not in known:
            raise CalibrationError(
                f"preprocess: unknown key {key!r}; known: {', '.join(sorted(known))}"
            )
    return replace(PRESETS[preset], **{key: _READERS[key](v) for key, v in values.items()})


def _pairs(text: str) -> dict[str, list[str]]:
    """'mean=1,2,std=3' -> {'mean': ['1', '2'], 'std': ['3']}."""
    pairs: dict[str, list[str]] = {}
    key = ""
    for piece in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = piece.partition("=")
        if equals:
            key = name.strip()
            pairs[key] = [value.strip()]
        elif key:
            pairs[key].append(piece)
        else:
            raise CalibrationError(
                f"preprocess: {piece!r} has no key; write key=value, for example mean=127,std=128"
            )
    return pairs


def _number(value: object) -> float:
    text = str(value)
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        raise _wrong("number", text, "a number or a fraction such as 1/255") from None


def _numbers(value: object) -> Floats:
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(_number(item) for item in items)


def _size(value: object) -> tuple[int, int]:
    items = value if isinstance(value, list | tuple) else [value]
    sides = [int(_number(side)) for item in items for side in str(item).lower().split("x")]
    if len(sides) not in (1, 2):
        raise _wrong("size", value, "224 or 224x192 (height x width)")
    return sides[0], sides[-1]


def _single(value: object) -> str:
    return str(value[0] if isinstance(value, list | tuple) and value else value)


def _choice(name: str, choices: tuple[str, ...]) -> Any:
    def read(value: object) -> str:
        for choice in choices:
            if _single(value).lower() == choice.lower():
                return choice
        raise _wrong(name, value, "one of " + ", ".join(choices))

    return read


_READERS: Mapping[str, Any] = {
    "size": _size,
    "fit": _choice("fit", get_args(Fit)),
    "crop_fraction": lambda value: _number(_single(value)),
    "interpolation": _choice("interpolation", get_args(Interpolation)),
    "scale": _numbers,
    "mean": _numbers,
    "std": _numbers,
    "layout": _choice("layout", get_args(Layout)),
    "color": _choice("color", get_args(Color)),
}

_HUGGING_FACE_KEYS = ("image_mean", "image_std", "rescale_factor", "do_rescale", "do_normalize")
_PIL_INTERPOLATION = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def _from_hugging_face(table: Mapping[str, Any]) -> Preprocess:
    """Read transformers' `preprocessor_config.json`."""
    normalize = table.get("do_normalize", True)
    rescale = table.get("rescale_factor", 1.0 / 255.0) if table.get("do_rescale", True) else 1.0
    crop = _hugging_face_size(table.get("crop_size")) if table.get("do_center_crop") else None
    resized = _hugging_face_size(table.get("size"))
    size = crop or resized
    shrink = crop is not None and resized is not None and min(resized) > min(crop)
    return Preprocess(
        size=size,
        fit="crop" if crop else "stretch",
        crop_fraction=min(crop) / min(resized) if shrink and crop and resized else 1.0,
        interpolation=_READERS["interpolation"](_PIL_INTERPOLATION.get(table.get("resample", 2))),
        scale=(float(rescale),),
        mean=_numbers(table.get("image_mean", 0.0)) if normalize else (0.0,),
        std=_numbers(table.get("image_std", 1.0)) if normalize else (1.0,),
    )


def _hugging_face_size(value: Any) -> tuple[int, int] | None:
    if isinstance(value, Mapping):
        side = value.get("shortest_edge")
        return _size([value.get("height", side), value.get("width", side)])
    return None if value is None else _size(value)


def _loads(text: str, loads: Any, where: str) -> Mapping[str, Any]:
    try:
        table = loads(text)
    except ValueError as error:
        raise CalibrationError(f"{where}: {error}") from error
    if not isinstance(table, Mapping):
        raise CalibrationError(f"{where}: got {type(table).__name__}, wanted a table of keys")
    return table


def _wrong(key: str, got: object, wanted: str) -> CalibrationError:
    return CalibrationError(f"preprocess: {key}: got {got!r}, wanted {wanted}")
