"""Functions of constrained latents that may have leading axes: the log joint density."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import random
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .._numerics import as_array
from .batch import Batch, as_batch
from .indices import admit_all
from .model import AbstractModel, at_zero
from .program import as_model
from .structure import describe
from .target import Draw, Target, outside


def log_joint(
    model: Any, latents: Mapping[str, ArrayLike], /, *args: Any, **kwargs: Any
) -> Float[Array, "..."]:
    """Return the log density of latents and observations together.

    Every row of a plate counts where the model takes the rows of its data itself; a ready-made
    batch counts N/B.

    Args:
        model: A model, such as `guide.model`, with its trained parameters; or a callable.
        latents: Site to constrained value, as `sample_posterior` returns them; leading axes that
            all of them share are those of several points. Deterministic sites are ignored.
        *args: The model's arguments, or one `gx.Batch`.
        **kwargs: The model's keyword arguments.

    Returns:
        Log joint densities, of the shape of the leading axes: minus infinity outside the support,
        which NumPyro's distributions tell themselves.

    Raises:
        TypeError: If the arguments do not fit the model, or `latents` is no dictionary of arrays.
        ValueError: If a latent is missing or unknown, or has a shape that does not fit.
    """
    model = as_model(model)
    batch = as_batch(model, args, kwargs)
    structure = describe(model, batch, random.key(0))
    batch = admit_all(model, batch)
    values = as_points(latents, structure.deterministic)
    names = {s.name for s in structure.latents}
    return over_points(lambda point: _log_joint(model, point, batch), values, names, model, batch)


@jax.jit
def _log_joint(model: AbstractModel, latents: dict[str, Array], batch: Batch) -> Float[Array, ""]:
    plates = {p.name: p for p in describe(model, batch, random.key(0)).plates}
    whole = {name: jnp.arange(plates[name].size) for name in batch.admitted}
    target = Target(model, batch, random.key(0), whole | batch.rows)
    draw = Draw.of(latents, "constrained")
    trace = target.run(draw)
    beside = outside(trace.of("latent").values())
    return jnp.where(beside, -jnp.inf, target.score_trace(trace, draw).log_density)


def as_points(latents: Mapping[str, ArrayLike], ignored: Container[str]) -> dict[str, Array]:
    """Return latents as arrays, without the sites that are ignored.

    Raises:
        TypeError: If they are no dictionary of arrays of real numbers.
    """
    if not isinstance(latents, Mapping):
        raise TypeError(
            "latents is a dictionary from site to value, as guide.sample_posterior returns it; got "
            f"{type(latents).__name__}."
        )
    found = {
        name: as_array(f"latents[{name!r}]", value)
        for name, value in latents.items()
        if name not in ignored
    }
    if complex_ones := sorted(name for name, x in found.items() if jnp.iscomplexobj(x)):
        raise TypeError(f"latents are real, but the values of {complex_ones} are complex.")
    return found


def over_points(
    fn: Callable[[dict[str, Array]], Array],
    latents: dict[str, Array],
    expected: set[str],
    model: AbstractModel,
    batch: Batch,
) -> Array:
    """Apply a function to each point of latents that may have leading axes.

    Raises:
        ValueError: If latents are missing or unknown, or their leading axes differ.
    """
    if expected != latents.keys():
        raise ValueError(
            f"latents must hold the sites {sorted(expected)}: missing "
            f"{sorted(expected - latents.keys())}, unknown {sorted(latents.keys() - expected)}."
        )
    shapes = jax.eval_shape(_latent_shapes, model, batch)
    latents = {  # latents are floating, and an integer stands for the float that it equals
        name: x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(shapes[name].dtype)
        for name, x in latents.items()
    }
    leads = {name: x.shape[: x.ndim - len(shapes[name].shape)] for name, x in latents.items()}
    lead = next(iter(leads.values()), ())  # a model without latents has one point
    if any(other != lead for other in leads.values()):
        raise ValueError(f"the leading axes of the latents differ: {leads}.")
    for _ in lead:
        fn = jax.vmap(fn)
    return fn(latents)


@jax.jit
def _latent_shapes(model: AbstractModel, batch: Batch) -> dict[str, Array]:
    """Return the latents at zero, for their shapes and dtypes."""
    trace = model.run(batch, random.key(0), at_zero, dict(batch.rows))
    return {name: site.value for name, site in trace.of("latent").items()}
