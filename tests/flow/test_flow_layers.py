"""Every layer: there and back, and the log-determinant that automatic differentiation gives."""

import functools
import re

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import random

from assertions import distance, precision
from guidax._flow.block_autoregressive import BlockAutoregressive, activation
from guidax._flow.composition import Composition
from guidax._flow.coupling import AffineCoupling, SplineCoupling, moved_by, widths_between
from guidax._flow.inverse_autoregressive import InverseAutoregressive
from guidax._flow.masks import block_masks, dense_masks, hidden_degrees
from guidax._flow.network import make_networks
from guidax._flow.rearrangement import Reversal

DTYPE = jnp.result_type(float)
KEY = random.key(0)


def network(widths, **options):
    return make_networks(KEY, [widths], jax.nn.elu, dtype=DTYPE, **options)[0]


def autoregressive(dim, skips=False):
    return InverseAutoregressive(network((dim, dim, dim, 2 * dim), skips=skips))


def block(dim, factors=(4, 3), gated=False):
    return BlockAutoregressive(dim, factors, gated=gated, dtype=DTYPE)


def affine(dim, index=0):
    moved = moved_by(dim, index)
    return AffineCoupling(network(widths_between(moved, (8,), 2)), moved)


def spline(dim, index=0):
    moved = moved_by(dim, index)
    return SplineCoupling(network(widths_between(moved, (8,), 13)), moved)


FLOWS = {
    "inverse autoregressive": lambda dim: Composition(
        [autoregressive(dim), Reversal(dim), autoregressive(dim, skips=True)]
    ),
    "block autoregressive": lambda dim: Composition(
        [block(dim, gated=True), Reversal(dim), block(dim)]
    ),
    "affine coupling": lambda dim: Composition([affine(dim, 0), affine(dim, 1)]),
    "spline coupling": lambda dim: Composition([spline(dim, 0), spline(dim, 1)]),
}
every_flow = pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)


@functools.partial(jax.jit, static_argnames="scale")
def moved(flow, seed, scale=0.2):
    """Return the flow with parameters up to twice `scale` from where they start."""
    leaves, treedef = jax.tree.flatten(flow)
    keys = random.split(random.key(seed), len(leaves))
    noise = [
        random.truncated_normal(k, -2.0, 2.0, x.shape, x.dtype)
        for k, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, [x + scale * e for x, e in zip(leaves, noise, strict=True)])


@jax.jit
def there_and_back(flow, x):
    """Return the Jacobian's condition, and the errors of inverse and both log-determinants."""
    bijector = flow.bijector()
    y, log_det = bijector.forward_and_log_det(x)
    back, inverse_log_det = bijector.inverse_and_log_det(y)
    jacobian = jax.jacobian(bijector.forward)(x)
    expected = jnp.linalg.slogdet(jacobian)[1]
    off = jnp.abs(log_det - expected), jnp.abs(log_det + inverse_log_det)
    return jnp.linalg.cond(jacobian), (jnp.abs(back - x).max(), *off)


@every_flow
@pytest.mark.parametrize("dim", [1, 2, 5, 21])
def test_there_and_back(make, dim):
    flow = make(dim)

    @settings(max_examples=20, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 10_000), x=st.lists(st.floats(-4, 4), min_size=dim, max_size=dim))
    def check(seed, x):
        condition, errors = there_and_back(moved(flow, seed), jnp.asarray(x, float))
        assume(float(condition) < 0.01 / jnp.finfo(DTYPE).eps)  # else rounding alone is as large
        assert max(float(e) for e in errors) < (1e-8 if jnp.float64 == DTYPE else 1e-3)

    check()


@every_flow
def test_leading_axes_are_those_of_several_vectors(make):
    x = random.normal(KEY, (2, 4, 3))

    @jax.jit
    def run(flow):
        bijector = flow.bijector()
        y, log_det = bijector.forward_and_log_det(x)
        return y, log_det, bijector.inverse(y), *bijector.forward_and_log_det(x[1, 2])

    y, log_det, back, one, one_log_det = run(moved(make(3), 1))
    assert y.shape == (2, 4, 3) and log_det.shape == (2, 4)
    assert float(jnp.abs(y[1, 2] - one).max()) < 100 * precision()
    assert abs(float(log_det[1, 2] - one_log_det)) < 100 * precision()
    assert float(jnp.abs(back - x).max()) < 1e4 * precision()


@every_flow
def test_the_inverse_has_the_derivatives_of_the_inverse(make):
    """By the vector and by the parameters; expected: from f(f^-1(y)) = y."""
    x = jnp.array([0.3, -1.0, 0.7], float)

    @jax.jit
    def derivatives(flow):
        forward, y = jax.jacobian(flow.bijector().forward)(x), flow.bijector().forward(x)
        inverse = jax.jacobian(flow.bijector().inverse)(y)
        by_parameters = jax.jacobian(lambda at: at.bijector().inverse(y))(flow)
        moves = jax.jacobian(lambda at: at.bijector().forward(x))(flow)
        expected = jax.tree.map(lambda df: -jnp.tensordot(inverse, df, 1), moves)
        return inverse @ forward, by_parameters, expected

    product, by_parameters, expected = derivatives(moved(make(3), 2))
    assert float(jnp.abs(product - jnp.eye(3)).max()) < 1e4 * precision()
    assert distance(by_parameters, expected) < 1e5 * precision()


@every_flow
def test_a_gradient_is_pulled_back_by_the_inverse_of_the_jacobian(make):
    x, g = random.normal(KEY, (2, 4))

    @jax.jit
    def run(flow):
        y = flow.bijector().forward(x)
        return flow.pull_back(x, y, g), jax.jacobian(flow.bijector().forward)(x)

    found, jacobian = run(moved(make(4), 3))
    expected = np.linalg.solve(np.asarray(jacobian).T, np.asarray(g))
    assert float(jnp.abs(found - expected).max()) < 1e4 * precision()


@every_flow
def test_a_restarted_layer_is_where_it_was(make):
    flow = make(5)
    x = random.normal(KEY, (50, 5))
    start, _ = flow.bijector().forward_and_log_det(x)
    again, _ = moved(flow, 4).restarted().bijector().forward_and_log_det(x)
    assert float(jnp.abs(start - again).max()) < 100 * precision()


@pytest.mark.parametrize("name", ["inverse autoregressive", "affine coupling", "spline coupling"])
def test_it_starts_as_the_identity(name):
    x = random.normal(KEY, (50, 5))
    y, log_det = FLOWS[name](5).bijector().forward_and_log_det(x)
    assert float(jnp.abs(jnp.sort(y) - jnp.sort(x)).max()) < 100 * precision()
    assert float(jnp.abs(log_det).max()) < 100 * precision()


@pytest.mark.parametrize("factors", [(8, 8), (50, 50), (1,), (3, 5, 2)])
@pytest.mark.parametrize("dim", [1, 21])
def test_a_block_layer_starts_within_a_tenth_of_a_nat(factors, dim):
    """KL(start || standard normal), coordinate by coordinate, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    layer = block(dim, factors)
    x = jnp.asarray(np.tile(nodes[:, None], dim), float)  # all coordinates have the same map
    y, log_det = jax.jit(lambda at: at.bijector().forward_and_log_det(x))(layer)
    divergence = -np.asarray(log_det) + 0.5 * np.sum(np.asarray(y) ** 2 - np.asarray(x) ** 2, 1)
    assert 0 <= weights @ divergence / weights.sum() + 100 * precision() < 0.1


def test_autoregressive_layers_read_earlier_inputs_only():
    for layer in (autoregressive(5), autoregressive(5, skips=True), block(5)):
        jacobian = jax.jit(lambda at: at.jacobian(random.normal(KEY, (5,))))(moved(layer, 5))
        assert float(jnp.abs(jnp.triu(jacobian, 1)).max()) == 0
        assert float(jnp.abs(jacobian[jnp.tril_indices(5)]).min()) > 0  # and all of them


def test_coupling_layers_move_what_they_say():
    for layer in (affine(5, 2), spline(5, 3)):
        x = random.normal(KEY, (5,))
        y = moved(layer, 6).bijector().forward(x)
        assert [bool(a != b) for a, b in zip(x, y, strict=True)] == list(layer.moved)


@pytest.mark.parametrize("dim", [2, 3, 5, 8, 21])
def test_any_two_coordinates_are_apart_in_some_coupling_layer(dim):
    layers = [moved_by(dim, i) for i in range(2 * (dim - 1).bit_length())]
    for i in range(dim):
        for j in range(i):
            assert any(layer[i] != layer[j] for layer in layers)
    for even, odd in zip(layers[::2], layers[1::2], strict=True):
        assert all(a != b for a, b in zip(even, odd, strict=True))


def test_the_root_find_follows_a_coordinate_far_out():
    """The bracket grows from -1 to 1; a wrong root would be inside of it."""
    layer = block(2)
    y = jnp.array([1e4, -3e4], float)
    x = layer.bijector().inverse(y)
    assert float(jnp.abs(layer.bijector().forward(x) / y - 1).max()) < 1e3 * precision()
    assert float(jnp.abs(x).min()) > 1e3


def test_without_a_finite_root_there_is_none():
    layer = block(2)
    broken = eqx.tree_at(lambda x: x.biases[-1], layer, jnp.array([0.0, jnp.nan]))
    x = broken.bijector().inverse(jnp.ones(2))
    assert jnp.isfinite(x[0]) and jnp.isnan(x[1])


def test_the_activation_and_its_slope():
    u = jnp.linspace(-30.0, 30.0, 61)
    value, log_slope = activation(u)
    assert float(jnp.abs(value - jnp.tanh(u) - 0.01 * u).max()) < 10 * precision()
    slope = jax.vmap(jax.grad(lambda at: activation(at)[0]))(u)
    assert float(jnp.abs(jnp.exp(log_slope) - slope).max()) < 100 * precision()


def test_masks():
    assert hidden_degrees(4, 5).tolist() == [1, 2, 2, 2, 3]  # halves go to even: 1.5 and 2.5 to 2
    assert hidden_degrees(1, 3).tolist() == [1, 1, 1]
    first, last = dense_masks(3, (2,))
    assert first.tolist() == [[1, 1], [0, 1], [0, 0]]
    assert last.tolist() == [[0, 1, 1, 0, 1, 1], [0, 0, 1, 0, 0, 1]]
    diagonal, above = block_masks(2, 1, 2)
    assert diagonal.tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
    assert above.tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]


@every_flow
def test_the_program_does_not_grow_with_the_dimension(make):
    def size(dim):
        flow, x = make(dim), jnp.zeros(dim)
        run = lambda flow, x: flow.bijector().inverse_and_log_det(flow.bijector().forward(x))  # noqa: E731
        return len(re.findall(" = ", str(jax.make_jaxpr(run)(flow, x))))

    assert size(8) == size(16)  # of coupling layers both cut the vector into halves


def test_a_bijector_is_the_same_as_itself_alone():
    layer, other = block(2), block(2)
    bijector = layer.bijector()
    assert isinstance(bijector, distrax.Bijector)
    assert bijector.same_as(layer.bijector()) and not bijector.same_as(other.bijector())
    assert Reversal(3).bijector().same_as(Reversal(3).bijector())
    assert not Reversal(3).bijector().same_as(Reversal(2).bijector())
