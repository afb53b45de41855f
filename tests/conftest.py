"""Settings that every test shares."""

import os

# Eight devices, simulated where there are none, for the tests of shardings.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import pytest

# Double precision, unless the environment has said otherwise (`nox -s float32` does).
if "JAX_ENABLE_X64" not in os.environ:
    jax.config.update("jax_enable_x64", True)

# Compilation is what the tests wait for, and without XLA's costly passes they wait a third less.
# `nox -s untyped` runs the programs that users run.
if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module", autouse=True)
def clear_caches():
    """Free the compiled programs of each module.

    A process that keeps some hundreds of them runs out of memory maps: "LLVM compilation error:
    Cannot allocate memory".
    """
    yield
    jax.clear_caches()


@pytest.fixture
def key():
    """The one seed of all statistical tests."""
    return jax.random.key(0)
