"""What is static about a fit: the optimizer, which leaves it trains, how gradients are taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from .._guide.guide import AutoGuide
from .._model.static import Static
from .._numerics import from_host, is_traced

CLIP_NORM = 10.0  # of the gradient, as the default optimizer starts
CLIP_GROWTH = 1e4  # by how much the norm has risen when it ends
DEFAULT_RATE = 1e-2  # of an optimizer that is given without one
PATIENCE = 100  # bad steps in a row that are skipped before the run ends

Schedule = Callable[[Array], ArrayLike]
OnNonfinite = Literal["raise", "skip", "halve"]
Optimizer = optax.GradientTransformation | Callable[..., optax.GradientTransformation] | None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The static part of a fit, compared by value: equal recipes share one program.

    Attributes:
        optimizer: A function of a learning rate, a ready transformation, or None for the default.
        schedule: A learning rate as a function of the step, or None where it is a number.
        trained: For each leaf of the guide, whether it is trained.
        forward_mode: Whether gradients are taken in forward mode.
        row_sparse: Whether a step leaves alone the rows of plates that it does not hold.
        on_nonfinite: What follows a step that is not finite.
    """

    optimizer: Static
    schedule: Static
    trained: tuple[bool, ...]
    forward_mode: bool
    row_sparse: bool
    on_nonfinite: OnNonfinite

    @property
    def patience(self) -> int:
        """How many bad steps in a row end the run."""
        return 1 if self.on_nonfinite == "raise" else PATIENCE

    def transformation(
        self, rate: Float[Array, ""], progress: Float[Array, ""]
    ) -> optax.GradientTransformation:
        """Build the optimizer inside the trace, so that every rate shares one program.

        Args:
            rate: The learning rate, where there is no schedule.
            progress: The share of this call's steps that is done, for the default's decay.

        Raises:
            TypeError: If the function gives no optax transformation.
        """
        given, schedule = self.optimizer.value, self.schedule.value
        if isinstance(given, optax.GradientTransformation):
            return given
        if given is None:
            decayed = rate * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
            adam = optax.adam(decayed if schedule is None else schedule)
            return optax.chain(_clip(CLIP_NORM * CLIP_GROWTH**progress), adam)
        made = given(rate if schedule is None else schedule)
        if not isinstance(made, optax.GradientTransformation):
            raise TypeError(
                "optimizer takes an optax optimizer or a function from a learning rate to one, "
                f"such as optax.adam; it returned {made!r}."
            )
        return made

    def split(self, guide: AutoGuide) -> tuple[Any, Any]:
        """Return the trained leaves and the others, both in the shape of the guide."""
        return eqx.partition(guide, jax.tree.unflatten(jax.tree.structure(guide), self.trained))


def _clip(max_norm: Float[Array, ""]) -> optax.GradientTransformation:
    """Clip by the global norm, to a norm that is traced.

    Clipped noise has another mean: with a norm of 10 to the end, a fit to noisy gradients settled
    up to 2 nats below what its family can reach, however long it ran. Without any, the first
    gradients, from a poor start, stay in Adam's second moment for tens of thousands of steps.
    """

    def clip(gradients: PyTree, params: PyTree) -> PyTree:
        del params
        factor = jnp.minimum(1.0, max_norm / optax.tree.norm(gradients))
        return jax.tree.map(lambda g: (g * factor).astype(g.dtype), gradients)

    return optax.stateless(clip)


def make_recipe(
    guide: AutoGuide,
    optimizer: Optimizer,
    learning_rate: float | Array | Schedule | None,
    trainable: Callable[[AutoGuide], PyTree] | None,
    *,
    forward_mode: bool,
    row_sparse: bool,
    on_nonfinite: OnNonfinite,
) -> tuple[Recipe, Float[Array, ""]]:
    """Check the options of a fit, and return its recipe and the learning rate.

    Raises:
        TypeError: If an option is of the wrong kind.
        ValueError: If the rate is not a positive number, stands beside a ready optimizer, or
            `trainable` selects nothing of the guide; or if `on_nonfinite` is none of its values,
            or cannot stand beside `row_sparse`.
    """
    if on_nonfinite not in get_args(OnNonfinite):
        raise ValueError(
            f"on_nonfinite is one of {', '.join(map(repr, get_args(OnNonfinite)))}; got "
            f"{on_nonfinite!r}."
        )
    if row_sparse and on_nonfinite == "halve":
        raise ValueError(
            'on_nonfinite="halve" keeps a copy of the whole state, which row_sparse=True would '
            'have to touch at every step: use on_nonfinite="skip".'
        )
    if not (optimizer is None or callable(optimizer) or _is_ready(optimizer)):
        raise TypeError(
            "optimizer takes a function of the learning rate, such as optax.adam, or an optax "
            f"optimizer; got {optimizer!r}."
        )
    if _is_ready(optimizer) and learning_rate is not None:
        raise ValueError(
            "a ready optimizer has its learning rate in it, so learning_rate has no effect: leave "
            "it out, or pass a function of the rate, such as optimizer=optax.adam."
        )
    schedule = learning_rate if callable(learning_rate) else None
    if schedule is not None or learning_rate is None:
        learning_rate = guide.learning_rate if optimizer is None else DEFAULT_RATE
    if is_traced(learning_rate):
        rate = jnp.asarray(learning_rate).astype(float)  # it may be weakly typed
    else:
        number = np.asarray(learning_rate, jnp.result_type(float))
        if number.ndim or not 0 < float(number) < np.inf:
            raise ValueError(
                "learning_rate is a positive number, or a schedule (a function of the step); got "
                f"{learning_rate}."
            )
        rate = from_host(number)  # checked before: under jit its value is hidden
    recipe = Recipe(
        Static(optimizer),
        Static(schedule),
        _trained(guide, trainable),
        forward_mode,
        bool(row_sparse),
        on_nonfinite,
    )
    return recipe, rate


def _is_ready(optimizer: Any) -> bool:
    return isinstance(optimizer, optax.GradientTransformation)


class _Leaf:
    """Stands for one leaf while a where-function points at it."""


def _trained(guide: AutoGuide, where: Callable[[AutoGuide], PyTree] | None) -> tuple[bool, ...]:
    """Return one flag for each leaf: a fresh lambda that selects the same leaves costs nothing."""
    leaves, treedef = jax.tree.flatten(guide)
    if where is None:
        return (True,) * len(leaves)
    if not callable(where):
        raise TypeError(
            "trainable takes a function of the guide that returns the parts to train, such as "
            f"lambda guide: guide.family; got {where!r}."
        )
    marks = [_Leaf() for _ in leaves]
    chosen = jax.tree.leaves(where(jax.tree.unflatten(treedef, marks)))
    if not chosen or not all(isinstance(leaf, _Leaf) for leaf in chosen):
        raise ValueError(
            "trainable must return parts of the guide itself, such as lambda guide: guide.family, "
            f"with at least one parameter in them; it returned {chosen or 'none'}."
        )
    selected = {id(leaf) for leaf in chosen}
    return tuple(id(mark) in selected for mark in marks)
