"""Types that many files use, and how to tell their values."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

Key = PRNGKeyArray


def is_integer(x: Any) -> bool:
    """Say whether something is an integer whose value is known; a truth value is none."""
    try:
        operator.index(x)
    except TypeError:  # a tracer among others
        return False
    return not isinstance(x, bool)


def is_number(x: Any) -> bool:
    """Say whether something is a real number, Python's or NumPy's; a truth value is none."""
    return isinstance(x, numbers.Real) and not isinstance(x, bool)


def is_count(x: Any) -> bool:
    """Say whether something is a positive integer, as of `is_integer`."""
    return is_integer(x) and x >= 1


def is_positive_number(x: Any) -> bool:
    """Say whether something is a positive and finite number, as of `is_number`."""
    return is_number(x) and 0 < x < float("inf")


def is_typed_key(x: Any) -> bool:
    """Say whether something is an array of typed random keys."""
    try:
        return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    except (AttributeError, TypeError):  # no dtype, or one that is not NumPy's, as pandas has
        return False


def is_key(x: Any) -> bool:
    """Say whether something is a random key, or the words of one; an integer seed is not."""
    return is_typed_key(x) or (getattr(x, "dtype", None) == jnp.uint32 and x.ndim > 0)


def require_key(who: str, key: Any, what: str = "a random key first") -> None:
    """Check that a random key has been given, and one only.

    Args:
        who: What takes it.
        key: What has been given.
        what: What is taken, in words.

    Raises:
        TypeError: If it is no key, or an array of several.
    """
    if not is_key(key):
        is_array = hasattr(key, "dtype") and hasattr(key, "shape")
        got = f"an array of {key.dtype} of shape {key.shape}" if is_array else repr(key)
        raise TypeError(f"{who} takes {what}, such as jax.random.key(0); got {got}.")
    if shape := key.shape if is_typed_key(key) else key.shape[:-1]:
        raise TypeError(
            f"{who} takes one random key; got an array of keys of shape {shape}. Pass one of them, "
            "or map over them with jax.vmap."
        )


def positive(name: str, number: Any) -> int:
    """Return a number of things, such as draws.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is less than 1.
    """
    if not is_integer(number):
        raise TypeError(f"{name} is a Python integer; got {number!r}.")
    if number < 1:
        raise ValueError(f"{name} is at least 1; got {number}.")
    return int(number)


def positive_or_none(name: str, number: Any) -> int | None:
    """Return a number of things, or None; errors as of `positive`."""
    return None if number is None else positive(name, number)


def names_of(option: str, names: Any) -> tuple[str, ...]:
    """Return a list of names, such as those of sites.

    Raises:
        TypeError: If it is no list, or a string, which is a list of letters.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(f"{option} takes a list of names; got {names!r}.")
    return tuple(names)
