"""How a step's time and a fit's memory grow with the rows of the data.

Linear regression on 8 features, a normal for each of 10 latents, float32, one particle, Adam:

- guidax, all rows in every step;
- by hand: the same arithmetic in one jitted loop of plain JAX;
- guidax streaming: batches of 100,000 rows, cut from an array in host memory, all of which a pass
  goes through once.

Each figure is from a fresh process. Peak memory is that of the process, which imports what its way
needs, and what of it came after the imports; both hold the data. The time of a step is that of a
run less a shorter one, over the difference in steps, in the best of several; streaming gives it for
a batch.

    python benchmarks/rows.py [--rows 10000 100000 1000000 10000000] [--json RESULT.json]
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import report

FEATURES, REPEATS, RATE = 8, 3, 1e-2
BATCH = 100_000  # rows that the streaming fit holds
WORK = 30_000_000  # rows that a timed run goes through, about
MOST_STEPS = 1_024  # whose losses the loop by hand has room for

MIB_OF_MAXRSS = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere

WAYS = ["guidax", "by hand", "guidax streaming"]


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB_OF_MAXRSS


def make_data(rows):
    """Return features and outcomes in host memory, made in pieces so that nothing else adds up."""
    import numpy as np

    generator = np.random.default_rng(0)
    X = np.empty((rows, FEATURES), np.float32)
    y = np.empty(rows, np.float32)
    slopes = np.linspace(-1.0, 1.0, FEATURES, dtype=np.float32)
    for start in range(0, rows, BATCH):
        held = slice(start, min(start + BATCH, rows))
        X[held] = generator.standard_normal(X[held].shape, np.float32)
        y[held] = X[held] @ slopes + generator.standard_normal(y[held].shape, np.float32)
    return X, y


def guidax_runner(rows, streaming):
    """Return `run(steps)` and the number of rows that a step holds."""
    import distrax
    import jax
    import jax.numpy as jnp
    import optax
    from tensorflow_probability.substrates.jax import distributions as tfd

    import guidax as gx

    held = BATCH if streaming else rows

    def model(X, y):
        slopes = gx.sample(
            "slopes", distrax.Independent(distrax.Normal(jnp.zeros(FEATURES), 1.0), 1)
        )
        intercept = gx.sample("intercept", distrax.Normal(0.0, 1.0))
        sigma = gx.sample("sigma", tfd.HalfNormal(1.0))
        with gx.plate("row", rows, subsample_size=held if streaming else None):
            gx.sample("y", distrax.Normal(intercept + X @ slopes, sigma), obs=y)

    X, y = make_data(rows)
    if not streaming:
        X, y = jnp.asarray(X), jnp.asarray(y)

    def batch(step):
        start = step % (rows // held) * held
        return gx.Batch(X[start : start + held], y[start : start + held])

    first = (X[:held], y[:held]) if streaming else (X, y)
    guide = gx.AutoNormal(model, *first, key=jax.random.key(0))

    def run(steps):
        data = {"batches": batch} if streaming else {}
        fitted = gx.fit(
            jax.random.key(1),
            guide,
            *(() if streaming else (X, y)),
            steps=steps,
            optimizer=optax.adam,
            learning_rate=RATE,
            progress=False,
            **data,
        )
        jax.block_until_ready(fitted.guide)

    return run, held


def by_hand_runner(rows):
    """Return the same of plain JAX, with distrax's formula for the rows as in the model."""
    import distrax
    import jax
    import jax.numpy as jnp
    import optax

    size = FEATURES + 2

    def log_joint(z, X, y):
        slopes, intercept, log_sigma = z[:FEATURES], z[FEATURES], z[FEATURES + 1]
        sigma = jnp.exp(log_sigma)
        prior = jax.scipy.stats.norm.logpdf(z[: FEATURES + 1]).sum()
        prior += jnp.log(2.0) + jax.scipy.stats.norm.logpdf(sigma) + log_sigma
        return prior + distrax.Normal(intercept + X @ slopes, sigma).log_prob(y).sum()

    def loss(parameters, key, X, y):
        noise = jax.random.normal(key, (size,))
        scale = jax.nn.softplus(parameters["raw_scale"])
        z = parameters["loc"] + scale * noise
        log_q = jax.scipy.stats.norm.logpdf(noise).sum() - jnp.sum(jnp.log(scale))
        return log_q - log_joint(z, X, y)

    @jax.jit
    def fit(key, steps, X, y):
        optimizer = optax.adam(RATE)
        parameters = {"loc": jnp.zeros(size), "raw_scale": jnp.full(size, -2.25)}

        def step(i, carry):
            parameters, state, losses = carry
            key_step = jax.random.fold_in(key, i)
            value, gradient = jax.value_and_grad(loss)(parameters, key_step, X, y)
            updates, state = optimizer.update(gradient, state, parameters)
            return optax.apply_updates(parameters, updates), state, losses.at[i].set(value)

        carry = parameters, optimizer.init(parameters), jnp.zeros(MOST_STEPS)
        return jax.lax.fori_loop(0, steps, step, carry)[::2]

    X, y = make_data(rows)
    X, y = jnp.asarray(X), jnp.asarray(y)
    return lambda steps: jax.block_until_ready(fit(jax.random.key(1), steps, X, y)), rows


def measure(way, rows):
    """Return seconds a step, the rows it holds and peak memory of one way, in this process."""
    import distrax  # noqa: F401, imported before the first reading, as all imports
    import jax
    import optax  # noqa: F401

    if way != "by hand":
        import guidax  # noqa: F401

    jax.block_until_ready(jax.numpy.zeros(1))
    imported = peak_mib()
    if way == "by hand":
        run, held = by_hand_runner(rows)
    else:
        run, held = guidax_runner(rows, streaming=way == "guidax streaming")
    short = max(5, WORK // held // 10)
    run(short)
    times = []
    for _ in range(REPEATS):
        lap = [time.perf_counter()]
        for steps in (short, 3 * short):
            run(steps)
            lap.append(time.perf_counter())
        times.append((lap[1] - lap[0], lap[2] - lap[1]))
    fastest = [min(column) for column in zip(*times, strict=True)]
    return {
        "way": way,
        "rows": rows,
        "rows held": held,
        "microseconds a step": 1e6 * (fastest[1] - fastest[0]) / (2 * short),
        "peak MiB": peak_mib(),
        "peak MiB above imports": peak_mib() - imported,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = [10_000, 100_000, 1_000_000, 10_000_000]
    parser.add_argument("--rows", type=int, nargs="+", default=sizes)
    report.add_json(parser)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # in a child process
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.rows[0])))
        return
    found = []
    print(
        f"{'rows':>10}  {'way':18}{'step, us':>12}{'ns a row held':>15}"
        f"{'peak, MiB':>11}{'above imports':>15}"
    )
    for rows in options.rows:
        for way in WAYS if rows > BATCH else WAYS[:2]:
            command = [sys.executable, __file__, "--way", way, "--rows", str(rows)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            row = json.loads(output)
            found.append(row)
            step = row["microseconds a step"]
            print(
                f"{rows:10}  {way:18}{step:12.0f}{1e3 * step / row['rows held']:15.2f}"
                f"{row['peak MiB']:11.0f}{row['peak MiB above imports']:15.0f}",
                flush=True,
            )
    report.write(options.json, {"rows": found})


if __name__ == "__main__":
    main()
