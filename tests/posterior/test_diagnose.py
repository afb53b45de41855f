"""The verdict on a fit: algebra where there is some, and both ends of the scale."""

import dataclasses

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx
from assertions import distance, precision, refused_type
from models import ConjugateNormal, Hierarchy, new_traces, regression, regression_data

TARGET = np.array([0.5, -1.0])


def normal_target():
    """`x ~ N(0.5, 1)`, `s = exp(N(-1, 1))`, with evidence `1 / 4`: a guide's weights by algebra."""
    x = gx.sample("x", distrax.Normal(jnp.asarray(TARGET[0], float), 1.0))
    gx.sample("s", tfd.LogNormal(jnp.asarray(TARGET[1], float), 1.0))
    gx.deterministic("twice", 2.0 * x)
    gx.factor("quarter", -jnp.log(4.0))


def guide_with(loc, scale, make=gx.AutoDiagonalNormal, key=jax.random.key(0)):
    """Return a normal guide with that mean and standard deviation of both coordinates."""
    start = gx.init_to_value({"x": jnp.asarray(loc[0], float), "s": jnp.exp(jnp.asarray(loc[1]))})
    return make(normal_target, key=key, init_loc_fn=start, init_scale=scale)


def test_an_exact_fit(key):
    diagnosis = gx.diagnose(key, guide_with(TARGET, 1.0))
    assert diagnosis.khat == 0.0
    n = diagnosis.num_samples
    assert n == 4000
    np.testing.assert_allclose(diagnosis.log_weights, -np.log(4), atol=100 * precision())
    np.testing.assert_allclose(diagnosis.smoothed_log_weights, -np.log(n), atol=1e-4)
    for name in ("elbo", "log_evidence"):
        np.testing.assert_allclose(getattr(diagnosis, name), -np.log(4), atol=1e-4)
    assert diagnosis.elbo_error < 1e-4 and diagnosis.log_evidence_error < 1e-3
    np.testing.assert_allclose(diagnosis.ess, n, rtol=1e-4)
    assert str(diagnosis).startswith(
        "k-hat 0.00: as far as these draws see, the guide covers the posterior; means"
    )


def test_weights_that_rounding_hides_get_no_verdict(key):
    """A constant in the density changes no weight, but takes the digits that would show them."""
    dtype = jnp.zeros(()).dtype

    def far(nats):
        def model():
            normal_target()
            gx.factor("constant", jnp.asarray(nats / jnp.finfo(dtype).eps, dtype))

        start = gx.init_to_value({"x": jnp.asarray(0.5), "s": jnp.exp(jnp.asarray(-1.0))})
        guide = gx.AutoDiagonalNormal(model, key=key, init_loc_fn=start, init_scale=0.5)
        return gx.diagnose(key, guide)

    lost, kept = far(4.0), far(1e-3)
    assert lost.rounding > 1 > kept.rounding
    assert "less than their rounding" in lost.reading and "double precision" in lost.reading
    assert kept.reading.startswith(f"k-hat {float(kept.khat):.2f}: ")


def test_estimates_are_right_where_the_guide_is_not(key):
    # Scales of 1.5 for 1, off by half a standard deviation: weights have all moments.
    diagnosis = gx.diagnose(key, guide_with(TARGET + 0.5, 1.5), num_samples=20_000)
    draws, log_weights = diagnosis.draws, diagnosis.log_weights
    z = np.stack([draws["x"], np.log(draws["s"])])
    expected = -0.5 * (z - TARGET[:, None]) ** 2 + 0.5 * ((z - TARGET[:, None] - 0.5) / 1.5) ** 2
    expected = expected.sum(0) + 2 * np.log(1.5) - np.log(4)
    np.testing.assert_allclose(log_weights, expected, atol=1e3 * precision())
    assert diagnosis.khat < 0.5
    # KL(q | p) = log(1 / 1.5) + (1.5^2 + 0.5^2 - 1) / 2, twice.
    elbo = -np.log(4) - 2 * (-np.log(1.5) + (1.5**2 + 0.5**2 - 1) / 2)
    assert abs(diagnosis.elbo - elbo) < 4 * diagnosis.elbo_error
    np.testing.assert_allclose(diagnosis.elbo_error, np.std(log_weights) / 20_000**0.5, rtol=1e-3)
    assert abs(diagnosis.log_evidence + np.log(4)) < 4 * diagnosis.log_evidence_error
    assert 0 < diagnosis.log_evidence_error < 0.02
    smoothed, khat = gx.psis(log_weights)
    np.testing.assert_allclose(diagnosis.smoothed_log_weights, smoothed, atol=1e3 * precision())
    np.testing.assert_allclose(diagnosis.khat, khat, atol=1e4 * precision())
    np.testing.assert_allclose(diagnosis.ess, 1 / np.sum(np.exp(2 * smoothed)), rtol=1e-3)
    error = 5 / np.sqrt(diagnosis.ess)
    mean, std = diagnosis.mean(), diagnosis.std()
    assert abs(mean["x"] - TARGET[0]) < error and abs(std["x"] - 1) < error
    assert abs(mean["twice"] - 2 * TARGET[0]) < 2 * error and abs(std["twice"] - 2) < 2 * error
    assert abs(np.mean(draws["x"]) - TARGET[0]) > 0.4  # without the weights it is off
    resampled = diagnosis.resample(key, 5000)
    assert resampled["x"].shape == (5000,)
    assert abs(resampled["x"].mean() - TARGET[0]) < error + 5 / np.sqrt(5000)
    assert abs(resampled["x"].std() - 1) < error + 5 / np.sqrt(5000)
    # Sites of a resampled draw stay together.
    np.testing.assert_allclose(resampled["twice"], 2 * resampled["x"], rtol=1e-5)
    assert "covers the posterior; means" in str(diagnosis)


def test_the_spread_of_a_complex_site_is_real(key):
    def model():
        x = gx.sample("x", distrax.Normal(0.0, 1.0))
        gx.deterministic("turned", (3.0 + 4.0j) * x)

    std = gx.diagnose(key, gx.AutoNormal(model, key=key), num_samples=100).std()
    assert jnp.isrealobj(std["turned"])
    np.testing.assert_allclose(std["turned"], 5.0 * std["x"], rtol=1e-4)


def test_draws_without_density_are_told(key):
    """A tenth of the guide lies where the posterior has none."""

    def model():
        x = gx.sample("x", distrax.Normal(jnp.zeros(()), 1.0))
        gx.factor("cut", jnp.where(x > 1.2816, -jnp.inf, 0.0))

    start = gx.init_to_value({"x": 0.0})
    guide = gx.AutoNormal(model, key=key, init_scale=1.0, init_loc_fn=start)
    diagnosis = gx.diagnose(key, guide, num_samples=1000)
    none = int(np.sum(diagnosis.log_weights == -np.inf))
    assert 60 < none < 140
    assert f"({none} of 1000 draws lie where the posterior has no density.)" in diagnosis.reading
    assert "no density" not in gx.diagnose(key, guide_with(TARGET, 1.0)).reading


def test_khat_grows_as_the_guide_narrows(key):
    # The weights of a guide with scale `c` have the shape k = 1 - c^2, for very many draws.
    khats = [float(gx.diagnose(key, guide_with(TARGET, c)).khat) for c in (1.5, 0.8, 0.5, 0.1)]
    assert np.all(np.diff(khats) > 0), khats
    assert khats[0] < 0.1 and khats[1] < 0.5 and khats[3] > 0.65


def read(khat, number, log_weights=0.0):
    weights = jnp.full(number, log_weights)
    zero = jnp.zeros(())
    names = ("elbo_error", "log_evidence", "log_evidence_error", "rounding")
    fields = {name: zero for name in names}
    fields |= {"elbo": jnp.asarray(-1.25), "ess": jnp.asarray(12.3)}
    return gx.Diagnosis(
        khat=jnp.asarray(khat),
        log_weights=weights,
        smoothed_log_weights=weights,
        draws={},
        extended=False,
        **fields,
    ).reading


@pytest.mark.parametrize(
    ("khat", "number", "words"),
    [
        (
            0.4,
            4000,
            "k-hat 0.40: as far as these draws see, the guide covers the posterior; means and",
        ),
        (0.55, 4000, "covers the posterior without being close to it; means and s.d. can be tr"),
        (0.69, 4000, "covers the posterior without"),
        (0.69, 1000, "k-hat 0.69: too high for 1000 draws; take 1682 at least"),  # 10^(1 / 0.31)
        (0.4, 40, "too high for 40 draws; take 47 at least"),
        (0.8, 4000, "the guide misses a part of the posterior; neither its means and s.d. nor"),
        (1.2, 4000, "the guide misses the posterior; neither its means nor corrected ones"),
        (np.inf, 4000, "k-hat inf: the guide misses the posterior"),
        (np.inf, 20, "no k-hat: 20 draws are too few"),
        (np.nan, 40, "no k-hat: no weight is > 0"),
    ],
)
def test_readings(khat, number, words):
    reading = read(khat, number)
    assert words in reading, reading
    assert f"weights of {number} draws; a part" in reading
    assert "worth 12 draws" in reading and "ELBO -1.25 (0.00)" in reading


def test_a_nearly_exact_fit_is_not_blamed_for_the_shape_of_its_tail(key):
    """k-hat knows no scale: of log weights with an s.d. of 0.01 it may be anything."""
    tail = jnp.asarray(np.random.default_rng(0).pareto(0.8, 4_000))  # k = 1.25
    heavy = gx.diagnose(key, guide_with(TARGET, 1.0))
    light = 0.001 * jnp.minimum(tail, 100.0)
    smoothed, _ = gx.psis(light)
    ess = 1 / jnp.sum(jnp.exp(2 * smoothed))
    weights = {"log_weights": light, "smoothed_log_weights": smoothed, "ess": ess}
    near = dataclasses.replace(heavy, khat=jnp.asarray(1.25), **weights)
    assert "nearly equal" in near.reading
    far = dataclasses.replace(near, ess=jnp.asarray(2_700.0))
    assert "misses the posterior" in far.reading


def test_heavy_tails_alone_do_not_condemn_the_bulk(key):
    """The normal nearest to Student's t with 5 degrees of freedom, at a divergence of 0.018."""
    scale = 1.167  # minimises KL(normal | t), by quadrature

    def model():
        gx.sample("x", tfd.StudentT(5.0, jnp.zeros(()), 1.0))

    start = gx.init_to_value({"x": jnp.zeros(())})
    guide = gx.AutoNormal(model, key=key, init_loc_fn=start, init_scale=scale)
    z = np.linspace(-9 * scale, 9 * scale, 20_001)
    q = stats.norm(0, scale)
    divergence = np.trapezoid(q.pdf(z) * (q.logpdf(z) - stats.t(5).logpdf(z)), z)
    # A fixed key: what few draws far out weigh differs from one to another.
    found = gx.diagnose(jax.random.key(2), guide)
    assert found.khat > 0.7 and 0.7 < found.ess / 4_000 < 0.99
    np.testing.assert_allclose(found.log_evidence - found.elbo, divergence, atol=0.015)
    assert "tails are heavier than the guide's" in found.reading
    assert "the two agree, to 0.03 nat" in found.reading and "misses" not in found.reading
    for worse in ({"ess": jnp.asarray(2_700.0)}, {"elbo": found.log_evidence - 0.06}):
        assert "misses" in dataclasses.replace(found, **worse).reading


def test_nothing_is_drawn_by_weights_that_are_not_there(key):
    """Any draw would look like one of the posterior's."""
    diagnosis = gx.diagnose(key, guide_with(TARGET, 1.0), num_samples=30)
    weights = jnp.full(30, jnp.nan)
    khat = jnp.asarray(jnp.nan)
    lost = dataclasses.replace(
        diagnosis, khat=khat, log_weights=weights, smoothed_log_weights=weights
    )
    with pytest.raises(ValueError, match="no weights to draw by: no k-hat: 30 of 30 log weights"):
        lost.resample(key, 5)
    resample = jax.jit(lambda diagnosis: diagnosis.resample(key, 5))
    assert jnp.all(jnp.isnan(resample(lost)["x"]))
    assert distance(resample(diagnosis), diagnosis.resample(key, 5)) == 0.0


def test_a_draw_of_no_weight_may_be_infinite(key):
    diagnosis = gx.diagnose(key, guide_with(TARGET, 1.0), num_samples=30)
    weights = jnp.full(30, -jnp.log(29.0)).at[3].set(-jnp.inf)
    draws = {"x": diagnosis.draws["x"].at[3].set(jnp.inf)}
    one_out = dataclasses.replace(diagnosis, smoothed_log_weights=weights, draws=draws)
    others = np.delete(np.asarray(diagnosis.draws["x"]), 3)
    np.testing.assert_allclose(one_out.mean()["x"], others.mean(), rtol=1e-5)
    np.testing.assert_allclose(one_out.std()["x"], others.std(), rtol=1e-5)


def test_a_reading_counts_what_is_no_weight():
    assert "7 of 7 log weights are NaN or inf" in read(np.nan, 7, log_weights=np.nan)


X, LABELS = regression_data()


def test_plain_jitted_and_vmapped_calls_agree_and_trace_once(key):
    guide = gx.AutoNormal(regression, X, LABELS, key=key, init_scale=0.5)

    def call(guide, **options):
        return gx.diagnose(key, guide, X, LABELS, num_samples=200, **options)

    plain = call(guide)
    assert new_traces(lambda: call(guide)) == 0
    assert plain.draws["eta"].shape == (200, 40)
    both = jax.tree.map(lambda x: jnp.stack([x, x + 0.1]), guide)
    ensemble = jax.jit(jax.vmap(call))(both)  # jit of vmap: one program for both claims
    first = jax.tree.map(lambda x: x[0], ensemble)
    assert distance(first, plain) < 1e5 * precision()
    assert not np.allclose(ensemble.khat[0], ensemble.khat[1])
    for ask in (
        lambda d: d.reading,
        gx.Diagnosis.mean,
        gx.Diagnosis.std,
        lambda d: d.resample(key, 5),
    ):
        with pytest.raises(ValueError, match="several diagnoses"):
            ask(ensemble)
    means = jax.vmap(gx.Diagnosis.mean)(ensemble)
    assert distance(jax.tree.map(lambda x: x[0], means), plain.mean()) < 1e5 * precision()
    assert str(ensemble).startswith("Diagnosis(")
    assert first.reading == plain.reading
    chunked = call(guide, batch_size=64)
    assert distance(chunked, plain) < 1e5 * precision()
    with pytest.raises(ValueError, match="not known inside a transformation"):
        jax.eval_shape(lambda g: len(call(g).reading) * jnp.ones(()), guide)


def test_the_weights_are_the_joint_density_over_the_guides(key):
    guide = gx.AutoMultivariateNormal(regression, X, LABELS, key=key, init_scale=0.3)
    diagnosis = gx.diagnose(key, guide, X, LABELS, num_samples=50)
    latents = {name: diagnosis.draws[name] for name in ("beta", "tau")}
    expected = gx.log_joint(guide.model, latents, X, LABELS) - guide.log_prob(latents, X, LABELS)
    np.testing.assert_allclose(diagnosis.log_weights, expected, rtol=1e5 * precision())


def test_annealed_draws_are_weighed_with_their_momenta(key):
    data = ConjugateNormal.y
    start = gx.init_to_value({"z": jnp.asarray(1.0, float)})
    options = {"K": 8, "init_scale": 0.4, "eta_init": 0.09, "init_loc_fn": start}
    guide = gx.AutoDAIS(ConjugateNormal.model, data, key=key, **options)
    diagnosis = gx.diagnose(key, guide, data)
    assert "paths, each a draw with the momenta" in diagnosis.on_what and diagnosis.extended
    assert diagnosis.khat < 0.5
    gap = diagnosis.log_evidence - ConjugateNormal.log_evidence()
    assert abs(gap) < 4 * diagnosis.log_evidence_error
    assert diagnosis.elbo < diagnosis.log_evidence
    mean, std = ConjugateNormal.posterior()
    error = 5 * std / np.sqrt(diagnosis.ess)
    assert abs(diagnosis.mean()["z"] - mean) < error and abs(diagnosis.std()["z"] - std) < error


def test_rows_with_moves_of_their_own_count_as_annealed(key):
    guide = gx.AutoSemiDAIS(Hierarchy.takes_batch, Hierarchy.y, key=key, K=2)
    diagnosis = gx.diagnose(key, guide, Hierarchy.y, num_samples=30)
    assert diagnosis.extended and np.isfinite(diagnosis.elbo)


def test_laplace_is_the_normal_at_its_mode(key):
    mean, std = ConjugateNormal.posterior()
    mode = gx.init_to_value({"z": jnp.asarray(mean, float)})
    guide = gx.AutoLaplaceApproximation(
        ConjugateNormal.model, ConjugateNormal.y, key=key, init_loc_fn=mode
    )
    diagnosis = gx.diagnose(key, guide, ConjugateNormal.y)
    assert diagnosis.khat == 0.0
    np.testing.assert_allclose(diagnosis.elbo, ConjugateNormal.log_evidence(), rtol=1e-5)
    np.testing.assert_allclose(diagnosis.std()["z"], std, rtol=0.06)  # 5 / sqrt(2 * 4000)


def test_points_are_refused(key):
    point = gx.AutoDelta(regression, X, LABELS, key=key)
    with pytest.raises(TypeError, match=r"draws the sites \['beta', 'tau'\] as points"):
        gx.diagnose(key, point, X, LABELS)
    parts = {"tau": gx.AutoDelta, ...: gx.AutoNormal}
    mixed = gx.AutoGuideList(regression, X, LABELS, key=key, parts=parts)
    with pytest.raises(TypeError, match=r"draws the sites \['tau'\] as points"):
        gx.diagnose(key, mixed, X, LABELS)


def test_some_rows_are_refused_and_all_rows_are_taken(key):
    def model(y):
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        with gx.plate("data", 6, subsample_size=2):
            gx.sample("y", distrax.Normal(z, 1.0), obs=gx.subsample(y))

    guide = gx.AutoNormal(model, Hierarchy.y, key=key)
    with pytest.raises(ValueError, match=r"plate 'data' holds 2 of 6 rows.*jnp.arange\(6\)"):
        gx.diagnose(key, guide, Hierarchy.y, num_samples=30)
    whole = gx.Batch(Hierarchy.y).at(data=jnp.arange(6))
    diagnosis = gx.diagnose(key, guide, whole, num_samples=30)
    expected = gx.log_joint(model, {"z": diagnosis.draws["z"]}, Hierarchy.y) - guide.log_prob(
        {"z": diagnosis.draws["z"]}
    )
    np.testing.assert_allclose(diagnosis.log_weights, expected, rtol=1e4 * precision())


def test_wrong_arguments(key):
    guide = guide_with(TARGET, 1.0)
    with refused_type("a random key, then a guide"):
        gx.diagnose(guide, key)
    with pytest.raises(ValueError, match="num_samples is at least 1"):
        gx.diagnose(key, guide, num_samples=0)
    with pytest.raises(ValueError, match="batch_size is at least 1"):
        gx.diagnose(key, guide, batch_size=0)
    with pytest.raises(ValueError, match="num_samples is at least 1"):
        gx.diagnose(key, guide, num_samples=30).resample(key, 0)
    with refused_type("resample takes a random key first"):
        gx.diagnose(key, guide, num_samples=30).resample(3, 2)
    observed = gx.AutoNormal(regression, X, LABELS, key=key)
    with pytest.raises(ValueError, match="latent site 'y' has no value"):
        gx.diagnose(key, observed, X, num_samples=30)
