"""Data that lie on several hosts: two processes on this machine stand for them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

SCRIPT = Path(__file__).parents[2] / "examples" / "many_hosts.py"


def test_two_hosts_agree_with_one():
    """Each reads half of the rows and prints the guide that it holds, and so does one alone.

    In double precision: sums over hosts round in another order, and 1,000 steps hand that on.
    """
    environment = os.environ | {"XLA_FLAGS": "", "JAX_ENABLE_X64": "1"}
    done = subprocess.run(
        [sys.executable, SCRIPT], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^(one process|host \d): (.*?\].*?\].*?\])$", done.stdout, re.M | re.S)
    numbers = {name: np.array(re.findall(r"-?\d+\.\d+", text), float) for name, text in lines}
    assert set(numbers) == {"one process", "host 0", "host 1"}, done.stdout
    assert numbers["one process"].size == 9
    np.testing.assert_array_equal(numbers["host 0"], numbers["host 1"])
    np.testing.assert_allclose(numbers["host 0"], numbers["one process"], atol=1e-6)
