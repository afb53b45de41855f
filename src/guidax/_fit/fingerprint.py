"""What a pytree or a run is, as JSON: to say what differs between a file and a program."""

from __future__ import annotations

import dataclasses
import dis
import functools
import math
import types
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._guide.guide import AutoGuide
from .._model.model import AbstractModel
from .._model.static import Static
from .._objective.base import AbstractObjective
from .._types import is_typed_key
from .recipe import Recipe

_CHUNK = 1 << 20  # entries at a time, so that a sketch needs little memory
_BLOCKS = 1024  # of a sketch, so that one entry of many millions counts in its own
_TOLERANCE = 1e-5  # of sketches, in units of the root mean square
_NUMBERS = (bool, int, str, type(None))


def fingerprint(x: Any) -> Any:
    """Return what is static about a pytree, and the dtype and shape of each array in it, as JSON.

    Static arrays count by content. A model counts by its type and its parameters alone, and a
    function not at all: they come from the program. The functions in the options of a fit
    (optimizer, schedule, objective) count by name, by what they close over and by the numbers
    written in them and in functions inside of them, as far as Python shows that. Another version of
    Python may fold constants in another way, and so take the same function for another one.
    """
    return _fingerprint(x, constant=False, functions=False, above=())


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Yield one phrase for each place where two descriptions differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old | new:
            inner = f"{path}.{name}" if path else str(name)
            if name not in new:
                yield f"{inner} is in the file alone"
            elif name not in old:
                yield f"{inner} is not in the file"
            else:
                yield from differences(old[name], new[name], path if name == "is" else inner)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from differences(a, b, f"{path}[{i}]")
    elif type(old) is not type(new) or old != new:
        yield f"{path or 'it'} is {_short(old)} in the file and {_short(new)} here"


def sketch(x: Any) -> dict[str, Any]:
    """Return dtype and shape of an array, and numbers that hardly any other one has.

    Of integers and flags that is a checksum. Of floats, which another device may round in another
    way, it is the number of finite entries, and of those the root mean square and the means of up
    to 1,024 blocks, with weights that differ from entry to entry; and how far the means may be off,
    in units of the root mean square. An array that this process cannot see whole has dtype and
    shape alone.
    """
    if is_typed_key(x):
        x = jax.random.key_data(x)
    found: dict[str, Any] = {"array": _kind(x)}
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return found
    flat = np.asarray(x).ravel()  # contiguous, where reshape(-1) may not be
    if not jnp.issubdtype(flat.dtype, jnp.inexact):
        return found | {"checksum": f"{zlib.crc32(flat.view(np.uint8).data):08x}"}
    if flat.dtype.kind == "c":
        flat = flat.view(np.finfo(flat.dtype).dtype)
    size = max(flat.size, 1)
    blocks = min(flat.size, _BLOCKS)
    cuts = np.arange(blocks + 1) * flat.size // max(blocks, 1)
    together = max(_CHUNK * blocks // size, 1)
    count, squares, sums = 0, 0.0, np.zeros(0)
    for first in range(0, blocks, together):
        last = min(first + together, blocks)
        starts, end = cuts[first:last], cuts[last]
        y = flat[starts[0] : end].astype(np.float64)
        finite = np.isfinite(y)
        y = np.where(finite, y, 0.0)
        weights = 1.0 + 0.5 * np.cos(np.arange(starts[0], end, dtype=np.float64))
        count, squares = count + int(finite.sum()), squares + y @ y
        sums = np.append(sums, np.add.reduceat(weights * y, starts - starts[0]))
    # Of the mean of a block: four standard errors, if every entry is off by its last place.
    rounding = 4 * float(jnp.finfo(flat.dtype).eps) * math.sqrt(blocks / size)
    return found | {
        "finite": count,
        "root mean square": math.sqrt(squares / size),
        "means": (sums / np.diff(cuts)).tolist(),
        "tolerance": max(_TOLERANCE, rounding),
    }


def alike(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Say whether two sketches are equal, but for rounding in the arrays."""
    if any(old.get(name) != new.get(name) for name in ("array", "checksum", "finite")):
        return False
    if "means" not in new:
        return True
    a, b = (np.hstack([x["root mean square"], x["means"]]) for x in (old, new))
    tolerance = new["tolerance"]
    return a.shape == b.shape and np.allclose(a, b, rtol=tolerance, atol=tolerance * b[0])


def _fingerprint(x: Any, *, constant: bool, functions: bool, above: tuple[int, ...]) -> Any:
    """Return what is static about a part of a pytree, as JSON.

    Args:
        x: The part.
        constant: Whether it is in a static place, where arrays count by content.
        functions: Whether it is in the options of a fit, where functions count.
        above: The `id`s of what it is in: what holds itself is "itself" there.
    """
    if isinstance(x, _NUMBERS):
        return x
    if isinstance(x, float):
        return x if math.isfinite(x) else repr(x)
    if id(x) in above:  # a function may close over itself
        return "itself"
    functions = functions or isinstance(x, (Recipe, AbstractObjective))
    functions = functions and not isinstance(x, (AutoGuide, AbstractModel))
    go = functools.partial(
        _fingerprint, constant=constant, functions=functions, above=(*above, id(x))
    )
    if isinstance(x, Static):
        return go(x.value, constant=True)
    if isinstance(x, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)):
        return _content(x) if constant else _kind(x)
    if isinstance(x, AbstractModel):
        leaves = jax.tree_util.tree_leaves_with_path(x)
        return {"is": type(x).__name__} | {jax.tree_util.keystr(p): go(leaf) for p, leaf in leaves}
    if isinstance(x, functools.partial):
        return {"partial": go(x.func), "args": go(x.args), "keywords": go(x.keywords)}
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return {"is": type(x).__name__} | _fields(x, go)
    if isinstance(x, Mapping):
        return {str(name): go(value) for name, value in x.items()}
    if isinstance(x, (set, frozenset)):
        return sorted(map(str, x))
    if isinstance(x, tuple) and (names := getattr(x, "_fields", ())):
        return {"is": type(x).__name__} | {name: go(getattr(x, name)) for name in names}
    if isinstance(x, (list, tuple)):
        names = [getattr(each, "name", None) for each in x]
        if names and all(isinstance(n, str) for n in names) and len({*names}) == len(names):
            return dict(zip(names, map(go, x), strict=True))  # sites and plates, by their names
        return [*map(go, x)]
    if callable(x):
        return _function(x, go) if functions else "a function"
    text = repr(x)
    return type(x).__name__ if " at 0x" in text else text


def _fields(x: Any, go: Any) -> dict[str, Any]:
    """Describe the fields of a module or a dataclass that take part in comparisons."""
    found = {}
    for field in dataclasses.fields(x):
        if field.compare and hasattr(x, field.name):
            value = getattr(x, field.name)
            is_static = isinstance(x, eqx.Module) and field.metadata.get("static", False)
            found[field.name] = go(value, constant=True) if is_static else go(value)
    return found


def _function(x: Any, go: Any) -> Any:
    if isinstance(x, types.MethodType):
        return {"method": x.__name__, "of": go(x.__self__)}
    name = getattr(x, "__qualname__", type(x).__qualname__)
    code = getattr(x, "__code__", None)
    if code is None:
        return name
    go = functools.partial(go, constant=True)
    found = {}
    if numbers := [*_numbers(code)]:
        found["numbers"] = go(numbers)
    if defaults := (*(x.__defaults__ or ()), *(x.__kwdefaults__ or {}).values()):
        found["defaults"] = go(defaults)
    for variable, cell in zip(code.co_freevars, x.__closure__ or (), strict=True):
        try:
            found[variable] = go(cell.cell_contents)
        except ValueError:  # a variable that is not set
            found[variable] = None
    return {"function": name} | found if found else name


def _numbers(code: types.CodeType) -> Iterator[int | float]:
    """Yield the numbers that a function loads, and functions inside of it, in their order."""
    for step in dis.get_instructions(code):
        # Python 3.14 keeps small integers in the instruction, so co_consts does not hold them.
        if step.opcode in dis.hasconst or step.opname == "LOAD_SMALL_INT":
            yield from _numbers_of(step.argval)


def _numbers_of(constant: Any) -> Iterator[int | float]:
    if isinstance(constant, types.CodeType):
        yield from _numbers(constant)
    elif isinstance(constant, tuple):
        for each in constant:
            yield from _numbers_of(each)
    elif isinstance(constant, (int, float)) and not isinstance(constant, bool):
        yield constant


def _content(x: Any) -> Any:
    if isinstance(x, jax.ShapeDtypeStruct):
        return _kind(x)
    array = np.asarray(jax.random.key_data(x) if is_typed_key(x) else x)
    if not array.ndim and array.dtype.kind in "bif":
        return _fingerprint(array.item(), constant=True, functions=False, above=())
    content = repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
    return f"{_kind(x)} {zlib.crc32(content):08x}"


def _kind(x: Any) -> str:
    return f"{x.dtype}[{','.join(map(str, x.shape))}]"


def _short(x: Any) -> str:
    text = repr(x)
    return text if len(text) <= 80 else text[:77] + "..."
