"""Models and data that several tests use. Every run of a counted model adds to `traces`."""

from __future__ import annotations

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx
from guidax._model.program import Program, as_model
from guidax._model.trace import Trace

traces = [0]


def new_traces(run):
    """Return how often a counted model ran in Python during `run`.

    One must have run by then, in this module of tests: of a model that is not counted, no count
    says anything.
    """
    before = traces[0]
    run()
    assert traces[0] > 0, "no model that is counted has run"
    return traces[0] - before


def regression_data(rows=40, features=3):
    """Return features and labels."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, features))
    odds = X @ np.linspace(2.0, -1.0, features)
    labels = rng.random(rows) < 1 / (1 + np.exp(-odds))
    return jnp.asarray(X, float), jnp.asarray(labels.astype(int))


def regression(X, y=None):
    """Logistic regression with a param and two deterministic sites, one of which reads the data."""
    traces[0] += 1
    tau = gx.sample("tau", tfd.HalfNormal(jnp.ones(())))
    beta = gx.sample("beta", distrax.Independent(distrax.Normal(jnp.zeros(X.shape[1]), tau), 1))
    weight = gx.param("weight", 0.3, gx.constraints.positive)
    gx.deterministic("norm", jnp.linalg.norm(beta))
    eta = gx.deterministic("eta", X @ beta)
    with gx.plate("data", X.shape[0]):
        gx.sample("y", distrax.Bernoulli(logits=weight * eta), obs=y)


class Network(eqx.Module):
    """A model with all that plain transformations stumble over: an MLP, Dropout, integers."""

    mlp: eqx.nn.MLP
    embedding: eqx.nn.Embedding
    dropout: eqx.nn.Dropout
    order: jax.Array

    def __init__(self, key):
        keys = jax.random.split(key)
        self.mlp = eqx.nn.MLP(2, 1, 4, 1, key=keys[0])
        self.embedding = eqx.nn.Embedding(3, 2, key=keys[1])
        self.dropout = eqx.nn.Dropout(0.5, inference=True)
        self.order = jnp.array([2, 0, 1])

    def model(self, y):
        """Observe a line through the network's outputs."""
        traces[0] += 1
        slope = gx.sample("slope", distrax.Normal(0.0, jnp.ones(())))
        scale = gx.sample("scale", tfd.HalfNormal(jnp.ones(())))
        hidden = jax.vmap(self.mlp)(self.dropout(self.embedding.weight[self.order]))[:, 0]
        with gx.plate("data", 3):
            gx.sample("y", distrax.Normal(slope * hidden, scale), obs=y)


NETWORK_DATA = jnp.array([0.3, -1.0, 0.5], float)


class BesideRows(gx.AbstractModel):
    """Any model, and beside it three rows with a latent each, `row_i ~ N(0, 1)`: evidence one."""

    params: dict
    inner: gx.AbstractModel

    def __init__(self, inner):
        inner = as_model(inner)
        self.params, self.inner = inner.params, inner.with_params({})

    def run(self, batch, key, choose, indices):
        """Run both."""
        both = jax.random.split(key)
        whole = self.inner.with_params(self.params).run(batch, both[0], choose, indices)
        rows = Program(_rows).run(gx.Batch(), both[1], choose, indices)
        return Trace(whole.sites | rows.sites, whole.plates | rows.plates, whole.result)

    def signature(self):
        """Return the model's."""
        return self.inner.signature()

    @property
    def name(self):
        """Return the model's."""
        return self.inner.name

    @property
    def has_module(self):
        """Return the model's."""
        return self.inner.has_module

    def plate_rows(self, create_plates, batch, key):
        """Return the model's."""
        return self.inner.plate_rows(create_plates, batch, key)


def _rows():
    with gx.plate("beside", 3):
        gx.sample("row", distrax.Normal(jnp.zeros(()), 1.0))


def triangle():
    """`x ~ U(0, 1)`, `y ~ U(0, x)`: E[y] = 1/4, P(y < t) = t - t log t, evidence 1."""
    x = gx.sample("x", distrax.Uniform(jnp.zeros(()), 1.0))
    gx.sample("y", distrax.Uniform(jnp.zeros(()), x))


class ConjugateNormal:
    """`z ~ N(m, s^2)` and `y_i ~ N(z, r^2)`: posterior and evidence in closed form."""

    m, s, r = 1.0, 2.0, 0.5
    y = np.array([0.3, 1.4, 2.0, 0.9])

    @classmethod
    def model(cls, y):
        """The model."""
        z = gx.sample("z", distrax.Normal(jnp.asarray(cls.m, float), cls.s))
        with gx.plate("data", y.shape[0]):
            gx.sample("y", distrax.Normal(z, cls.r), obs=y)

    @classmethod
    def posterior(cls):
        """Return mean and standard deviation."""
        precision = cls.s**-2 + len(cls.y) * cls.r**-2
        mean = (cls.m * cls.s**-2 + cls.y.sum() * cls.r**-2) / precision
        return mean, precision**-0.5

    @classmethod
    def log_evidence(cls):
        """Return the log density of y, a multivariate normal."""
        n = len(cls.y)
        covariance = cls.r**2 * np.eye(n) + cls.s**2
        gap = cls.y - cls.m
        _, log_det = np.linalg.slogdet(covariance)
        return -0.5 * (gap @ np.linalg.solve(covariance, gap) + log_det + n * np.log(2 * np.pi))


class Hierarchy:
    """Six rows with latents of their own: `mu ~ N(0, 10^2)`, `z_i ~ N(mu, 1)`, `y_i ~ N(z_i, 1/4)`.

    `takes_rows` takes the rows of its data itself; `takes_batch` gets a batch that is cut already.
    """

    y = np.array([0.3, -1.0, 2.0, 0.5, 1.0, -2.0])

    @staticmethod
    def _sites(y, size, rows, take):
        mu = gx.sample("mu", distrax.Normal(jnp.zeros(()), 10.0))
        gx.sample("other", distrax.Normal(mu, 1.0), obs=jnp.asarray(0.3, float))
        with gx.plate("data", size, subsample_size=rows):
            s = gx.sample("s", tfd.HalfNormal(jnp.ones(())))
            z = gx.sample("z", distrax.Normal(mu, s))
            gx.sample("y", distrax.Normal(z, 0.5), obs=take(y))

    @classmethod
    def takes_rows(cls, y):
        """Use `gx.subsample`."""
        cls._sites(y, 6, 2, gx.subsample)

    @classmethod
    def takes_batch(cls, y):
        """Use all rows of a shorter array."""
        cls._sites(y, 6, y.shape[0], lambda y: y)


class Oracle:
    """Targets of known evidence in one model: independent parts, so that evidences multiply.

    A support that reads a latent (`y ~ U(0, x)`), a simplex, a normal cut off above, a spiked
    normal `N(0, I + 50 u u')` (all priors: evidence 1), and an observed linear Gaussian chain.
    """

    y = np.array([0.3, 1.4, 2.0, 0.9])
    decay, drift, noise = 0.9, 1.0, 0.5

    @classmethod
    def model(cls, y):
        """The model."""
        triangle()
        gx.sample("p", tfd.Dirichlet(3.0 * jnp.ones(3)))
        gx.sample("t", tfd.TruncatedNormal(jnp.zeros(()), 1.0, -10.0, 0.5))
        u = np.full(3, 3**-0.5)
        tril = jnp.asarray(np.linalg.cholesky(np.eye(3) + 50 * np.outer(u, u)), float)
        gx.sample("s", distrax.MultivariateNormalTri(jnp.zeros(3), tril))
        state = jnp.zeros(())
        for i in range(4):
            state = gx.sample(f"x{i}", distrax.Normal(cls.decay * state, cls.drift))
            gx.sample(f"y{i}", distrax.Normal(state, cls.noise), obs=y[i])

    @classmethod
    def log_evidence(cls):
        """Return the log density of the chain's observations."""
        step = np.eye(4) - cls.decay * np.eye(4, k=-1)
        states = cls.drift**2 * np.linalg.inv(step.T @ step)
        covariance = states + cls.noise**2 * np.eye(4)
        _, log_det = np.linalg.slogdet(2 * np.pi * covariance)
        return -0.5 * (cls.y @ np.linalg.solve(covariance, cls.y) + log_det)
