"""Standard normal noise for sites."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import random
from jaxtyping import Array

from .._model.trace import Indices, LatentSpec
from .._types import Key
from .vector import size_of, unravel


def site_noise(key: Key, sites: Sequence[LatentSpec], indices: Indices) -> dict[str, Array]:
    """Return standard normal noise in the shape of each site's rows.

    Sites outside plates share one generator call, which is what costs compilation; a site in a
    plate has its own, so that its rows may live on several devices.
    """
    plain = [s for s in sites if not s.plates]
    found = {s.name: _in_plates(key, s, indices) for s in sites if s.plates}
    for dtype in sorted({s.dtype for s in plain}):
        group = [s for s in plain if s.dtype == dtype]
        found |= unravel(random.normal(key, (size_of(group),), dtype), group)
    return found


def _in_plates(key: Key, site: LatentSpec, indices: Indices) -> Array:
    key = random.fold_in(key, zlib.crc32(site.name.encode()))
    if any(name in indices for name in site.plate_names):
        return row_noise(key, site, indices)
    return random.normal(key, site.shape, site.dtype)


def row_noise(key: Key, site: LatentSpec, indices: Indices) -> Array:
    """Return noise that belongs to the row, not to its place in the batch.

    A row gets the same noise in every batch that holds it, so the estimates of all batches average
    exactly to the full one.
    """
    axes = [axis for _, axis in site.plates]
    event = tuple(n for axis, n in enumerate(site.shape) if axis not in axes)

    def one(key: Key) -> Array:
        return random.normal(key, event, site.dtype)

    draw: Callable[[Key], Array] = one
    for name, axis in site.plates:
        draw = _over_rows(draw, indices.get(name, jnp.arange(site.shape[axis])))
    # The plate wrapped last leads.
    return jnp.moveaxis(draw(key), range(len(axes)), axes[::-1])


def _over_rows(draw: Callable[[Key], Array], rows: Array) -> Callable[[Key], Array]:
    return lambda key: jax.vmap(lambda row: draw(random.fold_in(key, row)))(rows)
