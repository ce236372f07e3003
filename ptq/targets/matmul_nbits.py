"""Print a matrix product with group-wise weights as onnxruntime's MatMulNBits.

    Y = A (s (q - z))^T + bias,  q [N, blocks, size] of 2, 4 or 8 bits, s and z [N, blocks]

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#commicrosoftmatmulnbits
Codes are packed low bits first. Scales are written as float16 and a Cast, which onnxruntime folds
at load: blocks of 32 weights would spend a bit a weight on float32 scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.grid import Codes, Floats, Integers

Array = npt.NDArray[Any]

DOMAIN, DOMAIN_VERSION = "com.microsoft", 1
CONTAINERS = {2: 2, 3: 4, 4: 4, 8: 8}
"""Width of a weight -> the width that it is stored in; onnxruntime 1.32 refuses others."""
BLOCK_SIZES = (16, 32, 64, 128, 256)
COMPUTE = {"float": 1, "int8": 4}
"""accuracy_level: products in float32, or the input rounded to int8 as it comes, block by block."""
SMALLEST_HALF, LARGEST_HALF = 6.2e-5, 6.5e4


@dataclass(frozen=True)
class BlockWeight:
    """A weight as MatMulNBits stores it.

    codes: [N, K] uint8, below 2^bits; scale: [N, blocks] float; zero_point: [N, blocks] integers.
    bits: of a stored code. inputs: K without the padding that `codes` has.
    """

    codes: Codes
    scale: Floats
    zero_point: Integers
    bits: int
    inputs: int

    @property
    def block_size(self) -> int:
        """Columns that share a scale."""
        return int(self.codes.shape[1] // self.scale.shape[1])

    def arrays(self, dtype: np.dtype[Any]) -> dict[str, Array]:
        """The initializers by their part of the operator; dtype: of the input."""
        rows, blocks = self.scale.shape
        stored = np.dtype(np.float16) if in_half(self.scale) else dtype
        return {
            "codes": pack(self.codes.reshape(rows, blocks, -1), self.bits),
            "scale": self.scale.astype(stored),
            "zero_point": pack(self.zero_point.astype(np.uint8), self.bits),
        }


def stored_scale(scale: Floats) -> Floats:
    """The scales as they come back from the file, float64: what rounding should know."""
    return np.asarray(scale.astype(np.float16 if in_half(scale) else np.float32), np.float64)


def in_half(scale: Floats) -> bool:
    """True if float16 holds the scales to its full precision."""
    return bool(scale.min() > SMALLEST_HALF and scale.max() < LARGEST_HALF)


def pack(codes: Codes, bits: int) -> npt.NDArray[np.uint8]:
    """Codes of 2, 4 or 8 bits along the last axis, low bits first: [..., n] -> [..., bytes]."""
    per_byte = 8 // bits
    short = -codes.shape[-1] % per_byte
    padded = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, short)])
    parts = padded.reshape(*codes.shape[:-1], -1, per_byte)
    shifts = bits * np.arange(per_byte, dtype=np.uint8)
    return np.asarray(np.bitwise_or.reduce(parts << shifts, axis=-1), np.uint8)


def unpack(packed: npt.NDArray[np.uint8], bits: int, n: int) -> Codes:
    """The inverse of `pack`: [..., bytes] -> [..., n]."""
    shifts = bits * np.arange(8 // bits, dtype=np.uint8)
    parts = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return np.asarray(parts.reshape(*packed.shape[:-1], -1)[..., :n])


def nodes_for(
    x: ir.Value,
    parts: dict[str, ir.Value],
    weight: BlockWeight,
    bias: ir.Value | None,
    compute: str,
) -> list[ir.Node]:
    """The nodes of the product, the last one with its output. parts: `arrays` as values."""
    chain, scale = [], parts["scale"]
    kind = x.dtype or ir.DataType.FLOAT
    if scale.dtype != kind:
        chain.append(ir.node("Cast", inputs=[scale], attributes={"to": int(kind)}))
        scale = chain[0].outputs[0]
    inputs = [x, parts["codes"], scale, parts["zero_point"], *([None, bias] if bias else [])]
    attributes = {
        "K": weight.inputs,
        "N": len(weight.codes),
        "bits": weight.bits,
        "block_size": weight.block_size,
        "accuracy_level": COMPUTE[compute],
    }
    chain.append(ir.node("MatMulNBits", inputs=inputs, attributes=attributes, domain=DOMAIN))
    return chain
