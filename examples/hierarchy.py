"""
A hierarchy, with AutoSemiDAIS
==============================

Two hundred players each had a few attempts. Every player has an ability of their own, drawn from a
population whose mean and spread are unknown: two latents for all, and one for each player. Players
are many, so a step of training looks at a batch of them. ``gx.AutoNormal`` gives each player a
normal that is independent of everything; ``gx.AutoSemiDAIS`` moves each player's draw towards the
posterior of that player given the population, by a few steps of annealed importance sampling.
"""

import functools
import time

import distrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx

PLAYERS, BATCH = 200, 50

# %%
# Model and data
# --------------
# The plate says how many of its rows a step holds, and ``gx.subsample`` takes those rows of the
# data. Log densities inside are multiplied by 200/50.


def model(hits, attempts):
    mean = gx.sample("mean", distrax.Normal(0.0, 1.5))
    spread = gx.sample("spread", tfd.HalfNormal(1.0))
    with gx.plate("player", PLAYERS, subsample_size=BATCH):
        ability = gx.sample("ability", distrax.Normal(mean, spread))
        chances = tfd.Binomial(gx.subsample(attempts), logits=ability)
        gx.sample("hits", chances, obs=gx.subsample(hits))


random = np.random.default_rng(0)
ability = random.normal(-1.0, 0.5, PLAYERS)
attempts = random.integers(4, 40, PLAYERS).astype(float)
hits = jnp.asarray(random.binomial(attempts.astype(int), 1 / (1 + np.exp(-ability))), float)
attempts = jnp.asarray(attempts)

# %%
# The exact posterior of the population
# -------------------------------------
# Given mean and spread the players are independent, and each one's ability can be integrated out
# on a grid. That gives the exact evidence, and the exact posterior of mean and log spread.

nodes, weights = np.polynomial.hermite_e.hermegauss(40)
means, log_spreads = jnp.linspace(-1.5, -0.5, 151), jnp.linspace(-3.0, 0.5, 251)


@jax.jit
@jax.vmap
@jax.vmap
def log_joint(mean, log_spread):
    spread = jnp.exp(log_spread)
    chances = tfd.Binomial(attempts[:, None], logits=mean + spread * nodes)
    players = jax.nn.logsumexp(
        chances.log_prob(hits[:, None]) + jnp.log(weights / weights.sum()), axis=1
    )
    prior = distrax.Normal(0.0, 1.5).log_prob(mean) + tfd.HalfNormal(1.0).log_prob(spread)
    return prior + log_spread + players.sum()


grid = log_joint(*jnp.meshgrid(means, log_spreads))
cell = (means[1] - means[0]) * (log_spreads[1] - log_spreads[0])
log_evidence = jax.nn.logsumexp(grid) + jnp.log(cell)
density = np.exp(grid - log_evidence)
mean_density = density.sum(axis=0) * (log_spreads[1] - log_spreads[0])
spread_density = density.sum(axis=1) * (means[1] - means[0])


def moments(points, density):
    mean = np.average(points, weights=density)
    return mean, np.sqrt(np.average((points - mean) ** 2, weights=density))


# %%
# Three guides on minibatches
# ---------------------------
# The arguments are all the data; rows are drawn anew at each step. The moves of ``gx.AutoSemiDAIS``
# have step sizes and temperatures, for each player or shared by all. Shared ones learn from every
# batch, and here they come closest to the evidence.

key = jax.random.key(0)
annealed = functools.partial(gx.AutoSemiDAIS, model, hits, attempts, key=key, K=16, eta_max=1.0)
started = {
    "AutoNormal": gx.AutoNormal(model, hits, attempts, key=key),
    "SemiDAIS, own moves": annealed(),
    "SemiDAIS, shared moves": annealed(use_global_dais_params=True),
}
draws = {}
print(f"{'':24}{'ELBO':>10}{'mean':>16}{'log spread':>16}{'seconds':>9}")
exact = [moments(means, mean_density), moments(log_spreads, spread_density)]
columns = "".join(f"{f'{mean:.2f} ± {sd:.2f}':>16}" for mean, sd in exact)
print(f"{'exact':24}{log_evidence:10.2f}{columns}")
for name, guide in started.items():
    start = time.perf_counter()
    result = gx.fit(jax.random.key(1), guide, hits, attempts, steps=4_000, progress=False)
    seconds = time.perf_counter() - start
    diagnosis = gx.diagnose(jax.random.key(2), result.guide, hits, attempts, num_samples=4_000)
    draws[name] = diagnosis.draws
    mean, log_spread = diagnosis.draws["mean"], jnp.log(diagnosis.draws["spread"])
    print(
        f"{name:24}{diagnosis.elbo:10.2f}{f'{mean.mean():.2f} ± {mean.std():.2f}':>16}"
        f"{f'{log_spread.mean():.2f} ± {log_spread.std():.2f}':>16}{seconds:9.1f}"
    )

# %%
# The population's posterior
# --------------------------
# Draws over the exact density. Independent normals make the spread too certain.

ordered = np.sort(density, axis=None)[::-1]
held = np.cumsum(ordered) / ordered.sum()
levels = [ordered[np.searchsorted(held, mass)] for mass in (0.95, 0.8, 0.5)]
figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharex=True, sharey=True)
for axis, (name, found) in zip(axes, draws.items(), strict=True):
    axis.scatter(found["mean"], np.log(found["spread"]), s=4, alpha=0.3, linewidths=0)
    axis.contour(means, log_spreads, density, levels, colors="black", linewidths=1)
    axis.set(title=name, xlabel="mean", xlim=(-1.2, -0.75), ylim=(-1.2, -0.3))
axes[0].set_ylabel("log spread")
figure.suptitle("Ability in the population: draws over the exact posterior (50, 80, 95 %)")
figure.tight_layout()
figure.savefig("hierarchy.png", dpi=120)
