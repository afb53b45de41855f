"""Steps that leave alone the rows they do not hold."""

import functools

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import guidax as gx
from assertions import distance, precision

N, M, HELD = 12, 5, 3
RNG = np.random.default_rng(0)
Y = jnp.asarray(RNG.normal(size=(N, M)), float)


def model(y):
    """A global latent, rows of a subsampled plate, and a plate inside that holds all its rows."""
    b = gx.sample("b", distrax.Normal(jnp.zeros(()), 1.0))
    with gx.plate("row", N, subsample_size=HELD, dim=-2) as rows:
        gx.sample("a", distrax.Normal(b, 1.0))
        with gx.plate("column", M, dim=-1):
            z = gx.sample("z", distrax.Normal(b, 1.0))
            gx.sample("y", distrax.Normal(z, 1.0), obs=y[rows])


def crossed(y):
    """Two plates that are both subsampled."""
    outer = gx.plate("row", N, subsample_size=HELD, dim=-2)
    inner = gx.plate("column", M, subsample_size=2, dim=-1)
    with outer as rows, inner as columns:
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("y", distrax.Normal(z, 1.0), obs=y[rows[:, None], columns])


semi = functools.partial(gx.AutoSemiDAIS, K=2)
GUIDES = {
    "normal": functools.partial(gx.AutoNormal, model),
    "point": functools.partial(gx.AutoDelta, model),
    "list": functools.partial(
        gx.AutoGuideList, model, parts={"b": gx.AutoMultivariateNormal, ...: gx.AutoNormal}
    ),
    "own moves": functools.partial(semi, model),
    "shared moves": functools.partial(semi, model, use_global_dais_params=True),
    "crossed": functools.partial(gx.AutoNormal, crossed),
}


@functools.cache
def guide_of(name):
    return GUIDES[name](Y, key=jax.random.key(0))


@pytest.mark.parametrize("name", GUIDES)
def test_without_memory_it_is_the_dense_step(name, key):
    """Plain gradient descent moves no row that has no gradient."""
    options = {"steps": 4, "optimizer": optax.sgd, "learning_rate": 0.02, "progress": False}
    dense = gx.fit(key, guide_of(name), Y, **options)
    sparse = gx.fit(key, guide_of(name), Y, row_sparse=True, **options)
    assert distance(sparse.guide, dense.guide) < 100 * precision()
    assert distance(dense.guide, guide_of(name)) > 1e-3
    np.testing.assert_allclose(sparse.losses, dense.losses, rtol=100 * precision())


def test_adam_rests_where_a_row_is_not_held(key):
    """Two rows in turn are two Adams of their own, with the count of steps in common."""
    y = Y[:, 0]

    def local(y):
        with gx.plate("row", N, subsample_size=1) as rows:
            z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
            gx.sample("y", distrax.Normal(z, 1.0), obs=y[rows])

    guide = gx.AutoDelta(local, y, key=key)

    def batches(step):
        return gx.Batch(y).at(row=np.array([4 if step % 2 else 7]))

    options = {"optimizer": optax.adam, "learning_rate": 0.1, "progress": False}
    result = gx.fit(key, guide, batches=batches, steps=6, row_sparse=True, **options)
    z, expected = np.array(guide.family.loc["z"]), {}
    for row, turns in ((7, (1, 3, 5)), (4, (2, 4, 6))):
        x, m, v = float(z[row]), 0.0, 0.0
        for count in turns:
            gradient = N * (x - (float(y[row]) - x))  # of N/B (x^2 + (y - x)^2) / 2
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            x -= 0.1 * (m / (1 - 0.9**count)) / (np.sqrt(v / (1 - 0.999**count)) + 1e-8)
        expected[row] = x
    found = np.array(result.guide.family.loc["z"])
    tolerance = 1e-5 if precision() > 1e-10 else 1e-12
    np.testing.assert_allclose([found[7], found[4]], [*expected.values()], rtol=0, atol=tolerance)
    others = [i for i in range(N) if i not in expected]
    np.testing.assert_array_equal(found[others], z[others])  # to the last bit
    moments = [x for x in jax.tree.leaves(result.state.moving.opt_state) if x.shape == (N,)]
    assert len(moments) == 2
    for moment in moments:
        assert set(np.flatnonzero(moment)) == {4, 7}


def test_the_loop_writes_rows_in_place(key):
    """No copy of a whole parameter is made in the compiled loop."""
    size = 4_099  # a length that nothing else has

    def large(y):
        with gx.plate("row", size, subsample_size=HELD) as rows:
            z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
            gx.sample("y", distrax.Normal(z, 1.0), obs=y[rows])

    y = jnp.zeros(size)
    guide = gx.AutoNormal(large, y, key=key)

    def copies(**options):
        fit = jax.jit(lambda guide, key, y: gx.fit(key, guide, y, steps=5, **options).guide)
        inside, _ = fit.lower(guide, key, y).compile().as_text().split("\nENTRY ")
        return inside.count(f"[{size}]{{0}} copy(")

    assert copies(row_sparse=True) == 0
    assert copies() > 0  # what is counted exists


def test_it_goes_through_vmap(key):
    def fit(key):
        options = {"steps": 3, "optimizer": optax.adam, "row_sparse": True}
        return gx.fit(key, guide_of("normal"), Y, **options).guide

    keys = jax.random.split(key, 2)
    together = jax.vmap(fit)(keys)
    for i, one in enumerate(keys):
        assert distance(jax.tree.map(lambda x, i=i: x[i], together), fit(one)) < 1e-5


def test_what_it_cannot_do_is_refused(key):
    guide = guide_of("normal")
    fit = functools.partial(gx.fit, key, guide, steps=2, progress=False, row_sparse=True)
    with pytest.raises(ValueError, match="holds every row of every parameter"):
        fit(gx.Batch(Y).at(row=np.arange(N)))
    with pytest.raises(ValueError, match="names a row twice"):
        fit(gx.Batch(Y).at(row=np.array([0, 1, 1])))
    with pytest.raises(ValueError, match='on_nonfinite="skip"'):
        fit(Y, on_nonfinite="halve")
    flags = jax.tree.map(lambda x: x.ndim > 0, guide)
    with pytest.raises(ValueError, match="in the structure of the trained parameters"):
        fit(Y, optimizer=optax.masked(optax.adam(0.1), flags))
    with pytest.raises(ValueError, match="cannot accumulate gradients"):
        fit(Y, optimizer=optax.MultiSteps(optax.adam(0.1), 2))
