"""The maps from unconstrained reals onto constrained values: scalar, vector and matrix bijectors.

Each equals NumPyro's map for the same constraint in value and log-determinant; log-determinants are
written in terms of the unconstrained value wherever that avoids cancellation. Where the set has
fewer dimensions than coordinates (a simplex, a correlation matrix) the log-determinant is that of
the map onto a set of free coordinates, as densities over such sets are defined.
"""

from __future__ import annotations

import abc
import math
from typing import Any

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid, sigmoid, softplus
from jaxtyping import Array

_LOG2 = math.log(2.0)


def tiny(x: Array) -> float:
    """Return the smallest normal number of the values' dtype."""
    return float(jnp.finfo(x.dtype).tiny)


def along_last(numbers: np.ndarray, x: Array) -> np.ndarray:
    """Return numbers along the last axis of `x`, in its dtype and with as many axes."""
    return numbers.astype(x.dtype).reshape(*(1,) * (x.ndim - 1), -1)


def safe_log(x: Array) -> Array:
    """Return `log(x)`, finite at 0 and NaN below."""
    return jnp.where(x < 0, jnp.nan, jnp.log(jnp.maximum(x, tiny(x))))


def clipped_sigmoid(x: Array) -> Array:
    """Return the logistic function, kept strictly inside (0, 1)."""
    return jnp.clip(sigmoid(x), tiny(x), 1.0 - float(jnp.finfo(x.dtype).eps))


def log_sech(x: Array) -> Array:
    """Return `log(sech(x))`, half the log-derivative of tanh, without overflow."""
    return _LOG2 - jnp.abs(x) - jnp.log1p(jnp.exp(-2.0 * jnp.abs(x)))


def inverse_softplus(y: Array) -> Array:
    """Return the `x` with `softplus(x) = y`, finite at 0."""
    return y + safe_log(-jnp.expm1(-y))


def log_softplus(x: Array) -> Array:
    """Return `log(softplus(x))`, which tends to `x` on the left."""
    return jnp.where(x < -30.0, x, jnp.log(softplus(jnp.maximum(x, -30.0))))


def exclusive_sum(x: Array) -> Array:
    """Return the sums of the entries before each one, along the last axis."""
    return jnp.cumsum(jnp.concatenate([jnp.zeros_like(x[..., :1]), x[..., :-1]], -1), -1)


class AbstractMap(distrax.Bijector):
    """A bijector told by its two directions and its log-determinant."""

    # Parameters are Any because distrax annotates its own as NumPy's arrays and scalars too.

    @abc.abstractmethod
    def forward(self, x: Any) -> Array:
        """Map unconstrained to constrained values."""

    @abc.abstractmethod
    def inverse(self, y: Any) -> Array:
        """Map constrained to unconstrained values."""

    @abc.abstractmethod
    def forward_log_det_jacobian(self, x: Any) -> Array:
        """Return the log-determinant of the Jacobian at the unconstrained value."""

    def forward_and_log_det(self, x: Any) -> tuple[Array, Array]:
        """Return the constrained value and the log-determinant there."""
        return self.forward(x), self.forward_log_det_jacobian(x)

    def inverse_log_det_jacobian(self, y: Any) -> Array:
        """Return the log-determinant of the inverse map."""
        return -self.forward_log_det_jacobian(self.inverse(y))

    def inverse_and_log_det(self, y: Any) -> tuple[Array, Array]:
        """Return the unconstrained value and the log-determinant of the inverse map."""
        x = self.inverse(y)
        return x, -self.forward_log_det_jacobian(x)


# Maps of single numbers.


class AbstractScalarMap(AbstractMap):
    """A monotone map of each coordinate by itself."""

    increasing: bool = True

    def __init__(self) -> None:
        super().__init__(event_ndims_in=0)


class Identity(AbstractScalarMap):
    """`y = x`."""

    def __init__(self) -> None:
        distrax.Bijector.__init__(self, event_ndims_in=0, is_constant_jacobian=True)

    def forward(self, x: Array) -> Array:
        return x

    def inverse(self, y: Array) -> Array:
        return y

    def forward_log_det_jacobian(self, x: Array) -> Array:
        return jnp.zeros_like(x)


class Exp(AbstractScalarMap):
    """`y = exp(x)`, onto the positive numbers: the smallest normal one where that rounds to 0."""

    def forward(self, x: Array) -> Array:
        y = jnp.exp(x)
        return jnp.maximum(y, tiny(y))

    def inverse(self, y: Array) -> Array:
        return safe_log(jnp.asarray(y))

    def forward_log_det_jacobian(self, x: Array) -> Array:
        return x


class Softplus(AbstractScalarMap):
    """`y = log(1 + exp(x))`, onto the positive numbers: the smallest normal one, as of `Exp`."""

    def forward(self, x: Array) -> Array:
        y = softplus(x)
        return jnp.maximum(y, tiny(y))

    def inverse(self, y: Array) -> Array:
        return inverse_softplus(jnp.asarray(y))

    def forward_log_det_jacobian(self, x: Array) -> Array:
        return -softplus(-x)


def _distance(y: Any, bound: Any) -> Array:
    """Return `y - bound`; where rounding left nothing of it, half the spacing of `bound`."""
    distance = jnp.asarray(y - bound)
    spacing = 0.5 * float(jnp.finfo(distance.dtype).eps) * jnp.abs(bound)
    return jnp.where(distance == 0, jnp.maximum(spacing, tiny(distance)), distance)


class Above(AbstractScalarMap):
    """`y = low + exp(x)`."""

    def __init__(self, low: Any):
        super().__init__()
        self._low = low

    def forward(self, x: Array) -> Array:
        return self._low + jnp.exp(x)

    def inverse(self, y: Array) -> Array:
        return safe_log(_distance(y, self._low))

    def forward_log_det_jacobian(self, x: Array) -> Array:
        return jnp.broadcast_to(x, jnp.broadcast_shapes(jnp.shape(x), jnp.shape(self._low)))


class Below(AbstractScalarMap):
    """`y = high - exp(x)`, which decreases."""

    increasing = False

    def __init__(self, high: Any):
        super().__init__()
        self._high = high

    def forward(self, x: Array) -> Array:
        return self._high - jnp.exp(x)

    def inverse(self, y: Array) -> Array:
        return safe_log(-_distance(y, self._high) * jnp.where(y == self._high, -1.0, 1.0))

    def forward_log_det_jacobian(self, x: Array) -> Array:
        return jnp.broadcast_to(x, jnp.broadcast_shapes(jnp.shape(x), jnp.shape(self._high)))


class Between(AbstractScalarMap):
    """`y = low + (high - low) sigmoid(x)` where both ends are finite.

    Array bounds may hold infinities: where `high` is infinite the map is `low + exp(x)`, where
    `low` is infinite `high - exp(-x)`, and where both are infinite the identity; it always
    increases.
    """

    def __init__(self, low: Any, high: Any):
        super().__init__()
        self._low = low
        self._high = high

    def _ends(self) -> tuple[Any, Any, Any, Any]:
        """Return finite stand-ins for the ends, and which ends are finite (NaN counts as such)."""
        if not hasattr(self._low, "dtype") and not hasattr(self._high, "dtype"):
            return self._low, self._high, True, True  # infinite Python numbers never come here
        has_low = jnp.not_equal(self._low, -jnp.inf)
        has_high = jnp.not_equal(self._high, jnp.inf)
        low = jnp.where(has_low, self._low, 0.0)
        high = jnp.where(has_high, self._high, low + 1.0)
        low = jnp.where(has_low, low, jnp.where(has_high, high - 1.0, low))
        return low, high, has_low, has_high

    def forward(self, x: Array) -> Array:
        x = jnp.asarray(x)
        low, high, has_low, has_high = self._ends()
        y = low + (high - low) * clipped_sigmoid(x)
        if has_low is True:
            return y
        tail = jnp.exp(jnp.where(has_low & has_high, 0.0, jnp.where(has_low, x, -x)))
        half = jnp.where(has_low, low + tail, jnp.where(has_high, high - tail, x))
        return jnp.where(has_low & has_high, y, half)

    def inverse(self, y: Array) -> Array:
        y = jnp.asarray(y)
        low, high, has_low, has_high = self._ends()
        fraction = (y - low) / (high - low)
        slack = 8.0 * float(jnp.finfo(fraction.dtype).eps)
        outside = (fraction < -slack) | (fraction > 1.0 + slack)
        fraction = jnp.clip(fraction, tiny(fraction), 1.0 - slack / 16)
        x = jnp.where(outside, jnp.nan, jnp.log(fraction) - jnp.log1p(-fraction))
        if has_low is True:
            return x
        above = safe_log(_distance(jnp.where(has_low & ~has_high, y, low + 1.0), low))
        below = -safe_log(_distance(high, jnp.where(has_high & ~has_low, y, high - 1.0)))
        half = jnp.where(has_low, above, jnp.where(has_high, below, y))
        return jnp.where(has_low & has_high, x, half)

    def forward_log_det_jacobian(self, x: Array) -> Array:
        low, high, has_low, has_high = self._ends()
        log_det = jnp.log(jnp.abs(high - low)) - softplus(x) - softplus(-x)
        if has_low is True:
            return log_det
        half = jnp.where(has_low, x, jnp.where(has_high, -x, 0.0))
        return jnp.where(has_low & has_high, log_det, half)


# Maps of vectors.


class AbstractVectorMap(AbstractMap):
    """A map of vectors to vectors."""

    def __init__(self) -> None:
        super().__init__(event_ndims_in=1)


class StickBreaking(AbstractVectorMap):
    """From `n` reals to the simplex of `n + 1` entries, 0 to its centre.

    `y_k = z_k prod_{j<k} (1 - z_j)` with `z_k = sigmoid(x_k - log(n - k))` (Stan's reference
    manual, "Simplex transform"), so that `log det = sum_k log z_k + (n - k) log(1 - z_k)`, k
    from 0.
    """

    @staticmethod
    def _left(x: Array) -> np.ndarray:
        return along_last(np.arange(x.shape[-1], 0, -1), x)

    def forward(self, x: Array) -> Array:
        x = jnp.asarray(x)
        x = x - np.log(self._left(x))
        one = jnp.ones_like(x[..., :1], shape=(*x.shape[:-1], 1))
        remaining = jnp.concatenate([one, jnp.cumprod(clipped_sigmoid(-x), axis=-1)], axis=-1)
        return jnp.concatenate([clipped_sigmoid(x), one], axis=-1) * remaining

    def inverse(self, y: Array) -> Array:
        y = jnp.asarray(y)
        # Summing from the right keeps the small remainders exact; 1 - cumsum would not.
        remaining = jnp.cumsum(y[..., :0:-1], axis=-1)[..., ::-1]
        x = safe_log(y[..., :-1]) - safe_log(remaining)
        return x + np.log(self._left(x))

    def forward_log_det_jacobian(self, x: Array) -> Array:
        x = jnp.asarray(x)
        left = self._left(x)
        x = x - np.log(left)
        return jnp.sum(log_sigmoid(x) + left * log_sigmoid(-x), axis=-1)


class Ordered(AbstractVectorMap):
    """`y_0 = x_0` and `y_k = y_{k-1} + exp(x_k)`, with a tie where rounding leaves none of it."""

    def forward(self, x: Array) -> Array:
        x = jnp.asarray(x)
        return jnp.cumsum(jnp.concatenate([x[..., :1], jnp.exp(x[..., 1:])], axis=-1), axis=-1)

    def inverse(self, y: Array) -> Array:
        y = jnp.asarray(y)
        return jnp.concatenate([y[..., :1], safe_log(y[..., 1:] - y[..., :-1])], axis=-1)

    def forward_log_det_jacobian(self, x: Array) -> Array:
        return jnp.sum(x[..., 1:], axis=-1)


class L1Ball(AbstractVectorMap):
    """`y_k = t_k prod_{j<k} (1 - |t_j|)` with `t = tanh(x)`: stick breaking with signs."""

    @staticmethod
    def _log_rest(x: Array) -> Array:
        """Return `log(1 - |tanh(x)|)`."""
        return _LOG2 + log_sigmoid(-2.0 * jnp.abs(x))

    def forward(self, x: Array) -> Array:
        x = jnp.asarray(x)
        return jnp.tanh(x) * jnp.exp(exclusive_sum(self._log_rest(x)))

    def inverse(self, y: Array) -> Array:
        y = jnp.asarray(y)
        edge = 1.0 - float(jnp.finfo(y.dtype).eps)
        remaining = jnp.maximum(1.0 - exclusive_sum(jnp.abs(y)), tiny(y))
        return jnp.arctanh(jnp.clip(y / remaining, -edge, edge))

    def forward_log_det_jacobian(self, x: Array) -> Array:
        x = jnp.asarray(x)
        later = along_last(np.arange(x.shape[-1] - 1, -1, -1), x)
        return jnp.sum(2.0 * log_sech(x) + later * self._log_rest(x), axis=-1)


class ZeroSum(AbstractMap):
    """An isometry onto the arrays that sum to zero along each of their last `ndims` axes.

    Along one axis of length `n - 1`, with `s = sum(x) / (sqrt(n) + n)`: the entries are `x - s`,
    and a last one, `-sum(x) / sqrt(n)`, makes up for their sum. All log-determinants are 0.
    """

    def __init__(self, ndims: int):
        super().__init__(event_ndims_in=ndims, is_constant_jacobian=True)
        self._ndims = ndims

    def forward(self, x: Array) -> Array:
        x = jnp.asarray(x)
        for axis in range(-self._ndims, 0):
            n = x.shape[axis] + 1
            total = x.sum(axis=axis, keepdims=True)
            x = jnp.concatenate([x - total / (math.sqrt(n) + n), -total / math.sqrt(n)], axis=axis)
        return x

    def inverse(self, y: Array) -> Array:
        y = jnp.asarray(y)
        for axis in range(-self._ndims, 0):
            n = y.shape[axis]
            last = jax.lax.slice_in_dim(y, n - 1, n, axis=y.ndim + axis)
            y = jax.lax.slice_in_dim(y, 0, n - 1, axis=y.ndim + axis)
            y = y - last / (1.0 + math.sqrt(n))
        return y

    def forward_log_det_jacobian(self, x: Array) -> Array:
        x = jnp.asarray(x)
        return jnp.zeros(x.shape[: x.ndim - self._ndims], x.dtype)
