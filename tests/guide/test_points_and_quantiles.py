"""What AutoDelta's point is, and what quantiles are where no closed form holds."""

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx
from models import triangle

LEVELS = np.array([0.05, 0.5, 0.95])


def fitted(make, model, *args, steps=1500, key, **options):
    guide = make(model, *args, key=key)
    return gx.fit(key, guide, *args, steps=steps, progress=False, **options).guide


def test_delta_finds_the_mode_of_constrained_space(key):
    def model():
        gx.sample("x", tfd.LogNormal(jnp.zeros(()), 1.0))

    guide = fitted(gx.AutoDelta, model, key=key)
    np.testing.assert_allclose(guide.median()["x"], np.exp(-1.0), rtol=1e-3)


def test_delta_is_map_of_a_conjugate_pair(key):
    """Beta(3 + 7, 2 + 3) has its mode at 9/13."""

    def model():
        p = gx.sample("p", distrax.Beta(3.0 * jnp.ones(()), 2.0))
        gx.sample("y", tfd.Binomial(10.0, probs=p), obs=jnp.asarray(7.0, float))

    guide = fitted(gx.AutoDelta, model, key=key)
    np.testing.assert_allclose(guide.median()["p"], 9 / 13, rtol=1e-3)


def test_delta_of_a_centred_hierarchy_collapses_and_a_normal_does_not(key):
    """Centred eight schools: as tau goes to 0 the density grows for ever, the mass does not."""
    effect = jnp.asarray([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], float)
    error = jnp.asarray([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], float)

    def model(effect, error):
        mu = gx.sample("mu", distrax.Normal(jnp.zeros(()), 5.0))
        tau = gx.sample("tau", tfd.HalfNormal(5.0 * jnp.ones(())))
        with gx.plate("school", 8):
            theta = gx.sample("theta", distrax.Normal(mu, tau))
            gx.sample("y", distrax.Normal(theta, error), obs=effect)

    point = fitted(gx.AutoDelta, model, effect, error, key=key, steps=2000)
    normal = fitted(gx.AutoNormal, model, effect, error, key=key, steps=2000)
    assert float(point.median(effect, error)["tau"]) < 0.02
    assert float(normal.median(effect, error)["tau"]) > 1.0


def test_an_unbounded_density_is_reported(key):
    """`y = 0 ~ N(0, s)` with a flat prior: the loss is log s, which falls until s underflows."""

    def model(y):
        s = gx.sample("s", gx.ImproperUniform(gx.constraints.positive, dtype=jnp.float32))
        gx.sample("y", distrax.Normal(jnp.float32(0.0), s), obs=y)

    y = jnp.float32(0.0)
    guide = gx.AutoDelta(model, y, key=key)
    with pytest.raises(gx.NonFiniteError, match="'y'") as caught:
        gx.fit(key, guide, y, steps=2000, progress=False)
    # The gradient has `y^2 / s^3` in it: 0/0 once the square of s is below the smallest float.
    assert float(caught.value.result.guide.median(y)["s"]) < 1e-18


def test_quantiles_under_a_decreasing_bijector(key):
    def model():
        gx.sample("x", gx.ImproperUniform(gx.constraints.less_than(1.0)))

    start = gx.init_to_value({"x": 0.0})
    guide = gx.AutoNormal(model, key=key, init_loc_fn=start, init_scale=0.5)
    found = np.asarray(guide.quantiles(LEVELS)["x"])
    # x = 1 - exp(u), u ~ N(0, 1/4): the level of x is one minus that of u.
    np.testing.assert_allclose(found, 1 - np.exp(0.5 * stats.norm.ppf(1 - LEVELS)), rtol=1e-5)
    assert found[0] < found[1] < found[2]


def test_quantiles_of_an_increasing_bijector_are_exact(key):
    def model():
        gx.sample("p", gx.ImproperUniform(gx.constraints.interval(-1.0, 3.0)))

    start = gx.init_to_value({"p": 1.0})
    guide = gx.AutoNormal(model, key=key, init_loc_fn=start, init_scale=0.5)
    u = 0.5 * stats.norm.ppf(LEVELS)
    expected = -1 + 4 / (1 + np.exp(-u))
    np.testing.assert_allclose(guide.quantiles(LEVELS)["p"], expected, rtol=1e-5)


def test_quantiles_of_a_simplex_are_marginal(key):
    def model():
        gx.sample("p", tfd.Dirichlet(3.0 * jnp.ones(3)))

    guide = fitted(gx.AutoNormal, model, steps=2000, key=key, objective=gx.ELBO(10))
    found = np.asarray(guide.quantiles(LEVELS, num_samples=20_000)["p"])
    # Marginals of Dirichlet(3, 3, 3) are Beta(3, 6); the guide's fit is close but not exact.
    exact = stats.beta(3, 6).ppf(LEVELS)
    np.testing.assert_allclose(found, np.tile(exact[:, None], 3), atol=0.035)
    draws = np.asarray(guide.sample_posterior(key, sample_shape=(20_000,))["p"])
    np.testing.assert_allclose(found, np.quantile(draws, LEVELS, axis=0), atol=0.01)


def test_quantiles_under_a_coupled_support_are_those_of_draws(key):
    guide = gx.AutoNormal(
        triangle, key=key, init_loc_fn=gx.init_to_value({"x": 0.6, "y": 0.2}), init_scale=1.0
    )
    found = guide.quantiles(LEVELS, num_samples=40_000)
    # By quadrature: x = sigmoid(u), y = x sigmoid(v), both logits normal.
    nodes = stats.norm.ppf((np.arange(2000) + 0.5) / 2000)
    logit = np.log(0.6 / 0.4), np.log(0.2 / 0.4)
    x = 1 / (1 + np.exp(-(logit[0] + nodes)))
    np.testing.assert_allclose(
        found["x"], 1 / (1 + np.exp(-(logit[0] + stats.norm.ppf(LEVELS)))), rtol=1e-4
    )

    def cdf(t):  # P(y < t) = E_x P(v < logit(t / x))
        ratio = np.clip(t / x, 1e-12, 1 - 1e-12)
        p = stats.norm.cdf(np.log(ratio / (1 - ratio)) - logit[1])
        return np.mean(np.where(t >= x, 1.0, p))

    exact = [optimize.brentq(lambda t, q=q: cdf(t) - q, 1e-6, 1 - 1e-6) for q in LEVELS]
    np.testing.assert_allclose(found["y"], exact, atol=0.01)


def test_the_fitted_triangle(key):
    """E[y] = 1/4 and the marginal quantiles of y, whose distribution is t - t log t."""
    guide = fitted(
        gx.AutoNormal, triangle, steps=4000, key=key, learning_rate=0.05, objective=gx.ELBO(32)
    )
    draws = guide.sample_posterior(key, sample_shape=(100_000,))
    np.testing.assert_allclose(draws["y"].mean(), 0.25, atol=0.01)
    exact = [optimize.brentq(lambda t, q=q: t - t * np.log(t) - q, 1e-9, 1.0) for q in LEVELS]
    found = guide.quantiles(LEVELS, num_samples=40_000)["y"]
    np.testing.assert_allclose(found, exact, atol=0.04)


def test_quantiles_of_deterministic_sites_come_from_draws(key):
    """`|x|` of a standard normal x: its median is that of a half normal, not |median|."""

    def model():
        x = gx.sample("x", distrax.Normal(jnp.zeros(()), 1.0))
        gx.deterministic("size", jnp.abs(x))

    start = gx.init_to_value({"x": 0.0})
    guide = gx.AutoNormal(model, key=key, init_loc_fn=start, init_scale=1.0)
    median = guide.median(num_samples=20_000)
    np.testing.assert_allclose(median["x"], 0.0, atol=1e-6)
    np.testing.assert_allclose(median["size"], stats.halfnorm.ppf(0.5), atol=0.03)
    fresh = guide.median(key=jax.random.key(1), num_samples=20_000)
    assert float(fresh["size"]) != float(median["size"])
    found = guide.quantiles(LEVELS, num_samples=20_000)["size"]
    np.testing.assert_allclose(found, stats.halfnorm.ppf(LEVELS), atol=0.05)


def test_complex_sites_have_no_quantiles(key):
    def model():
        z = gx.sample("z", distrax.Normal(0.0, 1.0))
        gx.deterministic("wave", jnp.exp(1j * z))

    guide = gx.AutoNormal(model, key=key)
    for summary in (guide.median, lambda: guide.quantiles([0.1, 0.9])):
        with pytest.raises(TypeError, match=r"the sites \['wave'\] hold complex numbers"):
            summary()
    assert jnp.iscomplexobj(guide.sample_posterior(key)["wave"])


def test_a_support_that_a_hidden_latent_sets(key):
    """The closed form would take its bounds from one prior draw of what is hidden."""

    def model():
        top = gx.sample("top", tfd.LogNormal(jnp.zeros(()), 1.0))
        gx.sample("x", tfd.Uniform(jnp.zeros(()), top))

    guide = gx.AutoNormal(gx.handlers.block(model, hide=["top"]), key=key)
    draws = guide.sample_posterior(key, sample_shape=(4_000,))["x"]
    assert len(np.unique(np.asarray(draws))) > 3_000
    median = guide.median(num_samples=4_000)["x"]
    below = float(jnp.mean(draws < median))
    assert abs(below - 0.5) < 5 * (0.25 / 4_000 * 2) ** 0.5


def test_quantiles_of_integers_and_flags_are_values_that_were_drawn(key):
    """Interpolated ones would lie in between, and be cut off toward zero."""

    def model():
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        gx.deterministic("odd", 2 * jnp.floor(1000 * z).astype(int) + 1)
        gx.deterministic("flags", z + jnp.array([-1.0, 0.0, 1.0]) > 0.5)

    guide, levels = gx.AutoNormal(model, key=key), jnp.linspace(0, 1, 101)
    guide = eqx.tree_at(lambda g: g.family.raw_scale["z"], guide, jnp.asarray(0.5413, float))
    found = guide.quantiles(levels, num_samples=500)
    assert found["odd"].dtype == int and found["flags"].dtype == bool
    assert bool(jnp.all(found["odd"] % 2 == 1))
    for name, draws in guide.sample_posterior(jax.random.key(0), sample_shape=(500,)).items():
        if name != "z":
            nearest = np.quantile(np.asarray(draws).astype(float), levels, 0, method="nearest")
            np.testing.assert_array_equal(found[name], nearest)
