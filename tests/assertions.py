"""What tests say of arrays and pytrees."""

from __future__ import annotations

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError


def case_id(x):
    """Name a case without addresses, which differ from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(x))


def distance(a, b):
    """Return the largest difference of two pytrees of one structure, NaN if any is NaN."""
    gaps = [jnp.abs(x - y) for x, y in _pairs(a, b)]
    return float(np.max([0.0, *(np.max(gap) for gap in gaps if gap.size)]))


def identical(a, b):
    """Say whether two pytrees of one structure are equal to the last bit."""
    return all(bool(jnp.array_equal(x, y, equal_nan=True)) for x, y in _pairs(a, b))


def _pairs(a, b):
    """Return the leaves of two pytrees side by side, of one structure and one shape each."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    pairs = [*zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
    for x, y in pairs:
        assert jnp.shape(x) == jnp.shape(y), (jnp.shape(x), jnp.shape(y))
    return pairs


def perturbed(tree, key, scale=0.3):
    """Return the same tree, away from where it was."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    moved = [
        x + scale * jax.random.normal(k, x.shape, x.dtype)
        for x, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(treedef, moved)


def assert_mean_close(draws, expected, sigmas=5.0):
    """Fail only if Monte Carlo error cannot explain the gap."""
    draws = np.asarray(draws)
    error = draws.std(axis=0) / np.sqrt(draws.shape[0])
    gap = np.abs(draws.mean(axis=0) - expected)
    rounding = 100 * precision()  # where nothing varies
    assert np.all(gap <= sigmas * error + rounding), f"gap {gap}, standard error {error}"


@contextlib.contextmanager
def refused_type(message, error=TypeError):
    """Expect an error with that message, or the run-time type checker's own in its place."""
    with pytest.raises((error, TypeCheckError)) as caught:
        yield
    if not isinstance(caught.value, TypeCheckError):
        assert re.search(message, str(caught.value)), str(caught.value)


def precision():
    """Return the rounding error of the default float."""
    return float(jnp.finfo(jnp.result_type(float)).eps)
