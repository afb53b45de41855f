"""Whether the rows of a plate are independent of each other, given all that is outside it."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import random
from jaxtyping import Array, Bool, Float

from .._numerics import is_traced
from .._types import Key
from .model import at_zero
from .start import Start
from .target import Draw, scored_sites, site_entries
from .trace import Site

_Terms = dict[str, Array]


def require_local(start: Start, plate: str, names: tuple[str, ...], key: Key) -> None:
    """Refuse a model in which the latents of one row are read outside that row.

    Gradients near the start tell, so the check needs values that are known: inside a
    transformation nothing is checked.

    Args:
        start: Where to look; latents without a location are held at unconstrained zero.
        plate: The plate.
        names: Latents in it.
        key: For the point, which is moved away from the start at random.

    Raises:
        ValueError: If a term outside the plate reads one of them, or a row's term reads another
            row's.
    """
    if is_traced((start.model, start.batch, start.location)):
        return
    args = (start.model, start.batch, key, start.location, start.rows)
    outside, across = _readers(*args, plate=plate, names=names, specs=start.structure.latents)
    for site, latents in outside.items():
        for name, reads in latents.items():
            if bool(reads):
                raise ValueError(
                    f"site {site!r} is outside plate {plate!r}, but its density reads latent "
                    f"{name!r}, which is inside: then the rows of the plate are not independent "
                    "given what is outside it, and DAIS cannot move them one by one. Put the site "
                    f"into the plate, or give {name!r} to global_guide."
                )
    for site, latents in across.items():
        for name, reads in latents.items():
            if bool(reads):
                raise ValueError(
                    f"rows of plate {plate!r} feed each other: the density of site {site!r} in "
                    f"one row reads latent {name!r} of another. DAIS moves rows one by one, so "
                    "they must be independent given what is outside the plate. Use gx.AutoDAIS or "
                    "gx.AutoMultivariateNormal on all data."
                )


@functools.partial(jax.jit, static_argnames=("plate", "names", "specs"))
def _readers(
    model: Any,
    batch: Any,
    key: Key,
    location: dict[str, Array],
    rows: dict[str, Array],
    *,
    plate: str,
    names: tuple[str, ...],
    specs: Any,
) -> tuple[dict[str, _Terms], dict[str, _Terms]]:
    """Say for each site outside the plate, and for each inside, which latents it reads wrongly."""
    u = {s.name: s.take(location[s.name], rows) for s in specs}
    axes = {s.name: dict(s.plates)[plate] for s in specs if s.name in names}
    keys = random.split(key, len(names) + 2)
    # Away from a start that may be a stationary point, such as zero.
    local = {
        n: u[n] + random.uniform(k, u[n].shape, u[n].dtype, -0.5, 0.5)
        for n, k in zip(names, keys, strict=False)
    }

    def terms(local: _Terms) -> tuple[_Terms, _Terms]:
        draw = Draw.of({**u, **local})

        def choose(site: Site) -> Array | None:
            if site.name not in draw:
                return at_zero(site)
            return site.known_bijection.forward(draw.values[site.name])

        outside, inside = {}, {}
        for site in scored_sites(model.run(batch, keys[-1], choose, rows), draw):
            entries = jnp.broadcast_to(site_entries(site, draw)[0], site.batch_shape)
            found = [q.dim for q in site.plates if q.name == plate]
            if found:
                by_row = jnp.moveaxis(entries, found[0], 0)
                inside[site.name] = jnp.sum(by_row, axis=tuple(range(1, by_row.ndim)))
            else:
                outside[site.name] = jnp.sum(entries)
        return outside, inside

    (outside, inside), pull = jax.vjp(terms, local)
    zero = jax.tree.map(jnp.zeros_like, (outside, inside))

    def gradient(name: str, weight: Array) -> _Terms:
        """Return the gradient of one site's terms, summed with weights over the rows."""
        which = 0 if name in outside else 1
        cotangent = [dict(part) for part in zero]
        cotangent[which][name] = weight.astype(cotangent[which][name].dtype)
        return pull(tuple(cotangent))[0]

    reads, mixes = {}, {}
    for name, term in outside.items():
        grads = gradient(name, jnp.ones_like(term))
        reads[name] = {n: jnp.any(_finite(g) != 0) for n, g in grads.items()}
    for name, term in inside.items():
        weight = random.normal(keys[-2], term.shape)
        plain, weighted = gradient(name, jnp.ones_like(term)), gradient(name, weight)
        mixes[name] = {n: ~_by_row(plain[n], weighted[n], weight, axes[n]) for n in names}
    return reads, mixes


def _by_row(
    plain: Array, weighted: Array, weight: Float[Array, " rows"], axis: int
) -> Bool[Array, ""]:
    """Say whether weights of the rows' terms weight the rows' gradients, and no others."""
    a = _finite(jnp.moveaxis(plain, axis, 0)) * weight.reshape(-1, *(1,) * (plain.ndim - 1))
    b = _finite(jnp.moveaxis(weighted, axis, 0))
    size = jnp.max(jnp.abs(a), initial=0.0)
    return jnp.all(jnp.abs(a - b) <= 1e-3 * jnp.abs(a) + 1e-5 * size)


def _finite(x: Array) -> Array:
    return jnp.where(jnp.isfinite(x), x, 0.0)
