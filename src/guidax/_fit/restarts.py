"""An ensemble of fits from several starts, compared by their bounds."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jaxtyping import Array, Float, Int, PyTree

from .._guide.guide import AutoGuide
from .._model.batch import Batch, as_batch, options_of
from .._numerics import is_traced
from .._objective.base import AbstractObjective
from .._objective.elbo import ELBO
from .._types import Key, positive, require_key
from .fit import fit
from .recipe import OnNonfinite, Optimizer, Schedule
from .result import FitResult

_TOGETHER = 16  # draws of the comparison that are evaluated at a time


class Restarts(eqx.Module):
    """Fits from several starts.

    Attributes:
        results: The fits, stacked: each array has a leading axis for the members.
        elbo: Estimate of each member's ELBO, in nats; NaN if it is not finite.
        elbo_error: Standard error of each estimate; NaN if it is of one draw.
    """

    results: FitResult
    elbo: Float[Array, " restarts"]
    elbo_error: Float[Array, " restarts"]

    @property
    def best(self) -> Int[Array, ""]:
        """The number of the member with the highest ELBO."""
        return jnp.argmax(jnp.where(jnp.isnan(self.elbo), -jnp.inf, self.elbo))

    @property
    def guide(self) -> AutoGuide:
        """The guide of the best member."""
        return self[self.best].guide

    def __len__(self) -> int:
        """Return the number of members."""
        return self.elbo.shape[0]

    def __getitem__(self, member: int | Int[Array, ""]) -> FitResult:
        """Return the fit of one member, which can be resumed.

        Raises:
            IndexError: If there is no such member.
        """
        # JAX would take the last one instead; under jit and vmap it does.
        if not is_traced(member) and not -len(self) <= operator.index(member) < len(self):
            raise IndexError(f"there are {len(self)} members, numbered from 0; got {member}.")
        return jax.tree.map(lambda x: x[member], self.results)

    def __iter__(self) -> Iterator[FitResult]:
        """Go through the fits of all members."""
        return (self[i] for i in range(len(self)))


def fit_restarts(
    key: Key,
    make_guide: Callable[[Key], AutoGuide],
    /,
    *args: Any,
    num_restarts: int,
    steps: int,
    num_samples: int = 256,
    optimizer: Optimizer = None,
    learning_rate: float | Float[Array, ""] | Schedule | None = None,
    objective: AbstractObjective = ELBO(),
    trainable: Callable[[Any], PyTree] | None = None,
    forward_mode: bool = False,
    row_sparse: bool = False,
    on_nonfinite: OnNonfinite = "raise",
    **kwargs: Any,
) -> Restarts:
    """Fit guides from several starts in one program, and compare them.

    The members run side by side under `jax.vmap`, with a key each for start and draws. A member
    whose run stops at a step that is not finite harms no other: its guide stays as it was before,
    and `results.first_bad_step` says where.

    Args:
        key: For starts, draws and the comparison.
        make_guide: A function of a key that returns a guide, such as
            `lambda key: gx.AutoNormal(model, X, y, key=key)`.
        *args: The model's arguments, or one `gx.Batch`.
        num_restarts: How many members.
        steps: How many steps each of them takes.
        num_samples: How many draws each ELBO is estimated from; all members share their keys.
        optimizer: As of `fit`.
        learning_rate: As of `fit`.
        objective: As of `fit`. The comparison is by the ELBO, whatever is minimised.
        trainable: As of `fit`.
        forward_mode: As of `fit`.
        row_sparse: As of `fit`.
        on_nonfinite: As of `fit`, for each member.
        **kwargs: The model's keyword arguments.

    Returns:
        All fits with their ELBO, and the best of them.

    Raises:
        TypeError: If one random key does not come first, `make_guide` is no function or returns no
            guide, `num_restarts` or `num_samples` is no integer, or as `fit`.
        ValueError: If one of these is less than 1, if no member has a finite ELBO, or as `fit`.
    """
    require_key("fit_restarts", key)
    steps = positive("steps", steps)
    num_restarts = positive("num_restarts", num_restarts)
    num_samples = positive("num_samples", num_samples)
    if not callable(make_guide):
        raise _no_maker(f"got {type(make_guide).__name__}")
    keys = random.split(key, num_restarts + 1)

    def member(key: Key) -> tuple[FitResult, Batch]:
        key_start, key_fit = random.split(key)
        guide = make_guide(key_start)
        if not isinstance(guide, AutoGuide):
            raise _no_maker(f"it returned {guide!r}")
        batch = as_batch(guide.model, args, kwargs, options_of(fit_restarts))
        result = fit(
            key_fit,
            guide,
            batch,
            steps=steps,
            optimizer=optimizer,
            learning_rate=learning_rate,
            objective=objective,
            trainable=trainable,
            progress=False,
            forward_mode=forward_mode,
            row_sparse=row_sparse,
            on_nonfinite=on_nonfinite,
        )
        return result, guide.admit(batch)

    results, batch = jax.vmap(member, out_axes=(0, None))(keys[1:])
    found = Restarts(results, *_elbo(results.guide, random.split(keys[0], num_samples), batch))
    if not is_traced(found.elbo) and np.all(np.isnan(np.asarray(found.elbo))):
        raise ValueError(
            f"none of the {num_restarts} members has a finite ELBO. Their first steps that were "
            f"not finite are {np.asarray(results.first_bad_step).tolist()}: fit one alone, whose "
            "error names the sites, or try another start (init_loc_fn) or a smaller learning_rate."
        )
    return found


@jax.jit
def _elbo(
    guides: AutoGuide, keys: Array, batch: Batch
) -> tuple[Float[Array, " restarts"], Float[Array, " restarts"]]:
    """Return the mean over draws, and its standard error, for each guide."""

    def one(key: Key) -> Float[Array, " restarts"]:
        return -jax.vmap(lambda guide: ELBO().loss(guide, key, batch))(guides)

    terms = lax.map(one, keys, batch_size=_TOGETHER)
    count = keys.shape[0]
    mean = jnp.mean(terms, axis=0)
    # One draw says nothing of its error: NaN.
    spread = jnp.sum((terms - mean) ** 2, axis=0)
    error = jnp.sqrt(spread / ((count - 1) * count)) if count > 1 else jnp.full_like(mean, jnp.nan)
    finite = jnp.isfinite(mean)
    return jnp.where(finite, mean, jnp.nan), jnp.where(finite, error, jnp.nan)


def _no_maker(got: str) -> TypeError:
    return TypeError(
        "make_guide takes a key and returns a guide, such as "
        f"lambda key: gx.AutoNormal(model, X, y, key=key); {got}."
    )
