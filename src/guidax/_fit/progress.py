"""The host's looks at a run: how often, and what they show."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
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

    def look(self, taken: int) -> None:
        """Note that so many are taken."""
        if self._is_fixed:
            return
        now = time.perf_counter()
        wanted = taken * _INTERVAL / max(now - self._since, 1e-6)
        self._n = max(1, int(min(wanted, self._n * _GROWTH, self._most)))
        self._since = now


class Report:
    """Shows a bar, calls a function, or does nothing.

    Args:
        progress: `True` for a bar, a function of the steps taken so far and the loss at the last of
            them, or `False`.
        total: Number of steps of this call.
    """

    def __init__(self, progress: bool | Callable[[int, float], Any], total: int):
        self._call = progress if callable(progress) else None
        self._bar: Any = None
        if progress is True:
            from tqdm.auto import tqdm  # it looks for a notebook when it is imported

            self._bar = tqdm(total=total, desc="fit", unit="step", dynamic_ncols=True)

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def look(self, step: int, losses: np.ndarray) -> None:
        """Show the losses since the last look."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss={np.mean(losses):.4g}", refresh=False)
            self._bar.update(len(losses))
        if self._call is not None:
            self._call(step, float(losses[-1]))
