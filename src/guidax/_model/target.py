"""What a family draws, what it draws against, and the one place that sums and scales."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from .._numerics import log_normal, sum_trailing
from .._types import Key
from .batch import Batch
from .model import AbstractModel
from .padding import without_padding
from .trace import Site, Trace

Space = Literal["unconstrained", "constrained", "point"]


class Block(NamedTuple):
    """Sites that are drawn jointly, and the plates over whose rows their density factors."""

    sites: tuple[str, ...]
    plates: tuple[str, ...] = ()


class Draw(eqx.Module):
    """One draw of a family.

    Attributes:
        values: Site to value.
        space: Static, sorted pairs of site and the space that its value is in. A "point" is
            unconstrained too, but its Jacobian does not count.
        log_q: Block to log density in that space, with one axis for each plate that the block
            names, over whose rows it factors.
    """

    values: dict[str, Array]
    space: tuple[tuple[str, Space], ...] = eqx.field(static=True)
    log_q: dict[Block, Array]

    def __check_init__(self) -> None:
        for name, space in self.space:
            if space not in get_args(Space):
                raise ValueError(
                    f"the space of a draw's site {name!r} is one of {get_args(Space)}; got "
                    f"{space!r}."
                )
        for block in self.log_q:
            if not isinstance(block, Block):
                raise TypeError(
                    "log_q of a draw holds a log density for each gx.Block of sites, such as "
                    f"gx.Block(({block!r},)); got the key {block!r}."
                )

    @classmethod
    def of(
        cls,
        values: dict[str, Array],
        space: Space = "unconstrained",
        log_q: dict[Block, Array] | None = None,
    ) -> Draw:
        """Return a draw with all sites in one space."""
        return cls(values, tuple((name, space) for name in sorted(values)), log_q or {})

    def space_of(self, name: str) -> Space:
        """Return the space of one site."""
        return dict(self.space)[name]

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def __or__(self, other: Draw) -> Draw:
        """Join the draws of two parts.

        Raises:
            TypeError: If the other is none.
            ValueError: If both hold a site.
        """
        if not isinstance(other, Draw):
            raise TypeError(
                "a family's draw is a gx.Draw, such as gx.Draw.of(values, log_q=...) makes; got "
                f"{type(other).__name__}."
            )
        if clash := sorted(self.values.keys() & other.values.keys()):
            raise ValueError(f"two parts draw the sites {clash}.")
        space = tuple(sorted(self.space + other.space))
        return Draw(self.values | other.values, space, self.log_q | other.log_q)

    def only(self, names: Iterable[str]) -> Draw:
        """Return the share of one part."""
        names = set(names)
        values = {n: v for n, v in self.values.items() if n in names}
        log_q = {block: v for block, v in self.log_q.items() if set(block.sites) <= names}
        return Draw(values, tuple((n, s) for n, s in self.space if n in names), log_q)


NOTHING = Draw({}, (), {})


class Score(eqx.Module):
    """One run of the program, every term scaled and summed.

    Attributes:
        log_density: Log joint density and log-Jacobians.
        log_q: Log density of the draw.
        log_det: The log-Jacobians alone: `log_q - log_det` is in constrained space.
        terms: `log_density` by site.
        values: Constrained latents and deterministic sites.
    """

    log_density: Float[Array, ""]
    log_q: Float[Array, ""]
    log_det: Float[Array, ""]
    terms: dict[str, Float[Array, ""]]
    values: dict[str, Array]

    @property
    def log_weight(self) -> Float[Array, ""]:
        """The log importance weight, whose mean is the ELBO."""
        return self.log_density - self.log_q


class Target(eqx.Module):
    """An unnormalised posterior: everything that a family may know when it draws.

    Key and row numbers are in here, once, so that everything that is computed of one draw sees one
    function.

    Attributes:
        model: The model.
        batch: Its arguments.
        key: For randomness in the model itself.
        indices: Row numbers of plates that do not hold all rows.
        given: Latents already drawn by earlier parts.
    """

    model: AbstractModel
    batch: Batch
    key: Key
    indices: dict[str, Array]
    given: Draw = NOTHING

    def condition(self, draw: Draw) -> Target:
        """Return the target with more latents drawn."""
        return Target(self.model, self.batch, self.key, self.indices, self.given | draw)

    def run(self, draw: Draw, *, forward: bool = False) -> Trace:
        """Run the program at a draw.

        Args:
            draw: Values of the latents that are not yet given.
            forward: Whether a latent without a value is drawn from the model.

        Raises:
            ValueError: If a latent has no value and `forward` is false.
            TypeError: If `draw` is no `Draw`.
        """
        draw = self.given | draw

        def choose(site: Site) -> Array | None:
            return _value(site, draw, forward=forward)

        return self.model.run(self.batch, self.key, choose, self.indices)

    def score(self, draw: Draw, *, forward: bool = False) -> Score:
        """Run the program at a draw and score it."""
        return self.score_trace(self.run(draw, forward=forward), draw)

    def score_trace(self, trace: Trace, draw: Draw) -> Score:
        """Score a run that is already there.

        Raises:
            ValueError: If the draw names what the run does not have.
        """
        own, draw = draw, self.given | draw
        if unknown := sorted(own.values.keys() - trace.of("latent").keys()):
            raise ValueError(
                f"the draw has values of {unknown}, which are no latents of the model: it has "
                f"{sorted(trace.of('latent'))}."
            )
        terms, log_det = {}, jnp.zeros(())
        for site in scored_sites(trace, draw):
            terms[site.name], site_log_det = _term(site, draw)
            log_det += site_log_det
        recorded = {**trace.of("latent"), **trace.of("deterministic")}
        return Score(
            log_density=sum(terms.values(), jnp.zeros(())),
            log_q=scaled_sum(draw.log_q, trace),
            log_det=log_det,
            terms=terms,
            values={name: site.value for name, site in recorded.items()},
        )


def scored_sites(trace: Trace, draw: Draw) -> list[Site]:
    """Return the observed sites, and the latents that the draw holds."""
    latents = [s for s in trace.of("latent").values() if s.name in draw]
    return [*trace.of("observed").values(), *latents]


def scaled_sum(blocks: dict[Block, Array], trace: Trace) -> Float[Array, ""]:
    """Sum terms given by block, each times N/B of the plates that the block names.

    Raises:
        ValueError: If a block does not name a subsampled plate around its sites, or names a site or
            plate that is not there.
    """
    total = jnp.zeros(())
    for block, term in blocks.items():
        total += _plate_scale(block, trace) * jnp.sum(term)
    return total


def _plate_scale(block: Block, trace: Trace) -> float:
    if unknown := [name for name in block.sites if name not in trace.sites]:
        raise ValueError(
            f"log_q of a draw has a block with the sites {unknown}, which the model lacks: it has "
            f"{sorted(trace.of('latent'))}."
        )
    plates = {p.name: p for name in block.sites for p in trace.sites[name].plates}
    if unknown := [name for name in block.plates if name not in plates]:
        raise ValueError(
            f"log_q of a draw has a block with the plates {unknown}, but the plates around its "
            f"sites {list(block.sites)} are {sorted(plates)}."
        )
    for p in plates.values():
        if p.name not in block.plates and p.rows < p.size:
            raise ValueError(
                f"the guide draws the sites {list(block.sites)} jointly over plate {p.name!r}, "
                f"which holds {p.rows} of {p.size} rows: a joint density has no share for each "
                "row. Use gx.AutoNormal, gx.AutoDelta or gx.AutoSemiDAIS for them."
            )
    return math.prod(plates[name].size / plates[name].rows for name in block.plates)


def _value(site: Site, draw: Draw, *, forward: bool) -> Array | None:
    if site.name not in draw:
        if forward:
            return None
        raise ValueError(
            f"latent site {site.name!r} has no value: the guide does not hold it. If it is "
            "an observation, pass its data; to predict it, draw with the data, draws = "
            "guide.sample_posterior(key, X, y, sample_shape=(1000,)), then "
            "gx.Predictive(guide.model, draws)(key, X_new, None). If it is a latent, every latent "
            "needs a part of the guide, and in a list a DAIS part comes last."
        )
    value = draw.values[site.name]
    return (
        value if draw.space_of(site.name) == "constrained" else site.known_bijection.forward(value)
    )


def outside(sites: Iterable[Site]) -> Bool[Array, ""]:
    """Say whether a latent's value, a number, is neither in its support nor beside it by rounding.

    A draw may be beside it: a tie of `ordered`, the end of `greater_than`, a singular matrix.
    """
    found = jnp.zeros((), bool)
    for site in sites:
        if site.contains is None or not site.has_bijection:
            continue
        x = lax.stop_gradient(site.value)
        axes = tuple(range(x.ndim - len(site.event_shape), x.ndim))
        size = jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0.0)
        eps, tiny = float(jnp.finfo(x.dtype).eps), float(jnp.finfo(x.dtype).tiny)
        bijection = site.known_bijection
        again = bijection.forward(bijection.inverse(x))
        close = (jnp.abs(again - x) <= 10 * eps * size + tiny) & jnp.isfinite(x)
        inside = site.contains(x) | jnp.all(close, axis=axes)
        if len(axes) > 1 and (n := x.shape[-1]) == x.shape[-2]:  # rounded, it may have no factor
            inside |= site.contains(x + 4 * n * eps * size * jnp.eye(n, dtype=x.dtype))
        found |= ~jnp.all(inside) & ~jnp.any(jnp.isnan(x))
    return found


def site_entries(site: Site, draw: Draw) -> tuple[Array, Array]:
    """Return `scale * log p + log|J|`, masked, and `log|J|`, by entry of the batch, without N/B.

    What is the same for every entry, zero, may come as one number.
    """
    assert site.log_prob is not None
    log_det = jnp.zeros(())
    space = draw.space_of(site.name) if site.kind == "latent" else None
    if space == "unconstrained":
        log_det = site.known_bijection.log_det(draw.values[site.name], site.value)
    if site.mask is False:
        return log_det, log_det
    log_prob = site.log_prob(without_padding(site))
    if jnp.iscomplexobj(log_prob):
        raise TypeError(
            f"site {site.name!r} has a complex log density, and log densities are real. Where its "
            "value is complex, write a site for the real part and one for the imaginary part."
        )
    total = log_prob * _scale(site) + log_det
    if site.mask is not None:
        total = jnp.where(site.mask, total, _instead(site, draw, space))
    return total, log_det


def _scale(site: Site) -> Any:
    """Return what the log density is multiplied by.

    Raises:
        ValueError: If it has more entries than the site.
    """
    shape = jnp.shape(site.scale)
    try:
        fits = jnp.broadcast_shapes(shape, site.batch_shape) == site.batch_shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"site {site.name!r} has batch shape {site.batch_shape}, but a scale handler around it "
            f"gives {shape}: scale it by one number, or by one for each entry."
        )
    return site.scale


def _term(site: Site, draw: Draw) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return `N/B sum(scale * log p + log|J|)`, masked, and its log-Jacobian."""
    total, log_det = site_entries(site, draw)
    return site.plate_scale * jnp.sum(total), site.plate_scale * jnp.sum(log_det)


def _instead(site: Site, draw: Draw, space: Space | None) -> Array | float:
    """Return what a masked entry counts: a standard normal density, unconstrained, for a latent."""
    if space in (None, "point"):
        return 0.0
    value, ndim = draw.values[site.name], len(site.batch_shape)
    if space == "unconstrained":
        return sum_trailing(log_normal(value), ndim)
    u = site.known_bijection.inverse(value)
    return sum_trailing(log_normal(u), ndim) - site.known_bijection.log_det(u, value)
