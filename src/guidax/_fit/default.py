"""The optimizer of a fit that names none."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

CLIP_NORM = 10.0  # of the gradient, at the start
CLIP_GROWTH = 1e4  # by how much the norm has risen at the end
# Adam's own but for the squares', 0.999: the first gradients, from a poor start, are forgotten in
# hundreds of steps instead of thousands.
DECAY, SQUARE_DECAY, EPS = 0.9, 0.99, 1e-8
MEMORY = 0.99  # of the gradients' outer product
EVERY = 100  # steps from one turn of the axes to the next
MAX_TURNED = 128  # numbers: a turn costs their cube, a step their square
TRAVEL = 0.4  # of the steps
SETTLE = 0.2, 0.8  # of the steps: between these, long steps of narrow normals give way to short


def default_optimizer(
    rate: float | Float[Array, ""] | optax.Schedule,
    progress: Float[Array, ""],
    units: PyTree,
    in_frame: Callable[[PyTree], PyTree],
    turned: tuple[bool, ...],
    travelling: tuple[bool, ...],
) -> optax.GradientTransformation:
    """Return Adam in units and coordinates of the guide, along the axes of its locations' gradient.

    Three things stand in plain Adam's way on data that nobody scaled. Its steps have a length, of
    about the rate, whether a posterior is a thousand wide or a thousandth: here a step of one is
    one unit (`AbstractFamily.units`). Its rates go with coordinates, which correlated posteriors
    ignore: here a family may bring its own (`AbstractFamily.in_frame`), and the locations of others
    go along the eigenvectors of the gradients' second moment (Gupta et al. 2018, "Shampoo"; Vyas et
    al. 2024, "SOAP": Adam in Shampoo's eigenbasis). In the posterior's own units that moment is
    about the square of the Hessian, so that such a step is about Newton's. And the first gradients,
    from a poor start, would stay in its second moment: the norm is clipped.

    In a frame a start may be thousands of standard deviations away, each of them a step. So there
    locations travel first: beside their steps in the frame they take others outside of it, along
    the axes, whose rate falls to zero over the first two fifths of the run.

    Args:
        rate: The learning rate, or a schedule.
        progress: The share of the steps that is done.
        units: A step of one for each trained parameter, a tree of their structure.
        in_frame: From a step in coordinates of the guide's own, a tree of that structure, to the
            change of the parameters, units and all. It is linear.
        turned: Whether each leaf of that tree goes along the axes.
        travelling: Whether each leaf of that tree travels.
    """
    clip = _clip(CLIP_NORM * CLIP_GROWTH**progress)

    def adam(step: Callable[[PyTree], PyTree], like: PyTree, turned: tuple[bool, ...]) -> Any:
        """Return Adam in the coordinates of which a step makes this change of the parameters."""
        transposed = jax.linear_transpose(step, like)
        plain = optax.scale_by_adam(DECAY, SQUARE_DECAY, EPS)
        return optax.chain(
            optax.stateless(lambda gradients, _: transposed(gradients)[0]),
            clip,
            _promoting(_turn(plain, turned) if any(turned) else plain),
            optax.scale_by_learning_rate(rate),
            optax.stateless(lambda updates, _: step(updates)),
        )

    own_axes = tuple(a and not b for a, b in zip(turned, travelling, strict=True))
    settle = adam(in_frame, units, own_axes)
    if not any(travelling):
        return settle
    pick = functools.partial(_pick, travelling)
    lengths, axes = pick(units), tuple(itertools.compress(turned, travelling))
    travel = adam(lambda step: jax.tree.map(jnp.multiply, step, lengths), lengths, axes)
    share = jnp.maximum(0.0, 1.0 - progress / TRAVEL)
    return _both(settle, optax.chain(travel, optax.scale(share)), pick)


def least_unit(progress: Float[Array, ""]) -> Float[Array, ""]:
    """Return the least length of a location's step: one, then as a square falling to zero.

    A start may lie many scales away, and a posterior may be a thousandth wide. With one to the end,
    the noise of the last steps passed for width; sooner at zero, fits stayed on plateaus.
    """
    first, last = SETTLE
    return jnp.clip((last - progress) / (last - first), 0.0, 1.0) ** 2


def _pick(chosen: tuple[bool, ...], tree: PyTree) -> list[Any]:
    """Return the leaves that are chosen."""
    return list(itertools.compress(jax.tree.leaves(tree), chosen))


def _both(
    on_all: optax.GradientTransformation,
    on_some: optax.GradientTransformation,
    pick: Callable[[PyTree], list[Any]],
) -> optax.GradientTransformation:
    """Add the updates of two transformations, one of which sees some of the leaves."""

    def init(params: PyTree) -> Any:
        return on_all.init(params), on_some.init(pick(params))

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        del params
        some, state_of_some = on_some.update(pick(updates), state[1])
        updates, state_of_all = on_all.update(updates, state[0])
        total = jax.tree.map(jnp.add, pick(updates), some)
        return eqx.tree_at(pick, updates, total), (state_of_all, state_of_some)

    return optax.GradientTransformation(init, update)


def _promoting(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """Let it promote dtypes where JAX refuses: Adam of optax 0.2.8 takes powers to a count."""

    def init(params: PyTree) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return transformation.init(params)

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        with jax.numpy_dtype_promotion("standard"):
            return transformation.update(updates, state, params)

    return optax.GradientTransformation(init, update)


def _clip(max_norm: Float[Array, ""]) -> optax.GradientTransformation:
    """Clip by the global norm, to a norm that is traced.

    Clipped noise has another mean: with a norm of 10 to the end, a fit to noisy gradients settled
    up to 2 nats below what its family can reach, however long it ran.
    """

    def clip(gradients: PyTree, params: PyTree) -> PyTree:
        del params
        # Squares overflow, in single precision from 1.8e19 on. Not by the largest entry itself: XLA
        # may multiply by the reciprocal, and that of a number beyond 8.5e37 may be taken for zero.
        scale = jnp.maximum(1.0, optax.tree.norm(gradients, ord=jnp.inf) ** 0.75)
        scaled = jax.tree.map(lambda g: g / scale, gradients)
        factor = jnp.minimum(scale, max_norm / optax.tree.norm(scaled))
        return jax.tree.map(lambda g, s: (s * factor).astype(g.dtype), gradients, scaled)

    return optax.stateless(clip)


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
