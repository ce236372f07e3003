"""Fast kernels, where processor and shape have one: convolutions and products of weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.integer.arithmetic import Requantizer
from ptq.integer.program import Convolve, Gemm
from ptq.kernels import dot
from ptq.kernels.depthwise import LANES, Depthwise
from ptq.kernels.movement import Copy, Fill
from ptq.kernels.packed_convolution import PackedConvolution, Tile, pack
from ptq.kernels.palette import find_palette
from ptq.kernels.requantize import Rounding, channel_ratios, floats_are_exact
from ptq.kernels.view import View
from ptq.targets.tvm.lowering import Lowering, Operand

Array = npt.NDArray[Any]
TILES = {
    "avx2": ((Tile(4, 2, 4), 1.0), (Tile(3, 3, 4), 1.04), (Tile(6, 1, 4), 1.1)),
    "avxvnni": ((Tile(4, 2, 2), 1.0), (Tile(6, 1, 2), 1.1)),
    "avx512vnni": ((Tile(6, 4, 2), 1.0), (Tile(8, 2, 2), 1.1), (Tile(12, 1, 2), 1.2)),
    "dotprod": ((Tile(6, 4, 1), 1.0), (Tile(8, 2, 1), 1.1), (Tile(12, 1, 1), 1.2)),
}
"""With the time of a vector of channels, relative; only AVX2's were measured."""
ONE_ROW = {
    "avx2": Tile(1, 4, 4),
    "avxvnni": Tile(1, 4, 4),
    "avx512vnni": Tile(1, 4, 4),
    "dotprod": Tile(1, 4, 4),
}
NO_ISA = "the target has no vector instructions that fast kernels are written for"
LARGE_BYTES = 1 << 20
"""Int8 weights that a second-level cache hardly holds: reading fewer bytes wins over decoding."""


@dataclass(frozen=True)
class Image:
    """A padded channels-last image: where it is, its sizes and the window's walk over it."""

    operand: Operand
    width: int
    channels: int
    out_rows: int
    out_width: int


def fast_convolution(state: Lowering, step: Convolve) -> str | None:
    """Lower `step` to a fast kernel; or return why there is none for it."""
    isa = dot.choose(state.features)
    if isa is None:
        return NO_ISA
    depthwise = step.groups > 1 and step.weight.shape[1] == 1 == step.weight.shape[0] // step.groups
    refused = _refusal(state, step, depthwise)
    if refused is not None:
        return refused
    step = _as_image(step)
    image = _padded(state, step)
    lower = _depthwise if depthwise else _packed
    lower(state, step, image, isa)
    return None


def _refusal(state: Lowering, step: Convolve, depthwise: bool) -> str | None:
    if step.weight.ndim > 4:
        return f"it has {step.weight.ndim - 2} spatial axes"
    if state.shape(step.input)[0] != 1:
        return f"a call has {state.shape(step.input)[0]} samples"
    if depthwise and step.weight.shape[0] % LANES:
        return f"it is depthwise and its channels are no multiple of {LANES}"
    if step.groups > 1 and not depthwise:
        return f"it has {step.groups} groups"
    return None


def _as_image(step: Convolve) -> Convolve:
    """A 1-d convolution as one over images of one row."""
    if step.weight.ndim == 4:
        return step
    (stride,), (dilation,), (before, after) = step.strides, step.dilations, step.pads
    return replace(
        step,
        weight=step.weight[:, :, None, :],
        strides=(1, stride),
        dilations=(1, dilation),
        pads=(0, before, 0, after),
    )


def _padded(state: Lowering, step: Convolve) -> Image:
    """The input with its zero point around it: a copy if there is any padding."""
    _, channels, *sizes = state.shape(step.input)
    rows, width = sizes if len(sizes) == 2 else (1, *sizes)
    top, left, bottom, right = step.pads
    tall, wide = rows + top + bottom, width + left + right
    out = [
        (size - (k - 1) * d - 1) // s + 1
        for size, k, d, s in zip(
            (tall, wide), step.weight.shape[2:], step.dilations, step.strides, strict=True
        )
    ]
    source = state.codes(step.input)
    if any(step.pads):
        padded = state.scratch(f"{step.name}/padded", tall * wide * channels)
        zero = state.plan(step.input).zero_point
        state.call(step.name, Fill(View((tall * wide * channels,), (1,)), zero), padded)
        inside = View(
            (rows, width * channels),
            (wide * channels, 1),
            (top * wide + left) * channels,
        )
        dense = View((rows, width * channels), (width * channels, 1))
        state.call(step.name, Copy(dense, inside), source, padded)
        source = padded
    return Image(source, wide, channels, *out)


def _packed(state: Lowering, step: Convolve, image: Image, isa: dot.Isa) -> None:
    out, channels, tall, wide = step.weight.shape
    row, pixel = image.width * channels, channels
    down, right = step.dilations
    rows = step.weight.transpose(0, 2, 3, 1)  # [out, tall, wide, channels]
    runs = [i * down * row for i in range(tall)]
    if right != 1:  # the pixels of a window's row are apart
        runs = [start + j * right * pixel for start in runs for j in range(wide)]
    kernel = PackedConvolution(
        isa.name,
        _tile(out, isa),
        tuple(runs),
        rows[0].size // len(runs),
        step.strides[0] * row,
        step.strides[1] * pixel,
        image.out_rows,
        image.out_width,
        out,
        _rounding(step.requantizer),
    )
    if tall == wide == 1 and step.strides == (1, 1) and image.out_width % kernel.tile.pixels:
        kernel = replace(kernel, out_rows=1, out_width=image.out_rows * image.out_width)
    _call_packed(state, step, kernel, rows.reshape(out, len(runs), -1), image.operand)


def _tile(out: int, isa: dot.Isa) -> Tile:
    """The tile that computes least for nothing, as few channels do not fill its vectors."""
    full = -(-out // isa.lanes)  # vectors

    def cost(choice: tuple[Tile, float]) -> float:
        tile, each = choice
        return each * tile.vectors * -(-full // tile.vectors)

    return min(TILES[isa.name], key=cost)[0]


def _row_tile(out: int, isa: dot.Isa) -> Tile:
    """No more vectors than there are channels for."""
    tile = ONE_ROW[isa.name]
    return replace(tile, vectors=min(tile.vectors, -(-out // isa.lanes)))


def _call_packed(
    state: Lowering, step: Convolve | Gemm, kernel: PackedConvolution, rows: Array, x: Operand
) -> None:
    """Pack the weights in the widest way that is exact, and call."""
    sums = rows.astype(np.int64).reshape(len(rows), -1).sum(axis=1)
    kernel, rows = _tuned(state, *_safe(kernel, rows))
    constants = _constants(state, step, sums, kernel.blocks * kernel.block, kernel.how.offset)
    kernel, weights = _stored(state, step, kernel, pack(rows, kernel))
    state.call(step.name, kernel, *weights, *constants, x, state.codes(step.output))


def _stored(
    state: Lowering, step: Convolve | Gemm, kernel: PackedConvolution, packed: Array
) -> tuple[PackedConvolution, list[Operand]]:
    """Weights as int8, or as codes: decoded in the loop if each is read once, else beforehand."""
    once = kernel.tile.pixels == 1
    wanted = state.weights == "packed" or (
        state.weights == "auto" and once and packed.nbytes >= LARGE_BYTES
    )
    found = find_palette(packed, kernel.how) if wanted else None
    if found is None:
        return kernel, [state.constant(packed.reshape(-1))]
    coded: list[Operand] = [
        state.constant(part.reshape(-1)) for part in (found.codes, found.tables)
    ]
    narrow = replace(kernel, bits=found.bits)
    if once:
        return narrow, coded
    decoded = state.scratch(f"{step.name}/weights", packed.nbytes)
    state.call(step.name, narrow.decode, *coded, decoded)
    return kernel, [decoded]


def _tuned(
    state: Lowering, kernel: PackedConvolution, rows: Array
) -> tuple[PackedConvolution, Array]:
    """With the tile that was fastest, if tiles are tried; its order of the weights is safe, too."""
    if state.tuner is None:
        return kernel, rows
    widest = TILES[kernel.isa][0][0].group
    return _safe(replace(kernel, tile=replace(state.tuner(kernel), group=widest)), rows)


def _safe(kernel: PackedConvolution, rows: Array) -> tuple[PackedConvolution, Array]:
    """As many quads a group as 16 bits hold; weights that saturate even alone become two halves."""
    if not kernel.how.pairs:
        return kernel, rows
    group = _group(kernel, rows)
    if group == 0:
        half = rows >> 1
        rows = np.concatenate([half, rows - half], axis=1)
        kernel = replace(kernel, runs=kernel.runs * 2)
        group = _group(kernel, rows)
    return replace(kernel, tile=replace(kernel.tile, group=group)), rows


def _group(kernel: PackedConvolution, rows: Array) -> int:
    packed = pack(rows, kernel)
    blocks, runs, quads, vectors, lanes, quad = packed.shape
    return dot.safe_quads(packed.reshape(blocks, runs, quads, vectors * lanes, quad))


def _depthwise(state: Lowering, step: Convolve, image: Image, isa: dot.Isa) -> None:
    channels, _, tall, wide = step.weight.shape
    row, (down, right) = image.width * channels, step.dilations
    weight: Array = step.weight.reshape(channels, -1).T.astype(np.int16)  # [taps, channels]
    reach = np.abs(weight.astype(np.int64)).sum(axis=0).max() * 255
    sums = weight.astype(np.int64).sum(axis=0)
    taps = [i * down * row + j * right * channels for i in range(tall) for j in range(wide)]
    narrow = bool(reach < 2**15)
    paired = isa.pairs_of_words and not narrow
    if paired and len(taps) % 2:
        taps, weight = [*taps, taps[-1]], np.concatenate([weight, 0 * weight[:1]])
    if paired:
        weight = weight.reshape(-1, 2, channels).transpose(0, 2, 1)
    kernel = Depthwise(
        tuple(taps),
        step.strides[0] * row,
        step.strides[1] * channels,
        image.out_rows,
        image.out_width,
        channels,
        narrow,
        paired,
        _rounding(step.requantizer),
    )
    constants = _constants(state, step, sums, channels)
    operands = state.constant(weight.reshape(-1)), *constants, image.operand
    state.call(step.name, kernel, *operands, state.codes(step.output))


def fast_gemm(state: Lowering, step: Gemm) -> str | None:
    """Lower `step` to a fast kernel; or return why there is none for it."""
    isa = dot.choose(state.features)
    if isa is None:
        return NO_ISA
    x, y = state.view(step.input), state.view(step.output)
    length, out = step.weight.shape
    if not all(_row_major(view) for view in (x, y)):
        return "its operands are not row-major"
    count = int(np.prod(x.shape[:-1], dtype=np.int64))
    tile = _tile(out, isa) if count > 1 else _row_tile(out, isa)
    kernel = PackedConvolution(
        isa.name, tile, (0,), length, 0, length, 1, count, out,
        _rounding(step.requantizer),
    )  # fmt: skip
    _call_packed(state, step, kernel, step.weight.T[:, None, :], state.codes(step.input))
    return None


def _row_major(view: View) -> bool:
    dense = [int(np.prod(view.shape[i + 1 :], dtype=np.int64)) for i in range(len(view.shape))]
    return all(n == 1 or s == d for n, s, d in zip(view.shape, view.strides, dense, strict=True))


def _rounding(requantizer: Requantizer) -> Rounding:
    r = requantizer
    return Rounding(r.zero_point, r.low, r.high, floats=floats_are_exact(r))


def _constants(
    state: Lowering, step: Convolve | Gemm, sums: Array, room: int, offset: int = 0
) -> list[Operand]:
    """bias less the zero point's share, and scales; up to `room` channels that count for nothing.

    offset: what the kernel takes off every code already.
    """
    zero = state.plan(step.input).zero_point - offset
    bias = (0 if step.bias is None else step.bias) - zero * sums
    if floats_are_exact(step.requantizer):
        scales = [np.broadcast_to(step.requantizer.ratio, sums.shape)]
    else:
        scales = list(channel_ratios(step.requantizer, len(sums)))
    missing = (0, room - len(sums))
    padded = [np.pad(bias.astype(np.int32), missing), *(np.pad(s, missing, "edge") for s in scales)]
    return [state.constant(array) for array in padded]
