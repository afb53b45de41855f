"""
A bare log density
==================

A posterior from elsewhere, a physics code say, is often nothing but a function: a point in, a log
density out. ``gx.from_log_density`` makes a model of it, and any guide takes that. Here it is the
number of fatal accidents in British coal mines by year, with a change of the rate at an unknown
time (R. G. Jarrett, "A note on the intervals between coal-mining disasters", Biometrika 66(1),
1979).
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import guidax as gx

# fmt: off
ACCIDENTS = jnp.array([
    4, 5, 4, 0, 1, 4, 3, 4, 0, 6, 3, 3, 4, 0, 2, 6, 3, 3, 5, 4, 5, 3, 1, 4, 4, 1, 5, 5, 3, 4, 2, 5,
    2, 2, 3, 4, 2, 1, 3, 2, 2, 1, 1, 1, 1, 3, 0, 0, 1, 0, 1, 1, 0, 0, 3, 1, 0, 3, 2, 2, 0, 1, 1, 1,
    0, 1, 0, 1, 0, 0, 0, 2, 1, 0, 0, 0, 1, 1, 0, 2, 3, 3, 1, 1, 2, 1, 1, 1, 1, 2, 4, 2, 0, 0, 1, 4,
    0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1,
], dtype=float)
# fmt: on
YEARS = jnp.arange(1851, 1851 + len(ACCIDENTS)) + 0.5

# %%
# The density
# -----------
# It takes a pytree of latents, in their natural units, and then data. Constants may be left out.
# The rate falls from ``early`` to ``late`` over some years around ``change``.


def rate(latents, years):
    passed = (years - latents["change"]) / latents["width"]
    return latents["early"] * jax.nn.sigmoid(-passed) + latents["late"] * jax.nn.sigmoid(passed)


def log_density(latents, years, accidents):
    expected = rate(latents, years)
    log_prior = -latents["early"] / 3 - latents["late"] / 3 - latents["width"] / 5
    return log_prior + jnp.sum(accidents * jnp.log(expected) - expected)


# %%
# A model of it
# -------------
# An example says how the latents look, and supports where they lie: what is not named is real.

positive = gx.constraints.positive
model = gx.from_log_density(
    log_density,
    example={"change": 0.0, "early": 0.0, "late": 0.0, "width": 0.0},
    supports={
        "change": gx.constraints.interval(1851.0, 1962.0),
        "early": positive,
        "late": positive,
        "width": positive,
    },
)
key = jax.random.key(0)
guide = gx.AutoBNAFNormal(model, YEARS, ACCIDENTS, key=key)
guide = gx.fit(
    key,
    guide,
    YEARS,
    ACCIDENTS,
    steps=4_000,
    objective=gx.ELBO(num_particles=8),
    progress=False,
).guide
diagnosis = gx.diagnose(key, guide, YEARS, ACCIDENTS, num_samples=10_000)
print(diagnosis)

# %%
# The same from quadrature
# ------------------------
# Four latents are few enough for sums over a grid, which need no sampling.

axes = {
    "change": np.linspace(1870, 1915, 91),
    "early": np.linspace(1.8, 4.6, 61),
    "late": np.linspace(0.4, 1.6, 61),
    "width": np.geomspace(0.02, 30.0, 61),
}
mesh = dict(zip(axes, np.meshgrid(*axes.values(), indexing="ij"), strict=True))
points = {name: jnp.asarray(values.ravel()) for name, values in mesh.items()}
log_p = jax.lax.map(
    lambda point: log_density(point, YEARS, ACCIDENTS), points, batch_size=10_000
) + jnp.log(points["width"])  # the grid of widths is even in the logarithm
weights = np.asarray(jax.nn.softmax(log_p))

print(f"\n{'':10}{'grid':>20}{'guide':>20}{'corrected':>20}")
for name, values in points.items():
    mean = np.average(values, weights=weights)
    sd = np.sqrt(np.average((values - mean) ** 2, weights=weights))
    draws = diagnosis.draws[name]
    pairs = [(mean, sd), (draws.mean(), draws.std())]
    pairs.append((diagnosis.mean()[name], diagnosis.std()[name]))
    print(f"{name:10}" + "".join(f"{f'{mean:.2f} ± {sd:.2f}':>20}" for mean, sd in pairs))

# %%
# The rate, year by year
# ----------------------

draws = guide.sample_posterior(jax.random.key(1), YEARS, ACCIDENTS, sample_shape=(2_000,))
rates = jax.vmap(rate, in_axes=(0, None))(draws, YEARS)
low, middle, high = np.quantile(rates, [0.05, 0.5, 0.95], axis=0)

figure, axis = plt.subplots(figsize=(8, 4))
axis.bar(YEARS, ACCIDENTS, color="0.8", label="accidents")
axis.fill_between(YEARS, low, high, alpha=0.3, label="rate, 90 %")
axis.plot(YEARS, middle, label="rate, median")
axis.set(xlabel="year", ylabel="accidents in a year", title="Coal mines: where the rate fell")
axis.legend(frameon=False)
figure.tight_layout()
figure.savefig("log_density.png", dpi=120)
