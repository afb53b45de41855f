"""Every guide, once. A new one joins all contracts by a line here."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidax as gx
from models import BesideRows


@dataclasses.dataclass(frozen=True)
class Entry:
    """How to make a guide, and what may be asked of it.

    Attributes:
        make: Called as `make(model, *args, key=key)`.
        is_distribution: Whether it spreads out, rather than being a point.
        holds_rows: Whether it takes subsampled plates with latents.
        reads_data: Whether its draws depend on the model's arguments.
        has_density: Whether its density at any point is known in closed form.
        trains_as_point: Whether an objective sees a point, around which it spreads out later.
        is_variant: Whether it is another guide with an option, whose statistics need no test twice.
        is_slow: Whether its contracts run among the slow tests: compilation is what they cost.
        needs_rows: Whether it takes only models with latents in a plate.
        beside: Sites that `make` puts beside any model, with their shapes: rows that the guide
            needs.
    """

    make: Callable
    is_distribution: bool = True
    holds_rows: bool = True
    reads_data: bool = False
    has_density: bool = True
    trains_as_point: bool = False
    is_variant: bool = False
    is_slow: bool = False
    needs_rows: bool = False
    beside: tuple[tuple[str, tuple[int, ...]], ...] = ()


batched_normal = functools.partial(gx.AutoBatchedMultivariateNormal, batch_ndim=0)
batched_low_rank = functools.partial(gx.AutoBatchedLowRankMultivariateNormal, batch_ndim=0)


# Small flows: compilation is what costs.
iaf = functools.partial(gx.AutoIAFNormal, num_flows=2, hidden_dims=(4,))
bnaf = functools.partial(gx.AutoBNAFNormal, hidden_factors=(3,))
real_nvp = functools.partial(gx.AutoRealNVPNormal, num_flows=2, hidden_dims=(4,))
nsf = functools.partial(gx.AutoNSFNormal, num_flows=1, hidden_dims=(4,), num_bins=4)


def curved(potential, z):
    """Return a Hessian whose curvatures are 1 at least, also far from the mode."""
    values, vectors = jnp.linalg.eigh(jax.hessian(potential)(z))
    return (vectors * jnp.maximum(values, 1.0)[None]) @ vectors.T


laplace = functools.partial(gx.AutoLaplaceApproximation, hessian_fn=curved)


def listed(model, *args, key, init_loc_fn=gx.init_to_uniform(), **kwargs):
    """Make a list of one part: every contract holds for it as for the part."""
    part = functools.partial(gx.AutoNormal, init_loc_fn=init_loc_fn)
    return gx.AutoGuideList(model, *args, key=key, parts={...: part}, **kwargs)


def standard(latents):
    """Return the log density of independent standard normals."""
    return -0.5 * sum(jnp.sum(x**2) for x in jax.tree.leaves(latents))


def surrogate(model, *args, key, **kwargs):
    """Let the moves follow a standard normal: every contract holds whatever the surrogate is."""
    sites = gx.AutoDiagonalNormal(model, *args, key=key, **kwargs).family.sites
    example = {s.name: np.zeros(s.shape, s.dtype) for s in sites}
    stand_in = gx.from_log_density(standard, example)
    return gx.AutoSurrogateLikelihoodDAIS(model, stand_in, *args, key=key, **kwargs)


def semi(model, *args, key, **kwargs):
    """Put rows beside the model: every contract holds whatever the globals are."""
    beside = BesideRows(model)
    return gx.AutoSemiDAIS(beside, *args, key=key, K=2, subsample_plate="beside", **kwargs)


GUIDES = {
    "AutoNormal": Entry(gx.AutoNormal),
    "AutoDelta": Entry(gx.AutoDelta, is_distribution=False),
    "AutoDiagonalNormal": Entry(gx.AutoDiagonalNormal, holds_rows=False, is_slow=True),
    "AutoMultivariateNormal": Entry(gx.AutoMultivariateNormal, holds_rows=False),
    "AutoLowRankMultivariateNormal": Entry(gx.AutoLowRankMultivariateNormal, holds_rows=False),
    "AutoLaplaceApproximation": Entry(laplace, reads_data=True, trains_as_point=True),
    "AutoBatchedMultivariateNormal": Entry(
        batched_normal, holds_rows=False, is_variant=True, is_slow=True
    ),
    "AutoBatchedLowRankMultivariateNormal": Entry(
        batched_low_rank, holds_rows=False, is_variant=True, is_slow=True
    ),
    "AutoIAFNormal": Entry(iaf, holds_rows=False),
    "AutoBNAFNormal": Entry(bnaf, holds_rows=False, is_slow=True),
    "AutoRealNVPNormal": Entry(real_nvp, holds_rows=False, is_variant=True, is_slow=True),
    "AutoNSFNormal": Entry(nsf, holds_rows=False, is_slow=True),
    "AutoGuideList": Entry(listed),
    "AutoDAIS": Entry(gx.AutoDAIS, holds_rows=False, reads_data=True, has_density=False),
    "AutoSurrogateLikelihoodDAIS": Entry(
        surrogate, holds_rows=False, has_density=False, is_slow=True
    ),
    "AutoSemiDAIS": Entry(
        semi,
        holds_rows=False,
        reads_data=True,
        has_density=False,
        is_slow=True,
        beside=(("row", (3,)),),
    ),
}
# Guides that take subsampled plates with latents, on models that have them.
ROW_GUIDES = {name: e for name, e in GUIDES.items() if e.holds_rows} | {
    "AutoSemiDAIS": Entry(gx.AutoSemiDAIS, reads_data=True, has_density=False, needs_rows=True),
}


# Most contracts look at guides that nobody has fitted.
unfitted = pytest.mark.filterwarnings("ignore:the mode is not reached:UserWarning")


def _cases(entries):
    """Return them as parameters, some of them for the slow tests."""
    marks = {False: [unfitted], True: [unfitted, pytest.mark.slow]}
    return [pytest.param(e, id=name, marks=marks[e.is_slow]) for name, e in entries.items()]


every_guide = pytest.mark.parametrize("entry", _cases(GUIDES))
fitted_as_distribution = {
    name: e
    for name, e in GUIDES.items()
    if e.is_distribution and not e.trains_as_point and not e.is_variant
}
every_distribution = pytest.mark.parametrize("entry", _cases(fitted_as_distribution))

with_density = {name: e for name, e in fitted_as_distribution.items() if e.has_density}
every_density = pytest.mark.parametrize("entry", _cases(with_density))
