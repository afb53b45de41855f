"""What a family is: how q draws."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._model.target import Block, Draw, Target
from .._model.trace import LatentSpec
from .._numerics import held
from .._types import Key


class AbstractFamily(eqx.Module):
    """A distribution over named sites, whose leaves are its parameters.

    It knows no model: the target is all that it may see. A new guide is a family, of which `draw`
    is the one method that must be written, and a constructor.
    """

    sites: eqx.AbstractVar[tuple[LatentSpec, ...]]  # static

    @abc.abstractmethod
    def draw(self, key: Key, target: Target) -> Draw:
        """Draw the sites, with log densities by block.

        Args:
            key: For this draw.
            target: The unnormalised posterior; `target.given` holds what earlier parts drew, and
                `target.indices` the rows of plates that do not hold all of them.

        Returns:
            The draw.
        """

    @property
    def learning_rate(self) -> float:
        """The rate that `fit` starts its default optimizer with."""
        return 0.01

    def units(self, least: Float[Array, ""]) -> Any:
        """Return how far a step of one goes along each parameter, for `fit`'s default optimizer.

        Args:
            least: How far it goes at least along a location, which may lie many scales from where
                it belongs. It falls from one to zero.

        Returns:
            A tree of the family's structure.
        """
        del least
        return jax.tree.map(jnp.ones_like, self)

    def locations(self) -> Any:
        """Return the parameters that say where the mass lies, as a tree of leaves of this family.

        `fit`'s default optimizer moves them, if they are few, along the axes of their gradient.
        """
        return ()

    def travellers(self) -> Any:
        """Return the locations that `in_frame` moves, as a tree of leaves of this family.

        `fit`'s default optimizer moves them along the axes of their gradient too, outside of the
        frame, in the first two fifths of the steps.
        """
        return ()

    def in_frame(self, step: Any, least: Float[Array, ""]) -> Any:
        """Return the change of the parameters that a step in coordinates of the family's own makes.

        `fit`'s default optimizer takes gradients and steps in these coordinates. Where they go with
        the shape of the distribution, no posterior is too narrow or too correlated for them.

        Args:
            step: Coordinates of a step, in the family's structure.
            least: As of `units`.

        Returns:
            The change, linear in the step. By default the coordinates are the parameters, in units.
        """
        return jax.tree.map(jnp.multiply, step, self.units(least))

    @property
    def reads_batch(self) -> bool:
        """Whether draws depend on the model's arguments, which then cannot be left out."""
        return False

    @property
    def reads_given(self) -> bool:
        """Whether draws may depend on those of earlier parts, `target.given`."""
        return True

    def map_rows(self, f: Callable[[Array, tuple[tuple[str, int], ...]], Any]) -> Any:
        """Return the family with a function applied to each parameter that holds rows of plates.

        A family that has such parameters draws also where they hold no more than the rows in
        `target.indices`.

        Args:
            f: Called with the parameter, and the name of each plate with its axis.
        """
        del f
        return self

    @property
    def has_params(self) -> bool:
        """Whether it has `param` sites of its own."""
        return False

    def param_values(self, key: Key, target: Target) -> dict[str, Any]:
        """Return the constrained values of its own `param` sites."""
        del key, target
        return {}

    def log_q(self, draw: Draw, target: Target) -> dict[Block, Array] | None:
        """Return log q at a draw, in the blocks and the space of `draw`; None: no density."""
        del draw, target
        return None

    def path_draw(self, key: Key, target: Target) -> Draw | None:
        """Draw, with log q that depends on the parameters through the draw alone.

        What is left out of the gradient is the score, whose mean is zero (Roeder et al. 2017,
        "Sticking the landing").

        Returns:
            The draw; None where the family has no density.
        """
        draw = self.draw(key, target)
        frozen, _ = held((self, draw.values))
        log_q = frozen.log_q(draw, target)
        return None if log_q is None else Draw(draw.values, draw.space, log_q)

    def entropy(self, target: Target) -> dict[Block, Array]:
        """Return minus the mean of log q, for those blocks where it is known in closed form."""
        del target
        return {}

    def quantile(self, level: Float[Array, ""], target: Target) -> dict[str, Array]:
        """Return unconstrained marginal quantiles of the sites that have them in closed form."""
        del level, target
        return {}

    def normal_marginals(self, target: Target) -> dict[str, tuple[Array, Array]]:
        """Return location and scale of the sites whose coordinates are independent normals.

        They are independent of all other sites, too.
        """
        del target
        return {}
