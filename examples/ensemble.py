"""
Many fits in one call
=====================

A fit is a pure function, so ``jax.vmap`` runs many of them side by side, in one compiled program.
First, restarts: a posterior with several modes, where a single fit keeps to the one it started
near. Then the bootstrap: two hundred refits to resampled data, which ask what the posterior would
have been with other data of the same kind. Both are timed against a loop.
"""

import time

import distrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx

# %%
# Restarts
# --------
# The period of a noisy wave is hard to find: most periods lie near a mode that fits badly.


def wave(t, y):
    frequency = gx.sample("frequency", distrax.Uniform(0.2, 3.0))
    sine = gx.sample("sine", distrax.Normal(0.0, 1.0))
    cosine = gx.sample("cosine", distrax.Normal(0.0, 1.0))
    noise = gx.sample("noise", tfd.HalfNormal(1.0))
    phase = 2 * jnp.pi * frequency * t
    with gx.plate("time", t.shape[0]):
        mean = sine * jnp.sin(phase) + cosine * jnp.cos(phase)
        gx.sample("y", distrax.Normal(mean, noise), obs=y)


random = np.random.default_rng(0)
t = np.sort(random.uniform(0.0, 6.0, 60))
y = np.sin(2 * np.pi * 1.3 * t + 0.5) + 0.5 * random.normal(size=t.size)


def make_guide(key):
    return gx.AutoNormal(wave, t, y, key=key, init_loc_fn=gx.init_to_sample(), init_scale=0.02)


def timed(function, *args):
    start = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return result, time.perf_counter() - start


def one_by_one(key):
    return [
        gx.fit(k, make_guide(k), t, y, steps=2_000, learning_rate=0.02, progress=False)
        for k in jax.random.split(key, 32)
    ]


def together(key):
    return gx.fit_restarts(key, make_guide, t, y, num_restarts=32, steps=2_000, learning_rate=0.02)


key = jax.random.key(0)
restarts, seconds = timed(together, key)
print(f"32 restarts together: {seconds:.1f} s; again: {timed(together, key)[1]:.1f} s")
seconds = timed(one_by_one, key)[1]
print(f"in a loop:            {seconds:.1f} s; again: {timed(one_by_one, key)[1]:.1f} s")

frequencies = jax.vmap(lambda result: result.guide.median(t, y)["frequency"])(restarts.results)
best = restarts.guide.median(t, y)["frequency"]
found = jnp.abs(frequencies - 1.3) < 0.05
print(f"best of the ELBOs: {restarts.elbo.max():.1f}, at frequency {best:.3f}; the truth is 1.3")
print(f"{found.sum()} of 32 starts found it\n")

# %%
# The bootstrap
# -------------
# A weight for each observation, how often a resample holds it, is an argument of the model like any
# other. Fits with other weights are then other values of one program.


def line(x, y, weights):
    slope = gx.sample("slope", distrax.Normal(0.0, 10.0))
    intercept = gx.sample("intercept", distrax.Normal(0.0, 10.0))
    noise = gx.sample("noise", tfd.HalfNormal(5.0))
    with gx.plate("data", x.shape[0]), gx.handlers.scale(scale=weights):
        gx.sample("y", distrax.Normal(intercept + slope * x, noise), obs=y)


x = random.uniform(-1.0, 1.0, 80)
z = 1.0 + 2.0 * x + (0.2 + np.abs(x)) * random.normal(size=x.size)  # noisier far from 0
weights = random.multinomial(x.size, np.ones(x.size) / x.size, size=200).astype(float)


def slope_of(key, weights):
    guide = gx.AutoMultivariateNormal(line, x, z, weights, key=key)
    guide = gx.fit(key, guide, x, z, weights, steps=1_000, progress=False).guide
    return guide.median(x, z, weights)["slope"]


@jax.jit
def all_slopes(key, weights):
    return jax.vmap(slope_of)(jax.random.split(key, len(weights)), weights)


def slopes_one_by_one(key, weights):
    keys = jax.random.split(key, len(weights))
    return jnp.stack([slope_of(k, w) for k, w in zip(keys, weights, strict=True)])


slopes, seconds = timed(all_slopes, key, weights)
print(f"200 refits together: {seconds:.1f} s; again: {timed(all_slopes, key, weights)[1]:.1f} s")
looped, seconds = timed(slopes_one_by_one, key, weights)
print(f"in a loop:           {seconds:.1f} s; largest difference {abs(slopes - looped).max():.1g}")

guide = gx.AutoMultivariateNormal(line, x, z, np.ones_like(x), key=key)
guide = gx.fit(key, guide, x, z, np.ones_like(x), steps=1_000, progress=False).guide
posterior = guide.sample_posterior(key, sample_shape=(4_000,))["slope"]
print(f"slope, posterior: {posterior.mean():.2f} ± {posterior.std():.2f}")
print(f"slope, bootstrap: {slopes.mean():.2f} ± {slopes.std():.2f}, for noise that is not even")

# %%
# Pictures
# --------

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
left.scatter(frequencies, restarts.elbo, s=20)
left.axvline(1.3, color="black", linestyle=":", label="truth")
left.set(xlabel="frequency, posterior median", ylabel="ELBO, nats", title="32 restarts")
left.legend(frameon=False)
bins = np.linspace(slopes.min() - 0.1, slopes.max() + 0.1, 20)
right.hist(posterior, bins, density=True, alpha=0.5, label="posterior")
right.hist(slopes, bins, density=True, histtype="step", color="black", label="200 refits")
right.set(xlabel="slope", yticks=[], title="bootstrap of the posterior median")
right.legend(frameon=False)
figure.tight_layout()
figure.savefig("ensemble.png", dpi=120)
