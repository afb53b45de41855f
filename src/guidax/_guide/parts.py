"""A guide for some of the latents, given as a constructor or a program: its family, its start."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from .._family.base import AbstractFamily
from .._model.start import Start
from .._model.strategies import Strategy, as_strategy, init_to_feasible, init_to_uniform
from .._model.target import Draw
from .._types import Key
from .guide import AutoGuide
from .program import ProgramPart

Part = Callable[..., AutoGuide] | ProgramPart


def given_strategy(part: Any) -> Strategy | None:
    """Return the `init_loc_fn` that a `functools.partial` holds, if it does."""
    given = part.keywords.get("init_loc_fn") if isinstance(part, functools.partial) else None
    return None if given is None else as_strategy(given)


def strategy_of(part: Part) -> Strategy:
    """Return the `init_loc_fn` that a constructor is called with, or its default."""
    if isinstance(part, ProgramPart):
        return init_to_uniform()
    try:
        parameters = inspect.signature(part).parameters
        default = parameters["init_loc_fn"].default
    except (KeyError, TypeError, ValueError):
        return init_to_uniform()
    if default is not None:
        return as_strategy(default)
    # Of the two guides that have no strategy of their own, gx.AutoSemiDAIS starts its rows at zero.
    return init_to_uniform() if "parts" in parameters else init_to_feasible()


def family_of(
    start: Start,
    names: tuple[str, ...],
    part: Part,
    earlier: Sequence[AbstractFamily],
    key: Key,
) -> AbstractFamily:
    """Build the family of a part.

    Args:
        start: The start of all parts.
        names: The latents of this part.
        part: A constructor or a program.
        earlier: The families that draw before it.
        key: For the constructor, or the starting values of a program's `param` sites.

    Raises:
        TypeError: If the part builds no guide.
        ValueError: If a program draws other sites.
    """
    if isinstance(part, ProgramPart):
        return part.family(start, names, earlier_draw(start, earlier), key)
    made = part(start.only(frozenset(names)), key=key) if callable(part) else None
    if not isinstance(made, AutoGuide):
        raise TypeError(
            f"the part for {list(names)} is no guide: give a constructor such as gx.AutoNormal, a "
            f"functools.partial of one, or gx.program(fn); got {part!r}."
        )
    return made.family


def earlier_draw(start: Start, earlier: Sequence[AbstractFamily]) -> Draw:
    """Return the starting values of earlier parts, in the rows that the batch holds."""
    sites = [s for family in earlier for s in family.sites]
    return Draw.of({s.name: s.take(start.location[s.name], start.rows) for s in sites})
