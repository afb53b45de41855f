"""Handlers: each does to a model what NumPyro's of that name does, and is equal by value."""

import functools

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as npd
import pytest
from numpyro import handlers as nph
from numpyro.infer.util import log_density
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx
from assertions import refused_type
from guidax import handlers as gxh
from guidax._model.program import as_model
from models import NETWORK_DATA, Network, new_traces, regression, regression_data

KEY = jax.random.key(0)
PRECISE = dict(rtol=1e-10) if jnp.result_type(float) == jnp.float64 else dict(rtol=2e-5)


def f(x):
    return jnp.asarray(x, float)


# One model in both languages; `inside` is a handler around one site of it.


def ours(x, y=None, inside=None):
    """Have one of everything: latents, a param, a plate, a deterministic site and a factor."""
    loc = gx.sample("loc", distrax.Normal(f(0.0), f(2.0)))
    tau = gx.sample("tau", tfd.HalfNormal(f(1.0)))
    weight = gx.param("weight", 0.5, gx.constraints.positive)
    gx.sample("unused", distrax.Normal(f(1.0), f(3.0)))
    with gx.plate("data", 4):
        z = gx.sample("z", distrax.Normal(loc, tau))
        with inside or gxh.scale(scale=1.0):
            gx.sample("y", distrax.Normal(weight * z + x, f(0.5)), obs=y)
    gx.deterministic("sum", z.sum())
    gx.factor("penalty", -0.1 * loc**2)
    return loc


def theirs(x, y=None, inside=None):
    loc = numpyro.sample("loc", npd.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", npd.HalfNormal(1.0))
    weight = numpyro.param("weight", 0.5, constraint=npd.constraints.positive)
    numpyro.sample("unused", npd.Normal(1.0, 3.0))
    with numpyro.plate("data", 4):
        z = numpyro.sample("z", npd.Normal(loc, tau))
        with inside or nph.scale(scale=1.0):
            numpyro.sample("y", npd.Normal(weight * z + x, 0.5), obs=y)
    numpyro.deterministic("sum", z.sum())
    numpyro.factor("penalty", -0.1 * loc**2)
    return loc


X = np.array([0.1, -0.4, 0.7, 1.1])
Y = np.array([0.3, 1.4, -0.8, 0.9])
LATENTS = {"loc": 0.4, "tau": 1.3, "unused": -0.2, "z": np.array([0.5, -0.7, 1.9, 0.2])}
LATENTS = {name: f(value) for name, value in LATENTS.items()}


def trace_of(model, *args):
    return gxh.trace(gxh.seed(model, KEY)).get_trace(*args)


def trace_of_theirs(model, *args):
    return nph.trace(nph.seed(model, 0)).get_trace(*args)


def assert_same_density(change, substituted=(), conditioned=(), hidden=()):
    """Compare the log joint densities of the models after the same change to both."""
    latents = {n: x for n, x in LATENTS.items() if n not in {*conditioned, *hidden}}
    found = gx.log_joint(change(gxh, ours), latents, f(X), f(Y))
    # NumPyro's function substitutes by itself, which would overrule what the handler gives.
    latents = {n: x for n, x in latents.items() if n not in substituted}
    changed = nph.seed(change(nph, theirs), 0)
    expected, _ = log_density(changed, (f(X), f(Y)), {}, latents)
    np.testing.assert_allclose(found, expected, **PRECISE)
    return float(found)


def test_models_are_the_same():
    plain = assert_same_density(lambda h, model: model)
    normal = -0.5 * np.log(2 * np.pi)
    loc, tau, unused, z = (np.asarray(LATENTS[n], float) for n in ("loc", "tau", "unused", "z"))
    by_hand = (
        normal - np.log(2) - 0.5 * (loc / 2) ** 2
        + np.log(2) + normal - 0.5 * tau**2
        + normal - np.log(3) - 0.5 * ((unused - 1) / 3) ** 2
        + np.sum(normal - np.log(tau) - 0.5 * ((z - loc) / tau) ** 2)
        + np.sum(normal - np.log(0.5) - 0.5 * ((Y - 0.5 * z - X) / 0.5) ** 2)
        - 0.1 * loc**2
    )  # fmt: skip
    np.testing.assert_allclose(plain, by_hand, rtol=1e-5)


# Densities.

CHANGES = {
    "substitute a param": lambda h, m: h.substitute(m, data={"weight": f(0.9)}),
    "substitute an observation": lambda h, m: h.substitute(m, data={"y": f([1.0, 2.0, 3.0, 4.0])}),
    "condition an observation": lambda h, m: h.condition(m, data={"y": f([1.0, 2.0, 3.0, 4.0])}),
    "condition never sets a param": lambda h, m: h.condition(m, data={"weight": f(0.9)}),
    "scale": lambda h, m: h.scale(m, scale=3.0),
    "scale rows": lambda h, m: functools.partial(m, inside=h.scale(scale=f([1.0, 2.0, 0.5, 3.0]))),
    "scale twice": lambda h, m: h.scale(
        functools.partial(m, inside=h.scale(scale=f([1.0, 2.0, 0.5, 3.0]))), scale=2.0
    ),
    "mask nothing": lambda h, m: h.mask(m, mask=True),
    "mask everything": lambda h, m: h.mask(m, mask=False),
    "mask observations": lambda h, m: functools.partial(
        m, inside=h.mask(mask=np.array([True, False, True, False]))
    ),
    "mask and scale": lambda h, m: h.scale(
        functools.partial(m, inside=h.mask(mask=np.array([True, False, True, True]))), scale=2.0
    ),
    "mask everything around a mask of some": lambda h, m: h.mask(
        functools.partial(m, inside=h.mask(mask=np.array([True, False, True, True]))), mask=False
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_density_is_numpyros(name):
    changed = assert_same_density(CHANGES[name])
    plain = float(gx.log_joint(ours, LATENTS, f(X), f(Y)))
    unchanged = name in ("condition never sets a param", "mask nothing")
    assert np.isclose(changed, plain, rtol=1e-6) == unchanged


def test_density_at_substituted_values_is_numpyros():
    values = {"loc": f(-1.0), "z": f([1.0, 2.0, 3.0, 4.0])}
    found = assert_same_density(lambda h, m: h.substitute(m, data=values), substituted=values)
    np.testing.assert_allclose(
        found, gx.log_joint(ours, {**LATENTS, **values}, f(X), f(Y)), **PRECISE
    )


def test_density_of_conditioned_latents_is_numpyros():
    values = {"loc": f(-1.0), "tau": f(0.3)}
    found = assert_same_density(lambda h, m: h.condition(m, data=values), conditioned=values)
    np.testing.assert_allclose(
        found, gx.log_joint(ours, {**LATENTS, **values}, f(X), f(Y)), **PRECISE
    )


@pytest.mark.parametrize("option", [{"hide": ["unused"]}, {"expose": ["loc", "tau", "z", "y"]}])
def test_density_without_hidden_sites_is_numpyros(option):
    if "expose" in option:
        # Params, deterministic sites and factors count as sites too.
        option = {"expose": [*option["expose"], "weight", "sum"]}
    assert_same_density(lambda h, m: h.block(m, **option), hidden=["unused"])


def test_density_of_replayed_values():
    sites = trace_of(ours, f(X), f(Y))
    replayed = gxh.replay(ours, trace=sites)
    at_others = gx.log_joint(replayed, LATENTS, f(X), f(Y))
    values = {name: sites[name].value for name in LATENTS}
    np.testing.assert_allclose(at_others, gx.log_joint(ours, values, f(X), f(Y)), **PRECISE)


def test_masked_observations_may_be_nan():
    y = np.where([True, False, True, False], Y, np.nan)
    model = functools.partial(ours, inside=gxh.mask(mask=~np.isnan(y)))

    def density(loc, y):
        return gx.log_joint(model, {**LATENTS, "loc": loc}, f(X), y)

    kept = functools.partial(density, y=f(Y))
    masked = functools.partial(density, y=f(y))
    for each in (lambda d: d(LATENTS["loc"]), lambda d: jax.grad(d)(LATENTS["loc"])):
        np.testing.assert_allclose(each(masked), each(kept), rtol=1e-6)


def test_a_masked_latent_is_standard_normal_where_nothing_constrains_it():
    # Not NumPyro's: there the entry has no density at all, and its posterior is improper.
    def model():
        with gx.plate("rows", 2), gxh.mask(mask=np.array([True, False])):
            gx.sample("s", tfd.HalfNormal(f(2.0)))

    s = np.array([0.7, 1.9])
    found = gx.log_joint(model, {"s": f(s)})
    half_normal = np.log(2 / (2 * np.sqrt(2 * np.pi))) - 0.5 * (s[0] / 2) ** 2
    u = np.log(s[1])  # `positive` is exp
    np.testing.assert_allclose(
        found, half_normal - 0.5 * u**2 - 0.5 * np.log(2 * np.pi) - u, rtol=1e-5
    )


def test_masks_inside_each_other_join():
    def model():
        with gxh.mask(mask=jnp.array([True, True, False])):
            with gxh.mask(mask=jnp.array([True, False, True])):
                gx.sample("x", distrax.Normal(jnp.zeros(3), 1.0))
            with gxh.mask(mask=True):
                gx.sample("y", distrax.Normal(jnp.zeros(3), 1.0))
        gx.sample("z", distrax.Normal(jnp.zeros(3), 1.0))

    sites = trace_of(model)
    np.testing.assert_array_equal(sites["x"].mask, [True, False, False])
    np.testing.assert_array_equal(sites["y"].mask, [True, True, False])
    assert sites["z"].mask is None
    assert trace_of(gxh.mask(model, mask=False))["x"].mask is False


def test_scales_inside_each_other_multiply():
    def model():
        with gxh.scale(scale=2.0), gxh.scale(scale=3.0):
            gx.sample("x", distrax.Normal(f(0.0), f(1.0)))
        gx.sample("y", distrax.Normal(f(0.0), f(1.0)))

    sites = trace_of(model)
    assert (sites["x"].scale, sites["y"].scale) == (6.0, 1.0)


# trace


def kinds(sites):
    """Say what each site is, in order; NumPyro's messages are dictionaries."""
    if sites and isinstance(next(iter(sites.values())), dict):
        return {n: (m["type"], bool(m.get("is_observed"))) for n, m in sites.items()}
    return {n: (m.kind, m.observed) for n, m in sites.items()}


def test_trace_records_what_numpyros_records():
    found, expected = trace_of(ours, X, Y), trace_of_theirs(theirs, X, Y)
    assert kinds(found) == kinds(expected)
    assert list(found) == list(expected)
    for name, site in found.items():
        assert site.value.shape == np.shape(expected[name]["value"]), name
    np.testing.assert_array_equal(found["y"].value, f(Y))
    assert found["sum"].value == found["z"].value.sum()
    assert [p.name for p in found["z"].plates] == ["data"]
    assert isinstance(found["tau"].fn, tfd.HalfNormal)


def test_trace_as_context_manager():
    with gxh.trace() as sites:
        loc = gxh.seed(ours, KEY)(X)
        assert "loc" in sites
    assert sites["loc"].value == loc
    assert kinds(sites) == kinds(trace_of(ours, X))


def test_a_trace_inside_a_trace_records_its_own_part():
    def model():
        gx.sample("outside", distrax.Normal(f(0.0), f(1.0)))
        with gxh.trace() as inner:
            gx.sample("inside", distrax.Normal(f(0.0), f(1.0)))
        assert list(inner) == ["inside"]

    assert list(trace_of(model)) == ["outside", "inside"]


def test_trace_passes_the_result_on():
    model = gxh.trace(gxh.seed(ours, KEY))
    assert model(X) == gxh.seed(ours, KEY)(X)


# seed


def test_seed_starts_over_at_each_call():
    model = gxh.seed(ours, KEY)
    assert model(X) == model(X) == gxh.seed(ours, 0)(X)
    assert model(X) != gxh.seed(ours, 1)(X)


def test_the_inner_seed_gives_the_keys():
    inner = gxh.seed(ours, 3)
    assert gxh.seed(inner, 4)(X) == inner(X)


def test_seed_as_context_manager():
    with gxh.seed(key=KEY):
        first = ours(X)
        second = ours(X)
    assert first == gxh.seed(ours, KEY)(X)
    assert first != second


# substitute, condition and replay


def value_and_observed(sites, name):
    site = sites[name]
    if isinstance(site, dict):
        return float(site["value"]), site["is_observed"]
    return float(site.value), site.observed


@pytest.mark.parametrize("inner", ["substitute", "condition"])
@pytest.mark.parametrize("outer", ["substitute", "condition"])
def test_the_outermost_value_counts(inner, outer):
    def change(h, model):
        model = getattr(h, inner)(model, data={"loc": f(1.0), "tau": f(0.5)})
        return getattr(h, outer)(model, data={"loc": f(2.0)})

    found = trace_of(change(gxh, ours), X)
    expected = trace_of_theirs(change(nph, theirs), X)
    for name in ("loc", "tau"):
        assert value_and_observed(found, name) == value_and_observed(expected, name)


@pytest.mark.parametrize("handler", ["substitute", "condition"])
def test_values_of_sites_that_do_not_exist_are_ignored(handler):
    changed = getattr(gxh, handler)(ours, data={"nowhere": 1.0})
    assert kinds(trace_of(changed, X)) == kinds(trace_of_theirs(theirs, X))


def test_condition_takes_a_latent_from_a_guide():
    model = as_model(gxh.condition(ours, {"loc": f(0.3)}))
    trace = model.run(gx.Batch(f(X), f(Y)), KEY, lambda site: None, {})
    assert list(trace.of("latent")) == ["tau", "unused", "z"]
    assert list(trace.of("observed")) == ["loc", "y", "penalty"]
    assert trace.sites["loc"].value == f(0.3)


def test_substitute_sets_rows_that_a_plate_holds():
    found = trace_of(gxh.substitute(ours, {"z": f([1.0, 2.0, 3.0, 4.0])}), X)
    assert found["sum"].value == 10.0 and not found["z"].observed


def test_replay_gives_latents_alone():
    earlier = trace_of(gxh.condition(ours, {"tau": f(0.5)}), X, Y)
    again = gxh.trace(gxh.seed(gxh.replay(ours, trace=earlier), 7)).get_trace(X, 2 * Y)
    for name in ("loc", "unused", "z"):
        np.testing.assert_array_equal(again[name].value, earlier[name].value)
    assert again["tau"].value != 0.5  # it was an observation there
    np.testing.assert_array_equal(again["y"].value, f(2 * Y))  # and y is one here


# block


@pytest.mark.parametrize(
    "option",
    [
        {},
        {"hide": ["z", "weight"]},
        {"hide": []},
        {"expose": ["loc", "y", "sum"]},
        {"hide": ("penalty", "sum", "nowhere")},
    ],
    ids=str,
)
def test_block_hides_what_numpyros_hides(option):
    def shown(sites):
        # guidax never hides a plate: it is part of the sites inside.
        return [n for n, (kind, _) in kinds(sites).items() if kind != "plate"]

    found = trace_of(gxh.block(ours, **option), X, Y)
    assert shown(found) == shown(trace_of_theirs(nph.block(theirs, **option), X, Y))
    assert "data" in found


def test_hidden_sites_are_run_all_the_same():
    def model():
        with gxh.block(), gx.plate("a", 3):
            x = gx.sample("x", distrax.Normal(f(5.0), f(0.1)))
            weight = gx.param("w", lambda key: jax.random.normal(key))
        return gx.deterministic("d", x), weight

    sites = trace_of(model)
    assert list(sites) == ["a", "d"]
    assert sites["d"].value.shape == (3,)
    np.testing.assert_allclose(sites["d"].value, 5.0, atol=1.0)
    # Handlers inside the block still reach them.
    inner = gxh.block(gxh.substitute(ours, {"loc": f(9.0)}))
    assert gxh.seed(inner, KEY)(X) == 9.0
    # Handlers outside do not.
    outer = gxh.substitute(gxh.block(ours), {"loc": f(9.0)})
    assert gxh.seed(outer, KEY)(X) != 9.0


@pytest.mark.parametrize("rows", [None, 2])
def test_hidden_sites_keep_the_plates_around_the_block(rows):
    """NumPyro's lose them, and are drawn once for all rows."""

    def model():
        with gx.plate("a", 3, rows), gxh.block(hide=["x"]):
            x = gx.sample("x", distrax.Normal(f(5.0), f(0.1)))
            gx.sample("y", distrax.Normal(x, f(1.0)))
        return x

    sites = trace_of(model)
    assert list(sites) == ["a", "y"]
    assert sites["y"].value.shape == (rows or 3,)
    x = gxh.seed(model, KEY)()
    assert x.shape == (rows or 3,) and len(set(x.tolist())) == x.size
    # So it is where a guide blocks a model.
    blocked = gxh.block(model, hide=["x"])
    assert gx.AutoDelta(blocked, key=KEY).family.loc["y"].shape == (3,)


@pytest.mark.parametrize("as_seed", [np.int64, np.uint8, np.asarray, jnp.asarray])
def test_any_integer_is_a_seed(as_seed):
    expected = gxh.seed(ours, 3)(X)
    assert gxh.seed(ours, as_seed(3))(X) == expected
    assert gxh.seed(ours, jax.random.key(3))(X) == gxh.seed(ours, jax.random.PRNGKey(3))(X)
    with refused_type("integer"):
        gxh.seed(ours, 1.5)


def test_hidden_sites_need_a_key():
    with pytest.raises(ValueError, match="needs a random key"):
        gxh.block(ours)(X)


# Equal by value.


def handlers_of(model):
    """Return makers of each handler around a model; every call makes all of it anew."""
    return {
        "trace": lambda: gxh.trace(model),
        "seed": lambda: gxh.seed(model, jax.random.key(3)),
        "substitute": lambda: gxh.substitute(model, {"tau": f(0.7)}),
        "condition": lambda: gxh.condition(model, {"tau": f(0.7)}),
        "replay": lambda: gxh.replay(model, trace_of(model, *regression_data())),
        "block": lambda: gxh.block(model, hide=["weight"]),
        "scale": lambda: gxh.scale(model, 2.0),
        "scale array": lambda: gxh.scale(model, jnp.full((), 2.0)),
        "mask": lambda: gxh.mask(model, mask=False),
        "mask array": lambda: gxh.mask(model, mask=jnp.ones(40, bool)),
        "two": lambda: gxh.scale(gxh.block(model, hide=["weight"]), 2.0),
    }


@pytest.mark.parametrize("name", handlers_of(regression))
def test_handlers_made_separately_are_one_program(name):
    make = handlers_of(regression)[name]
    a, b = make(), make()
    assert a is not b
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert isinstance(a, eqx.Module)
    # A model of guides has all of it in its structure, which is compared and hashed.
    structures = [jax.tree.structure(as_model(each)) for each in (a, b)]
    assert structures[0] == structures[1] and hash(structures[0]) == hash(structures[1])
    assert structures[0] != jax.tree.structure(as_model(regression))


@pytest.mark.parametrize(
    "a, b",
    [
        (gxh.scale(regression, 2.0), gxh.scale(regression, 3.0)),
        (gxh.scale(regression, jnp.ones(40)), gxh.scale(regression, jnp.zeros(40))),
        (gxh.mask(regression, True), gxh.mask(regression, False)),
        (gxh.block(regression, hide=["tau"]), gxh.block(regression, expose=["tau"])),
        (gxh.condition(regression, {"tau": 1.0}), gxh.substitute(regression, {"tau": 1.0})),
        (gxh.condition(regression, {"tau": f(1.0)}), gxh.condition(regression, {"tau": f(2.0)})),
        (gxh.seed(regression, 0), gxh.seed(regression, 1)),
    ],
)
def test_handlers_of_other_values_are_other_programs(a, b):
    assert jax.tree.structure(as_model(a)) != jax.tree.structure(as_model(b))


@pytest.mark.parametrize(
    "make",
    [
        lambda: gxh.trace(regression),
        lambda: gxh.scale(regression, 2.0),
        lambda: gxh.mask(regression, False),
        lambda: gxh.block(regression, hide=["b", "a"]),
    ],
)
def test_handlers_of_numbers_are_equal_and_hash_equal(make):
    assert make() == make()
    assert hash(make()) == hash(make())


def test_the_order_of_names_does_not_count():
    a, b = gxh.block(regression, hide=["a", "b"]), gxh.block(regression, hide={"b", "a"})
    assert a == b


@pytest.mark.parametrize("name", ["scale", "scale array", "mask array", "condition", "two"])
def test_a_new_handler_of_equal_value_is_not_traced_again(name):
    X, y = regression_data()
    latents = {"tau": f(0.5), "beta": jnp.zeros(3)}
    if name == "condition":
        del latents["tau"]

    def density():
        return gx.log_joint(handlers_of(regression)[name](), latents, X, y)

    first = density()
    assert new_traces(density) == 0
    assert first == density()


def test_handlers_under_jit_are_traced_once():
    @jax.jit
    def loc(key, x):
        traces.append(1)
        return gxh.seed(ours, key)(x)

    traces = []
    keys = jax.random.split(KEY, 3)
    values = [float(loc(key, f(X))) for key in keys]
    assert len(traces) == 1
    np.testing.assert_allclose(values, [gxh.seed(ours, key)(f(X)) for key in keys], rtol=1e-5)


def test_using_a_handler_leaves_it_unchanged():
    make = handlers_of(regression)["replay"]
    handler = make()
    gxh.seed(handler, KEY)(*regression_data())
    assert jax.tree.structure(as_model(handler)) == jax.tree.structure(as_model(make()))


# What can be handled.


def test_handlers_as_decorators():
    @functools.partial(gxh.scale, scale=2.0)
    @functools.partial(gxh.condition, data={"x": 0.5})
    def model(loc):
        return gx.sample("x", distrax.Normal(loc, 1.0))

    with gxh.trace() as sites:
        assert model(f(0.0)) == 0.5
    assert sites["x"].scale == 2.0 and sites["x"].observed


def test_modules_keep_their_arrays_as_leaves():
    network = Network(jax.random.key(0))
    plain = as_model(network.model)
    for handled in (
        gxh.scale(network.model, jnp.full(3, 2.0)),
        gxh.condition(network.model, {"slope": f(0.4)}),
        gxh.block(gxh.mask(network.model, jnp.ones(3, bool)), hide=["scale"]),
    ):
        leaves = jax.tree.leaves(as_model(handled))
        # The network's arrays, and nothing of the handlers', are there to be trained.
        assert len(leaves) == len(jax.tree.leaves(plain)) > 0
        for found, expected in zip(leaves, jax.tree.leaves(plain), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_gradients_reach_a_module_through_handlers():
    network = Network(jax.random.key(0))
    latents = {"slope": f(0.4), "scale": f(0.5)}

    def density(model):
        return gx.log_joint(model, latents, NETWORK_DATA)

    plain = jax.grad(density)(as_model(network.model))
    scaled = jax.grad(density)(as_model(gxh.scale(network.model, 3.0)))
    pairs = zip(jax.tree.leaves(scaled), jax.tree.leaves(plain), strict=True)
    for found, expected in pairs:
        np.testing.assert_allclose(found, 3 * expected, rtol=1e-5, atol=1e-6)
    assert any(bool(jnp.any(x != 0)) for x in jax.tree.leaves(plain))


def test_a_callable_module_can_be_handled():
    class Line(eqx.Module):
        slope: jax.Array

        def __call__(self, x):
            return gx.sample("y", distrax.Normal(self.slope * x, 1e-6))

    found = gxh.seed(Line(f(3.0)), KEY)(2.0)
    np.testing.assert_allclose(found, 6.0, atol=1e-4)
    assert len(jax.tree.leaves(as_model(gxh.scale(Line(f(3.0)), 2.0)))) == 1


def test_block_works_on_models_of_other_languages():
    model = gxh.block(gx.from_numpyro(theirs), hide=["unused"])
    shown = {name: value for name, value in LATENTS.items() if name != "unused"}
    found = gx.log_joint(model, shown, f(X), f(Y))
    hidden = nph.seed(nph.block(theirs, hide=["unused"]), 0)
    expected, _ = log_density(hidden, (f(X), f(Y)), {}, dict(shown))
    np.testing.assert_allclose(found, expected, **PRECISE)


def test_handlers_leave_the_stack_as_it_was_after_an_error():
    def broken():
        gx.sample("x", distrax.Normal(f(0.0), f(1.0)))
        raise RuntimeError("inside")

    with gxh.trace() as sites:
        for handler in (gxh.seed(broken, KEY), gxh.block(gxh.seed(broken, KEY))):
            with pytest.raises(RuntimeError, match="inside"):
                handler()
        with pytest.raises(RuntimeError, match="inside"), gxh.seed(key=KEY), gxh.scale(scale=2.0):
            raise RuntimeError("inside")
        with pytest.raises(ValueError, match="needs a random key"):
            gx.sample("y", distrax.Normal(f(0.0), f(1.0)))
    assert list(sites) == ["x"]


# Errors.


def wrong_type(message, parameter):
    """Match our message, or that of the type checker that may be on and stands before it."""
    return f"{message}|typechecking parameter '{parameter}'"


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: gxh.seed(ours), TypeError, r"seed needs a key: gx\.handlers\.seed\(model"),
        (lambda: gxh.substitute(ours), TypeError, "substitute needs data=, a dict.* got None"),
        (
            lambda: gxh.condition(ours, 3.0),
            TypeError,
            wrong_type("condition needs data=, a dictionary from site to value; got 3.0", "data"),
        ),
        (lambda: gxh.replay(ours), TypeError, "replay needs trace="),
        (lambda: gxh.scale(ours, 0.0), ValueError, "scale multiplies .* so it is positive; got 0"),
        (lambda: gxh.scale(ours, -1), ValueError, "positive; got -1"),
        (lambda: gxh.mask(ours, f([1.0, 0.0])), TypeError, "mask takes a bool .* got dtype float"),
        (lambda: gxh.mask(ours, 1), TypeError, "mask takes a bool .*dtype int"),
        (lambda: gxh.block(ours, hide="z"), TypeError, "a list of names; got hide='z'"),
        (lambda: gxh.block(ours, expose="z"), TypeError, "a list of names; got expose='z'"),
        (lambda: gxh.block(ours, hide=[], expose=[]), ValueError, "hide= or expose=, not both"),
        (lambda: gxh.scale(scale=2.0)(X), TypeError, "scale was given no model to call"),
        (lambda: gxh.trace().get_trace(X), TypeError, "trace was given no model"),
        (lambda: gxh.trace(ours).get_trace(X), ValueError, "sample 'loc' needs a random key"),
        (
            lambda: as_model(gxh.scale(gx.from_numpyro(theirs), 2.0)),
            TypeError,
            wrong_type(r"handlers\.scale works on programs .*gx\.from_numpyro\(numpyro", "fn"),
        ),
        (
            lambda: as_model(3),
            TypeError,
            wrong_type("a model is something that can be called; got 3", "fn"),
        ),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()
