"""Annealed guides exchanged with NumPyro's: the same parameters make the same moves."""

import functools

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer import SVI, Trace_ELBO, autoguide
from numpyro.infer.util import log_density

import guidax as gx
from assertions import distance
from guidax._family.vector import ravel_rows

K = 3
NAMES = ["AutoDAIS", "AutoSurrogateLikelihoodDAIS"]
Y = [0.3, -1.0, 2.0]


def model(y):
    """Latents on the line and on the half-line."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    s = numpyro.param("s", jnp.asarray(0.7, float), constraint=constraints.positive)
    with numpyro.plate("rows", 3):
        numpyro.sample("y", dist.Normal(mu[0] * s + mu[1], sigma), obs=y)


def surrogate(y):
    """The same prior, and two of the data with weights."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    weights = numpyro.param("weights", 1.5 * jnp.ones(2, float), constraint=constraints.positive)
    with numpyro.plate("some", 2), handlers.scale(scale=weights):
        numpyro.sample("y", dist.Normal(mu[0] + mu[1], sigma), obs=y)


def both(name, base, y, key, **options):
    """Return a guide of guidax, and NumPyro's with its parameters, moved from their start."""
    asked = {"K": K, "base_dist": base, "eta_init": 0.05, "eta_max": 0.3}
    if name == "AutoDAIS":
        ours = gx.AutoDAIS(gx.from_numpyro(model), y, key=key, **asked, **options)
        theirs = autoguide.AutoDAIS(model, **asked)
    else:
        ours = gx.AutoSurrogateLikelihoodDAIS(
            gx.from_numpyro(model),
            gx.from_numpyro(surrogate),
            y,
            key=key,
            surrogate=gx.Batch(y[:2]),
            **asked,
            **options,
        )
        stand_in = functools.partial(surrogate, y[:2])
        theirs = autoguide.AutoSurrogateLikelihoodDAIS(model, stand_in, **asked)
    svi = SVI(model, theirs, numpyro.optim.Adam(0.1), Trace_ELBO())
    start = svi.get_params(svi.init(jax.random.key(1), y))
    moved = {"eta0": 0.1, "eta_coeff": 0.07, "gamma": 0.6}
    start |= {f"auto_{n}": jnp.asarray(x, float) for n, x in moved.items()}
    start["auto_mass_matrix"] = jnp.asarray([0.5, 1.2, 2.0], float)
    start["auto_beta_increments"] = jnp.asarray([0.5, 1.0, 2.0], float)
    return ours, theirs, start


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("base", ["diagonal", "cholesky"])
@pytest.mark.parametrize("x64", [True, False], ids=["x64", "float32"])
def test_the_same_noise_makes_the_same_draws_densities_and_elbo(name, base, x64, key):
    with jax.enable_x64(x64):
        y = jnp.asarray(Y, float)
        ours, theirs, params = both(name, base, y, key)
        assert gx.to_numpyro_params(ours, y).keys() == params.keys()
        ours = gx.from_numpyro_params(ours, params, y)
        batch = ours.admit(gx.Batch(y))
        target = gx.Target(ours.model, batch, key, {})
        draw = ours.family.draw(key, target)
        score = target.score(draw)

        # The noise of that draw, as NumPyro has it: its first momenta are its last noise.
        keys = random.split(key)
        z = ours.family.base.sample(keys[0])[0]
        noise = random.normal(keys[1], (K, 3), z.dtype)
        momenta = params["auto_mass_matrix"] * jnp.roll(noise, -1, axis=0)
        given = params | {"auto_z_0": z, "auto_momentum": momenta}
        guide = handlers.substitute(handlers.seed(theirs, 0), given)
        log_q, trace = log_density(guide, (y,), {}, {})
        latents = {n: trace[n]["value"] for n in ("mu", "sigma")}
        log_p, _ = log_density(model, (y,), {}, params | latents)

        tolerance = {"rtol": 1e-11, "atol": 1e-11} if x64 else {"rtol": 1e-4, "atol": 1e-4}
        for n, x in latents.items():
            np.testing.assert_allclose(score.values[n], x, **tolerance)
        np.testing.assert_allclose(score.log_q - score.log_det, log_q, **tolerance)
        np.testing.assert_allclose(score.log_weight, log_p - log_q, **tolerance)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("base", ["diagonal", "cholesky"])
def test_parameters_come_back(name, base, key):
    y = jnp.asarray(Y, float)
    ours, _, params = both(name, base, y, key)
    ours = gx.from_numpyro_params(ours, params, y)
    back = gx.to_numpyro_params(ours, y)
    assert back.keys() == params.keys()
    assert {n: x.shape for n, x in back.items()} == {n: jnp.shape(x) for n, x in params.items()}
    tolerance = 1e-12 if jax.config.jax_enable_x64 else 1e-5
    assert distance(back, {n: params[n] for n in back}) < tolerance
    assert distance(gx.from_numpyro_params(ours, back, y), ours) < 10 * tolerance


def test_a_step_size_at_its_bound_becomes_the_nearest(key):
    y = jnp.asarray(Y, float)
    ours, _, params = both("AutoDAIS", "diagonal", y, key)
    for slope, bound in ((10.0, 0.3), (-10.0, 0.0)):
        moved = gx.from_numpyro_params(ours, params | {"auto_eta_coeff": slope}, y)
        assert bool(moved.is_finite())
        np.testing.assert_allclose(moved.dynamics()["step_size"], bound, atol=1e-6)


def test_moves_that_numpyro_does_not_make_are_named(key):
    y = jnp.asarray(Y, float)
    ours, _, params = both("AutoDAIS", "diagonal", y, key)
    faster = eqx.tree_at(lambda g: g.family.dynamics.raw_speed, ours, jnp.array([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="speed one.*between 1.313 and 3.049"):
        gx.to_numpyro_params(faster, y)
    shared = lambda g: (g.family.base, g.family.dynamics.raw_gain, g.family.dynamics.raw_damping)  # noqa: E731
    trained = gx.fit(key, ours, y, steps=5, progress=False, trainable=shared).guide
    assert gx.to_numpyro_params(trained, y)["auto_gamma"] != params["auto_gamma"]
    hotter = eqx.tree_at(lambda g: g.family.dynamics.raw_last, ours, jnp.log(1.25))
    with pytest.raises(ValueError, match=r"last temperature is one; this guide's is 1\.25\."):
        gx.to_numpyro_params(hotter, y)
    back = gx.from_numpyro_params(hotter, params, y)
    np.testing.assert_array_equal(back.dynamics()["temperatures"][-1], 1.0)
    uneven = eqx.tree_at(
        lambda g: g.family.dynamics.raw_step_size, ours, jnp.array([0.1, 0.5, 0.2])
    )
    with pytest.raises(ValueError, match="linear in the temperatures"):
        gx.to_numpyro_params(uneven, y)
    with pytest.raises(ValueError, match=r"'auto_eta0' is 0.4.*eta_max = 0.3"):
        gx.from_numpyro_params(ours, params | {"auto_eta0": 0.4}, y)
    for option, said in (({"whiten": True}, "whiten=True"), ({"max_kick": 5.0}, "max_kick=5.0")):
        other, _, params = both("AutoDAIS", "diagonal", y, key, **option)
        with pytest.raises(ValueError, match=said):
            gx.to_numpyro_params(other, y)
        with pytest.raises(ValueError, match=said):
            gx.from_numpyro_params(other, params, y)
    low_rank = gx.AutoDAIS(
        gx.from_numpyro(model), y, key=key, base_dist=gx.AutoLowRankMultivariateNormal
    )
    with pytest.raises(TypeError, match="LowRankNormal"):
        gx.to_numpyro_params(low_rank, y)
    with pytest.raises(TypeError, match="inside a transformation"):
        jax.jit(lambda g: gx.to_numpyro_params(g, y))(ours)


def global_model(y):
    """What all rows share."""
    return numpyro.sample("m", dist.Normal(0.0, 2.0)), y


def local_model(shared):
    """Two latents for each of four rows, which come in another order than that of their names."""
    m, y = shared
    with numpyro.plate("rows", 4, subsample_size=2) as rows:
        z = numpyro.sample("z", dist.Normal(m, 1.0).expand([2]).to_event(1))
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        numpyro.sample("y", dist.Normal(z.sum(-1), scale), obs=y[rows])


def by_rows(y):
    local_model(global_model(y))


def both_by_rows(y, key, *, shared=False, **options):
    """Return AutoSemiDAIS of guidax and of NumPyro, with parameters that differ by row."""
    asked = {"K": K, "eta_init": 0.05, "eta_max": 0.3, "use_global_dais_params": shared}
    ours = gx.AutoSemiDAIS(gx.from_numpyro(by_rows), y, key=key, **asked, **options)
    theirs = autoguide.AutoSemiDAIS(
        by_rows, local_model, autoguide.AutoNormal(global_model), **asked
    )
    svi = SVI(by_rows, theirs, numpyro.optim.Adam(0.1), Trace_ELBO())
    params = svi.get_params(svi.init(jax.random.key(1), y))
    random = np.random.default_rng(0)
    moved = {n: x * random.uniform(0.5, 1.5, x.shape) for n, x in params.items()}
    moved["auto_eta_coeff"] = random.uniform(0.0, 0.1, jnp.shape(params["auto_eta_coeff"]))
    moved["auto_gamma"] = random.uniform(0.3, 0.8, jnp.shape(params["auto_gamma"]))
    moved["auto_z_0_loc"] = random.normal(size=(4, 3))
    return ours, theirs, jax.tree.map(lambda x: jnp.asarray(x, float), moved)


@pytest.mark.parametrize("shared", [False, True], ids=["by row", "shared"])
def test_rows_move_as_in_numpyro(shared, key):
    y, rows = jnp.asarray([*Y, 0.5], float), jnp.array([3, 1])
    ours, theirs, params = both_by_rows(y, key, shared=shared)
    assert gx.to_numpyro_params(ours).keys() == params.keys()
    ours = gx.from_numpyro_params(ours, params)
    tolerance = 1e-11 if jax.config.jax_enable_x64 else 1e-4
    assert distance(gx.to_numpyro_params(ours), params) < tolerance

    batch = ours.admit(gx.Batch(y).at(rows=rows))
    target = gx.Target(ours.model, batch, key, {"rows": rows})
    draw = ours.family.draw(key, target)
    score = target.score(draw)
    # What the rows start from, and their noise, as NumPyro has it: the first momenta come last.
    start, noise = random.split(random.split(key)[1])
    local = ours.family.parts[1]
    z = ravel_rows(local.base.draw(start, target).values, local.sites, "rows")
    noise = jnp.moveaxis(jnp.roll(local._noise(noise, z, rows), -1, axis=0), 0, -1)
    mass = params["auto_mass_matrix"][rows] if not shared else params["auto_mass_matrix"]
    given = {"auto_z_0": z, "auto_momentum": mass[..., None] * noise, "m": draw.values["m"]}
    guide = handlers.seed(theirs, 0)
    log_q, trace = log_density(
        handlers.substitute(guide, params | given | {"rows": rows}), (y,), {}, {}
    )
    latents = {n: trace[n]["value"] for n in ("m", "z", "scale")}
    log_p, _ = log_density(
        handlers.substitute(handlers.seed(by_rows, 0), {"rows": rows}), (y,), {}, latents
    )
    for n, x in latents.items():
        np.testing.assert_allclose(score.values[n], x, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(score.log_q - score.log_det, log_q, rtol=tolerance)
    np.testing.assert_allclose(score.log_weight, log_p - log_q, rtol=tolerance, atol=tolerance)


def test_rows_that_numpyro_does_not_move_are_named(key):
    y = jnp.asarray([*Y, 0.5], float)
    ours, _, params = both_by_rows(y, key)
    steps = ours.family.parts[1].dynamics.raw_step_size
    uneven = eqx.tree_at(
        lambda g: g.family.parts[1].dynamics.raw_step_size, ours, steps.at[2, 1].set(0.5)
    )
    with pytest.raises(ValueError, match=r"are \[0.05 +0.15\d* +0.05 *\] at the temperatures"):
        gx.to_numpyro_params(uneven)
    last = jnp.zeros(4).at[2].set(jnp.log(0.5))
    cooler = eqx.tree_at(lambda g: g.family.parts[1].dynamics.raw_last, ours, last)
    with pytest.raises(ValueError, match=r"last temperature is one; this guide's is 0\.5\."):
        gx.to_numpyro_params(cooler)
    with pytest.raises(ValueError, match="eta0.*eta_max = 0.3"):
        gx.from_numpyro_params(ours, params | {"auto_eta0": jnp.array([0.1, 0.4, 0.1, 0.1])})
    with pytest.raises(ValueError, match=r"'auto_z_0_loc' has shape \(3,\); the guide's is"):
        gx.from_numpyro_params(ours, params | {"auto_z_0_loc": jnp.zeros(3)})
    by_program, _, _ = both_by_rows(y, key, local_guide=gx.program(from_zero))
    with pytest.raises(TypeError, match="start from independent normals.*ProgramFamily"):
        gx.to_numpyro_params(by_program)


def from_zero(y):
    """A guide for the rows' latents."""
    with gx.plate("rows", 4, subsample_size=2):
        gx.sample("z", distrax.Independent(distrax.Normal(jnp.zeros(2), 1.0), 1))
        gx.sample("scale", distrax.LogStddevNormal(jnp.zeros(()), 0.0))


def test_a_surrogate_without_its_parameters(key):
    y = jnp.asarray(Y, float)
    ours, _, params = both("AutoSurrogateLikelihoodDAIS", "diagonal", y, key)
    del params["weights"]
    with pytest.raises(ValueError, match=r"'weights'.*surrogate"):
        gx.from_numpyro_params(ours, params, y)
