"""A point in unconstrained space, around which a normal is put afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from .._model.start import Start
from .._model.static import Static
from .._model.target import Block, Draw, Target
from .._model.trace import LatentSpec
from .._types import Key
from .base import AbstractFamily
from .vector import ravel, unravel


class LaplacePoint(AbstractFamily):
    """A flat vector, whose optimum is the mode of the density in unconstrained space.

    Args:
        start: Where it starts.
        hessian_fn: As of `AutoLaplaceApproximation`.

    Raises:
        TypeError: If `hessian_fn` cannot be called.
    """

    loc: Float[Array, " dim"]
    sites: tuple[LatentSpec, ...] = eqx.field(static=True)
    hessian_fn: Static | None = eqx.field(static=True)

    def __init__(self, start: Start, hessian_fn: Callable[..., Any] | None = None):
        if not (hessian_fn is None or callable(hessian_fn)):
            raise TypeError(
                "hessian_fn takes a function of (potential, z) that returns the Hessian of the "
                f"potential at z; got {hessian_fn!r}."
            )
        self.sites = start.structure.latents
        self.loc = ravel(start.location, self.sites)
        self.hessian_fn = None if hessian_fn is None else Static(hessian_fn)

    @property
    def learning_rate(self) -> float:
        """0.3, as for points."""
        return 0.3

    def locations(self) -> Any:
        """Return the mode."""
        return self.loc

    @property
    def reads_batch(self) -> bool:
        """The Hessian is that of the model on its arguments."""
        return True

    @property
    def reads_given(self) -> bool:
        """The parameters alone say where it lies."""
        return False

    def draw(self, key: Key, target: Target) -> Draw:
        """Return the point. Its Jacobian counts; a point mass adds no term."""
        del key
        values = unravel(self.loc, self.sites)
        return Draw.of({s.name: s.take(values[s.name], target.indices) for s in self.sites})

    def log_q(self, draw: Draw, target: Target) -> dict[Block, Array]:
        """Return nothing."""
        del draw, target
        return {}
