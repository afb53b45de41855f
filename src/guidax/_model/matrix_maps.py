"""Maps from unconstrained vectors onto triangular, positive definite and correlation matrices."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.nn import softplus
from jaxtyping import Array

from .bijector_maps import (
    AbstractMap,
    along_last,
    exclusive_sum,
    inverse_softplus,
    log_sech,
    log_softplus,
    safe_log,
    tiny,
)

_LOG2 = math.log(2.0)


def _side(length: int, *, diagonal: bool) -> int:
    """Return the size of the matrix whose lower triangle has `length` entries."""
    n = (math.isqrt(1 + 8 * length) - 1) // 2
    if n * (n + 1) // 2 != length:
        kind = "lower triangle" if diagonal else "strict lower triangle"
        raise ValueError(
            f"a vector of length {length} fills the {kind} of no square matrix; the lengths that "
            f"do are {'n (n + 1) / 2' if diagonal else 'n (n - 1) / 2'}."
        )
    return n if diagonal else n + 1


def _strict_lower(x: Array, n: int) -> Array:
    """Lay a vector out, row by row, below the diagonal of an `n` by `n` matrix of zeros."""
    position = np.full((n, n), x.shape[-1])
    position[np.tril_indices(n, -1)] = np.arange(x.shape[-1])
    return jnp.concatenate([x, jnp.zeros_like(x, shape=(*x.shape[:-1], 1))], -1)[..., position]


def _strict_entries(y: Array) -> Array:
    """Read the entries below the diagonal, row by row."""
    rows, columns = np.tril_indices(y.shape[-1], -1)
    return y[..., rows, columns]


def _diagonal(y: Array) -> Array:
    return jnp.diagonal(y, axis1=-2, axis2=-1)


def _eye(x: Array, n: int) -> np.ndarray:
    """Return the identity, with an axis of one for each leading axis of the vectors `x`."""
    return np.eye(n).astype(x.dtype).reshape(*(1,) * (x.ndim - 1), n, n)


class AbstractTriangularMap(AbstractMap):
    """From vectors to lower triangular matrices: the strict triangle by rows, then the diagonal."""

    def __init__(self) -> None:
        super().__init__(event_ndims_in=1, event_ndims_out=2)

    @staticmethod
    def split(x: Any) -> tuple[Array, Array]:
        """Return the strict lower triangle as a matrix, and the raw diagonal."""
        x = jnp.asarray(x)
        n = _side(x.shape[-1], diagonal=True)
        strict = x.shape[-1] - n
        return _strict_lower(x[..., :strict], n), x[..., strict:]

    @staticmethod
    def join(matrix: Array, raw: Array) -> Array:
        """Return the vector of the strict lower triangle of a matrix and of a raw diagonal."""
        return jnp.concatenate([_strict_entries(matrix), raw], axis=-1)


class LowerCholesky(AbstractTriangularMap):
    """Diagonal `exp(raw)`; log-determinant `sum(raw)`."""

    def forward(self, x: Array) -> Array:
        strict, raw = self.split(x)
        return strict + jnp.exp(raw)[..., None] * _eye(raw, raw.shape[-1])

    def inverse(self, y: Array) -> Array:
        y = jnp.asarray(y)
        return self.join(y, safe_log(_diagonal(y)))

    def forward_log_det_jacobian(self, x: Array) -> Array:
        return jnp.sum(self.split(x)[1], axis=-1)


class SoftplusLowerCholesky(AbstractTriangularMap):
    """Diagonal `softplus(raw)`; log-determinant `-sum(softplus(-raw))`."""

    def forward(self, x: Array) -> Array:
        strict, raw = self.split(x)
        return strict + softplus(raw)[..., None] * _eye(raw, raw.shape[-1])

    def inverse(self, y: Array) -> Array:
        y = jnp.asarray(y)
        return self.join(y, inverse_softplus(_diagonal(y)))

    def forward_log_det_jacobian(self, x: Array) -> Array:
        return -jnp.sum(softplus(-self.split(x)[1]), axis=-1)


class ScaledUnitLowerCholesky(AbstractTriangularMap):
    """`diag(d) (I + strict)` with `d = softplus(raw)`.

    Row `i` (from 0) has `i` free entries scaled by `d_i`, hence the log-determinant
    `sum_i i log(d_i) - softplus(-raw_i)`.
    """

    def forward(self, x: Array) -> Array:
        strict, raw = self.split(x)
        return (strict + _eye(raw, raw.shape[-1])) * softplus(raw)[..., None]

    def inverse(self, y: Array) -> Array:
        y = jnp.asarray(y)
        scale = _diagonal(y)
        safe = jnp.maximum(scale, tiny(y))[..., None]
        return self.join(y / safe, inverse_softplus(scale))

    def forward_log_det_jacobian(self, x: Array) -> Array:
        raw = self.split(x)[1]
        rows = along_last(np.arange(raw.shape[-1]), raw)
        return jnp.sum(rows * log_softplus(raw) - softplus(-raw), axis=-1)


class CorrCholesky(AbstractMap):
    """From `n (n - 1) / 2` reals to the Cholesky factor of a correlation matrix of side `n`.

    Partial correlations `tanh(x_ij)` break the unit length of each row (Lewandowski, Kurowicka and
    Joe 2009; Stan's reference manual, "Cholesky factors of correlation matrices"):
    `y_ij = tanh(x_ij) prod_{k<j} sech(x_ik)`, `y_ii = prod_{k<i} sech(x_ik)`. Hence
    `log det = sum_{i>j} (i - j + 1) log sech(x_ij)`, over the entries below the diagonal.
    """

    def __init__(self) -> None:
        super().__init__(event_ndims_in=1, event_ndims_out=2)

    def forward(self, x: Array) -> Array:
        x = jnp.asarray(x)
        n = _side(x.shape[-1], diagonal=False)
        log_left = exclusive_sum(_strict_lower(log_sech(x), n))
        # A long row of extreme entries underflows; its diagonal entry stays positive all the same.
        left = jnp.exp(jnp.maximum(log_left, math.log(2 * tiny(x))))  # 2: exp may round down
        return (_strict_lower(jnp.tanh(x), n) + _eye(x, n)) * left

    def inverse(self, y: Array) -> Array:
        y = jnp.asarray(y)
        rows, columns = np.tril_indices(y.shape[-1], -1)
        # The squared length to the right of each entry, summed from the right: no cancellation.
        right = jnp.cumsum((y * y)[..., ::-1], axis=-1)[..., ::-1][..., rows, columns + 1]
        return jnp.arcsinh(y[..., rows, columns] / jnp.sqrt(jnp.maximum(right, tiny(y))))

    def forward_log_det_jacobian(self, x: Array) -> Array:
        x = jnp.asarray(x)
        rows, columns = np.tril_indices(_side(x.shape[-1], diagonal=False), -1)
        return jnp.sum(along_last(rows - columns + 1, x) * log_sech(x), axis=-1)


class TimesTranspose(AbstractMap):
    """`L L'` from a Cholesky factor `L`, onto positive definite or correlation matrices.

    The log-determinant is `n log 2 + sum_i (n - i) log L_ii` (i from 0), and for correlation
    matrices `sum_i (n - 1 - i) log L_ii`. The inverse is NaN for matrices without a factor.

    Args:
        unit_rows: Whether the rows of `L` have length 1.
    """

    def __init__(self, *, unit_rows: bool):
        super().__init__(event_ndims_in=2)
        self._unit_rows = unit_rows

    def forward(self, x: Array) -> Array:
        return jnp.matmul(x, jnp.swapaxes(x, -2, -1))

    def inverse(self, y: Array) -> Array:
        return jnp.linalg.cholesky(y)

    def forward_log_det_jacobian(self, x: Array) -> Array:
        x = jnp.asarray(x)
        n, diagonal = x.shape[-1], _diagonal(x)
        weights = along_last(np.arange(n, 0, -1), diagonal)
        constant = n * _LOG2
        if self._unit_rows:
            weights, constant = weights - 1, 0.0
        return constant + jnp.sum(weights * safe_log(diagonal), axis=-1)
