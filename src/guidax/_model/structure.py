"""Static facts about a model, found by tracing it once on arguments of given shapes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array

from .._types import Key
from .batch import Batch
from .dependencies import Reads, dependencies
from .model import AbstractModel, at_zero
from .supports import support
from .trace import Bijection, Indices, LatentSpec, Site, Structure, Trace

_NEEDS_PYTHON = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
_OF_SIZES = ("Shapes must be", "Slice entries must be", "parameter reps was not hashable")


class _StaticOutput(eqx.Module):
    value: Any = eqx.field(static=True)


def describe(model: AbstractModel, batch: Batch, key: Key) -> Structure:
    """Return the structure of a model, traced once for each structure of the arguments.

    JAX caches it: it is the static output of a jitted function of which only the shape is asked.

    Raises:
        TypeError: If the model uses the value of a traced argument in Python.
    """
    # A class that is registered later may give a latent the support that it lacked.
    classes = len(support.registry)
    return jax.eval_shape(_describe, classes, model, batch.admit(()), key).value


@functools.partial(jax.jit, static_argnums=0)
def _describe(classes: int, model: AbstractModel, batch: Batch, key: Key) -> _StaticOutput:
    return _StaticOutput(probe(model, batch, key))


def probe(model: AbstractModel, batch: Batch, key: Key) -> Structure:
    """Return the structure of a model inside a trace; see `describe`.

    Where the arguments hold some rows of a plate that is written with its full size, the model runs
    only with the row numbers that `Batch.at` gives.
    """
    try:
        try:
            return _probe(model, batch.without_rows(), key, {})
        except ValueError:
            if not batch.rows:
                raise
            return _probe(model, batch.without_rows(), key, dict(batch.rows))
    except (*_NEEDS_PYTHON, TypeError, IndexError) as error:
        if not isinstance(error, _NEEDS_PYTHON) and not _is_of_a_size(error):
            raise
        raise TypeError(
            f"the model {model.name} uses the value of an array or float argument in Python (a "
            "size, a branch, np.unique, …), but such arguments are traced. Pass that argument as "
            "gx.static(value), and a list of data as np.asarray(values). JAX says: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _is_of_a_size(error: Exception) -> bool:
    """Say whether JAX complains, in an error of no class of its own, of a shape that is traced."""
    said = str(error)
    return "Tracer" in said and any(words in said for words in _OF_SIZES)


def _probe(model: AbstractModel, batch: Batch, key: Key, rows: Indices) -> Structure:
    asked: set[str] = set()

    def choose(site: Site) -> Array | None:
        asked.add(site.name)
        return at_zero(site)

    trace = model.run(batch, key, choose, rows)
    latents = trace.of("latent").values()
    specs = tuple(latent_spec(s) for s in latents if s.has_bijection)
    reads = _reads(model, batch, key, trace, specs, rows)
    recorded = {s.name for s in specs} | trace.of("deterministic").keys()
    needs = (n for n in recorded if any(r.startswith("['arguments']") for r in reads[n]))
    structure = Structure(
        latents=specs,
        plates=tuple(trace.plates.values()),
        params=tuple(trace.of("param")),
        deterministic=tuple(trace.of("deterministic")),
        obstacles=tuple(_obstacles(trace, asked)),
        padded=tuple(s.name for s in latents if s.is_padded),
        needs_arguments=frozenset(needs),
        coupled=frozenset(s.name for s in specs if _reads_another(s.name, reads[s.name])),
        local_shapes=None,
        shapes=batch.shapes,
    )
    holds_rows = any(s.plates for s in specs)
    return dataclasses.replace(structure, local_shapes=batch.shapes if holds_rows else None)


def _obstacles(trace: Trace, asked: set[str]) -> Iterator[tuple[str, str]]:
    """Yield the latents that no guide can draw, and why."""
    for site in trace.of("latent").values():
        if not isinstance(site.bijection, Bijection):
            yield site.name, site.bijection or "it has no bijection"
        elif site.name not in asked:
            yield (
                site.name,
                "a handler (substitute or replay) gives its value, so a guide cannot draw it. Make "
                "an observation of it: gx.handlers.condition.",
            )


def latent_spec(site: Site) -> LatentSpec:
    """Return the static facts about a live latent, with all rows of its plates."""
    u = jax.eval_shape(site.known_bijection.inverse, site.value)
    shape, ndim = list(u.shape), len(site.batch_shape)
    for p in site.plates:
        shape[ndim + p.dim] = p.size
    plates = tuple((p.name, ndim + p.dim) for p in site.plates)
    return LatentSpec(site.name, tuple(shape), plates, str(u.dtype))


def _reads_another(name: str, reads: Reads) -> bool:
    own = f"['latents']['{name}']"
    return any(r == "['key']" or (r.startswith("['latents']") and r != own) for r in reads)


def _reads(
    model: AbstractModel,
    batch: Batch,
    key: Key,
    trace: Trace,
    specs: tuple[LatentSpec, ...],
    rows: Indices,
) -> dict[str, Reads]:
    """For each latent and deterministic site: which arguments and latents its value reads.

    A site that is hidden from the guide is drawn, and what reads it reads the key.
    """

    def values(inputs: dict[str, Any]) -> dict[str, Any]:
        u = inputs["latents"]

        def choose(site: Site) -> Array | None:
            if site.name in u:
                return site.known_bijection.forward(u[site.name])
            return None if site.has_bijection else at_zero(site)

        again = batch.with_arrays(inputs["arguments"])
        sites = model.run(again, inputs["key"], choose, rows).sites.values()
        return {s.name: s.value for s in sites if s.kind in ("latent", "deterministic")}

    latents = {s.name: trace.sites[s.name].zeros() for s in specs}
    return dependencies(values, {"arguments": batch.arrays, "latents": latents, "key": key})
