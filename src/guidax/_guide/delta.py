"""`AutoDelta`: maximum a posteriori."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._family.point import Point
from .._model.strategies import Strategy, init_to_median
from .._types import Key
from .begin import begin
from .guide import AutoGuide


class AutoDelta(AutoGuide):
    """Point masses, whose optimum is the mode of the posterior in constrained space (MAP).

    The mode depends on the space: of LogNormal(0, 1) it is exp(-1) here, and 1 for
    `AutoLaplaceApproximation`, which works in unconstrained space. Where the density is unbounded
    (a centred hierarchy with its scale going to zero) there is no mode and the loss falls for ever.

    Args:
        model: A model: a callable in the model language, or what an adapter returns.
        *args: The model's arguments, or one `gx.Batch`.
        key: For the starting point.
        init_loc_fn: Where the points start: a strategy, or a function of a site and a key that
            returns a constrained value.
        create_plates: A function of the model's arguments that returns a `gx.plate`, or several,
            whose rows each evaluation holds. Rows that it takes from the arguments are those that
            the arguments hold. `Batch.at` overrides it.
        **kwargs: The model's keyword arguments.

    Raises:
        TypeError: If the arguments do not fit the model.
        ValueError: If a latent is discrete, or no start is found.
    """

    def __init__(
        self,
        model: Any,
        /,
        *args: Any,
        key: Key,
        init_loc_fn: Strategy = init_to_median(),
        create_plates: Callable[..., Any] | None = None,
        **kwargs: Any,
    ):
        start = begin(AutoDelta, model, args, kwargs, key, init_loc_fn, create_plates)
        family = Point(start)
        super().__init__(start.model, family, start.structure, start.admitted, create_plates)
