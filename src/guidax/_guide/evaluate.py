"""The jitted functions behind the methods of a guide, keyed on what is static about it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import random
from jaxtyping import Array, Float

from .._family.product import joined_params
from .._model.batch import Batch
from .._model.model import at_zero
from .._model.points import as_points, over_points
from .._model.target import Draw, outside, scaled_sum
from .._model.trace import Trace
from .._numerics import map_at_a_time
from .._types import Key

if TYPE_CHECKING:
    from .guide import AutoGuide

Names = tuple[str, ...] | None


@functools.partial(jax.jit, static_argnames=("sample_shape", "names", "batch_size"))
def sample(
    guide: AutoGuide,
    key: Key,
    batch: Batch,
    sample_shape: tuple[int, ...],
    names: Names,
    batch_size: int | None,
) -> tuple[dict[str, Array], Float[Array, "*sample_shape"]]:
    """Draw, and return log q of each draw in constrained space."""
    size = math.prod(sample_shape)
    keys = random.split(key, 2 * size + 1)
    indices = guide.indices(keys[0], batch, whole=True)

    def one(pair: Array) -> tuple[dict[str, Array], Array]:
        target = guide.target(pair[0], batch, indices)
        draw = guide.family.draw(pair[1], target)
        trace = target.run(draw, forward=True)
        score = target.score_trace(trace, draw)
        return _chosen(trace, guide, names), score.log_q - score.log_det

    pairs = keys[1:].reshape(size, 2, *key.shape)
    flat = map_at_a_time(one, pairs, size, batch_size)
    return jax.tree.map(lambda x: x.reshape(sample_shape + x.shape[1:]), flat)


def _chosen(trace: Trace, guide: AutoGuide, names: Names) -> dict[str, Array]:
    """Return the sites that were asked for; without names, all that the guide answers for.

    Other latents were drawn from the model: those of other parts, and data that were left out.
    """
    held = {s.name for s in guide.family.sites}
    sites = trace.sites.values()
    found = {s.name: s.value for s in sites if s.kind == "deterministic" or s.name in held}
    if names is None:
        return found
    if unknown := [n for n in names if n not in found]:
        raise ValueError(
            f"the guide has no latent or deterministic sites {unknown}; it has {sorted(found)}. "
            "Observations are drawn from the model, not from the guide."
        )
    return {n: found[n] for n in names}


@functools.partial(jax.jit, static_argnames=("names", "num_samples"))
def quantiles(
    guide: AutoGuide,
    level: Float[Array, "*levels"],
    key: Key,
    batch: Batch,
    names: Names,
    num_samples: int,
) -> dict[str, Array]:
    """Return quantiles: closed forms where they are exact, those of draws elsewhere."""
    flat = level.ravel()  # jnp.quantile takes no matrix of levels
    found = jax.vmap(lambda q: _closed_quantile(guide, q, key, batch))(flat)
    # XLA drops the draws of sites that have closed forms.
    draws, _ = sample(guide, key, batch, (num_samples,), names, None)
    if unordered := sorted(n for n, x in draws.items() if jnp.iscomplexobj(x)):
        raise TypeError(
            f"the sites {unordered} hold complex numbers, which have no order and so no quantiles. "
            "Draw, guide.sample_posterior(key, ..., sample_shape=(1000,)), and take quantiles of "
            "the real and the imaginary parts; or record these in the model, as deterministic "
            "sites in place of the complex one."
        )
    found = {n: found[n] if n in found else _quantile_of_draws(x, flat) for n, x in draws.items()}
    return {n: x.reshape(level.shape + x.shape[1:]) for n, x in found.items()}


def _quantile_of_draws(x: Array, level: Float[Array, " levels"]) -> Array:
    """Return quantiles over the first axis.

    Of integers and flags, which have nothing between them, they are the nearest that was drawn.
    """
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.quantile(x, level, axis=0).astype(x.dtype)
    return jnp.sort(x, axis=0)[jnp.round(level * (len(x) - 1)).astype(int)]


def _closed_quantile(
    guide: AutoGuide, level: Float[Array, ""], key: Key, batch: Batch
) -> dict[str, Array]:
    target = guide.target(key, batch, guide.indices(key, batch, whole=True))
    rising = guide.family.quantile(level, target)
    if not rising:
        return {}
    falling = guide.family.quantile(1 - level, target)
    sites = target.run(Draw.of(rising), forward=True).sites
    found = {}
    for name, u in rising.items():
        bijection = sites[name].known_bijection
        if bijection.monotone and name not in guide.structure.coupled:
            found[name] = bijection.forward(u if bijection.monotone > 0 else falling[name])
    return found


def log_prob(guide: AutoGuide, latents: Mapping[str, Any], batch: Batch) -> Array:
    """Return log q at constrained latents, which may have leading axes."""
    held = {s.name for s in guide.family.sites}
    asked = as_points(latents, guide.structure.deterministic)
    return over_points(
        lambda point: _log_prob(guide, point, batch), asked, held, guide.model, batch
    )


@jax.jit
def _log_prob(guide: AutoGuide, latents: dict[str, Array], batch: Batch) -> Float[Array, ""]:
    key = random.key(0)
    target = guide.target(key, batch, guide.indices(key, batch, whole=True))
    trace = target.run(Draw.of(latents, "constrained"), forward=True)
    sites = {name: trace.sites[name] for name in latents}
    u = {name: site.known_bijection.inverse(site.value) for name, site in sites.items()}
    log_q = guide.family.log_q(Draw.of(u), target)
    if log_q is None:
        raise TypeError(
            f"{type(guide).__name__} has no density in closed form: its draws come with theirs, "
            "see sample_and_log_prob."
        )
    if points := sorted(u.keys() - {name for block in log_q for name in block.sites}):
        raise TypeError(
            f"{type(guide).__name__} draws the sites {points} as points, which have no density. "
            "That of another part of a list is guide[i].log_prob(...)."
        )
    log_det = (
        s.plate_scale * jnp.sum(s.known_bijection.log_det(u[n], s.value)) for n, s in sites.items()
    )
    found = scaled_sum(log_q, trace) - sum(log_det)
    return jnp.where(outside(sites.values()), -jnp.inf, found)


@jax.jit
def param_values(guide: AutoGuide, batch: Batch) -> dict[str, Any]:
    """Return the constrained values of the `param` sites of model and family."""
    key = random.key(0)
    trace = guide.model.run(batch, key, at_zero, dict(batch.rows))
    values = {name: site.value for name, site in trace.of("param").items()}
    if not guide.family.has_params:
        return values
    target = guide.target(key, batch, guide.indices(key, batch, whole=True))
    return joined_params(values, guide.family.param_values(key, target))
