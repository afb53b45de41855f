"""`AutoSemiDAIS`: DAIS for each row's latents, any guide for the globals."""

import functools
import itertools

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx
from assertions import assert_mean_close, distance, perturbed

DATA = jnp.array([0.3, -1.0, 2.0], float)
ROWS = 3


def hierarchy(y):
    """`m ~ N(0, 1)`, `z_i ~ N(m, 0.7^2)`, `y_i ~ N(z_i, 0.5^2)`: the evidence is known."""
    m = gx.sample("m", distrax.Normal(jnp.zeros(()), 1.0))
    with gx.plate("data", ROWS, subsample_size=2):
        z = gx.sample("z", distrax.Normal(m, 0.7))
        gx.deterministic("gap", z - m)
        gx.sample("y", distrax.Normal(z, 0.5), obs=gx.subsample(y))


def only_locals(y):
    """Have no global latent, but two in each row: `b_i ~ N(a_i, 0.7^2)`, `y_i ~ N(b_i, 0.5^2)`."""
    with gx.plate("data", ROWS):
        a = gx.sample("a", distrax.Normal(jnp.zeros(()), 1.0))
        b = gx.sample("b", distrax.Normal(a, 0.7))
        gx.sample("y", distrax.Normal(b, 0.5), obs=y)


def nested(y):
    """Rows with a latent of their own and two more in a plate inside, `y_ij ~ N(z_ij, 0.5^2)`."""
    m = gx.sample("m", distrax.Normal(jnp.zeros(()), 1.0))
    with gx.plate("data", ROWS, subsample_size=2, dim=-2):
        a = gx.sample("a", distrax.Normal(m, 0.6))
        with gx.plate("inner", 2, dim=-1):
            z = gx.sample("z", distrax.Normal(a, 0.7))
            gx.sample("y", distrax.Normal(z, 0.5), obs=gx.subsample(y))


def normal_evidence(covariance, y):
    _, log_det = np.linalg.slogdet(covariance)
    size = len(y)
    return -0.5 * (y @ np.linalg.solve(covariance, y) + log_det + size * np.log(2 * np.pi))


def log_evidence(model):
    """Return the log density of the observations, a normal."""
    y, eye, one = np.asarray(DATA), np.eye(ROWS), np.ones((ROWS, ROWS))
    if model is hierarchy:
        return normal_evidence(one + (0.49 + 0.25) * eye, y)
    if model is only_locals:
        return normal_evidence((1 + 0.49 + 0.25) * eye, y)
    by_row = 0.36 * np.kron(eye, np.ones((2, 2)))
    covariance = np.ones((6, 6)) + by_row + (0.49 + 0.25) * np.eye(6)
    return normal_evidence(covariance, np.asarray(data_of(model)).ravel())


def data_of(model):
    return jnp.stack([DATA, DATA[::-1] + 0.5], axis=1) if model is nested else DATA


def rough(model, *, key, **options):
    """Make a guide away from its start, with moves that matter."""
    options = {"eta_init": 0.2, "eta_max": 0.6, "init_scale": 0.6, **options}
    guide = gx.AutoSemiDAIS(model, data_of(model), key=key, **options)
    return perturbed(guide, jax.random.key(2), 0.2)


@pytest.mark.parametrize(
    ("model", "K", "shared"),
    [
        (hierarchy, 1, False),
        (hierarchy, 4, True),
        (only_locals, 4, False),
        (nested, 4, True),
        pytest.param(hierarchy, 16, False, marks=pytest.mark.slow),
        pytest.param(nested, 4, False, marks=pytest.mark.slow),
    ],
)
def test_the_mean_weight_is_the_evidence(model, K, shared, key):
    y = data_of(model)
    guide = rough(model, key=key, K=K, use_global_dais_params=shared)
    guide = gx.fit(key, guide, y, steps=300, learning_rate=0.03, progress=False).guide
    draws, log_q = guide.sample_and_log_prob(key, y, sample_shape=(20_000,))
    log_w = gx.log_joint(guide.model, draws, y) - log_q
    assert_mean_close(jnp.exp(log_w - log_evidence(model)), 1.0)
    # The objective is the mean of the same weights, also where rows are drawn.
    losses = jax.vmap(lambda k: gx.ELBO()(guide, k, y))(jax.random.split(key, 4_000))
    error = float(losses.std()) / 4_000**0.5 + float(log_w.std()) / 20_000**0.5
    assert abs(float(losses.mean() + log_w.mean())) < 5 * error
    assert log_evidence(model) - 1.0 < float(log_w.mean()) < log_evidence(model)


def cut(y):
    """Get rows that are cut already."""
    m = gx.sample("m", distrax.Normal(jnp.zeros(()), 1.0))
    with gx.plate("data", 5, subsample_size=y.shape[0], dim=-2):
        s = gx.sample("s", tfd.HalfNormal(jnp.ones(())))
        with gx.plate("inner", 2, dim=-1):
            z = gx.sample("z", distrax.Normal(m, s))
            gx.sample("y", distrax.Normal(z, 0.5), obs=y)


def take(y):
    """Take rows from all data, for the same model."""
    m = gx.sample("m", distrax.Normal(jnp.zeros(()), 1.0))
    with gx.plate("data", 5, subsample_size=2, dim=-2):
        s = gx.sample("s", tfd.HalfNormal(jnp.ones(())))
        with gx.plate("inner", 2, dim=-1):
            z = gx.sample("z", distrax.Normal(m, s))
            gx.sample("y", distrax.Normal(z, 0.5), obs=gx.subsample(y))


@pytest.mark.parametrize("model", [cut, take])
@pytest.mark.parametrize("shared", [False, True], ids=["by row", "shared"])
def test_the_mean_over_subsets_is_the_full_estimate(model, shared, key):
    """In value and in gradient, to rounding, with plates inside the rows."""
    with jax.enable_x64(True):
        y = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)))
        args = (lambda rows: y[rows]) if model is cut else (lambda rows: y)
        first = jnp.arange(2)
        guide = gx.AutoSemiDAIS(
            model,
            gx.Batch(args(first)).at(data=first),
            key=key,
            K=3,
            eta_init=0.05,
            use_global_dais_params=shared,
        )
        guide = perturbed(guide, jax.random.key(4), 0.2)
        loss = jax.jit(
            jax.value_and_grad(lambda g, rows, y: gx.ELBO()(g, key, gx.Batch(y).at(data=rows)))
        )
        full, full_grads = loss(guide, jnp.arange(5), args(jnp.arange(5)))
        subsets = [jnp.array(c) for c in itertools.combinations(range(5), 2)]
        found = [loss(guide, rows, args(rows)) for rows in subsets]
        assert np.std([f[0] for f in found]) > 0.1
        np.testing.assert_allclose(np.mean([f[0] for f in found]), full, rtol=1e-12)
        mean = jax.tree.map(lambda *g: sum(g) / len(g), *(f[1] for f in found))
        assert distance(full_grads, mean) < 1e-10
        assert all(bool(jnp.any(x != 0)) for x in jax.tree.leaves(full_grads))


@pytest.mark.parametrize("shared", [False, True], ids=["by row", "shared"])
def test_a_row_moves_alike_in_every_batch(shared, key):
    guide = rough(hierarchy, key=key, use_global_dais_params=shared)
    whole = guide.sample_posterior(key, DATA, sample_shape=(4,))
    assert whole["z"].shape == (4, ROWS) and whole["gap"].shape == (4, ROWS)
    for rows in ([2, 0], [1, 2, 0]):
        batch = gx.Batch(DATA).at(data=jnp.array(rows))
        some = guide.sample_posterior(key, batch, sample_shape=(4,))
        np.testing.assert_allclose(some["m"], whole["m"], rtol=1e-5)
        np.testing.assert_allclose(some["z"], whole["z"][:, rows], rtol=1e-4)
        np.testing.assert_allclose(some["gap"], some["z"] - some["m"][:, None], atol=1e-6)


def test_padded_rows_leave_the_evidence_as_it_is(key):
    def model(y, mask):
        with gx.plate("data", 4), gx.handlers.mask(mask=mask):
            z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
            gx.sample("y", distrax.Normal(z, 0.5), obs=y)

    y = jnp.array([*np.asarray(DATA), jnp.nan])
    args = (y, jnp.array([True, True, True, False]))
    guide = gx.AutoSemiDAIS(model, *args, key=key, K=2, eta_max=0.5, init_scale=0.6)
    result = gx.fit(key, guide, *args, steps=300, learning_rate=0.03, progress=False)
    elbos = -jax.vmap(lambda k: gx.ELBO()(result.guide, k, *args))(jax.random.split(key, 4_000))
    evidence = normal_evidence((1 + 0.25) * np.eye(ROWS), np.asarray(DATA))
    error = float(elbos.std()) / 4_000**0.5
    assert evidence - 0.3 < float(elbos.mean()) < evidence + 5 * error


def regression(X, y, rows):
    """Robust regression: noise `0.1 / sqrt(tau)`, a tau for each datum."""
    zeros = jnp.zeros(3)
    theta = gx.sample("theta", distrax.Independent(distrax.Normal(zeros, 1.0), 1))
    with gx.plate("N", 18, subsample_size=rows):
        X, y = gx.subsample(X, event_dim=1), gx.subsample(y)
        tau = gx.sample("tau", distrax.Gamma(5.0 * jnp.ones(()), 5.0))
        gx.sample("y", distrax.Normal(X @ theta, 0.1 / jnp.sqrt(tau)), obs=y)


@pytest.mark.slow
def test_a_robust_regression(key):
    """Training does not depend on the size of the batch, and beats independent normals."""
    X = np.random.RandomState(0).randn(18, 3)
    y = X[:, 0] - 0.5 * X[:, 1] + 0.1 * np.random.RandomState(1).randn(18)

    def elbo(constructor, rows):
        args = gx.Batch(X, y, rows)
        guide = constructor(regression, args, key=key)
        schedule = optax.piecewise_constant_schedule(3e-3, {15_000: 0.1, 30_000: 0.1})
        guide = gx.fit(
            key,
            guide,
            args,
            steps=45_000,
            optimizer=optax.adam,
            learning_rate=schedule,
            progress=False,
        ).guide
        whole = gx.Batch(X, y, rows).at(N=jnp.arange(18))
        keys = jax.random.split(jax.random.key(1), 20_000)
        return -float(jax.vmap(lambda k: gx.ELBO()(guide, k, whole))(keys).mean())

    semi = functools.partial(gx.AutoSemiDAIS, eta_max=0.25, eta_init=0.005, subsample_plate="N")
    mean_field = elbo(gx.AutoNormal, 16)
    found = {rows: elbo(semi, rows) for rows in (12, 16)}
    assert abs(found[12] - found[16]) < 0.05, found
    assert min(found.values()) > mean_field + 0.3, (found, mean_field)
    assert min(found.values()) > 1.2, found


ARGUMENTS = {
    "K": 2,
    "eta_init": 0.03,
    "eta_max": 0.5,
    "gamma_init": 0.5,
    "init_scale": 0.7,
    "init_loc_fn": gx.init_to_value({"m": 0.3, "z": 1.5}),
    "use_global_dais_params": True,
    "global_guide": functools.partial(gx.AutoNormal, init_scale=0.9),
    "local_guide": functools.partial(gx.AutoNormal, init_scale=0.9),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_no_argument_is_ignored(name, key):
    def draw(**options):
        guide = gx.AutoSemiDAIS(hierarchy, DATA, key=key, **options)
        return guide.dynamics(), guide.sample_posterior(key, DATA, sample_shape=(5,))

    moves, plain = draw()
    other_moves, other = draw(**{name: ARGUMENTS[name]})
    if name == "use_global_dais_params":  # all rows start alike, so the number of them tells
        assert moves["damping"].shape == (ROWS,) and other_moves["damping"].shape == ()
    else:
        assert distance(plain, other) > 1e-4


def test_dynamics_are_as_asked(key):
    options = {"K": 3, "eta_init": 0.07, "eta_max": 0.3, "gamma_init": 0.6}
    guide = gx.AutoSemiDAIS(hierarchy, DATA, key=key, **options)
    found = guide.dynamics()
    np.testing.assert_allclose(found["step_size"], np.full((ROWS, 3), 0.07), rtol=1e-4)
    np.testing.assert_allclose(found["temperatures"], np.tile([1 / 3, 2 / 3, 1], (ROWS, 1)))
    np.testing.assert_allclose(found["damping"], np.full(ROWS, 0.6), rtol=1e-5)
    np.testing.assert_allclose(found["speed"], np.ones((ROWS, 1)), rtol=1e-5)
    np.testing.assert_allclose(found["gain"], np.ones((ROWS, 1)), rtol=1e-5)


def test_where_it_starts(key):
    """Rows at unconstrained zero, globals as their guide does, unless a strategy is given."""
    guide = gx.AutoSemiDAIS(hierarchy, DATA, key=key, global_guide=gx.AutoDelta)
    point, local = guide.family.parts
    assert bool(jnp.all(local.base.loc["z"] == 0))
    assert float(point.loc["m"]) != 0  # the median of prior draws
    values = {"m": 0.3, "z": jnp.array([1.0, 2.0, 3.0])}
    guide = gx.AutoSemiDAIS(hierarchy, DATA, key=key, init_loc_fn=gx.init_to_value(values))
    np.testing.assert_allclose(guide.family.parts[0].loc["m"], 0.3, rtol=1e-6)
    np.testing.assert_allclose(guide.family.parts[1].base.loc["z"], values["z"], rtol=1e-6)


def test_median_quantiles_and_deterministic_sites(key):
    guide = gx.AutoSemiDAIS(hierarchy, DATA, key=key)
    guide = gx.fit(key, guide, DATA, steps=1000, learning_rate=0.03, progress=False).guide
    found = guide.quantiles([0.05, 0.5, 0.95], DATA, num_samples=10_000)
    assert {n: x.shape for n, x in found.items()} == {"m": (3,), "z": (3, 3), "gap": (3, 3)}
    assert (
        distance(guide.median(DATA, num_samples=10_000), {n: x[1] for n, x in found.items()}) == 0
    )
    # The posterior of z is normal.
    precision = np.linalg.inv(np.ones((ROWS, ROWS)) + 0.49 * np.eye(ROWS)) + 4 * np.eye(ROWS)
    covariance = np.linalg.inv(precision)
    mean = covariance @ (4 * np.asarray(DATA))
    np.testing.assert_allclose(found["z"][1], mean, atol=0.1)
    spread = (found["z"][2] - found["z"][0]) / (2 * norm.ppf(0.95))
    np.testing.assert_allclose(spread, np.sqrt(np.diag(covariance)), rtol=0.15)
    for use in (guide.median, lambda: guide.sample_posterior(key)):
        with pytest.raises(ValueError, match="depend on the model's arguments"):
            use()
    with pytest.raises(TypeError, match="no density in closed form"):
        guide.log_prob({"m": jnp.zeros(()), "z": jnp.zeros(ROWS)}, DATA)
    with pytest.raises(ValueError, match="no density in closed form"):
        gx.ELBO(estimator="stl")(guide, key, DATA)


class Encoder(eqx.Module):
    """An amortised local guide."""

    layer: eqx.nn.Linear

    def __init__(self, key):
        self.layer = eqx.nn.Linear(1, 2, key=key)

    def __call__(self, y):
        with gx.plate("data", ROWS, subsample_size=2):
            loc, raw = jax.vmap(self.layer)(gx.subsample(y)[:, None]).T
            gx.sample("z", distrax.Normal(loc, jax.nn.softplus(raw)))


def conditional(latents, y):
    with gx.plate("data", ROWS, subsample_size=2):
        loc = gx.param("shift", 0.1) + latents["m"] + 0.5 * gx.subsample(y)
        gx.sample("z", distrax.Normal(loc, 0.5))


def block(model, **which):
    return gx.handlers.block(model, **which)


GUIDES = {
    "constructors": lambda key: {
        "global_guide": gx.AutoMultivariateNormal,
        "local_guide": gx.AutoNormal,
    },
    "guides": lambda key: {
        "global_guide": gx.AutoNormal(block(hierarchy, expose=["m"]), DATA, key=key),
        "local_guide": gx.AutoNormal(block(hierarchy, expose=["z", "data"]), DATA, key=key),
    },
    "a point, and a module": lambda key: {
        "global_guide": gx.AutoDelta,
        "local_guide": Encoder(key),
    },
    "a program that reads the globals": lambda key: {
        "local_guide": gx.program(conditional, given=True),
    },
}


@pytest.mark.parametrize("shared", [False, True], ids=["by row", "shared"])
@pytest.mark.parametrize("name", GUIDES)
def test_guides_for_globals_and_for_the_base(name, shared, key):
    options = {"eta_init": 0.05, "eta_max": 0.6, "use_global_dais_params": shared}
    guide = gx.AutoSemiDAIS(hierarchy, DATA, key=key, **GUIDES[name](key), **options)
    start = guide
    guide = gx.fit(key, guide, DATA, steps=2_000, progress=False).guide
    assert all(
        bool(jnp.any(a != b))
        for a, b in zip(jax.tree.leaves(start), jax.tree.leaves(guide), strict=True)
    )
    draws, log_q = guide.sample_and_log_prob(key, DATA, sample_shape=(10_000,))
    log_w = gx.log_joint(guide.model, draws, DATA) - log_q
    if name != "a point, and a module":
        assert_mean_close(jnp.exp(log_w - log_evidence(hierarchy)), 1.0)
        assert log_evidence(hierarchy) - 1.0 < float(log_w.mean()) < log_evidence(hierarchy)
    params = guide.param_values(DATA)
    assert params.keys() == ({"shift"} if "program" in name else set())
    rows = gx.Batch(DATA).at(data=jnp.array([2]))
    assert guide.sample_posterior(key, rows)["z"].shape == (1,)


def test_a_fitted_guide_is_kept(key):
    fitted = gx.AutoNormal(block(hierarchy, expose=["m"]), DATA, key=key)
    fitted = eqx.tree_at(lambda g: g.family.loc["m"], fitted, jnp.asarray(7.0, float))
    guide = gx.AutoSemiDAIS(hierarchy, DATA, key=key, global_guide=fitted)
    assert float(guide.family.parts[0].loc["m"]) == 7.0


def test_as_the_last_part_of_a_list(key):
    parts = {"m": gx.AutoDelta, ...: functools.partial(gx.AutoSemiDAIS, K=2)}
    guide = gx.AutoGuideList(hierarchy, DATA, key=key, parts=parts)
    assert bool(jnp.all(guide.parts[1].parts[0].base.loc["z"] == 0))
    result = gx.fit(key, guide, DATA, steps=20, progress=False)
    assert bool(jnp.all(jnp.isfinite(result.losses)))
    assert result.guide.sample_posterior(key, DATA)["z"].shape == (ROWS,)


def test_batches_of_ones_own(key):
    """Train on streamed rows: each row's parameters move with its own data."""
    y = jnp.asarray(np.random.default_rng(1).normal(size=(20, 2)) * 3, float)

    def model(y):
        with gx.plate("data", 20, subsample_size=y.shape[0], dim=-2):
            z = gx.sample("z", distrax.Normal(jnp.zeros((1, 1)), 3.0))
            with gx.plate("inner", 2, dim=-1):
                gx.sample("y", distrax.Normal(z, 0.3), obs=y)

    def batches(step):
        rows = np.random.default_rng(step).choice(20, 5, replace=False)
        return gx.Batch(y[rows]).at(data=rows)

    guide = gx.AutoSemiDAIS(model, batches(0), key=key)
    guide = gx.fit(key, guide, steps=600, batches=batches, progress=False).guide
    draws = guide.sample_posterior(key, y, sample_shape=(200,))["z"]
    assert draws.shape == (200, 20, 1)
    assert np.corrcoef(draws.mean(axis=0)[:, 0], y.mean(axis=1))[0, 1] > 0.95
    with pytest.raises(ValueError, match="row_numbers"):
        gx.ELBO()(guide, key, y[:5])


def test_the_usage_example_of_the_reference_page(key):
    import numpyro
    import numpyro.distributions as dist

    def global_model():
        return numpyro.sample("theta", dist.Normal(0, 1))

    def local_model(theta):
        with numpyro.plate("data", 8, subsample_size=2):
            tau = numpyro.sample("tau", dist.Gamma(5.0, 5.0))
            numpyro.sample("obs", dist.Normal(0.0, tau), obs=jnp.ones(2))

    model = gx.from_numpyro(lambda: local_model(global_model()))
    global_guide = gx.AutoNormal(gx.from_numpyro(global_model), key=key)
    guide = gx.AutoSemiDAIS(model, key=key, global_guide=global_guide, K=4)
    guide = gx.fit(key, guide, steps=20, progress=False).guide
    # The posterior of a subset of the data, {3, 7}.
    subset = gx.Batch().at(data=jnp.array([3, 7]))
    samples = guide.sample_posterior(jax.random.key(1), subset)
    assert samples["theta"].shape == () and samples["tau"].shape == (2,)
    with pytest.raises(ValueError, match="all its 8 rows .* does not run .*at.data=row_numbers"):
        guide.sample_posterior(key)  # there are two observations


def test_numpyro_models(key):
    """They give what the same model in guidax's own language gives."""
    import numpyro
    import numpyro.distributions as dist

    def model(y):
        theta = numpyro.sample("theta", dist.Normal(0, 1))
        with numpyro.plate("data", 8, subsample_size=2):
            y = numpyro.subsample(y, event_dim=0)
            tau = numpyro.sample("tau", dist.Gamma(5.0, 5.0))
            numpyro.sample("obs", dist.Normal(theta, tau), obs=y)

    def native(y):
        theta = gx.sample("theta", distrax.Normal(jnp.zeros(()), 1.0))
        with gx.plate("data", 8, subsample_size=2):
            tau = gx.sample("tau", distrax.Gamma(5.0 * jnp.ones(()), 5.0))
            gx.sample("obs", distrax.Normal(theta, tau), obs=gx.subsample(y))

    y = jnp.linspace(-1.0, 2.0, 8)
    batch = gx.Batch(y).at(data=jnp.array([3, 7]))
    found = {}
    for name, each in (("numpyro", gx.from_numpyro(model)), ("native", native)):
        guide = gx.AutoSemiDAIS(each, y, key=key, init_loc_fn=gx.init_to_value({"theta": 0.2}))
        guide = eqx.tree_at(lambda g: g.family.parts[1].base.loc["tau"], guide, jnp.zeros(8) + 0.3)
        found[name] = (gx.ELBO()(guide, key, batch), guide.sample_posterior(key, batch)["tau"])
        assert jnp.isfinite(gx.ELBO()(guide, key, y))
    assert distance(found["numpyro"], found["native"]) < 1e-5


# --- what is refused


def two_plates(y):
    m = gx.sample("m", distrax.Normal(jnp.zeros(()), 1.0))
    with gx.plate("other", 4, subsample_size=2, dim=-2):
        gx.sample("o", distrax.Normal(m, 1.0), obs=jnp.ones((2, 1)))
    with gx.plate("data", 3, subsample_size=2, dim=-1):
        z = gx.sample("z", distrax.Normal(m, 1.0))
        gx.sample("y", distrax.Normal(z, 1.0), obs=gx.subsample(y))


def beside(y):
    """Have latents in two full plates, of which none is inside the other."""
    with gx.plate("a", 4, dim=-2):
        gx.sample("u", distrax.Normal(jnp.zeros(()), 1.0))
    with gx.plate("data", 3, dim=-1):
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("y", distrax.Normal(z, 1.0), obs=y)


def both(y):
    with gx.plate("a", 4, dim=-2), gx.plate("data", 3, dim=-1):
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("y", distrax.Normal(z, 1.0), obs=y)


def two_rows(y):
    """Have a global latent and two in each row."""
    m = gx.sample("m", distrax.Normal(jnp.zeros(()), 1.0))
    with gx.plate("data", 3):
        gx.sample("a", distrax.Normal(m, 1.0))
        z = gx.sample("z", distrax.Normal(m, 1.0))
        gx.sample("y", distrax.Normal(z, 1.0), obs=y)


def no_locals(y):
    m = gx.sample("m", distrax.Normal(jnp.zeros(()), 1.0))
    with gx.plate("data", 3):
        gx.sample("y", distrax.Normal(m, 1.0), obs=y)


def no_plate(y):
    gx.sample("m", distrax.Normal(jnp.zeros(()), 1.0))


def read_outside(y):
    with gx.plate("data", 3):
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
    gx.sample("total", distrax.Normal(z.sum(), 1.0), obs=jnp.asarray(1.0, float))


def global_reads_local(y):
    with gx.plate("data", 3):
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
    gx.sample("w", distrax.Normal(z[0], 1.0))


def rows_feed_each_other(y):
    with gx.plate("data", 3):
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("y", distrax.Normal(z - 0.1 * z.mean(), 1.0), obs=y)


def a_chain(y):
    with gx.plate("data", 3):
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("w", distrax.Normal(jnp.roll(z, 1), jnp.exp(z)))


def rows_in_a_part(y):
    with gx.plate("data", 3, dim=-2):
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        with gx.plate("inner", 4, subsample_size=2, dim=-1):
            gx.sample("y", distrax.Normal(z, 1.0), obs=gx.subsample(jnp.ones((3, 4)) * y[0]))


def unplated_program(y):
    gx.sample("z", distrax.Normal(jnp.zeros(3), 1.0))


class Late:
    """A guide on some sites, built when a test asks, not while tests are collected."""

    def __init__(self, model, *names):
        self.model, self.names = block(model, expose=[*names, "data"]), names

    def build(self):
        return gx.AutoNormal(self.model, DATA, key=jax.random.key(0))


NO_DENSITY = r"no density for each row of plate 'data' at the sites \['z'\]"
ERRORS = {
    "two plates": (two_plates, {}, r"subsampled plates \['other', 'data'\]: say which"),
    "a plate in a plate": (both, {}, r"plates that hold latents \['a', 'data'\]: say which"),
    "plates beside": (beside, {}, r"no plate holds all latents .* \['a', 'data'\]"),
    "no latent in a plate": (no_locals, {}, r"no latent of the model is in a plate.*\['data'\]"),
    "no plate": (no_plate, {}, r"no latent of the model is in a plate.*\[\]"),
    "unknown plate": (hierarchy, {"subsample_plate": "dta"}, r"'dta' names no plate.*\['data'\]"),
    "no local latent": (
        no_locals,
        {"subsample_plate": "data"},
        "no latent is left in plate 'data'",
    ),
    "all latents global": (
        hierarchy,
        {"global_guide": Late(hierarchy, "m", "z")},
        "no latent is left in plate 'data'",
    ),
    "a latent outside": (
        two_rows,
        {"global_guide": Late(two_rows, "a")},
        r"latents \['m'\] are not in plate 'data'.*draws \['a'\] only",
    ),
    "a global guide of another model": (
        hierarchy,
        {"global_guide": Late(two_rows, "a")},
        r"global_guide must draw some of .*: \['a'\] are not among them",
    ),
    "a global guide without globals": (
        only_locals,
        {"global_guide": gx.AutoNormal},
        "no latent outside plate 'data': leave it out",
    ),
    "a global guide that trains as a point": (
        hierarchy,
        {"global_guide": gx.AutoLaplaceApproximation},
        "global_guide is a Laplace approximation",
    ),
    "a term outside reads": (read_outside, {}, "site 'total' is outside plate 'data'.*'z'"),
    "a global reads": (global_reads_local, {}, "site 'w' is outside plate 'data'.*'z'"),
    "rows feed each other": (rows_feed_each_other, {}, "feed each other.*'y'.*'z'"),
    "a chain": (a_chain, {}, "feed each other.*'w'.*'z'"),
    "a local point": (hierarchy, {"local_guide": gx.AutoDelta}, NO_DENSITY),
    "a joint local guide": (hierarchy, {"local_guide": gx.AutoMultivariateNormal}, NO_DENSITY),
    "a local program without the plate": (
        hierarchy,
        {"local_guide": gx.program(unplated_program)},
        NO_DENSITY,
    ),
    "a local guide of other sites": (
        hierarchy,
        {"local_guide": Late(only_locals, "a")},
        r"local_guide must draw the latents \['z'\]: it lacks \['z'\]; \['a'\] are not among",
    ),
    "a local guide of too few": (
        only_locals,
        {"local_guide": Late(only_locals, "a")},
        r"local_guide must draw the latents \['a', 'b'\]: it lacks \['b'\]",
    ),
    "K": (hierarchy, {"K": 0}, "K counts steps"),
    "eta_init": (hierarchy, {"eta_init": 0.2}, "eta_init is a step size"),
    "eta_max": (hierarchy, {"eta_max": -1.0}, "eta_max bounds the step sizes"),
    "gamma_init": (hierarchy, {"gamma_init": 1.5}, "gamma_init is the share"),
    "init_scale": (hierarchy, {"init_scale": 0.0}, "init_scale is a standard deviation"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_is_refused(name, key):
    model, options, message = ERRORS[name]
    options = {n: x.build() if isinstance(x, Late) else x for n, x in options.items()}
    with pytest.raises(ValueError, match=message):
        gx.AutoSemiDAIS(model, DATA, key=key, **options)


def test_the_plate_can_be_named(key):
    guide = gx.AutoSemiDAIS(two_plates, DATA, key=key, subsample_plate="data")
    assert jnp.isfinite(gx.ELBO()(guide, key, DATA))
    guide = gx.AutoSemiDAIS(both, DATA, key=key, subsample_plate="a")
    assert guide.dynamics()["damping"].shape == (4,)
    guide = gx.AutoSemiDAIS(beside, DATA, key=key, subsample_plate="data")
    assert [s.name for s in guide.family.sites] == ["u", "z"]


def test_a_part_of_a_row_is_refused(key):
    guide = gx.AutoSemiDAIS(rows_in_a_part, DATA, key=key, subsample_plate="data")
    with pytest.raises(ValueError, match="'inner', which holds 2 of 4 rows"):
        gx.ELBO()(guide, key, DATA)


def test_no_guide_and_no_local_model(key):
    with pytest.raises(TypeError, match="takes no local_model"):
        gx.AutoSemiDAIS(hierarchy, DATA, key=key, local_model=hierarchy)
    for argument in ("global_guide", "local_guide"):
        with pytest.raises(TypeError, match="is no guide"):
            gx.AutoSemiDAIS(hierarchy, DATA, key=key, **{argument: lambda model, key: 3})

    def takes_local_model(local_model):
        hierarchy(local_model)

    gx.AutoSemiDAIS(takes_local_model, key=key, local_model=DATA)


def test_observations_left_out_are_refused(key):
    def model(x, y=None):
        with gx.plate("data", 3):
            z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
            gx.sample("y", distrax.Normal(z + x, 0.5), obs=y)

    guide = gx.AutoSemiDAIS(model, DATA, DATA, key=key)
    with pytest.raises(ValueError, match="'y'"):  # draws of another posterior
        guide.sample_posterior(key, DATA)
