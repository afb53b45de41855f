"""DAIS for the latents of one plate, row by row, given all that is outside the plate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import random
from jaxtyping import Array, Float

from .._model.target import Block, Draw, Target
from .._model.trace import LatentSpec, Trace
from .._numerics import sum_trailing
from .._types import Key
from .base import AbstractFamily
from .dais import gradient_of
from .dynamics import Dynamics
from .vector import ravel_rows, size_of, unravel_rows


class LocalDAIS(AbstractFamily):
    """Annealed importance sampling of each row of a plate, from a base to the row's own density.

    Row i starts at `z ~ q0_i` and moves by K steps towards `log p(z_i, x_i | rest)`: the terms of
    the model in row i of the plate, without N/B, so that its moves do not depend on how many rows
    a batch holds. Given the rest the rows are independent, so one gradient of their sum serves all
    of them, though each has step sizes and temperatures of its own. `log q0` and the log factor of
    the moves make up the row's log q, which counts N/B times as its terms do.

    Args:
        base: A family over the same sites, whose density factors over the rows of the plate. Where
            the batch says which rows it holds, the noise of the moves belongs to the row, and so
            does that of normals, but a program draws as it pleases.
        dynamics: Parameters of the moves: for each row, or shared by all.
        plate: The plate.

    Source: Geffner and Domke 2022, "Variational inference with locally enhanced bounds for
    hierarchical models"; Jankowiak and Phan 2022, "Surrogate likelihoods for variational annealed
    importance sampling".
    """

    base: AbstractFamily
    dynamics: Dynamics
    sites: tuple[LatentSpec, ...] = eqx.field(static=True)
    plate: str = eqx.field(static=True)

    def __init__(self, base: AbstractFamily, dynamics: Dynamics, plate: str):
        self.base, self.dynamics = base, dynamics
        self.sites, self.plate = base.sites, plate

    @property
    def reads_batch(self) -> bool:
        """The moves follow the density of the data."""
        return True

    def map_rows(self, f: Callable[[Array, tuple[tuple[str, int], ...]], Any]) -> Any:
        """Apply a function to the base's parameters, and to those of moves that are a row's own."""
        new = (self.base.map_rows(f), self.dynamics)
        if self.dynamics.raw_damping.ndim:
            own = jax.tree.map(lambda x: f(x, ((self.plate, 0),)), self.dynamics)
            new = (new[0], own)
        return eqx.tree_at(lambda family: (family.base, family.dynamics), self, new)

    @property
    def has_params(self) -> bool:
        """Whether the base has."""
        return self.base.has_params

    def param_values(self, key: Key, target: Target) -> dict[str, Any]:
        """Return those of the base."""
        return self.base.param_values(key, target)

    def draw(self, key: Key, target: Target) -> Draw:
        """Draw each row from the base, and move it."""
        keys = random.split(key)
        start, log_q = self._start(keys[0], target)
        z = self._pack(start)

        def log_target(z: Float[Array, "rows dim"]) -> Float[Array, ""]:
            draw = Draw.of(self._unpack(z))
            trace = target.run(draw)
            plate = trace.plates[self.plate]
            self._require_whole_rows(trace)
            # All terms that read z carry N/B, which comes out again here.
            return plate.rows / plate.size * target.score_trace(trace, draw).log_density

        def log_base(z: Float[Array, "rows dim"]) -> Float[Array, ""]:
            blocks = self.base.log_q(Draw.of(self._unpack(z)), target)
            assert blocks is not None  # the constructor has asked
            return jnp.sum(by_row(blocks, self.sites, self.plate))

        rows = target.indices.get(self.plate)
        noise = self._noise(keys[1], z, rows)
        moves = self.dynamics.at_rows(z.shape[0], rows, num_rows(self.sites, self.plate))
        z, log_factor = moves.run(gradient_of(log_target), gradient_of(log_base), z, noise)
        block = Block(tuple(s.name for s in self.sites), (self.plate,))
        return Draw.of(self._unpack(z), log_q={block: log_q + log_factor})

    def _start(self, key: Key, target: Target) -> tuple[dict[str, Array], Float[Array, " rows"]]:
        """Return unconstrained draws of the base, and their log density by row."""
        draw = self.base.draw(key, target)
        if all(draw.space_of(s.name) == "unconstrained" for s in self.sites):
            return draw.values, by_row(draw.log_q, self.sites, self.plate)
        sites = target.run(draw, forward=True).sites  # a program draws constrained values
        start = {n: sites[n].known_bijection.inverse(x) for n, x in draw.values.items()}
        blocks = self.base.log_q(Draw.of(start), target)
        assert blocks is not None
        return start, by_row(blocks, self.sites, self.plate)

    def _noise(
        self, key: Key, z: Float[Array, "rows dim"], rows: Array | None
    ) -> Float[Array, "steps rows dim"]:
        """Return standard normal noise, which belongs to the row where the batch says which."""
        steps, (held, dim) = self.dynamics.num_steps, z.shape
        if rows is None:
            return random.normal(key, (steps, held, dim), z.dtype)

        def one(row: Array) -> Array:
            return random.normal(random.fold_in(key, row), (steps, dim), z.dtype)

        return jax.vmap(one, out_axes=1)(rows)

    def _require_whole_rows(self, trace: Trace) -> None:
        """Refuse rows of which the batch holds but a part.

        Raises:
            ValueError: If another plate around a site of this plate holds some of its rows only.
        """
        for site in (*trace.of("latent").values(), *trace.of("observed").values()):
            names = [p.name for p in site.plates]
            for p in site.plates:
                if self.plate in names and p.name != self.plate and p.rows < p.size:
                    raise ValueError(
                        f"site {site.name!r} is in plate {self.plate!r}, whose latents DAIS "
                        f"moves, and in plate {p.name!r}, which holds {p.rows} of {p.size} rows. "
                        "Moves that follow a part of a row's data bound nothing: let plate "
                        f"{p.name!r} hold all its rows."
                    )

    def _pack(self, values: dict[str, Array]) -> Float[Array, "rows dim"]:
        return ravel_rows(values, self.sites, self.plate)

    def _unpack(self, z: Float[Array, "rows dim"]) -> dict[str, Array]:
        return unravel_rows(z, self.sites, self.plate)


def by_row(
    blocks: dict[Block, Array], sites: Sequence[LatentSpec], plate: str
) -> Float[Array, " rows"]:
    """Return the log density of each row of a plate that every block names."""
    specs = {s.name: dict(s.plates) for s in sites}
    found = []
    for block, term in blocks.items():
        # An adapter or a family of one's own may name plates in another order than their axes'.
        axes = specs[block.sites[0]]
        named = sorted(block.plates, key=lambda name: axes.get(name, 0))
        first = jnp.moveaxis(term, named.index(plate), 0)
        found.append(sum_trailing(first, 1))
    return sum(found[1:], found[0])


def num_rows(sites: Sequence[LatentSpec], plate: str) -> int:
    """Return the size of the plate."""
    return sites[0].shape[dict(sites[0].plates)[plate]]


def row_width(sites: Sequence[LatentSpec], plate: str) -> int:
    """Return the number of unconstrained coordinates of one row."""
    return size_of(sites) // num_rows(sites, plate)
