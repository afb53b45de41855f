"""How much memory a guide of many latents takes, measured in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource", reason="peak memory is asked of a POSIX system")
SCRIPT = Path(__file__).with_name("low_rank_memory.py")


@pytest.mark.parametrize(
    ("rank", "columns", "bound"),
    [("10", 10, 0.5), pytest.param("default", 316, 1.5, marks=pytest.mark.slow)],
    ids=["10", "default"],
)
def test_a_low_rank_guide_of_100_000_latents(rank, columns, bound):
    """In GiB: a factor of 316 columns has 0.12, and a fit holds its gradient and moments too."""
    own = {"JAX_ENABLE_X64": "0", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, str(SCRIPT), rank]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rank"] == columns
    assert max(found["peaks"].values()) < bound, found
