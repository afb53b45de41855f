"""Families of one's own: what they give is checked while it is traced."""

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import guidax as gx
from assertions import refused_type

Y = jnp.zeros(3)


def model(y):
    gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
    with gx.plate("rows", 3):
        gx.sample("y", distrax.Normal(jnp.zeros(()), 1.0), obs=y)


class Point(gx.AbstractFamily):
    """Whatever a function makes of the one parameter."""

    loc: jax.Array
    make: object = eqx.field(static=True)
    sites: tuple = eqx.field(static=True)

    def draw(self, key, target):
        """Return it."""
        return self.make(self.loc)


def guide_that_draws(make):
    made = gx.AutoNormal(model, Y, key=jax.random.key(0))
    family = Point(loc=jnp.zeros(()), make=make, sites=made.family.sites)
    return gx.AutoGuide(made.model, family, made.structure)


def block(*sites, plates=()):
    return {gx.Block(sites, plates): jnp.zeros(plates and 3)}


MISTAKES = {
    "a dictionary": (lambda z: {"z": z}, TypeError, "draw is a gx.Draw, .*got dict"),
    "a name for a block": (
        lambda z: gx.Draw.of({"z": z}, log_q={"z": z}),
        TypeError,
        r"a log density for each gx.Block .*gx.Block\(\('z',\)\)",
    ),
    "an unknown site": (
        lambda z: gx.Draw.of({"z": z}, log_q=block("zz")),
        ValueError,
        r"a block with the sites \['zz'\], which the model lacks: it has \['z'\]",
    ),
    "an unknown plate": (
        lambda z: gx.Draw.of({"z": z}, log_q=block("z", plates=("row",))),
        ValueError,
        r"a block with the plates \['row'\], but the plates around its sites \['z'\] are \[\]",
    ),
    "an unknown space": (
        lambda z: gx.Draw.of({"z": z}, "typo", block("z")),
        ValueError,
        r"the space of a draw's site 'z' is one of .*got 'typo'",
    ),
    "another value": (
        lambda z: gx.Draw.of({"z": z, "w": z}, log_q=block("z")),
        ValueError,
        r"the draw has values of \['w'\], which are no latents of the model: it has \['z'\]",
    ),
}


@pytest.mark.parametrize("make, error, message", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_of_a_draw_are_named(make, error, message, key):
    guide = guide_that_draws(make)
    for use in (lambda: gx.ELBO()(guide, key, Y), lambda: guide.sample_posterior(key, Y)):
        with refused_type(message, error):
            use()


def test_a_draw_without_mistakes(key):
    """At zero, where log q is zero: four standard normal densities."""
    guide = guide_that_draws(lambda z: gx.Draw.of({"z": z}, log_q=block("z")))
    assert abs(float(gx.ELBO()(guide, key, Y)) - 2 * jnp.log(2 * jnp.pi)) < 1e-5


def test_a_guide_is_made_of_a_model_a_family_and_a_structure(key):
    made = gx.AutoNormal(model, Y, key=key)
    parts = {"model": made.model, "family": made.family, "structure": made.structure}
    for name, bad in (("model", model), ("family", None), ("structure", {})):
        with refused_type(f"AutoGuide: {name} is an instance of .*another guide's {name}"):
            gx.AutoGuide(**{**parts, name: bad})
