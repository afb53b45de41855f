"""What a fit came to is not lost where an error of the caller's, or an interrupt, cuts it off."""

import signal

import distrax
import jax
import jax.numpy as jnp
import optax
import pytest

import guidax as gx
from assertions import identical
from guidax._model.program import as_model

Y = jnp.asarray([1.0, 2.0, 0.5, 3.0], float)
OPTIONS = {"optimizer": optax.adam, "learning_rate": 0.1, "progress": False}


def model(y):
    x = gx.sample("x", distrax.Normal(jnp.zeros(()), 1.0))
    with gx.plate("data", 8, subsample_size=4):
        gx.sample("y", distrax.Normal(x, 1.0), obs=y)


@pytest.fixture(scope="module")
def guide():
    return gx.AutoNormal(model, Y, key=jax.random.key(0))


def failing(step):
    if step == 5:
        raise OSError("the disk is gone")
    return gx.Batch(Y)


def interrupted(step):
    if step == 5:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # workers ignore it
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.signal(signal.SIGINT, before)
    return gx.Batch(Y)


def looking(step, loss):
    if step >= 5:
        raise RuntimeError("seen enough")


CUTS = {
    "batches that raise": (OSError, {"batches": failing}),
    "an interrupt": (KeyboardInterrupt, {"batches": interrupted}),
    "a batch of another shape": (
        ValueError,
        {"batches": [*[gx.Batch(Y)] * 5, gx.Batch(Y[:3])]},
    ),
}


@pytest.mark.parametrize(("kind", "options"), CUTS.values(), ids=CUTS)
def test_the_error_holds_what_batches_came_to(kind, options, guide, key):
    with pytest.raises(kind) as caught:
        gx.fit(key, guide, steps=20, **OPTIONS, **options)
    result = caught.value.result
    assert "had taken 5 of 20 steps" in caught.value.__notes__[0]
    whole = gx.fit(key, guide, batches=lambda step: gx.Batch(Y), steps=20, **OPTIONS)
    assert identical(result.losses, whole.losses[:5])
    rest = result.resume(batches=lambda step: gx.Batch(Y), steps=15, progress=False)
    assert identical(rest.guide, whole.guide)


@pytest.mark.parametrize("policy", ["raise", "halve"])
def test_the_error_of_a_progress_function_does_too(policy, guide, key):
    options = OPTIONS | {"progress": looking, "on_nonfinite": policy}
    with pytest.raises(RuntimeError, match="seen enough") as caught:
        gx.fit(key, guide, Y, steps=3000, **options)
    taken = len(caught.value.result.losses)
    assert 5 <= taken < 3000
    whole = gx.fit(key, guide, Y, steps=3000, **OPTIONS, on_nonfinite=policy)
    assert identical(caught.value.result.losses, whole.losses[:taken])


def test_an_error_of_the_step_itself_is_the_one_that_is_raised(key):
    """Its state is donated to it, and gone."""

    def refuse(x):
        raise OSError("no such table")

    def called_back(y):
        x = gx.sample("x", distrax.Normal(jnp.zeros(()), 1.0))
        with gx.plate("data", 8, subsample_size=4):
            y = jax.pure_callback(refuse, jax.ShapeDtypeStruct(y.shape, y.dtype), y)
            gx.sample("y", distrax.Normal(x, 1.0), obs=y)

    family = gx.AutoNormal(model, Y, key=key)
    guide = gx.AutoGuide(as_model(called_back), family.family, family.structure)
    with pytest.raises(Exception, match="no such table") as caught:
        gx.fit(key, guide, batches=lambda step: gx.Batch(Y), steps=20, **OPTIONS)
    assert not hasattr(caught.value, "result")


def test_there_may_be_nothing_to_hold(guide, key):
    with pytest.raises(OSError) as caught:
        gx.fit(key, guide, batches=lambda step: failing(5), steps=20, **OPTIONS)
    assert not hasattr(caught.value, "result") and not hasattr(caught.value, "__notes__")
