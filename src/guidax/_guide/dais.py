"""`AutoDAIS`: annealed importance sampling of all latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import random
from jaxtyping import Array

from .._family.dais import DAIS, AbstractDAIS, require_whole
from .._family.diagonal import DiagonalNormal
from .._family.dynamics import Dynamics, DynamicsOptions
from .._family.flat import AbstractFlat
from .._family.multivariate import MultivariateNormal
from .._family.normal import raw_scale_of
from .._family.vector import dtype_of, size_of
from .._model.start import Start
from .._model.strategies import Strategy, init_to_uniform
from .._types import Key
from .begin import begin
from .guide import AutoGuide
from .parts import built, given_strategy
from .sites import require_sites

_BASES = {"diagonal": DiagonalNormal, "cholesky": MultivariateNormal}

Base = str | AutoGuide | Callable[..., AutoGuide]


class AutoDAIS(AutoGuide):
    """Draws of a base, moved towards the posterior by steps of Hamiltonian dynamics.

    Differentiable annealed importance sampling, also called uncorrected Hamiltonian annealing. It
    reaches posteriors that no normal fits, and comes closer with every step: its bound grows with
    K. Base, step sizes, temperatures, damping and the speed and gain of each coordinate are
    trained together. A step of training costs about K gradients of the model, and so do draws,
    which read the data. It has no density in closed form: draws come with theirs.

    With `whiten` the moves act on the base's noise, in which the posterior looks like a standard
    normal the better the base fits: worth it for bases with correlations, where `eta_max` may be
    1.0. If gradients at the start are huge, `fit` clips them; with an optimizer that does not,
    `max_kick` keeps the moves in bounds.

    With momenta `u ~ N(0, I)`, the base q0, the joint density f, the speed s, the gain g, the
    damping gamma, and step size eta and temperature beta of the step, a step is::

        half = z + eta/2 s u
        w    = u + eta g s [(1 - beta) grad log q0(half) + beta grad log f(half)]
        z'   = half + eta/2 s w
        u'   = gamma w + sqrt(1 - gamma^2) xi,    xi ~ N(0, I)

    It cannot take plates that hold some of their rows: see `AutoSurrogateLikelihoodDAIS` and
    `AutoSemiDAIS`. In an `AutoGuideList` it comes last.

    Args:
        model: A model: a callable in the model language, or what an adapter returns.
        *args: The model's arguments, or one `gx.Batch`.
        key: For the starting point.
        K: Number of steps.
        base_dist: What draws where the moves begin: "diagonal" or "cholesky" for a normal with
            independent coordinates or a full covariance, a constructor of a continuous guide, or a
            guide, fitted or not, whose parameters are where the base starts. Parameters of the
            model come from `model`: to keep those of a fitted guide pass `fitted.model`.
        eta_init: Starting step size; None for a tenth of `eta_max`. Noise may take one that is
            much closer to zero there, to stay.
        eta_max: Bound of the step sizes. Where fitted ones end at it, as `dynamics` shows, a larger
            one helps.
        gamma_init: Starting damping: the share of a momentum that is kept from step to step.
        init_loc_fn: Where the base's mean starts: a strategy, or a function of a site and a key
            that returns a constrained value. A base that is a `functools.partial` with an
            `init_loc_fn` starts there instead.
        init_scale: Starting standard deviation of each unconstrained coordinate of a base that is
            named "diagonal" or "cholesky".
        whiten: Whether to move the base's noise rather than its draws.
        max_kick: Bound, up to a logarithm, of the change of a momentum in one step; None for none.
        recompute: Whether training computes the gradients of each step again rather than keeping
            what they were computed from: slower, in memory that hardly grows with K.
        **kwargs: The model's keyword arguments.

    Raises:
        TypeError: If the arguments do not fit the model, or `base_dist` is no continuous guide.
        ValueError: If an option is out of range, a plate holds some of its rows, a latent is
            discrete, `base_dist` is a guide over other latents, or no start is found.

    Source: Geffner and Domke 2021, "MCMC variational inference via uncorrected Hamiltonian
    annealing"; Zhang et al. 2021, "Differentiable annealed importance sampling and the perils of
    gradient noise". Against both, speed and gain of each coordinate and the step size of each step
    are parameters of their own.
    """

    def __init__(
        self,
        model: Any,
        /,
        *args: Any,
        key: Key,
        K: int = 4,
        base_dist: Base = "diagonal",
        eta_init: float | None = None,
        eta_max: float = 0.1,
        gamma_init: float = 0.9,
        init_loc_fn: Strategy = init_to_uniform(),
        init_scale: float = 0.1,
        whiten: bool = False,
        max_kick: float | None = None,
        recompute: bool = False,
        **kwargs: Any,
    ):
        options = DynamicsOptions(K, eta_init, eta_max, gamma_init, max_kick, recompute)
        check_base(base_dist, init_scale)
        init_loc_fn = given_strategy(base_dist) or init_loc_fn
        start = begin(AutoDAIS, model, args, kwargs, key, init_loc_fn)
        for plate in start.structure.plates:
            require_whole(plate.name, plate.rows, plate.size)
        base = base_of(start, base_dist, init_scale, key)
        moves = Dynamics.start((), size_of(base.sites), dtype_of(base.sites), options)
        super().__init__(start.model, DAIS(base, moves, whiten), start.structure, start.admitted)

    def dynamics(self) -> dict[str, Array]:
        """Return the parameters of the moves.

        Returns:
            `step_size` and `temperatures` of each step, of shape `(K,)`; `damping`, a scalar; and
            `speed` and `gain` of each coordinate, of shape `(dim,)`.
        """
        return dynamics_of(self.family)


def check_base(base_dist: Any, init_scale: float) -> None:
    """Refuse what is no base, or a scale out of range.

    Raises:
        TypeError: If the base is neither a name, nor a guide, nor a constructor.
        ValueError: If it is another name, or the scale is not positive.
    """
    raw_scale_of(init_scale)
    if isinstance(base_dist, str):
        if base_dist not in _BASES:
            raise ValueError(
                f'base_dist is "diagonal", "cholesky", a continuous guide or a constructor of one; '
                f"got {base_dist!r}."
            )
    elif not (isinstance(base_dist, AutoGuide) or callable(base_dist)):
        raise _no_base(base_dist)


def base_of(start: Start, base_dist: Base, init_scale: float, key: Key) -> AbstractFlat:
    """Return the family that draws where the moves begin.

    Raises:
        TypeError: If it is no family over one vector.
        ValueError: If it is over other latents, or that of a stack of guides.
    """
    if isinstance(base_dist, str):
        return _BASES[base_dist](start, init_scale)
    made = base_dist
    if not isinstance(made, AutoGuide):
        made = built(made, start, random.fold_in(key, 1))
    if not (isinstance(made, AutoGuide) and isinstance(made.family, AbstractFlat)):
        raise _no_base(base_dist)
    made._require_one()
    family = made.family
    advice = "Build it on the same model and arguments of the same shapes."
    require_sites("base_dist", family.sites, start.structure.latents, advice)
    return family


def _no_base(base_dist: Any) -> TypeError:
    return TypeError(
        f"base_dist takes a guide with a density over one vector, or a constructor of one: "
        f"gx.AutoDiagonalNormal in the place of gx.AutoNormal, guide.laplace(...) in that of a "
        f"Laplace approximation, gx.AutoLowRankMultivariateNormal, a flow; got {base_dist!r}."
    )


@jax.jit
def dynamics_of(family: AbstractDAIS) -> dict[str, Array]:
    """Return the parameters of a family's moves."""
    return family.dynamics.values()
