"""How close guides come to the evidence of three posteriors, beside NumPyro's guides.

A figure is the gap to log Z of the ELBO, in nats, over 20,000 draws: a mean over seeds with its
standard error. Both sides get the same model, optimizer, steps and particles, and the same start
where their parameters are the same. All seeds of a row are fitted in one compiled program.

    python benchmarks/targets.py FOLDER [--seeds 5] [--only ionosphere] [--rows DAIS] [--json OUT]

FOLDER is described in benchmarks/README.md.
"""

import argparse
import functools
import json
import operator
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import report
import scipy.stats
from jax import lax, random
from jax.flatten_util import ravel_pytree
from numpyro.infer import SVI, Trace_ELBO, autoguide
from numpyro.infer.util import initialize_model
from targets_models import TARGETS, read_data, seeds_globals, seeds_locals, surrogate_of

import guidax as gx

RATE, CLIP_NORM, PARTICLES = 1e-2, 100.0, 8
ELBO_DRAWS, AT_ONCE = 20_000, 500


class Row(NamedTuple):
    """A guide of the table, by the name of its class and its options."""

    name: str
    options: dict = {}
    fitted_base: bool = False  # whether its base is fitted first
    in_numpyro: bool = True  # whether NumPyro has a guide of this name and these options
    targets: tuple = tuple(TARGETS)  # that the guide is for


ROWS = {
    "AutoNormal": Row("AutoNormal"),
    "AutoDiagonalNormal": Row("AutoDiagonalNormal"),
    "AutoLowRankMultivariateNormal": Row("AutoLowRankMultivariateNormal"),
    "AutoMultivariateNormal": Row("AutoMultivariateNormal"),
    "AutoLaplaceApproximation": Row("AutoLaplaceApproximation"),
    "AutoIAFNormal": Row("AutoIAFNormal"),
    "AutoBNAFNormal": Row("AutoBNAFNormal"),
    "AutoRealNVPNormal": Row("AutoRealNVPNormal", in_numpyro=False),
    "AutoNSFNormal": Row("AutoNSFNormal", in_numpyro=False),
    "AutoDAIS K=4": Row("AutoDAIS"),
}
BASES = {"diagonal": gx.AutoDiagonalNormal, "cholesky": gx.AutoMultivariateNormal}
_cholesky = {"base_dist": "cholesky"}
_unit = {"eta_max": 1.0}
_whitened = {"whiten": True}
_kick = {"max_kick": 5.0}
_whitened_unit_kick = _whitened | _unit | _kick
_flow = {"base_dist": gx.AutoIAFNormal}
for _k in (8, 32):
    for _label, _options in {
        "": {},
        " eta_max=1": _unit,
        " cholesky": _cholesky,
        " cholesky eta_max=1": _cholesky | _unit,
        " max_kick=5": _kick,
        " eta_max=1 max_kick=5": _unit | _kick,
        " whitened eta_max=1": _whitened | _unit,
        " cholesky whitened": _cholesky | _whitened,
        " cholesky whitened eta_max=1": _cholesky | _whitened | _unit,
        " cholesky whitened eta_max=1 max_kick=5": _cholesky | _whitened_unit_kick,
        " IAF whitened eta_max=1 max_kick=5": _flow | _whitened_unit_kick,
    }.items():
        ROWS[f"AutoDAIS{_label} K={_k}"] = Row(
            "AutoDAIS",
            {"K": _k} | _options,
            in_numpyro=_options in ({}, _unit, _cholesky, _cholesky | _unit),
        )
_regressions = ("ionosphere", "german_credit")
for _label, _options in {"": {}, " cholesky": _cholesky}.items():
    ROWS[f"AutoSurrogateLikelihoodDAIS{_label} K=8"] = Row(
        "AutoSurrogateLikelihoodDAIS", {"K": 8} | _options, targets=_regressions
    )
for _label, _options in {
    " K=8": {"K": 8},
    " cholesky K=8": {"K": 8} | _cholesky,
    " cholesky whitened eta_max=1 max_kick=5 K=8": {"K": 8} | _cholesky | _whitened_unit_kick,
    " IAF whitened eta_max=1 max_kick=5 K=8": {"K": 8} | _flow | _whitened_unit_kick,
    " cholesky whitened eta_max=1 max_kick=5 K=32": {"K": 32} | _cholesky | _whitened_unit_kick,
}.items():
    ROWS[f"AutoDAIS fitted{_label}"] = Row("AutoDAIS", _options, fitted_base=True, in_numpyro=False)
for _label, _options in {"": {}, " cholesky": _cholesky}.items():
    ROWS[f"AutoSurrogateLikelihoodDAIS fitted{_label} K=8"] = Row(
        "AutoSurrogateLikelihoodDAIS",
        {"K": 8} | _options,
        fitted_base=True,
        in_numpyro=False,
        targets=_regressions,
    )
ROWS["AutoSemiDAIS K=8"] = Row("AutoSemiDAIS", {"K": 8}, targets=("seeds",))


def guidax_constructor(row, model, data, steps):
    """Return a function of model, data and key."""
    constructor = functools.partial(getattr(gx, row.name), **row.options)
    if row.fitted_base:
        plain = guidax_constructor(row._replace(fitted_base=False), model, data, steps)
        base = BASES.get(row.options.get("base_dist", "diagonal"), row.options.get("base_dist"))

        def from_fitted_base(model, *args, key):
            keys = random.split(key)
            fitted = fit(keys[1], base(model, *args, key=keys[0]), args, steps)
            return plain(fitted.model, *args, key=keys[0], base_dist=fitted)

        return from_fitted_base
    if row.name == "AutoSurrogateLikelihoodDAIS":
        surrogate, half = gx.from_numpyro(surrogate_of(model)), gx.Batch(*(x[::2] for x in data))
        return lambda model, *args, **options: constructor(
            model, surrogate, *args, surrogate=half, **options
        )
    if row.name == "AutoSemiDAIS":
        return functools.partial(constructor, subsample_plate="plates")
    return constructor


def numpyro_guide(row, model, data):
    """Return NumPyro's guide of the same name and options."""
    constructor = functools.partial(getattr(autoguide, row.name), model, **row.options)
    if row.name == "AutoSurrogateLikelihoodDAIS":
        half = [x[::2] for x in data]
        return constructor(lambda: surrogate_of(model)(*half))
    if row.name == "AutoSemiDAIS":
        return constructor(
            lambda found: seeds_locals(*found, *data),
            autoguide.AutoNormal(seeds_globals),
            subsample_plate="plates",
        )
    return constructor()


def keys_of(label, count):
    """Return keys for one purpose: every purpose has its own."""
    return random.split(random.fold_in(random.key(0), label), count)


def optimizer_for(steps):
    return optax.chain(
        optax.clip_by_global_norm(CLIP_NORM),
        optax.adam(optax.cosine_decay_schedule(RATE, steps)),
    )


def fit(key, start, data, steps):
    """Return the guide after the steps that every guide here gets."""
    options = {"optimizer": optimizer_for(steps), "objective": gx.ELBO(num_particles=PARTICLES)}
    return gx.fit(key, start, *data, steps=steps, progress=False, **options).guide


def mean_elbo(loss_of, key):
    """Return minus the mean loss over many draws, some at a time."""
    keys = random.split(key, (ELBO_DRAWS // AT_ONCE, AT_ONCE))
    return -jnp.mean(lax.map(lambda some: jnp.mean(jax.vmap(loss_of)(some)), keys))


def elbos_of_guidax(constructor, model, data, steps, seeds):
    """Return the ELBO after each seed's fit, and the guides that they started from."""
    numpyro_model = gx.from_numpyro(model)

    @jax.jit
    @jax.vmap
    def fitted(key):
        keys = random.split(key, 3)
        start = constructor(numpyro_model, *data, key=keys[0])
        guide = fit(keys[1], start, data, steps)
        if isinstance(guide, gx.AutoLaplaceApproximation):
            guide = guide.laplace(*data)
        return mean_elbo(lambda k: gx.ELBO()(guide, k, *data), keys[2]), start

    elbos, starts = fitted(keys_of(0, seeds))
    members = [jax.tree.map(operator.itemgetter(i), starts) for i in range(seeds)]
    return np.asarray(elbos, float), members


def loss_of_numpyro(guide, model, data):
    """Return the function that estimates minus the ELBO of fitted parameters from one draw."""

    def loss(params, key):
        return Trace_ELBO().loss(key, params, model, guide, *data)

    if not isinstance(guide, autoguide.AutoLaplaceApproximation):
        return loss
    info = initialize_model(random.key(0), model, model_args=data)  # the loss above is the point's
    unravel = ravel_pytree(info.param_info.z)[1]

    def loss_of_the_normal(params, key):
        normal = guide.get_posterior(params)
        z = normal.sample(key)
        return normal.log_prob(z) + info.potential_fn(unravel(z))

    return loss_of_the_normal


def elbos_of_numpyro(row, model, data, steps, starts):
    """Return the same from NumPyro's guide, which starts at guidax's parameters, if it has them."""
    guide = numpyro_guide(row, model, data)
    optimizer = numpyro.optim.optax_to_numpyro(optimizer_for(steps))
    svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=PARTICLES))
    with numpyro.validation_enabled(False):  # AutoSemiDAIS draws tau from the prior: it may be 0
        svi.init(random.key(0), *data)  # outside of jit: the guide keeps what it sees at set-up
    loss = loss_of_numpyro(guide, model, data)

    @jax.jit
    @jax.vmap
    def elbo(key, start):
        keys = random.split(key)
        params = svi.run(keys[0], steps, *data, init_params=start, progress_bar=False).params
        return mean_elbo(functools.partial(loss, params), keys[1])

    try:
        params = [gx.to_numpyro_params(start, *data) for start in starts]
        params = jax.tree.map(lambda *each: jnp.stack(each), *params)
    except TypeError:  # NumPyro lays this guide's parameters out otherwise
        params = None
    return np.asarray(elbo(keys_of(1, len(starts)), params), float)


def summary_of(elbos, log_z, seconds):
    """Return mean and standard error of the gaps, in nats, and how many fits were not finite."""
    gaps = log_z - elbos[np.isfinite(elbos)]
    error = gaps.std(ddof=1) / np.sqrt(len(gaps)) if len(gaps) > 1 else 0.0
    return {
        "gap": float(gaps.mean()) if len(gaps) else None,
        "error": float(error),
        "gaps": gaps.tolist(),
        "failures": len(elbos) - len(gaps),
        "seconds": seconds,
    }


def measure(target_name, label, data, options):
    """Return one row of the table."""
    spec = ROWS[label]
    target = TARGETS[target_name]
    constructor = guidax_constructor(spec, target.model, data, options.steps)
    row = {"target": target_name, "guide": label}
    begun = time.perf_counter()
    elbos, starts = elbos_of_guidax(constructor, target.model, data, options.steps, options.seeds)
    row["guidax"] = summary_of(elbos, target.log_z, time.perf_counter() - begun)
    if spec.in_numpyro and not options.alone:
        begun = time.perf_counter()
        elbos = elbos_of_numpyro(spec, target.model, data, options.steps, starts)
        row["numpyro"] = summary_of(elbos, target.log_z, time.perf_counter() - begun)
    jax.clear_caches()  # hundreds of programs in one process run out of memory maps
    return row


def shown(summary):
    if summary is None:
        return ""
    failures = f"{summary['failures']} failed" if summary["failures"] else ""
    if not summary["gaps"]:
        return f"{'':25} {failures:8}"
    text = f"{summary['gap']:.3f} ±{summary['error']:.3f}"
    return f"{text:>16} {max(summary['gaps']):8.3f} {failures:8}"


def verdict(row):
    """Say whose gap is the greater by more than the larger standard error, if anyone's.

    Or who has more fits that were not finite.
    """
    if "numpyro" not in row:
        return ""
    ours, theirs = row["guidax"], row["numpyro"]
    if ours["failures"] != theirs["failures"]:
        return "<" if ours["failures"] < theirs["failures"] else ">"
    margin = max(ours["error"], theirs["error"])
    difference = ours["gap"] - theirs["gap"]
    return "<" if difference < -margin else ">" if difference > margin else "="


def print_row(row):
    ours, theirs = shown(row["guidax"]), shown(row.get("numpyro"))
    print(f"{row['target']:14}{row['guide']:44}{ours:34} {verdict(row):1} {theirs}", flush=True)


def settings_of(options):
    return {
        "steps": options.steps,
        "seeds": options.seeds,
        "learning_rate": RATE,
        "clip_norm": CLIP_NORM,
        "particles": PARTICLES,
        "elbo_draws": ELBO_DRAWS,
    }


def read(options):
    """Return the rows that the file has, if it is there."""
    if not (options.json and Path(options.json).exists()):
        return []
    found = json.loads(Path(options.json).read_text(encoding="utf-8"))
    versions = report.environment()["versions"]
    if found["settings"] != settings_of(options) or found["versions"] != versions:
        raise SystemExit(f"{options.json} holds rows of other settings or versions: name another.")
    return found["rows"]


def write(options, rows):
    """Write all rows so far, in their order: a run that is cut off goes on."""
    if options.json:
        places = [(target, label) for target in TARGETS for label in ROWS]
        ordered = sorted(rows, key=lambda row: places.index((row["target"], row["guide"])))
        report.write(options.json, {"settings": settings_of(options), "rows": ordered})


def smallest_p_value(rows):
    """Return how likely equal sides would favour NumPyro so far in any row, and where.

    Welch's test of each row where NumPyro's gap is the smaller, after Bonferroni's correction.
    """
    found = []
    for row in rows:
        if "numpyro" in row and row["guidax"]["gap"] > row["numpyro"]["gap"]:
            sides = (row["guidax"]["gaps"], row["numpyro"]["gaps"])
            test = scipy.stats.ttest_ind(*sides, equal_var=False, alternative="greater")
            compared = sum("numpyro" in each for each in rows)
            p = min(1.0, float(test.pvalue) * compared)
            found.append((p, f"{row['target']}, {row['guide']}"))
    return min(found, default=(1.0, "nowhere"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="the data: see the README")
    parser.add_argument("--steps", type=int, default=8_000, help="of each fit")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--rows", nargs="+", metavar="GUIDE", default=list(ROWS), choices=ROWS)
    parser.add_argument("--alone", action="store_true", help="leave NumPyro out")
    report.add_json(parser, "; what it has is not redone")
    options = parser.parse_args()
    rows = read(options)
    there = {(row["target"], row["guide"]): row for row in rows}
    titles = f"{'guidax':>16} {'worst':>8}", f"{'NumPyro':>16} {'worst':>8}"
    print(f"{'target':14}{'guide':44}{titles[0]:36} {titles[1]}")
    for target_name in options.only:
        data = read_data(options.folder, target_name)
        for label in options.rows:
            if target_name not in ROWS[label].targets:
                continue
            row = there.get((target_name, label))
            if row is None:
                row = measure(target_name, label, data, options)
                rows.append(row)
                write(options, rows)
            print_row(row)
    signs = [verdict(row) for row in rows]
    print(
        f"guidax's gap is the smaller by more than the larger standard error in {signs.count('<')} "
        f"rows, NumPyro's in {signs.count('>')}, neither in {signs.count('=')}."
    )
    p, where = smallest_p_value(rows)
    print(f"Smallest p where NumPyro's is the smaller, corrected for all rows: {p:.2g} ({where}).")


if __name__ == "__main__":
    main()
