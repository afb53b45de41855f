"""Fits from several starts, side by side."""

import functools

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidax as gx
from assertions import distance, precision, refused_type
from models import new_traces, traces

STARTS = 6


def model(shift):
    """Two narrow modes, of weights 0.8 and 0.2, far apart."""
    traces[0] += 1
    mixture = distrax.MixtureSameFamily(
        distrax.Categorical(probs=jnp.array([0.8, 0.2])),
        distrax.Normal(jnp.array([3.0, -3.0]) + shift, 0.1),
    )
    gx.sample("x", mixture)


def make(key, shift=0.0):
    return gx.AutoNormal(model, shift, key=key, init_loc_fn=gx.init_to_uniform(radius=4.0))


run = functools.partial(gx.fit_restarts, num_restarts=STARTS, steps=300, learning_rate=0.05)


@pytest.fixture(scope="module")
def found():
    return run(jax.random.key(1), make, 0.0)


def test_the_best_of_them_holds_the_heavy_mode(found):
    """A normal on one mode of weight w has the ELBO log w."""
    modes = found.results.guide.family.loc["x"]
    assert set(np.sign(modes)) == {-1.0, 1.0}  # both are found, by one member or another
    expected = np.where(modes > 0, np.log(0.8), np.log(0.2))
    np.testing.assert_array_less(abs(found.elbo - expected), 5 * found.elbo_error + 0.02)
    assert float(found.guide.median(0.0)["x"]) == pytest.approx(3.0, abs=0.05)
    assert len(found) == STARTS and found.results.losses.shape == (STARTS, 300)


def test_members_are_fits(found):
    """Each equals the same fit alone, and goes on alone."""
    keys = jax.random.split(jax.random.key(1), STARTS + 1)[1:]
    best = int(found.best)
    key_start, key_fit = jax.random.split(keys[best])
    alone = gx.fit(
        key_fit, make(key_start), 0.0, steps=300, learning_rate=0.05,
        progress=False,
    )  # fmt: skip
    assert distance(found[best].guide, alone.guide) < (1e-8 if precision() < 1e-10 else 1e-2)
    more = found[best].resume(0.0, steps=5, progress=False)
    assert more.losses.shape == (5,)


def test_members_are_counted(found):
    for beyond in (STARTS, -STARTS - 1, jnp.array(STARTS)):
        with pytest.raises(IndexError, match=f"there are 6 members.*got {int(beyond)}"):
            found[beyond]
    locs = np.asarray(found.results.guide.family.loc["x"])
    np.testing.assert_array_equal([float(each.guide.family.loc["x"]) for each in found], locs)
    last = [found[i].guide.family.loc["x"] for i in (-1, STARTS - 1, jnp.array(-1))]
    np.testing.assert_array_equal(last, [locs[-1]] * 3)
    of_member = jax.jit(lambda found, i: found[i].guide.family.loc["x"])
    assert of_member(found, 2) == locs[2]


def test_a_second_call_traces_nothing(found, key):
    assert new_traces(lambda: run(key, lambda key: make(key, 0.1), 0.1)) == 0


def test_a_member_that_fails_harms_no_other(key):
    """The ELBO of a guide that is not finite does not win."""

    def sometimes(key):
        guide = make(key)
        is_bad = jax.random.bernoulli(key)
        return jax.tree.map(lambda x: jnp.where(is_bad, jnp.nan, x), guide)

    found = run(key, sometimes, 0.0)
    bad = np.asarray(found.results.first_bad_step) >= 0
    assert 0 < bad.sum() < STARTS
    np.testing.assert_array_equal(np.isnan(found.elbo), bad)
    assert not bad[int(found.best)]
    with pytest.raises(ValueError, match="none of the 6 members has a finite ELBO"):
        run(key, lambda key: jax.tree.map(lambda x: x * jnp.nan, make(key)), 0.0)


def test_one_draw_says_nothing_of_its_error(key):
    found = gx.fit_restarts(key, make, 0.0, num_restarts=2, steps=1, num_samples=1)
    assert np.all(np.isfinite(found.elbo)) and np.all(np.isnan(found.elbo_error))


def test_what_is_no_ensemble_is_refused(key):
    with refused_type("fit_restarts takes a random key first, .*; got 0"):
        gx.fit_restarts(0, make, 0.0, num_restarts=2, steps=1)
    with pytest.raises(ValueError, match="num_restarts is at least 1; got 0"):
        gx.fit_restarts(key, make, 0.0, num_restarts=0, steps=1)
    with pytest.raises(TypeError, match="make_guide takes a key and returns a guide"):
        gx.fit_restarts(key, lambda key: gx.AutoNormal, 0.0, num_restarts=2, steps=1)
    with refused_type("make_guide takes a key and returns a guide.*; got AutoNormal"):
        gx.fit_restarts(key, make(key), 0.0, num_restarts=2, steps=1)
