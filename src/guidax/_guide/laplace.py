"""`AutoLaplaceApproximation`: a normal from the curvature at the mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from .._caller import warn_caller
from .._family.laplace import LaplacePoint
from .._family.multivariate import MultivariateNormal
from .._family.vector import unravel
from .._model.batch import Batch, options_of
from .._model.indices import admit_all
from .._model.matrix_maps import ScaledUnitLowerCholesky
from .._model.start import Start
from .._model.strategies import Strategy, init_to_uniform
from .._model.target import Draw
from .._numerics import all_finite, at_least_single, is_traced
from .._types import Key
from .begin import begin
from .gaussian import AutoMultivariateNormal
from .guide import AutoContinuous, AutoGuide

FAR = 0.5  # standard deviations: from a normal that is farther off, means are of no use


class AutoLaplaceApproximation(AutoContinuous):
    """The normal with the mode, in unconstrained space, and the curvature there.

    It trains as a point. `laplace(*args)` computes the normal once, on the data of that call; the
    other methods take the data too and go through it, so where several are called
    `guide.laplace(*args)` saves the Hessians.

    Args:
        model: A model: a callable in the model language, or what an adapter returns.
        *args: The model's arguments, or one `gx.Batch`.
        key: For the starting point.
        init_loc_fn: Where the point starts: a strategy, or a function of a site and a key that
            returns a constrained value.
        hessian_fn: Called as `hessian_fn(potential, z)`, with minus the log density as a function
            of the flat vector, and the mode; returns the precision matrix. None is the Hessian, in
            the modes of differentiation that the model has.
            Use it to regularise: `lambda f, z: jax.hessian(f)(z) + 1e-3 * jnp.eye(z.size)`.
        create_plates: A function of the model's arguments that returns a `gx.plate`, or several,
            whose rows each evaluation of an objective holds. The Hessian is of all rows.
        **kwargs: The model's keyword arguments.

    Raises:
        TypeError: If the arguments do not fit the model.
        ValueError: If a latent is discrete, or no start is found.

    Source: Tierney and Kadane 1986, "Accurate approximations for posterior moments and marginal
    densities".
    """

    def __init__(
        self,
        model: Any,
        /,
        *args: Any,
        key: Key,
        init_loc_fn: Strategy = init_to_uniform(),
        hessian_fn: Callable[..., Any] | None = None,
        create_plates: Callable[..., Any] | None = None,
        **kwargs: Any,
    ):
        constructor = AutoLaplaceApproximation
        start = begin(constructor, model, args, kwargs, key, init_loc_fn, create_plates)
        family = LaplacePoint(start, hessian_fn)
        super().__init__(start.model, family, start.structure, start.admitted, create_plates)

    def laplace(self, /, *args: Any, **kwargs: Any) -> AutoMultivariateNormal:
        """Return the normal at the mode.

        Args:
            *args: The model's arguments, or one `gx.Batch`.
            **kwargs: The model's keyword arguments.

        Returns:
            A guide with a full covariance, the inverse of the Hessian.

        Warns:
            UserWarning: If the mode is not reached: a Newton step from here is longer than half a
                standard deviation in some coordinate. Not under a transformation.

        Raises:
            ValueError: If the Hessian is not positive definite: the mode is not reached, or the
                posterior is flat in a direction, whose sites are named. Under a transformation the
                scales are NaN instead.
        """
        batch, _ = self._request(args, kwargs, options_of(AutoLaplaceApproximation.laplace), None)
        return self.settled(batch)

    def settled(self, batch: Batch) -> AutoMultivariateNormal:
        assert isinstance(self.family, LaplacePoint)
        family, offset = normal_at(self, self.family, batch, {})
        _warn_if_far(family, offset)
        start = Start(
            self.model,
            batch,
            unravel(family.loc, family.sites),
            self.structure,
            self.admitted,
        )
        guide = AutoMultivariateNormal(start, key=random.key(0))
        return eqx.tree_at(lambda g: g.family, guide, family)


def normal_at(
    guide: AutoGuide, point: LaplacePoint, batch: Batch, given: dict[str, Array]
) -> tuple[MultivariateNormal, Float[Array, " dim"]]:
    """Return the normal at a point of some latents, with constrained values for the others.

    Returns:
        The normal, and the Newton step from the point in standard deviations: zero at the mode.

    Raises:
        ValueError: If the Hessian is not positive definite.
    """
    batch = admit_all(guide.model, batch)
    with jax.debug_nans(False):  # NaN is how it says so, and the error comes below
        family, offset = _normal_at(guide, point, batch, given)
    if not is_traced(family) and not bool(all_finite(family)):
        _raise_flat(guide, point, batch, given)
    return family, offset


def _warn_if_far(family: MultivariateNormal, offset: Float[Array, " dim"]) -> None:
    """Say so where the mode is not reached."""
    if is_traced(offset):
        return
    offsets = unravel(jnp.abs(offset), family.sites)
    sizes = ((float(np.max(x, initial=0.0)), name) for name, x in offsets.items())
    far, site = max(sizes, default=(0.0, ""))
    if far > FAR:
        warn_caller(
            f"the mode is not reached: by gradient and curvature it is {far:.2g} standard "
            f"deviations away along site {site!r}, so the normal lies beside the posterior. Fit "
            "for more steps, or with optimizer=optax.lbfgs() if each step sees all data."
        )


@jax.jit
def _normal_at(
    guide: AutoGuide, point: LaplacePoint, batch: Batch, given: dict[str, Array]
) -> tuple[MultivariateNormal, Float[Array, " dim"]]:
    gradient, hessian = _derivatives(guide, point, batch, given)
    gradient, hessian = at_least_single(gradient), at_least_single(hessian)
    # With P = U U' and U upper triangular, the covariance is L L' with L = U'^-1: one inversion.
    upper = jnp.linalg.cholesky(hessian[::-1, ::-1])[::-1, ::-1]
    scale_tril = solve_triangular(upper.T, jnp.eye(len(hessian), dtype=hessian.dtype), lower=True)
    raw = ScaledUnitLowerCholesky().inverse(scale_tril)
    # What is left of a diagonal entry after the others are taken off: along a flat direction it is
    # rounding, of either sign, and a positive one would be a made-up variance.
    left = jnp.diag(upper) ** 2 / jnp.diag(hessian)
    rounding = 4 * len(hessian) ** 0.5 * jnp.finfo(hessian.dtype).eps
    curves = jnp.all(left > rounding) & jnp.all(jnp.isfinite(scale_tril))
    raw = jnp.where(curves, raw, jnp.nan).astype(point.loc.dtype)
    start = Start(guide.model, batch, unravel(point.loc, point.sites), guide.structure, ())
    family = MultivariateNormal(start.only(frozenset(s.name for s in point.sites)))
    whitened = scale_tril @ (scale_tril.T @ gradient)
    offset = whitened / jnp.linalg.norm(scale_tril, axis=1)
    return eqx.tree_at(lambda f: f.raw_scale_tril, family, raw), offset


@jax.jit
def _derivatives(
    guide: AutoGuide, point: LaplacePoint, batch: Batch, given: dict[str, Array]
) -> tuple[Float[Array, " dim"], Float[Array, "dim dim"]]:
    """Return the gradient and the Hessian of minus the log density at a point."""
    key = random.key(0)
    indices = guide.indices(key, batch, whole=True)
    for p in guide.plates(batch):  # what create_plates or the model would draw of them
        holds_all = p.rows == p.size or p.name in batch.admitted
        if holds_all and p.name in indices and p.name not in batch.rows:
            indices[p.name] = jnp.arange(p.size)
    target = guide.target(key, batch, indices).condition(Draw.of(given, "constrained"))

    def potential(z: Float[Array, " dim"]) -> Float[Array, ""]:
        values = unravel(z, point.sites)
        draw = Draw.of({s.name: s.take(values[s.name], indices) for s in point.sites})
        return -target.score(draw).log_density

    def derivatives(inner: Callable[..., Any], outer: Callable[..., Any]) -> tuple[Array, Array]:
        gradient = inner(potential)
        if point.hessian_fn is not None:
            value, hessian = gradient(point.loc), point.hessian_fn.value(potential, point.loc)
            return value, jnp.asarray(hessian).astype(value.dtype)

        def twice(z: Float[Array, " dim"]) -> tuple[Array, Array]:
            value = gradient(z)
            return value, value

        hessian, value = outer(twice, has_aux=True)(point.loc)
        return value, hessian

    try:
        return derivatives(jax.grad, jax.jacfwd)
    except TypeError as error:  # of jax.custom_vjp, as in solvers of differential equations
        if "forward-mode" not in str(error):
            raise
        return derivatives(jax.grad, jax.jacrev)
    except ValueError as error:
        if "Reverse-mode" not in str(error):
            raise
        return derivatives(jax.jacfwd, jax.jacfwd)


def _raise_flat(
    guide: AutoGuide, point: LaplacePoint, batch: Batch, given: dict[str, Array]
) -> None:
    """Name the sites along which the posterior does not curve down."""
    hessian = np.asarray(_derivatives(guide, point, batch, given)[1], np.float64)
    if not np.isfinite(hessian).all():
        raise ValueError("the Hessian at the mode is not finite: the fit has not converged.")
    values, vectors = np.linalg.eigh((hessian + hessian.T) / 2)
    shares = unravel(jnp.asarray(vectors[:, 0] ** 2), point.sites)
    sites = sorted(shares, key=lambda name: -float(shares[name].sum()))
    named = [name for name in sites if float(shares[name].sum()) > 0.1]
    raise ValueError(
        "the Hessian at the mode is not positive definite, within rounding: its smallest "
        f"eigenvalue is {values[0]:.4g}, in a direction of the sites {named}. Either the fit has "
        "not converged, or the posterior is flat there: give those sites proper priors, or "
        "regularise with hessian_fn."
    )
