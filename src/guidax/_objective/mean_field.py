"""The evidence lower bound with closed forms wherever they are exact."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._guide.guide import AutoGuide
from .._model.normal_prior import normal_prior
from .._model.target import Block, Target, scaled_sum, scored_sites
from .._model.trace import Site
from .._types import Key
from .base import AbstractObjective, require_particles


class MeanFieldELBO(AbstractObjective):
    """Minus the evidence lower bound, with closed forms wherever they are exact.

    Its mean is that of `ELBO`, so the optimum is the same. Its variance is smaller where the guide
    is far from the posterior, since priors and entropies add no noise; at a perfect fit `ELBO` has
    none at all, because there log p and log q cancel.

    A site whose guide and prior are both independent normals in unconstrained space, and whose
    density no handler scales or masks, contributes its KL divergence in closed form, unless a later
    part of a list reads its draws. Otherwise q's entropy is in closed form where the family has it,
    and sampled where not. It works on every guide: what is not exact is sampled.

    Args:
        num_particles: Draws that the estimate averages.

    Raises:
        ValueError: If `num_particles` is not a positive integer.
    """

    num_particles: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        require_particles(self.num_particles)

    def particle(self, guide: AutoGuide, key: Key, target: Target) -> Float[Array, ""]:
        """Return one estimate."""
        family = guide.family
        draw = family.draw(key, target)
        trace = target.run(draw)
        score, marginals = target.score_trace(trace, draw), family.normal_marginals(target)
        divergences = {
            s.name: kl
            for s in scored_sites(trace, draw)
            if s.name in marginals and (kl := _divergence(s, *marginals[s.name])) is not None
        }
        entropy = _without(family.entropy(target), divergences)
        sampled = _without(draw.log_q, divergences)
        sampled = {block: term for block, term in sampled.items() if block not in entropy}
        log_p = sum((t for n, t in score.terms.items() if n not in divergences), jnp.zeros(()))
        q_terms = scaled_sum(entropy, trace) - scaled_sum(sampled, trace)
        return log_p + q_terms - sum(divergences.values(), jnp.zeros(()))

    def combine(self, terms: Float[Array, " particles"]) -> Float[Array, ""]:
        """Return the mean."""
        return jnp.mean(terms)


def _without(blocks: dict[Block, Array], names: dict[str, Array]) -> dict[Block, Array]:
    """Return the blocks that hold none of the sites; independent ones have blocks of their own."""
    return {block: term for block, term in blocks.items() if not names.keys() & set(block.sites)}


def _divergence(site: Site, loc: Array, scale: Array) -> Float[Array, ""] | None:
    """Return KL(q || prior), times N/B, where it has a closed form."""
    prior = normal_prior(site)
    if prior is None or site.mask is not None or site.is_scaled:
        return None
    mean, sd = prior
    ratio = (scale / sd) ** 2
    kl = 0.5 * (ratio + ((loc - mean) / sd) ** 2 - 1 - jnp.log(ratio))
    return site.plate_scale * jnp.sum(kl)
