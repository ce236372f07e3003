"""Requantisation by AVX-512's saturating packs: four vectors of sums become one of bytes.

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
from ptq.kernels.requantize import Rounding

LANES = 16
VECTORS = 4


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
    same = rounding.floats and rounding.fractions and rounding.dtype == "uint8"
    if not (isa.packs and same):
        pairs = zip(sums, channels, strict=True)
        return [rounding.vector(acc, scales, lanes, isa.lanes) for acc, lanes in pairs]
    made = []
    for first in range(0, len(sums), VECTORS):
        some = slice(first, first + VECTORS)
        every = _packed(rounding, sums[some], scales[0], channels[some])
        for start in range(0, LANES * len(sums[some]), LANES):
            part = [tirx.const(start + lane, "int32") for lane in range(LANES)]
            made.append(tirx.Shuffle([every], part))
    return made


def _packed(
    rounding: Rounding, sums: Sequence[Expr], ratio: Buffer, channels: Sequence[Expr]
) -> Expr:
    """uint8x64 codes of up to four sums in their order; fewer are repeated."""
    rounded = [_rounded(acc, ratio[lanes]) for acc, lanes in zip(sums, channels, strict=True)]
    rounded = [rounded[number % len(rounded)] for number in range(VECTORS)]
    zero = T.broadcast(T.int16(rounding.zero_point), 2 * LANES)
    words = []
    for first, second in (rounded[:2], rounded[2:]):
        packed = _call("int16x32", "x86.avx512.packssdw.512", first, second)
        words.append(_call("int16x32", "sadd.sat.v32i16", packed, zero))
    codes = T.reinterpret(
        "uint8x64", _in_order(_call("int8x64", "x86.avx512.packuswb.512", *words))
    )
    if rounding.low > 0:
        codes = T.max(codes, T.broadcast(T.uint8(rounding.low), 4 * LANES))
    if rounding.high < 255:
        codes = T.min(codes, T.broadcast(T.uint8(rounding.high), 4 * LANES))
    return T.Bind(codes)


def _rounded(acc: Expr, ratio: Expr) -> Expr:
    """int32x16, by the one instruction that rounds to even and converts."""
    scaled = T.Cast("float32x16", acc) * ratio
    return _call("int32x16", "lrint.v16i32.v16f32", scaled)


def _in_order(packed: Expr) -> Expr:
    """Packs work on each 128 bits by itself: four bytes of each vector lie beside each other."""
    order = [4 * (at % 4) + at // 4 for at in range(LANES)]
    words = T.Bind(T.reinterpret("int32x16", packed))
    return tirx.Shuffle([words], [tirx.const(at, "int32") for at in order])


def _call(dtype: str, name: str, *arguments: Expr) -> Expr:
    return T.call_llvm_pure_intrin(dtype, f"llvm.{name}", *arguments)
