"""Masks of autoregressive networks, from static integers alone."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np


def hidden_degrees(dim: int, width: int) -> np.ndarray:
    """Return how many inputs each hidden unit sees: 1 to `dim - 1`, evenly spaced.

    Exact halves are rounded to even.
    """
    last = max(dim - 1, 1)
    spaced = [1 + Fraction((last - 1) * k, max(width - 1, 1)) for k in range(width)]
    return np.array([round(x) for x in spaced])


def dense_masks(dim: int, hidden_dims: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Return the masks of a network whose `i`-th output sees the inputs before the `i`-th.

    A unit of degree `d` sees the first `d` inputs, so weights lead only to degrees that are no
    smaller, and to outputs after the `d`-th (Germain et al. 2015, equations 12 and 13). Two outputs
    for each input: first all of one kind, then all of the other.
    """
    degrees = [np.arange(1, dim + 1), *(hidden_degrees(dim, width) for width in hidden_dims)]
    outputs = np.tile(np.arange(1, dim + 1), 2)
    hidden = [later >= earlier[:, None] for earlier, later in itertools.pairwise(degrees)]
    return (*hidden, outputs > degrees[-1][:, None])


def skip_mask(dim: int) -> np.ndarray:
    """Return the mask of direct connections from inputs to the two outputs."""
    inputs = np.arange(dim)
    return np.tile(inputs, 2) > inputs[:, None]


def block_masks(dim: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where a block matrix is diagonal, and where its blocks are above the diagonal."""
    row, column = np.repeat(np.arange(dim), rows), np.repeat(np.arange(dim), columns)
    return row[:, None] == column, row[:, None] < column
