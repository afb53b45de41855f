"""Settings that every test shares."""

import os

import jax
import pytest

# Double precision, unless the environment has said otherwise (`nox -s float32` does).
if "JAX_ENABLE_X64" not in os.environ:
    jax.config.update("jax_enable_x64", True)


@pytest.fixture(scope="module", autouse=True)
def clear_caches():
    """Free the compiled programs of each module.

    A process that keeps some hundreds of them runs out of memory maps: "LLVM compilation error:
    Cannot allocate memory".
    """
    yield
    jax.clear_caches()
