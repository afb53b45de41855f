"""The door to models of other languages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .model import AbstractModel


def from_numpyro(model: Callable[..., Any]) -> AbstractModel:
    """Make a model of a NumPyro program, as it stands.

    Every primitive, distribution and handler of NumPyro works inside; supports go through NumPyro's
    own `biject_to`. NumPyro is imported at the first call (extra `numpyro`).

    Args:
        model: A callable in NumPyro's language; it may be wrapped in NumPyro's handlers, and may be
            a `functools.partial`, an `eqx.Module` or a bound method of one.

    Returns:
        A model, to be given to any guide.

    Raises:
        ImportError: If NumPyro is not installed.
        TypeError: If the model cannot be called.
    """
    try:
        from .from_numpyro import NumPyroModel
    except ImportError as error:
        raise ImportError(
            "gx.from_numpyro needs NumPyro: pip install 'guidax[numpyro]'."
        ) from error
    return NumPyroModel(model)
