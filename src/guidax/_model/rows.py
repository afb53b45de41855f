"""Random subsets of the rows of a plate."""

from __future__ import annotations

import jax.numpy as jnp
from jax import random
from jaxtyping import Array, Int

from .._types import Key


def draw_rows(key: Key, size: int, rows: int) -> Int[Array, " rows"]:
    """Draw `rows` different numbers below `size`, each ordered subset equally likely.

    Memory is O(rows) and time about that: the first `rows` different values of a sequence of
    independent draws are such a subset, so no permutation of `size` is needed where `rows` is a
    small part of it. The sequence is long enough that fewer different values have probability
    below 1e-16.
    """
    if size < 10 * rows:
        return random.permutation(key, size)[:rows]
    draws = random.randint(key, (rows + rows // 4 + 16,), 0, size)
    order = jnp.argsort(draws, stable=True)
    ordered = draws[order]
    again = jnp.concatenate([jnp.zeros(1, bool), ordered[1:] == ordered[:-1]])
    is_repeat = jnp.zeros(draws.shape, bool).at[order].set(again)
    return draws[jnp.argsort(is_repeat, stable=True)[:rows]]
