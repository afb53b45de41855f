"""`biject_to`: the map from unconstrained reals onto a constraint, and which way it runs."""

from __future__ import annotations

import functools
import math
from typing import Any

import distrax
import jax.numpy as jnp
from jaxtyping import Array

from . import bijector_maps as maps
from . import constraints as c
from . import matrix_maps
from .constraint_types import bijector_event_ndims


@functools.singledispatch
def biject_to(constraint: Any) -> distrax.Bijector:
    """Return the bijector from unconstrained reals onto a constraint.

    It equals NumPyro's `biject_to` in value and log-determinant (`positive` is `exp`, `simplex` is
    stick breaking, …), follows array bounds by broadcasting, and works under JAX's transformations.
    Inverses are finite on the boundary of a closed set and NaN outside the set.
    `biject_to.register(MyConstraint)` decorates a function that serves a class of your own.

    Args:
        constraint: A continuous constraint.

    Returns:
        A distrax bijector, to be used at once and thrown away.

    Raises:
        ValueError: If no bijector fits the set's topology: `circular` and `sphere`.
        TypeError: If the constraint is discrete, or of an unknown class.
    """
    if isinstance(constraint, c.Constraint):
        if constraint.is_discrete:
            reason = getattr(constraint, "reason", "")
            raise TypeError(
                f"the support {constraint!r} is discrete{': ' * bool(reason)}{reason}; guides need "
                "continuous latents. Sum the discrete variable out, or observe it."
            )
        raise TypeError(
            f"no bijector is known for the constraint {constraint!r}. Decorate a function from it to "
            f"a distrax bijector with gx.biject_to.register({type(constraint).__name__})."
        )
    raise TypeError(
        f"biject_to takes a constraint, such as gx.constraints.positive; got {constraint!r}."
    )


@biject_to.register(c.Real)
def _(constraint: c.Real) -> distrax.Bijector:
    return maps.Identity()


@biject_to.register(c.Positive)
def _(constraint: c.Positive) -> distrax.Bijector:
    return maps.Exp()


@biject_to.register(c.SoftplusPositive)
def _(constraint: c.SoftplusPositive) -> distrax.Bijector:
    return maps.Softplus()


@biject_to.register(c.UnitInterval)
def _(constraint: c.UnitInterval) -> distrax.Bijector:
    return maps.Between(0.0, 1.0)


@biject_to.register(c.Interval)
def _(constraint: c.Interval) -> distrax.Bijector:
    low, high = constraint.low, constraint.high
    open_below = isinstance(low, float) and low == -math.inf
    open_above = isinstance(high, float) and high == math.inf
    if open_below and open_above:
        return maps.Identity()
    if open_above and not hasattr(low, "dtype"):
        return maps.Above(low)
    if (open_below or open_above) and not hasattr(low, "dtype") and not hasattr(high, "dtype"):
        # high - exp(-x): an interval's map increases whatever its ends are.
        return distrax.Chain([maps.Below(high), distrax.ScalarAffine(0.0, -1.0)])
    return maps.Between(low, high)


@biject_to.register(c.GreaterThan)
def _(constraint: c.GreaterThan) -> distrax.Bijector:
    return maps.Above(constraint.low)


@biject_to.register(c.LessThan)
def _(constraint: c.LessThan) -> distrax.Bijector:
    return maps.Below(constraint.high)
