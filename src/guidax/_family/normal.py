"""Independent normals, site by site; the rows of a plate are gathered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._model.start import Start
from .._model.target import Block, Draw, Target
from .._model.trace import LatentSpec
from .._numerics import HALF_LOG_2PI, filled_like, inverse_softplus_of, log_normal
from .._types import Key, is_positive_number
from .base import AbstractFamily
from .noise import site_noise
from .vector import size_of

SCALE_UNIT = 0.2  # of the logarithm of a scale: the means' steps go by it, so it moves more slowly


class MeanFieldNormal(AbstractFamily):
    """A normal for every coordinate of every site, in unconstrained space.

    `scale = softplus(raw_scale)`. Both parameters hold all rows of the site's plates.

    Args:
        start: Where the means start.
        init_scale: Starting standard deviation of every coordinate.

    Raises:
        ValueError: If `init_scale` is not positive.
    """

    loc: dict[str, Array]
    raw_scale: dict[str, Array]
    sites: tuple[LatentSpec, ...] = eqx.field(static=True)

    def __init__(self, start: Start, init_scale: float = 0.1):
        self.loc = start.location
        self.raw_scale = filled_like(start.location, raw_scale_of(init_scale))
        self.sites = start.structure.latents

    @property
    def learning_rate(self) -> float:
        """That of `rate_of_normals`."""
        return rate_of_normals(size_of(self.sites))

    @property
    def reads_given(self) -> bool:
        """The parameters alone say how it draws."""
        return False

    def units(self, least: Float[Array, ""]) -> Any:
        """Return those of `units_of_normal`, for every site."""
        pairs = {n: units_of_normal(raw, least) for n, raw in self.raw_scale.items()}
        loc, raw_scale = ({n: pair[i] for n, pair in pairs.items()} for i in (0, 1))
        return self._with(loc, raw_scale)

    def locations(self) -> Any:
        """Return the means."""
        return self.loc

    def map_rows(self, f: Callable[[Array, tuple[tuple[str, int], ...]], Any]) -> Any:
        """Apply a function to locations and scales of sites in plates."""

        def mapped(parameters: dict[str, Array]) -> dict[str, Any]:
            plates = {s.name: s.plates for s in self.sites}
            return {n: f(x, plates[n]) if plates[n] else x for n, x in parameters.items()}

        return self._with(mapped(self.loc), mapped(self.raw_scale))

    def _with(self, loc: Any, raw_scale: Any) -> Any:
        return eqx.tree_at(lambda family: (family.loc, family.raw_scale), self, (loc, raw_scale))

    def normal_marginals(self, target: Target) -> dict[str, tuple[Array, Array]]:
        """Return location and scale of each site's rows."""
        rows = target.indices
        return {
            s.name: (
                s.take(self.loc[s.name], rows),
                jax.nn.softplus(s.take(self.raw_scale[s.name], rows)),
            )
            for s in self.sites
        }

    def draw(self, key: Key, target: Target) -> Draw:
        """Draw `loc + scale * eps`."""
        values, log_q = {}, {}
        marginals = self.normal_marginals(target)
        noise = site_noise(key, self.sites, target.indices)
        for s in self.sites:
            eps, (loc, scale) = noise[s.name], marginals[s.name]
            values[s.name] = loc + scale * eps
            log_q[_block(s)] = s.sum_to_plates(log_normal(eps) - jnp.log(scale))
        return Draw.of(values, "unconstrained", log_q)

    def log_q(self, draw: Draw, target: Target) -> dict[Block, Array]:
        """Return the density of each site, by row of its plates."""
        found, marginals = {}, self.normal_marginals(target)
        for s in self.sites:
            loc, scale = marginals[s.name]
            eps = (draw.values[s.name] - loc) / scale
            found[_block(s)] = s.sum_to_plates(log_normal(eps) - jnp.log(scale))
        return found

    def entropy(self, target: Target) -> dict[Block, Array]:
        """Return the entropy of each site, by row of its plates."""
        marginals = self.normal_marginals(target)
        return {
            _block(s): s.sum_to_plates(0.5 + HALF_LOG_2PI + jnp.log(marginals[s.name][1]))
            for s in self.sites
        }

    def quantile(self, level: Float[Array, ""], target: Target) -> dict[str, Array]:
        """Return `loc + scale * Phi^-1(level)`."""
        eps = jax.scipy.special.ndtri(level)
        return {
            name: (loc + scale * eps).astype(loc.dtype)
            for name, (loc, scale) in self.normal_marginals(target).items()
        }


def raw_scale_of(init_scale: float) -> float:
    """Return the parameter whose softplus is a starting standard deviation.

    Raises:
        ValueError: If it is not a positive number.
    """
    if not is_positive_number(init_scale):
        raise ValueError(
            "init_scale is a standard deviation in unconstrained space, so it is a positive "
            f"number; got {init_scale!r}. Try 0.1."
        )
    return inverse_softplus_of(float(init_scale))


def rate_of_normals(dim: int) -> float:
    """Return a learning rate for independent normals, in units of their own.

    0.5 for up to 30 coordinates (measured on posteriordb), falling to 0.1 for 750 and more: the
    noise that a rate leaves behind costs nats by the coordinate.
    """
    return max(0.1, 0.5 * (30 / max(30, dim)) ** 0.5)


def units_of_normal(raw_scale: Array, least: Float[Array, ""]) -> tuple[Array, Array]:
    """Return how far a step of one moves the mean of a normal, and its parameter of scale.

    The mean: a standard deviation, yet `least` where that is less. The scale: `SCALE_UNIT` of its
    logarithm.
    """
    scale = jax.nn.softplus(raw_scale)
    least = least.astype(scale.dtype)
    return jnp.maximum(least, scale), SCALE_UNIT * scale / jax.nn.sigmoid(raw_scale)


def _block(site: LatentSpec) -> Block:
    return Block((site.name,), site.plate_names)
