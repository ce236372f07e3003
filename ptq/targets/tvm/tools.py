"""What compiling needs that may not be installed; asked before anything is quantised."""

from __future__ import annotations

import os
import shutil
import string
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec

from ptq.errors import MissingDependencyError, UsageError

INSTALL = "install it with: pip install 'ptq-compiler[tvm]'"


def require_tvm() -> None:
    """Fail now if TVM is not installed.

    Raises:
        MissingDependencyError: it is not.
    """
    if find_spec("tvm") is None:
        raise MissingDependencyError(f"this target needs the package apache-tvm: {INSTALL}")


def require_nvcc() -> str:
    """Where nvcc is.

    Raises:
        MissingDependencyError: it is not installed.
    """
    name = os.environ.get("NVCC", "nvcc")
    found = shutil.which(name)
    if found is None:
        raise MissingDependencyError(
            f"compiling for an NVIDIA GPU needs {name}, which is not on the PATH: install the CUDA "
            "toolkit (12 or newer), or set NVCC"
        )
    return found


def require_architectures(wanted: Sequence[str]) -> None:
    """Fail now if nvcc does not compile for a GPU.

    Raises:
        MissingDependencyError: nvcc is not installed. UsageError: it does not know one.
    """
    command = [require_nvcc(), "--list-gpu-code"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    unknown = [name for name in wanted if name.rstrip(string.ascii_lowercase) not in listed]
    if unknown:
        raise UsageError(
            f"--target cuda:{'+'.join(wanted)}: {command[0]} does not compile for "
            f"{', '.join(unknown)}; wanted some of {', '.join(listed)}"
        )
