"""Parameters of annealed importance sampling to and from NumPyro's.

NumPyro draws momenta `v ~ N(0, mass^2)` and moves by `eta v / mass`. With whitened momenta
`u = v / mass` that is a speed of one and a gain of `1 / mass`. Its step sizes are
`clip(eta0 + eta_coeff * temperature, 0, eta_max)`.
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._family.dais import AbstractDAIS
from .._family.diagonal import DiagonalNormal
from .._family.dynamics import Dynamics, inverse_soft_clip
from .._family.multivariate import MultivariateNormal
from .._family.surrogate_dais import SurrogateDAIS
from .._model.bijector_maps import inverse_softplus
from .._model.matrix_maps import ScaledUnitLowerCholesky
from .._numerics import filled_like, is_traced
from .._numerics import inverse_softplus as inverse_softplus_of

Read = Callable[[str, Array], Array]  # name, an array of the wanted shape and dtype -> value


def dais_outward(family: AbstractDAIS, prefix: str) -> dict[str, Array]:
    """Return the parameters under NumPyro's names.

    Raises:
        TypeError: If they are traced, or NumPyro has no such base.
        ValueError: If the moves are none of NumPyro's.
    """
    _require_plain(family)
    if is_traced(family):
        raise TypeError(
            "whether NumPyro's guide can make the same moves depends on values, which are not "
            "known inside a transformation: export outside of it."
        )
    base, moves = _base(family), family.dynamics
    scale = base.marginal_scale() if isinstance(base, DiagonalNormal) else base.scale_tril()
    values = moves.values()
    eta0, slope = _line(values["temperatures"], values["step_size"], values["speed"], moves.eta_max)
    increments = jax.nn.softplus(moves.raw_increments)
    return {
        f"{prefix}_eta0": jnp.asarray(eta0, increments.dtype),
        f"{prefix}_eta_coeff": jnp.asarray(slope, increments.dtype),
        f"{prefix}_gamma": values["damping"],
        f"{prefix}_beta_increments": increments,
        f"{prefix}_mass_matrix": 1 / values["gain"],
        f"{prefix}_z_0_loc": base.loc,
        _scale_name(family, prefix): scale,
    }


def dais_inward(family: AbstractDAIS, read: Read, prefix: str) -> AbstractDAIS:
    """Return a family with NumPyro's parameters.

    A step size at its bound, which the smooth clip does not reach, becomes the nearest that it
    reaches.

    Raises:
        TypeError: If NumPyro has no such base.
        ValueError: If the moves are none of NumPyro's, or its `eta0` is not below `eta_max`.
    """
    _require_plain(family)
    old, base = family.dynamics, _base(family)
    increments = read(f"{prefix}_beta_increments", old.raw_increments)
    temperatures = jnp.cumsum(increments) / jnp.sum(increments)
    eta0 = read(f"{prefix}_eta0", old.raw_damping)
    if not is_traced(eta0) and not 0 < float(eta0) < old.eta_max:
        raise ValueError(
            f"'{prefix}_eta0' is {float(eta0)}, but the guide's step sizes lie between 0 and "
            f"eta_max = {old.eta_max}: build it with the eta_max of NumPyro's."
        )
    line = eta0 + read(f"{prefix}_eta_coeff", old.raw_damping) * temperatures
    tiny = float(jnp.finfo(line.dtype).eps)
    gamma = read(f"{prefix}_gamma", old.raw_damping)
    moves = Dynamics(
        raw_speed=filled_like(old.raw_speed, inverse_softplus_of(1.0)),
        raw_gain=inverse_softplus(1 / read(f"{prefix}_mass_matrix", old.raw_gain)),
        raw_increments=inverse_softplus(increments),
        raw_step_size=inverse_soft_clip(jnp.clip(line / old.eta_max, tiny, 1 - tiny)),
        raw_damping=jnp.log(gamma) - jnp.log1p(-gamma),
        eta_max=old.eta_max,
        max_kick=old.max_kick,
        recompute=old.recompute,
    )
    loc, name = read(f"{prefix}_z_0_loc", base.loc), _scale_name(family, prefix)
    if isinstance(base, DiagonalNormal):
        raw = inverse_softplus(read(name, base.raw_scale))
        base = eqx.tree_at(lambda b: (b.loc, b.raw_scale), base, (loc, raw))
    else:
        raw = ScaledUnitLowerCholesky().inverse(read(name, base.scale_tril()))
        base = eqx.tree_at(lambda b: (b.loc, b.raw_scale_tril), base, (loc, raw))
    return eqx.tree_at(lambda f: (f.base, f.dynamics), family, (base, moves))


def _scale_name(family: AbstractDAIS, prefix: str) -> str:
    if isinstance(family.base, DiagonalNormal):
        return f"{prefix}_z_0_scale"
    # NumPyro's two guides name it differently.
    return (
        f"{prefix}_scale_tril" if isinstance(family, SurrogateDAIS) else f"{prefix}_z_0_scale_tril"
    )


def _base(family: AbstractDAIS) -> DiagonalNormal | MultivariateNormal:
    base = family.base
    if isinstance(base, DiagonalNormal):
        return base
    if isinstance(base, MultivariateNormal) and not base.batch_ndim:
        return base
    raise TypeError(
        f"NumPyro's annealed guides have a diagonal or a Cholesky base; this one has "
        f"{type(base).__name__}."
    )


def _require_plain(family: AbstractDAIS) -> None:
    """Refuse what NumPyro's moves never do.

    Raises:
        ValueError: If the family does it.
    """
    differing = {
        "whiten=True, which moves the base's noise": family.whiten,
        f"max_kick={family.dynamics.max_kick}, which bounds the kick": (
            family.dynamics.max_kick is not None
        ),
    }
    if said := [what for what, differs in differing.items() if differs]:
        raise ValueError(f"NumPyro's annealed guides have no {' and no '.join(said)}.")


def _line(
    temperatures: Array, step_size: Array, speed: Array, eta_max: float
) -> tuple[float, float]:
    """Return NumPyro's `eta0` and `eta_coeff`.

    Raises:
        ValueError: If a speed is not one, or the step sizes are not on such a line.
    """
    tolerance = 32 * float(jnp.finfo(step_size.dtype).eps)
    x, y, s = np.asarray(temperatures), np.asarray(step_size), np.asarray(speed)
    if np.max(np.abs(s - 1)) > tolerance:
        raise ValueError(
            f"NumPyro's moves have speed one in every coordinate; this guide's speeds lie between "
            f"{s.min():.4g} and {s.max():.4g}. Train with raw_speed fixed "
            "(fit(trainable=...)) to export."
        )
    slope = 0.0 if len(x) == 1 else float(np.polyfit(x.astype(float), y.astype(float), 1)[0])
    eta0 = float(np.mean(y - slope * x, dtype=float))
    if np.max(np.abs(eta0 + slope * x - y)) > tolerance * eta_max or not 0 < eta0 < eta_max:
        raise ValueError(
            "NumPyro's step sizes are linear in the temperatures, eta0 + eta_coeff * temperature "
            f"with eta0 between 0 and eta_max; this guide's are {y} at the temperatures {x}."
        )
    return eta0, slope
