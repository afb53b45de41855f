"""`AutoDAIS`: bounds against known evidence, its options, and what it refuses."""

import functools
import re

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidax as gx
from assertions import assert_mean_close, distance, perturbed
from models import Hierarchy, regression, regression_data

X, y = regression_data()
COVARIANCE = np.array([[1.0, 0.8, 0.2], [0.8, 1.5, 0.4], [0.2, 0.4, 0.7]])
PRIOR = 2.0 * np.eye(3)
DATA = jnp.asarray([0.5, -1.0, 0.3], float)


def full_normal(mean, covariance):
    return distrax.MultivariateNormalTri(mean, jnp.asarray(np.linalg.cholesky(covariance)))


def gaussian(y):
    """`x ~ N(0, 2 I)` and `y ~ N(x, C)`: the evidence is a normal density."""
    x = gx.sample("x", full_normal(jnp.zeros(3), PRIOR))
    gx.sample("y", full_normal(x, COVARIANCE), obs=y)


def log_evidence(y):
    return float(full_normal(jnp.zeros(3), PRIOR + COVARIANCE).log_prob(y))


def ridge():
    """Be a normal with a correlation of 0.98 in each of two pairs, and evidence one."""
    block = np.array([[1.0, 0.98], [0.98, 1.0]])
    gx.sample("x", full_normal(jnp.zeros(4), np.kron(np.eye(2), block)))


batched = functools.partial(gx.AutoBatchedMultivariateNormal, batch_ndim=0, init_scale=0.9)
BASES = {
    "diagonal": "diagonal",
    "cholesky": "cholesky",
    "low rank": functools.partial(gx.AutoLowRankMultivariateNormal, init_scale=0.9),
    "batched": batched,
}


@pytest.mark.parametrize("base", ["diagonal", "cholesky"])
@pytest.mark.parametrize("whiten", [False, True], ids=["plain", "whitened"])
@pytest.mark.parametrize("K", [1, 4, 16])
def test_the_mean_weight_is_the_evidence(base, whiten, K, key):
    check_mean_weight(base, whiten, K, key)


@pytest.mark.parametrize("base", ["low rank", "batched"])
@pytest.mark.parametrize("whiten", [False, True], ids=["plain", "whitened"])
def test_bases_of_other_guides(base, whiten, key):
    check_mean_weight(base, whiten, 4, key)


@pytest.mark.parametrize("whiten", [False, True], ids=["plain", "whitened"])
def test_a_fitted_flow_as_base(whiten, key):
    """A new one is too narrow for the mean of weights to say anything."""
    flow = gx.AutoIAFNormal(gaussian, DATA, key=key, num_flows=1)
    flow = gx.fit(key, flow, DATA, steps=300, progress=False, learning_rate=0.03).guide
    check_mean_weight(flow, whiten, 2, key, moved=0.03)


def check_mean_weight(base, whiten, K, key, moved=0.15):
    guide = gx.AutoDAIS(
        gaussian,
        DATA,
        key=key,
        K=K,
        base_dist=BASES[base] if isinstance(base, str) else base,
        eta_init=0.3,
        eta_max=0.8,
        gamma_init=0.7,
        init_scale=0.9,
        whiten=whiten,
        init_loc_fn=gx.init_to_feasible(),
    )
    guide = perturbed(guide, jax.random.key(K), moved)
    draws, log_q = guide.sample_and_log_prob(key, DATA, sample_shape=(100_000,))
    log_p = gx.log_joint(guide.model, draws, DATA)
    weights = jnp.exp(log_p - log_q - log_evidence(DATA))
    assert_mean_close(weights, 1.0, sigmas=4)
    assert float(weights.std()) < 10  # or the check says nothing


def elbos(guide, *args, count=4000):
    keys = jax.random.split(jax.random.key(1), count)
    return -np.asarray(jax.jit(jax.vmap(lambda k: gx.ELBO()(guide, k, *args)))(keys), float)


@pytest.mark.slow
def test_the_elbo_grows_with_the_number_of_steps(key):
    covariance = 0.9 ** np.abs(np.subtract.outer(np.arange(6), np.arange(6)))

    def chain():
        gx.sample("x", full_normal(jnp.zeros(6), covariance))

    found = []
    for K in (1, 4, 16):
        guide = gx.AutoDAIS(chain, key=key, K=K, eta_max=0.5, eta_init=0.05)
        result = gx.fit(key, guide, steps=5_000, progress=False, objective=gx.ELBO(4))
        each = elbos(result.guide, count=20_000)
        error = each.std() / len(each) ** 0.5
        assert each.mean() < 5 * error  # the evidence is one
        found.append(each.mean())
    # The best independent normal has the conditional variances: its ELBO is by algebra.
    precisions = np.diag(np.linalg.inv(covariance))
    mean_field = -0.5 * (np.log(precisions).sum() + np.linalg.slogdet(covariance)[1])
    assert mean_field < found[0] - 0.3 < found[1] - 0.8 and found[1] < found[2] - 0.1


def test_the_last_step_goes_on_moving(key):
    """With a last temperature of one, noise shrinks that step to nothing: an ELBO of about -2.4."""
    guide = gx.AutoDAIS(ridge, key=key, K=2, eta_max=0.5, eta_init=0.05)
    result = gx.fit(key, guide, steps=3_000, progress=False, objective=gx.ELBO(4))
    each = elbos(result.guide)
    assert each.mean() > -1.0 + 5 * each.std() / len(each) ** 0.5
    moves = result.guide.dynamics()
    assert moves["step_size"][-1] > 0.1 and moves["temperatures"][-1] < 0.9


def test_every_objective_takes_it(key):
    guide = gx.AutoDAIS(gaussian, DATA, key=key)
    losses = {}
    for objective in (gx.ELBO(), gx.MeanFieldELBO()):
        each = jax.vmap(lambda k, o=objective: o(guide, k, DATA))(jax.random.split(key, 20))
        losses[type(objective)] = each
    # No closed form of q is there, so that all is sampled.
    np.testing.assert_allclose(losses[gx.ELBO], losses[gx.MeanFieldELBO], rtol=1e-5)
    for objective in (gx.IWELBO(5), gx.RenyiELBO(0.5, 5)):
        grads = jax.grad(objective)(guide, key, DATA)
        assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(grads))
    tight = jax.vmap(lambda k: gx.IWELBO(50)(guide, k, DATA))(jax.random.split(key, 100))
    assert float(tight.mean()) < float(losses[gx.ELBO].mean())
    for estimator, lacking in (("stl", "no density"), ("entropy", "no entropy")):
        with pytest.raises(ValueError, match=f"AutoDAIS has {lacking}.*pathwise"):
            gx.ELBO(estimator=estimator)(guide, key, DATA)


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
]


def test_no_option_is_ignored(key):
    """Each changes what the guide is, and its draws."""
    plain = gx.AutoDAIS(gaussian, DATA, key=key)
    draws = plain.sample_posterior(key, DATA)["x"]
    for options in OPTIONS:
        guide = gx.AutoDAIS(gaussian, DATA, key=key, **options)
        moved = jnp.abs(guide.sample_posterior(key, DATA)["x"] - draws).max()
        assert float(moved) > 1e-7, options
    values = gx.AutoDAIS(
        gaussian, DATA, key=key, K=7, eta_init=0.03, eta_max=0.4, gamma_init=0.6
    ).dynamics()
    assert values["step_size"].shape == values["temperatures"].shape == (7,)
    np.testing.assert_allclose(values["step_size"], 0.03, rtol=1e-5)
    np.testing.assert_allclose(values["temperatures"], np.arange(1, 8) / 7, rtol=1e-5)
    np.testing.assert_allclose(values["damping"], 0.6, rtol=1e-5)
    np.testing.assert_allclose(values["speed"], np.ones(3), rtol=1e-5)
    np.testing.assert_allclose(values["gain"], np.ones(3), rtol=1e-5)
    # Unless told otherwise they start at a tenth of their bound.
    for bound in (0.1, 1.0):
        values = gx.AutoDAIS(gaussian, DATA, key=key, eta_max=bound).dynamics()
        np.testing.assert_allclose(values["step_size"], bound / 10, rtol=1e-5)
    full = gx.AutoDAIS(gaussian, DATA, key=key, base_dist="cholesky")  # at first the same normal
    assert full.family.base.raw_scale_tril.shape == (6,)
    other = gx.AutoDAIS(gaussian, DATA, key=jax.random.key(5))
    assert distance(other, plain) > 0


def test_the_bound_of_the_step_sizes_holds(key):
    guide = gx.AutoDAIS(gaussian, DATA, key=key, eta_max=0.05)
    far = eqx.tree_at(lambda g: g.family.dynamics.raw_step_size, guide, jnp.full(4, 9.0))
    np.testing.assert_allclose(far.dynamics()["step_size"], 0.05, rtol=1e-5)


def test_recomputing_gives_the_same_gradients(key):
    plain = gx.AutoDAIS(gaussian, DATA, key=key)
    again = gx.AutoDAIS(gaussian, DATA, key=key, recompute=True)
    grads = [jax.grad(gx.ELBO())(g, key, DATA) for g in (plain, again)]
    pairs = zip(jax.tree.leaves(grads[0]), jax.tree.leaves(grads[1]), strict=True)
    assert all(np.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs)
    programs = [str(jax.make_jaxpr(jax.grad(gx.ELBO()))(g, key, DATA)) for g in (plain, again)]
    again_at = [re.search("remat|checkpoint", program) is not None for program in programs]
    assert again_at == [False, True]


def test_a_fitted_guide_is_where_the_base_starts(key):
    start = gx.AutoMultivariateNormal(gaussian, DATA, key=key)
    base = gx.fit(key, start, DATA, steps=300, progress=False).guide
    guide = gx.AutoDAIS(gaussian, DATA, key=key, base_dist=base, eta_init=1e-4, whiten=True)
    assert distance(guide.family.base, base.family) == 0
    # With steps of almost no length its draws are those of the base.
    both = [g.sample_posterior(key, DATA, sample_shape=(4000,))["x"] for g in (guide, base)]
    spread = np.asarray(both[0]).std(axis=0)
    gap = np.abs(np.asarray(both[0]).mean(axis=0) - np.asarray(both[1]).mean(axis=0))
    assert np.all(gap < 7 * spread / 4000**0.5)
    fitted = gx.fit(key, guide, DATA, steps=300, progress=False, objective=gx.ELBO(8)).guide
    assert elbos(fitted, DATA).mean() > elbos(base, DATA).mean() - 0.02
    assert distance(fitted.family.base, base.family) > 0  # it is trained along


def test_data_are_read_at_each_call(key):
    guide = gx.AutoDAIS(gaussian, DATA, key=key, eta_init=0.09)
    here = guide.sample_posterior(key, DATA)["x"]
    assert distance(here, guide.sample_posterior(key, DATA + 5.0)["x"]) > 0
    with pytest.raises(ValueError, match="depend on the model's arguments"):
        guide.sample_posterior(key)


def test_it_is_the_last_part_of_a_list(key):
    parts = {"tau": gx.AutoNormal, "beta": functools.partial(gx.AutoDAIS, K=2)}
    guide = gx.AutoGuideList(regression, X, y, key=key, parts=parts)
    draws, log_q = guide.sample_and_log_prob(key, X, y, sample_shape=(2000,))
    assert draws["beta"].shape == (2000, 3)
    fitted = gx.fit(key, guide, X, y, steps=300, progress=False)
    assert fitted.losses[-50:].mean() < fitted.losses[:50].mean() - 1
    reversed_parts = dict(reversed(parts.items()))
    first = gx.AutoGuideList(regression, X, y, key=key, parts=reversed_parts)
    with pytest.raises(ValueError, match="'tau'.*DAIS part comes last"):
        first.sample_posterior(key, X, y)


def test_a_part_of_the_rows_is_refused_with_alternatives(key):
    data = jnp.asarray(Hierarchy.y, float)
    named = "AutoDAIS.*'data' holds 2 of 6.*AutoSurrogateLikelihoodDAIS.*AutoSemiDAIS"
    with pytest.raises(ValueError, match=named):
        gx.AutoDAIS(Hierarchy.takes_rows, data, key=key)

    def whole(y):
        mu = gx.sample("mu", distrax.Normal(jnp.zeros(()), 1.0))
        with gx.plate("data", 6):
            gx.sample("y", distrax.Normal(mu, 1.0), obs=y)

    guide = gx.AutoDAIS(whole, data, key=key)
    some = gx.Batch(data[:2]).at(data=jnp.array([0, 1]))
    for use in (gx.ELBO(), lambda g, k, b: g.sample_posterior(k, b)):
        with pytest.raises(ValueError, match=named):
            use(guide, key, some)

    def rows(y):
        with gx.plate("data", 6):
            z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
            gx.sample("y", distrax.Normal(z, 1.0), obs=y)

    local = gx.AutoDAIS(rows, data, key=key)
    with pytest.raises(ValueError, match=named):
        gx.ELBO()(local, key, some)


def test_models_of_other_languages(key):
    numpyro = pytest.importorskip("numpyro")
    dist = numpyro.distributions

    def model(y):
        x = numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(3), PRIOR))
        numpyro.sample("y", dist.MultivariateNormal(x, COVARIANCE), obs=y)

    def density(latents, y):
        prior = full_normal(jnp.zeros(3), PRIOR).log_prob(latents["x"])
        return prior + full_normal(latents["x"], COVARIANCE).log_prob(y)

    example = {"x": np.zeros(3)}
    models = (gaussian, gx.from_numpyro(model), gx.from_log_density(density, example))
    start = gx.init_to_value({"x": np.zeros(3)})
    losses = [
        gx.ELBO(4)(gx.AutoDAIS(m, DATA, key=key, init_loc_fn=start), key, DATA) for m in models
    ]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


def test_a_model_that_has_forward_derivatives_alone(key):
    def model():
        x = gx.sample("x", distrax.Normal(jnp.zeros(()), 1.0))
        three = jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] + x), (0, 0 * x))
        gx.factor("near", -(three[1] ** 2))

    guide = gx.AutoDAIS(model, key=key)
    result = gx.fit(key, guide, steps=20, progress=False, forward_mode=True)
    assert bool(jnp.all(jnp.isfinite(result.losses))) and distance(result.guide, guide) > 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"K": 0}, ValueError, "K counts steps.*got 0"),
        ({"eta_max": True}, ValueError, "eta_max bounds.*got True"),
        ({"eta_init": False}, ValueError, "eta_init.*got False"),
        ({"gamma_init": True}, ValueError, "gamma_init.*got True"),
        ({"max_kick": True}, ValueError, "max_kick.*got True"),
        ({"init_scale": True}, ValueError, "init_scale.*got True"),
        ({"eta_init": 0.2}, ValueError, "eta_init.*eta_max = 0.1.*got 0.2"),
        ({"gamma_init": 0.0}, ValueError, "gamma_init.*got 0.0"),
        ({"max_kick": -1.0}, ValueError, "max_kick.*got -1.0"),
        ({"init_scale": 0.0}, ValueError, "init_scale.*got 0.0"),
        ({"base_dist": "full"}, ValueError, "base_dist is \"diagonal\".*got 'full'"),
        ({"base_dist": gx.AutoNormal}, TypeError, "gx.AutoDiagonalNormal in the place of"),
        ({"base_dist": gx.AutoLaplaceApproximation}, TypeError, "guide.laplace"),
    ],
    ids=str,
)
def test_mistakes_are_named(options, error, message, key):
    with pytest.raises(error, match=message):
        gx.AutoDAIS(gaussian, DATA, key=key, **options)


def test_a_base_over_other_latents_is_refused(key):
    base = gx.AutoDiagonalNormal(regression, X, y, key=key)
    with pytest.raises(ValueError, match=r"base_dist must draw .*: it lacks \['x'\]"):
        gx.AutoDAIS(gaussian, DATA, key=key, base_dist=base)


def test_a_base_may_say_where_it_starts(key):
    def model():
        gx.sample("x", distrax.Normal(jnp.zeros(()), 1.0))

    base = functools.partial(gx.AutoDiagonalNormal, init_loc_fn=gx.init_to_value({"x": 1.5}))
    guide = gx.AutoDAIS(model, key=key, base_dist=base)
    np.testing.assert_allclose(guide.family.base.loc, [1.5])
