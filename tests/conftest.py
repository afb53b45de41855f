"""Settings that every test shares."""

import os

import jax
import jaxlib
import pytest

# Compilation is what the tests wait for, and without XLA's costly passes they wait a third less.
# `nox -s untyped` runs the programs that users run.
is_hasty = "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ

# Eight devices, simulated where there are none, for the tests of shardings.
flags = ["--xla_force_host_platform_device_count=8"]
if is_hasty and jaxlib.__version__.startswith("0.10."):
    flags.append("--xla_cpu_use_fusion_emitters=false")  # halves compilation; gone in later ones
    flags.append("--xla_cpu_parallel_codegen_split_count=1")  # the other cores run tests, too
os.environ.setdefault("XLA_FLAGS", " ".join(flags))  # read with the first computation

if is_hasty:
    jax.config.update("jax_disable_most_optimizations", True)

# Double precision, unless the environment has said otherwise (`nox -s float32` does).
if "JAX_ENABLE_X64" not in os.environ:
    jax.config.update("jax_enable_x64", True)


@pytest.fixture(scope="module", autouse=True)
def clear_caches():
    """Free the compiled programs of each module.

    A process that keeps some hundreds of them runs out of memory maps: "LLVM compilation error:
    Cannot allocate memory".
    """
    import models  # here, after the settings above

    models.traces[0] = 0  # of this module's own runs
    yield
    jax.clear_caches()


@pytest.fixture
def key():
    """The one seed of all statistical tests."""
    return jax.random.key(0)
