"""Sites as one flat vector, in site order."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from .._model.trace import LatentSpec


def size_of(sites: Sequence[LatentSpec]) -> int:
    """Return the number of unconstrained coordinates."""
    return sum(s.size for s in sites)


def dtype_of(sites: Sequence[LatentSpec]) -> DTypeLike:
    """Return the widest dtype of the sites."""
    return jnp.result_type(*(s.dtype for s in sites))


def ravel(values: dict[str, Array], sites: Sequence[LatentSpec]) -> Float[Array, " dim"]:
    """Lay the sites' values end to end."""
    dtype = dtype_of(sites)
    return jnp.concatenate([values[s.name].reshape(-1).astype(dtype) for s in sites])


def unravel(z: Float[Array, " dim"], sites: Sequence[LatentSpec]) -> dict[str, Array]:
    """Cut a vector into the sites' values, each in the site's dtype."""
    found, start = {}, 0
    for s in sites:
        found[s.name] = z[start : start + s.size].reshape(s.shape).astype(s.dtype)
        start += s.size
    return found
