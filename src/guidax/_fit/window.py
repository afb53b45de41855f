"""The rows of parameters that one step holds, taken out of the state and put back into it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from .._guide.guide import AutoGuide
from .._model.batch import Batch
from .._numerics import is_traced


@dataclasses.dataclass(frozen=True)
class Rows:
    """Where the rows of a step lie in one parameter. A leaf, as far as JAX is concerned.

    Attributes:
        axes: Axes of plates that hold some of their rows, with the row numbers.
    """

    axes: tuple[tuple[int, Int[Array, " _rows"]], ...] = ()

    def take(self, x: Array) -> Array:
        """Return the rows."""
        for axis, rows in self.axes:
            x = jnp.take(x, rows, axis=axis)
        return x

    def put(self, x: Array, new: Array) -> Array:
        """Return the parameter with these rows in it, written in place where XLA can."""
        if not self.axes:
            return new
        held = dict(self.axes)
        if len(held) == 1:
            ((axis, rows),) = held.items()
            return x.at[(slice(None),) * axis + (rows,)].set(new)
        grid = [held.get(a, jnp.arange(x.shape[a])) for a in range(max(held) + 1)]
        return x.at[jnp.ix_(*grid)].set(new)


def rows_of(guide: AutoGuide, indices: dict[str, Array]) -> AutoGuide:
    """Return a tree of the guide's structure that says of each leaf where its rows lie.

    Args:
        guide: The guide, with all rows.
        indices: Plate to the numbers of the rows that the step holds.

    Raises:
        ValueError: If every parameter is held whole, so that there is nothing to leave out.
    """

    def mark(x: Array, plates: tuple[tuple[str, int], ...]) -> Any:
        held = [(axis, indices[name]) for name, axis in plates if name in indices]
        return Rows(tuple((axis, rows) for axis, rows in held if rows.shape[0] < x.shape[axis]))

    family: Any = guide.family.map_rows(mark)
    marked = eqx.tree_at(lambda guide: guide.family, guide, family)
    marked = jax.tree.map(lambda x: x if isinstance(x, Rows) else Rows(), marked)
    if not any(rows.axes for rows in jax.tree.leaves(marked)):
        raise ValueError(
            "row_sparse=True leaves alone the rows of plates that a step does not hold, but each "
            "step holds every row of every parameter of this guide: use row_sparse=False, or "
            "subsample the plate of the latents."
        )
    return marked


def require_distinct(batch: Batch) -> None:
    """Refuse a batch that names a row twice: two values would be written to one place.

    Raises:
        ValueError: If it does, as far as its row numbers are known here.
    """
    for name, rows in batch.rows.items():
        if not is_traced(rows) and np.unique(rows).size < rows.shape[0]:
            raise ValueError(
                f"at({name}=...) names a row twice, which row_sparse=True cannot take: leave the "
                "second one out, or use row_sparse=False."
            )


def map_moments(f: Callable[..., Any], params: PyTree, opt_state: PyTree, *rest: PyTree) -> PyTree:
    """Apply a function to each moment of an optimizer's state, and leave the remainder.

    Args:
        f: Called with a parameter's leaf of `params` and the moments that belong to it, one of
            `opt_state` and one of each of `rest`.
        params: A tree in the structure of the trained parameters.
        opt_state: The state. What has the structure of the parameters in it counts as moments.
        rest: More states of the same structure.

    Returns:
        The state with new moments. What else there is comes from the last state.
    """
    structure = jax.tree.structure(params)

    def is_moments(node: Any) -> bool:
        return jax.tree.structure(node) == structure

    def map_all(node: Any, *more: Any) -> Any:
        if is_moments(node):
            return jax.tree.map(f, params, node, *more)
        return more[-1] if more else node

    return jax.tree.map(map_all, opt_state, *rest, is_leaf=is_moments)
