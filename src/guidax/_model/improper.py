"""A flat prior."""

from __future__ import annotations

from typing import Any, NoReturn

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from .compound_constraints import independent
from .constraint_types import Constraint


class ImproperUniform:
    """The flat prior over a constraint: log density 0 everywhere.

    It has no normaliser, so it cannot be drawn from: it stands for a latent, not for data that are
    to be simulated. A flat density of a constrained value is not flat in unconstrained space;
    guides account for the Jacobian.

    Args:
        constraint: Where the value lies.
        batch_shape: Shape of independent values.
        event_shape: Shape of one value. Axes that the constraint does not need itself hold values
            that lie in it each.
        dtype: Of the value; None for JAX's default floating type.

    Raises:
        TypeError: If `constraint` is no constraint, or a discrete one.
        ValueError: If an event has fewer axes than the constraint needs.
    """

    def __init__(
        self,
        constraint: Constraint,
        batch_shape: tuple[int, ...] = (),
        event_shape: tuple[int, ...] = (),
        dtype: DTypeLike | None = None,
    ):
        if not isinstance(constraint, Constraint) or constraint.is_discrete:
            raise TypeError(
                "ImproperUniform takes a continuous constraint, such as gx.constraints.positive; "
                f"got {constraint!r}."
            )
        extra = len(event_shape) - constraint.event_dim
        if extra < 0:
            raise ValueError(
                f"a value in {constraint!r} has at least {constraint.event_dim} axes: give them in "
                f"event_shape; got event_shape={event_shape}."
            )
        self.constraint: Constraint = independent(constraint, extra)
        self.batch_shape: tuple[int, ...] = tuple(batch_shape)
        self.event_shape: tuple[int, ...] = tuple(event_shape)
        self.dtype: jnp.dtype = jnp.result_type(float if dtype is None else dtype)

    def log_prob(self, value: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return zeros of the batch shape, for a value of shape `... + batch + event`."""
        lead = jnp.shape(value)[: jnp.ndim(value) - len(self.event_shape)]
        return jnp.zeros(jnp.broadcast_shapes(lead, self.batch_shape), self.dtype)

    def sample(self, *, seed: Array, sample_shape: tuple[int, ...] = ()) -> NoReturn:
        """Raise a ValueError: there is nothing to draw from."""
        del seed, sample_shape
        raise ValueError(
            f"ImproperUniform({self.constraint!r}) has no draws, since it has no normaliser: give "
            "the site a value (gx.handlers.condition or substitute), or a proper prior."
        )

    def __repr__(self) -> str:
        parts: dict[str, Any] = {"batch_shape": self.batch_shape, "event_shape": self.event_shape}
        shown = "".join(f", {name}={value}" for name, value in parts.items() if value)
        return f"ImproperUniform({self.constraint!r}{shown})"
