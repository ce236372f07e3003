"""What importing costs: nothing heavy is loaded before it is used."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "tvm", "onnxruntime", "matplotlib", "onnxsim", "sklearn"}


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `code`."""
    report = "import json, sys; print(json.dumps([*{name.split('.')[0] for name in sys.modules}]))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_the_package_loads_nothing_of_ours_or_others() -> None:
    assert not loaded_by("import ptq") & (HEAVY | {"numpy", "onnx", "onnx_ir", "click"})


@pytest.mark.parametrize("name", ["ptq.cli", "ptq.recipe", "ptq.model", "ptq.targets"])
def test_module_loads_nothing_heavy(name: str) -> None:
    assert not loaded_by(f"import {name}") & HEAVY


@pytest.mark.parametrize("name", ["ptq.quantize", "ptq.load", "ptq.Recipe"])
def test_public_name_loads_no_torch_tvm_or_matplotlib(name: str) -> None:
    assert not loaded_by(f"import ptq; {name}") & (HEAVY - {"onnxruntime"})


def test_a_heavy_module_would_be_noticed() -> None:
    assert "onnxruntime" in loaded_by("import onnxruntime")
