"""
Eight schools, with five guides
===============================

Eight schools tried coaching for a test. Each reports an estimated effect and its standard error
(D. B. Rubin, "Estimation in parallel randomized experiments", Journal of Educational Statistics
6(4), 1981, table 1). The schools differ by an unknown amount tau, which eight numbers pin down
badly: the posterior is a funnel, wide where tau is large and narrow where it is small. Five guides
are fitted to it, with the model written in two ways, and compared with reference figures.

Run as a script it writes a picture: ``python examples/eight_schools.py [PICTURE.png]``.
"""

import functools
import sys
import time

import distrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx

EFFECT = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
STANDARD_ERROR = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

# Posterior mean and s.d. from 10,000 MCMC draws (Monte Carlo error of the means: up to 0.06) of
# posteriordb (stan-dev/posteriordb, commit 28f8d3d), eight_schools-eight_schools_noncentered.
REFERENCE = {
    "mu": (4.411, 3.309),
    "tau": (3.602, 3.198),
    "theta[1]": (6.151, 5.616),
    "theta[2]": (4.940, 4.646),
    "theta[3]": (3.906, 5.281),
    "theta[4]": (4.796, 4.771),
    "theta[5]": (3.614, 4.615),
    "theta[6]": (4.051, 4.796),
    "theta[7]": (6.317, 5.003),
    "theta[8]": (4.884, 5.318),
}

# %%
# One posterior, two models
# -------------------------
# A model is a function that samples. Both of these have the same posterior for mu, tau and theta.
# Centred, the effects themselves are latent. Non-centred, their distances from mu in units of tau
# are, which do not depend on tau beforehand.


def centred(effect, standard_error):
    mu = gx.sample("mu", distrax.Normal(0.0, 5.0))
    tau = gx.sample("tau", tfd.HalfCauchy(0.0, 5.0))
    with gx.plate("school", 8):
        theta = gx.sample("theta", distrax.Normal(mu, tau))
        gx.sample("effect", distrax.Normal(theta, standard_error), obs=effect)


def noncentred(effect, standard_error):
    mu = gx.sample("mu", distrax.Normal(0.0, 5.0))
    tau = gx.sample("tau", tfd.HalfCauchy(0.0, 5.0))
    with gx.plate("school", 8):
        distance = gx.sample("distance", distrax.Normal(0.0, 1.0))
        theta = gx.deterministic("theta", mu + tau * distance)
        gx.sample("effect", distrax.Normal(theta, standard_error), obs=effect)


# %%
# Five guides
# -----------
# Each is a constructor, and ``gx.fit`` trains what it makes. DAIS, annealed importance sampling,
# begins at a fitted guide and moves its draws on towards the posterior. IAF and RealNVP are flows,
# which bend a normal. ``gx.diagnose`` draws from a guide and weighs the draws.

GUIDES = {
    "mean-field": gx.AutoNormal,
    "full rank": gx.AutoMultivariateNormal,
    "IAF": gx.AutoIAFNormal,
    "RealNVP": gx.AutoRealNVPNormal,
    "DAIS": functools.partial(gx.AutoDAIS, K=4, whiten=True, eta_max=1.0),
}
MODELS = {"centred": centred, "non-centred": noncentred}


def fit(constructor, model):
    guide = constructor(model, EFFECT, STANDARD_ERROR, key=jax.random.key(0))
    return gx.fit(
        jax.random.key(1),
        guide,
        EFFECT,
        STANDARD_ERROR,
        steps=2_000,
        objective=gx.ELBO(num_particles=8),
        progress=False,
    ).guide


guides, diagnoses, seconds = {}, {}, {}
for written, model in MODELS.items():
    for name, constructor in GUIDES.items():
        start = time.perf_counter()
        if name == "DAIS":
            constructor = functools.partial(constructor, base_dist=guides[written, "full rank"])
        guide = fit(constructor, model)
        diagnosis = gx.diagnose(
            jax.random.key(2), guide, EFFECT, STANDARD_ERROR, num_samples=10_000
        )
        guides[written, name] = guide
        diagnoses[written, name] = jax.block_until_ready(diagnosis)
        seconds[written, name] = time.perf_counter() - start

# %%
# Beside the reference
# --------------------
# Means and standard deviations of the draws as they are, not corrected by their weights.


def by_row(diagnosis):
    """Return one column of draws for each row of the table."""
    theta = np.asarray(diagnosis.draws["theta"])
    columns = {name: np.asarray(diagnosis.draws[name]) for name in ("mu", "tau")}
    return columns | {f"theta[{i + 1}]": theta[:, i] for i in range(8)}


for written in MODELS:
    print(f"{written:12}" + "".join(f"{title:>14}" for title in ["reference", *GUIDES]))
    columns = [by_row(diagnoses[written, name]) for name in GUIDES]
    for row, (mean, sd) in REFERENCE.items():
        figures = [(mean, sd)] + [(x[row].mean(), x[row].std()) for x in columns]
        print(f"{row:12}" + "".join(f"{mean:8.2f} ±{sd:4.1f}" for mean, sd in figures))
    print()

# %%
# How far they are off, in one line each: the largest shift of a mean, in reference s.d.; the range
# of the s.d. over the reference's; the evidence lower bound in nats; and k-hat, the shape of the
# weights' tail, which above 0.7 says that a part of the posterior is missed. Seconds are for
# construction, compilation, fit and draws. Centred, the normals keep to the wide part and miss
# small tau, and k-hat says so; non-centred, where less depends on tau, every guide comes close.

print(f"{'':26}{'shift':>8}{'s.d. ratio':>16}{'ELBO':>10}{'k-hat':>8}{'seconds':>9}")
for (written, name), diagnosis in diagnoses.items():
    columns = by_row(diagnosis)
    shift = max(abs(columns[row].mean() - mean) / sd for row, (mean, sd) in REFERENCE.items())
    ratio = [columns[row].std() / sd for row, (_, sd) in REFERENCE.items()]
    print(
        f"{written + ', ' + name:26}{shift:8.2f}{f'{min(ratio):.2f} to {max(ratio):.2f}':>16}"
        f"{diagnosis.elbo:10.2f}{diagnosis.khat:8.2f}{seconds[written, name]:9.1f}"
    )

# %%
# A picture of the funnel
# -----------------------
# Given tau everything is normal, so the exact density of school 1's effect and log tau is a
# formula: ``effect_i ~ N(mu, standard_error_i^2 + tau^2)``, and ``mu ~ N(0, 5^2)``.


def exact_density(theta_1, log_tau):
    """Return the posterior density of (theta[1], log tau) on a grid, all else integrated out."""
    y, error = np.asarray(EFFECT), np.asarray(STANDARD_ERROR)
    tau = np.exp(log_tau)[:, None]
    variance = error**2 + tau**2
    mu_variance = 1 / (1 / 25 + np.sum(1 / variance, axis=1, keepdims=True))
    mu_mean = mu_variance * np.sum(y / variance, axis=1, keepdims=True)
    log_evidence = 0.5 * (
        np.log(mu_variance)
        + mu_mean**2 / mu_variance
        - np.sum(np.log(variance) + y**2 / variance, axis=1, keepdims=True)
    )
    log_prior = -np.log1p((tau / 5) ** 2) + np.log(tau)  # half-Cauchy, and d tau / d log tau
    weight = error[0] ** 2 / variance[:, :1]  # of mu in the mean of theta[1]
    mean = weight * mu_mean + (1 - weight) * y[0]
    sd = np.sqrt(weight**2 * mu_variance + weight * tau**2)
    log_theta = -0.5 * ((theta_1 - mean) / sd) ** 2 - np.log(sd)
    return np.exp(log_evidence + log_prior + log_theta)


theta_1, log_tau = np.linspace(-20, 35, 300), np.linspace(-5, 4, 300)
density = exact_density(theta_1, log_tau)
ordered = np.sort(density, axis=None)[::-1]
held = np.cumsum(ordered) / ordered.sum()
levels = [ordered[np.searchsorted(held, mass)] for mass in (0.95, 0.8, 0.5)]

figure, axes = plt.subplots(2, len(GUIDES), figsize=(14, 6.4), sharex=True, sharey=True)
for axis, ((written, name), diagnosis) in zip(axes.flat, diagnoses.items(), strict=True):
    columns = by_row(diagnosis)
    axis.scatter(
        columns["theta[1]"][:2_000],
        np.log(columns["tau"][:2_000]),
        s=5,
        color="tab:blue",
        alpha=0.4,
        linewidths=0,
        label="draws of the guide",
    )
    axis.contour(theta_1, log_tau, density, levels, colors="black", linewidths=1.0)
    axis.plot([], [], color="black", label="exact: 50, 80, 95 %")
    axis.set(title=f"{written}, {name}", xlim=(-15, 30), ylim=(-4, 3.5))
for axis in axes[-1]:
    axis.set_xlabel(r"$\theta_1$")
for axis in axes[:, 0]:
    axis.set_ylabel(r"$\log\,\tau$")
axes[0, 0].legend(loc="lower right", frameon=False, fontsize="small", markerscale=2.5)
figure.suptitle("Eight schools: five guides on one posterior, written in two ways")
figure.tight_layout()

path = sys.argv[1] if len(sys.argv) > 1 else "eight_schools.png"
figure.savefig(path, dpi=120)
print(f"wrote {path}")
