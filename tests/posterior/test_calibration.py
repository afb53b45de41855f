"""Calibration by simulation, on a conjugate model whose ranks are known in closed form."""

import functools

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import random
from scipy import stats

import guidax as gx
from assertions import refused_type
from models import new_traces, traces

DESIGN = np.array([[1.0, 1.0, 1.0, 0.5], [1.0, 1.0, 0.8, 1.0]])
NOISE = 0.5


def model(design, y=None):
    """`z ~ N(0, I)`, `y ~ N(design' z, NOISE^2)`: the posterior's correlation is -0.86."""
    traces[0] += 1
    z = gx.sample("z", distrax.MultivariateNormalDiag(jnp.zeros(2), jnp.ones(2)))
    with gx.plate("data", 4):
        gx.sample("y", distrax.Normal(z @ design, NOISE), obs=y)


# Path gradients vanish at an exact fit, so that 300 steps end there; mean fields end close enough.
options = {"observe": ["y"], "steps": 300, "objective": gx.ELBO(estimator="stl")}


def rank_variance(ratio):
    """Return the variance of `P(draw < truth)` if the truth spreads `ratio` times as wide as q."""
    return np.arcsin(ratio**2 / (1 + ratio**2)) / (2 * np.pi)


def assert_spread(calibration, ratio):
    u = (np.asarray(calibration.ranks["z"]) + 0.5) / (calibration.num_draws + 1)
    square = (u - 0.5) ** 2
    error = square.std(axis=0) / np.sqrt(len(u))
    # 99 draws know a probability to within u (1 - u) / 99 in the square.
    gap = np.abs(square.mean(axis=0) - rank_variance(ratio) * 98 / 99)
    assert np.all(gap < 4 * error + 1 / 400), (gap, error)


def test_500_fits_in_one_call_find_the_exact_guide_calibrated_and_the_mean_field_narrow():
    # The seed is fixed: a calibrated guide's reading errs once in a hundred seeds.
    exact = gx.calibrate(random.key(1), gx.AutoMultivariateNormal, model, DESIGN, **options)
    assert exact.ranks["z"].shape == (500, 2) and exact.num_replications == 500
    assert exact.ranks["z"].min() >= 0 and exact.ranks["z"].max() <= 99
    assert jnp.all(exact.first_bad_step == -1)
    assert_spread(exact, np.ones(2))
    assert min(exact.uniformity()["z"].min(), exact.symmetry()["z"].min()) > 0.01
    assert str(exact) == "500 fits: no miscalibration to be seen in 4 tests."

    # The optimal mean field has the variances 1 / precision_ii.
    mean_field = gx.calibrate(random.key(1), gx.AutoNormal, model, DESIGN, **options)
    precision = np.eye(2) + DESIGN @ DESIGN.T / NOISE**2
    ratio = np.sqrt(np.diag(np.linalg.inv(precision)) * np.diag(precision))
    assert np.all(ratio > 1.9)
    assert_spread(mean_field, ratio)
    assert mean_field.uniformity()["z"].max() < 1e-20
    assert mean_field.symmetry()["z"].min() > 0.01  # its means are right
    assert "ranks are not uniform for 'z' (too narrow, p " in mean_field.reading


def test_options_reach_the_fits_and_a_second_call_traces_nothing():
    def run(seed=0, rate=0.1, **changes):
        settings = {"observe": ["y"], "steps": 40, "num_replications": 30, "num_draws": 19}
        settings |= {"optimizer": optax.sgd, "learning_rate": rate} | changes
        make = functools.partial(gx.AutoNormal, init_scale=0.3)
        return gx.calibrate(random.key(seed), make, model, jnp.asarray(DESIGN), **settings)

    first = run()
    assert first.ranks["z"].shape == (30, 2) and first.num_draws == 19
    assert 15 < first.ranks["z"].max() <= 19
    assert new_traces(lambda: run(seed=1)) == 0
    slow = run(rate=1e-5)  # the guides stay where they start
    assert new_traces(lambda: run(rate=1e-4)) == 0
    assert not np.array_equal(first.ranks["z"], slow.ranks["z"])
    wild = run(rate=1e30)
    assert jnp.all(wild.first_bad_step >= 0) and "30 fits met a number" in wild.reading
    chunked = run(batch_size=8)
    assert np.mean(chunked.ranks["z"] == first.ranks["z"]) > 0.9  # rounding may move a rank
    with pytest.raises(ValueError, match="not known inside a transformation"):
        jax.eval_shape(lambda calibration: len(calibration.reading), first)


def test_ranks_of_constants_are_uniform():
    numpyro = pytest.importorskip("numpyro")
    dist = numpyro.distributions

    def correlated(y=None):
        numpyro.sample("L", dist.LKJCholesky(2, 2.0))
        matrix = numpyro.sample("C", dist.LKJ(2, 2.0))
        numpyro.sample("y", dist.Normal(matrix[0, 1], 1.0), obs=y)

    settings = {"observe": ["y"], "steps": 1, "num_replications": 400}
    model = gx.from_numpyro(correlated)
    calibration = gx.calibrate(random.key(0), gx.AutoNormal, model, **settings)
    p = calibration.uniformity()
    constant = {"C": [(0, 0), (1, 1)], "L": [(0, 0), (0, 1)]}
    columns = []
    for name, entries in constant.items():
        for entry in entries:
            assert p[name][entry] > 0.001
            columns.append(calibration.ranks[name][:, *entry])
    assert np.all(np.abs(np.triu(np.corrcoef(columns), 1)) < 4 / 400**0.5)  # each by itself
    assert p["C"][0, 1] < 1e-6  # after one step the guide is far too narrow


@pytest.mark.slow
def test_a_numpyro_model_with_discrete_data_and_a_laplace_guide():
    numpyro = pytest.importorskip("numpyro")
    dist = numpyro.distributions

    def counts(y=None):
        rate = numpyro.sample("rate", dist.Gamma(20.0, 1.0))
        with numpyro.plate("rows", 50):
            numpyro.sample("y", dist.Poisson(rate), obs=y)

    calibration = gx.calibrate(
        random.key(0),
        gx.AutoLaplaceApproximation,
        gx.from_numpyro(counts),
        observe=["y"],
        steps=200,
        num_replications=300,
    )
    # The posterior of log rate is close to normal: Gamma of shape 1000 or so.
    assert calibration.ranks["rate"].shape == (300,)
    assert calibration.reading.startswith("300 fits: no miscalibration")


def from_ranks(ranks, num_draws=99, is_finite=True):
    ranks = jnp.asarray(ranks)
    is_finite = jnp.full(len(ranks), True) & jnp.asarray(is_finite)
    return gx.Calibration({"z": ranks}, -jnp.ones(len(ranks), int), is_finite, num_draws)


def test_p_values_are_those_of_scipy():
    rng = np.random.default_rng(0)
    ranks = rng.binomial(99, rng.beta(1.2, 0.9, size=(400, 3)))
    calibration = from_ranks(ranks)
    for bins in (2, 20, 50):
        p = calibration.uniformity(bins)["z"]
        counts = [np.bincount(x, minlength=100).reshape(bins, -1).sum(1) for x in ranks.T]
        np.testing.assert_allclose(p, [stats.chisquare(c).pvalue for c in counts], rtol=1e-4)
    np.testing.assert_array_equal(calibration.uniformity()["z"], calibration.uniformity(20)["z"])
    few = from_ranks(ranks[:100])  # 20 to a bin
    np.testing.assert_array_equal(few.uniformity()["z"], few.uniformity(5)["z"])
    odd = from_ranks(rng.permutation(100_001)[:300], num_draws=100_000)  # without ties
    expected = stats.wilcoxon(
        np.asarray(odd.ranks["z"]) - 50_000.0, correction=False, method="asymptotic"
    )
    np.testing.assert_allclose(odd.symmetry()["z"], expected.pvalue, rtol=1e-3)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (1.0, 1.0, "no miscalibration"),
        (0.4, 0.4, "'z' (too narrow, p "),
        (3.0, 3.0, "'z' (too wide, p "),
        (2.0, 1.0, "'z' (too low and too wide, p "),  # most draws lie below the truth
        (1.0, 4.0, "'z' (too high and too wide, p "),
    ],
)
def test_readings(a, b, words):
    rng = np.random.default_rng(0)
    ranks = rng.integers(0, 100, size=(500, 2))
    ranks[:, 1] = rng.binomial(99, rng.beta(a, b, size=500))
    assert words in from_ranks(ranks).reading, from_ranks(ranks).reading


def half_broken(potential, z):
    """No Hessian where the mode is negative."""
    return jnp.where(z[0] < 0, jnp.nan, jax.hessian(potential)(z))


def test_fits_whose_draws_are_not_finite_are_left_out():
    """No step is to blame: it is the Hessian at the mode."""
    make = functools.partial(gx.AutoLaplaceApproximation, hessian_fn=half_broken)
    settings = options | {"objective": gx.ELBO(), "num_replications": 40}
    calibration = gx.calibrate(random.key(0), make, model, DESIGN, **settings)
    assert jnp.all(calibration.first_bad_step == -1)
    lost = int(jnp.sum(~calibration.is_finite))
    assert 5 < lost < 35
    kept = np.asarray(calibration.is_finite)
    alone = from_ranks(calibration.ranks["z"][kept])
    bins = 2
    np.testing.assert_allclose(calibration.uniformity(bins)["z"], alone.uniformity(bins)["z"])
    np.testing.assert_allclose(calibration.symmetry()["z"], alone.symmetry()["z"], rtol=1e-5)
    assert f" {lost} have draws that are not finite, and are left out." in calibration.reading


def test_no_verdict_rests_on_draws_that_are_not_finite():
    ranks = np.where(np.arange(500) < 100, 0, np.random.default_rng(0).integers(0, 100, size=500))
    assert "not uniform" in from_ranks(ranks).reading
    kept = from_ranks(ranks, is_finite=np.arange(500) >= 100)
    assert kept.reading.startswith("500 fits: no miscalibration to be seen in 2 tests. 100 have")
    assert "none of them has draws" in from_ranks(ranks, is_finite=False).reading


def test_a_site_without_entries_is_not_tested():
    ranks = {"z": jnp.arange(100), "none": jnp.zeros((100, 0), int)}
    empty = gx.Calibration(ranks, -jnp.ones(100, int), jnp.full(100, True), 99)
    assert empty.reading == "100 fits: no miscalibration to be seen in 2 tests."


def test_what_cannot_be_simulated_is_refused(key):
    calibrate = functools.partial(gx.calibrate, key, gx.AutoNormal, steps=10, num_replications=3)
    y = np.zeros(4)
    with pytest.raises(ValueError, match=r"observe names \['y'\], which the model does not draw"):
        calibrate(model, DESIGN, y, observe=["y"])
    with pytest.raises(ValueError, match="at least one and not all"):
        calibrate(model, DESIGN, observe=["y", "z"])
    with pytest.raises(ValueError, match="at least one and not all"):
        calibrate(model, DESIGN, observe=[])
    with pytest.raises(ValueError, match=r"each site once; got \['y', 'y'\]"):
        calibrate(model, DESIGN, observe=["y", "y"])
    with pytest.raises(ValueError, match=r"at\(data=...\) says which rows data hold"):
        calibrate(model, gx.Batch(DESIGN).at(data=np.arange(4)), observe=["y"])
    with pytest.raises(ValueError, match=r"at\(nope=...\) names no plate"):
        calibrate(model, gx.Batch(DESIGN).at(nope=np.array([99])), observe=["y"])
    with refused_type("a list of names"):
        calibrate(model, DESIGN, observe="y")
    with pytest.raises(ValueError, match="num_replications is at least 1"):
        gx.calibrate(key, gx.AutoNormal, model, DESIGN, observe=["y"], steps=1, num_replications=0)
    with pytest.raises(ValueError, match="num_draws is at least 1"):
        calibrate(model, DESIGN, observe=["y"], num_draws=0)
    with pytest.raises(ValueError, match="learning_rate is a positive number"):
        calibrate(model, DESIGN, observe=["y"], learning_rate=-1.0)
    with refused_type("learning_rate is a positive number, or a schedule; got 'fast'"):
        calibrate(model, DESIGN, observe=["y"], learning_rate="fast")
    with refused_type("a constructor of guides"):
        guide = gx.AutoNormal(model, DESIGN, y, key=key)
        gx.calibrate(key, guide, model, DESIGN, observe=["y"], steps=1)

    def with_param(y=None):
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), gx.param("scale", 1.0)))
        gx.sample("y", distrax.Normal(z, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"param sites \['scale'\], which are fitted to data"):
        calibrate(with_param, observe=["y"])

    def flat(y=None):
        z = gx.sample("z", gx.ImproperUniform(gx.constraints.real))
        gx.sample("y", distrax.Normal(z, 1.0), obs=y)

    with pytest.raises(ValueError, match="site 'z' has no prior that can be drawn from"):
        calibrate(flat, observe=["y"])

    def some_rows(y=None):
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        with gx.plate("data", 4, subsample_size=2):
            gx.sample("y", distrax.Normal(z, 1.0), obs=y)

    with pytest.raises(ValueError, match="plate 'data' holds 2 of 4 rows"):
        calibrate(some_rows, observe=["y"])


def test_bins_of_unequal_width():
    rng = np.random.default_rng(0)
    ranks = rng.binomial(100, rng.beta(1.2, 0.9, size=400))
    odd = from_ranks(ranks, num_draws=100)  # 101 ranks: no number of bins divides them
    for bins in (20, 7):
        edges = np.ceil(np.arange(bins + 1) * 101 / bins)
        counts, widths = np.histogram(ranks, edges - 0.5)[0], np.diff(edges)
        expected = stats.chisquare(counts, 400 * widths / 101).pvalue
        np.testing.assert_allclose(odd.uniformity(bins)["z"], expected, rtol=1e-4)
    np.testing.assert_array_equal(odd.uniformity()["z"], odd.uniformity(20)["z"])


def test_numbers_of_bins_that_are_refused():
    calibration = from_ranks(np.arange(100))
    for bins in (1, 101):
        with pytest.raises(ValueError, match=f"num_bins divides the 100 ranks.*got {bins}"):
            calibration.uniformity(bins)
    with refused_type("num_bins is a Python integer; got 2.5"):
        calibration.uniformity(2.5)
