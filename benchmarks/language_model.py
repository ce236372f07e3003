"""A decoder of a few million parameters, trained on the standard library's text.

    python benchmarks/language_model.py [--folder out/language] [--minutes 10]

Rotary positions (https://arxiv.org/abs/2104.09864), RMSNorm, causal attention, SiLU gates
(https://arxiv.org/abs/2002.05202). Goes on from `decoder.pt` where that is there, stops after the
minutes; run it until it says that it is trained. Then writes, in the folder:
- decoder.onnx: `tokens` [N, T] int64 -> `logits` [N, T, 1024] float32, both sizes dynamic
- calib.npz, eval.npz: `tokens` [n, 256] int64, of files that were not trained on
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnx_ir.passes.common as common
import source_text
import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY, WIDTH, HEADS, LAYERS, HIDDEN = 1024, 256, 4, 4, 768
LENGTH, BATCH, STEPS, WARM_UP, RATE = 256, 8, 700, 50, 2e-3
EVAL_WINDOWS = 200


class Attention(nn.Module):
    """Every token looks at itself and at those before it; positions turn queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (
            nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [N, T, WIDTH]; cos, sin: [T, WIDTH / HEADS] -> [N, T, WIDTH]."""

        def heads(part: nn.Module) -> Tensor:
            y: Tensor = part(x)
            return y.view(x.shape[0], x.shape[1], HEADS, WIDTH // HEADS).transpose(1, 2)

        def turn(y: Tensor) -> Tensor:
            first, second = y.chunk(2, -1)
            return y * cos + torch.cat([-second, first], -1) * sin

        y = functional.scaled_dot_product_attention(
            turn(heads(self.query)), turn(heads(self.key)), heads(self.value), is_causal=True
        )
        z: Tensor = self.out(y.transpose(1, 2).reshape(x.shape))
        return z


class Block(nn.Module):
    """Attention and a gated perceptron, each after a norm, each added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH, 1e-5), nn.RMSNorm(WIDTH, 1e-5)
        self.attention = Attention()
        self.gate, self.up = (nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2))
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [N, T, WIDTH] -> the same shape."""
        x = x + self.attention(self.norm1(x), cos, sin)
        y = self.norm2(x)
        y = x + self.down(functional.silu(self.gate(y)) * self.up(y))
        return y


class Decoder(nn.Module):
    """Tokens [N, T] to logits of the next ones [N, T, VOCABULARY]."""

    cos: Tensor
    sin: Tensor

    def __init__(self, longest: int = 1024) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH, 1e-5)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        size = WIDTH // HEADS
        speeds = 10_000.0 ** (-torch.arange(0, size, 2) / size)
        angles = torch.outer(torch.arange(longest), speeds).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                closing = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / (2 * LAYERS) ** 0.5 if closing else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [N, T] int64."""
        x = self.embed(tokens)
        length = tokens.shape[1]
        for block in self.blocks:
            x = block(x, self.cos[:length], self.sin[:length])
        logits: Tensor = self.head(self.norm(x))
        return logits


def learning_rate(step: int) -> float:
    """Warms up, then falls to zero in a line; as a share of RATE."""
    return min((step + 1) / WARM_UP, (STEPS - step) / (STEPS - WARM_UP))


def train(model: Decoder, tokens: Tensor, checkpoint: Path, minutes: float) -> bool:
    """Train until it is done (True) or the minutes are over (False); resumable."""
    decayed = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    if checkpoint.exists():
        for name, state in torch.load(checkpoint, weights_only=True).items():
            parts[name].load_state_dict(state)
    start = time.monotonic()
    for step in range(schedule.last_epoch, STEPS):
        if time.monotonic() - start > 60 * minutes:
            break
        at = torch.randint(
            len(tokens) - LENGTH, (BATCH,), generator=torch.Generator().manual_seed(step)
        )
        rows = torch.stack([tokens[i : i + LENGTH + 1] for i in at.tolist()])
        loss = functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            print(f"step {step}: {loss.item():.3f}, {time.monotonic() - start:.0f} s", flush=True)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: part.state_dict() for name, part in parts.items()}, checkpoint)
    return schedule.last_epoch >= STEPS


def export(model: Decoder, path: Path) -> None:
    """Write the ONNX file, without the paths of this machine."""
    size = {0: torch.export.Dim("N"), 1: torch.export.Dim("T", max=len(model.cos))}
    program = torch.onnx.export(
        model.eval(),
        (torch.zeros(2, 16, dtype=torch.int64),),
        input_names=["tokens"],
        output_names=["logits"],
        dynamic_shapes=(size,),
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export(dynamo=True) returned nothing")
    common.ClearMetadataAndDocStringPass()(program.model)
    program.save(path, external_data=False)


def main() -> None:
    """Train for some minutes; export when that is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("out/language"))
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = Decoder()
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    text = source_text.text_of("train")
    pairs = source_text.learn_pairs(text, VOCABULARY)
    tokens = torch.from_numpy(source_text.encode(text, pairs))
    if not train(model, tokens, options.folder / "decoder.pt", options.minutes):
        print("not yet trained; run this again")
        return
    export(model, options.folder / "decoder.onnx")
    for part in ("calib", "eval"):
        rows = source_text.windows(source_text.encode(source_text.text_of(part), pairs), LENGTH)
        rows = rows[:: max(1, len(rows) // EVAL_WINDOWS)] if part == "eval" else rows
        np.savez_compressed(options.folder / f"{part}.npz", tokens=rows)
    print("trained")


if __name__ == "__main__":
    main()
