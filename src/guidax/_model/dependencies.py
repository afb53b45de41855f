"""Which inputs of a function each of its outputs reads, from its jaxpr: nothing is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

# Primitives whose inner jaxpr takes the equation's own operands: followed exactly.
_INLINE = ("jit", "pjit", "closed_call", "custom_jvp_call", "remat", "checkpoint")

Reads = frozenset[str]


def dependencies(fn: Callable[[Any], dict[str, Any]], inputs: PyTree) -> dict[str, Reads]:
    """Return, for each name in the dictionary `fn(inputs)`, the input leaves that it reads.

    Loops and branches count as reading all their operands for all their results, so the answer errs
    on the side of a dependency.

    Args:
        fn: A function that returns a dictionary of pytrees.
        inputs: Its argument.

    Returns:
        For each name, the paths of the leaves, as `jax.tree_util.keystr` writes them.
    """
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(inputs)
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(inputs)]
    flows = _flow(closed.jaxpr, [frozenset([p]) for p in paths])
    found: dict[str, Reads] = {name: frozenset() for name in shape}
    outputs = jax.tree_util.tree_leaves_with_path(shape)  # in pytree order, not as written
    for (path, _), reads in zip(outputs, flows, strict=True):
        found[path[0].key] |= reads
    return found


def _flow(jaxpr: Any, incoming: Sequence[Reads]) -> list[Reads]:
    known = dict(zip(jaxpr.invars, incoming, strict=True))

    def read(variable: Any) -> Reads:
        return frozenset() if hasattr(variable, "val") else known.get(variable, frozenset())

    for eqn in jaxpr.eqns:
        args = [read(v) for v in eqn.invars]
        inner = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
        inner = getattr(inner, "jaxpr", inner)
        exact = eqn.primitive.name in _INLINE
        if exact and inner is not None and len(inner.invars) == len(args):
            outs = _flow(inner, args)
        else:
            outs = [frozenset[str]().union(*args)] * len(eqn.outvars)
        known.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]
