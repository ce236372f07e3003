"""MODULE.so FEEDS.npz FOUND.npz: outputs of a module, and its arena after every call."""

import sys

import numpy as np

from ptq import runtime

module = runtime.load(sys.argv[1])
with np.load(sys.argv[2]) as saved:
    feeds = dict(saved)
found = module.run(feeds)
arenas = []
for start in range(0, len(next(iter(feeds.values()))), module.samples):
    module.run({name: x[start : start + module.samples] for name, x in feeds.items()})
    arenas.append(np.array(module.arena))
np.savez(sys.argv[3], arenas=np.stack(arenas), **{f"out_{n}": array for n, array in found.items()})
