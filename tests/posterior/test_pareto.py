"""Pareto smoothing: ArviZ's numbers, and what ArviZ has no number for."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidax as gx
from assertions import precision


def vectors():
    """Return ten vectors of log weights, with tails of all kinds.

    ArviZ 0.23 and 1.x take tails of one length at these lengths, where `3 sqrt S` is whole.
    """
    rng = np.random.default_rng(0)
    return {
        "narrow, 100": 1e-3 * rng.normal(size=100),
        "wide, 100": 5.0 * rng.normal(size=100),
        "far from zero, 225": rng.normal(size=225) - 5e3,
        "Pareto 0.3, 225": -0.3 * np.log(rng.random(225)),
        "Pareto 0.7, 400": -0.7 * np.log(rng.random(400)),
        "normal, 400": rng.normal(size=400),
        "Pareto 1.3, 2500": -1.3 * np.log(rng.random(2500)),
        "bounded, 2500": np.log(rng.random(2500)),
        "Student, 10000": rng.standard_t(3, size=10_000),
        "half are zero, 10000": np.where(
            rng.random(10_000) < 0.5, -np.inf, rng.normal(size=10_000)
        ),
    }


def arviz_psislw(log_weights):
    """Call ArviZ's, of the versions before and after it was taken apart."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 0.23 announces 1.0 when it is imported
        arviz = pytest.importorskip("arviz")
    if int(arviz.__version__.split(".")[0]) < 1:
        return arviz.psislw(log_weights.copy())
    from arviz_stats.base import array_stats

    return array_stats.psislw(-log_weights)


@pytest.mark.parametrize("name", vectors())
def test_weights_and_khat_are_arvizs(name):
    log_weights = np.asarray(jnp.asarray(vectors()[name], float), np.float64)  # rounded as here
    expected, expected_khat = arviz_psislw(log_weights)
    smoothed, khat = gx.psis(log_weights)
    tolerance = max(1e-6, 1e4 * precision())
    np.testing.assert_allclose(khat, expected_khat, atol=tolerance)
    np.testing.assert_allclose(smoothed, expected, atol=tolerance)


def test_khat_is_the_shape_of_the_weights():
    rng = np.random.default_rng(1)
    shape = np.array([0.3, 0.5, 0.9])
    log_weights = -shape[:, None, None] * np.log(rng.random((3, 50, 1600)))
    smoothed, khat = gx.psis(log_weights)  # leading axes are kept
    assert smoothed.shape == (3, 50, 1600) and khat.shape == (3, 50)
    # The prior draws towards 0.5 with the strength of 10 in 120 weights.
    expected = (120 * shape + 10 * 0.5) / 130
    error = khat.std(axis=1) / np.sqrt(50)
    assert np.all(np.abs(khat.mean(axis=1) - expected) < 4 * error)


def test_members_of_a_batch_do_not_touch():
    rows = np.random.default_rng(2).normal(size=(3, 100))
    rows[1] = np.nan
    smoothed, khat = gx.psis(rows)
    assert np.isnan(khat[1]) and np.isnan(smoothed[1]).all()
    again = jax.jit(jax.vmap(gx.psis))(rows)
    for i in (0, 2):
        one = gx.psis(rows[i])
        np.testing.assert_allclose(smoothed[i], one[0], atol=100 * precision())
        np.testing.assert_allclose(again[0][i], one[0], atol=100 * precision())
        np.testing.assert_allclose(khat[i], one[1], atol=1e4 * precision())


def test_the_order_of_the_draws_is_kept():
    rng = np.random.default_rng(3)
    log_weights, order = 3 * rng.normal(size=100), rng.permutation(100)
    smoothed, khat = gx.psis(log_weights)
    moved, same = gx.psis(log_weights[order])
    np.testing.assert_allclose(moved, smoothed[order], atol=100 * precision())
    np.testing.assert_allclose(khat, same, atol=1e4 * precision())
    assert np.all(np.argsort(smoothed) == np.argsort(log_weights))
    assert np.isclose(jnp.exp(smoothed).sum(), 1.0)
    shifted = gx.psis(log_weights + 7.0)
    np.testing.assert_allclose(shifted[0], smoothed, atol=1e3 * precision())
    # No smoothed weight exceeds the largest raw one, and the body keeps its ratios.
    raw, smooth = np.sort(log_weights), np.sort(smoothed)
    np.testing.assert_allclose(np.diff(smooth[:80]), np.diff(raw[:80]), atol=1e3 * precision())
    assert smooth[-1] - smooth[0] <= raw[-1] - raw[0] + 1e3 * precision()


FLAT = {
    "equal": np.zeros(100),
    "equal and few": np.full(3, -4.0),
    "equal up to rounding": -300.0 * (1 + np.random.default_rng(4).integers(-2, 3, 100) * 0.3e-16),
    "equal or zero": np.where(np.arange(400) < 200, -np.inf, 1.0),
}


@pytest.mark.parametrize("name", FLAT)
def test_a_flat_tail_has_khat_zero(name):
    smoothed, khat = gx.psis(FLAT[name])
    assert khat == 0.0
    present = FLAT[name] > -np.inf
    np.testing.assert_allclose(smoothed[present], -np.log(present.sum()), atol=1e-5)
    assert np.all(smoothed[~present] == -np.inf)


def test_few_draws_have_no_khat_and_stay_as_they_are():
    log_weights = np.random.default_rng(5).normal(size=20)
    smoothed, khat = gx.psis(log_weights)
    assert khat == np.inf
    np.testing.assert_allclose(smoothed, log_weights - np.log(np.exp(log_weights).sum()), rtol=1e-5)
    assert np.isfinite(gx.psis(np.append(log_weights, 0.0))[1])
    smoothed, khat = gx.psis(np.full(1, 2.0))
    assert khat == np.inf and smoothed == 0.0


def test_a_tail_of_equal_weights_above_the_rest_is_fitted():
    # 110 weights stand out, and a grid point of the fit falls on zero.
    log_weights = np.where(np.arange(2000) < 110, 1.0, -np.linspace(0, 1, 2000))
    smoothed, khat = gx.psis(log_weights)
    assert np.isfinite(khat) and khat < 0.5 and np.all(np.isfinite(smoothed))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_weight_gives_nan(bad):
    smoothed, khat = gx.psis(np.append(np.zeros(99), bad))
    assert np.isnan(khat) and np.isnan(smoothed).all()


def test_no_weight_at_all_gives_nan():
    smoothed, khat = gx.psis(np.full(30, -np.inf))
    assert np.isnan(khat) and np.isnan(smoothed).all()


def test_no_draws_are_refused():
    with pytest.raises(ValueError, match="draws on its last axis"):
        gx.psis(np.zeros((3, 0)))


def test_weights_that_rounding_swallows_are_not_called_equal():
    """A scale that runs to zero has densities of which the last bit is worth nats."""
    dtype = jnp.zeros(()).dtype
    size = np.asarray(10 / jnp.finfo(dtype).eps, dtype)
    few = np.full(4000, -np.inf, dtype)
    few[:29] = size + np.spacing(size) * np.arange(29)
    assert float(gx.psis(few)[1]) > 1
    assert float(gx.psis(np.full(4000, size))[1]) == np.inf
    assert float(gx.psis(np.full(4000, size / 1e4))[1]) == 0.0
