"""The version that is installed."""

from __future__ import annotations

import importlib.metadata


def _installed() -> str:
    try:
        return importlib.metadata.version("guidax")
    except importlib.metadata.PackageNotFoundError:  # run from its source, not installed
        return "unknown"


__version__ = _installed()
