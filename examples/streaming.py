"""
Batches from a loader
=====================

Data that do not fit into memory come from a loader, batch by batch. ``gx.fit`` reads them by
``batches=``: a function of the step, or an iterable, of ``gx.Batch``. The model sees one batch a
step, and its plate says how many rows there are in all. The loader here is Grain's
(``pip install grain``); PyTorch's ``DataLoader`` is an iterable and serves as well.
"""

import time

import distrax
import grain
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import guidax as gx

ROWS, BATCH, STEPS = 10_050, 128, 2_000

TRUTH = np.array([1.0, -0.5, 0.25, 0.0])
random = np.random.default_rng(0)
x = random.normal(size=(ROWS, 4))
y = 1.0 * (random.random(ROWS) < 1 / (1 + np.exp(-x @ TRUTH)))

# %%
# The model
# ---------
# The size of the plate is the number of all rows, so that each row of a batch counts N/B times. A
# mask says which rows are there, for the batches below that are not full.


def model(x, y, is_row=True):
    beta = gx.sample("beta", distrax.Independent(distrax.Normal(jnp.zeros(4), 1.0), 1))
    with gx.plate("row", ROWS, subsample_size=x.shape[0]), gx.handlers.mask(mask=is_row):
        gx.sample("y", distrax.Bernoulli(logits=x @ beta), obs=y)


# %%
# Drop what is left over
# ----------------------
# 10,050 rows are 78 batches and 66 rows over. A batch of another size would be compiled by itself,
# and ``gx.fit`` refuses it. The loader shuffles anew in each pass, so dropping the rest leaves no
# row out for good. Grain finds any batch by its number, which makes ``batches`` a function of the
# step; a fit with a ``checkpoint=`` needs that.


def read(rows):
    return {"x": x[rows], "y": y[rows]}  # from memory here; from files, as a rule


shuffled = grain.MapDataset.range(ROWS).seed(0).shuffle()
dropping = shuffled.batch(BATCH, drop_remainder=True).map(read).repeat()

# %%
# Or pad it
# ---------
# Rows that are only padding are masked, so that a pass counts each row exactly once.


def pad(rows):
    gap = BATCH - len(rows["y"])
    padded = {
        name: np.pad(values, [(0, gap), *[(0, 0)] * (values.ndim - 1)])
        for name, values in rows.items()
    }
    return padded | {"is_row": np.arange(BATCH) < BATCH - gap}


padding = shuffled.batch(BATCH).map(read).map(pad).repeat()

# %%
# Or iterate
# ----------
# What a loader yields is wrapped as it comes. Reading ahead in threads pays where files are slow.


def iterated(dataset):
    for rows in dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)):
        yield gx.Batch(**rows)


# %%
# Four fits
# ---------
# The last one sees all rows at each step.


def fit(first, *args, **options):
    start = time.perf_counter()
    guide = gx.AutoMultivariateNormal(model, first, key=jax.random.key(0))
    options = {"steps": STEPS, "progress": False} | options
    guide = gx.fit(jax.random.key(1), guide, *args, **options).guide
    return guide, time.perf_counter() - start


first, first_padded, everything = (
    gx.Batch(**rows) for rows in (dropping[0], padding[0], {"x": x, "y": y})
)
fits = {
    "dropping": fit(first, batches=lambda step: gx.Batch(**dropping[step])),
    "padding": fit(first_padded, batches=lambda step: gx.Batch(**padding[step])),
    "iterated": fit(first, batches=iterated(dropping)),
    "all rows": fit(everything, everything),
}
figure, axis = plt.subplots(figsize=(7, 4))
for i, (name, (guide, seconds)) in enumerate(fits.items()):
    low, middle, high = guide.quantiles([0.05, 0.5, 0.95])["beta"]
    figures = ", ".join(f"{b:.3f}" for b in middle)
    print(f"{name:10} beta {figures}  ({seconds:.1f} s)")
    error = [middle - low, high - middle]
    axis.errorbar(np.arange(4) + 0.12 * (i - 1.5), middle - TRUTH, yerr=error, fmt="o", label=name)
axis.axhline(0, color="0.7", linewidth=1)
axis.set(xticks=range(4), xlabel="coefficient", ylabel="median minus truth, 90 % interval")
axis.set_title("Logistic regression on streamed batches")
axis.legend(frameon=False)
figure.tight_layout()
figure.savefig("streaming.png", dpi=120)
