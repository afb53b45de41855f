"""An array mask is padding: the evidence is unchanged, and nothing diverges."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx
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
def test_a_masked_observation_without_draws_is_named(model, key):
    model = model if model is native_improper else gx.from_numpyro(model)
    with pytest.raises(ValueError, match="observed site 'y' is masked by an array.*no draws"):
        gx.AutoNormal(model, PADDED, MASK, key=key)


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
