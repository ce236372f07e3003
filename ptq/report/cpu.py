"""Which CPU this is, as far as speed and exactness depend on it, and how busy and pinned it is."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ptq.cpus import usable_cpus
from ptq.errors import UsageError

_ISA = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")
_CPUINFO = Path("/proc/cpuinfo")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@dataclass(frozen=True)
class Cpu:
    """The fingerprint of a CPU: two that are equal time alike.

    name: as the maker prints it. isa: the instruction sets that integer kernels are chosen by.
    """

    name: str
    isa: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.isa) or 'no vector extensions known'})"


@dataclass(frozen=True)
class Surroundings:
    """What a timing was taken in.

    cpus: those this process may run on; pinned if they are fewer than the machine has.
    governor: of the clock, "" if it is not visible. load: processes wanting a CPU, one minute mean.
    """

    cpu: Cpu
    cpus: tuple[int, ...]
    pinned: bool
    governor: str
    load: float | None


def this_cpu() -> Cpu:
    """The fingerprint of the CPU that this runs on."""
    fields = _cpuinfo()
    name = fields.get("model name") or platform.processor() or platform.machine()
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return Cpu(name, tuple(flag for flag in _ISA if flag in flags))


def _cpuinfo() -> dict[str, str]:
    """The fields of the first CPU; nothing where there is no such file."""
    try:
        lines = _CPUINFO.read_text(errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def surroundings() -> Surroundings:
    """What a timing that starts now is taken in."""
    cpus = tuple(sorted(usable_cpus()))
    try:
        governor = _GOVERNOR.read_text().strip()
    except OSError:
        governor = ""
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return Surroundings(this_cpu(), cpus, len(cpus) < (os.cpu_count() or 1), governor, load)


@contextlib.contextmanager
def pinned(cpus: Sequence[int]) -> Iterator[None]:
    """Run the block, and the threads it starts, on these CPUs only; none given: anywhere.

    Raises:
        UsageError: the machine, or the container, does not have them.
    """
    if not cpus:
        yield
        return
    before = usable_cpus()
    missing = sorted(set(cpus) - before)
    if missing or not hasattr(os, "sched_setaffinity"):
        raise UsageError(
            f"--cpus: got {', '.join(map(str, cpus))}; this process may use "
            f"{', '.join(map(str, sorted(before)))}: name some of these"
        )
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
