"""How close guides come to nine posteriors of posteriordb, beside NumPyro's guides.

Table 1 fits five guides with guidax and with NumPyro: the same model, start, optimizer, steps and
particles. Error of the mean: in standard deviations of the reference; error of the standard
deviation: |log ratio| to the reference's. Both are those of the worst parameter.

Table 2 gives how many nats `gx.fit`'s defaults leave: the gap of their ELBO to the best that any
setting reached for that family. The settings are the defaults; ten thousand steps at several rates
with sixteen particles; and the same from the normal that Laplace's method puts at the mode.

Table 3 has the errors of table 1 for `gx.fit`'s default optimizer, which NumPyro has no like of.

    python benchmarks/posteriordb.py FOLDER [--steps 5000] [--json RESULT.json]

FOLDER is described in benchmarks/README.md.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import report
import scipy.optimize
import scipy.stats
from jax import random
from numpyro.infer import SVI, Trace_ELBO, autoguide
from numpyro.infer.util import initialize_model
from posteriordb_models import POSTERIORS, flatten, read_data, read_reference

import guidax as gx

jax.config.update("jax_enable_x64", True)

GUIDES = {
    "AutoNormal": gx.AutoNormal,
    "AutoDiagonalNormal": gx.AutoDiagonalNormal,
    "AutoMultivariateNormal": gx.AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": gx.AutoLowRankMultivariateNormal,
    "AutoLaplaceApproximation": gx.AutoLaplaceApproximation,
}
LAPLACE = "AutoLaplaceApproximation"
SEEDS, DRAWS, PARTICLES, CLIP_NORM = 5, 10_000, 4, 10.0
PLAIN_RATES, PLAIN_RATE = {"AutoNormal": 0.3, "AutoDiagonalNormal": 0.3}, 0.1  # of plain Adam

FAMILIES = ["AutoNormal", "AutoMultivariateNormal"]
DEFAULTS = [2_000, 10_000]  # steps
SEARCH_STEPS, SEARCH_PARTICLES, SEARCH_SEEDS = 10_000, 16, 2
RATES = [0.1, 1 / 3, 1.0, 3.0]  # times the guide's own
POLISHING_RATE = 0.01
ELBO_DRAWS, AT_ONCE = 20_000, 1_000
TARGET = 2.0  # nats
TABLES = [1, 2, 3]


def take(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def keys_of(label, count=SEEDS):
    """Return keys for one purpose: every purpose has its own."""
    return random.split(random.fold_in(random.key(0), label), count)


def starts_of(name, model, data, count=SEEDS):
    """Return guides from several starts, as one with a leading axis."""
    numpyro_model = gx.from_numpyro(model)
    return jax.vmap(lambda key: GUIDES[name](numpyro_model, *data, key=key))(keys_of(0, count))


# Table 1


def fit_guidax(name, model, data, starts, optimizer, steps):
    """Return draws for each seed, or why there are none."""
    objective = gx.ELBO(num_particles=1 if name == LAPLACE else PARTICLES)

    @jax.jit
    def run(keys, starts, data):
        def one(key, guide):
            result = gx.fit(
                key,
                guide,
                *data,
                steps=steps,
                optimizer=optimizer,
                objective=objective,
                progress=False,
            )
            return result.guide, result.first_bad_step

        return jax.vmap(one)(keys, starts)

    guides, bad = run(keys_of(1), starts, data)
    found = []
    for i, key in enumerate(keys_of(2)):
        if bad[i] >= 0:
            found.append(f"not finite at step {int(bad[i])}")
            continue
        try:
            draws = take(guides, i).sample_posterior(key, *data, sample_shape=(DRAWS,))
            found.append(flatten(draws))
        except ValueError as error:  # Laplace's, where the Hessian is not positive definite
            found.append(str(error))
    return found


def fit_numpyro(name, model, data, starts, optimizer, steps):
    """Return the same from NumPyro's guide, which starts at guidax's parameters."""
    guide = getattr(autoguide, name)(model)
    loss = Trace_ELBO(num_particles=1 if name == LAPLACE else PARTICLES)
    svi = SVI(model, guide, numpyro.optim.optax_to_numpyro(optimizer), loss)
    svi.init(random.key(0), *data)  # outside of jit: the guide keeps what it sees at set-up

    @jax.jit
    def run(keys, starts, data):
        def one(key, start):
            return svi.run(key, steps, *data, init_params=start, progress_bar=False)[::2]

        return jax.vmap(one)(keys, starts)

    @jax.jit
    def draw(key, params, data):
        return guide.sample_posterior(key, params, *data, sample_shape=(DRAWS,))

    params, losses = run(keys_of(3), jax.vmap(gx.to_numpyro_params)(starts), data)
    found = []
    for i, key in enumerate(keys_of(4)):
        steady = np.isfinite(losses[i])
        if not steady.all():
            found.append(f"not finite at step {int(np.argmin(steady))}")
            continue
        draws = flatten(draw(key, take(params, i), data))
        constant = all(np.ptp(values) == 0 for values in draws.values())
        found.append("the Hessian is not positive definite: no spread" if constant else draws)
    return found


def errors_of(draws, reference):
    """Return the errors of one seed."""
    z = [abs(draws[n].mean() - r.mean) / r.sd for n, r in reference.items()]
    ratio = np.array([draws[n].std(ddof=1) / r.sd for n, r in reference.items()])
    return {
        "mean": float(max(z)),
        "log_sd": float(abs(np.log(ratio)).max()),
        "smallest_sd_ratio": float(ratio.min()),
        "largest_sd_ratio": float(ratio.max()),
    }


def summarise(found, reference):
    """Return mean and standard error of each error over the seeds that came to an end."""
    errors, failures = [], []
    for draws in found:
        if isinstance(draws, str):
            failures.append(draws)
            continue
        with np.errstate(all="ignore"):
            each = errors_of(draws, reference)
        if np.isfinite(list(each.values())).all():
            errors.append(each)
        else:
            failures.append("the moments of the draws overflow")
    summary = {"failures": failures}
    for field in errors[0] if errors else ():
        values = np.array([each[field] for each in errors])
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
        summary[field] = [float(values.mean()), float(error)]
    return summary


def compare(name, guide_name, data, reference, steps):
    """Return one row of table 1."""
    model = POSTERIORS[name].model
    starts = starts_of(guide_name, model, data)
    rate = PLAIN_RATES.get(guide_name, PLAIN_RATE)
    optimizer = optax.chain(
        optax.clip_by_global_norm(CLIP_NORM),
        optax.adam(optax.cosine_decay_schedule(rate, steps)),
    )
    row = {"posterior": name, "guide": guide_name, "learning_rate": rate}
    for side, fit in [("guidax", fit_guidax), ("numpyro", fit_numpyro)]:
        found = fit(guide_name, model, data, starts, optimizer, steps)
        row[side] = summarise(found, reference)
    return row


def exceeds(row, field):
    """Say whose error is the greater by more than the larger standard error, if anyone's."""
    if not all(field in row[side] for side in ("guidax", "numpyro")):
        return ""
    (ours, our_error), (theirs, their_error) = row["guidax"][field], row["numpyro"][field]
    margin = max(our_error, their_error)
    return "<" if ours < theirs - margin else ">" if ours > theirs + margin else "="


def shown(summary, field):
    if field not in summary:
        return f"fails {len(summary['failures'])}/{SEEDS}"
    mean, error = summary[field]
    text = f"{mean:.3f} ±{error:.3f}" if mean < 100 else f"{mean:.2g} ±{error:.1g}"
    failures = len(summary["failures"])
    return text + (f" ({failures} fail)" if failures else "")


def print_comparison_header():
    heading = f"{'error of the mean, in s.d.':^41}   {'error of the s.d., |log ratio|':^41}"
    print(f"{'':27}{'':30}{heading}")
    pair = f"{'guidax':>19}   {'NumPyro':>19}"
    print(f"{'posterior':27}{'guide':30}{pair}   {pair}")


def print_comparison(row):
    cells = "   ".join(
        f"{shown(row['guidax'], field):>19} {exceeds(row, field):1} "
        f"{shown(row['numpyro'], field):>19}"
        for field in ("mean", "log_sd")
    )
    print(f"{row['posterior']:27}{row['guide']:30}{cells}", flush=True)


def p_values(rows):
    """Return, for each error of each row, how likely equal sides would favour NumPyro so far.

    Welch's test, from the means and standard errors over the seeds.
    """
    found = []
    for row in rows:
        for field, label in [("mean", "mean"), ("log_sd", "s.d.")]:
            if not exceeds(row, field):
                continue
            sides = [row[side] for side in ("guidax", "numpyro")]
            counts = [SEEDS - len(side["failures"]) for side in sides]
            means, errors = zip(*(side[field] for side in sides), strict=True)
            if min(counts) < 2 or not any(errors):
                continue
            spreads = [error * np.sqrt(n) for error, n in zip(errors, counts, strict=True)]
            test = scipy.stats.ttest_ind_from_stats(
                means[0], spreads[0], counts[0], means[1], spreads[1], counts[1],
                equal_var=False, alternative="greater",
            )  # fmt: skip
            found.append((float(test.pvalue), f"{row['posterior']}, {row['guide']}, {label}"))
    return sorted(found)


def print_verdicts(rows):
    for field, label in [("mean", "mean"), ("log_sd", "s.d.")]:
        signs = [exceeds(row, field) for row in rows]
        print(
            f"{label}: guidax's error is the smaller by more than the larger standard error in "
            f"{signs.count('<')} rows, NumPyro's in {signs.count('>')}, neither in "
            f"{signs.count('=')}."
        )
    if found := p_values(rows):
        smallest, where = found[0]
        uniform = scipy.stats.kstest([p for p, _ in found], "uniform").pvalue
        print(
            f"{len(found)} one-sided tests that guidax's error is the greater: smallest p "
            f"{smallest:.4f} ({where}), {min(1.0, smallest * len(found)):.2f} after Bonferroni; "
            f"that they are uniform, as those of equal sides are: p {uniform:.2f}."
        )
    for row in rows:
        for side in ("guidax", "numpyro"):
            if failures := row[side]["failures"]:
                first = failures[0].partition(". ")[0]
                print(
                    f"{row['posterior']}, {row['guide']}, {side}: {len(failures)} of {SEEDS} "
                    f"fail; the first: {first}"
                )


# Table 2


@jax.jit
def elbo_of(guides, data):
    """Return the ELBO of each of several guides, from the same draws' keys."""
    objective = gx.ELBO(num_particles=AT_ONCE)
    keys = keys_of(5, ELBO_DRAWS // AT_ONCE)

    def one(guide):
        return -jnp.mean(jax.lax.map(lambda key: objective(guide, key, *data), keys))

    return jax.lax.map(one, guides)


def train(starts, data, steps, rates, particles):
    """Return guides trained by `gx.fit`'s default optimizer, and which of them are finite."""
    objective = gx.ELBO(num_particles=particles)

    @jax.jit
    def run(keys, starts, rates, data):
        def one(key, guide, rate):
            result = gx.fit(
                key,
                guide,
                *data,
                steps=steps,
                learning_rate=rate,
                objective=objective,
                progress=False,
            )
            return result.guide, result.first_bad_step

        return jax.vmap(one)(keys, starts, rates)

    guides, bad = run(keys_of(6, len(rates)), starts, jnp.asarray(rates), data)
    return guides, np.asarray(bad) < 0


def elbos_after(starts, data, steps, rates, particles):
    """Return the ELBO of each member, NaN where a step was not finite."""
    guides, finite = train(starts, data, steps, rates, particles)
    return np.where(finite, np.asarray(elbo_of(guides, data)), np.nan)


def laplace_start(family, model, data):
    """Return the family's guide at the mode, with the curvature's scales, or None without a mode.

    Newton's method in a trust region goes as far as it must; Adam's steps have a length.
    """
    guide = gx.AutoLaplaceApproximation(gx.from_numpyro(model), *data, key=random.key(0))
    prototype = initialize_model(random.key(0), model, model_args=data)
    names = [site.name for site in guide.family.sites]
    start = gx.to_numpyro_params(guide)["auto_loc"]
    shapes = {n: prototype.param_info.z[n].shape for n in names}

    @jax.jit
    def potential(z):
        values, offset = {}, 0
        for n in names:
            size = int(np.prod(shapes[n]))
            values[n] = z[offset : offset + size].reshape(shapes[n])
            offset += size
        return prototype.potential_fn(values)

    found = scipy.optimize.minimize(
        potential,
        start,
        method="trust-exact",
        jac=jax.jit(jax.grad(potential)),
        hess=jax.jit(jax.hessian(potential)),
        options={"maxiter": 2_000, "gtol": 1e-6},
    )
    try:
        normal = gx.from_numpyro_params(guide, {"auto_loc": found.x}).laplace(*data)
    except ValueError:
        return None
    if family == "AutoMultivariateNormal":
        return normal
    # The best independent normals for a normal have the precision's diagonal as their precisions.
    scales = np.asarray(jax.hessian(potential)(found.x)).diagonal() ** -0.5
    diagonal = {"auto_loc": found.x, "auto_scale": scales}
    flat = gx.AutoDiagonalNormal(gx.from_numpyro(model), *data, key=random.key(0))
    return gx.from_numpyro_params(flat, diagonal)


def measure_gaps(name, family, data):
    """Return one row of table 2."""
    model = POSTERIORS[name].model
    starts = starts_of(family, model, data)
    rate = starts.learning_rate
    own = {
        steps: elbos_after(starts, data, steps, [rate] * SEEDS, particles=1) for steps in DEFAULTS
    }
    reached = {f"defaults, {steps} steps": np.nanmax(values) for steps, values in own.items()}

    few = starts_of(family, model, data, SEARCH_SEEDS)
    members = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * len(RATES)), few)
    rates = np.repeat([rate * factor for factor in RATES], SEARCH_SEEDS)
    searched = elbos_after(members, data, SEARCH_STEPS, rates, SEARCH_PARTICLES)
    for factor, values in zip(RATES, searched.reshape(len(RATES), -1), strict=True):
        values = values[np.isfinite(values)]
        reached[f"rate x {factor:.3g}"] = values.max(initial=-np.inf)

    mode = laplace_start(family, model, data)
    if mode is not None:
        members = jax.tree.map(lambda leaf: leaf[None], mode)
        polished = elbos_after(members, data, SEARCH_STEPS, [POLISHING_RATE], SEARCH_PARTICLES)
        reached["from the mode"] = polished[0] if np.isfinite(polished[0]) else -np.inf

    setting = max(reached, key=reached.get)
    gaps = {steps: reached[setting] - values for steps, values in own.items()}
    return {
        "posterior": name,
        "family": family,
        "best": float(reached[setting]),
        "best_setting": setting,
        "reached": {label: float(value) for label, value in reached.items()},
        "gaps": {str(steps): values.tolist() for steps, values in gaps.items()},
    }


def print_gaps_header():
    columns = "".join(f"{f'{steps:,} steps':>18}{'worst':>11}" for steps in DEFAULTS)
    print(f"{'posterior':27}{'guide':24}{columns}   {'best ELBO':>12}  reached by")


def print_gaps(row):
    columns = ""
    for gaps in row["gaps"].values():
        mean, error = np.mean(gaps), np.std(gaps, ddof=1) / np.sqrt(len(gaps))
        text = f"{mean:.2f} ±{error:.2f}" if mean < 1e4 else f"{mean:.2g} ±{error:.1g}"
        worst = f"{max(gaps):.2f}" if max(gaps) < 1e4 else f"{max(gaps):.2g}"
        columns += f"{text:>18}{worst:>11}"
    print(
        f"{row['posterior']:27}{row['family']:24}{columns}   {row['best']:12.2f}  "
        f"{row['best_setting']}",
        flush=True,
    )


def print_target(rows):
    for family in FAMILIES:
        for steps in DEFAULTS:
            gaps = [row["gaps"][str(steps)] for row in rows if row["family"] == family]
            means = sum(np.mean(each) < TARGET for each in gaps)
            all_seeds = sum(max(each) < TARGET for each in gaps)
            print(
                f"{family}, {steps:,} steps: under {TARGET:g} nats in the mean on {means} of "
                f"{len(gaps)}, with every seed on {all_seeds}."
            )


# Table 3


def measure_defaults(name, guide_name, data, reference, steps):
    """Return one row of table 3."""
    model = POSTERIORS[name].model
    starts = starts_of(guide_name, model, data)
    found = fit_guidax(guide_name, model, data, starts, optimizer=None, steps=steps)
    summary = summarise(found, reference)
    row = {"posterior": name, "guide": guide_name, "learning_rate": starts.learning_rate}
    return row | {"guidax": summary}


def print_defaults_header():
    print(f"{'posterior':27}{'guide':30}{'mean, in s.d.':>19}{'s.d., |log ratio|':>21}")


def print_defaults(row):
    cells = "  ".join(f"{shown(row['guidax'], field):>19}" for field in ("mean", "log_sd"))
    print(f"{row['posterior']:27}{row['guide']:30}{cells}", flush=True)


# All of them


def about(options):
    """Return what a reader needs to compare these figures with others."""
    return {
        "settings": {
            "steps": options.steps,
            "particles": PARTICLES,
            "seeds": SEEDS,
            "draws": DRAWS,
            "search_steps": SEARCH_STEPS,
            "search_particles": SEARCH_PARTICLES,
            "search_seeds": SEARCH_SEEDS,
            "elbo_draws": ELBO_DRAWS,
        },
    }


def write(options, comparisons, gaps, defaults):
    """Write all rows so far: a run that is cut off keeps what it has."""
    figures = {"errors": comparisons, "gaps": gaps, "defaults": defaults}
    figures = {label: rows for label, rows in figures.items() if rows}
    report.write(options.json, about(options) | figures)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a folder for each posterior: see the README")
    parser.add_argument("--steps", type=int, default=5_000, help="of each fit of tables 1 and 3")
    parser.add_argument("--only", nargs="+", choices=POSTERIORS, default=list(POSTERIORS))
    parser.add_argument("--tables", nargs="+", type=int, choices=TABLES, default=TABLES)
    report.add_json(parser)
    options = parser.parse_args()
    problems = {
        name: (read_data(options.folder, name), read_reference(options.folder, name))
        for name in options.only
    }

    start = time.perf_counter()
    comparisons, gaps, defaults = [], [], []
    if 1 in options.tables:
        print_comparison_header()
        for name, (data, reference) in problems.items():
            for guide_name in GUIDES:
                comparisons.append(compare(name, guide_name, data, reference, options.steps))
                print_comparison(comparisons[-1])
                write(options, comparisons, gaps, defaults)
        print_verdicts(comparisons)
        print()
    if 2 in options.tables:
        print_gaps_header()
        for family in FAMILIES:
            for name, (data, _) in problems.items():
                gaps.append(measure_gaps(name, family, data))
                print_gaps(gaps[-1])
                write(options, comparisons, gaps, defaults)
        print_target(gaps)
        print()
    if 3 in options.tables:
        print_defaults_header()
        for name, (data, reference) in problems.items():
            for guide_name in GUIDES:
                row = measure_defaults(name, guide_name, data, reference, options.steps)
                defaults.append(row)
                print_defaults(row)
                write(options, comparisons, gaps, defaults)
    print(f"{(time.perf_counter() - start) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
