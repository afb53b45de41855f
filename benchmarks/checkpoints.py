"""What checkpoints cost: a file of each size, and the fit of a small model with and without them.

Times depend on the disk: each file is forced onto it.

    python benchmarks/checkpoints.py [--json RESULT.json]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import distrax
import jax
import jax.numpy as jnp
import report
from report import clock

import guidax as gx


def model(x, y, size):
    z = gx.sample("z", distrax.Independent(distrax.Normal(jnp.zeros(size), 1.0), 1))
    gx.sample("y", distrax.Normal(z[0] * x, 1.0), obs=y)


def seconds(function, repeats: int = 5) -> float:
    """Return the median time of a call."""
    return statistics.median(clock(function)[0] for _ in range(repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    report.add_json(parser)
    options = parser.parse_args()
    files, fits = [], []
    key, x = jax.random.key(0), jnp.linspace(-1.0, 1.0, 100)
    print(f"{'latents':>10} {'steps':>8} {'MB':>8} {'write, ms':>10} {'return, ms':>10}")
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for size, steps in ((10, 1_000), (10, 1_000_000), (1_000_000, 100)):
            guide = gx.AutoNormal(model, x, x, size, key=key)
            start = Path(folder, f"{size}-{steps}")

            def fit(checkpoint=None, guide=guide, size=size, steps=steps):
                how = {"steps": steps, "progress": False, "checkpoint": checkpoint}
                return gx.fit(key, guide, x, x, size, **how)

            once = gx.Checkpoint(start, every=steps)
            result = fit(once)
            (path,) = start.iterdir()
            megabytes = path.stat().st_size / 1e6
            # The same leaves as in the checkpoint.
            state = (result.state.moving, result.losses)
            write = 1e3 * seconds(lambda state=state: gx.save(Path(folder, "state"), state))
            back = 1e3 * seconds(lambda once=once: fit(once))
            row = f"{size:>10,} {steps:>8,} {megabytes:>8.2f} {write:>10.1f} {back:>10.1f}"
            print(row, flush=True)
            figures = {"MB": megabytes, "write, ms": write, "return, ms": back}
            files.append({"latents": size, "steps": steps} | figures)
        guide = gx.AutoNormal(model, x, x, 10, key=key)

        def timed(number, every):
            where = every and gx.Checkpoint(Path(folder, f"run-{number}"), every=every)
            how = {"steps": 200_000, "progress": False, "checkpoint": where}
            return clock(lambda: gx.fit(key, guide, x, x, 10, **how).guide)[0]

        timed(0, 10_000)
        without = statistics.median(timed(i, None) for i in range(3))
        print(f"200,000 steps of 10 latents: {without:.2f} s without checkpoints")
        fits.append({"every": None, "seconds": without})
        for every in (1_000, 10_000):
            spent = statistics.median(timed(f"{every}-{i}", every) for i in range(3))
            print(f"every {every:>6,} steps: {spent:.2f} s, {100 * (spent / without - 1):+.1f} %")
            fits.append({"every": every, "seconds": spent})
    report.write(options.json, {"files": files, "fits of 200,000 steps": fits})


if __name__ == "__main__":
    main()
