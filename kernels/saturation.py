"""Requantisation by x86's saturating packs: four vectors of sums become one of bytes.

    y = min(max(sat8(sat16(RNE(acc ratio)) + z), low), high)

is clamp(z + RNE(acc ratio), low, high), because what either saturation cuts is beyond both limits,
as long as no |acc ratio| reaches 2^31, where the conversion to int32 ends (`Rounding.fractions`).
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.tirx.script import builder as T

from ptq.kernels.dot import Isa
from ptq.kernels.kernel import Buffer, Expr
from ptq.kernels.requantize import Rounding, to_nearest

LANES = 16
VECTORS = 4
PACKS = {
    16: ("x86.avx512.packssdw.512", "x86.avx512.packuswb.512"),
    8: ("x86.avx2.packssdw", "x86.avx2.packuswb"),
    4: ("x86.sse2.packssdw.128", "x86.sse2.packuswb.128"),
}
"""By the lanes of a vector of int32."""


def can_pack(rounding: Rounding) -> bool:
    """True if packs give the rounding's codes."""
    return rounding.floats and rounding.fractions and rounding.dtype == "uint8"


def vectors_of_codes(
    isa: Isa,
    rounding: Rounding,
    sums: Sequence[Expr],
    scales: Sequence[Buffer],
    channels: Sequence[Expr],
) -> list[Expr]:
    """Codes of each vector of int32; by packs, four at a time, where they give the same.

    channels: which ones the lanes of each are.
    """
    if not (isa.packs and can_pack(rounding)):
        pairs = zip(sums, channels, strict=True)
        return [rounding.vector(acc, scales, lanes, isa.lanes) for acc, lanes in pairs]
    made = []
    for first in range(0, len(sums), VECTORS):
        some = slice(first, first + VECTORS)
        every = _in_order(packed(rounding, sums[some], scales[0], channels[some], LANES))
        for start in range(0, LANES * len(sums[some]), LANES):
            part = [tirx.const(start + lane, "int32") for lane in range(LANES)]
            made.append(tirx.Shuffle([every], part))
    return made


def packed(
    rounding: Rounding, sums: Sequence[Expr], ratio: Buffer, channels: Sequence[Expr], lanes: int
) -> Expr:
    """uint8 codes of up to four vectors of so many sums; fewer are repeated.

    Packs work on each 128 bits by itself: four codes of each vector lie beside each other.
    """
    rounded = [
        to_nearest(T.Cast(f"float32x{lanes}", acc) * ratio[some], lanes)
        for acc, some in zip(sums, channels, strict=True)
    ]
    return pack(rounding, [rounded[number % len(rounded)] for number in range(VECTORS)], lanes)


def pack(rounding: Rounding, rounded: Sequence[Expr], lanes: int) -> Expr:
    """uint8 codes of four vectors of int32 that are rounded, without the zero point."""
    to_words, to_bytes = PACKS[lanes]
    zero = T.broadcast(T.int16(rounding.zero_point), 2 * lanes)
    words = []
    for first, second in (rounded[:2], rounded[2:]):
        half = _call(f"int16x{2 * lanes}", to_words, first, second)
        words.append(_call(f"int16x{2 * lanes}", "sadd.sat", half, zero))
    codes = _call(f"uint8x{4 * lanes}", to_bytes, *words)
    if rounding.low > 0:
        codes = T.max(codes, T.broadcast(T.uint8(rounding.low), 4 * lanes))
    if rounding.high < 255:
        codes = T.min(codes, T.broadcast(T.uint8(rounding.high), 4 * lanes))
    return codes


def _in_order(codes: Expr) -> Expr:
    """The first vector's codes first."""
    order = [4 * (at % 4) + at // 4 for at in range(LANES)]
    words = T.Bind(T.reinterpret("int32x16", codes))
    moved = tirx.Shuffle([words], [tirx.const(at, "int32") for at in order])
    return T.Bind(T.reinterpret("uint8x64", moved))


def _call(dtype: str, name: str, *arguments: Expr) -> Expr:
    return T.call_llvm_pure_intrin(dtype, f"llvm.{name}", *arguments)
