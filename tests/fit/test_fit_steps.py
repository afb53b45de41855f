"""The steps that a fit takes, against algebra and against loops written out by hand."""

import functools

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import guidax as gx
from assertions import distance, identical, precision, refused_type
from models import NETWORK_DATA, ConjugateNormal, Network, regression, regression_data

X, y = regression_data()
DATA = jnp.asarray(ConjugateNormal.y, float)
MEAN, SCALE = ConjugateNormal.posterior()
CURVATURE = SCALE**-2  # of the loss of a point, which is a parabola in z


def moving(result):
    """All that a step changes."""
    state = result.state.moving
    return state.guide, state.opt_state, state.step, state.first_bad_step


def point(z=-1.0):
    """A guide without noise: its loss is `bottom + curvature / 2 (z - mean)^2`."""
    start = gx.init_to_value({"z": z})
    return gx.AutoDelta(ConjugateNormal.model, DATA, key=jax.random.key(0), init_loc_fn=start)


def bottom():
    """The loss at the mode: minus the log joint density there."""
    m, s, r = ConjugateNormal.m, ConjugateNormal.s, ConjugateNormal.r
    squares = ((MEAN - m) / s) ** 2 + np.sum(((ConjugateNormal.y - MEAN) / r) ** 2)
    n = len(ConjugateNormal.y)
    return 0.5 * squares + np.log(s) + n * np.log(r) + 0.5 * (n + 1) * np.log(2 * np.pi)


def location(result):
    """Where the point is."""
    return float(result.guide.family.loc["z"])


def fit_point(steps, z=-1.0, **options):
    """Fit a point without a bar."""
    return gx.fit(jax.random.key(0), point(z), DATA, steps=steps, progress=False, **options)


# --- 2 n = n + n -------------------------------------------------------------------------------

MODELS = {
    "params": (lambda key: regression, (X, y)),
    "module": (lambda key: Network(key).model, (NETWORK_DATA,)),
}


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def whole(request):
    """A guide, its data, and a fit of 2300 steps, which one dispatch does not hold."""
    make, args = request.param
    key = jax.random.key(0)
    guide = gx.AutoNormal(make(key), *args, key=key)
    result = gx.fit(key, guide, *args, steps=2300, optimizer=optax.adam, progress=False)
    return guide, args, result


@pytest.mark.parametrize(
    "progress",
    [True, lambda step, loss: None, False, None],
    ids=["bar", "function", "nothing", "default"],
)
def test_2n_steps_are_n_and_n(whole, progress, key):
    guide, args, result = whole
    options = {"optimizer": optax.adam, "progress": progress}
    first = gx.fit(key, guide, *args, steps=1150, **options)
    second = first.resume(*args, steps=1150, progress=progress)
    assert identical(moving(second), moving(result))
    assert identical(jnp.concatenate([first.losses, second.losses]), result.losses)
    assert int(second.state.moving.step) == 2300
    assert not identical(first.guide, result.guide)


def test_bars_do_not_change_the_default_fit(key):
    guide = gx.AutoNormal(regression, X, y, key=key)
    shown, called, hidden = (
        gx.fit(key, guide, X, y, steps=1200, progress=progress)
        for progress in (True, lambda step, loss: None, False)
    )
    assert identical(moving(shown), moving(hidden)) and identical(shown.losses, hidden.losses)
    assert identical(moving(called), moving(hidden)) and identical(called.losses, hidden.losses)


def test_the_leaves_of_a_result_are_strong(whole):
    # A weak one would make the next program another one.
    leaves = jax.tree.leaves(moving(whole[2]))
    assert not any(leaf.weak_type for leaf in leaves)
    assert jax.tree.structure(whole[2].guide) == jax.tree.structure(whole[0])
    assert whole[2].losses.shape == (2300,) and int(whole[2].first_bad_step) == -1


def test_the_key_and_the_objective_count(key):
    guide = gx.AutoNormal(regression, X, y, key=key)

    def run(key, **options):
        return gx.fit(key, guide, X, y, steps=3, progress=False, **options)

    assert identical(run(key).losses, run(key).losses)
    assert not np.any(run(key).losses == run(jax.random.key(1)).losses)
    assert not np.any(run(key).losses == run(key, objective=gx.ELBO(2)).losses)


def test_each_step_has_noise_of_its_own(key):
    guide = gx.AutoNormal(ConjugateNormal.model, DATA, key=key)
    idle = optax.set_to_zero()
    first = gx.fit(key, guide, DATA, steps=5, optimizer=idle, progress=False)
    second = first.resume(DATA, steps=5, progress=False)
    assert identical(second.guide, guide)
    losses = [*first.losses.tolist(), *second.losses.tolist()]
    assert len(set(losses)) == 10


def test_old_keys_are_keys_too(key):
    guide = gx.AutoNormal(ConjugateNormal.model, DATA, key=key)
    old, new = (
        gx.fit(k, guide, DATA, steps=5, optimizer=optax.sgd, progress=False)
        for k in (jax.random.PRNGKey(0), jax.random.key(0))
    )
    assert identical(old.losses, new.losses)


# --- optimizers --------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["raise", "halve"])
def test_an_optimizer_may_hold_a_key(policy, key):
    optimizer = optax.noisy_sgd(0.01, key=jax.random.key(1))
    guide = gx.AutoNormal(ConjugateNormal.model, DATA, key=key)
    by_hand, state = guide, optimizer.init(guide)
    for i in range(7):
        grads = jax.grad(gx.ELBO())(by_hand, jax.random.fold_in(key, i), DATA)
        updates, state = optimizer.update(grads, state)
        by_hand = optax.apply_updates(by_hand, updates)
    options = {"optimizer": optimizer, "on_nonfinite": policy, "progress": False}

    def fit(key):
        first = gx.fit(key, guide, DATA, steps=4, **options)
        return first.resume(DATA, steps=3, progress=False).guide

    assert distance(fit(key), by_hand) < 1e3 * precision()
    assert distance(jax.jit(fit)(key), by_hand) < 1e3 * precision()


def adam_by_hand(z, rates, clips=None, moments=(0.0, 0.0), before=0):
    """Adam on the parabola, in NumPy."""
    m, v = moments
    clips = [np.inf] * len(rates) if clips is None else clips
    for i, (rate, clip) in enumerate(zip(rates, clips, strict=True), start=before + 1):
        g = CURVATURE * (z - MEAN)
        g *= min(1.0, clip / abs(g))
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        z -= rate * (m / (1 - 0.9**i)) / (np.sqrt(v / (1 - 0.99**i)) + 1e-8)
    return z, (m, v)


def half_cosine(rate, steps):
    """From the rate to zero."""
    return [rate * 0.5 * (1 + np.cos(np.pi * i / steps)) for i in range(steps)]


def rising(steps):
    """The norm that the default optimizer clips at: from 10 to 100,000."""
    return [10.0 * 1e4 ** (i / steps) for i in range(steps)]


def test_the_default_clips_and_decays():
    assert CURVATURE * abs(-1.0 - MEAN) > 10  # clipped at first
    assert point().learning_rate == 0.3
    expected, moments = adam_by_hand(-1.0, half_cosine(0.3, 30), rising(30))
    unclipped, _ = adam_by_hand(-1.0, half_cosine(0.3, 30))
    constant, _ = adam_by_hand(-1.0, [0.3] * 30, rising(30))
    fixed, _ = adam_by_hand(-1.0, half_cosine(0.3, 30), [10.0] * 30)
    tolerance = 1e3 * precision()
    assert min(abs(expected - other) for other in (unclipped, constant, fixed)) > 0.01
    result = fit_point(30)
    assert abs(location(result) - expected) < tolerance
    # A resume starts a new decay, with the moments as they are.
    more, _ = adam_by_hand(expected, half_cosine(0.3, 12), rising(12), moments, before=30)
    resumed = result.resume(DATA, steps=12, progress=False)
    assert abs(location(resumed) - more) < tolerance
    assert abs(location(fit_point(42)) - more) > 0.001
    # Another rate, and a schedule in place of the decay.
    expected, _ = adam_by_hand(-1.0, half_cosine(0.05, 30), rising(30))
    assert abs(location(fit_point(30, learning_rate=0.05)) - expected) < tolerance
    expected, _ = adam_by_hand(-1.0, [0.1 / (1 + i) for i in range(30)], rising(30))
    schedule = lambda step: 0.1 / (1 + step)  # noqa: E731
    assert abs(location(fit_point(30, learning_rate=schedule)) - expected) < tolerance


def test_the_clip_is_of_the_global_norm(key):
    """Against an optax loop on the same gradients, of a guide with several leaves."""

    def model():
        gx.sample("a", distrax.Normal(jnp.zeros(3), jnp.array([0.1, 1.0, 10.0], float)))
        gx.sample("b", distrax.Normal(jnp.asarray(5.0, float), 0.3))

    start = gx.init_to_value({"a": jnp.ones(3), "b": 1.0})
    guide = gx.AutoDelta(model, key=key, init_loc_fn=start)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.3, 15), b2=0.99)
    by_hand, state = guide, optimizer.init(guide)
    for norm in rising(15):
        clip = optax.clip_by_global_norm(norm)
        grads = jax.grad(gx.ELBO())(by_hand, key)
        grads, _ = clip.update(grads, clip.init(by_hand))
        updates, state = optimizer.update(grads, state, by_hand)
        by_hand = optax.apply_updates(by_hand, updates)
    result = gx.fit(key, guide, steps=15, progress=False)
    assert distance(result.guide, by_hand) < 1e3 * precision()


def first_step(guide, args, **options):
    """How far each entry moves in one step, as a guide."""
    result = gx.fit(jax.random.key(0), guide, *args, steps=1, progress=False, **options)
    return jax.tree.map(lambda new, old: np.asarray(new - old), result.guide, guide)


def first_move(guide, args, **options):
    """The same, end to end."""
    leaves = jax.tree.leaves(first_step(guide, args, **options))
    return np.concatenate([np.ravel(x) for x in leaves])


def test_rates(key):
    """Adam's first step moves every entry by the rate, in its units."""
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3)
    guide, module = point(), gx.AutoNormal(Network(key).model, NETWORK_DATA, key=key)
    assert (guide.learning_rate, module.learning_rate) == (0.3, 0.01)
    close(first_move(guide, (DATA,)), 0.3)
    moves = first_step(module, (NETWORK_DATA,))
    weights = np.abs(np.concatenate([x.ravel() for x in jax.tree.leaves(moves.model)]))
    close(weights[weights > 0], 0.01)  # a dead unit of the network has no gradient
    assert np.sum(weights > 0) > 4
    close([abs(x) for x in moves.family.loc.values()], 0.01)
    scale = jax.nn.softplus(module.family.raw_scale["slope"])
    more = jax.nn.softplus(module.family.raw_scale["slope"] + moves.family.raw_scale["slope"])
    np.testing.assert_allclose(abs(np.log(more / scale)), 0.2 * 0.01, rtol=0.01)
    close(first_move(guide, (DATA,), optimizer=optax.adam), 0.01)
    close(first_move(guide, (DATA,), optimizer=optax.adam, learning_rate=0.2), 0.2)
    schedule = optax.piecewise_constant_schedule(0.07, {1: 0.5})
    close(first_move(guide, (DATA,), optimizer=optax.adam, learning_rate=schedule), 0.07)
    close(first_move(guide, (DATA,), optimizer=optax.adam(0.04)), 0.04)


def test_gradient_descent_on_a_parabola():
    """z goes to the mean by a factor each step, and the losses are those on the way."""
    ratio = 1 - 0.02 * CURVATURE
    path = MEAN + (-1.0 - MEAN) * ratio ** np.arange(9)
    losses = bottom() + 0.5 * CURVATURE * (path[:8] - MEAN) ** 2
    result = fit_point(8, optimizer=optax.sgd, learning_rate=0.02)
    np.testing.assert_allclose(location(result), path[8], rtol=1e3 * precision())
    np.testing.assert_allclose(result.losses, losses, rtol=1e2 * precision())
    # A schedule counts on through a resume.
    rates = 0.02 / (1 + np.arange(8))
    expected = MEAN + (-1.0 - MEAN) * np.prod(1 - rates * CURVATURE)
    schedule = lambda step: 0.02 / (1 + step)  # noqa: E731
    half = fit_point(4, optimizer=optax.sgd, learning_rate=schedule)
    both = half.resume(DATA, steps=4, progress=False)
    np.testing.assert_allclose(location(both), expected, rtol=1e3 * precision())


def test_optimizers_that_ask_for_the_value():
    # Polyak's step on a parabola whose bottom is known halves the distance.
    polyak = optax.polyak_sgd(f_min=bottom())
    expected = MEAN + (-1.0 - MEAN) * 0.5**4
    tolerance = 1e-5 if precision() < 1e-10 else 1e-2  # the gap to the bottom cancels
    np.testing.assert_allclose(location(fit_point(4, optimizer=polyak)), expected, rtol=tolerance)
    # L-BFGS with its line search finds the bottom of a parabola in a few steps.
    result = fit_point(6, optimizer=optax.lbfgs())
    assert abs(location(result) - MEAN) < 1e-3
    assert abs(float(result.losses[-1]) - bottom()) < 1e-4


def test_gradients_are_accumulated():
    ratio = 1 - 0.02 * CURVATURE
    expected = MEAN + (-1.0 - MEAN) * ratio**4
    ready = optax.MultiSteps(optax.sgd(0.02), every_k_schedule=2)
    made = {"optimizer": lambda rate: optax.MultiSteps(optax.sgd(rate), 2), "learning_rate": 0.02}
    for options in ({"optimizer": ready}, made):
        result = fit_point(8, **options)
        np.testing.assert_allclose(location(result), expected, rtol=1e-5)  # optax means in float32
    asks = optax.chain(optax.sgd(0.02), optax.contrib.reduce_on_plateau())  # for the loss
    result = fit_point(8, optimizer=optax.MultiSteps(asks, every_k_schedule=2))
    np.testing.assert_allclose(location(result), expected, rtol=1e-5)


def test_partials_with_weight_decay():
    def decayed(rate, decay, steps):
        z = -1.0
        for _ in range(steps):
            z -= rate * (CURVATURE * (z - MEAN) + decay * z)
        return z

    def optimizer(rate, decay):
        return optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate))

    result = fit_point(5, optimizer=functools.partial(optimizer, decay=3.0), learning_rate=0.02)
    np.testing.assert_allclose(location(result), decayed(0.02, 3.0, 5), rtol=1e3 * precision())
    adamw = functools.partial(optax.adamw, weight_decay=0.5)
    moved = first_move(point(), (DATA,), optimizer=adamw, learning_rate=0.1)
    np.testing.assert_allclose(moved, 0.1 * (1.0 + 0.5 * 1.0), rtol=1e-5)


# --- transformations ---------------------------------------------------------------------------


def test_jit_equals_the_plain_call(key):
    guide = gx.AutoNormal(regression, X, y, key=key)
    jitted = jax.jit(lambda k, g: gx.fit(k, g, X, y, steps=20))(key, guide)
    plain = gx.fit(key, guide, X, y, steps=20, progress=False)
    assert distance(moving(jitted), moving(plain)) < 1e-5
    np.testing.assert_allclose(jitted.losses, plain.losses, rtol=1e-5)
    # What came out of a jit goes on outside.
    again = jitted.resume(X, y, steps=5, progress=False)
    assert distance(again.guide, plain.resume(X, y, steps=5, progress=False).guide) < 1e-4


def test_jit_over_the_rate_alone():
    plain = fit_point(5, optimizer=optax.adam, learning_rate=0.2)

    def fitted(**options):
        return gx.fit(jax.random.key(0), point(), DATA, steps=5, optimizer=optax.adam, **options)

    jitted = jax.jit(lambda rate: fitted(learning_rate=rate))(0.2)
    assert distance(jitted.guide, plain.guide) < 1e-5
    assert not jitted.state.run.rate.weak_type  # as the argument of the jit is
    closed = jax.jit(lambda: fitted(learning_rate=0.2))()
    assert distance(closed.guide, plain.guide) < 1e-5
    # A result goes into a jit as well.
    more = jax.jit(lambda result: result.resume(DATA, steps=5))(plain)
    expected = plain.resume(DATA, steps=5, progress=False)
    assert distance(moving(more), moving(expected)) < 1e-5 and more.losses.shape == (5,)


@pytest.fixture(scope="module")
def ensemble():
    """Members with keys and rates of their own, constructed and fitted under vmap."""
    keys, rates = jax.random.split(jax.random.key(0), 3), jnp.array([0.3, 0.1, 0.01], float)

    def member(key, rate, progress=None):
        guide = gx.AutoNormal(regression, X, y, key=key)
        return gx.fit(key, guide, X, y, steps=10, learning_rate=rate, progress=progress)

    alone = [member(*pair, progress=False) for pair in zip(keys, rates, strict=True)]
    return alone, jax.vmap(member)(keys, rates)


def at(tree, i):
    """One member."""
    return jax.tree.map(lambda x: x[i], tree)


def test_an_ensemble_equals_its_members(ensemble):
    alone, together = ensemble
    assert together.losses.shape == (3, 10)
    np.testing.assert_array_equal(together.first_bad_step, [-1, -1, -1])
    for i, result in enumerate(alone):
        assert distance(moving(result), at(moving(together), i)) < 1e-5
        np.testing.assert_allclose(at(together.losses, i), result.losses, rtol=1e-5)
    assert distance(alone[0].guide, alone[2].guide) > 0.1


def test_an_ensemble_resumes(ensemble):
    alone, together = ensemble
    more = jax.vmap(lambda result: result.resume(X, y, steps=5))(together)
    np.testing.assert_array_equal(more.state.moving.step, [15, 15, 15])
    for i, result in enumerate(alone):
        resumed = result.resume(X, y, steps=5, progress=False)
        assert distance(resumed.guide, at(more.guide, i)) < 1e-4
        np.testing.assert_allclose(at(more.losses, i), resumed.losses, rtol=1e-4)


def test_an_ensemble_from_guides_that_are_there(ensemble, key):
    alone, together = ensemble
    fitted = jax.vmap(lambda guide: gx.fit(key, guide, X, y, steps=3))(together.guide)
    for i, result in enumerate(alone):
        again = gx.fit(key, result.guide, X, y, steps=3, progress=False)
        assert distance(again.guide, at(fitted.guide, i)) < 1e-4


# --- donation ----------------------------------------------------------------------------------


def test_a_fit_without_nan_passes_the_check_for_nan(key):
    """In one call, step by step with a guard, and jitted: no step that is left out counts."""
    guide = point()
    with jax.debug_nans(True):
        fits = (
            fit_point(3),
            fit_point(3, on_nonfinite="halve"),
            jax.jit(lambda: gx.fit(key, guide, DATA, steps=3))(),
        )
    for result in fits:
        assert np.isfinite(result.losses).all() and result.losses.shape == (3,)


def test_nothing_of_the_callers_is_donated(key):
    guide = gx.AutoNormal(regression, X, y, key=key)
    first = gx.fit(key, guide, X, y, steps=5, progress=False)
    second = first.resume(X, y, steps=5, progress=False)
    held = [X, y, guide, moving(first), first.losses, moving(second), second.losses]
    copies = jax.tree.map(np.array, held)
    again = first.resume(X, y, steps=5, progress=False)
    second.resume(X, y, steps=5, progress=False)
    for start in (guide, first.guide, second.guide):
        gx.fit(key, start, X, y, steps=5, progress=False)
    assert identical(held, copies)  # a donated array raises
    assert identical(moving(again), moving(second))


# --- dtypes ------------------------------------------------------------------------------------


def test_dtypes_stay(key):
    def model(y):
        a = gx.sample("a", distrax.Normal(jnp.zeros((), jnp.float32), jnp.float32(1.0)))
        b = gx.sample("b", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("y", distrax.Normal(a + b, 1.0), obs=y)

    guide = gx.AutoNormal(model, DATA, key=key)
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(guide)]
    wide = jnp.result_type(float)
    assert sorted(map(str, dtypes)) == sorted(["float32"] * 2 + [str(wide)] * 2)
    for optimizer in (None, optax.sgd):
        result = gx.fit(key, guide, DATA, steps=5, optimizer=optimizer, progress=False)
        result = result.resume(DATA, steps=5, progress=False)
        assert [leaf.dtype for leaf in jax.tree.leaves(result.guide)] == dtypes
        assert result.losses.dtype == wide
        assert not identical(result.guide, guide)


# --- forward mode ------------------------------------------------------------------------------


def straight(y):
    """Three times 10 %, written out."""
    z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
    gx.sample("y", distrax.Normal(1.331 * z, 0.5), obs=y)


def looped(y):
    """The same by a loop that only forward mode differentiates."""
    z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
    grow = lambda carry: (carry[0] + 1, 1.1 * carry[1])  # noqa: E731
    _, z = jax.lax.while_loop(lambda carry: carry[0] < 3, grow, (0, z))
    gx.sample("y", distrax.Normal(z, 0.5), obs=y)


def test_forward_mode(key):
    options = {"steps": 6, "optimizer": optax.sgd, "learning_rate": 0.01, "progress": False}
    guides = [gx.AutoNormal(model, DATA, key=key) for model in (straight, looped)]
    assert distance(guides[0].family, guides[1].family) < 1e2 * precision()
    reverse = gx.fit(key, guides[0], DATA, **options)
    forward = gx.fit(key, guides[1], DATA, forward_mode=True, **options)
    assert distance(forward.guide.family, reverse.guide.family) < 1e2 * precision()
    np.testing.assert_allclose(forward.losses, reverse.losses, rtol=1e2 * precision())
    with pytest.raises(ValueError, match="while_loop.*forward_mode=True"):
        gx.fit(key, guides[1], DATA, **options)


# --- trainable ---------------------------------------------------------------------------------


def test_only_what_is_trainable_moves(key):
    guide = gx.AutoNormal(regression, X, y, key=key)
    decay = functools.partial(optax.adamw, weight_decay=0.1)

    def run(where):
        return gx.fit(key, guide, X, y, steps=20, optimizer=decay, trainable=where, progress=False)

    result = run(lambda guide: (guide.family.loc, guide.family.raw_scale["tau"]))
    new, old = result.guide, guide
    assert identical(new.model, old.model)
    assert identical(new.family.raw_scale["beta"], old.family.raw_scale["beta"])
    assert not identical(new.family.raw_scale["tau"], old.family.raw_scale["tau"])
    assert not np.any(new.family.loc["beta"] == old.family.loc["beta"])
    assert float(new.family.loc["tau"]) != float(old.family.loc["tau"])
    # A count, and two moments for each of the three leaves that train.
    assert len(jax.tree.leaves(result.state.moving.opt_state)) == 1 + 2 * 3
    # A resume remembers.
    more = result.resume(X, y, steps=5, progress=False).guide
    assert identical(more.model, old.model) and not identical(more.family.loc, new.family.loc)
    # The fixed leaves count at their values: the gradient is that of the whole.
    model_only = run(lambda guide: guide.model)
    assert identical(model_only.guide.family, old.family)
    assert not identical(model_only.guide.model, old.model)


@pytest.mark.parametrize(
    "where, message",
    [
        (lambda guide: (), "with at least one parameter in them; it returned none"),
        (lambda guide: guide.structure, "parts of the guide itself"),
        (lambda guide: jnp.zeros(3), "parts of the guide itself"),
        (lambda guide: [guide.family.loc, 1.0], "parts of the guide itself"),
    ],
    ids=["nothing", "static", "a foreign array", "a number beside"],
)
def test_trainable_is_refused(where, message):
    with pytest.raises(ValueError, match=message):
        fit_point(3, trainable=where)


def test_trainable_is_a_function():
    for bad in (True, ["loc"]):
        with refused_type("trainable takes a function of the guide.*lambda guide: guide.family"):
            fit_point(3, trainable=bad)
