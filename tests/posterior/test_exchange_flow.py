"""Flows to and from NumPyro: one map, one density, both ways."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

import guidax as gx
from assertions import perturbed, precision

numpyro = pytest.importorskip("numpyro")
from numpyro import distributions as dist  # noqa: E402
from numpyro.infer import SVI, Trace_ELBO, autoguide  # noqa: E402

DIM = 5


def model():
    numpyro.sample("a", dist.Normal(0.0, 1.0).expand([DIM - 1]).to_event(1))
    numpyro.sample("b", dist.HalfNormal(1.0))


CASES = {
    "IAF": (gx.AutoIAFNormal, autoguide.AutoIAFNormal, {"num_flows": 2}),
    "IAF, skipping": (
        gx.AutoIAFNormal,
        autoguide.AutoIAFNormal,
        {"num_flows": 2, "hidden_dims": [8], "skip_connections": True},
    ),
    "BNAF": (gx.AutoBNAFNormal, autoguide.AutoBNAFNormal, {"hidden_factors": [3, 2]}),
    "BNAF, gated": (
        gx.AutoBNAFNormal,
        autoguide.AutoBNAFNormal,
        {"num_flows": 3, "hidden_factors": [2]},
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def numpyro_guide(case):
    """Return NumPyro's guide, and parameters for it on which no log-scale is clamped."""
    _, theirs, options = case
    guide = theirs(model, **options)
    svi = SVI(model, guide, numpyro.optim.Adam(0.1), Trace_ELBO())
    params = svi.get_params(svi.init(random.key(0)))
    return guide, jax.tree.map(lambda x: 0.4 * x, params)


def guidax_guide(case, scale=0.1):
    ours, _, options = case
    guide = ours(gx.from_numpyro(model), key=random.key(0), **options)
    return perturbed(guide, random.key(1), scale)


def assert_one_flow(guide, numpyro_guide, params):
    """Compare images of the same noise, and densities there."""

    @jax.jit
    def compare(guide, params, eps):
        theirs, ours = numpyro_guide.get_posterior(params), guide.get_posterior()
        z = eps
        for part in theirs.transforms:
            z = part(z)
        gap = ours.log_prob(z) - theirs.log_prob(z, _intermediates(theirs, eps))
        return z, guide.get_transform().forward(eps) - z, gap

    z, difference, gap = compare(guide, params, random.normal(random.key(2), (50, DIM)))
    tolerance = 1e3 * precision()
    assert float(z.std()) > 0.01
    assert float(jnp.abs(difference).max()) < tolerance
    assert float(jnp.abs(gap).max()) < tolerance


def _intermediates(theirs, eps):
    """Return what NumPyro keeps of a draw; its block flows have no inverse."""
    kept = []
    for part in theirs.transforms:
        before = eps
        eps, middle = part.call_with_intermediates(eps)
        kept.append([before, middle])
    return kept


@every_case
def test_out_and_back(case):
    guide, (theirs, _) = guidax_guide(case), numpyro_guide(case)
    params = gx.to_numpyro_params(guide)
    assert_one_flow(guide, theirs, params)
    back = gx.from_numpyro_params(guidax_guide(case, 0.0), params)
    assert_one_flow(back, theirs, params)


@every_case
def test_in_and_out(case):
    theirs, params = numpyro_guide(case)
    guide = gx.from_numpyro_params(guidax_guide(case), params)
    assert_one_flow(guide, theirs, params)
    again = gx.to_numpyro_params(guide)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(x, y, rtol=100 * precision(), atol=100 * precision())


def test_a_prefix_and_a_missing_name():
    case = CASES["IAF"]
    params = gx.to_numpyro_params(guidax_guide(case), prefix="q")
    assert sorted(params) == ["q_arn__0$params", "q_arn__1$params"]
    with pytest.raises(ValueError, match=re.escape("params lacks 'auto_arn__0$params'")):
        gx.from_numpyro_params(guidax_guide(case), params)


def test_another_shape_is_refused():
    params = gx.to_numpyro_params(guidax_guide(CASES["IAF, skipping"]))
    with pytest.raises(ValueError, match="has shapes"):
        gx.from_numpyro_params(guidax_guide(CASES["IAF"]), params)


def test_a_log_scale_that_numpyro_would_clamp_is_refused():
    narrow = gx.AutoIAFNormal(gx.from_numpyro(model), key=random.key(0), init_scale=1e-3)
    with pytest.raises(ValueError, match="NumPyro clamps them"):
        gx.to_numpyro_params(narrow)
    theirs, params = numpyro_guide(CASES["IAF"])
    layers = params["auto_arn__0$params"]
    weight, bias = layers[-1]
    params["auto_arn__0$params"] = [*layers[:-1], (weight, bias.at[-1].set(3.5))]
    with pytest.raises(ValueError, match="flow 0 has log-scales"):
        gx.from_numpyro_params(guidax_guide(CASES["IAF"]), params)


def test_what_numpyro_lacks_is_refused():
    bound = gx.from_numpyro(model)
    flow = gx.AutoIAFNormal(bound, key=random.key(0))
    full = gx.AutoMultivariateNormal(bound, key=random.key(0))
    with pytest.raises(ValueError, match="full covariance"):
        gx.to_numpyro_params(flow.warm_start(full))
    with pytest.raises(TypeError, match="coupling"):
        gx.to_numpyro_params(gx.AutoRealNVPNormal(bound, key=random.key(0), num_flows=1))
    narrow = gx.AutoIAFNormal(bound, key=random.key(0), hidden_dims=[2])
    with pytest.raises(ValueError, match="hidden layers of 2 units for 5 coordinates"):
        gx.to_numpyro_params(narrow)
