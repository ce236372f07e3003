"""What a target's processor can do, by the names that choose kernels."""

from __future__ import annotations

from typing import Any

NAMES = {
    "avx2": "avx2",
    "avx512vnni": "avx512vnni",
    "avxvnni": "avxvnni",
    "dotprod": "dotprod",
}


def features_of(target: Any) -> frozenset[str]:
    """Those of NAMES that the processor has; dp4a of every GPU; none in plain C."""
    if str(target.kind.name) != "llvm":
        return frozenset({"dp4a"} if str(target.kind.name) == "cuda" else ())
    from tvm.target import codegen

    known = codegen.llvm_get_cpu_features(target)
    return frozenset(ours for ours, theirs in NAMES.items() if theirs in known)
