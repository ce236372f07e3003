"""Group-wise weights as onnxruntime's MatMulNBits computes them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from ptq.grid import Grid
from ptq.model import load
from ptq.passes.rounding.block_scales import nearest_blocks, search_block_scales
from ptq.recipe import Recipe
from ptq.report.session import open_session
from ptq.targets.matmul_nbits import (
    BLOCK_SIZES,
    KERNELS,
    WIDTHS,
    BlockWeight,
    pack,
    spread,
    stored_scale,
    unpack,
)
from ptq.weights_only.deploy import Spool, deploy
from ptq.weights_only.products import find_products
from ptq.weights_only.round_product import padded
from tests.weights_only.networks import gated_network, inputs


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("n", [1, 7, 16])
def test_packing_and_unpacking_give_the_codes_back(bits: int, n: int) -> None:
    codes = np.random.default_rng(0).integers(0, 1 << bits, (3, n)).astype(np.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (3, -(-n * bits // 8))
    np.testing.assert_array_equal(unpack(packed, bits, n), codes)


def test_low_bits_come_first() -> None:
    assert pack(np.array([1, 2, 3, 0], np.uint8), 2).tolist() == [0b00111001]
    assert pack(np.array([1, 2], np.uint8), 4).tolist() == [0x21]


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("size", BLOCK_SIZES)
def test_onnxruntime_multiplies_with_what_was_rounded(bits: int, size: int) -> None:
    model = load(gated_network())
    recipe = Recipe.preset(f"w{bits}a16").replace(group_size=size)
    products, _ = find_products(model.graph, recipe)
    spool = Spool()
    wanted = {v.name: v.const_value.numpy() for v in model.graph.initializers.values()}
    deployed = model.clone()
    for product in products:
        rows = padded(product.rows().astype(np.float64), size)
        scale, zero_point = search_block_scales(rows, Grid(bits), size)
        found = nearest_blocks(rows, Grid(bits), stored_scale(scale), zero_point)
        stored = BlockWeight(found.codes, found.scale, found.zero_point, bits, product.shape[1])
        deploy(deployed, product, stored, spool)
        values = found.dequantize()[:, : product.shape[1]].astype(np.float32)
        name = product.node.inputs[1].name  # type: ignore[union-attr]
        wanted[name] = values if product.transposed else values.T
    by_hand = model.clone()
    for name, value in by_hand.graph.initializers.items():
        value.const_value = ir.Tensor(np.ascontiguousarray(wanted[name]), name=name)
    x = {"x": inputs(5)}
    widths = {n.attributes["bits"].as_int() for n in deployed.graph if n.op_type == "MatMulNBits"}
    assert widths == {KERNELS["float"][bits]}
    got = open_session(deployed, threads=1).run(x)["y"]
    float_y = open_session(by_hand, threads=1).run(x)["y"]
    # the same products in another order of summation, in float32
    np.testing.assert_allclose(got, float_y, rtol=2e-5, atol=2e-5)


def test_codes_take_their_own_bits_in_the_file() -> None:
    codes = np.random.default_rng(0).integers(0, 8, (4, 64)).astype(np.uint8)
    weight = BlockWeight(codes, np.ones((4, 2)), np.zeros((4, 2), int), 3, 64)
    arrays = weight.arrays(np.dtype(np.float32))
    assert arrays["codes"].nbytes + arrays["low"].nbytes == 4 * 64 * 3 / 8


@pytest.mark.parametrize(("compute", "products"), [("float", 2), ("int8", 1)])
def test_codes_of_8_bits_are_halved_for_products_in_floats(compute: str, products: int) -> None:
    codes = np.random.default_rng(0).integers(0, 256, (4, 64)).astype(np.uint8)
    zero_point = np.array([[0, 255], [130, 7], [16, 15], [1, 240]])
    weight = BlockWeight(codes, np.ones((4, 2)), zero_point, 8, 64, compute)
    arrays = weight.arrays(np.dtype(np.float32))
    assert sum(arrays[n].nbytes for n in ("codes", "low") if n in arrays) == codes.nbytes
    assert sum(name.endswith("zero_point") for name in arrays) == products


@pytest.mark.parametrize(("bits", "shift"), [(2, 0), (2, 1), (1, 0)])
def test_a_table_spreads_the_codes_of_a_byte(bits: int, shift: int) -> None:
    codes = np.random.default_rng(0).integers(0, 1 << bits, 8).astype(np.uint8)
    table = spread(bits, shift)
    wide = table[pack(codes, bits)].reshape(-1).astype(np.uint8)
    np.testing.assert_array_equal(unpack(wide, 4, 8), codes << shift)


def test_scales_beyond_half_precision_stay_single() -> None:
    small, fine = np.array([[1e-7, 1.0]]), np.array([[0.1, 1.0]])
    np.testing.assert_array_equal(stored_scale(small), np.float32(small))
    np.testing.assert_array_equal(stored_scale(fine), np.float16(fine))
