"""A normal whose covariance is diagonal plus low rank, over the flat vector."""

from __future__ import annotations

import math
from typing import Any

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._model.start import Start
from .._model.tfp_normal import low_rank_normal
from .._model.trace import LatentSpec
from .._numerics import at_least_single, filled_like, log_normal
from .._types import Key, is_integer
from .flat import AbstractFlatNormal, standard_normal
from .normal import SCALE_UNIT, raw_scale_of, units_of_normal
from .vector import ravel, require_shared_axes

_START = 0.1  # of each row of F: at zero the gradient vanishes, and far from it mean field is lost


class LowRankNormal(AbstractFlatNormal):
    """A normal with covariance `S (I + F F') S`, where `S` is diagonal: `diag + W W'`, `W = S F`.

    Nothing of size `dim^2` is ever formed, except by `transform`. With the capacitance
    `C = I + F'F` of size `rank^2`, the determinant of the covariance is `det S^2 det C`, and
    `(I + F F')^-1 = I - F C^-1 F'` (Woodbury).

    Args:
        start: Where the mean starts.
        init_scale: Starting value of `S`.
        rank: Number of columns of `F`; None for the square root of the dimension, rounded.
        batch_ndim: How many leading axes all latents share; the vectors along them are independent.
        key: For the start of `F`.

    Raises:
        ValueError: If `init_scale` is not positive, `rank` is out of range, or the latents do not
            share those axes.
    """

    loc: Float[Array, "*batch dim"]
    raw_scale: Float[Array, "*batch dim"]
    factor: Float[Array, "*batch dim rank"]
    sites: tuple[LatentSpec, ...] = eqx.field(static=True)
    batch_ndim: int = eqx.field(static=True)

    def __init__(
        self,
        start: Start,
        init_scale: float = 0.1,
        rank: int | None = None,
        batch_ndim: int = 0,
        *,
        key: Key,
    ):
        require_shared_axes(start.structure.latents, batch_ndim)
        self.sites, self.batch_ndim = start.structure.latents, batch_ndim
        self.loc = ravel(start.location, self.sites, batch_ndim)
        self.raw_scale = filled_like(self.loc, raw_scale_of(init_scale))
        rank = rank_of(rank, self.loc.shape[-1])
        noise = jax.random.normal(key, (*self.loc.shape, rank), self.loc.dtype)
        self.factor = noise * (_START / math.sqrt(rank))

    def units(self, least: Float[Array, ""]) -> Any:
        """Return those of independent normals for `S`, and of the entries of `F`.

        With more than ten coordinates these move more slowly, and with more columns than the
        default: each is noise that stretches the normal, and with too much of it fits diverged.
        """
        loc, raw_scale = units_of_normal(self.raw_scale, least)
        dim, rank = self.factor.shape[-2:]
        unit = SCALE_UNIT * 10 / max(10, dim) * min(1.0, dim**0.5 / rank)
        return eqx.tree_at(
            lambda family: (family.loc, family.raw_scale, family.factor),
            self,
            (loc, raw_scale, jnp.full_like(self.factor, unit)),
        )

    def in_frame(self, step: Any, least: Float[Array, ""]) -> Any:
        """Return the change for a step `(d, e, E)`: `S B d`, `e` of `log S`, and `B E` of `F`.

        `B B' = I + F F'`. `F` changes by `-e F` too, which holds `S F`: a change of `S` alone would
        turn the long axes. e and E are in units.
        """
        units, log_change = self.units(least), SCALE_UNIT * step.raw_scale[..., None]
        changes = (
            self.scale() * self._times_root(step.loc[..., None])[..., 0],
            step.raw_scale * units.raw_scale,
            self._times_root(step.factor * units.factor) - log_change * self.factor,
        )
        return eqx.tree_at(
            lambda family: (family.loc, family.raw_scale, family.factor), step, changes
        )

    def _times_root(self, x: Float[Array, "*batch dim n"]) -> Float[Array, "*batch dim n"]:
        """Return `B x`, where `B = I + F (I + T)^-1 F'` and `T` is the Cholesky factor of `C`.

        With `G = F'F = T T' - I` and `K = (I + T)^-1`, `B B' = I + F (K + K' + K G K') F'`, and
        since `K T = I - K` the bracket is `I`.
        """
        tril = self._capacitance_tril()
        return x + self.factor @ _solve(tril + _eye_like(tril), self.factor.mT @ x)

    def scale(self) -> Float[Array, "*batch dim"]:
        """Return the diagonal of `S`."""
        return jax.nn.softplus(self.raw_scale)

    def marginal_scale(self) -> Float[Array, "*batch dim"]:
        """Return `S` times the square root of the diagonal of `I + F F'`."""
        return self.scale() * jnp.sqrt(1 + jnp.sum(self.factor**2, axis=-1))

    def _capacitance_tril(self) -> Float[Array, "*batch rank rank"]:
        """Return the Cholesky factor of `C`, in single precision at least."""
        gram = self.factor.mT @ self.factor
        return jnp.linalg.cholesky(at_least_single(gram + _eye_like(gram)))

    def log_det(self) -> Float[Array, ""]:
        """Return `log det S + log det C / 2`."""
        return self._log_det(self._capacitance_tril())

    def _log_det(self, tril: Float[Array, "*batch rank rank"]) -> Float[Array, ""]:
        half = jnp.sum(jnp.log(jnp.diagonal(tril, axis1=-2, axis2=-1)))
        return jnp.sum(jnp.log(self.scale())) + half.astype(self.loc.dtype)

    def scale_tril(self) -> Float[Array, "*batch dim dim"]:
        """Return the Cholesky factor `L` of the covariance, of `dim^2` numbers."""
        scaled = self._scaled_factor()
        low_rank = scaled @ scaled.mT
        covariance = self.scale()[..., None] ** 2 * _eye_like(low_rank) + low_rank
        return jnp.linalg.cholesky(at_least_single(covariance)).astype(self.loc.dtype)

    def transform(self) -> distrax.Bijector:
        """Return `eps -> loc + L eps`, for which the `dim^2` matrix `L` is formed."""
        return self.shifted(distrax.TriangularLinear(self.scale_tril()))

    def posterior(self) -> distrax.DistributionLike:
        """Return the normal, as TFP's distribution, which forms no `dim^2` matrix."""
        factor = self._scaled_factor()
        return low_rank_normal(self.loc, self.scale() ** 2, factor, self.batch_ndim)

    def _scaled_factor(self) -> Float[Array, "*batch dim rank"]:
        """Return `W = S F`."""
        return self.scale()[..., None] * self.factor

    def sample(self, key: Key) -> tuple[Float[Array, "*batch dim"], Float[Array, ""]]:
        """Return `loc + S (eps + F eps')`."""
        keys = jax.random.split(key)
        eps, _ = standard_normal(keys[0], self.loc)
        small, _ = standard_normal(keys[1], self.factor[..., 0, :])
        z = self.loc + self.scale() * (eps + jnp.matvec(self.factor, small))
        return z, self.log_density(z)

    def log_density(self, z: Float[Array, "*batch dim"]) -> Float[Array, ""]:
        """Return the density, by Woodbury's identity."""
        tril = self._capacitance_tril()
        delta = (z - self.loc) / self.scale()
        inside = _solve(tril, self.factor.mT @ delta[..., None])
        return jnp.sum(log_normal(delta)) + 0.5 * jnp.sum(inside**2) - self._log_det(tril)


def _solve(
    tril: Float[Array, "*batch rank rank"], x: Float[Array, "*batch rank n"]
) -> Float[Array, "*batch rank n"]:
    """Return `T^-1 x`, in the precision of `x`."""
    solved = lax.linalg.triangular_solve(tril, x.astype(tril.dtype), left_side=True, lower=True)
    return solved.astype(x.dtype)


def _eye_like(matrices: Float[Array, "*batch n n"]) -> Float[Array, "*_ones n n"]:
    """Return the identity, with an axis of one for each batch axis."""
    eye = jnp.eye(matrices.shape[-1], dtype=matrices.dtype)
    return eye.reshape(*(1,) * (matrices.ndim - 2), *eye.shape)


def rank_of(rank: int | None, dim: int) -> int:
    """Return the rank, or the default.

    Raises:
        ValueError: If it is not between 1 and `dim`.
    """
    if rank is None:
        return max(1, round(math.sqrt(dim)))
    if not (is_integer(rank) and 1 <= rank <= dim):
        raise ValueError(
            f"rank counts directions, so it is an integer from 1 to the dimension {dim}; got "
            f"{rank!r}."
        )
    return int(rank)
