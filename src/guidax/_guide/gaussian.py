"""Normals over the flat unconstrained vector, with more or less structure in their covariance."""

from __future__ import annotations

from typing import Any

from jax import random

from .._family.diagonal import DiagonalNormal
from .._family.low_rank import LowRankNormal
from .._family.multivariate import MultivariateNormal
from .._family.normal import raw_scale_of
from .._model.strategies import Strategy, init_to_uniform
from .._types import Key
from .begin import begin
from .guide import AutoContinuous


class AutoDiagonalNormal(AutoContinuous):
    """Independent normals over one flat vector.

    The distribution is that of `AutoNormal`, kept as one vector; `AutoNormal` also takes plates
    that hold some of their rows.

    Args:
        model: A model: a callable in the model language, or what an adapter returns.
        *args: The model's arguments, or one `gx.Batch`.
        key: For the starting point.
        init_loc_fn: Where the mean starts: a strategy, or a function of a site and a key that
            returns a constrained value.
        init_scale: Starting standard deviation of each unconstrained coordinate.
        **kwargs: The model's keyword arguments.

    Raises:
        TypeError: If the arguments do not fit the model.
        ValueError: If `init_scale` is not positive, a latent is discrete, or no start is found.

    Source: Kucukelbir et al. 2017, "Automatic differentiation variational inference", section 2.
    """

    def __init__(
        self,
        model: Any,
        /,
        *args: Any,
        key: Key,
        init_loc_fn: Strategy = init_to_uniform(),
        init_scale: float = 0.1,
        **kwargs: Any,
    ):
        raw_scale_of(init_scale)  # refuse a bad one before the search
        start = begin(AutoDiagonalNormal, model, args, kwargs, key, init_loc_fn)
        family = DiagonalNormal(start, init_scale)
        super().__init__(start.model, family, start.structure, start.admitted)


class AutoMultivariateNormal(AutoContinuous):
    """A normal with a full covariance over the flat vector.

    It knows every linear correlation. It has `dim (dim + 3) / 2` parameters, and a step costs
    `dim^2`.

    Args:
        model: A model: a callable in the model language, or what an adapter returns.
        *args: The model's arguments, or one `gx.Batch`.
        key: For the starting point.
        init_loc_fn: Where the mean starts: a strategy, or a function of a site and a key that
            returns a constrained value.
        init_scale: Starting standard deviation of each unconstrained coordinate.
        **kwargs: The model's keyword arguments.

    Raises:
        TypeError: If the arguments do not fit the model.
        ValueError: If `init_scale` is not positive, a latent is discrete, or no start is found.

    Source: Kucukelbir et al. 2017, "Automatic differentiation variational inference", section 2.
    """

    def __init__(
        self,
        model: Any,
        /,
        *args: Any,
        key: Key,
        init_loc_fn: Strategy = init_to_uniform(),
        init_scale: float = 0.1,
        **kwargs: Any,
    ):
        raw_scale_of(init_scale)
        start = begin(AutoMultivariateNormal, model, args, kwargs, key, init_loc_fn)
        family = MultivariateNormal(start, init_scale)
        super().__init__(start.model, family, start.structure, start.admitted)


class AutoLowRankMultivariateNormal(AutoContinuous):
    """A normal whose covariance is diagonal plus low rank, over the flat vector.

    It knows the strongest correlations of many coordinates. Memory and a step cost `dim * rank`.

    Args:
        model: A model: a callable in the model language, or what an adapter returns.
        *args: The model's arguments, or one `gx.Batch`.
        key: For the starting point.
        init_loc_fn: Where the mean starts: a strategy, or a function of a site and a key that
            returns a constrained value.
        init_scale: Starting standard deviation of each unconstrained coordinate.
        rank: Rank of the second part; None for the square root of the dimension, rounded.
        **kwargs: The model's keyword arguments.

    Raises:
        TypeError: If the arguments do not fit the model.
        ValueError: If `init_scale` is not positive, `rank` is out of range, a latent is discrete,
            or no start is found.

    Source: Ong, Nott and Smith 2018, "Gaussian variational approximation with a factor covariance
    structure", section 2.
    """

    def __init__(
        self,
        model: Any,
        /,
        *args: Any,
        key: Key,
        init_loc_fn: Strategy = init_to_uniform(),
        init_scale: float = 0.1,
        rank: int | None = None,
        **kwargs: Any,
    ):
        raw_scale_of(init_scale)
        start = begin(AutoLowRankMultivariateNormal, model, args, kwargs, key, init_loc_fn)
        family = LowRankNormal(start, init_scale, rank, key=random.fold_in(key, 1))
        super().__init__(start.model, family, start.structure, start.admitted)


class AutoBatchedMultivariateNormal(AutoContinuous):
    """A normal with a full covariance for each index of leading axes that all latents share.

    Args:
        model: A model: a callable in the model language, or what an adapter returns.
        *args: The model's arguments, or one `gx.Batch`.
        key: For the starting point.
        init_loc_fn: Where the means start: a strategy, or a function of a site and a key that
            returns a constrained value.
        init_scale: Starting standard deviation of each unconstrained coordinate.
        batch_ndim: How many leading axes; along them the normals are independent.
        **kwargs: The model's keyword arguments.

    Raises:
        TypeError: If the arguments do not fit the model.
        ValueError: If `init_scale` is not positive, the latents do not share `batch_ndim` leading
            axes, a latent is discrete, or no start is found.
    """

    def __init__(
        self,
        model: Any,
        /,
        *args: Any,
        key: Key,
        init_loc_fn: Strategy = init_to_uniform(),
        init_scale: float = 0.1,
        batch_ndim: int = 1,
        **kwargs: Any,
    ):
        raw_scale_of(init_scale)
        start = begin(AutoBatchedMultivariateNormal, model, args, kwargs, key, init_loc_fn)
        family = MultivariateNormal(start, init_scale, batch_ndim)
        super().__init__(start.model, family, start.structure, start.admitted)


class AutoBatchedLowRankMultivariateNormal(AutoContinuous):
    """A low-rank normal for each index of leading axes that all latents share.

    Args:
        model: A model: a callable in the model language, or what an adapter returns.
        *args: The model's arguments, or one `gx.Batch`.
        key: For the starting point.
        init_loc_fn: Where the means start: a strategy, or a function of a site and a key that
            returns a constrained value.
        init_scale: Starting standard deviation of each unconstrained coordinate.
        rank: Rank of the second part of each covariance; None for the square root of the dimension
            of one normal, rounded.
        batch_ndim: How many leading axes; along them the normals are independent.
        **kwargs: The model's keyword arguments.

    Raises:
        TypeError: If the arguments do not fit the model.
        ValueError: If `init_scale` is not positive, `rank` is out of range, the latents do not
            share `batch_ndim` leading axes, a latent is discrete, or no start is found.
    """

    def __init__(
        self,
        model: Any,
        /,
        *args: Any,
        key: Key,
        init_loc_fn: Strategy = init_to_uniform(),
        init_scale: float = 0.1,
        rank: int | None = None,
        batch_ndim: int = 1,
        **kwargs: Any,
    ):
        raw_scale_of(init_scale)
        start = begin(AutoBatchedLowRankMultivariateNormal, model, args, kwargs, key, init_loc_fn)
        family = LowRankNormal(start, init_scale, rank, batch_ndim, key=random.fold_in(key, 1))
        super().__init__(start.model, family, start.structure, start.admitted)
