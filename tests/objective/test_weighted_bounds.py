"""The importance weighted and the Renyi bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidax as gx
from assertions import refused_type
from models import ConjugateNormal, Hierarchy
from registry import every_distribution

DATA = jnp.asarray(ConjugateNormal.y, float)
EVIDENCE = ConjugateNormal.log_evidence()


def values(objective, guide, key, n=4000):
    return -np.asarray(jax.vmap(lambda k: objective(guide, k, DATA))(jax.random.split(key, n)))


@every_distribution
def test_bounds_are_ordered_below_the_evidence(entry, key):
    start = gx.init_to_value({"z": 1.0})
    guide = entry.make(ConjugateNormal.model, DATA, key=key, init_loc_fn=start)
    found = [
        values(objective, guide, key)
        for objective in (gx.ELBO(), gx.RenyiELBO(0.5, 8), gx.IWELBO(8), gx.IWELBO(64))
    ]
    means = [x.mean() for x in found]
    errors = [x.std() / len(x) ** 0.5 for x in found]
    for a, b, error in zip(means, means[1:], errors[1:], strict=False):
        assert a < b + 5 * error
    assert all(m < EVIDENCE + 5 * e for m, e in zip(means, errors, strict=True))
    assert means[-1] - means[0] > 0.01


def test_formulas(key):
    """Weights in, the formulas of the papers out."""
    weights = np.array([0.5, 2.0, 1.0, 0.1])
    terms = jnp.asarray(np.log(weights), float)
    np.testing.assert_allclose(gx.IWELBO(4).combine(terms), np.log(weights.mean()), rtol=1e-5)
    for alpha in (0.0, 0.5, -1.0, 2.0):
        expected = np.log(np.mean(weights ** (1 - alpha))) / (1 - alpha)
        found = gx.RenyiELBO(alpha, 4).combine(terms)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    nearly = gx.RenyiELBO(1 - 1e-3, 4).combine(terms)
    np.testing.assert_allclose(nearly, np.log(weights).mean(), atol=2e-3)


def test_an_exact_guide_has_no_gap(key):
    mean, scale = ConjugateNormal.posterior()
    start = gx.init_to_value({"z": mean})
    guide = gx.AutoNormal(ConjugateNormal.model, DATA, key=key, init_loc_fn=start, init_scale=scale)
    for objective in (gx.IWELBO(3), gx.RenyiELBO(0.5, 3), gx.RenyiELBO(-2.0, 3)):
        np.testing.assert_allclose(-objective(guide, key, DATA), EVIDENCE, rtol=1e-4)


def test_fits_with_them(key):
    guide = gx.AutoNormal(ConjugateNormal.model, DATA, key=key)
    mean, scale = ConjugateNormal.posterior()
    for objective in (gx.IWELBO(8), gx.RenyiELBO(0.5, 8)):
        result = gx.fit(
            key, guide, DATA, steps=4000, learning_rate=0.1, objective=objective, progress=False
        )
        fitted = result.guide
        assert abs(float(fitted.family.loc["z"]) - mean) < 0.15 * scale


def test_they_are_no_bounds_on_a_batch(key):
    y = jnp.asarray(Hierarchy.y, float)
    guide = gx.AutoNormal(Hierarchy.takes_rows, y, key=key)
    for objective in (gx.IWELBO(3), gx.RenyiELBO(0.5, 3)):
        with pytest.raises(ValueError, match="no bound.*'data' holds 2 of 6"):
            objective(guide, key, y)
        whole = gx.Batch(y).at(data=jnp.arange(6))
        assert jnp.isfinite(objective(guide, key, whole))


def test_bad_options_are_named():
    for bad in (1.0, float("inf"), float("nan"), "a", False):
        with refused_type("alpha is a finite number other than 1, .*; got ", ValueError):
            gx.RenyiELBO(bad)
    for kind in (gx.IWELBO, lambda num_particles: gx.RenyiELBO(0.0, num_particles)):
        with pytest.raises((ValueError, TypeError), match="num_particles"):
            kind(num_particles=0)
    assert jax.tree.structure(gx.RenyiELBO(0.5)) == jax.tree.structure(gx.RenyiELBO(0.5, 2))
    assert jax.tree.structure(gx.RenyiELBO(0.5)) != jax.tree.structure(gx.RenyiELBO(0.4))
