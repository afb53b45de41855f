"""The search for a starting point where the density and its gradient are finite."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jaxtyping import Array, Bool, Float, Int

from .._numerics import all_finite, everywhere, from_host, is_traced, jit_once, strong
from .._types import Key
from .batch import Batch
from .indices import drawable_plates, refusal
from .model import AbstractModel, at_zero
from .strategies import init_to_uniform, init_to_value, strategy_at
from .target import Draw, Target
from .trace import Indices, LatentSpec, Site, Structure, Trace

TRIES = 100


@dataclasses.dataclass(frozen=True)
class Start:
    """What a constructor begins with.

    It may stand where the model stands, so that a list searches once for all its parts.

    Attributes:
        model: The model, with its parameters.
        batch: The arguments.
        location: Unconstrained values with all rows of plates, by site.
        structure: Static facts about the model.
        admitted: Plates whose rows may be drawn at random.
        default: The `init_loc_fn` that the constructor it is handed to has by itself: whoever
            searched knew it, and need not be told.
    """

    model: AbstractModel
    batch: Batch
    location: dict[str, Array]
    structure: Structure
    admitted: tuple[str, ...]
    default: Any = None

    @property
    def rows(self) -> dict[str, Array]:
        """Row numbers of the plates with latents that hold some of their rows: any will do."""
        return {
            p.name: self.batch.rows.get(p.name, jnp.arange(p.rows))
            for p in self.structure.local_plates
            if p.rows < p.size or p.name in self.batch.rows
        }

    def only(self, names: frozenset[str]) -> Start:
        """Return the share of some of the latents."""
        structure = self.structure.only(names)
        location = {s.name: self.location[s.name] for s in structure.latents}
        return dataclasses.replace(self, structure=structure, location=location)


class _Try(eqx.Module):
    """One starting point, and what there is to say about it.

    Attributes:
        params: Unconstrained values of the `param` sites.
        location: Unconstrained values with all rows of plates, by site.
        ok: Whether log density and gradient are finite.
        terms: Log density by site.
        outside: How many values lie outside the support, by observed and `param` site.
        misplaced: How many of the values that were given to start at do, by latent.
        leaks: For each padded latent, whether another term reads a masked entry.
    """

    params: dict[str, Any]
    location: dict[str, Array]
    ok: Bool[Array, ""]
    terms: dict[str, Float[Array, ""]]
    outside: dict[str, Int[Array, ""]]
    misplaced: dict[str, Int[Array, ""]]
    leaks: dict[str, Bool[Array, ""]]


def find_start(
    model: AbstractModel,
    batch: Batch,
    structure: Structure,
    key: Key,
    strategy: Callable[[Site, Key], Array],
    *,
    draws_rows: bool = False,
) -> Start:
    """Search a start, and check what can be checked while values are known.

    Args:
        model: The model.
        batch: The arguments.
        structure: Static facts about the model.
        key: For the search.
        strategy: Chooses a constrained value for each latent.
        draws_rows: Whether rows of full plates may be drawn too (`create_plates`).

    Returns:
        The start. Under a transformation a failed search leaves NaN in its location.

    Raises:
        ValueError: If observations lie outside their support, if a masked latent is read by
            another term, or if no start is found.
    """
    local = tuple(p for p in structure.local_plates if p.rows < p.size or draws_rows)
    admitted = () if is_traced((model, batch)) else drawable_plates(model, batch, local)
    inputs = model, batch.admit(admitted), key, strategy
    if is_traced((*inputs, from_host(np.int32(0)))):  # under jit a new constant is traced, too
        params, location = _search(*inputs, structure)
    else:
        params, location = _search_on_host(*inputs, structure)
    return Start(model.with_params(params), batch, location, structure, admitted)


def require_continuous(model: AbstractModel, structure: Structure) -> None:
    """Refuse a model with latents that no guide can draw, or without latents.

    Raises:
        ValueError: If it is one.
    """
    for name, why in structure.obstacles:
        raise ValueError(f"latent site {name!r}: {why}")
    if not structure.latents:
        raise ValueError(
            f"the model {model.name} has no latent site: nothing to infer. Is it a model in "
            "guidax's language (gx.sample), and is not every site observed?"
        )


def _search_on_host(
    model: AbstractModel, batch: Batch, key: Key, strategy: Any, structure: Structure
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return parameters and location of the first usable try, or raise.

    Nearly always that is the first, and a program without a loop compiles in less time.
    """
    found = _try_once(model, batch, key, strategy, from_host(np.int32(0)), structure)
    if is_traced(found):  # the model closes over a tracer
        return _search(model, batch, key, strategy, structure)
    for i in range(1, TRIES):
        if found.ok:
            break
        found = _try_once(model, batch, key, strategy, from_host(np.int32(i)), structure)
    _raise_for(found)
    return found.params, found.location


@functools.partial(jax.jit, static_argnames="structure")
def _search(
    model: AbstractModel, batch: Batch, key: Key, strategy: Any, structure: Structure
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return the same inside a transformation; NaN in the location if no try is usable."""

    def attempt(i: Array) -> tuple[dict[str, Array], Array]:
        found = _try(model, batch, key, strategy, i, structure)
        return found.location, found.ok

    first = _try(model, batch, key, strategy, jnp.int32(0), structure)
    # Batched and placed as an attempt is, which an explicit mesh asks for under vmap. XLA folds the
    # attempt itself away.
    blank = jax.tree.map(
        lambda x: jnp.where(False, x, jnp.zeros_like(x)), (first.location, first.ok)
    )
    none = blank[1].astype(jnp.int32)

    def again(carry: Any) -> Array:
        return (carry[0] < TRIES) & ~carry[1][1]

    def once(carry: Any) -> Any:
        return carry[0] + 1, attempt(carry[0])

    _, (location, ok) = lax.while_loop(again, once, (none, blank))
    # A failed member of an ensemble is visible, and harms no other.
    location = jax.tree.map(lambda x: strong(jnp.where(ok, x, jnp.nan)), location)
    return first.params, location


def _rows_of_start(model: AbstractModel, batch: Batch, key: Key, structure: Structure) -> Indices:
    """Those of the batch, else all rows of plates with latents where the model can hold them."""
    found = dict(batch.rows)
    drawn = [
        p
        for p in structure.local_plates
        if p.name not in found and p.rows < p.size and p.name in batch.admitted
    ]
    whole = found | {p.name: jnp.arange(p.size) for p in drawn}
    if drawn and refusal(model, batch.without_rows(), key, whole) is not None:
        return found | {p.name: jnp.arange(p.rows) for p in drawn}
    return whole


def initial_params(
    model: AbstractModel, batch: Batch, key: Key, names: tuple[str, ...], indices: Indices
) -> dict[str, Any]:
    """Return unconstrained values of the `param` sites: those of the model, else their starts."""
    return _initial_params(model, batch, key, names, indices)[0]


def _initial_params(
    model: AbstractModel, batch: Batch, key: Key, names: tuple[str, ...], indices: Indices
) -> tuple[dict[str, Any], dict[str, Int[Array, ""]]]:
    """Return them, and how many values of each start lie outside its constraint."""
    params = dict(model.params)
    missing = [name for name in names if name not in params]
    if not missing:
        return params, {}
    sites = model.run(batch, key, at_zero, indices).sites
    params |= {n: sites[n].known_bijection.inverse(sites[n].value) for n in missing}
    # Asked of the values as given: bijections take what is outside of some sets into them.
    return params, _count_outside(sites[n] for n in missing)


def _try(
    model: AbstractModel,
    batch: Batch,
    key: Key,
    strategy: Any,
    i: Int[Array, ""],
    structure: Structure,
) -> _Try:
    """Return the starting point of one number, with what there is to say about it."""
    indices = _rows_of_start(model, batch, key, structure)
    batch = batch.without_rows()
    params, outside_params = _initial_params(model, batch, key, structure.params, indices)
    model = model.with_params(params)
    specs = {s.name: s for s in structure.latents}
    keys = dict(zip(specs, random.split(random.fold_in(key, i), len(specs)), strict=True))
    given: dict[str, Array] = {}  # values that a strategy gave for all rows of a plate
    misplaced: dict[str, Array] = {}
    uniform = _uniform_values(strategy, specs, keys)

    def choose(site: Site) -> Array:
        if site.name in uniform and uniform[site.name].shape == site.zeros().shape:
            value = site.known_bijection.forward(uniform[site.name])
        else:
            value = strategy(site, keys[site.name])
        value = jnp.asarray(value).astype(site.dtype)
        value = _of_run(site, specs[site.name], value, indices, given)
        if isinstance(strategy_at(strategy, site.name), init_to_value):
            whole = given.get(site.name, value)
            misplaced.update(_count_outside([dataclasses.replace(site, value=whole)]))
        return value

    sites = model.run(batch, key, choose, indices).sites
    u, full = {}, {}
    for s in structure.latents:
        site = sites[s.name]
        u[s.name] = site.known_bijection.inverse(site.value).astype(s.dtype)
        all_rows = site.known_bijection.inverse(given[s.name]) if s.name in given else u[s.name]
        full[s.name] = _with_all_rows(all_rows.astype(s.dtype), s)
    target = Target(model, batch, key, dict(indices))

    def density(u: dict[str, Array]) -> tuple[Array, Any]:
        draw = Draw.of(u)
        trace = target.run(draw)
        score = target.score_trace(trace, draw)
        return score.log_density, (score.terms, _outside(trace))

    try:
        (value, (terms, outside)), grads = value_and_gradient(density, u)
    except AssertionError:
        # JAX adds no gradient that lies on an explicit mesh to one that does not. Placed there from
        # the first, latents of rows would not come to lie with the rows.
        spread = everywhere(u, batch)
        if spread is u:
            raise
        (value, (terms, outside)), grads = value_and_gradient(density, spread)
    return _Try(
        params=jax.tree.map(strong, params),
        location=jax.tree.map(strong, full),
        ok=all_finite((value, grads)) & (sum(misplaced.values(), jnp.int32(0)) == 0),
        terms=terms,
        outside=outside | outside_params,
        misplaced=misplaced,
        leaks={name: _leak(target, u, name) for name in structure.padded},
    )


def _uniform_values(
    strategy: Any, specs: dict[str, LatentSpec], keys: dict[str, Key]
) -> dict[str, Array]:
    """Return what `init_to_uniform` draws for sites outside plates, in unconstrained space.

    Sites of one shape share one generator call, which is what costs compilation.
    """
    groups: dict[Any, list[str]] = {}
    for name, spec in specs.items():
        own = strategy_at(strategy, name)
        if isinstance(own, init_to_uniform) and not spec.plates:
            groups.setdefault((own, spec.shape, spec.dtype), []).append(name)
    found = {}
    for (own, shape, dtype), names in groups.items():
        draw = functools.partial(own.unconstrained, shape=shape, dtype=dtype)
        values = jax.vmap(draw)(jnp.stack([keys[name] for name in names]))
        found |= dict(zip(names, values, strict=True))
    return found


_try_once = jit_once(_try, static_argnames="structure")


def value_and_gradient(fn: Callable[[Any], tuple[Array, Any]], x: Any) -> tuple[Any, Any]:
    """Return `(value, aux), gradient`, in forward mode where reverse mode does not exist."""
    try:
        return jax.value_and_grad(fn, has_aux=True)(x)
    except ValueError as error:
        if "Reverse-mode" not in str(error):
            raise
        return fn(x), jax.jacfwd(lambda x: fn(x)[0])(x)


def _of_run(
    site: Site, spec: LatentSpec, value: Array, indices: Indices, given: dict[str, Array]
) -> Array:
    """Return the rows that the run holds of a value that a strategy chose."""
    shape = (*site.batch_shape, *site.event_shape)
    if value.shape in (shape, ()):
        return jnp.broadcast_to(value, shape)
    # NumPyro's scan asks at one step, and takes that step of a value for all of them.
    steps = spec.shape[: len(spec.shape) - site.zeros().ndim]
    if value.shape == (*steps, *shape):
        return value
    ndim, full = len(steps) + len(site.batch_shape), [*steps, *shape]
    for p in site.plates:
        full[ndim + p.dim] = p.size
    unknown = [p.name for p in site.plates if p.rows < p.size and p.name not in indices]
    if value.shape == tuple(full) and not unknown:
        given[site.name] = value
        for p in site.plates:
            if p.name in indices:
                value = jnp.take(value, indices[p.name], axis=ndim + p.dim)
        return value
    hint = ""
    if unknown and value.shape == tuple(full):
        hint = f" Say which rows the arguments hold: gx.Batch(...).at({unknown[0]}=row_numbers)."
    raise ValueError(
        f"the starting value of site {site.name!r} has shape {value.shape}; expected "
        f"{tuple(full)}: all rows of its plates, or a single number.{hint}"
    )


def _with_all_rows(u: Array, spec: LatentSpec) -> Array:
    """A ready-made batch says nothing about the other rows: these start at its rows' mean."""
    for _, axis in spec.plates:
        if u.shape[axis] != spec.shape[axis]:
            shape = (*u.shape[:axis], spec.shape[axis], *u.shape[axis + 1 :])
            u = jnp.broadcast_to(jnp.mean(u, axis, keepdims=True), shape)
    return u


def _outside(trace: Trace) -> dict[str, Int[Array, ""]]:
    """Count the values outside the support, by observed or param site."""
    return _count_outside((*trace.of("observed").values(), *trace.of("param").values()))


def _count_outside(sites: Iterable[Site]) -> dict[str, Int[Array, ""]]:
    found = {}
    for site in sites:
        if site.contains is None or site.mask is False:
            continue
        inside = jnp.asarray(site.contains(site.value))
        if site.mask is not None:
            inside = inside | ~jnp.asarray(site.mask)  # either may have further axes
        found[site.name] = jnp.sum(~inside)  # here: on several hosts none sees all values
    return found


def _leak(target: Target, u: dict[str, Array], name: str) -> Bool[Array, ""]:
    """Say whether a term of another site has a gradient in a masked entry of this one."""

    def others(value: Array) -> tuple[Array, Site]:
        draw = Draw.of({**u, name: value})
        trace = target.run(draw)
        terms = target.score_trace(trace, draw).terms
        return sum((t for n, t in terms.items() if n != name), jnp.zeros(())), trace.sites[name]

    site = others(u[name])[1]
    (_, _), grad = value_and_gradient(lambda value: (others(value)[0], None), u[name])
    ndim = len(site.batch_shape)
    mask = jnp.broadcast_to(jnp.asarray(site.mask), site.batch_shape)
    masked = ~mask.reshape(mask.shape + (1,) * (grad.ndim - ndim))
    return jnp.any(masked & (grad != 0))


def _raise_for(found: _Try) -> None:
    """Raise the first complaint."""
    for name, outside in found.outside.items():
        if count := int(outside):
            raise ValueError(
                f"site {name!r}: {count} of its values lie outside the support of its "
                "distribution or constraint (NaN lies in none). Correct the data; where entries "
                "are missing, mask them: gx.handlers.mask(mask=~jnp.isnan(y)), in a NumPyro model "
                "its own numpyro.handlers.mask."
            )
    for name, misplaced in found.misplaced.items():
        if count := int(misplaced):
            raise ValueError(
                f"site {name!r}: {count} of the values that init_to_value gives it lie outside its "
                "support (NaN lies in none). Give values inside, or none for this site."
            )
    for name, leak in found.leaks.items():
        if bool(leak):
            raise ValueError(
                f"site {name!r} has masked entries that another term of the model reads. A masked "
                "latent entry is padding: mask the terms that read it too, or take the mask off."
            )
    if bool(found.ok):
        return
    terms = {name: float(term) for name, term in found.terms.items()}
    shown = "\n".join(f"    {name}: {value:.6g}" for name, value in terms.items())
    raise ValueError(
        f"no starting point with finite log density and gradient in {TRIES} tries. Log density "
        f"by site at the last one:\n{shown}\nA value of nan or -inf names the site to look at; "
        "where all are finite the gradient is not. Try init_loc_fn=gx.init_to_median() or "
        "gx.init_to_value({...})."
    )
