"""TFP's bracketing root find. It stands here because TFP is met in this layer alone."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float
from tensorflow_probability.substrates import jax as tfp

_MAX_ITERATIONS = 200  # bisection alone takes about 60 in double precision


def increasing_root(
    function: Callable[[Float[Array, ""]], Float[Array, ""]], like: Float[Array, ""]
) -> Float[Array, ""]:
    """Return where an increasing function is zero, to a few units in the last place of the bracket.

    The bracket doubles, from -1 and 1, until the function changes sign in it; inside it runs
    Chandrupatla's method, as fast as inverse quadratic interpolation and as safe as bisection.

    Args:
        function: A continuous increasing function of a number.
        like: A number of the dtype to search in.

    Returns:
        The root; NaN if no finite number brackets one.
    """
    one = jnp.ones_like(like)

    def grows(high: Array) -> Array:
        outside = (function(-high) > 0) | (function(high) < 0)
        return outside & jnp.isfinite(high)

    high = lax.while_loop(grows, lambda high: 2 * high, one)
    found = tfp.math.find_root_chandrupatla(
        function,
        low=-high,
        high=high,
        position_tolerance=2 * jnp.finfo(like.dtype).eps * high,
        value_tolerance=jnp.zeros_like(like),
        max_iterations=_MAX_ITERATIONS,
    )
    holds = (function(-high) <= 0) & (function(high) >= 0)  # false for NaN too
    return jnp.where(holds, found.estimated_root, jnp.nan)
