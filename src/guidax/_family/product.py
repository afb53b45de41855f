"""Families drawn in order, each given what the earlier ones drew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float

from .._model.target import NOTHING, Block, Draw, Target
from .._model.trace import LatentSpec
from .._types import Key
from .base import AbstractFamily

MOST_AHEAD = 3.0  # how many times a step of the slowest part another's may be


def joined_params(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Join the `param` sites of two programs.

    Raises:
        ValueError: If both have a name.
    """
    if both := sorted(a.keys() & b.keys()):
        raise ValueError(
            f"two programs have param sites {both}, which are different parameters: rename one."
        )
    return a | b


def leaves(family: AbstractFamily) -> tuple[AbstractFamily, ...]:
    """Return the families that are no products, in the order in which they draw."""
    if not isinstance(family, Product):
        return (family,)
    return tuple(leaf for part in family.parts for leaf in leaves(part))


class Product(AbstractFamily):
    """`q(a) q(b | a) ...`.

    Args:
        parts: The families, in the order in which they draw.
    """

    parts: tuple[AbstractFamily, ...]
    sites: tuple[LatentSpec, ...] = eqx.field(static=True)

    def __init__(self, parts: Sequence[AbstractFamily]):
        self.parts = tuple(parts)
        self.sites = tuple(s for part in self.parts for s in part.sites)

    @property
    def learning_rate(self) -> float:
        """The smallest of the parts'; see `units` for the others."""
        return min((part.learning_rate for part in self.parts), default=1.0)

    def units(self, least: Float[Array, ""]) -> Any:
        """Return those of the parts, up to three times as long where a part asks for a higher rate.

        Normals ask for thirty times the rate of flows and of annealed moves. Held to the latter,
        they were 3 nats behind after 1,000 steps (a hierarchical model with 26 latents); at their
        own, 0.2 nats after 4,000, since they ran ahead of their neighbours, and one fit in four
        was lost.
        """
        return self._longer(tuple(part.units(least) for part in self.parts))

    def _longer(self, steps: tuple[Any, ...]) -> Any:
        """Return a tree of the product's structure, with each part's longer by its pace."""
        slowest, longer = self.learning_rate, []
        for part, step in zip(self.parts, steps, strict=True):
            pace = min(MOST_AHEAD, part.learning_rate / slowest)
            longer.append(jax.tree.map(lambda x, pace=pace: pace * x, step))
        return eqx.tree_at(lambda family: family.parts, self, tuple(longer))

    def locations(self) -> Any:
        """Return those of the parts."""
        return tuple(part.locations() for part in self.parts)

    def travellers(self) -> Any:
        """Return those of the parts."""
        return tuple(part.travellers() for part in self.parts)

    def in_frame(self, step: Any, least: Float[Array, ""]) -> Any:
        """Return the parts' changes, as much longer as their units."""
        pairs = zip(self.parts, step.parts, strict=True)
        return self._longer(tuple(part.in_frame(own, least) for part, own in pairs))

    @property
    def reads_batch(self) -> bool:
        """Whether any part does."""
        return any(part.reads_batch for part in self.parts)

    @property
    def reads_given(self) -> bool:
        """Whether any part does."""
        return any(part.reads_given for part in self.parts)

    def map_rows(self, f: Callable[[Array, tuple[tuple[str, int], ...]], Any]) -> Any:
        """Apply a function to the parameters of each part."""
        parts = tuple(part.map_rows(f) for part in self.parts)
        return eqx.tree_at(lambda family: family.parts, self, parts)

    @property
    def has_params(self) -> bool:
        """Whether any part has."""
        return any(part.has_params for part in self.parts)

    def param_values(self, key: Key, target: Target) -> dict[str, Any]:
        """Return those of all parts.

        Raises:
            ValueError: If two parts use one name.
        """
        found, draw = {}, NOTHING
        for part in self.parts:
            now = target.condition(draw)
            found = joined_params(found, part.param_values(key, now))
            draw = draw | part.draw(key, now)
        return found

    def draw(self, key: Key, target: Target) -> Draw:
        """Draw each part, given the earlier ones."""
        draw = NOTHING
        # One key for each part, though later parts see earlier draws.
        keys = jax.random.split(key, max(len(self.parts), 1))
        for part, k in zip(self.parts, keys, strict=False):
            draw = draw | part.draw(k, target.condition(draw))
        return draw

    def log_q(self, draw: Draw, target: Target) -> dict[Block, Array] | None:
        """Return the densities of all parts, or None if one has none."""
        found, given = {}, NOTHING
        for part in self.parts:
            own = draw.only(s.name for s in part.sites)
            density = part.log_q(own, target.condition(given))
            if density is None:
                return None
            found |= density
            given = given | own
        return found

    def path_draw(self, key: Key, target: Target) -> Draw | None:
        """Draw each part so, given the earlier ones, or None if one has no density."""
        draw = NOTHING
        keys = jax.random.split(key, max(len(self.parts), 1))  # as in `draw`
        for part, k in zip(self.parts, keys, strict=False):
            own = part.path_draw(k, target.condition(draw))
            if own is None:
                return None
            draw = draw | own
        return draw

    def entropy(self, target: Target) -> dict[Block, Array]:
        """Return the closed forms of the parts that have them; those read no earlier draws."""
        return self._joined(lambda part: part.entropy(target))

    def quantile(self, level: Float[Array, ""], target: Target) -> dict[str, Array]:
        """Return the closed forms of the parts that have them."""
        return self._joined(lambda part: part.quantile(level, target))

    def normal_marginals(self, target: Target) -> dict[str, tuple[Array, Array]]:
        """Return those of the parts whose draws no later part reads."""
        found = {}
        for part in self.parts:
            if part.reads_given:
                found = {}
            found |= part.normal_marginals(target)
        return found

    def _joined(self, method: Callable[[AbstractFamily], dict[Any, Any]]) -> dict[Any, Any]:
        found = {}
        for part in self.parts:
            found |= method(part)
        return found
