"""What the pictures show, read from their axes."""

import sys
from types import SimpleNamespace

import matplotlib.pyplot
import numpy as np
import pytest

import guidax as gx
from assertions import refused_type

matplotlib.use("Agg")
plt = matplotlib.pyplot


@pytest.fixture(autouse=True)
def settings_stay():
    before = dict(matplotlib.rcParams)
    yield
    plt.close("all")
    assert dict(matplotlib.rcParams) == before


def noisy(steps=1000):
    rng = np.random.default_rng(0)
    x = 10.0 + rng.normal(size=steps)
    x[:20] = 1e12
    return x


def test_loss_is_not_ruled_by_its_start():
    losses = noisy()
    ax = gx.plot.loss(SimpleNamespace(losses=losses))
    low, high = ax.get_ylim()
    assert 5 < low < 9 and 11 < high < 15
    assert "1e+12" in ax.get_title(loc="left")
    raw, mean = (line.get_ydata() for line in ax.lines)
    np.testing.assert_array_equal(raw, losses)
    # A window of a fiftieth, 20 steps; a difference of cumulative sums would lose all digits here.
    np.testing.assert_allclose(mean[500], losses[490:510].mean(), rtol=1e-12)
    assert ax.get_xlabel() == "step" and "nats" in ax.get_ylabel()


def test_means_of_many_losses_are_drawn_at_some_steps():
    """A window for each step would cost the square of the steps."""
    losses = np.random.default_rng(0).normal(size=100_000)
    losses[3], losses[0] = np.nan, np.inf
    raw, mean = gx.plot.loss(losses).lines
    at, means = mean.get_xdata(), mean.get_ydata()
    assert len(raw.get_ydata()) == 100_000
    assert len(at) == 2000 and at[0] == 0 and at[-1] == 99_999
    assert np.isnan(means[0])
    inside = at[30:-30]
    expected = [losses[i - 1000 : i + 1000].mean() for i in inside]
    np.testing.assert_allclose(means[30:-30], expected, rtol=1e-10)
    np.testing.assert_allclose(means[1], np.delete(losses[: at[1] + 1000], [0, 3]).mean())


def test_loss_of_an_ensemble_on_given_axes():
    _, ax = plt.subplots()
    losses = np.stack([np.linspace(5.0, 1.0, 30), np.linspace(6.0, 2.0, 30)])
    losses[1, 20:] = np.nan
    open_before = plt.get_fignums()
    assert gx.plot.loss(losses, smooth=1, ax=ax) is ax
    assert plt.get_fignums() == open_before
    assert [len(line.get_ydata()) for line in ax.lines] == [30, 30]
    assert np.isnan(gx.plot.loss(losses, smooth=3).lines[3].get_ydata()[-1])


def test_marginals_have_an_axis_for_each_coordinate():
    rng = np.random.default_rng(0)
    draws = {"a": rng.normal(size=900), "b": rng.normal(size=(900, 2)) + [0.0, 50.0]}
    draws["a"][0] = 1e9
    reference = {"b": rng.normal(size=(400, 2)) * 3}
    axes = gx.plot.marginals(draws, reference, labels=("q", "p"))
    assert [ax.get_title() for ax in axes] == ["a", "b[0]", "b[1]"]
    assert axes[0].get_xlim()[1] < 10  # the one outlier does not count
    assert axes[2].get_xlim()[1] > 50 and axes[2].get_xlim()[0] < -5  # both are inside
    (legend,) = axes[0].figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["q", "p"]
    # As many bins as the root of the sample; the reference is one outline more.
    assert 28 <= len(axes[0].patches) <= 30
    assert len(axes[1].patches) == len(axes[0].patches) + 1
    heights = [p.get_height() for p in axes[0].patches]
    width = axes[0].patches[0].get_width()
    np.testing.assert_allclose(np.sum(heights) * width, 1.0)


def test_marginals_and_pairs_on_given_axes_and_of_chosen_sites():
    draws = {"a": np.arange(10.0), "b": np.zeros((10, 30))}
    _, given = plt.subplots(1, 2)
    assert gx.plot.marginals(draws, sites=["a"], axes=given)[0] is given[0]
    for picture in (gx.plot.marginals, gx.plot.pairs):
        with refused_type("sites takes a list of names; got 'mu'"):
            picture({"mu": np.arange(10.0)}, sites="mu")
    with pytest.raises(ValueError, match="31 coordinates and 2 axes"):
        gx.plot.marginals(draws, axes=given)
    with pytest.raises(ValueError, match=r"no draws of \['c'\]; there are \['a', 'b'\]"):
        gx.plot.marginals(draws, sites=["c"])
    with pytest.raises(ValueError, match=r"axes of shape \(31, 31\); got \(2,\)"):
        gx.plot.pairs(draws, axes=given)
    with pytest.raises(ValueError, match=r"'z' has no draws"):
        gx.plot.marginals({"z": 1.0})
    many = gx.plot.marginals(draws)  # a point too
    assert len(many) == 24
    assert "24 of 31" in many[0].figure.get_suptitle()


@pytest.mark.parametrize("draw", [gx.plot.marginals, gx.plot.pairs])
def test_nothing_to_draw_is_refused(draw):
    draws = {"a": np.arange(10.0), "b": np.zeros((10, 0))}
    with pytest.raises(ValueError, match=r"nothing to draw: the sites \[\] .* holds \[\]"):
        draw({})
    for sites in ([], ["b"], iter([])):
        with pytest.raises(ValueError, match=r"nothing to draw: .* draws holds \['a', 'b'\]"):
            draw(draws, sites=sites)


def test_pairs():
    rng = np.random.default_rng(0)
    draws = {"a": rng.normal(size=5000), "b": rng.normal(size=(5000, 1)) + 7.0}
    reference = {"a": np.zeros(5), "b": np.full((5, 1), 7.0)}
    axes = gx.plot.pairs(draws, reference)
    assert axes.shape == (2, 2)
    assert not axes[0, 1].axison and axes[1, 0].axison
    beneath, points = axes[1, 0].collections
    assert len(beneath.get_offsets()) == 5 and 1500 < len(points.get_offsets()) <= 2000
    np.testing.assert_allclose(points.get_offsets()[1], [draws["a"][3], draws["b"][3, 0]])
    assert axes[1, 0].get_xlabel() == "a" and axes[1, 0].get_ylabel() == "b[0]"
    assert 3 < axes[1, 0].get_ylim()[0] < 7 < axes[1, 0].get_ylim()[1] < 11
    _, given = plt.subplots(1, 1, squeeze=False)
    assert gx.plot.pairs(draws, sites=["a"], axes=given)[0, 0] is given[0, 0]
    with pytest.raises(ValueError, match=r"no draws of \['b\[0\]'\]"):
        gx.plot.pairs(draws, {"a": np.zeros(5)})
    assert gx.plot.pairs({"w": np.zeros((3, 9))}, labels=("x", "y")).shape == (8, 8)


def test_khat_draws_weights_whose_slope_is_k():
    size, k = 1000, 0.4
    rank = np.arange(1, size + 1)
    log_weights = -k * np.log(rank) + 800.0  # exp would overflow
    fit = SimpleNamespace(khat=k, log_weights=np.random.default_rng(0).permutation(log_weights))
    flat = SimpleNamespace(khat=-0.1, log_weights=np.full(size, -900.0))
    ax = gx.plot.khat({"heavy": fit, "exact": flat})
    heavy, limit, exact = ax.lines[:3]
    x, y = heavy.get_data()
    np.testing.assert_allclose(np.diff(y) / np.diff(x), -k, rtol=1e-6)
    np.testing.assert_allclose(np.mean(10**y), 1.0)
    np.testing.assert_allclose(exact.get_ydata(), 0.0, atol=1e-12)
    lx, ly = limit.get_data()
    np.testing.assert_allclose(np.diff(ly) / np.diff(lx), -0.7, rtol=1e-6)
    assert len(lx) == 95  # 3 sqrt(1000)
    words = [t.get_text() for t in ax.get_legend().get_texts()]
    assert "heavy" in words[0] and "0.40" in words[0] and "exact" in words[1]
    _, given = plt.subplots()
    assert gx.plot.khat(fit, ax=given) is given
    members = SimpleNamespace(khat=np.zeros(2), log_weights=np.zeros((2, 9)))
    with pytest.raises(ValueError, match=r"of one guide, a vector; got shape \(2, 9\)"):
        gx.plot.khat(members)


def test_errors(monkeypatch):
    with pytest.raises(ValueError, match="smooth is at least 1; got 0"):
        gx.plot.loss(np.ones(3), smooth=0)
    with refused_type("smooth is a Python integer; got 2.5"):
        gx.plot.loss(np.ones(3), smooth=2.5)
    with pytest.raises(ValueError, match="some are finite.*0 finite"):
        gx.plot.loss(np.full(3, np.nan))
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'pip install "guidax\[plot\]"'):
        gx.plot.loss(np.ones(3))
