"""What `fit` does without an optimizer: units, and axes of their own."""

import functools

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import guidax as gx
from assertions import distance, identical, precision
from guidax._family.normal import SCALE_UNIT
from guidax._fit.axes import EVERY, MAX_TURNED
from guidax._fit.default import _clip, default_optimizer

MEAN = np.array([3.0, -2.0, 0.5])


def covariance(condition):
    """Of a posterior that is long in no coordinate's direction."""
    axes = np.array([[2.0, 1.0, 2.0], [-2.0, 2.0, 1.0], [-1.0, -2.0, 2.0]]) / 3.0
    return axes.T @ np.diag([1.0, condition**-0.5, 1.0 / condition]) @ axes


def normal(condition):
    """A model whose posterior is that."""
    prior = distrax.MultivariateNormalFullCovariance(jnp.asarray(MEAN), covariance(condition))
    return lambda: gx.sample("z", prior)


def adam_along_axes(z, precision_matrix, rates):
    """Adam in NumPy on `(z - mean)' P (z - mean) / 2`, with a turn at every hundredth step."""
    m, v, second, axes = np.zeros(3), np.zeros(3), np.zeros((3, 3)), np.eye(3)
    for i, rate in enumerate(rates, start=1):
        g = precision_matrix @ (z - MEAN)
        g *= min(1.0, 10.0 * 1e4 ** ((i - 1) / len(rates)) / np.linalg.norm(g))
        second = 0.99 * second + 0.01 * np.outer(g, g)
        if i % 100 == 0:
            new = np.linalg.eigh(second)[1]
            m = new.T @ (axes @ m)
            # The mean square along each axis, as Adam would have it without its debiasing.
            v = np.diag(new.T @ second @ new) / (1 - 0.99**i) * (1 - 0.99 ** (i - 1))
            axes = new
        g = axes.T @ g
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        z = z - rate * axes @ (m / (1 - 0.9**i) / (np.sqrt(v / (1 - 0.99**i)) + 1e-8))
    return z


def test_the_axes_turn(key):
    start = gx.init_to_value({"z": jnp.zeros(3)})
    guide = gx.AutoDelta(normal(10.0), key=key, init_loc_fn=start)
    steps = 130  # one turn
    rates = 0.3 * 0.5 * (1 + np.cos(np.pi * np.arange(steps) / steps))
    expected = adam_along_axes(np.zeros(3), np.linalg.inv(covariance(10.0)), rates)
    found = gx.fit(key, guide, steps=steps, progress=False).guide.family.loc["z"]
    np.testing.assert_allclose(found, expected, rtol=1e4 * precision(), atol=1e4 * precision())


def test_correlated_posteriors_are_no_obstacle(key):
    """Where plain Adam with the same rates and the same clip is still on its way."""
    model, inverse = normal(1e5), np.linalg.inv(covariance(1e5))
    steps, objective = 500, gx.ELBO(16)
    plain = optax.chain(
        optax.clip_by_global_norm(10.0), optax.adam(optax.cosine_decay_schedule(0.5, steps))
    )

    def gap(optimizer):
        """What the location costs in nats, in the mean over eight starts."""

        def fitted(key):
            options = {"steps": steps, "optimizer": optimizer, "objective": objective}
            guide = gx.AutoNormal(model, key=key)
            return gx.fit(key, guide, progress=False, **options).guide.family.loc["z"]

        off = jax.jit(jax.vmap(fitted))(jax.random.split(key, 8)) - MEAN
        return 0.5 * np.einsum("ni,ij,nj->n", off, inverse, off).mean()

    ours, theirs = gap(None), gap(plain)
    assert ours < 0.05 and theirs > 10 * ours, (ours, theirs)


@pytest.mark.parametrize(
    "make",
    [gx.AutoNormal, gx.AutoDiagonalNormal, gx.AutoMultivariateNormal],
    ids=lambda g: g.__name__,
)
def test_a_posterior_may_be_far_and_wide(make, key):
    """A step of 0.5 alone would go 1,000 in 2,000 steps, and the scale as slowly."""

    def model():
        gx.sample("z", distrax.Normal(jnp.asarray(1e6, float), 1e4))

    guide = gx.fit(key, make(model, key=key), steps=2000, progress=False).guide
    (low,), (middle,), (high,) = np.split(
        np.asarray(guide.quantiles([0.1587, 0.5, 0.8413])["z"]), 3
    )
    np.testing.assert_allclose(middle, 1e6, atol=0.1 * 1e4)
    np.testing.assert_allclose((high - low) / 2, 1e4, rtol=0.1)


def far_and_narrow():
    gx.sample("z", distrax.Normal(jnp.asarray(1e4, float), 1.0))


@pytest.mark.parametrize(
    "make",
    [
        gx.AutoNormal,
        gx.AutoDiagonalNormal,
        gx.AutoMultivariateNormal,
        gx.AutoLowRankMultivariateNormal,
        gx.AutoLaplaceApproximation,
        gx.AutoDelta,
    ],
    ids=lambda g: g.__name__,
)
def test_a_posterior_may_be_far_and_narrow(make, key):
    """By units alone, of which one is at least a step, a fit would come a few hundred far."""
    guide = make(far_and_narrow, key=key, init_loc_fn=gx.init_to_value({"z": 0.0}))
    guide = gx.fit(key, guide, steps=2000, progress=False).guide
    (low,), (middle,), (high,) = np.split(
        np.asarray(guide.quantiles([0.1587, 0.5, 0.8413])["z"], np.float64), 3
    )
    # The noise of the last steps is about a tenth, and single precision knows 1e4 to 1e-3.
    np.testing.assert_allclose(middle, 1e4, atol=0.3)
    np.testing.assert_allclose((high - low) / 2, 0.0 if make is gx.AutoDelta else 1.0, atol=0.2)


def test_a_resumed_fit_does_not_leap(key):
    """What was far from the first start is not from where the fit goes on."""
    guide = gx.AutoNormal(far_and_narrow, key=key, init_loc_fn=gx.init_to_value({"z": 0.0}))
    result = gx.fit(key, guide, steps=1000, progress=False)
    again = result.resume(steps=5, progress=False)
    # Five steps of 0.5 at most, not of 0.5 * 1e4 / 10.
    np.testing.assert_allclose(again.guide.family.loc["z"], result.guide.family.loc["z"], atol=2.5)


def test_more_coordinates_take_smaller_steps(key):
    def rate(make, size):
        model = lambda: gx.sample("z", distrax.Normal(jnp.zeros(size), 1.0))  # noqa: E731
        return make(model, key=key).learning_rate

    for make in (gx.AutoNormal, gx.AutoDiagonalNormal):
        np.testing.assert_allclose(
            [rate(make, size) for size in (1, 30, 120, 750, 3000)], [0.5, 0.5, 0.25, 0.1, 0.1]
        )
    for make in (gx.AutoMultivariateNormal, gx.AutoLowRankMultivariateNormal):
        np.testing.assert_allclose([rate(make, size) for size in (1, 80, 120)], [0.3, 0.3, 0.25])


def test_a_full_rank_normal_of_a_hundred_dimensions_leaves_two_nats(key):
    """At the pace of few dimensions the noise of its 5,000 entries cost seven."""
    noise = np.random.default_rng(0).normal(size=(100, 100)) / 10
    prior = distrax.MultivariateNormalFullCovariance(jnp.ones(100), np.eye(100) + noise @ noise.T)
    guide = gx.AutoMultivariateNormal(lambda: gx.sample("z", prior), key=key)
    guide = gx.fit(key, guide, steps=2000, progress=False).guide
    gap = float(gx.ELBO(num_particles=1000)(guide, key))  # log Z = 0
    assert 0 < gap < 3, gap


def test_wide_and_deep_flows_take_smaller_steps(key):
    """A coupling layer moves half of the coordinates, so two of them count as one layer."""

    def rate(make, size, num_flows):
        model = lambda: gx.sample("z", distrax.Normal(jnp.zeros(size), 1.0))  # noqa: E731
        return make(model, key=key, num_flows=num_flows).learning_rate

    flow, coupling = gx.AutoIAFNormal, gx.AutoRealNVPNormal
    np.testing.assert_allclose([rate(flow, size, 3) for size in (4, 80)], [0.01, 0.005])
    np.testing.assert_allclose([rate(flow, 4, depth) for depth in (1, 6)], [0.01, 0.005])
    np.testing.assert_allclose([rate(coupling, 4, depth) for depth in (4, 12)], [0.01, 0.005])
    splines = gx.AutoNSFNormal
    np.testing.assert_allclose([rate(splines, 4, depth) for depth in (4, 12)], [0.005, 0.0025])


def test_moves_from_a_wide_flow_take_its_smaller_steps(key):
    def rate(base, size):
        model = lambda: gx.sample("z", distrax.Normal(jnp.zeros(size), 1.0))  # noqa: E731
        return gx.AutoDAIS(model, key=key, base_dist=base).learning_rate

    found = [rate(gx.AutoIAFNormal, 4), rate(gx.AutoIAFNormal, 80), rate("cholesky", 4)]
    np.testing.assert_allclose(found, [0.01, 0.005, 0.01])


def test_the_base_of_moves_goes_in_its_own_units(key):
    """At the rate of the moves, 0.01 falling to zero, 500 steps go no further than 3."""
    model = lambda: gx.sample("z", distrax.Normal(20.0, 1.0))  # noqa: E731
    guide = gx.AutoDAIS(model, key=key, K=1, init_loc_fn=gx.init_to_value({"z": 0.0}))
    fitted = gx.fit(key, guide, steps=500, progress=False).guide
    np.testing.assert_allclose(fitted.family.base.loc, 20.0, atol=0.5)


def test_a_part_goes_at_most_three_times_as_fast_as_the_slowest(key):
    """The first step of Adam is as long as its rate, in units: one for points and flows."""

    def model():
        for name in "ab":
            gx.sample(name, distrax.Normal(jnp.full(2, 5.0), 1.0))

    def first_steps(flow):
        guide = gx.AutoGuideList(model, key=key, parts={"a": gx.AutoDelta, "b": flow})
        after = gx.fit(key, guide, steps=1, progress=False).guide
        pairs = zip(guide.family.parts, after.family.parts, strict=True)
        return [distance(a, b) for a, b in pairs]

    np.testing.assert_allclose(first_steps(gx.AutoIAFNormal), [0.03, 0.01], rtol=1e-4)
    np.testing.assert_allclose(first_steps(gx.AutoDelta), [0.3, 0.3], rtol=1e-4)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-3, 2.0, 1e6, 1e20, 3e38])
def test_gradients_are_clipped_whatever_their_size(size):
    """In single precision squares overflow from 1.8e19 on: by an infinite norm nothing is left."""
    direction = np.array([1.0, -0.5, 0.25, 1.0])
    gradient = jnp.asarray(size * direction, jnp.float32)
    tree = {"a": gradient[:3], "b": gradient[3:], "none": jnp.zeros((0, 2))}
    optimizer = _clip(jnp.asarray(10.0, jnp.float32))
    clipped, _ = optimizer.update(tree, optimizer.init(tree))
    expected = direction * min(size, 10.0 / np.linalg.norm(direction))
    found = np.concatenate([clipped["a"], clipped["b"]])
    assert found.dtype == np.float32 and clipped["none"].shape == (0, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def members(turned):
    """An update of three members, each of which counts its own steps."""
    params = jnp.ones((3, 4))
    rate, progress = jnp.asarray(0.1), jnp.asarray(0.0)
    frame = lambda step: step  # noqa: E731
    flags = {"located": (True,), "travelling": (False,), "turned": (turned,)}
    optimizer = default_optimizer(rate, progress, jnp.ones(4), frame, **flags)
    state = jax.vmap(optimizer.init)(params)
    return jax.make_jaxpr(jax.vmap(optimizer.update))(params, state, params)


def test_members_of_an_ensemble_turn_only_when_it_is_due():
    """A branch would be a selection under vmap, and `eigh` run at every step."""
    jaxpr = members(turned=True).jaxpr
    top = [equation.primitive.name for equation in jaxpr.eqns]
    assert "while" in top and "eigh" not in str(
        [e for e in jaxpr.eqns if e.primitive.name != "while"]
    )
    assert "eigh" in str(jaxpr)
    assert "eigh" not in str(members(turned=False))


def test_a_compiled_ensemble_turns_only_when_it_is_due(key, monkeypatch):
    """XLA moves out of a loop what does not change in it, whether or not it is ever run."""
    calls = []

    def eigh(matrix):
        calls.append(matrix.shape)
        return tuple(np.linalg.eigh(matrix))

    def counted(matrix, **_):
        shapes = jax.eval_shape(lambda x: (x[0], x), matrix)
        return jax.pure_callback(eigh, shapes, matrix, vmap_method="broadcast_all")

    monkeypatch.setattr(jnp.linalg, "eigh", counted)
    guide = gx.AutoNormal(normal(1.0), key=key)
    fit = jax.vmap(lambda key: gx.fit(key, guide, steps=2 * EVERY + 10, progress=False).guide)
    jax.block_until_ready(jax.jit(fit)(jax.random.split(key)))
    jax.effects_barrier()
    assert calls == 2 * [(2, 3, 3)]


def turns(result):
    """Whether the optimizer of a fit has axes."""

    def is_turned(node):
        return hasattr(node, "axes")

    states = jax.tree.leaves(result.state.moving.opt_state, is_leaf=is_turned)
    return any(map(is_turned, states))


@pytest.mark.parametrize(("size", "expected"), [(3, True), (MAX_TURNED + 1, False)])
def test_a_mean_with_a_frame_travels_along_axes(size, expected, key):
    guide = gx.AutoMultivariateNormal(
        lambda: gx.sample("z", distrax.Normal(jnp.zeros(size), 1.0)), key=key
    )
    assert turns(gx.fit(key, guide, steps=1, progress=False)) == expected
    fixed = gx.fit(key, guide, steps=1, progress=False, trainable=lambda g: g.family.raw_scale_tril)
    assert not turns(fixed)
    np.testing.assert_array_equal(fixed.guide.family.loc, guide.family.loc)


def test_the_frame_of_a_normal_is_its_own(key):
    """A small step `(d, E)` changes the mean by `L d` and `L` by `L E`: here 3 batches of them."""
    model = lambda: gx.sample("z", distrax.Normal(jnp.zeros((3, 4)), 1.0))  # noqa: E731
    family = gx.AutoBatchedMultivariateNormal(model, key=key).family
    rng = np.random.default_rng(0)
    family = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), family)
    size = precision() ** 0.4
    step = jax.tree.map(lambda x: jnp.asarray(size * rng.normal(size=x.shape), x.dtype), family)
    moved = jax.tree.map(jnp.add, family, family.in_frame(step, jnp.ones(())))
    tril, d = np.asarray(family.scale_tril()), np.asarray(step.loc)
    e, entries = np.zeros((3, 4, 4)), SCALE_UNIT * np.asarray(step.raw_scale_tril)
    below, diagonal = np.tril_indices(4, -1), np.arange(4)
    e[:, below[0], below[1]], e[:, diagonal, diagonal] = entries[:, :6], entries[:, 6:]
    at = {"rtol": 0, "atol": 10 * size**2}  # what is left is of second order, or rounding
    np.testing.assert_allclose(moved.loc - family.loc, np.einsum("bij,bj->bi", tril, d), **at)
    np.testing.assert_allclose(moved.scale_tril() - tril, tril @ e, **at)


def test_the_frame_of_a_low_rank_normal_is_its_own(key):
    """A small step `(d, e, E)` changes the mean by `A d`, `S` by `e S`, and `S F` by `A E`.

    `A A'` is the covariance.
    """
    model = lambda: gx.sample("z", distrax.Normal(jnp.zeros((3, 4)), 1.0))  # noqa: E731
    guide = gx.AutoBatchedLowRankMultivariateNormal(model, key=key, rank=2)
    rng = np.random.default_rng(0)
    family = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), guide.family)
    nothing, scale = jax.tree.map(jnp.zeros_like, family), np.asarray(family.scale())
    one = jnp.ones(())
    columns = []
    for i in range(4):
        d = jnp.zeros((3, 4)).at[:, i].set(1.0)
        columns.append(family.in_frame(eqx.tree_at(lambda f: f.loc, nothing, d), one).loc)
    root, tril = np.stack(columns, axis=-1), np.asarray(family.scale_tril())
    close = {"rtol": 0, "atol": 1e3 * precision()}
    np.testing.assert_allclose(root @ root.mT, tril @ tril.mT, **close)

    size = precision() ** 0.4
    step = jax.tree.map(lambda x: jnp.asarray(size * rng.normal(size=x.shape), x.dtype), family)
    moved = jax.tree.map(jnp.add, family, family.in_frame(step, one))
    stretch, turn = SCALE_UNIT * step.raw_scale, SCALE_UNIT * step.factor
    second_order = {"rtol": 0, "atol": 10 * size**2}
    np.testing.assert_allclose(moved.scale() - scale, stretch * scale, **second_order)
    change = moved.scale()[..., None] * moved.factor - scale[..., None] * family.factor
    np.testing.assert_allclose(change, root @ turn, **second_order)


@pytest.mark.parametrize("rank", [10, 20])
def test_a_high_rank_is_no_obstacle(rank, key):
    """Twenty groups, conjugate: where the columns' noise adds up, fits diverged."""
    y = np.random.default_rng(0).normal(size=20)

    def model(y):
        mean = gx.sample("mean", distrax.Normal(0.0, 3.0))
        with gx.plate("groups", 20):
            gx.sample("y", distrax.Normal(gx.sample("a", distrax.Normal(mean, 1.0)), 1.0), obs=y)

    covariance_of_y = 2.0 * np.eye(20) + 9.0
    log_z = -0.5 * (y @ np.linalg.solve(covariance_of_y, y) + 20 * np.log(2 * np.pi))
    log_z -= 0.5 * np.linalg.slogdet(covariance_of_y)[1]
    guide = gx.AutoLowRankMultivariateNormal(model, y, key=key, rank=rank)
    guide = gx.fit(key, guide, y, steps=1000, progress=False).guide
    assert log_z - 0.5 < -float(gx.ELBO(num_particles=2000)(guide, key, y)) < log_z + 0.05


@pytest.mark.parametrize("make", [gx.AutoNormal, gx.AutoDiagonalNormal, gx.AutoMultivariateNormal])
def test_a_narrow_posterior_that_nobody_scaled(make, key):
    """Thirty returns of a thousandth: a step of one, as far away it should be, is 5,000 scales."""
    noise, n = 1e-3, 30
    returns = noise * (3.0 + np.random.default_rng(0).normal(size=n))

    def model(returns):
        mean = gx.sample("mean", distrax.Normal(0.0, 1.0))
        gx.sample("y", distrax.Normal(mean, noise), obs=returns)

    precision_of_posterior = 1.0 + n / noise**2
    expected = returns.sum() / noise**2 / precision_of_posterior
    scale = precision_of_posterior**-0.5
    guide = make(model, returns, key=key)
    guide = gx.fit(key, guide, returns, steps=2000, progress=False).guide
    low, middle, high = np.asarray(guide.quantiles([0.1587, 0.5, 0.8413], returns)["mean"])
    np.testing.assert_allclose((middle - expected) / scale, 0, atol=0.1)
    np.testing.assert_allclose((high - low) / 2, scale, rtol=0.1)


@pytest.mark.parametrize(
    "make",
    [
        gx.AutoMultivariateNormal,
        functools.partial(gx.AutoLowRankMultivariateNormal, rank=3),
    ],
    ids=["full", "low rank"],
)
def test_collinear_predictors_that_nobody_scaled(make, key):
    """A child's score by the mother's education, IQ and their product: correlations of 0.99.

    The posterior is that of the conjugate regression: flat prior, known noise. A diagonal and three
    columns have any covariance of four coordinates in their closure.
    """
    rng = np.random.default_rng(0)
    n, noise = 434, 18.0
    iq, school = rng.normal(100, 15, n), rng.random(n) < 0.78
    X = np.stack([np.ones(n), school, iq, school * iq], axis=1)
    y = X @ [20.0, 5.0, 0.6, -0.1] + noise * rng.normal(size=n)

    def model(X, y=None):
        flat = gx.ImproperUniform(gx.constraints.real, event_shape=(4,))
        gx.sample("y", distrax.Normal(X @ gx.sample("beta", flat), noise), obs=y)

    precision_matrix = X.T @ X / noise**2
    mean = np.linalg.solve(precision_matrix, X.T @ y / noise**2)
    scale = np.sqrt(np.diag(np.linalg.inv(precision_matrix)))
    guide = make(model, X, y, key=key)
    objective = gx.ELBO(num_particles=8)
    guide = gx.fit(key, guide, X, y, steps=2000, objective=objective, progress=False).guide
    low, middle, high = np.asarray(guide.quantiles([0.1587, 0.5, 0.8413], X, y)["beta"])
    np.testing.assert_allclose((middle - mean) / scale, 0, atol=0.1)
    np.testing.assert_allclose((high - low) / 2, scale, rtol=0.1)


def test_when_nothing_is_turned(key):
    def model(size):
        gx.sample("z", distrax.Normal(jnp.zeros(size), 1.0))

    def run(size, **options):
        guide = gx.AutoNormal(lambda: model(size), key=key)
        return gx.fit(key, guide, steps=1, progress=False, **options)

    assert turns(run(MAX_TURNED)) and not turns(run(MAX_TURNED + 1))
    assert not turns(run(3, optimizer=optax.adam))
    assert not turns(run(3, trainable=lambda guide: guide.family.raw_scale))
    assert turns(run(3, trainable=lambda guide: guide.family.loc))
    assert not turns(run(0))  # no entries: no axes either


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_parameters_of_half_precision(dtype, key):
    guide = gx.AutoNormal(lambda: gx.sample("z", distrax.Normal(jnp.full(2, 3.0), 1.0)), key=key)
    half = jax.tree.map(lambda x: x.astype(dtype), guide)
    result = gx.fit(key, half, steps=2 * EVERY, objective=gx.ELBO(16), progress=False)
    assert turns(result) and result.guide.family.loc["z"].dtype == dtype
    np.testing.assert_allclose(result.guide.family.loc["z"].astype(float), 3.0, atol=0.3)


@pytest.mark.parametrize(
    "make",
    [
        gx.AutoNormal,
        gx.AutoMultivariateNormal,
        gx.AutoLowRankMultivariateNormal,
        gx.AutoLaplaceApproximation,
    ],
    ids=lambda g: g.__name__,
)
def test_latents_of_half_precision(make, key):
    """Linear algebra has none, so what needs it is promoted, and what comes out is not."""
    mean, scale = jnp.asarray([0.5, -0.25], jnp.bfloat16), jnp.asarray(0.5, jnp.bfloat16)
    model = lambda: gx.sample("z", distrax.Normal(mean, scale))  # noqa: E731
    guide = gx.fit(key, make(model, key=key), steps=300, progress=False).guide
    low, high = guide.quantiles([0.1587, 0.8413])["z"]
    assert guide.sample_posterior(key)["z"].dtype == low.dtype == jnp.bfloat16
    low, high = (np.asarray(x, np.float64) for x in (low, high))
    np.testing.assert_allclose((low + high) / 2, [0.5, -0.25], atol=0.15)
    np.testing.assert_allclose((high - low) / 2, 0.5, rtol=0.2)


def axes_of(result):
    """The axes of a fit's optimizer."""
    is_turned = lambda node: hasattr(node, "axes")  # noqa: E731
    nodes = jax.tree.leaves(result.state.moving.opt_state, is_leaf=is_turned)
    return next(node.axes for node in nodes if is_turned(node))


def test_a_resumed_fit_keeps_its_axes(key):
    guide = gx.AutoNormal(normal(10.0), key=key)
    schedule = optax.constant_schedule(0.1)

    def run(steps):
        return gx.fit(key, guide, steps=steps, learning_rate=schedule, progress=False)

    first = run(EVERY + 20)
    axes = axes_of(first)
    assert distance(axes @ axes.T, jnp.eye(3)) < 1e3 * precision()
    assert distance(axes, jnp.eye(3)) > 0.1
    again = first.resume(steps=1, progress=False)
    assert identical(axes_of(again), axes)


@pytest.mark.parametrize(
    "make",
    [gx.AutoMultivariateNormal, functools.partial(gx.AutoLowRankMultivariateNormal, rank=2)],
    ids=["full", "low rank"],
)
def test_noisy_objectives_take_smaller_steps(make, key):
    """At their own rate normals ran away: means by up to 30 s.d., s.d. 200 times too wide."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 3))
    y = X @ [1.0, -2.0, 0.5] + 0.3 * rng.normal(size=40)

    def model(X, y):
        prior = distrax.Independent(distrax.Normal(jnp.zeros(3), 10.0), 1)
        gx.sample("y", distrax.Normal(X @ gx.sample("beta", prior), 0.3), obs=y)

    precision_matrix = X.T @ X / 0.09 + np.eye(3) / 100
    mean = np.linalg.solve(precision_matrix, X.T @ y / 0.09)
    scale = np.sqrt(np.diag(np.linalg.inv(precision_matrix)))
    guide = make(model, X, y, key=key)
    objective = gx.RenyiELBO(alpha=0.5, num_particles=8)
    guide = gx.fit(key, guide, X, y, steps=2000, objective=objective, progress=False).guide
    low, middle, high = np.asarray(guide.quantiles([0.1587, 0.5, 0.8413], X, y)["beta"])
    np.testing.assert_allclose((middle - mean) / scale, 0, atol=0.2)
    np.testing.assert_allclose((high - low) / 2, scale, rtol=0.15)
