"""`fit`: minimise an objective."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._guide.guide import AutoGuide
from .._model.batch import Batch, options_of
from .._objective.base import AbstractObjective
from .._objective.elbo import ELBO
from .._types import Key, positive, require_key
from .checkpoint import Checkpoint
from .loop import require_options
from .progress import Progress
from .recipe import OnNonfinite, Optimizer, Schedule, make_recipe
from .result import FitResult, result_of
from .update import Run, as_int32, first_state


def fit(
    key: Key,
    guide: AutoGuide,
    /,
    *args: Any,
    steps: int,
    optimizer: Optimizer = None,
    learning_rate: float | Float[Array, ""] | Schedule | None = None,
    objective: AbstractObjective = ELBO(),
    batches: Callable[[int], Batch] | Iterable[Batch] | None = None,
    trainable: Callable[[Any], PyTree] | None = None,
    progress: Progress = None,
    checkpoint: Checkpoint | None = None,
    forward_mode: bool = False,
    row_sparse: bool = False,
    on_nonfinite: OnNonfinite = "raise",
    **kwargs: Any,
) -> FitResult:
    """Train a guide by stochastic gradient steps on an objective.

    A second call with arguments of the same shapes compiles nothing, whatever the number of steps,
    the rate and the data. Inside `jax.jit` and `jax.vmap` it is a pure function.

    Args:
        key: For the objective's draws.
        guide: The guide to start from. It is not changed.
        *args: The model's arguments, or one `gx.Batch`.
        steps: How many steps, a Python integer.
        optimizer: A function of the learning rate that returns an optax optimizer, such as
            `optax.adam`: it is called inside the compiled program, so every rate shares one. A
            ready optimizer works as well, but each new object compiles again. None: Adam with a
            rate that falls to zero over this call's steps along a half cosine, and the global
            gradient norm clipped, at 10 in the beginning, rising to 100,000. Its steps are in units
            that the family names, for normals about a standard deviation and, in the first fifth of
            the run, at least 1, which falls to nothing at four fifths. A full or low-rank
            covariance moves in its own frame; up to 128 locations of others move along the
            eigenvectors of their gradient's second moment, which turn every 100 steps (Vyas et al.
            2024, "SOAP").
        learning_rate: A number, or a schedule: a function of the step. None is what the guide names
            for the default optimizer, and 0.01 for another. Independent normals name 0.5, other
            normals 0.3, both less in more than 30 and 83 dimensions; points 0.3; flows 0.01 and
            less, those of splines 0.005; annealed guides 0.01, with a base up to ten times as fast.
            A list takes the least of its parts', and up to three times that for faster ones. With
            IWELBO and RenyiELBO it is 0.1 at most. Where the model has a module's arrays in it, it
            is 0.01.
        objective: What to minimise, such as `gx.ELBO(num_particles=10)`.
        batches: In place of the model's arguments: a function of the step, counted from 0, that
            returns a `gx.Batch`, or an iterable of them, all of one structure. They are read on the
            host, one dispatch a step, while the device still works on the step before. NumPy arrays
            in them are copied, so a loader may fill them again.
        trainable: A function of the guide that returns the parts of it to train, such as
            `lambda guide: guide.family`. The rest stays as it is. None for all.
        progress: None shows a bar, `False` nothing, and a function is called with the number of
            steps taken so far and the last loss, about once a second. Inside transformations
            nothing is shown.
        checkpoint: A `gx.Checkpoint`: the same call made again after the process was killed goes on
            from the newest file, to the last bit of what it would have come to, and one that had
            finished returns its result. `batches` is then a function of the step.
        forward_mode: Take gradients in forward mode, for models that only it differentiates
            (`lax.while_loop`); it costs one pass for each parameter.
        row_sparse: Leave alone the parameters, and their moments in the optimizer, of the rows of
            plates that a step does not hold, so that a step costs what its rows cost, however many
            there are. Moments of a row decay when it is held, not at every step (lazy Adam), and so
            does weight decay. A batch must not name a row twice.
        on_nonfinite: What follows a step whose loss, gradient or update is not finite. "raise"
            stops there. "skip" leaves everything as it was and takes the next step with its own
            draws. "halve" goes back to the state of the last step that was finite and halves the
            learning rate for good; it keeps a second copy of guide and optimizer state. A hundred
            bad steps in a row stop these as well.
        **kwargs: The model's keyword arguments.

    Returns:
        The trained guide, the losses, and the state to resume from.

    Raises:
        TypeError: If an argument is of the wrong kind, or the model's arguments do not fit it.
        ValueError: If `steps` is less than 1, `learning_rate` is not positive, `trainable` selects
            nothing, the objective is not defined for guide and model, the checkpoints are of
            another fit or all damaged, or `row_sparse` has nothing to leave alone, or meets an
            optimizer that it cannot serve.
        NonFiniteError: If the run stops since loss, gradient or update is not finite. It carries
            the result up to there. Inside transformations `first_bad_step` and `num_bad_steps` of
            the result say so instead.
        KeyboardInterrupt: On Ctrl-C. It, and what `batches` or `progress` raise, carries the
            result up to there, too, as `error.result`.

    Warns:
        UserWarning: If batches come and no plate of the model is subsampled, if they end early, if
            the newest checkpoint is damaged and the one before is used, or if steps that were not
            finite have been skipped.

    Example::

        guide = gx.AutoNormal(model, x, y, key=key)
        result = gx.fit(key, guide, x, y, steps=2_000)
        draws = result.guide.sample_posterior(key, x, y, sample_shape=(1_000,))
    """
    _require(key, guide, objective)
    steps = positive("steps", steps)
    require_options(progress, checkpoint)
    recipe, rate = make_recipe(
        guide,
        optimizer,
        learning_rate,
        trainable,
        highest_rate=objective.highest_rate,
        forward_mode=forward_mode,
        row_sparse=row_sparse,
        on_nonfinite=on_nonfinite,
    )
    run = Run(key, rate, as_int32(0), as_int32(steps), objective, recipe)
    return result_of(
        first_state(guide, run),
        run,
        args,
        kwargs,
        steps=steps,
        batches=batches,
        progress=progress,
        checkpoint=checkpoint,
        options=options_of(fit),
    )


def _require(key: Any, guide: Any, objective: Any) -> None:
    if not isinstance(guide, AutoGuide):
        raise TypeError(
            f"fit takes a random key, then a guide; got {type(key).__name__} and "
            f"{type(guide).__name__}."
        )
    require_key("fit", key)
    for path, leaf in jax.tree_util.tree_leaves_with_path(guide):
        is_array = hasattr(leaf, "dtype")
        if not (is_array and jnp.issubdtype(leaf.dtype, jnp.floating)):
            where = f"guide{jax.tree_util.keystr(path)}"
            got = f"an array of {leaf.dtype}" if is_array else repr(leaf)
            raise TypeError(
                f"the leaves of a guide are arrays of floats, but {where} is {got}: put "
                "jnp.asarray(..., float) in its place."
            )
    if not isinstance(objective, AbstractObjective):
        hint = " (with parentheses: gx.ELBO())" if isinstance(objective, type) else ""
        raise TypeError(f"objective is one such as gx.ELBO(){hint}; got {objective!r}.")
