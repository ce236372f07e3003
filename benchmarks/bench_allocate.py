"""Time of an allocation: a synthetic network of 300 layers with 6 widths each, three budgets.

    python benchmarks/bench_allocate.py [--layers 300]

Prints seconds of scipy's milp for each mix of budgets, and how far the greedy rival (narrow the
layer that loses least per saved byte until the budget is met) is from the optimum.
"""

from __future__ import annotations

import argparse
from time import perf_counter

import numpy as np

from ptq.passes.allocate_bits import Choice, Option, Problem, allocate_bits
from ptq.precision import Precision

WIDTHS = (2, 3, 4, 5, 6, 8)
ACTIVATIONS = (4, 8)


def synthetic(layers: int, seed: int, activations: tuple[int | None, ...]) -> Problem:
    """Sizes and sensitivities spread over three decades, as in real networks."""
    rng = np.random.default_rng(seed)
    sizes, scales = np.exp(rng.uniform(7, 14, layers)), np.exp(rng.normal(0, 1.5, layers))
    choices = []
    for index, (size, scale) in enumerate(zip(sizes, scales, strict=True)):
        options = []
        for bits in WIDTHS:
            loss = float(scale * np.exp(rng.normal(0, 0.1)) * 4.0**-bits)
            for a in activations:
                costs = {
                    "average_bits": size * bits / sizes.sum(),
                    "size_bytes": size * bits / 8,
                    "bops": size * bits * (a or 8),
                }
                options.append(Option(Precision(bits, a), loss, costs))
        choices.append(Choice(f"layer{index}", f"tensor{index}", tuple(options)))
    losses = {f"tensor{i}": {4: float(scales[i]) * 1e-3, 8: 0.0} for i in range(layers)}
    return Problem(tuple(choices), losses if activations[0] else {})


def greedy(problem: Problem, limit: float) -> float:
    """Loss of narrowing, step by step, where a saved bit loses least."""
    level = [len(choice.options) - 1 for choice in problem.choices]

    def now() -> float:
        picked = (c.options[i] for c, i in zip(problem.choices, level, strict=True))
        return sum(option.costs["average_bits"] for option in picked)

    while now() > limit:
        steps = []
        for layer, (choice, index) in enumerate(zip(problem.choices, level, strict=True)):
            if index:
                old, new = choice.options[index], choice.options[index - 1]
                saved = old.costs["average_bits"] - new.costs["average_bits"]
                steps.append(((new.loss - old.loss) / saved, layer))
        level[min(steps)[1]] -= 1
    return sum(c.options[i].loss for c, i in zip(problem.choices, level, strict=True))


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=300)
    layers = parser.parse_args().layers
    both = {"average_bits": 4.0, "bops": 0.0}
    for title, activations, budgets in (
        ("weights, average bits", (None,), {"average_bits": 3.3}),
        ("weights and activations, average bits and bops", ACTIVATIONS, both),
    ):
        for seed in range(3):
            problem = synthetic(layers, seed, activations)
            full = sum(max(o.costs["bops"] for o in c.options) for c in problem.choices)
            limits = {n: limit or 0.35 * full for n, limit in budgets.items()}
            start = perf_counter()
            found = allocate_bits(problem, limits)
            seconds = perf_counter() - start
            line = f"{layers} layers, {len(problem.choices[0].options)} options: {seconds:.2f} s"
            if "bops" not in limits:
                rival = greedy(problem, limits["average_bits"]) / found.loss - 1
                line += f", greedy loses {100 * rival:.2f} % more"
            print(f"{title}, seed {seed}: {line}")


if __name__ == "__main__":
    main()
