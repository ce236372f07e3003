"""Fast kernels, where processor and shape have one: convolutions and products of weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.integer.arithmetic import Requantizer
from ptq.integer.program import Convolve, Gemm
from ptq.kernels import dot
from ptq.kernels.depthwise import LANES, Depthwise
from ptq.kernels.movement import Copy
from ptq.kernels.packed_convolution import PackedConvolution, Tile
from ptq.kernels.packing import in_order, pack, whole_pairs
from ptq.kernels.palette import find_palette
from ptq.kernels.requantize import Rounding, channel_ratios, for_vectors
from ptq.kernels.tensor_convolution import CHANNELS
from ptq.kernels.tile_convolution import ROWS, in_tiles
from ptq.kernels.view import View
from ptq.targets.tvm.gpu_tiles import gpu_tile
from ptq.targets.tvm.images import as_image, in_quads, padded, pixels_of
from ptq.targets.tvm.lowering import Lowering, Operand
from ptq.targets.tvm.quad_tiles import quad_kernel, quad_weights, takes_quads
from ptq.targets.tvm.tensor_cores import tensor_kernel, with_weights
from ptq.targets.tvm.vector_tiles import vector_tile

Array = npt.NDArray[Any]
MOST_QUADS = 8
"""What 16 bits hold of weights up to 8 in magnitude, on AVX2."""
SMALL_WEIGHTS = Tile(8, 1, MOST_QUADS)
"""For these: so few other instructions that one vector of channels is enough for each code."""
WORTH_PLACES = 1.2
"""What the number of tiles has to fall by."""
NO_ISA = "the target has no vector instructions that fast kernels are written for"
SMALLEST_PALETTE = 64
"""Weights of a channel below which its table takes more than its codes save."""
MOST_PIXELS_DECODED = {"avx2": 2, "avxvnni": 4, "avx512vnni": 6, "dotprod": 1, "dp4a": 1}
"""The most pixels that the only tile may have for codes to win over int8; Arm's and GPUs' were not
measured."""
LARGE_BYTES = 1 << 20
"""Int8 weights that a second-level cache hardly holds: reading fewer bytes wins over decoding."""
MOST_PANEL_BYTES = 1 << 20
"""What a thread's stack has room for; weights of larger blocks stay int8."""


def fast_convolution(state: Lowering, step: Convolve) -> str | None:
    """Lower `step` to a fast kernel; or return why there is none for it."""
    isa = dot.choose(state.features)
    if isa is None:
        return NO_ISA
    if step.weight.ndim > 4:
        return f"it has {step.weight.ndim - 2} spatial axes"
    out, width, *_ = step.weight.shape
    step = as_image(step)
    depthwise = step.groups == out > 1 == width
    if depthwise and takes_quads(isa.name, step):
        _depthwise_quads(state, step, isa)
    elif depthwise and not isa.by_thread and out % LANES == 0:
        _depthwise(state, step, isa)
    elif depthwise and isa.by_thread and out % dot.QUAD == 0:
        _packed(state, in_quads(step), isa)
    else:
        _packed(state, step, isa)
    return None


def _packed(state: Lowering, step: Convolve, isa: dot.Isa) -> None:
    image = padded(state, step, step.groups, isa)
    every, _, tall, wide = step.weight.shape
    out = every // step.groups
    rows = _with_room(step.weight.transpose(0, 2, 3, 1), image.channels)
    down, right = step.dilations
    runs = [image.corner + i * down * image.row_bytes for i in range(tall)]
    if right != 1 or step.groups != 1:  # what a window's row has is apart
        runs = [start + j * right * image.pixel_bytes for start in runs for j in range(wide)]
    rows = rows.reshape(every, len(runs), -1)
    if isa.pairs:
        runs, rows = whole_pairs(runs, rows)
    run = rows.shape[2]
    single = tall == wide == 1 and step.strides == (1, 1) and image.is_dense
    lines = image.samples * image.out_rows
    pixels = lines * image.out_width
    kernel = PackedConvolution(
        isa.name,
        _tile(state, isa, out, 1 if single else lines, pixels, (len(runs), run), step.groups),
        tuple(runs),
        run,
        step.strides[0] * image.row_bytes,
        step.strides[1] * image.pixel_bytes,
        image.out_rows,
        image.out_width,
        out,
        _rounding(step.requantizer, isa),
        samples=image.samples,
        sample_bytes=image.sample_bytes,
        groups=step.groups,
        group_bytes=image.group_bytes,
        y=_places(state, step),
    )
    if single:
        kernel = _as_one_row(kernel, ROWS if "amx" in state.features else kernel.tile.pixels)
    _call_packed(state, step, kernel, rows, image.operand)


def _as_one_row(kernel: PackedConvolution, tile: int) -> PackedConvolution:
    """A product of single pixels over those of all rows, where that fills its tiles better.

    If the rows of its output are apart, each pixel's place is worked out: that has to pay.
    tile: pixels of one.
    """
    rows = kernel.samples * kernel.out_rows
    pixels = rows * kernel.out_width
    fewer = rows * -(-kernel.out_width // tile) / -(-pixels // tile)
    if fewer <= (1 if kernel.y is None else WORTH_PLACES):
        return kernel
    return replace(kernel, samples=1, out_rows=1, out_width=pixels)


def _places(state: Lowering, step: Convolve) -> View | None:
    """Where the output's pixels are, if they do not follow one another."""
    view = state.view(step.output)
    return pixels_of(view) if step.output in state.frames else None


def _with_room(weight: Array, channels: int) -> Array:
    """[..., channels] with zeros up to so many."""
    missing = channels - weight.shape[-1]
    return np.pad(weight, [(0, 0)] * (weight.ndim - 1) + [(0, missing)])


def _tile(
    state: Lowering, isa: dot.Isa, out: int, rows: int, pixels: int, runs: tuple[int, int],
    groups: int = 1,
) -> Tile:  # fmt: skip
    """rows: as vector_tile's. runs: how many the window has, and bytes of each."""
    vectors = -(-out // isa.lanes)
    if not isa.by_thread:
        large = groups * out * runs[0] * runs[1] >= LARGE_BYTES
        return vector_tile(isa.name, vectors, rows, pixels, large=large)
    in_units = state.weights == "packed" and runs[0] * runs[1] >= SMALLEST_PALETTE
    return gpu_tile(vectors, groups, pixels, runs[1], in_units=in_units)


def _call_packed(
    state: Lowering, step: Convolve | Gemm, kernel: PackedConvolution, rows: Array, x: Operand
) -> None:
    """Pack the weights in the widest way that is exact, and call."""
    sums = rows.astype(np.int64).reshape(len(rows), -1).sum(axis=1)
    tensor = tensor_kernel(state.features, kernel)
    if tensor is not None:
        tensor, weights = with_weights(state, tensor, rows)
        room = tensor.blocks * CHANNELS
        constants = _constants(state, step, tensor.rounding, sums, room)
        state.call(step.name, tensor, *weights, *constants, x, state.codes(step.output))
        return
    if (
        "amx" in state.features
        and kernel.tile.pixels > 1
        and not _waits_for_weights(kernel, rows.size)
    ):
        kernel = in_tiles(kernel)
    kernel, rows = _tuned(state, *_safe(kernel, rows))
    constants = _constants(
        state, step, kernel.rounding, sums, kernel.group_blocks * kernel.block,
        kernel.groups, kernel.how.offset,
    )  # fmt: skip
    kernel, weights = _stored(state, kernel, pack(rows, kernel))
    state.call(step.name, kernel, *weights, *constants, x, state.codes(step.output))


def _waits_for_weights(kernel: PackedConvolution, size: int) -> bool:
    """True if they come from memory for so few pixels that this takes longer than the sums."""
    return (
        kernel.reads_once
        and kernel.tile.pixels <= MOST_PIXELS_DECODED[kernel.isa]
        and size >= LARGE_BYTES
    )


def _stored(
    state: Lowering, kernel: PackedConvolution, packed: Array
) -> tuple[PackedConvolution, list[Operand]]:
    """Weights as int8, or as codes, which the kernel decodes."""
    wanted = state.weights == "packed" or (
        state.weights == "auto" and _waits_for_weights(kernel, packed.size)
    )
    fits = kernel.reads_once or packed.nbytes // kernel.blocks <= MOST_PANEL_BYTES
    found = find_palette(packed, kernel.how) if wanted and fits else None
    if found is None or found.codes.nbytes + found.tables.nbytes >= packed.nbytes:
        return kernel, [state.constant(in_order(packed, kernel.how))]
    coded = in_order(found.codes, kernel.how), found.tables
    return replace(kernel, bits=found.bits), [state.constant(part) for part in coded]


def _tuned(
    state: Lowering, kernel: PackedConvolution, rows: Array
) -> tuple[PackedConvolution, Array]:
    """With the tile that was fastest, if tiles are tried; quads are in the same order in all."""
    if state.tuner is None:
        return kernel, rows
    return replace(kernel, tile=state.tuner(kernel)), rows


def _safe(kernel: PackedConvolution, rows: Array) -> tuple[PackedConvolution, Array]:
    """As many quads a group as 16 bits hold; weights that saturate even alone become two halves."""
    if not kernel.how.pairs:
        return kernel, rows
    if kernel.tile.pixels > 1 and kernel.run % (MOST_QUADS * dot.QUAD) == 0:
        small = replace(kernel, tile=SMALL_WEIGHTS)
        if _group(small, rows) == MOST_QUADS:
            return small, rows
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


def _depthwise(state: Lowering, step: Convolve, isa: dot.Isa) -> None:
    image = padded(state, step, 1, isa)
    channels, _, tall, wide = step.weight.shape
    down, right = step.dilations
    weight: Array = step.weight.reshape(channels, -1).T.astype(np.int16)  # [taps, channels]
    reach = np.abs(weight.astype(np.int64)).sum(axis=0).max() * 255
    sums = weight.astype(np.int64).sum(axis=0)
    taps = [
        image.corner + i * down * image.row_bytes + j * right * image.pixel_bytes
        for i in range(tall)
        for j in range(wide)
    ]
    narrow = bool(reach < 2**15)
    paired = isa.pairs_of_words and not narrow
    if paired and len(taps) % 2:
        taps, weight = [*taps, taps[-1]], np.concatenate([weight, 0 * weight[:1]])
    if paired:
        weight = weight.reshape(-1, 2, channels).transpose(0, 2, 1)
    kernel = Depthwise(
        tuple(taps),
        step.strides[0] * image.row_bytes,
        step.strides[1] * image.pixel_bytes,
        image.out_rows,
        image.out_width,
        channels,
        narrow,
        paired,
        _rounding(step.requantizer, isa),
        image.samples,
        image.sample_bytes,
        _places(state, step),
    )
    constants = _constants(state, step, kernel.rounding, sums, channels)
    operands = state.constant(weight.reshape(-1)), *constants, image.operand
    state.call(step.name, kernel, *operands, state.codes(step.output))


def _depthwise_quads(state: Lowering, step: Convolve, isa: dot.Isa) -> None:
    image, rounding = padded(state, step, 1, isa), _rounding(step.requantizer, isa)
    kernel = quad_kernel(isa.name, step, image, rounding, _places(state, step))
    sums = step.weight.astype(np.int64).sum(axis=(1, 2, 3))
    parts = _by_channel(state, step, rounding, sums, isa.offset)
    arrays = quad_weights(kernel, step), *(part[kernel.order] for part in parts)
    constants = [state.constant(array) for array in arrays]
    state.call(step.name, kernel, *constants, image.operand, state.codes(step.output))


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
    room = -(-length // isa.alignment) * isa.alignment
    source = state.codes(step.input)
    if room != length:
        made = state.scratch(f"{step.name}/aligned", count * room)
        rows = View((count, length), (length, 1)), View((count, length), (room, 1))
        state.call(step.name, Copy(*rows), source, made)
        source = made
    kernel = PackedConvolution(
        isa.name, _tile(state, isa, out, 1, count, (1, room)), (0,), room, 0, room, 1, count, out,
        _rounding(step.requantizer, isa),
    )  # fmt: skip
    rows_of_weights = _with_room(step.weight.T, room)[:, None, :]
    _call_packed(state, step, kernel, rows_of_weights, source)
    return None


def _row_major(view: View) -> bool:
    dense = [int(np.prod(view.shape[i + 1 :], dtype=np.int64)) for i in range(len(view.shape))]
    return all(n == 1 or s == d for n, s, d in zip(view.shape, view.strides, dense, strict=True))


def _rounding(requantizer: Requantizer, isa: dot.Isa) -> Rounding:
    """A GPU's integers are as good as its floats."""
    r = requantizer
    return Rounding(r.zero_point, r.low, r.high) if isa.by_thread else for_vectors(r)


def _constants(
    state: Lowering, step: Convolve | Gemm, rounding: Rounding, sums: Array, room: int,
    groups: int = 1, offset: int = 0,
) -> list[Operand]:  # fmt: skip
    """`_by_channel`; each group with `room` for its channels."""
    missing = ((0, 0), (0, room - len(sums) // groups))
    padded = [
        np.pad(part.reshape(groups, -1), missing, "edge").reshape(-1)
        for part in _by_channel(state, step, rounding, sums, offset)
    ]
    return [state.constant(array) for array in padded]


def _by_channel(
    state: Lowering, step: Convolve | Gemm, rounding: Rounding, sums: Array, offset: int
) -> list[Array]:
    """bias less the zero point's share, and scales.

    offset: what the kernel takes off every code already.
    """
    zero = state.plan(step.input).zero_point - offset
    bias: Array = (0 if step.bias is None else step.bias) - zero * sums
    if rounding.floats:
        return [bias.astype(np.int32), np.broadcast_to(step.requantizer.ratio, sums.shape)]
    return [bias.astype(np.int32), *channel_ratios(step.requantizer, len(sums))]
