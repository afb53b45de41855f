"""TFP's bracketing root find. It stands here because TFP is met in this layer alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
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
    Chandrupatla's method, as fast as inverse quadratic interpolation. In a program compiled without
    XLA's optimisations it has been seen to return an end of the bracket. So the function must
    change sign around what it finds, within the bracket times the square root of the precision;
    where it does not, bisection finds the root.

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
    eps = float(jnp.finfo(like.dtype).eps)
    # TFP 0.26 compares with 0.5 in single precision, which strict promotion of dtypes refuses.
    with jax.numpy_dtype_promotion("standard"):
        found = tfp.math.find_root_chandrupatla(
            function,
            low=-high,
            high=high,
            position_tolerance=2 * eps * high,
            value_tolerance=jnp.zeros_like(like),
            max_iterations=_MAX_ITERATIONS,
        ).estimated_root
    near = math.sqrt(eps) * high
    values = jax.vmap(function)(jnp.stack([-high, found - near, found + near, high]))
    holds = (values[0] <= 0) & (values[3] >= 0)  # false for NaN too
    is_found = (values[1] <= 0) & (values[2] >= 0)

    def is_wide(bracket: tuple[Array, Array]) -> Array:
        low, up = bracket
        return holds & ~is_found & (up - low > 4 * eps * high)

    def halve(bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, up = bracket
        middle = 0.5 * (low + up)
        is_below = function(middle) <= 0
        return jnp.where(is_below, middle, low), jnp.where(is_below, up, middle)

    low, up = lax.while_loop(is_wide, halve, (-high, high))
    root = jnp.where(is_found, found, 0.5 * (low + up))
    return jnp.where(holds, root, jnp.nan)
