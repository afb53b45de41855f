"""Point masses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from .._model.start import Start
from .._model.target import Block, Draw, Target
from .._model.trace import LatentSpec
from .._types import Key
from .base import AbstractFamily


class Point(AbstractFamily):
    """One value for each site.

    It is kept unconstrained and goes through the live bijector, whose Jacobian does not count: the
    optimum is the mode in constrained space.

    Args:
        start: Where the values start.
    """

    loc: dict[str, Array]
    sites: tuple[LatentSpec, ...] = eqx.field(static=True)

    def __init__(self, start: Start):
        self.loc = start.location
        self.sites = start.structure.latents

    @property
    def learning_rate(self) -> float:
        """0.3: safe for points, also from far away (measured on posteriordb)."""
        return 0.3

    @property
    def reads_given(self) -> bool:
        """The parameters alone say where it lies."""
        return False

    def locations(self) -> Any:
        """Return the values."""
        return self.loc

    def map_rows(self, f: Callable[[Array, tuple[tuple[str, int], ...]], Any]) -> Any:
        """Apply a function to the values of sites in plates."""
        plates = {s.name: s.plates for s in self.sites}
        new = {n: f(x, plates[n]) if plates[n] else x for n, x in self.loc.items()}
        return eqx.tree_at(lambda family: family.loc, self, new)

    def draw(self, key: Key, target: Target) -> Draw:
        """Return the point."""
        del key
        return Draw.of(self._rows(target), "point")

    def quantile(self, level: Float[Array, ""], target: Target) -> dict[str, Array]:
        """Return the point, at every level."""
        del level
        return self._rows(target)

    def _rows(self, target: Target) -> dict[str, Array]:
        return {s.name: s.take(self.loc[s.name], target.indices) for s in self.sites}

    def log_q(self, draw: Draw, target: Target) -> dict[Block, Array]:
        """Return nothing: a point mass adds no term."""
        del draw, target
        return {}
