"""What a fit comes to, and how it goes on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._guide.guide import AutoGuide
from .._model.batch import Batch, options_of
from .._numerics import all_finite, is_traced
from .._types import positive
from .checkpoint import Checkpoint
from .loop import Outcome, require_options, train
from .progress import Progress
from .update import Moving, Run, as_int32, continued


class FitState(eqx.Module):
    """All that a run needs to go on.

    Attributes:
        moving: What a step changes.
        run: What stays the same.
    """

    moving: Moving
    run: Run


class FitResult(eqx.Module):
    """A trained guide, and the way to train it further.

    Attributes:
        losses: The loss at each step of the last call, in nats: an estimate from `num_particles`
            draws and, with subsampled plates, from one batch, scaled by N/B. They end with that of
            the step that ended the run; inside a transformation NaN follows it.
        state: What `resume` needs to go on. Opaque: its parts may change.
    """

    losses: Float[Array, " steps"]
    state: FitState

    @property
    def guide(self) -> AutoGuide:
        """The trained guide."""
        return self.state.moving.guide

    @property
    def first_bad_step(self) -> Int[Array, "*members"]:
        """The first step whose loss, gradient or update was not finite, or -1.

        Steps count from 0 at the first call. Where that ends a run (`on_nonfinite="raise"`), the
        guide is as it was before that step. The result of an ensemble has one for each member.
        """
        return self.state.moving.first_bad_step

    @property
    def num_bad_steps(self) -> Int[Array, "*members"]:
        """How many steps were not finite, in all calls."""
        return self.state.moving.num_bad_steps

    def resume(
        self,
        /,
        *args: Any,
        steps: int,
        batches: Callable[[int], Batch] | Iterable[Batch] | None = None,
        progress: Progress = None,
        checkpoint: Checkpoint | None = None,
        **kwargs: Any,
    ) -> FitResult:
        """Go on where the run stopped, with its key, optimizer, objective and `trainable`.

        With an optimizer of constant rate `n` and then `n` steps are `2 n` steps, to the last bit.
        The default optimizer starts a new decay over these steps.

        Args:
            *args: The model's arguments, or one `gx.Batch`.
            steps: How many steps more.
            batches: As of `fit`; a function is called with the number of the step in all.
            progress: As of `fit`.
            checkpoint: As of `fit`, in another folder than that of the run before.
            **kwargs: The model's keyword arguments.

        Returns:
            A new result, whose `losses` are those of this call.

        Raises:
            TypeError: If the arguments do not fit the model.
            ValueError: If `steps` is less than 1, if the run had stopped at a bad step, if this is
                the result of a whole ensemble, if it is of double precision and that is switched
                off now, or if the checkpoints are of another run or all damaged.
            NonFiniteError: If a loss, gradient or update is not finite.
        """
        steps = positive("steps", steps)
        require_options(progress, checkpoint)
        if not is_traced(self.state):
            self._require_resumable()
        old = self.state.run
        run = Run(
            old.key,
            old.rate,
            jnp.copy(self.state.moving.step),
            as_int32(steps),
            old.objective,
            old.recipe,
        )
        return result_of(
            continued(self.state.moving),
            run,
            args,
            kwargs,
            steps=steps,
            batches=batches,
            progress=progress,
            checkpoint=checkpoint,
            options=options_of(FitResult.resume),
        )

    def _require_resumable(self) -> None:
        if jnp.ndim(self.first_bad_step):
            raise ValueError(
                "this is the result of an ensemble, whose members resume one by one: "
                "jax.vmap(lambda result: result.resume(*args, steps=n))(result)."
            )
        if self.state.run.rate.dtype.itemsize > jnp.result_type(float).itemsize:
            raise ValueError(
                "this result is of double precision, which is switched off now: switch it on again "
                '(jax.config.update("jax_enable_x64", True)), or start a new fit from result.guide.'
            )
        if int(self.state.moving.streak) >= self.state.run.recipe.patience:
            raise ValueError(
                f"the run stopped at step {int(self.state.moving.step)}, which was not finite, and "
                "would stop there again. Start a new fit from result.guide, with a smaller "
                "learning_rate."
            )


class NonFiniteError(FloatingPointError):
    """A loss, gradient or update was not finite. Nothing is lost: see `result`.

    Attributes:
        result: The run up to the last good step.
        step: The step that ended the run, from 0.
        sites: Names of the sites whose log density, or its gradient, was not finite there: in the
            model, or where all is finite in the model, in the guide.
        bad_data: Whether the model's arguments hold NaN or infinity at that step.
    """

    def __init__(self, result: FitResult, sites: tuple[str, ...], *, bad_data: bool):
        self.result: FitResult = result
        self.sites: tuple[str, ...] = sites
        self.bad_data: bool = bad_data
        self.step: int = int(result.state.moving.step)
        loss = float(result.losses[-1])
        where = f"in the log density of the sites {list(sites)}, or in its gradient"
        if not sites:
            where = "in the update: the learning rate may be too large"
        patience = result.state.run.recipe.patience
        again = "" if patience == 1 else f", nor at the {patience - 1} steps before it"
        data = "The model's arguments hold NaN or infinity, which it has to mask. "
        super().__init__(
            f"not finite at step {self.step} (loss {loss:.6g}){again}, {where}. The guide as it "
            f"was before that step is in the error's .result.guide. {data if bad_data else ''}Try "
            "another start (init_loc_fn; a flow may begin at a fitted normal, .warm_start) or a "
            "smaller learning_rate, and look at what those sites compute at extreme values."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        make = functools.partial(NonFiniteError, bad_data=self.bad_data)
        return make, (self.result, self.sites), self.__dict__


def result_of(
    moving: Moving, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any], **options: Any
) -> FitResult:
    """Take steps as `train` does, and return the result, or raise it.

    Raises:
        NonFiniteError: If the host saw a step that ended the run.
    """

    def rescue(error: BaseException, outcome: Outcome) -> None:
        moving, losses, _ = outcome
        was_donated = any(x.is_deleted() for x in jax.tree.leaves(moving))
        if was_donated or not losses.size or hasattr(error, "result"):
            return
        error.__dict__["result"] = FitResult(losses, FitState(moving, run))
        error.add_note(
            f"The fit had taken {losses.size} of {options['steps']} steps. Nothing is lost: what "
            "they came to is in this error's .result, whose .resume goes on."
        )

    moving, losses, bad_batch = train(moving, run, args, kwargs, rescue=rescue, **options)
    result = FitResult(losses, FitState(moving, run))
    if bad_batch is None:
        return result
    sites = run.objective.not_finite(moving.guide, run.key_at(moving.step), bad_batch)
    floats = eqx.filter(bad_batch.arrays, eqx.is_inexact_array)
    raise NonFiniteError(result, sites, bad_data=not bool(all_finite(floats)))
