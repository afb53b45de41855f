"""A normal with a full covariance over the flat vector."""

from __future__ import annotations

from typing import Any

import distrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from .._model.matrix_maps import ScaledUnitLowerCholesky
from .._model.start import Start
from .._model.trace import LatentSpec
from .._numerics import from_host, log_normal
from .._types import Key
from .flat import AbstractFlatNormal, standard_normal
from .normal import SCALE_UNIT, raw_scale_of, units_of_normal
from .vector import ravel, require_shared_axes


class MultivariateNormal(AbstractFlatNormal):
    """A normal with covariance `L L'`.

    `raw_scale_tril` holds the entries of `L` below the diagonal, row by row and in units of the
    diagonal, then the diagonal's inverse softplus: `gx.constraints.scaled_unit_lower_cholesky`.

    Args:
        start: Where the mean starts.
        init_scale: Starting standard deviation of every coordinate.
        batch_ndim: How many leading axes all latents share; the vectors along them are independent.

    Raises:
        ValueError: If `init_scale` is not positive, or the latents do not share those axes.
    """

    loc: Float[Array, "*batch dim"]
    raw_scale_tril: Float[Array, "*batch entries"]
    sites: tuple[LatentSpec, ...] = eqx.field(static=True)
    batch_ndim: int = eqx.field(static=True)

    def __init__(self, start: Start, init_scale: float = 0.1, batch_ndim: int = 0):
        require_shared_axes(start.structure.latents, batch_ndim)
        self.sites, self.batch_ndim = start.structure.latents, batch_ndim
        self.loc = ravel(start.location, self.sites, batch_ndim)
        *batch, dim = self.loc.shape
        raw = np.zeros((*batch, dim * (dim + 1) // 2), self.loc.dtype)
        raw[..., dim * (dim - 1) // 2 :] = raw_scale_of(init_scale)
        self.raw_scale_tril = from_host(raw)

    def units(self, least: Float[Array, ""]) -> Any:
        """Return those of independent normals for the diagonal of `L`, and of its other entries.

        These are about `dim^2 / 2` numbers: with more than ten coordinates each moves more slowly,
        or the noise of all of them would cost nats by the dozen in hundreds of dimensions.
        """
        loc, diagonal = units_of_normal(self._raw_diagonal(), least)
        dim = self.loc.shape[-1]
        unit = SCALE_UNIT * (10 / max(10, dim)) ** 2
        below = jnp.full_like(self.raw_scale_tril[..., dim:], unit)
        tril = jnp.concatenate([below, diagonal], axis=-1)
        return eqx.tree_at(lambda family: (family.loc, family.raw_scale_tril), self, (loc, tril))

    def in_frame(self, step: Any, least: Float[Array, ""]) -> Any:
        """Return the change for a step `(d, E)`: `L d` of the mean and `L E` of `L`.

        E is in units. In this frame every normal is the standard one: how fast a fit goes depends
        neither on how wide or narrow the posterior is, nor on how correlated.
        """
        tril, units = ScaledUnitLowerCholesky(), self.units(least)
        below, raw_change = tril.split(step.raw_scale_tril * units.raw_scale_tril)
        log_change = (SCALE_UNIT * tril.split(step.raw_scale_tril)[1])[..., None]
        eye = jnp.broadcast_to(jnp.eye(below.shape[-1], dtype=below.dtype), below.shape)
        unit = tril.split(self.raw_scale_tril)[0] + eye  # L with its rows over its diagonal
        changes = (
            jnp.matvec(self.scale_tril(), step.loc),
            tril.join(unit @ (below + log_change * eye) - log_change * unit, raw_change),
        )
        return eqx.tree_at(lambda family: (family.loc, family.raw_scale_tril), step, changes)

    def _raw_diagonal(self) -> Float[Array, "*batch dim"]:
        """Return the inverse softplus of the diagonal of `L`."""
        return self.raw_scale_tril[..., -self.loc.shape[-1] :]

    def scale_tril(self) -> Float[Array, "*batch dim dim"]:
        """Return `L`."""
        return ScaledUnitLowerCholesky().forward(self.raw_scale_tril)

    def marginal_scale(self) -> Float[Array, "*batch dim"]:
        """Return the row norms of `L`."""
        return jnp.linalg.norm(self.scale_tril(), axis=-1)

    def log_det(self) -> Float[Array, ""]:
        """Return the sum of the logarithms of the diagonal of `L`."""
        return _log_det(self.scale_tril())

    def transform(self) -> distrax.Bijector:
        """Return `eps -> loc + L eps`."""
        return self.shifted(distrax.TriangularLinear(self.scale_tril()))

    def posterior(self) -> distrax.DistributionLike:
        """Return the normal."""
        return self.independent(distrax.MultivariateNormalTri(self.loc, self.scale_tril()))

    def sample(self, key: Key) -> tuple[Float[Array, "*batch dim"], Float[Array, ""]]:
        """Return `loc + L eps`."""
        (eps, log_p), scale_tril = standard_normal(key, self.loc), self.scale_tril()
        return self.loc + jnp.matvec(scale_tril, eps), log_p - _log_det(scale_tril)

    def log_density(self, z: Float[Array, "*batch dim"]) -> Float[Array, ""]:
        """Return the density of the noise that gives `z`, less `log det L`."""
        scale_tril = self.scale_tril()
        delta = (z - self.loc)[..., None]
        eps = lax.linalg.triangular_solve(scale_tril, delta, left_side=True, lower=True)
        return jnp.sum(log_normal(eps)) - _log_det(scale_tril)


def _log_det(scale_tril: Float[Array, "*batch dim dim"]) -> Float[Array, ""]:
    return jnp.sum(jnp.log(jnp.diagonal(scale_tril, axis1=-2, axis2=-1)))
