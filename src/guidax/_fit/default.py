"""The optimizer of a fit that names none."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from .axes import scale_by_turned_adam

CLIP_NORM = 10.0  # of the gradient, at the start
CLIP_GROWTH = 1e4  # by how much the norm has risen at the end
TRAVEL = 0.4  # of the steps
LEAP = 0.1  # of the way that a location has come: so far goes a step of one, if that is more
SETTLE = 0.2, 0.8  # of the steps: between these, long steps of narrow normals give way to short


def default_optimizer(
    rate: float | Float[Array, ""] | optax.Schedule,
    progress: Float[Array, ""],
    units: PyTree,
    in_frame: Callable[[PyTree], PyTree],
    located: tuple[bool, ...],
    travelling: tuple[bool, ...],
    turned: tuple[bool, ...],
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

    And what is far away may be millions of units away. So steps of locations grow with the way that
    they have come since the run began (as in Ivgi et al. 2023, "DoG is SGD's best friend").

    Args:
        rate: The learning rate, or a schedule.
        progress: The share of the steps that is done.
        units: A step of one for each trained parameter, a tree of their structure.
        in_frame: From a step in coordinates of the guide's own, a tree of that structure, to the
            change of the parameters, units and all. It is linear.
        located: Whether each leaf of that tree is a location that `in_frame` moves by its units.
        travelling: Whether each leaf of that tree is a location that it moves in another way.
        turned: Whether each leaf of that tree goes along the axes.
    """
    clip = _clip(CLIP_NORM * CLIP_GROWTH**progress)

    def adam(step: Callable[[PyTree], PyTree], like: PyTree, turned: tuple[bool, ...]) -> Any:
        """Return Adam in the coordinates of which a step makes this change of the parameters."""
        transposed = jax.linear_transpose(step, like)
        return optax.chain(
            optax.stateless(lambda gradients, _: transposed(gradients)[0]),
            clip,
            scale_by_turned_adam(turned),
            optax.scale_by_learning_rate(rate),
            optax.stateless(lambda updates, _: step(updates)),
        )

    def settle(leaps: list[Array]) -> optax.GradientTransformation:
        """Return what moves all parameters, and locations outside of frames by so many units."""

        def change(step: PyTree) -> PyTree:
            longer = jax.tree.map(jnp.multiply, outside(step), leaps)
            return in_frame(eqx.tree_at(outside, step, longer))

        axes = tuple(a and b for a, b in zip(turned, located, strict=True))
        return adam(change, units, axes)

    def travel(leaps: list[Array]) -> optax.GradientTransformation:
        """Return what moves locations of frames besides, by so many units, outside of them."""
        lengths = jax.tree.map(jnp.multiply, inside(units), leaps)
        change = functools.partial(jax.tree.map, jnp.multiply, lengths)
        axes = tuple(itertools.compress(turned, travelling))
        return optax.chain(adam(change, lengths, axes), optax.scale(share))

    outside, inside = (functools.partial(_pick, chosen) for chosen in (located, travelling))
    share = jnp.maximum(0.0, 1.0 - progress / TRAVEL)
    begins = progress == 0
    settled = _in_leaps(settle, outside, units, least_unit(progress), begins)
    if not any(travelling):
        return settled
    return _both(settled, _in_leaps(travel, list, inside(units), share, begins), inside)


def _in_leaps(
    make: Callable[[list[Array]], optax.GradientTransformation],
    pick: Callable[[PyTree], list[Array]],
    units: PyTree,
    share: Float[Array, ""],
    begins: Bool[Array, ""],
) -> optax.GradientTransformation:
    """Return a transformation whose steps along some leaves grow with the way that they have come.

    Args:
        make: From how many units a step of one is, an array for each of these leaves, to the
            transformation.
        pick: Takes these leaves out of a tree.
        units: A step of one for each parameter.
        share: How much of `LEAP` is taken.
        begins: Whether this is the first step of a run.
    """

    def init(params: PyTree) -> tuple[list[Array], Any]:
        places = pick(params)
        return places, make(jax.tree.map(jnp.ones_like, places)).init(params)

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        def leap(place: Array, start: Array, unit: Array) -> Array:
            length = (LEAP * share).astype(place.dtype) * jnp.abs(place - start)
            return jnp.maximum(1, length / unit)

        places = pick(params)
        starts = jax.tree.map(functools.partial(jnp.where, begins), places, state[0])
        leaps = jax.tree.map(leap, places, starts, pick(units))
        updates, after = make(leaps).update(updates, state[1], params)
        return updates, (starts, after)

    return optax.GradientTransformation(init, update)


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
        some, state_of_some = on_some.update(pick(updates), state[1], pick(params))
        updates, state_of_all = on_all.update(updates, state[0], params)
        total = jax.tree.map(jnp.add, pick(updates), some)
        return eqx.tree_at(pick, updates, total), (state_of_all, state_of_some)

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
