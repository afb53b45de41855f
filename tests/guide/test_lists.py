"""`AutoGuideList`: several guides for one model, and guides that users write themselves."""

import functools

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import gammaln
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx
from assertions import distance, identical, perturbed, refused_type
from guidax._family.product import leaves
from models import regression, regression_data

X, y = regression_data()
PARTS = {"beta": gx.AutoDelta, ...: functools.partial(gx.AutoNormal, init_scale=0.05)}


def test_parts_and_append_make_the_same_list(key):
    whole = gx.AutoGuideList(regression, X, y, key=key, parts=PARTS)
    empty = gx.AutoGuideList(regression, X, y, key=key)
    delta = gx.AutoDelta(gx.handlers.block(regression, expose=["beta"]), X, y, key=key)
    normal = gx.AutoNormal(
        gx.handlers.block(regression, hide=["beta"]), X, y, key=key, init_scale=0.05
    )
    listed = empty.append(delta).append(normal)
    assert jax.tree.structure(listed) == jax.tree.structure(whole)
    assert len(empty) == 0 and len(listed) == 2
    names = [set(part.sample_posterior(key, X, y)) for part in listed]
    assert names == [{"beta"}, {"tau"}]
    np.testing.assert_allclose(listed[1].median()["tau"], listed.median()["tau"], rtol=1e-6)
    for use in (
        lambda: empty.sample_posterior(key, X, y),
        lambda: gx.ELBO()(empty, key, X, y),
        lambda: empty.append(delta).median(X, y),
    ):
        with pytest.raises(ValueError, match="tau"):
            use()


def test_parts_are_a_mapping(key):
    with refused_type("parts takes a dict from sites to constructors.*; got list"):
        gx.AutoGuideList(regression, X, y, key=key, parts=[gx.AutoNormal])


def test_one_copy_of_the_models_parameters(key):
    whole = gx.AutoGuideList(regression, X, y, key=key, parts=PARTS)
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(whole)]
    assert sum("weight" in path for path in paths) == 1
    fitted = gx.fit(key, whole, X, y, steps=50, progress=False).guide
    assert distance(fitted.param_values(), whole.param_values()) > 0
    np.testing.assert_array_equal(
        fitted[0].param_values()["weight"], fitted.param_values()["weight"]
    )


def test_each_part_draws_with_a_key_of_its_own(key):
    def two():
        gx.sample("a", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("b", distrax.Normal(jnp.zeros(()), 1.0))

    guide = gx.AutoGuideList(two, key=key, parts={"a": gx.AutoNormal, "b": gx.AutoNormal})
    draws = guide.sample_posterior(key, sample_shape=(10_000,))
    correlation = np.corrcoef(draws["a"], draws["b"])[0, 1]
    assert abs(correlation) < 5 / 10_000**0.5


def test_a_list_with_points_has_no_density(key):
    guide = gx.AutoGuideList(regression, X, y, key=key, parts=PARTS)
    draws = guide.sample_posterior(key, X, y, sample_shape=(3,))
    with pytest.raises(TypeError, match=r"draws the sites \['beta'\] as points.*no density"):
        guide.log_prob(draws, X, y)
    u, scale = np.log(draws["tau"]), 0.05  # tau is positive
    loc = np.log(guide.median(X, y)["tau"])
    expected = -0.5 * ((u - loc) / scale) ** 2 - np.log(scale * (2 * np.pi) ** 0.5) - u
    np.testing.assert_allclose(guide[1].log_prob({"tau": draws["tau"]}, X, y), expected, rtol=1e-4)


def test_two_flat_parts_do_not_clash(key):
    parts = {"beta": gx.AutoMultivariateNormal, "tau": gx.AutoDiagonalNormal}
    guide = perturbed(gx.AutoGuideList(regression, X, y, key=key, parts=parts), key)
    draws, log_q = guide.sample_and_log_prob(key, X, y, sample_shape=(5,))
    separate = sum(guide[i].log_prob({n: draws[n]}, X, y) for i, n in enumerate(("beta", "tau")))
    np.testing.assert_allclose(log_q, separate, rtol=1e-5)
    np.testing.assert_allclose(guide.log_prob(draws, X, y), log_q, rtol=1e-5)
    assert guide[0].get_posterior().event_shape == (3,)


def test_a_part_in_a_plate_needs_no_plate_of_its_own(key):
    def model(y):
        w = gx.sample("w0", distrax.Normal(jnp.zeros(()), 1.0))
        with gx.plate("n", 4):
            z = gx.sample("w", distrax.Normal(w, 1.0))
            gx.sample("y", distrax.Normal(z, 1.0), obs=y)

    data = jnp.arange(4.0)
    part = gx.AutoNormal(gx.handlers.block(model, expose=["w"]), data, key=key)
    rest = gx.AutoDelta(gx.handlers.block(model, hide=["w"]), data, key=key)
    guide = gx.AutoGuideList(model, data, key=key).append(part).append(rest)
    assert guide.sample_posterior(key, data)["w"].shape == (4,)
    assert jnp.isfinite(gx.fit(key, guide, data, steps=5, progress=False).losses).all()


def test_one_joint_start(key):
    """For `y ~ N(log(a + b - 1), 1)` parts that search apart have no finite joint start."""

    def model(y):
        a = gx.sample("a", tfd.HalfNormal(jnp.ones(())))
        b = gx.sample("b", tfd.HalfNormal(jnp.ones(())))
        gx.sample("y", distrax.Normal(jnp.log(a + b - 1.0), 1.0), obs=y)

    data = jnp.asarray(0.2, float)
    for k in jax.random.split(key, 10):
        guide = gx.AutoGuideList(model, data, key=k, parts={"a": gx.AutoDelta, "b": gx.AutoDelta})
        assert jnp.isfinite(gx.ELBO()(guide, k, data))


def test_each_part_starts_as_it_says(key):
    parts = {
        "tau": functools.partial(gx.AutoNormal, init_loc_fn=gx.init_to_value({"tau": 3.0})),
        "beta": functools.partial(gx.AutoDelta, init_loc_fn=gx.init_to_feasible()),
    }
    guide = gx.AutoGuideList(regression, X, y, key=key, parts=parts)
    median = guide.median()
    np.testing.assert_allclose(median["tau"], 3.0, rtol=1e-5)
    np.testing.assert_array_equal(median["beta"], 0.0)


def test_deterministic_sites_and_quantiles(key):
    guide = gx.AutoGuideList(regression, X, y, key=key, parts=PARTS)
    found = guide.quantiles([0.1, 0.9], X, y)
    assert {n: x.shape for n, x in found.items()} == {
        "tau": (2,),
        "beta": (2, 3),
        "norm": (2,),
        "eta": (2, 40),
    }


def test_mistakes_are_named(key):
    make = functools.partial(gx.AutoGuideList, regression, X, y, key=key)
    for parts, message in (
        ({"beta": gx.AutoDelta}, r"left out: \['tau'\]"),
        ({("beta", "c"): gx.AutoDelta, ...: gx.AutoNormal}, r"no latents of the model: \['c'\]"),
        ({("beta", "tau"): gx.AutoDelta, "tau": gx.AutoNormal}, r"named twice: \['tau'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            make(parts=parts)
    with pytest.raises(TypeError, match="no guide"):
        make(parts={...: lambda *args, **kwargs: 3})
    delta = gx.AutoDelta(gx.handlers.block(regression, expose=["beta"]), X, y, key=key)
    listed = make().append(delta)
    with pytest.raises(ValueError, match=r"\['beta'\] have a part already"):
        listed.append(delta)
    other = gx.AutoDelta(lambda: gx.sample("q", distrax.Normal(jnp.zeros(()), 1.0)), key=key)
    with pytest.raises(ValueError, match=r"latents \['beta', 'tau'\]: \['q'\] are not among them"):
        listed.append(other)
    short, labels = regression_data(features=2)
    wrong = gx.AutoDelta(gx.handlers.block(regression, hide=["tau"]), short, labels, key=key)
    with pytest.raises(ValueError, match=r"'beta' has shape \(2,\), not \(3,\)"):
        make().append(wrong)


def test_a_refit_traces_nothing(key):
    from models import new_traces

    def run():
        guide = gx.AutoGuideList(regression, X, y, key=key, parts=PARTS)
        return gx.fit(key, guide, X, y, steps=5, progress=False)

    first = run()
    assert new_traces(run) == 0
    assert identical(first.losses, run().losses)


def test_a_laplace_part(key):
    """Its curvature is that of its block, with the other parts at their medians."""

    def model(y):
        a = gx.sample("a", distrax.Normal(jnp.zeros(()), 1.0))
        b = gx.sample("b", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("y", distrax.Normal(a + b, 0.5), obs=y)

    data = jnp.asarray(1.0, float)
    parts = {"a": gx.AutoNormal, "b": gx.AutoLaplaceApproximation}
    guide = gx.AutoGuideList(model, data, key=key, parts=parts)
    fitted = gx.fit(key, guide, data, steps=2000, objective=gx.ELBO(8), progress=False).guide
    normal = fitted.laplace(data)
    # The precision of b given a is 1 + 1 / 0.25; its mode, given a, solves 5 b = 4 (1 - a).
    np.testing.assert_allclose(normal[1].family.marginal_scale(), 5**-0.5, rtol=1e-4)
    a, b = (float(fitted.median(data)[n]) for n in "ab")
    assert abs(b - 0.8 * (1 - a)) < 0.05  # the point shakes with the noise of a
    draws = fitted.sample_posterior(key, data, sample_shape=(5000,))
    assert float(draws["b"].std()) == pytest.approx(5**-0.5, rel=0.05)


# Guides written in the model language.


def counts_model(y):
    """`t ~ Gamma(2, 2)`, `m ~ N(t, 1)`, `y_i ~ Exponential(t)`: conjugate in t."""
    t = gx.sample("t", tfd.Gamma(2.0 * jnp.ones(()), 2.0))
    gx.sample("m", distrax.Normal(t, 1.0))
    with gx.plate("d", y.shape[0]):
        gx.sample("y", tfd.Exponential(t), obs=y)


COUNTS = np.array([0.5, 1.0, 2.0, 0.3])
EVIDENCE = 2 * np.log(2) + gammaln(6.0) - 6 * np.log(2 + COUNTS.sum())


def exact_t(y):
    rate = gx.param("rate", 2.0 + float(COUNTS.sum()), gx.constraints.positive)
    gx.sample("t", tfd.Gamma(gx.param("shape", 6.0, gx.constraints.positive), rate))


def exact_m(given, y):
    gx.sample("m", distrax.Normal(given["t"] + gx.param("shift", 0.0), 1.0))


def test_an_exact_program_gives_the_evidence_without_variance(key):
    data = jnp.asarray(COUNTS, float)
    parts = {"t": gx.program(exact_t), "m": gx.program(exact_m, given=True)}
    guide = gx.AutoGuideList(counts_model, data, key=key, parts=parts)
    for estimator in ("pathwise", "stl"):
        for k in jax.random.split(key, 3):
            loss = gx.ELBO(estimator=estimator)(guide, k, data)
            np.testing.assert_allclose(-loss, EVIDENCE, rtol=1e-5)
    values = guide.param_values(data)
    assert values.keys() == {"rate", "shape", "shift"}
    np.testing.assert_allclose(values["shape"], 6.0, rtol=1e-6)
    draws, log_q = guide.sample_and_log_prob(key, data, sample_shape=(20,))
    np.testing.assert_allclose(guide.log_prob(draws, data), log_q, rtol=1e-4)
    weights = gx.log_joint(guide.model, draws, data) - log_q
    np.testing.assert_allclose(weights, EVIDENCE, rtol=1e-4)
    quantiles = guide.quantiles([0.1, 0.9], data, num_samples=20_000)["t"]
    from scipy import stats

    exact = stats.gamma(6.0, scale=1 / (2 + COUNTS.sum())).ppf([0.1, 0.9])
    np.testing.assert_allclose(quantiles, exact, rtol=0.03)


def test_a_program_is_trained(key):
    def start(y):
        shape = gx.param("shape", 3.0, gx.constraints.positive)
        gx.sample("t", tfd.Gamma(shape, gx.param("rate", 3.0, gx.constraints.positive)))

    data = jnp.asarray(COUNTS, float)
    parts = {"t": gx.program(start), "m": gx.AutoNormal}
    guide = gx.AutoGuideList(counts_model, data, key=key, parts=parts)
    result = gx.fit(key, guide, data, steps=2000, objective=gx.ELBO(8), progress=False)
    values = result.guide.param_values(data)
    mean = float(values["shape"] / values["rate"])
    assert mean == pytest.approx(6.0 / (2 + COUNTS.sum()), rel=0.1)


def test_a_numpyro_program(key):
    numpyro = pytest.importorskip("numpyro")
    dist = numpyro.distributions

    def exact(y):
        shape = numpyro.param("shape", 6.0, constraint=dist.constraints.positive)
        numpyro.sample("t", dist.Gamma(shape, 2.0 + y.sum()))

    data = jnp.asarray(COUNTS, float)
    parts = {"t": gx.program(gx.from_numpyro(exact)), "m": gx.program(exact_m, given=True)}
    guide = gx.AutoGuideList(counts_model, data, key=key, parts=parts)
    np.testing.assert_allclose(-gx.ELBO()(guide, key, data), EVIDENCE, rtol=1e-5)


def exact_t_in_numpyro(y):
    numpyro = pytest.importorskip("numpyro")
    positive = numpyro.distributions.constraints.positive
    shape = numpyro.param("shape", 6.0, constraint=positive)
    rate = numpyro.param("rate", 2.0 + float(COUNTS.sum()), constraint=positive)
    numpyro.sample("t", numpyro.distributions.Gamma(shape, rate))


@pytest.mark.parametrize("t", [exact_t, exact_t_in_numpyro], ids=lambda t: t.__name__)
def test_programs_may_be_appended(t, key):
    data = jnp.asarray(COUNTS, float)
    first = gx.program(t if t is exact_t else gx.from_numpyro(t))
    second = gx.program(exact_m, given=True)
    whole = gx.AutoGuideList(counts_model, data, key=key, parts={"t": first, "m": second})
    empty = gx.AutoGuideList(counts_model, data, key=key)
    other = gx.program(lambda y: gx.sample("q", distrax.Normal(0.0, 1.0)))
    listed = empty.append(first, data).append(second, gx.Batch(data), key=key)
    assert jax.tree.structure(listed) == jax.tree.structure(whole)
    np.testing.assert_allclose(-gx.ELBO()(listed, key, data), EVIDENCE, rtol=1e-5)
    for wrong, args, error, message in (
        (first, (data,), ValueError, r"\['t'\] have a part already"),
        (first, (), TypeError, "do not fit the model"),
        (other, (data,), ValueError, r"must draw some of.*\['q'\] are not among them"),
        (gx.program(lambda y: None), (data,), ValueError, "draws no site"),
        (whole, (data,), TypeError, "beside a gx.program alone"),
    ):
        with pytest.raises(error, match=message):
            listed.append(wrong, *args)

    def random_start(y):
        gx.sample("t", tfd.LogNormal(gx.param("loc", jax.random.normal), 1.0))

    starts = [
        empty.append(gx.program(random_start), data, key=k).param_values()["loc"]
        for k in jax.random.split(key)
    ]
    assert starts[0] != starts[1]


def test_mistakes_in_programs_are_named(key):
    data = jnp.asarray(COUNTS, float)

    def wrong_name(y):
        gx.sample("q", distrax.Normal(jnp.zeros(()), 1.0))

    def wrong_shape(y):
        gx.sample("t", tfd.Gamma(2.0 * jnp.ones(3), 2.0))

    def same_param(y):
        gx.param("shape", 1.0)
        gx.sample("m", distrax.Normal(jnp.zeros(()), 1.0))

    for program, message in (
        (wrong_name, r"must draw the latents \['t'\]: it lacks \['t'\]; \['q'\] are not among"),
        (wrong_shape, r"'t' has shape \(3,\), not \(\)"),
    ):
        with pytest.raises(ValueError, match=message):
            parts = {"t": gx.program(program), ...: gx.AutoNormal}
            gx.AutoGuideList(counts_model, data, key=key, parts=parts)
    parts = {"t": gx.program(exact_t), "m": gx.program(same_param)}
    guide = gx.AutoGuideList(counts_model, data, key=key, parts=parts)
    with pytest.raises(ValueError, match=r"param sites \['shape'\]"):
        guide.param_values(data)


@pytest.mark.parametrize("plated", [True, False], ids=["in the plate", "without it"])
def test_a_program_may_leave_out_a_plate(plated, key):
    """With all rows present both are the same distribution, so their densities are the same."""

    def model():
        with gx.plate("d", 3):
            gx.sample("x", tfd.LogNormal(0.0, 1.0))

    def program():
        if plated:
            with gx.plate("d", 3):
                gx.sample("x", tfd.LogNormal(0.5, 0.3))
        else:
            gx.sample("x", tfd.LogNormal(0.5 * jnp.ones(3), 0.3))

    guide = gx.AutoGuideList(model, key=key, parts={"x": gx.program(program)})
    draws, log_q = guide.sample_and_log_prob(key)
    expected = jnp.sum(tfd.LogNormal(0.5, 0.3).log_prob(draws["x"]))
    np.testing.assert_allclose(log_q, expected, rtol=1e-5)
    np.testing.assert_allclose(guide.log_prob(draws), expected, rtol=1e-5)


def test_programs_that_are_no_guides_are_named(key):
    def model():
        with gx.plate("d", 3):
            gx.sample("x", distrax.Normal(0.0, 1.0))

    def other_plate():
        with gx.plate("e", 3):
            gx.sample("x", distrax.Normal(0.0, 1.0))

    def with_factor():
        gx.sample("x", distrax.Normal(jnp.zeros(3), 1.0))
        gx.factor("extra", 100.0)

    def outside():
        scale = gx.param("scale", -1.0, gx.constraints.positive)
        gx.sample("x", distrax.Normal(jnp.zeros(3), scale))

    for program, message in (
        (other_plate, r"in the plates 'e' \(axis 0\), the model in 'd' \(axis 0\)"),
        (outside, r"param sites \['scale'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            gx.AutoGuideList(model, key=key, parts={"x": gx.program(program)})
    guide = gx.AutoGuideList(model, key=key, parts={"x": gx.program(with_factor)})
    with pytest.raises(ValueError, match=r"\['extra'\] of a gx.program"):
        gx.ELBO()(guide, key)


def native_rows(scale):
    with gx.plate("d", 6, subsample_size=2), gx.handlers.scale(scale=scale):
        gx.sample("x", distrax.Normal(0.5 * jnp.ones(()), 0.7))


def numpyro_rows(scale):
    numpyro = pytest.importorskip("numpyro")
    with numpyro.plate("d", 6, subsample_size=2), numpyro.handlers.scale(scale=scale):
        numpyro.sample("x", numpyro.distributions.Normal(0.5 * jnp.ones(()), 0.7))


@pytest.mark.parametrize("program", [native_rows, numpyro_rows], ids=lambda p: p.__name__)
def test_log_q_of_a_program_counts_its_rows_and_nothing_else(program, key):
    """Two rows of six count three times; what a handler multiplies is no density."""

    def make(scale):
        fn = functools.partial(program, scale)
        fn = fn if program is native_rows else gx.from_numpyro(fn)
        return gx.AutoGuideList(rows, key=key, parts={"x": gx.program(fn)})

    def rows():
        with gx.plate("d", 6, subsample_size=2):
            gx.sample("x", distrax.Normal(0.0, jnp.ones(())))

    batch = gx.Batch().at(d=jnp.array([1, 4]))
    draws, log_q = make(1.0).sample_and_log_prob(key, batch)
    exact = distrax.Normal(0.5 * jnp.ones(()), 0.7)
    np.testing.assert_allclose(log_q, 3 * jnp.sum(exact.log_prob(draws["x"])), rtol=1e-4)
    guide = make(3.0)
    for use in (lambda: gx.ELBO()(guide, key, batch), lambda: guide.log_prob(draws, batch)):
        with pytest.raises(ValueError, match=r"scales the sites \['x'\] of a gx.program"):
            use()


def test_a_part_that_cannot_stand_alone_is_refused(key):
    data = jnp.asarray(COUNTS, float)
    parts = {"t": gx.AutoLaplaceApproximation, "m": gx.program(exact_m, given=True)}
    guide = gx.AutoGuideList(counts_model, data, key=key, parts=parts)
    with pytest.raises(ValueError, match=r"list.laplace\(...\)\[i\]"):
        guide[0]
    with pytest.raises(ValueError, match=r"the part over \['m'\]"):
        guide[1]
    assert set(guide.laplace(data)[0].median()) == {"t"}
    with pytest.raises(IndexError):
        guide[2]
    with pytest.raises(TypeError):
        guide[0:1]
    parts = {"t": gx.AutoNormal, "m": gx.AutoDAIS}
    guide = gx.AutoGuideList(counts_model, data, key=key, parts=parts)
    with pytest.raises(ValueError, match="with sites="):
        guide[1]
    with pytest.raises(ValueError, match="no Laplace parts"):
        guide.laplace(data)


def test_a_laplace_part_may_come_before_one_that_reads_it(key):
    """The mode and the curvature of log t, whose density is `a log t - b t`; `m` is at `t`."""
    data = jnp.asarray(COUNTS, float)
    parts = {"t": gx.AutoLaplaceApproximation, "m": gx.program(exact_m, given=True)}
    guide = gx.AutoGuideList(counts_model, data, key=key, parts=parts)
    guide = gx.fit(key, guide, data, steps=500, progress=False).guide
    draws = guide.sample_posterior(key, data, sample_shape=(20_000,))
    log_t = np.log(np.asarray(draws["t"]))
    a, b = 6.0, 2 + COUNTS.sum()
    precision = a + (a / b) ** 2  # with m ~ N(t, 1) held where it is
    assert abs(log_t.mean() - np.log(a / b)) < 5 * (precision * 20_000) ** -0.5 + 0.01
    np.testing.assert_allclose(log_t.std(), precision**-0.5, rtol=0.03)


def test_where_parts_start(key):
    def two():
        gx.sample("a", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("b", distrax.Normal(jnp.zeros(()), 1.0))

    at = gx.init_to_value
    own = functools.partial(gx.AutoDelta, init_loc_fn=at({"a": 3.0}))
    guide = gx.AutoGuideList(
        two, key=key, init_loc_fn=at({"a": 1.0, "b": 2.0}), parts={"a": own, "b": gx.AutoDelta}
    )
    assert {n: float(x) for n, x in guide.median().items()} == {"a": 3.0, "b": 2.0}
    nested = functools.partial(gx.AutoGuideList, parts={"b": gx.AutoNormal, ...: gx.AutoDelta})
    guide = gx.AutoGuideList(
        two, key=key, init_loc_fn=at({"a": 1.0, "b": 2.0}), parts={...: nested}
    )
    assert {n: float(x) for n, x in guide.median().items()} == {"a": 1.0, "b": 2.0}
    lost = functools.partial(gx.AutoGuideList, parts={"b": gx.AutoNormal, "a": own})
    with pytest.raises(ValueError, match="init_loc_fn"):
        gx.AutoGuideList(two, key=key, parts={...: lost})
    plates = functools.partial(gx.AutoDelta, create_plates=lambda: gx.plate("d", 3))
    with pytest.raises(ValueError, match="create_plates"):
        gx.AutoGuideList(two, key=key, parts={...: plates})


def pair_and_rows():
    a = gx.sample("a", distrax.Normal(jnp.ones(()), 1.0))
    gx.sample("b", distrax.Normal(a, 1.0))
    with gx.plate("rows", 3):
        gx.sample("z", distrax.Normal(a, 1.0))


at_two = gx.init_to_value({"b": 2.0, "z": 2.0})


@pytest.mark.parametrize(
    "part, where",
    [
        (functools.partial(gx.AutoSemiDAIS, K=1), {"z": 0.0}),
        (
            functools.partial(
                gx.AutoSemiDAIS,
                K=1,
                global_guide=functools.partial(gx.AutoNormal, init_loc_fn=at_two),
                local_guide=functools.partial(gx.AutoNormal, init_loc_fn=at_two),
            ),
            {"b": 2.0, "z": 2.0},
        ),
        (
            functools.partial(gx.AutoGuideList, parts={"b": gx.AutoDelta, ...: gx.AutoNormal}),
            {},
        ),
    ],
    ids=["semi", "semi with starts of its guides", "list"],
)
def test_a_part_starts_where_it_starts_alone(part, where, key):
    alone, listed = (
        part(pair_and_rows, key=key),
        gx.AutoGuideList(pair_and_rows, key=key, parts={...: part}),
    )
    found = [
        {n: x for leaf in leaves(guide.family) for n, x in base_of(leaf).loc.items()}
        for guide in (alone, listed)
    ]
    assert found[0].keys() == {"a", "b", "z"} and distance(*found) == 0.0
    assert all(float(found[0][n]) != 0.0 for n in ("a", "b"))
    for name, value in where.items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-6)


def base_of(family):
    return getattr(family, "base", family)


def test_a_start_that_a_part_asks_for_out_of_sight_is_refused(key):
    own = gx.init_to_value({"b": 2.0})

    def forward(model, *, key, init_loc_fn=own):
        return gx.AutoNormal(model, key=key, init_loc_fn=init_loc_fn)

    for constructor in (gx.AutoNormal, gx.AutoDAIS, gx.AutoSemiDAIS):
        hidden = functools.partial(lambda make, model, key: make(model, key=key, init_loc_fn=own))
        with pytest.raises(ValueError, match=f"init_loc_fn is given to {constructor.__name__} in"):
            gx.AutoGuideList(
                pair_and_rows, key=key, parts={...: functools.partial(hidden, constructor)}
            )
    base = functools.partial(gx.AutoDiagonalNormal, init_loc_fn=own)
    with pytest.raises(ValueError, match="init_loc_fn is given to AutoDAIS in"):
        parts = {...: functools.partial(gx.AutoDAIS, base_dist=base)}
        gx.AutoGuideList(pair_and_rows, key=key, parts=parts)
    # A default, and what the whole is asked for, are seen.
    guide = gx.AutoGuideList(pair_and_rows, key=key, parts={...: forward})
    np.testing.assert_allclose(guide.median()["b"], 2.0, rtol=1e-6)
    zero = gx.init_to_feasible()
    guide = gx.AutoGuideList(pair_and_rows, key=key, parts={...: forward}, init_loc_fn=zero)
    assert float(guide.median()["b"]) == 0.0
    guide = gx.AutoSemiDAIS(pair_and_rows, key=key, local_guide=forward)
    assert float(jnp.abs(guide.family.parts[-1].base.loc["z"]).max()) == 0.0


def test_laplace_parts_of_a_list_within_a_list(key):
    """The curvature of a standard normal is one wherever the point is."""

    def two():
        gx.sample("a", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("b", distrax.Normal(jnp.zeros(()), 1.0))

    nested = {"a": gx.AutoLaplaceApproximation, "b": gx.AutoDelta}
    nested = functools.partial(gx.AutoGuideList, parts=nested)
    guide = gx.AutoGuideList(two, key=key, parts={...: nested})
    draws = guide.sample_posterior(key, sample_shape=(4_000,))
    assert abs(float(jnp.std(draws["a"])) - 1) < 5 / (2 * 4_000) ** 0.5
    assert float(jnp.std(draws["b"])) < 1e-6


def test_a_discrete_latent_is_named_as_such(key):
    def model():
        gx.sample("k", distrax.Bernoulli(probs=0.5 * jnp.ones(())))
        gx.sample("x", distrax.Normal(jnp.zeros(()), 1.0))

    with pytest.raises(ValueError, match="'k'.*discrete"):
        gx.AutoGuideList(model, key=key, parts={"k": gx.AutoDelta, "x": gx.AutoNormal})
