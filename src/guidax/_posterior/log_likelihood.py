"""Log densities of the observations, one for each datum."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import random
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .._model.batch import Batch, as_batch, options_of
from .._model.indices import check_rows
from .._model.log_density import LogDensity
from .._model.model import AbstractModel
from .._model.target import NOTHING, site_entries
from .._model.trace import Site, Trace
from .._types import Key, positive_or_none
from .runs import as_draws, model_of, over_draws, require_known_order


def log_likelihood(
    model: Any,
    draws: Mapping[str, ArrayLike],
    /,
    *args: Any,
    batch_size: int | None = None,
    **kwargs: Any,
) -> dict[str, Float[Array, "..."]]:
    """Return the log density of each observation at each draw, as NumPyro's function does.

    Nothing is scaled, neither by `gx.handlers.scale` nor by N/B; masked entries count 0. A
    `factor` is a site too. Plates hold the rows that `Batch.at` names, else all of them where the
    model runs with all. Draws that hold every row of a plate are in the plate's order.

    Args:
        model: A model, such as `guide.model`, with its trained parameters; or a callable.
        draws: Latent to values with leading sample axes, as `guide.sample_posterior` returns them;
            deterministic sites are ignored.
        *args: The model's arguments, or one `gx.Batch`.
        batch_size: How many draws to compute at a time, to bound memory; None for all.
        **kwargs: The model's keyword arguments.

    Returns:
        Observed site to log densities in nats, of shape `sample axes + batch shape`.

    Raises:
        TypeError: If `model` is a guide or cannot be called, or the arguments do not fit it.
        ValueError: If a latent has no draws, if a draw belongs to no latent of this call or does
            not fit it, if draws and arguments hold all rows of a plate and `at` names another order
            than the plate's, or if nothing is observed.
    """
    model, draws = model_of(model), as_draws(draws)
    if isinstance(model, LogDensity):
        raise ValueError(
            "a bare log density does not say which of its terms is the likelihood: write the model "
            "in the model language, with gx.sample(..., obs=)."
        )
    batch = as_batch(model, args, kwargs, options_of(log_likelihood))
    size = positive_or_none("batch_size", batch_size)
    check_rows(model, batch)
    require_known_order(model, draws, batch)
    return _log_likelihood(model, draws, batch, size)


@functools.partial(jax.jit, static_argnames="batch_size")
def _log_likelihood(
    model: AbstractModel, draws: dict[str, Array], batch: Batch, batch_size: int | None
) -> dict[str, Array]:
    return over_draws(
        _entries,
        model,
        draws,
        random.key(0),
        batch,
        num_samples=1,
        batch_size=batch_size,
        complete=True,
    )


def _entries(trace: Trace, key: Key) -> dict[str, Array]:
    del key
    if not (observed := trace.of("observed")):
        raise ValueError("the model observes nothing in this call: pass its data.")
    return {name: entries_of(site) for name, site in observed.items()}


def entries_of(site: Site) -> Float[Array, "..."]:
    """Return the log density of each entry of an observed site; masked ones count 0."""
    entries, _ = site_entries(dataclasses.replace(site, scale=1.0), NOTHING)
    return jnp.broadcast_to(entries, site.batch_shape)
