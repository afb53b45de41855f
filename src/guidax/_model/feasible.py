"""A point of each constraint, whatever its bounds."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike

from . import constraints as c
from .bijectors import biject_to
from .constraint_types import Constraint

# Of each unconstrained coordinate: at zero some densities have a pole, as `Horseshoe` has.
_GENERIC = 0.3


@functools.singledispatch
def feasible(constraint: Constraint, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return a value in a constraint, away from its boundary where it is continuous.

    Args:
        constraint: The constraint.
        shape: Shape of the value, to which array bounds broadcast.
        dtype: Of the value, as far as bounds leave it. Numbers of an interval are floating.

    Returns:
        The value.

    Raises:
        NotImplementedError: If no point of the constraint is known.
    """
    try:
        bijector = biject_to(constraint)
    except (TypeError, ValueError):
        raise NotImplementedError(f"no point of {constraint!r} is known.") from None
    dtype = dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.result_type(float)
    u = jax.eval_shape(bijector.inverse, jax.ShapeDtypeStruct(shape, dtype))
    return jnp.asarray(bijector.forward(jnp.full(u.shape, _GENERIC, u.dtype)))


@feasible.register(c.Independent)
def _(constraint: c.Independent, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return feasible(constraint.base, shape, dtype)


@feasible.register(c.Circular)
def _(constraint: c.Circular, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return jnp.full(shape, _GENERIC, dtype)


@feasible.register(c.Sphere)
@feasible.register(c.OneHot)
def _(constraint: Constraint, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return jnp.zeros(shape, dtype).at[..., 0].set(1)


@feasible.register(c.Boolean)
@feasible.register(c.Integer)
@feasible.register(c.NonnegativeInteger)
def _(constraint: Constraint, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return jnp.zeros(shape, dtype)


@feasible.register(c.PositiveInteger)
def _(constraint: Constraint, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return jnp.ones(shape, dtype)


@feasible.register(c.IntegerInterval)
@feasible.register(c.IntegerGreaterThan)
def _(
    constraint: c.IntegerInterval | c.IntegerGreaterThan, shape: tuple[int, ...], dtype: DTypeLike
) -> Array:
    return jnp.broadcast_to(jnp.asarray(constraint.low), shape)


@feasible.register(c.Multinomial)
def _(constraint: c.Multinomial, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return jnp.zeros(shape, dtype).at[..., 0].set(constraint.upper)
