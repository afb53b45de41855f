"""Draws of a guide and all that goes with them, for ArviZ."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import random
from jax.typing import ArrayLike
from jaxtyping import Array

from .._guide.guide import AutoGuide
from .._model.batch import Batch, as_batch, options_of
from .._model.indices import check_rows
from .._model.messages import broadcast_sample
from .._model.model import AbstractModel
from .._model.target import Draw, Target
from .._model.trace import Site, Trace
from .._numerics import is_inside
from .._types import Key, names_of, positive, positive_or_none
from .arguments import require_key_and_guide
from .labelled import Labels, SiteAxes, find_axes, is_datum, named_arrays, without
from .log_likelihood import entries_of
from .point_sites import points_drawn
from .runs import over_draws

GROUPS = (
    "posterior_predictive",
    "log_likelihood",
    "sample_stats",
    "prior",
    "observed_data",
    "constant_data",
)


def to_arviz(
    key: Key,
    guide: AutoGuide,
    /,
    *args: Any,
    num_samples: int = 1000,
    groups: Iterable[str] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    constant_data: Mapping[str, ArrayLike] | None = None,
    batch_size: int | None = None,
    **kwargs: Any,
) -> Any:
    """Return draws of the guide, and what belongs to them, in ArviZ's form.

    The draws are one chain: they are independent. Axes of plates have the plate's name, others
    `{site}_dim_{axis}` unless `dims` names them. The groups, beside `posterior`:

    - `posterior_predictive`: data drawn anew where the model observes some, at the draws, given the
      other data (where one datum's distribution reads another).
    - `log_likelihood`: the log density of each datum, see `gx.log_likelihood`.
    - `sample_stats`: `lp`, the log joint density; `log_q`, the guide's, in constrained space; and
      `log_weight`, their difference, the log importance weight. A guide with points has `lp` alone.
    - `prior`, and with it `prior_predictive`: as many draws of the latents from their priors, and
      of each datum at them, given the other data too. Where one datum's distribution reads another,
      `gx.Predictive`, with None in the place of the data, draws all of them anew.
    - `observed_data` and `constant_data`: the data, and the other arrays among the arguments.

    Args:
        key: For all draws.
        guide: A guide.
        *args: The model's arguments, data included, or one `gx.Batch`.
        num_samples: How many draws.
        groups: Names of the groups wanted beside `posterior`; None for all that the model has:
            a flat prior and a bare log density have no `prior`, and the latter no data.
        coords: Dim to the values of its coordinate; for a plate those of all its rows, which are
            row numbers if left out.
        dims: Variable to the names of its axes: of all, or of those that are no plate's.
        constant_data: Name to array, for that group; None for the arrays among the arguments that
            no site observes.
        batch_size: How many draws to compute at a time, to bound memory; None for all.
        **kwargs: The model's keyword arguments.

    Returns:
        A `DataTree` with ArviZ 1, an `arviz.InferenceData` with ArviZ 0.23.

    Raises:
        ImportError: If ArviZ is not installed.
        TypeError: If the arguments do not fit the model, or one is of the wrong kind.
        ValueError: If values are traced, inside `jax.jit` for example, if `groups` names a group
            that is unknown or that the model does not have, if `coords` or `dims` do not fit, or if
            an observation is left out.
    """
    arviz = _arviz()
    require_key_and_guide("to_arviz", key, guide)
    if is_inside():
        raise ValueError(
            "ArviZ holds values, which are not known inside a transformation: draw there, and call "
            "to_arviz outside."
        )
    size = positive("num_samples", num_samples)
    at_once = positive_or_none("batch_size", batch_size)
    batch = as_batch(guide.model, args, kwargs, options_of(to_arviz))
    check_rows(guide.model, batch)
    keys = random.split(key, 4)
    axes, data, rows = find_axes(guide.model, batch, keys[0])
    _require_data(guide, axes)
    wanted = _wanted(groups, axes, data)

    draws, log_q = guide.sample_and_log_prob(
        keys[1], batch, sample_shape=(size,), batch_size=at_once
    )
    latents = {name: draws[name] for name in axes.latents}
    at_draws = _runs(guide.model, latents, keys[2], batch, size, at_once, wanted)
    found = {
        "posterior": latents | at_draws.pop("deterministic"),
        "posterior_predictive": at_draws.pop("predictive"),
        **at_draws,
    }
    if "sample_stats" in wanted and not points_drawn(guide, guide.admit(batch)):
        log_p = found["sample_stats"]["lp"]
        found["sample_stats"] |= {"log_q": log_q, "log_weight": log_p - log_q}
    if "prior" in wanted:
        forward = _runs(guide.model, {}, keys[3], batch, size, at_once, wanted)
        found["prior"] = forward["latent"] | forward["deterministic"]
        found["prior_predictive"] = forward["predictive"]
    found.pop("latent", None)
    constants = without(named_arrays(guide.model, batch), data.values())
    found["observed_data"] = data
    found["constant_data"] = constants if constant_data is None else dict(constant_data)

    labels = Labels(axes, rows, dims, coords)
    attrs = {"inference_library": "guidax", "guide": type(guide).__name__}
    kept = {"posterior", *wanted, *(["prior_predictive"] if "prior" in wanted else [])}
    datasets = {
        group: labels.dataset(
            found[group],
            sampled=not group.endswith("_data"),
            constant=group == "constant_data",
            attrs=attrs,
        )
        for group in found
        if group in kept and found[group]
    }
    labels.require_all_used()
    return _tree(arviz, datasets)


def _arviz() -> Any:
    try:
        import arviz
    except ImportError as error:
        raise ImportError('gx.to_arviz needs ArviZ: pip install "guidax[arviz]".') from error
    return arviz


def _tree(arviz: Any, datasets: dict[str, Any]) -> Any:
    """Return the container of the ArviZ that is installed."""
    if arviz.__version__.startswith("0."):  # to ask version 1 for the old class is a warning
        return arviz.InferenceData(**datasets)
    import xarray

    return xarray.DataTree.from_dict(datasets)


def _require_data(guide: AutoGuide, axes: SiteAxes) -> None:
    held = {s.name for s in guide.family.sites}
    if missing := [name for name in axes.latents if name not in held]:
        raise ValueError(
            f"the sites {missing} are neither observed in this call nor held by the guide: pass "
            "their data."
        )


def _wanted(
    groups: Iterable[str] | None, axes: SiteAxes, data: Mapping[str, Array]
) -> tuple[str, ...]:
    """Return the names of the groups to make, in one order."""
    asked = GROUPS if groups is None else names_of("groups", groups)
    if unknown := [g for g in asked if g not in GROUPS]:
        raise ValueError(
            f"there are no groups {unknown}; there are {list(GROUPS)}, and always posterior."
        )
    impossible = {}
    if axes.flat:
        impossible["prior"] = f"the sites {list(axes.flat)} have no prior to draw from"
    if not data:
        reason = "the model observes no data"
        for group in ("posterior_predictive", "log_likelihood", "observed_data"):
            impossible[group] = reason
    if groups is not None:
        for group in asked:
            if group in impossible:
                raise ValueError(f"there is no group {group!r}: {impossible[group]}.")
    return tuple(g for g in GROUPS if g in asked and g not in impossible)


@functools.partial(jax.jit, static_argnames=("num_samples", "batch_size", "wanted"))
def _runs(
    model: AbstractModel,
    draws: dict[str, Array],
    key: Key,
    batch: Batch,
    num_samples: int,
    batch_size: int | None,
    wanted: tuple[str, ...],
) -> dict[str, dict[str, Array]]:
    """Run the model at draws, or, where there are none, at latents drawn from their priors."""
    predicts = "posterior_predictive" in wanted if draws else "prior" in wanted
    target = Target(model, batch, key, {})

    def read(trace: Trace, key: Key) -> dict[str, dict[str, Array]]:
        observed = {n: s for n, s in trace.of("observed").items() if is_datum(s)}
        found = {
            "latent": {} if draws else _values(trace.of("latent")),
            "deterministic": _values(trace.of("deterministic")),
            "predictive": {},
        }
        if "log_likelihood" in wanted and draws:
            found["log_likelihood"] = {n: entries_of(s) for n, s in observed.items()}
        if "sample_stats" in wanted and draws:
            draw = Draw.of(_values(trace.of("latent")), "constrained")
            found["sample_stats"] = {"lp": target.score_trace(trace, draw).log_density}
        if predicts:
            keys = random.split(key, len(observed)) if observed else ()
            pairs = zip(observed.values(), keys, strict=True)
            found["predictive"] = {s.name: _replicate(s, k) for s, k in pairs if s.sample}
        return found

    return over_draws(
        read,
        model,
        draws,
        key,
        batch,
        num_samples=None if draws else num_samples,
        batch_size=batch_size,
        taken=True,
    )


def _values(sites: dict[str, Site]) -> dict[str, Array]:
    return {name: site.value for name, site in sites.items()}


def _replicate(site: Site, key: Key) -> Array:
    """Draw data anew, independently along axes that the data have and the distribution has not."""
    assert site.sample is not None
    shape = jax.eval_shape(site.sample, key).shape
    own = shape[: len(shape) - len(site.event_shape)]
    if own == site.batch_shape:
        return site.sample(key)
    return broadcast_sample(_Sampler(site.sample, own), key, site.batch_shape)


class _Sampler:
    """What `broadcast_sample` asks of a distribution."""

    def __init__(self, sample: Any, batch_shape: tuple[int, ...]):
        self._sample, self.batch_shape = sample, batch_shape

    def sample(self, seed: Array, sample_shape: tuple[int, ...]) -> Array:
        """Draw as often as the shape says."""
        draws = jax.vmap(self._sample)(random.split(seed, math.prod(sample_shape)))
        return jnp.reshape(draws, (*sample_shape, *draws.shape[1:]))
