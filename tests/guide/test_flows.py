"""Guides with flows: where they start, what they can bend, their options."""

import functools
import re

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

import guidax as gx
from assertions import distance, perturbed, precision, refused_type
from registry import GUIDES

FLOWS = {name: GUIDES[name].make for name in GUIDES if re.search("IAF|BNAF|NVP|NSF", name)}
every_flow = pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)
START = {"x": jnp.array([1.0, -2.0]), "s": 0.5}


def model():
    gx.sample("x", distrax.MultivariateNormalDiag(jnp.zeros(2), jnp.ones(2)))
    gx.sample("s", distrax.Gamma(2.0, jnp.ones(())))


def line():
    gx.sample("x", distrax.Normal(jnp.asarray(3.0, float), 2.0))


def start_vector():
    """Return `START` as a flat vector, in unconstrained space."""
    return jnp.array([*START["x"], jnp.log(START["s"])], float)


@every_flow
def test_it_starts_as_the_normal_that_is_asked_for(make, key):
    init = gx.init_to_value(START)
    guide = make(model, key=key, init_loc_fn=init, init_scale=0.2)
    normal = distrax.MultivariateNormalDiag(start_vector(), 0.2 * jnp.ones(3))
    z, log_q = guide.get_posterior().sample_and_log_prob(seed=key, sample_shape=(2_000,))
    gap = log_q - normal.log_prob(z)
    if isinstance(guide, gx.AutoBNAFNormal):
        assert abs(float(gap.mean())) < 0.1  # KL(start || normal)
        assert float(jnp.abs(z.mean(axis=0) - normal.mean()).max()) < 0.05
    else:
        assert float(jnp.abs(gap).max()) < 1e4 * precision()


@every_flow
def test_one_coordinate(make, key):
    guide = make(line, key=key)
    result = gx.fit(key, guide, steps=400, learning_rate=0.05, progress=False)
    loss = gx.ELBO(num_particles=2_000)(result.guide, key)
    assert abs(float(loss)) < 0.05  # the evidence is 1
    draws, log_q = result.guide.sample_and_log_prob(key, sample_shape=(5,))
    assert float(jnp.abs(result.guide.log_prob(draws) - log_q).max()) < 1e5 * precision()


@functools.cache
def fitted(name):
    constructor = getattr(gx, name)
    return perturbed(constructor(model, key=random.key(0)), random.key(1), 0.2)


NORMALS = ["AutoNormal", "AutoDiagonalNormal", "AutoMultivariateNormal"]


@every_flow
@pytest.mark.parametrize("name", [*NORMALS, "AutoLowRankMultivariateNormal"])
def test_a_warm_start_is_the_fitted_normal(make, name, key):
    normal = fitted(name)
    trained = perturbed(make(model, key=key), key, 0.3)  # the flow starts again
    guide = trained.warm_start(normal)
    assert type(guide) is type(trained)
    draws, log_q = guide.sample_and_log_prob(key, sample_shape=(2_000,))
    gap = log_q - normal.log_prob(draws)
    if isinstance(guide, gx.AutoBNAFNormal):
        assert abs(float(gap.mean())) < 0.1
    else:
        assert float(jnp.abs(gap).max()) < 1e5 * precision()
    jax.grad(gx.ELBO())(guide, key)


def test_a_warm_start_takes_the_models_parameters(key):
    def with_param():
        scale = gx.param("scale", 1.0, gx.constraints.positive)
        gx.sample("x", distrax.Normal(jnp.zeros(()), scale))

    normal = perturbed(gx.AutoNormal(with_param, key=key), key)
    flow = gx.AutoRealNVPNormal(with_param, key=key, num_flows=1).warm_start(normal)
    assert float(flow.param_values()["scale"]) == float(normal.param_values()["scale"]) != 1.0


def test_what_is_no_warm_start_is_refused(key):
    flow = gx.AutoRealNVPNormal(model, key=key, num_flows=1)
    with pytest.raises(
        ValueError,
        match=r"the given guide must draw.*lacks \['s'\]; .*'x' has shape \(\), not \(2,\)",
    ):
        flow.warm_start(gx.AutoNormal(line, key=key))
    with pytest.raises(TypeError, match=r"call its .laplace"):
        flow.warm_start(gx.AutoLaplaceApproximation(model, key=key))
    with pytest.raises(TypeError, match="got AutoDelta"):
        flow.warm_start(gx.AutoDelta(model, key=key))
    with refused_type("takes a guide"):
        flow.warm_start({"x": 1.0})

    def twin():
        model()

    with pytest.raises(ValueError, match="bound to different models"):
        flow.warm_start(gx.AutoNormal(twin, key=key))


@every_flow
def test_the_density_integrates_to_one(make, key):
    """By the midpoint rule over a square that holds all but 1e-4 of the draws."""

    def plane():
        gx.sample("x", distrax.MultivariateNormalDiag(jnp.zeros(2), jnp.ones(2)))

    guide = perturbed(make(plane, key=key, init_scale=0.5), random.key(3), 0.2)
    posterior = guide.get_posterior()
    draws = posterior.sample(seed=key, sample_shape=(20_000,))
    low, high = jnp.quantile(draws, jnp.array([1e-5, 1 - 1e-5]), axis=0)
    margin, cells = 0.5 * (high - low), 160
    sides = [
        jnp.linspace(a, b, cells, endpoint=False) + (b - a) / (2 * cells)
        for a, b in zip(low - margin, high + margin, strict=True)
    ]
    grid = jnp.stack(jnp.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 2)
    area = float(jnp.prod((high - low + 2 * margin) / cells))
    total = area * float(jnp.sum(jnp.exp(jax.jit(posterior.log_prob)(grid))))
    assert abs(total - 1) < 2e-3


@every_flow
def test_path_gradients_need_no_inverse(make, key):
    """They equal those of log q at the draw through the inverse, with the parameters held."""
    family = perturbed(make(model, key=key), random.key(2), 0.2).family
    target = gx.AutoDelta(model, key=key).target(key, gx.Batch(), {})

    @jax.jit
    @jax.value_and_grad
    def along_the_path(family):
        (log_q,) = family.path_draw(key, target).log_q.values()
        return log_q

    @jax.jit
    @jax.value_and_grad
    def through_the_inverse(family):
        z, _ = family.sample(key)
        return jax.tree.map(jax.lax.stop_gradient, family).log_density(z)

    value, found = along_the_path(family)
    expected_value, expected = through_the_inverse(family)
    size = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    assert size > 0.1
    tolerance = 1e-12 if precision() < 1e-10 else 1e-4
    assert distance(found, expected) < tolerance * max(size, 1.0)
    assert abs(float(value - expected_value)) < tolerance * abs(float(value)) + tolerance


@every_flow
def test_sticking_the_landing_has_no_variance_at_the_posterior(make, key):
    """Where q is the posterior, the path gradient is zero draw by draw; the other one is not."""

    def standard():
        gx.sample("x", distrax.MultivariateNormalDiag(jnp.zeros(3), jnp.ones(3)))

    init = gx.init_to_value({"x": jnp.zeros(3)})
    guide = make(standard, key=key, init_loc_fn=init, init_scale=1.0)
    if isinstance(guide, gx.AutoBNAFNormal):
        pytest.skip("its start is close to the posterior, but not it")
    stl = jax.grad(gx.ELBO(estimator="stl"))(guide, key)
    plain = jax.grad(gx.ELBO())(guide, key)
    size = lambda tree: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))  # noqa: E731
    assert size(stl) < 1e4 * precision() < 1e-2 < size(plain)


def test_no_closed_form_entropy(key):
    guide = gx.AutoIAFNormal(model, key=key, num_flows=1)
    with pytest.raises(ValueError, match="AutoIAFNormal has no entropy in closed form"):
        gx.ELBO(estimator="entropy")(guide, key)


def test_every_option_is_heard(key):
    def shapes(constructor, **options):
        return [x.shape for x in jax.tree.leaves(constructor(model, key=key, **options).family)]

    for constructor in (
        gx.AutoIAFNormal,
        gx.AutoBNAFNormal,
        gx.AutoRealNVPNormal,
        gx.AutoNSFNormal,
    ):
        assert shapes(constructor, num_flows=1) != shapes(constructor, num_flows=2)
        wide = constructor(model, key=key, num_flows=1, init_scale=0.7)
        assert float(wide.family.affine.marginal_scale()[0]) == pytest.approx(0.7, abs=1e-6)
    for constructor in (gx.AutoIAFNormal, gx.AutoRealNVPNormal, gx.AutoNSFNormal):
        assert shapes(constructor, num_flows=1, hidden_dims=(5,))[2][1] == 5
        plain = constructor(model, key=key, num_flows=1)
        tanh = constructor(model, key=key, num_flows=1, nonlinearity=jnp.tanh)
        x, moved = jnp.ones(3), [perturbed(g, key) for g in (plain, tanh)]
        a, b = (g.get_transform().forward(x) for g in moved)
        assert float(jnp.abs(a - b).max()) > 1e-3
    assert gx.AutoIAFNormal(model, key=key, num_flows=1).family.flow.layers[0].network.skip is None
    skipping = gx.AutoIAFNormal(model, key=key, num_flows=1, skip_connections=True)
    assert skipping.family.flow.layers[0].network.skip.shape == (3, 6)
    assert (3, 15) in shapes(gx.AutoBNAFNormal, hidden_factors=(5,))
    few, many = (shapes(gx.AutoNSFNormal, num_flows=1, num_bins=n) for n in (2, 6))
    assert few != many
    assert shapes(gx.AutoIAFNormal)[2] == (4, 3)  # as wide as the vector is long, and biases
    for name, count in {"IAF": 3, "BNAF": 1}.items():
        layers = getattr(gx, f"Auto{name}Normal")(model, key=key).family.flow.layers
        assert len(layers) == 2 * count - 1  # with reversals between


def test_bad_options_are_refused(key):
    with pytest.raises(ValueError, match="num_flows counts layers"):
        gx.AutoIAFNormal(model, key=key, num_flows=0)
    with pytest.raises(ValueError, match="num_flows counts layers.*got True"):
        gx.AutoIAFNormal(model, key=key, num_flows=True)
    with pytest.raises(ValueError, match="init_scale is a standard deviation"):
        gx.AutoBNAFNormal(model, key=key, init_scale=-1.0)
    with pytest.raises(ValueError, match=r"hidden_factors counts units.*\(8, 0\)"):
        gx.AutoBNAFNormal(model, key=key, hidden_factors=(8, 0))
    with pytest.raises(ValueError, match="hidden_dims counts units"):
        gx.AutoIAFNormal(model, key=key, hidden_dims=(-2,))
    with pytest.raises(ValueError, match="hidden_dims counts units"):
        gx.AutoIAFNormal(model, key=key, hidden_dims=(True,))
    with pytest.raises(ValueError, match="num_bins counts units"):
        gx.AutoNSFNormal(model, key=key, num_bins=0)
    with refused_type("nonlinearity takes a function"):
        gx.AutoRealNVPNormal(model, key=key, nonlinearity="elu")


def test_a_part_of_a_list(key):
    """A flow for some sites beside a normal for the others; its share of log q is its own."""
    parts = {
        "x": functools.partial(gx.AutoRealNVPNormal, num_flows=2, hidden_dims=(4,)),
        ...: gx.AutoNormal,
    }
    guide = perturbed(gx.AutoGuideList(model, key=key, parts=parts), key, 0.2)
    draws, log_q = guide.sample_and_log_prob(key, sample_shape=(7,))
    flow, normal = guide.family.parts
    x = flow.posterior().log_prob(draws["x"])
    log_s = jnp.log(draws["s"])
    s = distrax.Normal(normal.loc["s"], jax.nn.softplus(normal.raw_scale["s"])).log_prob(log_s)
    assert float(jnp.abs(log_q - (x + s - log_s)).max()) < 1e5 * precision()


def banana():
    """`x ~ N(0, 2^2)`, `y | x ~ N(x^2 / 4, 0.5^2)`: evidence 1."""
    x = gx.sample("x", distrax.Normal(jnp.zeros(()), 2.0))
    gx.sample("y", distrax.Normal(x**2 / 4, 0.5))


def funnel():
    """`v ~ N(0, 3^2)`, two of `N(0, exp(v / 2)^2)`: Neal's funnel, evidence 1."""
    v = gx.sample("v", distrax.Normal(jnp.zeros(()), 3.0))
    gx.sample("x", distrax.MultivariateNormalDiag(jnp.zeros(2), jnp.exp(v / 2) * jnp.ones(2)))


@functools.cache
def gap_of(constructor, target):
    """Return log Z less the ELBO of a fit, in nats."""
    key = random.key(0)
    guide = constructor(target, key=key, init_loc_fn=gx.init_to_median(), init_scale=0.5)
    objective = gx.ELBO(num_particles=16)
    result = gx.fit(key, guide, steps=3_000, objective=objective, progress=False)
    return float(gx.ELBO(num_particles=20_000)(result.guide, random.key(1)))


@pytest.mark.slow
@pytest.mark.parametrize("target", [banana, funnel])
@pytest.mark.parametrize(
    "constructor", [gx.AutoIAFNormal, gx.AutoBNAFNormal, gx.AutoRealNVPNormal, gx.AutoNSFNormal]
)
def test_flows_bend_where_a_normal_cannot(constructor, target):
    normal = gap_of(gx.AutoMultivariateNormal, target)
    assert normal > 0.5
    assert -0.02 < gap_of(constructor, target) < normal / 2


def test_the_fields_are_arrays_alone(key):
    """No distrax object is a field: its structure would change with what stands in its leaves."""
    for make in FLOWS.values():
        guide = make(model, key=key)
        arrays, rest = eqx.partition(guide, eqx.is_inexact_array)
        assert not jax.tree.leaves(rest)
        assert np.all([isinstance(x, jax.Array) for x in jax.tree.leaves(arrays)])


def test_many_dimensions_do_not_throw_a_fit_off(key):
    """Adam moves all weights at once, so a wide network's output by far more than its rate."""
    dim = 200

    def wide():
        gx.sample("x", distrax.MultivariateNormalDiag(jnp.zeros(dim), jnp.ones(dim)))

    guide = gx.AutoIAFNormal(wide, key=key)
    losses = gx.fit(key, guide, steps=200, progress=False).losses
    assert float(losses[-20:].mean()) < 0.2 * float(losses[0])  # the optimum is 0
