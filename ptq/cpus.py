"""The CPUs that this process may use."""

from __future__ import annotations

import os


def usable_cpus() -> set[int]:
    """Their numbers; all CPUs where the system does not tell."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))
