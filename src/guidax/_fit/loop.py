"""The host side of a run: it only cuts it into strides, and stops at the step that ends it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from .._caller import warn_caller
from .._model.batch import Batch, as_batch
from .._numerics import from_host, is_inside, is_traced
from .checkpoint import Checkpoint, Log
from .progress import Pace, Progress, reporting
from .source import CAPACITY, AbstractSource, Batches, OneBatch, no_losses
from .update import Moving, Run, advance
from .window import require_distinct


class Outcome(NamedTuple):
    """What a run came to; `bad_batch` is the batch of the bad step that ended it, if one did."""

    moving: Moving
    losses: Float[Array, " steps"]
    bad_batch: Batch | None


def train(
    moving: Moving,
    run: Run,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    steps: int,
    batches: Callable[[int], Batch] | Iterable[Batch] | None,
    progress: Progress,
    checkpoint: Checkpoint | None,
    options: frozenset[str],
    rescue: Callable[[BaseException, Outcome], None],
) -> Outcome:
    """Take steps from a state, which is donated.

    Args:
        moving: The state.
        run: What stays the same.
        args: The model's arguments, or one batch; none if `batches` are given.
        kwargs: The model's keyword arguments.
        steps: How many steps.
        batches: A function of the step, or an iterable.
        progress: As of `fit`.
        checkpoint: As of `fit`.
        options: Names of the keyword options of the call.
        rescue: Gets what there is, where an error cuts the run off: the caller's own, in batches or
            progress, or an interrupt.

    Raises:
        TypeError: If the arguments do not fit the model, or `batches` is of the wrong kind.
        ValueError: If `batches` stand beside arguments, host features are asked for inside a
            transformation, or checkpoints do not fit the run.
    """
    inside = is_inside()
    if batches is not None:
        if args or kwargs:
            raise ValueError(
                "batches gives the model's arguments, step by step, so no others may stand beside "
                "it: put them all into each gx.Batch."
            )
        if inside:
            raise ValueError(
                "batches is read on the host, which jit and vmap cannot do: pass arrays, and let a "
                "plate of the model subsample them."
            )
        if checkpoint is not None and not callable(batches):
            raise ValueError(
                "with a checkpoint, batches is a function of the step: an iterable cannot be read "
                "again from the middle."
            )
        log = None if checkpoint is None else Log(checkpoint, moving, run, None, steps)
        source: AbstractSource = Batches(batches, int(run.start))
        return _on_host(moving, run, source, steps, progress, log, rescue)
    batch = moving.guide.admit(as_batch(moving.guide.model, args, kwargs, options))
    if run.recipe.row_sparse:
        require_distinct(batch)
    if not inside:
        log = None if checkpoint is None else Log(checkpoint, moving, run, batch, steps)
        return _on_host(moving, run, OneBatch(batch), steps, progress, log, rescue)
    if checkpoint is not None:
        raise ValueError(
            "checkpoints are written by the host, which jit and vmap leave out: use "
            "checkpoint=None inside them."
        )
    if progress is not None and progress is not False:
        raise ValueError(
            "progress is shown by the host, which jit and vmap leave out: use progress=None inside "
            "them."
        )
    moving, losses = advance(moving, run, batch, steps=steps)
    has_ended = not is_traced(moving) and int(moving.streak) >= run.recipe.patience
    return Outcome(moving, losses, batch if has_ended else None)


def require_options(progress: Any, checkpoint: Any) -> None:
    """Check what the host is asked for.

    Raises:
        TypeError: If an option is of the wrong kind.
    """
    if not (checkpoint is None or isinstance(checkpoint, Checkpoint)):
        raise TypeError(
            f'checkpoint takes a gx.Checkpoint, such as gx.Checkpoint("run"); got {checkpoint!r}.'
        )
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise TypeError(
            "progress is None or True for a bar, False for nothing, or a function of step and "
            f"loss; got {progress!r}."
        )


def _on_host(
    moving: Moving,
    run: Run,
    source: AbstractSource,
    steps: int,
    progress: Progress,
    log: Log | None,
    rescue: Callable[[BaseException, Outcome], None],
) -> Outcome:
    before = int(moving.num_bad_steps)
    losses: list[np.ndarray] = []
    done, pace = 0, Pace(CAPACITY)
    try:
        with reporting(progress is None or progress, steps) as show:
            if log is not None and (newest := log.newest(moving)) is not None:
                moving, earlier = newest
                losses, done = [earlier], len(earlier)
                source.skip(done)
                show(int(run.start) + done, earlier)
            while done < steps:
                asked = min(pace.steps, steps - done)
                if log is not None:
                    asked = min(asked, log.ahead(done))
                moving, taken = source.stride(moving, run, asked)
                pace.note(len(taken))
                if int(moving.streak) >= run.recipe.patience:
                    offset = int(moving.step) - int(run.start) - done
                    losses.append(taken[: offset + 1])
                    return Outcome(moving, _joined(losses), source.batch_of(offset))
                losses.append(taken)
                done += len(taken)
                if log is not None:
                    log.write_if_due(moving, losses)
                if len(taken):
                    show(int(run.start) + done, taken)
                source.require_no_error()
                if len(taken) < asked:
                    warn_caller(
                        f"the batches ended after {done} of {steps} steps; the result is what they "
                        "gave."
                    )
                    break
    except BaseException as error:
        rescue(error, Outcome(moving, _joined(losses), None))
        raise
    if bad := int(moving.num_bad_steps) - before:
        halves = run.recipe.on_nonfinite == "halve"
        what = "halved the learning rate" if halves else "were skipped"
        warn_caller(
            f"{bad} of {done} steps were not finite and {what}; the first ever was step "
            f"{int(moving.first_bad_step)}. See whether the last losses are any good. To see which "
            'sites fail, fit with on_nonfinite="raise".'
        )
    return Outcome(moving, _joined(losses), None)


def _joined(losses: list[np.ndarray]) -> Float[Array, " steps"]:
    return from_host(np.concatenate([no_losses(), *losses]))
