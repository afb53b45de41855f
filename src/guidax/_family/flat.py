"""What families over one flat unconstrained vector share."""

from __future__ import annotations

import abc
from typing import Any

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._model.target import Block, Draw, Target
from .._model.trace import Indices
from .._numerics import HALF_LOG_2PI, log_normal
from .._types import Key
from .base import AbstractFamily
from .normal import rate_of_normals
from .vector import ravel, size_of, unravel


class AbstractFlat(AbstractFamily):
    """A distribution over the flat vector, the same whatever the target.

    The vector holds the sites end to end, in site order, with all rows of their plates. Its density
    does not factor over rows, so it refuses to hold some rows of a plate. Where the first
    `batch_ndim` axes are shared by all sites, it is a batch of such vectors, independent of each
    other.
    """

    batch_ndim: eqx.AbstractVar[int]  # static

    @abc.abstractmethod
    def base_dist(self) -> distrax.DistributionLike:
        """Return the distribution of the noise."""

    @abc.abstractmethod
    def transform(self) -> distrax.Bijector:
        """Return the map from noise to the flat vector."""

    @abc.abstractmethod
    def posterior(self) -> distrax.DistributionLike:
        """Return the distribution of the flat vector."""

    @abc.abstractmethod
    def sample(self, key: Key) -> tuple[Float[Array, "*batch dim"], Float[Array, ""]]:
        """Return a vector and its log density."""

    @abc.abstractmethod
    def log_density(self, z: Float[Array, "*batch dim"]) -> Float[Array, ""]:
        """Return the log density of a vector."""

    @property
    def block(self) -> Block:
        """All sites, drawn jointly."""
        return Block(tuple(s.name for s in self.sites))

    @property
    def reads_given(self) -> bool:
        """The parameters alone say how it draws."""
        return False

    def to_values(self, z: Float[Array, "*batch dim"], indices: Indices) -> dict[str, Array]:
        """Cut a vector into sites, with their rows in the order that the batch has them.

        Raises:
            ValueError: If the batch holds only some rows of a plate.
        """
        self._require_whole_plates(indices)
        values = unravel(z, self.sites, self.batch_ndim)
        return {s.name: s.take(values[s.name], indices) for s in self.sites}

    def _require_whole_plates(self, indices: Indices) -> None:
        sizes = {name: (s, s.shape[axis]) for s in self.sites for name, axis in s.plates}
        for name, rows in indices.items():
            if name in sizes and rows.shape[0] < sizes[name][1]:
                site, size = sizes[name]
                raise ValueError(
                    f"plate {name!r} holds {rows.shape[0]} of {size} rows, but "
                    f"{type(self).__name__} draws latent {site.name!r} jointly over all of them: a "
                    "joint density has no share for each row. Use gx.AutoNormal or gx.AutoDelta, "
                    "which hold rows apart, for the sites in that plate (gx.AutoGuideList joins "
                    "them with another guide), or gx.AutoSemiDAIS for all."
                )

    def draw(self, key: Key, target: Target) -> Draw:
        """Draw a vector, and cut it into sites."""
        z, log_q = self.sample(key)
        return Draw.of(self.to_values(z, target.indices), "unconstrained", {self.block: log_q})

    def log_q(self, draw: Draw, target: Target) -> dict[Block, Array]:
        """Return the density of the vector that the sites make up."""
        self._require_whole_plates(target.indices)
        rows = {name: jnp.argsort(order) for name, order in target.indices.items()}
        values = {s.name: s.take(draw.values[s.name], rows) for s in self.sites}
        return {self.block: self.log_density(ravel(values, self.sites, self.batch_ndim))}


class AbstractFlatNormal(AbstractFlat):
    """A normal `z = loc + A eps`, with `eps` standard normal."""

    loc: eqx.AbstractVar[Float[Array, "*batch dim"]]

    @property
    def learning_rate(self) -> float:
        """0.3, for correlated normals in units of their own, and that of independent ones if less.

        Measured on posteriordb, and on posteriors of 190 to 303 coordinates.
        """
        return min(0.3, rate_of_normals(size_of(self.sites)))

    def locations(self) -> Any:
        """Return none: the mean of a correlated normal moves in a frame."""
        return ()

    def travellers(self) -> Any:
        """Return the mean. A start may lie many standard deviations away."""
        return (self.loc,)

    @abc.abstractmethod
    def log_det(self) -> Float[Array, ""]:
        """Return half the log-determinant of the covariance."""

    @abc.abstractmethod
    def marginal_scale(self) -> Float[Array, "*batch dim"]:
        """Return the standard deviation of each coordinate."""

    def base_dist(self) -> distrax.DistributionLike:
        """Return a standard normal."""
        base = distrax.MultivariateNormalDiag(jnp.zeros_like(self.loc), jnp.ones_like(self.loc))
        return self.independent(base)

    def independent(self, dist: Any) -> distrax.DistributionLike:
        """Make the batch axes part of the event."""
        return distrax.Independent(dist, self.batch_ndim) if self.batch_ndim else dist

    def shifted(self, linear: distrax.Bijector) -> distrax.Bijector:
        """Return `eps -> loc + linear(eps)`."""
        shift = distrax.Block(distrax.ScalarAffine(self.loc), 1)
        chain = distrax.Chain([shift, linear])
        return distrax.Block(chain, self.batch_ndim) if self.batch_ndim else chain

    def entropy(self, target: Target) -> dict[Block, Array]:
        """Return `dim (1 + log 2 pi) / 2 + log det A`."""
        del target
        return {self.block: self.loc.size * (0.5 + HALF_LOG_2PI) + self.log_det()}

    def quantile(self, level: Float[Array, ""], target: Target) -> dict[str, Array]:
        """Return marginal quantiles: `loc + scale * Phi^-1(level)`."""
        eps = jax.scipy.special.ndtri(level)
        z = self.loc + self.marginal_scale() * eps.astype(self.loc.dtype)
        return self.to_values(z, target.indices)


def standard_normal(key: Key, like: Array) -> tuple[Array, Float[Array, ""]]:
    """Return standard normal noise in the shape of an array, and its log density."""
    eps = jax.random.normal(key, like.shape, like.dtype)
    return eps, jnp.sum(log_normal(eps))
