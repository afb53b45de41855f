"""`biject_to`: NumPyro's maps in value and log-determinant, and sound at the edges."""

import functools
import math

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions.constraints as npc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpyro.distributions.transforms import biject_to as numpyro_biject_to
from tensorflow_probability.substrates.jax import bijectors as tfb

import guidax as gx
from assertions import case_id
from guidax import constraints as C
from guidax._model.bijectors import monotonicity

INF = math.inf
DOUBLE = jnp.result_type(float) == jnp.float64
RTOL = 1e-9 if DOUBLE else 1e-4

LOW = np.array([-1.0, 0.5], "float32")
HIGH = np.array([0.0, 4.5], "float32")
BATCH = 5

# Compiling is what costs here, and these programs run once.
quickly = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


def whole(y):
    """Take all coordinates."""
    return y.reshape(-1)


def all_but_last(y):
    """Take the coordinates of a simplex that are free."""
    return y[..., :-1].reshape(-1)


def lower(y):
    """Take the triangle of a triangular or symmetric matrix."""
    return y[np.tril_indices(y.shape[-1])]


def strictly_lower(y):
    """Take the free coordinates of a correlation matrix or of its factor."""
    return y[np.tril_indices(y.shape[-1], -1)]


# Name: constraint, NumPyro's, shape of the unconstrained event, free coordinates of the value.
CASES = {
    "real": (C.real, npc.real, (), whole),
    "positive": (C.positive, npc.positive, (), whole),
    "nonnegative": (C.nonnegative, npc.nonnegative, (), whole),
    "softplus_positive": (C.softplus_positive, npc.softplus_positive, (), whole),
    "unit_interval": (C.unit_interval, npc.unit_interval, (), whole),
    "interval": (C.interval(-1.0, 2.5), npc.interval(-1.0, 2.5), (), whole),
    "interval, arrays": (C.interval(LOW, HIGH), npc.interval(LOW, HIGH), (2,), whole),
    "open_interval": (C.open_interval(-1.0, 2.5), npc.open_interval(-1.0, 2.5), (), whole),
    "greater_than": (C.greater_than(1.5), npc.greater_than(1.5), (), whole),
    "greater_than, array": (C.greater_than(LOW), npc.greater_than(LOW), (2,), whole),
    "greater_than_eq": (C.greater_than_eq(1.5), npc.greater_than_eq(1.5), (), whole),
    "less_than": (C.less_than(1.5), npc.less_than(1.5), (), whole),
    "less_than, array": (C.less_than(HIGH), npc.less_than(HIGH), (2,), whole),
    "less_than_eq": (C.less_than_eq(1.5), npc.less_than_eq(1.5), (), whole),
    "real_vector": (C.real_vector, npc.real_vector, (3,), whole),
    "real_matrix": (C.real_matrix, npc.real_matrix, (2, 3), whole),
    "independent": (
        C.independent(C.interval(LOW, HIGH), 1),
        npc.independent(npc.interval(LOW, HIGH), 1),
        (2,),
        whole,
    ),
    "independent simplex": (
        C.independent(C.simplex, 1),
        npc.independent(npc.simplex, 1),
        (2, 2),
        all_but_last,
    ),
    "simplex": (C.simplex, npc.simplex, (3,), all_but_last),
    "ordered": (C.ordered, npc.ordered_vector, (3,), whole),
    "positive_ordered": (C.positive_ordered, npc.positive_ordered_vector, (3,), whole),
    "l1_ball": (C.l1_ball, npc.l1_ball, (3,), whole),
    "zero_sum": (C.zero_sum(1), npc.zero_sum(1), (3,), whole),
    "zero_sum, two axes": (C.zero_sum(2), npc.zero_sum(2), (2, 2), whole),
    "lower_cholesky": (C.lower_cholesky, npc.lower_cholesky, (6,), lower),
    "softplus_lower_cholesky": (
        C.softplus_lower_cholesky,
        npc.softplus_lower_cholesky,
        (6,),
        lower,
    ),
    "scaled_unit_lower_cholesky": (
        C.scaled_unit_lower_cholesky,
        npc.scaled_unit_lower_cholesky,
        (6,),
        lower,
    ),
    "corr_cholesky": (C.corr_cholesky, npc.corr_cholesky, (6,), strictly_lower),
    "corr_matrix": (C.corr_matrix, npc.corr_matrix, (6,), strictly_lower),
    "positive_definite": (C.positive_definite, npc.positive_definite, (6,), lower),
    "positive_semidefinite": (C.positive_semidefinite, npc.positive_semidefinite, (6,), lower),
    "transformed": (
        C.transformed(C.positive, distrax.ScalarAffine(np.float32(-0.5), np.float32(-1.0))),
        npc.less_than(-0.5),
        (),
        whole,
    ),
}
NO_MAP = {"circular", "sphere"}
DISCRETE = {
    "boolean": C.boolean,
    "one_hot": C.one_hot,
    "discrete": C.discrete(),
    "integer": C.integer,
    "integer_interval": C.integer_interval(0, 3),
    "integer_greater_than": C.integer_greater_than(2),
    "nonnegative_integer": C.nonnegative_integer,
    "positive_integer": C.positive_integer,
    "multinomial": C.multinomial(3),
}

every_case = pytest.mark.parametrize("name", CASES)


def points(name, dtype=float):
    """Return some unconstrained values: the origin, and others around it."""
    shape = CASES[name][2]
    x = 1.5 * np.random.default_rng(0).normal(size=(BATCH, *shape))
    x[0] = 0.0
    return jnp.asarray(x, dtype)


def extremes(name):
    """Return values of which each coordinate is -40 or 40."""
    shape = CASES[name][2]
    x = np.random.default_rng(1).choice([-40.0, 40.0], size=(BATCH, *shape))
    x[0], x[1] = -40.0, 40.0
    if name == "positive_ordered":  # exp(exp(40)) is infinite, in NumPyro's map as well
        x = np.minimum(x, 2.0)
    return jnp.asarray(x, float)


def jacobian(bijector, free, x):
    """Return the derivative of the free coordinates, of shape `(batch, out, in)`."""

    def flat(x):
        return jax.jacfwd(lambda x: free(bijector.forward(x)))(x).reshape(-1, x.size)

    return jax.vmap(flat)(x)


def log_volume(matrix):
    """Return `log |det|`, of an isometry's derivative as of a square one."""
    if matrix.shape[-2] == matrix.shape[-1]:
        return np.linalg.slogdet(matrix)[1]
    return 0.5 * np.linalg.slogdet(np.swapaxes(matrix, -1, -2) @ matrix)[1]


@functools.cache
def evaluate(name):
    """Evaluate everything about one constraint in one program, since compiling is what costs."""
    constraint, theirs, shape, free = CASES[name]

    def run(x, far):
        bijector, reference = gx.biject_to(constraint), numpyro_biject_to(theirs)
        y, log_det = bijector.forward_and_log_det(x)
        ref = reference(x)
        single = x.astype("float32")
        single_y, single_log_det = bijector.forward_and_log_det(single)
        far_y, far_log_det = bijector.forward_and_log_det(far)

        def summary(x):
            y, log_det = bijector.forward_and_log_det(x)
            return jnp.sum(y) + jnp.sum(log_det)

        return {
            "y": y,
            "log_det": log_det,
            "forward": bijector.forward(x),
            "forward_log_det": bijector.forward_log_det_jacobian(x),
            "reference": ref,
            "reference_log_det": reference.log_abs_det_jacobian(x, ref),
            "derivative": jacobian(bijector, free, x),
            "inverse": bijector.inverse(y),
            "reference_inverse": bijector.inverse(ref),
            "inverse_and_log_det": bijector.inverse_and_log_det(y),
            "inverse_log_det": bijector.inverse_log_det_jacobian(y),
            "vmapped": jax.vmap(bijector.forward_and_log_det)(x),
            "single": (single_y, single_log_det, bijector.inverse(single_y)),
            "far": (far_y, far_log_det, jax.grad(summary)(far)),
            "inside": constraint(y),
        }

    return quickly(run)(points(name), extremes(name))


def test_every_public_constraint_is_visited():
    public = {n for n, x in vars(C).items() if callable(x) and not n.startswith("_")}
    visited = CASES.keys() | NO_MAP | DISCRETE.keys()
    assert public - {"Constraint"} == {name for name in visited if name in public}


@every_case
def test_equals_numpyro(name):
    found = evaluate(name)
    np.testing.assert_allclose(found["y"], found["reference"], rtol=RTOL, atol=RTOL)
    expected = found["reference_log_det"]
    assert found["log_det"].shape == expected.shape
    np.testing.assert_allclose(found["log_det"], expected, rtol=RTOL, atol=RTOL)


@every_case
def test_log_det_is_that_of_the_derivative(name):
    found = evaluate(name)
    log_det = found["log_det"].reshape(BATCH, -1).sum(axis=-1)
    tolerance = 1e-8 if DOUBLE else 1e-3
    expected = log_volume(np.asarray(found["derivative"]))
    np.testing.assert_allclose(log_det, expected, rtol=tolerance, atol=tolerance)


@every_case
def test_inverse(name):
    found, x = evaluate(name), points(name)
    tolerance = 1e-8 if DOUBLE else 1e-3
    np.testing.assert_allclose(found["inverse"], x, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(found["reference_inverse"], x, rtol=tolerance, atol=tolerance)
    back, log_det = found["inverse_and_log_det"]
    np.testing.assert_allclose(back, x, rtol=tolerance, atol=tolerance)
    for inverse_log_det in (log_det, found["inverse_log_det"]):
        expected = -found["reference_log_det"]
        np.testing.assert_allclose(inverse_log_det, expected, rtol=tolerance, atol=tolerance)


@every_case
def test_parts_agree_with_the_whole(name):
    found = evaluate(name)
    np.testing.assert_allclose(found["forward"], found["y"], rtol=1e-6)
    np.testing.assert_allclose(found["forward_log_det"], found["log_det"], rtol=1e-6)
    for one_by_one, together in zip(found["vmapped"], (found["y"], found["log_det"]), strict=True):
        np.testing.assert_allclose(one_by_one, together, rtol=1e-5, atol=1e-5)


@every_case
def test_results_lie_in_the_constraint(name):
    inside = evaluate(name)["inside"]
    assert inside.shape[0] == BATCH and bool(inside.all())


@every_case
def test_single_precision_stays_single(name):
    found = evaluate(name)
    for kept in found["single"]:
        assert kept.dtype == jnp.float32
    np.testing.assert_allclose(found["single"][0], found["reference"], rtol=1e-4, atol=1e-5)


@every_case
def test_extreme_values_give_finite_values_and_gradients(name):
    for value in evaluate(name)["far"]:
        assert bool(jnp.isfinite(value).all()), value


@pytest.mark.parametrize(
    "name",
    [
        "positive",
        "softplus_positive",
        "unit_interval",
        "interval",
        "interval, arrays",
        "simplex",
        "l1_ball",
        "zero_sum",
        "lower_cholesky",
        "corr_cholesky",
        "scaled_unit_lower_cholesky",
    ],
)
def test_extreme_values_stay_in_sets_that_have_no_gap_at_their_edge(name):
    y = evaluate(name)["far"][0]
    assert bool(CASES[name][0](y).all())


@pytest.mark.parametrize("dtype", [jnp.float32, float])
@pytest.mark.parametrize("constraint", [C.positive, C.softplus_positive, C.nonnegative], ids=str)
def test_what_rounds_to_zero_stays_positive(constraint, dtype):
    bijector, x = gx.biject_to(constraint), jnp.asarray([-1000.0, -200.0, -50.0], dtype)
    y = bijector.forward(x)
    assert y.dtype == x.dtype and bool(jnp.all(C.positive(y)))
    expected = np.maximum(np.exp(np.asarray(x, np.float64)), np.finfo(y.dtype).tiny)
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    np.testing.assert_allclose(bijector.forward_log_det_jacobian(x), x, rtol=1e-6)
    assert bool(jnp.all(jnp.isfinite(jax.vmap(jax.grad(bijector.forward))(x))))


@every_case
def test_event_axes(name):
    constraint, _, shape, _ = CASES[name]
    bijector = gx.biject_to(constraint)
    assert bijector.event_ndims_out == constraint.event_dim
    found = evaluate(name)
    batch = (BATCH, *shape)[: 1 + len(shape) - bijector.event_ndims_in]
    assert found["log_det"].shape == batch
    assert found["inside"].shape == batch


# The edges of the sets, and what lies beyond.


@pytest.mark.parametrize(
    "constraint, edge, sign",
    [
        (C.nonnegative, 0.0, -1),
        (C.unit_interval, 0.0, -1),
        (C.unit_interval, 1.0, 1),
        (C.interval(-1.0, 2.0), -1.0, -1),
        (C.interval(-1.0, 2.0), 2.0, 1),
        (C.greater_than_eq(1.5), 1.5, -1),
        (C.less_than_eq(1.5), 1.5, -1),
        (C.interval(1.5, INF), 1.5, -1),
        (C.interval(-INF, 1.5), 1.5, 1),
        (C.interval(np.full(1, 1.5, "float32"), INF), 1.5, -1),
        (C.interval(-INF, np.full(1, 1.5, "float32")), 1.5, 1),
    ],
    ids=case_id,
)
def test_inverse_is_finite_at_the_edge(constraint, edge, sign):
    x = gx.biject_to(constraint).inverse(jnp.asarray(edge, float))
    assert jnp.isfinite(x) and sign * x > 10.0


def test_inverse_is_finite_at_the_corners_of_a_simplex_and_of_a_ball():
    for constraint in (C.simplex, C.l1_ball):
        corners = gx.biject_to(constraint).inverse(jnp.eye(3))
        assert bool(jnp.isfinite(corners).all())


@pytest.mark.parametrize(
    "constraint, outside",
    [
        (C.positive, -1.0),
        (C.softplus_positive, -1.0),
        (C.unit_interval, 1.5),
        (C.unit_interval, -0.5),
        (C.interval(-1.0, 2.0), 2.1),
        (C.interval(np.zeros(1), np.ones(1)), -0.5),
        (C.greater_than(1.5), 1.0),
        (C.less_than(1.5), 2.0),
        (C.interval(1.5, INF), 1.0),
        (C.interval(-INF, 1.5), 2.0),
    ],
    ids=case_id,
)
def test_inverse_is_nan_outside(constraint, outside):
    assert bool(jnp.isnan(gx.biject_to(constraint).inverse(jnp.asarray(outside, float))).all())


def test_inverse_is_nan_for_matrices_and_vectors_outside():
    decreasing = gx.biject_to(C.ordered).inverse(jnp.array([2.0, 1.0]))
    assert jnp.isnan(decreasing[1])
    indefinite = gx.biject_to(C.positive_definite).inverse(jnp.array([[1.0, 2.0], [2.0, 1.0]]))
    assert bool(jnp.isnan(indefinite).any())


@pytest.mark.parametrize(
    "constraint", [C.lower_cholesky, C.corr_cholesky, C.corr_matrix], ids=case_id
)
def test_lengths_that_fill_no_triangle_are_refused(constraint):
    with pytest.raises(ValueError, match="a vector of length 4 fills the .*lower triangle of no"):
        gx.biject_to(constraint).forward(jnp.zeros(4))


# Intervals with infinite ends, which NumPyro does not map.

ENDS = {
    "both": (-1.0, 3.0, lambda x: -1 + 4 / (1 + np.exp(-x))),
    "low": (-1.0, INF, lambda x: -1 + np.exp(x)),
    "high": (-INF, 3.0, lambda x: 3 - np.exp(-x)),
    "none": (-INF, INF, lambda x: x),
}


@pytest.mark.parametrize("as_array", [False, True], ids=["numbers", "arrays"])
@pytest.mark.parametrize("ends", ENDS)
def test_interval_with_infinite_ends(ends, as_array):
    low, high, expected = ENDS[ends]
    if as_array:
        low, high = np.full((), low, "float32"), np.full((), high, "float32")
    x = np.linspace(-3.0, 3.0, 7)
    bijector = gx.biject_to(C.interval(low, high))
    y, log_det = bijector.forward_and_log_det(jnp.asarray(x, float))
    tolerance = 1e-6 if DOUBLE else 1e-4
    np.testing.assert_allclose(y, expected(x), rtol=1e-5)
    slope = (expected(x + 1e-5) - expected(x - 1e-5)) / 2e-5
    np.testing.assert_allclose(log_det, np.log(slope), atol=tolerance)
    np.testing.assert_allclose(bijector.inverse(y), x, atol=tolerance)
    assert bijector.forward(jnp.zeros(1, "float32")).dtype == jnp.float32


def test_interval_with_some_infinite_ends():
    low, high = np.array([(e[0], e[1]) for e in ENDS.values()], "float32").T
    x = np.linspace(-3.0, 3.0, 4)
    found = gx.biject_to(C.independent(C.interval(low, high), 1)).forward(jnp.asarray(x, float))
    expected = [e[2](v) for e, v in zip(ENDS.values(), x, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)

    def summary(x):
        y, log_det = gx.biject_to(C.interval(low, high)).forward_and_log_det(x)
        return y.sum() + log_det.sum()

    # The branch not taken sends no NaN through the one that is.
    for far in (-40.0, 40.0):
        assert bool(jnp.isfinite(jax.grad(summary)(jnp.full(4, far))).all())


@jax.jit
def between(low, high, x):
    bijector = gx.biject_to(C.interval(low, high))
    y, log_det = bijector.forward_and_log_det(x)
    return y, log_det, bijector.inverse(y)


@given(
    low=st.floats(-1e3, 1e3, width=32),
    width=st.floats(2**-6, 1e3, width=32),
    x=st.floats(-50.0, 50.0, width=32),
)
@settings(max_examples=80, deadline=None, derandomize=True, database=None)
def test_interval_with_traced_ends(low, width, x):
    high = float(np.float32(low + width))
    y, log_det, back = map(float, between(*map(float, (low, high, x))))
    assert low <= y <= high
    expected = math.log(high - low) - abs(x) - 2 * math.log1p(math.exp(-abs(x)))
    assert math.isclose(log_det, expected, rel_tol=1e-4, abs_tol=1e-4)
    assert math.isfinite(back)
    if DOUBLE and abs(x) < 10:
        assert math.isclose(back, x, rel_tol=1e-4, abs_tol=1e-4)


def test_gradients_reach_the_ends():
    x = jnp.asarray(0.3, float)
    s = 1 / (1 + math.exp(-0.3))

    def value(low, high):
        return gx.biject_to(C.interval(low, high)).forward(x)

    grads = jax.grad(value, (0, 1))(jnp.asarray(-1.0, float), jnp.asarray(2.0, float))
    np.testing.assert_allclose(grads, [1 - s, s], rtol=1e-5)

    # An end at infinity sends no NaN to the other one.
    grads = jax.grad(value, (0, 1))(jnp.asarray(-1.0, float), jnp.asarray(INF, float))
    np.testing.assert_allclose(grads[0], 1.0)
    for constraint in (C.greater_than, C.less_than):
        slope = jax.grad(lambda b, c=constraint: gx.biject_to(c(b)).forward(x))(x)
        np.testing.assert_allclose(slope, 1.0)


# What has no bijector.


@pytest.mark.parametrize(
    "constraint, message",
    [
        (C.circular, "circular: no map from the reals .*arctan2"),
        (C.sphere, r"a sphere, onto which no map .*jnp\.linalg\.norm"),
        (C.independent(C.circular, 1), "circular"),
        (C.transformed(C.circular, distrax.Tanh()), "circular"),
    ],
    ids=case_id,
)
def test_topologies_without_a_map(constraint, message):
    with pytest.raises(ValueError, match=message):
        gx.biject_to(constraint)


@pytest.mark.parametrize("constraint", DISCRETE.values(), ids=DISCRETE)
def test_discrete_sets_are_refused(constraint):
    for each in (constraint, C.independent(constraint, 1)):
        with pytest.raises(TypeError, match="support is discrete .* Sum the discrete variable out"):
            gx.biject_to(each)


def test_reason_of_a_discrete_set_is_told():
    with pytest.raises(TypeError, match="discrete .its values lie on a grid."):
        gx.biject_to(C.discrete(0, "its values lie on a grid"))


class Odd(C.Constraint):
    """A constraint that nobody registered."""

    def contains(self, x):
        return x > 3.0


def test_unknown_constraint_names_register():
    with pytest.raises(TypeError, match=r"gx\.biject_to\.register\(Odd\)"):
        gx.biject_to(Odd())
    with pytest.raises(TypeError, match="biject_to takes a constraint.* got 3.0"):
        gx.biject_to(3.0)


def test_register():
    class AboveThree(Odd):
        pass

    class Further(AboveThree):
        pass

    @gx.biject_to.register(AboveThree)
    def _(constraint):
        return gx.biject_to(C.greater_than(3.0))

    for constraint in (AboveThree(), Further()):
        assert gx.biject_to(constraint).forward(jnp.zeros(())) == 4.0
    vectors = gx.biject_to(C.independent(AboveThree(), 1))
    np.testing.assert_allclose(vectors.forward_log_det_jacobian(jnp.array([0.5, 2.0])), 2.5)
    with pytest.raises(TypeError, match="Odd"):
        gx.biject_to(Odd())


# Bijectors of distrax and TFP after ours. TFP takes Python numbers for single precision.


def number(x):
    return jnp.asarray(x, float)


PUSHED = {
    # Constraint, shape of one unconstrained event, free coordinates.
    "tfp scale": (lambda: C.transformed(C.positive, tfb.Scale(number(-3.0))), (), whole),
    "tfp chain": (
        lambda: C.transformed(C.real, tfb.Chain([tfb.Shift(number(2.0)), tfb.Exp()])),
        (),
        whole,
    ),
    "tfp scale over a vector": (
        lambda: C.transformed(C.ordered, tfb.Scale(number(3.0))),
        (3,),
        whole,
    ),
    "tfp elementwise scale over a vector": (
        lambda: C.transformed(C.real_vector, tfb.Scale(number([1.0, 2.0, 4.0]))),
        (3,),
        whole,
    ),
    "tfp exp over a matrix": (lambda: C.transformed(C.real_matrix, tfb.Exp()), (2, 2), whole),
    "tfp triangular matrix": (
        lambda: C.transformed(C.real, tfb.FillScaleTriL(tfb.Exp(), diag_shift=None)),
        (3,),
        lower,
    ),
    "tfp invert": (lambda: C.transformed(C.positive, tfb.Invert(tfb.Exp())), (), whole),
    "distrax affine": (
        lambda: C.transformed(C.positive, distrax.ScalarAffine(number(1.0), number(-2.0))),
        (),
        whole,
    ),
    "distrax affine over a vector": (
        lambda: C.transformed(C.ordered, distrax.ScalarAffine(number(1.0), number(-2.0))),
        (3,),
        whole,
    ),
    "distrax matrix": (
        lambda: C.transformed(
            C.positive, distrax.TriangularLinear(number([[2.0, 0.0], [1.0, 3.0]]))
        ),
        (2,),
        whole,
    ),
    "distrax tanh over a matrix": (
        lambda: C.transformed(C.real_matrix, distrax.Tanh()),
        (2, 2),
        whole,
    ),
    "twice": (
        lambda: C.transformed(C.transformed(C.simplex, tfb.Exp()), tfb.Shift(number(1.0))),
        (2,),
        lambda y: y[:-1],
    ),
}


@pytest.mark.parametrize("name", PUSHED)
def test_transformed(name):
    make, shape, free = PUSHED[name]
    x = jnp.asarray(np.random.default_rng(2).normal(size=(3, *shape)), float)

    @quickly
    def run(x):
        constraint = make()
        bijector = gx.biject_to(constraint)
        y, log_det = bijector.forward_and_log_det(x)
        return y, log_det, jacobian(bijector, free, x), bijector.inverse(y), constraint(y)

    y, log_det, derivative, back, inside = run(x)
    tolerance = 1e-8 if DOUBLE else 1e-3
    assert log_det.shape == (3,)
    if name != "twice":  # no square map: its base, the simplex, has fewer dimensions
        expected = log_volume(np.asarray(derivative))
        np.testing.assert_allclose(log_det, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(back, x, rtol=tolerance, atol=tolerance)
    assert bool(inside.all())
    assert gx.biject_to(make()).event_ndims_out == make().event_dim == y.ndim - 1


# Which way it runs.

VECTOR = np.array([-INF, 0.0], "float32")


@pytest.mark.parametrize(
    "constraint, expected",
    [
        (C.real, 1),
        (C.positive, 1),
        (C.softplus_positive, 1),
        (C.unit_interval, 1),
        (C.interval(-1.0, 2.0), 1),
        (C.interval(-INF, 2.0), 1),
        (C.interval(-1.0, INF), 1),
        (C.interval(-INF, INF), 1),
        (C.interval(VECTOR, np.array([1.0, INF], "float32")), 1),
        (C.greater_than(1.0), 1),
        (C.less_than(1.0), -1),
        (C.less_than_eq(HIGH), -1),
        (C.real_vector, 1),
        (C.independent(C.less_than(1.0), 2), -1),
        (C.independent(C.simplex, 1), 0),
        (C.simplex, 0),
        (C.ordered, 0),
        (C.positive_ordered, 0),
        (C.l1_ball, 0),
        (C.zero_sum(1), 0),
        (C.lower_cholesky, 0),
        (C.corr_cholesky, 0),
        (C.corr_matrix, 0),
        (C.positive_definite, 0),
        (C.transformed(C.positive, distrax.ScalarAffine(1.0, -2.0)), -1),
        (C.transformed(C.less_than(0.0), distrax.ScalarAffine(1.0, -2.0)), 1),
        (C.transformed(C.positive, distrax.Inverse(distrax.ScalarAffine(0.0, -1.0))), -1),
        (C.transformed(C.positive, distrax.Chain([distrax.Tanh(), distrax.Sigmoid()])), 1),
        (C.transformed(C.positive, distrax.Block(distrax.ScalarAffine(0.0, -1.0), 1)), -1),
        (C.transformed(C.real, distrax.ScalarAffine(0.0, jnp.array([1.0, -1.0]))), 0),
        (C.transformed(C.real, distrax.ScalarAffine(0.0, jnp.array([-1.0, -2.0]))), -1),
        (C.transformed(C.positive, distrax.Lambda(jnp.exp)), 0),
        (C.transformed(C.positive, tfb.Scale(-2.0)), -1),
        (C.transformed(C.positive, tfb.Scale(jnp.array([1.0, -1.0]))), 0),
        (C.transformed(C.less_than(1.0), tfb.Shift(1.0)), -1),
        (C.transformed(C.less_than(1.0), tfb.Exp()), -1),
        (C.transformed(C.positive, tfb.Chain([tfb.Scale(-1.0), tfb.Exp()])), -1),
        (C.transformed(C.positive, tfb.Invert(tfb.Exp())), 1),
        (C.transformed(C.positive, tfb.Square()), 0),
        (C.transformed(C.simplex, tfb.Exp()), 0),
    ],
    ids=case_id,
)
def test_monotonicity(constraint, expected):
    assert monotonicity(gx.biject_to(constraint)) == expected


@every_case
def test_monotonicity_never_contradicts_the_values(name):
    sign = monotonicity(gx.biject_to(CASES[name][0]))
    if sign == 0:
        return
    # Elementwise monotone maps keep shapes, and order each coordinate as `sign` says.
    x, y = np.asarray(points(name)), np.asarray(evaluate(name)["y"])
    assert x.shape == y.shape
    order = np.argsort(x, axis=0)
    steps = np.diff(np.take_along_axis(y, order, axis=0), axis=0)
    assert np.all(sign * steps >= 0)


def test_monotonicity_of_traced_scales_is_unknown():
    found = []

    @jax.make_jaxpr
    def run(scale):
        for bijector in (distrax.ScalarAffine(0.0, scale), tfb.Scale(scale)):
            found.append(monotonicity(gx.biject_to(C.transformed(C.real, bijector))))
        # The map of traced bounds increases or decreases all the same.
        found.append(monotonicity(gx.biject_to(C.less_than(scale))))
        found.append(monotonicity(gx.biject_to(C.interval(scale, scale + 1.0))))
        return scale

    run(jnp.asarray(2.0, float))
    assert found == [0, 0, -1, 1]
