"""Nine posteriors of posteriordb as NumPyro models, which NumPyro and guidax both take as they are.

Each has the log density of the Stan program of that name up to a constant, and sites named as its
parameters. A posterior is a model and a function from posteriordb's data to the model's arguments.

Models after posteriordb, https://github.com/stan-dev/posteriordb, BSD 3-Clause.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from numpyro.distributions import constraints


class Posterior(NamedTuple):
    """A model, and what turns posteriordb's data into its arguments."""

    model: Callable[..., None]
    prepare: Callable[[Mapping[str, Any]], tuple[jax.Array, ...]]


class Reference(NamedTuple):
    """What posteriordb's reference draws say of one parameter."""

    mean: float
    sd: float


def read_data(folder: Path, name: str) -> tuple[jax.Array, ...]:
    """Return the arguments of a posterior's model."""
    return POSTERIORS[name].prepare(json.loads((folder / name / "data.json").read_text()))


def read_reference(folder: Path, name: str) -> dict[str, Reference]:
    """Return the reference by flattened name, such as `theta[1]`, counted from 1 as in Stan."""
    parameters = json.loads((folder / name / "reference.json").read_text())["parameters"]
    return {n: Reference(p["mean"], p["sd"]) for n, p in parameters.items()}


def flatten(draws: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """Return draws, whose first axis counts them, by flattened name."""
    found = {}
    for name, values in draws.items():
        values = np.asarray(values)
        for index in np.ndindex(values.shape[1:]):
            counted = ",".join(str(i + 1) for i in index)
            found[f"{name}[{counted}]" if index else name] = values[:, *index]
    return found


def fields(*names: str) -> Callable[[Mapping[str, Any]], tuple[jax.Array, ...]]:
    """Return a function that reads these fields as floating arrays."""
    return lambda raw: tuple(jnp.asarray(raw[name], float) for name in names)


def flat(name: str, support: Any, *shape: int) -> jax.Array:
    """Draw a site with Stan's prior where a program states none: one, on the support."""
    return numpyro.sample(name, dist.ImproperUniform(support, (), shape))


def normals(name: str, size: int, scale: float) -> jax.Array:
    """Draw a vector of independent normals around zero."""
    return numpyro.sample(name, dist.Normal(jnp.zeros(size), scale).to_event(1))


# Regressions


def kidscore_interaction(kid_score, mom_hs, mom_iq):
    beta = flat("beta", constraints.real, 4)
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    design = jnp.stack([jnp.ones_like(mom_hs), mom_hs, mom_iq, mom_hs * mom_iq], axis=1)
    with numpyro.plate("children", kid_score.size):
        numpyro.sample("kid_score", dist.Normal(design @ beta, sigma), obs=kid_score)


def earn_height(earn, height):
    beta = flat("beta", constraints.real, 2)
    sigma = flat("sigma", constraints.positive)
    with numpyro.plate("people", earn.size):
        numpyro.sample("earn", dist.Normal(beta[0] + beta[1] * height, sigma), obs=earn)


def diamonds(X, y):
    b = normals("b", X.shape[1], 1.0)
    intercept = numpyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    sigma = numpyro.sample("sigma", dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 10.0)))
    with numpyro.plate("stones", y.size):
        numpyro.sample("y", dist.Normal(intercept + X @ b, sigma), obs=y)


def prepare_diamonds(raw):
    X = np.asarray(raw["X"], float)[:, 1:]  # the first column is the intercept's
    return jnp.asarray(X - X.mean(axis=0)), jnp.asarray(raw["Y"], float)


def arK(past, y):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = normals("beta", past.shape[1], 10.0)
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    with numpyro.plate("times", y.size):
        numpyro.sample("y", dist.Normal(alpha + past @ beta, sigma), obs=y)


def prepare_arK(raw):
    y, order = np.asarray(raw["y"], float), raw["K"]
    windows = np.lib.stride_tricks.sliding_window_view(y[:-1], order)
    return jnp.asarray(windows[:, ::-1].copy()), jnp.asarray(y[order:])  # the latest comes first


# Hierarchies


def eight_schools_centered(y, sigma):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", y.size):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_noncentered(y, sigma):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", y.size):
        theta_trans = numpyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * theta_trans)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


# A Gaussian process, whose function is integrated out


def gp_regr(x, y):
    rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    squares = (x[:, None] - x) ** 2
    # Stan's program puts sigma, not its square, on the diagonal.
    covariance = alpha**2 * jnp.exp(-squares / (2 * rho**2)) + sigma * jnp.eye(x.size)
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(x.size), covariance), obs=y)


# Discrete variables, summed out


def hmm_example(y):
    theta1 = numpyro.sample("theta1", dist.Dirichlet(jnp.ones(2)))
    theta2 = numpyro.sample("theta2", dist.Dirichlet(jnp.ones(2)))
    mu = flat("mu", constraints.positive_ordered_vector, 2)
    numpyro.factor("prior", dist.Normal(jnp.array([3.0, 10.0]), 1.0).log_prob(mu).sum())
    log_moves = jnp.log(jnp.stack([theta1, theta2]))  # from the row to the column
    log_emissions = dist.Normal(mu, 1.0).log_prob(y[:, None])

    # As in Stan's program, the first state has weight one, not a probability. The product of the
    # matrices is taken pairwise, which needs far fewer steps in turn than state after state.
    log_steps = log_moves + log_emissions[1:, None, :]
    log_product = jax.lax.associative_scan(log_matmul, log_steps)[-1]
    numpyro.factor("likelihood", logsumexp(log_emissions[0][:, None] + log_product))


def log_matmul(log_a, log_b):
    return logsumexp(log_a[..., :, :, None] + log_b[..., None, :, :], axis=-2)


def low_dim_gauss_mix(y):
    mu = flat("mu", constraints.ordered_vector, 2)
    numpyro.factor("prior", dist.Normal(0.0, 2.0).log_prob(mu).sum())
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = dist.Categorical(probs=jnp.stack([theta, 1 - theta]))
    with numpyro.plate("data", y.size):
        numpyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


POSTERIORS = {
    "arK": Posterior(arK, prepare_arK),
    "diamonds": Posterior(diamonds, prepare_diamonds),
    "earn_height": Posterior(earn_height, fields("earn", "height")),
    "eight_schools_centered": Posterior(eight_schools_centered, fields("y", "sigma")),
    "eight_schools_noncentered": Posterior(eight_schools_noncentered, fields("y", "sigma")),
    "gp_regr": Posterior(gp_regr, fields("x", "y")),
    "hmm_example": Posterior(hmm_example, fields("y")),
    "kidscore_interaction": Posterior(
        kidscore_interaction, fields("kid_score", "mom_hs", "mom_iq")
    ),
    "low_dim_gauss_mix": Posterior(low_dim_gauss_mix, fields("y")),
}
