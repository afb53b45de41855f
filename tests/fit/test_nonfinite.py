"""What follows a step that is not finite: stop, skip it, or go back and halve the rate."""

import copy
import functools
import pickle

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import TypeCheckError

import guidax as gx
from assertions import distance

BAD = (3, 4, 7)  # steps on which the data are not finite
Y = jnp.asarray([1.0, 2.0], float)
OPTIONS = {"optimizer": optax.adam, "learning_rate": 0.1, "progress": False}


def model(y):
    x = gx.sample("x", distrax.Normal(jnp.zeros(()), 1.0))
    with gx.plate("data", 4, subsample_size=2):
        gx.sample("y", distrax.Normal(x, 1.0), obs=y)


def batches(step, bad=BAD):
    return gx.Batch(Y * jnp.nan if step in bad else Y)


@pytest.fixture(scope="module")
def guide():
    return gx.AutoNormal(model, Y, key=jax.random.key(0))


def test_skipped_steps_leave_no_trace(guide, key):
    """The others are those of a run that starts where the gap ends."""
    with pytest.warns(UserWarning, match="3 of 10 steps were.*first ever was step 3"):
        result = gx.fit(key, guide, batches=batches, steps=10, on_nonfinite="skip", **OPTIONS)
    assert (int(result.num_bad_steps), int(result.first_bad_step)) == (3, 3)
    assert np.flatnonzero(~np.isfinite(result.losses)).tolist() == list(BAD)
    assert result.guide.is_finite()

    params, state = guide, optax.adam(0.1).init(guide)
    for step in set(range(10)) - {*BAD}:
        key_of_step = jax.random.fold_in(key, step)
        grads = jax.grad(gx.ELBO())(params, key_of_step, batches(step))
        updates, state = optax.adam(0.1).update(grads, state)
        params = optax.apply_updates(params, updates)
    assert distance(result.guide, params) < 1e-5


def test_halving_goes_back_and_slows_down(guide, key):
    """A bad step undoes the step before it, of which it may be the consequence."""
    fit = functools.partial(gx.fit, key, guide, on_nonfinite="halve", **OPTIONS)
    with pytest.warns(UserWarning, match="1 of 6 steps"):
        result = fit(batches=lambda step: batches(step, bad=(3,)), steps=6)
    assert int(result.num_bad_steps) == 1

    params, state = [guide], [optax.adam(0.1).init(guide)]
    for step, rate in ((0, 0.1), (1, 0.1), (4, 0.05), (5, 0.05)):  # 2 is undone, 3 is bad
        grads = jax.grad(gx.ELBO())(params[-1], jax.random.fold_in(key, step), batches(0))
        updates, new = optax.adam(rate).update(grads, state[-1])
        params.append(optax.apply_updates(params[-1], updates))
        state.append(new)
    assert distance(result.guide, params[-1]) < 1e-5
    more = result.resume(batches=lambda step: batches(0), steps=1, progress=False)
    grads = jax.grad(gx.ELBO())(params[-1], jax.random.fold_in(key, 6), batches(0))
    updates, _ = optax.adam(0.05).update(grads, state[-1])  # the rate stays halved
    assert distance(more.guide, optax.apply_updates(params[-1], updates)) < 1e-5


def test_a_rate_that_is_too_large_is_halved_until_it_works(key):
    """Gradient descent on x^2 / 2 diverges from a rate of 2 on: 6 and 3 do, 1.5 does not."""

    def steep():
        gx.sample("x", distrax.Normal(jnp.zeros(()), 1.0))

    def dive(state, on_nonfinite):
        options = {"optimizer": optax.sgd, "learning_rate": 6.0, "progress": False}
        return gx.fit(key, state, steps=2_000, on_nonfinite=on_nonfinite, **options)

    guide = gx.AutoDelta(steep, key=key, init_loc_fn=gx.init_to_value({"x": 1.0}))
    with pytest.raises(gx.NonFiniteError, match=r"sites \['x'\]"):
        dive(guide, "raise")
    with pytest.warns(UserWarning, match="were not finite"):
        result = dive(guide, "halve")
    assert abs(float(result.guide.median()["x"])) < 1e-6
    assert 1 <= int(result.num_bad_steps) <= 6


@pytest.mark.parametrize("policy", ["skip", "halve"])
def test_a_hundred_bad_steps_in_a_row_are_an_end(policy, guide, key):
    nothing = Y * jnp.nan
    with pytest.raises(gx.NonFiniteError, match=r"at the 99 steps before it.*'y'") as caught:
        gx.fit(key, guide, nothing, steps=2_000, on_nonfinite=policy, **OPTIONS)
    error = caught.value
    assert error.step == 99 and int(error.result.num_bad_steps) == 100
    assert distance(error.result.guide, guide) == 0
    with pytest.raises(ValueError, match="stopped at step 99"):
        error.result.resume(nothing, steps=1)


def test_members_of_an_ensemble_skip_by_themselves(guide, key):
    def fit(y):
        return gx.fit(key, guide, y, steps=5, on_nonfinite="skip", optimizer=optax.adam)

    many = jax.vmap(fit)(jnp.stack([Y, Y * jnp.nan]))
    np.testing.assert_array_equal(many.num_bad_steps, [0, 5])
    np.testing.assert_array_equal(many.guide.is_finite(), [True, True])
    assert distance(jax.tree.map(lambda x: x[1], many.guide), guide) == 0


@jax.custom_jvp
def steep_above_one(x):
    """Return x, with a slope that is infinite above 1."""
    return x


@steep_above_one.defjvp
def _steep_above_one_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    return x, jnp.where(x > 1.0, jnp.inf, 1.0) * x_dot


def sometimes_steep():
    x = gx.sample("x", distrax.Normal(jnp.zeros(()), 1.0))
    gx.factor("steep", steep_above_one(x))


def sometimes_undefined():
    x = gx.sample("x", distrax.Normal(jnp.zeros(()), 1.0))
    gx.factor("undefined", jnp.where(x > 1.0, jnp.nan, 0.0))


def first_draw_above_one(guide, key, steps=1_000):
    """Return the first step whose draw is above 1, if the parameters hardly move."""
    keys = jax.vmap(lambda step: jax.random.fold_in(key, step))(jnp.arange(steps))
    losses = jax.vmap(lambda k: gx.ELBO()(guide, k))(keys)
    return int(np.argmax(~np.isfinite(losses)))


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(1e-9),
        optax.chain(optax.clip(1.0), optax.sgd(1e-9)),  # makes 1 of an infinite gradient
        optax.chain(optax.zero_nans(), optax.clip(1.0), optax.sgd(1e-9)),
        optax.set_to_zero(),  # takes no notice at all
    ],
    ids=["plain", "clipped", "zeroed", "unused"],
)
def test_a_gradient_is_judged_whatever_the_optimizer_makes_of_it(optimizer, key):
    options = {"key": key, "init_loc_fn": gx.init_to_value({"x": 0.0}), "init_scale": 0.5}
    expected = first_draw_above_one(gx.AutoNormal(sometimes_undefined, **options), key)
    assert expected > 3
    guide = gx.AutoNormal(sometimes_steep, **options)
    with pytest.raises(gx.NonFiniteError) as caught:
        gx.fit(key, guide, steps=1_000, optimizer=optimizer, progress=False)
    assert caught.value.step == expected == int(caught.value.result.first_bad_step)
    assert "arguments hold" not in str(caught.value)  # there are none
    assert np.all(np.isfinite(caught.value.result.losses))
    assert distance(caught.value.result.guide, guide) < 1e-6


def test_the_last_bit_does_not_depend_on_how_steps_are_cut(key):
    """Steps up to the first bad one are taken by another program than those after it."""
    options = {"init_loc_fn": gx.init_to_value({"x": 0.0}), "init_scale": 0.5}
    guide = gx.AutoNormal(sometimes_undefined, key=key, **options)
    fit = functools.partial(
        gx.fit, key, guide, on_nonfinite="skip", **OPTIONS | {"learning_rate": 0.003}
    )
    with pytest.warns(UserWarning, match="of 60 steps were not finite"):
        whole = fit(steps=60)
    assert int(whole.first_bad_step) > 2 and int(whole.num_bad_steps) > 1
    for cut in (1, int(whole.first_bad_step), int(whole.first_bad_step) + 1, 59):
        with pytest.warns(UserWarning, match="not finite"):
            result = fit(steps=cut).resume(steps=60 - cut, progress=False)
        assert jax.tree.all(jax.tree.map(jnp.array_equal, result.guide, whole.guide))
        assert int(result.num_bad_steps) == int(whole.num_bad_steps)
        np.testing.assert_array_equal(result.losses, whole.losses[cut:])


def test_what_is_not_trained_need_not_be_finite(guide, key):
    """A buffer of the model may hold infinity where nothing reads it."""
    bounds = jnp.asarray([0.0, -jnp.inf], float)

    class Buffered(eqx.Module):
        bounds: jax.Array

        def __call__(self, y):
            x = gx.sample("x", distrax.Normal(self.bounds[0], 1.0))
            gx.sample("y", distrax.Normal(x, 1.0), obs=y[0])

    guide = gx.AutoNormal(Buffered(bounds), Y, key=key)
    some = {"trainable": lambda guide: guide.family, **OPTIONS}
    fit = functools.partial(gx.fit, key, guide, Y, steps=3, **some)
    for result in (fit(), jax.jit(fit)()):  # without a guard in each step, and with it
        assert int(result.num_bad_steps) == 0
        assert distance(result.guide.family, guide.family) > 0
    with pytest.raises(gx.NonFiniteError):
        gx.fit(key, guide, Y, steps=3, **OPTIONS)


def test_data_that_are_not_finite_are_named(guide, key):
    with pytest.raises(gx.NonFiniteError, match="arguments hold NaN or infinity"):
        gx.fit(key, guide, Y * jnp.nan, steps=1, **OPTIONS)


@pytest.mark.parametrize("copied", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_come_back_from_other_processes(copied, guide, key):
    with pytest.raises(gx.NonFiniteError) as caught:
        gx.fit(key, guide, Y * jnp.nan, steps=1, **OPTIONS)
    error = caught.value
    error.add_note("in member 3")
    found = copied(error)
    assert isinstance(found, gx.NonFiniteError) and str(found) == str(error)
    assert (found.step, found.sites, found.bad_data) == (0, ("y",), True)
    assert found.__notes__ == ["in member 3"]
    assert jax.tree.structure(found.result) == jax.tree.structure(error.result)
    assert distance(found.result.guide, guide) == 0


def test_another_policy_is_refused(guide, key):
    with pytest.raises((ValueError, TypeCheckError), match="halve"):
        gx.fit(key, guide, Y, steps=1, on_nonfinite="ignore")
