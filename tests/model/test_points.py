"""Densities at points, inside the support and outside."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx
from assertions import precision
from guidax import constraints as C

# Name: constraint, event shape, points outside, none of which is beside the set by rounding alone.
CASES = {
    "real": (C.real, (), [jnp.inf]),
    "positive": (C.positive, (), [-1.0, -1e-30, jnp.inf]),
    "softplus_positive": (C.softplus_positive, (), [-1.0]),
    "unit_interval": (C.unit_interval, (), [1.5, -0.1]),
    "interval": (C.interval(-1.0, 2.5), (), [-1.5, 3.0]),
    "greater_than": (C.greater_than(1e4), (), [0.0]),
    "less_than": (C.less_than(-1e4), (), [0.0]),
    "independent": (C.positive, (2,), [[1.0, -1.0]]),
    "simplex": (C.simplex, (3,), [[1.0, 1.0, 1.0], [0.6, 0.6, -0.2], [0.3, 0.3, 0.3]]),
    "long simplex": (C.simplex, (300,), [np.full(300, 1.0)]),
    "ordered": (C.ordered, (3,), [[1.0, 0.0, 2.0]]),
    "positive_ordered": (C.positive_ordered, (2,), [[-1.0, 2.0], [2.0, 1.0]]),
    "l1_ball": (C.l1_ball, (2,), [[1.0, -1.0]]),
    "zero_sum": (C.zero_sum(), (3,), [[1.0, 1.0, 1.0]]),
    "lower_cholesky": (C.lower_cholesky, (2, 2), [[[1.0, 1.0], [1.0, 1.0]], -np.eye(2)]),
    "corr_cholesky": (C.corr_cholesky, (2, 2), [np.ones((2, 2)), 2 * np.eye(2)]),
    "large corr_cholesky": (C.corr_cholesky, (12, 12), [2 * np.eye(12)]),
    "corr_matrix": (C.corr_matrix, (2, 2), [2 * np.eye(2), [[1.0, 2.0], [2.0, 1.0]]]),
    "large corr_matrix": (C.corr_matrix, (6, 6), [2 * np.eye(6)]),
    "positive_definite": (C.positive_definite, (2, 2), [[[1.0, 2.0], [2.0, 1.0]]]),
    "large positive_definite": (C.positive_definite, (6, 6), [-np.eye(6)]),
    "large matrices": (C.positive_definite, (2, 12, 12), [[np.eye(12), -np.eye(12)]]),
    "transformed": (C.transformed(C.positive, distrax.ScalarAffine(-0.5, -1.0)), (), [0.0]),
}


@pytest.mark.parametrize("dtype", [jnp.float32, None], ids=["single", "default"])
@pytest.mark.parametrize("name", CASES)
def test_density_is_zero_outside_the_support(name, dtype, key):
    constraint, shape, outside = CASES[name]

    def model():
        gx.sample("x", gx.ImproperUniform(constraint, event_shape=shape, dtype=dtype))

    guide = gx.AutoNormal(model, key=key, init_scale=2.0)
    draws = guide.sample_posterior(key, sample_shape=(300,))
    finite = np.isfinite(draws["x"]).reshape(300, -1).all(axis=1)  # exp(exp(7)) is not
    draws = {"x": draws["x"][finite]}
    assert np.all(gx.log_joint(model, draws) == 0)
    found = np.asarray(guide.log_prob(draws))
    assert np.all(found != -np.inf)
    if "matri" not in name and "definite" not in name:  # rounded, these may have no factor
        assert np.all(np.isfinite(found))
    points = {"x": jnp.asarray(np.asarray(outside), draws["x"].dtype)}
    for density in (guide.log_prob, lambda x: gx.log_joint(model, x)):
        for each in (density, jax.jit(lambda x, density=density: density(x))):
            assert np.all(each(points) == -np.inf)


def test_gradients_are_those_of_the_density(key):
    def model():
        gx.sample("rate", tfd.Gamma(jnp.asarray(3.0, float), 2.0))
        gx.sample("share", tfd.Dirichlet(jnp.asarray([2.0, 3.0], float)))

    guide = gx.AutoNormal(model, key=key, init_scale=0.5)
    point = {"rate": jnp.asarray(0.7, float), "share": jnp.asarray([0.25, 0.75], float)}
    found = jax.grad(lambda x: gx.log_joint(model, x))(point)
    np.testing.assert_allclose(found["rate"], 2 / 0.7 - 2, rtol=1e3 * precision())
    np.testing.assert_allclose(found["share"], [1 / 0.25, 2 / 0.75], rtol=1e3 * precision())
    loc, scale = guide.family.loc["rate"], 0.5
    found = jax.grad(guide.log_prob)(point)["rate"]
    expected = -(np.log(0.7) - loc) / scale**2 / 0.7 - 1 / 0.7
    np.testing.assert_allclose(found, expected, rtol=1e4 * precision())


def test_a_support_of_other_latents_has_an_outside(key):
    def model():
        low = gx.sample("low", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("x", tfd.Uniform(low, low + 1))

    guide = gx.AutoNormal(model, key=key)
    points = {"low": jnp.asarray([0.0, 1.0], float), "x": jnp.asarray([0.5, 0.5], float)}
    for density in (guide.log_prob, lambda x: gx.log_joint(model, x)):
        inside, outside = density(points)
        assert jnp.isfinite(inside) and outside == -jnp.inf
    np.testing.assert_allclose(
        gx.log_joint(model, points)[0], stats.norm.logpdf(0.0), rtol=10 * precision()
    )
