"""Data, parameters and ensembles over several devices: shardings go through plain jit."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import guidax as gx
from assertions import distance, precision

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")

N = 64
RNG = np.random.default_rng(0)
X, Y = jnp.asarray(RNG.normal(size=(N, 3)), float), jnp.asarray(RNG.normal(size=N), float)


def model(X, y):
    """Global and local latents."""
    b = gx.sample("b", distrax.Independent(distrax.Normal(jnp.zeros(3), 1.0), 1))
    with gx.plate("data", X.shape[0]):
        z = gx.sample("z", distrax.Normal(X @ b, 1.0))
        gx.sample("y", distrax.Normal(z, 1.0), obs=y)


@pytest.fixture(scope="module", params=[AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def mesh(request):
    return jax.make_mesh((8,), ("d",), axis_types=(request.param,))


@pytest.fixture(scope="module")
def guide():
    return gx.AutoNormal(model, X, Y, key=jax.random.key(0))


@pytest.fixture(scope="module")
def alone(guide):
    """Loss, gradient and fit on one device."""
    key = jax.random.key(0)
    fitted = gx.fit(key, guide, X, Y, steps=20, progress=False)
    return jax.value_and_grad(gx.ELBO())(guide, key, X, Y), fitted


def by_rows(tree, mesh):
    """Place what has a row for each datum over the devices, and the rest on all of them."""

    def place(x):
        spec = P("d") if x.ndim and x.shape[0] == N else P()
        return jax.device_put(x, NamedSharding(mesh, spec))

    return jax.tree.map(place, tree)


def placed_alike(tree, other):
    """Say whether each leaf lies where the other's does: P() and P(None) are one placement."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return [x.sharding.is_equivalent_to(y.sharding, x.ndim) for x, y in pairs]


def test_rows_over_devices(mesh, guide, alone, key):
    (value, grads), fitted = alone
    spread, X_, Y_ = by_rows((guide, X, Y), mesh)
    loss = jax.jit(jax.value_and_grad(gx.ELBO()))
    compiled = loss.lower(spread, key, X_, Y_).compile()
    found, found_grads = compiled(spread, key, X_, Y_)
    assert abs(float(found - value)) < 1e3 * precision() * abs(float(value))
    assert distance(found_grads, grads) < 1e4 * precision()
    assert found_grads.family.loc["z"].sharding.spec == P("d")
    assert found_grads.family.raw_scale["z"].sharding.spec == P("d")
    # Sums over rows travel together: the loss and the gradient of the globals.
    assert compiled.as_text().count(" all-reduce(") == 1

    result = gx.fit(key, spread, X_, Y_, steps=20, progress=False)
    assert all(placed_alike(result.guide, spread))
    kept = [x for x in jax.tree.leaves(result.state.moving.opt_state) if x.shape == (N,)]
    assert len(kept) == 5  # two moments of two leaves, and where the location began
    assert all(x.sharding.spec == P("d") for x in kept)
    assert distance(result.guide, fitted.guide) < (1e-8 if precision() < 1e-10 else 1e-3)
    np.testing.assert_allclose(result.losses, fitted.losses, rtol=1e-4)
    more = result.resume(X_, Y_, steps=5, progress=False)
    assert all(placed_alike(more.guide, spread))


def effects(x):
    """A latent for each row beside a global times the data: its gradient has terms of both."""
    b = gx.sample("b", distrax.Normal(0.0, 1.0))
    with gx.plate("data", x.shape[0]):
        m = gx.sample("m", distrax.Normal(0.0, 1.0))
        gx.sample("y", distrax.Normal(b * x + m, 1.0), obs=x)


def test_a_guide_that_lies_on_no_mesh(mesh, key):
    """JAX adds no gradient that lies on an explicit mesh to one that does not."""
    x = jnp.linspace(0.0, 2.0, N)
    spread = jax.device_put(x, NamedSharding(mesh, P("d")))
    host, there = (gx.AutoNormal(effects, data, key=key) for data in (x, spread))
    expected = gx.fit(key, host, x, steps=20, progress=False).losses
    for guide in (host, there):
        found = gx.fit(key, guide, spread, steps=20, progress=False).losses
        np.testing.assert_allclose(found, expected, rtol=1e4 * precision())


def test_an_ensemble_over_devices(mesh, guide, key):
    keys = jax.random.split(key, 16)

    def member(key, scale):
        moved = jax.tree.map(lambda x: scale * x, guide)
        return gx.fit(key, moved, X, Y, steps=10, optimizer=optax.adam)

    fit = jax.jit(jax.vmap(member))
    scales = jnp.linspace(0.5, 2.0, 16)
    alone = fit(keys, scales)
    everywhere = NamedSharding(mesh, P("d"))
    result = fit(jax.device_put(keys, everywhere), jax.device_put(scales, everywhere))
    assert distance(result.guide, alone.guide) < 1e-5
    np.testing.assert_allclose(result.losses, alone.losses, rtol=1e-5)
    leaves = jax.tree.leaves((result.guide, result.losses))
    assert all(x.sharding.spec[0] == "d" for x in leaves)
    assert {s.data.shape[0] for x in leaves for s in x.addressable_shards} == {2}  # of 16
    np.testing.assert_array_equal(result.first_bad_step, -np.ones(16))


def test_an_ensemble_is_constructed_over_devices(mesh, key):
    keys = jax.random.split(key, 8)
    build = jax.jit(jax.vmap(lambda key: gx.AutoNormal(model, X, Y, key=key)))
    spread = build(jax.device_put(keys, NamedSharding(mesh, P("d"))))
    assert distance(spread, build(keys)) < 1e-5
    assert spread.family.loc["z"].sharding.spec[0] == "d"


def test_particles_over_devices(mesh, guide, key):
    """Each device evaluates its own, and the mean of all of them is one number."""
    keys = jax.random.split(key, 16)

    def mean_loss(guide, keys):
        return jnp.mean(jax.vmap(lambda key: gx.ELBO()(guide, key, X, Y))(keys))

    loss = jax.jit(jax.value_and_grad(mean_loss))
    spread = jax.device_put(keys, NamedSharding(mesh, P("d")))
    everywhere = jax.device_put(guide, NamedSharding(mesh, P()))
    (value, grads), (expected, others) = loss(everywhere, spread), loss(guide, keys)
    assert abs(float(value - expected)) < 1e3 * precision() * abs(float(expected))
    assert distance(grads, others) < 1e4 * precision()


def test_rows_by_shard_map(mesh, key):
    """Each device sees its rows alone; N/B of the plate makes their mean the whole."""

    def local(X, y):
        b = gx.sample("b", distrax.Independent(distrax.Normal(jnp.zeros(3), 1.0), 1))
        with gx.plate("data", N, subsample_size=y.shape[0]):
            gx.sample("y", distrax.Normal(X @ b, 1.0), obs=y)

    guide = gx.AutoNormal(local, X, Y, key=key)
    loss = jax.value_and_grad(gx.ELBO())

    def of_shard(guide, X, y):
        return jax.lax.pmean(loss(guide, key, X, y), "d")

    over = jax.shard_map(
        of_shard, mesh=mesh, in_specs=(P(), P("d"), P("d")), out_specs=P(), check_vma=False
    )
    everywhere = jax.device_put(guide, NamedSharding(mesh, P()))
    value, grads = jax.jit(over)(everywhere, *by_rows((X, Y), mesh))
    expected, others = loss(guide, key, X, Y)
    assert abs(float(value - expected)) < 1e3 * precision() * abs(float(expected))
    assert distance(grads, others) < 1e4 * precision()


def test_a_million_rows_lie_with_their_data(mesh, key):
    """Parameters and moments of local latents are spread as their rows are."""
    size = 1_000_000
    y = jax.device_put(jnp.ones(size, jnp.float32), NamedSharding(mesh, P("d")))

    def rows(y):
        with gx.plate("data", y.shape[0]):
            z = gx.sample("z", distrax.Normal(jnp.zeros((), jnp.float32), jnp.float32(1.0)))
            gx.sample("y", distrax.Normal(z, jnp.float32(1.0)), obs=y)

    guide = gx.AutoDelta(rows, y, key=key)
    assert guide.family.loc["z"].sharding.spec == P("d")
    result = gx.fit(key, guide, y, steps=100, progress=False)
    z = result.guide.family.loc["z"]
    assert z.sharding.spec == P("d") and {s.data.shape for s in z.addressable_shards} == {
        (125_000,)
    }
    kept = [x for x in jax.tree.leaves(result.state.moving.opt_state) if x.shape == (size,)]
    assert len(kept) == 3  # two moments, and where the location began
    assert all(x.sharding.spec == P("d") for x in kept)
    assert float(jnp.abs(z - 0.5).max()) < 1e-2  # the mode
