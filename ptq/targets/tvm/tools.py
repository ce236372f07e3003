"""What compiling needs that may not be installed; asked before anything is quantised."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

from ptq.errors import MissingDependencyError

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
