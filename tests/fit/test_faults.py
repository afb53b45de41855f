"""A fit in a process of its own that is killed at random moments, and started again.

As a script it is that process: `python test_faults.py KIND [FOLDER]` prints a line at each report
and a digest of the result.
"""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidax as gx

ROWS, PER_BATCH, EVERY = 64, 16, 20
STEPS = {"arrays": 20_000, "batches": 6_000}
X = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
Y = X @ np.asarray([1.0, -2.0, 0.5], np.float32)
KILLS = 10  # of each kind


def model(x, y):
    """A regression on all rows, or on a batch of them."""
    beta = gx.sample("beta", distrax.Independent(distrax.Normal(jnp.zeros(3), 1.0), 1))
    with gx.plate("data", ROWS, subsample_size=y.shape[0]):
        gx.sample("y", distrax.Normal(x @ beta, 1.0), obs=y)


def batch_at(step):
    rows = np.random.default_rng(step).choice(ROWS, PER_BATCH, replace=False)
    return gx.Batch(X[rows], Y[rows])


def main(kind, folder=None):
    """Fit, and say what came of it."""
    args = (X, Y) if kind == "arrays" else batch_at(0).unpack()[0]
    guide = gx.AutoMultivariateNormal(model, *args, key=jax.random.key(0))
    result = gx.fit(
        jax.random.key(1),
        guide,
        *(args if kind == "arrays" else ()),
        batches=None if kind == "arrays" else batch_at,
        steps=STEPS[kind],
        progress=lambda step, loss: print("step", step, flush=True),
        checkpoint=None if folder is None else gx.Checkpoint(folder, every=EVERY, keep=2),
    )
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((result.losses, result.state.moving)):
        digest.update(np.asarray(leaf).tobytes())
    print("digest", len(result.losses), digest.hexdigest())


def start(kind, *folder):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, __file__, kind, *map(str, folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def outcome(process):
    said, _ = process.communicate()
    assert process.returncode == 0
    return said.splitlines()


def steps_of(folder):
    """Return the steps of the files that are there."""
    found = folder.iterdir() if folder.exists() else ()
    numbers = (re.fullmatch(r"step-(\d+)\.guidax", path.name) for path in found)
    return sorted(int(number[1]) for number in numbers if number)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("kind", STEPS)
def test_killed_at_random_moments(kind, tmp_path):
    folder, rng = tmp_path / "run", np.random.default_rng(len(kind))
    expected = outcome(start(kind))[-1]
    newest, amid = 0, 0
    for kill in range(KILLS):
        process = start(kind, folder)
        if kill % 5 == 4:  # in the imports, the compilation or the first steps
            time.sleep(rng.uniform(0.0, 6.0))
        else:
            said = [process.stdout.readline() for _ in range(2)]  # the second after a step
            # It goes on from the newest file: no checkpoint is lost.
            assert said[0] == f"step {newest or 1}\n" and said[1].startswith("step")
            time.sleep(rng.uniform(0.0, 0.2))
        process.send_signal(signal.SIGKILL)
        assert "digest" not in process.communicate()[0], "the run is too short for this machine"
        assert process.returncode == -signal.SIGKILL
        found = steps_of(folder)
        assert len(found) <= 3 and all(step % EVERY == 0 for step in found)
        assert not newest or found[-1] >= newest
        amid += bool(found) and found[-1] > newest
        newest = found[-1] if found else 0
    assert amid >= KILLS // 2  # most of them came amid steps and files
    said = outcome(start(kind, folder))
    assert said[0] == f"step {newest}" and said[-1] == expected
    # Once more: it has finished, and returns the same.
    assert outcome(start(kind, folder)) == [f"step {STEPS[kind]}", expected]
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


if __name__ == "__main__":
    main(*sys.argv[1:])
