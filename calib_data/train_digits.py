"""Make the digits model that ships: train it, export it, split its samples.

    python calib_data/train_digits.py   # in the repository, with the `test` extra; a few minutes

Writes, beside itself:
- digits_cnn.onnx: `image` [N, 1, 16, 16] float32 in 0..1 -> `logits` [N, 10] float32
- digits_calib.npz: `image`, 128 of the images it was trained on
- digits_eval.npz: `image` and `labels` of 597 images it never saw (by the same writers, though)

The network is a small MobileNetV2 (https://arxiv.org/abs/1801.04381): inverted residuals with
depthwise convolutions, batch norm, ReLU6. The images are the UCI handwritten digits that come with
scikit-learn (CC BY 4.0, https://doi.org/10.24432/C50P49), enlarged from 8 x 8.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir.passes.common as common
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

SEED = 0
EPOCHS = 60
BATCH = 64
EVAL_SAMPLES = 597
CALIB_SAMPLES = 128
HERE = Path(__file__).parent


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and batch norm; the size is kept but for the stride."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; added to the input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 3 * inputs
        self.keeps_shape = inputs == outputs and stride == 1
        self.layers = nn.Sequential(
            conv(inputs, wide, 1),
            nn.ReLU6(),
            conv(wide, wide, 3, stride, groups=wide),
            nn.ReLU6(),
            conv(wide, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        y: Tensor = self.layers(x)
        return x + y if self.keeps_shape else y


def network() -> nn.Sequential:
    """[N, 1, 16, 16] -> logits [N, 10]; about 50 thousand parameters."""
    return nn.Sequential(
        conv(1, 32, 3),
        nn.ReLU6(),
        InvertedResidual(32, 32, 1),
        InvertedResidual(32, 48, 2),
        InvertedResidual(48, 48, 1),
        InvertedResidual(48, 48, 1),
        conv(48, 96, 1),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, 10),
    )


def samples() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images, evaluation images [N, 1, 16, 16] float32 in 0..1, and their labels."""
    digits = load_digits()
    small = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = nn.functional.interpolate(small, scale_factor=2, mode="bilinear").numpy()
    split = train_test_split(
        images, digits.target, test_size=EVAL_SAMPLES, random_state=SEED, stratify=digits.target
    )
    train_x, eval_x, train_y, eval_y = map(torch.from_numpy, split)
    return train_x, eval_x, train_y, eval_y


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int = EPOCHS) -> None:
    """AdamW on images shifted by up to two pixels, one cycle of the learning rate."""
    steps = epochs * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for batch in order[: len(x) // BATCH * BATCH].split(BATCH):
            shift = torch.randint(-2, 3, (2,)).tolist()
            logits = model(torch.roll(x[batch], shift, (2, 3)))
            loss = nn.functional.cross_entropy(logits, y[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def export(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write an ONNX file with a dynamic batch, and without the paths of this machine."""
    program = torch.onnx.export(
        model,
        (example,),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        opset_version=21,
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export(dynamo=True) returned nothing")
    common.ClearMetadataAndDocStringPass()(program.model)
    program.save(path, external_data=False)


def main() -> None:
    """Train, report the accuracy, write the three files."""
    torch.manual_seed(SEED)
    train_x, eval_x, train_y, eval_y = samples()
    model = network()
    train(model, train_x, train_y)
    with torch.inference_mode():
        accuracy = (model(eval_x).argmax(1) == eval_y).double().mean()
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, accuracy {accuracy:.2%} of {len(eval_y)} unseen digits")
    export(model, eval_x[:2], HERE / "digits_cnn.onnx")
    np.savez_compressed(HERE / "digits_calib.npz", image=train_x[:CALIB_SAMPLES].numpy())
    np.savez_compressed(HERE / "digits_eval.npz", image=eval_x.numpy(), labels=eval_y.numpy())


if __name__ == "__main__":
    main()
