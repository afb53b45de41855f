"""Is the posterior any good? Importance weights of a guide's draws, and what they say."""

from __future__ import annotations

import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import random
from jaxtyping import Array, Float

from .._family.dais import AbstractDAIS
from .._family.local_dais import LocalDAIS
from .._family.product import leaves
from .._guide.guide import AutoGuide
from .._model.batch import Batch, as_batch, options_of
from .._model.target import Draw
from .._numerics import is_traced, map_at_a_time
from .._types import Key, positive, positive_or_none, require_key
from .arguments import require_key_and_guide
from .pareto import SHORTEST_TAIL, smooth, tail_length
from .point_sites import points_of
from .whole import whole_indices

_CLOSE, COVERS, _HAS_MEAN = 0.5, 0.7, 1.0  # of k-hat
_EQUAL = 0.99  # effective draws, as a share of all, from which on weights count as equal
# Where both hold, a high k-hat is that of tails alone. With so many effective draws of 4,000 none
# holds more than about a percent of the weight (w^2 < 1 / ess - (1 - w)^2 / draws); and a normal
# whose mean is off by a third of an s.d., or whose s.d. by a quarter, is farther off in nats.
_MANY, _NEAR = 0.7, 0.05


class Diagnosis(eqx.Module):
    """What the importance weights of a guide's draws say about it.

    `str(diagnosis)`, or `reading`, puts it into words. A diagnosis under `jax.vmap` has one for
    each member; `jax.tree.map(lambda x: x[i], diagnosis)` takes one out.

    Attributes:
        khat: Shape of the tail of the weights, see `gx.psis`.
        elbo: Evidence lower bound, in nats: the mean of the log weights.
        elbo_error: Its standard error.
        log_evidence: Log of the mean smoothed weight, in nats: an estimate of log p(data). It is
            biased low, the more so the higher k-hat: above `khat_limit` do not use it as a number,
            only to compare fits of one model, of which the higher one misses less.
        log_evidence_error: Its standard error, where the weights have a variance.
        ess: How many draws of the posterior the smoothed weights are worth, `1 / sum(w^2)`.
        log_weights: `log p(data, draw) - log q(draw)` for each draw.
        smoothed_log_weights: Pareto-smoothed log weights, whose weights sum to one.
        rounding: By how much rounding may move a log weight, in nats.
        draws: Site to draws, latents and deterministic sites.
        extended: Whether a weight is that of a draw together with the momenta that it came by.
    """

    khat: Float[Array, ""]
    elbo: Float[Array, ""]
    elbo_error: Float[Array, ""]
    log_evidence: Float[Array, ""]
    log_evidence_error: Float[Array, ""]
    ess: Float[Array, ""]
    log_weights: Float[Array, " draws"]
    smoothed_log_weights: Float[Array, " draws"]
    rounding: Float[Array, ""]
    draws: dict[str, Array]
    extended: bool = eqx.field(static=True)

    @property
    def num_samples(self) -> int:
        """How many draws."""
        return self.log_weights.shape[-1]

    @property
    def khat_limit(self) -> float:
        """The k-hat up to which estimates from this number of draws can be relied on."""
        return min(1 - 1 / max(math.log10(self.num_samples), 1.0), COVERS)

    def mean(self) -> dict[str, Array]:
        """Return importance-corrected means of latents and deterministic sites.

        Raises:
            ValueError: If this diagnosis was made under `jax.vmap`: take one member out.
        """
        self._require_one()
        weights = jnp.exp(self.smoothed_log_weights)
        return {name: _mean(weights, x) for name, x in self.draws.items()}

    def std(self) -> dict[str, Array]:
        """Return importance-corrected standard deviations of each coordinate.

        Raises:
            ValueError: If this diagnosis was made under `jax.vmap`: take one member out.
        """
        means = self.mean()
        weights = jnp.exp(self.smoothed_log_weights)
        return {
            name: jnp.sqrt(_mean(weights, jnp.square(jnp.abs(x - means[name][None]))))
            for name, x in self.draws.items()
        }

    def resample(self, key: Key, num_samples: int) -> dict[str, Array]:
        """Draw from the weighted draws, with replacement: about as good as `ess` of them are.

        Args:
            key: For the choice.
            num_samples: How many.

        Returns:
            Site to draws. Inside a transformation they are NaN where the weights are.

        Raises:
            TypeError: If no random key comes first, or `num_samples` is no integer.
            ValueError: If `num_samples` is less than 1, if the weights are NaN, or if this
                diagnosis was made under `jax.vmap`: take one member out.
        """
        require_key("resample", key)
        self._require_one()
        number = positive("num_samples", num_samples)
        weights = jnp.exp(self.smoothed_log_weights)
        has_weights = jnp.all(jnp.isfinite(weights))
        if not is_traced(has_weights) and not has_weights:
            raise ValueError(f"there are no weights to draw by: {self._verdict()}")
        chosen = random.choice(key, self.num_samples, (number,), p=weights)

        def drawn(x: Array) -> Array:
            can_tell = jnp.issubdtype(x.dtype, jnp.inexact)
            return jnp.where(has_weights, x[chosen], jnp.nan) if can_tell else x[chosen]

        return {name: drawn(x) for name, x in self.draws.items()}

    @property
    def on_what(self) -> str:
        """What the verdict rests on."""
        if self.extended:
            return (
                f"the weights of {self.num_samples} paths, each a draw with the momenta that it "
                "came by; the weights of the draws alone are unknown, with a tail that is no "
                "heavier"
            )
        return (
            f"the weights of {self.num_samples} draws; a part of the posterior that no draw "
            "reached is not seen"
        )

    @property
    def reading(self) -> str:
        """The verdict in words, on values that are known.

        The limits are those of Vehtari et al. 2024, equation 13 (`khat_limit`), and of Yao et al.
        2018, section 2 (0.5 and 0.7). k-hat knows no scale: where a fit is nearly exact, it is the
        shape of what little the weights vary. So effective draws above 99 % of all go first, and a
        k-hat above 0.7 is told as one of the tails alone where effective draws are above 70 % and
        `log_evidence - elbo` is below 0.05 nat.

        Raises:
            ValueError: Inside a transformation, or if this diagnosis was made under `jax.vmap`.
        """
        if is_traced(self.khat):
            raise ValueError(
                "reading needs values, which are not known inside a transformation: return the "
                "diagnosis, and read it outside."
            )
        self._require_one()
        return (
            f"{self._verdict()} It rests on {self.on_what}. They are worth "
            f"{float(self.ess):.0f} draws of the posterior. ELBO {float(self.elbo):.2f} "
            f"({float(self.elbo_error):.2f}), log evidence {float(self.log_evidence):.2f} "
            f"({float(self.log_evidence_error):.2f})."
        )

    def _require_one(self) -> None:
        if jnp.ndim(self.khat):
            raise ValueError(
                "these are several diagnoses: take one out, jax.tree.map(lambda x: x[i], "
                "diagnosis)."
            )

    def _verdict(self) -> str:
        none = int(jnp.sum(self.log_weights == -jnp.inf))
        missed = f" ({none} of {self.num_samples} draws lie where the posterior has no density.)"
        return self._of_weights() + (missed if none else "")

    def _of_weights(self) -> str:
        k, number = float(self.khat), self.num_samples
        if math.isnan(k):
            bad = int(jnp.sum(jnp.isnan(self.log_weights) | (self.log_weights == jnp.inf)))
            what = f"{bad} of {number} log weights are NaN or inf" if bad else "no weight is > 0"
            return f"no k-hat: {what}."
        if math.isinf(k) and tail_length(number) < SHORTEST_TAIL:
            return f"no k-hat: {number} draws are too few, take 1000 at least."
        rounding = float(self.rounding)
        if rounding > 1 and float(self.elbo_error) * math.sqrt(number) < rounding:
            return (
                f"no k-hat: the log weights differ by less than their rounding, {rounding:.1f} "
                "nats, since the log density is so large. Compute in double precision "
                '(jax.config.update("jax_enable_x64", True)).'
            )
        said = f"k-hat {k:.2f}:"
        if k > _CLOSE and float(self.ess) > _EQUAL * number:
            return (
                f"{said} it is the shape of a tail that hardly counts, since the weights are "
                "nearly equal; where its draws are, the guide is the posterior."
            )
        gap = float(self.log_evidence) - float(self.elbo)
        if k > COVERS and float(self.ess) > _MANY * number and gap < _NEAR:
            return (
                f"{said} the posterior's tails are heavier than the guide's, but where most draws "
                f"are the two agree, to {max(gap, 0.0):.2f} nat. Means and middle quantiles can be "
                "used as they are, and s.d. are a little low; quantiles far out, and whatever is "
                "corrected by the weights, cannot be trusted."
            )
        if k > _HAS_MEAN:
            return (
                f"{said} the guide misses the posterior; neither its means nor corrected ones can "
                "be trusted. Fit for longer, take a richer guide, or write the model in another "
                "parameterisation."
            )
        if k > COVERS:
            return (
                f"{said} the guide misses a part of the posterior; neither its means and s.d. nor "
                "corrected ones can be trusted. Fit for longer, or take a richer guide."
            )
        if k > self.khat_limit:
            enough = math.ceil(10 ** (1 / (1 - k)))
            return f"{said} too high for {number} draws; take {enough} at least."
        if k > _CLOSE:
            return (
                f"{said} as far as these draws see, the guide covers the posterior without being "
                "close to it; means and s.d. can be trusted after importance correction, but not "
                "as they are."
            )
        return (
            f"{said} as far as these draws see, the guide covers the posterior; means and s.d. can "
            "be trusted after importance correction."
        )

    def __str__(self) -> str:
        if is_traced(self.khat) or jnp.ndim(self.khat):
            return repr(self)
        return self.reading


def diagnose(
    key: Key,
    guide: AutoGuide,
    /,
    *args: Any,
    num_samples: int = 4000,
    batch_size: int | None = None,
    **kwargs: Any,
) -> Diagnosis:
    """Weigh a guide's draws by the posterior, to see whether the fit can be trusted.

    A draw's importance weight is its posterior density over its density under the guide. If some
    draws weigh much more than others, the guide is too narrow somewhere; k-hat says how much. It
    looks only where draws of the guide are: a mode that none of them reaches changes nothing.

    The draws of annealed guides (`AutoDAIS` and its kin) come with a weight of their whole path,
    which corrects them as well. Where k-hat of the paths is high, the draws alone may still be
    good.

    It works under `jax.jit` and `jax.vmap`, where `reading` is left for afterwards. A second call
    traces nothing.

    Args:
        key: For the draws.
        guide: The guide. `AutoLaplaceApproximation` is taken as the normal at its mode.
        *args: The model's arguments, or one `gx.Batch`; all rows.
        num_samples: How many draws. With 4000, k-hat has a standard error of about 0.1, and its
            limit is the highest, 0.7, which takes 2200.
        batch_size: How many draws to compute at a time, to bound memory; None for all.
        **kwargs: The model's keyword arguments.

    Returns:
        The weights, with estimates, draws and a reading.

    Raises:
        TypeError: If the guide draws some sites as points, which have no density, or the arguments
            do not fit the model.
        ValueError: If a plate holds some of its rows, an observation is left out, or a number is
            not positive.

    Source: Yao et al. 2018, "Yes, but did it work? Evaluating variational inference", section 2;
    Vehtari et al. 2024, "Pareto smoothed importance sampling".
    """
    require_key_and_guide("diagnose", key, guide)
    number = positive("num_samples", num_samples)
    at_a_time = positive_or_none("batch_size", batch_size)
    batch = guide.admit(as_batch(guide.model, args, kwargs, options_of(diagnose)))
    return _diagnose(guide.settled(batch), key, batch, number, at_a_time)


@functools.partial(jax.jit, static_argnames=("num_samples", "batch_size"))
def _diagnose(
    guide: AutoGuide, key: Key, batch: Batch, num_samples: int, batch_size: int | None
) -> Diagnosis:
    keys = random.split(key, 2 * num_samples + 1)  # one generator call
    indices = whole_indices(guide, keys[0], batch, "a diagnosis is of")

    def one(pair: Array) -> tuple[dict[str, Array], Array, Array]:
        target = guide.target(pair[0], batch, indices)
        draw = guide.family.draw(pair[1], target)
        _require_density(guide, draw)
        score = target.score(draw)
        size = sum((jnp.abs(x) for x in score.terms.values()), jnp.abs(score.log_q))
        return score.values, score.log_weight, size

    pairs = keys[1:].reshape(num_samples, 2, *key.shape)
    draws, log_weights, size = map_at_a_time(one, pairs, num_samples, batch_size)
    # A weight is a difference of such terms, so their rounding is its own.
    rounding = 4 * jnp.finfo(log_weights.dtype).eps * jnp.median(size)
    smoothed, khat = smooth(log_weights, rounding)
    total = jax.nn.logsumexp(smoothed)
    normalised = smoothed - total
    ess = jnp.exp(-jax.nn.logsumexp(2 * normalised))
    return Diagnosis(
        khat=khat,
        elbo=jnp.mean(log_weights),
        elbo_error=jnp.std(log_weights) / math.sqrt(num_samples),
        log_evidence=total - math.log(num_samples),
        log_evidence_error=jnp.sqrt(jnp.maximum(1 / ess - 1 / num_samples, 0.0)),
        ess=ess,
        log_weights=log_weights,
        smoothed_log_weights=normalised,
        rounding=rounding,
        draws=draws,
        extended=any(isinstance(x, (AbstractDAIS, LocalDAIS)) for x in leaves(guide.family)),
    )


def _require_density(guide: AutoGuide, draw: Draw) -> None:
    """Refuse sites that are drawn as points, found while tracing."""
    if points := points_of(draw):
        raise TypeError(
            f"{type(guide).__name__} draws the sites {points} as points, which have no density, so "
            "their draws have no weights. Diagnose a guide that spreads, such as gx.AutoNormal; "
            "the value at a point is gx.log_joint(guide.model, guide.median(...), ...)."
        )


def _mean(weights: Float[Array, " draws"], x: Array) -> Array:
    """Return the weighted mean over the first axis. A draw of no weight may hold anything."""
    counts = (weights != 0).reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.tensordot(weights, jnp.where(counts, x, jnp.zeros_like(x)), axes=(0, 0))
