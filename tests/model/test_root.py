"""The root of an increasing function, whatever the method in it comes to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorflow_probability.substrates import jax as tfp

from assertions import precision
from guidax._model.tfp_root import increasing_root

METHOD = tfp.math.find_root_chandrupatla


def ending(place):
    """Return the method with another end: where `place` says, given the right one."""

    def method(*args, **kwargs):
        found = METHOD(*args, **kwargs)
        return found._replace(estimated_root=place(found.estimated_root, kwargs["high"]))

    return method


@pytest.mark.parametrize(
    "place",
    [
        lambda root, high: root,
        lambda root, high: high,
        lambda root, high: -high,
        lambda root, high: root + 0.01 * high,
        lambda root, high: jnp.nan * root,
    ],
    ids=["the root", "upper end", "lower end", "beside it", "nan"],
)
def test_a_wrong_end_is_no_root(place, monkeypatch):
    """The images of known roots, near and far, steep and flat; and what no number brackets."""
    monkeypatch.setattr(tfp.math, "find_root_chandrupatla", ending(place))
    roots = jnp.array([-300.0, -1.0, 0.0, 0.25, 7.0])
    found = jax.vmap(lambda y: increasing_root(lambda t: t**3 + 0.1 * t - y, y))(
        roots**3 + 0.1 * roots
    )
    # At zero the slope is 0.1, so that rounding of the image counts tenfold.
    np.testing.assert_allclose(found, roots, rtol=50 * precision(), atol=1e3 * precision())
    y = jnp.asarray(2.0, float)
    assert jnp.isnan(increasing_root(lambda t: jnp.tanh(t) - y, y))
