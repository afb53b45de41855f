"""The page on predictions runs, and prints what it says."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_prints_what_it_says(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "JAXTYPING_"))}
    page = [str(ROOT / "tests" / "test_readme.py"), str(ROOT / "docs" / "prediction.md")]
    run = subprocess.run(
        [sys.executable, *page],
        env=environment | {"MPLBACKEND": "Agg"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert (tmp_path / "weights.png").stat().st_size
