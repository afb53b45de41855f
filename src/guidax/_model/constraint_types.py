"""Constraints: what a set of values is, and the sets of real numbers.

A constraint without array bounds compares and hashes by value, so it can travel as a static option.
One with array bounds lives for a single run of a model: it has no hash, and equals only those that
hold the same array objects.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool

Side = Literal["lower", "upper"]
BoundFunction = Callable[[Sequence[Any], Side], Any]


class Constraint(abc.ABC):
    """A set of values.

    Attributes:
        event_dim: How many trailing axes make up one value.
        is_discrete: Whether the set has no interior, so that no density over the reals fits it.
    """

    event_dim: int = 0
    is_discrete: bool = False
    _fields: ClassVar[tuple[str, ...]] = ()
    _name: ClassVar[str] = ""

    def __call__(self, x: ArrayLike) -> Bool[Array, " *batch"]:
        """Return which values lie in the set, one answer for each event.

        NaN and infinities lie in no continuous set.

        Args:
            x: Values of shape `batch + event`.

        Returns:
            Booleans of shape `batch`, broadcast against the bounds.

        Raises:
            ValueError: If `x` has fewer axes than an event has.
        """
        x = jnp.asarray(x)
        if x.ndim < self.event_dim:
            raise ValueError(
                f"a value in {self!r} has at least {self.event_dim} axes; got shape {x.shape}."
            )
        inside = self.contains(x)
        if self.is_discrete:
            return inside
        return inside & all_events(jnp.isfinite(x), self.event_dim)

    @abc.abstractmethod
    def contains(self, x: Array) -> Array:
        """Say which finite values lie in the set, one answer for each event.

        A set of one's own defines it; who asks calls the constraint itself, which checks shapes and
        leaves out NaN and infinities.
        """

    @property
    def range(self) -> tuple[Any, Any] | None:
        """The smallest interval that holds each coordinate, for sets of real numbers alone."""
        return None

    @property
    def bound_event_ndims(self) -> int:
        """How many trailing axes of an array bound belong to the event."""
        return 0

    def zip_bounds(self, function: BoundFunction, others: Sequence[Constraint] = ()) -> Constraint:
        """Build a constraint of the same form from the bounds of this one and of `others`.

        Args:
            function: Called as `function(bounds, side)`, once for each bound; `bounds` holds one
                entry for each constraint.
            others: Constraints of the same form.

        Returns:
            The new constraint.

        Raises:
            ValueError: If the constraints have different forms.
        """
        del function
        if any(self != other for other in others):
            raise ValueError(f"{[self, *others]} cannot be made into one constraint.")
        return self

    def _parameters(self) -> tuple[Any, ...]:
        return tuple(getattr(self, field) for field in self._fields)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Constraint) or type(self) is not type(other):
            return False
        pairs = zip(self._parameters(), other._parameters(), strict=True)
        return all(a is b or (_is_static(a) and _is_static(b) and a == b) for a, b in pairs)

    def __hash__(self) -> int:
        parameters = self._parameters()
        if not all(map(_is_static, parameters)):
            raise TypeError(f"{self!r} has array bounds, so it cannot be hashed.")
        return hash((type(self), parameters))

    def __repr__(self) -> str:
        name = self._name or type(self).__name__
        if not self._fields:
            return name
        return f"{name}({', '.join(map(_show, self._parameters()))})"


def all_events(condition: Array, ndims: int) -> Array:
    """Reduce the last `ndims` axes."""
    return jnp.all(condition, axis=tuple(range(-ndims, 0))) if ndims else condition


def _is_static(value: Any) -> bool:
    """Tell Python values from arrays and tracers."""
    return not hasattr(value, "dtype")


def _show(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"array{value.shape}"
    if hasattr(value, "aval"):
        return value.aval.str_short()
    return repr(value)


def as_bound(value: Any) -> Any:
    """Turn NumPy scalars into Python's, which follow the dtype of the other operand."""
    if isinstance(value, (np.generic, list, tuple)):
        value = np.asarray(value)
        return value.item() if value.ndim == 0 else value
    return value


# Sets of real numbers.


class _Scalar(Constraint):
    """A set of numbers with bounds."""

    _sides: ClassVar[tuple[Side, ...]] = ()

    def zip_bounds(self, function: BoundFunction, others: Sequence[Constraint] = ()) -> Constraint:
        if any(type(other) is not type(self) for other in others):
            return super().zip_bounds(function, others)
        columns = zip(*(c._parameters() for c in (self, *others)), strict=True)
        return type(self)(*(function(c, s) for c, s in zip(columns, self._sides, strict=True)))


class Real(Constraint):
    """The finite real numbers."""

    _name = "real"

    def contains(self, x: Array) -> Array:
        return jnp.isfinite(x)

    @property
    def range(self) -> tuple[Any, Any]:
        return -math.inf, math.inf


class Positive(Constraint):
    """The numbers above zero."""

    _name = "positive"

    def contains(self, x: Array) -> Array:
        return x > 0

    @property
    def range(self) -> tuple[Any, Any]:
        return 0.0, math.inf


class SoftplusPositive(Positive):
    """The numbers above zero, reached by softplus."""

    _name = "softplus_positive"


class Nonnegative(Positive):
    """The numbers from zero on."""

    _name = "nonnegative"

    def contains(self, x: Array) -> Array:
        return x >= 0


class UnitInterval(Constraint):
    """The numbers from 0 to 1, ends included."""

    _name = "unit_interval"

    def contains(self, x: Array) -> Array:
        return (x >= 0) & (x <= 1)

    @property
    def range(self) -> tuple[Any, Any]:
        return 0.0, 1.0


class Interval(_Scalar):
    """The numbers from `low` to `high`, ends included.

    Args:
        low: Lower end, a number or an array that broadcasts against values; may be `-inf`.
        high: Upper end, likewise; may be `inf`.

    Raises:
        ValueError: If both ends are Python numbers and `low < high` does not hold.
    """

    _name = "interval"
    _fields = ("low", "high")
    _sides = ("lower", "upper")

    def __init__(self, low: ArrayLike, high: ArrayLike):
        self.low: Any = as_bound(low)
        self.high: Any = as_bound(high)
        ends = (self.low, self.high)
        if all(isinstance(end, (int, float)) for end in ends) and not self.low < self.high:
            raise ValueError(
                f"{self._name} needs low < high; got low={self.low}, high={self.high}."
            )

    def contains(self, x: Array) -> Array:
        return (x >= self.low) & (x <= self.high)

    @property
    def range(self) -> tuple[Any, Any]:
        return self.low, self.high


class OpenInterval(Interval):
    """The numbers strictly between `low` and `high`; arguments as of `interval`."""

    _name = "open_interval"

    def contains(self, x: Array) -> Array:
        return (x > self.low) & (x < self.high)


class GreaterThan(_Scalar):
    """The numbers above `low`, a number or an array that broadcasts against values."""

    _name = "greater_than"
    _fields = ("low",)
    _sides = ("lower",)

    def __init__(self, low: ArrayLike):
        self.low: Any = as_bound(low)

    def contains(self, x: Array) -> Array:
        return x > self.low

    @property
    def range(self) -> tuple[Any, Any]:
        return self.low, math.inf


class GreaterThanEq(GreaterThan):
    """The numbers from `low` on."""

    _name = "greater_than_eq"

    def contains(self, x: Array) -> Array:
        return x >= self.low


class LessThan(_Scalar):
    """The numbers below `high`, a number or an array that broadcasts against values."""

    _name = "less_than"
    _fields = ("high",)
    _sides = ("upper",)

    def __init__(self, high: ArrayLike):
        self.high: Any = as_bound(high)

    def contains(self, x: Array) -> Array:
        return x < self.high

    @property
    def range(self) -> tuple[Any, Any]:
        return -math.inf, self.high


class LessThanEq(LessThan):
    """The numbers up to `high`."""

    _name = "less_than_eq"

    def contains(self, x: Array) -> Array:
        return x <= self.high


class Circular(Constraint):
    """Angles in radians: any number, where `x` and `x + 2 pi` are the same point."""

    _name = "circular"

    def contains(self, x: Array) -> Array:
        return jnp.isfinite(x)
