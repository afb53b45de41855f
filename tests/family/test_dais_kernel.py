"""The moves of annealed importance sampling, against algebra, and their parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from assertions import assert_mean_close, distance
from guidax._family.dais_kernel import dais
from guidax._family.dynamics import Dynamics, DynamicsOptions, inverse_soft_clip, soft_clip

COVARIANCE = np.array([[1.0, 0.8, 0.2], [0.8, 1.5, 0.4], [0.2, 0.4, 0.7]])
PRECISION = np.linalg.inv(COVARIANCE)


def target(z):
    return -z @ jnp.asarray(PRECISION, z.dtype)


def base(z):
    return -z


def options(steps, batch=(), *, eta=0.3):
    """Return uneven parameters of every kind."""
    spread = np.linspace(0.7, 1.3, int(np.prod(batch, dtype=int)) or 1).reshape(batch)
    steps_of = np.linspace(1.0, 0.5, steps).reshape(steps, *(1,) * len(batch))
    temperatures = np.linspace(0.3, 1.0, steps).reshape(steps, *(1,) * len(batch))
    return {
        "step_size": jnp.asarray(eta * steps_of * spread),
        "speed": jnp.asarray(spread[..., None] * np.array([0.5, 1.0, 1.5])),
        "gain": jnp.asarray(spread[..., None] * np.array([1.2, 0.8, 1.0])),
        "damping": jnp.asarray(0.8 * spread / 1.3),
        "temperatures": jnp.asarray(temperatures * np.ones(batch)),
    }


def draws(key, steps, batch=()):
    keys = jax.random.split(key)
    z = jax.random.normal(keys[0], (*batch, 3))
    return z, jax.random.normal(keys[1], (steps, *batch, 3))


@pytest.mark.parametrize("steps", [1, 4, 16])
@pytest.mark.parametrize("max_kick", [None, 0.1])
def test_the_mean_weight_is_the_evidence(steps, max_kick, key):
    """From N(0, I) to a Gaussian of known normaliser, for any speed, gain, step and bound."""

    def weight(k):
        z, noise = draws(k, steps)
        end, factor = dais(target, base, z, noise, **options(steps), max_kick=max_kick)
        log_f = -0.5 * end @ jnp.asarray(PRECISION) @ end
        log_q = -0.5 * z @ z - 1.5 * jnp.log(2 * jnp.pi)
        return jnp.exp(log_f - log_q - factor)

    weights = jax.vmap(weight)(jax.random.split(key, 100_000))
    assert_mean_close(weights, np.sqrt(np.linalg.det(2 * np.pi * COVARIANCE)), sigmas=4)


def test_a_batch_equals_a_loop(key):
    steps, batch = 3, (2, 4)
    z, noise = draws(key, steps, batch)
    given = options(steps, batch)
    end, factor = dais(target, base, z, noise, **given)
    assert end.shape == (*batch, 3) and factor.shape == batch
    for i in np.ndindex(batch):
        own = {
            name: x[(slice(None), *i)] if name in ("step_size", "temperatures") else x[i]
            for name, x in given.items()
        }
        one, one_factor = dais(target, base, z[i], noise[(slice(None), *i)], **own)
        np.testing.assert_allclose(end[i], one, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(factor[i], one_factor, rtol=1e-5, atol=1e-5)


def energy_error(key, steps, **changes):
    """Return the mean error of the energy over a path of fixed length, with nothing refreshed."""
    count = 1000
    z, noise = draws(key, steps, (count,))
    ones = jnp.ones((count, 3))
    given = {
        "step_size": jnp.full((steps, count), 0.8 / steps),
        "speed": ones * jnp.array([0.7, 1.0, 1.7]),
        "gain": ones,
        "damping": jnp.ones(count),
        "temperatures": jnp.ones((steps, count)),
    }
    end, factor = dais(target, base, z, noise, **(given | changes))

    def potential(z):
        return 0.5 * jnp.einsum("ni,ij,nj->n", z, jnp.asarray(PRECISION), z)

    return float(jnp.abs(potential(end) - potential(z) + factor).mean())


def test_the_energy_error_falls_as_the_step_squared(key):
    coarse, fine = energy_error(key, 4), energy_error(key, 8)
    assert 3.6 < coarse / fine < 4.4
    # With another gain the moves are no Hamiltonian's, and the error does not fall.
    gain = 2 * jnp.ones((1000, 3))
    assert energy_error(key, 4, gain=gain) / energy_error(key, 8, gain=gain) < 1.5


def test_a_bounded_kick_bounds_the_momentum(key):
    def far(z):
        return 1e6 * (5.0 - z)

    z, noise = draws(key, 1)
    wild, _ = dais(far, base, z, noise, **options(1))
    tame, _ = dais(far, base, z, noise, **options(1), max_kick=1.0)
    assert float(jnp.abs(wild).max()) > 1e3 and float(jnp.abs(tame).max()) < 10
    near, _ = dais(target, base, z, noise, **options(1), max_kick=1e6)
    plain, _ = dais(target, base, z, noise, **options(1))
    assert distance(near, plain) < 1e-5


def test_recomputing_changes_memory_alone(key):
    """A wide density leaves much to keep: recomputing it, a step keeps z and the momenta."""
    weights = jax.random.normal(key, (3, 5000)) / 70

    def wide(z):
        return jax.grad(lambda z: -jnp.sum(jnp.log(jnp.cosh(z @ weights))))(z)

    def loss(z, noise, recompute):
        end, factor = dais(wide, base, z, noise, **options(64), recompute=recompute)
        return jnp.sum(end**2) + factor

    z, noise = draws(key, 64)
    grads, memory = {}, {}
    for recompute in (False, True):
        compiled = jax.jit(jax.grad(lambda z, n, r=recompute: loss(z, n, r))).lower(z, noise)
        compiled = compiled.compile()
        grads[recompute] = compiled(z, noise)
        memory[recompute] = compiled.memory_analysis().temp_size_in_bytes
    assert distance(grads[False], grads[True]) < 1e-4
    assert memory[True] < memory[False] / 5


def test_the_gradient_exists_where_nothing_is_refreshed(key):
    z, noise = draws(key, 3)

    def loss(damping):
        end, factor = dais(target, base, z, noise, **(options(3) | {"damping": damping}))
        return jnp.sum(end) + factor

    assert bool(jnp.isfinite(jax.grad(loss)(jnp.ones(()))))


def start(rows=(), **changes):
    asked = {"K": 5, "eta_init": 0.02, "eta_max": 0.4, "gamma_init": 0.7} | changes
    return Dynamics.start(rows, 3, jnp.result_type(float), DynamicsOptions(**asked))


def test_dynamics_start_where_they_are_asked_to():
    values = start().values()
    np.testing.assert_allclose(values["step_size"], np.full(5, 0.02), rtol=1e-5)
    np.testing.assert_allclose(values["temperatures"], np.arange(1, 6) / 5, rtol=1e-5)
    np.testing.assert_allclose(values["damping"], 0.7, rtol=1e-5)
    np.testing.assert_allclose(values["speed"], np.ones(3), rtol=1e-5)
    np.testing.assert_allclose(values["gain"], np.ones(3), rtol=1e-5)
    assert start().num_steps == 5
    assert start((7,)).values()["speed"].shape == (7, 3)


def test_step_sizes_stay_inside_their_bounds_and_keep_a_gradient():
    x = jnp.linspace(-0.2, 1.2, 29)
    y = soft_clip(x)
    assert bool(jnp.all((y > 0) & (y <= 1) & (jnp.diff(y, prepend=-1.0) > 0)))
    slope = jax.vmap(jax.grad(soft_clip))(x)
    assert bool(jnp.all(slope > 0))
    inside = (x > 0.1) & (x < 0.9)
    np.testing.assert_allclose(slope[inside], 1.0, atol=0.01)
    inner = jnp.linspace(0.01, 0.99, 21)
    np.testing.assert_allclose(soft_clip(inverse_soft_clip(inner)), inner, rtol=1e-5)


def test_rows_take_their_own_parameters_or_share_them(key):
    own = start((4,))
    own = jax.tree.map(lambda x: x + jnp.arange(4.0).reshape(4, *(1,) * (x.ndim - 1)), own)
    some = own.at_rows(2, jnp.array([3, 1]), 4)
    assert distance(some, jax.tree.map(lambda x: x[jnp.array([3, 1])], own)) == 0
    assert distance(own.at_rows(4, None, 4), own) == 0
    shared = start().at_rows(6, None, 6)
    assert shared.raw_speed.shape == (6, 3) and shared.raw_damping.shape == (6,)
    z, noise = draws(key, 5, (6,))
    end, factor = shared.run(target, base, z, noise)
    one, one_factor = start().run(target, base, z[2], noise[:, 2])
    np.testing.assert_allclose(end[2], one, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(factor[2], one_factor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"K": 0}, "K counts steps.*got 0"),
        ({"K": True}, "K counts steps.*got True"),
        ({"eta_max": -1.0}, "eta_max bounds.*got -1.0"),
        ({"eta_init": 0.4}, "eta_init is a step size.*eta_max = 0.4.*got 0.4"),
        ({"eta_init": 0.0}, "eta_init is a step size.*got 0.0"),
        ({"gamma_init": 1.0}, "gamma_init is the share.*got 1.0"),
        ({"max_kick": 0.0}, "max_kick bounds.*got 0.0"),
    ],
    ids=str,
)
def test_options_out_of_range_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        start(**changes)
