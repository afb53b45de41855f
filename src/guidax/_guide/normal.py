"""`AutoNormal`: independent normals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._family.normal import MeanFieldNormal, raw_scale_of
from .._model.strategies import Strategy, init_to_uniform
from .._types import Key
from .begin import begin
from .guide import AutoGuide


class AutoNormal(AutoGuide):
    """Independent normals in unconstrained space, site by site (mean field).

    The guide to begin with: it needs the fewest steps, takes subsampled plates with latents, and
    gives each coordinate a mean and a scale. It knows no correlations, so it understates the spread
    of correlated posteriors.

    Args:
        model: A model: a callable in the model language, or what an adapter returns.
        *args: The model's arguments, or one `gx.Batch`.
        key: For the starting point.
        init_loc_fn: Where the means start: a strategy, or a function of a site and a key that
            returns a constrained value.
        init_scale: Starting standard deviation of each unconstrained coordinate.
        create_plates: A function of the model's arguments that returns a `gx.plate`, or several,
            whose rows each evaluation holds. Rows that it takes from the arguments are those that
            the arguments hold. `Batch.at` overrides it.
        **kwargs: The model's keyword arguments.

    Raises:
        TypeError: If the arguments do not fit the model.
        ValueError: If a latent is discrete, `init_scale` is not positive, or no start is found.

    Source: Kucukelbir et al. 2017, "Automatic differentiation variational inference", section 2.
    """

    def __init__(
        self,
        model: Any,
        /,
        *args: Any,
        key: Key,
        init_loc_fn: Strategy = init_to_uniform(),
        init_scale: float = 0.1,
        create_plates: Callable[..., Any] | None = None,
        **kwargs: Any,
    ):
        raw_scale_of(init_scale)  # refuse a bad one before the search
        start = begin(AutoNormal, model, args, kwargs, key, init_loc_fn, create_plates)
        family = MeanFieldNormal(start, init_scale)
        super().__init__(start.model, family, start.structure, start.admitted, create_plates)
