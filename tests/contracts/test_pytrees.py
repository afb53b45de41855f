"""Every guide is a pytree that lives under every transformation of plain JAX."""

import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidax as gx
from assertions import distance, identical, perturbed
from guidax._model.static import Static
from models import (
    NETWORK_DATA,
    ConjugateNormal,
    Network,
    new_traces,
    regression,
    regression_data,
)
from registry import GUIDES, every_guide

X, y = regression_data()


def network(key):
    return Network(key).model


CASES = {
    "function": (lambda key: regression, (X, y)),
    "module": (network, (NETWORK_DATA,)),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every_guide
@every_case
def test_leaves_are_strong_floats_and_plain_transformations_work(entry, case, key):
    make_model, args = case
    guide = entry.make(make_model(key), *args, key=key)
    for leaf in jax.tree.leaves(guide):
        assert isinstance(leaf, jax.Array)
        assert jnp.issubdtype(leaf.dtype, jnp.floating) and not leaf.weak_type
    assert not any(map(callable, guide.__dict__.values()))  # no method hides in a field

    objective = gx.ELBO()
    loss, grads = jax.jit(jax.value_and_grad(objective))(guide, key, *args)
    assert jax.tree.structure(grads) == jax.tree.structure(guide)
    assert jnp.allclose(loss, objective(guide, key, *args), rtol=1e-5)
    doubled = jax.tree.map(lambda x: 2 * x, guide)
    assert jax.tree.structure(doubled) == jax.tree.structure(guide)
    # The gradient is that of the loss: along a direction it is a difference quotient.
    step = 1e-6 if jax.config.jax_enable_x64 else 1e-3
    direction = perturbed(jax.tree.map(jnp.zeros_like, guide), key, 1.0)

    def along(t):
        moved = jax.tree.map(lambda x, d: x + t * d, guide, direction)
        return objective(moved, key, *args)

    quotient = (along(step) - along(-step)) / (2 * step)
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True)
    slope = sum(jnp.sum(g * d) for g, d in pairs)
    assert jnp.allclose(slope, quotient, rtol=1e-5 if step < 1e-4 else 5e-2, atol=1e-3)


def assert_an_ensemble_equals_its_members(entry, case, key):
    make_model, args = case

    def fitted(k):
        guide = entry.make(make_model(k), *args, key=k)
        return guide, gx.fit(k, guide, *args, steps=10, progress=False)

    def in_ensemble(k):
        guide = entry.make(make_model(k), *args, key=k)
        return guide, gx.fit(k, guide, *args, steps=10)

    keys = jax.random.split(key, 3)
    guides, results = jax.vmap(in_ensemble)(keys)
    assert results.losses.shape == (3, 10)
    for i in range(3):
        guide, result = fitted(keys[i])
        assert distance(guide, jax.tree.map(lambda x, i=i: x[i], guides)) < 1e-5
        assert distance(result.guide, jax.tree.map(lambda x, i=i: x[i], results.guide)) < 1e-5


@every_guide
def test_an_ensemble_equals_its_members(entry, key):
    assert_an_ensemble_equals_its_members(entry, CASES["function"], key)


def test_an_ensemble_with_a_network_equals_its_members(key):
    assert_an_ensemble_equals_its_members(GUIDES["AutoNormal"], CASES["module"], key)


@every_guide
@every_case
def test_equal_models_made_twice_are_one_program(entry, case, key):
    make_model, args = case
    first = entry.make(make_model(key), *args, key=key)
    other_key = jax.random.key(7)
    other = entry.make(make_model(other_key), *args, key=other_key)
    assert jax.tree.structure(first) == jax.tree.structure(other)
    gx.fit(key, first, *args, steps=3, progress=False)
    first.sample_posterior(key, *args, sample_shape=(3,))
    first.quantiles(0.5, *args)

    def again():
        guide = entry.make(make_model(other_key), *args, key=other_key)
        guide = gx.fit(other_key, guide, *args, steps=4, progress=False, learning_rate=1e-3).guide
        guide.sample_posterior(key, *args, sample_shape=(3,))
        guide.quantiles(0.3, *args)

    assert new_traces(again) == 0


@every_guide
def test_no_tracer_leaks(entry, key):
    """Construct, differentiate and draw under vmap: nothing is left behind in the guide."""
    data = jnp.asarray(ConjugateNormal.y, float)

    def use(k):
        guide = entry.make(ConjugateNormal.model, data, key=k)
        grads = jax.grad(gx.ELBO())(guide, k, data)
        return grads, guide.sample_posterior(k, data)

    with jax.checking_leaks():  # it keeps no caches, so this is slow
        jax.vmap(use)(jax.random.split(key, 2))


@every_guide
def test_use_changes_nothing(entry, key):
    guide = entry.make(regression, X, y, key=key)
    before = jax.tree.map(jnp.copy, guide)
    gx.fit(key, guide, X, y, steps=2, progress=False)
    guide.sample_posterior(key, X, y)
    jax.vmap(lambda k: guide.sample_posterior(k, X, y))(jax.random.split(key, 2))
    assert identical(before, guide)
    assert jax.tree.structure(before) == jax.tree.structure(guide)


@every_guide
def test_methods_under_filter_jit_and_inside_a_jit(entry, key):
    guide = entry.make(regression, X, y, key=key)
    plain = guide.sample_posterior(key, X, y, sample_shape=(3,))
    filtered = eqx.filter_jit(guide.sample_posterior)(key, X, y, sample_shape=(3,))
    inside = jax.jit(lambda g, X: g.sample_posterior(key, X, y, sample_shape=(3,)))(guide, X)
    assert distance(plain, filtered) < 1e-5 and distance(plain, inside) < 1e-5
    with pytest.raises(TypeError, match="unhashable|hash"):
        jax.jit(guide.sample_posterior)(key, X, y)


@every_guide
def test_guides_travel_through_files_and_pickles(entry, key, tmp_path):
    """Pickles take models and functions that are found by their names, as those of a module."""
    guide = entry.make(regression, X, y, key=key)
    eqx.tree_serialise_leaves(tmp_path / "guide.eqx", guide)
    blank = jax.tree.map(jnp.zeros_like, guide)
    assert identical(eqx.tree_deserialise_leaves(tmp_path / "guide.eqx", blank), guide)
    loaded = pickle.loads(pickle.dumps(guide))
    assert jax.tree.structure(loaded) == jax.tree.structure(guide) and identical(loaded, guide)


class Salted:
    """Hashes as strings do: in another way in each process."""

    salt = 0

    def __hash__(self):
        return self.salt

    def __eq__(self, other):
        return isinstance(other, Salted)


def test_constants_from_another_process_are_equal(monkeypatch):
    constant = Salted(), np.arange(3)
    stored = pickle.dumps(Static(constant))
    monkeypatch.setattr(Salted, "salt", 1)
    loaded = pickle.loads(stored)
    assert loaded == Static(constant) and hash(loaded) == hash(Static(constant))
    assert loaded != Static((Salted(), np.arange(4)))
