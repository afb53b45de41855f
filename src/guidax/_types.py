"""Types that many files use, and how to tell their values."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

Key = PRNGKeyArray


def is_integer(x: Any) -> bool:
    """Say whether something is an integer of Python's; a truth value is none."""
    return isinstance(x, int) and not isinstance(x, bool)


def is_number(x: Any) -> bool:
    """Say whether something is a real number of Python's; a truth value is none."""
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def is_typed_key(x: Any) -> bool:
    """Say whether something is an array of typed random keys."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def is_key(x: Any) -> bool:
    """Say whether something is a random key, or the words of one; an integer seed is not."""
    return is_typed_key(x) or (getattr(x, "dtype", None) == jnp.uint32 and x.ndim > 0)


def require_key(who: str, key: Any) -> None:
    """Check that a random key comes first.

    Raises:
        TypeError: If it does not.
    """
    if not is_key(key):
        raise TypeError(f"{who} takes a random key first, such as jax.random.key(0); got {key!r}.")
