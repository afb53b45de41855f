"""Pytrees of arrays in files: nothing is pickled, and no damaged file is taken for a whole one.

A file is a line that names the format, a line of JSON that says what is in it, the leaves in
NumPy's format, one after the other (`equinox.tree_serialise_leaves`), and a SHA-256 checksum of all
that, of 32 bytes. Equinox's serialisation and not orbax: orbax writes a folder of many files,
without one checksum or one move that replaces it, and would be one more dependency; static parts
come from the program with either.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from .._numerics import from_host, is_traced
from .._types import is_typed_key
from .._version import __version__
from .fingerprint import differences

FORMAT = 1
PART = ".part"  # how names of files end that are being written
_FIRST = b"guidax file, format "
_CHECKSUM = hashlib.sha256().digest_size
_MOST = 8  # differences that an error names

T = TypeVar("T")


class Damaged(ValueError):
    """A file is not as it was written."""


class Stored(NamedTuple):
    """What a file holds: what it says of itself, and its leaves."""

    path: Path
    header: dict[str, Any]
    leaves: bytes


def require_equal(stored: Stored, expected: dict[str, Any], hint: str) -> None:
    """Refuse a file whose header says other things than these.

    Raises:
        ValueError: Naming what differs.
    """
    pairs = ((stored.header.get(name), value) for name, value in expected.items())
    refuse(stored, itertools.chain.from_iterable(differences(*pair) for pair in pairs), hint)


def refuse(stored: Stored, reasons: Iterable[str], hint: str) -> None:
    """Raise what differs, if anything does.

    Raises:
        ValueError: If there is a reason.
    """
    named = list(itertools.islice(reasons, _MOST + 1))
    if named:
        more = ["and more"] if len(named) > _MOST else []
        raise ValueError(
            f"{stored.path} (of guidax {stored.header.get('guidax')}) does not fit: "
            f"{'; '.join(named[:_MOST] + more)}. Try: {hint}."
        )


def write(path: Path, header: dict[str, Any], tree: PyTree) -> None:
    """Write a file in one move: whatever happens, `path` is the old file or the new one, whole.

    The new one has the mode of the old one, or that which the umask leaves.

    Of several processes the first alone writes, and all must call this.

    Raises:
        TypeError: If a leaf is not an array of numbers or keys.
        ValueError: If a leaf is traced.
        FileNotFoundError: If there is no such folder.
    """
    if is_traced(tree):
        raise ValueError("files are written by the host, which jit, grad and vmap cannot do.")
    tree = jax.tree_util.tree_map_with_path(_on_host, tree)
    if jax.process_index():
        return
    header = {"guidax": __version__, "jax": jax.__version__} | header
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} for {path.name}: make it first.")
    # Not tempfile's: what it makes is its owner's alone, whatever the umask.
    part = path.parent / f".{path.name}.{secrets.token_hex(4)}{PART}"
    part.touch(exist_ok=False)
    try:
        with open(part, "wb") as file:
            if path.exists():
                shutil.copymode(path, part)
            hashing = _Hashing(file)
            hashing.write(_FIRST + str(FORMAT).encode() + b"\n")
            hashing.write(json.dumps(header, allow_nan=False).encode() + b"\n")
            eqx.tree_serialise_leaves(hashing, tree, filter_spec=_write_leaf)
            file.write(hashing.digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def read(path: Path) -> Stored:
    """Read a file, and check that it is whole.

    Raises:
        Damaged: If it is not as it was written, or no file of guidax.
        ValueError: If it is of another format.
    """
    data = path.read_bytes()
    whole, checksum = data[:-_CHECKSUM], data[-_CHECKSUM:]
    if not whole.startswith(_FIRST) or hashlib.sha256(whole).digest() != checksum:
        raise Damaged(
            f"{path} is damaged, or not a file of guidax: its {len(data)} bytes do not have the "
            "checksum that the last 32 of them should be."
        )
    first, _, rest = whole.partition(b"\n")
    number = first.removeprefix(_FIRST).decode(errors="replace")
    if number != str(FORMAT):
        raise ValueError(
            f"{path} has format {number}, and this version of guidax reads format {FORMAT}: read "
            "it with the version that wrote it."
        )
    text, _, leaves = rest.partition(b"\n")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is damaged: what it says of itself is no JSON ({error}).") from None
    if not isinstance(header, dict):
        raise Damaged(f"{path} is damaged: it says nothing of itself.")
    return Stored(path, header, leaves)


def unpack(stored: Stored, like: T) -> T:
    """Return `like` with the arrays of a file, placed as those of `like` are.

    Raises:
        Damaged: If the leaves are not what the file says they are.
    """
    file = io.BytesIO(stored.leaves)
    try:
        tree = eqx.tree_deserialise_leaves(file, like, filter_spec=_read_leaf)
    except RuntimeError as error:  # Equinox's; the first of its causes is ours or NumPy's
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise Damaged(f"{stored.path} is damaged: {error}: {cause}") from None
    if file.read(1):
        raise Damaged(f"{stored.path} is damaged: it holds more than it says.")
    return tree


class _Hashing:
    """Writes to a file, and knows the checksum of what it has written."""

    def __init__(self, file: Any):
        self._file, self._hash = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        return self._file.write(data)

    def digest(self) -> bytes:
        return self._hash.digest()


def _on_host(path: Any, x: Any) -> np.ndarray:
    """Return a leaf as an array of a dtype that NumPy's format knows."""
    if is_typed_key(x):
        x = jax.random.key_data(x)
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        x = multihost_utils.process_allgather(x, tiled=True)
    if not isinstance(x, (jax.Array, np.ndarray)) or x.dtype.hasobject:
        raise TypeError(
            f"files hold arrays of numbers, and {jax.tree_util.keystr(path) or 'this'} is "
            f"{x!r}: split it off first, as equinox.partition(tree, equinox.is_array) does."
        )
    array = np.asarray(x, order="C")
    return array.view(_raw(array.dtype))


def _write_leaf(file: Any, x: np.ndarray) -> None:
    np.lib.format.write_array(file, x, allow_pickle=False)


def _read_leaf(file: Any, like: Any) -> Any:
    """Read one array: of the dtype and shape of `like`, or an error."""
    spec = jax.eval_shape(jax.random.key_data, like) if is_typed_key(like) else like
    array = np.lib.format.read_array(file, allow_pickle=False)
    if array.shape != spec.shape or array.dtype != _raw(spec.dtype):
        raise ValueError(f"it holds {array.dtype}{list(array.shape)}")
    array = array.view(spec.dtype)
    if isinstance(like, np.ndarray):
        return array
    if not is_typed_key(like):
        return _placed(array, like)
    return jax.random.wrap_key_data(from_host(array), impl=jax.random.key_impl(like))


def _placed(array: np.ndarray, like: Any) -> jax.Array:
    sharding = getattr(like, "sharding", None)
    if sharding is None or not getattr(like, "committed", True):
        return from_host(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _raw(dtype: Any) -> np.dtype:
    """Return the dtype itself, or for those that NumPy's format lacks, integers as wide."""
    dtype = np.dtype(dtype)
    return dtype if dtype.kind in "biufc" else np.dtype(f"u{dtype.itemsize}")


def _sync_folder(folder: Path) -> None:
    """Make the new name last: without this a power cut may bring the old one back."""
    if os.name == "nt":  # it opens no folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
