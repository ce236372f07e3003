"""Tiles by trial: a short sweep for every shape, remembered for the machine.

Only the choice of registers is tried, so every candidate gives the same codes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi
from tvm import tirx
from tvm.ir import GlobalVar, IRModule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from ptq.arrays import room
from ptq.cpus import allow_tiles
from ptq.kernels.functions import compile_for_host, prim_func
from ptq.kernels.kernel import Kernel, Parameter
from ptq.kernels.packed_convolution import SLACK, PackedConvolution, Tile
from ptq.kernels.tile_convolution import COSTS, TileConvolution
from ptq.targets.tvm.lowering import ALIGNMENT

SHAPES = {
    "avx2": ((4, 2), (3, 3), (6, 1), (5, 2), (3, 2), (2, 4), (6, 2), (2, 2), (8, 1), (2, 3)),
    "avxvnni": ((4, 2), (6, 2), (3, 3), (5, 2), (2, 4), (3, 2), (8, 1), (2, 2)),
    "avx512vnni": ((6, 4), (8, 3), (12, 2), (5, 4), (4, 4), (4, 6), (8, 2), (4, 2)),
    "dotprod": ((6, 4), (4, 4), (5, 4), (8, 3), (3, 6), (8, 2), (4, 2)),
}
"""(pixels, vectors): what fits the registers with weights beside them."""
ROUNDS = 40


@dataclass
class Tuner:
    """Finds tiles.

    most: candidates a shape. machine: what the results hold for. cache: a JSON file of all of them.
    """

    most: int
    target: Any
    machine: str
    cache: Path

    def __post_init__(self) -> None:
        self._known: dict[str, list[int]] = {}
        if self.cache.is_file():
            self._known = json.loads(self.cache.read_text())

    def __call__(self, kernel: PackedConvolution) -> Tile:
        """The fastest of the candidates for a kernel; its own tile if it has one pixel only."""
        if kernel.tile.pixels == 1:
            return kernel.tile
        key = f"{self.machine} {self.most} {kernel!r}"
        if key not in self._known:
            best = self._fastest(kernel)
            self._known[key] = [best.pixels, best.vectors]
            self._save()
        pixels, vectors = self._known[key]
        return replace(kernel.tile, pixels=pixels, vectors=vectors)

    def _tiles(self, kernel: PackedConvolution) -> list[Tile]:
        """Its own tile first; no more vectors than its channels fill."""
        fill = -(-kernel.out // kernel.how.lanes)
        if isinstance(kernel, TileConvolution):
            tiles = [replace(kernel.tile, vectors=vectors) for vectors in COSTS]
        else:
            tiles = [
                replace(kernel.tile, pixels=pixels, vectors=min(vectors, fill))
                for pixels, vectors in SHAPES[kernel.isa]
            ]
        return list(dict.fromkeys([kernel.tile, *tiles]))[: self.most]

    def _fastest(self, kernel: PackedConvolution) -> Tile:
        """By the least time of single calls, in turns: whatever disturbs them only adds to it."""
        tiles = self._tiles(kernel)
        runs = [on_zeros(replace(kernel, tile=tile), self.target) for tile in tiles]
        least = [float("inf")] * len(tiles)
        for _ in range(ROUNDS):
            for number, run in enumerate(runs):
                run()
                start = time.perf_counter()
                run()
                least[number] = min(least[number], time.perf_counter() - start)
        return tiles[int(np.argmin(least))]

    def _save(self) -> None:
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        made = self.cache.with_suffix(f".{os.getpid()}")
        made.write_text(json.dumps(self._known, indent=1))
        made.replace(self.cache)


def cache_file() -> Path:
    """Where tiles are remembered, by the XDG rules."""
    home = os.environ.get("XDG_CACHE_HOME")
    return Path(home or Path.home() / ".cache") / "ptq" / "tiles.json"


def _zeros(parameter: Parameter) -> np.ndarray:
    """At an address of a cache line, as the arena has it."""
    size_bytes = parameter.size * np.dtype(parameter.dtype).itemsize
    made = np.asarray(room(size_bytes + SLACK, ALIGNMENT))
    return made[:size_bytes].view(parameter.dtype)


def on_zeros(kernel: Kernel, target: Any) -> Callable[[], Any]:
    """A call of the kernel on zeros."""
    inner = GlobalVar("kernel")
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        buffers = [T.arg(p.name, T.buffer((p.size,), p.dtype)) for p in kernel.parameters()]
        T.evaluate(inner(*(tirx.address_of(buffer[0]) for buffer in buffers)))
    module = IRModule({inner: prim_func(kernel, "kernel"), GlobalVar("main"): builder.get()})
    compiled = compile_for_host(module, target).jit()
    allow_tiles()
    tvm_ffi.get_global_func("runtime.config_threadpool")(1, 1)
    arrays = [tvm_ffi.from_dlpack(_zeros(p)) for p in kernel.parameters()]
    main = compiled["main"]
    return lambda: main(*arrays)
