"""Print the peak memory of a low-rank guide on 100,000 latents, in GiB above the imports.

Run as `python low_rank_memory.py RANK`, in a process of its own: a peak never falls again.
"""

import json
import resource
import sys

import distrax
import jax
import jax.numpy as jnp
import numpy as np

import guidax as gx

DIM = 100_000
GIB_OF_MAXRSS = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB_OF_MAXRSS


def model(y):
    with gx.plate("rows", DIM):
        z = gx.sample("z", distrax.Normal(jnp.zeros(()), 1.0))
        gx.sample("y", distrax.Normal(z, 1.0), obs=y)


def main(rank):
    jax.jit(lambda x: x + 1)(jnp.zeros(3)).block_until_ready()  # the compiler is an import too
    before, found = peak(), {}

    def record(step, result):
        jax.block_until_ready(result)
        found[step] = round(peak() - before, 3)
        return result

    key, y = jax.random.key(0), jnp.asarray(np.linspace(-2, 2, DIM), jnp.float32)
    guide = record("build", gx.AutoLowRankMultivariateNormal(model, y, key=key, rank=rank))
    draws, _ = record("sample", guide.sample_and_log_prob(key, y))
    record("score", guide.log_prob(draws, y))
    record("differentiate", jax.jit(jax.value_and_grad(gx.ELBO()))(guide, key, y))
    record("fit", gx.fit(key, guide, y, steps=3, progress=False).guide)
    print(json.dumps({"rank": guide.family.factor.shape[1], "peaks": found}))


if __name__ == "__main__":
    main(None if sys.argv[1] == "default" else int(sys.argv[1]))
