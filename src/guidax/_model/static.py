"""Values that live in a treedef: hashable, compared by type and content."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Hashable
from typing import Any

import jax
import numpy as np
from jax import core

from .._types import is_typed_key
from .constraint_types import Constraint


class Static:
    """A pytree of constants compared by content: an equal one made later is the same program.

    Arrays count by dtype, shape and content, `functools.partial`s by function and arguments,
    everything else by type and `==`.

    Args:
        value: The constants.

    Raises:
        TypeError: If a leaf is traced, or is neither an array nor hashable.
    """

    __slots__ = ("_hash", "_key", "value")

    def __init__(self, value: Any):
        self.value: Any = value
        self._key = _tree_key(value)
        self._hash = hash(self._key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Static) and self._hash == other._hash and self._key == other._key

    def __reduce__(self) -> tuple[Any, ...]:
        # Hashes differ from process to process, so they are made again. JAX's own functions, such
        # as `jax.nn.elu`, do not pickle, but are found by name.
        module, name = (str(getattr(self.value, x, "")) for x in ("__module__", "__qualname__"))
        if callable(self.value) and getattr(sys.modules.get(module), name, None) is self.value:
            return _by_name, (module, name)
        return Static, (self.value,)

    def __repr__(self) -> str:
        return f"static({self.value!r})"


def _by_name(module: str, name: str) -> Static:
    """Return a function of a module, marked."""
    return Static(getattr(importlib.import_module(module), name))


def static(value: Any) -> Static:
    """Mark an argument of a model whose value the model needs in Python.

    Arrays and floats are traced by default: their values are unknown while the model is compiled.
    A marked one is a constant instead, and a new value is a new program. It serves sizes and
    branches that depend on values: a model that calls `np.unique(code)` is fitted by
    `gx.fit(key, guide, x, gx.static(code), steps=1_000)`.

    Args:
        value: An array, a float or another constant. The model receives arrays as NumPy arrays.

    Returns:
        The marked argument, to be passed where the argument stands: `fit(key, guide, X,
        gx.static(code), …)`.

    Raises:
        TypeError: If the value is traced, or is neither an array nor hashable.
    """
    if isinstance(value, jax.Array) and not isinstance(value, core.Tracer):
        value = np.asarray(value)
    return Static(value)


def _tree_key(tree: Any) -> tuple[Hashable, ...]:
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, *map(_leaf_key, leaves)


def _leaf_key(leaf: Any) -> Hashable:
    if isinstance(leaf, core.Tracer):
        raise TypeError(
            f"a constant of a model is traced ({leaf.aval.str_short()}), so it cannot be compared: "
            "pass it as an argument of the model, or build the model outside jit, grad and vmap."
        )
    if is_typed_key(leaf):
        return str(leaf.dtype), _leaf_key(jax.random.key_data(leaf))
    if isinstance(leaf, (np.ndarray, jax.Array)):
        array = np.asarray(leaf)
        content = tuple(array.ravel().tolist()) if array.dtype.hasobject else array.tobytes()
        return "array", array.shape, str(array.dtype), content
    if isinstance(leaf, functools.partial):
        return "partial", _leaf_key(leaf.func), _tree_key((leaf.args, leaf.keywords))
    if isinstance(leaf, Static):
        return leaf
    if isinstance(leaf, Constraint):  # its bounds may be arrays
        return type(leaf), *map(_leaf_key, leaf._parameters())
    try:
        hash(leaf)
    except (TypeError, ValueError):  # the latter of a memoryview
        raise TypeError(
            f"{leaf!r:.100} is a {type(leaf).__name__}, which is neither an array nor hashable: "
            "convert it to an array, a tuple or a number, or register a class of your own that "
            "holds arrays as a pytree (jax.tree_util.register_dataclass)."
        ) from None
    return type(leaf), leaf
