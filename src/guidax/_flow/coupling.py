"""Coupling layers, which are cheap in both directions."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, TypeVar

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .base import AbstractLayer, Vector, pull_back_by_inverse
from .network import Network
from .rearrangement import Rearrangement

Self = TypeVar("Self", bound="AbstractCoupling")

_LOG_SCALE_BOUND = 3.0
_SPLINE_BOUND = 4.0  # beyond it a spline goes on as a straight line
_SPLINE_FLOOR = 0.1  # of bin sizes and slopes at knots: with less the inverse loses accuracy


class AbstractCoupling(AbstractLayer):
    """Some coordinates move, each by its own scalar map, whose parameters read the others.

    Source: Dinh, Sohl-Dickstein and Bengio 2017, "Density estimation using real NVP", section 3.
    """

    network: eqx.AbstractVar[Network]
    moved: eqx.AbstractVar[tuple[bool, ...]]  # static: for each coordinate, whether it moves

    @property
    def depth(self) -> float:
        """The share of the coordinates that move."""
        return sum(self.moved) / len(self.moved)

    @abc.abstractmethod
    def scalar_map(self, parameters: Float[Array, "*batch moved count"]) -> distrax.Bijector:
        """Return the map of each coordinate that moves, from its parameters."""

    def bijector(self) -> distrax.Bijector:
        """Return the map, over vectors with any leading axes."""
        order = np.argsort(self.moved, kind="stable")  # what stays comes first
        num_moved = sum(self.moved)

        def parameters(kept: Any) -> Array:
            outputs = self.network(kept)
            return outputs.reshape(*outputs.shape[:-1], num_moved, -1)

        coupling = distrax.SplitCoupling(
            split_index=len(order) - num_moved,
            event_ndims=1,
            conditioner=parameters,
            bijector=self.scalar_map,
        )
        arrange = Rearrangement(order)
        return distrax.Chain([distrax.Inverse(arrange), coupling, arrange])

    def pull_back(self, x: Vector, y: Vector, g: Vector) -> Vector:
        """Return `J^-T g`, from the inverse."""
        del x
        return pull_back_by_inverse(self.bijector(), y, g)

    def restarted(self: Self) -> Self:
        """Return the identity, with the hidden layers as they are."""
        return eqx.tree_at(lambda layer: layer.network, self, self.network.restarted())


class AffineCoupling(AbstractCoupling):
    """`y = exp(s) x + m`, with `s` between -3 and 3: real NVP. It starts as the identity.

    Attributes:
        network: From the coordinates that stay to two outputs for each that moves.
        moved: For each coordinate, whether it moves.
    """

    network: Network
    moved: tuple[bool, ...] = eqx.field(static=True)

    def scalar_map(self, parameters: Float[Array, "*batch moved count"]) -> distrax.Bijector:
        """Return the affine map."""
        log_scale = _LOG_SCALE_BOUND * jnp.tanh(parameters[..., 1] / _LOG_SCALE_BOUND)
        return distrax.ScalarAffine(parameters[..., 0], log_scale=log_scale)


class SplineCoupling(AbstractCoupling):
    """Monotone rational-quadratic splines between -4 and 4, straight lines beyond.

    It starts as the identity.

    Source: Durkan et al. 2019, "Neural spline flows", section 3; here the slopes at the two ends
    are free, so that tails may be heavier or lighter than the base's.

    Attributes:
        network: From the coordinates that stay to `3 bins + 1` outputs for each that moves.
        moved: For each coordinate, whether it moves.
    """

    network: Network
    moved: tuple[bool, ...] = eqx.field(static=True)

    @property
    def pace(self) -> float:
        """Half: at the whole rate some fits to 21 coordinates stayed a nat to six below others."""
        return 0.5

    def scalar_map(self, parameters: Float[Array, "*batch moved count"]) -> distrax.Bijector:
        """Return the splines."""
        return _Spline(
            parameters,
            -_SPLINE_BOUND,
            _SPLINE_BOUND,
            min_bin_size=_SPLINE_FLOOR,
            min_knot_slope=_SPLINE_FLOOR,
        )


class _Spline(distrax.RationalQuadraticSpline):
    """Distrax's splines, also under strict promotion of dtypes.

    Distrax 0.1.9 multiplies truth values by floats, which JAX then refuses.
    """

    def forward_and_log_det(self, x: Any) -> tuple[Array, Array]:
        """Return the image and the log-determinant."""
        with jax.numpy_dtype_promotion("standard"):
            return super().forward_and_log_det(x)  # pyright: ignore[reportReturnType]

    def inverse_and_log_det(self, y: Any) -> tuple[Array, Array]:
        """Return the preimage and the log-determinant."""
        with jax.numpy_dtype_promotion("standard"):
            return super().inverse_and_log_det(y)  # pyright: ignore[reportReturnType]


def moved_by(dim: int, index: int) -> tuple[bool, ...]:
    """Say which coordinates a layer moves.

    The layers with even index `2 b` move the coordinates whose number has a zero as its `b`-th
    binary digit, those after them the others; `b` runs through all digits and starts again. So any
    two coordinates are on different sides in some layers.
    """
    if dim == 1:
        return (True,)
    digit = (index // 2) % (dim - 1).bit_length()
    return tuple((i >> digit) & 1 == index % 2 for i in range(dim))


def widths_between(
    moved: tuple[bool, ...], hidden_dims: Sequence[int], count: int
) -> tuple[int, ...]:
    """Return the widths of a network that has `count` outputs for each coordinate that moves."""
    return (len(moved) - sum(moved), *hidden_dims, sum(moved) * count)
