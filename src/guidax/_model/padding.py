"""What stands in the place of a masked observation, whose NaN must not reach a gradient."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax, random
from jaxtyping import Array, Bool

from .trace import Site


def without_padding(site: Site) -> Any:
    """Return a site's value, with one inside the support in the place of each masked observation.

    What stands there does not count, but its density and gradient have to be finite. A prior draw
    would do, and takes a hundred times the density's own time for some distributions, in each
    evaluation: it depends on parameters. So it is an observation from elsewhere in the data, which
    is about as large as the missing one, and no special point of the density, as zero may be. Where
    none fits (each row may have its own support) it is a point of the support, and a draw where no
    such point is known.

    Raises:
        ValueError: If neither a point of the support nor a draw is to be had.
    """
    if site.mask is None or site.mask is False or site.kind != "observed" or 0 in site.event_shape:
        return site.value
    value = jnp.asarray(site.value)
    mask = jnp.broadcast_to(site.mask, site.batch_shape).astype(bool)
    inside = lax.stop_gradient(_inside(site, value, mask)).astype(value.dtype)
    inside = inside + jnp.zeros_like(value)  # spread over the devices of an explicit mesh as it is
    return jnp.where(_over_events(mask, site), value, inside)


def _inside(site: Site, value: Array, mask: Bool[Array, "..."]) -> Array:
    point = _point(site)
    if point is None:
        if site.sample is None:
            raise ValueError(
                f"observed site {site.name!r} is masked by an array, and a value of its support "
                "takes the place of a masked entry, but its distribution has no support that is "
                "known, and no draws: give it one of them (in an adapter, let the gx.Site have "
                "`feasible` or `sample`), or take the mask off."
            )
        return site.sample(random.key(0))
    if site.contains is None or not site.batch_shape:
        return point
    seen, value = _seen(site, value, mask)
    fits = jnp.asarray(site.contains(value))
    return jnp.where(_over_events(seen & fits, site), value, point)


def _point(site: Site) -> Array | None:
    if site.feasible is None:
        return None
    try:
        return site.feasible()
    except NotImplementedError:  # of a support that knows no point of its own
        return None


def _seen(site: Site, value: Array, mask: Bool[Array, "..."]) -> tuple[Array, Array]:
    """Return the first entry that is not masked along the longest axis, and whether there is one.

    That is the axis of the rows: columns may differ in size.
    """
    axis = max(range(mask.ndim), key=mask.shape.__getitem__)
    rows = mask.shape[axis]
    number = jnp.arange(rows).reshape([-1 if i == axis else 1 for i in range(mask.ndim)])
    number = number + rows * ~mask
    first = jnp.min(number, axis, initial=rows, keepdims=True)
    # Summed, not taken by its number: a sum goes over axes that are spread over devices, too.
    picked = jnp.where(_over_events(number == first, site), value, jnp.zeros_like(value))
    return first < rows, jnp.sum(picked, axis, keepdims=True).astype(value.dtype)


def _over_events(condition: Array, site: Site) -> Array:
    """Return a condition of the batch shape with an axis for each of the event's."""
    return condition.reshape(condition.shape + (1,) * len(site.event_shape))
