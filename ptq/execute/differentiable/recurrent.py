"""RNN, GRU and LSTM, step by step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ptq.execute.differentiable.nodes import Node, Op, Operands, host_integers, need, optional

State = tuple[Tensor, ...]
Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "affine": lambda x: x,
}


class _Direction:
    """One direction's weights. w: [gates * hidden, input], r: [gates * hidden, hidden]."""

    def __init__(self, operands: Operands, node: Node, index: int, functions: int) -> None:
        self.w, self.r = need(operands, 1)[index], need(operands, 2)[index]
        bias, peephole = optional(operands, 3), optional(operands, 7)
        zeros = torch.zeros(2 * len(self.w), dtype=self.w.dtype, device=self.w.device)
        self.wb, self.rb = (zeros if bias is None else bias[index]).chunk(2)
        self.peephole = None if peephole is None else peephole[index].chunk(3)
        named = node.attributes.get("activations", ())
        names = [str(v).lower() for v in named][functions * index : functions * (index + 1)]
        if any(name not in ACTIVATIONS for name in names):
            raise node.refuse(f"activations {names}", ", ".join(ACTIVATIONS))
        self.functions = [ACTIVATIONS[name] for name in names]
        self.linear_before_reset = node.integer("linear_before_reset", 0)


Cell = Callable[[Tensor, State, _Direction], State]


def _rnn_cell(x: Tensor, state: State, d: _Direction) -> State:
    (f,) = d.functions or [torch.tanh]
    return (f(x @ d.w.T + d.wb + state[0] @ d.r.T + d.rb),)


def _gru_cell(x: Tensor, state: State, d: _Direction) -> State:
    """Gates in ONNX's order z, r, h."""
    f, g = d.functions or [torch.sigmoid, torch.tanh]
    (h,) = state
    xz, xr, xh = (x @ d.w.T + d.wb).chunk(3, -1)
    hz, hr, hh = (h @ d.r.T + d.rb).chunk(3, -1)
    z, r = f(xz + hz), f(xr + hr)
    if d.linear_before_reset:
        new = g(xh + r * hh)
    else:
        size = h.shape[-1]
        new = g(xh + (r * h) @ d.r[2 * size :].T + d.rb[2 * size :])
    return ((1 - z) * new + z * h,)


def _lstm_cell(x: Tensor, state: State, d: _Direction) -> State:
    """Gates in ONNX's order i, o, f, c; peepholes i, o, f."""
    f, g, out = d.functions or [torch.sigmoid, torch.tanh, torch.tanh]
    h, c = state
    gate_i, gate_o, gate_f, gate_c = (x @ d.w.T + d.wb + h @ d.r.T + d.rb).chunk(4, -1)
    if d.peephole is not None:
        gate_i, gate_f = gate_i + d.peephole[0] * c, gate_f + d.peephole[2] * c
    c = f(gate_f) * c + f(gate_i) * g(gate_c)
    if d.peephole is not None:
        gate_o = gate_o + d.peephole[1] * c
    return f(gate_o) * out(c), c


def _recurrent(cell: Cell, states: int, functions: int) -> Op:
    """An operator from its cell; x: [time, batch, input], or batch first with layout 1."""

    def run(operands: Operands, node: Node) -> tuple[Tensor, ...]:
        x, layout = need(operands, 0), node.integer("layout", 0)
        x = x.transpose(0, 1) if layout else x
        _check(operands, node, len(x))
        weight, hidden = need(operands, 1), need(operands, 2).shape[-1]
        direction = node.text("direction", "forward")
        histories, finals = [], []
        for index in range(len(weight)):
            d = _Direction(operands, node, index, functions)
            state = _initial(operands, index, states, (x.shape[1], hidden), layout, x)
            backward = direction == "reverse" or index == 1
            history = []
            for step in x.flip(0) if backward else x:
                state = cell(step, state, d)
                history.append(state[0])
            stacked = torch.stack(history)
            histories.append(stacked.flip(0) if backward else stacked)
            finals.append(state)
        y = torch.stack(histories, 1)
        ends = [torch.stack([final[i] for final in finals]) for i in range(states)]
        if layout:
            y, ends = y.permute(2, 0, 1, 3), [end.transpose(0, 1) for end in ends]
        return (y, *ends)

    return run


def _initial(
    operands: Operands, index: int, states: int, shape: tuple[int, int], layout: int, x: Tensor
) -> State:
    found = []
    for position in range(5, 5 + states):
        given = optional(operands, position)
        if given is None:
            found.append(torch.zeros(shape, dtype=x.dtype, device=x.device))
        else:
            found.append(given[:, index] if layout else given[index])
    return tuple(found)


def _check(operands: Operands, node: Node, steps: int) -> None:
    lengths = host_integers(optional(operands, 4))
    if lengths is not None and any(length != steps for length in lengths):
        raise node.refuse(f"sequence lengths {lengths} of {steps} steps", "full sequences")
    if "clip" in node.attributes or node.integer("input_forget", 0):
        raise node.refuse("clip or input_forget", "cells without them")


RECURRENT: dict[str, Op] = {
    "GRU": _recurrent(_gru_cell, states=1, functions=2),
    "LSTM": _recurrent(_lstm_cell, states=2, functions=3),
    "RNN": _recurrent(_rnn_cell, states=1, functions=1),
}
