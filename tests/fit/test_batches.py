"""Batches that the host makes: one for each step, and each row with its own parameters."""

import itertools
import warnings
import weakref

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx
from assertions import distance, identical, precision, refused_type

N, B = 12, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 3))
Y = X @ np.array([1.0, -2.0, 0.5]) + RNG.normal(size=N)


def model(X, y):
    """Linear regression on a batch of the rows."""
    beta = gx.sample("beta", distrax.Independent(distrax.Normal(jnp.zeros(3), 1.0), 1))
    with gx.plate("data", N, subsample_size=y.shape[0]):
        gx.sample("y", distrax.Normal(X @ beta, 1.0), obs=y)


def forgetful(X, y):
    """The same, but the plate takes the batch for all there is."""
    beta = gx.sample("beta", distrax.Independent(distrax.Normal(jnp.zeros(3), 1.0), 1))
    with gx.plate("data", y.shape[0]):
        gx.sample("y", distrax.Normal(X @ beta, 1.0), obs=y)


def rows_at(step):
    """The rows of a step: four different ones, others at each step."""
    return np.random.default_rng(step).choice(N, B, replace=False)


def batch_at(step):
    """Their data."""
    rows = rows_at(step)
    return gx.Batch(jnp.asarray(X[rows], float), jnp.asarray(Y[rows], float))


START = np.array([0.5, 0.5, 0.5])


@pytest.fixture(scope="module")
def guide():
    """A point, whose loss has no noise."""
    start = gx.init_to_value({"beta": START})
    return gx.AutoDelta(model, batch_at(0), key=jax.random.key(0), init_loc_fn=start)


def run(guide, batches, steps=10, progress=False, **options):
    return gx.fit(
        jax.random.key(0),
        guide,
        batches=batches,
        steps=steps,
        optimizer=optax.adam,
        progress=progress,
        **options,
    )


def by_hand(steps, rate=0.01):
    """Adam on gradients written out: the prior's, and N/B times the likelihood's."""
    optimizer, beta, losses = optax.adam(rate), START, []
    state = optimizer.init(jnp.asarray(beta, float))
    for step in range(steps):
        rows = rows_at(step)
        gap = Y[rows] - X[rows] @ beta
        constant = 0.5 * np.log(2 * np.pi) * (3 + N)
        losses.append(constant + 0.5 * beta @ beta + N / B * 0.5 * gap @ gap)
        gradient = beta - N / B * X[rows].T @ gap
        update, state = optimizer.update(jnp.asarray(gradient, float), state)
        beta = beta + np.asarray(update)
    return beta, losses


@pytest.fixture(scope="module")
def streamed(guide):
    return run(guide, batch_at)


def test_equals_a_loop_by_hand(streamed):
    beta, losses = by_hand(10)
    np.testing.assert_allclose(streamed.guide.family.loc["beta"], beta, rtol=1e4 * precision())
    np.testing.assert_allclose(streamed.losses, losses, rtol=1e3 * precision())


def test_functions_and_iterables_are_one(guide, streamed):
    sources = {
        "list": [batch_at(step) for step in range(10)],
        "tuple that is longer": tuple(batch_at(step) for step in range(15)),
        "generator": (batch_at(step) for step in itertools.count()),
        "map": map(batch_at, range(10)),
    }
    for name, source in sources.items():
        result = run(guide, source)
        assert identical(result.guide, streamed.guide), name
        assert identical(result.losses, streamed.losses), name


def test_progress_does_not_change_a_run(guide, streamed):
    seen = []
    result = run(guide, batch_at, progress=lambda step, loss: seen.append((step, loss)))
    assert identical(result.guide, streamed.guide)
    steps = [step for step, _ in seen]
    assert steps == sorted(set(steps)) and steps[-1] == 10
    assert [loss for _, loss in seen] == [streamed.losses[step - 1] for step in steps]


def slow(y):
    """A step takes milliseconds, and only then reads its batch."""
    mu = gx.sample("mu", distrax.Normal(jnp.zeros(()), 1.0))
    late = jax.lax.fori_loop(0, 500, lambda _, x: jnp.sin(x), jnp.ones(100)).sum() * 0.0
    with gx.plate("data", 2 * y.shape[0], subsample_size=y.shape[0]):
        gx.sample("y", distrax.Normal(mu, 1.0), obs=y + late)


def test_a_loader_may_fill_the_same_array_again(key):
    """JAX reads NumPy's memory in place where it begins at a multiple of 64 bytes."""
    size, dtype = 4096, np.dtype(jnp.result_type(float))
    memory = np.zeros(size * dtype.itemsize + 64, np.uint8)
    begin = -memory.ctypes.data % 64
    buffer = memory[begin : begin + size * dtype.itemsize].view(dtype)

    def refilled(step):
        buffer[:] = np.nan if step == 9 else step
        return gx.Batch(buffer)

    start = gx.init_to_value({"mu": 0.5})
    guide = gx.AutoDelta(slow, refilled(0), key=key, init_loc_fn=start)
    with pytest.raises(gx.NonFiniteError, match="arguments hold NaN") as caught:
        gx.fit(
            key, guide, batches=refilled, steps=20, optimizer=optax.set_to_zero(), progress=False
        )
    gap = 0.5 - np.arange(9)
    constant = 0.5 * np.log(2 * np.pi) * (1 + 2 * size) + 0.5 * 0.5**2
    losses = caught.value.result.losses
    np.testing.assert_allclose(losses[:9], constant + size * gap**2, rtol=1e3 * precision())
    assert caught.value.sites == ("y",)


def test_large_batches_are_not_held(guide, monkeypatch):
    """At most three, beside the one that is being made."""
    monkeypatch.setattr("guidax._fit.source.MAX_HELD", 1)
    alive = []

    def traced(step):
        batch = batch_at(step)
        alive.append(weakref.ref(batch.arrays[0]))
        assert sum(ref() is not None for ref in alive) <= 4
        return batch if step < 25 else gx.Batch(*(x * jnp.nan for x in batch.arrays))

    with pytest.raises(gx.NonFiniteError, match="step 25 .*arguments hold NaN"):
        run(guide, traced, steps=200)
    assert len(alive) < 25 + 5  # the rest of the stride is not asked for


def test_a_resume_goes_on_counting(guide, streamed):
    asked = []

    def counted(step):
        asked.append(step)
        return batch_at(step)

    first = run(guide, counted, steps=6)
    assert asked == [0, 1, 2, 3, 4, 5]
    second = first.resume(batches=counted, steps=4, progress=False)
    assert asked == list(range(10))
    assert identical(second.guide, streamed.guide)
    assert identical(second.losses, streamed.losses[6:])
    # An iterable begins where it begins.
    rest = first.resume(batches=[batch_at(s) for s in range(6, 10)], steps=4, progress=False)
    assert identical(rest.guide, streamed.guide)


def test_an_iterable_is_read_no_further(guide):
    source = iter(range(20))
    run(guide, map(batch_at, source), steps=7)
    assert next(source) == 7


def test_an_iterable_that_ends_early(guide, streamed):
    short = [batch_at(step) for step in range(4)]
    with pytest.warns(UserWarning, match="batches ended after 4 of 10 steps"):
        result = run(guide, short)
    assert result.losses.shape == (4,)
    assert identical(result.losses, streamed.losses[:4])
    assert int(result.state.moving.step) == 4
    # What was done is a result like any other.
    rest = result.resume(batches=batch_at, steps=6, progress=False)
    assert identical(rest.guide, streamed.guide)
    with pytest.warns(UserWarning, match="batches ended after 0 of 10 steps"):
        nothing = run(guide, [])
    assert nothing.losses.shape == (0,) and identical(nothing.guide, guide)


def all_rows(step):
    return gx.Batch(jnp.asarray(X, float), jnp.asarray(Y, float))


def test_a_warning_where_nothing_is_scaled(guide):
    careless = gx.AutoDelta(forgetful, batch_at(0), key=jax.random.key(0))
    message = r"no plate of the model is subsampled.*gx\.plate\(\"data\", N, subsample_size="
    with pytest.warns(UserWarning, match=message) as caught:
        run(careless, batch_at)
    assert len(caught) == 1  # of one run, not of each step
    # A plate that could be subsampled, but is not.
    with pytest.warns(UserWarning, match=message):
        run(guide, all_rows)


def test_warnings_point_at_the_caller(guide, key):
    with pytest.warns(UserWarning, match="batches ended") as caught:
        result = gx.fit(key, guide, batches=[batch_at(0)], steps=2, progress=False)
        result.resume(batches=[batch_at(0)], steps=2, progress=False)
    assert [each.filename for each in caught] == [__file__] * 2
    with pytest.warns(UserWarning, match="no plate") as caught:
        result = gx.fit(key, guide, batches=all_rows, steps=1, progress=False)
        result.resume(batches=all_rows, steps=1, progress=False)
    assert [each.filename for each in caught] == [__file__] * 2


def whole(X, y):
    """The plate has its size, and the batch says which rows of all the data it holds."""
    beta = gx.sample("beta", distrax.Independent(distrax.Normal(jnp.zeros(3), 1.0), 1))
    with gx.plate("data", N) as rows:
        gx.sample("y", distrax.Normal(X[rows] @ beta, 1.0), obs=gx.subsample(y))


def test_no_warning_where_something_is(guide, streamed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(guide, batch_at)  # by subsample_size
        by_rows = lambda step: all_rows(step).at(data=rows_at(step))  # noqa: E731
        start = gx.init_to_value({"beta": START})
        other = gx.AutoDelta(whole, by_rows(0), key=jax.random.key(0), init_loc_fn=start)
        result = run(other, by_rows)
    np.testing.assert_allclose(result.losses, streamed.losses, rtol=1e2 * precision())


def test_the_same_batch_each_time_is_a_plain_fit(key):
    args = jnp.asarray(X, float), jnp.asarray(Y, float)
    guide = gx.AutoNormal(model, *args, key=key)
    plain = gx.fit(key, guide, *args, steps=10, progress=False)
    with pytest.warns(UserWarning, match="no plate"):
        result = gx.fit(key, guide, batches=all_rows, steps=10, progress=False)
    assert distance(result.guide, plain.guide) < 1e-5
    np.testing.assert_allclose(result.losses, plain.losses, rtol=1e-5)


def test_nothing_stands_beside_batches(guide, streamed):
    for args, kwargs in (((X, Y), {}), ((), {"X": X, "y": Y}), ((batch_at(0),), {})):
        with pytest.raises(ValueError, match=r"put them all into each gx\.Batch"):
            gx.fit(
                jax.random.key(0),
                guide,
                *args,
                **kwargs,
                steps=3,
                batches=batch_at,
                progress=False,
            )
        with pytest.raises(ValueError, match=r"put them all into each gx\.Batch"):
            streamed.resume(*args, **kwargs, steps=3, batches=batch_at, progress=False)


def test_not_inside_a_transformation(guide, streamed):
    message = "batches is read on the host, which jit and vmap cannot do"
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda k: gx.fit(k, guide, steps=3, batches=batch_at))(jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        jax.vmap(lambda k: gx.fit(k, guide, steps=3, batches=batch_at))(
            jax.random.split(jax.random.key(0), 2)
        )
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda r: r.resume(steps=3, batches=batch_at))(streamed)


def powers(X, y, power):
    """Regression on powers, one of which is a Python number."""
    model(X**power, y)


def test_a_ragged_batch_is_refused(guide):
    """It would compile a program of its own; what was done by then is the message's step."""

    def ragged(step):
        batch = batch_at(step)
        return batch if step < 3 else gx.Batch(*(x[:-1] for x in batch.arrays))

    with pytest.raises(ValueError, match=r"step 3 .*\[3,3\].*against .*\[4,3\].*drop it, or pad"):
        run(guide, ragged)
    ten = gx.Batch(jnp.zeros((10, 3)), jnp.zeros(10))
    rows = [ten.at(data=np.arange(10)), ten.at(data=np.arange(9))]
    with pytest.raises(ValueError, match="data: 9 rows against .*data: 10 rows"):
        run(guide, rows)
    halves = gx.AutoDelta(powers, *batch_at(0).arrays, 1, key=jax.random.key(0))
    with pytest.raises(ValueError, match="step 1 .*, 2 against .*, 1. Every"):
        run(halves, lambda step: gx.Batch(*batch_at(step).arrays, step + 1))


def padded(X, y, is_row):
    """Regression on a batch some of whose rows are padding."""
    beta = gx.sample("beta", distrax.Independent(distrax.Normal(jnp.zeros(3), 1.0), 1))
    with gx.plate("data", N, subsample_size=y.shape[0]), gx.handlers.mask(mask=is_row):
        gx.sample("y", distrax.Normal(X @ beta, 1.0), obs=y)


def test_a_pass_over_padded_batches_counts_each_row_once(key):
    """The mean gradient over a pass of ragged batches, padded, is that of all the data."""
    size = 5  # of 12 rows: 5, 5 and 2
    start = gx.init_to_value({"beta": START})
    batches = []
    for first in range(0, N, size):
        rows = np.arange(first, min(first + size, N))
        gap = size - rows.size
        X_, y_ = np.pad(X[rows], ((0, gap), (0, 0))), np.pad(Y[rows], (0, gap))
        batches.append(gx.Batch(X_, y_, np.arange(size) < rows.size))
    guide = gx.AutoDelta(padded, batches[0], key=key, init_loc_fn=start)
    loss = jax.value_and_grad(lambda guide, batch: gx.ELBO()(guide, key, batch))
    likelihood = 0.0
    for batch in batches:
        prior = 0.5 * START @ START + 1.5 * np.log(2 * np.pi)
        likelihood += size / N * (loss(guide, batch)[0] - prior)
    residual = Y - X @ START
    expected = 0.5 * residual @ residual + 0.5 * N * np.log(2 * np.pi)
    np.testing.assert_allclose(likelihood, expected, rtol=1e3 * precision())


def test_items_are_batches(guide):
    for bad in (lambda step: (X[:B], Y[:B]), [(X[:B], Y[:B])]):
        with refused_type(r"gives gx\.Batch objects.*; got tuple"):
            run(guide, bad)
    with pytest.raises(TypeError, match="do not fit the model"):
        run(guide, [gx.Batch(X[:B])])
    with refused_type(r"a function of the step that returns a gx\.Batch, or an iterable"):
        run(guide, 3)


# --- local latents -----------------------------------------------------------------------------

ROWS, PER_BATCH = 100, 20
TRUTH = np.random.default_rng(1).normal(2.0, 1.5, size=ROWS)
SEEN = TRUTH + 0.1 * np.random.default_rng(2).normal(size=ROWS)


def hierarchy(y):
    """Each row has a latent; the arguments are a batch that is cut already."""
    mu = gx.sample("mu", distrax.Normal(jnp.zeros(()), 10.0))
    tau = gx.sample("tau", tfd.HalfNormal(3.0 * jnp.ones(())))
    with gx.plate("data", ROWS, subsample_size=y.shape[0]):
        z = gx.sample("z", distrax.Normal(mu, tau))
        gx.sample("y", distrax.Normal(z, 0.1), obs=y)


def local_batch(step):
    rows = np.random.default_rng(step).choice(ROWS, PER_BATCH, replace=False)
    return gx.Batch(SEEN[rows].astype(float)).at(data=rows)


@pytest.fixture(scope="module")
def local_guide():
    return gx.AutoNormal(hierarchy, local_batch(0), key=jax.random.key(0))


def test_streamed_rows_find_their_own_parameters(local_guide, key):
    result = gx.fit(key, local_guide, batches=local_batch, steps=2500, progress=False)
    median = result.guide.median(SEEN)
    assert np.corrcoef(median["z"], TRUTH)[0, 1] > 0.99
    # Given mu and tau the posterior of each row is a normal in closed form.
    mu, tau = float(median["mu"]), float(median["tau"])
    precision = 1 / tau**2 + 1 / 0.1**2
    exact = (mu / tau**2 + SEEN / 0.1**2) / precision
    np.testing.assert_allclose(median["z"], exact, atol=0.09)  # their s.d.: 0.1
    assert abs(mu - SEEN.mean()) < 0.1 and abs(tau - SEEN.std()) < 0.2


def test_rows_of_unknown_number_are_refused(local_guide):
    def anonymous(step):
        return gx.Batch(SEEN[:PER_BATCH])

    with pytest.raises(ValueError, match=r"'data' holds 20 of 100 rows.*at\(data=row_numbers\)"):
        gx.fit(jax.random.key(0), local_guide, batches=anonymous, steps=3, progress=False)
    with pytest.raises(ValueError, match=r"rows 0 to 99"):
        beyond = [gx.Batch(SEEN[:PER_BATCH]).at(data=np.arange(90, 110))]
        gx.fit(jax.random.key(0), local_guide, batches=beyond, steps=1, progress=False)
    with pytest.raises(ValueError, match="20"):
        fewer = [gx.Batch(SEEN[:PER_BATCH]).at(data=np.arange(10))]
        gx.fit(jax.random.key(0), local_guide, batches=fewer, steps=1, progress=False)
