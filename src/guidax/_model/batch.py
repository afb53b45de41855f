"""The arguments of one call of a model: traced arrays, static everything else, rows of plates."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import dtypes, random
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from .._numerics import is_traced, strong
from .._types import is_typed_key
from .static import Static

_KEYS = "random keys of "  # before the name of their generator, in the place of a dtype


class Layout(NamedTuple):
    """How the arguments are put together: all of a batch that is static."""

    treedef: Any
    constants: tuple[tuple[int, Static], ...]  # position among the leaves, value


class Shapes(NamedTuple):
    """A hashable description of a batch, from which a blank one can be made."""

    arrays: tuple[tuple[tuple[int, ...], str], ...]
    layout: Layout


class Batch(eqx.Module):
    """The arguments of a model, as one value.

    It may stand wherever a model's `*args, **kwargs` may. Arrays and floats are traced and strongly
    typed; integers, flags, strings, None and functions are static (a new value is a new program),
    as is what `gx.static` marks.

    Args:
        *args: Positional arguments of the model: pytrees.
        **kwargs: Keyword arguments of the model.

    Raises:
        TypeError: If a leaf is neither an array, nor a number, nor hashable, or is an array of a
            dtype or a byte order that JAX does not have.
        ValueError: If integers do not fit the 32 bits that they have in single precision.
    """

    arrays: tuple[Any, ...]
    rows: dict[str, Int[Array, " rows"]]
    layout: Layout = eqx.field(static=True)
    # Plates whose rows may be drawn: see indices.
    admitted: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, *args: Any, **kwargs: Any):
        leaves, treedef = jax.tree.flatten((args, kwargs))
        leaves = [_as_leaf(leaf, i) for i, leaf in enumerate(leaves)]
        self.arrays = tuple(x for x in leaves if not isinstance(x, Static))
        self.rows = {}
        constants = tuple((i, x) for i, x in enumerate(leaves) if isinstance(x, Static))
        self.layout = Layout(treedef, constants)
        self.admitted = ()

    def at(self, **rows: Int[ArrayLike, " _rows"]) -> Batch:
        """Say which rows of a plate the arguments hold: `batch.at(data=indices)`.

        Parameters, noise and data then belong to the same rows, and the plate holds as many rows
        as there are indices in every run of the model.

        Args:
            **rows: For each plate, by its name, a vector of row numbers from 0 to its size - 1.

        Returns:
            A new batch.

        Raises:
            ValueError: If the row numbers are not a vector of integers.
        """
        found = {name: _row_numbers(name, value) for name, value in rows.items()}
        return self._replaced(rows=self.rows | found)

    def without_rows(self) -> Batch:
        """Return the arguments alone."""
        return self._replaced(rows={}, admitted=())

    def with_arrays(self, arrays: tuple[Any, ...]) -> Batch:
        """Return the batch with other values of its traced leaves."""
        return self._replaced(arrays=arrays)

    def admit(self, plates: Iterable[str]) -> Batch:
        """Return the batch, marked with the plates whose rows may be drawn at random."""
        return self._replaced(admitted=tuple(sorted(set(plates))))

    @property
    def shapes(self) -> Shapes:
        """What is static about the arguments."""
        arrays = tuple((tuple(x.shape), _dtype_of(x)) for x in self.arrays)
        return Shapes(arrays, self.layout)

    @property
    def is_empty(self) -> bool:
        """Whether there are no arguments at all."""
        return not self.arrays and not self.layout.constants

    def unpack(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and the keyword arguments."""
        return self._rebuilt(jnp.asarray, lambda constant: constant.value)

    def bound_to(self, signature: inspect.Signature, name: str) -> Batch:
        """Return the same arguments in the one order that the signature gives them.

        A static default that is written out is left out: with or without, it is one program.

        Raises:
            TypeError: If the arguments do not fit the signature.
        """
        args, kwargs = self._rebuilt(lambda array: array, lambda constant: constant)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(
                f"the arguments do not fit the model {name}{signature}: {error}. Pass them as the "
                "model itself would be called."
            ) from None
        for name in _defaults_in(bound):
            del bound.arguments[name]
        ordered = Batch(*bound.args, **bound.kwargs)
        return ordered._replaced(rows=self.rows, admitted=self.admitted)

    def prepended(self, value: Any) -> Batch:
        """Return the arguments with one more in front, as `gx.program(fn, given=True)` gets."""
        args, kwargs = self._rebuilt(lambda array: array, lambda constant: constant)
        batch = Batch(value, *args, **kwargs)
        return batch._replaced(rows=self.rows, admitted=self.admitted)

    def _rebuilt(self, of_array: Callable[[Any], Any], of_constant: Callable[[Static], Any]) -> Any:
        treedef, constants = self.layout
        fixed = {i: of_constant(x) for i, x in constants}
        arrays = map(of_array, self.arrays)
        leaves = [fixed[i] if i in fixed else next(arrays) for i in range(treedef.num_leaves)]
        return jax.tree.unflatten(treedef, leaves)

    def _replaced(self, **fields: Any) -> Batch:
        batch = object.__new__(Batch)
        for name in ("arrays", "rows", "layout", "admitted"):
            object.__setattr__(batch, name, fields.get(name, getattr(self, name)))
        return batch


def blank_batch(shapes: Shapes) -> Batch:
    """Return zeros in the shapes of `Batch.shapes`."""
    arrays = tuple(_blank(shape, dtype) for shape, dtype in shapes.arrays)
    batch = object.__new__(Batch)
    fields = {"arrays": arrays, "rows": {}, "layout": shapes.layout, "admitted": ()}
    for name, value in fields.items():
        object.__setattr__(batch, name, value)
    return batch


def _blank(shape: tuple[int, ...], dtype: str) -> Any:
    if dtype.startswith(_KEYS):
        return jnp.broadcast_to(random.key(0, impl=dtype.removeprefix(_KEYS)), shape)
    return np.zeros(shape, dtype)  # by NumPy: nothing compiles


def as_batch(
    model: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: frozenset[str] = frozenset(),
    *,
    may_omit: bool = False,
) -> Batch:
    """Return what stands in the place of a model's arguments, bound to the model's signature.

    Args:
        model: An `AbstractModel`.
        args: Positional arguments of the call: the model's, or one batch.
        kwargs: Keyword arguments of the call that are none of its options.
        options: Names of the keyword options of the call.
        may_omit: Whether the arguments may be left out altogether.

    Returns:
        The batch; an empty one if the arguments are left out.

    Raises:
        TypeError: If a batch stands beside other arguments, if the arguments do not fit the model,
            or if the model has a parameter that is also an option of the call.
    """
    batch = next((x for x in (*args, *kwargs.values()) if isinstance(x, Batch)), None)
    signature = model.signature()
    if batch is None:
        names = frozenset() if signature is None else _named(signature)
        if clash := sorted(names & options):
            raise TypeError(
                f"the model has parameters {clash}, which are also options of this call: pass the "
                "model's arguments as one gx.Batch(...)."
            )
        batch = Batch(*args, **kwargs)
    elif len(args) != 1 or kwargs:
        beside = [name for name, x in kwargs.items() if not isinstance(x, Batch)]
        if not args and not beside:
            raise TypeError(
                f"a gx.Batch goes by position, not as {next(iter(kwargs))}=: it stands in the "
                "place of all arguments of the model."
            )
        raise TypeError(
            "a gx.Batch holds all arguments of the model, so nothing may stand beside it; got "
            f"{len(args)} positional arguments and the keywords {beside}. Put them all into the "
            "batch."
        )
    if signature is None or (may_omit and batch.is_empty):
        return batch
    return batch.bound_to(signature, model.name)


def options_of(function: Callable[..., Any]) -> frozenset[str]:
    """Return the keyword-only parameters of a function."""
    parameters = inspect.signature(function).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def _named(signature: inspect.Signature) -> frozenset[str]:
    unnamed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return frozenset(p.name for p in signature.parameters.values() if p.kind not in unnamed)


def _defaults_in(bound: inspect.BoundArguments) -> list[str]:
    """Return the arguments that are their own static defaults and may be left out.

    Those after them go by keyword then, which *args and arguments by position alone cannot.
    """
    parameters = bound.signature.parameters.values()
    if any(p.kind in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY) for p in parameters):
        return []
    found = []
    for p in parameters:
        given = bound.arguments.get(p.name, p.empty)
        is_constant = isinstance(given, Static) and isinstance(p.default, (bool, int, str))
        if (given is None and p.default is None) or (is_constant and given == Static(p.default)):
            found.append(p.name)
    return found


def _as_leaf(leaf: Any, position: int) -> Any:
    """Return a strongly typed array, or a constant."""
    what = f"leaf {position} of the model's arguments"
    if isinstance(leaf, jax.Array):
        return strong(leaf) if getattr(leaf, "weak_type", False) else leaf
    if isinstance(leaf, np.ndarray) and _is_numeric(leaf.dtype):
        return _checked(leaf, what)
    if isinstance(leaf, (float, complex)):
        return np.asarray(leaf, dtypes.canonicalize_dtype(type(leaf).__mro__[-2]))
    if isinstance(leaf, np.inexact):
        return _checked(np.asarray(leaf), what)
    try:
        return leaf if isinstance(leaf, Static) else Static(leaf)
    except TypeError as error:
        raise TypeError(f"{what}: {error}") from None


def _checked(array: np.ndarray, what: str) -> np.ndarray:
    """Return a numeric array as it is, if JAX takes it and leaves its integers what they are."""
    dtype = array.dtype
    if not dtype.isnative:
        raise TypeError(
            f"{what} is an array of {dtype.str}, which is not in this machine's byte order: pass "
            'x.astype(x.dtype.newbyteorder("=")).'
        )
    if dtype in (np.longdouble, np.clongdouble) and dtype not in (np.float64, np.complex128):
        raise TypeError(
            f"{what} is an array of {dtype}, which JAX does not have: pass "
            f"x.astype({'float' if dtype.kind == 'f' else 'complex'})."
        )
    narrow = dtypes.canonicalize_dtype(dtype)
    if dtype.kind in "iu" and narrow != dtype and array.size:
        bounds = np.iinfo(narrow)
        outside = [x for x in (array.min(), array.max()) if not bounds.min <= x <= bounds.max]
        if outside:
            raise ValueError(
                f"{what} is an array of {dtype} that holds {outside[-1]}, which is outside of the "
                f"{narrow} that single precision makes of it: pass x.astype(float), or enable "
                'double precision, jax.config.update("jax_enable_x64", True).'
            )
    return array


def _is_numeric(dtype: np.dtype) -> bool:
    # Not by NumPy's kinds: JAX's bfloat16 has that of a structure.
    return jnp.issubdtype(dtype, jnp.number) or dtype.kind == "b"


def _dtype_of(array: Any) -> str:
    """Return the dtype that a run sees: JAX narrows NumPy's float64 in single precision."""
    if is_typed_key(array):
        return f"{_KEYS}{random.key_impl(array)}"
    if isinstance(array, np.ndarray):
        return str(dtypes.canonicalize_dtype(array.dtype))
    return str(array.dtype)


def _row_numbers(name: str, value: Any) -> Array:
    if not is_traced(value):
        value = np.asarray(value)
    if value.ndim != 1 or not jnp.issubdtype(value.dtype, jnp.integer):
        raise ValueError(
            f"at({name}=...) takes a vector of integer row numbers; got {value.dtype} of shape "
            f"{tuple(value.shape)}."
        )
    if isinstance(value, np.ndarray):
        value = _checked(value, f"at({name}=...)")
    return jnp.asarray(value)
