"""Fixed reorderings of a vector."""

from __future__ import annotations

from typing import Any

import distrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .base import AbstractLayer, Vector


class Rearrangement(distrax.Bijector):
    """`y_i = x_order(i)`, whose log-determinant is zero.

    Args:
        order: A permutation of `0 .. dim - 1`, known before tracing.
    """

    def __init__(self, order: np.ndarray):
        super().__init__(event_ndims_in=1)
        self._order = tuple(int(i) for i in order)

    def forward_and_log_det(self, x: Any) -> tuple[Array, Array]:
        """Return the entries in the new order."""
        return x[..., np.array(self._order)], jnp.zeros(x.shape[:-1], x.dtype)

    def inverse_and_log_det(self, y: Any) -> tuple[Array, Array]:
        """Return the entries in the old order."""
        return y[..., np.argsort(self._order)], jnp.zeros(y.shape[:-1], y.dtype)

    def same_as(self, other: distrax.Bijector) -> bool:
        """Say whether another bijector is the same reordering."""
        return type(other) is Rearrangement and other._order == self._order


class Reversal(AbstractLayer):
    """The coordinates in reverse order.

    Between two autoregressive layers it lets the second see last what the first saw first.

    Args:
        dim: Length of the vector.
    """

    dim: int = eqx.field(static=True)

    @property
    def depth(self) -> float:
        """Zero: nothing is learned."""
        return 0.0

    def bijector(self) -> distrax.Bijector:
        """Return the reordering."""
        return Rearrangement(np.arange(self.dim)[::-1])

    def pull_back(self, x: Vector, y: Vector, g: Vector) -> Vector:
        """Return the gradient, reversed as well."""
        del x, y
        return g[::-1]

    def restarted(self) -> Reversal:
        """Return it as it is."""
        return self
