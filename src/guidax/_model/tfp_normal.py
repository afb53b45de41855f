"""The normal of TFP that distrax lacks. It stands here because TFP is met in this layer alone."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, Float
from tensorflow_probability.substrates.jax import distributions as tfd


def low_rank_normal(
    loc: Float[Array, "*batch dim"],
    diagonal: Float[Array, "*batch dim"],
    factor: Float[Array, "*batch dim rank"],
    batch_ndim: int = 0,
) -> Any:
    """Return the normal with covariance `diag(diagonal) + factor factor'`, never formed.

    Its last `batch_ndim` batch axes are part of the event.
    """
    normal = tfd.MultivariateNormalDiagPlusLowRankCovariance(loc, diagonal, factor)
    return tfd.Independent(normal, batch_ndim) if batch_ndim else normal
