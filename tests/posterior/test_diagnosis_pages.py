"""The pages on diagnosis and on samplers run, and print what they say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["diagnostics.md", "samplers.md"])
def test_the_page_prints_what_it_says(name):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "JAXTYPING_"))}
    page = [str(ROOT / "tests" / "test_readme.py"), str(ROOT / "docs" / name)]
    run = subprocess.run(
        [sys.executable, *page], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
