"""What every Auto* constructor does first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._model.batch import as_batch, options_of
from .._model.program import as_model
from .._model.start import Start, find_start
from .._model.strategies import as_strategy
from .._types import Key


def begin(
    constructor: type,
    model: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    key: Key,
    init_loc_fn: Any,
    create_plates: Callable[..., Any] | None = None,
) -> Start:
    """Search a start for a guide.

    A `Start` in the place of the model is passed on: a list searches once, and gives each of its
    parts a share.

    Args:
        constructor: The class of the guide, for the names of its options.
        model: The model, or a `Start`.
        args: The model's arguments, or one batch.
        kwargs: The model's keyword arguments.
        key: For the search.
        init_loc_fn: The strategy.
        create_plates: As of a guide.

    Returns:
        The start.

    Raises:
        TypeError: If the arguments do not fit the model, or `create_plates` cannot be called.
        ValueError: As `find_start`.
    """
    if create_plates is not None and not callable(create_plates):
        raise TypeError(
            "create_plates takes a function of the model's arguments that returns a plate; got "
            f"{create_plates!r}."
        )
    if isinstance(model, Start):
        return model
    model = as_model(model)
    batch = as_batch(model, args, kwargs, options_of(constructor.__init__))
    strategy = as_strategy(init_loc_fn)
    return find_start(model, batch, key, strategy, draws_rows=create_plates is not None)
