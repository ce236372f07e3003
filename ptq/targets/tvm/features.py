"""What a target's processor can do, by the names that choose kernels."""

from __future__ import annotations

from typing import Any

from ptq.targets.tvm.description import llvm_features

NAMES = {
    "amx-int8": "amx",
    "avx2": "avx2",
    "avx512vbmi": "vbmi",
    "avx512vnni": "avx512vnni",
    "avxvnni": "avxvnni",
    "dotprod": "dotprod",
    "fma": "fma",
    "neon": "fma",
}


GPU_FEATURES = {"dp4a": 61, "mma": 80}
"""With the first compute capability that has them; mma is that of 16 x 8 x 32 bytes."""


def features_of(target: Any) -> frozenset[str]:
    """Those of NAMES that the processor has, or of GPU_FEATURES; none in plain C.

    OpenCL has no dp4a; ptq_opencl.h adds four products up, and compilers may know better.
    """
    kind = str(target.kind.name)
    if kind == "cuda":
        capability = int("".join(c for c in str(target.attrs["arch"]) if c.isdigit()))
        return frozenset(name for name, first in GPU_FEATURES.items() if capability >= first)
    if kind == "opencl":
        return frozenset({"dp4a"})
    known = llvm_features(target)
    return frozenset(ours for theirs, ours in NAMES.items() if theirs in known)
