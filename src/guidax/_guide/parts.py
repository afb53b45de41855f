"""A guide for some of the latents, given as a constructor or a program: its family, its start."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from .._family.base import AbstractFamily
from .._model.start import Start
from .._model.strategies import Strategy, as_strategy, init_to_uniform
from .._model.target import Draw
from .._model.trace import Indices, Structure
from .._types import Key
from .begin import default_of
from .guide import AutoGuide
from .program import ProgramPart

Part = Callable[..., AutoGuide] | ProgramPart


def given_strategy(part: Any) -> Strategy | None:
    """Return the `init_loc_fn` that a `functools.partial` holds, if it does."""
    given = part.keywords.get("init_loc_fn") if isinstance(part, functools.partial) else None
    return None if given is None else as_strategy(given)


def strategy_of(part: Any, structure: Structure, rows: Indices) -> Strategy:
    """Return where a part starts if nobody asks for anything.

    Args:
        part: A constructor or a program.
        structure: The model's, with the latents of the part.
        rows: Those of the batch, by plate.
    """
    is_partial = isinstance(part, functools.partial)
    constructor, options = (part.func, part.keywords) if is_partial else (part, {})
    of_its_sites = getattr(constructor, "default_strategy", None)
    if of_its_sites is not None:
        return of_its_sites(structure, rows, options)
    default = default_of(part)
    return init_to_uniform() if default is None else as_strategy(default)


def built(constructor: Any, start: Start, key: Key) -> Any:
    """Call a constructor with a start in the place of the model."""
    return constructor(dataclasses.replace(start, default=default_of(constructor)), key=key)


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
    made = built(part, start.only(frozenset(names)), key) if callable(part) else None
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
