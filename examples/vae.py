"""
A variational autoencoder
=========================

The model is a decoder, an ``eqx.Module`` whose network is trained along; the guide is an encoder,
another one, which draws an image's latents from a normal. ``gx.AutoSemiDAIS`` moves those draws
towards the posterior of their image, by a few steps of annealed importance sampling whose
parameters all images share. The images are the handwritten digits that scikit-learn ships (E.
Alpaydin and C. Kaynak, 1998): 8 by 8 pixels, each a count from 0 to 16.
"""

import time

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx

IMAGES, PIXELS, LEVELS = 1797, 64, 16
LATENTS, HIDDEN, BATCH, STEPS = 4, 64, 100, 2_000

# %%
# Decoder and encoder
# -------------------
# Both are written in the model language, and both say which plate the images are in.


class Decoder(eqx.Module):
    network: eqx.nn.MLP

    def __init__(self, key):
        self.network = eqx.nn.MLP(LATENTS, PIXELS, HIDDEN, 2, key=key)

    def __call__(self, pixels):
        prior = distrax.MultivariateNormalDiag(jnp.zeros(LATENTS), jnp.ones(LATENTS))
        with gx.plate("image", IMAGES, subsample_size=pixels.shape[0]):
            z = gx.sample("z", prior)
            logits = jax.vmap(self.network)(z)
            gx.deterministic("mean", LEVELS * jax.nn.sigmoid(logits))
            counts = tfd.Independent(tfd.Binomial(float(LEVELS), logits=logits), 1)
            gx.sample("pixels", counts, obs=pixels)


class Encoder(eqx.Module):
    network: eqx.nn.MLP

    def __init__(self, key):
        self.network = eqx.nn.MLP(PIXELS, 2 * LATENTS, HIDDEN, 2, key=key)

    def __call__(self, pixels):
        with gx.plate("image", IMAGES, subsample_size=pixels.shape[0]):
            found = jax.vmap(self.network)(pixels / LEVELS)
            loc, scale = found[:, :LATENTS], jax.nn.softplus(found[:, LATENTS:])
            gx.sample("z", distrax.MultivariateNormalDiag(loc, scale))


# %%
# Batches
# -------
# A batch holds some images, and ``at`` says which: parameters of an image's own then belong to it.

digits = load_digits()
pixels = jnp.asarray(digits.data, float)
rows = np.random.default_rng(0).permutation(IMAGES)
train_rows, test_rows = np.sort(rows[300:]), np.sort(rows[:300])


def batch_of(rows):
    return gx.Batch(pixels[rows]).at(image=rows)


def batch_at(step):
    return batch_of(np.random.default_rng(step).choice(train_rows, BATCH, replace=False))


# %%
# Two guides
# ----------
# Each trains a decoder of its own, from the same start.

key_decoder, key_encoder, key = jax.random.split(jax.random.key(0), 3)
decoder, encoder = Decoder(key_decoder), Encoder(key_encoder)
first = batch_at(0)
started = {
    "encoder alone": gx.AutoGuideList(decoder, first, key=key, parts={"z": gx.program(encoder)}),
    "encoder and DAIS": gx.AutoSemiDAIS(
        decoder, first, key=key, local_guide=encoder, use_global_dais_params=True
    ),
}


def elbo(guide, rows):
    loss = jax.jit(gx.ELBO(num_particles=10))(guide, jax.random.key(1), batch_of(rows))
    return -loss / IMAGES  # the loss is that of all images, N/B times the sum over the batch


# %%
# The evidence lower bounds are in nats for each image, so higher is better. Images that were held
# out need no fit of their own: the encoder sees them, and the moves follow their density.

guides, curves = {}, {}
print(f"{'ELBO, nats for each image':26}{'training':>10}{'held out':>10}{'seconds':>9}")
for name, guide in started.items():
    start = time.perf_counter()
    result = gx.fit(
        jax.random.key(2),
        guide,
        batches=batch_at,
        steps=STEPS,
        learning_rate=3e-3,
        progress=False,
    )
    seconds = time.perf_counter() - start
    guides[name], curves[name] = result.guide, -np.asarray(result.losses) / IMAGES
    bounds = elbo(result.guide, train_rows), elbo(result.guide, test_rows)
    print(f"{name:26}{bounds[0]:10.2f}{bounds[1]:10.2f}{seconds:9.1f}")

# %%
# Held-out digits, above what the guides make of them
# ---------------------------------------------------

labels = digits.target[test_rows]
one_of_each = np.array([test_rows[np.argmax(labels == digit)] for digit in range(10)])
shown = {"image": pixels[one_of_each]}
for name, guide in guides.items():
    draws = guide.sample_posterior(
        jax.random.key(4), batch_of(one_of_each), sites=["mean"], sample_shape=(100,)
    )
    shown[name] = draws["mean"].mean(axis=0)

figure, axes = plt.subplots(len(shown), 10, figsize=(9, 2.8), layout="constrained")
for line, (name, images) in zip(axes, shown.items(), strict=True):
    for axis, image in zip(line, images, strict=True):
        axis.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=LEVELS)
        axis.set(xticks=[], yticks=[])
    line[0].set_ylabel(name, rotation=0, ha="right", va="center")
figure.savefig("vae.png", dpi=120)

# %%
# How training went
# -----------------

figure, axis = plt.subplots(figsize=(7, 4))
for name, curve in curves.items():
    smooth = np.convolve(curve, np.ones(50) / 50, mode="valid")
    axis.plot(np.arange(50, STEPS + 1), smooth, label=name)
axis.set(xlabel="step", ylabel="ELBO, nats for each image", ylim=(-140, -95))
axis.legend(loc="lower right", frameon=False)
figure.tight_layout()
figure.savefig("vae_training.png", dpi=120)
