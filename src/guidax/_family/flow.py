"""A normalizing flow over the flat vector."""

from __future__ import annotations

from typing import Any

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._flow.base import AbstractLayer, pull_back_by_inverse
from .._model.target import Draw, Target
from .._model.trace import LatentSpec
from .._numerics import held, log_normal
from .._types import Key
from .flat import AbstractFlat, AbstractFlatNormal, standard_normal


class Flow(AbstractFlat):
    """`z = A(f(eps))`, with `eps` standard normal, `f` a flow and `A` the affine map of a normal.

    Where `f` is the identity this is that normal.

    Args:
        affine: The normal, whose map from noise to `z` is `A`.
        flow: The flow.
    """

    affine: AbstractFlatNormal
    flow: AbstractLayer
    sites: tuple[LatentSpec, ...] = eqx.field(static=True)
    batch_ndim: int = eqx.field(static=True)

    def __init__(self, affine: AbstractFlatNormal, flow: AbstractLayer):
        self.affine, self.flow = affine, flow
        self.sites, self.batch_ndim = affine.sites, 0

    @property
    def learning_rate(self) -> float:
        """0.01, or less for a wide or deep flow and for splines.

        A step moves an output by as many weights as feed it, in each layer. With 0.01 an inverse
        autoregressive flow in 200 dimensions was thrown so far by its first ten steps that 2,000
        did not bring it back; from 0.001 to 0.003 it fitted well. With 16 layers, in 20 dimensions,
        losses became infinite; with 3/16 of 0.01 none did.
        """
        wide = min(1.0, 40 / self.affine.loc.shape[0])
        return 0.01 * self.flow.pace * wide * 3 / max(3.0, self.flow.depth)

    def base_dist(self) -> distrax.DistributionLike:
        """Return a standard normal."""
        return self.affine.base_dist()

    def transform(self) -> distrax.Bijector:
        """Return `eps -> A(f(eps))`."""
        return distrax.Chain([self.affine.transform(), self.flow.bijector()])

    def posterior(self) -> distrax.DistributionLike:
        """Return the transformed normal."""
        return distrax.Transformed(self.base_dist(), self.transform())

    def sample(self, key: Key) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
        """Return `A(f(eps))`, with its density from the same pass."""
        eps, log_p = standard_normal(key, self.affine.loc)
        transform: Any = self.transform()
        z, log_det = transform.forward_and_log_det(eps)
        return z, log_p - log_det

    def log_density(self, z: Float[Array, " dim"]) -> Float[Array, ""]:
        """Return the density, which takes the inverse of the flow."""
        transform: Any = self.transform()
        eps, log_det = transform.inverse_and_log_det(z)
        return jnp.sum(log_normal(eps)) + log_det

    def path_draw(self, key: Key, target: Target) -> Draw:
        """Draw, with log q that depends on the parameters through the draw alone.

        With `z = T(eps)`, the gradient of `log q` by `z` is
        `J^-T grad_eps [log p(eps) - log |det J(eps)|]`, so no inverse of `T` is needed.

        Source: Vaitl et al. 2022, "Gradients should stay on path", section 4.
        """
        eps, _ = standard_normal(key, self.affine.loc)
        z = jnp.asarray(self.transform().forward(eps))
        frozen, z_held = held((self, z))
        flow, affine = frozen.flow.bijector(), frozen.affine.transform()

        def log_q_at(eps: Float[Array, " dim"]) -> Float[Array, ""]:
            log_det: Any = distrax.Chain([affine, flow]).forward_log_det_jacobian(eps)
            return jnp.sum(log_normal(eps)) - log_det

        log_q, gradient = jax.value_and_grad(log_q_at)(eps)
        image = jnp.asarray(flow.forward(eps))
        gradient = frozen.flow.pull_back(eps, image, gradient)
        gradient = pull_back_by_inverse(affine, jnp.asarray(affine.forward(image)), gradient)
        along = log_q + jnp.vdot(gradient, z - z_held)
        return Draw.of(self.to_values(z, target.indices), "unconstrained", {self.block: along})
