"""What a layer of a flow is."""

from __future__ import annotations

import abc
from typing import TypeVar

import distrax
import equinox as eqx
import jax
from jaxtyping import Array, Float

Vector = Float[Array, " dim"]
Self = TypeVar("Self", bound="AbstractLayer")  # typing.Self stops run-time checks of types


class AbstractLayer(eqx.Module):
    """A learnable invertible map of a vector, whose leaves are floating arrays.

    It keeps raw parameters, and builds a bijector from them when asked: distrax's objects are no
    fields, because their pytree structure depends on which of their leaves are arrays.
    """

    @property
    def depth(self) -> float:
        """How many times it moves each coordinate, on average."""
        return 1.0

    @property
    def pace(self) -> float:
        """What its default learning rate is multiplied by."""
        return 1.0

    @abc.abstractmethod
    def bijector(self) -> distrax.Bijector:
        """Return the map, over vectors with any leading axes."""

    @abc.abstractmethod
    def pull_back(self, x: Vector, y: Vector, g: Vector) -> Vector:
        """Return `J^-T g` with `J = dy/dx`: a gradient by `x` becomes one by `y`."""

    @abc.abstractmethod
    def restarted(self: Self) -> Self:
        """Return the layer where training starts: the identity, or close to it."""


def pull_back_by_inverse(bijector: distrax.Bijector, y: Vector, g: Vector) -> Vector:
    """Return `J^-T g` as the vector-Jacobian product of an inverse that is cheap."""
    return jax.vjp(bijector.inverse, y)[1](g)[0]
