"""Whether a model takes the rows of its data by the numbers that a plate gives it."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import random
from jaxtyping import Array, Bool, Float

from .._types import Key
from .batch import Batch
from .model import AbstractModel
from .rows import draw_rows
from .structure import probe
from .trace import Indices, LatentSpec, Plate, Site

_SINGLES = 8  # rows looked at where a plate holds one row at a time


@functools.partial(jax.jit, static_argnames="plates")
def equivariant_plates(
    model: AbstractModel, batch: Batch, key: Key, plates: tuple[Plate, ...]
) -> Bool[Array, " plates"]:
    """Say for each plate whether permuting its row numbers permutes the rows' log densities.

    With one unconstrained value fixed for every row, the model runs with some row numbers and with
    the same numbers shifted by one place. Rows that it takes itself (`y[rows]`, `gx.subsample(y)`)
    move along; ready-made ones stay, unless they are all alike, and then it does not matter. Where
    a plate holds one row at a time nothing can move: there the log density of some row must differ
    from another's when both have the same latents.

    Args:
        model: The model.
        batch: The arguments, without row numbers.
        key: For values and rows.
        plates: The plates.

    Returns:
        One flag for each plate.
    """
    structure = probe(model, batch, key)
    specs = structure.latents
    keys = random.split(key, len(specs) + len(plates) + 1)
    values = {
        s.name: random.uniform(k, s.shape, s.dtype, -1.0, 1.0)
        for s, k in zip(specs, keys, strict=False)
    }
    rows = {
        p.name: draw_rows(k, p.size, _held(p))
        for p, k in zip(plates, keys[len(specs) :], strict=False)
    }
    flags = []
    for p in plates:
        test = _moves if _held(p) > 1 else _differs
        flags.append(test(model, batch, keys[-1], specs, values, rows, p))
    return jnp.array(flags)


def _held(p: Plate) -> int:
    """How many rows to hold: as many as the model does, or all but one."""
    return p.rows if p.rows < p.size else max(p.size - 1, 1)


def _moves(
    model: AbstractModel,
    batch: Batch,
    key: Key,
    specs: tuple[LatentSpec, ...],
    values: dict[str, Array],
    rows: Indices,
    p: Plate,
) -> Bool[Array, ""]:
    shifted = {**rows, p.name: jnp.roll(rows[p.name], 1)}
    here = _row_terms(model, batch, key, specs, values, rows, p)
    there = _row_terms(model, batch, key, specs, values, shifted, p)
    return jnp.all(
        jnp.array([_same(jnp.roll(a, 1, axis=0), b) for a, b in zip(here, there, strict=True)])
    )


def _differs(
    model: AbstractModel,
    batch: Batch,
    key: Key,
    specs: tuple[LatentSpec, ...],
    values: dict[str, Array],
    rows: Indices,
    p: Plate,
) -> Bool[Array, ""]:
    alike = {}
    for s in specs:
        axis = dict(s.plates).get(p.name)
        first = values[s.name] if axis is None else jnp.take(values[s.name], jnp.array([0]), axis)
        alike[s.name] = jnp.broadcast_to(first, s.shape)
    terms = [
        _row_terms(model, batch, key, specs, alike, {**rows, p.name: jnp.array([i])}, p)
        for i in range(min(p.size, _SINGLES))
    ]
    same = [_same(a, b) for other in terms[1:] for a, b in zip(terms[0], other, strict=True)]
    return ~jnp.all(jnp.array(same))


def _row_terms(
    model: AbstractModel,
    batch: Batch,
    key: Key,
    specs: tuple[LatentSpec, ...],
    values: dict[str, Array],
    rows: Indices,
    p: Plate,
) -> Sequence[Float[Array, "rows ..."]]:
    """Return the log density of each site in the plate, its axis first."""
    by_name = {s.name: s for s in specs}

    def choose(site: Site) -> Array | None:
        if site.name not in by_name:  # an observation that is left out: a draw will do
            return None
        return site.known_bijection.forward(by_name[site.name].take(values[site.name], rows))

    found = []
    for site in model.run(batch, key, choose, rows).sites.values():
        inside = any(each.name == p.name for each in site.plates)
        is_drawn = site.kind == "latent" and site.name not in by_name
        if inside and site.log_prob is not None and not is_drawn:
            axis = len(site.batch_shape) + next(q.dim for q in site.plates if q.name == p.name)
            log_p = site.log_prob(site.value) * site.scale
            log_p = jnp.where(True if site.mask is None else site.mask, log_p, 0)
            found.append(jnp.moveaxis(log_p, axis, 0))
    return found


def _same(a: Array, b: Array) -> Bool[Array, ""]:
    """Say whether the finite terms agree, of which there must be some."""
    finite = jnp.isfinite(a) & jnp.isfinite(b)
    size = jnp.max(jnp.where(finite, jnp.abs(a), 0.0), initial=0.0)
    close = jnp.abs(a - b) <= 1e-4 * jnp.abs(a) + 1e-5 * size
    return jnp.all(jnp.where(finite, close, jnp.isfinite(a) == jnp.isfinite(b))) & jnp.any(finite)
