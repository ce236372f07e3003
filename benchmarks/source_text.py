"""Python's own standard library as text, in tokens of a small byte-pair encoding.

The files of the running interpreter's library fall into three parts by their names: what a model
is trained on, what a quantiser may see, and what perplexity is measured on. The pairs are merged on
the first part (https://arxiv.org/abs/1508.07909), so the text and all figures depend on the version
of Python.
"""

from __future__ import annotations

import re
import sysconfig
import zlib
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

Part = Literal["train", "calib", "eval"]
Tokens = npt.NDArray[np.int64]
Pair = tuple[int, int]

BYTES = 256
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "encodings", "pydoc_data", "lib2to3"}
"""Installed packages, what not every installation has, and tables that are no text."""
_WORD = re.compile(rb" ?\w+|\n *| ?[^\w\s]+|\s+")


def part_of(name: str) -> Part:
    """A tenth of the files each for calibration and for evaluation."""
    return {0: "eval", 1: "calib"}.get(zlib.crc32(name.encode()) % 10, "train")  # type: ignore[return-value]


def text_of(part: Part) -> bytes:
    """All files of a part, in the order of their names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    names = sorted(p.relative_to(root) for p in root.rglob("*.py"))
    kept = [n for n in names if not SKIPPED & set(n.parts) and part_of(n.as_posix()) == part]
    return b"\n".join((root / name).read_bytes() for name in kept)


def merge(word: list[int], pair: Pair, token: int) -> list[int]:
    """The word with every occurrence of the pair replaced, from the left."""
    merged: list[int] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] = token
        else:
            merged.append(symbol)
    return merged


def learn_pairs(text: bytes, size: int) -> list[Pair]:
    """The most frequent pair of neighbours within words, again and again, until `size` tokens."""
    counted = Counter(_WORD.findall(text))
    words, counts = [list(word) for word in counted], list(counted.values())
    frequency: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)

    def count(index: int, sign: int) -> None:
        for pair in pairwise(words[index]):
            frequency[pair] += sign * counts[index]
            where[pair].add(index)

    for index in range(len(words)):
        count(index, 1)
    pairs: list[Pair] = []
    while len(pairs) < size - BYTES:
        best = max(frequency, key=lambda pair: (frequency[pair], pair))
        for index in where.pop(best):
            count(index, -1)
            words[index] = merge(words[index], best, BYTES + len(pairs))
            count(index, 1)
        del frequency[best]
        pairs.append(best)
    return pairs


def encode(text: bytes, pairs: list[Pair]) -> Tokens:
    """[tokens] int64 of the text."""
    rank = {pair: number for number, pair in enumerate(pairs)}
    known: dict[bytes, list[int]] = {}
    tokens: list[int] = []
    for found in _WORD.findall(text):
        if found not in known:
            word = list(found)
            while candidates := rank.keys() & set(pairwise(word)):
                best = min(candidates, key=rank.__getitem__)
                word = merge(word, best, BYTES + rank[best])
            known[found] = word
        tokens += known[found]
    return np.asarray(tokens, np.int64)


def windows(tokens: Tokens, length: int) -> Tokens:
    """[n, length]: the text cut into pieces, the last incomplete one left out."""
    return tokens[: len(tokens) // length * length].reshape(-1, length)
