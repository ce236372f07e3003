"""Attention and rotary embedding, as ONNX defines them since opset 23."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ptq.execute.differentiable.nodes import Node, Op, Operands, need, optional
from ptq.execute.differentiable.reductions import softmax
from ptq.execute.differentiable.tensors import torch_type


def _heads(x: Tensor, heads: int) -> Tensor:
    """[batch, time, heads * size] -> [batch, heads, time, size]; four axes stay as they are."""
    if x.ndim == 4:
        return x
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _attention(operands: Operands, node: Node) -> tuple[Tensor, ...]:
    """softmax(softcap(q k^T scale) + bias) v; rows without any key give zeros."""
    q, k, v = (need(operands, i) for i in range(3))
    flat = q.ndim == 3
    q_heads, kv_heads = node.integer("q_num_heads", 1), node.integer("kv_num_heads", 1)
    q, k, v = _heads(q, q_heads), _heads(k, kv_heads), _heads(v, kv_heads)
    past_k, past_v = optional(operands, 4), optional(operands, 5)
    k = k if past_k is None else torch.cat([past_k, k], 2)
    v = v if past_v is None else torch.cat([past_v, v], 2)
    present_k, present_v = k, v
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1:
        k, v = (x.repeat_interleave(repeats, 1) for x in (k, v))
    root = math.sqrt(node.real("scale", 1 / math.sqrt(q.shape[-1])))
    scale = torch.tensor(root, dtype=q.dtype, device=q.device)  # rounded to the type, as ONNX does
    scores = torch.matmul(q * scale, k.transpose(-1, -2) * scale)
    softcap = node.real("softcap", 0.0)
    capped = torch.tanh(scores / softcap) * softcap if softcap > 0 else scores
    bias = _bias(operands, node, q, k)
    biased = capped + bias
    kind = q.dtype
    if "softmax_precision" in node.attributes:
        kind = torch_type(node.integer("softmax_precision", 1))
    masked = torch.isneginf(bias).all(-1, keepdim=True)
    safe = torch.where(masked, torch.zeros_like(biased), biased)
    weights = softmax(safe.to(kind), -1)
    weights = torch.where(masked, torch.zeros_like(weights), weights).to(q.dtype)
    y = torch.matmul(weights, v)
    if flat:
        y = y.transpose(1, 2).flatten(2)
    modes = scores, capped, biased, weights
    return y, present_k, present_v, modes[node.integer("qk_matmul_output_mode", 0)]


def _bias(operands: Operands, node: Node, q: Tensor, k: Tensor) -> Tensor:
    """Everything that is added to the scores: the mask, causality, window and padding."""
    mask, past, lengths = (optional(operands, i) for i in (3, 4, 6))
    rows, columns = q.shape[2], k.shape[2]
    bias = torch.zeros(rows, columns, dtype=q.dtype, device=q.device)
    if mask is not None:
        room = [0, columns - mask.shape[-1]]
        if mask.dtype == torch.bool:
            bias = _minus_inf(functional.pad(mask, room, value=False), bias)
        else:
            bias = bias + functional.pad(mask, room, value=-math.inf)
    i = torch.arange(rows, device=q.device)[:, None]
    j = torch.arange(columns, device=q.device)[None]
    if past is None and lengths is not None:
        i = i + (lengths.reshape(-1, 1, 1, 1) - rows)
    elif past is not None:
        i = i + past.shape[2]
    allowed = torch.ones_like(i - j, dtype=torch.bool)
    left, right = node.integer("left_window_size", -1), node.integer("right_window_size", -1)
    if node.integer("is_causal", 0):
        allowed = allowed & (j <= i)
    if left >= 0:
        allowed = allowed & (i - j <= left)
    if right >= 0:
        allowed = allowed & (j - i <= right)
    if lengths is not None:
        allowed = allowed & (j < lengths.reshape(-1, 1, 1, 1))
    return bias + _minus_inf(allowed, bias)


def _minus_inf(allowed: Tensor, like: Tensor) -> Tensor:
    """0 where allowed, else -inf."""
    zero = torch.zeros((), dtype=like.dtype, device=like.device)
    return torch.where(allowed, zero, zero - math.inf)


def _rotary_embedding(operands: Operands, node: Node) -> Tensor:
    """Pairs of elements rotated by the angle of their position."""
    x, cos, sin = (need(operands, i) for i in range(3))
    position, flat = optional(operands, 3), x.ndim == 3
    if position is not None:
        cos, sin = cos[position.to(torch.int64)], sin[position.to(torch.int64)]
    y = _heads(x, node.integer("num_heads", 1))
    size = node.integer("rotary_embedding_dim", 0) or y.shape[-1]
    turned, rest = y[..., :size], y[..., size:]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    if node.integer("interleaved", 0):
        a, b = turned[..., 0::2], turned[..., 1::2]
        pairs = torch.stack([cos * a - sin * b, sin * a + cos * b], -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        pairs = torch.cat([cos * a - sin * b, sin * a + cos * b], -1)
    y = torch.cat([pairs, rest], -1)
    return y.transpose(1, 2).flatten(2) if flat else y


ATTENTION: dict[str, Op] = {
    "Attention": _attention,
    "RotaryEmbedding": _rotary_embedding,
}
