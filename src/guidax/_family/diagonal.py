"""A diagonal normal over the flat vector."""

from __future__ import annotations

from typing import Any

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._model.start import Start
from .._model.trace import LatentSpec
from .._numerics import filled_like, log_normal
from .._types import Key
from .flat import AbstractFlatNormal, standard_normal
from .normal import rate_of_normals, raw_scale_of, units_of_normal
from .vector import ravel, size_of


class DiagonalNormal(AbstractFlatNormal):
    """Independent coordinates, `scale = softplus(raw_scale)`.

    Args:
        start: Where the mean starts.
        init_scale: Starting standard deviation of every coordinate.

    Raises:
        ValueError: If `init_scale` is not positive.
    """

    loc: Float[Array, " dim"]
    raw_scale: Float[Array, " dim"]
    sites: tuple[LatentSpec, ...] = eqx.field(static=True)
    batch_ndim: int = eqx.field(static=True)

    def __init__(self, start: Start, init_scale: float = 0.1):
        self.sites, self.batch_ndim = start.structure.latents, 0
        self.loc = ravel(start.location, self.sites)
        self.raw_scale = filled_like(self.loc, raw_scale_of(init_scale))

    @property
    def learning_rate(self) -> float:
        """That of `rate_of_normals`, as for independent normals site by site."""
        return rate_of_normals(size_of(self.sites))

    def locations(self) -> Any:
        """Return the mean: there is no frame."""
        return self.loc

    def travellers(self) -> Any:
        """Return none."""
        return ()

    def units(self, least: Float[Array, ""]) -> Any:
        """Return those of independent normals."""
        units = units_of_normal(self.raw_scale, least)
        return eqx.tree_at(lambda family: (family.loc, family.raw_scale), self, units)

    def marginal_scale(self) -> Float[Array, " dim"]:
        """Return the standard deviations."""
        return jax.nn.softplus(self.raw_scale)

    def log_det(self) -> Float[Array, ""]:
        """Return the sum of their logarithms."""
        return jnp.sum(jnp.log(self.marginal_scale()))

    def transform(self) -> distrax.Bijector:
        """Return `eps -> loc + scale * eps`."""
        return distrax.Block(distrax.ScalarAffine(self.loc, self.marginal_scale()), 1)

    def posterior(self) -> distrax.DistributionLike:
        """Return the normal."""
        return distrax.MultivariateNormalDiag(self.loc, self.marginal_scale())

    def sample(self, key: Key) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
        """Return `loc + scale * eps`."""
        eps, log_p = standard_normal(key, self.loc)
        return self.loc + self.marginal_scale() * eps, log_p - self.log_det()

    def log_density(self, z: Float[Array, " dim"]) -> Float[Array, ""]:
        """Return the density of the noise that gives `z`, less `log det`."""
        eps = (z - self.loc) / self.marginal_scale()
        return jnp.sum(log_normal(eps)) - self.log_det()
