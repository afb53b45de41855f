"""The covariance of a guide in unconstrained space, in the order in which samplers ravel sites."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._family.base import AbstractFamily
from .._family.diagonal import DiagonalNormal
from .._family.flat import AbstractFlatNormal
from .._family.low_rank import LowRankNormal
from .._family.multivariate import MultivariateNormal
from .._family.normal import MeanFieldNormal
from .._model.target import Target
from .._model.trace import Indices, LatentSpec


class Root(eqx.Module):
    """A covariance `diag(own^2) + factor factor'`.

    Attributes:
        own: Standard deviation that each coordinate has for itself; None for zero.
        factor: What the coordinates share, one column for each source.
        spreads: Whether every coordinate varies: rounding may leave a variance to one that is
            fixed.
    """

    own: Float[Array, " dim"] | None
    factor: Float[Array, "dim sources"]
    spreads: Bool[Array, ""]

    def variances(self) -> Float[Array, " dim"]:
        """Return the diagonal."""
        shared = jnp.sum(self.factor**2, axis=1)
        return shared if self.own is None else self.own**2 + shared

    def covariance(self) -> Float[Array, "dim dim"]:
        """Return the matrix."""
        shared = self.factor @ self.factor.T
        return shared if self.own is None else shared + jnp.diag(self.own**2)

    def stretched(self, rank: int) -> tuple[Array, Array, Array]:
        """Return scales, the directions in which the scaled covariance is largest, and how large.

        Nothing of size `dim^2` is formed where the factor is thin.
        """
        scale = jnp.sqrt(self.variances()) if self.own is None else self.own
        U, root, _ = jnp.linalg.svd(self.factor / scale[:, None], full_matrices=False)
        stretch = root**2 + (0.0 if self.own is None else 1.0)
        return scale, U[:, :rank], stretch[:rank]


def order_by_name(sites: Sequence[LatentSpec], indices: Indices) -> Int[Array, " dim"]:
    """Return, for each coordinate of the sites raveled by name, its place in the flat vector.

    Args:
        sites: The sites, in the order of the vector, which has rows of plates in their own order.
        indices: The order in which positions have them.
    """
    found, start = {}, 0
    for s in sites:
        places = jnp.arange(start, start + s.size).reshape(s.shape)
        found[s.name] = s.take(places, indices).reshape(-1)
        start += s.size
    return jnp.concatenate([found[name] for name in sorted(found)])


def has_closed_form(family: AbstractFamily) -> bool:
    """Say whether the covariance of a family's draws is known without draws."""
    return isinstance(family, MeanFieldNormal) or (
        isinstance(family, AbstractFlatNormal) and family.batch_ndim == 0
    )


def covariance_root(
    family: AbstractFamily, target: Target, draws: Callable[[], dict[str, Array]]
) -> Root:
    """Return the covariance of a family's unconstrained draws, coordinates by name.

    Args:
        family: The family.
        target: What it draws against.
        draws: Gives unconstrained draws where the covariance has no closed form.
    """
    if isinstance(family, MeanFieldNormal):
        scales = {name: scale for name, (_, scale) in family.normal_marginals(target).items()}
        own = jnp.concatenate([scales[name].reshape(-1) for name in sorted(scales)])
        return Root(own, jnp.zeros((own.size, 0), own.dtype), jnp.asarray(True))
    if has_closed_form(family):
        assert isinstance(family, AbstractFlatNormal)
        own, factor = _of_normal(family)
        order = order_by_name(family.sites, target.indices)
        return Root(None if own is None else own[order], factor[order], jnp.asarray(True))
    values = draws()
    z = jnp.concatenate([x.reshape(len(x), -1) for _, x in sorted(values.items())], axis=1)
    centred = (z - jnp.mean(z, axis=0)) / jnp.sqrt(max(len(z) - 1, 1))
    return Root(None, centred.T, jnp.all(jnp.ptp(z, axis=0) != 0))


def _of_normal(family: AbstractFlatNormal) -> tuple[Array | None, Array]:
    if isinstance(family, MultivariateNormal):
        return None, family.scale_tril()
    if isinstance(family, LowRankNormal):
        return family.scale(), family.scale()[:, None] * family.factor
    assert isinstance(family, DiagonalNormal)
    return family.marginal_scale(), jnp.zeros((family.loc.size, 0), family.loc.dtype)
