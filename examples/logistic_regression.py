"""Bayesian logistic regression on a real data set: tumours, benign or malignant, from 30 features.

The data are the Wisconsin diagnostic breast cancer data (W. N. Street, W. H. Wolberg and O. L.
Mangasarian, 1993), as scikit-learn ships them. Beside the posterior stands scikit-learn's penalised
maximum likelihood, whose point estimate should lie inside most of the intervals.

    python examples/logistic_regression.py [PICTURE.png]
"""

import sys

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


def model(features, benign=None):
    """Normal coefficients of unknown common size tau, and an intercept."""
    tau = gx.sample("tau", tfd.HalfNormal(1.0))
    intercept = gx.sample("intercept", distrax.Normal(0.0, 5.0))
    zeros = jnp.zeros(features.shape[1])
    beta = gx.sample("beta", distrax.Independent(distrax.Normal(zeros, tau), 1))
    with gx.plate("tumour", features.shape[0]):
        logits = intercept + features @ beta
        gx.sample("benign", distrax.Bernoulli(logits=logits), obs=benign)


def load():
    """Return names, and standardised features and labels for training and for testing."""
    data = load_breast_cancer()
    x_train, x_test, y_train, y_test = train_test_split(
        data.data, data.target, test_size=0.3, stratify=data.target, random_state=0
    )
    scaler = StandardScaler().fit(x_train)
    split = (scaler.transform(x_train), y_train, scaler.transform(x_test), y_test)
    return data.feature_names, *(jnp.asarray(x, float) for x in split)


def predictive_probability(draws, features):
    """Return the probability of each row, averaged over the posterior."""
    logits = draws["intercept"][:, None] + draws["beta"] @ features.T
    return jax.nn.sigmoid(logits).mean(axis=0)


def report(name, probability, y):
    """Print held-out accuracy and log density, which also punishes misplaced confidence."""
    accuracy = jnp.mean((probability > 0.5) == y)
    log_density = jnp.mean(jnp.log(jnp.where(y == 1, probability, 1 - probability)))
    print(f"{name:30}{accuracy:12.3f}{log_density:14.3f}")


def report_calibration(probability, y):
    """Print how often the tumours were benign beside how often that was foretold."""
    print(f"\n{'predicted probability':30}{'tumours':>12}{'foretold':>14}{'benign':>12}")
    for low, high in [(0.0, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 1.0)]:
        rows = (probability >= low) & ((probability < high) | (high == 1.0))
        foretold, benign = probability[rows].mean(), y[rows].mean()
        print(f"{f'{low} to {high}':30}{rows.sum():12d}{foretold:14.3f}{benign:12.3f}")


def draw_picture(names, intervals, estimate, path):
    """Plot the 50 and 90 % interval of each coefficient, and scikit-learn's estimate."""
    low, quarter, middle, three_quarters, high = intervals
    order = np.argsort(middle)
    rows = np.arange(len(names))
    figure, axis = plt.subplots(figsize=(7.5, 8))
    axis.axvline(0, color="0.7", linewidth=1)
    axis.hlines(rows, low[order], high[order], color="tab:blue", linewidth=1.5, label="90 %")
    axis.hlines(
        rows, quarter[order], three_quarters[order], color="tab:blue", linewidth=5, label="50 %"
    )
    axis.plot(middle[order], rows, "o", color="white", markeredgecolor="tab:blue", label="median")
    axis.plot(estimate[order], rows, "x", color="black", label="scikit-learn")
    axis.set_yticks(rows, names[order])
    axis.set_ylim(-0.8, len(names) - 0.2)
    axis.set_xlabel("coefficient of the standardised feature (log odds of benign)")
    axis.set_title("Breast cancer data: posterior of the coefficients")
    axis.legend(loc="lower right", frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main():
    names, x_train, y_train, x_test, y_test = load()
    key_start, key_fit, key_draws = jax.random.split(jax.random.key(0), 3)

    guide = gx.AutoNormal(model, x_train, y_train, key=key_start)
    guide = gx.fit(key_fit, guide, x_train, y_train, steps=5_000).guide
    draws = guide.sample_posterior(key_draws, x_train, y_train, sample_shape=(4_000,))

    classical = LogisticRegression(max_iter=1_000).fit(x_train, y_train)
    print(f"{f'{len(y_test)} tumours held out':30}{'accuracy':>12}{'log density':>14}")
    probability = predictive_probability(draws, x_test)
    report("guidax, AutoNormal", probability, y_test)
    report("scikit-learn", jnp.asarray(classical.predict_proba(x_test)[:, 1]), y_test)
    report_calibration(probability, y_test)

    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    intervals = np.asarray(guide.quantiles(levels, x_train, y_train)["beta"])
    estimate = classical.coef_[0]
    inside = np.sum((intervals[0] < estimate) & (estimate < intervals[-1]))
    print(f"\n{inside} of {len(names)} estimates of scikit-learn lie in the 90 % interval")

    path = sys.argv[1] if len(sys.argv) > 1 else "logistic_regression.png"
    draw_picture(names, intervals, estimate, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
