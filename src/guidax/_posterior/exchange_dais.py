"""Parameters of annealed importance sampling to and from NumPyro's.

NumPyro draws momenta `v ~ N(0, mass^2)` and moves by `eta v / mass`. With whitened momenta
`u = v / mass` that is a speed of one and a gain of `1 / mass`. Its step sizes are
`clip(eta0 + eta_coeff * temperature, 0, eta_max)`, and its last temperature is one.
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
from .._family.local_dais import LocalDAIS
from .._family.multivariate import MultivariateNormal
from .._family.normal import MeanFieldNormal
from .._family.surrogate_dais import SurrogateDAIS
from .._family.vector import ravel_rows, unravel_rows
from .._model.bijector_maps import inverse_softplus
from .._model.matrix_maps import ScaledUnitLowerCholesky
from .._numerics import filled_like, inverse_softplus_of, is_traced

_HOW = (
    "To export, train what NumPyro's moves share, by fit(trainable=...): the base, and of its "
    "dynamics raw_gain and raw_damping."
)

Read = Callable[[str, Array], Array]  # name, an array of the wanted shape and dtype -> value


def dais_outward(family: AbstractDAIS, prefix: str) -> dict[str, Array]:
    """Return the parameters under NumPyro's names.

    Raises:
        TypeError: If they are traced, or NumPyro has no such base.
        ValueError: If the moves are none of NumPyro's.
    """
    base, moves = _base(family), _moves_outward(family.dynamics, prefix, whiten=family.whiten)
    scale = base.marginal_scale() if isinstance(base, DiagonalNormal) else base.scale_tril()
    return moves | {f"{prefix}_z_0_loc": base.loc, _scale_name(family, prefix): scale}


def local_dais_outward(family: LocalDAIS, prefix: str) -> dict[str, Array]:
    """Return the parameters of rows that are moved one by one, under NumPyro's names.

    Raises:
        TypeError: If they are traced, or the rows start from other than independent normals.
        ValueError: If the moves are none of NumPyro's.
    """
    base, moves = _row_base(family), _moves_outward(family.dynamics, prefix)
    scale = jax.tree.map(jax.nn.softplus, base.raw_scale)
    return moves | {
        f"{prefix}_z_0_loc": ravel_rows(base.loc, family.sites, family.plate),
        f"{prefix}_z_0_scale": ravel_rows(scale, family.sites, family.plate),
    }


def _moves_outward(moves: Dynamics, prefix: str, *, whiten: bool = False) -> dict[str, Array]:
    _require_plain(moves, whiten=whiten)
    if is_traced(moves):
        raise TypeError(
            "whether NumPyro's guide can make the same moves depends on values, which are not "
            "known inside a transformation: export outside of it."
        )
    values = moves.values()
    _require_last_temperature_one(moves.raw_last)
    eta0, slope = _line(values["temperatures"], values["step_size"], values["speed"], moves.eta_max)
    increments = jax.nn.softplus(moves.raw_increments)
    return {
        f"{prefix}_eta0": jnp.asarray(eta0, increments.dtype),
        f"{prefix}_eta_coeff": jnp.asarray(slope, increments.dtype),
        f"{prefix}_gamma": values["damping"],
        f"{prefix}_beta_increments": increments,
        f"{prefix}_mass_matrix": 1 / values["gain"],
    }


def dais_inward(family: AbstractDAIS, read: Read, prefix: str) -> AbstractDAIS:
    """Return a family with NumPyro's parameters.

    A step size at its bound, which the smooth clip does not reach, becomes the nearest that it
    reaches.

    Raises:
        TypeError: If NumPyro has no such base.
        ValueError: If the moves are none of NumPyro's, or its `eta0` is not below `eta_max`.
    """
    base = _base(family)
    moves = _moves_inward(family.dynamics, read, prefix, whiten=family.whiten)
    loc, name = read(f"{prefix}_z_0_loc", base.loc), _scale_name(family, prefix)
    if isinstance(base, DiagonalNormal):
        raw = inverse_softplus(read(name, base.raw_scale))
        base = eqx.tree_at(lambda b: (b.loc, b.raw_scale), base, (loc, raw))
    else:
        raw = ScaledUnitLowerCholesky().inverse(read(name, base.scale_tril()))
        base = eqx.tree_at(lambda b: (b.loc, b.raw_scale_tril), base, (loc, raw))
    return eqx.tree_at(lambda f: (f.base, f.dynamics), family, (base, moves))


def local_dais_inward(family: LocalDAIS, read: Read, prefix: str) -> LocalDAIS:
    """Return rows that are moved one by one, with NumPyro's parameters.

    Raises:
        TypeError: If the rows start from other than independent normals.
        ValueError: As of `dais_inward`.
    """
    base, moves = _row_base(family), _moves_inward(family.dynamics, read, prefix)
    sites, plate = family.sites, family.plate
    like = ravel_rows(base.loc, sites, plate)
    loc, scale = (read(f"{prefix}_z_0_{each}", like) for each in ("loc", "scale"))
    new = (unravel_rows(loc, sites, plate), unravel_rows(inverse_softplus(scale), sites, plate))
    base = eqx.tree_at(lambda b: (b.loc, b.raw_scale), base, new)
    return eqx.tree_at(lambda f: (f.base, f.dynamics), family, (base, moves))


def _moves_inward(old: Dynamics, read: Read, prefix: str, *, whiten: bool = False) -> Dynamics:
    _require_plain(old, whiten=whiten)
    increments = read(f"{prefix}_beta_increments", old.raw_increments)
    temperatures = jnp.cumsum(increments, axis=-1) / jnp.sum(increments, axis=-1, keepdims=True)
    eta0 = read(f"{prefix}_eta0", old.raw_damping)
    if not is_traced(eta0) and not bool(jnp.all((eta0 > 0) & (eta0 < old.eta_max))):
        raise ValueError(
            f"'{prefix}_eta0' is {eta0}, but the guide's step sizes lie between 0 and "
            f"eta_max = {old.eta_max}: build it with the eta_max of NumPyro's."
        )
    slope = read(f"{prefix}_eta_coeff", old.raw_damping)
    line = eta0[..., None] + slope[..., None] * temperatures
    tiny = float(jnp.finfo(line.dtype).eps)
    gamma = read(f"{prefix}_gamma", old.raw_damping)
    return Dynamics(
        raw_speed=filled_like(old.raw_speed, inverse_softplus_of(1.0)),
        raw_gain=inverse_softplus(1 / read(f"{prefix}_mass_matrix", old.raw_gain)),
        raw_increments=inverse_softplus(increments),
        raw_last=jnp.zeros_like(old.raw_last),
        raw_step_size=inverse_soft_clip(jnp.clip(line / old.eta_max, tiny, 1 - tiny)),
        raw_damping=jnp.log(gamma) - jnp.log1p(-gamma),
        eta_max=old.eta_max,
        max_kick=old.max_kick,
        recompute=old.recompute,
    )


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


def _row_base(family: LocalDAIS) -> MeanFieldNormal:
    if isinstance(family.base, MeanFieldNormal):
        return family.base
    raise TypeError(
        "NumPyro's AutoSemiDAIS has parameters of its own where the rows start from independent "
        f"normals; this guide's start from {type(family.base).__name__}."
    )


def _require_plain(moves: Dynamics, *, whiten: bool) -> None:
    """Refuse what NumPyro's moves never do.

    Raises:
        ValueError: If these do it.
    """
    differing = {
        "whiten=True, which moves the base's noise": whiten,
        f"max_kick={moves.max_kick}, which bounds the kick": moves.max_kick is not None,
    }
    if said := [what for what, differs in differing.items() if differs]:
        raise ValueError(f"NumPyro's annealed guides have no {' and no '.join(said)}.")


def _require_last_temperature_one(raw_last: Array) -> None:
    """Refuse moves that end at another temperature, be it those of one row.

    Raises:
        ValueError: If these do.
    """
    logs = np.ravel(np.asarray(raw_last, float))
    worst = logs[np.argmax(np.abs(logs))]
    if worst:
        raise ValueError(
            f"NumPyro's last temperature is one; this guide's is {np.exp(worst):.4g}. {_HOW}"
        )


def _line(
    temperatures: Array, step_size: Array, speed: Array, eta_max: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return NumPyro's `eta0` and `eta_coeff`, for each row if rows have moves of their own.

    Raises:
        ValueError: If a speed is not one, or the step sizes are not on such a line.
    """
    tolerance = 32 * float(jnp.finfo(step_size.dtype).eps)
    x, y, s = (np.asarray(each, float) for each in (temperatures, step_size, speed))
    if np.max(np.abs(s - 1)) > tolerance:
        raise ValueError(
            f"NumPyro's moves have speed one in every coordinate; this guide's speeds lie between "
            f"{s.min():.4g} and {s.max():.4g}. {_HOW}"
        )
    means = [np.mean(each, axis=-1, keepdims=True) for each in (x, y)]
    dx, dy = x - means[0], y - means[1]
    # With one step all temperatures are one, and so is any slope as good: zero.
    slope = np.sum(dx * dy, axis=-1) / np.maximum(np.sum(dx**2, axis=-1), np.finfo(float).tiny)
    eta0 = (means[1] - slope[..., None] * means[0])[..., 0]
    off = np.abs(eta0[..., None] + slope[..., None] * x - y)
    if np.max(off) > tolerance * eta_max or not np.all((eta0 > 0) & (eta0 < eta_max)):
        worst = np.unravel_index(np.argmax(np.max(off, axis=-1)), off.shape[:-1])
        raise ValueError(
            "NumPyro's step sizes are linear in the temperatures, eta0 + eta_coeff * temperature "
            f"with eta0 between 0 and eta_max; this guide's are {y[worst]} at the temperatures "
            f"{x[worst]}."
        )
    return np.asarray(eta0), np.asarray(slope)
