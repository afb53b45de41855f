"""Prior and posterior predictive draws."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
from jax.typing import ArrayLike
from jaxtyping import Array

from .._model.batch import Batch, as_batch
from .._model.indices import check_rows
from .._model.model import AbstractModel
from .._model.trace import Trace
from .._types import Key, names_of, positive_or_none, require_key
from .runs import (
    as_draws,
    model_of,
    over_draws,
    require_known_order,
)


class Predictive(eqx.Module):
    """Draws of what a model predicts, from its prior or at draws of its latents.

    It is called as `predictive(key, *args, **kwargs)`, with the model's arguments or one
    `gx.Batch`. What the arguments observe stays observed, so pass None in the place of data to
    predict them. Latents without draws come from their priors, given all that is drawn before
    them; deterministic sites are computed anew.

    The arguments may be others than those of the fit, and of another size. Plates hold the rows
    that `Batch.at` names, else all of them where the model runs with all (where it gets a
    ready-made batch it does not, and its rows are those of the arguments). Draws that hold every
    row of a plate are in the plate's order; a run takes its rows of them. (`sample_posterior`
    returns them in the order of its arguments; arguments that hold every row in another order than
    the plate's are refused beside such draws.)

    In a NumPyro model draws of a `scan` may hold fewer steps than the run: the later ones come from
    the model, which is a forecast.

    A second call with arguments of the same shapes compiles nothing.

    Args:
        model: A model: `guide.model`, with its trained parameters; `gx.from_numpyro(...)`; or a
            callable in the model language.
        draws: Latent to values with leading sample axes, as `guide.sample_posterior` returns them;
            deterministic sites are ignored. None for the prior.
        num_samples: How many draws from the prior. It does not stand beside `draws`, whose
            leading axes say how many.
        sites: Names of the sites to return: latents, those of `draws` included, and deterministic
            ones. None for all that `draws` does not give.
        batch_size: How many draws to compute at a time, to bound memory; None for all.

    Raises:
        TypeError: If `model` is a guide or cannot be called, or an argument is of the wrong kind.
        ValueError: If there are both draws and `num_samples`, or neither, if a number of draws is
            not positive, or if `sites` is empty.
    """

    model: AbstractModel
    draws: dict[str, Array]
    num_samples: int | None = eqx.field(static=True)
    sites: tuple[str, ...] | None = eqx.field(static=True)
    batch_size: int | None = eqx.field(static=True)

    def __init__(
        self,
        model: Any,
        draws: Mapping[str, ArrayLike] | None = None,
        num_samples: int | None = None,
        sites: Iterable[str] | None = None,
        batch_size: int | None = None,
    ):
        self.model = model_of(model)
        self.draws = as_draws(draws)
        self.num_samples = positive_or_none("num_samples", num_samples)
        self.sites = None if sites is None else names_of("sites", sites)
        self.batch_size = positive_or_none("batch_size", batch_size)
        if self.sites == ():
            raise ValueError("sites=[] names no site: leave it out for all that draws do not give.")
        if self.draws and num_samples is not None:
            raise ValueError(
                "the leading axes of draws say how many predictions there are: leave num_samples "
                f"out; got {num_samples} beside draws."
            )
        if not self.draws and num_samples is None:
            raise ValueError(
                "pass draws of the latents (guide.sample_posterior returns them), or num_samples "
                "to draw from the prior."
            )

    def __call__(self, key: Key, /, *args: Any, **kwargs: Any) -> dict[str, Array]:
        """Draw.

        Args:
            key: For all that is not in the draws.
            *args: The model's arguments, or one `gx.Batch`.
            **kwargs: The model's keyword arguments.

        Returns:
            Site to values, of shape `sample axes + site shape`.

        Raises:
            TypeError: If the arguments do not fit the model.
            ValueError: If a draw belongs to no latent of this call or does not fit it, if draws and
                arguments hold all rows of a plate and `at` names another order than the plate's, if
                a latent has neither draws nor a prior to draw from, or if there is nothing to
                predict.
        """
        require_key("a gx.Predictive", key)
        batch = as_batch(self.model, args, kwargs)
        check_rows(self.model, batch)
        require_known_order(self.model, self.draws, batch)
        return _predict(self, key, batch)


@jax.jit
def _predict(predictive: Predictive, key: Key, batch: Batch) -> dict[str, Array]:
    return over_draws(
        functools.partial(_predicted, predictive),
        predictive.model,
        predictive.draws,
        key,
        batch,
        num_samples=predictive.num_samples,
        batch_size=predictive.batch_size,
    )


def _predicted(predictive: Predictive, trace: Trace, key: Key) -> dict[str, Array]:
    """Return the sites that were asked for."""
    del key
    observed = sorted(n for n, s in trace.of("observed").items() if s.event_shape != (0,))
    known = {**trace.of("latent"), **trace.of("deterministic")}
    names = predictive.sites
    if names is None:
        given = predictive.draws.keys() - trace.of("deterministic").keys()
        names = tuple(n for n in known if n not in given)
    if seen := [n for n in names if n in observed]:
        raise ValueError(
            f"the sites {seen} are observed in this call, so there is nothing to predict: pass "
            "None in the place of their data."
        )
    if unknown := [n for n in names if n not in known]:
        raise ValueError(f"the model has no sites {unknown}; it has {sorted(known)}.")
    if not names:
        reason = f"{observed} are observed: pass None in the place of their data"
        raise ValueError(
            "there is nothing to predict: draws give every latent, and "
            f"{reason if observed else 'the model has no other site'}."
        )
    return {n: known[n].value for n in names}
