"""A model that is nothing but a log density."""

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import guidax as gx
from assertions import refused_type
from registry import every_distribution


def gaussian(latents, mean):
    """An unnormalised normal in x, and log y normal too."""
    x, y = latents["x"], latents["inner"]["y"]
    return -0.5 * jnp.sum((x - mean) ** 2) / 0.25 - 0.5 * jnp.log(y) ** 2 / 0.09 - jnp.log(y)


EXAMPLE = {"x": jnp.zeros(2), "inner": {"y": jnp.ones(())}}
SUPPORTS = {"inner.y": gx.constraints.positive}
MEAN = jnp.array([1.0, -2.0])
EVIDENCE = np.log(2 * np.pi * 0.25) + 0.5 * np.log(2 * np.pi * 0.09)


@every_distribution
def test_a_fit_reaches_the_normalizer(entry, key):
    model = gx.from_log_density(gaussian, EXAMPLE, SUPPORTS)
    guide = entry.make(model, MEAN, key=key, init_loc_fn=gx.init_to_feasible())
    fitted = gx.fit(key, guide, MEAN, steps=3_000, objective=gx.ELBO(8), progress=False).guide
    draws = fitted.sample_posterior(key, MEAN, sample_shape=(10_000,))
    assert draws.keys() == {"x", "inner.y", *dict(entry.beside)}
    assert bool(jnp.all(draws["inner.y"] > 0))
    np.testing.assert_allclose(draws["x"].mean(axis=0), MEAN, atol=0.03)
    np.testing.assert_allclose(draws["x"].std(axis=0), 0.5, atol=0.03)
    elbo = -np.mean(jax.vmap(lambda k: gx.ELBO()(fitted, k, MEAN))(jax.random.split(key, 2000)))
    assert abs(elbo - EVIDENCE) < 0.02


def test_a_model_without_latents_has_the_density_of_its_data():
    def model(y):
        gx.sample("y", distrax.Normal(jnp.zeros(()), 1.0), obs=y)

    y = jnp.asarray([0.5, -1.0], float)
    np.testing.assert_allclose(gx.log_joint(model, {}, y), norm.logpdf(y).sum(), rtol=1e-6)


def test_log_joint_is_the_density(key):
    model = gx.from_log_density(gaussian, EXAMPLE, SUPPORTS)
    latents = {"x": jnp.array([0.3, 0.4]), "inner.y": jnp.array(2.0)}
    expected = gaussian({"x": latents["x"], "inner": {"y": latents["inner.y"]}}, MEAN)
    np.testing.assert_allclose(gx.log_joint(model, latents, MEAN), expected, rtol=1e-6)
    many = jax.tree.map(lambda x: jnp.stack([x, x + 0.1]), latents)
    assert gx.log_joint(model, many, MEAN).shape == (2,)


def test_a_bare_array_is_one_site(key):
    model = gx.from_log_density(lambda x: -jnp.sum(x), jnp.ones(3), gx.constraints.positive)
    guide = gx.AutoNormal(model, key=key)
    assert guide.median()["value"].shape == (3,)


def test_a_python_integer_stands_for_a_float(key):
    guide = gx.AutoNormal(gx.from_log_density(lambda x: -(x["a"] ** 2), {"a": 1}), key=key)
    assert guide.median()["a"].dtype == jnp.result_type(float)


def test_arrays_of_a_module_are_trained(key):
    class Density(eqx.Module):
        bias: jax.Array

        def __call__(self, x):
            return -0.5 * (x - self.bias) ** 2 - self.bias**2

    model = gx.from_log_density(Density(jnp.asarray(0.7, float)), jnp.zeros(()))
    guide = gx.AutoNormal(model, key=key)
    fitted = gx.fit(key, guide, steps=500, learning_rate=0.05, progress=False).guide
    assert abs(float(fitted.model.arrays.bias)) < 0.1


def test_supports_may_have_array_bounds(key):
    """On [0, 1] x [0, 3] a flat density has the evidence 3, and a guide of medians the middle."""
    high = jnp.asarray([1.0, 3.0], float)

    def flat(z):
        return 0.0 * jnp.sum(z)

    model = gx.from_log_density(flat, jnp.zeros(2), gx.constraints.interval(jnp.zeros(2), high))
    again = gx.from_log_density(flat, jnp.zeros(2), gx.constraints.interval(jnp.zeros(2), high + 0))
    other = gx.from_log_density(flat, jnp.zeros(2), gx.constraints.interval(jnp.zeros(2), high + 1))
    assert model == again and model != other
    treedefs = [jax.tree.structure(m) for m in (model, again)]
    assert hash(treedefs[0]) == hash(treedefs[1])
    guide = gx.AutoNormal(model, key=key, init_loc_fn=gx.init_to_feasible(), init_scale=1.5)
    np.testing.assert_allclose(guide.median()["value"], [0.5, 1.5], rtol=1e-5)
    diagnosis = gx.diagnose(key, guide, num_samples=4000)
    assert abs(diagnosis.log_evidence - np.log(3.0)) < 5 * diagnosis.log_evidence_error
    assert gx.log_joint(model, {"value": jnp.asarray([0.5, 3.5])}) == -jnp.inf


C = gx.constraints


@pytest.mark.parametrize(
    "shape, constraint, error, message",
    [
        ((), C.simplex, ValueError, r"supports\['a'\] is simplex, but the site has shape \(\)"),
        ((2, 3), C.corr_matrix, ValueError, r"supports\['a'\] is corr_matrix.*shape \(2, 3\)"),
        ((3,), C.interval(np.zeros(2), 1.0), ValueError, r"supports\['a'\].*shape \(3,\)"),
        ((3,), C.sphere, ValueError, r"supports\['a'\]: the support is a sphere"),
        ((3,), C.boolean, TypeError, r"supports\['a'\]: the support is discrete"),
    ],
    ids=["simplex", "matrix", "bounds", "sphere", "discrete"],
)
def test_supports_that_do_not_fit_are_named(shape, constraint, error, message):
    with pytest.raises(error, match=message):
        gx.from_log_density(lambda z: 0.0, {"a": jnp.zeros(shape)}, {"a": constraint})


@pytest.mark.parametrize("result", [None, "0", 1j, {"a": 0.0}], ids=str)
def test_a_log_density_returns_a_real_number(result, key):
    model = gx.from_log_density(lambda z: result, jnp.zeros(3))
    with pytest.raises(TypeError, match="what the log density <lambda> returns is"):
        gx.AutoNormal(model, key=key)


def test_mistakes_are_named(key):
    for example, message in (
        ({}, "no leaf"),
        ({"a": jnp.arange(3)}, "'a'.*int"),
        ({"a": True}, "'a' of the example is bool"),
        ({"log_density": 1.0}, "reserved"),
        ({"a": {"b": 1.0}, "a.b": 1.0}, "twice"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            gx.from_log_density(gaussian, example)
    with pytest.raises(ValueError, match="'z'"):
        gx.from_log_density(gaussian, EXAMPLE, {"z": gx.constraints.real})
    with pytest.raises(TypeError, match="dictionary"):
        gx.from_log_density(gaussian, EXAMPLE, gx.constraints.positive)
    with refused_type("one of gx.constraints"):
        gx.from_log_density(gaussian, EXAMPLE, {"x": "positive"})
    with pytest.raises(ValueError, match=r"returned shape \(2,\)"):
        gx.AutoNormal(gx.from_log_density(lambda x: x, jnp.zeros(2)), key=key)
    with pytest.raises(TypeError, match="discrete"):
        gx.from_log_density(gaussian, EXAMPLE, {"x": gx.constraints.boolean})
    with pytest.raises(TypeError, match="log_density"):
        model = gx.from_log_density(lambda: 0.0, jnp.zeros(()))
        gx.AutoNormal(model, key=key)


def test_it_equals_the_same_model_in_the_model_language(key):
    def model(y):
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 2.0))
        gx.sample("y", distrax.Normal(z, 1.0), obs=y)

    def density(z, y):
        return distrax.Normal(0.0, 2.0).log_prob(z) + distrax.Normal(z, 1.0).log_prob(y)

    y = jnp.asarray(0.4, float)
    start = gx.init_to_feasible()
    losses = [
        float(gx.ELBO()(gx.AutoNormal(m, y, key=key, init_loc_fn=start), key, y))
        for m in (model, gx.from_log_density(density, jnp.zeros(())))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
