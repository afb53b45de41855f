"""Sites as one flat vector, in site order; several where sites share leading axes or a plate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from .._model.trace import LatentSpec
from .._types import is_integer


def size_of(sites: Sequence[LatentSpec]) -> int:
    """Return the number of unconstrained coordinates."""
    return sum(s.size for s in sites)


def dtype_of(sites: Sequence[LatentSpec]) -> DTypeLike:
    """Return the widest dtype of the sites."""
    return jnp.result_type(*(s.dtype for s in sites))


def ravel(
    values: dict[str, Array], sites: Sequence[LatentSpec], batch_ndim: int = 0
) -> Float[Array, "*batch dim"]:
    """Lay the sites' values end to end, after the first `batch_ndim` axes, which all share."""
    dtype = dtype_of(sites)
    flat = [values[s.name].reshape(*s.shape[:batch_ndim], -1) for s in sites]
    return jnp.concatenate([x.astype(dtype) for x in flat], axis=-1)


def unravel(
    z: Float[Array, "*batch dim"], sites: Sequence[LatentSpec], batch_ndim: int = 0
) -> dict[str, Array]:
    """Cut a vector into the sites' values, each in the site's dtype."""
    found, start = {}, 0
    for s in sites:
        size = math.prod(s.shape[batch_ndim:])
        found[s.name] = z[..., start : start + size].reshape(s.shape).astype(s.dtype)
        start += size
    return found


def ravel_rows(
    values: dict[str, Array], sites: Sequence[LatentSpec], plate: str
) -> Float[Array, "rows dim"]:
    """Lay each row's share of the sites' values end to end; all sites are in the plate."""
    dtype = dtype_of(sites)
    first = [jnp.moveaxis(values[s.name], dict(s.plates)[plate], 0) for s in sites]
    return jnp.concatenate([x.reshape(x.shape[0], -1).astype(dtype) for x in first], axis=-1)


def unravel_rows(
    z: Float[Array, "rows dim"], sites: Sequence[LatentSpec], plate: str
) -> dict[str, Array]:
    """Cut the rows' vectors into the sites' values, each in the site's dtype."""
    found, start = {}, 0
    for s in sites:
        axis = dict(s.plates)[plate]
        shape = (*s.shape[:axis], *s.shape[axis + 1 :])
        size = math.prod(shape)
        rows = z[:, start : start + size].reshape(z.shape[0], *shape).astype(s.dtype)
        found[s.name] = jnp.moveaxis(rows, 0, axis)
        start += size
    return found


def require_shared_axes(sites: Sequence[LatentSpec], batch_ndim: int) -> None:
    """Refuse sites that do not share their first `batch_ndim` axes.

    Raises:
        ValueError: If they do not.
    """
    if not (is_integer(batch_ndim) and batch_ndim >= 0):
        raise ValueError(f"batch_ndim counts leading axes, so it is 0 or more; got {batch_ndim!r}.")
    shapes = {s.name: s.shape for s in sites}
    first = next(iter(shapes.values()))
    if any(len(x) < batch_ndim or x[:batch_ndim] != first[:batch_ndim] for x in shapes.values()):
        raise ValueError(
            f"batch_ndim={batch_ndim}, but the unconstrained shapes of the latents do not share "
            f"that many leading axes: {shapes}. Lower batch_ndim, or give the others a guide of "
            "their own."
        )
