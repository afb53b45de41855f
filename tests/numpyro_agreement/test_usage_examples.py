"""The uses that NumPyro's documentation of its autoguides shows, written for guidax."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

import guidax as gx

DATA = jnp.asarray([[0.3, 1.0], [-0.5, 0.2], [1.5, -1.0], [0.1, 0.4]], float)
LABELS = jnp.array([1, 0, 1, 1])


def model(data, labels):
    """The logistic regression of NumPyro's examples."""
    coefs = numpyro.sample("coefs", dist.Normal(jnp.zeros(2), jnp.ones(2)).to_event(1))
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 10.0))
    with numpyro.plate("N", len(data)):
        logits = jnp.sum(coefs * data + intercept, axis=-1)
        numpyro.sample("obs", dist.Bernoulli(logits=logits), obs=labels)


def test_a_list_by_hide_and_expose(key):
    guide = gx.AutoGuideList(gx.from_numpyro(model), DATA, LABELS, key=key)
    for make, blocked in (
        (gx.AutoNormal, handlers.block(handlers.seed(model, rng_seed=0), hide=["coefs"])),
        (gx.AutoDelta, handlers.block(handlers.seed(model, rng_seed=1), expose=["coefs"])),
    ):
        guide = guide.append(make(gx.from_numpyro(blocked), DATA, LABELS, key=key))
    result = gx.fit(key, guide, DATA, LABELS, steps=200, progress=False)
    draws = result.guide.sample_posterior(key, DATA, LABELS, sample_shape=(50,))
    assert draws.keys() == {"coefs", "intercept"}
    assert float(jnp.ptp(draws["coefs"], axis=0).max()) == 0.0  # a point
    assert float(draws["intercept"].std()) > 0.1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("AutoDiagonalNormal", {}),
        ("AutoMultivariateNormal", {}),
        ("AutoLowRankMultivariateNormal", {"rank": 2}),
        ("AutoDelta", {}),
        ("AutoDAIS", {}),
        ("AutoNormal", {"init_loc_fn": gx.init_to_median(), "init_scale": 0.2}),
        (
            "AutoLaplaceApproximation",
            {"hessian_fn": lambda f, x: jax.hessian(f)(x) + 1e-3 * jnp.eye(x.shape[0])},
        ),
    ],
)
@pytest.mark.slow
def test_each_guide(name, options, key):
    guide = getattr(gx, name)(gx.from_numpyro(model), DATA, LABELS, key=key, **options)
    guide = gx.fit(key, guide, DATA, LABELS, steps=200, progress=False).guide
    quantiles = guide.quantiles([0.05, 0.5, 0.95], DATA, LABELS)
    assert quantiles["coefs"].shape == (3, 2) and quantiles["intercept"].shape == (3,)
    assert guide.median(DATA, LABELS).keys() == {"coefs", "intercept"}
    if name not in ("AutoDelta", "AutoNormal", "AutoDAIS"):
        z = guide.get_posterior(DATA, LABELS).sample(seed=key)
        assert guide.get_transform(DATA, LABELS).inverse(z).shape == z.shape == (3,)
        assert guide.get_base_dist(DATA, LABELS).event_shape == (3,)


def test_a_surrogate_likelihood(key):
    def prior():
        return numpyro.sample("theta", dist.Normal(jnp.zeros(2), jnp.ones(2)).to_event(1))

    def model(X, Y):
        theta = prior()
        with numpyro.plate("N", 100, subsample_size=10):
            X_batch = numpyro.subsample(X, event_dim=1)
            Y_batch = numpyro.subsample(Y, event_dim=0)
            numpyro.sample("obs", dist.Bernoulli(logits=theta @ X_batch.T), obs=Y_batch)

    def surrogate_model(X_surr, Y_surr):
        theta = prior()
        omegas = numpyro.param("omegas", 5.0 * jnp.ones(20), constraint=dist.constraints.positive)
        with numpyro.plate("N", 20), handlers.scale(scale=omegas):
            numpyro.sample("obs", dist.Bernoulli(logits=theta @ X_surr.T), obs=Y_surr)

    X = jax.random.normal(key, (100, 2), float)
    Y = (X[:, 0] > 0).astype(int)
    guide = gx.AutoSurrogateLikelihoodDAIS(
        gx.from_numpyro(model),
        gx.from_numpyro(surrogate_model),
        X,
        Y,
        key=key,
        surrogate=gx.Batch(X[:20], Y[:20]),
    )
    guide = gx.fit(key, guide, X, Y, steps=100, progress=False).guide
    assert guide.sample_posterior(key, sample_shape=(5,))["theta"].shape == (5, 2)
    assert float(jnp.ptp(guide.param_values()["omegas"])) > 0
