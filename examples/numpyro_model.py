"""
A NumPyro model, unchanged
==========================

A model written for NumPyro, with its distributions, plates and handlers, becomes a guidax model by
``gx.from_numpyro``. Here NumPyro's own SVI and guidax fit the same guide to it, and both are timed.
NumPyro is an extra: ``pip install '.[numpyro]'`` in a clone.
"""

import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import SVI, Trace_ELBO, init_to_median
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.reparam import LocScaleReparam
from numpyro.optim import optax_to_numpyro
from sklearn.datasets import load_diabetes

import guidax as gx

STEPS, RATE = 10_000, 0.01

# %%
# The model
# ---------
# A regression of the progression of diabetes on ten measurements, whose coefficients have a common
# unknown scale (B. Efron et al., "Least angle regression", Annals of Statistics 32(2), 2004). The
# handler that reparameterises them is NumPyro's.


@numpyro.handlers.reparam(config={"beta": LocScaleReparam(0.0)})
def model(x, y=None):
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 1.0))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.plate("measurement", x.shape[1]):
        beta = numpyro.sample("beta", dist.Normal(0.0, tau))
    with numpyro.plate("patient", x.shape[0]):
        numpyro.sample("y", dist.Normal(intercept + x @ beta, noise), obs=y)


data = load_diabetes()
x = jnp.asarray((data.data - data.data.mean(axis=0)) / data.data.std(axis=0))
y = jnp.asarray((data.target - data.target.mean()) / data.target.std())

# %%
# Fitted by both
# --------------
# The same guide, optimizer, rate, number of steps and rule for the start. Each is run twice: the
# first run compiles, the second tells what a fit with another key costs. guidax then reuses the
# compiled program; ``SVI.run`` compiles again, which a loop over a jitted ``svi.update`` need not.


def with_numpyro(key):
    guide = AutoNormal(model, init_loc_fn=init_to_median)
    svi = SVI(model, guide, optax_to_numpyro(optax.adam(RATE)), Trace_ELBO())
    result = svi.run(key, STEPS, x, y, progress_bar=False)
    draws = guide.sample_posterior(jax.random.key(2), result.params, x, y, sample_shape=(4_000,))
    return result.losses, draws


def with_guidax(key):
    guide = gx.AutoNormal(gx.from_numpyro(model), x, y, key=key, init_loc_fn=gx.init_to_median())
    result = gx.fit(
        key,
        guide,
        x,
        y,
        steps=STEPS,
        optimizer=optax.adam,
        learning_rate=RATE,
        progress=False,
    )
    draws = result.guide.sample_posterior(jax.random.key(2), x, y, sample_shape=(4_000,))
    return result.losses, draws


losses, draws = {}, {}
print(f"{'':12}{'first run':>12}{'second run':>12}{'last losses':>14}")
for name, run in {"NumPyro": with_numpyro, "guidax": with_guidax}.items():
    seconds = []
    for seed in (0, 1):
        start = time.perf_counter()
        losses[name], draws[name] = jax.block_until_ready(run(jax.random.key(seed)))
        seconds.append(time.perf_counter() - start)
    last = losses[name][-1_000:].mean()
    print(f"{name:12}{seconds[0]:10.1f} s{seconds[1]:10.1f} s{last:14.2f}")

# %%
# One posterior
# -------------

print(f"\n{'':16}{'NumPyro':>16}{'guidax':>16}")
for i, feature in enumerate(data.feature_names):
    columns = [found["beta"][:, i] for found in draws.values()]
    print(f"{feature:16}" + "".join(f"{f'{b.mean():.3f} ± {b.std():.3f}':>16}" for b in columns))

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
for name, found in draws.items():
    window = np.ones(100) / 100
    left.plot(np.convolve(losses[name], window, mode="valid"), label=name)
    low, middle, high = np.quantile(found["beta"], [0.05, 0.5, 0.95], axis=0)
    rows = np.arange(len(middle)) + (0.15 if name == "guidax" else -0.15)
    right.errorbar(middle, rows, xerr=[middle - low, high - middle], fmt="o", label=name)
left.set(xlabel="step", ylabel="loss, mean of 100 steps", ylim=(490, 700))
left.legend(frameon=False)
right.set_yticks(range(len(data.feature_names)), data.feature_names)
right.set(xlabel="coefficient, 90 % interval")
figure.suptitle("One model and guide, fitted by NumPyro's SVI and by guidax")
figure.tight_layout()
figure.savefig("numpyro_model.png", dpi=120)
