"""Plans of a run that is not finished, so that it can be taken up where it was interrupted.

A folder beside the output holds one plan for each stage that works in parts, and how many parts are
in it. Files are named by a hash of everything that decides the result (model, samples, recipe,
stage), so that a plan is never taken up by another run.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

import ptq
from ptq.model import content_of
from ptq.plan import Plan
from ptq.recipe import Recipe

_NAME = re.compile(r"(?P<key>[0-9a-f]{64})-(?P<done>\d+)\.plan")


def run_key(
    model: ir.Model, recipe: Recipe, batches: Iterable[Mapping[str, npt.NDArray[Any]]]
) -> str:
    """A hash of everything that decides the result of a run."""
    digest = hashlib.sha256(f"{ptq.__version__} {recipe.to_json()}".encode())
    for part in content_of(model):
        digest.update(part)
    for batch in batches:
        for name, array in sorted(batch.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Checkpoints:
    """The plans in `folder` that belong to the run `key`."""

    folder: Path
    key: str

    def save(self, stage: str, done: int, plan: Plan) -> None:
        """Keep the plan after `done` parts of a stage; the one before goes."""
        self.folder.mkdir(exist_ok=True)
        key = self._key(stage)
        older = self._found(key)
        target = self.folder / f"{key}-{done}.plan"
        unfinished = target.with_suffix(".unfinished")
        plan.save(unfinished)
        handle = os.open(unfinished, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        unfinished.replace(target)
        for path in older.values():
            if path != target:
                path.unlink(missing_ok=True)

    def load(self, stage: str) -> tuple[int, Plan | None]:
        """Parts of a stage that are done, and the plan after them."""
        found = self._found(self._key(stage))
        if not found:
            return 0, None
        done = max(found)
        return done, Plan.load(found[done])

    def clear(self) -> None:
        """The run is finished, or starts afresh."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _key(self, stage: str) -> str:
        return hashlib.sha256(f"{self.key} {stage}".encode()).hexdigest()

    def _found(self, key: str) -> dict[int, Path]:
        if not self.folder.is_dir():
            return {}
        matches = ((path, _NAME.fullmatch(path.name)) for path in self.folder.iterdir())
        return {int(m["done"]): path for path, m in matches if m and m["key"] == key}
