"""A family written in a model language."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .._model.batch import Batch
from .._model.model import AbstractModel
from .._model.target import Block, Draw, Target
from .._model.trace import LatentSpec, Site, Trace
from .._types import Key
from .base import AbstractFamily


class ProgramFamily(AbstractFamily):
    """Draws by running a program, whose `param` sites are its parameters.

    Args:
        program: The program, with its parameters.
        sites: What it draws.
        given: Whether its first argument is the dictionary of the constrained latents that earlier
            parts drew.
    """

    program: AbstractModel
    sites: tuple[LatentSpec, ...] = eqx.field(static=True)
    given: bool = eqx.field(static=True, default=False)

    @property
    def reads_batch(self) -> bool:
        """The program is called with the model's arguments."""
        return True

    @property
    def reads_given(self) -> bool:
        """As `given` says."""
        return self.given

    @property
    def has_params(self) -> bool:
        """Whether the program has `param` sites."""
        return bool(self.program.params)

    def param_values(self, key: Key, target: Target) -> dict[str, Any]:
        """Return the values of the program's `param` sites."""
        batch = program_batch(target, given=self.given)
        trace = self.program.run(batch, key, lambda site: None, target.indices)
        return {name: site.value for name, site in trace.of("param").items()}

    def draw(self, key: Key, target: Target) -> Draw:
        """Run the program, drawing its latents."""
        batch = program_batch(target, given=self.given)
        trace = self.program.run(batch, key, lambda site: None, target.indices)
        values = {name: site.value for name, site in trace.of("latent").items()}
        return Draw.of(values, "constrained", _densities(trace))

    def log_q(self, draw: Draw, target: Target) -> dict[Block, Array]:
        """Run the program at a draw."""
        batch = program_batch(target, given=self.given)
        values = constrained(draw, target)

        def choose(site: Site) -> Array:
            return values[site.name]

        densities = _densities(self.program.run(batch, target.key, choose, target.indices))
        if all(draw.space_of(s.name) == "constrained" for s in self.sites):
            return densities
        sites = target.run(draw, forward=True).sites
        return {
            block: density + _log_det(sites[block.sites[0]], draw.values[block.sites[0]], block)
            for block, density in densities.items()
        }


def program_batch(target: Target, *, given: bool) -> Batch:
    """Return the arguments of a program."""
    return target.batch.prepended(constrained(target.given, target)) if given else target.batch


def constrained(draw: Draw, target: Target) -> dict[str, Array]:
    """Return the constrained values of a draw."""
    if all(draw.space_of(name) == "constrained" for name in draw.values):
        return draw.values
    new = draw.only(draw.values.keys() - target.given.values.keys())
    sites = target.run(new, forward=True).sites
    return {name: sites[name].value for name in draw.values}


def _densities(trace: Trace) -> dict[Block, Array]:
    """Return the log density of each site, by row of its plates.

    A mask does not count: a masked entry is drawn, as others are, so its density is a part of q's.

    Raises:
        ValueError: If a site of the program is observed, or a handler scales one.
    """
    if scored := sorted(trace.of("observed")):
        raise ValueError(
            f"the sites {scored} of a gx.program are observations or factors, but a guide only "
            "draws: they belong into the model."
        )
    if scaled := sorted(name for name, site in trace.of("latent").items() if site.is_scaled):
        raise ValueError(
            f"a handler scales the sites {scaled} of a gx.program, but log q is the log density of "
            "what is drawn: a multiple of it bounds nothing. Scale the model's sites instead."
        )
    found = {}
    for name, site in trace.of("latent").items():
        assert site.log_prob is not None
        block = Block((name,), tuple(p.name for p in site.plates))
        found[block] = _sum_to_plates(site, site.log_prob(site.value), block)
    return found


def _log_det(site: Site, u: Array, block: Block) -> Array:
    """Return the log-Jacobian of a model's site, by row of the plates that the program has."""
    return _sum_to_plates(site, site.known_bijection.log_det(u, site.value), block)


def _sum_to_plates(site: Site, x: Array, block: Block) -> Array:
    """Sum the batch axes that are no plates of a block; plates stay, in the order of their axes."""
    ndim = len(site.batch_shape)
    kept = {ndim + p.dim for p in site.plates if p.name in block.plates}
    return jnp.sum(x, axis=tuple(a for a in range(ndim) if a not in kept))
