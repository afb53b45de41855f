"""Prior and posterior predictive draws, and pointwise log likelihoods."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import Predictive as NumPyroPredictive
from numpyro.infer import log_likelihood as numpyro_log_likelihood
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx
from assertions import refused_type
from models import ConjugateNormal, Hierarchy, new_traces, regression, regression_data, traces

MANY = 20_000


def line(x, y=None):
    """`slope ~ N(1, 0.5^2)`, `y_i ~ N(slope x_i, 0.2^2)`: everything predicted is normal."""
    traces[0] += 1
    slope = gx.sample("slope", distrax.Normal(jnp.asarray(1.0, float), 0.5))
    mean = gx.deterministic("mean", slope * x)
    with gx.plate("data", x.shape[0]):
        gx.sample("y", distrax.Normal(mean, 0.2), obs=y)


def numpyro_line(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(1.0, 0.5))
    mean = numpyro.deterministic("mean", slope * x)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(mean, 0.2), obs=y)


X = jnp.array([-1.0, 0.0, 2.0], float)


def assert_moments(draws, mean, covariance, sigmas=5.0):
    """Compare mean and covariance of independent normal draws, within Monte Carlo error."""
    draws = np.asarray(draws, float)
    error = np.sqrt(np.diag(covariance) / len(draws))
    np.testing.assert_array_less(np.abs(draws.mean(0) - mean), sigmas * error + 1e-12)
    found, variance = np.cov(draws, rowvar=False), np.diag(covariance)
    spread = np.sqrt((np.outer(variance, variance) + covariance**2) / len(draws))
    np.testing.assert_array_less(np.abs(found - covariance), sigmas * spread + 1e-12)


@pytest.mark.parametrize("model", [line, gx.from_numpyro(numpyro_line)], ids=["native", "numpyro"])
def test_prior_predictive_has_the_moments_of_algebra(model, key):
    found = gx.Predictive(model, num_samples=MANY)(key, X)
    assert found.keys() == {"slope", "mean", "y"}
    covariance = 0.25 * np.outer(X, X) + 0.04 * np.eye(3)
    assert_moments(found["y"], X, covariance)
    np.testing.assert_allclose(found["mean"], found["slope"][:, None] * X, rtol=1e-6)


def test_prior_predictive_by_a_few_at_a_time_or_with_a_legacy_key(key):
    few = gx.Predictive(line, num_samples=7, batch_size=3)
    once = gx.Predictive(line, num_samples=7)
    np.testing.assert_allclose(few(key, X)["y"], once(key, X)["y"], rtol=1e-6)
    assert once(jax.random.PRNGKey(0), X)["y"].shape == (7, 3)


def test_a_few_at_a_time_where_a_site_is_empty(key):
    def model(X, y=None):
        coefficients = distrax.Normal(jnp.zeros(X.shape[1]), 1.0)
        slopes = gx.sample("slopes", distrax.Independent(coefficients, 1))
        level = gx.sample("level", distrax.Normal(0.0, 1.0))
        gx.sample("y", distrax.Normal(level + X @ slopes, 1.0), obs=y)

    X = jnp.zeros((3, 0))  # no predictors
    guide = gx.AutoNormal(model, X, jnp.ones(3), key=key)
    draws = guide.sample_posterior(key, X, sample_shape=(5,), batch_size=2)
    assert draws["slopes"].shape == (5, 0) and draws["level"].shape == (5,)
    once = guide.sample_posterior(key, X, sample_shape=(5,))
    np.testing.assert_allclose(draws["level"], once["level"], rtol=1e-6)
    assert gx.Predictive(guide.model, draws, batch_size=2)(key, X)["y"].shape == (5, 3)
    found = gx.diagnose(key, guide, X, jnp.ones(3), num_samples=25, batch_size=4)
    assert found.draws["slopes"].shape == (25, 0) and jnp.isfinite(found.elbo)


def test_a_few_at_a_time_where_a_site_is_a_number(key):
    def model():
        numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.deterministic("c", 3.0)

    guide = gx.AutoNormal(gx.from_numpyro(model), key=key)
    draws = guide.sample_posterior(key, sample_shape=(5,), batch_size=2)
    np.testing.assert_array_equal(draws["c"], np.full(5, 3.0))


def test_posterior_predictive_takes_draws_and_computes_the_rest_anew(key):
    slope = jnp.full((2, MANY // 2), 3.0).at[1].set(-2.0)
    stale = jnp.zeros((2, MANY // 2, 5))
    draws = {"slope": slope, "mean": stale}
    x = jnp.array([1.0, 2.0], float)  # others than those of the draws
    found = gx.Predictive(line, draws)(key, x)
    assert found.keys() == {"mean", "y"}
    np.testing.assert_allclose(found["mean"], slope[..., None] * x)
    assert found["y"].shape == (2, MANY // 2, 2)
    for chain, value in enumerate([3.0, -2.0]):
        assert_moments(found["y"][chain], value * x, 0.04 * np.eye(2))


def test_posterior_predictive_of_a_conjugate_normal(key):
    exact = ConjugateNormal
    mean, sd = exact.posterior()

    def model(size, y=None):
        z = gx.sample("z", distrax.Normal(jnp.asarray(exact.m, float), exact.s))
        with gx.plate("data", size):
            gx.sample("y", distrax.Normal(z, exact.r), obs=y)

    at_mean = gx.init_to_value({"z": jnp.asarray(mean, float)})
    guide = gx.AutoNormal(model, 4, exact.y, key=key, init_loc_fn=at_mean, init_scale=float(sd))
    draws = guide.sample_posterior(key, 4, exact.y, sample_shape=(MANY,))
    found = gx.Predictive(guide.model, draws)(jax.random.fold_in(key, 1), 2)["y"]
    covariance = sd**2 * np.ones((2, 2)) + exact.r**2 * np.eye(2)
    assert_moments(found, mean, covariance)


def test_sites_are_chosen(key):
    draws = {"slope": jnp.array([1.0, 2.0], float)}
    found = gx.Predictive(line, draws, sites=["y", "slope"])(key, X)
    assert found.keys() == {"y", "slope"}
    np.testing.assert_array_equal(found["slope"], draws["slope"])


def test_a_second_call_traces_nothing(key):
    def run(seed):
        slope = np.linspace(seed, 1.0, 4)
        predict = gx.Predictive(line, {"slope": slope}, sites=["y"])
        return predict(jax.random.key(seed), X + seed)

    first = run(0)["y"]
    assert new_traces(lambda: run(1)) == 0
    assert not np.allclose(first, run(1)["y"])
    slope = jnp.linspace(0.0, 1.0, 4)
    gx.log_likelihood(line, {"slope": slope}, X, X)
    assert new_traces(lambda: gx.log_likelihood(line, {"slope": 2 * slope}, X, 2 * X)) == 0


def test_observed_sites_stay_observed(key):
    draws = {"slope": jnp.array([1.0, 2.0], float)}
    assert gx.Predictive(line, draws)(key, X, X).keys() == {"mean"}
    with pytest.raises(ValueError, match=r"\['y'\] are observed in this call.*None"):
        gx.Predictive(line, draws, sites=["y"])(key, X, X)

    def bare(y=None):
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("y", distrax.Normal(z, 1.0), obs=y)
        gx.factor("weight", -(z**2))

    with pytest.raises(ValueError, match=r"sites=\[\] names no site"):
        gx.Predictive(line, num_samples=3, sites=[])
    with pytest.raises(ValueError, match=r"nothing to predict.*\['y'\] are observed"):
        gx.Predictive(bare, {"z": jnp.zeros(3)})(key, 1.0)


def groups(sizes, y=None):
    """Rows with latents of their own, as many as there are data."""
    mu = gx.sample("mu", distrax.Normal(jnp.zeros(()), 1.0))
    with gx.plate("group", sizes.shape[0]):
        z = gx.sample("z", distrax.Normal(mu, 0.1))
        gx.sample("y", distrax.Normal(z, 0.1 * sizes), obs=y)


def test_local_latents_of_another_size(key):
    draws = {"mu": jnp.linspace(-5.0, 5.0, 3), "z": jnp.zeros((3, 4))}
    with pytest.raises(ValueError, match=r"'z' hold 4 rows of plate 'group', which has 2 rows"):
        gx.Predictive(groups, draws)(key, jnp.ones(2))
    new = gx.Predictive(groups, {"mu": draws["mu"]})(key, jnp.ones(2))
    assert new.keys() == {"z", "y"} and new["y"].shape == (3, 2)
    # From the prior given mu: ten standard deviations of 0.1 at most.
    assert jnp.all(jnp.abs(new["z"] - draws["mu"][:, None]) < 1.0)


@pytest.mark.parametrize("how", ["whole", "at"])
def test_subsampled_plates_hold_every_row_or_those_of_the_batch(how, key):
    z = 100.0 * jnp.arange(6.0)
    draws = {"mu": jnp.zeros(2), "s": jnp.ones((2, 6)), "z": jnp.broadcast_to(z, (2, 6))}

    def model(y):
        mu = gx.sample("mu", distrax.Normal(jnp.zeros(()), 10.0))
        with gx.plate("data", 6, subsample_size=2):
            s = gx.sample("s", tfd.HalfNormal(jnp.ones(())))
            z = gx.sample("z", distrax.Normal(mu, s))
            gx.deterministic("offset", z + gx.subsample(y))
            gx.sample("y", distrax.Normal(z, 0.5))

    batch = gx.Batch(jnp.arange(6.0))
    rows = np.arange(6)
    if how == "at":
        rows = np.array([4, 1, 3])
        batch = batch.at(data=rows)
    found = gx.Predictive(model, draws)(key, batch)
    np.testing.assert_allclose(found["offset"][0], 101.0 * rows)
    np.testing.assert_array_less(np.abs(found["y"] - z[rows]), 4.0)


def test_a_ready_made_batch_needs_its_rows_where_draws_hold_all(key):
    draws = {"mu": jnp.zeros(2), "s": jnp.ones((2, 6)), "z": jnp.zeros((2, 6))}
    y = Hierarchy.y
    with pytest.raises(ValueError, match=r"6 rows of plate 'data', which has 2 of 6.*at\(data="):
        gx.log_likelihood(Hierarchy.takes_batch, draws, y[:2])
    rows = np.array([5, 0])
    found = gx.log_likelihood(Hierarchy.takes_batch, draws, gx.Batch(y[rows]).at(data=rows))
    every = gx.log_likelihood(Hierarchy.takes_rows, draws, y)
    assert every["y"].shape == (2, 6)
    np.testing.assert_allclose(found["y"], every["y"][:, rows], rtol=1e-6)
    with pytest.raises(ValueError, match="row numbers from 4 to 9"):
        gx.log_likelihood(Hierarchy.takes_batch, draws, gx.Batch(y[rows]).at(data=rows + 4))


def test_all_rows_in_another_order_are_refused(key):
    draws = {"mu": jnp.zeros(2), "s": jnp.ones((2, 6)), "z": jnp.ones((2, 6)) * jnp.arange(6.0)}
    order = np.array([1, 2, 0, 3, 5, 4])
    batch = gx.Batch(Hierarchy.y[order])
    message = r"'s' hold all 6 rows of plate 'data', and at\(data=\.\.\.\) .* in another order"
    with pytest.raises(ValueError, match=message):
        gx.log_likelihood(Hierarchy.takes_batch, draws, batch.at(data=order))
    with pytest.raises(ValueError, match=message):
        gx.Predictive(Hierarchy.takes_batch, draws)(key, batch.at(data=order))
    same = gx.log_likelihood(Hierarchy.takes_batch, draws, batch.at(data=np.arange(6)))
    errors = (np.arange(6) - Hierarchy.y[order]) / 0.5
    expected = -0.5 * errors**2 - np.log(0.5 * (2 * np.pi) ** 0.5)
    np.testing.assert_allclose(same["y"][1], expected, rtol=1e-5)
    # Draws of globals have no order.
    found = gx.Predictive(Hierarchy.takes_batch, {"mu": jnp.zeros(2)})(key, batch.at(data=order))
    assert found["z"].shape == (2, 6)


def test_one_row_at_a_time_must_be_named(key):
    def model(x):
        with gx.plate("data", 5, subsample_size=1):
            gx.sample("y", distrax.Normal(x, 1.0))

    with pytest.raises(ValueError, match=r"'data' holds one of 5 rows.*at\(data="):
        gx.Predictive(model, num_samples=2)(key, jnp.zeros(1))
    named = gx.Batch(jnp.zeros(1)).at(data=np.array([3]))
    assert gx.Predictive(model, num_samples=2)(key, named)["y"].shape == (2, 1)


@pytest.mark.parametrize("guide_of", [gx.AutoDAIS, gx.AutoLaplaceApproximation])
def test_guides_whose_draws_read_the_data(guide_of, key):
    y = jnp.array([-3.0, 0.1, 6.0], float)
    precision = 1 / 0.25 + X @ X / 0.04
    mean, sd = (1 / 0.25 + X @ y / 0.04) / precision, precision**-0.5
    # Both are exact there: the mode of a normal posterior, and moves that leave it as it is.
    options = {"init_scale": float(sd), "K": 2} if guide_of is gx.AutoDAIS else {}
    start = gx.init_to_value({"slope": mean})
    guide = guide_of(line, X, y, key=key, init_loc_fn=start, **options)
    with pytest.raises(
        ValueError, match=r"gx.Predictive\(guide.model, draws\)\(key, X_new, None\)"
    ):
        guide.sample_posterior(key, X, None)
    draws = guide.sample_posterior(key, X, y, sample_shape=(MANY,))
    found = gx.Predictive(guide.model, draws)(key, jnp.array([10.0, 0.0], float), None)["y"]
    covariance = np.diag([100 * sd**2 + 0.04, 0.04])
    assert_moments(found, np.array([10.0, 0.0]) * mean, covariance)


def test_trained_params_come_with_the_model(key):
    X, y = regression_data()
    guide = gx.AutoNormal(regression, X, y, key=key)
    raw = guide.model.params["weight"]
    trained = guide.model.with_params({"weight": jnp.full_like(raw, -30.0)})
    draws = {"tau": jnp.ones(200), "beta": 100.0 * jnp.ones((200, 3))}
    # A weight of exp(-30) makes every label a fair coin; 0.3 makes it certain.
    coins = gx.Predictive(trained, draws)(key, X)["y"]
    certain = gx.Predictive(regression, draws)(key, X)["y"]
    assert abs(coins.mean() - 0.5) < 0.05
    assert (certain == (X.sum(1) > 0)).mean() > 0.9
    with pytest.raises(ValueError, match=r"'weight', which is no latent.*guide.model"):
        gx.Predictive(regression, {"weight": jnp.ones(3)})(key, X)


def test_flat_priors_and_log_densities_need_draws(key):
    def flat(y=None):
        z = gx.sample("z", gx.ImproperUniform(gx.constraints.real))
        gx.sample("y", distrax.Normal(z, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"'z' has no prior that can be drawn from"):
        gx.Predictive(flat, num_samples=3)(key)
    assert gx.Predictive(flat, {"z": jnp.zeros(3)})(key)["y"].shape == (3,)
    density = gx.from_log_density(lambda z: -(z**2), 0.0)
    with pytest.raises(ValueError, match=r"'value' has no prior"):
        gx.Predictive(density, num_samples=3)(key)
    with pytest.raises(ValueError, match="nothing to predict.*no other site"):
        gx.Predictive(density, {"value": jnp.zeros(3)})(key)
    with pytest.raises(ValueError, match="bare log density"):
        gx.log_likelihood(density, {"value": jnp.zeros(3)})


def test_a_substituted_latent_takes_no_draws(key):
    fixed = gx.handlers.substitute(line, {"slope": jnp.asarray(2.0, float)})
    with pytest.raises(ValueError, match=r"'slope', which is no latent"):
        gx.Predictive(fixed, {"slope": jnp.zeros(3)})(key, X)


def test_errors_at_construction(key):
    guide = gx.AutoNormal(line, X, X, key=key)
    draws = {"slope": jnp.zeros(3)}
    with pytest.raises(TypeError, match=r"guide.model"):
        gx.Predictive(guide, num_samples=3)
    with pytest.raises(ValueError, match="or num_samples"):
        gx.Predictive(line)
    with pytest.raises(ValueError, match="leave num_samples out; got 3"):
        gx.Predictive(line, draws, 3)
    with pytest.raises(ValueError, match="num_samples is at least 1"):
        gx.Predictive(line, num_samples=0)
    with refused_type("batch_size is a Python integer"):
        gx.Predictive(line, draws, batch_size=True)
    with refused_type("list of names"):
        gx.Predictive(line, draws, sites="y")
    with refused_type("dictionary from site"):
        gx.Predictive(line, [1.0])


def test_errors_at_a_call(key):
    with pytest.raises(ValueError, match=r"no sites \['z'\]; it has \['mean', 'slope', 'y'\]"):
        gx.Predictive(line, num_samples=2, sites=["z"])(key, X)
    with pytest.raises(ValueError, match="'y', which is observed in this call"):
        gx.Predictive(line, {"slope": jnp.zeros(3), "y": jnp.zeros((3, 3))})(key, X, X)
    with pytest.raises(ValueError, match="leading axes of the draws differ"):
        gx.Predictive(line, {"slope": jnp.zeros(3), "y": jnp.zeros((4, 3))})(key, X)
    with pytest.raises(
        ValueError, match=r"'y' have shape \(\), but the site itself has shape \(3,\)"
    ):
        gx.Predictive(line, {"y": jnp.zeros(())})(key, X)
    with refused_type("random key first"):
        gx.Predictive(line, num_samples=2)(0, X)
    with pytest.raises(ValueError, match="draws lack the latent 'slope'"):
        gx.log_likelihood(line, {}, X, X)
    with pytest.raises(ValueError, match="observes nothing"):
        gx.log_likelihood(line, {"slope": jnp.zeros(2), "y": jnp.zeros((2, 3))}, X)


def likelihood_model(x, y, mask):
    """Plates, a mask, a scale, several sites and a factor."""
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    b = numpyro.sample("b", dist.HalfNormal(1.0).expand([2]).to_event(1))
    with numpyro.plate("data", x.shape[0]), numpyro.handlers.mask(mask=mask):
        with numpyro.handlers.scale(scale=3.0):
            numpyro.sample("y", dist.Normal(a * x, b[0]), obs=y)
        vector = dist.MultivariateNormal(jnp.zeros(2) + a, jnp.diag(b))
        numpyro.sample("v", vector, obs=jnp.stack([x, y], -1))
    numpyro.factor("tilt", -(a**2))


def test_log_likelihood_is_numpyros():
    rng = np.random.default_rng(0)
    draws = {"a": rng.normal(size=(2, 5)), "b": rng.gamma(2.0, size=(2, 5, 2))}
    args = rng.normal(size=4), rng.normal(size=4), np.array([True, False, True, True])
    theirs = numpyro_log_likelihood(likelihood_model, draws, *args, batch_ndims=2)
    ours = gx.log_likelihood(gx.from_numpyro(likelihood_model), draws, *args, batch_size=3)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name].shape == theirs[name].shape
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6, atol=1e-6)


def test_log_likelihood_of_a_native_model_masks_and_does_not_scale():
    def model(y):
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        kept = ~jnp.isnan(y)
        with gx.plate("data", 3), gx.handlers.mask(mask=kept), gx.handlers.scale(scale=2.0):
            gx.sample("y", distrax.Normal(z, 1.0), obs=y)

    y = np.array([0.5, np.nan, 2.0])
    z = np.array([0.0, 1.0])
    found = gx.log_likelihood(model, {"z": z}, y)["y"]
    exact = -0.5 * (y - z[:, None]) ** 2 - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(found, np.where(np.isnan(y), 0.0, exact), rtol=1e-6)


def test_default_sites_are_numpyros(key):
    draws = {"slope": np.full(3, 1.5)}
    theirs = NumPyroPredictive(numpyro_line, draws)(jax.random.key(1), X)
    ours = gx.Predictive(gx.from_numpyro(numpyro_line), draws)(key, X)
    assert {n: x.shape for n, x in ours.items()} == {n: x.shape for n, x in theirs.items()}
    np.testing.assert_allclose(ours["mean"], theirs["mean"], rtol=1e-6)


def drifting_rows(y, steps=None):
    """In NumPyro's `scan`: three independent walks, and a simplex at each step."""
    s = numpyro.sample("s", dist.HalfNormal(1.0))

    def step(before, now):
        with numpyro.plate("row", 3):
            x = numpyro.sample("x", dist.Normal(before, s))
            w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
            numpyro.sample("y", dist.Normal(x + w[..., 0], 1.0), obs=now)
        return x, numpyro.deterministic("twice", 2 * x)

    scan(step, jnp.zeros(3), y, length=steps)


def drifting_draws(size, steps):
    rng = np.random.default_rng(0)
    w = rng.uniform(size=(size, steps, 3))
    x = rng.normal(size=(size, steps, 3))
    return {"s": rng.gamma(2.0, size=size), "x": x, "w": np.stack([w, 1 - w], -1)}


def test_draws_of_a_scan(key):
    model, draws, y = gx.from_numpyro(drifting_rows), drifting_draws(4, 5), np.ones((5, 3))
    found = gx.Predictive(model, draws)(key, None, 5)
    assert found["y"].shape == (4, 5, 3)
    np.testing.assert_allclose(found["twice"], 2 * draws["x"], rtol=1e-6)
    theirs = numpyro_log_likelihood(drifting_rows, draws, y)["y"]
    np.testing.assert_allclose(gx.log_likelihood(model, draws, y)["y"], theirs, rtol=1e-6)


def test_a_longer_scan_goes_on_from_the_draws(key):
    model, draws = gx.from_numpyro(drifting_rows), drifting_draws(4, 5)
    draws["s"] = np.full(4, 1e-4)  # so that the walks stay where the draws end
    sites = ["x", "twice", "y"]
    found = gx.Predictive(model, draws, sites=sites)(key, None, 8)
    last = np.repeat(draws["x"][:, -1:], 3, axis=1)
    np.testing.assert_allclose(found["x"][:, :5], draws["x"], rtol=1e-6)
    np.testing.assert_allclose(found["x"][:, 5:], last, atol=2e-3)
    assert np.ptp(found["x"][:, 5:], axis=1).min() > 0
    np.testing.assert_allclose(found["twice"], 2 * found["x"], rtol=1e-6)
    assert found["y"].shape == (4, 8, 3)
    with pytest.raises(ValueError, match="'x' have shape"):
        gx.Predictive(model, draws)(key, None, 4)
    with pytest.raises(ValueError, match="'x' have shape"):
        gx.log_likelihood(model, draws, np.ones((8, 3)))
