"""DAIS whose moves follow a surrogate model, so that the model itself may take minibatches."""

from __future__ import annotations

from typing import Any

import equinox as eqx
from jax import random
from jaxtyping import Array, Float

from .._model.batch import Batch
from .._model.model import AbstractModel, at_zero
from .._model.static import Static
from .._model.target import Draw, Target
from .._model.trace import LatentSpec
from .._types import Key
from .dais import AbstractDAIS
from .dynamics import Dynamics
from .flat import AbstractFlat


class SurrogateDAIS(AbstractDAIS):
    """Moves that follow a surrogate of the target, which reads none of the model's arguments.

    Args:
        base: What draws where they begin.
        dynamics: Their parameters.
        whiten: Whether they move the base's noise.
        surrogate: A model over the same latents, with its parameters, which are trained.
        data: Its arguments.

    Source: Jankowiak and Phan 2022, "Surrogate likelihoods for variational annealed importance
    sampling".
    """

    base: AbstractFlat
    dynamics: Dynamics
    surrogate: AbstractModel
    data: Static = eqx.field(static=True)  # a `Batch`: constants, so that they are not trained
    sites: tuple[LatentSpec, ...] = eqx.field(static=True)
    whiten: bool = eqx.field(static=True)

    def __init__(
        self,
        base: AbstractFlat,
        dynamics: Dynamics,
        surrogate: AbstractModel,
        data: Batch,
        whiten: bool = False,
    ):
        self.base, self.dynamics, self.whiten = base, dynamics, whiten
        self.surrogate, self.data = surrogate, Static(data)
        self.sites = base.sites

    @property
    def reads_given(self) -> bool:
        """The surrogate is over the latents of this part alone."""
        return False

    @property
    def has_params(self) -> bool:
        """Whether the surrogate has `param` sites."""
        return bool(self.surrogate.params)

    def param_values(self, key: Key, target: Target) -> dict[str, Any]:
        """Return those of the surrogate."""
        del target
        trace = self.surrogate.run(self.data.value, key, at_zero, {})
        return {name: site.value for name, site in trace.of("param").items()}

    def log_density(self, z: Float[Array, " dim"], target: Target) -> Float[Array, ""]:
        """Return the surrogate's log joint density and log-Jacobians."""
        # Its plates hold all rows in their own order, whatever the batch holds.
        draw = Draw.of(self.base.to_values(self._shaped(z), {}))
        # A key of its own: the surrogate's randomness, if it has any, is the same at every step.
        key = random.fold_in(target.key, 1)
        return Target(self.surrogate, self.data.value, key, {}).score(draw).log_density
