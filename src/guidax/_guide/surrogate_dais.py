"""`AutoSurrogateLikelihoodDAIS`: moves that follow a surrogate, for models with minibatches."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array

from .._family.dynamics import Dynamics, DynamicsOptions
from .._family.surrogate_dais import SurrogateDAIS
from .._family.vector import dtype_of, size_of
from .._model.batch import Batch, as_batch
from .._model.model import AbstractModel
from .._model.program import as_model
from .._model.start import Start
from .._model.strategies import Strategy, init_to_uniform
from .._model.structure import describe
from .._numerics import is_traced
from .._types import Key
from .begin import begin
from .dais import Base, base_of, check_base, dynamics_of
from .guide import AutoGuide
from .parts import given_strategy
from .program import started_params
from .sites import require_sites


class AutoSurrogateLikelihoodDAIS(AutoGuide):
    """`AutoDAIS` whose moves follow a surrogate of the model, which may then take minibatches.

    The surrogate has the model's prior and a likelihood that costs little: that of some of the
    data, say, with weights that are `gx.param` sites. Its parameters are trained with the guide's,
    and `param_values` returns them. Since the moves read none of the model's arguments, batches
    leave the bound what it is. Latents inside a plate that is subsampled need `AutoSemiDAIS`. For
    example::

        def surrogate_model(X, y):
            theta = gx.sample("theta", prior)  # as in the model
            weights = gx.param("weights", 5.0 * jnp.ones(20), gx.constraints.positive)
            with gx.plate("some", 20), gx.handlers.scale(scale=weights):
                gx.sample("obs", distrax.Bernoulli(logits=X @ theta), obs=y)

        guide = gx.AutoSurrogateLikelihoodDAIS(
            model, surrogate_model, X, y, key=key, surrogate=gx.Batch(X[:20], y[:20])
        )

    Args:
        model: A model: a callable in the model language, or what an adapter returns.
        surrogate_model: Another model, over the same latents.
        *args: The model's arguments, or one `gx.Batch`.
        key: For the starting point.
        surrogate: The arguments of `surrogate_model`: constants, so that other ones are another
            program. None if it takes none.
        K: As of `AutoDAIS`, and so are the others.
        base_dist: What draws where the moves begin.
        eta_init: Starting step size; None for a tenth of `eta_max`. Noise may take one that is
            much closer to zero there, to stay.
        eta_max: Bound of the step sizes.
        gamma_init: Starting damping.
        init_loc_fn: Where the base's mean starts, unless `base_dist` is a `functools.partial` with
            an `init_loc_fn`.
        init_scale: Starting standard deviation of each unconstrained coordinate of the base.
        whiten: Whether to move the base's noise rather than its draws.
        max_kick: Bound of the change of a momentum in one step.
        recompute: Whether training computes the gradients of each step again.
        **kwargs: The model's keyword arguments.

    Raises:
        TypeError: If arguments do not fit their model, if those of the surrogate are traced or no
            `gx.Batch`, or if `base_dist` is no continuous guide.
        ValueError: As `AutoDAIS`, but for plates of data that hold some of their rows; also if the
            latents of the surrogate are not the model's, by name and shape, it would take some
            rows of a plate, or one of its `param` sites starts outside of its constraint.

    Source: Jankowiak and Phan 2022, "Surrogate likelihoods for variational annealed importance
    sampling".
    """

    def __init__(
        self,
        model: Any,
        surrogate_model: Any,
        /,
        *args: Any,
        key: Key,
        surrogate: Batch | None = None,
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
        stand_in = as_model(surrogate_model)
        data = _data(stand_in, surrogate)
        init_loc_fn = given_strategy(base_dist) or init_loc_fn
        start = begin(AutoSurrogateLikelihoodDAIS, model, args, kwargs, key, init_loc_fn)
        base = base_of(start, base_dist, init_scale, key)
        moves = Dynamics.start((), size_of(base.sites), dtype_of(base.sites), options)
        stand_in = _started(start, stand_in, data, key)
        family = SurrogateDAIS(base, moves, stand_in, data, whiten)
        super().__init__(start.model, family, start.structure, start.admitted)

    def dynamics(self) -> dict[str, Array]:
        """Return the parameters of the moves, as those of `AutoDAIS`."""
        return dynamics_of(self.family)


def _data(surrogate: AbstractModel, batch: Any) -> Batch:
    """Return the surrogate's arguments.

    Raises:
        TypeError: If they are traced, no batch, or do not fit.
    """
    if not (batch is None or isinstance(batch, Batch)):
        raise TypeError(
            f"surrogate takes the arguments of {surrogate.name} as one batch, gx.Batch(X_some, "
            f"y_some); got a {type(batch).__name__}."
        )
    if is_traced(batch):
        raise TypeError(
            "surrogate takes constants, but under a transformation its arrays are traced: make the "
            "batch outside of it."
        )
    return as_batch(surrogate, () if batch is None else (batch,), {})


def _started(start: Start, surrogate: AbstractModel, data: Batch, key: Key) -> AbstractModel:
    """Return the surrogate with values of its `param` sites, once its latents are checked.

    Raises:
        ValueError: If they are not those of the model, a plate holds some of its rows, or a
            parameter starts outside of its constraint.
    """
    structure = describe(surrogate, data, key)
    if structure.obstacles:
        name, why = structure.obstacles[0]
        raise ValueError(f"surrogate_model: site {name!r} cannot be drawn by a guide: {why}")
    advice = "Give it the model's prior, under the same names."
    latents = start.structure.latents
    require_sites("surrogate_model", structure.latents, latents, advice, facts=("shape",))
    for plate in structure.plates:
        if plate.rows < plate.size:
            raise ValueError(
                f"plate {plate.name!r} of surrogate_model holds {plate.rows} of {plate.size} rows, "
                "but a surrogate is one function of the latents: give it the data that it is to "
                "read, and a plate of that size."
            )
    params = started_params(surrogate, "surrogate_model", data, key, structure.params)
    return surrogate.with_params(params)
