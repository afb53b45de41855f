"""Parameters exchanged with NumPyro's guides of the same name."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from numpyro.infer import SVI, Trace_ELBO, autoguide
from numpyro.infer import init_to_feasible as numpyro_feasible

import guidax as gx
from assertions import distance, perturbed, refused_type
from models import regression, regression_data

NAMES = [
    "AutoNormal",
    "AutoDelta",
    "AutoDiagonalNormal",
    "AutoMultivariateNormal",
    "AutoLowRankMultivariateNormal",
    "AutoLaplaceApproximation",
]
LEVELS = [0.1, 0.5, 0.9]


def model(y):
    """Sites whose quantiles NumPyro gets right: real, positive and bounded ones."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    p = numpyro.sample("p", dist.Uniform(-1.0, 3.0))
    s = numpyro.param("s", jnp.asarray(0.7, float), constraint=constraints.positive)
    with numpyro.plate("rows", 3):
        z = numpyro.sample("z", dist.Normal(mu[0], sigma))
        numpyro.sample("y", dist.Normal(z + p, s), obs=y)


def both(name, y, key):
    """Return a guide of guidax, moved from its start, and NumPyro's, set up."""
    ours = getattr(gx, name)(gx.from_numpyro(model), y, key=key)
    ours = perturbed(ours, key, 0.2)
    theirs = getattr(autoguide, name)(model, init_loc_fn=numpyro_feasible)
    svi = SVI(model, theirs, numpyro.optim.Adam(0.1), Trace_ELBO())
    start = svi.get_params(svi.init(jax.random.key(1), y))
    return ours, theirs, start


def relative_gap(a, b):
    """Return the largest difference of two arrays, in units of `max(|b|, 1)`.

    A quantile is a sum, `loc + scale * eps`, rounded as its summands are, of size one here. Near
    zero they cancel, and no digit of the sum need be right relative to the sum itself.
    """
    return float(np.max(np.abs(a - b) / np.maximum(np.abs(b), 1.0)))


def cases():
    """Yield every guide in both precisions. Single precision is slow, but for one guide."""
    for name in NAMES:
        yield pytest.param(name, True, id=f"x64-{name}")
        marks = () if name == "AutoMultivariateNormal" else (pytest.mark.slow,)
        yield pytest.param(name, False, marks=marks, id=f"float32-{name}")


@pytest.mark.parametrize(("name", "x64"), list(cases()))
def test_quantiles_of_exchanged_parameters(name, x64, key):
    with jax.enable_x64(x64):
        y = jnp.asarray([0.3, -1.0, 2.0], float)
        ours, theirs, start = both(name, y, key)
        params = gx.to_numpyro_params(ours, y)
        assert params.keys() == start.keys()
        assert {n: x.shape for n, x in params.items()} == {n: x.shape for n, x in start.items()}
        back = gx.from_numpyro_params(ours, params, y)
        assert distance(back, ours) < (1e-12 if x64 else 1e-5)
        if name == "AutoLaplaceApproximation":
            return  # NumPyro's Hessian keeps the data and the parameters of its first call
        moved = gx.from_numpyro_params(ours, start, y)
        spread = perturbed(ours, key, 1.0)  # scales far from one, too
        for guide, values in (
            (ours, params),
            (back, params),
            (moved, start),
            (spread, gx.to_numpyro_params(spread, y)),
        ):
            if name == "AutoDelta":
                expected = theirs.median(values)
                found = guide.median(y)
            else:
                expected = theirs.quantiles(values, LEVELS)
                found = guide.quantiles(LEVELS, y)
            for site in ("mu", "sigma", "p", "z"):
                assert relative_gap(found[site], expected[site]) < (1e-12 if x64 else 1e-6), site


def test_a_trained_guide_is_used_in_numpyro(key):
    y = jnp.asarray([0.3, -1.0, 2.0], float)
    ours, theirs, _ = both("AutoMultivariateNormal", y, key)
    ours = gx.fit(key, ours, y, steps=500, progress=False).guide
    params = gx.to_numpyro_params(ours, y)
    draws = theirs.sample_posterior(key, params, sample_shape=(4000,))
    own = ours.sample_posterior(key, y, sample_shape=(4000,))
    for site in ("mu", "sigma", "z"):
        spread = np.asarray(own[site]).std(axis=0)
        gap = np.abs(np.asarray(own[site]).mean(axis=0) - np.asarray(draws[site]).mean(axis=0))
        assert np.all(gap < 7 * spread / 4000**0.5)


def test_prefix_lists_and_mistakes(key):
    X, y = regression_data()
    guide = gx.AutoGuideList(
        regression, X, y, key=key, parts={"beta": gx.AutoMultivariateNormal, "tau": gx.AutoNormal}
    )
    params = gx.to_numpyro_params(guide, prefix="q")
    assert params.keys() == {"q_loc", "q_scale_tril", "tau_q_loc", "tau_q_scale", "weight"}
    assert distance(gx.from_numpyro_params(guide, params, prefix="q"), guide) < 1e-5
    with pytest.raises(ValueError, match="'auto_loc'.*prefix|'tau_auto_loc'.*prefix"):
        gx.from_numpyro_params(guide, params)
    with pytest.raises(ValueError, match=r"'q_loc' has shape \(2,\)"):
        gx.from_numpyro_params(guide, params | {"q_loc": jnp.zeros(2)}, prefix="q")
    without = {n: x for n, x in params.items() if n != "weight"}
    with pytest.raises(ValueError, match="weight"):
        gx.from_numpyro_params(guide, without, prefix="q")
    clash = gx.AutoGuideList(
        regression,
        X,
        y,
        key=key,
        parts={"beta": gx.AutoMultivariateNormal, "tau": gx.AutoDiagonalNormal},
    )
    with pytest.raises(ValueError, match="clash"):
        gx.to_numpyro_params(clash)
    batched = gx.AutoBatchedMultivariateNormal(regression, X, y, key=key, batch_ndim=0)
    assert gx.to_numpyro_params(batched)["auto_scale_tril"].shape == (4, 4)

    def two():
        gx.sample("a", distrax.Normal(jnp.zeros(2), 1.0))
        gx.sample("b", distrax.Normal(jnp.zeros(2), 1.0))

    with refused_type("to_numpyro_params takes a guide first"):
        gx.to_numpyro_params(key)
    with refused_type("from_numpyro_params takes a guide first"):
        gx.from_numpyro_params(key, {})
    several = gx.AutoBatchedMultivariateNormal(two, key=key)
    with pytest.raises(ValueError, match="batched normals over several sites mix"):
        gx.to_numpyro_params(several)
    with pytest.raises(ValueError, match="batched normals over several sites mix"):
        gx.from_numpyro_params(several, {})
