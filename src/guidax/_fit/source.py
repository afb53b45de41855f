"""Where the steps' arguments come from: one batch for all of them, or a batch for each."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._caller import warn_caller
from .._guide.guide import AutoGuide
from .._model.batch import Batch, Shapes, as_batch
from .update import Moving, Run, advance_in_place, advance_unguarded, as_int32
from .window import require_distinct

CAPACITY = 1000  # of one dispatch: the same for all runs, so that they share a program
MAX_KEPT = 1_000_000  # parameters of a guide of which a second copy costs next to nothing
MAX_HELD = 1 << 26  # bytes of batches whose steps have not been looked at
IN_FLIGHT = 3  # batches that are held however large: the host makes one while steps take others


class AbstractSource(abc.ABC):
    """Takes steps on the host's side."""

    _error: BaseException | None = None

    @abc.abstractmethod
    def stride(self, moving: Moving, run: Run, n: int) -> tuple[Moving, np.ndarray]:
        """Take up to `n` steps, at most `CAPACITY`; fewer if the batches or the run end before."""

    def skip(self, n: int) -> None:
        """Leave out the first `n` steps, which were taken before."""
        del n

    def require_no_error(self) -> None:
        """Raise the error that cut the last stride short, if one did."""
        if self._error is not None:
            raise self._error

    @abc.abstractmethod
    def batch_of(self, offset: int) -> Batch:
        """Return the batch of the step that ended the run, counted from its stride's first."""


class OneBatch(AbstractSource):
    """The same arguments at every step: many steps a dispatch."""

    def __init__(self, batch: Batch):
        self._batch = batch

    def stride(self, moving: Moving, run: Run, n: int) -> tuple[Moving, np.ndarray]:
        """Take `n` steps in one dispatch.

        Those up to the first bad step of a run are taken without a guard, from a state that is
        kept; where a stride meets a bad step it is done again, up to it. So which program takes a
        step does not depend on how steps are cut into strides, nor does its last bit.
        """
        before = no_losses()
        if _is_worth_trying(moving, run):
            after, losses, is_finite = self._try(moving, run, n)
            if is_finite:
                return after, losses
            moving, before = self._up_to_first_bad(moving, run, losses)
            n -= len(before)
        moving, losses = advance_in_place(moving, run, self._batch, as_int32(n), capacity=CAPACITY)
        try:
            jax.block_until_ready(losses)
        except BaseException as error:  # an interrupt, which waits: the state before is donated
            self._error = error
        losses = np.asarray(losses)[:n]  # on the host: a slice on the device would compile
        return moving, np.concatenate([before, losses])

    def _try(self, moving: Moving, run: Run, n: int) -> tuple[Moving, np.ndarray, bool]:
        after, losses, is_finite = advance_unguarded(
            moving, run, self._batch, as_int32(n), capacity=CAPACITY
        )
        return after, np.asarray(losses)[:n], bool(is_finite)

    def _up_to_first_bad(
        self, moving: Moving, run: Run, losses: np.ndarray
    ) -> tuple[Moving, np.ndarray]:
        """Return state and losses before the first bad step of a stride that has one."""
        bad = ~np.isfinite(losses)
        # A parameter may be bad a step before the loss shows it, and need not show in it at all.
        low, high = 0, int(np.argmax(bad)) if bad.any() else len(losses) - 1
        found = moving, losses[:0]
        trial = high
        while low < high:
            after, taken, is_finite = self._try(moving, run, trial)
            if is_finite:
                low, found = trial, (after, taken)
            else:
                high = trial - 1
            trial = (low + high + 1) // 2
        return found

    def batch_of(self, offset: int) -> Batch:
        """Return the one batch."""
        return self._batch


def no_losses() -> np.ndarray:
    """Return no losses, of the dtype that losses have: an empty float64 would make them float64."""
    return np.zeros(0, jnp.result_type(float))


def _is_worth_trying(moving: Moving, run: Run) -> bool:
    """Say whether to take steps without a guard: what a bad step spoils must be kept beside it."""
    recipe = run.recipe
    if recipe.row_sparse or recipe.on_nonfinite == "halve" or int(moving.num_bad_steps):
        return False
    return sum(x.size for x in jax.tree.leaves(moving.guide)) <= MAX_KEPT


class Batches(AbstractSource):
    """A batch for each step, made on the host: one dispatch a step.

    Args:
        batches: A function of the step, from 0, or an iterable.
        first: Number of the first step.
    """

    def __init__(self, batches: Callable[[int], Batch] | Iterable[Batch], first: int):
        if not (callable(batches) or isinstance(batches, Iterable)):
            raise TypeError(
                "batches takes a function of the step that returns a gx.Batch, or an iterable of "
                f"them; got {batches!r}."
            )
        self._next = first
        self._batches: Any = batches if callable(batches) else iter(batches)
        self._structure: tuple[Shapes, tuple[tuple[str, tuple[int, ...]], ...]] | None = None
        self._recent: dict[int, Batch] = {}

    def stride(self, moving: Moving, run: Run, n: int) -> tuple[Moving, np.ndarray]:
        """Take a step on each of the next `n` batches, or on those up to the end of the run.

        A batch is held until it is seen that its step did not end the run. An error, of the
        caller's batches or an interrupt, ends the stride and waits: what was taken comes first.
        """
        self._recent, losses, held = {}, [], 0
        one = as_int32(1)  # made once: it is put on the device
        try:
            for batch in self._take(n):
                batch = self._admitted(moving.guide, batch)
                if run.recipe.row_sparse:
                    require_distinct(batch)
                moving, loss = advance_in_place(moving, run, batch, one, capacity=1)
                self._recent[len(losses)] = batch
                losses.append(loss)
                held += _nbytes(batch)
                if held > MAX_HELD and len(self._recent) >= IN_FLIGHT:
                    oldest = next(iter(self._recent))
                    # After the step that ends the run, losses are NaN; others may be, too.
                    suspicious = np.isnan(losses[oldest + 1]).any()
                    if suspicious and int(moving.streak) >= run.recipe.patience:
                        break
                    held -= _nbytes(self._recent.pop(oldest))
            jax.block_until_ready(losses)
        except BaseException as error:
            if any(x.is_deleted() for x in jax.tree.leaves(moving)):
                raise  # of the step itself, to which the state was donated: nothing is left to keep
            self._error = error
        return moving, np.concatenate(jax.device_get(losses)) if losses else no_losses()

    def skip(self, n: int) -> None:
        """Go on counting `n` steps later."""
        self._next += n

    def batch_of(self, offset: int) -> Batch:
        """Return the batch of the step of the last stride that ended the run."""
        return self._recent[offset]

    def _take(self, n: int) -> Iterator[Any]:
        for _ in range(n):
            if callable(self._batches):
                batch = self._batches(self._next)
            else:
                try:
                    batch = next(self._batches)
                except StopIteration:
                    return
            self._next += 1
            yield batch

    def _admitted(self, guide: AutoGuide, batch: Any) -> Batch:
        if not isinstance(batch, Batch):
            raise TypeError(
                "batches gives gx.Batch objects, which hold the model's arguments of one step: "
                f"gx.Batch(X[rows], y[rows]); got {type(batch).__name__}."
            )
        bound = as_batch(guide.model, (batch,), {})
        structure = (bound.shapes, tuple((n, rows.shape) for n, rows in bound.rows.items()))
        if self._structure is None:
            self._structure = structure
            _warn_if_unscaled(guide, bound)
        elif structure != self._structure:
            raise ValueError(
                f"the batch of step {self._next - 1} has another structure than the first one: "
                f"{_text(structure)} against {_text(self._structure)}. Every structure would be "
                "compiled by itself. Where the last batch of a pass over the data is smaller, let "
                "the loader drop it, or pad it and mask the rows that are padding."
            )
        admitted = guide.admit(bound)
        # A loader may fill the same arrays again while the step still reads them: on the CPU, JAX
        # takes NumPy's memory as it is.
        copied = (x.copy() if isinstance(x, np.ndarray) else x for x in admitted.arrays)
        return admitted.with_arrays(tuple(copied))


def _nbytes(batch: Batch) -> int:
    return sum(x.nbytes for x in batch.arrays)


def _text(structure: tuple[Shapes, tuple[tuple[str, tuple[int, ...]], ...]]) -> str:
    """Return arrays, constants and rows of a batch, for a message."""
    shapes, rows = structure
    arrays = [f"{dtype}[{','.join(map(str, shape))}]" for shape, dtype in shapes.arrays]
    constants = [constant.value for _, constant in shapes.layout.constants]
    held = [f"{name}: {shape[0]} rows" for name, shape in rows]
    return ", ".join([*arrays, *map(repr, constants), *held])


def _warn_if_unscaled(guide: AutoGuide, batch: Batch) -> None:
    for p in guide.plates(batch):
        rows = batch.rows[p.name].shape[0] if p.name in batch.rows else p.rows
        if rows < p.size:
            return
    warn_caller(
        "batches are streamed, but no plate of the model is subsampled, so log densities are not "
        "multiplied by N/B and each batch counts as all the data. Give the plate its full size: "
        'gx.plate("data", N, subsample_size=len(y)).'
    )
