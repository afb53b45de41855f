"""What an objective is: one number to minimise."""

from __future__ import annotations

import abc
from typing import Any

import equinox as eqx
import jax
from jax import random
from jaxtyping import Array, Float

from .._guide.guide import AutoGuide
from .._model.batch import Batch, as_batch
from .._model.target import Target
from .._types import Key


class AbstractObjective(eqx.Module):
    """A pure function of a guide, a key and the model's arguments, to be minimised.

    Called as `objective(guide, key, *args, **kwargs)`, with the model's arguments or one `gx.Batch`;
    differentiate it by its first argument. Its options are static.
    """

    num_particles: eqx.AbstractVar[int]

    @abc.abstractmethod
    def particle(self, guide: AutoGuide, key: Key, target: Target) -> Float[Array, ""]:
        """Return one Monte Carlo term."""

    @abc.abstractmethod
    def combine(self, terms: Float[Array, " particles"]) -> Float[Array, ""]:
        """Return the bound from all terms."""

    def check(self, guide: AutoGuide, batch: Batch, indices: dict[str, Array]) -> None:
        """Refuse what the objective is not defined for."""

    def __call__(self, guide: AutoGuide, key: Key, /, *args: Any, **kwargs: Any) -> Float[Array, ""]:
        """Return the loss: minus the bound.

        Args:
            guide: The guide.
            key: For the particles, and for the rows of plates that are drawn.
            *args: The model's arguments, or one `gx.Batch`.
            **kwargs: The model's keyword arguments.

        Returns:
            One number, in nats.

        Raises:
            TypeError: If the arguments do not fit the model.
            ValueError: If parameters of the guide and rows of the arguments would not match, or a
                latent has no value.
        """
        batch = guide.admit(as_batch(guide.model, args, kwargs))
        return _evaluate(self, guide, key, batch)

    def loss(self, guide: AutoGuide, key: Key, batch: Batch) -> Float[Array, ""]:
        """Return the loss on a batch that `guide.admit` has marked."""
        keys = random.split(key, 2 * self.num_particles + 1)  # one generator call
        indices = guide.indices(keys[0], batch)  # shared by guide, model, scale and particles
        self.check(guide, batch, indices)

        def one(pair: Array) -> Array:
            return self.particle(guide, pair[1], guide.target(pair[0], batch, indices))

        if self.num_particles == 1:
            return -self.combine(one(keys[1:])[None])
        return -self.combine(jax.vmap(one)(keys[1:].reshape(self.num_particles, 2)))


@jax.jit
def _evaluate(
    objective: AbstractObjective, guide: AutoGuide, key: Key, batch: Batch
) -> Float[Array, ""]:
    return objective.loss(guide, key, batch)


def require_particles(num_particles: Any) -> None:
    """Refuse anything but a positive integer.

    Raises:
        ValueError: If it is not one.
    """
    if not (isinstance(num_particles, int) and num_particles >= 1):
        raise ValueError(f"num_particles is a positive integer; got {num_particles!r}.")
