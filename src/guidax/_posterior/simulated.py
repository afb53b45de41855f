"""Data that a model makes itself, and the model that takes them for observations."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array

from .._model.batch import Batch
from .._model.model import AbstractModel, Choose
from .._model.trace import Indices, Site, Trace
from .._types import Key


def simulate(
    model: AbstractModel, key: Key, batch: Batch, observe: tuple[str, ...]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Draw from a model's prior.

    Args:
        model: The model.
        key: For the draw.
        batch: Its arguments, without the data.
        observe: Names of the sites that are data.

    Returns:
        The latents, and the data.

    Raises:
        ValueError: If a latent has no prior that can be drawn from.
    """

    def choose(site: Site) -> None:
        if site.sample is None:
            raise ValueError(
                f"site {site.name!r} has no prior that can be drawn from (a flat prior, a bare log "
                "density, or a distribution without `sample`): give it a proper one."
            )

    sites = model.run(batch, key, choose, {}).of("latent")
    values = {name: site.value for name, site in sites.items()}
    data = {name: values.pop(name) for name in observe}
    return values, data


class Simulated(AbstractModel):
    """A model some of whose latents are observed: its batch is `Batch(data, batch of the model)`.

    The data come by site, so it does not matter which arguments of the model would hold them.

    Args:
        inner: The model.
        observe: Names of the sites that the data hold.
    """

    params: dict[str, Any]
    inner: AbstractModel
    observe: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, inner: AbstractModel, observe: tuple[str, ...]):
        self.params, self.inner, self.observe = inner.params, inner.with_params({}), observe

    def run(self, batch: Batch, key: Key, choose: Choose, indices: Indices) -> Trace:
        """Run the inner model on the data."""
        (data, given), _ = batch.unpack()

        def with_data(site: Site) -> Array | None:
            return data[site.name] if site.name in self.observe else choose(site)

        trace = self.inner.with_params(self.params).run(given, key, with_data, indices)
        sites = {
            name: dataclasses.replace(site, kind="observed") if name in self.observe else site
            for name, site in trace.sites.items()
        }
        return dataclasses.replace(trace, sites=sites)

    def signature(self) -> inspect.Signature | None:
        """Return none: its arguments are not the inner model's."""
        return None

    @property
    def name(self) -> str:
        """Return the inner model's name."""
        return self.inner.name

    @property
    def has_module(self) -> bool:
        """Whether the inner model has a module."""
        return self.inner.has_module

    def plate_rows(self, create_plates: Callable[..., Any], batch: Batch, key: Key) -> Indices:
        """Return what the inner model's language makes of the plates."""
        return self.inner.plate_rows(create_plates, batch.unpack()[0][1], key)
