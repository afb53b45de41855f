"""What flow guides reach, and what they cost.

    python benchmarks/flows.py bend [--picture flows.png]     # banana and funnel
    python benchmarks/flows.py speed                          # beside NumPyro, at 21 dimensions
    python benchmarks/flows.py growth [--picture growth.png]  # cost by dimension and depth

`--json RESULT.json` writes the figures, with date and versions.
"""

import argparse
import functools

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import report
from jax import random
from numpyro import distributions as dist
from numpyro.infer import SVI, Trace_ELBO, autoguide
from report import clock

import guidax as gx

FLOWS = {
    "AutoIAFNormal": gx.AutoIAFNormal,
    "AutoBNAFNormal": gx.AutoBNAFNormal,
    "AutoRealNVPNormal": gx.AutoRealNVPNormal,
    "AutoNSFNormal": gx.AutoNSFNormal,
}
NUMPYRO_FLOWS = ["AutoIAFNormal", "AutoBNAFNormal"]


# What they reach


def banana():
    """`x ~ N(0, 2^2)`, `y | x ~ N(x^2 / 4, 0.5^2)`: log Z = 0."""
    x = gx.sample("x", distrax.Normal(jnp.zeros(()), 2.0))
    gx.sample("y", distrax.Normal(x**2 / 4, 0.5))


def funnel():
    """`v ~ N(0, 3^2)`, `x | v ~ N(0, exp(v / 2)^2)`, Neal's funnel in the plane: log Z = 0."""
    v = gx.sample("v", distrax.Normal(jnp.zeros(()), 3.0))
    gx.sample("x", distrax.Normal(0.0, jnp.exp(v / 2)))


TARGETS = {"banana": banana, "funnel": funnel}
BEND_STEPS, BEND_PARTICLES, SEEDS, ELBO_DRAWS = 5_000, 16, 3, 100_000


def bend(options):
    """Fit each guide to each target, and print how far its ELBO stays below log Z."""
    guides = {"AutoMultivariateNormal": gx.AutoMultivariateNormal, **FLOWS}
    rows, draws = [], {}
    print(f"{'target':8} {'guide':24} gap to log Z, in nats (mean of {SEEDS} seeds, worst)")
    for target, model in TARGETS.items():
        for name, constructor in guides.items():
            fits = [fit_target(constructor, model, seed) for seed in range(SEEDS)]
            gaps = [gap for gap, _ in fits]
            rows.append({"target": target, "guide": name, "gaps": gaps})
            draws[target, name] = fits[int(np.argmin(gaps))][1]
            print(f"{target:8} {name:24} {np.mean(gaps):8.3f} {max(gaps):8.3f}", flush=True)
    if options.picture:
        draw_targets(draws, options.picture)
    return rows


def fit_target(constructor, model, seed):
    """Return log Z less the ELBO, and draws."""
    key = random.key(seed)
    guide = constructor(model, key=key, init_loc_fn=gx.init_to_median(), init_scale=0.5)
    objective = gx.ELBO(num_particles=BEND_PARTICLES)
    result = gx.fit(key, guide, steps=BEND_STEPS, objective=objective, progress=False)
    gap = float(gx.ELBO(num_particles=ELBO_DRAWS)(result.guide, random.key(100 + seed)))
    return gap, result.guide.sample_posterior(key, sample_shape=(4_000,))


def draw_targets(draws, path):
    """Write a picture: draws of each guide over the contours of each target."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(name for _, name in draws))
    figure, axes = plt.subplots(
        2, len(names), figsize=(3 * len(names), 6), sharex="row", sharey="row"
    )
    windows = {"banana": ((-6, 6), (-3, 9), "x", "y"), "funnel": ((-10, 10), (-9, 9), "x", "v")}
    for row, (target, (across, up, a, b)) in zip(axes, windows.items(), strict=True):
        grid_a, grid_b = np.meshgrid(np.linspace(*across, 200), np.linspace(*up, 200))
        points = {a: jnp.asarray(grid_a), b: jnp.asarray(grid_b)}
        density = log_density(target, points)
        for axis, name in zip(row, names, strict=True):
            axis.plot(draws[target, name][a], draws[target, name][b], ".", ms=2, alpha=0.3)
            levels = density.max() - np.array([6.0, 4.0, 2.0, 0.5])
            axis.contour(grid_a, grid_b, density, levels=levels, colors="k", linewidths=0.7)
            axis.set(xlim=across, ylim=up, title=name if target == "banana" else None)
        row[0].set_ylabel(target)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def log_density(target, points):
    """Return the log density on a grid."""
    if target == "banana":
        x, y = points["x"], points["y"]
        return distrax.Normal(0.0, 2.0).log_prob(x) + distrax.Normal(x**2 / 4, 0.5).log_prob(y)
    v, x = points["v"], points["x"]
    return distrax.Normal(0.0, 3.0).log_prob(v) + distrax.Normal(0.0, jnp.exp(v / 2)).log_prob(x)


# What they cost

ROWS, FEATURES, STEPS, RATE = 500, 20, 2_000, 1e-3


@functools.cache
def regression_data():
    """Return features and labels."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(ROWS, FEATURES))
    odds = X @ np.linspace(1.0, -1.0, FEATURES)
    y = rng.random(ROWS) < 1 / (1 + np.exp(-odds))
    return jnp.asarray(X, float), jnp.asarray(y.astype(int))


def regression(X, y=None):
    """Logistic regression with a common scale: 21 latents. Both sides fit it as it stands."""
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    beta = numpyro.sample("beta", dist.Normal(0, tau).expand([X.shape[1]]).to_event(1))
    with numpyro.plate("data", X.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=X @ beta), obs=y)


def fit_guidax(constructor, seed=0, steps=STEPS):
    """Construct and fit."""
    X, y = regression_data()
    key = random.key(seed)
    guide = constructor(gx.from_numpyro(regression), X, y, key=key)
    return gx.fit(
        key, guide, X, y, steps=steps, optimizer=optax.adam, learning_rate=RATE, progress=False
    ).guide


def speed(options):
    """Time construction, compilation and 2,000 steps; then the same again."""
    del options
    rows = []
    X, y = regression_data()
    print(f"{'guide':26} {'first fit, s':>12} {'again, s':>10} {'ELBO':>9}")
    for name, constructor in FLOWS.items():
        first, guide = clock(lambda c=constructor: fit_guidax(c))
        again = min(clock(lambda c=constructor, s=s: fit_guidax(c, s))[0] for s in (1, 2, 3))
        elbo = -float(gx.ELBO(num_particles=2_000)(guide, random.key(9), X, y))
        rows.append({"guide": name, "side": "guidax", "first": first, "again": again, "elbo": elbo})
        print(f"{name:26} {first:12.2f} {again:10.3f} {elbo:9.2f}", flush=True)
    for name in NUMPYRO_FLOWS:
        guide = getattr(autoguide, name)(regression)
        svi = SVI(regression, guide, numpyro.optim.Adam(RATE), Trace_ELBO())

        def run(seed, svi=svi):
            return svi.run(random.key(seed), STEPS, X, y=y, progress_bar=False).params

        first, params = clock(lambda run=run: run(0))
        as_written, _ = clock(lambda run=run: run(1))
        jitted = jax.jit(lambda key, X, y, svi=svi: svi.run(key, STEPS, X, y=y, progress_bar=False))
        jitted(random.key(0), X, y)
        by_hand = min(clock(lambda s=s, f=jitted: f(random.key(s), X, y))[0] for s in (1, 2, 3))
        elbo = -float(Trace_ELBO(2_000).loss(random.key(9), params, regression, guide, X, y=y))
        rows.append(
            {
                "guide": name,
                "side": "numpyro",
                "first": first,
                "again": as_written,
                "jitted": by_hand,
                "elbo": elbo,
            }
        )
        label = f"NumPyro's {name}"
        print(
            f"{label:26} {first:12.2f} {as_written:10.3f} {elbo:9.2f}, jitted {by_hand:.3f}",
            flush=True,
        )
    return rows


DIMENSIONS, DEPTHS, GROWTH_STEPS = [5, 20, 50, 100, 200], [1, 2, 4, 8], 200


def growth(options):
    """Time the first and a later fit of 200 steps to a normal, by dimension and by depth."""
    rows = []
    print(f"{'guide':20} {'dim':>4} {'flows':>5} {'first fit, s':>12} {'ms a step':>10}")
    for name, constructor in FLOWS.items():
        cases = [(dim, None) for dim in DIMENSIONS] + [(20, depth) for depth in DEPTHS]
        for dim, depth in cases:
            more = {} if depth is None else {"num_flows": depth}

            def model(dim=dim):
                gx.sample("x", distrax.MultivariateNormalDiag(jnp.zeros(dim), jnp.ones(dim)))

            def fit(model=model, more=more, make=constructor):
                guide = make(model, key=random.key(0), **more)
                return gx.fit(random.key(1), guide, steps=GROWTH_STEPS, progress=False).guide

            first, _ = clock(fit)
            step = min(clock(fit)[0] for _ in range(3)) / GROWTH_STEPS
            flows = depth if depth is not None else "default"
            row = {"guide": name, "dim": dim, "flows": flows, "first": first, "step": step}
            rows.append(row)
            print(f"{name:20} {dim:4} {flows!s:>7} {first:10.2f} {1e3 * step:10.3f}", flush=True)
    if options.picture:
        draw_growth(rows, options.picture)
    return rows


def draw_growth(rows, path):
    """Write a picture of both costs against dimension and depth."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    options = {"figsize": (9, 7), "sharey": "row", "layout": "constrained"}
    figure, axes = plt.subplots(2, 2, **options)
    costs = {"first": f"first fit of {GROWTH_STEPS} steps, s", "step": "a step, s"}
    ticks = {"dim": DIMENSIONS, "flows": DEPTHS}
    for line, (cost, label) in zip(axes, costs.items(), strict=True):
        for axis, against in zip(line, ("dim", "flows"), strict=True):
            for name in FLOWS:
                own = [r for r in rows if r["guide"] == name]
                own = [r for r in own if (r["flows"] == "default") == (against == "dim")]
                axis.loglog([r[against] for r in own], [r[cost] for r in own], "o-", label=name)
            axis.set(xlabel={"dim": "dimension", "flows": "flows, at 20 dimensions"}[against])
            axis.set_xticks(ticks[against], ticks[against])
            axis.set_xticks([], minor=True)
        line[0].set_ylabel(label)
    axes[0, 0].set_yticks([2, 5, 10], [2, 5, 10])
    axes[0, 0].set_yticks([], minor=True)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("question", choices=["bend", "speed", "growth"])
    parser.add_argument("--picture", help="write a picture to this file")
    report.add_json(parser)
    options = parser.parse_args()
    rows = {"bend": bend, "speed": speed, "growth": growth}[options.question](options)
    report.write(options.json, {options.question: rows})


if __name__ == "__main__":
    main()
