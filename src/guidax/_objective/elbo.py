"""The evidence lower bound."""

from __future__ import annotations

from typing import Literal, get_args

import equinox as eqx
import jax.numpy as jnp
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
        estimator: How. "pathwise" samples both terms, and is for every guide. "stl" leaves the
            score of q out of the gradient, whose mean is zero, so that the gradient's variance
            vanishes at an exact fit (Roeder et al. 2017); a second derivative is that of this
            gradient. It is for guides whose density is in closed form: normals, points and flows,
            but no annealed guide. "entropy" takes q's entropy in closed form, as normals and points
            have it. A list has what all of its parts have.

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
        family = guide.family
        if self.estimator == "pathwise":
            return target.score(family.draw(key, target)).log_weight
        if self.estimator == "stl":
            if (draw := family.path_draw(key, target)) is None:
                raise _lacking(guide, "density in closed form", [s.name for s in family.sites])
            return target.score(draw).log_weight
        draw, entropy = family.draw(key, target), family.entropy(target)
        if missing := [name for b in draw.log_q if b not in entropy for name in b.sites]:
            raise _lacking(guide, "entropy in closed form", missing)
        trace = target.run(draw)
        return target.score_trace(trace, draw).log_density + scaled_sum(entropy, trace)

    def combine(self, terms: Float[Array, " particles"]) -> Float[Array, ""]:
        """Return the mean."""
        return jnp.mean(terms)


def _lacking(guide: AutoGuide, what: str, sites: list[str]) -> ValueError:
    return ValueError(
        f'{type(guide).__name__} has no {what} for the sites {sites}: use estimator="pathwise".'
    )
