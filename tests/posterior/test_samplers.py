"""What samplers get: NumPyro's own potential and order, exact matrices, and a funnel made easy."""

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random
from jax.flatten_util import ravel_pytree
from jaxtyping import TypeCheckError
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx
from assertions import perturbed, precision, refused_type
from models import Hierarchy, regression, regression_data

numpyro = pytest.importorskip("numpyro")
from numpyro import distributions as dist  # noqa: E402
from numpyro.diagnostics import effective_sample_size  # noqa: E402
from numpyro.infer import MCMC, NUTS  # noqa: E402
from numpyro.infer.util import potential_energy  # noqa: E402

Y = np.array([0.3, -1.0, 2.0])


def supports(y):
    numpyro.sample("zeta", dist.HalfNormal(1.0).expand([2]).to_event(1))
    p = numpyro.sample("alpha", dist.Dirichlet(jnp.ones(3)))
    numpyro.deterministic("twice", 2 * p)
    with numpyro.plate("data", 3):
        numpyro.sample("y", dist.Normal(p, 1.0), obs=y)


def conjugate(y):
    """`zeta ~ N(0, I)`, `alpha ~ N(zeta_0, 1)`, `y_i ~ N(alpha + zeta_1, 1)`."""
    zeta = gx.sample("zeta", distrax.MultivariateNormalDiag(jnp.zeros(2), jnp.ones(2)))
    alpha = gx.sample("alpha", distrax.Normal(zeta[0], 1.0))
    with gx.plate("data", 3):
        gx.sample("y", distrax.Normal(alpha + zeta[1], 1.0), obs=y)


def conjugate_posterior():
    """Return mean and covariance, in the order alpha, zeta_0, zeta_1."""
    # Precision: of the prior, alpha - zeta_0 of 1 and zetas of 1; of the data, 3 of alpha + zeta_1.
    prior = np.array([[1.0, -1.0, 0.0], [-1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    along = np.array([1.0, 0.0, 1.0])
    covariance = np.linalg.inv(prior + 3 * np.outer(along, along))
    return covariance @ along * Y.sum(), covariance


def exact_guide():
    """Return the posterior of `conjugate` as a guide with a full covariance."""
    guide = gx.AutoMultivariateNormal(conjugate, Y, key=random.key(0))
    mean, covariance = conjugate_posterior()
    order = np.array([1, 2, 0])  # the vector of the guide: zeta_0, zeta_1, alpha
    tril = jnp.linalg.cholesky(jnp.asarray(covariance[np.ix_(order, order)], float))
    strict = tril / jnp.diag(tril)[:, None]
    raw = jnp.concatenate(
        [strict[np.tril_indices(3, -1)], jnp.log(jnp.expm1(jnp.diag(tril)))]
    ).astype(float)
    new = (jnp.asarray(mean[order], float), raw)
    return eqx.tree_at(lambda g: (g.family.loc, g.family.raw_scale_tril), guide, new)


def test_positions_and_potential_are_numpyros(key):
    guide = perturbed(gx.AutoNormal(gx.from_numpyro(supports), Y, key=key), key)
    density = gx.UnconstrainedDensity(guide, Y)
    positions = density.initial(key, 4)
    assert {n: x.shape for n, x in positions.items()} == {"zeta": (4, 2), "alpha": (4, 2)}
    first = {n: x[0] for n, x in positions.items()}
    expected = potential_energy(supports, (Y,), {}, first)
    np.testing.assert_allclose(density.potential(first), expected, rtol=1e3 * precision())
    np.testing.assert_allclose(density.log_density(first), -expected, rtol=1e3 * precision())
    latents = density.to_latents(jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), positions))
    assert latents["alpha"].shape == (2, 2, 3) and latents["zeta"].shape == (2, 2, 2)
    np.testing.assert_allclose(latents["alpha"].sum(-1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(latents["twice"], 2 * latents["alpha"], rtol=1e-5)
    np.testing.assert_allclose(latents["zeta"][0, 0], np.exp(first["zeta"]), rtol=1e-5)
    assert density.initial(key)["zeta"].shape == (2,)


def test_matrices_are_in_the_order_in_which_samplers_ravel():
    guide = exact_guide()
    density = gx.UnconstrainedDensity(guide, Y)
    _, covariance = conjugate_posterior()
    dense = density.inverse_mass_matrix("dense")
    np.testing.assert_allclose(dense, covariance, atol=1e3 * precision())
    variances = density.inverse_mass_matrix("diagonal")
    np.testing.assert_allclose(variances, np.diag(covariance), atol=1e3 * precision())
    full = density.inverse_mass_matrix("low_rank", rank=3)
    _assert_low_rank(full, covariance)
    one = density.inverse_mass_matrix("low_rank", rank=1)
    assert one.U.shape == (3, 1)
    correlation = covariance / np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    np.testing.assert_allclose(one.lam, np.linalg.eigvalsh(correlation)[-1:], rtol=1e-5)
    # Both samplers ravel positions by name.
    positions = density.initial(random.key(1), 4000)
    flat = jax.vmap(lambda position: ravel_pytree(position)[0])(positions)
    np.testing.assert_allclose(np.cov(flat.T), dense, atol=0.08)
    start = density.initial(random.key(2))
    kernel = NUTS(potential_fn=density.potential, inverse_mass_matrix=dense, dense_mass=True)
    state = kernel.init(random.key(0), 0, start, model_args=(), model_kwargs={})
    np.testing.assert_allclose(state.adapt_state.inverse_mass_matrix, dense)
    kernel = NUTS(supports, inverse_mass_matrix=jnp.eye(4), dense_mass=True)
    start = {"zeta": jnp.zeros(2), "alpha": jnp.zeros(2)}
    state = kernel.init(random.key(0), 0, start, model_args=(Y,), model_kwargs={})
    assert list(state.adapt_state.inverse_mass_matrix) == [("alpha", "zeta")]


def _assert_low_rank(low_rank, covariance):
    sigma, U, lam = low_rank
    middle = np.eye(len(sigma)) + (U * (lam - 1)) @ U.T
    found = sigma[:, None] * middle * sigma
    np.testing.assert_allclose(found, covariance, atol=1e4 * precision())
    np.testing.assert_allclose(U.T @ U, np.eye(len(lam)), atol=1e3 * precision())


@pytest.mark.parametrize(
    "make", [gx.AutoNormal, gx.AutoDiagonalNormal, gx.AutoLowRankMultivariateNormal]
)
def test_matrices_of_other_normals_are_exact(make, key):
    guide = perturbed(make(conjugate, Y, key=key, init_scale=0.5), random.key(1))
    density = gx.UnconstrainedDensity(guide, Y)
    dense = density.inverse_mass_matrix("dense")
    flat = jax.vmap(lambda x: ravel_pytree(x)[0])(density.initial(key, 20_000))
    np.testing.assert_allclose(dense, np.cov(flat.T), atol=0.05 * float(jnp.max(dense)))
    np.testing.assert_allclose(density.inverse_mass_matrix(), np.diag(dense), rtol=1e-5)
    _assert_low_rank(density.inverse_mass_matrix("low_rank", rank=3), dense)
    assert len(density.inverse_mass_matrix("low_rank").sigma) == 3  # the default rank


def test_matrices_follow_the_order_of_the_rows(key):
    def rows(y):
        with gx.plate("data", 3):
            z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
            gx.sample("a", distrax.MultivariateNormalDiag(jnp.zeros(2), jnp.ones(2)))
            gx.sample("y", distrax.Normal(z, 1.0), obs=y)

    guide = perturbed(gx.AutoMultivariateNormal(rows, Y, key=key), key)
    order = np.array([1, 2, 0])
    batch = gx.Batch(Y[order]).at(data=order)
    plain = gx.UnconstrainedDensity(guide, Y).inverse_mass_matrix("dense")
    found = gx.UnconstrainedDensity(guide, batch).inverse_mass_matrix("dense")
    new = np.array([2, 3, 4, 5, 0, 1, 7, 8, 6])  # a: two coordinates in each row; z: one
    np.testing.assert_allclose(found, plain[np.ix_(new, new)], rtol=1e3 * precision())
    assert not np.allclose(found, plain)


def test_matrices_of_other_guides_are_those_of_draws(key):
    start = gx.init_to_value({"zeta": jnp.zeros(2), "alpha": jnp.zeros(())})
    guide = gx.AutoDAIS(conjugate, Y, key=key, K=2, init_loc_fn=start)
    density = gx.UnconstrainedDensity(guide, Y)
    dense = density.inverse_mass_matrix("dense", num_samples=500)
    flat = jax.vmap(lambda x: ravel_pytree(x)[0])(density.initial(random.key(0), 500))
    np.testing.assert_allclose(dense, np.cov(flat.T), rtol=1e-3)
    other = density.inverse_mass_matrix("dense", num_samples=500, key=random.key(7))
    assert not np.allclose(other, dense)
    with pytest.raises(ValueError, match="6 draws say too little of the covariance of 3"):
        density.inverse_mass_matrix("dense", num_samples=6)
    assert density.inverse_mass_matrix("low_rank", rank=1, num_samples=6).lam.shape == (1,)


def test_positions_of_guides_that_draw_in_constrained_space(key):
    """A program draws `s` as the model has it; a sampler moves its logarithm."""

    def model():
        gx.sample("s", tfd.HalfNormal(jnp.ones(())))
        gx.sample("x", distrax.Normal(jnp.zeros(()), 1.0))

    def part():
        gx.sample("s", tfd.LogNormal(jnp.asarray(0.5, float), 0.2))

    parts = {"s": gx.program(part), ...: gx.AutoNormal}
    density = gx.UnconstrainedDensity(gx.AutoGuideList(model, key=key, parts=parts))
    log_s = np.asarray(density.initial(key, 2000)["s"])
    assert abs(log_s.mean() - 0.5) < 5 * 0.2 / 2000**0.5
    assert abs(log_s.std() - 0.2) < 5 * 0.2 / 4000**0.5


def test_neutra_of_the_posterior_itself_is_a_standard_normal(key):
    guide = exact_guide()
    density = gx.NeuTraDensity(guide, Y)
    eps = density.initial(key, 20)
    assert eps.shape == (20, 3) and density.initial(key).shape == (3,)
    rest = jax.vmap(density.log_density)(eps) + 0.5 * jnp.sum(eps**2, axis=1)
    np.testing.assert_allclose(rest, rest[0], atol=1e4 * precision())
    # What is left is the evidence: y ~ N(0, I + 3 * 1 1').
    spread = np.eye(3) + 3.0
    evidence = -0.5 * (Y @ np.linalg.solve(spread, Y) + np.linalg.slogdet(2 * np.pi * spread)[1])
    np.testing.assert_allclose(rest[0] + 1.5 * np.log(2 * np.pi), evidence, rtol=1e-4)
    latents = density.to_latents(eps.reshape(4, 5, 3))
    z = guide.get_transform().forward(eps[0])
    np.testing.assert_allclose(latents["zeta"][0, 0], z[:2], rtol=1e-4)
    np.testing.assert_allclose(latents["alpha"][0, 0], z[2], rtol=1e-4)
    np.testing.assert_allclose(density.potential(eps[0]), -density.log_density(eps[0]))


def test_laplace_and_batched_normals_have_noise_too(key):
    X, labels = regression_data()
    median = gx.init_to_median()
    laplace = gx.AutoLaplaceApproximation(
        regression,
        X,
        labels,
        key=key,
        init_loc_fn=median,
        hessian_fn=lambda f, z: jnp.eye(z.size),
    )
    with pytest.warns(UserWarning, match="the mode is not reached"):
        density = gx.NeuTraDensity(laplace, X, labels)
    assert density.to_latents(density.initial(key))["eta"].shape == (40,)

    def rows():
        gx.sample("w", tfd.MultivariateNormalDiag(jnp.zeros((2, 3)), jnp.ones(3)))

    batched = gx.AutoBatchedMultivariateNormal(rows, key=key)
    density = gx.NeuTraDensity(batched)
    eps = density.initial(key, 4)
    assert eps.shape == (4, 2, 3)
    latents = density.to_latents(eps)["w"]
    np.testing.assert_allclose(latents[1], batched.get_transform().forward(eps[1]), rtol=1e-5)


def test_blackjax_takes_positions_and_matrices(key):
    blackjax = pytest.importorskip("blackjax")
    guide = exact_guide()
    density = gx.UnconstrainedDensity(guide, Y)
    low_rank = density.inverse_mass_matrix("low_rank", rank=2)
    metric = blackjax.mcmc.metrics.LowRankInverseMassMatrix(*low_rank)

    @jax.jit
    def chain(key, position):
        nuts = blackjax.nuts(density.log_density, 0.9, metric)
        state = nuts.init(position)

        def step(state, key):
            state, _ = nuts.step(key, state)
            return state, state.position

        return jax.lax.scan(step, state, random.split(key, 1500))[1]

    positions = chain(key, density.initial(key))
    mean, covariance = conjugate_posterior()
    flat = np.concatenate([positions["alpha"][:, None], positions["zeta"]], axis=1)
    ess = np.array([effective_sample_size(flat[None, :, i]) for i in range(3)])
    error = 4 * np.sqrt(np.diag(covariance) / ess)
    assert ess.min() > 300 and np.all(np.abs(flat.mean(axis=0) - mean) < error)


def funnel():
    v = numpyro.sample("v", dist.Normal(0.0, 3.0))
    with numpyro.plate("rows", 9):
        numpyro.sample("x", dist.Normal(0.0, jnp.exp(v / 2)))


def test_neutra_makes_a_funnel_easy(key):
    # NUTS on the funnel itself crawls in the neck; the seed is fixed, the margin wide.
    guide = gx.AutoIAFNormal(gx.from_numpyro(funnel), key=key)
    objective = gx.ELBO(num_particles=16)
    guide = gx.fit(key, guide, steps=3000, objective=objective, progress=False).guide
    plain, neutra = gx.UnconstrainedDensity(guide), gx.NeuTraDensity(guide)

    def run(density):
        sampler = MCMC(
            NUTS(potential_fn=density.potential),
            num_warmup=100,
            num_samples=250,
            num_chains=4,
            chain_method="vectorized",
            progress_bar=False,
        )
        start = density.initial(random.key(1), 4)
        sampler.run(random.key(2), init_params=start, extra_fields=("num_steps",))
        latents = density.to_latents(sampler.get_samples(group_by_chain=True))
        v = np.asarray(latents["v"])
        gradients = int(sampler.get_extra_fields()["num_steps"].sum())
        return float(effective_sample_size(v)), gradients, v

    ess, gradients, v = run(neutra)
    crawl, more, _ = run(plain)
    assert ess > 50 and abs(v.mean()) < 4 * 3 / np.sqrt(ess)
    assert ess / gradients > 5 * crawl / more, (ess, gradients, crawl, more)


def test_what_samplers_cannot_take_is_refused(key):
    X, labels = regression_data()
    guide = gx.AutoNormal(regression, X, labels, key=key)
    density = gx.UnconstrainedDensity(guide, X, labels)
    with pytest.raises(ValueError, match=r"a dictionary of the sites \['beta', 'tau'\]"):
        density.log_density({"beta": jnp.zeros(3)})
    with pytest.raises((ValueError, TypeCheckError), match="kind"):
        density.inverse_mass_matrix("full")
    with pytest.raises(ValueError, match='rank goes with kind="low_rank"'):
        density.inverse_mass_matrix("dense", rank=2)
    for rank in (0, 5, True, 1.5):
        with refused_type("rank.*from 1 to the dimension 4; got", ValueError):
            density.inverse_mass_matrix("low_rank", rank=rank)
    with refused_type("inverse_mass_matrix takes key=, a random key.*got 0"):
        density.inverse_mass_matrix(key=0)
    with pytest.raises(ValueError, match="num_chains is at least 1"):
        density.initial(key, 0)
    with pytest.raises(TypeError, match="AutoNormal has no map from noise"):
        gx.NeuTraDensity(guide, X, labels)
    vector = gx.NeuTraDensity(gx.AutoDiagonalNormal(regression, X, labels, key=key), X, labels)
    with pytest.raises(ValueError, match=r"an array of shape \(4,\); got \(3,\)"):
        vector.log_density(jnp.zeros(3))
    # The mean of 1,000 times 0.1 is not 0.1.
    start = gx.init_to_value({"beta": 0.1 * jnp.ones(3), "tau": 1.1})
    delta = gx.AutoDelta(regression, X, labels, key=key, init_loc_fn=start)
    point = gx.UnconstrainedDensity(delta, X, labels)
    with pytest.raises(TypeError, match="no spread"):
        point.inverse_mass_matrix()
    with refused_type("takes a guide"):
        gx.UnconstrainedDensity(regression, X, labels)
    rows = gx.AutoNormal(Hierarchy.takes_rows, Hierarchy.y, key=key)
    some = gx.Batch(Hierarchy.y).at(data=jnp.arange(2))
    with pytest.raises(ValueError, match="a sampler moves in the posterior of all data, but plate"):
        gx.UnconstrainedDensity(rows, some)
