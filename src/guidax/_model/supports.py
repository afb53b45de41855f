"""The support of each distribution of distrax and of TFP's JAX substrate.

Classes are looked up by name, so that nothing breaks where an older or newer TFP lacks one. TFP's
own default bijectors are never used: they differ from NumPyro's and Stan's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from . import constraints as c
from .compound_constraints import independent
from .constraint_types import Constraint, Side
from .improper import ImproperUniform

LIBRARIES = ("distrax.", "tensorflow_probability.")


@functools.singledispatch
def support(dist: Any) -> Constraint:
    """Return the constraint that a distribution's values satisfy.

    `@gx.support.register(MyDistribution)` decorates a function from a distribution of your own
    class to one of `gx.constraints`; subclasses inherit it.

    Args:
        dist: A distribution of distrax, of TFP's JAX substrate, or of a registered class.

    Returns:
        The constraint, with the distribution's bounds in it.

    Raises:
        TypeError: If no support is known for the class, or its draws are not one array.
    """
    for kind in type(dist).__mro__:
        # TFP's `Independent` of a distribution that is no composite tensor is an `_Independent`.
        name = kind.__name__.removeprefix("_")
        if kind.__module__.startswith(LIBRARIES) and name in _TABLE:
            entry = _TABLE[name]
            return _events(entry, dist) if isinstance(entry, Constraint) else entry(dist)
    raise _unknown(dist, "no support is known for it")


@support.register(ImproperUniform)
def _(dist: ImproperUniform) -> Constraint:
    return dist.constraint


def _unknown(dist: Any, why: str) -> TypeError:
    name = type(dist).__name__
    return TypeError(
        f"{name}: {why}. Decorate a function that returns one of gx.constraints with "
        f"gx.support.register({name})."
    )


def _events(constraint: Constraint, dist: Any) -> Constraint:
    """Let the constraint hold for each entry of the distribution's event."""
    return independent(constraint, len(dist.event_shape) - constraint.event_dim)


def _no_density(reason: str) -> Callable[[Any], Constraint]:
    return lambda d: c.discrete(len(d.event_shape), reason)


def _several(d: Any) -> Constraint:
    raise TypeError(
        f"{type(d).__name__} draws several arrays at once, and a site holds one: write a sample "
        "site for each of them."
    )


# Bounds that are parameters.


def _above(name: str) -> Callable[[Any], Constraint]:
    return lambda d: c.greater_than(getattr(d, name))


def _between(d: Any) -> Constraint:
    return c.interval(d.low, d.high)


def _extreme_value(d: Any) -> Constraint:
    shape = d.concentration
    end = d.loc - d.scale / jnp.where(shape == 0, 1.0, shape)
    return c.interval(jnp.where(shape > 0, end, -jnp.inf), jnp.where(shape < 0, end, jnp.inf))


def _generalized_pareto(d: Any) -> Constraint:
    shape = d.concentration
    end = d.loc - d.scale / jnp.where(shape == 0, 1.0, shape)
    return c.interval(d.loc, jnp.where(shape < 0, end, jnp.inf))


def _counts_to(name: str) -> Callable[[Any], Constraint]:
    return lambda d: c.integer_interval(0, getattr(d, name))


def _multinomial(d: Any) -> Constraint:
    return c.multinomial(d.total_count)


def _categories(d: Any) -> Constraint:
    logits = d.logits if d.logits is not None else d.probs
    return c.integer_interval(0, logits.shape[-1] - 1)


def _ordered_categories(d: Any) -> Constraint:
    return c.integer_interval(0, d.cutpoints.shape[-1])


def _cholesky_or(inner: Constraint, product: Constraint) -> Callable[[Any], Constraint]:
    return lambda d: inner if d.input_output_cholesky else product


# Distributions made of distributions.


def _independent(d: Any) -> Constraint:
    base = support(d.distribution)
    return independent(base, len(d.event_shape) - len(d.distribution.event_shape))


def _same(d: Any) -> Constraint:
    return support(d.distribution)


def _transformed(d: Any) -> Constraint:
    return c.transformed(support(d.distribution), d.bijector)


def _is_array(bound: Any) -> bool:
    return hasattr(bound, "dtype")


def _sample(d: Any) -> Constraint:
    """Put the new event axes between the batch and the event axes of array bounds."""
    base, inner = support(d.distribution), d.distribution
    extra = len(d.event_shape) - len(inner.event_shape)

    def spread(bounds: Sequence[Any], side: Side) -> Any:
        del side
        (bound,) = bounds
        if not _is_array(bound):
            return bound
        events = base.bound_event_ndims
        at = max(jnp.ndim(bound) - events, 0)
        return jnp.expand_dims(bound, tuple(range(at, at + extra)))

    return independent(base.zip_bounds(spread), extra)


def _batch_reshape(d: Any) -> Constraint:
    base, inner = support(d.distribution), d.distribution

    def reshape(bounds: Sequence[Any], side: Side) -> Any:
        del side
        (bound,) = bounds
        if not _is_array(bound):
            return bound
        full = _broadcast_bound(bound, base, inner)
        events = full.shape[full.ndim - base.bound_event_ndims :]
        return full.reshape((*d.batch_shape, *events))

    return base.zip_bounds(reshape)


def _broadcast_bound(bound: Any, base: Constraint, dist: Any) -> Any:
    """Give a bound all batch axes of its distribution."""
    events = tuple(dist.event_shape)[len(dist.event_shape) - base.bound_event_ndims :]
    return jnp.broadcast_to(bound, (*dist.batch_shape, *events))


def _batch_concat(d: Any) -> Constraint:
    parts = list(d.distributions)
    supports = [support(part) for part in parts]

    def join(bounds: Sequence[Any], side: Side) -> Any:
        del side
        if not any(map(_is_array, bounds)) and len(set(bounds)) == 1:
            return bounds[0]
        full = [_broadcast_bound(*each) for each in zip(bounds, supports, parts, strict=True)]
        return jnp.concatenate(full, axis=d._axis)  # TFP refuses negative ones

    try:
        return supports[0].zip_bounds(join, supports[1:])
    except ValueError:
        why = f"its parts have the supports {supports}; a site for each part needs none"
        raise _unknown(d, why) from None


def _hull(d: Any, supports: Sequence[Constraint]) -> Constraint:
    """Return the smallest constraint that holds the supports of all components."""
    first, *rest = supports
    if any(each.is_discrete for each in supports) and not first.is_discrete:
        return c.discrete(first.event_dim, "a component of the mixture has atoms")

    def widest(bounds: Sequence[Any], side: Side) -> Any:
        edge = -math.inf if side == "lower" else math.inf
        if not any(map(_is_array, bounds)):
            return min(bounds) if side == "lower" else max(bounds)
        if any(not _is_array(bound) and bound == edge for bound in bounds):
            return edge
        return functools.reduce(jnp.minimum if side == "lower" else jnp.maximum, bounds)

    try:
        return first.zip_bounds(widest, rest)
    except ValueError:
        ranges = [each.range for each in supports]
        if any(each is None for each in ranges):
            raise _unknown(d, f"its components have the supports {list(supports)}") from None
        lows, highs = zip(*ranges, strict=True)
        low, high = widest(lows, "lower"), widest(highs, "upper")
        if not any(map(_is_array, (low, high))) and (low, high) == (-math.inf, math.inf):
            return c.real
        return c.interval(low, high)


def _mixture_same_family(d: Any) -> Constraint:
    """Take the widest bounds over the last batch axis, that of the components."""
    components = d.components_distribution
    base = support(components)

    def widest(bounds: Sequence[Any], side: Side) -> Any:
        (bound,) = bounds
        if not _is_array(bound):
            return bound
        full = _broadcast_bound(bound, base, components)
        reduce = jnp.min if side == "lower" else jnp.max
        return reduce(full, axis=full.ndim - base.bound_event_ndims - 1)

    return base.zip_bounds(widest)


def _mixture(d: Any) -> Constraint:
    return _hull(d, [support(each) for each in d.components])


def _mixture_of_two(d: Any) -> Constraint:
    return _hull(d, [support(d._component_a), support(d._component_b)])


def _blockwise(d: Any) -> Constraint:
    bases = [support(each) for each in d.distributions]
    bases = [each.base if isinstance(each, c.Independent) else each for each in bases]
    if any(each != bases[0] or each.event_dim for each in bases):
        raise _unknown(d, f"its blocks have the supports {bases}; a site for each block needs none")
    return _events(bases[0], d)


def _markov_chain(d: Any) -> Constraint:
    first = support(d.initial_state_prior)
    state = d.initial_state_prior.sample(seed=jax.random.key(0))
    later = support(d.transition_fn(0, state))
    if first != later:
        raise _unknown(d, f"its steps have the supports {first!r} and {later!r}")
    return _events(_without_arrays(first, d), d)


def _autoregressive(d: Any) -> Constraint:
    step = d.distribution_fn() if d.sample0 is None else d.distribution_fn(d.sample0)
    return _without_arrays(support(step), d)


def _hidden_markov(d: Any) -> Constraint:
    return _events(_without_arrays(support(d.observation_distribution), d), d)


def _without_arrays(constraint: Constraint, d: Any) -> Constraint:
    """Return the constraint, or refuse array bounds, which may change from step to step."""
    try:
        hash(constraint)
    except TypeError:
        raise _unknown(d, f"the support {constraint!r} may change from step to step") from None
    return constraint


_REAL = """
    Normal Laplace Logistic Gumbel LogStddevNormal StudentT Cauchy GeneralizedNormal Moyal JohnsonSU
    SinhArcsinh ExponentiallyModifiedGaussian TwoPieceNormal TwoPieceStudentT NormalInverseGaussian
    ExpGamma ExpInverseGamma Horseshoe DoublesidedMaxwell SigmoidBeta LambertWDistribution
    MultivariateNormalDiag MultivariateNormalDiagPlusLowRank MultivariateNormalFromBijector
    MultivariateNormalFullCovariance MultivariateNormalTri MultivariateNormalTriL
    MultivariateNormalDiagPlusLowRankCovariance MultivariateNormalLinearOperator
    MultivariateNormalPrecisionFactorLinearOperator MultivariateStudentTLinearOperator
    MatrixNormalLinearOperator MatrixTLinearOperator GaussianProcess GaussianProcessRegressionModel
    VariationalGaussianProcess StudentTProcess StudentTProcessRegressionModel
    MultiTaskGaussianProcess MultiTaskGaussianProcessRegressionModel LinearGaussianStateSpaceModel
"""
_POSITIVE = """
    HalfNormal Gamma InverseGamma Exponential Chi Chi2 NoncentralChi2 LogNormal LogLogistic Weibull
    InverseGaussian GammaGamma BetaQuotient
"""
_UNIT = "Beta Kumaraswamy LogitNormal ContinuousBernoulli RelaxedBernoulli"
_BOUNDED = "Uniform Triangular Bates PERT TruncatedNormal TruncatedCauchy"
_NATURAL = """
    Poisson NegativeBinomial Geometric PoissonLogNormalQuadratureCompound
    ZeroInflatedNegativeBinomial
"""
_ATOM = "it puts all its mass on one point: use gx.deterministic for a known value"
_GRID = "its values lie on a grid"

_TABLE: dict[str, Constraint | Callable[[Any], Constraint]] = {
    **dict.fromkeys(_REAL.split(), c.real),
    **dict.fromkeys(_POSITIVE.split(), c.positive),
    **dict.fromkeys(_UNIT.split(), c.unit_interval),
    **dict.fromkeys(_BOUNDED.split(), _between),
    "HalfCauchy": _above("loc"),
    "HalfStudentT": _above("loc"),
    "Pareto": _above("scale"),
    "GeneralizedPareto": _generalized_pareto,
    "GeneralizedExtremeValue": _extreme_value,
    "VonMises": c.circular,
    "VonMisesFisher": c.sphere,
    "PowerSpherical": c.sphere,
    "SphericalUniform": c.sphere,
    "Dirichlet": c.simplex,
    "FlatDirichlet": c.simplex,
    "RelaxedOneHotCategorical": c.simplex,
    "LKJ": _cholesky_or(c.corr_cholesky, c.corr_matrix),
    "CholeskyLKJ": c.corr_cholesky,
    "WishartLinearOperator": _cholesky_or(c.lower_cholesky, c.positive_definite),
    # Made of distributions.
    "Independent": _independent,
    "Sample": _sample,
    "Masked": _same,
    "BatchBroadcast": _same,
    "BatchReshape": _batch_reshape,
    "BatchConcat": _batch_concat,
    "Transformed": _transformed,
    "TransformedDistribution": _transformed,
    "Mixture": _mixture,
    "MixtureSameFamily": _mixture_same_family,
    "MixtureOfTwo": _mixture_of_two,
    "Blockwise": _blockwise,
    "MarkovChain": _markov_chain,
    "Autoregressive": _autoregressive,
    "HiddenMarkovModel": _hidden_markov,
    "Joint": _several,
    "JointDistribution": _several,
    # Discrete, for checking observed values.
    **dict.fromkeys(_NATURAL.split(), c.nonnegative_integer),
    "Bernoulli": c.boolean,
    "ProbitBernoulli": c.boolean,
    "DeterminantalPointProcess": c.boolean,
    "Binomial": _counts_to("total_count"),
    "BetaBinomial": _counts_to("total_count"),
    "Categorical": _categories,
    "OrderedLogistic": _ordered_categories,
    "StoppingRatioLogistic": c.nonnegative_integer,
    "OneHotCategorical": c.one_hot,
    "Multinomial": _multinomial,
    "DirichletMultinomial": _multinomial,
    "Zipf": c.positive_integer,
    "Skellam": c.integer,
    "PlackettLuce": c.nonnegative_integer,
    "FiniteDiscrete": _no_density("its values lie in a finite set"),
    "Empirical": _no_density("its values lie in a finite set"),
    "CategoricalUniform": _no_density("its values lie in a finite set"),
    "Deterministic": _no_density(_ATOM),
    "VectorDeterministic": _no_density(_ATOM),
    "Inflated": _no_density("it has an atom"),
    "Clipped": _no_density("it has an atom at each end"),
    "Quantized": _no_density(_GRID),
    "QuantizedDistribution": _no_density(_GRID),
}
