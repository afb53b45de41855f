"""Normals over the flat vector: their algebra, their memory, what they recover."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx
from assertions import perturbed, precision
from models import Hierarchy, regression, regression_data

X, y = regression_data()
FLAT = {
    "diagonal": gx.AutoDiagonalNormal,
    "full": gx.AutoMultivariateNormal,
    "low rank": gx.AutoLowRankMultivariateNormal,
}
every_flat = pytest.mark.parametrize("make", FLAT.values(), ids=FLAT)
TOLERANCE = 1e4 * precision()


def covariance(family):
    """Return the covariance that the parameters stand for, by their definition."""
    if hasattr(family, "raw_scale_tril"):
        tril = np.asarray(family.scale_tril())
        return tril @ tril.T
    scale = np.log1p(np.exp(np.asarray(family.raw_scale)))
    factor = np.asarray(getattr(family, "factor", np.zeros((len(scale), 1))))
    return np.diag(scale) @ (np.eye(len(scale)) + factor @ factor.T) @ np.diag(scale)


@every_flat
def test_density_entropy_and_marginals_are_those_of_the_covariance(make, key):
    guide = perturbed(make(regression, X, y, key=key), key)
    family = guide.family
    sigma, loc = covariance(family), np.asarray(family.loc)
    exact = stats.multivariate_normal(loc, sigma)
    z, log_q = family.sample(key)
    np.testing.assert_allclose(log_q, exact.logpdf(z), rtol=TOLERANCE)
    np.testing.assert_allclose(family.log_density(z), exact.logpdf(z), rtol=TOLERANCE)
    target = gx.Target(guide.model, gx.Batch(X, y), key, {})
    (entropy,) = family.entropy(target).values()
    np.testing.assert_allclose(entropy, exact.entropy(), rtol=TOLERANCE)
    np.testing.assert_allclose(family.marginal_scale() ** 2, np.diag(sigma), rtol=TOLERANCE)
    draws = np.asarray(jax.vmap(lambda k: family.sample(k)[0])(jax.random.split(key, 40_000)))
    spread = np.sqrt(np.diag(sigma))
    found = np.cov(draws.T) / np.outer(spread, spread)
    np.testing.assert_allclose(found, sigma / np.outer(spread, spread), atol=0.05)


@every_flat
def test_base_transform_and_posterior_agree(make, key):
    guide = perturbed(make(regression, X, y, key=key), key)
    base, transform, posterior = guide.get_base_dist(), guide.get_transform(), guide.get_posterior()
    z = posterior.sample(seed=key)
    assert z.shape == (4,)
    eps, log_det = transform.inverse_and_log_det(z)
    np.testing.assert_allclose(transform.forward(eps), z, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(base.log_prob(eps) + log_det, posterior.log_prob(z), rtol=TOLERANCE)
    np.testing.assert_allclose(guide.family.log_density(z), posterior.log_prob(z), rtol=TOLERANCE)


def test_the_vector_is_in_the_order_of_the_sites(key):
    values = {"tau": jnp.array(2.0), "beta": jnp.array([0.1, 0.2, 0.3])}
    start = gx.init_to_value(values)
    guide = gx.AutoDiagonalNormal(regression, X, y, key=key, init_loc_fn=start)
    np.testing.assert_allclose(guide.family.loc, [np.log(2.0), 0.1, 0.2, 0.3], rtol=1e-5)


def test_quantiles_of_a_correlated_normal_use_the_row_norms(key):
    def model():
        gx.sample("z", gx.ImproperUniform(gx.constraints.real, event_shape=(3,)))

    guide = perturbed(gx.AutoMultivariateNormal(model, key=key, init_scale=0.5), key, 1.0)
    sigma = covariance(guide.family)
    last = stats.norm(guide.family.loc[-1], sigma[-1, -1] ** 0.5)
    found = guide.quantiles([0.05, 0.95])["z"][:, -1]
    np.testing.assert_allclose(found, last.ppf([0.05, 0.95]), rtol=1e-4)


U = np.full(10, 10**-0.5)


def spiked():
    """`N(0, I + 50 u u')`: mean field is 1.463 nats off, a rank of one is enough."""
    tril = jnp.asarray(np.linalg.cholesky(np.eye(10) + 50 * np.outer(U, U)), float)
    gx.sample("z", distrax.MultivariateNormalTri(jnp.zeros(10), tril))


@pytest.mark.parametrize(
    ("make", "options", "optimum"),
    [
        (gx.AutoMultivariateNormal, {}, 0.0),
        (gx.AutoLowRankMultivariateNormal, {"rank": 1}, 0.0),
        (gx.AutoDiagonalNormal, {}, 1.463),
    ],
    ids=["full", "low rank", "diagonal"],
)
def test_a_spiked_covariance(make, options, optimum, key):
    guide = make(spiked, key=key, **options)
    objective = gx.ELBO(16, estimator="stl")
    fitted = gx.fit(key, guide, steps=4000, objective=objective, progress=False).guide
    losses = jax.vmap(lambda k: gx.ELBO()(fitted, k))(jax.random.split(key, 4000))
    error = float(losses.std()) / 4000**0.5
    assert abs(float(losses.mean()) - optimum) < 5 * error + 0.02


def test_the_start_of_a_low_rank_factor_is_no_saddle(key):
    guide = gx.AutoLowRankMultivariateNormal(regression, X, y, key=key)
    assert guide.family.factor.shape == (4, 2)  # about the square root of the dimension
    assert float(jnp.abs(guide.family.factor).min()) > 0
    keys = jax.random.split(key, 4000)
    grads = jax.vmap(lambda k: jax.grad(gx.ELBO(8))(guide, k, X, y).family.factor)(keys)
    error = grads.std(axis=0) / 4000**0.5
    assert float(jnp.max(jnp.abs(grads.mean(axis=0)) / error)) > 5
    for bad in (0, -1, 5, 1.5, True):
        with pytest.raises((ValueError, TypeError), match="rank"):
            gx.AutoLowRankMultivariateNormal(regression, X, y, key=key, rank=bad)


def test_low_rank_never_forms_a_square_matrix(key):
    """At D = 100,000 a square matrix has 40 GB; nothing in the program is that large."""
    dim = 100_000

    def model():
        gx.sample("z", distrax.Independent(distrax.Normal(jnp.zeros(dim, jnp.float32), 1.0), 1))

    guide = gx.AutoLowRankMultivariateNormal(model, key=key, rank=10)

    def use(guide):
        loss, grads = jax.value_and_grad(gx.ELBO())(guide, key)
        draws, log_q = guide.sample_and_log_prob(key, sample_shape=(2,))
        return loss, grads, draws, log_q, guide.log_prob(draws), guide.quantiles(0.1)

    compiled = jax.jit(use).lower(guide).compile()
    peak = compiled.memory_analysis().temp_size_in_bytes
    assert peak < 20 * dim * 10 * 4  # some copies of the factor
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(compiled(guide)))


@every_flat
def test_a_joint_density_has_no_share_for_each_row(make, key):
    data = jnp.asarray(Hierarchy.y, float)
    guide = make(Hierarchy.takes_rows, data, key=key)
    for use in (
        lambda: gx.ELBO()(guide, key, data),
        lambda: gx.fit(key, guide, data, steps=2, progress=False),
    ):
        with pytest.raises(ValueError, match="'data' holds 2 of 6.*AutoNormal.*AutoSemiDAIS"):
            use()
    # With all rows, in any order, it is one number.
    order = jnp.array([3, 1, 0, 2, 5, 4])
    whole = gx.Batch(data).at(data=jnp.arange(6))
    shuffled = gx.Batch(data).at(data=order)
    objective = gx.ELBO(estimator="stl")
    np.testing.assert_allclose(
        objective(guide, key, whole), objective(guide, key, shuffled), rtol=TOLERANCE
    )
    assert guide.sample_posterior(key, data)["z"].shape == (6,)


def rows(y):
    """Latents that share a leading axis, of several shapes."""
    with gx.plate("rows", 4):
        a = gx.sample("a", distrax.Normal(jnp.zeros(()), 1.0))
        s = gx.sample("s", tfd.Gamma(3.0 * jnp.ones(()), 3.0))
        v = gx.sample("v", distrax.Independent(distrax.Normal(jnp.zeros((4, 2)), 1.0), 1))
        gx.sample("y", distrax.Normal(a + v.sum(-1), s), obs=y)


@pytest.mark.parametrize(
    "make", [gx.AutoBatchedMultivariateNormal, gx.AutoBatchedLowRankMultivariateNormal]
)
def test_batched_normals_are_independent_along_the_batch(make, key):
    data = jnp.arange(4.0)
    guide = perturbed(make(rows, data, key=key), key)
    family = guide.family
    assert family.loc.shape == (4, 4)
    z, log_q = family.sample(key)
    exact = 0.0
    for i in range(4):
        if hasattr(family, "raw_scale_tril"):
            tril = np.asarray(family.scale_tril()[i])
            sigma = tril @ tril.T
        else:
            scale, factor = np.asarray(family.scale()[i]), np.asarray(family.factor[i])
            sigma = np.outer(scale, scale) * (np.eye(4) + factor @ factor.T)
        exact += stats.multivariate_normal(family.loc[i], sigma).logpdf(z[i])
    np.testing.assert_allclose(log_q, exact, rtol=TOLERANCE)
    posterior, transform = guide.get_posterior(), guide.get_transform()
    np.testing.assert_allclose(posterior.log_prob(z), exact, rtol=TOLERANCE)
    eps, log_det = transform.inverse_and_log_det(z)
    np.testing.assert_allclose(guide.get_base_dist().log_prob(eps) + log_det, exact, rtol=TOLERANCE)
    # Row i of every site is in vector i.
    values = family.to_values(family.loc, {})
    np.testing.assert_array_equal(values["a"], family.loc[:, 0])
    np.testing.assert_array_equal(values["v"], family.loc[:, 2:])
    result = gx.fit(key, guide, data, steps=300, progress=False)
    assert float(result.losses[-50:].mean()) < float(result.losses[:20].mean())
    with pytest.raises(ValueError, match="batch_ndim=2"):
        make(rows, data, key=key, batch_ndim=2)
    with pytest.raises(ValueError, match="batch_ndim counts leading axes.*got True"):
        make(rows, data, key=key, batch_ndim=True)
    with pytest.raises(ValueError, match="'beta'.*leading axes|leading axes"):
        make(regression, X, y, key=key)


def test_closed_entropy_and_stl_on_every_gaussian(key):
    keys = jax.random.split(key, 3000)
    for make in FLAT.values():
        guide = perturbed(make(regression, X, y, key=key), key)
        found = {}
        for estimator in ("pathwise", "stl", "entropy"):
            grad = jax.grad(gx.ELBO(estimator=estimator))
            one = jax.jit(jax.vmap(lambda k, g=grad, q=guide: g(q, k, X, y).family.loc))
            found[estimator] = np.asarray(one(keys))
        for estimator in ("stl", "entropy"):
            gap = found[estimator] - found["pathwise"]
            error = gap.std(axis=0) / 3000**0.5
            assert np.all(np.abs(gap.mean(axis=0)) < 5 * error + 1e-9)


def test_a_model_that_only_forward_mode_differentiates(key):
    def model(y):
        z = gx.sample("z", distrax.Normal(jnp.zeros(2), 1.0))
        total = jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, 2 * c[1]), (0, z))[1]
        gx.sample("y", distrax.Normal(total.sum(), 1.0), obs=y)

    data = jnp.asarray(3.0, float)
    guide = gx.AutoMultivariateNormal(model, data, key=key)
    result = gx.fit(
        key, guide, data, steps=1500, forward_mode=True, objective=gx.ELBO(8), progress=False
    )
    # y = 4 (z1 + z2) + noise: a posterior in closed form.
    design = np.array([[4.0, 4.0]])
    sigma = np.linalg.inv(np.eye(2) + design.T @ design)
    mean = sigma @ design.T[:, 0] * 3.0
    np.testing.assert_allclose(result.guide.family.loc, mean, atol=0.1)  # 4 s.d. over keys
    np.testing.assert_allclose(covariance(result.guide.family), sigma, atol=0.06)


def test_distributions_of_the_vector_need_no_data(key):
    """They are those of unconstrained space, where no support has a say."""

    def model(X):
        gx.sample("u", tfd.Uniform(jnp.zeros(()), jnp.max(X)))

    guide = gx.AutoDiagonalNormal(model, jnp.array([1.0, 3.0]), key=key)
    for distribution in (guide.get_posterior(), guide.get_posterior(jnp.array([1.0, 3.0]))):
        np.testing.assert_allclose(distribution.mean(), guide.family.loc)
    assert guide.get_base_dist().event_shape == guide.get_transform().forward(jnp.zeros(1)).shape
