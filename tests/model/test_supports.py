"""The support of every distribution of distrax and TFP: draws lie in it, and a density fills it."""

import functools
import inspect
import math

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as npd
import pytest
from scipy import stats
from tensorflow_probability.substrates.jax import bijectors as tfb
from tensorflow_probability.substrates.jax import distributions as tfd
from tensorflow_probability.substrates.jax.math import psd_kernels

import guidax as gx
from guidax import constraints as C
from guidax._model.supports import _TABLE

INF = math.inf
DRAWS = 20


def f(*x):
    """Return an array, or one number, of the default float. TFP reads `1.0` as single precision."""
    return jnp.asarray(x[0] if len(x) == 1 else x, float)


LOW, HIGH = f(-1.0, 0.5), f(0.0, 4.5)
CORR = f([[1.0, 0.0], [0.6, 0.8]])


# Compiling is what costs here, and these programs run once.
quickly = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


def markov_chain(later=tfd.LogNormal):
    return tfd.MarkovChain(
        initial_state_prior=tfd.LogNormal(f(0.0), f(1.0)),
        transition_fn=lambda _, x: later(jnp.log(jnp.abs(x)), f(1.0)),
        num_steps=3,
    )


def linear_gaussian():
    return tfd.LinearGaussianStateSpaceModel(
        3,
        transition_matrix=f([[1.0]]),
        transition_noise=tfd.MultivariateNormalDiag(f([0.0]), f([1.0])),
        observation_matrix=f([[1.0]]),
        observation_noise=tfd.MultivariateNormalDiag(f([0.0]), f([0.5])),
        initial_state_prior=tfd.MultivariateNormalDiag(f([0.0]), f([1.0])),
    )


def hidden_markov(observation):
    return tfd.HiddenMarkovModel(
        tfd.Categorical(probs=f(0.3, 0.7)),
        tfd.Categorical(probs=f([[0.9, 0.1], [0.2, 0.8]])),
        observation,
        num_steps=3,
    )


def categorical():
    return tfd.Categorical(probs=f(0.3, 0.7))


# Name: how to make it, and the support if it is one that can be compared.
CONTINUOUS = {
    "distrax.Normal": (lambda: distrax.Normal(f(0.0), f(1.0)), C.real),
    "distrax.Uniform": (lambda: distrax.Uniform(LOW, HIGH), None),
    "distrax.Gamma": (lambda: distrax.Gamma(f(2.0), f(1.0)), C.positive),
    "distrax.Dirichlet": (lambda: distrax.Dirichlet(f(2.0, 3.0, 1.0)), C.simplex),
    "distrax.MultivariateNormalTri": (
        lambda: distrax.MultivariateNormalTri(f(0.0, 0.0), CORR),
        C.real_vector,
    ),
    "distrax.Independent": (lambda: distrax.Independent(distrax.Uniform(LOW, HIGH), 1), None),
    "distrax.Transformed": (
        lambda: distrax.Transformed(
            distrax.Uniform(f(1.0), f(2.0)), distrax.ScalarAffine(f(1.0), f(-2.0))
        ),
        None,
    ),
    "distrax.MixtureSameFamily": (
        lambda: distrax.MixtureSameFamily(
            distrax.Categorical(probs=f(0.5, 0.5)), distrax.Normal(f(0.0, 1.0), f(1.0))
        ),
        C.real,
    ),
    "distrax.MixtureOfTwo": (
        lambda: distrax.MixtureOfTwo(
            0.5, distrax.Normal(f(0.0), f(1.0)), distrax.Gumbel(f(0), f(1))
        ),
        C.real,
    ),
    "HalfNormal": (lambda: tfd.HalfNormal(f(1.0)), C.positive),
    "HalfCauchy": (lambda: tfd.HalfCauchy(LOW, f(1.0)), None),
    "Pareto": (lambda: tfd.Pareto(f(3.0), f(2.0)), None),
    "Exponential": (lambda: tfd.Exponential(f(2.0)), C.positive),
    "InverseGamma": (lambda: tfd.InverseGamma(f(2.0), f(1.0)), C.positive),
    "LogNormal": (lambda: tfd.LogNormal(f(0.0), f(1.0)), C.positive),
    "Weibull": (lambda: tfd.Weibull(f(2.0), f(1.0)), C.positive),
    "Kumaraswamy": (lambda: tfd.Kumaraswamy(f(2.0), f(3.0)), C.unit_interval),
    "LogitNormal": (lambda: tfd.LogitNormal(f(0.0), f(1.0)), C.unit_interval),
    "Triangular": (lambda: tfd.Triangular(f(-1.0), f(2.0), f(0.5)), None),
    "PERT": (lambda: tfd.PERT(f(-1.0), f(0.5), f(2.0), f(4.0)), None),
    "TruncatedNormal": (lambda: tfd.TruncatedNormal(f(0.0), f(1.0), LOW, HIGH), None),
    "TruncatedCauchy": (lambda: tfd.TruncatedCauchy(f(0.0), f(1.0), f(-1.0), f(2.0)), None),
    "MultivariateNormalTriL": (
        lambda: tfd.MultivariateNormalTriL(f(0.0, 0.0), CORR),
        C.real_vector,
    ),
    "RelaxedOneHotCategorical": (
        lambda: tfd.RelaxedOneHotCategorical(f(0.7), probs=f(0.2, 0.3, 0.5)),
        C.simplex,
    ),
    "CholeskyLKJ": (lambda: tfd.CholeskyLKJ(3, f(2.0)), C.corr_cholesky),
    "LKJ": (lambda: tfd.LKJ(3, f(2.0)), C.corr_matrix),
    "WishartTriL": (lambda: tfd.WishartTriL(f(4.0), CORR), C.positive_definite),
    "WishartTriL, factor": (
        lambda: tfd.WishartTriL(f(4.0), CORR, input_output_cholesky=True),
        C.lower_cholesky,
    ),
    "GaussianProcess": (
        lambda: tfd.GaussianProcess(
            psd_kernels.ExponentiatedQuadratic(f(1.0), f(1.0)), f([[0.0], [1.0]]), jitter=1e-5
        ),
        C.real_vector,
    ),
    "LinearGaussianStateSpaceModel": (linear_gaussian, C.real_matrix),
    "Independent": (
        lambda: tfd.Independent(tfd.HalfNormal(f(2.0, 3.0)), 1),
        C.independent(C.positive, 1),
    ),
    "Sample": (lambda: tfd.Sample(tfd.Uniform(LOW, HIGH), 3), None),
    "Sample of vectors": (
        lambda: tfd.Sample(tfd.RelaxedOneHotCategorical(f(0.7), probs=f(0.2, 0.3, 0.5)), 2),
        C.independent(C.simplex, 1),
    ),
    "BatchReshape": (lambda: tfd.BatchReshape(tfd.Uniform(LOW, HIGH), (2, 1)), None),
    "BatchConcat": (
        lambda: tfd.BatchConcat([tfd.Uniform(LOW, HIGH), tfd.Uniform(f([5.0]), f([6.0]))], axis=0),
        None,
    ),
    "BatchBroadcast": (lambda: tfd.BatchBroadcast(tfd.Pareto(f(3.0), f(2.0)), (2,)), None),
    "Masked": (lambda: tfd.Masked(tfd.HalfNormal(f(1.0)), True), C.positive),
    "TransformedDistribution": (
        lambda: tfd.TransformedDistribution(tfd.HalfNormal(f(1.0)), tfb.Shift(f(2.0))),
        None,
    ),
    "TransformedDistribution to a simplex": (
        lambda: tfd.TransformedDistribution(
            tfd.MultivariateNormalDiag(f(0.0, 0.0)), tfb.SoftmaxCentered()
        ),
        None,
    ),
    "Mixture": (
        lambda: tfd.Mixture(categorical(), [tfd.Normal(f(0.0), f(1.0)), tfd.HalfNormal(f(1.0))]),
        C.real,
    ),
    "MixtureSameFamily": (
        lambda: tfd.MixtureSameFamily(categorical(), tfd.HalfCauchy(LOW, f(1.0))),
        None,
    ),
    "Blockwise": (
        lambda: tfd.Blockwise([tfd.HalfNormal(f(1.0)), tfd.LogNormal(f(2.0), f(1.0))]),
        C.independent(C.positive, 1),
    ),
    "MarkovChain": (markov_chain, C.independent(C.positive, 1)),
    "HiddenMarkovModel": (
        lambda: hidden_markov(tfd.Normal(f(0.0, 3.0), f(1.0))),
        C.real_vector,
    ),
} | {
    f"{kind.__name__} {shape}": (
        lambda kind=kind, shape=shape: kind(f(1.0), f(2.0), f(shape)),
        None,
    )
    for kind in (tfd.GeneralizedPareto, tfd.GeneralizedExtremeValue)
    for shape in (-0.5, 0.0, 0.5)
}


def counts(low, high):
    return C.integer_interval(low, high)


DISCRETE = {
    "distrax.Bernoulli": (lambda: distrax.Bernoulli(probs=f(0.3)), C.boolean),
    "distrax.Categorical": (lambda: distrax.Categorical(probs=f(0.2, 0.3, 0.5)), counts(0, 2)),
    "distrax.OneHotCategorical": (lambda: distrax.OneHotCategorical(logits=f(0.0, 1.0)), C.one_hot),
    "distrax.Multinomial": (lambda: distrax.Multinomial(4, probs=f(0.2, 0.8)), None),
    "Bernoulli": (lambda: tfd.Bernoulli(logits=f(0.3)), C.boolean),
    "Binomial": (lambda: tfd.Binomial(f(4.0, 9.0), probs=f(0.5)), None),
    "Poisson": (lambda: tfd.Poisson(f(3.0)), C.nonnegative_integer),
    "Geometric": (lambda: tfd.Geometric(probs=f(0.4)), C.nonnegative_integer),
    "Zipf": (lambda: tfd.Zipf(f(3.0)), C.positive_integer),
    "Skellam": (lambda: tfd.Skellam(f(1.0), f(2.0)), C.integer),
    "OrderedLogistic": (lambda: tfd.OrderedLogistic(f(-1.0, 1.0), f(0.0)), counts(0, 2)),
    "Multinomial": (lambda: tfd.Multinomial(f(4.0), probs=f(0.2, 0.8)), None),
    "PlackettLuce": (
        lambda: tfd.PlackettLuce(f(1.0, 2.0, 3.0)),
        C.independent(C.nonnegative_integer, 1),
    ),
    "HiddenMarkovModel": (
        lambda: hidden_markov(tfd.Geometric(probs=f(0.1, 0.9))),
        C.independent(C.nonnegative_integer, 1),
    ),
    "Sample": (lambda: tfd.Sample(tfd.Bernoulli(probs=f(0.3)), 2), C.independent(C.boolean, 1)),
}


def same(found, expected):
    return expected is None or found == expected


# TFP's samplers ask for double precision where there is none.
quiet = pytest.mark.filterwarnings("ignore:Explicitly requested dtype .*64:UserWarning")


@quiet
@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_support(name):
    make, expected = CONTINUOUS[name]

    @quickly
    def run(key):
        dist = make()  # here, so that its bounds are traced as in a model under jit
        support = gx.support(dist)
        assert same(support, expected)
        assert support.event_dim == len(dist.event_shape)
        bijector = gx.biject_to(support)
        assert bijector.event_ndims_out == support.event_dim
        draws = dist.sample(seed=key, sample_shape=DRAWS)
        inside = support(draws)
        assert inside.shape == (DRAWS, *dist.batch_shape)
        u = bijector.inverse(draws)
        somewhere = jax.random.uniform(key, u.shape, u.dtype, -2.0, 2.0)
        density = dist.log_prob(bijector.forward(somewhere))
        return draws, inside, u, bijector.forward(u), density

    draws, inside, u, back, density = run(jax.random.key(0))
    assert bool(inside.all())
    assert u.dtype == back.dtype == draws.dtype
    rounding = float(jnp.finfo(draws.dtype).eps) ** 0.5
    np.testing.assert_allclose(back, draws, rtol=rounding, atol=rounding)
    # The density is positive everywhere in the support, so that it is not too wide. (TFP's extreme
    # value density of shape 0 is wrongly cut at `loc - scale`.)
    assert name == "GeneralizedExtremeValue 0.0" or bool(jnp.isfinite(density).all())


@quiet
@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_support(name):
    make, expected = DISCRETE[name]

    @quickly
    def run(key):
        dist = make()
        support = gx.support(dist)
        assert support.is_discrete
        assert same(support, expected)
        assert support.event_dim == len(dist.event_shape)
        draws = dist.sample(seed=key, sample_shape=DRAWS)
        inside = support(draws)
        assert inside.shape == (DRAWS, *dist.batch_shape)
        with pytest.raises(TypeError, match="the support is discrete"):
            gx.biject_to(support)
        return inside, support(draws + 0.5)

    inside, between = run(jax.random.key(0))
    assert bool(inside.all()) and not bool(between.any())


# Every class of the two libraries.

ABSTRACT = {"Distribution", "AutoCompositeTensorDistribution"}
WITHOUT_SUPPORT = {"ExpRelaxedOneHotCategorical"}  # logarithms of a simplex: no entry


def classes(module, base):
    return {
        name: kind
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and issubclass(kind, base)
    }


@pytest.mark.parametrize("library", [distrax, tfd], ids=["distrax", "tfd"])
def test_every_class_has_an_entry(library):
    found = classes(library, library.Distribution)
    assert len(found) > 30
    missing = {
        name
        for name, kind in found.items()
        if not any(parent.__name__ in _TABLE for parent in kind.__mro__)
    }
    assert missing <= ABSTRACT | WITHOUT_SUPPORT


def test_a_class_without_an_entry_is_refused():
    dist = tfd.ExpRelaxedOneHotCategorical(f(0.5), logits=f(0.0, 1.0))
    with pytest.raises(TypeError, match=r"gx\.support\.register\(ExpRelaxedOneHotCategorical\)"):
        gx.support(dist)


@pytest.mark.parametrize(
    "make",
    [
        lambda: distrax.Joint((distrax.Normal(f(0.0), f(1.0)), distrax.Normal(f(0.0), f(1.0)))),
        lambda: tfd.JointDistributionSequential([tfd.Normal(f(0.0), f(1.0))]),
        lambda: tfd.JointDistributionNamedAutoBatched({"a": tfd.Normal(f(0.0), f(1.0))}),
        lambda: tfd.JointDistributionCoroutine(lambda: (yield tfd.Normal(f(0.0), f(1.0)))),
    ],
)
def test_joint_distributions_are_refused(make):
    with pytest.raises(TypeError, match="Joint.* draws several arrays at once.*a sample site for"):
        gx.support(make())


def square():
    return tfd.MultivariateNormalTriL(f(0.0, 0.0), CORR).scale


@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda: tfd.VonMises(f(0.0), f(1.0)), C.circular),
        (lambda: distrax.VonMises(f(0.0), f(1.0)), C.circular),
        (lambda: tfd.VonMisesFisher(f(1.0, 0.0), f(1.0)), C.sphere),
        (lambda: tfd.PowerSpherical(f(1.0, 0.0), f(1.0)), C.sphere),
        (
            lambda: tfd.MatrixNormalLinearOperator(f([[0, 0], [0, 0]]), square(), square()),
            C.real_matrix,
        ),
        (lambda: tfd.StudentT(f(3.0), f(0.0), f(1.0)), C.real),
        (lambda: tfd.SigmoidBeta(f(2.0), f(3.0)), C.real),
        (lambda: distrax.Beta(f(2.0), f(3.0)), C.unit_interval),
        (lambda: tfd.Dirichlet(f([[1.0, 2.0]])), C.simplex),
        (
            lambda: tfd.Autoregressive(
                lambda x: tfd.Independent(tfd.Normal(0.5 * x, f(1.0)), 1), f(0.0, 0.0), 2
            ),
            C.real_vector,
        ),
        (lambda: tfd.Sample(tfd.Normal(f(0.0), f(1.0)), (2, 3)), C.real_matrix),
    ],
)
def test_supports_that_are_stated(make, expected):
    assert gx.support(make()) == expected


@pytest.mark.parametrize(
    "make, why",
    [
        (lambda: tfd.Deterministic(f(1.0)), "all its mass on one point: use gx.deterministic"),
        (lambda: distrax.Deterministic(f(1.0)), "all its mass on one point"),
        (lambda: tfd.FiniteDiscrete(f(0.0, 1.0), probs=f(0.5, 0.5)), "finite set"),
        (lambda: tfd.Empirical(f(0.0, 1.0)), "finite set"),
        (lambda: distrax.Quantized(distrax.Normal(f(0.0), f(1.0))), "on a grid"),
        (lambda: tfd.QuantizedDistribution(tfd.Normal(f(0.0), f(1.0))), "on a grid"),
        (lambda: distrax.ClippedNormal(f(0.0), f(1.0), f(-1.0), f(1.0)), "an atom at each end"),
        (lambda: distrax.Greedy(f(0.0, 1.0)), r"integer_interval\(0, 1\)"),
    ],
)
def test_atoms_are_discrete_and_say_why(make, why):
    dist = make()
    support = gx.support(dist)
    assert support.is_discrete and support.event_dim == len(dist.event_shape)
    with pytest.raises(TypeError, match=f"discrete .*{why}"):
        gx.biject_to(support)


# Bounds that are parameters, through distributions made of distributions.


def bounds(constraint):
    """Return both ends as arrays, and how many axes around them belong to the event."""
    low, high = (constraint.base if constraint.event_dim else constraint).range
    return np.asarray(low), np.asarray(high), constraint.event_dim


def uniform(*shape):
    """Return a uniform distribution, and its ends, all of them different."""
    n = math.prod(shape)
    low = np.arange(n, dtype=f(0).dtype).reshape(shape)
    high = low + 0.25 + low / (4 * n)
    return tfd.Uniform(jnp.asarray(low), jnp.asarray(high)), low, high


def test_bounds_of_parameters():
    half = tfd.HalfCauchy(LOW, f(1.0))
    assert bounds(gx.support(half))[0].tolist() == LOW.tolist()
    assert bounds(gx.support(tfd.Pareto(f(3.0), HIGH + 1)))[0].tolist() == (HIGH + 1).tolist()
    for dist in (tfd.TruncatedNormal(f(0.0), f(1.0), LOW, HIGH), distrax.Uniform(LOW, HIGH)):
        low, high, _ = bounds(gx.support(dist))
        assert low.tolist() == LOW.tolist() and high.tolist() == HIGH.tolist()
    bates = gx.support(tfd.Bates(np.asarray(3, f(0).dtype), f(-1.0), f(2.0)))
    assert bounds(bates) == (-1.0, 2.0, 0)


@pytest.mark.parametrize("shape", [-0.5, 0.0, 0.5])
def test_bounds_of_heavy_tails(shape):
    pareto = gx.support(tfd.GeneralizedPareto(f(1.0), f(2.0), f(shape)))
    np.testing.assert_allclose(bounds(pareto)[:2], stats.genpareto(shape, 1.0, 2.0).support())
    extreme = gx.support(tfd.GeneralizedExtremeValue(f(1.0), f(2.0), f(shape)))
    np.testing.assert_allclose(bounds(extreme)[:2], stats.genextreme(-shape, 1.0, 2.0).support())


def test_bounds_of_heavy_tails_of_all_signs_at_once():
    shapes = f(-0.5, 0.0, 0.5)
    low, high, _ = bounds(gx.support(tfd.GeneralizedExtremeValue(f(1.0), f(2.0), shapes)))
    np.testing.assert_allclose(low, [-INF, -INF, -3.0])
    np.testing.assert_allclose(high, [5.0, INF, INF])
    low, high, _ = bounds(gx.support(tfd.GeneralizedPareto(f(1.0), f(2.0), shapes)))
    np.testing.assert_allclose(np.broadcast_to(low, 3), 1.0)
    np.testing.assert_allclose(high, [5.0, INF, INF])


def test_bounds_of_sample():
    dist, low, high = uniform(2)
    found = bounds(gx.support(tfd.Sample(dist, 3)))
    np.testing.assert_array_equal(found[0], low[:, None])
    np.testing.assert_array_equal(found[1], high[:, None])
    assert found[2] == 1

    # The new axes stand between those of the batch and those of the event.
    dist, low, high = uniform(4, 2)
    inner = tfd.Independent(dist, 1)
    found = bounds(gx.support(tfd.Sample(inner, (3, 5))))
    np.testing.assert_array_equal(np.broadcast_to(found[0], (4, 3, 5, 2))[:, 1, 1], low)
    assert found[2] == 3
    assert gx.support(tfd.Sample(tfd.HalfNormal(f(1.0)), 2)) == C.independent(C.positive, 1)


def test_bounds_of_batch_reshape():
    dist, low, high = uniform(6)
    found = bounds(gx.support(tfd.BatchReshape(dist, (2, 3))))
    np.testing.assert_array_equal(found[0], low.reshape(2, 3))
    np.testing.assert_array_equal(found[1], high.reshape(2, 3))

    # One end has fewer axes than the batch; axes of the event stay.
    wide = tfd.Uniform(f(0.0), jnp.asarray(high))
    np.testing.assert_array_equal(
        bounds(gx.support(tfd.BatchReshape(wide, (3, 2))))[1], high.reshape(3, 2)
    )
    dist, low, _ = uniform(4, 3)
    found = bounds(gx.support(tfd.BatchReshape(tfd.Independent(dist, 1), (2, 2))))
    np.testing.assert_array_equal(found[0], low.reshape(2, 2, 3))
    assert found[2] == 1


def batch_concat(*parts):
    return tfd.BatchConcat(parts, axis=0)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("events", [0, 1])
def test_bounds_of_batch_concat(axis, events):
    parts = [uniform(2, 3, 4), uniform(2, 3, 4)]
    joined = np.concatenate([low for _, low, _ in parts], axis)
    inner = [tfd.Independent(d, events) if events else d for d, _, _ in parts]
    found = bounds(gx.support(tfd.BatchConcat(inner, axis=axis)))
    np.testing.assert_array_equal(found[0], joined)
    assert found[2] == events


def test_bounds_of_batch_concat_with_one_constant():
    parts = [tfd.HalfNormal(f(1.0, 2.0)), tfd.HalfNormal(f([3.0]))]
    assert gx.support(batch_concat(*parts)) == C.positive


def test_bounds_of_mixtures_are_the_widest():
    def mixture(*parts):
        return gx.support(tfd.Mixture(tfd.Categorical(probs=jnp.full(len(parts), 0.5)), parts))

    low, high, _ = bounds(mixture(tfd.Uniform(f(0.0), f(1.0)), tfd.Uniform(f(-1.0), f(0.5))))
    assert (low, high) == (-1.0, 1.0)
    low, high, _ = bounds(mixture(tfd.Pareto(f(3.0), f(2.0)), tfd.Pareto(f(3.0), f(1.0))))
    assert (low, high) == (1.0, INF)
    # Different forms of sets of numbers.
    assert mixture(tfd.Beta(f(1.0), f(1.0)), tfd.HalfNormal(f(1.0))) == C.interval(0.0, INF)
    assert mixture(tfd.HalfNormal(f(1.0)), tfd.Normal(f(0.0), f(1.0))) == C.real
    low, high, _ = bounds(mixture(tfd.Uniform(f(-2.0), f(3.0)), tfd.Beta(f(1.0), f(1.0))))
    assert (low, high) == (-2.0, 3.0)
    low, high, _ = bounds(mixture(tfd.Uniform(f(-2.0), f(3.0)), tfd.HalfNormal(f(1.0))))
    assert (low, high) == (-2.0, INF)
    two = distrax.MixtureOfTwo(0.5, distrax.Uniform(LOW, HIGH), distrax.Uniform(LOW - 1, HIGH - 1))
    low, high, _ = bounds(gx.support(two))
    assert low.tolist() == (LOW - 1).tolist() and high.tolist() == HIGH.tolist()


@pytest.mark.parametrize(
    "first, second, inside",
    [
        ((tfd.Uniform, 0.0, 1.0), (tfd.Normal, 0.0, 1.0), lambda u: u),
        ((tfd.Uniform, -2.0, 3.0), (tfd.Beta, 1.0, 1.0), lambda u: 5 * jax.nn.sigmoid(u) - 2),
        ((tfd.HalfNormal, 1.0), (tfd.Uniform, -2.0, 3.0), lambda u: jnp.exp(u) - 2),
        ((tfd.Uniform, 0.0, 1.0), (tfd.Uniform, -1.0, 0.5), lambda u: 2 * jax.nn.sigmoid(u) - 1),
    ],
    ids=["real", "interval", "half line", "one form"],
)
def test_mixtures_of_bounded_components_are_latents(first, second, inside, key):
    """Inside a model, bounds are traced."""

    def model(first_numbers, second_numbers, weights):
        parts = [first[0](*first_numbers), second[0](*second_numbers)]
        gx.sample("x", tfd.Mixture(tfd.Categorical(probs=weights), parts))

    args = [f(x) for x in first[1:]], [f(x) for x in second[1:]], f(0.5, 0.5)
    guide = gx.AutoDelta(model, *args, key=key)
    (u,) = jax.tree.leaves(guide.family)
    np.testing.assert_allclose(guide.median(*args)["x"], inside(u), rtol=1e-5)


def test_bounds_of_mixtures_of_one_family_are_the_widest():
    weights = tfd.Categorical(probs=f(0.2, 0.3, 0.5))
    dist, low, high = uniform(2, 3)
    found = bounds(gx.support(tfd.MixtureSameFamily(weights, dist)))
    np.testing.assert_array_equal(found[0], low.min(-1))
    np.testing.assert_array_equal(found[1], high.max(-1))

    dist, low, high = uniform(4, 3, 2)
    found = bounds(gx.support(tfd.MixtureSameFamily(weights, tfd.Independent(dist, 1))))
    np.testing.assert_array_equal(found[0], low.min(1))
    np.testing.assert_array_equal(found[1], high.max(1))
    assert found[2] == 1

    # Ends that the components share.
    dist = tfd.Uniform(f(0.0), f(1.0, 2.0, 3.0))
    low, high, _ = bounds(gx.support(tfd.MixtureSameFamily(weights, dist)))
    assert (low, high) == (0.0, 3.0)


def test_bounds_of_independent_and_transformed():
    dist, low, high = uniform(2, 3)
    found = bounds(gx.support(tfd.Independent(dist, 2)))
    np.testing.assert_array_equal(found[0], low)
    assert found[2] == 2

    flipped = distrax.Transformed(
        distrax.Uniform(f(0.0), f(1.0)), distrax.ScalarAffine(f(1.0), f(-2.0))
    )
    inside = gx.support(flipped)(f(-1.5, -0.5, 0.5, 1.5))
    np.testing.assert_array_equal(inside, [False, True, True, False])


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: tfd.Mixture(
                tfd.Categorical(probs=f(0.5, 0.5)),
                [tfd.Dirichlet(f(1.0, 1.0)), tfd.MultivariateNormalDiag(f(0.0, 0.0))],
            ),
            r"Mixture: its components have the supports \[simplex, real_vector\]",
        ),
        (
            lambda: tfd.Blockwise([tfd.HalfNormal(f(1.0)), tfd.Normal(f(0.0), f(1.0))]),
            r"Blockwise: its blocks have the supports \[positive, real\]; a site for each block",
        ),
        (
            lambda: batch_concat(tfd.Gamma(f([2.0]), f(1.0)), tfd.Normal(f([0.0, 1.0]), f(1.0))),
            r"BatchConcat: its parts have the supports \[positive, real\]; a site for each part",
        ),
        (
            lambda: markov_chain(tfd.Normal),
            "MarkovChain: its steps have the supports positive and real",
        ),
        (
            lambda: tfd.Autoregressive(lambda x: tfd.Uniform(x - 1, x + 1), f(0.0), 2),
            r"Autoregressive: the support interval\(.*\) may change from step to step",
        ),
    ],
)
def test_supports_that_are_no_one_set(make, message):
    with pytest.raises(TypeError, match=message + r".*gx\.support\.register"):
        gx.support(make())


def test_a_site_whose_support_is_no_one_set_is_named(key):
    def model(x=None):
        parts = tfd.Gamma(f([2.0]), f(1.0)), tfd.Normal(f([0.0, 1.0]), f(1.0))
        gx.sample("x", batch_concat(*parts), obs=x)
        gx.sample("z", tfd.Normal(f(0.0), f(1.0)))

    with pytest.raises(ValueError, match="latent site 'x': BatchConcat: its parts"):
        gx.AutoNormal(model, key=key)
    # Observed, it needs no map.
    assert jnp.isfinite(gx.log_joint(model, {"z": 0.0}, f([1.0, -1.0, 0.0])))


# Classes of the user's own.


class Mine:
    """No distribution of a library."""

    event_shape = ()


def test_an_unknown_class_is_named():
    with pytest.raises(TypeError, match=r"^Mine: no support .*gx\.support\.register\(Mine\)"):
        gx.support(Mine())


def test_a_foreign_class_of_a_known_name_is_unknown():
    with pytest.raises(TypeError, match=r"^Normal: no support is known"):
        gx.support(npd.Normal(0.0, 1.0))


def test_subclasses_of_known_classes_inherit():
    class Shifted(tfd.HalfNormal):
        pass

    class Narrow(distrax.Beta):
        pass

    assert gx.support(Shifted(f(1.0))) == C.positive
    assert gx.support(Narrow(f(1.0), f(1.0))) == C.unit_interval


def test_register():
    class Own(Mine):
        end = 2.0

    class Further(Own):
        end = 3.0

    class Rounded(tfd.Normal):
        pass

    @gx.support.register(Own)
    def _(dist):
        return C.less_than(dist.end)

    gx.support.register(Rounded)(lambda dist: C.integer)
    assert gx.support(Own()) == C.less_than(2.0)
    assert gx.support(Further()) == C.less_than(3.0)
    assert gx.support(Rounded(f(0.0), f(1.0))) == C.integer
    assert gx.support(tfd.Normal(f(0.0), f(1.0))) == C.real
    with pytest.raises(TypeError, match="^Mine"):
        gx.support(Mine())


def test_a_class_may_be_registered_after_a_guide_asked_for_its_support(key):
    class Late(tfd.Distribution):
        def __init__(self):
            kind = tfd.FULLY_REPARAMETERIZED
            super().__init__(f(0.0).dtype, kind, validate_args=False, allow_nan_stats=True)

        def _batch_shape(self):
            return ()

        _event_shape = _batch_shape_tensor = _batch_shape

        def _log_prob(self, value):
            return -value

        def _sample_n(self, n, seed=None):
            return jax.random.exponential(seed, (n,))

    def model():
        gx.sample("x", Late())

    with pytest.raises(ValueError, match=r"'x'.*gx\.support\.register\(Late\)"):
        gx.AutoNormal(model, key=key)
    gx.support.register(Late)(lambda dist: C.positive)
    assert gx.AutoNormal(model, key=key).median()["x"] > 0


# The flat prior.


def test_improper_uniform_is_flat():
    flat = gx.ImproperUniform(C.positive, (3,), (2,))
    assert gx.support(flat) == C.independent(C.positive, 1)
    assert (flat.batch_shape, flat.event_shape, flat.dtype) == ((3,), (2,), f(0).dtype)
    np.testing.assert_array_equal(flat.log_prob(jnp.ones((3, 2))), np.zeros(3))
    assert flat.log_prob(jnp.ones((5, 3, 2))).shape == (5, 3)
    assert flat.log_prob(jnp.ones((1, 2))).shape == (3,)
    assert gx.support(gx.ImproperUniform(C.simplex, event_shape=(4,))) == C.simplex
    assert gx.ImproperUniform(C.real, dtype="float32").log_prob(jnp.ones(())).dtype == jnp.float32
    assert repr(flat) == (
        "ImproperUniform(independent(positive, 1), batch_shape=(3,), event_shape=(2,))"
    )


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: gx.ImproperUniform(C.boolean), TypeError, "continuous constraint.* got boolean"),
        (lambda: gx.ImproperUniform(C.simplex), ValueError, r"simplex has at least 1 axes: give"),
        (
            lambda: gx.ImproperUniform(C.real).sample(seed=jax.random.key(0)),
            ValueError,
            r"ImproperUniform\(real\) has no draws.*gx\.handlers\.condition",
        ),
    ],
)
def test_improper_uniform_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


FACTORS = {
    "WishartTriL": (lambda flag: tfd.WishartTriL(f(4.0), CORR, flag), "jnp.linalg.cholesky"),
    "LKJ": (lambda flag: tfd.LKJ(3, f(2.0), flag), "use CholeskyLKJ"),
    "LKJ, many": (lambda flag: tfd.Sample(tfd.LKJ(3, f(2.0), flag), 2), "use CholeskyLKJ"),
}


@pytest.mark.parametrize("make, way", FACTORS.values(), ids=FACTORS)
def test_the_density_of_a_matrix_is_not_that_of_its_factor(make, way, key):
    """TFP's density of the factor L is that of L L': as a prior of L it does not integrate to 1."""

    def model(flag, obs=None):
        gx.sample("x", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("L", make(flag), obs=obs)

    with pytest.raises(ValueError, match=f"latent site 'L': .*density of the matrix.*{way}"):
        gx.AutoNormal(model, True, key=key)
    assert gx.AutoNormal(model, False, key=key).family.loc.keys() == {"x", "L"}
    shape = make(True).event_shape
    factor = jnp.broadcast_to(jnp.eye(shape[-1]), shape)
    assert gx.AutoNormal(model, True, factor, key=key).family.loc.keys() == {"x"}
