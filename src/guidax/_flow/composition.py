"""Layers one after another."""

from __future__ import annotations

from collections.abc import Sequence

import distrax
import jax.numpy as jnp

from .base import AbstractLayer, Vector


class Composition(AbstractLayer):
    """`f_n(... f_2(f_1(x)))`.

    Args:
        layers: The layers, in the order in which they are applied; one at least.
    """

    layers: tuple[AbstractLayer, ...]

    def __init__(self, layers: Sequence[AbstractLayer]):
        self.layers = tuple(layers)

    @property
    def depth(self) -> float:
        """That of all layers together."""
        return sum(layer.depth for layer in self.layers)

    @property
    def pace(self) -> float:
        """That of the slowest layer."""
        return min(layer.pace for layer in self.layers)

    def bijector(self) -> distrax.Bijector:
        """Return the map, over vectors with any leading axes."""
        return distrax.Chain([layer.bijector() for layer in self.layers[::-1]])

    def pull_back(self, x: Vector, y: Vector, g: Vector) -> Vector:
        """Return `J^-T g`, layer by layer."""
        del y
        for layer in self.layers:
            image = jnp.asarray(layer.bijector().forward(x))
            x, g = image, layer.pull_back(x, image, g)
        return g

    def restarted(self) -> Composition:
        """Return the layers where training starts."""
        return Composition([layer.restarted() for layer in self.layers])
