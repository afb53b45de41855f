"""An array mask is padding: the evidence is unchanged, and nothing diverges."""

import warnings

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from tensorflow_probability.substrates.jax import distributions as tfd
from tensorflow_probability.substrates.jax.bijectors import Shift

import guidax as gx
from guidax._model.padding import without_padding
from registry import every_distribution, every_guide

MASK = jnp.array([True, True, True, False, False])
PADDED = jnp.asarray([0.5, 1.0, -1.0, np.nan, 7.0], float)
EVIDENCE = stats.norm(0, 2**0.5).logpdf([0.5, 1.0, -1.0]).sum()


def padded(y, mask):
    with gx.plate("rows", 5), gx.handlers.mask(mask=mask):
        gx.sample("s", tfd.Gamma(2.0 * jnp.ones(()), 2.0))
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("y", distrax.Normal(z, 1.0), obs=y)


@every_distribution
def test_the_evidence_is_unchanged(entry, key):
    guide = entry.make(padded, PADDED, MASK, key=key)
    result = gx.fit(key, guide, PADDED, MASK, steps=3000, objective=gx.ELBO(8), progress=False)
    assert bool(jnp.all(jnp.isfinite(result.losses)))
    elbos = -jax.vmap(lambda k: gx.ELBO()(result.guide, k, PADDED, MASK))(
        jax.random.split(key, 5000)
    )
    error = float(elbos.std()) / 5000**0.5
    # A normal cannot be the log of a gamma: a few hundredths of a nat for each of the three.
    assert EVIDENCE - 0.3 < float(elbos.mean()) < EVIDENCE + 5 * error
    draws = result.guide.sample_posterior(key, PADDED, MASK, sample_shape=(20_000,))
    np.testing.assert_allclose(draws["z"].mean(axis=0)[:3], PADDED[:3] / 2, atol=0.05)
    np.testing.assert_allclose(draws["z"].std(axis=0)[:3], 0.5**0.5, atol=0.05)
    for u in (draws["z"], jnp.log(draws["s"])):
        np.testing.assert_allclose(u.std(axis=0)[3:], 1.0, atol=0.05)


@every_guide
def test_nan_in_the_padding_reaches_no_gradient(entry, key):
    guide = entry.make(padded, PADDED, MASK, key=key)
    loss, grads = jax.value_and_grad(gx.ELBO())(guide, key, PADDED, MASK)
    assert jnp.isfinite(loss) and bool(grads.is_finite())
    shifted = jnp.where(MASK, PADDED, -3.0)
    np.testing.assert_allclose(gx.ELBO()(guide, key, shifted, MASK), loss, rtol=1e-6)
    assert float(gx.ELBO()(guide, key, PADDED + 1, MASK)) != float(loss)


def test_a_mask_that_keeps_all_is_no_mask(key):
    y = jnp.where(MASK, PADDED, 0.0)

    def plain(y):
        with gx.plate("rows", 5):
            gx.sample("s", tfd.Gamma(2.0 * jnp.ones(()), 2.0))
            z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
            gx.sample("y", distrax.Normal(z, 1.0), obs=y)

    masked = gx.AutoNormal(padded, y, jnp.ones(5, bool), key=key)
    bare = gx.AutoNormal(plain, y, key=key)
    np.testing.assert_allclose(
        gx.ELBO()(masked, key, y, jnp.ones(5, bool)), gx.ELBO()(bare, key, y), rtol=1e-6
    )


def test_a_latent_that_another_term_reads_in_a_masked_entry_is_an_error(key):
    def read(y, mask):
        with gx.plate("rows", 5):
            with gx.handlers.mask(mask=mask):
                z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
            gx.sample("y", distrax.Normal(z, 1.0), obs=y)

    y = jnp.where(MASK, PADDED, 0.0)
    with pytest.raises(ValueError, match="'z' has masked entries that another term"):
        gx.AutoNormal(read, y, MASK, key=key)


@pytest.mark.parametrize("objective", [gx.ELBO(8), gx.MeanFieldELBO(8)], ids=["ELBO", "mean field"])
def test_mask_false_with_a_factor_is_a_prior_of_ones_own(objective, key):
    """NumPyro's idiom: N(5, 1) written as a factor."""

    def model():
        with gx.handlers.mask(mask=False):
            z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        gx.factor("prior", -0.5 * (z - 5.0) ** 2)

    fitted = gx.fit(
        key, gx.AutoNormal(model, key=key), steps=2000, objective=objective, progress=False
    ).guide
    np.testing.assert_allclose(fitted.family.loc["z"], 5.0, atol=0.02)
    np.testing.assert_allclose(jax.nn.softplus(fitted.family.raw_scale["z"]), 1.0, atol=0.02)


def test_missing_observations(key):
    """The posterior of a mean is that of the observations that are there."""
    y = jnp.asarray([0.3, np.nan, 1.4, np.nan, 2.0], float)

    def model(y):
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 2.0))
        with gx.plate("rows", 5), gx.handlers.mask(mask=~jnp.isnan(y)):
            gx.sample("y", distrax.Normal(z, 0.5), obs=y)

    guide = gx.AutoNormal(model, y, key=key)
    fitted = gx.fit(key, guide, y, steps=1500, objective=gx.ELBO(8), progress=False).guide
    precision = 1 / 4 + 3 / 0.25
    mean, scale = (3.7 / 0.25) / precision, precision**-0.5
    assert abs(float(fitted.family.loc["z"]) - mean) < 0.1 * scale


def test_a_masked_distribution_is_refused(key):
    def model():
        masked = tfd.Masked(tfd.Normal(jnp.zeros(2), 1.0), jnp.array([True, False]))
        gx.sample("x", tfd.Independent(masked, 1))

    with pytest.raises(ValueError, match="'x': a Masked distribution.*gx.handlers.mask"):
        gx.AutoNormal(model, key=key)


SEEN = [jnp.array(seen, bool) for seen in ([1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0])]
ROWS = jnp.linspace(0.5, 1.5, 4)
COUNTS = jnp.arange(3.0, 7.0)
SCORES = ROWS[:, None] * jnp.arange(3.0)

NATIVE = {
    "real": lambda t: tfd.Normal(t * ROWS, 1.0),
    "pole at zero": lambda t: tfd.Horseshoe(t * ROWS),
    "far away": lambda t: tfd.Normal(1e15 * t + ROWS, 1e-3),
    "positive": lambda t: tfd.Gamma(t * ROWS, 1.0),
    "unit interval": lambda t: tfd.Beta(t * ROWS, 2.0),
    "interval by row": lambda t: tfd.Uniform(10 * ROWS, 10 * ROWS + t),
    "above by row": lambda t: tfd.Pareto(t, 100 * ROWS),
    "half open by row": lambda t: tfd.GeneralizedPareto(ROWS, 1.0, t * jnp.array([-0.5, 0, 1, 2])),
    "circular": lambda t: tfd.VonMises(t * ROWS, 1.0),
    "sphere": lambda t: tfd.PowerSpherical(jnp.eye(3)[:1].repeat(4, 0), t * ROWS),
    "simplex": lambda t: tfd.Dirichlet(jnp.exp(t * SCORES)),
    "corr_cholesky": lambda t: tfd.CholeskyLKJ(3, t * ROWS),
    "corr_matrix": lambda t: tfd.LKJ(3, t * ROWS),
    "positive_definite": lambda t: tfd.WishartTriL(5.0, ROWS[:, None, None] * t * jnp.eye(2)),
    "boolean": lambda t: tfd.Bernoulli(logits=t * ROWS, dtype=float),
    "counts": lambda t: tfd.Poisson(t * ROWS),
    "counts from 1": lambda t: tfd.Zipf(1.0 + t * ROWS),
    "integers": lambda t: tfd.Skellam(t * ROWS, 1.0),
    "counts up to, by row": lambda t: tfd.Binomial(COUNTS, logits=t * ROWS),
    "counts of sum, by row": lambda t: tfd.Multinomial(COUNTS, logits=t * SCORES),
    "one_hot": lambda t: tfd.OneHotCategorical(logits=t * SCORES, dtype=float),
    "finite, by draws": lambda t: tfd.FiniteDiscrete(jnp.array([1.0, 2, 4]), logits=t * SCORES),
    "independent": lambda t: tfd.Independent(tfd.Uniform(SCORES - 1, SCORES + t), 1),
    "transformed": lambda t: tfd.TransformedDistribution(tfd.Gamma(t * ROWS, 1.0), Shift(ROWS)),
    "mixture": lambda t: tfd.MixtureSameFamily(
        tfd.Categorical(logits=jnp.zeros(2)), tfd.Gamma(t * SCORES[:, 1:], 1.0)
    ),
}

NUMPYRO = {
    "real": lambda d, t: d.Normal(t * ROWS, 1.0),
    "positive": lambda d, t: d.Gamma(t * ROWS, 1.0),
    "unit interval": lambda d, t: d.Beta(t * ROWS, 2.0),
    "interval by row": lambda d, t: d.Uniform(10 * ROWS, 10 * ROWS + t),
    "above by row": lambda d, t: d.Pareto(100 * ROWS, t),
    "below by row": lambda d, t: d.TruncatedNormal(t, 1.0, high=ROWS),
    "circular": lambda d, t: d.VonMises(t * ROWS, 1.0),
    "sphere": lambda d, t: d.ProjectedNormal(t * jnp.eye(3)[:1].repeat(4, 0)),
    "simplex": lambda d, t: d.Dirichlet(jnp.exp(t * SCORES)),
    "corr_cholesky": lambda d, t: d.LKJCholesky(3, t * ROWS),
    "corr_matrix": lambda d, t: d.LKJ(3, t * ROWS),
    "positive_definite": lambda d, t: d.Wishart(5.0, rate_matrix=t * jnp.eye(2)).expand([4]),
    "boolean": lambda d, t: d.Bernoulli(logits=t * ROWS),
    "counts": lambda d, t: d.NegativeBinomial2(t * ROWS, 1.0),
    "inflated counts": lambda d, t: d.ZeroInflatedPoisson(0.3, t * ROWS),
    "counts up to, by row": lambda d, t: d.Binomial(COUNTS.astype(int), logits=t * ROWS),
    "counts of sum, by row": lambda d, t: d.Multinomial(
        COUNTS.astype(int), logits=t * SCORES, total_count_max=6
    ),
    "independent": lambda d, t: d.Uniform(SCORES - 1, SCORES + t).to_event(1),
    "transformed": lambda d, t: d.LogNormal(t * ROWS, 1.0),
    "mixture": lambda d, t: d.MixtureSameFamily(
        d.Categorical(logits=jnp.zeros(2)), d.Gamma(t * SCORES[:, 1:], 1.0)
    ),
}


def require_density_of_the_seen(model, distribution, y, *masks):
    """Value and gradient are those of the rows that are seen, scored by the distribution itself."""
    at = jnp.asarray(1.3)

    @jax.jit
    def exact(t, seen):
        terms = distribution(t).log_prob(jnp.asarray(y))
        return jnp.sum(jnp.where(seen, terms, 0.0)) + jax.scipy.stats.norm.logpdf(t)

    for seen in masks:
        padded = jnp.where(seen.reshape((4,) + (1,) * (y.ndim - 1)), y, jnp.nan)
        found = jax.value_and_grad(lambda t, y, m: gx.log_joint(model, {"t": t}, y, m))(
            at, padded, seen
        )
        expected = jax.value_and_grad(exact)(at, seen)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("support", NATIVE)
def test_what_stands_for_a_masked_observation_lies_in_the_support(support, key):
    distribution = NATIVE[support]

    def model(y, mask):
        t = gx.sample("t", distrax.Normal(0.0, 1.0))
        with gx.plate("rows", 4), gx.handlers.mask(mask=mask):
            gx.sample("y", distribution(t), obs=y)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TFP's samplers ask for 64 bits in single precision too
        y = distribution(jnp.asarray(1.3)).sample(seed=key).astype(float)
    require_density_of_the_seen(model, distribution, y, *SEEN)


@pytest.mark.parametrize("support", NUMPYRO)
def test_what_stands_for_it_in_a_numpyro_model_does_too(support, key):
    numpyro = pytest.importorskip("numpyro")

    def distribution(t):
        return NUMPYRO[support](numpyro.distributions, t)

    def model(y, mask):
        t = numpyro.sample("t", numpyro.distributions.Normal(0.0, 1.0))
        with numpyro.plate("rows", 4), numpyro.handlers.mask(mask=mask):
            numpyro.sample("y", distribution(t), obs=y)

    y = distribution(jnp.asarray(1.3)).sample(key).astype(float)
    wrapped = gx.from_numpyro(model)
    require_density_of_the_seen(wrapped, distribution, y, *SEEN)


def test_what_stands_for_it_is_as_large_as_the_data(key):
    """At a point near zero this density, exp(-exp(100)), and its gradient are not finite."""

    def model(y, mask):
        t = gx.sample("t", distrax.Normal(0.0, 1.0))
        rows, columns = gx.plate("rows", 4, dim=-2), gx.plate("columns", 2, dim=-1)
        with rows, columns, gx.handlers.mask(mask=mask):
            gx.sample("y", tfd.Gumbel(t + jnp.array([0.0, 1000.0]), 1.0), obs=y)

    y = jnp.array([[jnp.nan, 1001.0], [0.5, jnp.nan], [1.0, 1002.0], [jnp.nan, 1003.0]])
    grad = jax.grad(lambda t: gx.log_joint(model, {"t": t}, y, ~jnp.isnan(y)))(jnp.zeros(()))
    z = jnp.array([0.5, 1.0, 1.0, 2.0, 3.0])
    np.testing.assert_allclose(grad, jnp.sum(1 - jnp.exp(-z)), rtol=1e-4)


def native_poisson(y, mask):
    z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
    with gx.plate("rows", 4), gx.handlers.mask(mask=mask):
        gx.sample("y", tfd.Poisson(jnp.exp(z) * ROWS), obs=y)


def numpyro_poisson(y, mask):
    numpyro = pytest.importorskip("numpyro")
    z = numpyro.sample("z", numpyro.distributions.Normal(jnp.zeros(()), 1.0))
    with numpyro.plate("rows", 4), numpyro.handlers.mask(mask=mask):
        numpyro.sample("y", numpyro.distributions.Poisson(jnp.exp(z) * ROWS), obs=y)


@pytest.mark.parametrize("model", [native_poisson, numpyro_poisson], ids=lambda m: m.__name__)
def test_a_loss_draws_no_observations(model, key, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a masked observation is drawn")

    wrapped = model
    monkeypatch.setattr(tfd.Poisson, "_sample_n", refuse)
    if model is numpyro_poisson:
        numpyro = pytest.importorskip("numpyro")
        monkeypatch.setattr(numpyro.distributions.Poisson, "sample", refuse)
        wrapped = gx.from_numpyro(model)
    y = jnp.array([1.0, jnp.nan, 0.0, 3.0])
    guide = gx.AutoNormal(wrapped, y, ~jnp.isnan(y), key=key)
    loss, grads = jax.value_and_grad(gx.ELBO())(guide, key, y, ~jnp.isnan(y))
    assert jnp.isfinite(loss) and bool(grads.is_finite())


@pytest.mark.parametrize("name", ["Multinomial", "DirichletMultinomial"])
def test_counts_whose_sums_differ_by_row_are_masked(name, key):
    """NumPyro cannot draw them without an upper bound of the sums."""
    numpyro = pytest.importorskip("numpyro")
    totals = jnp.array([3, 4, 5, 6])

    def distribution(t):
        if name == "Multinomial":
            return numpyro.distributions.MultinomialLogits(t * jnp.arange(2.0), totals)
        return numpyro.distributions.DirichletMultinomial(jnp.exp(t) * jnp.ones((4, 2)), totals)

    def model(y, mask):
        t = numpyro.sample("t", numpyro.distributions.Normal(0.0, 1.0))
        with numpyro.plate("rows", 4), numpyro.handlers.mask(mask=mask):
            numpyro.sample("y", distribution(t), obs=y)

    y, seen = jnp.array([[1.0, 2], [2, 2], [0, 5], [6, 0]]), jnp.array([True, False, True, False])
    wrapped = gx.from_numpyro(model)
    gx.AutoNormal(wrapped, jnp.where(seen[:, None], y, jnp.nan), seen, key=key)
    require_density_of_the_seen(wrapped, distribution, y, seen)


def native_improper(y, mask):
    gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
    with gx.plate("rows", 5), gx.handlers.mask(mask=mask):
        gx.sample("y", gx.ImproperUniform(gx.constraints.real), obs=y)


def numpyro_improper(y, mask):
    numpyro = pytest.importorskip("numpyro")
    dist = numpyro.distributions
    numpyro.sample("z", dist.Normal(jnp.zeros(()), 1.0))
    with numpyro.plate("rows", 5), numpyro.handlers.mask(mask=mask):
        numpyro.sample("y", dist.ImproperUniform(dist.constraints.real, (), ()), obs=y)


@pytest.mark.parametrize("model", [native_improper, numpyro_improper], ids=lambda m: m.__name__)
def test_a_masked_observation_needs_no_draws(model, key):
    model = model if model is native_improper else gx.from_numpyro(model)
    guide = gx.AutoNormal(model, PADDED, MASK, key=key)
    assert jnp.isfinite(gx.ELBO()(guide, key, PADDED, MASK))


def test_a_masked_observation_without_support_and_draws_is_named():
    site = gx.Site("y", "observed", PADDED, batch_shape=(5,), mask=MASK, log_prob=lambda x: x)
    with pytest.raises(ValueError, match="observed site 'y' is masked by an array.*no support"):
        without_padding(site)


def native_program(mask):
    with gx.plate("rows", 4), gx.handlers.mask(mask=mask):
        gx.sample("z", distrax.Normal(gx.param("loc", 0.5), 0.7))


def numpyro_program(mask):
    numpyro = pytest.importorskip("numpyro")
    fn = numpyro.distributions.Normal(numpyro.param("loc", 0.5), 0.7)
    with numpyro.plate("rows", 4), numpyro.handlers.mask(mask=mask):
        numpyro.sample("z", fn)


def numpyro_program_expanded(mask):
    numpyro = pytest.importorskip("numpyro")
    fn = numpyro.distributions.Normal(numpyro.param("loc", 0.5), 0.7)
    with numpyro.plate("rows", 4):
        numpyro.sample("z", fn.mask(mask[-1:] if jnp.ndim(mask) else mask).expand([4]))


@pytest.mark.parametrize("mask", [np.array([True, True, False, False]), False], ids=repr)
@pytest.mark.parametrize(
    "program", [native_program, numpyro_program, numpyro_program_expanded], ids=lambda p: p.__name__
)
def test_log_q_of_a_program_counts_every_entry_that_it_draws(program, mask, key):
    """In each language: a masked entry is drawn too, so that its density belongs to log q."""

    def model(mask):
        with gx.plate("rows", 4), gx.handlers.mask(mask=mask):
            gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("w", distrax.Normal(jnp.zeros(()), 1.0))

    mask = mask if mask is False else jnp.asarray(mask)
    wrapped = program if program is native_program else gx.from_numpyro(program)
    parts = {"z": gx.program(wrapped), "w": gx.AutoNormal}
    guide = gx.AutoGuideList(model, mask, key=key, parts=parts)
    exact = stats.norm(0.5, 0.7)
    for z in (np.zeros(4), np.asarray(guide.sample_posterior(key, mask)["z"])):
        draw = {"z": jnp.asarray(z), "w": jnp.zeros(())}
        log_q = guide.log_prob(draw, mask) - guide[1].log_prob({"w": draw["w"]}, mask)
        np.testing.assert_allclose(log_q, exact.logpdf(z).sum(), rtol=1e-4)
    draw, log_q = guide.sample_and_log_prob(key, mask)
    log_q = log_q - guide[1].log_prob({"w": draw["w"]}, mask)
    np.testing.assert_allclose(log_q, exact.logpdf(draw["z"]).sum(), rtol=1e-4)
