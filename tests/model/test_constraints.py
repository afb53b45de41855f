"""Constraints as sets: what lies in them, when two are one, and what they refuse."""

import itertools
import math

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorflow_probability.substrates.jax import bijectors as tfb

from guidax import constraints as C

NAN, INF = math.nan, math.inf
THIRD = 1 / 3

# Cholesky factor of [[1, 0.6], [0.6, 1]], and matrices that miss one condition each.
CORR_L = [[1.0, 0.0], [0.6, 0.8]]
CORR = [[1.0, 0.6], [0.6, 1.0]]
UPPER = [[1.0, 0.5], [0.0, 1.0]]
ZERO_DIAGONAL = [[1.0, 0.0], [0.5, 0.0]]
INDEFINITE = [[1.0, 2.0], [2.0, 1.0]]  # eigenvalues 3 and -1
SINGULAR = [[1.0, 1.0], [1.0, 1.0]]  # eigenvalues 2 and 0
LOWER = [[2.0, 0.0], [-5.0, 0.5]]


def shift(by):
    """Return a bijector of the default float: TFP takes Python numbers for single precision."""
    return tfb.Shift(jnp.asarray(by, float))


# Name: constraint, members, non-members. The boundary stands with whichever side it belongs to.
SETS = {
    "real": (C.real, [0.0, -3.5, 1e30], []),
    "circular": (C.circular, [0.0, 3.0, 100.0], []),
    "positive": (C.positive, [1e-30, 2.0], [0.0, -0.0, -1.0]),
    "softplus_positive": (C.softplus_positive, [1e-30, 2.0], [0.0, -1.0]),
    "nonnegative": (C.nonnegative, [0.0, -0.0, 2.0], [-1e-30]),
    "unit_interval": (C.unit_interval, [0.0, 0.5, 1.0], [-1e-6, 1.000001]),
    "interval": (C.interval(-1.0, 2.0), [-1.0, 0.0, 2.0], [-1.00001, 2.00001]),
    "open_interval": (C.open_interval(-1.0, 2.0), [-0.99999, 1.99999], [-1.0, 2.0]),
    "greater_than": (C.greater_than(1.5), [1.50001, 9.0], [1.5, 0.0]),
    "greater_than_eq": (C.greater_than_eq(1.5), [1.5, 9.0], [1.49999]),
    "less_than": (C.less_than(1.5), [1.49999, -9.0], [1.5, 2.0]),
    "less_than_eq": (C.less_than_eq(1.5), [1.5, -9.0], [1.50001]),
    "independent": (C.independent(C.positive, 1), [[1.0, 2.0]], [[1.0, 0.0], [-1.0, -1.0]]),
    "real_vector": (C.real_vector, [[0.0, -1.0]], []),
    "real_matrix": (C.real_matrix, [LOWER], []),
    "simplex": (
        C.simplex,
        [[0.2, 0.3, 0.5], [0.0, 0.0, 1.0], [THIRD, THIRD, THIRD]],
        [[0.2, 0.3, 0.6], [-0.1, 0.6, 0.5], [0.2, 0.3, 0.49]],
    ),
    "ordered": (C.ordered, [[-1.0, 0.0, 4.0]], [[0.0, 0.0, 1.0], [1.0, 0.0, 2.0]]),
    "positive_ordered": (
        C.positive_ordered,
        [[0.5, 1.0, 4.0]],
        [[-1.0, 0.0, 4.0], [0.0, 1.0, 2.0], [1.0, 0.5, 2.0]],
    ),
    "l1_ball": (C.l1_ball, [[0.0, 0.0], [0.25, -0.75], [0.1, 0.1]], [[0.6, -0.6]]),
    "sphere": (C.sphere, [[0.6, -0.8], [1.0, 0.0]], [[0.6, 0.7], [0.0, 0.0]]),
    "zero_sum": (C.zero_sum(1), [[1.0, -3.0, 2.0], [0.0, 0.0, 0.0]], [[1.0, 0.0, 0.0]]),
    "lower_cholesky": (C.lower_cholesky, [LOWER, CORR_L], [UPPER, ZERO_DIAGONAL, CORR]),
    "softplus_lower_cholesky": (C.softplus_lower_cholesky, [LOWER], [UPPER, ZERO_DIAGONAL]),
    "scaled_unit_lower_cholesky": (C.scaled_unit_lower_cholesky, [LOWER], [UPPER, ZERO_DIAGONAL]),
    "corr_cholesky": (C.corr_cholesky, [CORR_L, np.eye(2)], [LOWER, UPPER, [[1.0, 0], [1.0, 0]]]),
    "corr_matrix": (
        C.corr_matrix,
        [CORR, np.eye(2)],
        [INDEFINITE, [[2.0, 0.6], [0.6, 1.0]], [[1.0, 0.6], [0.5, 1.0]]],
    ),
    "positive_definite": (
        C.positive_definite,
        [CORR, [[4.0, -1.0], [-1.0, 1.0]]],
        [INDEFINITE, [[1.0, 0.6], [0.5, 1.0]], [[-1.0, 0.0], [0.0, 1.0]]],
    ),
    "positive_semidefinite": (
        C.positive_semidefinite,
        [CORR, SINGULAR, np.zeros((2, 2))],
        [INDEFINITE, [[1.0, 0.6], [0.5, 1.0]]],
    ),
    "transformed": (C.transformed(C.positive, shift(2.0)), [2.5, 9.0], [2.0, 0.0]),
    "boolean": (C.boolean, [0, 1], [2, -1, 0.5, NAN]),
    "one_hot": (C.one_hot, [[0, 1, 0]], [[0, 0, 0], [1, 1, 0], [0.5, 0.5, 0.0], [2, -1, 0]]),
    "discrete": (C.discrete(), [0.5, 2.0], [NAN, INF]),
    "integer": (C.integer, [-3, 0, 4.0], [0.5, NAN, INF]),
    "integer_interval": (C.integer_interval(0, 3), [0, 2, 3], [-1, 4, 1.5, NAN]),
    "integer_greater_than": (C.integer_greater_than(2), [2, 7], [1, 2.5, INF]),
    "nonnegative_integer": (C.nonnegative_integer, [0, 5], [-1, 0.5, INF, NAN]),
    "positive_integer": (C.positive_integer, [1, 5], [0, 1.5, INF]),
    "multinomial": (
        C.multinomial(3),
        [[1, 2, 0], [3, 0, 0]],
        [[1, 1, 0], [4, -1, 0], [1.5, 1.5, 0], [NAN, 1, 2]],
    ),
}
DISCRETE = {
    "boolean",
    "one_hot",
    "discrete",
    "integer",
    "integer_interval",
    "integer_greater_than",
    "nonnegative_integer",
    "positive_integer",
    "multinomial",
}

every_set = pytest.mark.parametrize("name", SETS)


def test_table_visits_every_public_constraint():
    public = {n for n, x in vars(C).items() if callable(x) and not n.startswith("_")}
    assert public - {"Constraint"} == SETS.keys()


@every_set
def test_membership(name):
    constraint, members, others = SETS[name]
    values = jnp.asarray(np.array([*members, *others], float))
    inside = constraint(values)
    assert inside.dtype == bool
    np.testing.assert_array_equal(inside, [True] * len(members) + [False] * len(others))


@pytest.mark.parametrize("name", [name for name in SETS if name not in DISCRETE])
def test_one_bad_entry_leaves_a_continuous_set(name):
    constraint, members, _ = SETS[name]
    for bad in (NAN, INF, -INF):
        value = np.array(members[0], float)
        value.flat[-1] = bad
        assert not constraint(jnp.asarray(value)), bad


@every_set
def test_discrete_or_not(name):
    assert SETS[name][0].is_discrete == (name in DISCRETE)


@pytest.mark.parametrize(
    "name", ["simplex", "zero_sum", "sphere", "corr_cholesky", "corr_matrix", "l1_ball"]
)
def test_rounding_does_not_push_single_precision_values_out(name):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 30, 30))
    value = {
        "simplex": np.abs(x) / np.abs(x).sum(-1, keepdims=True),
        "zero_sum": x - x.mean(-1, keepdims=True),
        "sphere": x / np.linalg.norm(x, axis=-1, keepdims=True),
        "l1_ball": x / np.abs(x).sum(-1, keepdims=True) * (1 - 1e-7),
    }
    value["corr_cholesky"] = np.linalg.cholesky(
        np.eye(30) * 0.5 + 0.5 * value["sphere"] @ np.swapaxes(value["sphere"], -1, -2)
    )
    value["corr_matrix"] = value["corr_cholesky"] @ np.swapaxes(value["corr_cholesky"], -1, -2)
    values = jnp.asarray(value[name].astype(np.float32))
    inside = SETS[name][0](values)
    assert values.dtype == jnp.float32 and bool(inside.all())


def test_answers_have_the_batch_shape():
    assert C.positive(jnp.ones((2, 3))).shape == (2, 3)
    assert C.simplex(jnp.ones((2, 3))).shape == (2,)
    assert C.corr_matrix(jnp.ones((4, 2, 2))).shape == (4,)
    assert C.zero_sum(2)(jnp.zeros((5, 2, 3))).shape == (5,)
    assert C.independent(C.simplex, 1)(jnp.ones((4, 2, 3))).shape == (4,)


def test_independent_needs_every_entry():
    inside = C.independent(C.positive, 1)(jnp.array([[1.0, 2.0], [1.0, -2.0]]))
    np.testing.assert_array_equal(inside, [True, False])


def test_zero_sum_over_several_axes_needs_each_of_them():
    rows = jnp.array([[1.0, -1.0], [2.0, -2.0]])
    both = jnp.array([[1.0, -1.0], [-1.0, 1.0]])
    constraint = C.zero_sum(2)
    assert C.zero_sum(1)(rows).all()
    assert not constraint(rows)
    assert not constraint(rows.T)
    assert constraint(both)


def test_array_bounds_broadcast_against_values():
    low, high = jnp.array([0.0, 1.0, 2.0]), jnp.array([[1.0], [3.0]])
    np.testing.assert_array_equal(C.greater_than(low)(1.5), [True, True, False])
    inside = C.interval(low, high)(jnp.full((2, 3), 1.5))
    np.testing.assert_array_equal(inside, [[False, False, False], [True, True, False]])
    counts = C.multinomial(jnp.array([2, 3]))(jnp.array([1, 2]))
    np.testing.assert_array_equal(counts, [False, True])
    inside = C.integer_interval(0, jnp.array([1, 5]))(jnp.array(3))
    np.testing.assert_array_equal(inside, [False, True])


def test_infinite_ends_are_no_ends():
    ends = jnp.array([-INF, 0.0]), jnp.array([0.0, INF])
    inside = C.interval(*ends)(jnp.array([[-5.0, -5.0], [5.0, 5.0]]))
    np.testing.assert_array_equal(inside, [[True, False], [False, True]])
    assert C.interval(-INF, INF)(jnp.array(7.0))
    assert not C.interval(-INF, INF)(jnp.array(INF))


def test_membership_is_traceable():
    def inside(x, low):
        return C.interval(low, low + 1.0)(x)

    jitted = jax.jit(jax.vmap(inside, (0, None)))
    np.testing.assert_array_equal(
        jitted(jnp.array([0.5, 1.5, 2.5]), jnp.array(1.0)), [False, True, False]
    )


@pytest.mark.parametrize("kind", [np.int32, np.bool_])
def test_discrete_sets_take_integers_and_bools(kind):
    values = jnp.asarray(np.array([0, 1]).astype(kind))
    for constraint in (C.boolean, C.integer, C.nonnegative_integer, C.integer_interval(0, 1)):
        np.testing.assert_array_equal(constraint(values), [True, True], str(constraint))
    np.testing.assert_array_equal(C.positive_integer(values), [False, True])


MAKERS = {
    "interval": lambda: C.interval(-1.0, 2.0),
    "open_interval": lambda: C.open_interval(-1.0, 2.0),
    "greater_than": lambda: C.greater_than(1.5),
    "greater_than_eq": lambda: C.greater_than_eq(1.5),
    "less_than": lambda: C.less_than(1.5),
    "less_than_eq": lambda: C.less_than_eq(1.5),
    "independent": lambda: C.independent(C.interval(0.0, 2.0), 2),
    "zero_sum": lambda: C.zero_sum(2),
    "discrete": lambda: C.discrete(1, "why"),
    "integer_interval": lambda: C.integer_interval(0, 3),
    "integer_greater_than": lambda: C.integer_greater_than(2),
    "multinomial": lambda: C.multinomial(3),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_equal_by_value(make):
    a, b = make(), make()
    assert a is not b
    assert a == b and hash(a) == hash(b)


def test_different_constraints_differ():
    # `independent` in the table differs from `independent` of another base, and so on.
    different = [entry[0] for entry in SETS.values()] + [
        C.interval(-1.0, 3.0),
        C.interval(0.0, 2.0),
        C.greater_than(0.0),
        C.less_than(0.0),
        C.independent(C.positive, 2),
        C.independent(C.simplex, 1),
        C.zero_sum(2),
        C.discrete(1),
        C.discrete(0, "why"),
        C.multinomial(4),
    ]
    for a, b in itertools.combinations(different, 2):
        assert a != b
    assert len(set(different)) == len(different)
    assert C.positive != "positive"


def test_array_bounds_are_equal_by_identity_and_have_no_hash():
    low = jnp.zeros(2)
    assert C.greater_than(low) == C.greater_than(low)
    assert C.greater_than(low) != C.greater_than(jnp.zeros(2))
    assert C.independent(C.greater_than(low), 1) == C.independent(C.greater_than(low), 1)
    for constraint in (
        C.greater_than(low),
        C.interval(0.0, low),
        C.interval(np.zeros(2), 1.0),
        C.independent(C.less_than(low), 1),
    ):
        with pytest.raises(TypeError, match="array bounds, so it cannot be hashed"):
            hash(constraint)


def test_numpy_scalars_are_numbers():
    assert C.interval(np.float64(0.0), np.float32(1.0)) == C.interval(0.0, 1.0)
    assert hash(C.greater_than(np.float32(2.0))) == hash(C.greater_than(2.0))


@pytest.mark.parametrize(
    "constraint, shown",
    [
        (C.positive, "positive"),
        (C.simplex, "simplex"),
        (C.interval(0.0, 2.5), "interval(0.0, 2.5)"),
        (C.open_interval(0, 1), "open_interval(0, 1)"),
        (C.greater_than(1.5), "greater_than(1.5)"),
        (C.less_than_eq(-1.0), "less_than_eq(-1.0)"),
        (C.real_vector, "real_vector"),
        (C.real_matrix, "real_matrix"),
        (C.independent(C.real, 3), "independent(real, 3)"),
        (C.independent(C.positive, 1), "independent(positive, 1)"),
        (C.zero_sum(2), "zero_sum(2)"),
        (C.integer_interval(0, 3), "integer_interval(0, 3)"),
        (C.multinomial(3), "multinomial(3)"),
        (C.interval(np.zeros((2, 3)), 1.0), "interval(array(2, 3), 1.0)"),
    ],
    ids=str,
)
def test_repr(constraint, shown):
    assert repr(constraint) == shown


def test_repr_of_traced_bounds_shows_shape_and_dtype():
    shown = []
    jax.make_jaxpr(lambda low: shown.append(repr(C.greater_than(low))))(jnp.zeros(3, "float32"))
    assert shown == ["greater_than(float32[3])"]
    assert repr(C.greater_than(jnp.zeros(3, "float32"))) == "greater_than(float32[3])"


def test_independent():
    assert C.independent(C.positive, 0) is C.positive
    nested = C.independent(C.independent(C.positive, 1), 2)
    assert nested == C.independent(C.positive, 3)
    assert nested.event_dim == 3
    assert C.independent(C.simplex, 1).event_dim == 2
    assert C.independent(C.boolean, 1).is_discrete
    assert C.real_matrix == C.independent(C.real, 2)


def test_transformed_membership_and_axes():
    log_normal = C.transformed(C.real, distrax.Lambda(jnp.exp))
    np.testing.assert_array_equal(log_normal(jnp.array([0.5, -1.0])), [True, False])

    # A bijector of more axes than the base takes them into the event, and may add some.
    triangular = C.transformed(C.real, tfb.FillTriangular())
    assert triangular.event_dim == 2
    assert triangular(jnp.asarray(LOWER))

    # One of fewer axes acts along the others.
    shifted = C.transformed(C.ordered, shift(1.0))
    assert shifted.event_dim == 1
    np.testing.assert_array_equal(shifted(jnp.array([[0.0, 1.0], [1.0, 0.0]])), [True, False])
    assert C.transformed(C.integer, shift(1.0)).is_discrete


def test_transformed_is_equal_by_base_and_bijector_object():
    map_ = shift(2.0)
    a, b = C.transformed(C.positive, map_), C.transformed(C.positive, map_)
    assert a == b and hash(a) == hash(b)
    assert a != C.transformed(C.positive, shift(2.0))
    assert a != C.transformed(C.real, map_)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: C.interval(1.0, 1.0), ValueError, r"interval needs low < high; got low=1.0"),
        (lambda: C.interval(2, 1), ValueError, "interval needs low < high"),
        (lambda: C.interval(NAN, 1.0), ValueError, "interval needs low < high"),
        (lambda: C.open_interval(0.0, -1.0), ValueError, "open_interval needs low < high"),
        (lambda: C.interval(np.float64(3.0), 1), ValueError, "low=3.0, high=1"),
        (lambda: C.zero_sum(0), ValueError, "at least one axis; got event_dim=0"),
        (lambda: C.zero_sum(True), TypeError, "event_dim is a Python integer; got True"),
        (
            lambda: C.independent(C.positive, 1.5),
            TypeError,
            "ndims counts axes, so it is a Python integer; got 1.5|'ndims'",
        ),
        (lambda: C.zero_sum(1.5), TypeError, "event_dim is a Python integer|'event_dim'"),
        (lambda: C.independent(C.real, -1), ValueError, "cannot be negative; got -1"),
        (lambda: C.transformed(C.real, tfb.JointMap([tfb.Exp()])), TypeError, "distrax bijector"),
        (lambda: C.simplex(jnp.array(0.5)), ValueError, r"at least 1 axes; got shape \(\)"),
        (lambda: C.corr_matrix(jnp.ones(3)), ValueError, r"corr_matrix has at least 2 axes"),
        (lambda: C.independent(C.real, 2)(jnp.ones(3)), ValueError, "real_matrix has at least 2"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_errors_name_what_is_no_constraint():
    class Odd:
        def __repr__(self):
            return "<odd>"

    # The shape checker of the tests may see the wrong type first.
    for make in (lambda: C.independent(Odd(), 1), lambda: C.transformed(Odd(), tfb.Exp())):
        with pytest.raises(Exception, match="<odd>"):
            make()


def test_bounds_of_one_form_are_joined_one_by_one():
    seen = []

    def widest(bounds, side):
        seen.append((tuple(bounds), side))
        return min(bounds) if side == "lower" else max(bounds)

    joined = C.interval(0.0, 1.0).zip_bounds(widest, [C.interval(0.5, 3.0), C.interval(-1.0, 0.0)])
    assert joined == C.interval(-1.0, 3.0)
    assert seen == [((0.0, 0.5, -1.0), "lower"), ((1.0, 3.0, 0.0), "upper")]
    both = C.independent(C.less_than(1.0), 1).zip_bounds(
        widest, [C.independent(C.less_than(2.0), 1)]
    )
    assert both == C.independent(C.less_than(2.0), 1)
    assert C.multinomial(2).zip_bounds(lambda bounds, side: sum(bounds), [C.multinomial(3)]) == (
        C.multinomial(5)
    )


def test_bounds_of_different_forms_cannot_be_joined():
    def first(bounds, side):
        del side
        return bounds[0]

    for a, b in [
        (C.positive, C.real),
        (C.interval(0.0, 1.0), C.greater_than(0.0)),
        (C.multinomial(2), C.one_hot),
        (C.real_vector, C.real_matrix),
    ]:
        with pytest.raises(ValueError, match="cannot be made into one constraint"):
            a.zip_bounds(first, [b])
