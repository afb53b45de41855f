"""Groups, dims and coordinates for ArviZ, and ArviZ's own functions on them."""

import functools
import sys
import warnings
from typing import Any

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx
from assertions import refused_type
from guidax._family.base import AbstractFamily
from guidax._model.program import as_model
from guidax._model.target import Draw

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ArviZ 0.23 announces version 1
    import arviz as az
    import matplotlib

EFFECT = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERROR = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
SCHOOLS = list("ABCDEFGH")
DRAWS = 200


def schools(effect, error):
    mu = gx.sample("mu", distrax.Normal(jnp.zeros(()), 5.0))
    tau = gx.sample("tau", tfd.HalfCauchy(jnp.zeros(()), 5.0))
    with gx.plate("school", 8):
        distance = gx.sample("distance", distrax.Normal(jnp.zeros(()), 1.0))
        theta = gx.deterministic("theta", mu + tau * distance)
        gx.sample("effect", distrax.Normal(theta, error), obs=effect)


@pytest.fixture(scope="module")
def guide():
    return gx.AutoNormal(schools, EFFECT, ERROR, key=jax.random.key(0))


@pytest.fixture(scope="module")
def tree(guide):
    key = jax.random.key(0)
    coords = {"school": SCHOOLS}
    return gx.to_arviz(key, guide, EFFECT, ERROR, num_samples=DRAWS, coords=coords)


def group(tree, name):
    """Return a group as a dataset, of either of ArviZ's containers."""
    found = tree[name]
    return found.to_dataset() if hasattr(found, "to_dataset") else found


def names_of(tree):
    return set(tree.groups() if callable(tree.groups) else [g.strip("/") for g in tree.groups])


def test_groups_dims_and_coordinates(tree):
    assert names_of(tree) - {""} == {
        "posterior",
        "posterior_predictive",
        "log_likelihood",
        "sample_stats",
        "prior",
        "prior_predictive",
        "observed_data",
        "constant_data",
    }
    posterior = group(tree, "posterior")
    assert set(posterior.data_vars) == {"mu", "tau", "distance", "theta"}
    for name in ("theta", "distance"):
        assert posterior[name].dims == ("chain", "draw", "school")
    assert posterior["theta"].shape == (1, DRAWS, 8)
    assert list(posterior["school"].values) == SCHOOLS
    assert group(tree, "observed_data")["effect"].dims == ("school",)
    np.testing.assert_array_equal(group(tree, "observed_data")["effect"], EFFECT)
    constant = group(tree, "constant_data")
    assert set(constant.data_vars) == {"error"} and constant["error"].dims == ("error_dim_0",)
    assert posterior.attrs["guide"] == "AutoNormal"


def test_values_are_those_of_algebra(tree, guide):
    posterior = group(tree, "posterior")
    mu, tau = posterior["mu"].values[0], posterior["tau"].values[0]
    distance, theta = posterior["distance"].values[0], posterior["theta"].values[0]
    np.testing.assert_allclose(theta, mu[:, None] + tau[:, None] * distance, rtol=1e-5)

    def log_normal(x, mean, sd):
        return -0.5 * ((x - mean) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)

    likelihood = log_normal(np.asarray(EFFECT), theta, np.asarray(ERROR))
    np.testing.assert_allclose(group(tree, "log_likelihood")["effect"][0], likelihood, rtol=1e-5)
    stats = group(tree, "sample_stats")
    log_p = log_normal(mu, 0, 5) + log_normal(distance, 0, 1).sum(1) + likelihood.sum(1)
    log_p += np.log(2 / (np.pi * 5 * (1 + (tau / 5) ** 2)))
    np.testing.assert_allclose(stats["lp"][0], log_p, rtol=1e-5)
    latents = {"mu": mu, "tau": tau, "distance": distance}
    np.testing.assert_allclose(stats["log_q"][0], guide.log_prob(latents), rtol=1e-4)
    np.testing.assert_allclose(stats["log_weight"], stats["lp"] - stats["log_q"], rtol=1e-6)


def test_predictive_groups_are_drawn_at_their_draws(tree):
    spread = np.asarray(ERROR)
    predicted = group(tree, "posterior_predictive")["effect"].values[0]
    noise = (predicted - group(tree, "posterior")["theta"].values[0]) / spread
    prior = group(tree, "prior_predictive")["effect"].values[0]
    prior_noise = (prior - group(tree, "prior")["theta"].values[0]) / spread
    for x in (noise, prior_noise):  # standard normals
        assert abs(x.mean()) < 5 / x.size**0.5
        assert abs(x.std() - 1) < 5 / (2 * x.size) ** 0.5
    mu = group(tree, "prior")["mu"].values
    assert abs(mu.std() - 5) < 5 * 5 / (2 * DRAWS) ** 0.5


def test_arviz_reads_it(tree):
    matplotlib.use("Agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ArviZ: one chain; Pareto k of a guide without fit
        summary = az.summary(tree, var_names=["mu", "theta"], round_to="none")
        loo = az.loo(tree)
        compared = az.loo(tree, pointwise=True)
        if az.__version__.startswith("0."):
            az.plot_posterior(tree, var_names=["mu"])
            az.plot_forest(tree, var_names=["theta"])
            az.plot_ppc(tree, num_pp_samples=5)
            az.plot_pair(tree, var_names=["mu", "tau"])
        else:
            az.plot_dist(tree, var_names=["mu"])
            az.plot_forest(tree, var_names=["theta"])
            az.plot_ppc_dist(tree, num_samples=5)
            az.plot_pair(tree, var_names=["mu", "tau"])
        matplotlib.pyplot.close("all")
    mean = group(tree, "posterior")["mu"].mean()
    np.testing.assert_allclose(float(summary.loc["mu", "mean"]), float(mean), rtol=1e-6)
    assert {f"theta[{s}]" for s in SCHOOLS} <= set(summary.index)
    elpd = loo.elpd_loo if hasattr(loo, "elpd_loo") else loo.elpd
    pointwise = compared.loo_i if hasattr(compared, "loo_i") else compared.elpd_i
    np.testing.assert_allclose(float(elpd), float(pointwise.sum()), rtol=1e-6)
    # At most the log of the mean likelihood, which does not leave the datum out.
    likelihood = group(tree, "log_likelihood")["effect"].values[0]
    assert float(elpd) < np.log(np.exp(likelihood).mean(0)).sum()


def grid(y):
    """Two crossed plates, one of which is subsampled, and a vector."""
    weight = gx.sample("weight", distrax.Independent(distrax.Normal(jnp.zeros(2), 1.0), 1))
    with gx.plate("column", 3, dim=-1):
        slope = gx.sample("slope", distrax.Normal(jnp.zeros(()), 1.0))
        with gx.plate("row", 4, subsample_size=2, dim=-2):
            gx.deterministic("pairs", jnp.ones((4, 3, 2)) * weight)
            gx.sample("y", distrax.Normal(slope + weight[0], 1.0), obs=gx.subsample(y, 0))


def test_rows_of_the_batch_name_the_coordinates(key):
    y = jnp.arange(12.0).reshape(4, 3)
    guide = gx.AutoNormal(grid, y, key=key)
    options = {"num_samples": 3, "groups": ["observed_data", "log_likelihood"]}
    dims, coords = {"weight": ["kind"]}, {"row": list("abcd"), "kind": [10, 20]}
    batch = gx.Batch(y).at(row=np.array([3, 1]))
    tree = gx.to_arviz(key, guide, batch, dims=dims, coords=coords, **options)
    data = group(tree, "observed_data")["y"]
    assert data.dims == ("row", "column")
    assert list(data["row"].values) == ["d", "b"] and list(data["column"].values) == [0, 1, 2]
    np.testing.assert_array_equal(data, y[np.array([3, 1])])
    posterior = group(tree, "posterior")
    assert posterior["weight"].dims == ("chain", "draw", "kind")
    assert list(posterior["kind"].values) == [10, 20]
    assert names_of(tree) - {""} == {"posterior", "observed_data", "log_likelihood"}
    whole = gx.to_arviz(key, guide, y, num_samples=3, groups=["observed_data"])
    np.testing.assert_array_equal(group(whole, "observed_data")["y"], y)
    pairs = group(whole, "posterior")["pairs"]
    assert pairs.dims == ("chain", "draw", "row", "column", "pairs_dim_2")


def test_arguments_with_the_name_of_a_site_and_another_shape(key):
    def model(level, y):
        level = gx.sample("level", distrax.Normal(jnp.mean(level), 1.0))
        with gx.plate("data", 6, subsample_size=3) as rows:
            gx.sample("y", distrax.Normal(level, 1.0), obs=y[rows])

    level, y = jnp.array([1.0, 2.0]), jnp.arange(6.0)
    guide = gx.AutoNormal(model, level, y, key=key)
    batch = gx.Batch(level, y).at(data=jnp.array([4, 1, 2]))
    tree = gx.to_arviz(key, guide, batch, num_samples=2, coords={"data": list("abcdef")})
    assert list(tree["observed_data"]["y"].coords["data"].values) == list("ebc")
    constant = tree["constant_data"]
    assert constant["level"].dims == ("level_constant_dim_0",)
    assert constant["y"].dims == ("y_constant_dim_0",)
    np.testing.assert_array_equal(constant["y"].values, y)


def test_all_rows_in_the_order_of_the_batch(key):
    def rows(y):
        with gx.plate("row", 4):
            z = gx.sample("z", distrax.Normal(jnp.zeros(()), 10.0))
            gx.deterministic("twice", 2 * z)
            gx.sample("y", distrax.Normal(z, 1.0), obs=y)

    y, order = np.array([0.0, 10.0, 20.0, 30.0]), np.array([1, 2, 0, 3])
    init = gx.init_to_value({"z": y})
    guide = gx.AutoNormal(rows, y, key=key, init_loc_fn=init, init_scale=0.1)
    tree = gx.to_arviz(key, guide, gx.Batch(y[order]).at(row=order), num_samples=3)
    posterior = group(tree, "posterior")
    assert list(posterior["row"].values) == list(order)
    z = posterior["z"].values[0]
    assert np.all(np.abs(z - y[order]) < 1.0)
    np.testing.assert_allclose(posterior["twice"][0], 2 * z, rtol=1e-6)
    expected = -0.5 * (z - y[order]) ** 2 - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(group(tree, "log_likelihood")["y"][0], expected, rtol=1e-5)


def numpyro_model(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", x.shape[0]):
        numpyro.deterministic("line", slope * x)
    numpyro.sample("y", dist.Normal(slope, 1.0), obs=y)  # no plate, and broadcast to y
    numpyro.factor("tilt", -(slope**2))


def test_a_numpyro_model_whose_data_are_wider_than_their_distribution(key):
    x, y = np.arange(3.0), np.zeros(500)
    guide = gx.AutoNormal(gx.from_numpyro(numpyro_model), x, y, key=key)
    groups = ["posterior_predictive", "constant_data", "observed_data"]
    extra = {"weights": np.ones(2)}
    options = {"num_samples": 2, "groups": groups, "constant_data": extra}
    tree = gx.to_arviz(key, guide, x, y, **options)
    assert group(tree, "posterior")["line"].dims == ("chain", "draw", "data")
    predicted = group(tree, "posterior_predictive")["y"]
    assert predicted.shape == (1, 2, 500)
    assert np.all(np.abs(predicted.std("y_dim_0") - 1) < 5 / 1000**0.5)  # a draw for each datum
    assert set(group(tree, "observed_data").data_vars) == {"y"}  # the factor has no data
    assert set(group(tree, "constant_data").data_vars) == {"weights"}


def test_models_without_prior_or_data(key):
    density = gx.from_log_density(lambda z: -0.5 * jnp.sum(z**2), jnp.zeros(2))
    guide = gx.AutoDelta(density, key=key)
    tree = gx.to_arviz(key, guide, num_samples=2, batch_size=1)
    assert names_of(tree) - {""} == {"posterior", "sample_stats"}
    assert set(group(tree, "sample_stats").data_vars) == {"lp"}  # a point has no density
    nested = gx.AutoGuideList(density, key=key, parts={...: gx.AutoDelta})
    nested = gx.AutoGuideList(density, key=key).append(nested)
    tree = gx.to_arviz(key, nested, num_samples=2)
    assert set(group(tree, "sample_stats").data_vars) == {"lp"}
    with pytest.raises(ValueError, match=r"no group 'prior': the sites \['value'\]"):
        gx.to_arviz(key, guide, groups=["prior"])
    with pytest.raises(ValueError, match="no group 'log_likelihood': the model observes no data"):
        gx.to_arviz(key, guide, groups=["log_likelihood"])


def test_one_name_is_one_axis(key):
    def model():
        with gx.plate("draw", 3):
            gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("w", distrax.Normal(jnp.zeros((2, 2)), 1.0))

    call = functools.partial(gx.to_arviz, key, gx.AutoNormal(model, key=key), num_samples=2)
    with pytest.raises(ValueError, match=r"axes of 'z' would be named \('draw',\)"):
        call()
    renamed = {"z": ["row"]}
    assert group(call(dims=renamed), "posterior")["z"].dims == ("chain", "draw", "row")
    with pytest.raises(ValueError, match=r"'w' would be named \('k', 'k'\), but \['k'\] are"):
        call(dims=renamed | {"w": ["k", "k"]})
    with pytest.raises(ValueError, match="dim 'k' has size 3 in 'z' and size 2 in 'w': one name"):
        call(dims={"z": ["k"], "w": ["k", "l"]})


class OwnPoint(AbstractFamily):
    """A family of a user's own that draws a point."""

    loc: Any
    sites: Any = eqx.field(static=True)

    def draw(self, key, target):
        return Draw.of(self.loc, "point")


def test_a_family_of_ones_own_that_draws_points(key):
    def model():
        gx.sample("z", tfd.LogNormal(jnp.zeros(()), 1.0))

    plain = gx.AutoDelta(model, key=key)
    family = OwnPoint(loc=plain.family.loc, sites=plain.family.sites)
    guide = gx.AutoGuide(plain.model, family, plain.structure)
    tree = gx.to_arviz(key, guide, num_samples=2, groups=["sample_stats"])
    assert set(group(tree, "sample_stats").data_vars) == {"lp"}
    with pytest.raises(TypeError, match=r"draws the sites \['z'\] as points"):
        gx.diagnose(key, guide)


def test_a_few_draws_at_a_time(key):
    sizes = set()

    @jax.custom_batching.custom_vmap
    def spy(x):
        return x

    @spy.def_vmap
    def _(axis_size, in_batched, x):
        sizes.add(axis_size)
        return x, in_batched[0]

    def model(y, look=lambda x: x):
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("y", distrax.Normal(look(z), 1.0), obs=y)

    plain = gx.AutoNormal(model, 0.5, key=key)
    spied = as_model(functools.partial(model, look=spy))
    guide = gx.AutoGuide(spied, plain.family, plain.structure)
    tree = gx.to_arviz(key, guide, 0.5, num_samples=10, batch_size=4)
    assert sizes == {2, 4}  # two are left over
    z, stats = group(tree, "posterior")["z"].values, group(tree, "sample_stats")
    expected = -0.5 * z**2 - 0.5 * (z - 0.5) ** 2 - np.log(2 * np.pi)
    np.testing.assert_allclose(stats["lp"], expected, rtol=1e-5)


def test_errors(key, guide, monkeypatch):
    def call(*args, **options):
        return gx.to_arviz(key, guide, *args, num_samples=2, groups=[], **options)

    with pytest.raises(ValueError, match=r"no groups \['priors'\].*always posterior"):
        gx.to_arviz(key, guide, EFFECT, ERROR, groups=["priors"])
    with pytest.raises(ValueError, match="not known inside a transformation"):
        jax.jit(lambda key: gx.to_arviz(key, guide, EFFECT, ERROR))(key)
    with pytest.raises(ValueError, match="not known inside a transformation"):
        jax.jit(lambda effect: gx.to_arviz(key, guide, effect, ERROR))(EFFECT)
    with refused_type("groups takes a list"):
        gx.to_arviz(key, guide, EFFECT, ERROR, groups="prior")
    with pytest.raises(ValueError, match=r"\['effect'\] are neither observed"):
        call(None, ERROR)
    with pytest.raises(ValueError, match=r"dims\['theta'\] has 2 names"):
        call(EFFECT, ERROR, dims={"theta": ["a", "b"]})
    with pytest.raises(ValueError, match=r"dims names \['thet'\]"):
        call(EFFECT, ERROR, dims={"thet": ["a"]})
    with pytest.raises(ValueError, match=r"coords names \['schools'\]; the axes are \['school'\]"):
        call(EFFECT, ERROR, coords={"schools": SCHOOLS})
    with pytest.raises(ValueError, match=r"coords\['school'\] has shape \(2,\)"):
        call(EFFECT, ERROR, coords={"school": SCHOOLS[:2]})
    with refused_type("a random key, then a guide; got .* and function"):
        gx.to_arviz(key, schools, EFFECT, ERROR)
    with refused_type("a random key, then a guide; got AutoNormal and PRNGKeyArray"):
        gx.to_arviz(guide, key, EFFECT, ERROR)
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r'pip install "guidax\[arviz\]"'):
        call(EFFECT, ERROR)


def test_a_prior_without_draws_has_no_prior_groups(key):
    class Bell(dist.Distribution):
        support = dist.constraints.real

        def log_prob(self, value):
            return dist.Normal().log_prob(value)

    def model(y):
        z = numpyro.sample("z", Bell())
        with numpyro.plate("rows", 3):
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    wrapped, y = gx.from_numpyro(model), jnp.ones(3)
    tree = gx.to_arviz(key, gx.AutoNormal(wrapped, y, key=key), y, num_samples=10)
    assert "posterior_predictive" in tree and "prior" not in tree
