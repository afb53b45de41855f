"""
Data spread over devices
========================

Arrays that are spread over several devices need no other code: ``gx.fit`` runs under ``jax.jit``,
where the computation follows the data, and sums over rows cross the devices by themselves. That is
what JAX recommends; where the communication is to be written out there is ``jax.shard_map``, and
``pmap`` is needed for neither. The devices here are simulated on the CPU, so the example shows how
it is done and that the results agree, not a gain in speed.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"  # before JAX is imported

import functools

import distrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import guidax as gx

ROWS, STEPS = 20_000, 2_000


def model(x, y):
    beta = gx.sample("beta", distrax.Independent(distrax.Normal(jnp.zeros(4), 1.0), 1))
    with gx.plate("row", ROWS, subsample_size=x.shape[0]):
        gx.sample("y", distrax.Bernoulli(logits=x @ beta), obs=y)


random = np.random.default_rng(0)
x = random.normal(size=(ROWS, 4)).astype(np.float32)
logits = x @ np.array([1.0, -0.5, 0.25, 0.0])
y = (random.random(ROWS) < 1 / (1 + np.exp(-logits))).astype(np.float32)

# %%
# By placing the data
# -------------------
# The rows go to the devices in equal parts; the guide, which is small, is on all of them. The call
# of ``gx.fit`` is the one for a single device.

mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(AxisType.Auto,))
by_rows, everywhere = NamedSharding(mesh, P("rows")), NamedSharding(mesh, P())
x_spread, y_spread = jax.device_put((x, y), by_rows)

key = jax.random.key(0)
guide = gx.AutoMultivariateNormal(model, x, y, key=key)
alone = gx.fit(key, guide, x, y, steps=STEPS, progress=False)
spread = gx.fit(
    key, jax.device_put(guide, everywhere), x_spread, y_spread, steps=STEPS, progress=False
)
print(
    f"{jax.device_count()} devices, with {y_spread.addressable_shards[0].data.shape[0]} rows each"
)


def describe(name, guide):
    median, (low, high) = guide.median()["beta"], guide.quantiles([0.05, 0.95])["beta"]
    print(f"{name:16}{np.asarray(median).round(4)}, intervals {np.asarray(high - low).round(4)}")


describe("one device", alone.guide)
describe("placed", spread.guide)

# %%
# What crosses the devices: the loss and the gradient, in one sum for each step.

loss = jax.jit(jax.value_and_grad(gx.ELBO()))
program = loss.lower(jax.device_put(guide, everywhere), key, x_spread, y_spread).compile()
print(f"sums across devices in a step: {program.as_text().count(' all-reduce(')}\n")

# %%
# By writing the communication out
# --------------------------------
# Inside ``jax.shard_map`` the program is that of one device, with its own rows. To the model they
# are a batch: its plate counts them N/B times, and the mean over devices is the loss of all rows.
# All devices take the same key, so that they share their draws of beta.


@jax.jit
@functools.partial(
    jax.shard_map, mesh=mesh, in_specs=(P(), P(), P("rows"), P("rows")), out_specs=(P(), P())
)
def averaged(guide, key, x, y):
    return jax.lax.pmean(jax.value_and_grad(gx.ELBO())(guide, key, x, y), "rows")


value, gradient = averaged(guide, key, x, y)
expected, gradient_alone = loss(guide, key, x, y)
print(f"loss by shard_map {value:.2f}, on one device {expected:.2f}")

optimizer = optax.adam(optax.cosine_decay_schedule(0.1, STEPS))


@jax.jit
def train(guide, key, x, y):
    def step(carry, key):
        guide, state = carry
        value, gradient = averaged(guide, key, x, y)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(guide, updates), state), value

    carry = (guide, optimizer.init(guide))
    (guide, _), losses = jax.lax.scan(step, carry, jax.random.split(key, STEPS))
    return guide, losses


written_out, losses = train(guide, key, x_spread, y_spread)
describe("shard_map", written_out)

# %%
# The losses of the three
# -----------------------
# The first two are one run, up to rounding; the last has a loop and an optimizer of its own.

figure, axis = plt.subplots(figsize=(7, 4))
axis.plot(alone.losses, label="one device", linewidth=3, alpha=0.4)
axis.plot(spread.losses, label="placed", linewidth=0.8)
axis.plot(losses, label="shard_map, with a loop of its own", linewidth=0.8)
axis.set(xlabel="step", ylabel="loss, nats", xscale="log")
axis.set_title(f"Logistic regression of {ROWS} rows over {jax.device_count()} devices")
axis.legend(frameon=False)
figure.tight_layout()
figure.savefig("sharding.png", dpi=120)
