"""`program`: a guide, or a part of one, written in the model language."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax

from .._family.program import ProgramFamily, program_batch
from .._model.batch import Batch
from .._model.model import AbstractModel
from .._model.program import as_model
from .._model.start import Start, initial_params
from .._model.structure import describe
from .._model.target import Draw, Target
from .._numerics import all_finite, is_traced, strong
from .._types import Key
from .sites import require_sites


@dataclasses.dataclass(frozen=True)
class ProgramPart:
    """What `gx.program` returns: a part of an `AutoGuideList`."""

    program: AbstractModel
    given: bool

    def family(
        self, start: Start, names: tuple[str, ...] | None, earlier: Draw, key: Key
    ) -> ProgramFamily:
        """Build the family that draws the sites.

        Args:
            start: The start of the whole list.
            names: The sites of the part; None for all that the program draws.
            earlier: Starting values of the earlier parts.
            key: For the starting values of `param` sites.

        Raises:
            ValueError: If the program draws other sites than its part, or sites of other shapes or
                in other plates; if it has an observation or a factor; if one of its `param` sites
                starts outside of its constraint.
        """
        target = Target(start.model, start.batch, key, start.rows, earlier)
        batch = program_batch(target, given=self.given)
        structure = describe(self.program, batch, key)
        if structure.obstacles:
            name, why = structure.obstacles[0]
            raise ValueError(f"gx.program: site {name!r} cannot be drawn by a guide: {why}")
        what, mine = f"the program {self.program.name}", {s.name: s for s in structure.latents}
        if not mine:
            raise ValueError(f"{what} draws no site.")
        asked = {s.name: s for s in start.structure.latents if names is None or s.name in names}
        advice = "Let its key in parts= name what it draws, in the shapes of the model."
        require_sites(
            what,
            structure.latents,
            tuple(asked.values()),
            advice,
            facts=("shape",),
            is_part=names is None,
        )
        for name, spec in mine.items():
            if unknown := sorted(set(spec.plates) - set(asked[name].plates)):
                raise ValueError(
                    f"{what} draws {name!r} in the plates {_axes(spec.plates)}, the model in "
                    f"{_axes(asked[name].plates)}, and {_axes(unknown)} is none of these: a plate "
                    "has one name and one axis in both."
                )
        params = started_params(self.program, what, batch, key, structure.params)
        sites = tuple(s for s in start.structure.latents if s.name in mine)
        program = self.program.with_params(params)
        return ProgramFamily(program=program, sites=sites, given=self.given)


def _axes(plates: Iterable[tuple[str, int]]) -> str:
    """Return plates with their axes, for a message."""
    return ", ".join(f"{name!r} (axis {axis})" for name, axis in plates) or "none"


def program(fn: Any, given: bool = False) -> ProgramPart:
    """Make a part of an `AutoGuideList` of a guide that you write yourself.

    Args:
        fn: A guide in the model language, or what an adapter such as `gx.from_numpyro` returns. It
            is called with the model's arguments, samples the latents of its part under their
            names, and may have `param` sites, which are trained.
        given: Whether its first argument is the dictionary of constrained latents that the earlier
            parts of the list drew.

    Returns:
        The part: `gx.AutoGuideList(model, ..., parts={"z": gx.program(fn), ...: gx.AutoNormal})`.

    Raises:
        TypeError: If `fn` cannot be called.
    """
    return ProgramPart(as_model(fn), given)


def started_params(
    program: AbstractModel, what: str, batch: Batch, key: Key, names: tuple[str, ...]
) -> dict[str, Any]:
    """Return unconstrained starting values of a program's `param` sites.

    Args:
        program: The program.
        what: What messages call it.
        batch: Its arguments.
        key: For starting values that are drawn.
        names: The sites.

    Raises:
        ValueError: If one starts outside of its constraint, or on the edge.
    """
    params = _started_params(program, batch, key, names)
    if not is_traced(params):
        bad = [name for name, value in params.items() if not bool(all_finite(value))]
        if bad:
            raise ValueError(
                f"the param sites {bad} of {what} start outside of their constraints, or on the "
                "edge."
            )
    return params


@functools.partial(jax.jit, static_argnames="names")
def _started_params(
    program: AbstractModel, batch: Batch, key: Key, names: tuple[str, ...]
) -> dict[str, Any]:
    params = initial_params(program, batch, key, names, dict(batch.rows))
    return jax.tree.map(strong, params)
