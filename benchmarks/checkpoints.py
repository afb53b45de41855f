"""What checkpoints cost: a file of each size, and the fit of a small model with and without them.

Run: `python benchmarks/checkpoints.py`. Times depend on the disk: each file is forced onto it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import distrax
import jax
import jax.numpy as jnp

import guidax as gx


def model(x, y, size):
    z = gx.sample("z", distrax.Independent(distrax.Normal(jnp.zeros(size), 1.0), 1))
    gx.sample("y", distrax.Normal(z[0] * x, 1.0), obs=y)


def seconds(function, repeats: int = 5) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    key, x = jax.random.key(0), jnp.linspace(-1.0, 1.0, 100)
    print(f"{'latents':>10} {'steps':>8} {'MB':>8} {'write, ms':>10} {'return, ms':>10}")
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for size, steps in ((10, 1_000), (10, 1_000_000), (1_000_000, 100)):
            guide = gx.AutoNormal(model, x, x, size, key=key)
            start = Path(folder, f"{size}-{steps}")

            def fit(checkpoint=None, guide=guide, size=size, steps=steps):
                options = {"steps": steps, "progress": False, "checkpoint": checkpoint}
                return gx.fit(key, guide, x, x, size, **options)

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
        guide = gx.AutoNormal(model, x, x, 10, key=key)

        def timed(number, every):
            where = every and gx.Checkpoint(Path(folder, f"run-{number}"), every=every)
            options = {"steps": 200_000, "progress": False, "checkpoint": where}
            start = time.perf_counter()
            gx.fit(key, guide, x, x, 10, **options)
            return time.perf_counter() - start

        timed(0, 10_000)
        without = statistics.median(timed(i, None) for i in range(3))
        print(f"200,000 steps of 10 latents: {without:.2f} s without checkpoints")
        for every in (1_000, 10_000):
            spent = statistics.median(timed(f"{every}-{i}", every) for i in range(3))
            print(f"every {every:>6,} steps: {spent:.2f} s, {100 * (spent / without - 1):+.1f} %")


if __name__ == "__main__":
    main()
