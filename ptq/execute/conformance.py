"""ONNX's own node tests, run on the differentiable executor.

`python -m ptq.execute.conformance` prints how many of the tests that ship with the `onnx` package
pass. A test is applicable if every operator of its graph is in the table; one that the executor
declines with a reason is listed under that reason, and every other difference is a failure.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from ptq.errors import UnsupportedModelError


@dataclass(frozen=True)
class Outcome:
    """What became of one test.

    verdict: 'passed', 'failed', 'declined' (with the reason) or 'not applicable' (with the
    operators that are missing).
    """

    name: str
    verdict: str
    reason: str = ""


def node_tests(prefix: str = "test_") -> Iterator[Outcome]:
    """Run the node tests of the installed onnx package whose names begin with `prefix`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        cases = load_model_tests(kind="node")
    for case in cases:
        if not case.name.startswith(prefix):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield _run(case)


def _run(case: Any) -> Outcome:
    from ptq.execute.differentiable import FloatGraph, unsupported

    name = str(case.name)
    try:
        model = ir.from_proto(case.model)
    except (ValueError, TypeError, NotImplementedError) as error:
        return Outcome(name, "not applicable", f"onnx_ir: {error}")
    missing = unsupported(model.graph)
    if missing:
        return Outcome(name, "not applicable", ", ".join(missing))
    try:
        opset = model.opset_imports.get("", OPSET_OF_FUNCTIONS)
        outputs = [str(value.name) for value in model.graph.outputs]
        made = {value.name for node in model.graph for value in node.outputs}
        graph = FloatGraph(model.graph, opset, outputs=[o for o in outputs if o in made])
        for inputs, wanted in case.data_sets:
            _check(graph, model, inputs, dict(zip(outputs, wanted, strict=True)), case)
    except UnsupportedModelError as error:
        return Outcome(name, "declined", str(error))
    except Exception as error:  # whatever went wrong is what the table has to show
        return Outcome(name, "failed", f"{type(error).__name__}: {error}".strip())
    return Outcome(name, "passed")


OPSET_OF_FUNCTIONS = 21
"""For the few tests whose graphs import no version of ONNX's own domain."""


def _check(graph: Any, model: ir.Model, inputs: Any, wanted: dict[str, Any], case: Any) -> None:
    from ptq.execute.differentiable import to_array, to_tensor

    names = [str(value.name) for value in model.graph.inputs]
    feeds = {n: to_tensor(_array(a)) for n, a in zip(names, inputs, strict=False)}
    found = {**feeds, **graph.run(feeds)}
    for name, expected in wanted.items():
        array, expected = to_array(found[name]), _array(expected)
        if array.dtype != expected.dtype or array.shape != expected.shape:
            raise TypeError(
                f"{name}: got {array.dtype} {array.shape}; wanted {expected.dtype} {expected.shape}"
            )
        rtol = case.rtol
        if array.dtype.kind not in "fiub":
            rtol = max(rtol, BFLOAT16_RTOL)
            array, expected = array.astype(np.float32), expected.astype(np.float32)
        np.testing.assert_allclose(array, expected, rtol=rtol, atol=case.atol)


BFLOAT16_RTOL = 2**-6
"""Two units in the last place; what onnx's own test runner allows this type."""


def _array(value: Any) -> npt.NDArray[Any]:
    """A test's tensor: an array, or a TensorProto for types that numpy lacks."""
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value)


def table(outcomes: list[Outcome]) -> str:
    """The figures, then what was declined by reason, then what failed, one a line."""
    count = Counter(outcome.verdict for outcome in outcomes)
    applicable = count["passed"] + count["failed"]
    lines = [
        f"passed {count['passed']} / applicable {applicable}",
        f"not applicable by a stated limit: {count['declined']}",
        f"not applicable, an operator is not in the table: {count['not applicable']}",
    ]
    for (verdict, reason), names in by_reason(outcomes).items():
        if verdict == "declined":
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            lines.append(f"  limit: {reason}: {len(names)} ({shown})")
    failed = [outcome for outcome in outcomes if outcome.verdict == "failed"]
    lines += [f"FAILED {o.name}: {' '.join(o.reason.split())[:300]}" for o in failed]
    return "\n".join(lines)


def by_reason(outcomes: list[Outcome]) -> dict[tuple[str, str], list[str]]:
    """Names of tests by verdict and the first clause of the reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        reason = outcome.reason.partition(";")[0]
        found.setdefault((outcome.verdict, reason), []).append(outcome.name)
    return found


def main() -> int:
    """Print the table; 1 if a test failed."""
    outcomes = list(node_tests())
    sys.stdout.write(table(outcomes) + "\n")
    return int(any(outcome.verdict == "failed" for outcome in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
