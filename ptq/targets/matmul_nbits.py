"""Print a matrix product with group-wise weights as onnxruntime's MatMulNBits.

    Y = A (s (q - z))^T + bias,  q [N, blocks, size] of 2, 4 or 8 bits, s and z [N, blocks]

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#commicrosoftmatmulnbits
Codes are packed low bits first; those of 2 and 3 bits become 4-bit ones by a table of bytes where
the kernel wants that, those of 8 bits two products of 4: q - z = 16 (h - z_h) + (l - z_l), with
h, l and z_h, z_l the halves of q and of z. Scales are written as float16 and a Cast, which
onnxruntime folds at load too: blocks of 32 weights would spend a bit a weight on float32 scales.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.grid import Codes, Floats, Integers

Array = npt.NDArray[Any]

DOMAIN, DOMAIN_VERSION = "com.microsoft", 1
KERNELS = {"float": {2: 4, 3: 4, 4: 4, 8: 4}, "int8": {2: 2, 3: 4, 4: 4, 8: 8}}
"""Computation -> width of a code -> width of the operator that multiplies. onnxruntime 1.32 has 2,
4 and 8 bits; for 2 and 8 it has no kernel of floats, and would decode the whole weight in every
call: one row by 2048 x 2048 takes 11.0 ms in 8 bits, 1.6 in two products of 4 (AVX2)."""
HALF = 4  # bits
WIDTHS = tuple(KERNELS["float"])
BLOCK_SIZES = (16, 32, 64, 128, 256)
ACCURACY = {"float": 1, "int8": 4}
"""accuracy_level: products in float32, or the input rounded to int8 as it comes, block by block."""
SMALLEST_HALF, LARGEST_HALF = 6.2e-5, 6.5e4


@dataclass(frozen=True)
class BlockWeight:
    """A weight as it is stored for MatMulNBits.

    codes: [N, K] uint8, below 2^bits; scale: [N, blocks] float; zero_point: [N, blocks] integers.
    inputs: K without the padding that `codes` has. compute: what the product computes in.
    """

    codes: Codes
    scale: Floats
    zero_point: Integers
    bits: int
    inputs: int
    compute: str = "float"

    @property
    def block_size(self) -> int:
        """Columns that share a scale."""
        return int(self.codes.shape[1] // self.scale.shape[1])

    @property
    def width(self) -> int:
        """Bits of a code in the operator."""
        return KERNELS[self.compute][self.bits]

    @property
    def halved(self) -> bool:
        """True if there is a product of the upper halves of the codes, and one of the lower."""
        return self.width < self.bits

    def arrays(self, dtype: np.dtype[Any]) -> dict[str, Array]:
        """The initializers by their part; dtype: of the operator's input.

        Codes take their own bits in the file: those of 3 as two bits and, in `low`, one.
        """
        rows, blocks = self.scale.shape
        stored = np.dtype(np.float16) if in_half(self.scale) else dtype
        codes = self.codes.reshape(rows, blocks, -1)
        zero_point = self.zero_point.astype(np.uint8)
        scale = {"scale": self.scale.astype(stored)}
        if self.halved:
            return scale | {
                "codes": upper(codes), "low": lower(codes),
                "zero_point": upper(zero_point), "low_zero_point": lower(zero_point),
            }  # fmt: skip
        planes = {"codes": pack(codes, self.bits)} if self.bits != 3 else {
            "codes": pack(codes >> np.uint8(1), 2), "low": pack(codes & np.uint8(1), 1)
        }  # fmt: skip
        return planes | scale | {"zero_point": pack(zero_point, self.width)}

    def tables(self) -> dict[str, Array]:
        """What turns a byte of a plane into bytes of 4-bit codes, by plane; none if it is one."""
        if self.width <= self.bits:
            return {}
        return {"codes": spread(2, self.bits - 2), "low": spread(1, 0)} if self.bits == 3 else {
            "codes": spread(2, 0)
        }  # fmt: skip


def spread(bits: int, shift: int) -> npt.NDArray[np.int32]:
    """A byte of codes of 1 or 2 bits -> the bytes that hold them, shifted, in 4 bits: [256, n]."""
    codes = unpack(np.arange(256, dtype=np.uint8)[:, None], bits, 8 // bits)
    return pack(codes << np.uint8(shift), 4).astype(np.int32)


def stored_scale(scale: Floats) -> Floats:
    """The scales as they come back from the file, float64: what rounding should know."""
    return np.asarray(scale.astype(np.float16 if in_half(scale) else np.float32), np.float64)


def in_half(scale: Floats) -> bool:
    """True if float16 holds the scales to its full precision."""
    return bool(scale.min() > SMALLEST_HALF and scale.max() < LARGEST_HALF)


def pack(codes: Codes, bits: int) -> npt.NDArray[np.uint8]:
    """Codes of 1, 2, 4 or 8 bits along the last axis, low bits first: [..., n] -> [..., bytes]."""
    per_byte = 8 // bits
    short = -codes.shape[-1] % per_byte
    padded = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, short)])
    parts = padded.reshape(*codes.shape[:-1], -1, per_byte)
    shifts = bits * np.arange(per_byte, dtype=np.uint8)
    return np.asarray(np.bitwise_or.reduce(parts << shifts, axis=-1), np.uint8)


def upper(codes: Codes) -> npt.NDArray[np.uint8]:
    """The upper halves of codes of 8 bits, packed."""
    return pack(codes >> np.uint8(HALF), HALF)


def lower(codes: Codes) -> npt.NDArray[np.uint8]:
    """The lower halves of codes of 8 bits, packed."""
    return pack(codes & np.uint8((1 << HALF) - 1), HALF)


def unpack(packed: npt.NDArray[np.uint8], bits: int, n: int) -> Codes:
    """The inverse of `pack`: [..., bytes] -> [..., n]."""
    shifts = bits * np.arange(8 // bits, dtype=np.uint8)
    parts = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return np.asarray(parts.reshape(*packed.shape[:-1], -1)[..., :n])


def nodes_for(
    x: ir.Value, parts: dict[str, ir.Value], weight: BlockWeight, bias: ir.Value | None
) -> list[ir.Node]:
    """The nodes of the product, the last one with its output.

    parts: `arrays`, `tables` as table_codes and so on, and where there are tables `shape`, of the
    operator's codes, as values; `step`, 16, where codes are halved. onnxruntime folds all but the
    products, and the sum of two, at load.
    """
    chain: list[ir.Node] = []

    def node(op_type: str, inputs: list[ir.Value], **attributes: int) -> ir.Value:
        chain.append(ir.node(op_type, inputs=inputs, attributes=attributes))
        return chain[-1].outputs[0]

    def product(
        codes: ir.Value, scale: ir.Value, zero_point: ir.Value, added: ir.Value | None
    ) -> ir.Value:
        inputs = [x, codes, scale, zero_point, *([None, added] if added else [])]
        attributes = {
            "K": weight.inputs,
            "N": len(weight.codes),
            "bits": weight.width,
            "block_size": weight.block_size,
            "accuracy_level": ACCURACY[weight.compute],
        }
        chain.append(ir.node("MatMulNBits", inputs=inputs, attributes=attributes, domain=DOMAIN))
        return chain[-1].outputs[0]

    codes = _widened(node, parts) if "shape" in parts else parts["codes"]
    scale, kind = parts["scale"], x.dtype or ir.DataType.FLOAT
    if scale.dtype != kind:
        scale = node("Cast", [scale], to=int(kind))
    if weight.halved:
        coarse = node("Mul", [scale, parts["step"]])
        upper = product(codes, coarse, parts["zero_point"], None)
        node("Add", [upper, product(parts["low"], scale, parts["low_zero_point"], bias)])
    else:
        product(codes, scale, parts["zero_point"], bias)
    return chain


def _widened(node: Callable[..., ir.Value], parts: dict[str, ir.Value]) -> ir.Value:
    """Codes of 2 or 3 bits as 4-bit ones."""
    planes = []
    for plane in (name for name in ("codes", "low") if name in parts):
        index = node("Cast", [parts[plane]], to=int(ir.DataType.INT32))
        wide = node("Gather", [parts[f"table_{plane}"], index], axis=0)
        planes.append(node("Reshape", [wide, parts["shape"]]))
    whole = node("Add", planes) if len(planes) > 1 else planes[0]
    return node("Cast", [whole], to=int(ir.DataType.UINT8))
