"""Layers of so many inputs that a Gram matrix of them would not fit into memory."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import ptq
from ptq.integer.weights import unit_weight
from ptq.passes import collect_grams
from ptq.passes.collect_grams import empty_moments, gram_bytes
from tests.conv_net import conv_net, conv_samples


@pytest.mark.parametrize("grid", ["uniform", "auto"])
def test_are_rounded_without_one(
    grid: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    samples = {"x": conv_samples(64)}
    recipe = ptq.Recipe(weight_bits=4, samples=64, effort="fast", grid=grid)
    usual = ptq.quantize(conv_net(), samples, recipe)
    widths = {u.name: empty_moments(u).mean.shape[-1] for u in usual.outline.weighted}
    limit = sorted(widths.values())[len(widths) // 2]
    monkeypatch.setattr(collect_grams, "WIDEST", limit - 1)
    with caplog.at_level(logging.INFO, "ptq"):
        found = ptq.quantize(conv_net(), samples, recipe)
    wide = {name for name, width in widths.items() if width >= limit}
    named = {r.message.split(":")[0] for r in caplog.records if "second-order" in r.message}
    assert named == wide
    assert {gram_bytes(u) > 0 for u in found.outline.weighted if u.name not in wide} <= {True}
    assert not any(gram_bytes(u) for u in found.outline.weighted if u.name in wide)
    for unit in found.outline.weighted:
        exact, rounded = unit_weight(unit), found.plan.weights[unit.name].dequantize()
        assert np.square(exact - rounded).mean() < 0.02 * np.square(exact).mean()
