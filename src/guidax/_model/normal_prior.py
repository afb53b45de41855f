"""Priors that are independent normals in unconstrained space."""

from __future__ import annotations

from typing import Any

from jaxtyping import ArrayLike

from .trace import Site

_LIBRARIES = ("distrax.", "tensorflow_probability.", "numpyro.")


def normal_prior(site: Site) -> tuple[ArrayLike, ArrayLike] | None:
    """Return mean and standard deviation of a latent's unconstrained value, or None.

    Classes are told by library and name, so that the normals of every model language count:
    distrax's and TFP's here, NumPyro's without importing it. A user's own `Normal` may mean
    something else by its `scale`.
    """
    if site.kind != "latent":
        return None
    return _parameters(site.distribution)


def _parameters(distribution: Any) -> tuple[ArrayLike, ArrayLike] | None:
    kind = type(distribution)
    if not kind.__module__.startswith(_LIBRARIES):
        return None
    name = kind.__name__
    if name in ("Independent", "ExpandedDistribution"):
        inner = getattr(distribution, "base_dist", None)
        return _parameters(distribution.distribution if inner is None else inner)
    if name in ("Normal", "LogNormal"):  # log x is the unconstrained value of a positive x
        return distribution.loc, distribution.scale
    if name == "MultivariateNormalDiag" and hasattr(distribution, "scale_diag"):
        return distribution.loc, distribution.scale_diag
    return None
