"""Sets made of other sets: several events alike, and the image under a bijector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Array

from .._types import is_integer
from .constraint_types import BoundFunction, Constraint, Real, all_events


class Independent(Constraint):
    """Arrays all of whose events lie in `base`.

    Args:
        base: The constraint of one event.
        ndims: How many further trailing axes belong to the value.

    Raises:
        TypeError: If `base` is no constraint, or `ndims` no integer.
        ValueError: If `ndims` is negative.
    """

    _fields = ("base", "ndims")

    def __init__(self, base: Constraint, ndims: int):
        if not isinstance(base, Constraint):
            raise TypeError(f"independent wraps a constraint; got {base!r}.")
        if not is_integer(ndims):
            raise TypeError(f"ndims counts axes, so it is a Python integer; got {ndims!r}.")
        if ndims < 0:
            raise ValueError(f"ndims counts axes, so it cannot be negative; got {ndims}.")
        if isinstance(base, Independent):
            base, ndims = base.base, base.ndims + ndims
        self.base: Constraint = base
        self.ndims: int = int(ndims)
        self.event_dim: int = base.event_dim + self.ndims
        self.is_discrete: bool = base.is_discrete

    @property
    def bound_event_ndims(self) -> int:
        return self.base.bound_event_ndims + self.ndims

    def contains(self, x: Array) -> Array:
        return all_events(self.base(x), self.ndims)

    def zip_bounds(self, function: BoundFunction, others: Sequence[Constraint] = ()) -> Constraint:
        same = [c for c in others if isinstance(c, Independent) and c.ndims == self.ndims]
        if len(same) < len(others):
            return super().zip_bounds(function, others)
        return Independent(self.base.zip_bounds(function, [c.base for c in same]), self.ndims)

    def __hash__(self) -> int:
        return hash((Independent, self.base, self.ndims))

    def __repr__(self) -> str:
        return {1: "real_vector", 2: "real_matrix"}.get(
            self.ndims if type(self.base) is Real else 0,
            f"independent({self.base!r}, {self.ndims})",
        )


class Transformed(Constraint):
    """The image of `base` under a bijector.

    Membership means that the inverse lies in `base`. Two such constraints are equal if their bases
    are equal and they share one bijector object.

    Args:
        base: The set that the bijector is applied to.
        bijector: A distrax bijector, or one of TFP's JAX substrate. Where it acts on fewer axes
            than `base` has, it acts along the others alike; where on more, the further axes become
            part of the event.

    Raises:
        TypeError: If `bijector` does not say how many axes it acts on, or acts on several arrays.
    """

    _name = "transformed"
    _fields = ("base", "bijector")

    def __init__(self, base: Constraint, bijector: Any):
        if not isinstance(base, Constraint):
            raise TypeError(f"transformed takes a constraint first; got {base!r}.")
        ndims_in, ndims_out = bijector_event_ndims(bijector)
        if ndims_in > base.event_dim:
            base = Independent(base, ndims_in - base.event_dim)
        self.base: Constraint = base
        self.bijector: Any = bijector
        self.event_dim: int = ndims_out + base.event_dim - ndims_in
        self.is_discrete: bool = base.is_discrete

    def contains(self, x: Array) -> Array:
        return self.base(self.bijector.inverse(x))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Transformed):
            return False
        return self.bijector is other.bijector and self.base == other.base

    def __hash__(self) -> int:
        return hash((Transformed, self.base, id(self.bijector)))


def bijector_event_ndims(bijector: Any) -> tuple[int, int]:
    """Return how many trailing axes a distrax or TFP bijector takes and gives."""
    for names in (
        ("event_ndims_in", "event_ndims_out"),
        ("forward_min_event_ndims", "inverse_min_event_ndims"),
    ):
        ndims: list[Any] = [getattr(bijector, name, None) for name in names]
        if all(hasattr(n, "__index__") for n in ndims):
            return int(ndims[0]), int(ndims[1])
    raise TypeError(
        f"expected a distrax bijector, or a TFP bijector of one array; got {bijector!r}. Write a "
        "subclass of distrax.Bijector for other maps."
    )


def independent(base: Constraint, ndims: int) -> Constraint:
    """Arrays all of whose events lie in `base`: `base` itself if `ndims` is 0.

    Args:
        base: The constraint of one event.
        ndims: How many further trailing axes belong to the value.

    Returns:
        The constraint, with `event_dim = base.event_dim + ndims`.
    """
    return base if isinstance(base, Constraint) and ndims == 0 else Independent(base, ndims)
