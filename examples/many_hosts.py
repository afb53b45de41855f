"""
Several hosts
=============

A fit whose data lie on several hosts, each of which reads its own part. Every host runs this same
program, and all of them end with the same guide. Here two processes of one machine stand for two
hosts: run without arguments, the script starts them and compares them with one process that holds
all the data.
"""

import argparse
import functools
import socket
import subprocess
import sys

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import guidax as gx

HOSTS, ROWS = 2, 1_000


def model(X, y):
    beta = gx.sample("beta", distrax.Independent(distrax.Normal(jnp.zeros(X.shape[1]), 10.0), 1))
    with gx.plate("data", X.shape[0]):
        gx.sample("y", distrax.Normal(X @ beta, 1.0), obs=y)


def rows_of(host):
    """Return the rows that a host reads: on real hosts, its own files."""
    random = np.random.default_rng(host)
    X = random.normal(size=(ROWS // HOSTS, 3)).astype(np.float32)
    noise = random.normal(size=X.shape[0])
    return X, (X @ np.array([1.0, -2.0, 0.5]) + noise).astype(np.float32)


def fit(X, y):
    key = jax.random.key(0)  # the same on every host
    guide = gx.AutoMultivariateNormal(model, X, y, key=key)
    return gx.fit(key, guide, X, y, steps=1_000, progress=False).guide


def describe(name, guide):
    low, mid, high = guide.quantiles(jnp.array([0.05, 0.5, 0.95]))["beta"]
    print(f"{name}: beta {np.asarray(mid)}, 90 % from {np.asarray(low)} to {np.asarray(high)}")


# %%
# What each host does: join the others, read its rows, make them parts of global arrays, and fit as
# ever. The sums over rows cross the network; the guide is on every device of every host.


def one_host(number, address):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # GPUs and TPUs need no line
    jax.distributed.initialize(address, num_processes=HOSTS, process_id=number)
    mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(AxisType.Auto,))
    spread = functools.partial(
        jax.make_array_from_process_local_data, NamedSharding(mesh, P("rows"))
    )
    describe(f"host {number}", fit(*map(spread, rows_of(number))))


# %%
# The comparison: two processes with half of the data each, and one with all of them.


def compare():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, __file__, "--address", address, "--host"]
    hosts = [subprocess.Popen([*command, str(number)]) for number in range(HOSTS)]
    X, y = (np.concatenate(parts) for parts in zip(*map(rows_of, range(HOSTS)), strict=True))
    describe("one process", fit(X, y))
    if any(host.wait(timeout=120) for host in hosts):
        raise SystemExit("a host failed")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A fit whose data lie on several hosts.")
    parser.add_argument("--host", type=int)
    parser.add_argument("--address")
    options, _ = parser.parse_known_args()
    if options.host is None:
        compare()
    else:
        one_host(options.host, options.address)
