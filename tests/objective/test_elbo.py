"""The evidence lower bound, its estimators and its closed forms."""

import functools

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx
from assertions import assert_mean_close, distance, identical, perturbed, precision, refused_type
from models import ConjugateNormal, Hierarchy, regression, regression_data

DATA = jnp.asarray(ConjugateNormal.y, float)
OBJECTIVES = {
    "pathwise": gx.ELBO(),
    "stl": gx.ELBO(estimator="stl"),
    "entropy": gx.ELBO(estimator="entropy"),
    "mean field": gx.MeanFieldELBO(),
}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


def mixed(y):
    """Real, positive, scaled and plated latents in one model."""
    m = gx.sample("m", distrax.Normal(jnp.zeros(()), 2.0))
    with gx.handlers.scale(scale=0.5):
        gx.sample("w", distrax.Normal(jnp.zeros(()), 1.5))
    t = gx.sample("t", tfd.Gamma(2.0 * jnp.ones(()), 2.0))
    with gx.plate("rows", 4):
        z = gx.sample("z", distrax.Normal(m, 1.0))
        gx.sample("y", distrax.Normal(z, t), obs=y)


def test_objectives_have_one_value_and_one_gradient(key):
    y = jnp.arange(4.0)
    guide = perturbed(gx.AutoNormal(mixed, y, key=key, init_scale=0.4), key)
    keys = jax.random.split(key, 4000)
    found = {}
    for name, objective in OBJECTIVES.items():
        both = jax.value_and_grad(objective)
        values, grads = jax.jit(jax.vmap(lambda k, both=both: both(guide, k, y)))(keys)
        leaves = [np.asarray(x).reshape(4000, -1) for x in jax.tree.leaves(grads)]
        found[name] = np.concatenate([np.asarray(values)[:, None], *leaves], axis=1)
    for name, draws in found.items():
        assert_mean_close(draws - found["pathwise"], 0.0)  # the same keys: differences vary less
        assert np.any(draws != found["pathwise"]) == (name != "pathwise")


def tempered():
    """A prior to the power 5: the posterior has standard deviation 5^-1/2."""
    with gx.handlers.scale(scale=5.0):
        gx.sample("x", distrax.Normal(jnp.zeros(()), 1.0))


@every_objective
def test_scale_on_a_latent(objective, key):
    guide = gx.AutoNormal(tempered, key=key)
    fitted = gx.fit(key, guide, steps=3000, objective=objective, progress=False).guide
    scale = jax.nn.softplus(fitted.family.raw_scale["x"])  # over keys its s.d. is 3 %
    assert abs(scale * 5**0.5 - 1) < 0.13


@pytest.mark.parametrize("rows", [(11, 3), (12, 11), (49, 10)])  # N/B times B/N is not one
def test_numpyro_s_factors_of_plates_leave_the_divergence_closed(rows, key):
    numpyro = pytest.importorskip("numpyro")

    def model():
        with numpyro.plate("data", rows[0], subsample_size=rows[1]):
            numpyro.sample("z", numpyro.distributions.Normal(jnp.zeros(()), 1.0))

    guide = gx.AutoNormal(gx.from_numpyro(model), key=key)
    even = jax.tree.map(lambda x: jnp.full_like(x, 0.3), guide)  # any rows are as good as others
    losses = jax.vmap(lambda key: gx.MeanFieldELBO()(even, key))(jax.random.split(key, 50))
    scale = jax.nn.softplus(0.3)
    expected = rows[0] * 0.5 * (scale**2 + 0.3**2 - 1 - 2 * jnp.log(scale))
    np.testing.assert_allclose(losses, expected, rtol=1e2 * precision())


def test_closed_divergence_has_no_variance_and_is_exact(key):
    def prior():
        gx.sample("a", distrax.Normal(jnp.asarray([1.0, -2.0], float), 3.0))
        gx.sample("b", tfd.LogNormal(0.5 * jnp.ones(()), 0.7))

    guide = gx.AutoNormal(prior, key=key, init_scale=0.2)
    losses = [gx.MeanFieldELBO()(guide, k) for k in jax.random.split(key, 3)]
    family = guide.family
    expected = 0.0
    for site, mean, sd in (("a", np.array([1.0, -2.0]), 3.0), ("b", 0.5, 0.7)):
        q, p = (np.asarray(family.loc[site]), 0.2), (mean, sd)
        ratio = q[1] ** 2 / p[1] ** 2
        kl = 0.5 * (ratio + (q[0] - p[0]) ** 2 / p[1] ** 2 - 1 - np.log(ratio))
        expected += np.sum(kl)
    np.testing.assert_allclose(losses, expected, rtol=100 * precision())


def test_a_users_normal_has_no_closed_divergence(key):
    """The `scale` of this class of that name is a variance."""

    class Normal:
        batch_shape, event_shape, dtype = (), (), jnp.zeros(()).dtype

        def __init__(self, loc, scale):
            self.loc, self.scale = loc, scale

        def log_prob(self, x):
            return distrax.Normal(self.loc, self.scale**0.5).log_prob(x)

        def sample(self, *, seed, sample_shape=()):
            draws = jax.random.normal(seed, sample_shape, self.dtype)
            return self.loc + self.scale**0.5 * draws

    gx.support.register(Normal)(lambda d: gx.constraints.real)
    at = gx.init_to_value({"x": 1.5})

    def prior():
        gx.sample("x", Normal(1.0, 4.0))

    guide = gx.AutoNormal(prior, key=key, init_loc_fn=at, init_scale=0.5)
    losses = jax.vmap(lambda k: gx.MeanFieldELBO()(guide, k))(jax.random.split(key, 2000))
    ratio = 0.5**2 / 4.0
    assert_mean_close(losses, 0.5 * (ratio + 0.5**2 / 4.0 - 1 - np.log(ratio)))


def test_no_closed_divergence_where_a_later_part_reads_the_draws(key):
    """`mu ~ N(0, 1)`, `x ~ N(mu, 1/4)`, `y ~ N(x, 1)`, with `q(mu | x)` exact: `x ~ N(0, 5/4)`."""

    def model(y):
        mu = gx.sample("mu", distrax.Normal(jnp.zeros(()), 1.0))
        x = gx.sample("x", distrax.Normal(mu, 0.5))
        gx.sample("free", distrax.Normal(mu, 0.5))
        gx.sample("y", distrax.Normal(x, 1.0), obs=y)

    def exact_mu(given, y):
        gx.sample("mu", distrax.Normal(0.8 * given["x"], 5**-0.5))

    y, mean, s, w = 2.0, 1.0, 0.7, 0.3
    guide = gx.AutoGuideList(
        model,
        jnp.asarray(y, float),
        key=key,
        parts={
            "x": functools.partial(
                gx.AutoNormal, init_loc_fn=gx.init_to_value({"x": mean}), init_scale=s
            ),
            "mu": gx.program(exact_mu, given=True),
            "free": functools.partial(
                gx.AutoNormal, init_loc_fn=gx.init_to_feasible(), init_scale=w
            ),
        },
    )

    def divergence(mean, variance, prior):
        return 0.5 * (variance / prior + mean**2 / prior - 1 - np.log(variance / prior))

    mean_of_square = 0.8**2 * (mean**2 + s**2) + 0.2  # of mu
    free = divergence(0.0, w**2, 0.25) + mean_of_square / (2 * 0.25)
    fit = -0.5 * np.log(2 * np.pi) - 0.5 * ((y - mean) ** 2 + s**2)
    expected = fit - divergence(mean, s**2, 1.25) - free
    keys = jax.random.split(key, 4000)
    values = {}
    for objective in (gx.ELBO(), gx.MeanFieldELBO()):
        losses = jax.jit(jax.vmap(lambda k, o=objective: o(guide, k, jnp.asarray(y, float))))(keys)
        assert_mean_close(losses, -expected)
        values[type(objective)] = losses
    # The divergence of `free`, which nothing reads, is in closed form still.
    assert values[gx.MeanFieldELBO].std() < values[gx.ELBO].std()


def test_stl_gradient_vanishes_at_an_exact_fit(key):
    mean, scale = ConjugateNormal.posterior()
    guide = gx.AutoNormal(
        ConjugateNormal.model,
        DATA,
        key=key,
        init_loc_fn=gx.init_to_value({"z": mean}),
        init_scale=scale,
    )
    grads = jax.grad(gx.ELBO(estimator="stl"))(guide, key, DATA)
    pathwise = jax.grad(gx.ELBO())(guide, key, DATA)
    tolerance = 1e4 * precision()
    assert abs(float(grads.family.raw_scale["z"])) < tolerance
    assert abs(float(grads.family.loc["z"])) < tolerance
    assert abs(float(pathwise.family.raw_scale["z"])) > 0.01
    # Exact, so that every draw gives the evidence itself.
    np.testing.assert_allclose(
        -gx.ELBO()(guide, key, DATA), ConjugateNormal.log_evidence(), rtol=1e3 * precision()
    )


@pytest.mark.parametrize("kind", [gx.ELBO, gx.MeanFieldELBO])
def test_particles_average(kind, key):
    X, y = regression_data()
    guide = gx.AutoNormal(regression, X, y, key=key, init_scale=0.5)
    keys = jax.random.split(key, 1000)
    one = jax.vmap(lambda k: kind()(guide, k, X, y))(keys)
    many = jax.vmap(lambda k: kind(num_particles=16)(guide, k, X, y))(keys)
    ratio = float(jnp.var(one) / jnp.var(many))
    assert 16 / 2 < ratio < 16 * 2  # variances of long-tailed draws are uncertain
    gap = float(one.mean() - many.mean())
    assert abs(gap) < 5 * float(one.std()) / 1000**0.5


def test_particles_share_the_rows_of_plates(key):
    y = jnp.asarray(Hierarchy.y, float)
    guide = gx.AutoDelta(Hierarchy.takes_rows, y, key=key)  # no noise but the rows
    one = {float(gx.ELBO()(guide, k, y)) for k in jax.random.split(key, 40)}
    many = {float(gx.ELBO(num_particles=3)(guide, k, y)) for k in jax.random.split(key, 40)}
    distinct = len({round(x, 4) for x in one})
    assert 2 < distinct <= 15  # pairs out of six
    assert {round(x, 4) for x in many} <= {round(x, 4) for x in one}


def test_a_loss_is_minus_the_bound_and_fit_has_its_own_stream(key):
    guide = gx.AutoNormal(ConjugateNormal.model, DATA, key=key)
    draws, log_q = guide.sample_and_log_prob(key, DATA, sample_shape=(5000,))
    weights = np.asarray(gx.log_joint(guide.model, draws, DATA) - log_q)
    losses = jax.vmap(lambda k: gx.ELBO()(guide, k, DATA))(jax.random.split(key, 5000))
    error = weights.std() / 5000**0.5 + float(losses.std()) / 5000**0.5
    assert abs(weights.mean() + float(losses.mean())) < 5 * error
    # An evaluation with the key that a fit was given uses other noise than the fit does.
    result = gx.fit(key, guide, DATA, steps=1, progress=False)
    assert float(gx.ELBO()(guide, key, DATA)) != float(result.losses[0])


def test_objectives_are_static_and_equal_by_value():
    assert not jax.tree.leaves(gx.ELBO())
    assert jax.tree.structure(gx.ELBO(3)) == jax.tree.structure(gx.ELBO(num_particles=3))
    assert jax.tree.structure(gx.ELBO(3)) != jax.tree.structure(gx.ELBO(4))


def test_bad_options_are_named():
    for kind in (gx.ELBO, gx.MeanFieldELBO):
        for bad in (0, -1, 1.5, True):
            with pytest.raises((ValueError, TypeError), match="num_particles"):
                kind(num_particles=bad)
    with pytest.raises((ValueError, TypeError), match="estimator"):
        gx.ELBO(estimator="reinforce")


def test_a_guide_comes_before_the_key(key):
    guide = gx.AutoNormal(ConjugateNormal.model, DATA, key=key)
    with refused_type("a guide, then a random key; got .*Key.* and AutoNormal"):
        gx.ELBO()(key, guide, DATA)
    with refused_type("a guide, then a random key, such as .*; got 0"):
        gx.ELBO()(guide, 0, DATA)
    with refused_type(r"one random key; got an array of keys of shape \(2,\)"):
        gx.ELBO()(guide, jax.random.split(key), DATA)


def test_an_estimator_that_the_family_lacks_raises(key):
    class Lopsided(gx.AbstractFamily):
        """Draws without density or entropy of its own."""

        sites: tuple = eqx.field(static=True)

        def draw(self, key, target):
            noise = jax.random.normal(key)
            log_q = {gx.Block(("z",)): -0.5 * noise**2}
            return gx.Draw.of({"z": noise}, log_q=log_q)

    base = gx.AutoNormal(ConjugateNormal.model, DATA, key=key)
    guide = gx.AutoGuide(base.model, Lopsided(base.family.sites), base.structure)
    assert jnp.isfinite(gx.ELBO()(guide, key, DATA))
    assert jnp.isfinite(gx.MeanFieldELBO()(guide, key, DATA))
    with pytest.raises(ValueError, match="entropy in closed form.*pathwise"):
        gx.ELBO(estimator="entropy")(guide, key, DATA)
    with pytest.raises(ValueError, match="density in closed form.*pathwise"):
        gx.ELBO(estimator="stl")(guide, key, DATA)
    with pytest.raises(TypeError, match="no density"):
        guide.log_prob({"z": jnp.zeros(())}, DATA)


def test_optimum_does_not_depend_on_the_objective(key):
    y = jnp.arange(4.0)
    guide = gx.AutoNormal(mixed, y, key=key)
    fitted = {
        name: gx.fit(
            key, guide, y, steps=1500, progress=False, objective=type(o)(16)
        ).guide.quantiles([0.1, 0.5, 0.9], y)
        for name, o in (("pathwise", gx.ELBO()), ("mean field", gx.MeanFieldELBO()))
    }
    for site, x in fitted["pathwise"].items():
        np.testing.assert_allclose(fitted["mean field"][site], x, atol=0.08)
    assert not identical(fitted["pathwise"], fitted["mean field"])


@pytest.mark.parametrize(
    "make", (gx.AutoNormal, gx.AutoMultivariateNormal, gx.AutoIAFNormal), ids=lambda c: c.__name__
)
def test_gradients_that_stick_the_landing_have_derivatives(make, key):
    """As differences of them say, by the parameters and by the data, whichever are trained."""
    y = jnp.arange(4.0)
    guide = perturbed(make(mixed, y, key=key, init_scale=0.4), key, 0.1)
    loss = gx.ELBO(4, estimator="stl")

    def gradients(guide, y):
        first, *rest = jax.tree.leaves(guide)
        treedef = jax.tree.structure(guide)

        def of_first(x):
            return loss(jax.tree.unflatten(treedef, [x, *rest]), key, y)

        return jax.grad(loss)(guide, key, y), jax.grad(of_first)(first)

    at, along = (guide, y), perturbed((guide, y), jax.random.key(1), 1.0)
    step = precision() ** (1 / 3)
    above = jax.jit(gradients)(*jax.tree.map(lambda a, b: a + step * b, at, along))
    below = jax.jit(gradients)(*jax.tree.map(lambda a, b: a - step * b, at, along))
    expected = jax.tree.map(lambda a, b: (a - b) / (2 * step), above, below)
    _, found = jax.jit(lambda at: jax.jvp(gradients, at, along))(at)
    size = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    assert size > 1.0
    assert distance(found, expected) < 20 * step**2 * size + 20 * precision() / step * size
