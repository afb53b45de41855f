"""The words of the model language: shapes, randomness, rows of plates, and what they refuse."""

import contextlib
import gc
import math
import threading

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as npd
import pytest
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx
from assertions import refused_type
from guidax._model.program import as_model
from guidax._model.rows import draw_rows


def normal(loc=0.0, scale=1.0):
    return distrax.Normal(jnp.asarray(loc, float), jnp.asarray(scale, float))


def seeded(model, *args, key=0):
    """Run a model under a seed and return its sites."""
    return gx.handlers.trace(gx.handlers.seed(model, jax.random.key(key))).get_trace(*args)


def run(model, *args):
    """Run a model as guides do, latents drawn from their priors."""
    return as_model(model).run(gx.Batch(*args), jax.random.key(0), lambda site: None, {})


# sample


def test_sample_returns_a_draw_of_the_distribution():
    def model():
        return gx.sample("x", normal(jnp.full(1000, 3.0), 2.0))

    draw = gx.handlers.seed(model, jax.random.key(0))()
    assert draw.shape == (1000,)
    assert abs(float(draw.mean()) - 3.0) < 5 * 2 / 1000**0.5
    assert abs(float(draw.std()) - 2.0) < 5 * 2 / 2000**0.5


def test_sites_draw_from_keys_of_their_own():
    def model():
        return [gx.sample(name, normal()) for name in "abc"]

    first = gx.handlers.seed(model, jax.random.key(0))()
    again = gx.handlers.seed(model, jax.random.key(0))()
    other = gx.handlers.seed(model, jax.random.key(1))()
    assert first == again
    assert len({float(x) for x in [*first, *other]}) == 6


def test_sample_keeps_observations():
    y = np.array([1.0, 2.0], "float32")

    def model():
        return gx.sample("y", normal(), obs=y)

    # An observation needs no key, nor any handler.
    value = model()
    assert isinstance(value, jax.Array) and value.dtype == jnp.float32
    np.testing.assert_array_equal(value, y)
    site = seeded(model)["y"]
    assert site.kind == "sample" and site.observed and site.plates == ()
    assert not seeded(lambda: gx.sample("x", normal()))["x"].observed


def test_an_observation_of_zero_is_one():
    assert seeded(lambda: gx.sample("y", normal(), obs=0))["y"].observed


@pytest.mark.parametrize(
    "dims, batch_shape",
    [((None, None), (2, 3)), ((-1, -2), (2, 3)), ((-2, -1), (3, 2)), ((-3, None), (3, 1, 2))],
    ids=str,
)
def test_nested_plates_take_the_rightmost_free_dims(dims, batch_shape):
    def model():
        with gx.plate("a", 3, dim=dims[0]), gx.plate("b", 2, dim=dims[1]):
            gx.sample("x", normal())
            gx.sample("event", distrax.Independent(normal(jnp.zeros(4)), 1))

    sites = seeded(model)
    assert sites["x"].value.shape == sites["x"].batch_shape == batch_shape
    assert sites["event"].value.shape == (*batch_shape, 4)
    assert sites["event"].batch_shape == batch_shape
    plates = {p.name: (p.dim, p.size, p.rows) for p in sites["x"].plates}
    a, b = (batch_shape.index(n) - len(batch_shape) for n in (3, 2))
    assert plates == {"a": (a, 3, 3), "b": (b, 2, 2)}


def test_sequential_plates_share_a_dim():
    def model():
        with gx.plate("a", 3):
            gx.sample("x", normal())
        with gx.plate("b", 2):
            gx.sample("y", normal())
        return gx.sample("z", normal())

    sites = seeded(model)
    assert [sites[n].value.shape for n in "xyz"] == [(3,), (2,), ()]


# Batch shape of the distribution, then plates from the right, then the shape that results.
BROADCASTS = [
    ((), (3,), (3,)),
    ((3,), (3,), (3,)),
    ((1,), (3,), (3,)),
    ((3,), (3, 2), (2, 3)),
    ((2, 1), (3, 2), (2, 3)),
    ((1, 3), (3, 2), (2, 3)),
    ((1, 1), (3, 2), (2, 3)),
    ((4, 2, 3), (3, 2), (4, 2, 3)),
    ((4, 1, 1), (3, 2), (4, 2, 3)),
    ((4, 1, 3), (3, 2), (4, 2, 3)),
    ((1, 2, 1), (3, 2, 4), (4, 2, 3)),
]


@pytest.mark.parametrize("own, plates, full", BROADCASTS, ids=str)
@pytest.mark.parametrize("events", [False, True], ids=["numbers", "vectors"])
def test_distributions_broadcast_to_plates_and_are_drawn_independently(own, plates, full, events):
    event = (2,) if events else ()
    loc = 10.0 * np.arange(math.prod((*own, *event))).reshape((*own, *event))

    def model():
        dist = normal(loc, 0.5)
        dist = distrax.Independent(dist, 1) if events else dist
        with contextlib.ExitStack() as stack:
            for i, n in enumerate(plates):
                stack.enter_context(gx.plate(f"p{i}", n))
            gx.sample("x", dist)

    value = np.asarray(seeded(model)["x"].value)
    assert value.shape == (*full, *event)
    noise = value - loc
    assert np.abs(noise).max() < 4.0  # so each draw has its own location, ten apart
    assert len(np.unique(noise)) == noise.size  # and noise of its own


def test_independent_observations_may_lead():
    y = np.arange(10.0).reshape(5, 2)

    def model(y):
        with gx.plate("a", 2):
            gx.sample("y", normal(0.0, 2.0), obs=y)

    site = run(model, y).sites["y"]
    assert site.batch_shape == (5, 2)
    expected = -0.5 * (y / 2) ** 2 - np.log(2 * (2 * np.pi) ** 0.5)
    np.testing.assert_allclose(site.log_prob(site.value), expected, rtol=1e-5)


def test_an_observation_may_hold_one_value_for_all_rows():
    def model(y):
        with gx.plate("a", 3):
            gx.sample("y", normal([0.0, 1.0, 2.0]), obs=y)

    site = run(model, jnp.asarray(1.0, float)).sites["y"]
    expected = -0.5 * np.array([1.0, 0.0, 1.0]) - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(site.log_prob(site.value), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(4,), (3, 1), (3, 2)], ids=str)
def test_observations_of_the_wrong_shape_are_refused(shape):
    def model(y):
        with gx.plate("a", 3):
            gx.sample("y", normal(), obs=y)

    with pytest.raises(
        ValueError, match=r"site 'y' got an observed value of shape .*make it \(3,\)"
    ):
        run(model, np.zeros(shape))


def test_values_of_latents_have_the_shape_of_the_site():
    def model():
        gx.sample("x", normal(jnp.zeros(3)))

    def choose(site):
        return jnp.zeros((2, 3))

    with pytest.raises(ValueError, match=r"site 'x' got a value of shape \(2, 3\)"):
        as_model(model).run(gx.Batch(), jax.random.key(0), choose, {})


# param


def test_param_starts_at_its_value():
    def model():
        return gx.param("w", 3), gx.param("v", np.ones(2, "float32")), gx.param("w", 3)

    w, v, again = model()  # no handler is needed
    assert (w, again) == (3.0, 3.0) and w.dtype == jnp.result_type(float)
    assert v.dtype == jnp.float32
    site = seeded(model)["w"]
    assert site.kind == "param" and site.info["constraint"] == gx.constraints.real


def test_param_starts_at_a_function_of_a_key():
    def model():
        return gx.param("w", lambda key: jax.random.normal(key, (3,)), gx.constraints.real)

    first = gx.handlers.seed(model, jax.random.key(0))()
    assert first.shape == (3,)
    np.testing.assert_array_equal(first, gx.handlers.seed(model, jax.random.key(0))())
    assert not np.array_equal(first, gx.handlers.seed(model, jax.random.key(1))())


def test_param_read_twice_is_one_param():
    def model():
        first = gx.param("w", lambda key: jax.random.normal(key))
        gx.factor("f", first - gx.param("w", lambda key: jax.random.normal(key)))

    trace = run(model)
    assert list(trace.of("param")) == ["w"]
    np.testing.assert_array_equal(trace.sites["f"].log_prob(trace.sites["f"].value), 0.0)


# deterministic and factor


def test_deterministic_is_recorded_and_returned():
    def model():
        return gx.deterministic("d", [1.0, 2.0])

    np.testing.assert_array_equal(model(), [1.0, 2.0])
    site = seeded(model)["d"]
    assert site.kind == "deterministic" and not site.observed
    np.testing.assert_array_equal(site.value, [1.0, 2.0])
    assert list(run(model).of("deterministic")) == ["d"]


def test_factor_adds_its_term():
    def model(term):
        z = gx.sample("z", normal())
        gx.factor("f", term * z)

    log_prior = -0.5 * 0.7**2 - 0.5 * np.log(2 * np.pi)
    found = gx.log_joint(model, {"z": jnp.asarray(0.7, float)}, 2.0)
    np.testing.assert_allclose(found, log_prior + 1.4, rtol=1e-5)
    found = gx.log_joint(model, {"z": jnp.asarray(0.7, float)}, np.array([2.0, 3.0]))
    np.testing.assert_allclose(found, log_prior + 3.5, rtol=1e-5)
    site = seeded(model, 2.0)["f"]
    assert site.kind == "sample" and site.observed


def test_factor_in_a_plate_counts_for_each_row():
    def model():
        z = gx.sample("z", normal())
        with gx.plate("a", 6, subsample_size=2) as rows, gx.plate("b", 5):
            gx.factor("f", z)
            gx.factor("g", jnp.ones((5, rows.shape[0])))

    found = gx.log_joint(model, {"z": jnp.asarray(0.7, float)})
    expected = -0.5 * 0.7**2 - 0.5 * np.log(2 * np.pi) + 30 * 0.7 + 30
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# plate and subsample


def test_plate_gives_its_row_numbers():
    with gx.plate("a", 4) as rows:
        np.testing.assert_array_equal(rows, np.arange(4))
    assert jnp.issubdtype(rows.dtype, jnp.integer)


@pytest.mark.parametrize("size, rows", [(5, 1), (5, 4), (5, 5), (100, 3), (1000, 40)])
def test_rows_are_drawn_without_replacement(size, rows):
    keys = jax.random.split(jax.random.key(0), 2000)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: draw_rows(key, size, rows)))(keys))
    assert drawn.shape == (2000, rows)
    assert drawn.min() >= 0 and drawn.max() < size
    assert all(len(set(each)) == rows for each in drawn.tolist())
    # Each row is as likely as any other, also in the first place; the seed is fixed.
    for counts, draws in ((drawn, 2000 * rows), (drawn[:, 0], 2000)):
        count = np.bincount(counts.ravel(), minlength=size)
        p = (rows if counts.ndim == 2 else 1) / size
        spread = np.sqrt(2000 * p * (1 - p)) + 1e-9
        assert np.abs(count - draws / size).max() < 6 * spread + 1


def test_plate_holds_rows_drawn_at_random():
    def model():
        with gx.plate("a", 100, subsample_size=5) as rows:
            x = gx.sample("x", normal())
        return rows, x

    rows, x = gx.handlers.seed(model, jax.random.key(0))()
    assert rows.shape == x.shape == (5,) and len(set(rows.tolist())) == 5
    again, _ = gx.handlers.seed(model, jax.random.key(0))()
    other, _ = gx.handlers.seed(model, jax.random.key(1))()
    np.testing.assert_array_equal(rows, again)
    assert not np.array_equal(rows, other)
    (plate,) = seeded(model)["x"].plates
    assert (plate.size, plate.rows) == (100, 5)


def test_one_plate_object_holds_the_same_rows_each_time():
    def model():
        a, b = gx.plate("a", 100, 5, dim=-1), gx.plate("b", 50, 4, dim=-2)
        with a as first:
            gx.sample("x", normal())
        with b:
            gx.sample("y", normal())
        with b, a as again:
            gx.sample("z", normal())
        return first, again

    first, again = gx.handlers.seed(model, jax.random.key(0))()
    np.testing.assert_array_equal(first, again)
    sites = seeded(model)
    assert [sites[n].value.shape for n in "xyz"] == [(5,), (4, 1), (4, 5)]


@pytest.mark.parametrize("rows", [None, 3])
def test_a_plate_made_outside_of_the_model_is_that_of_each_run(rows):
    outside = gx.plate("a", 8, rows)

    def model(y, plate=None):
        mu = gx.sample("mu", normal())
        with plate or outside as held:
            gx.sample("y", distrax.Normal(mu, 1.0), obs=y[held])
        with plate or outside as again:
            gx.deterministic("again", again - held)

    def inside(y):
        model(y, gx.plate("a", 8, rows))

    y, key = jnp.arange(8.0), jax.random.key(0)
    with jax.checking_leaks():  # it holds nothing of a run when that is over
        guides = [gx.AutoDelta(each, y, key=key) for each in (model, inside)]
        ours, expected = (gx.ELBO()(guide, key, y) for guide in guides)
    np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(guides[0].sample_posterior(key, y)["again"], 0)


def test_one_plate_name_holds_the_same_rows_throughout_a_run():
    def model():
        with gx.plate("a", 100, 5) as first:
            gx.deterministic("first", first)
        with gx.plate("a", 100, 5) as again:
            gx.deterministic("again", again)

    trace = run(model)
    np.testing.assert_array_equal(trace.sites["first"].value, trace.sites["again"].value)
    assert (trace.plates["a"].size, trace.plates["a"].rows) == (100, 5)


def test_subsample_takes_the_rows_of_all_plates_around():
    data = np.arange(60.0).reshape(3, 4, 5)

    def model():
        with gx.plate("a", 4, 2) as a, gx.plate("b", 3, 2) as b:
            both = gx.subsample(data, event_dim=1)
            gx.sample("y", distrax.Independent(normal(jnp.zeros(5)), 1), obs=both)
            # An axis of length 1, or none at all, holds for all rows.
            shared = gx.subsample(data[:, :1], event_dim=1)
            lone = gx.subsample(data[0], event_dim=1)
            number = gx.subsample(3.0)
        outside = gx.subsample(data)
        return a, b, both, shared, lone, number, outside

    a, b, both, shared, lone, number, outside = map(
        np.asarray, gx.handlers.seed(model, jax.random.key(0))()
    )
    np.testing.assert_array_equal(both, data[b][:, a])
    np.testing.assert_array_equal(shared, data[b][:, :1])
    np.testing.assert_array_equal(lone, data[0][a])
    assert number == 3.0
    np.testing.assert_array_equal(outside, data)


def test_subsample_in_a_whole_plate_gives_everything():
    def model():
        with gx.plate("a", 4):
            return gx.subsample(np.arange(4)), gx.subsample(np.ones(1))

    rows, shared = model()
    np.testing.assert_array_equal(rows, np.arange(4))
    np.testing.assert_array_equal(shared, np.ones(1))


# prng_key


def test_data_that_are_left_out_have_no_rows():
    with gx.plate("data", 5):
        assert gx.subsample(None) is None


def test_prng_key_gives_a_new_key_each_time():
    def model():
        return gx.prng_key(), gx.prng_key()

    a, b = gx.handlers.seed(model, jax.random.key(0))()
    again, _ = gx.handlers.seed(model, jax.random.key(0))()
    assert jax.random.key_data(a).tolist() != jax.random.key_data(b).tolist()
    assert jax.random.key_data(a).tolist() == jax.random.key_data(again).tolist()


# The program around the words.


def test_a_seeded_model_lives_under_every_transformation():
    def model(loc):
        with gx.plate("a", 3):
            x = gx.sample("x", normal(loc))
        return jnp.sum(x)

    def total(key, loc):
        return gx.handlers.seed(model, key)(loc)

    keys = jax.random.split(jax.random.key(0), 2)
    loc = jnp.asarray(0.5, float)
    with jax.checking_leaks():
        batched = jax.jit(jax.vmap(total, (0, None)))(keys, loc)
        grad = jax.grad(total, 1)(keys[0], loc)
    np.testing.assert_allclose(batched, [total(k, loc) for k in keys], rtol=1e-5)
    np.testing.assert_allclose(grad, 3.0, rtol=1e-5)


def test_an_error_inside_leaves_no_plate_and_no_handler_behind():
    with pytest.raises(RuntimeError, match="inside"), gx.plate("a", 3):
        raise RuntimeError("inside")

    def model():
        with gx.plate("a", 3):
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        gx.handlers.seed(model, jax.random.key(0))()
    assert seeded(lambda: gx.sample("x", normal()))["x"].plates == ()
    with pytest.raises(ValueError, match="needs a random key"):
        gx.sample("x", normal())


def test_handlers_of_one_thread_are_not_seen_in_another():
    errors = []

    def draw():
        try:
            gx.sample("x", normal())
        except ValueError as error:
            errors.append(str(error))

    with gx.handlers.seed(key=jax.random.key(0)), gx.plate("a", 3):
        assert gx.sample("y", normal()).shape == (3,)
        thread = threading.Thread(target=draw)
        thread.start()
        thread.join()
    assert len(errors) == 1 and "needs a random key" in errors[0]


# Errors.


def twice(word):
    def model():
        for _ in range(2):
            word()

    return model


def in_plates(*plates, dist=None):
    """Return a model with one site inside plates, given by their arguments."""

    def model():
        with contextlib.ExitStack() as stack:
            for args, kwargs in plates:
                stack.enter_context(gx.plate(*args, **kwargs))
            gx.sample("x", normal() if dist is None else dist)

    return model


def surrounded():
    a = gx.plate("a", 3)
    with a:
        gx.sample("x", normal())
    with gx.plate("b", 2), a:
        gx.sample("y", normal())


def short_data():
    with gx.plate("a", 6, 2):
        gx.subsample(np.arange(5))


def short_data_of_a_whole_plate():
    with gx.plate("a", 5):
        gx.subsample(np.arange(4))


def wrong_type(message, parameter):
    """Match our message, or that of the type checker that may be on and stands before it."""
    return f"{message}|typechecking parameter '{parameter}'"


ERRORS = {
    "no name": (
        lambda: gx.sample(3, normal()),
        TypeError,
        wrong_type("sample takes a name first, a string; got 3", "name"),
    ),
    "no name of a param": (
        lambda: gx.param(3, 1.0),
        TypeError,
        wrong_type("param takes a name first, a string; got 3", "name"),
    ),
    "no name of a plate": (
        lambda: gx.plate(3, 3),
        TypeError,
        wrong_type("plate takes a name first, a string; got 3", "name"),
    ),
    "no name of a deterministic": (
        lambda: gx.deterministic(3, 1.0),
        TypeError,
        wrong_type("deterministic takes a name first, a string; got 3", "name"),
    ),
    "no name of a factor": (
        lambda: gx.factor(3, 1.0),
        TypeError,
        wrong_type("factor takes a name first, a string; got 3", "name"),
    ),
    "no distribution": (lambda: gx.sample("x", 3.0), TypeError, "site 'x': 3.0 is not a distrib"),
    "a class": (lambda: gx.sample("x", distrax.Normal), TypeError, "site 'x': .* is not a distrib"),
    "numpyro": (
        lambda: gx.sample("x", npd.Normal(0.0, 1.0)),
        TypeError,
        r"site 'x' has a NumPyro distribution, Normal.*gx\.from_numpyro\(model\)",
    ),
    "no array to observe": (
        lambda: gx.sample("x", normal(), obs={"y": 1.0}),
        TypeError,
        wrong_type("the observation of site 'x' is an array or a number; got dict", "obs"),
    ),
    "no array to record": (
        lambda: gx.deterministic("x", {"y": 1.0}),
        TypeError,
        "the value of deterministic 'x' is an array or a number; got dict: {'y': 1.0}",
    ),
    "nothing to record": (
        lambda: gx.deterministic("x", None),
        TypeError,
        "the value of deterministic 'x' is an array or a number; got NoneType: None",
    ),
    "no term": (
        lambda: gx.factor("x", "high"),
        TypeError,
        wrong_type("the term of factor 'x' is an array or a number; got str", "log_factor"),
    ),
    "a complex term": (
        lambda: gx.factor("x", 1j),
        TypeError,
        "the term of factor 'x' is complex",
    ),
    "no start": (
        lambda: gx.param("x", "high"),
        TypeError,
        wrong_type("the starting value of param 'x' is an array or a number; got str", "init"),
    ),
    "no constraint": (
        lambda: gx.param("w", 1.0, constraint="positive"),
        TypeError,
        wrong_type("param 'w': constraint takes one of gx.constraints; got 'pos", "constraint"),
    ),
    "float size": (
        lambda: gx.plate("a", 3.0),
        TypeError,
        wrong_type("plate 'a': size must be a Python integer.*got 3.0", "size"),
    ),
    "float rows": (
        lambda: gx.plate("a", 3, 2.0),
        TypeError,
        wrong_type("plate 'a': subsample_size must be a Python integer.*got 2.0", "subsample_size"),
    ),
    "bool size": (lambda: gx.plate("a", True), TypeError, "plate 'a': size must be .* got True"),
    "no rows": (lambda: gx.plate("a", 3, 0), ValueError, "plate 'a' holds 0 of 3 rows"),
    "no size": (lambda: gx.plate("a", 0), ValueError, "plate 'a' has no rows: its size is 0"),
    "too many rows": (lambda: gx.plate("a", 3, 4), ValueError, "holds 4 of 3 rows: it needs 1 <="),
    "positive dim": (
        lambda: gx.plate("a", 3, dim=0),
        ValueError,
        "plate 'a': dim .*negative; got 0",
    ),
    "floating dim": (
        lambda: gx.plate("a", 3, dim=-1.0),
        TypeError,
        wrong_type("plate 'a': dim is a Python integer, such as -1; got -1.0", "dim"),
    ),
    "short data of a whole plate": (
        short_data_of_a_whole_plate,
        ValueError,
        r"inside plate 'a' of size 5 got data of shape \(4,\), which has 4 rows",
    ),
    "short data": (
        short_data,
        ValueError,
        r"inside plate 'a' of size 6 got data of shape \(5,\), which has 5 rows",
    ),
    "wrong batch": (
        in_plates((("a", 3), {}), dist=normal(jnp.zeros(4))),
        ValueError,
        r"site 'x' has a distribution of batch shape \(4,\), but plate 'a' holds 3 rows at dim -1",
    ),
    "wrong batch on the left": (
        in_plates((("a", 3), {}), (("b", 2), {}), dist=normal(jnp.zeros((3, 3)))),
        ValueError,
        "plate 'b' holds 2 rows at dim -2: give it 1 or 2 entries",
    ),
    "taken dim": (
        in_plates((("a", 3), {}), (("b", 2), {"dim": -1})),
        ValueError,
        "plate 'b' takes dim -1, which a plate around it has already",
    ),
    "surrounded by the same dim": (
        surrounded,
        ValueError,
        "plate 'b' at dim -1 surrounds another plate at the same dim around 'y'",
    ),
    "two samples": (
        twice(lambda: gx.sample("x", normal())),
        ValueError,
        "two sites are named 'x': give each",
    ),
    "two deterministics": (
        twice(lambda: gx.deterministic("x", 1.0)),
        ValueError,
        "two sites are named 'x'",
    ),
    "two factors": (twice(lambda: gx.factor("x", 1.0)), ValueError, "two sites are named 'x'"),
    "param and sample": (
        lambda: [gx.param("x", 1.0), gx.sample("x", normal())],
        ValueError,
        "two sites are named 'x'",
    ),
    "sample and param": (
        lambda: [gx.sample("x", normal()), gx.param("x", 1.0)],
        ValueError,
        "two sites are named 'x'",
    ),
}


@pytest.mark.parametrize("runner", [seeded, run], ids=["handlers", "guides"])
@pytest.mark.parametrize("name", ERRORS)
def test_errors(name, runner):
    model, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        runner(model)


def test_a_size_that_is_traced_is_to_be_static():
    def model(n):
        z = gx.sample("z", normal())
        with gx.plate("a", n):
            gx.factor("f", z)

    latents = {"z": jnp.zeros(())}
    with pytest.raises(TypeError, match=wrong_type(r"gx\.static\(n\)", "size")):
        gx.log_joint(model, latents, np.asarray(3))
    assert jnp.isfinite(gx.log_joint(model, latents, 3))


@pytest.mark.parametrize(
    "word, message",
    [
        (lambda: gx.sample("x", normal()), r"sample 'x' needs a random key.*gx\.handlers\.seed"),
        (lambda: gx.prng_key(), "prng_key .*needs a random key"),
        (lambda: gx.param("w", lambda key: key), "needs a random key"),
        (lambda: gx.plate("a", 9, 2).__enter__(), "needs a random key"),
    ],
)
def test_errors_of_a_missing_key(word, message):
    with pytest.raises(ValueError, match=message):
        word()


@pytest.mark.parametrize(
    "second, message",
    [
        ({"size": 4}, "'a' appears with size 3 at dim -1 and with size 4 at dim -1"),
        ({"dim": -2}, "'a' appears with size 3 at dim -1 and with size 3 at dim -2"),
        ({"subsample_size": 2}, "'a' appears with size 3"),
    ],
    ids=["size", "dim", "rows"],
)
def test_one_plate_name_is_one_plate(second, message):
    def model():
        with gx.plate("a", 3):
            gx.sample("x", normal())
        with gx.plate("a", **{"size": 3, **second}):
            gx.sample("y", normal())

    with pytest.raises(ValueError, match=message):
        run(model)


def test_a_plate_inside_itself_is_refused():
    def model():
        with gx.plate("a", 3), gx.plate("a", 3):
            gx.sample("x", normal())

    with pytest.raises(
        ValueError, match="'a' appears with size 3 at dim -.* one name is one plate"
    ):
        run(model)


# Memory.


def test_runs_leave_nothing_behind():
    weights, y = jnp.zeros(10_000), np.arange(6.0)

    def model(y):
        gx.param("w", 1.0, gx.constraints.positive)
        tau = gx.sample("tau", tfd.HalfNormal(jnp.ones(())))
        gx.sample("v", distrax.Independent(normal(weights, 1.0), 1))
        mixture = tfd.MixtureSameFamily(
            tfd.Categorical(probs=jnp.full(2, 0.5)), tfd.Normal(jnp.zeros(2), tau)
        )
        gx.sample("m", mixture)
        with gx.plate("data", 6, subsample_size=2):
            z = gx.sample("z", distrax.Transformed(normal(0.0, tau), shift(tau)))
            gx.sample("y", normal(z), obs=gx.subsample(y))

    def runs(n):
        for _ in range(n):
            seeded(model, y)
            run(model, y)

    def left():
        gc.collect()
        return len(gc.get_objects()), len(jax.live_arrays())

    runs(10)
    objects, arrays = left()
    runs(50)
    more_objects, more_arrays = left()
    assert more_arrays - arrays < 5
    assert more_objects - objects < 100  # a registered pytree class a run would be thousands


def shift(by):
    return distrax.ScalarAffine(by, jnp.ones(()))


def test_a_site_holds_one_array_of_known_shape():
    joint = tfd.JointDistributionSequential([tfd.Normal(0.0, 1.0), tfd.Normal(0.0, 1.0)])
    with pytest.raises(TypeError, match="site 'x': a site holds one array"):
        gx.sample("x", joint)


def test_a_traced_plate_size_names_the_way_out():
    def model(n):
        with gx.plate("rows", n):
            return gx.sample("x", distrax.Normal(0.0, 1.0))

    with refused_type("'rows': size must be a Python integer.*gx.static"):
        jax.jit(lambda n: gx.handlers.seed(model, jax.random.key(0))(n))(3)
