"""What a user waits for: the first fit of a fresh process, and every one after it.

Logistic regression, 500 rows and 20 features, 2,000 steps of Adam at rate 0.01, mean-field normal:
the same model and the same arithmetic four times.

- guidax, written as its documentation writes it;
- by hand: one jitted loop in plain JAX;
- NumPyro as its users write it: a fresh `SVI` and `SVI.run` for each fit;
- NumPyro with the run of one `SVI` jitted by hand, its data as arguments.

First figures are each from a fresh process, in the median over several; warm ones are from one
process that runs all four in turn, in the median over repeats.

    python benchmarks/first_fit.py [--processes 3] [--repeats 10] [--json RESULT.json]
"""

import argparse
import json
import statistics
import subprocess
import sys

import report
from report import clock

ROWS, FEATURES, STEPS, DRAWS, RATE = 500, 20, 2_000, 10_000, 1e-2

# Each function below takes the data and returns `fit(seed) -> fitted` and `draw(seed, fitted)`. It
# imports what it needs itself: an import is not part of a first fit, and is made before the clock.


def guidax_contender(X, y):
    import distrax
    import jax
    import jax.numpy as jnp
    import optax
    from tensorflow_probability.substrates.jax import distributions as tfd

    import guidax as gx

    def model(X, y=None):
        tau = gx.sample("tau", tfd.HalfNormal(1.0))
        beta = gx.sample("beta", distrax.Independent(distrax.Normal(jnp.zeros(X.shape[1]), tau), 1))
        with gx.plate("data", X.shape[0]):
            gx.sample("y", distrax.Bernoulli(logits=X @ beta), obs=y)

    def fit(seed):
        key = jax.random.key(seed)
        guide = gx.AutoNormal(model, X, y, key=key)
        return gx.fit(key, guide, X, y, steps=STEPS, optimizer=optax.adam, learning_rate=RATE).guide

    def draw(seed, guide):
        return guide.sample_posterior(jax.random.key(seed), X, y, sample_shape=(DRAWS,))

    return fit, draw


def by_hand_contender(X, y):
    import jax
    import jax.numpy as jnp
    import optax

    def log_joint(z, X, y):
        tau, beta = jnp.exp(z[0]), z[1:]
        prior = jnp.log(2.0) + jax.scipy.stats.norm.logpdf(tau) + z[0]
        prior += jax.scipy.stats.norm.logpdf(beta, 0.0, tau).sum()
        logits = X @ beta
        return prior + jnp.sum(y * logits - jax.nn.softplus(logits))

    def loss(parameters, key, X, y):
        noise = jax.random.normal(key, parameters["loc"].shape)
        scale = jax.nn.softplus(parameters["raw_scale"])
        z = parameters["loc"] + scale * noise
        log_q = jax.scipy.stats.norm.logpdf(noise).sum() - jnp.sum(jnp.log(scale))
        return log_q - log_joint(z, X, y)

    @jax.jit
    def run(key, X, y):
        optimizer = optax.adam(RATE)
        key_start, key_steps = jax.random.split(key)
        loc = jax.random.uniform(key_start, (1 + X.shape[1],), minval=-2.0, maxval=2.0)
        parameters = {"loc": loc, "raw_scale": jnp.full_like(loc, -2.25)}  # scale 0.1

        def step(i, carry):
            parameters, state, losses = carry
            key = jax.random.fold_in(key_steps, i)
            value, gradient = jax.value_and_grad(loss)(parameters, key, X, y)
            updates, state = optimizer.update(gradient, state, parameters)
            return optax.apply_updates(parameters, updates), state, losses.at[i].set(value)

        carry = parameters, optimizer.init(parameters), jnp.zeros(STEPS)
        return jax.lax.fori_loop(0, STEPS, step, carry)[0]

    @jax.jit
    def draw(key, parameters):
        noise = jax.random.normal(key, (DRAWS, *parameters["loc"].shape))
        z = parameters["loc"] + jax.nn.softplus(parameters["raw_scale"]) * noise
        return {"tau": jnp.exp(z[:, 0]), "beta": z[:, 1:]}

    return (
        lambda seed: run(jax.random.key(seed), X, y),
        lambda seed, parameters: draw(jax.random.key(seed), parameters),
    )


def numpyro_model(X, y=None):
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    zeros = jnp.zeros(X.shape[1])
    beta = numpyro.sample("beta", dist.Normal(zeros, tau).to_event(1))
    with numpyro.plate("data", X.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=X @ beta), obs=y)


def numpyro_contender(X, y):
    import jax
    import numpyro
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal

    def fit(seed):
        guide = AutoNormal(numpyro_model)
        svi = SVI(numpyro_model, guide, numpyro.optim.Adam(RATE), Trace_ELBO())
        return guide, svi.run(jax.random.key(seed), STEPS, X, y, progress_bar=False).params

    def draw(seed, fitted):
        guide, parameters = fitted
        return guide.sample_posterior(jax.random.key(seed), parameters, X, y, sample_shape=(DRAWS,))

    return fit, draw


def numpyro_jitted_contender(X, y):
    import jax
    import numpyro
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal

    guide = AutoNormal(numpyro_model)
    svi = SVI(numpyro_model, guide, numpyro.optim.Adam(RATE), Trace_ELBO())

    @jax.jit
    def run(key, X, y):
        return svi.run(key, STEPS, X, y, progress_bar=False).params

    @jax.jit
    def draw(key, parameters):
        return guide.sample_posterior(key, parameters, X, y, sample_shape=(DRAWS,))

    return (
        lambda seed: run(jax.random.key(seed), X, y),
        lambda seed, parameters: draw(jax.random.key(seed), parameters),
    )


CONTENDERS = {
    "guidax": guidax_contender,
    "by hand": by_hand_contender,
    "NumPyro": numpyro_contender,
    "NumPyro, jitted": numpyro_jitted_contender,
}


def make_data():
    """Return features, outcomes and the coefficients that they were drawn with."""
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)
    X = rng.normal(size=(ROWS, FEATURES))
    truth = rng.normal(size=FEATURES)
    y = rng.random(ROWS) < 1 / (1 + np.exp(-X @ truth))
    return jnp.asarray(X, jnp.float32), jnp.asarray(y, jnp.float32), truth


def prepare(name):
    """Return a contender's functions and the true coefficients, with JAX's backend started."""
    import jax

    X, y, truth = make_data()
    jax.block_until_ready(jax.random.key(0))
    return *CONTENDERS[name](X, y), truth


def measure_first(name):
    """Time the first fit and the first draws of this process."""
    fit, draw, truth = prepare(name)
    fit_seconds, fitted = clock(fit, 0)
    draw_seconds, draws = clock(draw, 0, fitted)
    return {
        "first_fit": fit_seconds,
        "first_draws": draw_seconds,
        # All contenders must have found the same posterior, or the times mean nothing.
        "mean_of_tau": float(draws["tau"].mean()),
        "largest_error_of_beta": float(abs(draws["beta"].mean(axis=0) - truth).max()),
    }


def measure_first_in_fresh_process(name):
    command = [sys.executable, __file__, "--first", name]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure_warm(repeats):
    """Time every contender once it has compiled, in turn, so that all share a slow minute."""
    contenders = {name: prepare(name)[:2] for name in CONTENDERS}
    for fit, draw in contenders.values():
        clock(draw, 0, clock(fit, 0)[1])
    runs = {name: [] for name in CONTENDERS}
    for seed in range(1, repeats + 1):
        for name, (fit, draw) in contenders.items():
            fit_seconds, fitted = clock(fit, seed)
            runs[name].append({"warm_fit": fit_seconds, "warm_draws": clock(draw, seed, fitted)[0]})
    return runs


def medians(runs):
    """Return the median of each figure over runs."""
    return {field: statistics.median(run[field] for run in runs) for field in runs[0]}


def print_table(summaries):
    print(f"{'':24}" + "".join(f"{name:>17}" for name in summaries))
    for field, label in [
        ("first_fit", "first fit, s"),
        ("warm_fit", "later fit, s"),
        ("first_draws", "first 10,000 draws, s"),
        ("warm_draws", "later 10,000 draws, s"),
        ("mean_of_tau", "mean of tau"),
        ("largest_error_of_beta", "largest error of beta"),
    ]:
        row = "".join(f"{summary[field]:17.4f}" for summary in summaries.values())
        print(f"{label:24}{row}")


def about():
    """Return what a reader needs to compare these figures with others."""
    sizes = {"rows": ROWS, "features": FEATURES, "steps": STEPS}
    return {"problem": {**sizes, "learning_rate": RATE, "draws": DRAWS}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=3, help="fresh ones for each first figure")
    parser.add_argument("--repeats", type=int, default=10, help="repeats for each warm figure")
    report.add_json(parser)
    parser.add_argument("--first", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.first:
        print(json.dumps(measure_first(options.first)))
        return

    first = {name: [] for name in CONTENDERS}
    for _ in range(options.processes):
        for name in CONTENDERS:
            first[name].append(measure_first_in_fresh_process(name))
    warm = measure_warm(options.repeats)
    summaries = {name: medians(first[name]) | medians(warm[name]) for name in CONTENDERS}
    print_table(summaries)
    report.write(options.json, about() | {"medians": summaries, "first": first, "warm": warm})


if __name__ == "__main__":
    main()
