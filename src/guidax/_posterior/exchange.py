"""Parameters to and from NumPyro's guides of the same names. NumPyro itself is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import random
from jaxtyping import Array

from .._family.base import AbstractFamily
from .._family.dais import AbstractDAIS
from .._family.diagonal import DiagonalNormal
from .._family.flow import Flow
from .._family.laplace import LaplacePoint
from .._family.local_dais import LocalDAIS
from .._family.low_rank import LowRankNormal
from .._family.multivariate import MultivariateNormal
from .._family.normal import MeanFieldNormal
from .._family.point import Point
from .._family.product import Product, leaves
from .._family.surrogate_dais import SurrogateDAIS
from .._guide.guide import AutoGuide
from .._model.batch import Batch, as_batch, blank_batch
from .._model.bijector_maps import inverse_softplus
from .._model.matrix_maps import ScaledUnitLowerCholesky
from .._model.model import AbstractModel, at_zero
from .._model.target import Draw
from .arguments import require_guide
from .exchange_dais import dais_inward, dais_outward, local_dais_inward, local_dais_outward
from .exchange_flow import flow_inward, flow_outward


def to_numpyro_params(
    guide: AutoGuide, /, *args: Any, prefix: str = "auto", **kwargs: Any
) -> dict[str, Any]:
    """Return a guide's parameters under the names of NumPyro's guide of the same class.

    They are constrained, as `SVI.get_params` gives them, with the model's `param` sites. Parts of a
    list share the prefix, as in NumPyro.

    Args:
        guide: The guide.
        *args: The model's arguments, or one `gx.Batch`, where a support depends on them
            (`AutoDelta`); else they may be left out.
        prefix: As of NumPyro's guide.
        **kwargs: The model's keyword arguments.

    Returns:
        NumPyro's name to value: an array, or the pytree of a network's `param` site.

    Raises:
        TypeError: If no guide comes first, or NumPyro has no such guide.
        ValueError: If two parts of a list would share a name, if a batched normal holds several
            sites, which NumPyro's lays out otherwise, or if the moves of an annealed guide are none
            of NumPyro's: see
            :doc:`Differences from NumPyro </differences>`.
    """
    require_guide("to_numpyro_params", guide)
    batch = _batch(guide, args, kwargs)
    found = dict(guide.param_values(batch))
    for family in leaves(guide.family):
        values = _outward(family, prefix, guide, batch)
        if both := sorted(found.keys() & values.keys()):
            raise ValueError(
                f"two parts have NumPyro parameters {both}: in NumPyro too they would clash."
            )
        found |= values
    return found


def from_numpyro_params(
    guide: AutoGuide,
    params: Mapping[str, Any],
    /,
    *args: Any,
    prefix: str = "auto",
    **kwargs: Any,
) -> AutoGuide:
    """Return the guide with the parameters of NumPyro's guide of the same class.

    Args:
        guide: A guide on the same model; only its structure counts.
        params: NumPyro's name to constrained value, as `SVI.get_params` returns them; a network's
            is a pytree.
        *args: The model's arguments, or one `gx.Batch`, where a support depends on them
            (`AutoDelta`); else they may be left out.
        prefix: As of NumPyro's guide.
        **kwargs: The model's keyword arguments.

    Returns:
        A new guide.

    Raises:
        TypeError: If no guide comes first, or NumPyro has no such guide.
        ValueError: If a parameter is missing, or has another shape than the guide's.
    """
    require_guide("from_numpyro_params", guide)
    batch = _batch(guide, args, kwargs)
    family = _inward(guide.family, _Reader(params), prefix, guide, batch)
    model = _with_params(guide.model, params, batch)
    return eqx.tree_at(lambda g: (g.model, g.family), guide, (model, family))


def _with_params(model: AbstractModel, params: Mapping[str, Any], batch: Batch) -> AbstractModel:
    """Return the model, or surrogate, with the values of its `param` sites."""
    missing = [name for name in model.params if name not in params]
    if missing:
        raise ValueError(f"params lacks the param sites {missing} of {model.name}.")
    given = {name: _params_like(x, params[name], name) for name, x in model.params.items()}
    found = _unconstrained_params(model, batch, given)
    for name, own in model.params.items():
        if (shape := _shapes(found[name])) != _shapes(own):
            raise ValueError(f"{name!r} has shape {shape}; the guide's is {_shapes(own)}.")
    return model.with_params(found)


def _batch(guide: AutoGuide, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Batch:
    batch = as_batch(guide.model, args, kwargs, may_omit=True)
    return guide.admit(blank_batch(guide.structure.shapes) if batch.is_empty else batch)


def _params_like(own: Any, given: Any, name: str) -> Any:
    """Return the value of a `param` site, a pytree where it is a network's, in the own dtypes."""
    if jax.tree.structure(given) != jax.tree.structure(own):
        raise ValueError(
            f"{name!r} is {jax.tree.structure(given)}; the guide's is {jax.tree.structure(own)}."
        )
    return jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), given, own)


def _shapes(tree: Any) -> Any:
    return jax.tree.map(jnp.shape, tree)


def _outward(family: AbstractFamily, prefix: str, guide: AutoGuide, batch: Batch) -> dict[str, Any]:
    """Return the parameters of one family."""
    _require_one_layout(family)
    if isinstance(family, MeanFieldNormal):
        scale = jax.tree.map(jax.nn.softplus, family.raw_scale)
        locs = {f"{name}_{prefix}_loc": x for name, x in family.loc.items()}
        return locs | {f"{name}_{prefix}_scale": x for name, x in scale.items()}
    if isinstance(family, Point):
        values = _constrained(guide, batch, family.loc)
        return {f"{name}_{prefix}_loc": values[name] for name in family.loc}
    if isinstance(family, DiagonalNormal):
        return {f"{prefix}_loc": family.loc, f"{prefix}_scale": family.marginal_scale()}
    if isinstance(family, MultivariateNormal):
        return {f"{prefix}_loc": family.loc, f"{prefix}_scale_tril": family.scale_tril()}
    if isinstance(family, LowRankNormal):
        return {
            f"{prefix}_loc": family.loc,
            f"{prefix}_scale": family.scale(),
            f"{prefix}_cov_factor": family.factor,
        }
    if isinstance(family, LaplacePoint):
        return {f"{prefix}_loc": family.loc}
    if isinstance(family, AbstractDAIS):
        return dais_outward(family, prefix)
    if isinstance(family, LocalDAIS):
        return local_dais_outward(family, prefix)
    if isinstance(family, Flow):
        return flow_outward(family, prefix)
    raise _unknown(family)


class _Reader:
    """Takes parameters by name, and checks their shapes."""

    def __init__(self, params: Mapping[str, Any]):
        self.params = params

    def __call__(self, name: str, like: Array) -> Array:
        if name not in self.params:
            raise ValueError(
                f"params lacks {name!r}; it has {sorted(self.params)}. Is prefix the right one?"
            )
        value = jnp.asarray(self.params[name], like.dtype)
        if value.shape != like.shape:
            raise ValueError(f"{name!r} has shape {value.shape}; the guide's is {like.shape}.")
        return value


def _inward(
    family: AbstractFamily, read: _Reader, prefix: str, guide: AutoGuide, batch: Batch
) -> AbstractFamily:
    """Return a family with the parameters that are read."""
    _require_one_layout(family)
    if isinstance(family, Product):
        return Product([_inward(part, read, prefix, guide, batch) for part in family.parts])
    if isinstance(family, MeanFieldNormal):
        loc = {n: read(f"{n}_{prefix}_loc", x) for n, x in family.loc.items()}
        scale = {n: read(f"{n}_{prefix}_scale", x) for n, x in family.raw_scale.items()}
        raw = jax.tree.map(inverse_softplus, scale)
        return eqx.tree_at(lambda f: (f.loc, f.raw_scale), family, (loc, raw))
    if isinstance(family, Point):
        own = _constrained(guide, batch, family.loc)
        given = {n: read(f"{n}_{prefix}_loc", own[n]) for n in family.loc}
        return eqx.tree_at(lambda f: f.loc, family, _unconstrained(guide, batch, given))
    if isinstance(family, AbstractDAIS):
        moved = dais_inward(family, read, prefix)
        if not isinstance(moved, SurrogateDAIS):
            return moved
        surrogate = _with_params(moved.surrogate, read.params, moved.data.value)
        return eqx.tree_at(lambda f: f.surrogate, moved, surrogate)
    if isinstance(family, LocalDAIS):
        return local_dais_inward(family, read, prefix)
    if isinstance(family, Flow):
        return flow_inward(family, read.params, prefix)
    loc = read(f"{prefix}_loc", _loc_of(family))
    if isinstance(family, DiagonalNormal):
        raw = inverse_softplus(read(f"{prefix}_scale", family.raw_scale))
        return eqx.tree_at(lambda f: (f.loc, f.raw_scale), family, (loc, raw))
    if isinstance(family, MultivariateNormal):
        tril = read(f"{prefix}_scale_tril", family.scale_tril())
        raw = ScaledUnitLowerCholesky().inverse(tril)
        return eqx.tree_at(lambda f: (f.loc, f.raw_scale_tril), family, (loc, raw))
    if isinstance(family, LowRankNormal):
        raw = inverse_softplus(read(f"{prefix}_scale", family.raw_scale))
        factor = read(f"{prefix}_cov_factor", family.factor)
        return eqx.tree_at(lambda f: (f.loc, f.raw_scale, f.factor), family, (loc, raw, factor))
    return eqx.tree_at(lambda f: f.loc, family, loc)


def _loc_of(family: AbstractFamily) -> Array:
    flat = (DiagonalNormal, MultivariateNormal, LowRankNormal, LaplacePoint)
    if not isinstance(family, flat):
        raise _unknown(family)
    return family.loc


def _unknown(family: AbstractFamily) -> TypeError:
    return TypeError(
        f"NumPyro has no guide whose parameters are those of {type(family).__name__}: read them "
        "from the leaves of guide.family."
    )


def _require_one_layout(family: AbstractFamily) -> None:
    """Refuse batched normals over several sites.

    NumPyro cuts the flat vector, sites end to end, into equal pieces, so that a piece holds numbers
    of different batch indices; here each piece belongs to one index.
    """
    batch_ndim = getattr(family, "batch_ndim", 0)
    if batch_ndim and len(family.sites) > 1:
        raise ValueError(
            "NumPyro's batched normals over several sites mix their batch indices, so their "
            "parameters mean something else: exchange is possible for a single site."
        )


@jax.jit
def _constrained(guide: AutoGuide, batch: Batch, u: dict[str, Array]) -> dict[str, Array]:
    key = random.key(0)
    target = guide.target(key, batch, guide.indices(key, batch, whole=True))
    sites = target.run(Draw.of(u), forward=True).sites
    return {name: sites[name].value for name in u}


@jax.jit
def _unconstrained(guide: AutoGuide, batch: Batch, x: dict[str, Array]) -> dict[str, Array]:
    key = random.key(0)
    target = guide.target(key, batch, guide.indices(key, batch, whole=True))
    sites = target.run(Draw.of(x, "constrained"), forward=True).sites
    return {name: sites[name].known_bijection.inverse(sites[name].value) for name in x}


@jax.jit
def _unconstrained_params(
    model: AbstractModel, batch: Batch, values: dict[str, Any]
) -> dict[str, Any]:
    sites = model.run(batch, random.key(0), at_zero, dict(batch.rows)).sites
    return {name: sites[name].known_bijection.inverse(x) for name, x in values.items()}
