"""What `AutoDAIS` costs, beside the same arithmetic by hand and beside NumPyro.

Logistic regression, 500 rows and 20 features, 4 steps, diagonal base, float32, in one process. A
training step: `jax.value_and_grad` of the loss, 200 times in one jitted loop, by `gx.ELBO` and by a
`lax.scan` written out. 10,000 posterior draws: `sample_posterior`, NumPyro's `sample_posterior`
jitted by hand, and as its users call it. Each time is the least over repeats that take turns, to
which other programs on the machine only add.

    python benchmarks/dais_speed.py [--repeats 20] [--json RESULT.json]
"""

import argparse
import dataclasses

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import report
from first_fit import DRAWS, FEATURES, ROWS, numpyro_model
from jax import lax, random
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDAIS
from report import clock
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx

LOOPS, K, ETA_MAX = 200, 4, 0.1


def guidax_model(X, y):
    tau = gx.sample("tau", tfd.HalfNormal(1.0))
    beta = gx.sample("beta", distrax.Independent(distrax.Normal(jnp.zeros(X.shape[1]), tau), 1))
    with gx.plate("data", X.shape[0]):
        gx.sample("y", distrax.Bernoulli(logits=X @ beta), obs=y)


def log_joint(z, X, y):
    """Return the log density by hand: of the same distributions, whose arithmetic is their own."""
    tau, beta = jnp.exp(z[0]), z[1:]
    prior = tfd.HalfNormal(1.0).log_prob(tau) + z[0]
    prior += distrax.Normal(0.0, tau).log_prob(beta).sum()
    return prior + distrax.Bernoulli(logits=X @ beta).log_prob(y).sum()


def loss_by_hand(p, key, X, y):
    """Return minus the bound: the arithmetic of the library, written out for this model."""
    keys = random.split(key)
    scale, softplus = jax.nn.softplus(p["raw_scale"]), jax.nn.softplus
    eps = random.normal(keys[0], p["loc"].shape)
    noise = random.normal(keys[1], (K, *eps.shape))
    log_q = jnp.sum(-0.5 * eps**2 - 0.5 * jnp.log(2 * jnp.pi) - jnp.log(scale))
    increments = jnp.cumsum(softplus(p["raw_increments"]))
    temperatures = jnp.exp(p["raw_last"]) * increments / increments[-1]
    raw = p["raw_step_size"]
    eta = ETA_MAX * (softplus(50 * raw) - softplus(50 * (raw - 1))) / 50
    keep = jnp.where(jnp.arange(K) > 0, jax.nn.sigmoid(p["raw_damping"]), 0.0)
    speed, gain = softplus(p["raw_speed"]), softplus(p["raw_gain"])
    gradient = jax.grad(log_joint)

    def step(carry, inputs):
        z, w, factor = carry
        xi, eta, beta, keep = inputs
        u = keep * w + jnp.sqrt(1 - keep**2) * xi
        half = z + 0.5 * eta * speed * u
        force = (1 - beta) * (p["loc"] - half) / scale**2 + beta * gradient(half, X, y)
        w = u + eta * gain * speed * force
        factor += 0.5 * jnp.sum(w**2 - u**2)
        return (half + 0.5 * eta * speed * w, w, factor), None

    first = (p["loc"] + scale * eps, jnp.zeros_like(eps), 0.0)
    inputs = (noise, eta, temperatures, keep)
    (z, _, factor), _ = lax.scan(step, first, inputs)
    return log_q + factor - log_joint(z, X, y)


def loop(loss):
    """Return a jitted run of many steps of descent, so that dispatch does not count."""

    @jax.jit
    def run(parameters, key, X, y):
        def step(i, parameters):
            grads = jax.value_and_grad(loss)(parameters, random.fold_in(key, i), X, y)[1]
            return jax.tree.map(lambda p, g: p - 1e-6 * g, parameters, grads)

        return lax.fori_loop(0, LOOPS, step, parameters)

    return run


def start_by_hand(guide):
    base, moves = guide.family.base, guide.family.dynamics
    names = [each.name for each in dataclasses.fields(moves) if each.name.startswith("raw_")]
    return {name: getattr(moves, name) for name in names} | {
        "loc": base.loc,
        "raw_scale": base.raw_scale,
    }


def contenders(X, y):
    """Return name to a function of a seed, in two groups."""
    guide = gx.AutoDAIS(guidax_model, X, y, key=random.key(0), K=K, eta_max=ETA_MAX)
    ours, by_hand, start = loop(gx.ELBO()), loop(loss_by_hand), start_by_hand(guide)
    theirs = AutoDAIS(numpyro_model, K=K, eta_max=ETA_MAX)
    svi = SVI(numpyro_model, theirs, numpyro.optim.Adam(1e-2), Trace_ELBO())
    params = svi.get_params(svi.init(random.key(0), X, y))

    @jax.jit
    def draw(key, params):
        return theirs.sample_posterior(key, params, sample_shape=(DRAWS,))

    steps = {
        "guidax": lambda seed: ours(guide, random.key(seed), X, y),
        "by hand": lambda seed: by_hand(start, random.key(seed), X, y),
    }
    draws = {
        "guidax": lambda seed: guide.sample_posterior(
            random.key(seed), X, y, sample_shape=(DRAWS,)
        ),
        "NumPyro, jitted": lambda seed: draw(random.key(seed), params),
        "NumPyro": lambda seed: theirs.sample_posterior(
            random.key(seed), params, sample_shape=(DRAWS,)
        ),
    }
    # Both losses are one function of the same noise, or the times mean nothing.
    key = random.key(7)
    gap = gx.ELBO()(guide, key, X, y) - loss_by_hand(start, random.split(key, 3)[2], X, y)
    assert abs(float(gap)) < 0.1, float(gap)
    return {"step": steps, "draws": draws}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=20)
    report.add_json(parser)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    X = jnp.asarray(rng.normal(size=(ROWS, FEATURES)), jnp.float32)
    y = jnp.asarray(rng.random(ROWS) < 0.5, jnp.float32)
    groups, seconds = contenders(X, y), {}
    for group, members in groups.items():
        runs = {name: [] for name in members}
        for seed in range(options.repeats + 1):
            for name, run in members.items():
                runs[name].append(clock(run, seed)[0])
        seconds[group] = {name: min(each[1:]) for name, each in runs.items()}
    step, draws = seconds["step"], seconds["draws"]
    for name, each in step.items():
        print(f"training step, {name:18}{1e6 * each / LOOPS:9.1f} us")
    for name, each in draws.items():
        print(f"10,000 draws, {name:18}{1e3 * each:9.1f} ms")
    ratios = {
        "step over by hand": step["guidax"] / step["by hand"],
        "draws over NumPyro, jitted": draws["guidax"] / draws["NumPyro, jitted"],
    }
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    report.write(options.json, {"seconds": seconds, "ratios": ratios})


if __name__ == "__main__":
    main()
