"""Layers whose i-th output depends on the inputs up to the i-th."""

from __future__ import annotations

import abc
from typing import Any

import distrax
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .base import AbstractLayer, Vector


class AbstractAutoregressive(AbstractLayer):
    """A map with a lower triangular Jacobian: one pass forwards, `dim` steps backwards."""

    @abc.abstractmethod
    def forward_and_log_det(self, x: Vector) -> tuple[Vector, Float[Array, ""]]:
        """Return the image of a vector, and the log-determinant of the Jacobian there."""

    @abc.abstractmethod
    def solve(self, y: Vector) -> Vector:
        """Return the vector with this image. Nothing differentiates through the search."""

    def bijector(self) -> distrax.Bijector:
        """Return the map, over vectors with any leading axes."""
        return _Autoregressive(self)

    def jacobian(self, x: Vector) -> Float[Array, "dim dim"]:
        """Return the Jacobian, from `dim` passes at once."""
        return jax.jacfwd(lambda at: self.forward_and_log_det(at)[0])(x)

    def pull_back(self, x: Vector, y: Vector, g: Vector) -> Vector:
        """Return `J^-T g` by a triangular solve."""
        del y
        solved = lax.linalg.triangular_solve(
            self.jacobian(x), g[:, None], left_side=True, lower=True, transpose_a=True
        )
        return solved[:, 0]


@jax.custom_jvp
def _inverse(layer: AbstractAutoregressive, y: Vector) -> Vector:
    return layer.solve(y)


@_inverse.defjvp
def _inverse_jvp(primals: Any, tangents: Any) -> tuple[Vector, Vector]:
    """Differentiate `f(x) = y` instead of the steps that found x: `J dx = dy - df`."""
    layer, y = primals
    layer_dot, y_dot = tangents
    x = _inverse(layer, y)
    _, moved = jax.jvp(lambda at: at.forward_and_log_det(x)[0], (layer,), (layer_dot,))
    x_dot = lax.linalg.triangular_solve(
        layer.jacobian(x), (y_dot - moved)[:, None], left_side=True, lower=True
    )
    return x, x_dot[:, 0]


class _Autoregressive(distrax.Bijector):
    """An autoregressive layer as a bijector."""

    def __init__(self, layer: AbstractAutoregressive):
        super().__init__(event_ndims_in=1)
        self._layer = layer

    def forward_and_log_det(self, x: Any) -> tuple[Array, Array]:
        """Return `f(x)` and `log |det J(x)|`."""
        return jnp.vectorize(self._layer.forward_and_log_det, signature="(n)->(n),()")(x)

    def inverse_and_log_det(self, y: Any) -> tuple[Array, Array]:
        """Return `x` with `f(x) = y`, and `-log |det J(x)|`."""
        x = jnp.vectorize(lambda at: _inverse(self._layer, at), signature="(n)->(n)")(y)
        return x, -self.forward_and_log_det(x)[1]

    def same_as(self, other: distrax.Bijector) -> bool:
        """Say whether another bijector is this one."""
        return type(other) is _Autoregressive and other._layer is self._layer
