"""What each guide costs and reaches on one posterior: the table of docs/choosing.md.

Logistic regression, 500 rows and 20 features with a common scale (21 latents), float32, the
defaults of `gx.fit`. The first fit is construction, compilation and 2,000 steps; the second is the
same again, which compiles nothing. Draws: 10,000 by `sample_posterior`. Times are the least of
three, but for the first. The ELBO is that of 20,000 draws.

    python benchmarks/guide_costs.py [--json RESULT.json]
"""

import argparse
import functools

import distrax
import jax
import jax.numpy as jnp
import report
from flows import regression_data
from report import clock
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx

STEPS, DRAWS, ELBO_DRAWS = 2_000, 10_000, 20_000
GUIDES = {
    "AutoDelta": gx.AutoDelta,
    "AutoNormal": gx.AutoNormal,
    "AutoLowRankMultivariateNormal": gx.AutoLowRankMultivariateNormal,
    "AutoMultivariateNormal": gx.AutoMultivariateNormal,
    "AutoLaplaceApproximation": gx.AutoLaplaceApproximation,
    "AutoRealNVPNormal": gx.AutoRealNVPNormal,
    "AutoNSFNormal": gx.AutoNSFNormal,
    "AutoIAFNormal": gx.AutoIAFNormal,
    "AutoBNAFNormal": gx.AutoBNAFNormal,
    "AutoDAIS, K=4": gx.AutoDAIS,
    "AutoDAIS, K=8, whitened, full covariance": functools.partial(
        gx.AutoDAIS, K=8, base_dist="cholesky", whiten=True, eta_max=1.0
    ),
}


def regression(X, y):
    """Logistic regression with a common scale of the coefficients."""
    tau = gx.sample("tau", tfd.HalfNormal(1.0))
    beta = gx.sample("beta", distrax.Independent(distrax.Normal(jnp.zeros(X.shape[1]), tau), 1))
    with gx.plate("data", X.shape[0]):
        gx.sample("y", distrax.Bernoulli(logits=X @ beta), obs=y)


def measure(constructor, X, y):
    """Return the figures of one guide."""

    def fit():
        guide = constructor(regression, X, y, key=jax.random.key(0))
        return gx.fit(jax.random.key(1), guide, X, y, steps=STEPS, progress=False).guide

    def draw():
        return guide.sample_posterior(jax.random.key(2), X, y, sample_shape=(DRAWS,))

    first, guide = clock(fit)
    figures = {"first_fit": first, "second_fit": min(clock(fit)[0] for _ in range(3))}
    draw()
    figures["draws"] = min(clock(draw)[0] for _ in range(3))
    if not isinstance(guide, gx.AutoDelta):
        diagnosis = gx.diagnose(jax.random.key(3), guide, X, y, num_samples=ELBO_DRAWS)
        figures |= {"elbo": float(diagnosis.elbo), "khat": float(diagnosis.khat)}
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    report.add_json(parser)
    options = parser.parse_args()
    X, y = regression_data()
    rows = {}
    print(f"{'guide':42}{'first fit':>10}{'second':>9}{'draws':>9}{'ELBO':>10}{'k-hat':>7}")
    for name, constructor in GUIDES.items():
        jax.clear_caches()  # or a row would find the programs of another
        row = rows[name] = measure(constructor, X, y)
        print(
            f"{name:42}{row['first_fit']:10.2f}{row['second_fit']:9.3f}{row['draws']:9.3f}"
            f"{row.get('elbo', float('nan')):10.2f}{row.get('khat', float('nan')):7.2f}",
            flush=True,
        )
    report.write(options.json, {"guides": rows})


if __name__ == "__main__":
    main()
