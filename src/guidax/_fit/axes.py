"""Adam along axes of its own: the eigenvectors of the gradient's second moment."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

# Adam's own but for the squares', 0.999: the first gradients, from a poor start, are forgotten in
# hundreds of steps instead of thousands.
DECAY, SQUARE_DECAY, EPS = 0.9, 0.99, 1e-8
MEMORY = 0.99  # of the gradients' outer product
EVERY = 100  # steps from one turn of the axes to the next
MAX_TURNED = 128  # numbers: a turn costs their cube, a step their square


def scale_by_turned_adam(turned: tuple[bool, ...]) -> optax.GradientTransformation:
    """Return Adam that sees some leaves along the eigenvectors of their gradient's second moment.

    As one vector (Gupta et al. 2018, "Shampoo"; Vyas et al. 2024, "SOAP").

    Args:
        turned: Whether each leaf is one of them.
    """
    adam = optax.scale_by_adam(DECAY, SQUARE_DECAY, EPS)
    return _promoting(_turn(adam, turned) if any(turned) else adam)


def _promoting(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """Let it promote dtypes where JAX refuses: Adam of optax 0.2.8 takes powers to a count."""

    def init(params: PyTree) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return transformation.init(params)

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        with jax.numpy_dtype_promotion("standard"):
            return transformation.update(updates, state, params)

    return optax.GradientTransformation(init, update)


class _TurnedState(NamedTuple):
    """The state of Adam along axes of its own.

    Attributes:
        adam: Adam's state, with the moments of the turned leaves along the axes.
        second: Moving average of the outer product of their gradient.
        axes: The axes, in columns: eigenvectors of `second` at the last turn.
    """

    adam: Any  # optax.ScaleByAdamState
    second: Float[Array, "dim dim"]
    axes: Float[Array, "dim dim"]


class _Axes(NamedTuple):
    """What a turn changes: the axes, and Adam's moments along them."""

    is_due: Bool[Array, ""]
    axes: Float[Array, "dim dim"]
    mean: Float[Array, " dim"]
    square: Float[Array, " dim"]


def _turn(
    adam: optax.GradientTransformation, turned: tuple[bool, ...]
) -> optax.GradientTransformation:
    """Let Adam see some leaves, as one vector, along the eigenvectors of its second moment."""

    def init(params: PyTree) -> _TurnedState:
        vector = _vector(params, turned)
        eye = jnp.eye(vector.size, dtype=vector.dtype)
        return _TurnedState(adam.init(params), jnp.zeros_like(eye), eye)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, _TurnedState]:
        del params
        gradient = _vector(updates, turned)
        second = MEMORY * state.second + (1 - MEMORY) * jnp.outer(gradient, gradient)
        count = state.adam.count  # before this step
        mean, square = (_vector(x, turned) for x in (state.adam.mu, state.adam.nu))

        def turn(old: _Axes) -> _Axes:
            # XLA hoists what the loop does not change, and would take them at every step.
            varying = jnp.where(old.is_due, second, 0)
            square, axes = jnp.linalg.eigh(varying, symmetrize_input=False)
            square = jnp.maximum(square, jnp.finfo(square.dtype).eps * square[-1])  # rounding
            weight = (1 - SQUARE_DECAY**count) / (1 - MEMORY ** (count + 1))  # Adam will debias
            square = jnp.asarray(weight * square, square.dtype)
            return _Axes(jnp.array(False), axes, _times(axes.T, _times(old.axes, old.mean)), square)

        is_due = (count + 1) % EVERY == 0
        # A loop, not lax.cond: under vmap a branch becomes a selection, which turns at every step.
        now = lax.while_loop(lambda now: now.is_due, turn, _Axes(is_due, state.axes, mean, square))
        moments = [_replace(x, turned, v) for x, v in zip(state.adam[1:], now[2:], strict=True)]
        before = optax.ScaleByAdamState(count, *moments)
        along = _replace(updates, turned, _times(now.axes.T, gradient))
        updates, after = adam.update(along, before)
        step = _times(now.axes, _vector(updates, turned))
        return _replace(updates, turned, step), _TurnedState(after, second, now.axes)

    return optax.GradientTransformation(init, update)


def _times(matrix: Float[Array, "m n"], vector: Float[Array, " n"]) -> Float[Array, " m"]:
    """Return the product in full precision, which accelerators do not take by themselves."""
    return jnp.matmul(matrix, vector, precision=lax.Precision.HIGHEST)


def _vector(tree: PyTree, turned: tuple[bool, ...]) -> Float[Array, " dim"]:
    """Lay the turned leaves end to end."""
    leaves = [x for x, is_turned in zip(jax.tree.leaves(tree), turned, strict=True) if is_turned]
    dtype = jnp.result_type(*leaves, jnp.float32)  # half precision has no eigenvectors
    return jnp.concatenate([jnp.ravel(x).astype(dtype) for x in leaves])


def _replace(tree: PyTree, turned: tuple[bool, ...], vector: Float[Array, " dim"]) -> Any:
    """Return the tree with the turned leaves out of a vector."""
    leaves, treedef = jax.tree.flatten(tree)
    sizes = [x.size for x, is_turned in zip(leaves, turned, strict=True) if is_turned]
    parts = iter(jnp.split(vector, np.cumsum(sizes)[:-1]))
    new = [
        next(parts).reshape(x.shape).astype(x.dtype) if is_turned else x
        for x, is_turned in zip(leaves, turned, strict=True)
    ]
    return jax.tree.unflatten(treedef, new)
