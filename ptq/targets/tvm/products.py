"""Products of two activations, as packed convolutions of words: attention's scores and values.

Both operands are unsigned codes with zero points, so that no instruction for bytes multiplies them
exactly. They are centred and widened to 16 bits first, the second one in the order that the kernel
reads weights in; then pairs of products are added in 32 bits. The matrices of a batch are the
groups of one kernel, whose rows hold one line of every matrix: a transposition that follows
attention finds its output in order already.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ptq.integer.program import MatMul
from ptq.kernels import dot
from ptq.kernels.kernel import strides_of
from ptq.kernels.movement import Fill, Widen
from ptq.kernels.packed_convolution import PackedConvolution, Tile
from ptq.kernels.requantize import channel_ratios, for_vectors
from ptq.kernels.view import View
from ptq.targets.tvm.lowering import Lowering, Operand

TILES = {"words": Tile(4, 2, 2), "words512": Tile(6, 4, 2)}
PAIR = 2
WORD_BYTES = 2


def fast_matmul(state: Lowering, step: MatMul) -> str | None:
    """Lower `step` to a fast kernel; or return why there is none for it."""
    isa = dot.choose(state.features)
    if isa is None or not isa.pairs_of_words:
        return "it multiplies two activations, for which the target has no fast kernel"
    *batch, rows, columns = state.shape(step.output)
    first, second = (state.view(name).broadcast((*batch, *state.shape(name)[-2:]))
                     for name in (step.a, step.b))  # fmt: skip
    matrices = int(np.prod(batch, dtype=np.int64))
    how = dot.WORDS_512 if isa.packs else dot.WORDS
    tile = TILES[how.name]
    tile = replace(tile, vectors=min(tile.vectors, -(-columns // how.lanes)))
    kernel = PackedConvolution(
        how.name, tile, (0,), WORD_BYTES * first.shape[-1], 0, 0, 1, rows, columns,
        for_vectors(step.requantizer), groups=matrices,
    )  # fmt: skip
    line = kernel.quads * dot.QUAD
    kernel = replace(kernel, run=line, pixel_bytes=line, group_bytes=rows * line)
    words = kernel.quads * PAIR
    lines = View((*batch, rows, words), strides_of((*batch, rows, words)))
    a = _widened(state, step, step.a, [(first, lines)], matrices * rows * words)
    size = kernel.blocks * kernel.block * words
    b = _widened(state, step, step.b, list(_packed(second, kernel, batch)), size)
    state.views[step.output] = _lines_of_all(batch, rows, columns)
    state.call(step.name, kernel, b, *_constants(state, step, kernel), a, state.codes(step.output))
    return None


def _widened(
    state: Lowering, step: MatMul, name: str, parts: Sequence[tuple[View, View]], size: int
) -> Operand:
    """Centred codes as words, from places to places; zeros in between."""
    made = state.scratch(f"{step.name}/{name}/words", WORD_BYTES * size)
    if sum(int(np.prod(view.shape)) for view, _ in parts) < size:
        state.call(step.name, Fill(View((size,), (1,)), 0, "int16"), made)
    for source, to in parts:
        to = replace(to, shape=source.shape)
        kernel = Widen(source, to, state.plan(name).zero_point)
        state.call(step.name, kernel, state.codes(name), made)
    return made


def _packed(
    b: View, kernel: PackedConvolution, batch: Sequence[int]
) -> Iterator[tuple[View, View]]:
    """From matrices [k, n] to [blocks, quads, block, 2]: what fills both, and the rests."""
    k, n = b.shape[-2:]
    by_k, by_n = b.strides[-2:]
    dense = strides_of((*batch, kernel.group_blocks, kernel.quads, kernel.block, PAIR))
    for (k_from, pairs, pair), (n_from, blocks, lanes) in itertools.product(
        _parts(k, PAIR), _parts(n, kernel.block)
    ):
        shape = (*batch, blocks, pairs, lanes, pair)
        start = b.offset + k_from * by_k + n_from * by_n
        strides = (*b.strides[:-2], kernel.block * by_n, PAIR * by_k, by_n, by_k)
        place = n_from // kernel.block * dense[-4] + k_from // PAIR * dense[-3]
        yield View(shape, strides, start), View(shape, dense, place)


def _parts(size: int, unit: int) -> Iterator[tuple[int, int, int]]:
    """Where whole units begin, how many there are and their size; then the rest as one."""
    whole, rest = divmod(size, unit)
    if whole:
        yield 0, whole, unit
    if rest:
        yield whole * unit, 1, rest


def _lines_of_all(batch: Sequence[int], rows: int, columns: int) -> View:
    """[*batch, rows, columns], of which the rows are outermost in memory."""
    dense = strides_of((rows, *batch, columns))
    return View((*batch, rows, columns), (*dense[1:-1], dense[0], 1))


def _constants(state: Lowering, step: MatMul, kernel: PackedConvolution) -> list[Operand]:
    """No bias, and the same scale for all columns."""
    count = kernel.blocks * kernel.block
    scales = [np.broadcast_to(step.requantizer.ratio, (count,))]
    if not kernel.rounding.floats:
        scales = list(channel_ratios(step.requantizer, count))
    return [state.constant(array) for array in (np.zeros(count, np.int32), *scales)]
