"""Where a fit starts, and what a constructor refuses."""

import functools

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx
from assertions import assert_mean_close, identical, refused_type
from models import Hierarchy, regression, regression_data
from registry import every_guide


def pair():
    gx.sample("a", tfd.LogNormal(1.5 * jnp.ones(2), 0.5))
    gx.sample("b", tfd.Gamma(jnp.asarray(9.0, float), 3.0))


def starts(strategy, model=pair, *args, n=400):
    """Return constrained starting values from many keys."""

    def one(k):
        guide = gx.AutoDelta(model, *args, key=k, init_loc_fn=strategy)
        return guide.sample_posterior(k, *args)

    return {
        name: np.asarray(x)
        for name, x in jax.vmap(one)(jax.random.split(jax.random.key(0), n)).items()
    }


@pytest.mark.parametrize("strategy", [gx.init_to_uniform(), gx.init_to_uniform(radius=0.1)])
def test_uniform(strategy):
    u = np.log(starts(strategy)["a"])
    assert np.abs(u).max() <= strategy.radius
    assert u.std() == pytest.approx(strategy.radius / 3**0.5, rel=0.1)
    assert abs(u[:, 0].mean()) < 5 * u.std() / 20


def test_median():
    a = starts(gx.init_to_median(num_samples=101))["a"]
    np.testing.assert_allclose(np.log(a).mean(), 1.5, atol=0.02)
    # The spread of the median of n normals is about sqrt(pi / 2 n).
    assert np.log(a).std() == pytest.approx(0.5 * (np.pi / 202) ** 0.5, rel=0.15)


def test_mean():
    found = starts(gx.init_to_mean(), n=3)
    np.testing.assert_allclose(found["a"], np.exp(1.5 + 0.125), rtol=1e-5)
    np.testing.assert_allclose(found["b"], 3.0, rtol=1e-5)


def test_mean_falls_back_where_there_is_none():
    def model():
        gx.sample("cauchy", tfd.HalfCauchy(jnp.zeros(()), 1.0))
        gx.sample("flat", gx.ImproperUniform(gx.constraints.real))

    found = starts(gx.init_to_mean(), model, n=3)
    assert all(np.isfinite(x).all() for x in found.values())


def test_sample():
    found = starts(gx.init_to_sample(), n=2000)
    assert_mean_close(np.log(found["a"]), 1.5)
    assert_mean_close(found["b"], 3.0)
    assert np.log(found["a"]).std() == pytest.approx(0.5, rel=0.1)


def test_feasible():
    found = starts(gx.init_to_feasible(), n=2)
    np.testing.assert_array_equal(found["a"], 1.0)
    np.testing.assert_array_equal(found["b"], 1.0)


def test_value():
    strategy = gx.init_to_value({"a": jnp.array([2.0, 3.0])}, fallback=gx.init_to_feasible)
    found = starts(strategy, n=2)
    np.testing.assert_allclose(found["a"], [[2.0, 3.0]] * 2, rtol=1e-6)
    np.testing.assert_array_equal(found["b"], 1.0)
    np.testing.assert_allclose(starts(gx.init_to_value({"a": 2.0}), n=2)["a"], 2.0, rtol=1e-6)
    with pytest.raises(ValueError, match="site 'a' has shape \\(3,\\); expected \\(2,\\)"):
        gx.AutoNormal(pair, key=jax.random.key(0), init_loc_fn=gx.init_to_value({"a": jnp.ones(3)}))
    with refused_type("dictionary"):
        gx.init_to_value([1.0])


def test_a_strategy_of_the_users_own(key):
    def ones(site, key):
        return 4.0 * jnp.ones((*site.batch_shape, *site.event_shape))

    guide = gx.AutoNormal(pair, key=key, init_loc_fn=ones)
    np.testing.assert_allclose(guide.median()["a"], 4.0, rtol=1e-6)
    uninstantiated = gx.AutoNormal(pair, key=key, init_loc_fn=gx.init_to_feasible)
    np.testing.assert_array_equal(uninstantiated.family.loc["a"], 0.0)
    with refused_type("init_loc_fn"):
        gx.AutoNormal(pair, key=key, init_loc_fn=3)


def test_strategies_are_equal_by_value():
    make = (
        gx.init_to_uniform,
        gx.init_to_median,
        gx.init_to_mean,
        gx.init_to_sample,
        gx.init_to_feasible,
        functools.partial(gx.init_to_value, {"a": 1.0}),
    )
    for each in make:
        assert isinstance(each(), eqx.Module)
        assert jax.tree.structure(each()) == jax.tree.structure(each())
    for radius in (-1.0, float("inf"), "a", True):
        with refused_type("init_to_uniform: radius is a half-width, .*; got ", ValueError):
            gx.init_to_uniform(radius=radius)
    with pytest.raises(ValueError, match="init_to_median: num_samples is at least 1; got 0"):
        gx.init_to_median(num_samples=0)
    for num_samples in ("a", 2.5, True):
        with refused_type("init_to_median: num_samples is a Python integer; got "):
            gx.init_to_median(num_samples=num_samples)


@every_guide
def test_every_guide_starts_where_it_is_told(entry, key):
    values = {"a": jnp.array([2.0, 3.0]), "b": jnp.array(0.5)}
    guide = entry.make(pair, key=key, init_loc_fn=gx.init_to_value(values))
    found, others = guide.median(), guide.median(key=jax.random.key(1))
    for name, value in values.items():
        if bool(jnp.all(found[name] == others[name])):
            np.testing.assert_allclose(found[name], value, rtol=1e-5)
        else:  # those of draws, of standard deviation 0.1, which annealed ones move on
            np.testing.assert_allclose(found[name], value, atol=0.05)


def test_init_scale(key):
    guide = gx.AutoNormal(pair, key=key, init_scale=0.37)
    np.testing.assert_allclose(jax.nn.softplus(guide.family.raw_scale["a"]), 0.37, rtol=1e-6)
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="init_scale"):
            gx.AutoNormal(pair, key=key, init_scale=bad)


# The search.


def half_line(y):
    a = gx.sample("a", distrax.Normal(jnp.zeros(()), 1.0))
    b = gx.sample("b", distrax.Normal(jnp.zeros(2), 1.0))
    gx.sample("y", distrax.Normal(jnp.sqrt(a - 1.0) + b.sum(), 1.0), obs=y)


def nowhere(y):
    gx.sample("fine", distrax.Normal(jnp.zeros(()), 1.0))
    a = gx.sample("a", distrax.Normal(jnp.zeros(()), 1.0))
    gx.sample("bad", distrax.Normal(jnp.log(-1 - a**2), 1.0), obs=y)


def test_the_search_retries_until_density_and_gradient_are_finite(key):
    y = jnp.asarray(0.5, float)
    keys = jax.random.split(key, 32)
    ensemble = jax.vmap(lambda k: gx.AutoNormal(half_line, y, key=k))(keys)
    assert bool(jnp.all(ensemble.family.loc["a"] > 1))
    for i in (0, 9, 31):
        member = gx.AutoNormal(half_line, y, key=keys[i])
        assert identical(member, jax.tree.map(lambda x, i=i: x[i], ensemble))


def test_a_failed_search_names_the_densities_and_harms_no_other_member(key):
    y = jnp.asarray(0.5, float)
    with pytest.raises(ValueError, match=r"(?s)no starting point.*bad: nan.*fine: -"):
        gx.AutoNormal(nowhere, y, key=key)

    def sometimes(y, threshold):
        a = gx.sample("a", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("y", distrax.Normal(jnp.sqrt(a - threshold), 1.0), obs=y)

    make = jax.vmap(lambda k, t: gx.AutoNormal(sometimes, y, t, key=k))
    guides = make(jax.random.split(key), jnp.array([-3.0, 50.0]))
    assert jax.vmap(lambda g: g.is_finite())(guides).tolist() == [True, False]


def test_a_model_that_only_forward_mode_differentiates_starts(key):
    def model(y):
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        z = jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * 1.1), (0, z))[1]
        gx.sample("y", distrax.Normal(z, 1.0), obs=y)

    guide = gx.AutoNormal(model, jnp.asarray(1.0, float), key=key)
    assert bool(guide.is_finite())


# What is refused.


def test_bad_models_are_named(key):
    y = jnp.asarray([0.5, 1.5], float)

    def discrete(y):
        gx.sample("z", distrax.Bernoulli(0.5))

    def circular(y):
        gx.sample("angle", tfd.VonMises(0.0, 1.0))

    def sphere(y):
        gx.sample("direction", tfd.SphericalUniform(3))

    def empty(y):
        gx.sample("y", distrax.Normal(jnp.zeros(()), 1.0), obs=y)

    def twice(y):
        gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))

    def two_sizes(y):
        with gx.plate("rows", 2):
            gx.sample("a", distrax.Normal(jnp.zeros(()), 1.0))
        with gx.plate("rows", 3):
            gx.sample("b", distrax.Normal(jnp.zeros(()), 1.0))

    def wrong_shape(y):
        gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        with gx.plate("rows", 3):
            gx.sample("y", distrax.Normal(jnp.zeros(()), 1.0), obs=y)

    def outside(y):
        gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("y", tfd.Gamma(2.0 * jnp.ones(()), 1.0), obs=y - 1)

    def not_a_number(y):
        gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("y", distrax.Normal(jnp.zeros(()), 1.0), obs=y * jnp.nan)

    def bad_param(y):
        gx.sample("z", distrax.Normal(gx.param("s", -1.0, gx.constraints.positive), 1.0))

    def in_python(y):
        gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        if y[0] > 0:
            pass

    cases = {
        discrete: (ValueError, "'z'.*discrete"),
        circular: (ValueError, "'angle'.*circular"),
        sphere: (ValueError, "'direction'.*sphere"),
        empty: (ValueError, "empty has no latent site"),
        twice: (ValueError, "'z'"),
        two_sizes: (ValueError, "'rows'.*one name is one plate"),
        wrong_shape: (ValueError, r"'y'.*shape \(2,\).*\(3,\)"),
        outside: (ValueError, "'y': 1 of its values lie outside"),
        not_a_number: (ValueError, "'y': 2 of its values lie outside"),
        bad_param: (ValueError, "'s': 1 of its values"),
        in_python: (TypeError, "in_python uses the value.*gx.static"),
    }
    for model, (error, message) in cases.items():
        with pytest.raises(error, match=message):
            gx.AutoNormal(model, y, key=key)


def test_complex_observations_are_named(key):
    def model(y):
        m = gx.sample("m", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("y", distrax.Normal(m, 1.0), obs=y)

    with pytest.raises(TypeError, match="site 'y' has a complex log density"):
        gx.AutoNormal(model, jnp.ones(4, complex), key=key)


SIZES = {
    "range": lambda x, n: range(n),
    "zeros": lambda x, n: jnp.zeros(n),
    "ones": lambda x, n: jnp.ones((n, 2)),
    "eye": lambda x, n: jnp.eye(n),
    "reshape": lambda x, n: jnp.reshape(x, (n, -1)),
    "tile": lambda x, n: jnp.tile(x, n),
    "slice": lambda x, n: x[:n],
    "mask": lambda x, n: x[x > n],
}


@pytest.mark.parametrize("use", SIZES.values(), ids=SIZES)
def test_sizes_that_are_traced_are_told(use, key):
    def model(x, n):
        use(x, n)
        gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))

    x = jnp.ones((4, 2))
    with pytest.raises(TypeError, match=r"model uses the value of an array.*gx.static\(value\)"):
        gx.AutoNormal(model, x, jnp.asarray(2), key=key)
    assert gx.AutoNormal(model, gx.static(x), gx.static(2), key=key).family.loc.keys() == {"z"}


@pytest.mark.parametrize(
    "constraint, value",
    {
        gx.constraints.positive: 0.0,
        gx.constraints.zero_sum(): np.ones(3),
        gx.constraints.simplex: np.ones(3),
        gx.constraints.l1_ball: np.ones(3),
        gx.constraints.ordered: np.zeros(3),
        gx.constraints.corr_matrix: 2 * np.eye(2),
        gx.constraints.corr_cholesky: 2 * np.eye(2),
        gx.constraints.lower_cholesky: np.ones((2, 2)),
    }.items(),
    ids=str,
)
def test_starts_outside_a_constraint_are_refused(constraint, value, key):
    """Also where the bijection takes them into it."""

    def of_param():
        gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        gx.param("p", jnp.asarray(value, float), constraint)

    def of_latent():
        gx.sample("z", gx.ImproperUniform(constraint, event_shape=np.shape(value)))

    with pytest.raises(ValueError, match="'p': 1 of its values lie outside"):
        gx.AutoNormal(of_param, key=key)
    start = gx.init_to_value({"z": jnp.asarray(value, float)})
    with pytest.raises(ValueError, match="'z': 1 of the values that init_to_value gives it lie"):
        gx.AutoNormal(of_latent, key=key, init_loc_fn=start)
    made = jax.jit(lambda: gx.AutoNormal(of_latent, key=key, init_loc_fn=start))()
    assert np.all(np.isnan(made.family.loc["z"]))
    inside = gx.AutoDelta(of_latent, key=key).median()["z"]
    again = gx.AutoDelta(of_latent, key=key, init_loc_fn=gx.init_to_value({"z": inside}))
    np.testing.assert_allclose(again.median()["z"], inside, rtol=1e-4, atol=1e-5)


def test_bad_arguments_are_named(key):
    X, y = regression_data()
    with pytest.raises(TypeError, match=r"do not fit the model regression\(X, y=None\)"):
        gx.AutoNormal(regression, X, y, y, key=key)
    guide = gx.AutoNormal(regression, X, y, key=key)
    with pytest.raises(TypeError, match="do not fit the model regression"):
        gx.ELBO()(guide, key, X, z=y)
    with refused_type("called"):
        gx.AutoNormal("model", X, y, key=key)

    def named_like_an_option(y, init_scale):
        gx.sample("z", distrax.Normal(jnp.zeros(()), init_scale))
        gx.sample("y", distrax.Normal(jnp.zeros(()), 1.0), obs=y)

    with pytest.raises(TypeError, match=r"\['init_scale'\].*gx.Batch"):
        gx.AutoNormal(named_like_an_option, 1.0, 2.0, key=key)
    batch = gx.Batch(1.0, init_scale=2.0)
    assert bool(gx.AutoNormal(named_like_an_option, batch, key=key, init_scale=0.3).is_finite())


def test_a_numpyro_model_must_be_wrapped(key):
    numpyro = pytest.importorskip("numpyro")

    def model():
        numpyro.sample("z", numpyro.distributions.Normal(0.0, 1.0))

    with pytest.raises(TypeError, match="gx.from_numpyro"):
        gx.AutoNormal(model, key=key)
    assert bool(gx.AutoNormal(gx.from_numpyro(model), key=key).is_finite())


def test_sites_of_one_shape_share_a_generator_and_draw_as_if_they_did_not(key):
    """Each generator call costs compilation."""

    def model():
        for i in range(6):
            gx.sample(f"z{i}", (distrax.Normal if i % 2 else tfd.LogNormal)(jnp.zeros(()), 1.0))
        gx.sample("w", distrax.Normal(jnp.zeros(3), 1.0))

    def alone(site, key):
        return gx.init_to_uniform(1.0)(site, key)

    def start(strategy):
        return gx.AutoNormal(model, key=key, init_loc_fn=strategy).family.loc

    def generators(strategy):
        return str(jax.make_jaxpr(lambda: start(strategy))()).count("name=_uniform")

    assert identical(start(gx.init_to_uniform(1.0)), start(alone))
    shared, own = generators(gx.init_to_uniform(1.0)), generators(alone)
    assert 0 < shared < own / 2, (shared, own)


def test_names_that_the_model_lacks_are_told(key):
    with pytest.warns(UserWarning, match=r"values for \['aa'\], which no latent.*\['a', 'b'\]"):
        gx.AutoNormal(pair, key=key, init_loc_fn=gx.init_to_value({"aa": 1.0, "a": 2.0}))
    wrong = gx.init_to_value({"bb": 1.0})
    for part, outer in ((functools.partial(gx.AutoNormal, init_loc_fn=wrong), None), (None, wrong)):
        parts = {"a": part or gx.AutoNormal, ...: gx.AutoNormal}
        with pytest.warns(UserWarning, match=r"values for \['bb'\], which no latent"):
            gx.AutoGuideList(pair, key=key, parts=parts, init_loc_fn=outer)
    batch = gx.Batch(*regression_data()).at(row=jnp.arange(3))
    with pytest.raises(ValueError, match=r"at\(row=...\) names no plate of the model"):
        gx.AutoNormal(regression, batch, key=key)


def test_a_guide_of_rows_asks_what_others_ask(key):
    y, local = jnp.asarray(Hierarchy.y, float), gx.AutoSemiDAIS
    with pytest.warns(UserWarning, match="values for .'nope'., which no latent"):
        local(Hierarchy.takes_rows, y, key=key, init_loc_fn=gx.init_to_value({"nope": 1.0}))
    for at, message in (
        ({"nope": jnp.array([1])}, "names no plate of the model"),
        ({"data": jnp.array([0, 99])}, "data.*99"),
    ):
        with pytest.raises(ValueError, match=message):
            local(Hierarchy.takes_batch, gx.Batch(y[:2]).at(**at), key=key)


@pytest.mark.parametrize("constructor", [gx.AutoNormal, gx.AutoGuideList, gx.AutoSemiDAIS])
def test_a_seed_is_no_key(constructor):
    for seed in (0, jax.random.split(jax.random.key(0), 3)):
        with refused_type(f"{constructor.__name__} takes "):
            constructor(pair, key=seed)


def test_strategies_of_numpyro_are_told_apart(key):
    infer = pytest.importorskip("numpyro.infer")
    for strategy in (infer.init_to_median, infer.init_to_value(values={"a": 1.0})):
        with pytest.raises(TypeError, match="NumPyro's init_to_.*gx.init_to_median"):
            gx.AutoNormal(pair, key=key, init_loc_fn=strategy)


def test_parameters_follow_the_dtype_of_their_site(key):
    with jax.enable_x64(True):

        def model(y):
            z = gx.sample("z", distrax.Normal(jnp.float32(0.0), jnp.float32(1.0)))
            gx.sample("w", distrax.Normal(jnp.float64(0.0), 1.0))
            gx.sample("y", distrax.Normal(z, jnp.float32(1.0)), obs=y)

        y = jnp.float32(1.0)
        guide = gx.AutoNormal(model, y, key=key)
        after = gx.fit(key, guide, y, steps=3, progress=False).guide
        for each in (guide, after):
            for part in (each.family.loc, each.family.raw_scale):
                assert {n: str(x.dtype) for n, x in part.items()} == {
                    "z": "float32",
                    "w": "float64",
                }
        draws = guide.sample_posterior(key, y)
        assert draws["z"].dtype == jnp.float32 and draws["w"].dtype == jnp.float64


def test_values_of_all_rows_under_subsampling(key):
    y = jnp.asarray(Hierarchy.y, float)
    z = jnp.arange(6.0)
    strategy = gx.init_to_value({"z": z, "mu": 0.0, "s": 1.0})
    guide = gx.AutoNormal(Hierarchy.takes_rows, y, key=key, init_loc_fn=strategy)
    np.testing.assert_array_equal(guide.family.loc["z"], z)
    named = gx.Batch(y[:2]).at(data=jnp.array([4, 1]))
    guide = gx.AutoNormal(Hierarchy.takes_batch, named, key=key, init_loc_fn=strategy)
    np.testing.assert_array_equal(guide.family.loc["z"], z)
    # A ready-made batch of unknown rows: full-size values cannot be cut, and are not repeated.
    with pytest.raises(ValueError, match="'z'.*row_numbers"):
        gx.AutoNormal(Hierarchy.takes_batch, y[:2], key=key, init_loc_fn=strategy)
    short = gx.init_to_value({"z": jnp.arange(2.0)})
    with pytest.raises(ValueError, match="'z'"):
        gx.AutoNormal(Hierarchy.takes_rows, y, key=key, init_loc_fn=short)


def test_a_substituted_latent_is_refused(key):
    def model(y):
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        w = gx.sample("w", distrax.Normal(z, 1.0))
        gx.sample("y", distrax.Normal(w, 1.0), obs=y)

    y = jnp.asarray(0.3, float)
    fixed = gx.handlers.substitute(model, {"z": 0.5})
    with pytest.raises(ValueError, match=r"'z': a handler.*condition"):
        gx.AutoNormal(fixed, y, key=key)
    guide = gx.AutoNormal(gx.handlers.condition(model, {"z": 0.5}), y, key=key)
    assert guide.family.loc.keys() == {"w"}


class Bell(tfd.Distribution):
    """A standard normal density, and no draws."""

    def __init__(self):
        super().__init__(float, tfd.NOT_REPARAMETERIZED, False, True)

    def _event_shape(self):
        return ()

    def _batch_shape(self):
        return ()

    def _log_prob(self, value):
        return jax.scipy.stats.norm.logpdf(value)


class DistraxBell(distrax.Distribution):
    event_shape = batch_shape = ()

    def log_prob(self, value):
        return jax.scipy.stats.norm.logpdf(value)

    def _sample_n(self, key, n):
        raise NotImplementedError


class BareBell:
    event_shape = batch_shape = ()
    dtype = float

    def log_prob(self, value):
        return jax.scipy.stats.norm.logpdf(value)


for kind in (Bell, DistraxBell, BareBell):
    gx.support.register(kind)(lambda _: gx.constraints.real)


@pytest.mark.parametrize(
    "prior",
    [Bell, DistraxBell, BareBell, lambda: tfd.Independent(tfd.BatchBroadcast(Bell(), [2]), 1)],
    ids=["tfd", "distrax", "neither", "independent"],
)
def test_a_prior_without_draws_needs_none(prior, key):
    def model(y=None):
        z = gx.sample("z", prior())
        gx.sample("y", distrax.Normal(jnp.sum(z), 1.0), obs=y)

    y = jnp.zeros(())
    uniform = gx.AutoDelta(model, y, key=key, init_loc_fn=gx.init_to_uniform())
    for strategy in (gx.init_to_median(), gx.init_to_mean(), gx.init_to_sample()):
        guide = gx.AutoDelta(model, y, key=key, init_loc_fn=strategy)
        np.testing.assert_allclose(guide.median()["z"], uniform.median()["z"], rtol=1e-6)
    with pytest.raises(ValueError, match="site 'z' has no prior.*without `sample`"):
        gx.Predictive(model, num_samples=2)(key)


def test_a_latent_that_nobody_can_draw_is_named(key):
    class OnASphere(BareBell):
        event_shape = (3,)

    gx.support.register(OnASphere)(lambda _: gx.constraints.sphere)
    with pytest.raises(ValueError, match="latent site 'z': .*sphere"):
        gx.AutoNormal(lambda: gx.sample("z", OnASphere()), key=key)
