"""Draws of a base over the flat vector, moved towards a density."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import random
from jaxtyping import Array, Float

from .._model.start import value_and_gradient
from .._model.target import Draw, Target
from .._model.trace import LatentSpec
from .._numerics import log_normal
from .._types import Key
from .base import AbstractFamily
from .dynamics import Dynamics
from .flat import AbstractFlat

_BASE_AHEAD = 10.0  # how many times a step of the moves one of the base may be


class AbstractDAIS(AbstractFamily):
    """Annealed importance sampling of the whole vector, from a base to what `log_density` says.

    The base draws `z_0`, the steps of `dais` move it to `z_K`, and log q is that of `z_0` with the
    log factor of the moves. With `whiten` they move eps instead of `z = T(eps)`, where T is the
    base's transform: the base is then a standard normal, the target is
    `log f(T(eps)) + log |det T'(eps)|`, and nothing asks for the inverse of T. At the last eps
    `log |det T'|` comes off log q.
    """

    base: eqx.AbstractVar[AbstractFlat]
    dynamics: eqx.AbstractVar[Dynamics]
    whiten: eqx.AbstractVar[bool]  # static

    @property
    def learning_rate(self) -> float:
        """That of moves, or less where the base, a wide or deep flow, asks for less."""
        return min(super().learning_rate, self.base.learning_rate)

    def units(self, least: Float[Array, ""]) -> Any:
        """Return those of the base, longer where it asks for a higher rate; the moves' are one.

        A base that lags leaves its way to the moves, which settle on that: held to their rate, a
        normal did so for 2,000 steps, and on data that nobody scaled by ten nats. With thirty times
        their rate some fits were lost.
        """
        return self._with_longer(super().units(least), self.base.units(least))

    def _with_longer(self, step: Any, base: Any) -> Any:
        """Return a tree of the guide's structure with the base's in it, longer by its pace."""
        pace = min(_BASE_AHEAD, self.base.learning_rate / self.learning_rate)
        longer = jax.tree.map(lambda x: pace * x, base)
        return eqx.tree_at(lambda family: family.base, step, longer)

    def locations(self) -> Any:
        """Return those of the base."""
        return self.base.locations()

    def travellers(self) -> Any:
        """Return those of the base."""
        return self.base.travellers()

    def in_frame(self, step: Any, least: Float[Array, ""]) -> Any:
        """Return the base's change, as much longer as its units; the moves have no frame."""
        return self._with_longer(step, self.base.in_frame(step.base, least))

    @abc.abstractmethod
    def log_density(self, z: Float[Array, " dim"], target: Target) -> Float[Array, ""]:
        """Return the unnormalised log density that the moves follow, at the whole vector."""

    def draw(self, key: Key, target: Target) -> Draw:
        """Draw from the base, and move."""
        keys = random.split(key)
        if self.whiten:
            forward, grad_log_base = self._of_noise(), jnp.negative
            shape, dtype = self.dynamics.raw_speed.shape, self.dynamics.raw_speed.dtype
            x = random.normal(keys[0], shape, dtype)
            log_q = jnp.sum(log_normal(x))
        else:
            forward, grad_log_base = _unchanged, jax.grad(self._log_base)
            x, log_q = self.base.sample(keys[0])
            x = x.reshape(-1)  # several vectors, where they have leading axes, move as one

        def log_f(x: Float[Array, " dim"]) -> Float[Array, ""]:
            z, log_det = forward(x)
            return self.log_density(z, target) + log_det

        noise = random.normal(keys[1], (self.dynamics.num_steps, *x.shape), x.dtype)
        x, log_factor = self.dynamics.run(gradient_of(log_f), grad_log_base, x, noise)
        z, log_det = forward(x)
        draw = self._draw_of(z, target)
        return Draw(draw.values, draw.space, {self.base.block: log_q + log_factor - log_det})

    def _of_noise(self) -> Callable[[Float[Array, " dim"]], tuple[Array, Array]]:
        transform = self.base.transform()

        def forward(eps: Float[Array, " dim"]) -> tuple[Array, Array]:
            z, log_det = transform.forward_and_log_det(self._shaped(eps))
            return jnp.reshape(z, -1), jnp.sum(jnp.asarray(log_det))

        return forward

    def _log_base(self, z: Float[Array, " dim"]) -> Float[Array, ""]:
        return self.base.log_density(self._shaped(z))

    def _draw_of(self, z: Float[Array, " dim"], target: Target) -> Draw:
        return Draw.of(self.base.to_values(self._shaped(z), target.indices))

    def _shaped(self, z: Float[Array, " dim"]) -> Float[Array, "*batch dim"]:
        return z.reshape(*self.sites[0].shape[: self.base.batch_ndim], -1)


class DAIS(AbstractDAIS):
    """Moves that follow the target itself, all of it.

    Args:
        base: What draws where they begin.
        dynamics: Their parameters.
        whiten: Whether they move the base's noise.
    """

    base: AbstractFlat
    dynamics: Dynamics
    sites: tuple[LatentSpec, ...] = eqx.field(static=True)
    whiten: bool = eqx.field(static=True)

    def __init__(self, base: AbstractFlat, dynamics: Dynamics, whiten: bool = False):
        self.base, self.dynamics, self.whiten = base, dynamics, whiten
        self.sites = base.sites

    @property
    def reads_batch(self) -> bool:
        """The moves follow the density of the data."""
        return True

    def draw(self, key: Key, target: Target) -> Draw:
        """Draw from the base, and move.

        Raises:
            ValueError: If a plate holds some of its rows, or an observation is left out.
        """
        sizes = {name: s.shape[axis] for s in self.sites for name, axis in s.plates}
        for name, rows in target.indices.items():
            require_whole(name, rows.shape[0], sizes.get(name, 0))
        return super().draw(key, target)

    def log_density(self, z: Float[Array, " dim"], target: Target) -> Float[Array, ""]:
        """Return log joint density and log-Jacobians.

        Raises:
            ValueError: If a plate holds some of its rows.
        """
        draw = self._draw_of(z, target)
        trace = target.run(draw)
        for plate in trace.plates.values():
            require_whole(plate.name, plate.rows, plate.size)
        return target.score_trace(trace, draw).log_density


def require_whole(plate: str, rows: int, size: int) -> None:
    """Refuse a plate that holds some of its rows.

    The evidence of a part of the data, taken N/B times, is on average larger than that of the data.

    Raises:
        ValueError: If it does.
    """
    if rows < size:
        raise ValueError(
            f"AutoDAIS moves its draws along the gradient of the whole log density, but plate "
            f"{plate!r} holds {rows} of {size} rows, and moves that follow a part of the data "
            "bound nothing. Pass all rows, or use gx.AutoSurrogateLikelihoodDAIS, whose moves "
            "follow a surrogate; gx.AutoSemiDAIS, if the rows have latents of their own; or "
            "gx.AutoNormal."
        )


def gradient_of(
    fn: Callable[[Float[Array, "*rows dim"]], Float[Array, ""]],
) -> Callable[[Float[Array, "*rows dim"]], Float[Array, "*rows dim"]]:
    """Return the gradient, in forward mode where a model has no other."""
    return lambda x: value_and_gradient(lambda x: (fn(x), None), x)[1]


def _unchanged(z: Float[Array, " dim"]) -> tuple[Array, float]:
    return z, 0.0
