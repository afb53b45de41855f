"""The host's looks at a run: how often, and what they show."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

Progress = bool | Callable[[int, float], Any] | None

# Seconds between looks. After each, a dispatch takes the memory of its intermediate results anew:
# with 10 million rows, looks every 0.1 seconds doubled the time of a step.
_INTERVAL = 1.0
_ON_HOSTS = 100  # steps between looks where there are several processes
_GROWTH = 30  # so that the first look, which compiles, does not fix the pace


class Pace:
    """How many steps to take before the next look, by the clock.

    On several hosts, whose clocks differ, it is a fixed number: they must run the same programs in
    the same order.

    Args:
        most: The most steps between looks.
    """

    def __init__(self, most: int):
        self._is_fixed = jax.process_count() > 1
        self._n, self._most = min(_ON_HOSTS, most) if self._is_fixed else 1, most
        self._since = time.perf_counter()

    @property
    def steps(self) -> int:
        """How many steps to take."""
        return self._n

    def note(self, taken: int) -> None:
        """Note that so many are taken."""
        if self._is_fixed:
            return
        now = time.perf_counter()
        wanted = taken * _INTERVAL / max(now - self._since, 1e-6)
        self._n = max(1, int(min(wanted, self._n * _GROWTH, self._most)))
        self._since = now


@contextlib.contextmanager
def reporting(
    progress: bool | Callable[[int, float], Any], total: int
) -> Iterator[Callable[[int, np.ndarray], None]]:
    """Give a function that shows the losses since it was called last; the bar is closed after it.

    Args:
        progress: `True` for a bar, a function of the steps taken so far and the loss at the last of
            them, or `False`.
        total: Number of steps of this call.
    """
    if progress is True:
        from tqdm.auto import tqdm  # it looks for a notebook when it is imported

        with tqdm(total=total, desc="fit", unit="step", dynamic_ncols=True) as bar:

            def show(step: int, losses: np.ndarray) -> None:
                bar.set_postfix_str(f"loss={np.mean(losses):.4g}", refresh=False)
                bar.update(len(losses))

            yield show
    elif callable(progress):
        yield lambda step, losses: progress(step, float(losses[-1]))
    else:
        yield lambda step, losses: None
