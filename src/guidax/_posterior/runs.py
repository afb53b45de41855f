"""Runs of a model with draws in the place of its latents: prediction and likelihoods read them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jax.typing import ArrayLike
from jaxtyping import Array

from .._guide.guide import AutoGuide
from .._model.batch import Batch
from .._model.indices import refusal
from .._model.model import AbstractModel, at_zero
from .._model.program import as_model
from .._model.structure import describe
from .._model.trace import Indices, Plate, Site, Trace
from .._numerics import is_traced, map_at_a_time, strong
from .._types import Key

Read = TypeVar("Read")


def model_of(model: Any) -> AbstractModel:
    """Return a model; a guide is refused.

    Raises:
        TypeError: If it is a guide, or cannot be called.
    """
    if isinstance(model, AutoGuide):
        raise TypeError(
            f"predictions come from a model; got the guide {type(model).__name__}: pass its "
            "guide.model, and the draws of guide.sample_posterior."
        )
    return as_model(model)


def as_draws(draws: Mapping[str, ArrayLike] | None) -> dict[str, Array]:
    """Return draws as strongly typed arrays, so that a second call traces nothing."""
    if draws is not None and not isinstance(draws, Mapping):
        raise TypeError(
            "draws is a dictionary from site to array, as guide.sample_posterior returns it; got "
            f"{type(draws).__name__}."
        )
    return {name: strong(value) for name, value in (draws or {}).items()}


def require_known_order(model: AbstractModel, draws: Mapping[str, Array], batch: Batch) -> None:
    """Refuse draws of all rows of a plate beside arguments that hold all rows in another order.

    Inside a transformation row numbers are not known, and nothing is checked.

    Raises:
        ValueError: If there are such draws.
    """
    if not batch.rows:
        return
    for site in describe(model, batch, random.key(0)).latents:
        for plate, axis in site.plates:
            rows, size = batch.rows.get(plate), site.shape[axis]
            if site.name not in draws or rows is None or is_traced(rows):
                continue
            if rows.shape[0] == size and np.any(np.asarray(rows) != np.arange(size)):
                raise ValueError(
                    f"draws of site {site.name!r} hold all {size} rows of plate {plate!r}, and "
                    f"at({plate}=...) names all of them in another order, so it is not clear in "
                    "which of the two orders the draws are: pass draws and arguments in the "
                    "plate's order, without at."
                )


def first_run(model: AbstractModel, batch: Batch, key: Key) -> tuple[Trace, Indices, set[str]]:
    """Run once with stand-ins for the latents, to learn shapes. XLA drops what is not used of it.

    Returns:
        The run, the rows that the plates hold (those of the batch; else all, where the model runs
        with all of them), and the names of the sites that draws can take the place of.

    Raises:
        ValueError: If a plate holds one row at a time and the batch does not say which.
    """
    asked: set[str] = set()

    def choose(site: Site) -> Array | None:
        asked.add(site.name)
        return at_zero(site)

    rows = dict(batch.rows)
    trace = model.run(batch, key, choose, rows)
    short = [p for p in trace.plates.values() if p.rows < p.size and p.name not in rows]
    for p in short:
        if p.rows == 1:
            # One ready-made row would broadcast to all of them, so running tells nothing.
            raise ValueError(
                f"plate {p.name!r} holds one of {p.size} rows, and the arguments do not say which: "
                f"gx.Batch(...).at({p.name}=row_numbers)."
            )
        whole = {**rows, p.name: jnp.arange(p.size)}
        if refusal(model, batch, key, whole) is None:
            rows = whole
    if short:
        trace = model.run(batch, key, choose, rows)
    return trace, rows, asked


def over_draws(
    read: Callable[[Trace, Key], Read],
    model: AbstractModel,
    draws: Mapping[str, Array],
    key: Key,
    batch: Batch,
    *,
    num_samples: int | None,
    batch_size: int | None,
    complete: bool = False,
    taken: bool = False,
) -> Read:
    """Run the model at each draw, and return what is read of the runs.

    Args:
        read: From a run and a key to a pytree of arrays.
        model: The model.
        draws: Latent to values with leading sample axes; deterministic sites are ignored.
        key: For what is not in the draws.
        batch: The arguments.
        num_samples: How many runs, where there are no draws.
        batch_size: How many runs at a time; None for all.
        complete: Whether every latent must be among the draws.
        taken: Whether the draws hold the rows of the run, in its order; else those that hold all
            rows of a plate are in the plate's order.

    Returns:
        What `read` returns, with the sample axes in front.

    Raises:
        ValueError: If a draw belongs to no latent of this call or does not fit it, if the leading
            axes of two draws differ, or if a latent has neither draws nor a prior to draw from.
    """
    trace, rows, asked = first_run(model, batch, key)
    draws = {n: x for n, x in draws.items() if n not in trace.of("deterministic")}
    _require_latents(draws, trace, asked)
    lead = _leading_axes(draws, trace, num_samples)
    size = math.prod(lead)
    flat = {n: x.reshape(size, *x.shape[len(lead) :]) for n, x in draws.items()}
    keys = random.split(key, 2 * size).reshape(size, 2, *key.shape)

    def one(pair: tuple[Array, dict[str, Array]]) -> Read:
        (run_key, read_key), point = pair

        def choose(site: Site) -> Array | None:
            if site.name in point:
                value, all_of_it = point[site.name], trace.sites[site.name]
                may_end_early = not complete and len(site.batch_shape) < len(all_of_it.batch_shape)
                return _fitted(value, all_of_it, {} if taken else rows, may_end_early)
            if complete or site.sample is None:
                raise _no_draws(site)
            return None

        return read(model.run(batch, run_key, choose, rows), read_key)

    found = map_at_a_time(one, (keys, flat), size, batch_size)
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), found)


def _require_latents(draws: Mapping[str, Array], trace: Trace, asked: set[str]) -> None:
    for name in draws:
        if name in asked:
            continue
        if name in trace.of("observed"):
            raise ValueError(
                f"draws hold site {name!r}, which is observed in this call: leave it out of draws, "
                "or pass None in the place of its data."
            )
        raise ValueError(
            f"draws hold {name!r}, which is no latent of the model in this call: it has "
            f"{sorted(asked)}. Leave it out of draws. (Values of param sites come with the model: "
            "guide.model.)"
        )


def _leading_axes(
    draws: Mapping[str, Array], trace: Trace, num_samples: int | None
) -> tuple[int, ...]:
    if not draws:
        if num_samples is None:
            raise ValueError("there are no draws of latents: say how many runs, num_samples=1000.")
        return (num_samples,)
    leads = {}
    for name, value in draws.items():
        site = trace.sites[name]
        shape = (*site.batch_shape, *site.event_shape)
        if value.ndim < len(shape):
            raise ValueError(
                f"draws of site {name!r} have shape {value.shape}, but the site itself has shape "
                f"{shape}: sample axes lead, then come the site's."
            )
        leads[name] = value.shape[: value.ndim - len(shape)]
    if len(set(leads.values())) > 1:
        raise ValueError(f"the leading axes of the draws differ: {leads}.")
    return next(iter(leads.values()))


def _fitted(value: Array, site: Site, rows: Indices, may_end_early: bool) -> Array:
    """Return a draw in the shape of the site: of a plate that has all rows, those that are named.

    Args:
        value: The draw.
        site: The site as the whole run has it: in NumPyro's `scan` with all steps, first.
        rows: Row numbers of plates.
        may_end_early: Whether a draw may hold the first steps only. NumPyro draws the others.

    Raises:
        ValueError: If it has another shape.
    """
    for p in site.plates:
        axis = len(site.batch_shape) + p.dim
        if p.name in rows and value.shape[axis] == p.size:
            value = jnp.take(value, rows[p.name], axis)
        elif value.shape[axis] != p.rows:
            raise _other_size(site, p, value.shape[axis])
    shape = (*site.batch_shape, *site.event_shape)
    ends_early = may_end_early and value.shape[0] < shape[0] and value.shape[1:] == shape[1:]
    if value.shape != shape and not ends_early:
        raise ValueError(
            f"draws of site {site.name!r} have shape {value.shape} each, but the site has shape "
            f"{shape} in this call."
        )
    return value


def _other_size(site: Site, p: Plate, found: int) -> ValueError:
    held = f"{p.rows} rows" if p.rows == p.size else f"{p.rows} of {p.size} rows"
    advice = "leave the site out of draws, and it is drawn from its prior for these rows"
    if found == p.size:
        advice = f"say which rows the arguments hold, gx.Batch(...).at({p.name}=row_numbers)"
    return ValueError(
        f"draws of site {site.name!r} hold {found} rows of plate {p.name!r}, which has {held} in "
        f"this call: {advice}."
    )


def _no_draws(site: Site) -> ValueError:
    if site.sample is None:
        return ValueError(
            f"site {site.name!r} has no prior that can be drawn from (a flat prior, a bare log "
            "density, or a distribution without `sample`): pass its draws, as "
            "guide.sample_posterior returns them; or, if it is an observation, its data."
        )
    return ValueError(
        f"draws lack the latent {site.name!r}. If it is an observation, pass its data; if not, "
        "pass its draws too."
    )
