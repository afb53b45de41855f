"""`AutoLaplaceApproximation`: the mode, the curvature, and where there is none."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx
from models import ConjugateNormal

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(30, 3)), float)
Y = jnp.asarray(X @ np.array([1.0, -2.0, 0.5]) + 0.5 * RNG.normal(size=30), float)


def linear(X, y):
    beta = gx.sample("beta", distrax.Independent(distrax.Normal(jnp.zeros(3), 2.0), 1))
    with gx.plate("rows", X.shape[0]):
        gx.sample("y", distrax.Normal(X @ beta, 0.5), obs=y)


def exact_linear(X, y):
    precision = np.eye(3) / 4 + np.asarray(X).T @ np.asarray(X) / 0.25
    sigma = np.linalg.inv(precision)
    return sigma @ np.asarray(X).T @ np.asarray(y) / 0.25, sigma


@pytest.fixture(scope="module")
def fitted():
    key = jax.random.key(0)
    guide = gx.AutoLaplaceApproximation(linear, X, Y, key=key)
    return gx.fit(key, guide, X, Y, steps=2000, progress=False).guide


def test_it_is_exact_on_a_linear_gaussian_model(fitted, key):
    normal = fitted.laplace(X, Y)
    mean, sigma = exact_linear(X, Y)
    assert isinstance(normal, gx.AutoMultivariateNormal)
    np.testing.assert_allclose(normal.family.loc, mean, atol=1e-3)
    tril = np.asarray(normal.family.scale_tril())
    np.testing.assert_allclose(tril @ tril.T, sigma, rtol=1e-3, atol=1e-6)
    draws = fitted.sample_posterior(key, X, Y, sample_shape=(20_000,))["beta"]
    np.testing.assert_allclose(np.cov(np.asarray(draws).T), sigma, rtol=0.1, atol=2e-4)
    found = fitted.quantiles([0.1, 0.9], X, Y)["beta"]
    expected = [stats.norm(mean, np.sqrt(np.diag(sigma))).ppf(q) for q in (0.1, 0.9)]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    np.testing.assert_allclose(
        normal.get_posterior().log_prob(normal.family.loc),
        fitted.get_posterior(X, Y).log_prob(normal.family.loc),
        rtol=1e-5,
    )


def test_the_data_are_those_of_the_call(fitted):
    """Ten times the data: a tenth of the variance."""
    many = jnp.tile(X, (10, 1)), jnp.tile(Y, 10)
    scale = fitted.laplace(X, Y).family.marginal_scale()
    _, sigma = exact_linear(*many)
    found = fitted.laplace(*many).family.marginal_scale()
    np.testing.assert_allclose(found, np.sqrt(np.diag(sigma)), rtol=1e-3)
    assert np.all(np.asarray(found) < 0.4 * np.asarray(scale))


def test_one_object_draws_one_distribution(fitted, key):
    draws, log_q = fitted.sample_and_log_prob(key, X, Y, sample_shape=(5,))
    again = fitted.laplace(X, Y)
    np.testing.assert_allclose(log_q, again.log_prob(draws, X, Y), rtol=1e-5)
    assert float(jnp.std(draws["beta"])) > 0
    with pytest.raises(ValueError, match="'y'"):
        fitted.sample_posterior(key, X, None)


def test_the_mode_is_that_of_unconstrained_space(key):
    def model():
        gx.sample("x", tfd.LogNormal(jnp.zeros(()), 1.0))

    guide = gx.fit(key, gx.AutoLaplaceApproximation(model, key=key), steps=1500, progress=False)
    np.testing.assert_allclose(guide.guide.median()["x"], 1.0, atol=1e-3)
    np.testing.assert_allclose(
        guide.guide.quantiles(0.9)["x"], np.exp(stats.norm.ppf(0.9)), rtol=1e-3
    )


def flat(y):
    a = gx.sample("a", gx.ImproperUniform(gx.constraints.real))
    b = gx.sample("b", gx.ImproperUniform(gx.constraints.real))
    gx.sample("fine", distrax.Normal(jnp.zeros(()), 1.0))
    gx.sample("y", distrax.Normal(a + b, 1.0), obs=y)


def test_a_flat_direction_is_named_and_never_a_point(key):
    y = jnp.asarray(1.0, float)
    guide = gx.AutoLaplaceApproximation(flat, y, key=key)
    with pytest.raises(ValueError, match=r"not positive definite.*\['a', 'b'\]|\['b', 'a'\]"):
        guide.sample_posterior(key, y)
    inside = jax.jit(lambda g: g.laplace(y))(guide)
    assert not bool(inside.is_finite())
    assert bool(jnp.all(jnp.isnan(inside.family.raw_scale_tril)))

    def ridge(potential, z):
        return jax.hessian(potential)(z) + 0.1 * jnp.eye(z.size)

    regular = gx.AutoLaplaceApproximation(flat, y, key=key, hessian_fn=ridge)
    assert bool(regular.laplace(y).is_finite())
    with pytest.raises(TypeError, match="hessian_fn"):
        gx.AutoLaplaceApproximation(flat, y, key=key, hessian_fn=3)


@pytest.mark.parametrize("x64", [True, False], ids=["x64", "float32"])
@pytest.mark.parametrize("sd", [0.1, 0.3, 1.0, 2.0])
def test_rounding_along_a_flat_direction_is_no_variance(sd, x64, key):
    with jax.enable_x64(x64):

        def model(y):
            a = gx.sample("a", gx.ImproperUniform(gx.constraints.real))
            b = gx.sample("b", gx.ImproperUniform(gx.constraints.real))
            gx.sample("y", distrax.Normal(a + b, jnp.asarray(sd, float)), obs=y)

        y = jnp.zeros(3, float)
        with pytest.raises(ValueError, match="not positive definite"):
            gx.AutoLaplaceApproximation(model, y, key=key).laplace(y)


@pytest.mark.parametrize("x64", [True, False], ids=["x64", "float32"])
def test_a_narrow_posterior_on_two_scales_is_not_flat(x64, key):
    """Precision `[[1, r], [r, 1]]` on `a` and `1e6 b`, so the variances are `1 / (1 - r^2)`."""
    r = 0.9999
    with jax.enable_x64(x64):

        def model():
            a = gx.sample("a", gx.ImproperUniform(gx.constraints.real))
            b = gx.sample("b", gx.ImproperUniform(gx.constraints.real)) * 1e6
            gx.factor("joint", -0.5 * (1 - r) * (a**2 + b**2) - 0.5 * r * (a + b) ** 2)

        start = gx.init_to_value({"a": 0.0, "b": 0.0})
        guide = gx.AutoLaplaceApproximation(model, key=key, init_loc_fn=start).laplace()
        scale = (1 - r**2) ** -0.5
        rtol = 1e-8 if x64 else 1e-3
        np.testing.assert_allclose(guide.family.marginal_scale(), [scale, scale / 1e6], rtol=rtol)


def test_it_fits_subsampled_plates(key):
    data = jnp.asarray(ConjugateNormal.y, float)

    def model(y):
        z = gx.sample("z", distrax.Normal(jnp.asarray(ConjugateNormal.m, float), ConjugateNormal.s))
        with gx.plate("rows", 4, subsample_size=2):
            gx.sample("y", distrax.Normal(z, ConjugateNormal.r), obs=gx.subsample(y))

    guide = gx.AutoLaplaceApproximation(model, data, key=key)
    fitted = gx.fit(key, guide, data, steps=2000, progress=False).guide
    mean, scale = ConjugateNormal.posterior()
    assert abs(float(fitted.family.loc[0]) - mean) < 0.3 * scale
    np.testing.assert_allclose(fitted.laplace(data).family.marginal_scale(), scale, rtol=1e-4)


@pytest.mark.parametrize("where", ["plate", "create_plates"])
def test_it_curves_on_all_rows(where, key):
    """A slope without intercept has the precision `1 + sum x^2`: no two rows add the same."""
    x = jnp.asarray([0.1, 1.0, 3.0, 9.0], float)

    def model(x):
        slope = gx.sample("slope", distrax.Normal(jnp.zeros(()), 1.0))
        with gx.plate("rows", 4, subsample_size=2 if where == "plate" else None):
            x = gx.subsample(x)
            gx.sample("y", distrax.Normal(slope * x, 1.0), obs=2.0 * x)

    options = {}
    if where == "create_plates":
        options = {"create_plates": lambda x: gx.plate("rows", 4, subsample_size=2)}
    squares = [float(jnp.sum(x**2)), 2 * float(jnp.sum(x[:2] ** 2))]
    modes, precisions = [2 * s / (1 + s) for s in squares], [1 + s for s in squares]
    options["init_loc_fn"] = gx.init_to_value({"slope": modes[0]})
    guide = gx.AutoLaplaceApproximation(model, x, key=key, **options)
    scale = guide.laplace(x).family.marginal_scale()
    np.testing.assert_allclose(scale, precisions[0] ** -0.5, rtol=1e-4)
    far = (modes[0] - modes[1]) * precisions[1] ** 0.5
    with pytest.warns(UserWarning, match=f"is {far:.2g} standard deviations"):
        some = guide.laplace(gx.Batch(x).at(rows=jnp.array([0, 1]))).family.marginal_scale()
    np.testing.assert_allclose(some, precisions[1] ** -0.5, rtol=1e-4)


def test_a_mode_that_is_not_reached(key):
    """From a correlated normal's point the Newton step is the way to its mean, in both sites."""
    covariance = jnp.asarray([[4.0, 1.8], [1.8, 1.0]], float)
    joint = distrax.MultivariateNormalFullCovariance(jnp.asarray([1.0, 2.0], float), covariance)

    def model():
        a = gx.sample("a", gx.ImproperUniform(gx.constraints.real))
        b = gx.sample("b", gx.ImproperUniform(gx.constraints.real))
        gx.factor("joint", joint.log_prob(jnp.stack([a, b])))

    def guide(a, b):
        start = gx.init_to_value({"a": a, "b": b})
        return gx.AutoLaplaceApproximation(model, key=key, init_loc_fn=start)

    with pytest.warns(UserWarning, match="3 standard deviations away along site 'b'.*lbfgs"):
        guide(1.0 - 2.0 * 2.0, 2.0 + 3.0).sample_posterior(key)
    with pytest.warns(UserWarning, match="0.6 standard deviations away along site 'a'"):
        guide(1.0 - 0.6 * 2.0, 2.0).laplace()
    guide(1.0 - 0.4 * 2.0, 2.0).laplace()  # warnings are errors
    traced = jax.jit(lambda guide: guide.laplace().family.loc)(guide(-3.0, 5.0))
    np.testing.assert_allclose(traced, [-3.0, 5.0], rtol=1e-5)


@jax.custom_vjp
def doubled(x):
    """Twice x, without a forward mode: as a solver of differential equations."""
    return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, cotangent: (2 * cotangent,))


def test_a_model_that_only_reverse_mode_differentiates(key):
    def model(y):
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("y", distrax.Normal(doubled(doubled(z)), 1.0), obs=y)

    y, start = jnp.asarray(3.0, float), gx.init_to_value({"z": 12 / 17})
    guide = gx.AutoLaplaceApproximation(model, y, key=key, init_loc_fn=start)
    np.testing.assert_allclose(guide.laplace(y).family.marginal_scale(), 17**-0.5, rtol=1e-4)


def test_a_model_that_only_forward_mode_differentiates(key):
    def model(y):
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        w = jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, 2 * c[1]), (0, z))[1]
        gx.sample("y", distrax.Normal(w, 1.0), obs=y)

    y, start = jnp.asarray(3.0, float), gx.init_to_value({"z": 12 / 17})
    guide = gx.AutoLaplaceApproximation(model, y, key=key, init_loc_fn=start)
    np.testing.assert_allclose(guide.laplace(y).family.marginal_scale(), 17**-0.5, rtol=1e-4)


def test_a_flat_direction_is_named_where_nan_is_looked_for(key):
    """A Cholesky factor that is NaN is how the program finds out, and no mistake."""
    y = jnp.asarray(1.0, float)
    guide = gx.AutoLaplaceApproximation(flat, y, key=key)
    with jax.debug_nans(True), pytest.raises(ValueError, match="not positive definite"):
        guide.laplace(y)
