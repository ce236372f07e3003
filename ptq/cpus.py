"""The CPUs that this process may use."""

from __future__ import annotations

import ctypes
import os
import platform

ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA = 158, 0x1023, 18
"""Linux's numbers for x86-64 (Documentation/arch/x86/xstate.rst)."""


def usable_cpus() -> set[int]:
    """Their numbers; all CPUs where the system does not tell."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def allow_tiles() -> bool:
    """Ask Linux for the tile registers of AMX, which a process has only then; False without them.

    Compiled modules ask by themselves; this is for kernels that run outside of one.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    call = ctypes.CDLL(None).syscall
    return bool(call(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA) == 0)
