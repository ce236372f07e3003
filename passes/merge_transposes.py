"""Merge transpositions: of a transposition, and through reshapes that only fold leading axes.

    Transpose(Transpose(x, p), q)                   -> Transpose(x, p[q])
    [a, b, m, n] -> [ab, m, n] -> [ab, n, m] -> [a, b, n, m]  -> Transpose(x, (0, 1, 3, 2))

The second is what torch.export writes for the keys of attention, with the sizes computed from
shapes at run time. Sizes count as equal where they are the same number or have the same name.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ptq.passes.rewriting import (
    bypass,
    input_at,
    ints_attribute,
    is_op,
    new_node,
    rank,
    remove_unused,
    replace,
    sole_producer,
)


def merge_transposes(graph: ir.Graph) -> int:
    """Merge every mergeable Transpose of `graph`; returns how many went."""
    merged = sum(_through_reshapes(node) for node in list(graph) if is_op(node, "Reshape"))
    merged += sum(_of_a_transpose(node) for node in list(graph) if is_op(node, "Transpose"))
    if merged:
        remove_unused(graph)
    return merged


def _of_a_transpose(node: ir.Node) -> bool:
    source = input_at(node, 0)
    inner = None if source is None else source.producer()
    if inner is None or not is_op(inner, "Transpose") or inner.inputs[0] is None:
        return False
    first, second = _order(inner), _order(node)
    if first is None or second is None:
        return False
    order = [first[axis] for axis in second]
    if order == sorted(order) and bypass(node, inner.inputs[0]):
        return True
    node.replace_input_with(0, inner.inputs[0])
    node.attributes["perm"] = ir.AttrInt64s("perm", order)
    return True


def _through_reshapes(unfold: ir.Node) -> bool:
    transpose = sole_producer(input_at(unfold, 0))
    if transpose is None or not is_op(transpose, "Transpose"):
        return False
    fold, order = sole_producer(input_at(transpose, 0)), _order(transpose)
    if fold is None or not is_op(fold, "Reshape") or fold.inputs[0] is None or order is None:
        return False
    x, folded, result = fold.inputs[0], fold.outputs[0], unfold.outputs[0]
    fixed = next((i for i, axis in enumerate(order) if i != axis), len(order))
    moved = len(order) - fixed
    sizes, wanted = _sizes(x), _sizes(result)
    kept = _sizes(folded)[fixed:]
    lead = len(sizes) - moved
    if not moved or lead < 1 or len(kept) != moved or len(sizes) != len(wanted):
        return False
    turned = [kept[axis - fixed] for axis in order[fixed:]]
    if not _equal(sizes[lead:], kept) or not _equal(wanted, [*sizes[:lead], *turned]):
        return False
    whole = [*range(lead), *(lead + axis - fixed for axis in order[fixed:])]
    replace(unfold, [new_node("Transpose", [x], {"perm": whole})])
    return True


def _order(transpose: ir.Node) -> list[int] | None:
    given, dims = ints_attribute(transpose, "perm"), rank(transpose.inputs[0])
    if given is not None:
        return list(given)
    return None if dims is None else list(range(dims))[::-1]


def _sizes(value: ir.Value) -> list[int | str | None]:
    """Numbers and names of its dimensions; None where a dimension has neither."""
    return [d if isinstance(d, int) else d.value for d in value.shape or ()]


def _equal(some: Sequence[int | str | None], others: Sequence[int | str | None]) -> bool:
    return None not in some and list(some) == list(others)
