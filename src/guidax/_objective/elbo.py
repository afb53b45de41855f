"""The evidence lower bound."""

from __future__ import annotations

from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._guide.guide import AutoGuide
from .._model.target import Target, scaled_sum
from .._types import Key
from .base import AbstractObjective, require_particles

Estimator = Literal["pathwise", "stl", "entropy"]


class ELBO(AbstractObjective):
    """Minus the evidence lower bound, `E_q[log p(x, z) - log q(z)]`, estimated from draws.

    Args:
        num_particles: Draws that the estimate averages.
        estimator: How. "pathwise" samples both terms; "stl" leaves the score of q out of the
            gradient, whose mean is zero, so that the gradient's variance vanishes at an exact fit
            (Roeder et al. 2017); "entropy" takes q's entropy in closed form.

    Raises:
        ValueError: If an option is none of these; when called, if the family lacks what the
            estimator needs.
    """

    num_particles: int = eqx.field(static=True, default=1)
    estimator: Estimator = eqx.field(static=True, default="pathwise")

    def __check_init__(self) -> None:
        require_particles(self.num_particles)
        if self.estimator not in get_args(Estimator):
            raise ValueError(f"estimator is one of {get_args(Estimator)}; got {self.estimator!r}.")

    def particle(self, guide: AutoGuide, key: Key, target: Target) -> Float[Array, ""]:
        """Return one log weight, with q's term as the estimator has it."""
        draw = guide.family.draw(key, target)
        if self.estimator == "pathwise":
            return target.score(draw).log_weight
        trace = target.run(draw)
        log_density = target.score_trace(trace, draw).log_density
        if self.estimator == "entropy":
            entropy = guide.family.entropy(target)
            if missing := [b.sites for b in draw.log_q if b not in entropy]:
                raise _lacking(guide, "entropy in closed form", missing)
            return log_density + scaled_sum(entropy, trace)
        log_q = jax.tree.map(lax.stop_gradient, guide.family).log_q(draw, target)
        if log_q is None:
            raise _lacking(guide, "density in closed form", [b.sites for b in draw.log_q])
        return log_density - scaled_sum(log_q, trace)

    def combine(self, terms: Float[Array, " particles"]) -> Float[Array, ""]:
        """Return the mean."""
        return jnp.mean(terms)


def _lacking(guide: AutoGuide, what: str, sites: list[tuple[str, ...]]) -> ValueError:
    return ValueError(
        f'{type(guide).__name__} has no {what} for the sites {sites}: use estimator="pathwise".'
    )
