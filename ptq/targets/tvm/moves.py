"""Steps that only move codes: the reference moves element numbers, and the result is the map.

So no operator is written twice: where the map is one of strides it becomes a copy, where it is not
it becomes a table. Pooling, which computes, has its own kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.integer import movement
from ptq.integer.program import Apply, Ref, Step
from ptq.kernels.movement import Copy, Fill, Rows, Take
from ptq.kernels.reduction import MaxPool
from ptq.kernels.view import View, addresses, smallest_box, split_shape, strided
from ptq.targets.tvm.feeds import source_of
from ptq.targets.tvm.joined import join_results
from ptq.targets.tvm.lowering import Lowering

Index = npt.NDArray[np.int64]


def apply(state: Lowering, step: Apply) -> None:
    """Codes are pooled or moved; raw values are results, joined, or known already."""
    if not any(ref.codes for ref in step.outputs):
        if any(ref.name not in state.trace.static for ref in step.outputs):
            join_results(state, step)
        return
    if step.op_type in POOLS:
        POOLS[step.op_type](state, step)
        return
    if step.op_type == "Gather" and not _index_is_static(state, step):
        _rows(state, step)
        return
    for ref, index in zip(step.outputs, _moved(state, step), strict=True):
        _move(state, step, ref.name, index)


def _index_is_static(state: Lowering, step: Apply) -> bool:
    index = step.inputs[1]
    return index is not None and index.name in state.trace.static


def _rows(state: Lowering, step: Apply) -> None:
    """Rows of a matrix by what an input says."""
    index = step.inputs[1]
    assert index is not None
    table, output, chosen = _first(step).name, step.outputs[0].name, source_of(state, index)
    rows, *width = state.shape(table)
    kernel = Rows(
        chosen.view, rows, int(np.prod(width, dtype=np.int64)), chosen.dtype, state.dtype(output)
    )
    state.call(step.name, kernel, chosen.operand, state.codes(table), state.codes(output))


def _max_pool(state: Lowering, step: Apply) -> None:
    name = _first(step).name
    x, y = state.view(name), state.view(step.outputs[0].name)
    options: dict[str, Any] = {attr.name: attr.value for attr in step.attributes}
    window = tuple(options["kernel_shape"])
    ones = (1,) * len(window)
    strides = tuple(options.get("strides", ones))
    dilations = tuple(options.get("dilations", ones))
    extent = [(k - 1) * d + 1 for k, d in zip(window, dilations, strict=True)]
    pads = movement.pool_pads(options, x.shape[2:], extent, strides)
    kernel = MaxPool(x, y, window, strides, dilations, tuple(pads[: len(window)]))
    state.call(step.name, kernel, state.codes(name), state.codes(step.outputs[0].name))


def _reduce(state: Lowering, step: Apply) -> None:
    """An extreme along some axes: a window as large as they are, and of one in the others."""
    name = _first(step).name
    x, y = state.view(name), state.view(step.outputs[0].name)
    axes = _reduced(state, step, len(x.shape))
    kept = [axis for axis in range(len(x.shape)) if axis not in axes]
    left = [a for a in range(len(y.shape)) if len(y.shape) < len(x.shape) or a not in axes]
    x, y = _ordered(x, [*kept, *axes], len(kept)), _ordered(y, left, len(left), len(axes))
    window = tuple(n if i >= max(len(kept), 2) else 1 for i, n in enumerate(x.shape))[2:]
    ones, zeros = (1,) * len(window), (0,) * len(window)
    kernel = MaxPool(x, y, window, ones, ones, zeros, smallest=step.op_type == "ReduceMin")
    state.call(step.name, kernel, state.codes(name), state.codes(step.outputs[0].name))


def _reduced(state: Lowering, step: Apply, rank: int) -> list[int]:
    """The axes that go."""
    given = step.inputs[1] if len(step.inputs) > 1 else None
    axes = range(rank) if given is None else state.raw(given.name).reshape(-1)
    return sorted(int(axis) % rank for axis in axes)


def _ordered(view: View, axes: list[int], kept: int, ones: int = 0) -> View:
    """The view's axes in this order: two at least that are kept come first, `ones` of one last."""
    missing = max(2 - kept, 0)
    shape = [view.shape[axis] for axis in axes]
    strides = [view.strides[axis] for axis in axes]
    return View(
        (*[1] * missing, *shape, *[1] * ones), (*[0] * missing, *strides, *[0] * ones), view.offset
    )


POOLS = {"MaxPool": _max_pool, "ReduceMax": _reduce, "ReduceMin": _reduce}


def _first(step: Apply) -> Ref:
    ref = step.inputs[0]
    assert ref is not None
    return ref


def _sources(step: Apply) -> list[str]:
    """Code operands of a step, in order, each once."""
    return list(dict.fromkeys(ref.name for ref in step.inputs if ref is not None and ref.codes))


def _moved(state: Lowering, step: Apply) -> list[Index]:
    """For every output: which element each one is.

    Elements are numbered through the code operands one after another; a constant code c, of
    padding, is -1 - c.
    """
    numbers, start = {}, 0
    for name in _sources(step):
        shape = state.shape(name)
        size = int(np.prod(shape, dtype=np.int64))
        numbers[name] = np.arange(start, start + size).reshape(shape)
        start += size
    operands: list[npt.NDArray[Any] | None] = []
    for position, ref in enumerate(step.inputs):
        if ref is None:
            operands.append(None)
        elif ref.codes:
            operands.append(numbers[ref.name])
        else:
            raw = state.raw(ref.name)
            is_code = step.op_type == "Pad" and position == 2
            operands.append(-1 - raw.astype(np.int64) if is_code else raw)
    return movement.apply(step, operands, state.program.opset, {})


def _move(state: Lowering, step: Apply, output: str, index: Index) -> None:
    """Padding first, then one copy for every operand that the output has elements of."""
    sources = _sources(step)
    if len(sources) == 1 and index.min(initial=0) >= 0 and _only_passes(state, output):
        origin, elements = _origin(state, sources[0])
        state.passing[output] = origin, elements[index].reshape(-1)
        return
    constants = np.unique(index[index < 0])
    if len(constants):
        whole = View((state.view(output).size,), (1,))
        state.call(
            step.name, Fill(whole, int(-1 - constants[0]), state.dtype(output)), state.codes(output)
        )
    start = 0
    for name in _sources(step):
        origin, elements = _origin(state, name)
        mine = (index >= start) & (index < start + len(elements))
        if mine.any():
            places = np.where(mine, elements[np.where(mine, index - start, 0)], -1)
            _copy(state, step, origin, output, places)
        start += len(elements)


def _origin(state: Lowering, name: str) -> tuple[str, Index]:
    """The tensor in memory that has the elements, and where: its own, unless they only pass."""
    return state.passing.get(name) or (name, addresses(state.view(name)))


def _only_passes(state: Lowering, name: str) -> bool:
    """True if whatever reads a tensor moves its elements on, so that they are moved once."""
    readers = state.readers.get(name, [])
    return bool(readers) and all(_moves(state, step) for step in readers)


def _moves(state: Lowering, step: Step) -> bool:
    """True if a step is a map of elements that is known."""
    if not isinstance(step, Apply) or step.op_type in POOLS:
        return False
    known = step.op_type != "Gather" or _index_is_static(state, step)
    return known and all(ref.codes for ref in step.outputs)


def _copy(state: Lowering, step: Apply, source: str, output: str, places: Index) -> None:
    """y = x[places] where places is not negative: by strides if they tell it, else by a table."""
    y, dtype = state.view(output), state.dtype(output)
    operands = state.codes(source), state.codes(output)
    box = smallest_box(places >= 0)
    inner = places[box]
    finer = split_shape(inner)
    x = strided(inner.reshape(finer))
    if x is not None:
        to = y.part(box).split(finer)
        state.call(step.name, Copy(x, to, dtype, state.vectors), *operands)
        return
    flat = np.full(y.size, -1, np.int32)
    y.read(flat)[...] = places
    kernel = Take(state.view(source).size, View((y.size,), (1,)), dtype)
    state.call(step.name, kernel, state.constant(flat), *operands)
