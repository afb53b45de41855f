"""Differentiable annealed importance sampling: the moves, as one pure function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Gradient = Callable[[Float[Array, "*batch dim"]], Float[Array, "*batch dim"]]


def dais(
    grad_log_target: Gradient,
    grad_log_base: Gradient,
    z: Float[Array, "*batch dim"],
    noise: Float[Array, "steps *batch dim"],
    step_size: Float[Array, " steps *batch"],
    speed: Float[Array, "*batch dim"],
    gain: Float[Array, "*batch dim"],
    damping: Float[Array, "*batch"],
    temperatures: Float[Array, " steps *batch"],
    *,
    max_kick: float | None = None,
    recompute: bool = False,
) -> tuple[Float[Array, "*batch dim"], Float[Array, "*batch"]]:
    r"""Move draws of a base towards a target, by steps of Hamiltonian dynamics.

    With momenta `u ~ N(0, I)`, the speed s, the gain g, the step size eta and the temperature beta
    of a step, and the damping gamma, a step is a leapfrog and a partial refreshment:

        half = z + eta/2 s u
        w    = u + eta g s [(1 - beta) grad log q0(half) + beta grad log f(half)]
        z'   = half + eta/2 s w
        u'   = gamma w + sqrt(1 - gamma^2) xi,    xi ~ N(0, I)

    The refreshment leaves N(0, I) unchanged, so its reverse is the same map, and the density of the
    whole path over that of the reversed path gives, with `log f(z_K) - log q0(z_0)`, a log weight
    whose mean of the exponential is the evidence:

        log w = log f(z_K) - log q0(z_0) - log factor,
        log factor = sum_k [log N(u_k; 0, I) - log N(w_k; 0, I)] = sum_k (|w_k|^2 - |u_k|^2) / 2.

    That holds because a leapfrog is a composition of shears, whose Jacobian is one, and for any
    function of `half` in the place of the gradients: so for every positive speed, gain and step
    size, for a target whose gradient is that of a part of the data, and with a bound on the kick.

    The papers draw momenta from N(0, M), move by `eta M^-1 u` and kick by `eta grad`: here `s =
    M^-1/2` and `g = 1`, Hamilton's equation, whose energy error falls as the step size squared.
    NumPyro draws momenta from N(0, mass^2) and moves by `eta u / mass`: here `s = 1` and `g =
    1 / mass`. New against both: the momenta are whitened, so that speed and gain are parameters of
    their own for each coordinate; step sizes are those of each step; the kick may be bounded; the
    last temperature need not be one.

    Args:
        grad_log_target: Gradient of log f, unnormalised, at `*batch` points at once: rows that are
            independent of each other may share one gradient of their sum.
        grad_log_base: Gradient of log q0.
        z: Draws of the base.
        noise: Standard normal: the first momenta, then what refreshes them before each later step.
        step_size: eta, for each step.
        speed: s, positive.
        gain: g, positive.
        damping: gamma, from 0 (momenta are drawn anew) to 1 (they are kept).
        temperatures: beta, for each step, rising to 1 or about 1.
        max_kick: c, if the change of a momentum is to be bounded: `c asinh(kick / c)` takes its
            place. Far from the target, where gradients are huge, it grows as a logarithm.
        recompute: Whether a derivative computes the gradients of each step again, so that of each
            step only z and the momenta are kept, and not what the density was computed from.

    Returns:
        The moved draws, and the log factor, which adds to log q0 of the start.

    Source: Geffner and Domke 2021, "MCMC variational inference via uncorrected Hamiltonian
    annealing", section 3; Zhang et al. 2021, "Differentiable annealed importance sampling and the
    perils of gradient noise", algorithm 1.
    """

    def step(carry: Any, inputs: Any) -> tuple[Any, None]:
        z, w, log_factor = carry
        xi, eta, beta, keep = inputs
        u = keep * w + _complement(keep) * xi
        eta, beta = eta[..., None], beta[..., None]
        half = z + 0.5 * eta * speed * u
        force = (1 - beta) * grad_log_base(half) + beta * grad_log_target(half)
        kick = eta * gain * speed * force
        if max_kick is not None:
            kick = max_kick * jnp.arcsinh(kick / max_kick)
        w = u + kick
        log_factor = log_factor + 0.5 * jnp.sum(w**2 - u**2, axis=-1)
        return (half + 0.5 * eta * speed * w, w, log_factor), None

    # The first momenta are drawn, not refreshed: nothing of the zeros before them is kept.
    keeps = jnp.broadcast_to(damping[..., None], (len(noise), *damping.shape, 1))
    keeps = keeps.at[0].set(0.0)
    first = (z, jnp.zeros_like(z), jnp.zeros(z.shape[:-1], z.dtype))
    body = jax.checkpoint(step, prevent_cse=False) if recompute else step
    (z, _, log_factor), _ = lax.scan(body, first, (noise, step_size, temperatures, keeps))
    return z, log_factor


def _complement(keep: Array) -> Array:
    """Return `sqrt(1 - keep^2)`, whose gradient is finite also where nothing is refreshed."""
    share = (1 - keep) * (1 + keep)
    return jnp.where(share > 0, jnp.sqrt(jnp.where(share > 0, share, 1.0)), 0.0)
