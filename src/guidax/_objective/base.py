"""What an objective is: one number to minimise."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import random
from jaxtyping import Array, Float, PyTree

from .._family.base import AbstractFamily
from .._guide.guide import AutoGuide
from .._model.batch import Batch, as_batch
from .._model.model import AbstractModel
from .._model.target import Block, Draw, Target
from .._numerics import all_finite, everywhere
from .._types import Key, is_count, require_key


class AbstractObjective(eqx.Module):
    """A pure function of a guide, a key and the model's arguments, to be minimised.

    Called as `objective(guide, key, *args, **kwargs)`, with the model's arguments or one
    `gx.Batch`; differentiate it by its first argument. Its options are static.
    """

    num_particles: eqx.AbstractVar[int]

    @property
    def highest_rate(self) -> float:
        """The highest rate that `fit` starts its default optimizer with."""
        return math.inf

    @abc.abstractmethod
    def particle(self, guide: AutoGuide, key: Key, target: Target) -> Float[Array, ""]:
        """Return one Monte Carlo term."""

    @abc.abstractmethod
    def combine(self, terms: Float[Array, " particles"]) -> Float[Array, ""]:
        """Return the bound from all terms."""

    def check(self, guide: AutoGuide, batch: Batch, indices: dict[str, Array]) -> None:
        """Refuse what the objective is not defined for."""

    def __call__(
        self, guide: AutoGuide, key: Key, /, *args: Any, **kwargs: Any
    ) -> Float[Array, ""]:
        """Return the loss: minus the bound.

        Args:
            guide: The guide.
            key: For the particles, and for the rows of plates that are drawn.
            *args: The model's arguments, or one `gx.Batch`.
            **kwargs: The model's keyword arguments.

        Returns:
            One number, in nats.

        Raises:
            TypeError: If a guide and one random key do not come first, or the arguments do not fit
                the model.
            ValueError: If parameters of the guide and rows of the arguments would not match, or a
                latent has no value.
        """
        if not isinstance(guide, AutoGuide):
            raise TypeError(
                f"an objective takes a guide, then a random key; got {type(guide).__name__} and "
                f"{type(key).__name__}."
            )
        require_key("an objective", key, "a guide, then a random key")
        batch = guide.admit(as_batch(guide.model, args, kwargs))
        return _evaluate(self, guide, key, batch)

    def loss(self, guide: AutoGuide, key: Key, batch: Batch) -> Float[Array, ""]:
        """Return the loss on a batch that `guide.admit` has marked."""
        guide = everywhere(guide, batch)
        pairs, indices = self._randomness(guide, key, batch)
        self.check(guide, batch, indices)

        def one(pair: Array) -> Array:
            return self.particle(guide, pair[1], guide.target(pair[0], batch, indices))

        if self.num_particles == 1:
            return -self.combine(one(pairs[0])[None])
        return -self.combine(jax.vmap(one)(pairs))

    def indices(self, guide: AutoGuide, key: Key, batch: Batch) -> dict[str, Array]:
        """Return the row numbers, by plate, that `loss` draws with this key."""
        return self._randomness(guide, key, batch)[1]

    def not_finite(self, guide: AutoGuide, key: Key, batch: Batch) -> tuple[str, ...]:
        """Return the sites whose log density, or its gradient, `loss` finds not to be finite.

        They are those of the model's density, or where that is finite, of the guide's.
        """
        terms, blocks = _finite_sites(self, guide, key, batch)
        sites = tuple(name for name, finite in terms.items() if not finite)
        return sites or tuple(n for b, finite in blocks.items() if not finite for n in b.sites)

    def _randomness(
        self, guide: AutoGuide, key: Key, batch: Batch
    ) -> tuple[Array, dict[str, Array]]:
        """Return two keys for each particle, and the row numbers that all of them share."""
        keys = random.split(key, 2 * self.num_particles + 1)  # one generator call
        return keys[1:].reshape(self.num_particles, 2, *key.shape), guide.indices(keys[0], batch)


@jax.jit
def _evaluate(
    objective: AbstractObjective, guide: AutoGuide, key: Key, batch: Batch
) -> Float[Array, ""]:
    return objective.loss(guide, key, batch)


@jax.jit
def _finite_sites(
    objective: AbstractObjective, guide: AutoGuide, key: Key, batch: Batch
) -> tuple[dict[str, Array], dict[Block, Array]]:
    """Say of each term of the model's density, and of each block of the guide's, whether it is."""
    pairs, indices = objective._randomness(guide, key, batch)

    def one(pair: Array) -> tuple[dict[str, Array], dict[Block, Array]]:
        target = guide.target(pair[0], batch, indices)
        draw = guide.family.draw(pair[1], target)

        def blocks_of(family: AbstractFamily) -> dict[Block, Array]:
            log_q = family.draw(pair[1], target).log_q
            return {block: jnp.sum(x) for block, x in log_q.items()}

        def terms_of(at: tuple[AbstractModel, dict[str, Array]]) -> dict[str, Array]:
            moved = Target(at[0], batch, pair[0], indices)
            return moved.score(Draw(at[1], draw.space, draw.log_q)).terms

        at = (guide.model, draw.values)
        return _finite_terms(terms_of, at), _finite_terms(blocks_of, guide.family)

    return jax.tree.map(lambda flags: jnp.all(flags, axis=0), jax.vmap(one)(pairs))


def _finite_terms(terms_of: Callable[[Any], dict[Any, Array]], at: PyTree) -> dict[Any, Array]:
    """Say of each term of a function whether it and its gradient are finite."""
    terms, along = jax.linearize(terms_of, at)
    return {n: all_finite((x, _gradient(along, n, at, x))) for n, x in terms.items()}


def _gradient(
    along: Callable[[Any], dict[Any, Array]], name: Any, at: PyTree, term: Array
) -> PyTree:
    """Return the gradient of one term by itself.

    A pass for all terms at once would blame all of them, since zero times NaN is NaN.
    """
    try:
        return jax.linear_transpose(lambda tangent: along(tangent)[name], at)(jnp.ones_like(term))
    except ValueError as error:
        if "Reverse-mode" not in str(error):
            raise
        return along(jax.tree.map(jnp.ones_like, at))[name]


def require_particles(num_particles: Any) -> None:
    """Refuse anything but a positive integer.

    Raises:
        ValueError: If it is not one.
    """
    if not is_count(num_particles):
        raise ValueError(f"num_particles is a positive integer; got {num_particles!r}.")
