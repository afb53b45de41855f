"""A variational autoencoder on real images, whose encoder is improved by annealing.

The images are the handwritten digits that scikit-learn ships (E. Alpaydin and C. Kaynak, 1998): 8
by 8 pixels, each a count from 0 to 16. The decoder is the model, an `eqx.Module`; the encoder is a
guide, an `eqx.Module` too, which draws an image's latents from a normal. `gx.AutoSemiDAIS` moves
those draws towards the posterior of their image by a few steps of annealed importance sampling,
with parameters that all images share, or with each image's own.

Each guide trains a decoder of its own. The evidence lower bounds in the table are in nats for each
image, so higher is better. Shared moves come out best here: an image's own are trained only by the
batches that hold it, about a hundred of them. Images that were held out have none yet, so theirs
are fitted with everything else fixed.

    python examples/vae.py [PICTURE.png]
"""

import functools
import sys
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
LATENTS, HIDDEN, BATCH, STEPS, RATE = 4, 64, 100, 2_000, 3e-3


class Decoder(eqx.Module):
    """The model: normal latents, and pixels that are binomial with logits from a network."""

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
    """The guide: a normal for each image's latents, from a network that sees the image."""

    network: eqx.nn.MLP

    def __init__(self, key):
        self.network = eqx.nn.MLP(PIXELS, 2 * LATENTS, HIDDEN, 2, key=key)

    def __call__(self, pixels):
        with gx.plate("image", IMAGES, subsample_size=pixels.shape[0]):
            found = jax.vmap(self.network)(pixels / LEVELS)
            loc, scale = found[:, :LATENTS], jax.nn.softplus(found[:, LATENTS:])
            gx.sample("z", distrax.MultivariateNormalDiag(loc, scale))


def load():
    """Return all images as counts, and the row numbers of those for training and for testing."""
    pixels = jnp.asarray(load_digits().data, float)
    rows = np.random.default_rng(0).permutation(IMAGES)
    return pixels, np.sort(rows[300:]), np.sort(rows[:300])


def batch_of(pixels, rows):
    """Return the images in those rows, with their numbers."""
    return gx.Batch(pixels[rows]).at(image=rows)


def batches(pixels, rows):
    """Return a function from the step to a random batch of those rows."""

    def at_step(step):
        chosen = np.random.default_rng(step).choice(rows, BATCH, replace=False)
        return batch_of(pixels, chosen)

    return at_step


def elbo(guide, pixels, rows):
    """Return the evidence lower bound in nats for each image."""
    loss = gx.ELBO(num_particles=10)(guide, jax.random.key(1), batch_of(pixels, rows))
    return -float(loss) / IMAGES  # N/B times the sum over the batch


def moves(guide):
    """Return the parameters of the moves: the part of the guide that an image may have alone."""
    return guide.family.parts[-1].dynamics


def train(guide, pixels, rows):
    """Train decoder and guide; return the guide, minus the losses for each image, and seconds."""
    start = time.perf_counter()
    result = gx.fit(
        jax.random.key(2),
        guide,
        batches=batches(pixels, rows),
        steps=STEPS,
        learning_rate=RATE,
        progress=False,
    )
    losses = np.asarray(result.losses)  # waits for the run
    return result.guide, -losses / IMAGES, time.perf_counter() - start


def with_moves_of(guide, pixels, rows):
    """Fit the moves of images that the guide has not seen, with decoder and encoder fixed."""
    batch = [batch_of(pixels, rows)] * 300
    return gx.fit(
        jax.random.key(3), guide, batches=batch, steps=300, trainable=moves, progress=False
    ).guide


def draw_picture(pixels, rows, guides, curves, path):
    """Plot held-out images above what the guides make of them, and how training went."""
    figure = plt.figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[2, 1])
    shown = {"image": pixels[rows]}
    for name, guide in guides.items():
        draws = guide.sample_posterior(
            jax.random.key(4), batch_of(pixels, rows), sites=["mean"], sample_shape=(100,)
        )
        shown[name] = draws["mean"].mean(axis=0)
    axes = left.subplots(len(shown), len(rows))
    for line, (name, images) in zip(axes, shown.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=LEVELS)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    left.suptitle("held-out digits, and the mean image given each")
    axis = right.subplots()
    for name, curve in curves.items():
        window = STEPS // 30
        axis.plot(np.arange(window, STEPS + 1), _smooth(curve, window), label=name)
    axis.set_ylim(bottom=np.mean(curves["encoder alone"][-STEPS // 2 :]) - 15)
    axis.set_xlabel("step")
    axis.set_ylabel("ELBO of a batch, nats for each image")
    axis.legend(loc="upper left", frameon=False)
    figure.savefig(path, dpi=150)


def _smooth(curve, window):
    sums = np.cumsum(np.concatenate([[0.0], curve]))
    return (sums[window:] - sums[:-window]) / window


def main():
    pixels, train_rows, test_rows = load()
    key_decoder, key_encoder, key = jax.random.split(jax.random.key(0), 3)
    decoder, encoder = Decoder(key_decoder), Encoder(key_encoder)
    first = batch_of(pixels, train_rows[:BATCH])
    annealed = functools.partial(gx.AutoSemiDAIS, decoder, first, key=key, local_guide=encoder)
    started = {
        "encoder alone": gx.AutoGuideList(
            decoder, first, key=key, parts={"z": gx.program(encoder)}
        ),
        "DAIS, shared moves": annealed(use_global_dais_params=True),
        "DAIS, own moves": annealed(),
    }
    print(f"{'ELBO, nats for each image':30}{'training':>12}{'held out':>12}{'seconds':>10}")
    guides, curves = {}, {}
    for name, guide in started.items():
        guide, curves[name], seconds = train(guide, pixels, train_rows)
        before = elbo(guide, pixels, train_rows)
        if name == "DAIS, own moves":
            guide = with_moves_of(guide, pixels, test_rows)
        guides[name] = guide
        print(f"{name:30}{before:12.2f}{elbo(guide, pixels, test_rows):12.2f}{seconds:10.0f}")

    path = sys.argv[1] if len(sys.argv) > 1 else "vae.png"
    digits = load_digits().target[test_rows]
    one_of_each = np.array([test_rows[np.argmax(digits == digit)] for digit in range(10)])
    draw_picture(pixels, one_of_each, guides, curves, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
