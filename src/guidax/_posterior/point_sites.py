"""Sites that are drawn as points: they have no density, so their draws have no weights."""

from __future__ import annotations

import jax
from jax import random

from .._guide.guide import AutoGuide
from .._model.batch import Batch
from .._model.target import Draw


def points_of(draw: Draw) -> list[str]:
    """Return the names of the sites of a draw that are points, in the alphabet."""
    dense = {name for block in draw.log_q for name in block.sites}
    return sorted(n for n, space in draw.space if space == "point" or n not in dense)


def points_drawn(guide: AutoGuide, batch: Batch) -> list[str]:
    """Return the names of the sites that a guide draws as points, without drawing."""
    return points_of(jax.eval_shape(_draw, guide, batch))


@jax.jit
def _draw(guide: AutoGuide, batch: Batch) -> Draw:
    key = random.key(0)
    target = guide.target(key, batch, guide.indices(key, batch, whole=True))
    return guide.settled(batch).family.draw(key, target)
