"""What a fit costs as one of an ensemble, beside NumPyro's.

The regression of `first_fit.py`: 500 rows, 20 features, 2,000 steps of Adam, a mean-field normal,
100 starts.

- guidax: `jax.jit(jax.vmap(...))` over construction and `gx.fit`;
- NumPyro, one program: `jax.jit(jax.vmap(svi.run))`;
- NumPyro as its users write it: one `SVI.run` after another.

The first call of the first two compiles; later ones do not, and are medians. NumPyro's loop traces
anew in each fit.

    python benchmarks/ensembles.py [--members 100] [--repeats 5] [--json RESULT.json]
"""

import argparse
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import report
from first_fit import FEATURES, RATE, STEPS, make_data, numpyro_model
from jax import random
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from report import clock

import guidax as gx


def guidax_ensemble():
    model = gx.from_numpyro(numpyro_model)

    def member(key, X, y):
        start, run = random.split(key)
        guide = gx.AutoNormal(model, X, y, key=start)
        options = {"optimizer": optax.adam, "learning_rate": RATE}
        return gx.fit(run, guide, X, y, steps=STEPS, **options).losses[-100:].mean()

    return jax.jit(jax.vmap(member, in_axes=(0, None, None)))


def numpyro_ensemble(X, y):
    guide = AutoNormal(numpyro_model)
    svi = SVI(numpyro_model, guide, numpyro.optim.Adam(RATE), Trace_ELBO())
    svi.init(random.key(0), X, y)  # outside of jit: the guide keeps what it sees at set-up

    def member(key, X, y):
        return svi.run(key, STEPS, X, y, progress_bar=False).losses[-100:].mean()

    return jax.jit(jax.vmap(member, in_axes=(0, None, None)))


def numpyro_loop(key, X, y):
    guide = AutoNormal(numpyro_model)
    svi = SVI(numpyro_model, guide, numpyro.optim.Adam(RATE), Trace_ELBO())
    return svi.run(key, STEPS, X, y, progress_bar=False).losses[-100:].mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    report.add_json(parser)
    options = parser.parse_args()
    X, y, _ = make_data()
    keys = random.split(random.key(0), options.members)
    compiled = {"guidax": guidax_ensemble(), "NumPyro, one program": numpyro_ensemble(X, y)}
    found = {}
    for name, function in compiled.items():
        first, losses = clock(function, keys, X, y)
        found[name] = {"first call": first, "later calls": [], "loss": float(jnp.mean(losses))}
    for _ in range(options.repeats):  # in turn: both see the same machine
        for name, function in compiled.items():
            found[name]["later calls"].append(clock(function, keys, X, y)[0])
    each = [clock(numpyro_loop, key, X, y) for key in keys]
    found["NumPyro, a loop"] = {
        "first call": sum(seconds for seconds, _ in each),
        "later calls": [],
        "loss": float(np.mean([loss for _, loss in each])),
    }
    print(f"{STEPS} steps, {FEATURES} features, {options.members} fits")
    print(f"{'':22}{'first, s':>10}{'later, s':>10}{'a fit, ms':>11}{'last losses':>13}")
    for name, row in found.items():
        first, later = row["first call"], row["later calls"]
        middle = statistics.median(later) if later else first
        print(
            f"{name:22}{first:10.2f}{middle:10.2f}{1e3 * middle / options.members:11.2f}"
            f"{row['loss']:13.2f}"
        )
    report.write(options.json, {"seconds": found})


if __name__ == "__main__":
    main()
