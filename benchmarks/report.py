"""What the scripts share: a clock, and a file of figures with the date and the versions."""

import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import time

# JAX is imported where it is used: a script may start fresh processes and time what they import.

PACKAGES = ["guidax", "jax", "jaxlib", "equinox", "optax", "distrax", "numpyro"]


def clock(function, *arguments):
    """Return seconds and result, waiting until the result is there."""
    import jax

    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start, result


def environment():
    """Return date, machine and versions, which a reader needs to compare figures."""
    import jax

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "backend": jax.default_backend(),
        "versions": {n: importlib.metadata.version(n) for n in PACKAGES if is_installed(n)},
    }


def is_installed(name):
    """Say whether a package is there: not every session installs NumPyro."""
    return importlib.util.find_spec(name) is not None


def add_json(parser, also=""):
    """Give a script the option `--json`."""
    parser.add_argument(
        "--json", help=f"write the figures, with date and versions, to this file{also}"
    )


def write(path, figures):
    """Write figures where a path is given."""
    if path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump({**environment(), **figures}, file, indent=1)
            file.write("\n")
