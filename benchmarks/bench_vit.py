"""A small vision transformer on digits, with the transformer passes on and off.

    python benchmarks/bench_vit.py [--seeds 0 1 2] [--epochs 60] [--samples 128]

Trains a ViT (https://arxiv.org/abs/2010.11929) of width 64 and 4 layers on scikit-learn's digits,
enlarged to 16 x 16, once; gives the module itself to ptq.quantize. The seed chooses the calibration
images among the training images; accuracy, agreement with the float argmax and SQNR of the logits
are on 597 images that neither training nor calibration saw. `off` means residual_bits=8 and
balance=False. Results go to --out, one JSON line each, and what is there is not run again;
transformer_tables.py makes docs/transformers.md of it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.nn import functional

import ptq
from ptq.calib_data import train_digits as digits

WIDTH, HEADS, LAYERS, PATCH, SIDE = 64, 4, 4, 4, 16
TOKENS = (SIDE // PATCH) ** 2 + 1
PASSES = {"on": {}, "off": {"residual_bits": 8, "balance": False}}
PRECISIONS = ("w8a8", "w4a8", "w4a4")
LEARNED = ", learned"
"""Rounding learned by gradients; else in closed form."""


class Block(nn.Module):
    """Attention and a perceptron, each after a norm, each added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def attend(self, x: Tensor) -> Tensor:
        """x: [N, TOKENS, WIDTH] -> the same shape."""

        def heads(part: nn.Module) -> Tensor:
            y: Tensor = part(x)
            return y.view(-1, TOKENS, HEADS, WIDTH // HEADS).transpose(1, 2)

        y = functional.scaled_dot_product_attention(*map(heads, (self.query, self.key, self.value)))
        z: Tensor = self.out(y.transpose(1, 2).reshape(-1, TOKENS, WIDTH))
        return z

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, TOKENS, WIDTH] -> the same shape."""
        x = x + self.attend(self.norm1(x))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class Vit(nn.Module):
    """Images [N, 1, 16, 16] to logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.places = nn.Parameter(0.02 * torch.randn(1, TOKENS, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, image: Tensor) -> Tensor:
        """image: [N, 1, 16, 16] float32."""
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits


def trained(checkpoint: Path, epochs: int) -> Vit:
    """The network, trained once and kept."""
    torch.manual_seed(0)
    model, (train_x, _, train_y, _) = Vit(), digits.samples()
    if checkpoint.exists():
        model.load_state_dict(torch.load(checkpoint, weights_only=True))
    else:
        digits.train(model, train_x, train_y, epochs)
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), checkpoint)
    return model.eval()


def measure(model: Vit, precision: str, passes: str, seed: int, samples: int) -> dict[str, Any]:
    """Accuracy and agreement in percent, SQNR in dB, of the deployed model."""
    train_x, eval_x, _, eval_y = digits.samples()
    with torch.inference_mode():
        wanted = model(eval_x).numpy()
    logits = wanted
    if precision != "float":
        chosen = np.random.default_rng(seed).permutation(len(train_x))[:samples]
        recipe = ptq.Recipe.preset(precision.removesuffix(LEARNED)).replace(
            seed=seed, strict=True, **PASSES[passes]
        )
        if not precision.endswith(LEARNED):
            recipe = recipe.replace(effort="fast")
        result = ptq.quantize(
            model, [train_x[chosen].numpy()], recipe, example_inputs=(train_x[:2],)
        )
        session = ort.InferenceSession(ir.to_proto(result.model).SerializeToString())
        logits = session.run(None, {"image": eval_x.numpy()})[0]
    best, noise = logits.argmax(1), ((logits - wanted) ** 2).sum()
    return {
        "precision": precision,
        "passes": passes,
        "seed": seed,
        "accuracy": 100 * float((best == eval_y.numpy()).mean()),
        "agreement": 100 * float((best == wanted.argmax(1)).mean()),
        "sqnr_db": 10 * float(np.log10((wanted**2).sum() / noise)) if noise else None,
    }


def main() -> None:
    """Train, then measure what the log does not have."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=digits.EPOCHS)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--checkpoint", type=Path, default=Path("out/vit.pt"))
    parser.add_argument("--out", type=Path, default=Path("out/vit.jsonl"))
    options = parser.parse_args()
    model = trained(options.checkpoint, options.epochs)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    done = {(r["precision"], r["passes"], r["seed"]) for r in map(json.loads, lines)}
    cases = [(p, passes, s) for s in options.seeds for p in PRECISIONS for passes in PASSES]
    learned = [(p + LEARNED, "on", s) for s in options.seeds for p in PRECISIONS if p != "w8a8"]
    for case in [("float", "", options.seeds[0]), *cases, *learned]:
        if case not in done:
            record = measure(model, *case, options.samples)
            with options.out.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(record, flush=True)


if __name__ == "__main__":
    main()
