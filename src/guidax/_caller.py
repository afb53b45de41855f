"""Warnings that point at the user's line, not at the library's."""

from __future__ import annotations

import sys
import warnings

_OURS = ("guidax", "equinox", "jaxtyping", "beartype")  # what wraps our functions counts as ours


def warn_caller(message: str) -> None:
    """Warn, as of the nearest line outside the library.

    The depth is counted rather than given: a method of a module has more frames than a function,
    and a run-time type checker adds its own. Python 3.12 has `skip_file_prefixes` for this.
    """
    level, frame = 1, sys._getframe()
    while frame is not None and _is_ours(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in _OURS
