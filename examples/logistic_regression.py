"""
Logistic regression on minibatches
==================================

Tumours, benign or malignant, from 30 features: the Wisconsin diagnostic breast cancer data (W. N.
Street, W. H. Wolberg and O. L. Mangasarian, 1993), as scikit-learn ships them. A step of training
sees 64 of 398 tumours. Annealed importance sampling cannot move along the gradient of a batch, so
``gx.AutoSurrogateLikelihoodDAIS`` follows a surrogate: the likelihood of a few tumours, whose
weights are learned (M. Jankowiak and D. Phan, "Surrogate likelihoods for variational annealed
importance sampling", 2022).
"""

import time

import distrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx

BATCH, SOME = 64, 64

data = load_breast_cancer()
x_train, x_test, y_train, y_test = train_test_split(
    data.data, data.target, test_size=0.3, stratify=data.target, random_state=0
)
scaler = StandardScaler().fit(x_train)
x_train, x_test, y_train, y_test = (
    jnp.asarray(a, float)
    for a in (scaler.transform(x_train), scaler.transform(x_test), y_train, y_test)
)

# %%
# Model and surrogate
# -------------------
# Both have the same latents. The plate of the model draws its rows anew at each step; the
# surrogate keeps to its own, with a weight each.


def coefficients(num_features):
    """Normal coefficients of unknown common size, and an intercept."""
    tau = gx.sample("tau", tfd.HalfNormal(1.0))
    intercept = gx.sample("intercept", distrax.Normal(0.0, 5.0))
    scale = tau * jnp.ones(num_features)
    beta = gx.sample("beta", distrax.MultivariateNormalDiag(jnp.zeros(num_features), scale))
    return intercept, beta


def model(x, benign=None):
    intercept, beta = coefficients(x.shape[1])
    with gx.plate("tumour", x.shape[0], subsample_size=min(BATCH, x.shape[0])):
        logits = intercept + gx.subsample(x, event_dim=1) @ beta
        labels = None if benign is None else gx.subsample(benign)
        gx.sample("benign", distrax.Bernoulli(logits=logits), obs=labels)


def surrogate(x, benign):
    intercept, beta = coefficients(x.shape[1])
    rows = x.shape[0]
    weights = gx.param("weights", x_train.shape[0] / rows * jnp.ones(rows), gx.constraints.positive)
    with gx.plate("some", rows), gx.handlers.scale(scale=weights):
        gx.sample("benign", distrax.Bernoulli(logits=intercept + x @ beta), obs=benign)


some = gx.Batch(x_train[:SOME], y_train[:SOME])

# %%
# Fits
# ----
# Annealing begins at the fitted full-rank normal, and moves its noise (``whiten``), in which the
# posterior looks round.


def fit(guide, **options):
    start = time.perf_counter()
    result = gx.fit(jax.random.key(1), guide, x_train, y_train, progress=False, **options)
    return result.guide, time.perf_counter() - start


key = jax.random.key(0)
low_rank = gx.AutoLowRankMultivariateNormal(model, x_train, y_train, key=key, rank=5)
fits = {
    "mean-field": fit(gx.AutoNormal(model, x_train, y_train, key=key), steps=10_000),
    "low rank": fit(low_rank, steps=10_000),
    "full rank": fit(gx.AutoMultivariateNormal(model, x_train, y_train, key=key), steps=10_000),
}
annealed = gx.AutoSurrogateLikelihoodDAIS(
    model,
    surrogate,
    x_train,
    y_train,
    key=key,
    surrogate=some,
    base_dist=fits["full rank"][0],
    whiten=True,
    K=8,
    eta_max=0.5,
)
fits["surrogate DAIS"] = fit(annealed, steps=6_000, learning_rate=0.003)

# %%
# What they reach
# ---------------
# The ELBO is of all tumours, which ``at`` asks for. Tumours that were held out tell how good the
# predictions are; the log density also punishes misplaced confidence. Scikit-learn's penalised
# maximum likelihood stands beside them.


def report(name, probability, *figures):
    accuracy = jnp.mean((probability > 0.5) == y_test)
    log_density = jnp.mean(jnp.log(jnp.where(y_test == 1, probability, 1 - probability)))
    print(f"{name:18}{accuracy:10.3f}{log_density:13.3f}" + "".join(figures))


whole = gx.Batch(x_train, y_train).at(tumour=jnp.arange(x_train.shape[0]))
draws = {}
print(f"{'':18}{'accuracy':>10}{'log density':>13}{'ELBO':>10}{'k-hat':>8}{'seconds':>9}")
for name, (guide, seconds) in fits.items():
    diagnosis = gx.diagnose(jax.random.key(2), guide, whole, num_samples=4_000)
    draws[name] = diagnosis.draws
    logits = draws[name]["intercept"][:, None] + draws[name]["beta"] @ x_test.T
    probability = jax.nn.sigmoid(logits).mean(axis=0)
    figures = f"{diagnosis.elbo:10.2f}", f"{diagnosis.khat:8.2f}", f"{seconds:9.1f}"
    report(name, probability, *figures)
classical = LogisticRegression(max_iter=1_000).fit(x_train, y_train)
report("scikit-learn", jnp.asarray(classical.predict_proba(x_test)[:, 1]))

# %%
# A k-hat near or above 0.7 says that a guide does not cover all of this posterior. The guide with
# the best bound need not have the best predictions.
#
# The coefficients
# ----------------

low, quarter, middle, three_quarters, high = np.quantile(
    draws["surrogate DAIS"]["beta"], [0.05, 0.25, 0.5, 0.75, 0.95], axis=0
)
order = np.argsort(middle)
rows = np.arange(len(order))
figure, axis = plt.subplots(figsize=(7.5, 8))
axis.axvline(0, color="0.7", linewidth=1)
axis.hlines(rows, low[order], high[order], color="tab:blue", linewidth=1.5, label="90 %")
axis.hlines(
    rows, quarter[order], three_quarters[order], color="tab:blue", linewidth=5, label="50 %"
)
axis.plot(middle[order], rows, "o", color="white", markeredgecolor="tab:blue", label="median")
axis.plot(classical.coef_[0][order], rows, "x", color="black", label="scikit-learn")
axis.set_yticks(rows, data.feature_names[order])
axis.set(xlabel="coefficient of the standardised feature (log odds of benign)")
axis.set_title("Breast cancer data: posterior of the coefficients")
axis.legend(loc="lower right", frameon=False)
figure.tight_layout()
figure.savefig("logistic_regression.png", dpi=120)
