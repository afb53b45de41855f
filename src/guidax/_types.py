"""Names for types that many files use."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

Key = PRNGKeyArray


def is_key(x: Any) -> bool:
    """Say whether something is a random key, or the words of one; an integer seed is not."""
    dtype = getattr(x, "dtype", None)
    if dtype is None:
        return False
    return jnp.issubdtype(dtype, jax.dtypes.prng_key) or (dtype == jnp.uint32 and x.ndim > 0)
