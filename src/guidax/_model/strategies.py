"""Where a fit may start: strategies that choose a constrained value for each latent."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import random
from jax.typing import ArrayLike
from jaxtyping import Array, DTypeLike

from .._types import Key, is_number, positive
from .static import Static
from .trace import Site

Strategy = Callable[[Site, Key], Array]


class init_to_uniform(eqx.Module):
    """Start uniformly between `-radius` and `radius` in unconstrained space.

    Args:
        radius: Half the width of the interval.

    Raises:
        ValueError: If `radius` is negative, not finite, or no number.
    """

    radius: float = eqx.field(static=True, default=2.0)

    def __check_init__(self) -> None:
        if not (is_number(self.radius) and 0 <= self.radius < float("inf")):
            raise ValueError(
                "init_to_uniform: radius is a half-width, a finite number of at least 0; got "
                f"{self.radius!r}. Try 2.0."
            )

    def __call__(self, site: Site, key: Key) -> Array:
        """Return a constrained value for the live site."""
        zero = site.zeros()
        return site.known_bijection.forward(self.unconstrained(key, zero.shape, zero.dtype))

    def unconstrained(self, key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return the value in unconstrained space."""
        return random.uniform(key, shape, dtype, -self.radius, self.radius)


class init_to_median(eqx.Module):
    """Start at the median of prior draws; uniformly where the prior cannot be drawn from.

    Args:
        num_samples: How many draws.

    Raises:
        TypeError: If `num_samples` is no integer.
        ValueError: If it is less than 1.
    """

    num_samples: int = eqx.field(static=True, default=15)

    def __check_init__(self) -> None:
        positive("init_to_median: num_samples", self.num_samples)

    def __call__(self, site: Site, key: Key) -> Array:
        """Return a constrained value for the live site.

        The median is taken in unconstrained space, so that it lies in the support.
        """
        if site.sample is None:
            return init_to_uniform()(site, key)
        draws = jax.vmap(site.sample)(random.split(key, self.num_samples))
        u = jax.vmap(site.known_bijection.inverse)(draws)
        return site.known_bijection.forward(jnp.median(u, axis=0))


class init_to_mean(eqx.Module):
    """Start at the prior mean; at the median where it is not known or not finite."""

    def __call__(self, site: Site, key: Key) -> Array:
        """Return a constrained value for the live site."""
        fallback = init_to_median()(site, key)
        if site.mean is None:
            return fallback
        try:
            mean = site.mean()
        except (NotImplementedError, AttributeError):
            return fallback
        u = site.known_bijection.inverse(mean)
        usable = jnp.all(jnp.isfinite(mean)) & jnp.all(jnp.isfinite(u))
        return jnp.where(usable, mean, fallback)


class init_to_sample(eqx.Module):
    """Start at a prior draw; uniformly where the prior cannot be drawn from."""

    def __call__(self, site: Site, key: Key) -> Array:
        """Return a constrained value for the live site."""
        return init_to_uniform()(site, key) if site.sample is None else site.sample(key)


class init_to_feasible(eqx.Module):
    """Start at zero in unconstrained space."""

    def __call__(self, site: Site, key: Key) -> Array:
        """Return a constrained value for the live site."""
        del key
        return site.known_bijection.forward(site.zeros())


class init_to_value(eqx.Module):
    """Start at given values; elsewhere as `fallback` says.

    Args:
        values: Constrained values by site, of the site's full shape (all rows of its plates), or
            single numbers that fill it.
        fallback: The strategy for sites without a value.

    Raises:
        TypeError: If `values` is no dictionary.
        ValueError: When used, if a value has another shape, or lies outside the support.
    """

    values: dict[str, Any]
    fallback: Any

    def __init__(self, values: Mapping[str, ArrayLike], fallback: Any = init_to_uniform):
        if not isinstance(values, Mapping):
            raise TypeError(f"init_to_value takes a dictionary from site to value; got {values!r}.")
        self.values = {name: jnp.asarray(value) for name, value in values.items()}
        self.fallback = as_strategy(fallback)

    def __call__(self, site: Site, key: Key) -> Array:
        """Return a constrained value for the live site, possibly with all rows of its plates."""
        if site.name not in self.values:
            return self.fallback(site, key)
        value = self.values[site.name]
        shape = (*site.batch_shape, *site.event_shape)
        return jnp.broadcast_to(value, shape) if value.ndim == 0 else value


class by_site(eqx.Module):
    """One strategy for each of several sets of sites: how the parts of a list start."""

    strategies: tuple[Any, ...]
    of_site: tuple[tuple[str, int], ...] = eqx.field(static=True)

    def __call__(self, site: Site, key: Key) -> Array:
        """Return a constrained value for the live site."""
        return self.strategies[dict(self.of_site)[site.name]](site, key)


def strategy_at(strategy: Any, name: str) -> Any:
    """Return the strategy that is at work at a site, inside those that hold several."""
    if isinstance(strategy, by_site):
        return strategy_at(strategy.strategies[dict(strategy.of_site)[name]], name)
    if isinstance(strategy, init_to_value) and name not in strategy.values:
        return strategy_at(strategy.fallback, name)
    return strategy


class _Function(eqx.Module):
    """A user's own strategy, which is static."""

    function: Static = eqx.field(static=True)

    def __call__(self, site: Site, key: Key) -> Array:
        return self.function.value(site, key)


def as_strategy(strategy: Any) -> Strategy:
    """Return a strategy as a module; `init_to_median` stands for `init_to_median()`.

    Raises:
        TypeError: If it cannot be called, or is one of NumPyro's.
    """
    if isinstance(strategy, type) and issubclass(strategy, eqx.Module):
        strategy = strategy()
    function = strategy.func if isinstance(strategy, functools.partial) else strategy
    if str(getattr(function, "__module__", "")).startswith("numpyro."):
        raise TypeError(
            f"init_loc_fn is NumPyro's {getattr(function, '__name__', function)}, which reads "
            "NumPyro's sites: take the strategy of that name from guidax, such as "
            "gx.init_to_median()."
        )
    if not callable(strategy):
        raise TypeError(
            "init_loc_fn takes a strategy such as gx.init_to_median(), or a function of a site and "
            f"a key that returns a constrained value; got {strategy!r}."
        )
    made = strategy if isinstance(strategy, eqx.Module) else _Function(Static(strategy))
    return cast(Strategy, made)
