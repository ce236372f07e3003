"""The second-order picture of a layer error: its Gram matrix, factorised once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ptq.grid import Floats
from ptq.passes.rounding.error_feedback import Factor, Feedback


@dataclass(frozen=True)
class Curvature:
    """The matrix H of the error tr(dW H dW^T), [groups, K, K], for all weights that meet it."""

    gram: Floats

    @cached_property
    def factor(self) -> Factor:
        """H = L L^T in act-order; H is damped already."""
        return Factor.of(self.gram, Feedback(damp=0.0))

    @property
    def diagonal(self) -> Floats:
        """[groups, K]."""
        return np.asarray(np.einsum("gkk->gk", self.gram))

    def of_groups(self, chosen: npt.NDArray[np.intp]) -> Curvature:
        """That of some of the groups."""
        return self if len(self.gram) == 1 else Curvature(self.gram[chosen])
