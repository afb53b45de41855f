"""Unmodified NumPyro models behind the seam."""

import dataclasses
import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from numpyro.distributions import biject_to, constraints
from numpyro.infer.reparam import LocScaleReparam
from numpyro.infer.util import log_density

import guidax as gx
from assertions import identical, perturbed, refused_type
from models import new_traces, traces
from registry import every_guide

N, D, G = 30, 3, 4
RNG = np.random.default_rng(0)
DATA = RNG.normal(size=(N, D)), RNG.integers(0, G, N), RNG.normal(size=N)


def everything(X, group, y=None):
    """Simplex, Cholesky, bounded and scaled sites, params, plates, masks, handlers."""
    traces[0] += 1
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(3) * 2.0))
    L = numpyro.sample("L", dist.LKJCholesky(D, 2.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(1.0).expand([D]).to_event(1))
    numpyro.sample("low", dist.Uniform(0.0, 1.0))
    high = numpyro.sample("high", dist.Uniform(0.0, 2.0))
    s = numpyro.param("s", jnp.array(0.7), constraint=constraints.positive)
    with numpyro.plate("G", G):
        with handlers.scale(scale=0.5):
            scale_tril = tau[:, None] * L
            b = numpyro.sample("b", dist.MultivariateNormal(jnp.zeros(D), scale_tril=scale_tril))
        sg = numpyro.sample("sg", dist.LogNormal(0.0, 0.5))
    numpyro.deterministic("bb", b * 2)
    with numpyro.plate("N", N), handlers.mask(mask=jnp.arange(N) < 25):
        mean = (X * b[group]).sum(-1) * w[0] + high
        numpyro.sample("y", dist.Normal(mean, s * sg[group]), obs=y)


def arrays():
    X, group, y = DATA
    return jnp.asarray(X, float), jnp.asarray(group), jnp.asarray(y, float)


def numpyro_log_density(model, args, values):
    """Return NumPyro's log density of constrained values, and its trace."""
    seeded = handlers.seed(model, 0)
    return log_density(handlers.substitute(seeded, data=values), args, {}, {})


@pytest.mark.parametrize("x64", [True, False])
def test_the_log_joint_is_numpyros(x64, key):
    with jax.enable_x64(x64):
        args = arrays()
        guide = gx.AutoNormal(gx.from_numpyro(everything), *args, key=key)
        draws = guide.sample_posterior(key, *args, sample_shape=(3,))
        latents = {n: x for n, x in draws.items() if n != "bb"}
        ours = gx.log_joint(guide.model, latents, *args)
        for i in range(3):
            values = {n: x[i] for n, x in latents.items()} | guide.param_values(*args)
            theirs, _ = numpyro_log_density(everything, args, values)
            np.testing.assert_allclose(ours[i], theirs, rtol=1e-9 if x64 else 1e-4)
        np.testing.assert_allclose(draws["bb"], 2 * draws["b"], rtol=1e-6)


@every_guide
def test_every_guide_fits_it(entry, key):
    args = arrays()
    model = gx.from_numpyro(everything)
    guide = entry.make(model, *args, key=key)
    result = gx.fit(key, guide, *args, steps=300, progress=False)
    assert bool(jnp.all(jnp.isfinite(result.losses)))
    assert float(result.losses[-50:].mean()) < float(result.losses[:20].mean())
    draws = result.guide.sample_posterior(key, *args, sample_shape=(10,))
    assert draws["L"].shape == (10, D, D) and draws["bb"].shape == (10, G, D)

    def again():
        guide = entry.make(gx.from_numpyro(everything), *args, key=key)
        return gx.fit(key, guide, *args, steps=300, progress=False)

    assert new_traces(again) == 0
    assert identical(again().losses, result.losses)


Y = jnp.asarray(RNG.normal(size=50) * 3, float)


def by_index(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    with numpyro.plate("data", y.shape[0], subsample_size=2) as rows:
        z = numpyro.sample("z", dist.Normal(mu, 3.0))
        numpyro.sample("y", dist.Normal(z, 0.1), obs=y[rows])


def by_primitive(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    with numpyro.plate("data", y.shape[0], subsample_size=2, dim=-1):
        rows = numpyro.subsample(y, event_dim=0)
        z = numpyro.sample("z", dist.Normal(mu, 3.0))
        numpyro.sample("y", dist.Normal(z, 0.1), obs=rows)


def ready(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    with numpyro.plate("data", 50, subsample_size=y.shape[0]):
        z = numpyro.sample("z", dist.Normal(mu, 3.0))
        numpyro.sample("y", dist.Normal(z, 0.1), obs=y)


@pytest.mark.parametrize("fn", [by_index, by_primitive])
def test_subsampled_local_latents(fn, key):
    with jax.enable_x64(True):
        y = jnp.asarray(Y[:5], jnp.float64)
        guide = perturbed(gx.AutoNormal(gx.from_numpyro(fn), y, key=key), key)
        assert guide.family.loc["z"].shape == (5,)
        loss = jax.jit(lambda rows: gx.ELBO()(guide, key, gx.Batch(y).at(data=rows)))
        found = [loss(jnp.array(c)) for c in itertools.combinations(range(5), 2)]
        np.testing.assert_allclose(np.mean(found), loss(jnp.arange(5)), rtol=1e-10)


def test_a_ready_made_batch_needs_row_numbers(key):
    guide = gx.AutoNormal(gx.from_numpyro(ready), Y[:10], key=key)
    with pytest.raises(ValueError, match="row_numbers"):
        gx.fit(key, guide, Y[:10], steps=2, progress=False)
    batch = gx.Batch(Y[:10]).at(data=jnp.arange(10))
    assert jnp.isfinite(gx.ELBO()(guide, key, batch))


def test_scan(key):
    def walk(y):
        s = numpyro.sample("s", dist.LogNormal(0.0, 0.5))

        def step(before, now):
            x = numpyro.sample("x", dist.Normal(before, s))
            v = numpyro.sample("v", dist.LogNormal(0.0 * before, 0.3))
            numpyro.sample("y", dist.Normal(x, v), obs=now)
            return x, None

        scan(step, 0.0, y)

    y = jnp.asarray(np.random.default_rng(3).normal(size=12).cumsum(), float)
    guide = gx.AutoNormal(gx.from_numpyro(walk), y, key=key)
    assert {n: x.shape for n, x in guide.family.loc.items()} == {"s": (), "x": (12,), "v": (12,)}
    draws, log_q = guide.sample_and_log_prob(key, y)
    theirs, _ = numpyro_log_density(walk, (y,), draws)
    np.testing.assert_allclose(gx.log_joint(guide.model, draws, y), theirs, rtol=1e-5)
    # log q in constrained space takes off the log-Jacobian of exp.
    exp = biject_to(constraints.positive)
    u = {n: exp.inv(draws[n]) if n in "sv" else draws[n] for n in draws}
    scale = {n: jax.nn.softplus(x) for n, x in guide.family.raw_scale.items()}
    normal = sum(dist.Normal(guide.family.loc[n], scale[n]).log_prob(u[n]).sum() for n in u)
    np.testing.assert_allclose(log_q, normal - u["s"] - u["v"].sum(), rtol=1e-4)


@pytest.mark.parametrize("rows", [3, 2], ids=["all rows", "two of three rows"])
def test_a_scan_starts_at_given_values(rows, key):
    def walks(y):
        plate = numpyro.plate("row", 3, subsample_size=rows)  # one set of rows for all steps

        def step(before, now):
            with plate as here:
                x = numpyro.sample("x", dist.Normal(before[here], 1.0))
                numpyro.sample("y", dist.Normal(x, 1.0), obs=now[here])
            return before, None

        scan(step, jnp.zeros(3), y)

    y, x = jnp.zeros((5, 3), float), np.random.default_rng(0).normal(size=(5, 3))
    strategy = gx.init_to_value({"x": x})
    guide = gx.AutoNormal(gx.from_numpyro(walks), y, key=key, init_loc_fn=strategy)
    np.testing.assert_allclose(guide.family.loc["x"], x, rtol=1e-6)
    with pytest.raises(ValueError, match=r"has shape \(4, 3\); expected \(5, 3\)"):
        strategy = gx.init_to_value({"x": x[:4]})
        gx.AutoNormal(gx.from_numpyro(walks), y, key=key, init_loc_fn=strategy)


def test_a_plate_made_in_a_scan_holds_all_its_rows(key):
    def walk(y, rows):
        def step(before, now):
            with numpyro.plate("row", 3, subsample_size=rows) as here:
                x = numpyro.sample("x", dist.Normal(before[here], 1.0))
                numpyro.sample("y", dist.Normal(x, 1.0), obs=now[here])
            return before, None

        scan(step, jnp.zeros(3), y)

    y, model = jnp.ones((5, 3), float), gx.from_numpyro(walk)
    guide = gx.AutoNormal(model, y, 3, key=key)
    x = {"x": jnp.full((5, 3), 0.5)}
    theirs, _ = numpyro_log_density(walk, (y, 3), x)
    np.testing.assert_allclose(gx.log_joint(guide.model, x, y, 3), theirs, rtol=1e-5)
    with pytest.raises(ValueError, match="plate 'row' is made inside .* 2 of its 3 rows"):
        gx.AutoNormal(model, y, 2, key=key)

    def nested(y, rows):
        scan(lambda c, now: (cond(True, lambda c: walk(y, rows), lambda c: None, c), None), 0.0, y)

    with pytest.raises(ValueError, match="plate 'row' is made inside"):
        gx.AutoNormal(gx.from_numpyro(nested), y, 2, key=key)


def test_a_plate_made_outside_of_a_scan_holds_some_of_its_rows(key):
    def walk(y):
        plate = numpyro.plate("row", 10, subsample_size=4)
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))

        def step(carry, now):
            with plate as here:
                numpyro.sample("y", dist.Normal(level, 1.0), obs=now[here])
            return carry, None

        scan(step, 0.0, y)

    y, rows = jnp.arange(30.0).reshape(3, 10), jnp.array([1, 7, 3])
    batch = gx.Batch(y).at(row=rows)
    found = gx.log_joint(gx.from_numpyro(walk), {"level": 0.5}, batch)
    prior, normal = dist.Normal(0.0, 1.0), dist.Normal(0.5, 1.0)
    expected = prior.log_prob(0.5) + 10 / 3 * normal.log_prob(y[:, rows]).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_modules_go_through_scan_and_cond(key):
    linear = eqx.nn.Linear(1, 1, key=key)

    def model(y):
        slope, _ = scan(lambda module, now: (module, None), linear, y)
        shift = cond(True, lambda module: module(y[:1]), lambda module: y[:1], slope)
        z = numpyro.sample("z", dist.Normal(shift[0], 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    y = jnp.asarray([0.3, 1.0], float)
    theirs, _ = log_density(model, (y,), {}, {"z": jnp.asarray(0.2, float)})
    found = gx.log_joint(gx.from_numpyro(model), {"z": 0.2}, y)
    np.testing.assert_allclose(found, theirs, rtol=1e-5)


def test_cond(key):
    def branches(flag, y):
        def one():
            return numpyro.sample("z", dist.Normal(0.0, 1.0))

        def other():
            return numpyro.sample("z", dist.Normal(5.0, 2.0))

        z = cond(flag, lambda _: one(), lambda _: other(), None)
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    y = jnp.asarray(0.3, float)
    guide = gx.AutoNormal(gx.from_numpyro(branches), True, y, key=key)
    assert jnp.isfinite(gx.ELBO()(guide, key, True, y))


def test_handlers_reparam_condition_substitute_do(key):
    def schools(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfNormal(5.0))
        with numpyro.plate("school", 3):
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
            numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    y = jnp.asarray([0.3, 1.0, -1.0], float)
    cases = {
        "reparam": (
            handlers.reparam(schools, config={"theta": LocScaleReparam(0.0)}),
            {"mu", "tau", "theta_decentered"},
        ),
        "condition": (handlers.condition(schools, data={"tau": 2.0}), {"mu", "theta"}),
        "do": (handlers.do(schools, data={"tau": 2.0}), {"mu", "tau", "theta"}),
        "block": (handlers.block(schools, hide=["mu"]), {"tau", "theta"}),
    }
    for name, (model, expected) in cases.items():
        guide = gx.AutoNormal(gx.from_numpyro(model), y, key=key)
        assert guide.family.loc.keys() == expected, name
        assert jnp.isfinite(gx.ELBO()(guide, key, y)), name
    reparametrised = gx.AutoNormal(gx.from_numpyro(cases["reparam"][0]), y, key=key)
    assert reparametrised.sample_posterior(key, y)["theta"].shape == (3,)
    # condition scores the value; do leaves tau a latent that nothing reads.
    latents = {"mu": jnp.zeros(()), "theta": jnp.zeros(3)}
    conditioned = gx.log_joint(gx.from_numpyro(cases["condition"][0]), latents, y)
    tau = jnp.asarray(7.0, float)
    done = gx.log_joint(gx.from_numpyro(cases["do"][0]), latents | {"tau": tau}, y)
    prior = dist.HalfNormal(5.0)
    np.testing.assert_allclose(
        done - conditioned, prior.log_prob(tau) - prior.log_prob(2.0), rtol=1e-5
    )


def test_delta_and_improper_sites(key):
    def model(y):
        d = numpyro.sample("d", dist.Delta(jnp.asarray(2.0, float)))
        z = numpyro.sample("z", dist.ImproperUniform(constraints.less_than(1.0), (), ()))
        numpyro.sample("y", dist.Normal(z + d, 1.0), obs=y)

    y = jnp.asarray(0.3, float)
    guide = gx.AutoNormal(gx.from_numpyro(model), y, key=key, init_scale=0.5)
    assert guide.family.loc.keys() == {"z"}
    low, high = guide.quantiles([0.1, 0.9], y)["z"]
    assert low < high < 1  # through a decreasing bijector
    assert float(guide.sample_posterior(key, y)["d"]) == 2.0


def test_python_arguments_stay_python(key):
    """The published BNN example takes its widths so."""

    def bnn(X, y, width, activation):
        assert isinstance(width, int)
        f = {"tanh": jnp.tanh}[activation]
        w1 = numpyro.sample("w1", dist.Normal(jnp.zeros((X.shape[1], width)), 1.0))
        w2 = numpyro.sample("w2", dist.Normal(jnp.zeros(width), 1.0))
        with numpyro.plate("data", X.shape[0]):
            numpyro.sample("y", dist.Normal(f(X @ w1) @ w2, 1.0), obs=y)

    X, _, y = arrays()
    guide = gx.AutoNormal(gx.from_numpyro(bnn), X, y, 5, "tanh", key=key)
    assert guide.family.loc["w1"].shape == (D, 5)
    assert jnp.isfinite(gx.ELBO()(guide, key, X, y, 5, "tanh"))


def test_refusals(key):
    def discrete():
        numpyro.sample("z", dist.Bernoulli(0.5))

    def circular():
        numpyro.sample("angle", dist.VonMises(0.0, 1.0))

    def mutable():
        numpyro.primitives.mutable("state", 0.0)
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    for model, message in (
        (discrete, "'z'.*discrete"),
        (circular, "'angle'.*circular"),
        (mutable, "'state'.*mutable"),
    ):
        with pytest.raises(ValueError, match=message):
            gx.AutoNormal(gx.from_numpyro(model), key=key)
    with refused_type("language's own handler"):
        gx.AutoNormal(gx.handlers.scale(gx.from_numpyro(discrete), 2.0), key=key)


def test_the_model_runs_once_for_each_density(key):
    args = arrays()
    guide = gx.AutoNormal(gx.from_numpyro(everything), *args, key=key)
    batch = guide.admit(gx.Batch(*args))
    indices = guide.indices(key, batch)  # what it asks for is remembered by JAX

    def density():
        target = guide.target(key, batch, indices)
        return target.score(guide.family.draw(key, target)).log_weight

    assert new_traces(density) == 1


def scaled_by_guidax(y):
    with gx.handlers.scale(scale=100.0):
        plain(y)


def in_a_plate_of_guidax(y):
    with gx.plate("rows", 4):
        plain(y)


def with_a_factor_of_guidax(y):
    plain(y)
    gx.factor("more", 100.0)


def with_a_param_of_guidax(y):
    plain(gx.param("shift", 1.0) + y)


def plain(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(x, 1.0).expand([4]).to_event(1), obs=y)


@pytest.mark.parametrize(
    "model",
    [scaled_by_guidax, in_a_plate_of_guidax, with_a_factor_of_guidax, with_a_param_of_guidax],
)
def test_words_of_guidax_inside_are_refused(model, key):
    """NumPyro would take no notice of them, and the density would be another than it looks."""
    with pytest.raises(ValueError, match="the NumPyro model uses a .*guidax"):
        gx.AutoNormal(gx.from_numpyro(model), jnp.ones(4), key=key)


def test_the_log_density_of_a_point_counts(key):
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", 2):
            numpyro.sample("v", dist.Delta(2.0 * jnp.ones(2), log_density=-7.0))
        numpyro.sample("w", dist.Delta(jnp.ones(2), log_density=jnp.square(mu), event_dim=1))
        numpyro.sample("u", dist.Delta(jnp.ones(3)))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    latents = {"mu": jnp.asarray(0.5, float)}
    expected, _ = log_density(handlers.seed(model, 0), (1.5,), {}, latents)
    found = gx.log_joint(gx.from_numpyro(model), latents, 1.5)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert set(gx.AutoNormal(gx.from_numpyro(model), 1.5, key=key).median()) == {
        "mu",
        "v",
        "w",
        "u",
    }


def test_a_mask_within_an_event_is_refused(key):
    def model():
        masked = dist.Normal(jnp.zeros(2), 1.0).mask(jnp.array([True, False]))
        numpyro.sample("x", masked.to_event(1))

    with pytest.raises(ValueError, match="'x': a mask inside of to_event"):
        gx.AutoNormal(gx.from_numpyro(model), key=key)


def subsampled_walks(y, rows, size):
    """NumPyro's way to hand over a batch: the plate gets the rows that the arguments name."""
    with handlers.substitute(data={"data": rows}):
        plate = numpyro.plate("data", size, subsample_size=len(rows))
    s = numpyro.sample("s", dist.LogNormal(-1.0, 0.5))

    def step(before, now):
        with plate:
            x = numpyro.sample("x", dist.Normal(before, s))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=now)
        return x, None

    scan(step, jnp.zeros(len(rows)), y)


def plates_of_arguments(y, rows, size):
    with handlers.substitute(data={"data": rows}):
        return numpyro.plate("data", size, subsample_size=len(rows))


def test_create_plates_may_take_the_rows_from_the_arguments(key):
    model = gx.from_numpyro(subsampled_walks)
    whole = np.random.default_rng(0).normal(size=(4, 6))
    rows = np.array([5, 1, 2])
    args = whole[:, rows], rows, 6
    guide = gx.AutoNormal(model, *args, key=key, create_plates=plates_of_arguments)
    plain = gx.AutoNormal(model, gx.Batch(*args).at(data=rows), key=key)
    assert guide.family.loc["x"].shape == (4, 6)
    loss, grads = jax.value_and_grad(gx.ELBO())(guide, key, *args)
    named = gx.ELBO()(plain, key, gx.Batch(*args).at(data=rows))
    np.testing.assert_allclose(loss, named, rtol=1e-6)
    moved = np.asarray(grads.family.loc["x"] != 0).all(0)
    np.testing.assert_array_equal(moved, np.isin(np.arange(6), rows))
    assert guide.sample_posterior(key, *args)["x"].shape == (4, 3)
    inside = jax.jit(lambda g, y, r: gx.ELBO()(g, key, gx.Batch(y, r, 6)))(guide, *args[:2])
    np.testing.assert_allclose(inside, loss, rtol=1e-5)
    batches = [gx.Batch(whole[:, r], r, 6) for r in (rows, np.array([0, 3, 4]))]
    result = gx.fit(key, guide, batches=lambda step: batches[step % 2], steps=2, progress=False)
    assert np.isfinite(result.losses).all()


def test_rows_that_are_arguments_cannot_be_left_out(key):
    def chosen(y, rows, size):
        with plates_of_arguments(y, rows, size):
            z = numpyro.sample("z", dist.Normal(0.0, 3.0))
            numpyro.sample("y", dist.Normal(z, 0.1), obs=y)

    args, model = (Y[:3], np.array([5, 1, 2]), 6), gx.from_numpyro(chosen)
    guide = gx.AutoNormal(model, *args, key=key, create_plates=plates_of_arguments)
    assert guide.sample_posterior(key, *args)["z"].shape == (3,)
    with pytest.raises(ValueError, match="create_plates takes the rows of the plates.*'data'"):
        guide.sample_posterior(key)


def test_rows_that_create_plates_draws_are_not_those_of_a_ready_made_batch(key):
    def drawn(y):
        return numpyro.plate("data", N, subsample_size=10)

    guide = gx.AutoNormal(gx.from_numpyro(ready), Y[:10], key=key, create_plates=drawn)
    with pytest.raises(ValueError, match="row_numbers"):
        gx.ELBO()(guide, key, Y[:10])


@dataclasses.dataclass
class Configured:
    """A model that is an object: a dataclass has no hash."""

    scale: float

    def __call__(self, y):
        traces[0] += 1
        z = numpyro.sample("z", dist.Normal(0.0, self.scale))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: functools.partial(m, y=Y)])
def test_a_dataclass_is_a_model(wrap, key):
    model = wrap(Configured(2.0))
    args = () if isinstance(model, functools.partial) else (Y,)
    ported = gx.from_numpyro(model)
    assert ported.name == "Configured"
    guide = gx.AutoNormal(ported, *args, key=key)
    theirs, _ = log_density(model, args, {}, {"z": jnp.asarray(0.5, float)})
    np.testing.assert_allclose(gx.log_joint(guide.model, {"z": 0.5}, *args), theirs, rtol=1e-5)

    def again():
        return gx.ELBO()(gx.AutoNormal(gx.from_numpyro(model), *args, key=key), key, *args)

    again()
    assert new_traces(again) == 0


def test_a_param_outside_of_its_constraint_is_named(key):
    def model(start, constraint):
        s = numpyro.param("s", start, constraint=constraint)
        numpyro.sample("z", dist.Normal(jnp.sum(s), 1.0))

    wrapped, positive = gx.from_numpyro(model), constraints.positive
    with pytest.raises(ValueError, match="'s': 1 of its values lie outside"):
        gx.AutoNormal(wrapped, jnp.array([-1.0, 2.0]), positive, key=key)
    # A long simplex adds up to one in single precision as nearly as that goes.
    simplex = jax.random.dirichlet(jax.random.key(0), jnp.ones(3000, jnp.float32))
    guide = gx.AutoNormal(wrapped, simplex, constraints.simplex, key=key)
    np.testing.assert_allclose(guide.param_values()["s"], simplex, atol=1e-5)


@pytest.mark.parametrize("term", [jnp.ones(4), 1.0], ids=["by row", "one"])
def test_a_factor_under_an_array_mask_counts_where_it_is_kept(term, key):
    def model(mask):
        numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", 4), numpyro.handlers.mask(mask=mask):
            numpyro.factor("f", 2.0 * term)

    mask, wrapped = jnp.array([True, True, True, False]), gx.from_numpyro(model)
    gx.AutoNormal(wrapped, mask, key=key)
    found = gx.log_joint(wrapped, {"z": jnp.zeros(())}, mask)
    exact = numpyro_log_density(model, (mask,), {"z": 0.0})[0]
    np.testing.assert_allclose(found, exact, rtol=1e-6)
    np.testing.assert_allclose(exact, -0.5 * np.log(2 * np.pi) + 3 * 2.0, rtol=1e-6)


class Bell(dist.Distribution):
    """A standard normal density, and no draws."""

    support = dist.constraints.real

    def log_prob(self, value):
        return jax.scipy.stats.norm.logpdf(value)


class RefusingBell(Bell):
    def sample(self, key, sample_shape=()):
        raise NotImplementedError


UNDRAWABLE = {
    "no sample": lambda: Bell(),
    "a sample that raises": lambda: RefusingBell(),
    "expanded": lambda: Bell().expand([2]).to_event(1),
    "transformed": lambda: dist.TransformedDistribution(Bell(), dist.transforms.ExpTransform()),
    "mixture": lambda: dist.MixtureGeneral(
        dist.Categorical(logits=jnp.zeros(2)), [dist.Normal(0.0, 1.0), RefusingBell()]
    ),
}


@pytest.mark.parametrize("prior", UNDRAWABLE.values(), ids=UNDRAWABLE)
def test_a_prior_without_draws_needs_none(prior, key):
    def model(y=None):
        z = numpyro.sample("z", prior())
        numpyro.sample("y", dist.Normal(jnp.sum(z), 1.0), obs=y)

    y, wrapped = jnp.zeros(()), gx.from_numpyro(model)
    strategies = (gx.init_to_median(), gx.init_to_mean(), gx.init_to_sample())
    guides = [gx.AutoDelta(wrapped, y, key=key, init_loc_fn=each) for each in strategies]
    uniform = gx.AutoDelta(wrapped, y, key=key, init_loc_fn=gx.init_to_uniform())
    for guide in guides:
        np.testing.assert_allclose(guide.median()["z"], uniform.median()["z"], rtol=1e-6)
    with pytest.raises(ValueError, match="site 'z' has no prior that can be drawn from"):
        gx.Predictive(wrapped, num_samples=2)(key)


def test_predictions_of_a_likelihood_without_draws_are_refused_by_name(key):
    def model(y=None):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample(
            "y",
            dist.TransformedDistribution(Bell(), [dist.transforms.AffineTransform(z, 1.0)]),
            obs=y,
        )

    predictive = gx.Predictive(gx.from_numpyro(model), {"z": jnp.zeros(3)})
    with pytest.raises(ValueError, match="site 'y' has no prior.*without `sample`.*its data"):
        predictive(key)


@pytest.mark.parametrize("value", [{"a": 1.0}, [1.0, [2.0, 3.0]], "text", None], ids=repr)
def test_a_deterministic_site_that_is_no_array_is_refused_by_name(value, key):
    def model():
        numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.deterministic("d", value)

    with pytest.raises(TypeError, match="the value of deterministic 'd' is an array or a number"):
        gx.AutoNormal(gx.from_numpyro(model), key=key)


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_deterministic_site_of_several_numbers_is_an_array(kind, key):
    """As in guidax's own language; the model itself gets back what it gave."""

    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        pair = numpyro.deterministic("pair", kind([z, 2 * z]))
        assert isinstance(pair, kind)

    guide = gx.AutoNormal(gx.from_numpyro(model), key=key)
    z = guide.sample_posterior(key, sample_shape=(50,))
    np.testing.assert_allclose(z["pair"], jnp.stack([z["z"], 2 * z["z"]], axis=-1), rtol=1e-6)
    assert guide.quantiles([0.1, 0.9])["pair"].shape == (2, 2)
    assert gx.diagnose(key, guide).mean()["pair"].shape == (2,)
