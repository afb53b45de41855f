"""What every Auto* constructor does first."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
from jax import random
from jaxtyping import Array

from .._caller import warn_caller
from .._model.batch import Batch, as_batch, options_of
from .._model.indices import check_rows, with_named_rows
from .._model.model import AbstractModel
from .._model.program import as_model
from .._model.start import Start, find_start, require_continuous
from .._model.strategies import Strategy, as_strategy, by_site, init_to_value
from .._model.structure import describe
from .._model.trace import Indices, Structure
from .._types import Key, require_key


def begin(
    constructor: type,
    model: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    key: Key,
    init_loc_fn: Any,
    create_plates: Callable[..., Any] | None = None,
    choose: Callable[[Structure, Indices], Strategy] | None = None,
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
        choose: In place of `init_loc_fn`, how the strategy follows from the model's structure and
            the rows that the batch holds, by plate.

    Returns:
        The start.

    Raises:
        TypeError: If the arguments do not fit the model, `key` is no random key, or `create_plates`
            gives no plates.
        ValueError: As `find_start`; if the model has no latent, or one that no guide can draw; if
            `create_plates` or `Batch.at` name plates that the model lacks; or if a strategy stands
            beside a `Start`, which it cannot change.

    Warns:
        UserWarning: If `init_to_value` has values that no latent takes.
    """
    if create_plates is not None and not callable(create_plates):
        raise TypeError(
            "create_plates takes a function of the model's arguments that returns a plate; got "
            f"{create_plates!r}."
        )
    if isinstance(model, Start):
        if create_plates is not None:
            raise ValueError(
                f"create_plates is given to {constructor.__name__} as a part of another guide: the "
                "rows of plates are those of the whole, so give it to that one."
            )
        if not any(_is_same(init_loc_fn, x) for x in (default_of(constructor), model.default)):
            raise ValueError(
                f"init_loc_fn is given to {constructor.__name__} inside of a part of another "
                "guide, which has searched its start already: give it where that one sees it, "
                f"functools.partial(gx.{constructor.__name__}, init_loc_fn=...) as the part, or to "
                "the whole."
            )
        return model
    require_key(constructor.__name__, key, "key=, a random key")
    model = as_model(model)
    batch = as_batch(model, args, kwargs, options_of(constructor.__init__))
    batch = with_named_rows(model, batch, create_plates)
    # Before the search, which would blame the data for rows that do not exist.
    check_rows(model, batch)
    structure = describe(model, batch, key)
    require_continuous(model, structure)
    if create_plates is not None:
        _check_plates(model, batch, structure, create_plates)
    strategy = as_strategy(init_loc_fn) if choose is None else choose(structure, batch.rows)
    draws_rows = create_plates is not None
    start = find_start(model, batch, structure, key, strategy, draws_rows=draws_rows)
    _check_values(strategy, start)
    return start


def default_of(constructor: Any) -> Any:
    """Return the default of its `init_loc_fn`, which a `functools.partial` replaces, or None."""
    try:
        default = inspect.signature(constructor).parameters["init_loc_fn"].default
    except (KeyError, TypeError, ValueError):
        return None
    return None if default is inspect.Parameter.empty else default


def _is_same(strategy: Any, other: Any) -> bool:
    """Say whether two strategies are one, or hold no arrays and are equal."""
    if strategy is other:
        return True
    return not jax.tree.leaves(strategy) and jax.tree.structure(strategy) == jax.tree.structure(
        other
    )


def _check_values(strategy: Any, start: Start) -> None:
    """Warn of starting values that no site takes. A model that hides sites may be given them."""
    latents = [s.name for s in start.structure.latents]
    if unknown := sorted(_valued(strategy) - {*latents, *start.structure.deterministic}):
        warn_caller(
            f"init_to_value has values for {unknown}, which no latent takes: they are {latents}."
        )


def _valued(strategy: Any) -> set[str]:
    """Return the sites that a strategy, or one inside it, has values for."""
    if isinstance(strategy, by_site):
        return set().union(*map(_valued, strategy.strategies))
    if isinstance(strategy, init_to_value):
        return strategy.values.keys() | _valued(strategy.fallback)
    return set()


def _check_plates(
    model: AbstractModel, batch: Batch, structure: Structure, create_plates: Callable[..., Any]
) -> None:
    """Refuse plates that the model does not have."""

    def rows(batch: Batch) -> dict[str, Array]:
        return dict(model.plate_rows(create_plates, batch, random.key(0)))

    known = {p.name for p in structure.plates}
    if unknown := sorted(jax.eval_shape(rows, batch).keys() - known):
        raise ValueError(
            f"create_plates returns the plates {unknown}, but the model has {sorted(known)}."
        )
