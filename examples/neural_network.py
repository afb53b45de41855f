"""
A Bayesian neural network
=========================

A network with a normal prior on its weights, written as an ``eqx.Module`` that is the model. Two
guides are fitted to its 61 weights and the noise, and ``gx.Predictive`` turns their draws into
bands, which are wider in the gap between the data. Beyond the data they stay narrow, which is too
sure: a normal holds one of many ways in which the network can fit.
"""

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx

# %%
# The model
# ---------
# Its fields are settings. Weights are latents, which are drawn from their prior in ``__call__``.


class Network(eqx.Module):
    widths: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, x, y=None):
        hidden = x[:, None]
        for i, (n, m) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            weight = gx.sample(f"weight{i}", normal((n, m), 2 / np.sqrt(n)))
            bias = gx.sample(f"bias{i}", normal((m,), 2.0))
            hidden = hidden @ weight + bias
            if i < len(self.widths) - 2:
                hidden = jnp.tanh(hidden)
        mean = gx.deterministic("mean", hidden[:, 0])
        noise = gx.sample("noise", tfd.HalfNormal(0.5))
        with gx.plate("point", x.shape[0]):
            gx.sample("y", distrax.Normal(mean, noise), obs=y)


def normal(shape, scale):
    independent = distrax.Normal(jnp.zeros(shape), scale)
    return distrax.Independent(independent, len(shape))


model = Network(widths=(1, 20, 1))

# %%
# Data with a gap
# ---------------


def truth(x):
    return np.sin(2.0 * x) + 0.3 * x


random = np.random.default_rng(0)
x = np.concatenate([random.uniform(-2.5, -0.7, 100), random.uniform(0.9, 2.0, 100)])
y = truth(x) + 0.1 * random.normal(size=x.size)
x_test = np.concatenate([random.uniform(-2.5, -0.7, 200), random.uniform(0.9, 2.0, 200)])
y_test = truth(x_test) + 0.1 * random.normal(size=x_test.size)
everywhere = np.linspace(-4.0, 4.0, 200)

# %%
# Fits and bands
# --------------
# The arguments of a prediction are those of the model, with new ``x`` and without ``y``. The same
# call without draws, but with their number, gives the prior's.

key_start, key_fit, key_draws, key_predict = jax.random.split(jax.random.key(0), 4)
bands = {
    "prior": gx.Predictive(model, num_samples=2_000, sites=["mean", "y"])(key_predict, everywhere)
}
print(f"{'':24}{'ELBO':>10}{'log density':>14}{'in 90 % band':>14}{'width in gap':>14}")
for name, constructor in {
    "independent normals": gx.AutoNormal,
    "full-rank normal": gx.AutoMultivariateNormal,
}.items():
    guide = constructor(
        model, x, y, key=key_start, init_loc_fn=gx.init_to_sample(), init_scale=0.01
    )
    result = gx.fit(
        key_fit,
        guide,
        x,
        y,
        steps=10_000,
        learning_rate=0.01,
        progress=False,
    )
    draws = result.guide.sample_posterior(key_draws, x, y, sample_shape=(2_000,))
    predictive = gx.Predictive(result.guide.model, draws, sites=["mean", "y"])
    bands[name] = predictive(key_predict, everywhere)
    low, high = np.quantile(predictive(key_predict, x_test)["y"], [0.05, 0.95], axis=0)
    inside = np.mean((low < y_test) & (y_test < high))
    by_point = gx.log_likelihood(result.guide.model, draws, x_test, y_test)["y"]
    log_density = np.mean(jax.nn.logsumexp(by_point, axis=0) - np.log(2_000))
    gap = np.abs(everywhere) < 0.5
    width = np.ptp(np.quantile(bands[name]["mean"][:, gap], [0.05, 0.95], axis=0), axis=0).mean()
    elbo = -result.losses[-1_000:].mean()
    print(f"{name:24}{elbo:10.1f}{log_density:14.3f}{inside:14.2f}{width:14.2f}")

# %%
# The picture
# -----------
# Dark: 90 % of the mean functions. Light: 90 % of new observations.

figure, axes = plt.subplots(1, 3, figsize=(13, 4), sharex=True, sharey=True)
for axis, (name, found) in zip(axes, bands.items(), strict=True):
    for site, alpha in (("y", 0.15), ("mean", 0.3)):
        low, high = np.quantile(found[site], [0.05, 0.95], axis=0)
        axis.fill_between(everywhere, low, high, color="tab:blue", alpha=alpha, linewidth=0)
    axis.plot(everywhere, np.median(found["mean"], axis=0), color="tab:blue")
    axis.plot(everywhere, truth(everywhere), color="black", linestyle=":", label="truth")
    axis.plot(x, y, ".", color="black", markersize=4, label="data")
    axis.set(title=name, xlabel="x", ylim=(-5, 5))
axes[0].legend(loc="lower left", frameon=False)
figure.tight_layout()
figure.savefig("neural_network.png", dpi=120)
