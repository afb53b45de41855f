"""Bounds that weight several draws: importance weighted and Renyi."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._guide.guide import AutoGuide
from .._model.batch import Batch
from .._model.target import Target
from .._types import Key, is_number
from .base import AbstractObjective, require_particles


class AbstractWeighted(AbstractObjective):
    """Shared by the bounds that are functions of log importance weights."""

    @property
    def highest_rate(self) -> float:
        """0.1: where one draw has all the weight, gradients are noise, and normals ran away."""
        return 0.1

    def check(self, guide: AutoGuide, batch: Batch, indices: dict[str, Array]) -> None:
        """Refuse a plate that holds some of its rows.

        Raises:
            ValueError: If there is one.
        """
        for p in guide.plates(batch):
            rows = indices[p.name].shape[0] if p.name in indices else p.rows
            if rows < p.size:
                raise ValueError(
                    f"{type(self).__name__} is no bound where a plate holds some of its rows, "
                    f"since a weight is not a sum over rows: plate {p.name!r} holds {rows} of "
                    f"{p.size}. Use gx.ELBO, or all rows."
                )

    def particle(self, guide: AutoGuide, key: Key, target: Target) -> Float[Array, ""]:
        """Return the log importance weight of a draw."""
        return target.score(guide.family.draw(key, target)).log_weight


class IWELBO(AbstractWeighted):
    """Minus the importance weighted bound, `E log mean_k w_k` with `w_k = p(x, z_k) / q(z_k)`.

    It lies between the ELBO and the log evidence, and grows with the number of draws.

    Args:
        num_particles: Draws that are weighted.

    Raises:
        ValueError: If `num_particles` is not a positive integer; when called, if a plate holds some
            of its rows.

    Source: Burda, Grosse and Salakhutdinov 2016, "Importance weighted autoencoders", equation 8.
    """

    num_particles: int = eqx.field(static=True, default=10)

    def __check_init__(self) -> None:
        require_particles(self.num_particles)

    def combine(self, terms: Float[Array, " particles"]) -> Float[Array, ""]:
        """Return the logarithm of the mean weight."""
        return jax.nn.logsumexp(terms) - jnp.log(self.num_particles)


class RenyiELBO(AbstractWeighted):
    """Minus the variational Renyi bound, `log mean_k w_k^(1 - alpha) / (1 - alpha)`.

    With `alpha = 0` it is `IWELBO`, and as `alpha` tends to 1 the `ELBO`. For `alpha < 0` it bounds
    the log evidence from above in the limit of many draws.

    Args:
        alpha: The order, not 1.
        num_particles: Draws that are weighted.

    Raises:
        ValueError: If `alpha` is 1, not finite or no number, or `num_particles` is not a positive
            integer; when called, if a plate holds some of its rows.

    Source: Li and Turner 2016, "Renyi divergence variational inference", equation 7.
    """

    alpha: float = eqx.field(static=True)
    num_particles: int = eqx.field(static=True)

    def __init__(self, alpha: float = 0.0, num_particles: int = 2):
        require_particles(num_particles)
        if not (is_number(alpha) and abs(alpha) < float("inf") and alpha != 1):
            raise ValueError(
                "alpha is a finite number other than 1, where the bound is gx.ELBO; got "
                f"{alpha!r}. Try 0.5."
            )
        self.alpha, self.num_particles = alpha, num_particles

    def combine(self, terms: Float[Array, " particles"]) -> Float[Array, ""]:
        """Return the bound."""
        order = 1.0 - self.alpha
        return (jax.nn.logsumexp(order * terms) - jnp.log(self.num_particles)) / order
