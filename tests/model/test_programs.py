"""What a model may be, what its arguments may be, and what stays the same program."""

import functools
import re

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx
from assertions import distance, identical
from guidax._model.program import as_model
from models import NETWORK_DATA, Network, new_traces, regression, regression_data, traces

KEY = jax.random.key(0)
Y = jnp.asarray([0.5, -0.3, 1.2], float)


def line(y, slope, *, shift=0.0):
    traces[0] += 1
    z = gx.sample("z", distrax.Normal(jnp.asarray(shift, float), 1.0))
    gx.sample("y", distrax.Normal(slope * z, 1.0), obs=y)


class Line(eqx.Module):
    slope: jax.Array
    activation: object = jax.nn.softplus

    def __call__(self, y):
        line(y, self.activation(self.slope))

    def program(self, y):
        line(y, self.activation(self.slope))


def loss(model, *args, key, **kwargs):
    batch = gx.Batch(*args, **kwargs)
    guide = gx.AutoNormal(model, batch, key=key)
    return float(gx.ELBO()(guide, key, batch))


def test_functions_partials_modules_and_methods_agree(key):
    module = Line(jnp.asarray(0.3, float))
    slope = jax.nn.softplus(jnp.asarray(0.3, float))
    expected = loss(line, Y, slope, key=key)
    for model in (
        functools.partial(line, slope=slope),
        functools.partial(functools.partial(line, shift=0.0), slope=slope),
        module,
        module.program,
        lambda y: line(y, slope),
    ):
        assert loss(model, Y, key=key) == pytest.approx(expected, rel=1e-5)
    assert loss(functools.partial(line, shift=1.0), Y, slope, key=key) != expected


def test_arguments_by_name_and_by_position_are_one_program(key):
    loss(line, Y, 2.0, key=key)
    assert new_traces(lambda: loss(line, Y, slope=2.0, key=key)) == 0
    assert new_traces(lambda: loss(line, slope=3.0, y=Y, key=key)) == 0
    assert loss(line, Y, 2.0, shift=0.5, key=key) != loss(line, Y, 2.0, key=key)


def test_equal_partials_are_one_program(key):
    loss(functools.partial(line, slope=2.0), Y, key=key)
    assert new_traces(lambda: loss(functools.partial(line, slope=2.0), Y, key=key)) == 0
    assert new_traces(lambda: loss(functools.partial(line, slope=2.5), Y, key=key)) > 0


def test_floating_arrays_of_a_module_are_trained(key):
    module = Line(jnp.asarray(0.3, float))
    guide = gx.AutoNormal(module, Y, key=key)
    np.testing.assert_allclose(guide.model.arrays.slope, 0.3)
    fitted = gx.fit(key, guide, Y, steps=50, progress=False).guide
    assert float(fitted.model.arrays.slope) != pytest.approx(0.3)
    assert float(module.slope) == pytest.approx(0.3)
    assert guide.learning_rate == 0.01  # a module takes small steps


def test_a_module_with_integers_dropout_and_embedding(key):
    network = Network(key)
    guide = gx.AutoNormal(network.model, NETWORK_DATA, key=key)
    assert guide.model.arrays.order is None
    names = {jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(guide)}
    assert any("embedding" in n for n in names) and not any("order" in n for n in names)
    result = gx.fit(key, guide, NETWORK_DATA, steps=300, progress=False)
    assert float(result.losses[-20:].mean()) < float(result.losses[:20].mean())
    # A permutation with other content is another program, and gives another answer.
    other = eqx.tree_at(lambda n: n.order, network, jnp.array([0, 1, 2]))
    moved = gx.AutoNormal(other.model, NETWORK_DATA, key=key)
    assert jax.tree.structure(moved) != jax.tree.structure(guide)
    same = gx.AutoNormal(Network(key).model, NETWORK_DATA, key=key)
    assert jax.tree.structure(same) == jax.tree.structure(guide) and identical(same, guide)


def test_param_sites(key):
    def model(y):
        s = gx.param("s", 0.7, gx.constraints.positive)
        b = gx.param("b", lambda k: jax.random.normal(k, (2,)))
        m = gx.sample("m", distrax.Normal(jnp.zeros(()), s))
        gx.sample("y", distrax.Normal(m + b.sum(), gx.param("s", 9.9)), obs=y)

    def twice(y):
        gx.param("s", 0.7, gx.constraints.positive)
        gx.sample("z", distrax.Normal(0.0, gx.param("s", 0.7, gx.constraints.unit_interval)))

    with pytest.raises(ValueError, match="'s' has the constraints positive and unit_interval"):
        gx.AutoNormal(twice, Y, key=key)
    guide = gx.AutoNormal(model, Y, key=key)
    values = guide.param_values(Y)
    np.testing.assert_allclose(values["s"], 0.7, rtol=1e-6)
    assert values["b"].shape == (2,) and float(jnp.abs(values["b"]).sum()) > 0
    assert identical(values, guide.param_values())
    other = gx.AutoNormal(model, Y, key=jax.random.key(5)).param_values()
    assert distance(other["b"], values["b"]) > 0
    fitted = gx.fit(key, guide, Y, steps=100, progress=False).guide
    assert float(fitted.param_values()["s"]) > 0
    assert distance(fitted.param_values(), values) > 0.01


def test_maximum_likelihood_of_a_param(key):
    """With `z ~ N(t, 1)` and `y_i ~ N(z, 1)` the evidence is largest at t = mean(y)."""

    def model(y):
        t = gx.param("t", 0.0)
        z = gx.sample("z", distrax.Normal(t, 1.0))
        with gx.plate("rows", 3):
            gx.sample("y", distrax.Normal(z, 1.0), obs=y)

    guide = gx.AutoNormal(model, Y, key=key)
    fitted = gx.fit(key, guide, Y, steps=2000, objective=gx.ELBO(8), progress=False).guide
    # Four standard deviations of the error over keys, 0.011.
    np.testing.assert_allclose(fitted.param_values()["t"], Y.mean(), atol=0.044)


# Arguments.


def codes(code, y):
    traces[0] += 1
    with gx.plate("groups", len(np.unique(code))):
        a = gx.sample("a", distrax.Normal(jnp.zeros(()), 1.0))
    gx.sample("y", distrax.Normal(a[code], 1.0), obs=y)


def test_static_arguments(key):
    code, y = np.array([0, 1, 1, 2, 0]), jnp.arange(5.0)
    with pytest.raises(TypeError, match="codes.*gx.static"):
        gx.AutoNormal(codes, code, y, key=key)
    guide = gx.AutoNormal(codes, gx.static(code), y, key=key)
    assert guide.family.loc["a"].shape == (3,)
    first = gx.fit(key, guide, gx.static(code), y, steps=5, progress=False)
    equal = lambda: gx.fit(key, guide, gx.static(code.copy()), y, steps=5, progress=False)  # noqa: E731
    assert new_traces(equal) == 0
    assert identical(first.losses, equal().losses)
    with pytest.raises(TypeError, match="traced"):
        jax.jit(gx.static)(y)


class Column:
    """A column of a table: no hash, many entries, and a dtype that is not NumPy's."""

    __hash__ = None
    dtype = object()

    def __repr__(self):
        return "1.0 " * 1000


@pytest.mark.parametrize(
    "leaf, message",
    [
        (np.ones(3, ">f4"), r'array of >f4, .*pass x\.astype\(x\.dtype\.newbyteorder\("="\)\)'),
        (memoryview(np.ones(3)), "memoryview, which is neither an array nor hashable"),
        (Column(), r"(1\.0 ){25} is a Column, which is neither an array nor hashable"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_arguments_that_are_no_arrays_of_jax_are_named(leaf, message):
    with pytest.raises(TypeError, match=f"^leaf 1 of the model's arguments.* {message}"):
        gx.Batch(Y, leaf)


@pytest.mark.skipif(np.longdouble == np.float64, reason="there is no wider float")
@pytest.mark.parametrize("kind, narrow", [(np.longdouble, "float"), (np.clongdouble, "complex")])
def test_wider_floats_are_named(kind, narrow):
    for leaf in (np.ones(3, kind), kind(1.0)):
        message = rf"^leaf 0 .* {np.dtype(kind)}, .*: pass x\.astype\({narrow}\)"
        with pytest.raises(TypeError, match=message):
            gx.Batch(leaf)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float8_e4m3fnuz, jnp.int4, bool])
def test_arrays_of_jax_s_own_dtypes_are_taken(dtype):
    (held,), _ = gx.Batch(np.ones(3, dtype)).unpack()
    assert held.dtype == dtype


def test_integers_that_single_precision_would_wrap_are_refused():
    fits = [
        np.array([-(2**31), 2**31 - 1]),
        np.array([2**32 - 1], np.uint64),
        np.array([], np.int64),
    ]
    wraps = [np.array([5, 2**31]), np.array([-(2**31) - 1, 5]), np.array([2**32], np.uint64)]
    with jax.enable_x64(False):
        for x in fits:
            (held,), _ = gx.Batch(x).unpack()
            np.testing.assert_array_equal(held, x)
        for x in wraps:
            extreme = max(x.tolist(), key=abs)
            with pytest.raises(ValueError, match=f"^leaf 0 .* holds {extreme}, .*jax_enable_x64"):
                gx.Batch(x)
    with jax.enable_x64(True):
        for x in fits + wraps:
            (held,), _ = gx.Batch(x).unpack()
            np.testing.assert_array_equal(held, x)


def test_python_values_stay_python(key):
    def model(y, width, name, flag, options):
        assert isinstance(width, int) and isinstance(name, str) and flag is True
        assert options == {"depth": 2, "kind": None}
        with gx.plate("wide", width):
            z = gx.sample(name, distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("y", distrax.Normal(z.sum(), 1.0), obs=y)

    batch = gx.Batch(1.0, 3, "latent", True, {"depth": 2, "kind": None})
    guide = gx.AutoNormal(model, batch, key=key)
    assert guide.family.loc["latent"].shape == (3,)
    # A float is traced: another value is no other program.
    structure = jax.tree.structure
    assert structure(gx.Batch(1.0, 3)) == structure(gx.Batch(2.0, 3))
    assert structure(gx.Batch(1.0, 3)) != structure(gx.Batch(1.0, 4))


def test_a_batch_is_a_pytree_of_its_arrays():
    batch = gx.Batch(Y, 3, name=np.arange(2.0))
    assert [x.shape for x in jax.tree.leaves(batch)] == [(3,), (2,)]
    args, kwargs = batch.unpack()
    assert args[1] == 3 and kwargs["name"].shape == (2,)
    with pytest.raises(TypeError, match="nothing may stand beside"):
        gx.AutoNormal(line, gx.Batch(Y, 1.0), Y, key=jax.random.key(0))
    with pytest.raises(TypeError, match="neither an array nor hashable"):
        gx.Batch({1, 2, 3})
    with pytest.raises((ValueError, TypeError), match=r"takes a vector of integer|rows"):
        batch.at(data=jnp.zeros(3))


def test_arrays_of_every_kind_are_traced():
    for x in (np.asarray([1.5], jnp.bfloat16), np.array([True]), jax.random.split(KEY, 2)):
        batch = gx.Batch(x)
        assert len(batch.arrays) == 1 and not batch.layout.constants


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_an_argument_may_be_a_key(impl):
    def model(seed, y):
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("y", distrax.Normal(z + 0.1 * jax.random.normal(seed, y.shape), 1.0), obs=y)

    guide = gx.AutoNormal(model, jax.random.key(1, impl=impl), Y, key=KEY)
    without = guide.median()["z"]  # of arguments that are left out the shapes are known
    assert float(without) == float(guide.median(jax.random.key(2, impl=impl), Y)["z"])


def test_a_default_that_is_written_out_is_no_other_program(key):
    def model(y, size=6, kind="plain", scale=1.0, extra=None):
        assert isinstance(size, int) and kind == "plain" and extra is None
        with gx.plate("data", size, subsample_size=2) as rows:
            z = gx.sample("z", distrax.Normal(jnp.zeros(()), scale))
            gx.sample("y", distrax.Normal(z, 1.0), obs=y[rows])

    y = jnp.arange(6.0)
    guide = gx.AutoNormal(model, y, key=key)
    loss = jax.jit(lambda *args, **kwargs: gx.ELBO()(guide, key, *args, **kwargs))(y)
    for args, kwargs in (((6,), {}), ((6, "plain"), {}), ((), {"extra": None, "size": 6})):
        # Under jit another structure would be refused, since rows of the plate are drawn.
        again = jax.jit(lambda y, a=args, k=kwargs: gx.ELBO()(guide, key, y, *a, **k))(y)
        assert float(again) == float(loss)


def test_a_batch_goes_by_position():
    with pytest.raises(TypeError, match="gx.Batch goes by position, not as batch="):
        gx.AutoNormal(line, batch=gx.Batch(Y, 1.0), key=KEY)


def test_memory_of_data_is_nowhere(key):
    """A guide holds the shapes of its first arguments, not the arguments."""
    X, y = regression_data()
    guide = gx.AutoNormal(regression, X, y, key=key)
    assert sum(x.size for x in jax.tree.leaves(guide)) == 2 * (1 + 3) + 1
    doubled = guide.sample_posterior(key, 2 * X, y)["eta"]
    plain = guide.sample_posterior(key, X, y)["eta"]
    np.testing.assert_allclose(doubled, 2 * plain, rtol=1e-5)


def test_hidden_sites_are_drawn_with_the_callers_key(key):
    """What a guide does not hold is drawn anew for each key, not with a fixed seed."""

    def model(y):
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        e = gx.sample("e", distrax.Normal(jnp.zeros(()), 1.0))
        gx.deterministic("sum", z + e)
        gx.sample("y", distrax.Normal(z, 1.0), obs=y)

    hidden = gx.handlers.block(model, hide=["e"])
    guide = gx.AutoDelta(hidden, Y[0], key=key)
    draws = guide.sample_posterior(key, Y[0], sample_shape=(2000,))
    assert draws.keys() == {"z", "sum"}
    e = np.asarray(draws["sum"] - draws["z"])
    assert abs(e.mean()) < 5 / 2000**0.5 and e.std() == pytest.approx(1.0, rel=0.1)
    other = guide.sample_posterior(jax.random.key(1), Y[0], sample_shape=(2000,))
    assert not np.allclose(other["sum"], draws["sum"])


def test_randomness_of_the_model_itself(key):
    def noisy(y):
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        noise = jax.random.normal(gx.prng_key())
        gx.sample("y", distrax.Normal(z + noise, 1.0), obs=y)

    guide = gx.AutoDelta(noisy, Y[0], key=key)
    losses = [float(gx.ELBO()(guide, k, Y[0])) for k in jax.random.split(key, 3)]
    assert len(set(losses)) == 3


@pytest.mark.parametrize("how", [jax.jit, eqx.filter_jit, "scan", "vmap"])
def test_sites_inside_a_transformation_are_refused(how, key):
    def model(y):
        def row(datum):
            return gx.sample("y", distrax.Normal(z, 1.0), obs=datum)

        z = gx.sample("z", distrax.Normal(0.0, 1.0))
        if how == "scan":
            jax.lax.scan(lambda carry, datum: (carry, row(datum)), 0.0, y)
        elif how == "vmap":
            jax.vmap(row)(y)
        else:
            row(y)

    site, wrapped = ("y", model) if isinstance(how, str) else ("z", how(model))
    for use in (
        lambda: gx.AutoNormal(wrapped, jnp.ones(3), key=key),
        lambda: gx.log_joint(wrapped, {"z": 0.0}, jnp.ones(3)),
        lambda: gx.Predictive(wrapped, num_samples=2, sites=["z"])(key, jnp.ones(3)),
    ):
        with pytest.raises(ValueError, match=f"site '{site}' is inside a JAX transformation"):
            use()


def test_plates_and_keys_inside_a_transformation_are_refused(key):
    @jax.jit
    def subsampled():
        with gx.plate("rows", 3, 2) as rows:
            return rows

    for inner, what in (
        (subsampled, "plate 'rows'"),
        (jax.jit(gx.prng_key), r"gx.prng_key\(\)"),
    ):

        def model(inner=inner):
            inner()
            gx.sample("z", distrax.Normal(0.0, 1.0))

        with pytest.raises(ValueError, match=f"{what} is inside a JAX transformation"):
            gx.AutoNormal(model, key=key)


def test_a_user_composes_guides_as_pytrees(key):
    X, y = regression_data()
    guide = gx.AutoNormal(regression, X, y, key=key)
    wider = eqx.tree_at(
        lambda g: g.family.raw_scale, guide, jax.tree.map(lambda x: x + 3, guide.family.raw_scale)
    )
    spread = [
        np.asarray(g.sample_posterior(key, X, y, sample_shape=(500,))["beta"]).std(axis=0)
        for g in (guide, wider)
    ]
    assert np.all(spread[1] > 3 * spread[0])
    average = jax.tree.map(lambda a, b: (a + b) / 2, guide, wider)
    assert jnp.isfinite(gx.ELBO()(average, key, X, y))


def test_membership_is_known_of_every_site(key):
    def model(y):
        s = gx.param("s", 2.0, gx.constraints.positive)
        z = gx.sample("z", tfd.HalfNormal(s))
        gx.sample("y", distrax.Normal(z, 1.0), obs=y)

    trace = as_model(model).run(gx.Batch(Y), key, lambda site: None, {})
    for name in "syz":
        assert bool(jnp.all(trace.sites[name].contains(trace.sites[name].value)))
        assert not bool(jnp.any(trace.sites[name].contains(jnp.nan * trace.sites[name].value)))


def test_a_site_says_why_it_has_no_bijection(key):
    def native():
        gx.sample("z", distrax.Bernoulli(probs=0.5))

    def in_numpyro():
        numpyro = pytest.importorskip("numpyro")
        numpyro.sample("z", numpyro.distributions.Bernoulli(0.5))

    for model in (as_model(native), gx.from_numpyro(in_numpyro)):
        site = model.run(gx.Batch(), key, lambda site: None, {}).sites["z"]
        assert isinstance(site.bijection, str) and "discrete" in site.bijection
        with pytest.raises(ValueError, match=f"'z': {re.escape(site.bijection)}"):
            gx.AutoNormal(model, key=key)
