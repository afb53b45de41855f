"""Simulation-based calibration: are a guide's intervals right for data that the model makes?"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jax.scipy.special import erfc, gammaincc
from jax.scipy.stats import rankdata
from jaxtyping import Array, Bool, Float, Int

from .._fit.fit import fit
from .._fit.recipe import Optimizer, Schedule, as_rate
from .._guide.guide import AutoGuide
from .._model.batch import Batch, as_batch, options_of
from .._model.indices import check_rows
from .._model.model import AbstractModel
from .._model.program import as_model
from .._model.static import Static
from .._model.structure import describe
from .._numerics import all_finite, is_traced, map_at_a_time
from .._objective.base import AbstractObjective
from .._objective.elbo import ELBO
from .._types import Key, names_of, positive, positive_or_none, require_key
from .simulated import Simulated, simulate

_SIGNIFICANT = 0.01  # of all tests together


class Calibration(eqx.Module):
    """Ranks of true values among a guide's draws, for data that were simulated from the prior.

    If the guide were the posterior, each rank between 0 and `num_draws` would be equally likely.
    `str(calibration)`, or `reading`, puts the tests into words.

    Attributes:
        ranks: Site to how many draws lie below the true value, of shape `(replications, *site)`;
            of draws that equal it, a random number counts.
        first_bad_step: Of each fit, the first step that was not finite, or -1.
        is_finite: Of each fit, whether its draws and true values are all finite. Where they are
            not, ranks say nothing, and the tests leave them out.
        num_draws: How many draws each true value was compared with.
    """

    ranks: dict[str, Int[Array, "replications ..."]]
    first_bad_step: Int[Array, " replications"]
    is_finite: Bool[Array, " replications"]
    num_draws: int = eqx.field(static=True)

    @property
    def num_replications(self) -> int:
        """How many data sets were simulated and fitted."""
        return self.first_bad_step.shape[0]

    def uniformity(self, num_bins: int | None = None) -> dict[str, Float[Array, "..."]]:
        """Return p-values of the chi-square test that all ranks are equally likely.

        Small ones tell of spread that is too small (ranks pile up at both ends) or too large (in
        the middle), and of bias (at one end).

        Args:
            num_bins: Into how many bins ranks are counted, of equal width if it divides
                `num_draws + 1`, else as nearly so as can be. None is 20, or fewer where that leaves
                less than 20 ranks to a bin on average.

        Returns:
            Site to p-values, of the site's shape.

        Raises:
            TypeError: If `num_bins` is no integer.
            ValueError: If it is less than 2, or more than `num_draws + 1`.

        Source: Talts et al. 2018, "Validating Bayesian inference algorithms with simulation-based
        calibration", section 4.
        """
        bins, levels = self._bins(num_bins), self.num_draws + 1
        widths = np.bincount(np.arange(levels) * bins // levels)
        expected = jnp.sum(self.is_finite) * widths / levels

        def test(ranks: Int[Array, "replications ..."]) -> Float[Array, "..."]:
            held = (ranks * bins // levels)[..., None] == jnp.arange(bins)
            held = held & self._kept(held)
            off = jnp.sum(held, axis=0) - expected
            return gammaincc((bins - 1) / 2, jnp.sum(off**2 / expected, axis=-1) / 2)

        return {name: test(ranks) for name, ranks in self.ranks.items()}

    def symmetry(self) -> dict[str, Float[Array, "..."]]:
        """Return p-values of the signed rank test that ranks are symmetric about their middle.

        Small ones tell that the guide lies to one side of the truth. It passes a guide whose spread
        alone is wrong, as that of a mean-field guide often is by design.

        Returns:
            Site to p-values, of the site's shape.

        Source: Yao et al. 2018, "Yes, but did it work? Evaluating variational inference", section
        3, with Wilcoxon's test in the place of theirs, which asks for two independent samples.
        """

        def test(ranks: Int[Array, "replications ..."]) -> Float[Array, "..."]:
            off = ranks - self.num_draws / 2
            kept = self._kept(off)
            order = rankdata(jnp.where(kept, jnp.abs(off), jnp.inf), axis=0)
            order = jnp.where(kept & (off != 0), order, 0.0)
            z = jnp.sum(jnp.sign(off) * order, axis=0) / jnp.sqrt(jnp.sum(order**2, axis=0))
            return erfc(jnp.abs(z) / np.sqrt(2))

        return {name: test(ranks) for name, ranks in self.ranks.items()}

    @property
    def reading(self) -> str:
        """The tests in words, on values that are known.

        A site is named if any of its p-values, times the number of all tests, is below 0.01.

        Raises:
            ValueError: Inside a transformation.
        """
        if is_traced(self.first_bad_step):
            raise ValueError(
                "reading needs values, which are not known inside a transformation: return the "
                "calibration, and read it outside."
            )
        lost = self.num_replications - int(jnp.sum(self.is_finite))
        if lost == self.num_replications:
            return f"{lost} fits: none of them has draws that are all finite."
        spread, side = self.uniformity(), self.symmetry()
        tests = 2 * sum(p.size for p in spread.values())
        found = []
        kept = np.asarray(self.is_finite)
        for name, ranks in self.ranks.items():
            if not spread[name].size:
                continue
            p = float(min(jnp.min(spread[name]), jnp.min(side[name])))
            if p * tests < _SIGNIFICANT:
                fault = self._fault(np.asarray(ranks)[kept], spread, side, name)
                found.append(f"{name!r} ({fault})")
        bad = int(jnp.sum(self.first_bad_step >= 0))
        failed = f" {bad} fits met a number that was not finite." if bad else ""
        failed += f" {lost} have draws that are not finite, and are left out." if lost else ""
        return f"{self.num_replications} fits: " + (
            f"ranks are not uniform for {', '.join(found)}.{failed}"
            if found
            else f"no miscalibration to be seen in {tests} tests.{failed}"
        )

    def _fault(self, ranks: np.ndarray, spread: Any, side: Any, name: str) -> str:
        """Say what is wrong with the coordinate whose p-value is smallest."""
        p = jnp.minimum(spread[name], side[name])
        where = np.unravel_index(int(jnp.argmin(p)), p.shape)
        u = (ranks[(slice(None), *where)] + 0.5) / (self.num_draws + 1)
        faults = []
        if float(side[name][where]) < _SIGNIFICANT:
            faults.append("too low" if u.mean() > 0.5 else "too high")
        if float(spread[name][where]) < _SIGNIFICANT:
            faults.append("too narrow" if ((u - u.mean()) ** 2).mean() > 1 / 12 else "too wide")
        return f"{' and '.join(faults)}, p {float(p[where]):.1g}"

    def _kept(self, x: Array) -> Bool[Array, "..."]:
        """Return which replications count, with as many axes as `x`."""
        return self.is_finite.reshape(-1, *(1,) * (x.ndim - 1))

    def _bins(self, num_bins: int | None) -> int:
        levels = self.num_draws + 1
        if num_bins is None:
            return min(20, levels, max(2, self.num_replications // 20))
        if not 2 <= positive("num_bins", num_bins) <= levels:
            raise ValueError(
                f"num_bins divides the {levels} ranks into bins, two at least and none of them "
                f"empty; got {num_bins}."
            )
        return num_bins

    def __str__(self) -> str:
        return repr(self) if is_traced(self.first_bad_step) else self.reading


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is static about a calibration, compared by value."""

    constructor: Static
    observe: tuple[str, ...]
    num_replications: int
    num_draws: int
    batch_size: int | None
    steps: int
    optimizer: Static
    schedule: Static | None
    objective: AbstractObjective
    forward_mode: bool


def calibrate(
    key: Key,
    constructor: Callable[..., AutoGuide],
    model: Any,
    /,
    *args: Any,
    observe: Iterable[str],
    steps: int,
    num_replications: int = 500,
    num_draws: int = 99,
    optimizer: Optimizer = None,
    learning_rate: float | Float[Array, ""] | Schedule | None = None,
    objective: AbstractObjective = ELBO(),
    forward_mode: bool = False,
    batch_size: int | None = None,
    **kwargs: Any,
) -> Calibration:
    """Simulate parameters and data from the prior, fit a guide to each, and rank the truth.

    All fits run at once, in one compiled program; a second call traces nothing. Leave the data out
    of the arguments (`y=None`): the sites that `observe` names are drawn from the model, each time
    anew, and are data to the fits.

        calibration = gx.calibrate(key, gx.AutoNormal, model, x, observe=["y"], steps=1_000)
        print(calibration)

    A guide may pass for the prior's data sets on average and be wrong for the one at hand:
    `gx.diagnose` looks at that one.

    Args:
        key: For the simulations, the fits and the draws.
        constructor: Makes a guide, called as `constructor(model, batch, key=key)`: a class, or a
            `functools.partial` of one.
        model: A model: a callable in the model language, or what an adapter returns.
        *args: The model's arguments without the data, or one `gx.Batch`; all rows, without `at`.
        observe: Names of the sites that are data.
        steps: How many steps each fit takes. Too few count against the guide.
        num_replications: How many data sets.
        num_draws: How many draws of the guide to rank a true value among; one less than a number
            with many divisors suits `uniformity`.
        optimizer: As of `gx.fit`.
        learning_rate: As of `gx.fit`.
        objective: As of `gx.fit`.
        forward_mode: As of `gx.fit`.
        batch_size: How many replications to run at a time, to bound memory; None for all.
        **kwargs: The model's keyword arguments.

    Returns:
        The ranks, with tests and a reading.

    Raises:
        TypeError: If an argument is of the wrong kind, or the model's arguments do not fit it.
        ValueError: If `observe` names no unobserved site or all of them, or one twice, if the model
            has parameters that are fitted, a plate that holds some of its rows, or a latent without
            a prior that can be drawn from, if the batch says which rows it holds, or if a number is
            not positive.

    Source: Talts et al. 2018, "Validating Bayesian inference algorithms with simulation-based
    calibration", algorithm 1; Yao et al. 2018, "Yes, but did it work? Evaluating variational
    inference", algorithm 3.
    """
    require_key("calibrate", key)
    if not callable(constructor) or isinstance(constructor, AutoGuide):
        raise TypeError(
            "calibrate takes a random key, a constructor of guides, such as gx.AutoNormal, and a "
            f"model; got {constructor!r} for the constructor."
        )
    names = names_of("observe", observe)
    model = as_model(model)
    batch = as_batch(model, args, kwargs, options_of(calibrate))
    check_rows(model, batch)
    if batch.rows:
        raise ValueError(
            f"at({', '.join(f'{name}=...' for name in batch.rows)}) says which rows data hold, but "
            "simulated data have all of them: leave it out."
        )
    _require_simulable(model, batch, names)
    plan = _Plan(
        constructor=Static(constructor),
        observe=names,
        num_replications=positive("num_replications", num_replications),
        num_draws=positive("num_draws", num_draws),
        batch_size=positive_or_none("batch_size", batch_size),
        steps=steps,
        optimizer=Static(optimizer),
        schedule=Static(learning_rate) if callable(learning_rate) else None,
        objective=objective,
        forward_mode=forward_mode,
    )
    rate = None if learning_rate is None or callable(learning_rate) else as_rate(learning_rate)
    return _calibrate(plan, key, model, batch, rate)


@functools.partial(jax.jit, static_argnames="plan")
def _calibrate(
    plan: _Plan, key: Key, model: AbstractModel, batch: Batch, rate: Float[Array, ""] | None
) -> Calibration:
    def one(key: Key) -> tuple[dict[str, Array], Array, Array]:
        keys = random.split(key, 5)
        truth, data = simulate(model, keys[0], batch, plan.observe)
        observed, given = Simulated(model, plan.observe), Batch(data, batch)
        guide = plan.constructor.value(observed, given, key=keys[1])
        if not isinstance(guide, AutoGuide):
            raise TypeError(f"the constructor returns a guide; it returned {guide!r}.")
        result = fit(
            keys[2],
            guide,
            given,
            steps=plan.steps,
            optimizer=plan.optimizer.value,
            learning_rate=rate if plan.schedule is None else plan.schedule.value,
            objective=plan.objective,
            forward_mode=plan.forward_mode,
        )
        draws = result.guide.sample_posterior(
            keys[3], given, sample_shape=(plan.num_draws,), sites=sorted(truth)
        )
        tie_keys = random.split(keys[4], len(truth))
        ranks = {
            name: _rank(k, truth[name], draws[name])
            for name, k in zip(truth, tie_keys, strict=True)
        }
        return ranks, result.first_bad_step, all_finite((truth, draws))

    keys = random.split(key, plan.num_replications)
    ranks, first_bad_step, is_finite = map_at_a_time(
        one, keys, plan.num_replications, plan.batch_size
    )
    return Calibration(ranks, first_bad_step, is_finite, plan.num_draws)


def _rank(key: Key, truth: Array, draws: Array) -> Int[Array, "..."]:
    """Return how many draws lie below the truth, and of those equal to it a random number.

    Entries that are constant, such as the diagonal of a correlation matrix, are equal only up to
    the rounding of the map to the support.
    """
    rounding = 100 * jnp.finfo(truth.dtype).eps * jnp.abs(truth)
    below = jnp.sum(draws < truth - rounding, axis=0)
    ties = jnp.sum(jnp.abs(draws - truth) <= rounding, axis=0)
    return below + random.randint(key, ties.shape, 0, ties + 1, ties.dtype)


def _require_simulable(model: AbstractModel, batch: Batch, observe: tuple[str, ...]) -> None:
    structure = describe(model, batch, random.key(0))
    latents = {s.name for s in structure.latents} | {name for name, _ in structure.obstacles}
    if unknown := [name for name in observe if name not in latents]:
        raise ValueError(
            f"observe names {unknown}, which the model does not draw on these arguments: leave "
            f"their data out, as y=None. It draws {sorted(latents)}."
        )
    if len({*observe}) < len(observe):
        raise ValueError(f"observe names each site once; got {list(observe)}.")
    if not observe or latents == set(observe):
        raise ValueError(
            "observe names the sites that are data, at least one and not all of those that the "
            f"model draws, {sorted(latents)}; got {list(observe)}."
        )
    if structure.params or model.has_module:
        what = f"param sites {list(structure.params)}" if structure.params else "a module's arrays"
        raise ValueError(
            f"the model has {what}, which are fitted to data and have no prior to simulate from: "
            "give them priors, or fix them."
        )
    for p in structure.plates:
        if p.rows < p.size:
            raise ValueError(
                f"plate {p.name!r} holds {p.rows} of {p.size} rows: simulated data have all of "
                "them, so write the model without subsample_size for a calibration."
            )
