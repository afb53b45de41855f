"""The layer of inverse autoregressive flow."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .autoregressive import AbstractAutoregressive
from .base import Vector
from .masks import dense_masks, skip_mask
from .network import Network

LOG_SCALE_BOUNDS = (-5.0, 3.0)  # NumPyro cuts it off there


class InverseAutoregressive(AbstractAutoregressive):
    """`y = exp(s(x)) x + m(x)`, where the `i`-th entries of `m` and `s` read the `x` before it.

    Both come from one masked network (Germain et al. 2015). It starts as the identity: `m = s = 0`.
    Beyond [-5, 3] the network's `s` counts by its logarithm. In many dimensions a few steps change
    it by tens, of which the exponential would overflow.

    Source: Kingma et al. 2016, "Improving variational inference with inverse autoregressive flow",
    equation 10.

    Attributes:
        network: From `dim` inputs to two outputs for each.
    """

    network: Network

    def location_and_log_scale(self, x: Vector) -> tuple[Vector, Vector]:
        """Return `m(x)` and `s(x)`."""
        dim = x.shape[0]
        hidden_dims = tuple(layer.shape[1] for layer in self.network.layers[:-1])
        outputs = self.network(x, dense_masks(dim, hidden_dims), skip_mask(dim))
        return outputs[:dim], _slowed(outputs[dim:])

    def forward_and_log_det(self, x: Vector) -> tuple[Vector, Float[Array, ""]]:
        """Return the image, and the sum of `s`."""
        location, log_scale = self.location_and_log_scale(x)
        return jnp.exp(log_scale) * x + location, jnp.sum(log_scale)

    def solve(self, y: Vector) -> Vector:
        """Return the inverse by `dim` passes: the `i`-th pass settles the `i`-th coordinate.

        Those not yet settled stay zero. Updated in every pass they would be settled as soon, but
        could overflow on the way, and a masked weight times infinity is NaN.
        """

        def settle(i: Array, x: Vector) -> Vector:
            location, log_scale = self.location_and_log_scale(x)
            return x.at[i].set((y[i] - location[i]) * jnp.exp(-log_scale[i]))

        return lax.fori_loop(0, y.shape[0], settle, jnp.zeros_like(y))

    def restarted(self) -> InverseAutoregressive:
        """Return the identity, with the hidden layers as they are."""
        return eqx.tree_at(lambda layer: layer.network, self, self.network.restarted())


def _slowed(log_scale: Vector) -> Vector:
    """Return the same within bounds, and logarithmic growth, with a continuous slope, beyond."""
    within = jnp.clip(log_scale, *LOG_SCALE_BOUNDS)
    beyond = log_scale - within
    return within + jnp.sign(beyond) * jnp.log1p(jnp.abs(beyond))
