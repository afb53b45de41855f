"""What stops a fit: numbers that are not finite, and arguments that make no sense."""

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import guidax as gx
from assertions import distance, identical, refused_type
from models import ConjugateNormal

DATA = jnp.asarray(ConjugateNormal.y, float)
DESCENT = {"optimizer": optax.sgd, "learning_rate": 0.02}


def model_of(loc, **params):
    """Return a model whose observation is at a function of `a` and of its params."""

    def model(y):
        weights = {name: gx.param(name, value) for name, value in params.items()}
        a = gx.sample("a", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("b", distrax.Normal(a, 1.0))
        gx.sample("y", distrax.Normal(loc(a, **weights), 0.5), obs=y)

    return model


def no_value(a):
    """NaN beyond 2.5."""
    return jnp.where(a > 2.5, jnp.nan, a)


def no_gradient(a):
    """The usual slip: the branch that is not taken has a NaN in its derivative."""
    return -jnp.where(a < 2.5, jnp.sqrt(2.5 - a), 0.0)


def no_gradient_of_w(a, w):
    """The same in a param."""
    return a + no_gradient(w)


FAR = jnp.asarray(5.0, float)  # where the observation pulls to


def build(model, a=0.0, guide=gx.AutoDelta):
    """A guide that starts where it is told; a point's loss has no noise."""
    start = gx.init_to_value({"a": a, "b": 0.0})
    return guide(model, FAR, key=jax.random.key(0), init_loc_fn=start)


def steps_of_descent():
    """How often `a` moves before it is beyond 2.5, in plain Python."""
    a, b, count = 0.0, 0.0, 0
    while a <= 2.5:
        a, b = a - 0.02 * (a + (a - b) + (a - 5.0) / 0.25), b - 0.02 * (b - a)
        count += 1
    return count


@pytest.fixture(scope="module")
def broken():
    """The error of a run whose loss turns NaN, and the guide that it began with."""
    guide = build(model_of(no_value))
    with pytest.raises(gx.NonFiniteError) as caught:
        gx.fit(jax.random.key(0), guide, FAR, steps=1500, progress=False, **DESCENT)
    return caught.value, guide


def test_the_error_carries_the_last_good_state(broken):
    error, guide = broken
    step = steps_of_descent()
    assert 1 < step < 20
    assert error.step == step == int(error.result.first_bad_step)
    assert error.sites == ("y",)
    assert f"not finite at step {step} (loss nan)" in str(error)
    assert "'y'" in str(error) and "'a'" not in str(error) and ".result.guide" in str(error)
    assert isinstance(error, FloatingPointError)
    clean = gx.fit(jax.random.key(0), guide, FAR, steps=step, progress=False, **DESCENT)
    assert identical(error.result.guide, clean.guide)
    old, new = error.result.state.moving, clean.state.moving
    assert identical((old.opt_state, old.step), (new.opt_state, new.step))
    assert error.result.losses.shape == (step + 1,)
    assert identical(error.result.losses[:-1], clean.losses)
    assert bool(jnp.isnan(error.result.losses[-1]))
    assert bool(error.result.guide.is_finite())


def test_progress_does_not_change_where_it_stops(broken):
    error, guide = broken
    seen = []
    with pytest.raises(gx.NonFiniteError) as caught:
        gx.fit(
            jax.random.key(0),
            guide,
            FAR,
            steps=1500,
            progress=lambda step, loss: seen.append((step, loss)),
            **DESCENT,
        )
    assert identical(caught.value.result, error.result)
    assert all(np.isfinite(loss) for _, loss in seen)


def test_a_broken_run_does_not_resume(broken):
    error, _ = broken
    with pytest.raises(ValueError, match=f"stopped at step {error.step}.*new fit from result.gui"):
        error.result.resume(FAR, steps=5, progress=False)


def test_double_precision_does_not_resume_where_it_is_off(key):
    with jax.enable_x64(True):
        y = jnp.asarray(ConjugateNormal.y, jnp.float64)
        guide = gx.AutoNormal(ConjugateNormal.model, y, key=key)
        double = gx.fit(key, guide, y, steps=2, progress=False)
    with jax.enable_x64(False), pytest.raises(ValueError, match="double precision.*switched off"):
        double.resume(DATA, steps=2, progress=False)


def test_a_run_breaks_after_a_resume(broken):
    """Steps count from the first call, and the losses are those of the last."""
    error, guide = broken
    first = gx.fit(jax.random.key(0), guide, FAR, steps=2, progress=False, **DESCENT)
    with pytest.raises(gx.NonFiniteError) as caught:
        first.resume(FAR, steps=50, progress=False)
    assert caught.value.step == error.step
    assert identical(caught.value.result.guide, error.result.guide)
    assert identical(caught.value.result.losses, error.result.losses[2:])


def test_a_gradient_that_is_not_finite():
    """The loss is, so only the gradient tells: of the one term that computes it."""
    guide = build(model_of(no_gradient))
    with pytest.raises(gx.NonFiniteError, match=r"\['y'\], or in its gradient") as caught:
        gx.fit(jax.random.key(0), guide, FAR, steps=100, progress=False, **DESCENT)
    error = caught.value
    assert error.sites == ("y",)
    assert bool(jnp.all(jnp.isfinite(error.result.losses)))
    assert error.result.losses.shape == (error.step + 1,)
    assert float(error.result.guide.family.loc["a"]) > 2.5


def test_an_optimizer_that_hides_a_bad_gradient():
    """The run stops all the same: what such a fit came to would mean nothing."""
    guide = build(model_of(no_gradient))
    blind = optax.chain(optax.zero_nans(), optax.sgd(0.02))
    with pytest.raises(gx.NonFiniteError, match="or in its gradient") as caught:
        gx.fit(jax.random.key(0), guide, FAR, steps=100, optimizer=blind, progress=False)
    assert float(caught.value.result.guide.family.loc["a"]) > 2.5


def test_a_gradient_of_a_param_that_is_not_finite():
    guide = build(model_of(no_gradient_of_w, w=3.0))
    with pytest.raises(gx.NonFiniteError, match=r"\['y'\], or in its gradient") as caught:
        gx.fit(jax.random.key(0), guide, FAR, steps=100, progress=False, **DESCENT)
    assert caught.value.sites == ("y",) and caught.value.step == 0
    assert identical(caught.value.result.guide, guide)


def test_a_model_that_only_forward_mode_differentiates():
    def loc(a):
        count = jax.lax.while_loop(lambda c: c[0] < 1, lambda c: (c[0] + 1, c[1]), (0, a))
        return no_value(count[1])

    guide = build(model_of(loc))
    options = {**DESCENT, "forward_mode": True, "progress": False}
    with pytest.raises(gx.NonFiniteError) as caught:
        gx.fit(jax.random.key(0), guide, FAR, steps=100, **options)
    assert caught.value.sites == ("y",) and caught.value.step == steps_of_descent()


@pytest.mark.parametrize(
    ("make", "raw_scale", "sites"),
    [
        (gx.AutoNormal, lambda f: f.raw_scale["b"], ("b",)),
        (gx.AutoDiagonalNormal, lambda f: f.raw_scale, ("a", "b")),  # drawn jointly
    ],
)
def test_a_density_of_the_guide_that_is_not_finite(make, raw_scale, sites):
    """A scale that has underflowed to zero: every term of the model is finite."""
    guide = build(model_of(lambda a: a), guide=make)
    flat = eqx.tree_at(lambda g: raw_scale(g.family), guide, replace_fn=lambda x: x - 1e4)
    with pytest.raises(gx.NonFiniteError) as caught:
        gx.fit(jax.random.key(0), flat, FAR, steps=10, progress=False, **DESCENT)
    assert caught.value.step == 0 and caught.value.sites == sites


def test_an_update_that_is_not_finite():
    """Loss and gradient are, so no site is to blame."""
    guide = build(model_of(lambda a: a))
    huge = float(jnp.finfo(jnp.result_type(float)).max) / 2
    with pytest.raises(gx.NonFiniteError, match="in the update: the learning rate may") as caught:
        gx.fit(
            jax.random.key(0),
            guide,
            FAR,
            steps=10,
            optimizer=optax.sgd,
            learning_rate=huge,
            progress=False,
        )
    assert caught.value.sites == () and caught.value.step == 0
    assert identical(caught.value.result.guide, guide)
    assert caught.value.result.losses.shape == (1,)


def test_several_particles_and_a_distribution():
    """One bad particle is enough, and the draws that are searched are those of the step."""
    guide = build(model_of(no_value), guide=gx.AutoNormal)
    with pytest.raises(gx.NonFiniteError) as caught:
        gx.fit(
            jax.random.key(0),
            guide,
            FAR,
            steps=500,
            progress=False,
            objective=gx.ELBO(num_particles=5),
            **DESCENT,
        )
    assert caught.value.sites == ("y",)
    assert float(caught.value.result.guide.family.loc["a"]) < 2.5


def test_a_bad_step_of_a_streamed_batch():
    """The batch that is searched is the one of the step."""

    def model(y):
        a = gx.sample("a", distrax.Normal(jnp.zeros(()), 1.0))
        with gx.plate("rows", 8, subsample_size=2):
            gx.sample("y", distrax.Normal(a, 1.0), obs=y)
            gx.sample("root", distrax.Normal(jnp.sqrt(y), 1.0), obs=y)

    def batch(step):
        return gx.Batch(jnp.asarray([1.0, -1.0 if step == 3 else 1.0], float))

    guide = gx.AutoDelta(model, batch(0), key=jax.random.key(0))
    with pytest.raises(gx.NonFiniteError) as caught:
        gx.fit(jax.random.key(0), guide, batches=batch, steps=9, progress=False, **DESCENT)
    error = caught.value
    assert error.step == 3 and error.sites == ("root",)
    clean = gx.fit(jax.random.key(0), guide, batches=batch, steps=3, progress=False, **DESCENT)
    assert identical(error.result.guide, clean.guide)
    assert identical(error.result.losses[:3], clean.losses) and error.result.losses.shape == (4,)


# --- ensembles ---------------------------------------------------------------------------------


def test_a_bad_member_harms_no_other(broken):
    error, guide = broken
    starts, pulls = jnp.array([0.0, 0.0, 1.0], float), jnp.array([5.0, 0.0, 5.0], float)

    def member(a, pull, progress=None):
        moved = eqx.tree_at(lambda guide: guide.family.loc["a"], guide, a)
        return gx.fit(jax.random.key(0), moved, pull, steps=30, progress=progress, **DESCENT)

    many = jax.vmap(member)(starts, pulls)
    bad = np.asarray(many.first_bad_step)
    assert bad[0] == error.step and bad[1] == -1 and 0 <= bad[2] < error.step
    assert bool(jnp.all(jax.vmap(lambda guide: guide.is_finite())(many.guide)))
    at = lambda tree, i: jax.tree.map(lambda x: x[i], tree)  # noqa: E731
    assert distance(at(many.guide, 0), error.result.guide) < 1e-5
    assert distance(at(many.guide, 1), member(starts[1], pulls[1], False).guide) < 1e-5
    finite = np.isfinite(many.losses)
    np.testing.assert_array_equal(finite.sum(axis=1), [bad[0], 30, bad[2]])
    assert finite[0, : bad[0]].all()
    # Going on, the bad ones stay where they are and the others move.
    more = jax.vmap(lambda r, pull: r.resume(pull, steps=5))(many, pulls + 1)
    np.testing.assert_array_equal(more.first_bad_step, bad)
    np.testing.assert_array_equal(more.state.moving.step, [bad[0], 35, bad[2]])
    same = [identical(at(more.guide, i), at(many.guide, i)) for i in range(3)]
    assert same == [True, False, True]
    with pytest.raises(ValueError, match=r"ensemble.*jax\.vmap\(lambda result: result\.resume"):
        many.resume(FAR, steps=5, progress=False)


# --- arguments ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guide():
    return gx.AutoDelta(ConjugateNormal.model, DATA, key=jax.random.key(0))


@pytest.fixture(scope="module")
def result(guide):
    return gx.fit(jax.random.key(0), guide, DATA, steps=3, progress=False)


@pytest.mark.parametrize("steps", [0, -1])
def test_steps_are_at_least_one(guide, result, key, steps):
    message = f"steps is at least 1; got {steps}"
    with pytest.raises(ValueError, match=message):
        gx.fit(key, guide, DATA, steps=steps, progress=False)
    with pytest.raises(ValueError, match=message):
        result.resume(DATA, steps=steps, progress=False)


@pytest.mark.parametrize("steps", [3.0, True, "3", np.ones(())], ids=repr)
def test_steps_are_an_integer(guide, result, key, steps):
    with refused_type("steps is a Python integer; got"):
        gx.fit(key, guide, DATA, steps=steps, progress=False)
    with refused_type("steps is a Python integer; got"):
        result.resume(DATA, steps=steps, progress=False)


def test_steps_are_not_traced(guide, key):
    with refused_type("steps is a Python integer; got"):
        jax.jit(lambda steps: gx.fit(key, guide, DATA, steps=steps))(3)


def test_key_and_guide_in_their_places(guide, key):
    with refused_type("fit takes a random key, then a guide; got AutoDelta and"):
        gx.fit(guide, key, DATA, steps=3, progress=False)
    with refused_type("random key, then a guide; got .* and method"):
        gx.fit(key, ConjugateNormal.model, DATA, steps=3, progress=False)
    for bad in (0, None):
        with refused_type(r"random key first, such as jax\.random\.key\(0\); got"):
            gx.fit(bad, guide, DATA, steps=3, progress=False)


def test_leaves_of_the_guide_are_arrays_of_floats(guide, key):
    where = lambda guide: guide.family.loc["z"]  # noqa: E731
    for bad, got in ((7.0, "7.0"), (jnp.asarray(7), "an array of int")):
        moved = eqx.tree_at(where, guide, bad)
        with pytest.raises(TypeError, match=rf"guide\.family\.loc\['z'\] is {got}"):
            gx.fit(key, moved, DATA, steps=3, progress=False)
    moved = eqx.tree_at(where, guide, np.asarray(7.0, float))
    assert gx.fit(key, moved, DATA, steps=3, progress=False).losses.shape == (3,)


def test_guides_are_built_with_a_random_key(guide):
    for bad in (3, None, jnp.asarray(3)):
        with refused_type(
            r"AutoNormal takes key=, a random key, such as jax\.random\.key\(0\); got"
        ):
            gx.AutoNormal(ConjugateNormal.model, DATA, key=bad)
    words = jax.random.PRNGKey(0)
    assert gx.AutoNormal(ConjugateNormal.model, DATA, key=words).is_finite()


def test_the_rate_is_a_number(guide, key):
    for bad in ("fast", [0.1, [0.2]], {}):
        with refused_type("learning_rate is a positive number, or a schedule; got"):
            gx.fit(key, guide, DATA, steps=3, progress=False, learning_rate=bad)


@pytest.mark.parametrize("optimizer", [None, optax.adam], ids=["default", "adam"])
def test_a_schedule_gives_one_real_number(guide, key, optimizer):
    options = {"steps": 3, "progress": False, "optimizer": optimizer}
    for bad in ("fast", None, jnp.ones(2), 1j, True):
        with refused_type("what the schedule learning_rate returns is"):
            gx.fit(key, guide, DATA, learning_rate=lambda step, bad=bad: bad, **options)
    for good in (1, 0.01, np.float32(0.01), jnp.asarray(0.01)):
        gx.fit(key, guide, DATA, learning_rate=lambda step, good=good: good, **options)


def test_objective_is_an_instance(guide, key):
    with refused_type(r"objective is one such as gx\.ELBO\(\) \(with parentheses: gx\.ELBO\(\)\)"):
        gx.fit(key, guide, DATA, steps=3, progress=False, objective=gx.ELBO)
    with refused_type(r"objective is one such as gx\.ELBO\(\); got 'elbo'"):
        gx.fit(key, guide, DATA, steps=3, progress=False, objective="elbo")


def test_progress_is_a_flag_or_a_function(guide, result, key):
    for bad in ("bar", 100):
        with refused_type("progress is None or True for a bar.*or a function.*; got"):
            gx.fit(key, guide, DATA, steps=3, progress=bad)
        with refused_type("progress is None or True for a bar.*or a function.*; got"):
            result.resume(DATA, steps=3, progress=bad)


def test_options_are_checked_before_anything_compiles(guide, key, monkeypatch):
    def refuse(*args):
        raise AssertionError("the first state is made")

    monkeypatch.setattr("guidax._fit.fit.first_state", refuse)
    for option in ({"progress": "bar"}, {"checkpoint": "run"}):
        with refused_type("progress is None or True|checkpoint takes a gx.Checkpoint"):
            gx.fit(key, guide, DATA, steps=3, **option)


@pytest.mark.parametrize("rate", [0.0, -0.1, float("nan"), float("inf"), 0, np.float64(-1)])
def test_rate_is_positive(guide, key, rate):
    for optimizer in (None, optax.adam):
        with pytest.raises(ValueError, match="learning_rate is a positive number, or a schedule"):
            gx.fit(
                key,
                guide,
                DATA,
                steps=3,
                progress=False,
                learning_rate=rate,
                optimizer=optimizer,
            )


def test_rate_stands_beside_no_ready_optimizer(guide, key):
    ready = {"steps": 3, "progress": False, "optimizer": optax.adam(0.1)}
    for rate in (0.1, lambda step: 0.1):
        with pytest.raises(ValueError, match="learning rate in it.*optimizer=optax.adam"):
            gx.fit(key, guide, DATA, learning_rate=rate, **ready)


def test_optimizer_is_one(guide, key):
    for bad in ("adam", 0.1):
        with refused_type("optimizer takes a function of the learning rate, such as optax.adam"):
            gx.fit(key, guide, DATA, steps=3, progress=False, optimizer=bad)
    for bad in (lambda rate: rate, lambda rate: optax.adam, lambda rate: None):
        with pytest.raises(TypeError, match="from a learning rate to one.*it returned"):
            gx.fit(key, guide, DATA, steps=3, progress=False, optimizer=bad)


def test_no_bar_inside_a_transformation(guide, key):
    for progress in (True, lambda step, loss: None):
        with pytest.raises(ValueError, match="progress is shown by the host.*progress=None"):
            jax.jit(lambda k, p=progress: gx.fit(k, guide, DATA, steps=3, progress=p))(key)
    hidden = jax.jit(lambda k: gx.fit(k, guide, DATA, steps=3, progress=False).losses)(key)
    assert hidden.shape == (3,)


def test_a_model_parameter_named_like_an_option(key):
    def model(y, steps):
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("y", distrax.Normal(z * steps, 1.0), obs=y)

    guide = gx.AutoDelta(model, FAR, 3, key=key, init_loc_fn=gx.init_to_value({"z": 0.0}))
    with pytest.raises(TypeError, match=r"parameters \['steps'\].*options.*gx\.Batch"):
        gx.fit(key, guide, FAR, 3, steps=2, progress=False)
    # As one batch: the model's steps are 3, those of the fit 2. Descent from 0 by 0.02 * 3 * 5.
    batch = gx.Batch(FAR, steps=3)
    result = gx.fit(key, guide, batch, steps=2, progress=False, **DESCENT)
    assert result.losses.shape == (2,)
    once = gx.fit(key, guide, batch, steps=1, progress=False, **DESCENT)
    np.testing.assert_allclose(once.guide.family.loc["z"], 0.02 * 3 * 5, rtol=1e-5)
    with pytest.raises(TypeError, match=r"parameters \['steps'\].*gx\.Batch"):
        result.resume(FAR, 3, steps=2, progress=False)
    assert result.resume(batch, steps=2, progress=False).losses.shape == (2,)
    with pytest.raises(TypeError, match="nothing may stand beside"):
        gx.fit(key, guide, batch, FAR, steps=2, progress=False)


def test_arguments_fit_the_model(guide, key):
    with pytest.raises(TypeError, match=r"do not fit the model model\(y\)"):
        gx.fit(key, guide, DATA, DATA, steps=2, progress=False)
    with pytest.raises(TypeError, match=r"do not fit the model model\(y\)"):
        gx.fit(key, guide, x=DATA, steps=2, progress=False)
