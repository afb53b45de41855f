"""Small dense networks with fixed masks."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jaxtyping import Array, DTypeLike, Float

from .._model.static import Static
from .._numerics import from_host, jit_once
from .._types import Key

_BIAS_SCALE = 0.01


class Network(eqx.Module):
    """`x -> W_n' a(... a(W_1' x + b_1) ...) + b_n`.

    Weights and biases of a layer are one matrix, the biases its last row: half as many leaves are
    half as many updates, which count for more than a small network's arithmetic.

    Attributes:
        layers: The matrices.
        skip: Of connections from the inputs to the outputs, where there are any.
        nonlinearity: What stands between the layers, coordinate by coordinate.
    """

    layers: tuple[Float[Array, "_inputs_and_one _outputs"], ...]
    skip: Float[Array, "_inputs _outputs"] | None
    nonlinearity: Static = eqx.field(static=True)

    def __call__(
        self,
        x: Float[Array, "*batch inputs"],
        masks: Sequence[np.ndarray] | None = None,
        skip_mask: np.ndarray | None = None,
    ) -> Float[Array, "*batch outputs"]:
        """Return the outputs; weights that `masks` leaves out count as zero, where it is given."""
        hidden = x
        for i, layer in enumerate(self.layers):
            hidden = self.nonlinearity.value(hidden) if i else hidden
            hidden = _and_one(hidden) @ _masked(layer, None if masks is None else masks[i])
        return hidden if self.skip is None else hidden + x @ _masked(self.skip, skip_mask)

    def restarted(self) -> Network:
        """Return the network with its last layer, and what skips to it, at zero."""
        zeros = [jnp.zeros_like(x) for x in self._last()]
        return eqx.tree_at(Network._last, self, zeros)

    def _last(self) -> list[Any]:
        return [self.layers[-1], *([] if self.skip is None else [self.skip])]


def _and_one(x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch _inputs_and_one"]:
    """Return the vector with a one at its end, for the biases."""
    return jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], axis=-1)


def _masked(layer: Array, mask: np.ndarray | None) -> Array:
    """Return a matrix without the weights that a mask leaves out; biases have no mask."""
    if mask is None:
        return layer
    rows = np.ones((layer.shape[0] - mask.shape[0], 1), bool) & np.ones(mask.shape[1], bool)
    return jnp.where(np.concatenate([mask, rows]), layer, 0)  # faster than times numbers


def make_networks(
    key: Key,
    widths: Sequence[Sequence[int]],
    nonlinearity: Callable[[Array], Array],
    *,
    skips: bool = False,
    dtype: DTypeLike,
) -> list[Network]:
    """Return networks whose last layers are zero.

    The other weights are drawn with the variance `2 / (inputs + outputs)` of Glorot and Bengio
    2010, equation 16, those that a mask leaves out too. Masks are the caller's: they are no part of
    a network, whose leaves are all trained.

    Args:
        key: The guide's own, which the search for a start has used: what is drawn here is apart.
        widths: For each network, the number of units of each layer, from inputs to outputs.
        nonlinearity: Of all of them.
        skips: Whether inputs are also connected to the outputs directly.
        dtype: Of the weights.
    """
    all_widths = tuple(tuple(each) for each in widths)
    drawn = _draw_layers(key, all_widths, np.dtype(dtype))
    return [
        Network(
            layers,
            from_host(np.zeros((each[0], each[-1]), dtype)) if skips else None,
            Static(nonlinearity),
        )
        for layers, each in zip(drawn, all_widths, strict=True)
    ]


@functools.partial(jit_once, static_argnames=("all_widths", "dtype"))
def _draw_layers(
    key: Key, all_widths: tuple[tuple[int, ...], ...], dtype: np.dtype
) -> list[tuple[Array, ...]]:
    """Draw for all networks with one generator call, which is what costs compilation."""
    keys = random.split(random.fold_in(key, 1), len(all_widths))
    shapes = [[(m + 1, n) for m, n in itertools.pairwise(each[:-1])] for each in all_widths]
    most = max(sum(m * n for m, n in each) for each in shapes)
    noise = jax.vmap(lambda key: random.normal(key, (most,), dtype))(keys)
    return [
        (*_scaled(row, each), jnp.zeros((widths[-2] + 1, widths[-1]), dtype))
        for row, each, widths in zip(noise, shapes, all_widths, strict=True)
    ]


def _scaled(noise: Array, shapes: list[tuple[int, int]]) -> list[Array]:
    """Cut matrices of these shapes out of noise, and scale their weights and biases."""
    layers, start = [], 0
    for m, n in shapes:
        scale = np.full((m, 1), (2 / (m - 1 + n)) ** 0.5, noise.dtype)
        scale[-1] = _BIAS_SCALE
        layers.append(noise[start : start + m * n].reshape(m, n) * scale)
        start += m * n
    return layers
