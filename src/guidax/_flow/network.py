"""Small dense networks with fixed masks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float

from .._model.static import Static
from .._numerics import jit_once
from .._types import Key

_BIAS_SCALE = 0.01


class Network(eqx.Module):
    """`x -> W_n' a(... a(W_1' x + b_1) ...) + b_n`, with the last layer at zero when it starts.

    Weights and biases of a layer are one matrix, the biases its last row: half as many leaves are
    half as many updates, which count for more than a small network's arithmetic.

    Weights are drawn with the variance `2 / (inputs + outputs)` of Glorot and Bengio 2010, equation
    16, masked entries and all. The masks are those of the caller: they are no part of the network,
    whose leaves are all trained.

    Args:
        widths: Number of units of each layer, from the inputs to the outputs.
        nonlinearity: What stands between the layers, coordinate by coordinate.
        skips: Whether inputs are also connected to the outputs directly.
        key: For the weights.
        dtype: Of the weights.
    """

    layers: tuple[Float[Array, "_inputs_and_one _outputs"], ...]
    skip: Float[Array, "_inputs _outputs"] | None
    nonlinearity: Static = eqx.field(static=True)

    def __init__(
        self,
        widths: Sequence[int],
        nonlinearity: Callable[[Array], Array],
        *,
        skips: bool = False,
        key: Key,
        dtype: DTypeLike,
    ):
        self.layers = _initial(key, tuple(widths), np.dtype(dtype))
        zeros = np.zeros((widths[0], widths[-1]), dtype)
        self.skip = jnp.asarray(zeros) if skips else None
        self.nonlinearity = Static(nonlinearity)

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
    return layer * np.concatenate([mask, rows]).astype(layer.dtype)


@functools.partial(jit_once, static_argnames=("widths", "dtype"))
def _initial(key: Key, widths: tuple[int, ...], dtype: np.dtype) -> tuple[Array, ...]:
    """Draw all layers with one generator call, which is what costs compilation."""
    shapes = [(m + 1, n) for m, n in zip(widths[:-2], widths[1:-1], strict=True)]
    sizes = np.cumsum([m * n for m, n in shapes])
    noise = jax.random.normal(key, (int(sizes[-1]) if shapes else 0,), dtype)
    layers = []
    for (m, n), flat in zip(shapes, jnp.split(noise, sizes[:-1]), strict=False):
        scale = np.full((m, 1), (2 / (m - 1 + n)) ** 0.5, dtype)
        scale[-1] = _BIAS_SCALE
        layers.append(flat.reshape(m, n) * scale)
    layers.append(jnp.zeros((widths[-2] + 1, widths[-1]), dtype))
    return tuple(layers)
