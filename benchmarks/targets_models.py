"""Three posteriors with known evidence: their data, as arrays, and NumPyro models of them.

The folder of data is described in the README.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist


class Target(NamedTuple):
    """A posterior and what is known of it, in nats."""

    read: Callable
    model: Callable
    log_z: float
    error: float


def standardised(X):
    scale = X.std(axis=0)
    return (X - X.mean(axis=0)) / np.where(scale == 0, 1.0, scale)


def with_intercept(X):
    return np.column_stack([np.ones(len(X)), X])


def read_ionosphere(folder):
    """Return features, standardised behind a column of ones, and labels 0 and 1."""
    table = np.loadtxt(folder / "ionosphere.csv", delimiter=",", skiprows=1)
    return with_intercept(standardised(table[:, :-1])), (table[:, -1] + 1) / 2


def ionosphere(X, y, weights=1.0):
    w = numpyro.sample("w", dist.Normal(jnp.zeros(X.shape[1]), 1.0).to_event(1))
    with numpyro.plate("data", X.shape[0]), numpyro.handlers.scale(scale=weights):
        numpyro.sample("y", dist.Bernoulli(logits=X @ w), obs=y)


def read_seeds(folder):
    """Return the number that germinated and that of seeds in each plate, and two treatments."""
    data = json.loads((folder / "seeds.json").read_text(encoding="utf-8"))
    return tuple(np.asarray(data[name], float) for name in ("R", "N", "X1", "X2"))


def seeds_globals(*data):
    del data
    tau = numpyro.sample("tau", dist.Gamma(0.01, 0.01))
    return tau, [numpyro.sample(name, dist.Normal(0.0, 10.0)) for name in ("a0", "a1", "a2", "a12")]


def seeds_locals(tau, a, r, n, x1, x2):
    with numpyro.plate("plates", r.shape[0]):
        b = numpyro.sample("b", dist.Normal(0.0, 1 / jnp.sqrt(tau)))
        logits = a[0] + a[1] * x1 + a[2] * x2 + a[3] * x1 * x2 + b
        numpyro.sample("r", dist.Binomial(n, logits=logits), obs=r)


def seeds(*data):
    seeds_locals(*seeds_globals(), *data)


def read_german_credit(folder):
    """Return features in units of their standard deviation, with a column of ones, and labels."""
    table = np.loadtxt(folder / "german_credit_numeric.txt")
    X = table[:, :-1] / table[:, :-1].std(axis=0)
    return with_intercept(X), (table[:, -1] == 1).astype(float)


def german_credit(X, y, weights=1.0):
    w = numpyro.sample("w", dist.Normal(jnp.zeros(X.shape[1]), 10.0).to_event(1))
    with numpyro.plate("data", X.shape[0]), numpyro.handlers.scale(scale=weights):
        numpyro.sample("y", dist.Bernoulli(logits=-(X @ w)), obs=y)


def surrogate_of(regression):
    """Return a regression on half of the rows, whose weights are learned and start at two."""

    def surrogate(X, y):
        two = jnp.full(X.shape[0], 2.0)
        regression(X, y, numpyro.param("weights", two, constraint=dist.constraints.positive))

    return surrogate


# The evidence is from adaptive tempered sequential Monte Carlo, checked by importance sampling.
TARGETS = {
    "ionosphere": Target(read_ionosphere, ionosphere, -111.616, 0.009),
    "seeds": Target(read_seeds, seeds, -73.408, 0.012),
    "german_credit": Target(read_german_credit, german_credit, -585.103, 0.005),
}


def read_data(folder: Path, name: str):
    """Return the data of a target in JAX's default precision."""
    return tuple(jnp.asarray(x, float) for x in TARGETS[name].read(folder))
