"""Small numerical helpers without state."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import core, lax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import get_opaque_trace_state
from jax.sharding import AxisType, NamedSharding, PartitionSpec, reshard
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PyTree

from ._types import is_typed_key

Function = TypeVar("Function", bound=Callable[..., Any])

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def inverse_softplus_of(x: float) -> float:
    """Return the number whose softplus is `x`, a Python number: on the host it compiles nothing."""
    return x + math.log(-math.expm1(-x))


def filled_like(tree: PyTree, value: float) -> PyTree[Array]:
    """Return the same tree of arrays filled with one number, built by NumPy: nothing compiles."""
    return jax.tree.map(lambda x: from_host(np.full(x.shape, value, x.dtype)), tree)


def from_host(x: np.ndarray | np.generic) -> Array:
    """Return NumPy's array as JAX's: `jnp.asarray` would compile a program for each shape."""
    return jax.device_put(x)


def at_least_single(x: Array) -> Array:
    """Return an array in single precision at least: LAPACK has no half precision."""
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


def everywhere(tree: PyTree[Array], data: PyTree) -> PyTree[Array]:
    """Return arrays on all devices of the mesh with explicit axes that the data lie on, if any.

    There JAX differentiates only what lies on the mesh. What does already is left where it is.
    """
    meshes = [jax.typeof(x).sharding.mesh for x in jax.tree.leaves(data)]
    explicit = [mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types]
    if not explicit:
        return tree
    spread = NamedSharding(explicit[0], PartitionSpec())

    def place(x: Array) -> Array:
        return reshard(x, spread) if jax.typeof(x).sharding.mesh.empty else x

    return jax.tree.map(place, tree)


def log_normal(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return the standard normal log density of each entry."""
    return -0.5 * x**2 - HALF_LOG_2PI


def sum_trailing(x: ArrayLike, ndim: int) -> Array:
    """Sum every axis after the first `ndim`."""
    return jnp.sum(x, axis=tuple(range(ndim, jnp.ndim(x))))


def strong(x: ArrayLike) -> Array:
    """Return a strongly typed array. A weakly typed leaf would make a second call trace again."""
    x = jnp.asarray(x)
    return as_dtype(x, x.dtype)


def as_dtype(x: Array, dtype: Any) -> Array:
    """Return an array of a dtype; random keys, which an optimizer's state may hold, as they are."""
    return x if is_typed_key(x) else x.astype(dtype)


def as_array(what: str, value: Any) -> Array:
    """Return JAX's array of a value.

    Raises:
        TypeError: If there is none, as of a string, naming `what`.
    """
    try:
        return jnp.asarray(value)
    except jax.errors.JAXTypeError:
        raise  # of tracers, which the value is not to blame for
    except (TypeError, ValueError):
        raise TypeError(
            f"{what} is an array or a number; got {type(value).__name__}: {value!r:.100}."
        ) from None


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Say whether every entry of every leaf is finite."""
    flags = (jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree))
    return functools.reduce(jnp.logical_and, flags, jnp.array(True))


def held(tree: PyTree) -> PyTree:
    """Return a tree of floating arrays, constants to the innermost differentiation and to no other.

    `lax.stop_gradient` hides them from outer ones too, so that a gradient that was taken with them
    held would have wrong derivatives. All leaves are held together: if one of them is perturbed,
    outer differentiations see them all.
    """
    leaves, treedef = jax.tree.flatten(tree)
    return jax.tree.unflatten(treedef, _held(*leaves))


@jax.custom_jvp
def _held(*leaves: Array) -> list[Array]:
    return list(leaves)


def _held_jvp(primals: Any, tangents: Any) -> tuple[list[Array], list[Any]]:
    del tangents
    zeros = [SymbolicZero(jax.typeof(x).to_tangent_aval()) for x in primals]  # cost nothing
    return list(primals), zeros


_held.defjvp(_held_jvp, symbolic_zeros=True)


def is_traced(tree: Any) -> bool:
    """Say whether any leaf is a tracer, so that its value is not known in Python."""
    return any(isinstance(x, core.Tracer) for x in jax.tree.leaves(tree))


def is_inside() -> bool:
    """Say whether a transformation is at work here, whether or not it traces a value at hand.

    A function may close over tracers, which nothing shows: an optimizer over its learning rate.
    """
    return get_opaque_trace_state(convention="guidax") != _outside()


@functools.cache
def _outside() -> Any:
    """Return the state of no transformation: that of a new thread, whatever is at work here."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(get_opaque_trace_state, convention="guidax").result()


def map_at_a_time(
    function: Callable[[Any], Any], xs: PyTree, size: int, batch_size: int | None
) -> PyTree:
    """Map over the first axis, of `size` entries, `batch_size` of them at a time; None for all."""
    if batch_size is None or batch_size >= size:
        return jax.vmap(function)(xs)
    outputs: list[tuple[Any, list[jax.ShapeDtypeStruct]]] = []

    def filled(x: Any) -> list[Array]:
        leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, function(x)))
        outputs.append((treedef, [jax.ShapeDtypeStruct(y.shape, y.dtype) for y in leaves]))
        return [y for y in leaves if y.size]

    # lax.map divides by the size of what it puts together, so what is empty stays outside.
    found = iter(lax.map(filled, xs, batch_size=batch_size))
    treedef, shapes = outputs[0]
    leaves = [next(found) if s.size else jnp.zeros((size, *s.shape), s.dtype) for s in shapes]
    return jax.tree.unflatten(treedef, leaves)


def jit_once(function: Function, **options: Any) -> Function:
    """Jit a function that is called a few times, so that compiling it is what it costs.

    XLA's back end hardly optimises it. Such an option is an error inside a transformation: there it
    is jitted without.

    Args:
        function: The function.
        **options: As of `jax.jit`.
    """
    compiled = jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)
    inside = jax.jit(function, **options)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (inside if is_inside() else compiled)(*args, **kwargs)

    return call  # type: ignore[return-value]
