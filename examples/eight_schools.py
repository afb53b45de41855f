"""Eight schools: a first fit, beside reference figures, written in two ways.

Eight schools tried coaching for a test. Each reports an estimated effect and its standard error
(D. B. Rubin, "Estimation in parallel randomized experiments", Journal of Educational Statistics
6(4), 1981, table 1). The schools differ by an unknown amount tau, which eight numbers pin down
badly: the posterior is a funnel, wide where tau is large and narrow where it is small.

    python examples/eight_schools.py [PICTURE.png]
"""

import sys

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


# A model is a function that samples. Both of these have the same posterior for mu, tau and theta.


def centred(effect, standard_error):
    """Draw the schools' effects themselves."""
    mu = gx.sample("mu", distrax.Normal(0.0, 5.0))
    tau = gx.sample("tau", tfd.HalfCauchy(0.0, 5.0))
    with gx.plate("school", 8):
        theta = gx.sample("theta", distrax.Normal(mu, tau))
        gx.sample("effect", distrax.Normal(theta, standard_error), obs=effect)


def noncentred(effect, standard_error):
    """Draw their distances from mu in units of tau, which do not depend on tau beforehand."""
    mu = gx.sample("mu", distrax.Normal(0.0, 5.0))
    tau = gx.sample("tau", tfd.HalfCauchy(0.0, 5.0))
    with gx.plate("school", 8):
        distance = gx.sample("distance", distrax.Normal(0.0, 1.0))
        theta = gx.deterministic("theta", mu + tau * distance)
        gx.sample("effect", distrax.Normal(theta, standard_error), obs=effect)


def posterior_draws(model, key):
    """Fit independent normals in unconstrained space and draw from them."""
    key_start, key_fit, key_draws = jax.random.split(key, 3)
    guide = gx.AutoNormal(model, EFFECT, STANDARD_ERROR, key=key_start)
    result = gx.fit(
        key_fit,
        guide,
        EFFECT,
        STANDARD_ERROR,
        steps=5_000,
        objective=gx.ELBO(num_particles=16),
    )
    return result.guide.sample_posterior(key_draws, EFFECT, STANDARD_ERROR, sample_shape=(10_000,))


def by_row(draws):
    """Return one column of draws for each row of the table."""
    theta = np.asarray(draws["theta"])
    columns = {"mu": np.asarray(draws["mu"]), "tau": np.asarray(draws["tau"])}
    return columns | {f"theta[{i + 1}]": theta[:, i] for i in range(8)}


def print_table(fits):
    """Print mean and s.d. of each quantity, the reference first, and how far off the means are."""
    print(" " * 10 + "".join(f"{title:>18}" for title in ["reference", *fits]))
    print(" " * 10 + f"{'mean':>10}{'s.d.':>8}" * (1 + len(fits)))
    for name, reference in REFERENCE.items():
        figures = [reference] + [(x[name].mean(), x[name].std()) for x in fits.values()]
        print(f"{name:10}" + "".join(f"{mean:10.2f}{sd:8.2f}" for mean, sd in figures))
    print()
    for title, columns in fits.items():
        shift = max(abs(columns[n].mean() - m) / sd for n, (m, sd) in REFERENCE.items())
        ratio = [columns[n].std() / sd for n, (_, sd) in REFERENCE.items()]
        print(
            f"{title}: means within {shift:.2f} reference s.d., "
            f"s.d. {min(ratio):.2f} to {max(ratio):.2f} times the reference"
        )
    print(
        "A normal cannot follow a funnel: non-centred, where less depends on tau, it comes closer; "
        "centred, it keeps to the wide part and misses small tau."
    )


def exact_density(theta_1, log_tau):
    """Return the exact posterior density of (theta[1], log tau) on a grid, all else integrated out.

    Given tau everything is normal: effect_i ~ N(mu, standard_error_i^2 + tau^2), mu ~ N(0, 5^2).
    """
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


def draw_picture(fits, path):
    """Plot draws of theta[1] and log tau from each fit over the exact posterior."""
    theta_1, log_tau = np.linspace(-20, 35, 300), np.linspace(-5, 4, 300)
    density = exact_density(theta_1, log_tau)
    # Contours that hold half, four fifths and 95 % of the exact posterior.
    ordered = np.sort(density, axis=None)[::-1]
    held = np.cumsum(ordered) / ordered.sum()
    levels = [ordered[np.searchsorted(held, mass)] for mass in (0.95, 0.8, 0.5)]

    figure, axes = plt.subplots(1, len(fits), figsize=(10, 4.6), sharex=True, sharey=True)
    for axis, (title, columns) in zip(axes, fits.items(), strict=True):
        axis.scatter(
            columns["theta[1]"][:2_000],
            np.log(columns["tau"][:2_000]),
            s=7,
            color="tab:blue",
            alpha=0.4,
            linewidths=0,
            label="draws of the guide",
        )
        axis.contour(theta_1, log_tau, density, levels, colors="black", linewidths=1.2)
        axis.plot([], [], color="black", label="exact: 50, 80, 95 %")
        axis.set(title=title, xlabel=r"$\theta_1$, effect of coaching in school 1")
        axis.set(xlim=(-15, 30), ylim=(-4, 3.5))
    axes[0].set_ylabel(r"$\log\,\tau$")
    axes[0].legend(loc="lower right", frameon=False, markerscale=2.5)
    figure.suptitle("Eight schools: AutoNormal on one posterior, written in two ways")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main():
    keys = jax.random.split(jax.random.key(0))
    fits = {
        "non-centred": by_row(posterior_draws(noncentred, keys[0])),
        "centred": by_row(posterior_draws(centred, keys[1])),
    }
    print_table(fits)
    path = sys.argv[1] if len(sys.argv) > 1 else "eight_schools.png"
    draw_picture(fits, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
