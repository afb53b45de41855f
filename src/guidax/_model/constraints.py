"""Every constraint by its public name: numbers, vectors, matrices and discrete values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from .._types import is_integer
from .compound_constraints import Independent, Transformed
from .compound_constraints import independent as independent
from .constraint_types import (
    BoundFunction,
    Circular,
    Constraint,
    GreaterThan,
    GreaterThanEq,
    Interval,
    LessThan,
    LessThanEq,
    Nonnegative,
    OpenInterval,
    Positive,
    Real,
    SoftplusPositive,
    UnitInterval,
    all_events,
    as_bound,
)


def _eps(x: Array) -> float:
    """Return the rounding error of the values' dtype; integers are exact."""
    return float(jnp.finfo(x.dtype).eps) if jnp.issubdtype(x.dtype, jnp.floating) else 0.0


# Sets of vectors.


class Simplex(Constraint):
    """Vectors of nonnegative numbers whose sum is 1, within 1e-6 and rounding."""

    event_dim = 1
    _name = "simplex"

    def contains(self, x: Array) -> Array:
        tolerance = 1e-6 + x.shape[-1] * _eps(x)
        return jnp.all(x >= 0, axis=-1) & (jnp.abs(x.sum(axis=-1) - 1) < tolerance)


class Ordered(Constraint):
    """Vectors that increase strictly."""

    event_dim = 1
    _name = "ordered"

    def contains(self, x: Array) -> Array:
        return jnp.all(x[..., 1:] > x[..., :-1], axis=-1)


class PositiveOrdered(Ordered):
    """Vectors of positive numbers that increase strictly."""

    _name = "positive_ordered"

    def contains(self, x: Array) -> Array:
        return super().contains(x) & jnp.all(x > 0, axis=-1)


class L1Ball(Constraint):
    """Vectors whose absolute values sum to 1 at most."""

    event_dim = 1
    _name = "l1_ball"

    def contains(self, x: Array) -> Array:
        return jnp.abs(x).sum(axis=-1) < 1 + 10 * _eps(x)


class Sphere(Constraint):
    """Vectors of Euclidean length 1."""

    event_dim = 1
    _name = "sphere"

    def contains(self, x: Array) -> Array:
        error = jnp.abs(jnp.linalg.norm(x, axis=-1) - 1)
        return error < 10 * _eps(x) * x.shape[-1] ** 0.5


class ZeroSum(Constraint):
    """Arrays that sum to zero along each of their last `event_dim` axes.

    Args:
        event_dim: How many axes.

    Raises:
        TypeError: If `event_dim` is no integer.
        ValueError: If it is less than 1.
    """

    _name = "zero_sum"
    _fields = ("event_dim",)

    def __init__(self, event_dim: int = 1):
        if not is_integer(event_dim):
            raise TypeError(f"zero_sum: event_dim is a Python integer; got {event_dim!r}.")
        if event_dim < 1:
            raise ValueError(f"zero_sum needs at least one axis; got event_dim={event_dim}.")
        self.event_dim = int(event_dim)

    def contains(self, x: Array) -> Array:
        axes = tuple(range(-self.event_dim, 0))
        scale = jnp.maximum(jnp.max(jnp.abs(x), axis=axes, initial=0.0), 1.0)
        inside = jnp.ones(scale.shape, bool)
        for axis in axes:
            worst = jnp.max(jnp.abs(x.sum(axis=axis, keepdims=True)), axis=axes, initial=0.0)
            inside &= worst <= 1e-8 + 10 * _eps(x) * x.shape[axis] * scale
        return inside


# Sets of matrices.


def _is_lower(x: Array) -> Array:
    """Say which square matrices are lower triangular with a positive diagonal."""
    positive = jnp.all(jnp.diagonal(x, axis1=-2, axis2=-1) > 0, axis=-1)
    return all_events(jnp.tril(x) == x, 2) & positive


def _is_symmetric(x: Array) -> Array:
    return all_events(jnp.isclose(x, jnp.swapaxes(x, -2, -1)), 2)


class LowerCholesky(Constraint):
    """Lower triangular matrices with a positive diagonal."""

    event_dim = 2
    _name = "lower_cholesky"

    def contains(self, x: Array) -> Array:
        return _is_lower(x)


class SoftplusLowerCholesky(LowerCholesky):
    """The set `lower_cholesky`, with a diagonal reached by softplus."""

    _name = "softplus_lower_cholesky"


class ScaledUnitLowerCholesky(LowerCholesky):
    """The set `lower_cholesky`, reached as diagonal matrix times unit lower triangular matrix."""

    _name = "scaled_unit_lower_cholesky"


class CorrCholesky(Constraint):
    """Cholesky factors of correlation matrices: `lower_cholesky` with rows of length 1."""

    event_dim = 2
    _name = "corr_cholesky"

    def contains(self, x: Array) -> Array:
        error = jnp.abs(jnp.linalg.norm(x, axis=-1) - 1)
        return _is_lower(x) & jnp.all(error <= 10 * _eps(x) * x.shape[-1], axis=-1)


class PositiveDefinite(Constraint):
    """Symmetric matrices with positive eigenvalues."""

    event_dim = 2
    _name = "positive_definite"

    def contains(self, x: Array) -> Array:
        return _is_symmetric(x) & (jnp.linalg.eigvalsh(x)[..., 0] > 0)


class PositiveSemidefinite(Constraint):
    """Symmetric matrices without negative eigenvalues, up to rounding."""

    event_dim = 2
    _name = "positive_semidefinite"

    def contains(self, x: Array) -> Array:
        eigenvalues = jnp.linalg.eigvalsh(x)
        tolerance = _eps(x) * x.shape[-1] * jnp.abs(eigenvalues[..., -1])
        return _is_symmetric(x) & (eigenvalues[..., 0] >= -tolerance)


class CorrMatrix(PositiveDefinite):
    """Correlation matrices: positive definite, with ones on the diagonal."""

    _name = "corr_matrix"

    def contains(self, x: Array) -> Array:
        error = jnp.abs(jnp.diagonal(x, axis1=-2, axis2=-1) - 1)
        tolerance = 1e-6 + 10 * _eps(x) * x.shape[-1]
        return super().contains(x) & jnp.all(error < tolerance, axis=-1)


# Discrete sets, for checking observed values.


class Discrete(Constraint):
    """Finite values of which single ones have positive probability.

    Args:
        event_dim: How many trailing axes make up one value.
        reason: What to tell a user who asks for a bijector.
    """

    is_discrete = True
    _name = "discrete"
    _fields = ("event_dim", "reason")

    def __init__(self, event_dim: int = 0, reason: str = ""):
        self.event_dim = event_dim
        self.reason = reason

    def contains(self, x: Array) -> Array:
        return all_events(jnp.isfinite(x), self.event_dim)


class Boolean(Constraint):
    """The numbers 0 and 1."""

    is_discrete = True
    _name = "boolean"

    def contains(self, x: Array) -> Array:
        return (x == 0) | (x == 1)


class OneHot(Constraint):
    """Vectors with a single 1 among zeros."""

    is_discrete = True
    event_dim = 1
    _name = "one_hot"

    def contains(self, x: Array) -> Array:
        return jnp.all((x == 0) | (x == 1), axis=-1) & (x.sum(axis=-1) == 1)


class Integer(Constraint):
    """The whole numbers."""

    is_discrete = True
    _name = "integer"

    def contains(self, x: Array) -> Array:
        return x % 1 == 0  # NaN for infinities; bools count as integers


class IntegerInterval(Interval):
    """The whole numbers from `low` to `high`, both included.

    Args:
        low: Smallest number, or an array of them.
        high: Largest number, or an array of them.
    """

    is_discrete = True
    _name = "integer_interval"

    def __init__(self, low: ArrayLike, high: ArrayLike):
        self.low: Any = as_bound(low)
        self.high: Any = as_bound(high)

    def contains(self, x: Array) -> Array:
        return super().contains(x) & integer(x)


class IntegerGreaterThan(GreaterThanEq):
    """The whole numbers from `low` on, as in NumPyro: `low` is included."""

    is_discrete = True
    _name = "integer_greater_than"

    def contains(self, x: Array) -> Array:
        return super().contains(x) & integer(x)


class NonnegativeInteger(Constraint):
    """The whole numbers 0, 1, 2 and so on."""

    is_discrete = True
    _name = "nonnegative_integer"

    def contains(self, x: Array) -> Array:
        return (x >= 0) & integer(x)


class PositiveInteger(Constraint):
    """The whole numbers 1, 2, 3 and so on."""

    is_discrete = True
    _name = "positive_integer"

    def contains(self, x: Array) -> Array:
        return (x >= 1) & integer(x)


class Multinomial(Constraint):
    """Vectors of counts with a given sum.

    Args:
        upper: The sum, a number or an array of the batch shape.
    """

    is_discrete = True
    event_dim = 1
    _name = "multinomial"
    _fields = ("upper",)

    def __init__(self, upper: ArrayLike):
        self.upper: Any = as_bound(upper)

    def contains(self, x: Array) -> Array:
        counts = jnp.all((x >= 0) & integer(x), axis=-1)
        return counts & (x.sum(axis=-1) == self.upper)

    def zip_bounds(self, function: BoundFunction, others: Sequence[Constraint] = ()) -> Constraint:
        same = [other for other in others if isinstance(other, Multinomial)]
        if len(same) < len(others):
            return super().zip_bounds(function, others)
        uppers = [self.upper, *(other.upper for other in same)]
        return Multinomial(function(uppers, "upper"))


real: Constraint = Real()
positive: Constraint = Positive()
nonnegative: Constraint = Nonnegative()
softplus_positive: Constraint = SoftplusPositive()
unit_interval: Constraint = UnitInterval()
interval = Interval
open_interval = OpenInterval
greater_than = GreaterThan
greater_than_eq = GreaterThanEq
less_than = LessThan
less_than_eq = LessThanEq
circular: Constraint = Circular()
real_vector: Constraint = Independent(real, 1)
real_matrix: Constraint = Independent(real, 2)
simplex: Constraint = Simplex()
ordered: Constraint = Ordered()
positive_ordered: Constraint = PositiveOrdered()
l1_ball: Constraint = L1Ball()
sphere: Constraint = Sphere()
zero_sum = ZeroSum
lower_cholesky: Constraint = LowerCholesky()
softplus_lower_cholesky: Constraint = SoftplusLowerCholesky()
scaled_unit_lower_cholesky: Constraint = ScaledUnitLowerCholesky()
corr_cholesky: Constraint = CorrCholesky()
corr_matrix: Constraint = CorrMatrix()
positive_definite: Constraint = PositiveDefinite()
positive_semidefinite: Constraint = PositiveSemidefinite()
transformed = Transformed
boolean: Constraint = Boolean()
one_hot: Constraint = OneHot()
discrete = Discrete
integer: Constraint = Integer()
integer_interval = IntegerInterval
integer_greater_than = IntegerGreaterThan
nonnegative_integer: Constraint = NonnegativeInteger()
positive_integer: Constraint = PositiveInteger()
multinomial = Multinomial
