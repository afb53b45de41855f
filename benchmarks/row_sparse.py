"""What a step costs when it holds 1,000 rows of a plate with latents, by the rows there are.

A normal for every row's latent, Adam. Dense steps update every parameter and moment; row-sparse
ones (`gx.fit(..., row_sparse=True)`) those of the rows that they hold. The time of a step is that
of a run less a shorter one, over the difference in steps, in the best of several.

    python benchmarks/row_sparse.py [--rows 10000 10000000] [--json RESULT.json]
"""

import argparse

import distrax
import jax
import jax.numpy as jnp
import optax
import report
from report import clock

import guidax as gx

HELD, REPEATS = 1_000, 5
STEPS = {"row-sparse": 500, "dense": 20}


def seconds(guide, key, y, steps, row_sparse):
    options = {"optimizer": optax.adam, "progress": False, "row_sparse": row_sparse}
    return clock(lambda: gx.fit(key, guide, y, steps=steps, **options).guide)[0]


def step_time(size, kind):
    def model(y):
        centre = gx.sample("centre", distrax.Normal(jnp.zeros(()), 1.0))
        with gx.plate("row", size, subsample_size=HELD) as rows:
            z = gx.sample("z", distrax.Normal(centre, 1.0))
            gx.sample("y", distrax.Normal(z, 1.0), obs=y[rows])

    key, y, steps = jax.random.key(0), jnp.zeros(size), STEPS[kind]
    guide = gx.AutoNormal(model, y, key=key)
    timed = [
        [seconds(guide, key, y, n, kind == "row-sparse") for n in (steps, 3 * steps)]
        for _ in range(REPEATS + 1)
    ]
    short, long = (min(times) for times in zip(*timed[1:], strict=True))
    return (long - short) / (2 * steps)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 10_000_000])
    report.add_json(parser)
    options = parser.parse_args()
    print(f"{'rows':>10} {'row-sparse, us':>15} {'dense, us':>12}")
    found = []
    for size in options.rows:
        times = {kind: 1e6 * step_time(size, kind) for kind in STEPS}
        found.append({"rows": size} | times)
        print(f"{size:10} {times['row-sparse']:15.0f} {times['dense']:12.0f}", flush=True)
    report.write(options.json, {"rows held": HELD, "microseconds a step": found})


if __name__ == "__main__":
    main()
