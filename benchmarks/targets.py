"""How close guides come to the evidence of three posteriors, beside NumPyro's guides.

A figure is the gap to log Z of the ELBO, in nats, over 20,000 draws: a mean over seeds with its
standard error. Both sides get the same model, optimizer, steps and particles, and the same start
where their parameters are the same.

    python benchmarks/targets.py FOLDER [--seeds 5] [--only ionosphere] [--rows DAIS] [--json OUT]

FOLDER is described in benchmarks/README.md.
"""

import argparse
import functools
import json
import time
from pathlib import Path

import jax
import numpy as np
import numpyro
import optax
from first_fit import environment
from jax import lax, random
from numpyro.infer import SVI, Trace_ELBO, autoguide
from targets_models import TARGETS, read_data

import guidax as gx

RATE, CLIP_NORM, PARTICLES = 1e-2, 100.0, 8
ELBO_DRAWS, AT_ONCE = 20_000, 500

# Name of the class, options of both sides, options of guidax alone (NumPyro has no such guide).
ROWS = {
    "AutoNormal": ("AutoNormal", {}, {}),
    "AutoMultivariateNormal": ("AutoMultivariateNormal", {}, {}),
    "AutoLowRankMultivariateNormal": ("AutoLowRankMultivariateNormal", {}, {}),
    "AutoIAFNormal": ("AutoIAFNormal", {}, {}),
    "AutoBNAFNormal": ("AutoBNAFNormal", {}, {}),
    "AutoDAIS K=4": ("AutoDAIS", {}, {}),
    "AutoDAIS K=8": ("AutoDAIS", {"K": 8}, {}),
    "AutoDAIS K=32": ("AutoDAIS", {"K": 32}, {}),
    "AutoDAIS cholesky K=8": ("AutoDAIS", {"K": 8, "base_dist": "cholesky"}, {}),
    "AutoDAIS cholesky K=32": ("AutoDAIS", {"K": 32, "base_dist": "cholesky"}, {}),
    "AutoDAIS eta_max=1 K=8": ("AutoDAIS", {"K": 8, "eta_max": 1.0}, {}),
    "AutoDAIS max_kick=5 K=8": ("AutoDAIS", {"K": 8}, {"max_kick": 5.0}),
    "AutoDAIS whitened K=8": ("AutoDAIS", {"K": 8}, {"whiten": True, "eta_max": 1.0}),
}
for _k in (8, 32):
    _cholesky = {"K": _k, "base_dist": "cholesky"}
    for _label, _options in {
        "": {"eta_max": 1.0},
        " eta_max=0.1": {},
        " max_kick=5": {"eta_max": 1.0, "max_kick": 5.0},
    }.items():
        ROWS[f"AutoDAIS whitened cholesky{_label} K={_k}"] = (
            "AutoDAIS",
            _cholesky,
            {"whiten": True} | _options,
        )


def keys_of(label, count):
    """Return keys for one purpose: every purpose has its own."""
    return random.split(random.fold_in(random.key(0), label), count)


def optimizer_for(steps):
    return optax.chain(
        optax.clip_by_global_norm(CLIP_NORM),
        optax.adam(optax.cosine_decay_schedule(RATE, steps)),
    )


def mean_elbo(losses_of, key):
    """Return minus the mean loss over many draws, some at a time."""
    keys = random.split(key, (ELBO_DRAWS // AT_ONCE, AT_ONCE))
    return -np.mean(np.asarray(lax.map(jax.vmap(losses_of), keys), float))


def elbos_of_guidax(constructor, model, data, steps, seeds):
    """Return the ELBO after each seed's fit, and the guides that they started from."""
    numpyro_model, optimizer = gx.from_numpyro(model), optimizer_for(steps)
    objective, found, starts = gx.ELBO(num_particles=PARTICLES), [], []
    for key in keys_of(0, seeds):
        keys = random.split(key, 3)
        starts.append(constructor(numpyro_model, *data, key=keys[0]))
        guide = gx.fit(
            keys[1],
            starts[-1],
            *data,
            steps=steps,
            optimizer=optimizer,
            objective=objective,
            progress=False,
        ).guide
        found.append(mean_elbo(lambda k, g=guide: gx.ELBO()(g, k, *data), keys[2]))
    return found, starts


def elbos_of_numpyro(name, options, model, data, steps, starts):
    """Return the same from NumPyro's guide, which starts at guidax's parameters, if it has them."""
    guide = getattr(autoguide, name)(model, **options)
    optimizer = numpyro.optim.optax_to_numpyro(optimizer_for(steps))
    svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=PARTICLES))
    svi.init(random.key(0), *data)  # outside of jit: the guide keeps what it sees at set-up

    @jax.jit
    def run(key, start):
        return svi.run(key, steps, *data, init_params=start, progress_bar=False).params

    @jax.jit
    def loss(params, key):
        return Trace_ELBO().loss(key, params, model, guide, *data)

    found = []
    for key, start in zip(keys_of(1, len(starts)), starts, strict=True):
        keys = random.split(key)
        try:
            params = gx.to_numpyro_params(start, *data)
        except TypeError:  # NumPyro lays this guide's parameters out otherwise
            params = None
        params = run(keys[0], params)
        found.append(mean_elbo(functools.partial(loss, params), keys[1]))
    return found


def summary_of(elbos, log_z, seconds):
    """Return mean, standard error and worst of the gaps, in nats."""
    gaps = log_z - np.asarray(elbos)
    error = gaps.std(ddof=1) / np.sqrt(len(gaps)) if len(gaps) > 1 else 0.0
    return {
        "gap": float(gaps.mean()),
        "error": float(error),
        "gaps": gaps.tolist(),
        "seconds": seconds,
    }


def measure(target_name, label, data, options):
    """Return one row of the table."""
    name, both, ours = ROWS[label]
    target = TARGETS[target_name]
    constructor = functools.partial(getattr(gx, name), **both, **ours)
    row = {"target": target_name, "guide": label}
    begun = time.perf_counter()
    elbos, starts = elbos_of_guidax(constructor, target.model, data, options.steps, options.seeds)
    row["guidax"] = summary_of(elbos, target.log_z, time.perf_counter() - begun)
    if not ours and not options.alone:
        begun = time.perf_counter()
        elbos = elbos_of_numpyro(name, both, target.model, data, options.steps, starts)
        row["numpyro"] = summary_of(elbos, target.log_z, time.perf_counter() - begun)
    jax.clear_caches()  # hundreds of programs in one process run out of memory maps
    return row


def shown(summary):
    if summary is None:
        return f"{'':26}"
    text = f"{summary['gap']:.3f} ±{summary['error']:.3f}"
    return f"{text:>16} {max(summary['gaps']):9.3f}"


def verdict(row):
    """Say whose gap is the greater by more than the larger standard error, if anyone's."""
    if "numpyro" not in row:
        return ""
    ours, theirs = row["guidax"], row["numpyro"]
    margin = max(ours["error"], theirs["error"])
    difference = ours["gap"] - theirs["gap"]
    return "<" if difference < -margin else ">" if difference > margin else "="


def print_row(row):
    ours, theirs = shown(row["guidax"]), shown(row.get("numpyro"))
    print(f"{row['target']:14}{row['guide']:42}{ours} {verdict(row):1} {theirs}", flush=True)


def write(options, rows):
    """Write all rows so far: a run that is cut off keeps what it has."""
    if options.json:
        settings = {
            "steps": options.steps,
            "seeds": options.seeds,
            "learning_rate": RATE,
            "clip_norm": CLIP_NORM,
            "particles": PARTICLES,
            "elbo_draws": ELBO_DRAWS,
        }
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({**environment(), "settings": settings, "rows": rows}, file, indent=1)
            file.write("\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="the data: see the README")
    parser.add_argument("--steps", type=int, default=8_000, help="of each fit")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--rows", nargs="+", metavar="GUIDE", default=list(ROWS), choices=ROWS)
    parser.add_argument("--alone", action="store_true", help="leave NumPyro out")
    parser.add_argument("--json", help="write the figures, with date and versions, to this file")
    options = parser.parse_args()
    rows = []
    print(f"{'target':14}{'guide':42}{'guidax':>16} {'worst':>9}   {'NumPyro':>16} {'worst':>9}")
    for target_name in options.only:
        data = read_data(options.folder, target_name)
        for label in options.rows:
            rows.append(measure(target_name, label, data, options))
            print_row(rows[-1])
            write(options, rows)
    signs = [verdict(row) for row in rows]
    print(
        f"guidax's gap is the smaller by more than the larger standard error in {signs.count('<')} "
        f"rows, NumPyro's in {signs.count('>')}, neither in {signs.count('=')}."
    )


if __name__ == "__main__":
    main()
