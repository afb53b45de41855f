"""A guide, or another pytree, in one file: `save` and `load`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
from jaxtyping import PyTree

from .fingerprint import fingerprint
from .result import FitResult
from .storage import read, require_equal, unpack, write

T = TypeVar("T")


def save(path: str | os.PathLike[str], tree: PyTree) -> None:
    """Write a guide to a file, to be read by `gx.load`.

    The file holds the arrays, and what identifies the rest: sites, shapes, dtypes and options. The
    functions in it, the model among them, are not stored. An older file of that name stays whole
    until the new one is.

    Args:
        path: The file, whose folder exists.
        tree: A guide, the result of a fit, or any other pytree of arrays, such as a guide with the
            optimizer's state of a loop of your own.

    Raises:
        TypeError: If `path` is no name of a file, or a leaf is not an array of numbers or keys.
        ValueError: If a leaf is traced, inside `jax.jit` for example.
        FileNotFoundError: If there is no such folder.
    """
    write(_path("save", path), {"tree": fingerprint(tree)}, tree)


def load(path: str | os.PathLike[str], like: T) -> T:
    """Read what `gx.save` wrote.

    Args:
        path: The file.
        like: A pytree of the same structure, such as a new guide on the same model. Everything
            static comes from it, the model's function among it, and each array is placed as its
            counterpart is. Its arrays may be `jax.ShapeDtypeStruct`s (`jax.eval_shape`). Of the
            result of one fit, `losses` may have another length; of an ensemble's they may not.

    Returns:
        `like`, with the arrays of the file.

    Raises:
        TypeError: If `path` is no name of a file.
        ValueError: If the file is damaged, of another format, or of another structure; the error
            says what differs.
    """
    stored = read(_path("load", path))
    if "line" in stored.header:
        raise ValueError(
            f"{stored.path} is a checkpoint of gx.fit, not a file of gx.save: run the same fit "
            "again, with its checkpoint=, and save the guide of its result."
        )
    if isinstance(like, FitResult):
        # Text of the file is not trusted with more than a number.
        tree = stored.header.get("tree")
        count = _length(tree.get("losses")) if isinstance(tree, dict) else None
        losses = like.losses
        if losses.ndim == 1 and count is not None:
            blank = jax.ShapeDtypeStruct((count,), losses.dtype)
            like = eqx.tree_at(lambda r: r.losses, like, blank)
    require_equal(
        stored, {"tree": fingerprint(like)}, "load it into a guide that is made the same way"
    )
    return unpack(stored, like)


def _path(who: str, path: Any) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{who} takes the name of a file first; got {type(path).__name__}.")
    return Path(path)


def _length(text: Any) -> int | None:
    """Return `n` of "float32[n]"."""
    inside = str(text).partition("[")[2].removesuffix("]")
    return int(inside) if inside.isdecimal() else None
