"""The layer of block neural autoregressive flow."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, DTypeLike, Float

from .._model.tfp_root import increasing_root
from .._numerics import from_host
from .autoregressive import AbstractAutoregressive
from .base import Vector
from .masks import block_masks

LEAK = 0.01  # of the activation: with it the flow maps onto the reals
_START_SCALE = 0.4  # of what enters an activation, times dim^-1/4
_START_BIAS = 1.0


class BlockAutoregressive(AbstractAutoregressive):
    """A network of block triangular matrices with positive diagonal blocks.

    Each input has its own hidden units in every layer, which see the units of earlier inputs too,
    and rise with their own. The matrix of a layer is `w = exp(W)` in diagonal blocks, `W` in the
    blocks above them, zero elsewhere, and it is used with weight normalisation: column `j` times
    `exp(log_scale_j) / |w_j|`. The activation is `tanh(u) + 0.01 u`. The diagonal of the Jacobian
    is a product of diagonal blocks, multiplied in log space.

    With a gate `g` the map is `a f(x) + (1 - a) x`, `a = sigmoid(g)`.

    It starts close to the identity. Weights off the diagonal blocks are zero, so that every
    coordinate has the same map; what enters an activation is so small that it is nearly straight;
    the biases of a coordinate's units lie on both sides of zero, so that even terms cancel; the
    last layer gives a standard normal its second moment back.

    Source: De Cao, Titov and Aziz 2019, "Block neural autoregressive flow", equations 8 to 12; the
    activation is NumPyro's.

    Args:
        dim: Length of the vector.
        hidden_factors: Hidden units of each layer, for each coordinate.
        gated: Whether there is a gate.
        dtype: Of the parameters.
    """

    weights: tuple[Float[Array, "inputs outputs"], ...]
    log_scales: tuple[Float[Array, " outputs"], ...]
    biases: tuple[Float[Array, " outputs"], ...]
    gate: Float[Array, ""] | None

    def __init__(self, dim: int, hidden_factors: tuple[int, ...], *, gated: bool, dtype: DTypeLike):
        factors = (1, *hidden_factors, 1)
        log_scales, biases = _start(hidden_factors, min(0.3, _START_SCALE * dim**-0.25))
        self.weights = tuple(
            from_host(np.zeros((dim * m, dim * n), dtype))
            for m, n in zip(factors[:-1], factors[1:], strict=True)
        )
        self.log_scales = tuple(from_host(np.tile(x, dim).astype(dtype)) for x in log_scales)
        self.biases = tuple(from_host(np.tile(x, dim).astype(dtype)) for x in biases)
        self.gate = from_host(np.zeros((), dtype)) if gated else None

    @property
    def dim(self) -> int:
        """Length of the vector."""
        return self.biases[-1].shape[0]

    def restarted(self) -> BlockAutoregressive:
        """Return the layer as it is made."""
        factors = tuple(bias.shape[0] // self.dim for bias in self.biases[:-1])
        gated = self.gate is not None
        return BlockAutoregressive(self.dim, factors, gated=gated, dtype=self.biases[-1].dtype)

    def matrices(self) -> tuple[list[Array], list[Float[Array, "dim rows columns"]]]:
        """Return the matrix of each layer, and the logarithms of its diagonal blocks."""
        matrices, log_blocks = [], []
        for weight, log_scale in zip(self.weights, self.log_scales, strict=True):
            rows, columns = (n // self.dim for n in weight.shape)
            diagonal, above = block_masks(self.dim, rows, columns)
            # Only the diagonal's weights reach exp: elsewhere they may be large.
            raised = jnp.exp(jnp.where(diagonal, weight, 0.0))
            w = jnp.where(diagonal, raised, jnp.where(above, weight, 0.0))
            log_norm = 0.5 * jnp.log(jnp.sum(w**2, axis=0))
            log_factor = log_scale - log_norm
            matrices.append(w * jnp.exp(log_factor)[None])
            log_w = _diagonal_blocks(weight, self.dim)
            log_blocks.append(log_w + log_factor.reshape(self.dim, 1, columns))
        return matrices, log_blocks

    def forward_and_log_det(self, x: Vector) -> tuple[Vector, Float[Array, ""]]:
        """Return the image, and the sum of the logarithms of the Jacobian's diagonal."""
        matrices, log_blocks = self.matrices()
        value, log_slope = x, jnp.zeros((self.dim, 1, 1), x.dtype)
        for i, (matrix, bias, block) in enumerate(
            zip(matrices, self.biases, log_blocks, strict=True)
        ):
            if i:
                value, bend = activation(value)
                log_slope = log_slope + bend.reshape(self.dim, 1, -1)
            value = value @ matrix + bias
            log_slope = _log_matmul_exp(log_slope, block)
        log_slope = log_slope.reshape(self.dim)
        if self.gate is None:
            return value, jnp.sum(log_slope)
        log_slope = jax.nn.softplus(log_slope + self.gate) - jax.nn.softplus(self.gate)
        return self._through_gate(value, x), jnp.sum(log_slope)

    def _through_gate(self, value: Array, x: Array) -> Array:
        """Return `a value + (1 - a) x`."""
        if self.gate is None:
            return value
        a = jax.nn.sigmoid(self.gate)
        return a * value + (1 - a) * x

    def solve(self, y: Vector) -> Vector:
        """Return the inverse by one bracketed root find for each coordinate, in turn.

        A coordinate's function is that of its own units alone; what earlier coordinates add to
        them is computed once. So all coordinates together cost little more than one pass and `dim`
        searches through matrices of a block's size.
        """
        matrices, _ = self.matrices()
        blocks = [_diagonal_blocks(matrix, self.dim) for matrix in matrices]

        def settle(i: Array, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
            """Find coordinate `i`, and write it and its units into the inputs of the layers."""
            shifts = [
                (value.reshape(-1) @ matrix.reshape(len(matrix), self.dim, -1)[:, i])
                + bias.reshape(self.dim, -1)[i]
                for value, matrix, bias in zip(inputs, matrices, self.biases, strict=True)
            ]
            own = [block[i] for block in blocks]

            def units(t: Float[Array, ""]) -> list[Array]:
                """Return the values of the coordinate's units in each layer, and its image."""
                found = [t[None]]
                for depth, (block, shift) in enumerate(zip(own, shifts, strict=True)):
                    value = found[-1] if depth == 0 else activation(found[-1])[0]
                    found.append(value @ block + shift)
                return found

            def gap(t: Float[Array, ""]) -> Float[Array, ""]:
                return self._through_gate(units(t)[-1][0], t) - y[i]

            values = units(increasing_root(gap, y[i]))[:-1]
            values = [values[0], *(activation(value)[0] for value in values[1:])]
            return tuple(
                before.at[i].set(value) for before, value in zip(inputs, values, strict=True)
            )

        widths = [len(matrix) // self.dim for matrix in matrices]
        empty = tuple(jnp.zeros((self.dim, n), y.dtype) for n in widths)
        return lax.fori_loop(0, self.dim, settle, empty)[0][:, 0]


def activation(u: Array) -> tuple[Array, Array]:
    """Return `tanh(u) + 0.01 u`, and the logarithm of its derivative."""
    log_slope = 2 * (math.log(2) - u - jax.nn.softplus(-2 * u))  # of tanh: log(1 - tanh^2)
    return jnp.tanh(u) + LEAK * u, jnp.logaddexp(log_slope, math.log(LEAK))


def _diagonal_blocks(matrix: Array, dim: int) -> Float[Array, "dim rows columns"]:
    rows, columns = (n // dim for n in matrix.shape)
    index = np.arange(dim)
    return matrix.reshape(dim, rows, dim, columns)[index, :, index, :]


def _log_matmul_exp(a: Float[Array, "dim m k"], b: Float[Array, "dim k n"]) -> Array:
    """Return `log(exp(a) @ exp(b))`."""
    return jax.nn.logsumexp(a[..., :, :, None] + b[..., None, :, :], axis=-2)


def _start(factors: tuple[int, ...], scale: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return log-scales and biases of one coordinate, found with quadrature on the host.

    A standard normal enters every activation with standard deviation `scale`, where it is close to
    a straight line, and leaves the last layer with 1. The divergence from a standard normal is of
    the order of `scale^4` for each coordinate.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    units, log_scales, biases = nodes[:, None], [], []
    for width, leaving in [*((width, scale) for width in factors), (1, 1.0)]:
        # All weights are equal, so weight normalisation divides by the root of their number.
        value = units.sum(axis=1) / math.sqrt(units.shape[1])
        gain = leaving / math.sqrt(weights @ value**2 / weights.sum())
        bias = np.linspace(-_START_BIAS, _START_BIAS, width) if width > 1 else np.zeros(1)
        log_scales.append(np.full(width, math.log(gain)))
        biases.append(bias)
        units = value[:, None] * gain + bias
        units = np.tanh(units) + LEAK * units
    return log_scales, biases
