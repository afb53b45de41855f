"""`biject_to`: the map from unconstrained reals onto a constraint, and which way it runs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import distrax
import numpy as np
from jaxtyping import Array

from .._numerics import is_traced
from . import bijector_maps as maps
from . import constraints as c
from . import matrix_maps
from .compound_constraints import bijector_event_ndims


@functools.singledispatch
def biject_to(constraint: Any) -> distrax.Bijector:
    """Return the bijector from unconstrained reals onto a constraint.

    It equals NumPyro's `biject_to` in value and log-determinant (`positive` is `exp`, `simplex` is
    stick breaking, …), follows array bounds by broadcasting, and works under JAX's transformations.
    Inverses are finite on the boundary of a closed set and NaN outside the set.
    `biject_to.register(MyConstraint)` decorates a function that serves a class of your own: a
    subclass of `constraints.Constraint` that defines `contains`.

    Args:
        constraint: A continuous constraint.

    Returns:
        A distrax bijector, to be used at once and thrown away.

    Raises:
        ValueError: If no bijector fits the set's topology: `circular` and `sphere`.
        TypeError: If the constraint is discrete, or of an unknown class.
    """
    raise _refusal(constraint)


@biject_to.register(c.IntegerInterval)
@biject_to.register(c.IntegerGreaterThan)
def _(constraint: c.Constraint) -> distrax.Bijector:
    raise _refusal(constraint)


def _refusal(constraint: Any) -> TypeError:
    if not isinstance(constraint, c.Constraint):
        return TypeError(
            f"biject_to takes a constraint, such as gx.constraints.positive; got {constraint!r}."
        )
    if constraint.is_discrete:
        what = getattr(constraint, "reason", "") or repr(constraint)
        return TypeError(
            f"the support is discrete ({what}); guides need continuous latents. Sum the discrete "
            "variable out, or observe it."
        )
    return TypeError(
        f"no bijector is known for the constraint {constraint!r}. Decorate a function from it to "
        f"a distrax bijector with gx.biject_to.register({type(constraint).__name__})."
    )


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


@biject_to.register(c.Circular)
def _(constraint: c.Circular) -> distrax.Bijector:
    raise ValueError(
        "the support is circular: no map from the reals lets mass cross the end of an interval. "
        "Take the angle of a plane vector instead: give `xy` two normal coordinates, use "
        "jnp.arctan2(xy[1], xy[0]), and add the angle's own log density with gx.factor."
    )


@biject_to.register(c.Sphere)
def _(constraint: c.Sphere) -> distrax.Bijector:
    raise ValueError(
        "the support is a sphere, onto which no map from the reals is one to one. Normalise a "
        "normal vector instead: v / jnp.linalg.norm(v) is uniform, and gx.factor adds the "
        "density's own term."
    )


@biject_to.register(c.Transformed)
def _(constraint: c.Transformed) -> distrax.Bijector:
    return Pushforward(constraint.bijector, biject_to(constraint.base), constraint.base.event_dim)


_MAPS: dict[type, Callable[[Any], distrax.Bijector]] = {
    c.Real: lambda _: maps.Identity(),
    c.Positive: lambda _: maps.Exp(),
    c.SoftplusPositive: lambda _: maps.Softplus(),
    c.UnitInterval: lambda _: maps.Between(0.0, 1.0),
    c.GreaterThan: lambda constraint: maps.Above(constraint.low),
    c.LessThan: lambda constraint: maps.Below(constraint.high),
    c.Simplex: lambda _: maps.StickBreaking(),
    c.Ordered: lambda _: maps.Ordered(),
    c.PositiveOrdered: lambda _: distrax.Chain([_over(maps.Exp(), 1), maps.Ordered()]),
    c.L1Ball: lambda _: maps.L1Ball(),
    c.ZeroSum: lambda constraint: maps.ZeroSum(constraint.event_dim),
    c.LowerCholesky: lambda _: matrix_maps.LowerCholesky(),
    c.SoftplusLowerCholesky: lambda _: matrix_maps.SoftplusLowerCholesky(),
    c.ScaledUnitLowerCholesky: lambda _: matrix_maps.ScaledUnitLowerCholesky(),
    c.CorrCholesky: lambda _: matrix_maps.CorrCholesky(),
    c.CorrMatrix: lambda _: distrax.Chain(
        [matrix_maps.TimesTranspose(unit_rows=True), matrix_maps.CorrCholesky()]
    ),
    c.PositiveDefinite: lambda _: _squared(),
    c.PositiveSemidefinite: lambda _: _squared(),
    c.Independent: lambda constraint: _over(biject_to(constraint.base), constraint.ndims),
}
for _kind, _make in _MAPS.items():
    biject_to.register(_kind)(_make)


def _squared() -> distrax.Bijector:
    """Return the map onto `L L'`, for lower triangular matrices L with a positive diagonal."""
    factor = matrix_maps.LowerCholesky()
    return distrax.Chain([matrix_maps.TimesTranspose(unit_rows=False), factor])


def _over(bijector: distrax.Bijector, ndims: int) -> distrax.Bijector:
    """Apply a bijector along `ndims` further axes, which its log-determinant sums."""
    return distrax.Block(bijector, ndims) if ndims else bijector


class Pushforward(maps.AbstractMap):
    """A bijector of distrax or TFP after one of ours, whose result has `ndims` event axes."""

    def __init__(self, outer: Any, inner: distrax.Bijector, ndims: int):
        taken, given = bijector_event_ndims(outer)
        super().__init__(
            event_ndims_in=inner.event_ndims_in + max(taken - ndims, 0),
            event_ndims_out=given + max(ndims - taken, 0),
        )
        self.outer = outer
        self.inner = inner
        self._ndims, self._extra = ndims, ndims - taken

    def forward(self, x: Array) -> Array:
        return self.outer.forward(self.inner.forward(x))

    # The results of distrax's bijectors are annotated as NumPy's arrays too, which they never are.

    def inverse(self, y: Array) -> Array:
        return self.inner.inverse(self.outer.inverse(y))  # pyright: ignore[reportReturnType]

    def forward_log_det_jacobian(self, x: Array) -> Array:
        middle, log_det = self.inner.forward_and_log_det(x)
        if isinstance(self.outer, distrax.Bijector):
            outer = self.outer.forward_log_det_jacobian(middle)
            outer = outer.sum(axis=tuple(range(-self._extra, 0)))
            return log_det + outer  # pyright: ignore[reportReturnType]
        # TFP sums the event axes itself, and leaves out the batch of a constant Jacobian.
        return log_det + self.outer.forward_log_det_jacobian(middle, event_ndims=self._ndims)


_INCREASING = ("Exp", "Sigmoid", "Softplus", "Shift", "Identity", "Expm1", "Softsign", "Tanh")


def monotonicity(bijector: Any) -> int:
    """Return 1 or -1 where a bijector increases or decreases coordinate by coordinate, else 0.

    It is 0, too, where the answer depends on traced values or the class is unknown.
    """
    if isinstance(bijector, maps.AbstractScalarMap):
        return 1 if bijector.increasing else -1
    if isinstance(bijector, Pushforward):
        return monotonicity(bijector.outer) * monotonicity(bijector.inner)
    if isinstance(bijector, distrax.Chain):
        return math.prod(monotonicity(part) for part in bijector.bijectors)
    if isinstance(bijector, distrax.Block):
        return monotonicity(bijector.bijector)
    if isinstance(bijector, distrax.Inverse):
        return monotonicity(bijector.bijector)
    if isinstance(bijector, distrax.ScalarAffine):
        return _common_sign(bijector.scale)
    if isinstance(bijector, (distrax.Sigmoid, distrax.Tanh)):
        return 1
    return _tfp_monotonicity(bijector)


def _tfp_monotonicity(bijector: Any) -> int:
    """Answer for the commonest bijectors of TFP, by name: nothing of TFP is imported."""
    kind = type(bijector)
    if not kind.__module__.startswith("tensorflow_probability."):
        return 0
    name = kind.__name__.lstrip("_")
    if name == "Chain":
        return math.prod(monotonicity(part) for part in bijector.bijectors)
    if name == "Invert":
        return monotonicity(bijector.bijector)
    if name == "Scale":
        return _common_sign(bijector.scale)
    return int(name in _INCREASING)


def _common_sign(scale: Any) -> int:
    """Return the sign that all entries share, or 0."""
    if scale is None or is_traced(scale):
        return 0
    signs = set(np.sign(np.asarray(scale)).ravel().tolist())
    return int(signs.pop()) if len(signs) == 1 else 0
