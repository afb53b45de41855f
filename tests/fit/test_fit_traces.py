"""A second construction and fit, written as in a script, runs the model's Python zero times."""

import functools

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import guidax as gx
import models
from models import new_traces, regression, regression_data

X, y = regression_data()


def script(X=X, y=y, seed=0, steps=30, progress=False, **options):
    """Construct and fit, as a user would write it."""
    key = jax.random.key(seed)
    guide = gx.AutoNormal(regression, X, y, key=key)
    return gx.fit(key, guide, X, y, steps=steps, progress=progress, **options)


@pytest.fixture(scope="module")
def first():
    """The first script of the process, and how often it ran the model."""
    results = []
    count = new_traces(lambda: results.append(script()))
    return results[0], count


SECONDS = {
    "the same": {},
    "another key": {"seed": 1},
    "fewer steps": {"steps": 7},
    "more steps than one dispatch holds": {"steps": 2345},
    "another rate": {"learning_rate": 0.02},
    "a whole rate": {"learning_rate": 1},
    "a rate of NumPy": {"learning_rate": np.float64(0.02)},
    "a rate of JAX": {"learning_rate": jnp.asarray(0.02, jnp.float32)},
    "other data": {"X": X + 1, "y": 1 - y},
    "data of NumPy": {"X": np.asarray(X, np.float64), "y": np.asarray(y, np.int64)},
    "an equal objective": {"objective": gx.ELBO(num_particles=1)},
    "a bar": {"progress": True},
    "the default bar": {"progress": None},
    "a function": {"progress": lambda step, loss: None},
    "everything trainable": {"trainable": lambda guide: guide},
}


@pytest.mark.parametrize("options", SECONDS.values(), ids=SECONDS)
def test_a_second_script_traces_nothing(first, options):
    assert first[1] > 0  # the counter counts
    assert new_traces(lambda: script(**options)) == 0


def test_a_program_may_hold_all_it_needs(first, key):
    """Keys and data are constants of a program without arguments, not its inputs."""
    losses = jax.jit(lambda: script().losses)()
    np.testing.assert_allclose(losses, first[0].losses, rtol=1e-5)
    flow = gx.AutoRealNVPNormal(regression, X, y, key=key, num_flows=2)
    inside = jax.jit(lambda: gx.AutoRealNVPNormal(regression, X, y, key=key, num_flows=2))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), inside, flow)


def test_resume_traces_nothing(first):
    result = first[0]
    assert new_traces(lambda: result.resume(X, y, steps=9, progress=False)) == 0
    numpy = np.asarray(X), np.asarray(y)
    assert new_traces(lambda: script(seed=2).resume(*numpy, steps=1001, progress=True)) == 0


def test_keywords_and_one_batch_are_the_same_arguments(first):
    key = jax.random.key(0)

    def by_name():
        guide = gx.AutoNormal(regression, y=y, X=X, key=key)
        gx.fit(key, guide, y=y, X=X, steps=3, progress=False)

    def as_one():
        guide = gx.AutoNormal(regression, gx.Batch(X, y), key=key)
        gx.fit(key, guide, gx.Batch(X, y=y), steps=3, progress=False)

    assert first[1] > 0
    assert new_traces(by_name) == 0
    assert new_traces(as_one) == 0


def test_a_fresh_lambda_of_trainable_traces_nothing():
    def run(steps):
        script(steps=steps, trainable=lambda guide: guide.family.loc)

    assert new_traces(lambda: run(5)) > 0  # other leaves are another program
    assert new_traces(lambda: run(6)) == 0
    other = lambda guide: [guide.family.loc["tau"], guide.family.loc["beta"]]  # noqa: E731
    assert new_traces(lambda: script(trainable=other)) == 0


def test_equal_partials_trace_nothing():
    def run(momentum, rate):
        optimizer = functools.partial(optax.sgd, momentum=momentum)
        script(steps=5, optimizer=optimizer, learning_rate=rate)

    run(0.9, 0.01)
    assert new_traces(lambda: run(0.9, 0.02)) == 0
    assert new_traces(lambda: run(0.5, 0.01)) > 0  # compared by value, not by function


def test_an_optimizer_as_a_function_of_the_rate_traces_once():
    script(steps=5, optimizer=optax.adam)
    for rate in (1e-3, 0.3, None):
        again = lambda rate=rate: script(optimizer=optax.adam, learning_rate=rate)  # noqa: E731
        assert new_traces(again) == 0


def test_one_ready_optimizer_traces_once():
    def run(optimizer, seed=0, **data):
        return script(seed=seed, steps=5 + seed, optimizer=optimizer, **data)

    ready = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1e-2))
    run(ready)
    assert new_traces(lambda: run(ready, seed=3, X=X - 1)) == 0
    assert new_traces(lambda: run(ready).resume(X, y, steps=2, progress=False)) == 0
    several = optax.MultiSteps(optax.sgd(1e-2), 2)
    run(several)
    assert new_traces(lambda: run(several, seed=3)) == 0
    # The documented price of a ready one: each new object compiles again.
    assert new_traces(lambda: run(optax.sgd(1e-2))) > 0


def test_one_schedule_traces_once():
    schedule = optax.exponential_decay(0.1, 10, 0.5)
    script(steps=5, learning_rate=schedule)
    assert new_traces(lambda: script(seed=1, steps=8, learning_rate=schedule)) == 0


def test_streamed_batches_trace_once():
    def model(X, y):
        models.traces[0] += 1
        beta = gx.sample("beta", distrax.Normal(jnp.zeros(3), 1.0))
        with gx.plate("data", 40, subsample_size=X.shape[0]):
            gx.sample("y", distrax.Bernoulli(logits=X @ beta), obs=y)

    def run(rows, seed, convert):
        def batch(step):
            taken = (step + np.arange(rows)) % 40
            return gx.Batch(convert(X[taken]), convert(y[taken]))

        key = jax.random.key(seed)
        guide = gx.AutoNormal(model, batch(0), key=key)
        gx.fit(key, guide, batches=batch, steps=4 + seed, progress=False)

    assert new_traces(lambda: run(10, 0, jnp.asarray)) > 0
    assert new_traces(lambda: run(10, 3, jnp.asarray)) == 0
    assert new_traces(lambda: run(10, 1, np.asarray)) == 0


def test_local_latents_on_numpy_data(key):
    """NumPy's float64 is the structure that the guide was built on, in single precision too."""
    data = np.arange(6.0)

    def model(y):
        models.traces[0] += 1
        mean = gx.param("mean", 0.3)
        with gx.plate("rows", 6, subsample_size=2):
            z = gx.sample("z", distrax.Normal(mean, 1.0))
            gx.sample("y", distrax.Normal(z, 1.0), obs=gx.subsample(y))

    def run(y, seed):
        guide = gx.AutoDelta(model, y, key=jax.random.key(seed))
        return gx.fit(key, guide, y, steps=3, progress=False).guide

    guide = run(data, 0)
    assert new_traces(lambda: run(data, 1)) == 0
    assert new_traces(lambda: run(jnp.asarray(data), 1)) == 0
    # Inside a jit whether the rows may be drawn is known only for that structure.
    fitted = jax.jit(lambda guide: gx.fit(key, guide, data, steps=3))(guide)
    assert int(fitted.first_bad_step) == -1
