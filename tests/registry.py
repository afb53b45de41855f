"""Every guide, once. A new one joins all contracts by a line here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

import guidax as gx


@dataclasses.dataclass(frozen=True)
class Entry:
    """How to make a guide, and what may be asked of it.

    Attributes:
        make: Called as `make(model, *args, key=key)`.
        is_distribution: Whether it spreads out, rather than being a point.
        holds_rows: Whether it takes subsampled plates with latents.
    """

    make: Callable
    is_distribution: bool = True
    holds_rows: bool = True


GUIDES = {
    "AutoNormal": Entry(gx.AutoNormal),
    "AutoDelta": Entry(gx.AutoDelta, is_distribution=False),
}

every_guide = pytest.mark.parametrize("entry", GUIDES.values(), ids=GUIDES)
every_distribution = pytest.mark.parametrize(
    "entry",
    [e for e in GUIDES.values() if e.is_distribution],
    ids=[name for name, e in GUIDES.items() if e.is_distribution],
)
