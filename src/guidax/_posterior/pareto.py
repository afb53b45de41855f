"""Pareto smoothed importance sampling: log weights with a tamed tail, and how heavy the tail is."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

SHORTEST_TAIL = 5  # draws; a fit to fewer says nothing
_LOUDEST = 1.0  # nats; log weights that are rounded by more are not equal, but unknown


def psis(
    log_weights: Float[ArrayLike, "*batch draws"],
) -> tuple[Float[Array, "*batch draws"], Float[Array, "*batch"]]:
    """Smooth importance weights, and say how heavy their tail is.

    The largest `M = ceil(min(S / 5, 3 sqrt S))` of `S` weights are replaced by the quantiles of a
    generalized Pareto distribution that is fitted to them. Its shape is k-hat. The estimates that
    the weights make need S of at least `10^(1 / (1 - k))` for a shape `k`, so that k-hat should be
    below `min(1 - 1 / log10 S, 0.7)`. From 0.5 on the weights have no variance, from 1 on no mean.

    k-hat is 0 where the tail is flat, its weights equal up to rounding, as after an exact fit:
    that is the limit of a fit that gets better, whose weights are log-normal with less and less
    spread. Log weights so large that rounding is a nat or more are not taken for equal. k-hat is
    infinite where the tail has fewer than 5 weights, as with fewer than 21 draws;
    then nothing is smoothed. It is NaN, as are the weights, if a log weight is NaN or `inf`, or all
    are `-inf`.

    Args:
        log_weights: Log weights, up to a constant; the last axis is that of the draws. `-inf` is
            a weight of zero.

    Returns:
        Smoothed log weights, which sum to one, and k-hat.

    Raises:
        ValueError: If there are no draws.

    Source: Vehtari et al. 2024, "Pareto smoothed importance sampling", equation 13 for the limit
    and appendix H for M. The fit is that of Zhang and Stephens 2009, "A new and efficient
    estimation method for the generalized Pareto distribution", with a prior on the shape that
    counts as 10 weights with k = 0.5.
    """
    log_weights = jnp.asarray(log_weights, float)
    if log_weights.ndim == 0 or log_weights.shape[-1] == 0:
        raise ValueError(
            f"log_weights has the draws on its last axis; got the shape {log_weights.shape}."
        )
    eps = jnp.finfo(log_weights.dtype).eps
    size = jnp.maximum(jnp.abs(jnp.max(log_weights, axis=-1)), 1.0)
    smoothed, k = smooth(log_weights, 8 * eps * size)
    return smoothed - jax.nn.logsumexp(smoothed, axis=-1, keepdims=True), k


@jax.jit
def smooth(
    log_weights: Float[Array, "*batch draws"], rounding: Float[Array, "*batch"]
) -> tuple[Float[Array, "*batch draws"], Float[Array, "*batch"]]:
    """Return smoothed log weights, not normalised, and k-hat.

    Args:
        log_weights: Log weights.
        rounding: Differences that are noise: a tail that spans no more is flat, unless they are
            more than a nat.
    """
    one = _smooth
    for _ in rounding.shape:
        one = jax.vmap(one)
    return one(log_weights, rounding)


def tail_length(num_draws: int) -> int:
    """Return how many weights are smoothed."""
    return math.ceil(min(num_draws / 5, 3 * math.sqrt(num_draws)))


def _smooth(
    log_weights: Float[Array, " draws"], rounding: Float[Array, ""]
) -> tuple[Float[Array, " draws"], Float[Array, ""]]:
    largest = jnp.max(log_weights)  # NaN if any is
    order = jnp.argsort(log_weights)
    x = log_weights[order] - largest
    size, k = tail_length(x.shape[0]), jnp.where(jnp.isfinite(largest), jnp.inf, jnp.nan)
    if x.shape[0] == 1:
        return jnp.where(jnp.isnan(k), k, log_weights), k
    cutoff = jnp.maximum(x[-size - 1], math.log(np.finfo(x.dtype).tiny))
    flat = (-x[-size - 1] <= rounding) & (rounding <= _LOUDEST)
    if size >= SHORTEST_TAIL:
        above = x[-size:] > cutoff  # equal weights are in the tail or outside together
        fitted, shape = _smooth_tail(x[-size:], cutoff, above)
        usable = (jnp.sum(above) >= SHORTEST_TAIL) & jnp.isfinite(shape) & ~flat
        tail = jnp.where(usable & above, jnp.minimum(fitted, 0.0), x[-size:])
        x = jnp.concatenate([x[:-size], tail])
        k = jnp.where(usable, shape, k)
    k = jnp.where(flat & ~jnp.isnan(k), 0.0, k)
    x = jnp.where(jnp.isnan(k), jnp.nan, x + largest)
    return x[jnp.argsort(order)], k


def _smooth_tail(
    x: Float[Array, " tail"], cutoff: Float[Array, ""], above: Bool[Array, " tail"]
) -> tuple[Float[Array, " tail"], Float[Array, ""]]:
    """Return smoothed log weights and the shape of their distribution.

    Args:
        x: Rising log weights.
        cutoff: The log weight that the tail exceeds.
        above: Which of `x` belong to the tail: the last ones.
    """
    count = jnp.sum(above)
    excess = jnp.where(above, jnp.exp(cutoff) * jnp.expm1(x - cutoff), 0.0)
    shape, scale = _fit_pareto(excess, above, count)
    rank = jnp.arange(x.shape[0]) - (x.shape[0] - count)
    level = (rank.astype(x.dtype) + 0.5) / count.astype(x.dtype)
    level = jnp.where(above, level, 0.5)
    return jnp.log(_pareto_quantile(level, shape, scale) + jnp.exp(cutoff)), shape


def _fit_pareto(
    excess: Float[Array, " tail"], above: Bool[Array, " tail"], count: Int[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return shape and scale of a generalized Pareto distribution.

    The likelihood is profiled over `b = -shape / scale`, whose posterior mean is taken on a grid of
    `30 + floor(sqrt(count))` points (Zhang and Stephens 2009, equations 5 to 9).
    """
    length, dtype = excess.shape[0], excess.dtype
    widest = 30 + math.isqrt(length)
    points = 30 + jnp.sum(jnp.arange(1, widest) ** 2 <= count)
    quartile = excess[length - count + (count + 2) // 4 - 1]
    largest = excess[-1]
    number = count.astype(dtype)
    mean = jnp.sum(excess) / number

    def mean_log(b: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.sum(jnp.where(above, jnp.log1p(-b * excess), 0.0)) / number

    def negative_shape_over(b: Float[Array, "..."], k: Float[Array, "..."]) -> Array:
        """Return `-b / k`, one over the scale, with its limit at zero."""
        zero = (b == 0) | (k == 0)
        return jnp.where(zero, 1 / mean, -b / jnp.where(zero, 1.0, k))

    half = jnp.arange(1, widest + 1, dtype=dtype) - 0.5
    on_grid = jnp.arange(widest) < points
    b = (1 - jnp.sqrt(points.astype(dtype) / half)) / (3 * quartile) + 1 / largest
    b = jnp.where(on_grid, b, 0.0)
    k = jax.vmap(mean_log)(b)
    log_likelihood = number * (jnp.log(negative_shape_over(b, k)) - k - 1)
    weight = jax.nn.softmax(jnp.where(on_grid, log_likelihood, -jnp.inf))
    weight = jnp.where(weight >= 10 * jnp.finfo(weight.dtype).eps, weight, 0.0)
    b = jnp.sum(b * weight) / jnp.sum(weight)
    k = mean_log(b)
    scale = 1 / negative_shape_over(b, k)
    return (number * k + 10 * 0.5) / (number + 10), scale


def _pareto_quantile(
    level: Float[Array, " tail"], shape: Float[Array, ""], scale: Float[Array, ""]
) -> Float[Array, " tail"]:
    exponential = -jnp.log1p(-level)
    small = jnp.abs(shape) < jnp.finfo(level.dtype).eps
    k = jnp.where(small, 1.0, shape)
    return scale * jnp.where(small, exponential, jnp.expm1(k * exponential) / k)
