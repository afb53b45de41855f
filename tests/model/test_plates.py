"""Plates with latents: streams, subsets, and the errors that keep rows and parameters together."""

import itertools

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx
from assertions import distance, perturbed
from models import Hierarchy
from registry import ROW_GUIDES

ROWS = pytest.mark.parametrize("entry", ROW_GUIDES.values(), ids=ROW_GUIDES)
N, B = 100, 20
TRUTH = np.random.default_rng(1).normal(size=N) * 3
DATA = jnp.asarray(TRUTH + 0.1 * np.random.default_rng(2).normal(size=N), float)


def ready(y, n=N):
    """Get a batch that is cut already."""
    mu = gx.sample("mu", distrax.Normal(jnp.zeros(()), 10.0))
    with gx.plate("data", n, subsample_size=y.shape[0]):
        z = gx.sample("z", distrax.Normal(mu, 3.0))
        gx.sample("y", distrax.Normal(z, 0.1), obs=y)


def by_primitive(y):
    """Cut the batch with `gx.subsample`."""
    mu = gx.sample("mu", distrax.Normal(jnp.zeros(()), 10.0))
    with gx.plate("data", y.shape[0], subsample_size=B):
        z = gx.sample("z", distrax.Normal(mu, 3.0))
        gx.sample("y", distrax.Normal(z, 0.1), obs=gx.subsample(y))


def by_index(y):
    """Cut the batch with the row numbers."""
    mu = gx.sample("mu", distrax.Normal(jnp.zeros(()), 10.0))
    with gx.plate("data", y.shape[0], subsample_size=B) as rows:
        z = gx.sample("z", distrax.Normal(mu, 3.0))
        gx.sample("y", distrax.Normal(z, 0.1), obs=y[rows])


def mixed_up(y, offset):
    """Index one array, and use the other as it is: the rows cannot match."""
    mu = gx.sample("mu", distrax.Normal(jnp.zeros(()), 10.0))
    with gx.plate("data", N, subsample_size=y.shape[0]) as rows:
        z = gx.sample("z", distrax.Normal(mu, 3.0))
        gx.sample("y", distrax.Normal(z + offset[rows], 0.1), obs=y)


@pytest.mark.parametrize("model", [by_primitive, by_index])
def test_a_model_that_takes_its_own_rows(model, key):
    guide = gx.AutoNormal(model, DATA, key=key)
    assert guide.family.loc["z"].shape == (N,)
    fitted = gx.fit(key, guide, DATA, steps=4000, learning_rate=0.05, progress=False).guide
    assert np.corrcoef(fitted.family.loc["z"], TRUTH)[0, 1] > 0.99
    whole = fitted.sample_posterior(key, DATA, sample_shape=(50,))
    assert whole["z"].shape == (50, N)
    rows = jnp.array([7, 3, 99])
    some = fitted.sample_posterior(key, gx.Batch(DATA).at(data=rows), sample_shape=(50,))
    np.testing.assert_allclose(some["z"], whole["z"][:, rows], rtol=1e-5)


def test_create_plates(key):
    def full(y):
        with gx.plate("data", N) as rows:
            z = gx.sample("z", distrax.Normal(jnp.zeros(()), 3.0))
            gx.sample("y", distrax.Normal(z, 0.1), obs=y[rows])

    def plates(y):
        return gx.plate("data", N, subsample_size=B)

    guide = gx.AutoNormal(full, DATA, key=key, create_plates=plates)
    losses = {round(float(gx.ELBO()(guide, k, DATA)), 3) for k in jax.random.split(key, 5)}
    assert len(losses) == 5
    fitted = gx.fit(key, guide, DATA, steps=4000, learning_rate=0.05, progress=False).guide
    assert np.corrcoef(fitted.family.loc["z"], TRUTH)[0, 1] > 0.99
    assert fitted.sample_posterior(key, DATA)["z"].shape == (N,)
    # Its scale: the mean over draws of rows is the estimate with all rows.
    point = gx.AutoDelta(full, DATA, key=key, create_plates=plates)
    every = gx.AutoDelta(full, DATA, key=key)
    found = jax.vmap(lambda k: gx.ELBO()(point, k, DATA))(jax.random.split(key, 4000))
    error = float(found.std()) / 4000**0.5
    assert abs(float(found.mean() - gx.ELBO()(every, key, DATA))) < 5 * error
    with pytest.raises(TypeError, match="create_plates"):
        gx.AutoNormal(full, DATA, key=key, create_plates=lambda y: None)
    with pytest.raises(ValueError, match="create_plates.*'dta'"):
        gx.AutoNormal(full, DATA, key=key, create_plates=lambda y: gx.plate("dta", N, B))


def test_a_ready_made_batch_needs_row_numbers(key):
    guide, elbo = gx.AutoNormal(ready, DATA[:B], key=key), gx.ELBO()
    assert guide.family.loc["z"].shape == (N,)
    for use in (
        lambda: elbo(guide, key, DATA[:B]),
        lambda: gx.fit(key, guide, DATA[:B], steps=2, progress=False),
        lambda: guide.sample_posterior(key, DATA[:B]),
        lambda: guide.median(DATA[:B]),
    ):
        with pytest.raises(ValueError, match="row_numbers"):
            use()
    rows = jnp.arange(B) + 3
    assert jnp.isfinite(elbo(guide, key, gx.Batch(DATA[rows]).at(data=rows)))
    with pytest.raises(ValueError, match=f"{B + 1} row numbers, but the arguments hold {B}"):
        elbo(guide, key, gx.Batch(DATA[:B]).at(data=jnp.arange(B + 1)))
    with pytest.raises(ValueError, match="names no plate"):
        elbo(guide, key, gx.Batch(DATA[:B]).at(dta=jnp.arange(B)))
    with pytest.raises(ValueError, match=f"rows 0 to {N - 1}"):
        elbo(guide, key, gx.Batch(DATA[:B]).at(data=jnp.arange(B) + N - 5))


def test_row_numbers_beside_ready_made_rows_are_refused(key):
    guide = gx.AutoNormal(mixed_up, DATA[:B], jnp.zeros(N) + TRUTH, key=key)
    with pytest.raises(ValueError, match="row_numbers"):
        gx.ELBO()(guide, key, DATA[:B], jnp.zeros(N) + TRUTH)


def test_other_structures_of_the_arguments_under_jit(key):
    """Whether rows may be drawn is known for the structure at construction; others are checked."""
    guide = gx.AutoNormal(ready, gx.Batch(DATA[:B]).at(data=jnp.arange(B)), key=key)
    step = jax.jit(gx.ELBO())
    with pytest.raises(ValueError, match="row_numbers"):
        step(guide, key, DATA[:10])
    batch = gx.Batch(DATA[:10]).at(data=jnp.arange(10))
    assert jnp.isfinite(step(guide, key, batch))


@ROWS
def test_plates_of_another_size(entry, key):
    def local(y):
        with gx.plate("data", y.shape[0]):
            z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
            gx.sample("y", distrax.Normal(z, 1.0), obs=y)

    def only_global(y):
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        with gx.plate("data", y.shape[0]):
            gx.sample("y", distrax.Normal(z, 1.0), obs=y)

    guide = entry.make(local, DATA[:5], key=key)
    for use in (
        lambda: gx.ELBO()(guide, key, DATA[:4]),
        lambda: guide.sample_posterior(key, DATA[:4]),
        lambda: gx.fit(key, guide, DATA[:4], steps=2, progress=False),
    ):
        with pytest.raises(ValueError, match="'data' has size 4 here.*5 rows"):
            use()
    if not entry.needs_rows:
        guide = entry.make(only_global, DATA[:5], key=key)
        assert jnp.isfinite(gx.ELBO()(guide, key, DATA[:4]))


@ROWS
@pytest.mark.parametrize(
    ("objective", "model"),
    [
        pytest.param(gx.ELBO(), Hierarchy.takes_rows, id="ELBO-takes_rows"),
        pytest.param(gx.ELBO(), Hierarchy.takes_batch, id="ELBO-takes_batch"),
        pytest.param(gx.MeanFieldELBO(), Hierarchy.takes_rows, id="mean field-takes_rows"),
        pytest.param(
            gx.MeanFieldELBO(),
            Hierarchy.takes_batch,
            id="mean field-takes_batch",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_mean_over_subsets_is_the_full_estimate(entry, objective, model, key):
    """In value and in gradient, to rounding: noise belongs to the row."""
    with jax.enable_x64(True):
        y = jnp.asarray(Hierarchy.y)
        cut = (lambda rows: y) if model == Hierarchy.takes_rows else (lambda rows: y[rows])
        start = gx.Batch(cut(jnp.arange(2))).at(data=jnp.arange(2))
        guide = perturbed(entry.make(model, start, key=key), jax.random.key(4))
        loss = jax.jit(
            jax.value_and_grad(lambda g, rows, y: objective(g, key, gx.Batch(y).at(data=rows)))
        )
        full, full_grads = loss(guide, jnp.arange(6), y)
        subsets = [jnp.array(c) for c in itertools.combinations(range(6), 2)]
        found = [loss(guide, rows, cut(rows)) for rows in subsets]
        assert np.std([f[0] for f in found]) > 0.1
        np.testing.assert_allclose(np.mean([f[0] for f in found]), full, rtol=1e-10)
        mean = jax.tree.map(lambda *g: sum(g) / len(g), *(f[1] for f in found))
        assert distance(full_grads, mean) < 1e-9
        assert all(bool(jnp.any(x != 0)) for x in jax.tree.leaves(full_grads))


def crossed(w):
    outer = gx.plate("a", 4, subsample_size=2, dim=-2)
    inner = gx.plate("b", 3, subsample_size=2, dim=-1)
    with outer:
        u = gx.sample("u", distrax.Normal(jnp.zeros(()), 1.0))
    with inner:
        v = gx.sample("v", distrax.Normal(jnp.zeros(()), 1.0))
    with outer, inner:
        e = gx.sample("e", distrax.Normal(u + v, 1.0))
        gx.sample("w", distrax.Normal(e, 0.5), obs=gx.subsample(w))


def test_crossed_plates(key):
    with jax.enable_x64(True):
        w = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))
        guide = perturbed(gx.AutoNormal(crossed, w, key=key), jax.random.key(3))
        shapes = {n: x.shape for n, x in guide.family.loc.items()}
        assert shapes == {"u": (4, 1), "v": (3,), "e": (4, 3)}
        loss = jax.jit(
            jax.value_and_grad(lambda g, i, j: gx.ELBO()(g, key, gx.Batch(w).at(a=i, b=j)))
        )
        full, grads = loss(guide, jnp.arange(4), jnp.arange(3))
        found = [
            loss(guide, jnp.array(i), jnp.array(j))
            for i in itertools.combinations(range(4), 2)
            for j in itertools.combinations(range(3), 2)
        ]
        np.testing.assert_allclose(np.mean([f[0] for f in found]), full, rtol=1e-12)
        mean = jax.tree.map(lambda *g: sum(g) / len(g), *(f[1] for f in found))
        assert distance(grads, mean) < 1e-10


def test_drawn_rows_estimate_the_full_bound(key):
    """Rows that are drawn: the mean over keys is the bound of all data."""
    y = jnp.asarray(Hierarchy.y, float)
    guide = perturbed(gx.AutoNormal(Hierarchy.takes_rows, y, key=key), key)
    keys = jax.random.split(key, 5000)
    drawn = jax.vmap(lambda k: gx.ELBO()(guide, k, y))(keys)
    batch = gx.Batch(y).at(data=jnp.arange(6))
    full = jax.vmap(lambda k: gx.ELBO()(guide, k, batch))(keys)
    error = (float(drawn.var()) / 5000 + float(full.var()) / 5000) ** 0.5
    assert abs(float(drawn.mean() - full.mean())) < 5 * error


def test_log_joint_counts_every_row(key):
    y = jnp.asarray(Hierarchy.y, float)
    guide = gx.AutoNormal(Hierarchy.takes_rows, y, key=key)
    draws, log_q = guide.sample_and_log_prob(key, y, sample_shape=(3,))
    assert draws["z"].shape == (3, 6)
    from scipy import stats

    for i in range(3):
        mu, s, z = (np.asarray(draws[n][i]) for n in ("mu", "s", "z"))
        expected = (
            stats.norm(0, 10).logpdf(mu)
            + stats.norm(mu, 1).logpdf(0.3)
            + stats.halfnorm.logpdf(s).sum()
            + stats.norm(mu, s).logpdf(z).sum()
            + stats.norm(z, 0.5).logpdf(y).sum()
        )
        np.testing.assert_allclose(gx.log_joint(guide.model, draws, y)[i], expected, rtol=1e-5)
    np.testing.assert_allclose(guide.log_prob(draws, y), log_q, rtol=1e-5)


def test_rows_of_a_plate_that_is_written_with_its_full_size(key):
    """`Batch.at` fixes how many rows a plate holds, whatever the plate says."""

    def local(y):
        with gx.plate("data", 6):
            z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
            gx.sample("y", distrax.Normal(z, 0.5), obs=y)

    def only_global(y):
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        with gx.plate("data", 6):
            gx.sample("y", distrax.Normal(z, 0.5), obs=y)

    y = jnp.asarray(Hierarchy.y, float)
    rows = jnp.array([4, 1])
    batch = gx.Batch(y[rows]).at(data=rows)
    for model in (local, only_global):
        guide = gx.AutoNormal(model, batch, key=key)
        whole = gx.AutoNormal(model, y, key=key)
        loss = jax.jit(lambda g, r, y: gx.ELBO()(g, key, gx.Batch(y).at(data=r)))
        found = [
            loss(whole, jnp.array(c), y[jnp.array(c)]) for c in itertools.combinations(range(6), 2)
        ]
        full = loss(whole, jnp.arange(6), y)
        np.testing.assert_allclose(np.mean(found), full, rtol=1e-5)
        assert jnp.isfinite(loss(guide, rows, y[rows]))
        result = gx.fit(key, guide, steps=3, batches=[batch] * 3, progress=False)
        assert bool(jnp.all(jnp.isfinite(result.losses)))
        assert guide.param_values(batch) == {}
    assert guide.sample_posterior(key, batch)["z"].shape == ()


def test_row_numbers_that_are_no_rows(key):
    def model(y):
        with gx.plate("d", 4):
            z = gx.sample("z", distrax.Normal(0.0, 1.0))
            gx.sample("y", distrax.Normal(z, 1.0), obs=gx.subsample(y))

    guide = gx.AutoDiagonalNormal(model, DATA[:4], key=key)
    for rows, message in (
        ([0, 0, 1, 1], r"4 row numbers for a plate of 4 rows, and names some of them twice"),
        ([], "names no row"),
        ([0, 99], "row numbers from 0 to 99, but the plate has rows 0 to 3"),
    ):
        batch = gx.Batch(DATA[:4]).at(d=np.array(rows, int))
        for use in (guide.sample_and_log_prob, lambda key, b: gx.AutoNormal(model, b, key=key)):
            with pytest.raises(ValueError, match=message):
                use(key, batch)


def test_ready_made_weights_are_ready_made_rows(key):
    """The model takes rows of `y` by number, but its weights are those of some rows already."""

    def model(y, weights):
        mu = gx.sample("mu", distrax.Normal(jnp.zeros(()), 10.0))
        with gx.plate("data", N, subsample_size=B) as rows:
            z = gx.sample("z", distrax.Normal(mu, 3.0))
            with gx.handlers.scale(scale=weights):
                gx.sample("y", distrax.Normal(z, 0.1), obs=y[rows])

    weights = jnp.linspace(0.5, 2.0, B)
    guide = gx.AutoNormal(model, gx.Batch(DATA, weights).at(data=jnp.arange(B)), key=key)
    with pytest.raises(ValueError, match="row_numbers"):
        gx.ELBO()(guide, key, DATA, weights)


def test_a_scale_wider_than_its_site_is_refused(key):
    def model(weights):
        with gx.handlers.scale(scale=weights):
            gx.sample("z", tfd.LogNormal(jnp.zeros(()), 1.0))

    for make in (
        lambda: gx.log_joint(model, {"z": 2.0}, jnp.ones(20)),
        lambda: gx.AutoNormal(model, jnp.ones(20), key=key),
    ):
        with pytest.raises(ValueError, match=r"site 'z' has batch shape \(\), but a scale handler"):
            make()


def test_discrete_data_may_be_left_out(key):
    """The draws of the latents need no data; `y`, which no guide draws, is left out of them."""

    def model(X, y=None):
        mu = gx.sample("mu", distrax.Normal(jnp.zeros(()), 1.0))
        with gx.plate("data", X.shape[0], subsample_size=2):
            z = gx.sample("z", distrax.Normal(mu, 1.0))
            y = None if y is None else gx.subsample(y)
            gx.sample("y", distrax.Bernoulli(logits=z * gx.subsample(X)), obs=y)

    X, y = DATA[:6], (DATA[:6] > 0).astype(int)
    guide = gx.AutoNormal(model, X, y, key=key)
    draws = guide.sample_posterior(key, X)
    assert {n: x.shape for n, x in draws.items()} == {"mu": (), "z": (6,)}
    expected = guide.sample_posterior(key, X, y)
    np.testing.assert_allclose(draws["z"], expected["z"], rtol=1e-6)
