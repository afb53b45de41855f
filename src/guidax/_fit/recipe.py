"""What is static about a fit: the optimizer, which leaves it trains, how gradients are taken."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from .._family.base import AbstractFamily
from .._guide.guide import AutoGuide
from .._model.static import Static
from .._numerics import as_array, from_host, is_traced
from .axes import MAX_TURNED
from .default import default_optimizer, least_unit

DEFAULT_RATE = 1e-2  # of an optimizer that is given without one
PATIENCE = 100  # bad steps in a row that are skipped before the run ends

Schedule = Callable[[Array], ArrayLike]
OnNonfinite = Literal["raise", "skip", "halve"]
Optimizer = (
    optax.GradientTransformation
    | optax.MultiSteps
    | Callable[..., optax.GradientTransformation | optax.MultiSteps]
    | None
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The static part of a fit, compared by value: equal recipes share one program.

    Attributes:
        optimizer: A function of a learning rate, a ready transformation, or None for the default.
        schedule: A learning rate as a function of the step, or None where it is a number.
        trained: For each leaf of the guide, whether it is trained.
        located: For each trained leaf, whether it is a location, for the default optimizer.
        travelling: For each trained leaf, whether it is a location that it lets travel.
        turned: For each trained leaf, whether it goes along the default optimizer's axes.
        forward_mode: Whether gradients are taken in forward mode.
        row_sparse: Whether a step leaves alone the rows of plates that it does not hold.
        on_nonfinite: What follows a step that is not finite.
    """

    optimizer: Static
    schedule: Static
    trained: tuple[bool, ...]
    located: tuple[bool, ...]
    travelling: tuple[bool, ...]
    turned: tuple[bool, ...]
    forward_mode: bool
    row_sparse: bool
    on_nonfinite: OnNonfinite

    @property
    def patience(self) -> int:
        """How many bad steps in a row end the run."""
        return 1 if self.on_nonfinite == "raise" else PATIENCE

    def transformation(
        self, rate: Float[Array, ""], progress: Float[Array, ""], guide: AutoGuide
    ) -> optax.GradientTransformation:
        """Build the optimizer inside the trace, so that every rate shares one program.

        Args:
            rate: The learning rate, where there is no schedule.
            progress: The share of this call's steps that is done, for the default's decay.
            guide: The guide at this step, whose units the default takes.

        Raises:
            TypeError: If the function gives no optax transformation.
        """
        given, schedule = self.optimizer.value, self.schedule.value
        if isinstance(given, optax.GradientTransformation):
            return given
        if given is None:
            decayed = rate * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
            least = least_unit(progress)
            units = jax.tree.map(jnp.ones_like, guide)
            units = eqx.tree_at(lambda guide: guide.family, units, guide.family.units(least))
            still = self.split(jax.tree.map(jnp.zeros_like, guide))[1]

            def in_frame(step: PyTree) -> PyTree:
                whole = eqx.combine(step, still)
                change = guide.family.in_frame(whole.family, least)
                return self.split(eqx.tree_at(lambda guide: guide.family, whole, change))[0]

            return default_optimizer(
                decayed if schedule is None else schedule,
                progress,
                self.split(units)[0],
                in_frame,
                self.located,
                self.travelling,
                self.turned,
            )
        made = _as_transformation(given(rate if schedule is None else schedule))
        if not isinstance(made, optax.GradientTransformation):
            raise TypeError(
                "optimizer takes an optax optimizer or a function from a learning rate to one, "
                f"such as optax.adam; it returned {made!r}."
            )
        return made

    def split(self, guide: AutoGuide) -> tuple[Any, Any]:
        """Return the trained leaves and the others, both in the shape of the guide."""
        return eqx.partition(guide, jax.tree.unflatten(jax.tree.structure(guide), self.trained))


def make_recipe(
    guide: AutoGuide,
    optimizer: Optimizer,
    learning_rate: float | Array | Schedule | None,
    trainable: Callable[[AutoGuide], PyTree] | None,
    *,
    highest_rate: float,
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
    optimizer = _as_transformation(optimizer)
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
    if schedule is not None:
        _require_schedule(schedule)
    if schedule is not None or learning_rate is None:
        own = min(guide.learning_rate, highest_rate)
        learning_rate = own if optimizer is None else DEFAULT_RATE
    rate = as_rate(learning_rate)
    trained = _trained(guide, trainable)
    none = (False,) * sum(trained)
    located = travelling = turned = none
    if optimizer is None:
        travelling = _flags(guide, trained, lambda family: family.travellers())
    if optimizer is None and not row_sparse:
        located = _flags(guide, trained, lambda family: family.locations())
        pairs = [_turned(guide, trained, flags) for flags in (located, travelling)]
        turned = tuple(map(any, zip(*pairs, strict=True)))
    recipe = Recipe(
        Static(optimizer),
        Static(schedule),
        trained,
        located,
        travelling,
        turned,
        forward_mode,
        bool(row_sparse),
        on_nonfinite,
    )
    return recipe, rate


def as_rate(learning_rate: Any) -> Float[Array, ""]:
    """Return a learning rate that is a number.

    Raises:
        TypeError: If it is none.
        ValueError: If it is not positive, not finite, or an array with axes.
    """
    if is_traced(learning_rate):
        rate = jnp.asarray(learning_rate).astype(float)  # it may be weakly typed
    else:
        try:
            rate = np.asarray(learning_rate, jnp.result_type(float))
        except (TypeError, ValueError):
            raise TypeError(
                f"learning_rate is a positive number, or a schedule; got {learning_rate!r}."
            ) from None
    if rate.ndim or not (is_traced(rate) or 0 < float(rate) < np.inf):
        raise ValueError(
            "learning_rate is a positive number, or a schedule (a function of the step); got "
            f"{learning_rate}."
        )
    return from_host(rate) if isinstance(rate, np.ndarray) else rate


def _require_schedule(schedule: Schedule) -> None:
    """Refuse a schedule that gives anything but one real number.

    Raises:
        TypeError: If it does.
    """
    what = "what the schedule learning_rate returns"
    step = jax.ShapeDtypeStruct((), jnp.int32)
    made = jax.eval_shape(lambda step: as_array(what, schedule(step)), step)
    if made.shape != () or not jnp.issubdtype(made.dtype, jnp.number):
        raise TypeError(f"{what} is one number; got an array of {made.dtype}, shape {made.shape}.")
    if jnp.issubdtype(made.dtype, jnp.complexfloating):
        raise TypeError(f"{what} is a real number; got a complex one.")


def _as_transformation(optimizer: Any) -> Any:
    """Return `optax.MultiSteps` as the transformation that it stands for; all else as it is."""
    if not isinstance(optimizer, optax.MultiSteps):
        return optimizer
    # Its own gradient_transformation() takes no further arguments, which some optimizers ask for.
    update: Any = optimizer.update
    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def _is_ready(optimizer: Any) -> bool:
    return isinstance(optimizer, optax.GradientTransformation)


class _Leaf:
    """Stands for one leaf while a where-function points at it."""


def _trained(guide: AutoGuide, where: Callable[[AutoGuide], PyTree] | None) -> tuple[bool, ...]:
    """Return one flag for each leaf: a fresh lambda that selects the same leaves costs nothing."""
    if where is None:
        return (True,) * len(jax.tree.leaves(guide))
    if not callable(where):
        raise TypeError(
            "trainable takes a function of the guide that returns the parts to train, such as "
            f"lambda guide: guide.family; got {where!r}."
        )
    marked = jax.tree.map(lambda _: _Leaf(), guide)
    chosen = jax.tree.leaves(where(marked))
    if not chosen or not all(isinstance(leaf, _Leaf) for leaf in chosen):
        raise ValueError(
            "trainable must return parts of the guide itself, such as lambda guide: guide.family, "
            f"with at least one parameter in them; it returned {chosen or 'none'}."
        )
    selected = {id(leaf) for leaf in chosen}
    return tuple(id(mark) in selected for mark in jax.tree.leaves(marked))


def _flags(
    guide: AutoGuide, trained: tuple[bool, ...], where: Callable[[AbstractFamily], PyTree]
) -> tuple[bool, ...]:
    """Return one flag for each trained leaf: whether it is among those of the family."""
    marked = jax.tree.map(lambda _: _Leaf(), guide)
    selected = {id(leaf) for leaf in jax.tree.leaves(where(marked.family))}
    return tuple(id(x) in selected for x in itertools.compress(jax.tree.leaves(marked), trained))


def _turned(
    guide: AutoGuide, trained: tuple[bool, ...], flags: tuple[bool, ...]
) -> tuple[bool, ...]:
    """Return the flags, all false if these leaves are empty, many or sharded."""
    leaves = itertools.compress(itertools.compress(jax.tree.leaves(guide), trained), flags)
    locations = list(leaves)
    fits = 0 < sum(x.size for x in locations) <= MAX_TURNED
    whole = all(axis is None for x in locations for axis in jax.typeof(x).sharding.spec)
    return tuple(fits and whole and flag for flag in flags)
