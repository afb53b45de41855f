"""One pure advance of n steps."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax, random
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._guide.guide import AutoGuide
from .._model.batch import Batch
from .._numerics import all_finite, as_dtype, from_host, jit_once, strong
from .._objective.base import AbstractObjective
from .._types import Key, is_typed_key
from .recipe import Recipe
from .window import Rows, map_moments, rows_of


class Moving(eqx.Module):
    """What a step changes. It is donated from chunk to chunk.

    Attributes:
        guide: The guide.
        opt_state: The optimizer's state.
        step: Number of steps taken.
        first_bad_step: The first step whose loss, gradient or update was not finite, from 0; -1
            while there is none.
        num_bad_steps: How many there were.
        streak: How many of them were the last ones, in a row. Once the recipe's patience is at its
            end, nothing changes any more.
        last_good: Guide and optimizer's state at the last step that was finite, where a bad one
            goes back to them; else None.
    """

    guide: AutoGuide
    opt_state: Any = eqx.field(repr=False)  # a pytree, of the optimizer's own shape
    step: Int[Array, ""]
    first_bad_step: Int[Array, ""]
    num_bad_steps: Int[Array, ""]
    streak: Int[Array, ""]
    last_good: tuple[AutoGuide, Any] | None


class Run(eqx.Module):
    """What stays the same for all steps of one call. It stays out of the loop's carry.

    Attributes:
        key: Each step folds its number into it.
        rate: The learning rate, where it is a number.
        start: The step that the call began at.
        horizon: How many steps the call takes, over which the default rate decays.
        objective: What is minimised.
        recipe: What is static.
    """

    key: Key
    rate: Float[Array, ""]
    start: Int[Array, ""]
    horizon: Int[Array, ""]
    objective: AbstractObjective
    recipe: Recipe = eqx.field(static=True)

    def key_at(self, step: Int[Array, ""]) -> Key:
        """Return the key of a step."""
        return random.fold_in(self.key, step)

    def transformation(
        self, step: Int[Array, ""], guide: AutoGuide
    ) -> optax.GradientTransformation:
        """Return the optimizer at a step."""
        # Integers of 32 bits would divide to a float of 32 bits in double precision too.
        done, horizon = (x.astype(self.rate.dtype) for x in (step - self.start, self.horizon))
        return self.recipe.transformation(self.rate, done / horizon, guide)


def as_int32(x: int) -> Int[Array, ""]:
    """Return an array of a count, made on the host: nothing compiles."""
    return from_host(np.int32(x))


@jit_once
def first_state(guide: AutoGuide, run: Run) -> Moving:
    """Return the state before the first step. Its guide is a copy, which can be donated."""
    guide = jax.tree.map(lambda x: strong(jnp.copy(x)), guide)
    zero = jnp.zeros((), jnp.int32)
    transformation, trained = run.transformation(zero, guide), run.recipe.split(guide)[0]
    opt_state = jax.tree.map(strong, _placed(transformation.init(trained), trained))
    last_good = (guide, opt_state) if run.recipe.on_nonfinite == "halve" else None
    return Moving(guide, opt_state, zero, zero - 1, zero, zero, last_good)


def _placed(opt_state: PyTree, trained: PyTree) -> PyTree:
    """Place moments as their parameters are: from JAX 0.12 on, zeros_like drops their sharding."""

    def place(x: Array, moment: Array) -> Array:
        is_moment = moment.shape == x.shape and not is_typed_key(moment)
        return moment + (0 * x).astype(moment.dtype) if is_moment else moment

    return map_moments(place, trained, opt_state)


@jax.jit
def continued(moving: Moving) -> Moving:
    """Return a copy, which can be donated: the caller may still hold the original."""
    return jax.tree.map(jnp.copy, moving)


@functools.partial(jax.jit, static_argnames="capacity", donate_argnames="moving")
def advance_in_place(
    moving: Moving, run: Run, batch: Batch, n: Int[Array, ""], *, capacity: int
) -> tuple[Moving, Float[Array, " capacity"]]:
    """Take `n` steps, in the memory of the state, which is gone.

    `n` is traced and at most `capacity`, which is static: any number of steps and any way to cut
    them into chunks share one program. Nothing changes once the recipe's patience is at its end.

    Args:
        moving: The state.
        run: What stays the same.
        batch: The arguments, marked by `guide.admit`.
        n: How many steps.
        capacity: Length of the vector of losses.

    Returns:
        The state after them, and the loss at each step: NaN once the run has ended, and after `n`
        zeros, which pass `jax_debug_nans`.
    """
    losses = jnp.zeros((capacity,), float)
    return _loop(_one_step, (moving, losses), run, batch, n)


@functools.partial(jax.jit, static_argnames="capacity")
def advance_unguarded(
    moving: Moving, run: Run, batch: Batch, n: Int[Array, ""], *, capacity: int
) -> tuple[Moving, Float[Array, " capacity"], Bool[Array, ""]]:
    """Take `n` steps, and say whether each was finite; if not, what else is returned is no result.

    No step is looked at by itself, which saves a small guide a good part of its time: what is not
    finite in a parameter stays so, and `_moved` puts there what is not finite in a gradient.
    """
    losses = jnp.zeros((capacity,), float)
    moving, losses = _loop(_moved, (moving, losses), run, batch, n)
    is_finite = jnp.isfinite(losses) | (jnp.arange(capacity, dtype=n.dtype) >= n)
    trained, _ = run.recipe.split(moving.guide)
    return moving, losses, jnp.all(is_finite) & all_finite(trained)


@functools.partial(jax.jit, static_argnames="steps")
def advance(
    moving: Moving, run: Run, batch: Batch, *, steps: int
) -> tuple[Moving, Float[Array, " steps"]]:
    """Take steps inside a transformation; see `advance_in_place`.

    Their number is static: a loop of a length that is known has a reverse mode.
    """
    loss = run.objective.loss(moving.guide, run.key, batch)  # for its placement: XLA drops it
    losses = jnp.zeros((steps,), float)
    return _loop(_one_step, _depends_on(loss, (moving, losses)), run, batch, steps)


def _loop(
    step: Callable[[Moving, Run, Batch], tuple[Moving, Array]],
    carry: tuple[Moving, Array],
    run: Run,
    batch: Batch,
    n: Int[Array, ""] | int,
) -> tuple[Moving, Array]:
    def body(i: Array, carry: tuple[Moving, Array]) -> tuple[Moving, Array]:
        moving, losses = carry
        moving, loss = step(moving, run, batch)
        return moving, losses.at[i].set(loss)

    return lax.fori_loop(0, n, body, carry)


def _one_step(moving: Moving, run: Run, batch: Batch) -> tuple[Moving, Float[Array, ""]]:
    """Take one step, on all parameters or on the rows that it holds."""
    if not run.recipe.row_sparse:
        return _step_on_all(moving, run, batch)
    indices = run.objective.indices(moving.guide, run.key_at(moving.step), batch)
    rows = rows_of(moving.guide, indices)
    held = _on_rows(lambda rows, x: rows.take(x), run, rows, moving)
    _require_moments(held, run)
    held, loss = _step_on_all(held, run, batch)
    return _on_rows(lambda rows, x, new: rows.put(x, new), run, rows, moving, held), loss


def _on_rows(
    f: Callable[..., Array], run: Run, rows: AutoGuide, moving: Moving, *new: Moving
) -> Moving:
    """Apply a function to each parameter and each moment, beside the place of its rows."""
    guide = jax.tree.map(f, rows, moving.guide, *(each.guide for each in new))

    def of_moment(rows: Rows, moment: Array, *others: Array) -> Array:
        is_whole = all(axis < moment.ndim for axis, _ in rows.axes)
        return f(rows, moment, *others) if is_whole else (*others, moment)[0]

    states = (each.opt_state for each in new)
    opt_state = map_moments(of_moment, run.recipe.split(rows)[0], moving.opt_state, *states)
    return dataclasses.replace((*new, moving)[0], guide=guide, opt_state=opt_state)


def _require_moments(held: Moving, run: Run) -> None:
    """Refuse an optimizer whose state has rows that are not seen to be rows.

    Raises:
        ValueError: If its state for the rows alone would have another shape, or if it accumulates.
    """
    accumulates = jax.tree.leaves(held.opt_state, is_leaf=_is_accumulated)
    if any(map(_is_accumulated, accumulates)):
        raise ValueError(
            "row_sparse=True cannot accumulate gradients (optax.MultiSteps): rows that the last of "
            "the steps does not hold would lose theirs."
        )
    trained = run.recipe.split(held.guide)[0]
    fresh = jax.eval_shape(run.transformation(held.step, held.guide).init, trained)
    shapes = [jax.tree.map(jnp.shape, x) for x in (fresh, held.opt_state)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "row_sparse=True takes optimizers that keep their moments in the structure of the "
            "trained parameters, such as optax.adam; this one keeps something else (optax.masked "
            "and optax.multi_transform do). Use trainable= to leave parameters out."
        )


def _is_accumulated(x: Any) -> bool:
    return isinstance(x, optax.MultiStepsState)


def _step_on_all(moving: Moving, run: Run, batch: Batch) -> tuple[Moving, Float[Array, ""]]:
    """Take one step. A bad one leaves everything as it is, or goes back.

    `lax.cond` decides that, not a selection for each leaf: into every selection XLA copies what
    leads to it, update and gradient, and compiles it again. The update itself is in no branch:
    there, vmap over an axis of an explicit mesh fails.
    """
    moved, loss = _moved(moving, run, batch)
    alive = moving.streak < run.recipe.patience
    trained, _ = run.recipe.split(moved.guide)
    good = alive & all_finite((loss, trained))
    kept = _after_bad_step(moving, alive, run.recipe)
    return lax.cond(good, lambda: moved, lambda: kept), jnp.where(alive, loss, jnp.nan)


def _moved(moving: Moving, run: Run, batch: Batch) -> tuple[Moving, Float[Array, ""]]:
    """Return the state after one more step, and its loss, if all is finite.

    Where a gradient is not finite, the parameter is not finite either, whatever the optimizer makes
    of it: zero times the gradient is added to the update.
    """
    recipe, transformation = run.recipe, run.transformation(moving.step, moving.guide)
    trained, fixed = recipe.split(moving.guide)
    key = run.key_at(moving.step)

    def loss_of(trained: Any) -> Float[Array, ""]:
        return run.objective.loss(eqx.combine(trained, fixed), key, batch)

    loss, grads = _value_and_grad(loss_of, trained, forward_mode=recipe.forward_mode)
    updates, opt_state = optax.with_extra_args_support(transformation).update(
        grads, moving.opt_state, trained, value=loss, grad=grads, value_fn=loss_of
    )
    if recipe.on_nonfinite == "halve":
        share = 0.5 ** moving.num_bad_steps.astype(run.rate.dtype)
        updates = jax.tree.map(lambda u: (share * u.astype(share.dtype)).astype(u.dtype), updates)
    updates = jax.tree.map(lambda u, g: u + (0 * g).astype(u.dtype), updates, grads)
    moved = dataclasses.replace(
        moving,
        guide=eqx.combine(optax.apply_updates(trained, updates), fixed),
        opt_state=opt_state,
        step=moving.step + 1,
        streak=jnp.zeros_like(moving.streak),
        last_good=moving.last_good and (moving.guide, moving.opt_state),
    )
    return jax.tree.map(lambda x, old: as_dtype(x, old.dtype), moved, moving), loss


def _after_bad_step(moving: Moving, alive: Bool[Array, ""], recipe: Recipe) -> Moving:
    """Return the state after a step that was not finite, or that was not taken."""
    is_first = alive & (moving.first_bad_step < 0)
    one = alive.astype(moving.streak.dtype)
    streak = moving.streak + one
    guide, opt_state = moving.last_good or (moving.guide, moving.opt_state)
    return dataclasses.replace(
        moving,
        guide=guide,
        opt_state=opt_state,
        step=moving.step + (streak < recipe.patience).astype(moving.step.dtype),
        first_bad_step=jnp.where(is_first, moving.step, moving.first_bad_step),
        num_bad_steps=moving.num_bad_steps + one,
        streak=streak,
    )


def _value_and_grad(loss_of: Any, trained: Any, *, forward_mode: bool) -> tuple[Array, Any]:
    if forward_mode:
        return loss_of(trained), jax.jacfwd(loss_of)(trained)
    try:
        return jax.value_and_grad(loss_of)(trained)
    except ValueError as error:
        if "Reverse-mode" not in str(error):
            raise
        raise ValueError(
            "the model cannot be differentiated in reverse mode, because of a loop whose length "
            "depends on values (lax.while_loop, or fori_loop with traced bounds): fit with "
            "forward_mode=True."
        ) from error


def _depends_on(anchor: Array, tree: PyTree) -> PyTree:
    """Return the same values, batched and placed as `anchor` is.

    Under vmap over a sharded axis of an explicit mesh, a loop cannot turn an unbatched carry into a
    batched one. XLA folds this away.
    """
    nothing = jnp.where(False, anchor, jnp.zeros_like(anchor))
    return jax.tree.map(lambda x: x if is_typed_key(x) else x + nothing.astype(x.dtype), tree)
