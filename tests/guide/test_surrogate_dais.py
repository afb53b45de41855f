"""`AutoSurrogateLikelihoodDAIS`: moves along a surrogate, minibatches for the model."""

import functools
import itertools

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidax as gx
from assertions import assert_mean_close, distance, refused_type

ROWS = 4
DATA = jnp.asarray([0.3, -1.0, 2.0, 0.8], float)


def model(y):
    """`mu ~ N(0, 1)` and `y_i ~ N(mu, 1)`, two rows at a time: the evidence is known."""
    mu = gx.sample("mu", distrax.Normal(jnp.zeros(()), 1.0))
    with gx.plate("data", ROWS, subsample_size=2):
        gx.deterministic("gap", gx.subsample(y) - mu)
        gx.sample("y", distrax.Normal(mu, 1.0), obs=gx.subsample(y))


def surrogate(y):
    """The same prior, and weights on two of the data."""
    mu = gx.sample("mu", distrax.Normal(jnp.zeros(()), 1.0))
    weights = gx.param("weights", 2.0 * jnp.ones(2), gx.constraints.positive)
    with gx.plate("some", 2), gx.handlers.scale(scale=weights):
        gx.sample("obs", distrax.Normal(mu, 1.0), obs=y)


SOME = gx.Batch(DATA[:2])


def make(key, **options):
    return gx.AutoSurrogateLikelihoodDAIS(
        model, surrogate, DATA, key=key, **({"surrogate": SOME} | options)
    )


def test_the_mean_over_batches_is_the_full_data_estimate_in_value_and_gradient(key):
    """The moves read no batch, so that the estimates differ in the likelihood alone."""
    guide = make(key, eta_init=0.09)
    objective = gx.ELBO(3)

    def of(rows):
        batch = gx.Batch(DATA).at(data=jnp.asarray(rows))
        return jax.value_and_grad(objective)(guide, key, batch)

    each = [of(rows) for rows in itertools.combinations(range(ROWS), 2)]
    mean = jax.tree.map(lambda *x: sum(x) / len(x), *each)
    assert distance(mean, of(range(ROWS))) < 1e-5


def test_the_mean_weight_is_the_evidence(key):
    options = {"K": 3, "eta_init": 0.3, "eta_max": 0.8, "init_scale": 0.7, "gamma_init": 0.6}
    guide = make(key, init_loc_fn=gx.init_to_feasible(), **options)
    whole = gx.Batch(DATA).at(data=jnp.arange(ROWS))
    draws, log_q = guide.sample_and_log_prob(key, whole, sample_shape=(50_000,))
    covariance = np.eye(ROWS) + 1
    log_z = distrax.MultivariateNormalTri(
        jnp.zeros(ROWS), jnp.asarray(np.linalg.cholesky(covariance))
    ).log_prob(DATA)
    weights = jnp.exp(gx.log_joint(guide.model, {"mu": draws["mu"]}, whole) - log_q - log_z)
    assert_mean_close(weights, 1.0, sigmas=4)


def test_its_parameters_are_trained_and_read_back(key):
    guide = make(key)
    np.testing.assert_allclose(guide.param_values()["weights"], 2.0, rtol=1e-5)
    fitted = gx.fit(key, guide, DATA, steps=300, progress=False)
    assert float(jnp.abs(fitted.guide.param_values()["weights"] - 2.0).min()) > 0.01
    assert fitted.losses[-50:].mean() < fitted.losses[:50].mean()

    def same_name(y):
        gx.param("weights", 1.0)
        model(y)

    clash = gx.AutoSurrogateLikelihoodDAIS(same_name, surrogate, DATA, key=key, surrogate=SOME)
    with pytest.raises(ValueError, match="weights"):
        clash.param_values()


def test_draws_need_no_arguments(key):
    guide = make(key)
    draws = guide.sample_posterior(key, sample_shape=(5,))
    assert draws.keys() == {"mu"}  # gap reads the data
    assert (
        distance(draws, {"mu": guide.sample_posterior(key, DATA, sample_shape=(5,))["mu"]}) < 1e-6
    )
    assert guide.median().keys() == {"mu"}


OPTIONS = [
    {"K": 5},
    {"eta_init": 0.02},
    {"eta_max": 0.4},
    {"gamma_init": 0.5},
    {"init_scale": 0.5},
    {"init_loc_fn": gx.init_to_feasible()},
    {"base_dist": gx.AutoLowRankMultivariateNormal},
    {"whiten": True},
    {"max_kick": 0.01},
    {"surrogate": gx.Batch(DATA[2:])},
]


def test_no_option_is_ignored(key):
    plain = make(key)
    draw = plain.sample_posterior(key)["mu"]
    for options in OPTIONS:
        moved = make(key, **options).sample_posterior(key)["mu"]
        assert abs(float(moved - draw)) > 1e-7, options
    full = make(key, base_dist="cholesky", eta_max=0.3, recompute=True).family
    assert hasattr(full.base, "raw_scale_tril") and full.dynamics.eta_max == 0.3
    assert full.dynamics.recompute
    np.testing.assert_allclose(make(key, K=7).dynamics()["step_size"], np.full(7, 0.01), rtol=1e-5)


def test_equal_data_are_one_program(key):
    first, again = make(key), make(key, surrogate=gx.Batch(jnp.array(DATA[:2])))
    assert jax.tree.structure(first) == jax.tree.structure(again)
    other = make(key, surrogate=gx.Batch(DATA[2:]))
    assert jax.tree.structure(first) != jax.tree.structure(other)


def prior(name="mu", shape=(), rows=1):
    def other():
        gx.sample(name, distrax.Normal(jnp.zeros(shape), 1.0))
        with gx.plate("some", 2, subsample_size=rows):
            pass

    return other


def outside():
    """A prior, and a param that starts where its constraint forbids it."""
    gx.param("scale", -1.0, gx.constraints.positive)
    prior(rows=2)()


@pytest.mark.parametrize(
    ("stand_in", "options", "error", "message"),
    [
        (prior("nu", rows=2), {}, ValueError, r"lacks \['mu'\]; \['nu'\] are not"),
        (prior(shape=(2,), rows=2), {}, ValueError, r"'mu' has shape \(2,\), not \(\)"),
        (prior(), {}, ValueError, "'some' of surrogate_model holds 1 of 2 rows"),
        (outside, {}, ValueError, r"\['scale'\] of surrogate_model start outside"),
        (surrogate, {}, TypeError, "do not fit the model surrogate"),
        (surrogate, {"surrogate": DATA[:2]}, TypeError, "surrogate takes.*gx.Batch"),
        (prior(rows=2), {"K": 0}, ValueError, "K counts steps"),
        (prior(rows=2), {"base_dist": "full"}, ValueError, "base_dist"),
        (prior(rows=2), {"init_scale": -1.0}, ValueError, "init_scale"),
    ],
)
def test_mistakes_are_named(stand_in, options, error, message, key):
    # The run-time type checker may speak first.
    with pytest.raises(error, match=f"{message}|Type-check"):
        gx.AutoSurrogateLikelihoodDAIS(model, stand_in, DATA, key=key, **options)


def test_a_forgotten_surrogate_is_named(key):
    with refused_type("something that can be called"):
        gx.AutoSurrogateLikelihoodDAIS(model, DATA, key=key, surrogate=gx.Batch(DATA[:2]))


def test_traced_data_of_the_surrogate_are_refused(key):
    def inside(y):
        return make(key, surrogate=gx.Batch(y[:2])).sample_posterior(key)

    with pytest.raises(TypeError, match="surrogate takes constants"):
        jax.jit(inside)(DATA)


def test_latents_in_a_subsampled_plate_are_refused(key):
    def local(y):
        with gx.plate("data", ROWS, subsample_size=2):
            z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
            gx.sample("y", distrax.Normal(z, 1.0), obs=gx.subsample(y))

    def stand_in():
        with gx.plate("data", ROWS):
            gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))

    guide = gx.AutoSurrogateLikelihoodDAIS(local, stand_in, DATA, key=key)
    with pytest.raises(ValueError, match="'data' holds 2 of 4 rows.*gx.AutoNormal"):
        gx.ELBO()(guide, key, DATA)


@pytest.mark.slow
def test_it_beats_mean_field_on_collinear_covariates(key):
    """Logistic regression: 64 data in batches of 48, a surrogate of 32 of them."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(64, 1))
    X = jnp.asarray(shared + 0.2 * rng.normal(size=(64, 3)), float)
    y = jnp.asarray(rng.random(64) < 1 / (1 + np.exp(-X @ np.array([1.0, -0.5, 1.0]))), float)

    def weights():
        return gx.sample("w", distrax.Independent(distrax.Normal(jnp.zeros(3), 1.0), 1))

    def regression(X, y):
        w = weights()
        with gx.plate("data", 64, subsample_size=48):
            logits = gx.subsample(X, event_dim=1) @ w
            gx.sample("y", distrax.Bernoulli(logits=logits), obs=gx.subsample(y))

    def stand_in(X, y):
        w = weights()
        omega = gx.param("omega", 2.0 * jnp.ones(32), gx.constraints.positive)
        with gx.plate("some", 32), gx.handlers.scale(scale=omega):
            gx.sample("y", distrax.Bernoulli(logits=X @ w), obs=y)

    def elbo(guide):
        fitted = gx.fit(
            key, guide, X, y, steps=4000, progress=False, objective=gx.ELBO(4), learning_rate=0.01
        ).guide
        whole = gx.Batch(X, y).at(data=jnp.arange(64))
        keys = jax.random.split(jax.random.key(1), 10_000)
        return -float(jax.jit(jax.vmap(lambda k: gx.ELBO()(fitted, k, whole)))(keys).mean())

    moving = gx.AutoSurrogateLikelihoodDAIS(
        regression, stand_in, X, y, key=key, surrogate=gx.Batch(X[:32], y[:32]), K=4, eta_max=0.5
    )
    assert elbo(moving) > elbo(gx.AutoDiagonalNormal(regression, X, y, key=key)) + 0.1


def test_a_base_may_say_where_it_starts(key):
    base = functools.partial(gx.AutoDiagonalNormal, init_loc_fn=gx.init_to_value({"mu": 1.5}))
    np.testing.assert_allclose(make(key, base_dist=base).family.base.loc, [1.5])


def test_rows_may_come_in_any_order(key):
    """A batch that names its rows is the same data, whose rows keep their own draws."""

    def rows(y):
        with gx.plate("p", 3):
            z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
            gx.sample("y", distrax.Normal(z, 0.1), obs=y)

    y, order = jnp.asarray([-3.0, 0.0, 3.0], float), jnp.asarray([2, 0, 1])
    guide = gx.AutoSurrogateLikelihoodDAIS(
        rows, rows, y, key=key, surrogate=gx.Batch(y), eta_init=0.05
    )
    permuted = gx.Batch(y[order]).at(p=order)
    np.testing.assert_allclose(gx.ELBO()(guide, key, permuted), gx.ELBO()(guide, key, y), rtol=1e-5)
    draws = guide.sample_posterior(key, y)["z"]
    np.testing.assert_allclose(guide.sample_posterior(key, permuted)["z"], draws[order], rtol=1e-5)
