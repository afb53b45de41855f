"""NumPyro models with networks: `param` sites whose values are pytrees."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib import module as networks
from numpyro.infer import SVI, Trace_ELBO, autoguide
from numpyro.infer import init_to_feasible as numpyro_feasible
from numpyro.infer.util import log_density

import guidax as gx
from assertions import distance, identical, perturbed, precision
from models import new_traces, traces

RNG = np.random.default_rng(0)
X = RNG.normal(size=(25, 3))
Y = np.sin(2 * X[:, 0]) + 0.1 * RNG.normal(size=25)
PRIOR = dist.Normal(0.0, 1.0)
MLP = eqx.nn.MLP(3, "scalar", 4, 1, key=jax.random.key(1))


def arrays():
    return jnp.asarray(X, float), jnp.asarray(Y, float)


def observed(mean, x, y):
    traces[0] += 1
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(mean, scale), obs=y)


def linen_net(**options):
    nn = pytest.importorskip("flax.linen")

    class Net(nn.Module):
        norm: bool = False
        drop: bool = False

        @nn.compact
        def __call__(self, x):
            x = nn.tanh(nn.Dense(4)(x))
            x = nn.BatchNorm(use_running_average=False)(x) if self.norm else x
            x = nn.Dropout(0.5, deterministic=False)(x) if self.drop else x
            return nn.Dense(1)(x)[..., 0]

    return Net(**options)


def nnx_net(rate=None):
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(3, 4, rngs=rngs)
            self.last = nnx.Linear(4, 1, rngs=rngs)
            self.dropout = None if rate is None else nnx.Dropout(rate, rngs=rngs)

        def __call__(self, x):
            x = jnp.tanh(self.hidden(x))
            return self.last(x if self.dropout is None else self.dropout(x))[..., 0]

    return Net(nnx.Rngs(0))


@functools.cache
def flax_module():
    net = linen_net()

    def model(x, y):
        observed(networks.flax_module("net", net, input_shape=(3,))(x), x, y)

    return model


def flax_module_with_dropout():
    net = linen_net(drop=True)

    def model(x, y):
        apply = networks.flax_module("net", net, input_shape=(3,), apply_rng=["dropout"])
        observed(apply(x, rngs={"dropout": numpyro.prng_key()}), x, y)

    return model


def with_prior(prior):
    net = linen_net()

    def model(x, y):
        observed(networks.random_flax_module("net", net, prior, input_shape=(3,))(x), x, y)

    return model


@functools.cache
def random_flax_module():
    return with_prior(PRIOR)


@functools.cache
def a_prior_for_one_layer():
    return with_prior({"Dense_0.kernel": PRIOR})


@functools.cache
def nnx_module():
    net = nnx_net()
    return lambda x, y: observed(networks.nnx_module("net", net)(x), x, y)


@functools.cache
def random_nnx_module():
    net = nnx_net()
    return lambda x, y: observed(networks.random_nnx_module("net", net, PRIOR)(x), x, y)


@functools.cache
def eqx_module():
    return lambda x, y: observed(jax.vmap(networks.eqx_module("net", MLP))(x), x, y)


@functools.cache
def random_eqx_module():
    return lambda x, y: observed(jax.vmap(networks.random_eqx_module("net", MLP, PRIOR))(x), x, y)


TRAINED = [flax_module, a_prior_for_one_layer, nnx_module, eqx_module]
SAMPLED = [random_flax_module, random_nnx_module, random_eqx_module]


@pytest.mark.parametrize("make", TRAINED + SAMPLED)
def test_the_log_joint_is_numpyros(make, key):
    model, args = make(), arrays()
    guide = perturbed(gx.AutoNormal(gx.from_numpyro(model), *args, key=key), key)
    draws = guide.sample_posterior(key, *args)
    values = draws | guide.param_values(*args)
    seeded = handlers.substitute(handlers.seed(model, 0), data=values)
    theirs, _ = log_density(seeded, args, {}, {})
    ours = gx.log_joint(guide.model, draws, *args)
    np.testing.assert_allclose(ours, theirs, rtol=1e2 * precision())


@pytest.mark.parametrize("make", TRAINED)
def test_a_network_is_trained(make, key):
    model, args = make(), arrays()
    guide = gx.AutoNormal(gx.from_numpyro(model), *args, key=key)
    (network,) = guide.param_values(*args).values()
    leaves = jax.tree.leaves(guide.model.params)
    assert leaves and all(jnp.issubdtype(x.dtype, jnp.floating) for x in leaves)
    assert distance(guide.model.params["net$params"], network) == 0  # no constraint, and a pytree
    assert guide.learning_rate == 0.01  # as for the arrays of a module
    result = gx.fit(key, guide, *args, steps=300, learning_rate=0.05, progress=False)
    assert float(result.losses[-30:].mean()) < float(result.losses[:10].mean())
    before, after = leaves, jax.tree.leaves(result.guide.model.params)
    assert all(distance(a, b) > 0 for a, b in zip(after, before, strict=True))
    # The same model again traces nothing, and starts where the first one did.
    again = gx.AutoNormal(gx.from_numpyro(model), *args, key=key)
    fit = {"steps": 300, "learning_rate": 0.05, "progress": False}
    assert new_traces(lambda: gx.fit(key, again, *args, **fit)) == 0
    assert identical(again, guide)


@pytest.mark.parametrize("make", [random_flax_module, a_prior_for_one_layer])
def test_a_network_with_a_prior_is_sampled(make, key):
    args = arrays()
    guide = gx.AutoNormal(gx.from_numpyro(make()), *args, key=key)
    weights = {name for name in guide.family.loc if name.startswith("net/")}
    assert len(weights) == (1 if make is a_prior_for_one_layer else 4)
    result = gx.fit(key, guide, *args, steps=300, learning_rate=0.05, progress=False)
    assert float(result.losses[-30:].mean()) < float(result.losses[:10].mean())
    assert result.guide.sample_posterior(key, *args, sample_shape=(7,)).keys() >= weights


@pytest.mark.parametrize("make", SAMPLED)
def test_nothing_is_trained_of_a_network_whose_weights_are_all_drawn(make, key):
    """NumPyro leaves the arrays of an Equinox module in a `param` site that nothing reads."""
    guide = gx.AutoNormal(gx.from_numpyro(make()), *arrays(), key=key)
    assert jax.tree.leaves(guide.model.params) == []
    assert guide.learning_rate > 0.01  # that of networks that are trained


def test_of_equinox_modules_those_are_trained_whose_weights_are_not_drawn(key):
    heads = [eqx.nn.Linear(3, "scalar", key=jax.random.key(i)) for i in range(3)]

    def model(x, y):
        trained = networks.eqx_module("net", heads[0])
        drawn = networks.random_eqx_module("net2", heads[1], PRIOR, scope_divider="__")
        slopes = networks.random_eqx_module("net3", heads[2], {"weight": PRIOR})  # bias: trained
        observed(sum(jax.vmap(head)(x) for head in (trained, drawn, slopes)), x, y)

    guide = gx.AutoNormal(gx.from_numpyro(model), *arrays(), key=key)
    assert guide.model.params.keys() == {"net$params", "net3$params"}
    drawn = {"scale", "net2__weight", "net2__bias", "net3/weight"}
    assert guide.family.loc.keys() == drawn


def test_the_start_of_a_ready_network_is_its_own(key):
    guide = gx.AutoNormal(gx.from_numpyro(eqx_module()), *arrays(), key=key)
    assert distance(guide.param_values()["net$params"], eqx.filter(MLP, eqx.is_inexact_array)) == 0


def test_dropout_draws_a_mask_for_each_key(key):
    args = arrays()
    point = gx.AutoDelta(gx.from_numpyro(flax_module_with_dropout()), *args, key=key)
    losses = [float(gx.ELBO()(point, k, *args)) for k in (key, key, jax.random.key(7))]
    assert losses[0] == losses[1] != losses[2]


def test_state_is_refused(key):
    norm = linen_net(norm=True)

    def flax_state(x, y):
        apply = networks.flax_module("net", norm, jnp.ones((2, 3)), mutable=["batch_stats"])
        observed(apply(x), x, y)

    drop = nnx_net(rate=0.5)

    def nnx_state(x, y):
        observed(networks.nnx_module("net", drop)(x), x, y)

    for model in (flax_state, nnx_state):
        with pytest.raises(ValueError, match=r"'net\$state'.*mutable.*pure function"):
            gx.AutoNormal(gx.from_numpyro(model), *arrays(), key=key)


@pytest.mark.parametrize("make", [flax_module, a_prior_for_one_layer, eqx_module])
def test_networks_are_exchanged(make, key):
    model, args = make(), arrays()
    start = gx.AutoNormal(gx.from_numpyro(model), *args, key=key)
    ours = perturbed(start, key)
    params = gx.to_numpyro_params(ours, *args)
    assert distance(gx.from_numpyro_params(start, params, *args), ours) < 1e-5
    theirs = autoguide.AutoNormal(model, init_loc_fn=numpyro_feasible)
    svi = SVI(model, theirs, numpyro.optim.Adam(0.1), Trace_ELBO())
    found = svi.get_params(svi.init(key, *args))
    assert jax.tree.structure(found) == jax.tree.structure(params)
    assert distance(gx.to_numpyro_params(gx.from_numpyro_params(ours, found)), found) < 1e-5
    network = found["net$params"]
    for wrong, message in (
        (jnp.zeros(3), "net.params' is PyTreeDef"),
        (jax.tree.map(lambda x: x[None], network), "net.params' has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            gx.from_numpyro_params(ours, found | {"net$params": wrong})


def test_an_autoencoder(key):
    """NumPyro's published example: networks in the model and in a guide written by hand."""
    nn = pytest.importorskip("flax.linen")

    class Encoder(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.tanh(nn.Dense(5)(x))
            return nn.Dense(2)(x), nn.softplus(nn.Dense(2)(x))

    def model(x, rows):
        decode = networks.flax_module("decoder", nn.Dense(3), input_shape=(2,))
        with numpyro.plate("data", x.shape[0], subsample_size=rows) as i:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            numpyro.sample("x", dist.Normal(decode(z), 0.5).to_event(1), obs=x[i])

    def guide(x, rows):
        encode = networks.flax_module("encoder", Encoder(), input_shape=(3,))
        with numpyro.plate("data", x.shape[0], subsample_size=rows) as i:
            numpyro.sample("z", dist.Normal(*encode(x[i])).to_event(1))

    x, _ = arrays()
    parts = {"z": gx.program(gx.from_numpyro(guide))}
    ours = gx.AutoGuideList(gx.from_numpyro(model), x, 10, key=key, parts=parts)
    result = gx.fit(key, ours, x, 10, steps=400, progress=False)
    assert float(result.losses[-50:].mean()) < float(result.losses[:20].mean()) - 10
    values = result.guide.param_values(x, 10)
    assert values.keys() == {"decoder$params", "encoder$params"}
    moved = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), values, ours.param_values(x, 10))
    assert all(jax.tree.leaves(jax.tree.map(lambda gap: gap > 0, moved)))
