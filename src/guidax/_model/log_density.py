"""A model that is nothing but a log density."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import dtypes
from jaxtyping import Array

from .._numerics import as_array
from .._types import Key, is_number
from . import constraints
from .batch import Batch
from .constraint_types import Constraint
from .model import AbstractCallableModel, AbstractModel, Choose, SplitCallable
from .program import bijection_of
from .static import Static
from .trace import Indices, Site, Trace

TERM = "log_density"  # the one scored site


def from_log_density(
    log_density: Callable[..., Array],
    example: Any,
    supports: Mapping[str, Constraint] | Constraint | None = None,
) -> AbstractModel:
    """Make a model of a log density that need not be normalised.

    Args:
        log_density: Called as `log_density(latents, *args, **kwargs)` with a pytree like
            `example`; returns a number. A module's floating arrays are trained with the guide.
        example: A pytree of arrays, or of anything with a shape and a dtype; a Python number, an
            integer too, stands for a float. Its key paths, joined by dots, are the names of the
            sites; a bare array is the one site "value".
        supports: Constraint by site name; for a bare array the constraint itself. A site that is
            not named is real.

    Returns:
        A model, to be given to any guide.

    Raises:
        TypeError: If a leaf of `example` is not floating, or a support is no constraint.
        ValueError: If `example` has no leaf, two of its leaves have one name, or `supports` names
            a site that is not there, or has values of another shape than a site.
    """
    return LogDensity(log_density, example, supports)


class LogDensity(AbstractCallableModel):
    """See `from_log_density`."""

    params: dict[str, Any]
    fn: SplitCallable
    sites: tuple[tuple[str, tuple[int, ...], str], ...] = eqx.field(static=True)
    treedef: Any = eqx.field(static=True)
    supports: Static = eqx.field(static=True)

    def __init__(
        self,
        log_density: Callable[..., Array],
        example: Any,
        supports: Mapping[str, Constraint] | Constraint | None = None,
    ):
        self.params = {}
        self.fn = SplitCallable(log_density)
        leaves, self.treedef = jax.tree_util.tree_flatten_with_path(example)
        self.sites = tuple(_site_of(path, leaf) for path, leaf in leaves)
        names = [name for name, _, _ in self.sites]
        if not names:
            raise ValueError("the example of a log density has no leaf: there is nothing to infer.")
        if twice := sorted({n for n in names if names.count(n) > 1} | ({TERM} & set(names))):
            raise ValueError(
                f"the names {twice} of the example's leaves are used twice or reserved: rename "
                "keys."
            )
        self.supports = Static(_named_supports(supports, self.sites))

    def signature(self) -> inspect.Signature | None:
        """Return the function's signature without its first parameter."""
        signature = self.fn.signature()
        if signature is None:
            return None
        parameters = list(signature.parameters.values())
        first = parameters[0].kind if parameters else inspect.Parameter.KEYWORD_ONLY
        if first in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
            raise TypeError(
                f"{self.name}{signature} takes no positional argument: a log density is called as "
                "log_density(latents, *args)."
            )
        keep = 0 if first is inspect.Parameter.VAR_POSITIONAL else 1
        return signature.replace(parameters=parameters[keep:])

    def run(self, batch: Batch, key: Key, choose: Choose, indices: Indices) -> Trace:
        """Choose the latents, then evaluate the log density as the one scored term."""
        del key, indices
        args, kwargs = batch.unpack()
        sites = {name: self._latent(name, shape, dtype) for name, shape, dtype in self.sites}
        values = {name: choose(site) for name, site in sites.items()}
        if missing := [name for name, value in values.items() if value is None]:
            raise ValueError(f"the sites {missing} of a log density have no prior to draw from.")
        latents = jax.tree.unflatten(self.treedef, list(values.values()))
        what = f"what the log density {self.name} returns"
        term = as_array(what, self.fn.build()(latents, *args, **kwargs))
        if jnp.iscomplexobj(term):
            raise TypeError(f"{what} is complex, and log densities are real.")
        if term.shape != ():
            raise ValueError(
                f"the log density {self.name} returned shape {term.shape}; it must return one "
                "number."
            )
        found = {n: dataclasses.replace(site, value=values[n]) for n, site in sites.items()}
        found[TERM] = Site(
            TERM, "observed", jnp.zeros(0), event_shape=(0,), log_prob=lambda _: term
        )
        return Trace(found, {}, term)

    def _latent(self, name: str, shape: tuple[int, ...], dtype: str) -> Site:
        return Site(
            name,
            "latent",
            event_shape=shape,
            log_prob=lambda x: jnp.zeros((), x.dtype),
            bijection=bijection_of(self.supports.value[name], 0),
            contains=self.supports.value[name],
            dtype=dtype,
        )

    def plate_rows(self, create_plates: Callable[..., Any], batch: Batch, key: Key) -> Indices:
        """Refuse: there are no plates."""
        raise ValueError("a log density has no plates: leave create_plates out.")


def _site_of(path: tuple[Any, ...], leaf: Any) -> tuple[str, tuple[int, ...], str]:
    """Return name, shape and dtype."""
    name = jax.tree_util.keystr(path, simple=True, separator=".") or "value"
    if is_number(leaf) and isinstance(leaf, (int, float)):
        leaf = np.asarray(leaf, dtypes.canonicalize_dtype(float))
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"leaf {name!r} of the example is {dtype or type(leaf).__name__}: guides need floating "
            "latents. Sum discrete variables out of the log density."
        )
    return name, tuple(leaf.shape), str(dtypes.canonicalize_dtype(dtype))


def _named_supports(
    supports: Mapping[str, Constraint] | Constraint | None,
    sites: tuple[tuple[str, tuple[int, ...], str], ...],
) -> dict[str, Constraint]:
    names = [name for name, _, _ in sites]
    if isinstance(supports, Constraint):
        if names != ["value"]:
            raise TypeError(
                f"supports is one constraint, but the example has the sites {names}: give a "
                "dictionary from site to constraint."
            )
        supports = {"value": supports}
    given = dict(supports or {})
    if unknown := sorted(given.keys() - set(names)):
        raise ValueError(f"supports names {unknown}, but the example has the sites {names}.")
    for name, shape, dtype in sites:
        if name in given:
            _require_fit(name, given[name], jax.ShapeDtypeStruct(shape, dtype))
    return {name: given.get(name, constraints.real) for name in names}


def _require_fit(name: str, constraint: Any, leaf: jax.ShapeDtypeStruct) -> None:
    """Refuse a support that is none, has no bijection, or is of values of another shape.

    Raises:
        TypeError: If it is no constraint, or a discrete one.
        ValueError: If it has no bijection, or does not fit.
    """
    if not isinstance(constraint, Constraint):
        raise TypeError(f"supports[{name!r}] takes one of gx.constraints; got {constraint!r}.")
    try:
        bijection = bijection_of(constraint, 0)
    except (TypeError, ValueError) as error:
        raise type(error)(f"supports[{name!r}]: {error}") from None
    try:
        u = jax.eval_shape(bijection.inverse, leaf)
        fits = jax.eval_shape(bijection.forward, u).shape == leaf.shape
    except (TypeError, ValueError, IndexError):
        fits = False
    if not fits or len(leaf.shape) < constraint.event_dim:
        raise ValueError(
            f"supports[{name!r}] is {constraint!r}, but the site has shape {leaf.shape}, which is "
            "that of no value in it. Change the example, or the constraint."
        )
