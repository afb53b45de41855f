"""Derivatives and maps of a whole fit, by values that it closes over or takes."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import guidax as gx
from assertions import precision

STEPS, RATE, START, CURVATURE = 6, 0.02, -1.0, 5.0
DATA = jnp.asarray([0.5, 1.5, 1.0, 2.0], float)


def model(y):
    """`z ~ N(0, 1)`, `y_i ~ N(z, 1)`: the mode is `sum(y) / 5`, where the curvature is 5."""
    z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
    gx.sample("y", distrax.Normal(z, 1.0), obs=y)


def end(y=DATA, **options):
    """Where gradient descent is after some steps."""
    start = gx.init_to_value({"z": START})
    guide = gx.AutoDelta(model, y, key=jax.random.key(0), init_loc_fn=start)
    fitted = gx.fit(jax.random.key(0), guide, y, steps=STEPS, progress=False, **options)
    return fitted.guide.family.loc["z"]


BY_RATE = {
    "the rate": lambda rate: end(optimizer=optax.sgd, learning_rate=rate),
    "an optimizer that closes over it": lambda rate: end(optimizer=optax.sgd(rate)),
    "a schedule that closes over it": lambda rate: end(
        optimizer=optax.sgd, learning_rate=lambda step: rate + 0.0 * step
    ),
}


@pytest.mark.parametrize("of_rate", BY_RATE.values(), ids=BY_RATE)
def test_derivatives_by_the_rate(of_rate):
    """`z_n = m + (z_0 - m) (1 - 5 r)^n`; nothing here is under jit but what fit compiles."""
    mode, ratio = float(DATA.sum()) / CURVATURE, 1 - CURVATURE * RATE
    expected = -STEPS * CURVATURE * (START - mode) * ratio ** (STEPS - 1)
    rate, close = jnp.asarray(RATE, float), dict(rtol=1e3 * precision())
    for derivative in (jax.grad, jax.jacfwd):
        np.testing.assert_allclose(derivative(of_rate)(rate), expected, **close)
    rates = jnp.asarray([RATE, 2 * RATE], float)
    ends = mode + (START - mode) * (1 - CURVATURE * rates) ** STEPS
    np.testing.assert_allclose(jax.vmap(of_rate)(rates), ends, **close)


def test_derivatives_by_the_data():
    def of_data(y):
        return end(y, optimizer=optax.sgd, learning_rate=RATE)

    share = 1 - (1 - CURVATURE * RATE) ** STEPS  # of the way to the mode
    for derivative in (jax.grad, jax.jacfwd):
        found = derivative(of_data)(DATA)
        np.testing.assert_allclose(found, np.full(4, share / CURVATURE), rtol=1e3 * precision())


def test_derivatives_of_a_fit_that_sticks_the_landing():
    """Precision 1/4 of the prior and 4 of each outcome: a share 4 / 16.25 for each outcome."""

    def conjugate(y):
        m = gx.sample("m", distrax.Normal(1.0, 2.0 * jnp.ones(())))
        gx.sample("y", distrax.Normal(m, 0.5), obs=y)

    key, options = jax.random.key(0), {"optimizer": optax.adam, "learning_rate": 0.05}
    guide = gx.AutoNormal(conjugate, DATA, key=key)

    def median(y):
        objective = gx.ELBO(4, estimator="stl")
        fitted = gx.fit(key, guide, y, steps=300, objective=objective, progress=False, **options)
        return fitted.guide.median(y)["m"]

    exact = 4.0 / 16.25
    for derivative in (jax.grad, jax.jacfwd):
        np.testing.assert_allclose(derivative(median)(DATA), np.full(4, exact), rtol=1e-3)
    step = precision() ** (1 / 3)
    difference = (median(DATA.at[0].add(step)) - median(DATA.at[0].add(-step))) / (2 * step)
    np.testing.assert_allclose(difference, exact, rtol=1e-2)


def test_a_model_may_close_over_what_is_mapped():
    """The prior's scale `s` is in no argument: the mode is `y / (1 + 1 / s^2)`."""

    def mode(scale):
        def model(y):
            z = gx.sample("z", distrax.Normal(jnp.zeros(()), scale))
            gx.sample("y", distrax.Normal(z, 1.0), obs=y)

        start = gx.init_to_value({"z": 0.0})  # a search that reads the scale has no reverse mode
        guide = gx.AutoDelta(model, 2.0, key=jax.random.key(0), init_loc_fn=start)
        options = {"optimizer": optax.sgd, "learning_rate": 0.1, "progress": False}
        return gx.fit(jax.random.key(0), guide, 2.0, steps=100, **options).guide.family.loc["z"]

    scales = jnp.asarray([0.5, 2.0], float)
    expected = 2.0 / (1.0 + 1.0 / np.asarray(scales) ** 2)
    np.testing.assert_allclose(jax.vmap(mode)(scales), expected, atol=1e-3)
    for derivative in (jax.grad, jax.jacfwd):
        slope = derivative(mode)(scales[0])
        np.testing.assert_allclose(slope, 4.0 * 0.5 / (1.0 + 0.5**2) ** 2, rtol=1e-3)


def test_an_error_is_none_the_less_one_where_values_are_known():
    """Inside of a transformation that maps nothing which the fit reads."""

    def unrelated(x):
        end(DATA * jnp.inf, optimizer=optax.sgd, learning_rate=RATE)
        return x

    with pytest.raises(ValueError, match="4 of its values lie outside"):
        jax.vmap(unrelated)(jnp.arange(2.0))

    guide = gx.AutoDelta(model, DATA, key=jax.random.key(0))

    def diverging(x):
        gx.fit(jax.random.key(0), guide, DATA * jnp.nan, steps=3, progress=False)
        return x

    with pytest.raises(gx.NonFiniteError, match="not finite at step 0"):
        jax.vmap(diverging)(jnp.arange(2.0))
