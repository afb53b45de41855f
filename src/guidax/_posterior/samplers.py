"""Hand-off to samplers: log densities to sample, where to start, and with which mass matrix."""

from __future__ import annotations

import abc
import functools
from typing import Any, Generic, Literal, NamedTuple, TypeVar, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jaxtyping import Array, Bool, Float

from .._family.flat import AbstractFlat
from .._family.low_rank import rank_of
from .._family.vector import dtype_of, size_of
from .._guide.guide import AutoGuide
from .._model.batch import Batch, as_batch
from .._model.target import Draw
from .._numerics import is_traced
from .._types import Key, positive, positive_or_none, require_key
from .mass import covariance_root, has_closed_form
from .whole import whole_indices

Position = TypeVar("Position")
Kind = Literal["diagonal", "dense", "low_rank"]


class LowRank(NamedTuple):
    """A low-rank inverse mass matrix, `diag(sigma) (I + U (diag(lam) - I) U') diag(sigma)`.

    `blackjax.mcmc.metrics.LowRankInverseMassMatrix(*low_rank)` takes it.
    """

    sigma: Float[Array, " dim"]
    U: Float[Array, "dim rank"]
    lam: Float[Array, " rank"]


class AbstractSamplerDensity(eqx.Module, Generic[Position]):
    """The posterior as a log density of unconstrained positions, which a sampler moves.

    Attributes:
        guide: The guide that positions come from.
        batch: The model's arguments.
    """

    guide: eqx.AbstractVar[AutoGuide]
    batch: eqx.AbstractVar[Batch]

    @abc.abstractmethod
    def log_density(self, position: Position) -> Float[Array, ""]:
        """Return the log density of one position, up to a constant: BlackJAX's `logdensity_fn`.

        Raises:
            ValueError: If the position is not that of this density: of other sites, or a shape that
                does not fit.
        """

    @abc.abstractmethod
    def to_latents(self, positions: Position) -> dict[str, Array]:
        """Return latents and deterministic sites at positions, which may have leading axes.

        Raises:
            ValueError: As of `log_density`.
        """

    @abc.abstractmethod
    def initial(self, key: Key, num_chains: int | None = None) -> Position:
        """Draw starting positions from the guide.

        Args:
            key: For the draws.
            num_chains: How many; None for one without a leading axis.

        Raises:
            ValueError: If `num_chains` is less than 1.
        """

    def potential(self, position: Position) -> Float[Array, ""]:
        """Return minus `log_density`: NumPyro's `potential_fn`; errors are the same."""
        return -self.log_density(position)


class UnconstrainedDensity(AbstractSamplerDensity[dict[str, Array]]):
    """The posterior over unconstrained latents, a dictionary by site.

    For a NumPyro model these are the unconstrained latents of NumPyro's samplers, so that
    `MCMC(NUTS(model, inverse_mass_matrix=...), ...).run(..., init_params=...)` takes positions and
    matrix as they are.

    Args:
        guide: A fitted guide.
        *args: The model's arguments, or one `gx.Batch`; all rows.
        **kwargs: The model's keyword arguments.

    Raises:
        TypeError: If the arguments do not fit the model.
        ValueError: If a plate holds some of its rows.
    """

    guide: AutoGuide
    batch: Batch

    def __init__(self, guide: AutoGuide, /, *args: Any, **kwargs: Any):
        self.guide, self.batch = _guide_and_batch(guide, args, kwargs)

    def log_density(self, position: dict[str, Array]) -> Float[Array, ""]:
        """Return the log joint density of a position, log-Jacobians included."""
        self._require_sites(position)
        return _log_density(self, position)

    def to_latents(self, positions: dict[str, Array]) -> dict[str, Array]:
        """Return constrained latents and deterministic sites."""
        self._require_sites(positions)
        spec = self.guide.family.sites[0]
        lead = jnp.ndim(positions[spec.name]) - len(spec.shape)
        return _over_axes(_latents, lead)(self, positions)

    def initial(self, key: Key, num_chains: int | None = None) -> dict[str, Array]:
        """Draw unconstrained latents from the guide."""
        require_key("initial", key)
        return _draws(self, key, positive_or_none("num_chains", num_chains))

    def inverse_mass_matrix(
        self,
        kind: Kind = "diagonal",
        *,
        rank: int | None = None,
        key: Key | None = None,
        num_samples: int = 1000,
    ) -> Float[Array, "..."] | LowRank:
        """Return the guide's covariance of the positions, raveled.

        Coordinates are in the order of `jax.flatten_util.ravel_pytree`: sites by name, in the
        alphabet. NumPyro and BlackJAX ravel dictionaries so. It is exact for `AutoNormal` and for
        normals over one vector; for all others, batched normals and lists among them, it is that of
        draws.

        Args:
            kind: "diagonal" gives variances, "dense" the matrix, "low_rank" scales with the
                directions along which correlation stretches most.
            rank: How many directions at most; None is the square root of the dimension, rounded.
            key: For draws; None is `jax.random.key(0)`.
            num_samples: How many draws.

        Returns:
            An array of shape `(dim,)` or `(dim, dim)`, or a `LowRank`.

        Raises:
            TypeError: If the guide draws points, which have no spread, `key` is no random key, or
                `num_samples` no integer.
            ValueError: If `kind` is none of these, `rank` does not suit, or "dense" asks for more
                draws.
        """
        if kind not in get_args(Kind):
            raise ValueError(f"kind is one of {get_args(Kind)}; got {kind!r}.")
        dim = size_of(self.guide.family.sites)
        if rank is not None and kind != "low_rank":
            raise ValueError(f'rank goes with kind="low_rank"; got it with {kind!r}.')
        rank = rank_of(rank, dim)
        key = random.key(0) if key is None else key
        require_key("inverse_mass_matrix", key, "key=, a random key")
        number = positive("num_samples", num_samples)
        is_sampled = not has_closed_form(self.guide.family)
        if is_sampled and kind == "dense" and number <= 2 * dim:
            raise ValueError(
                f"{number} draws say too little of the covariance of {dim} coordinates: take "
                f'num_samples={10 * dim}, or kind="diagonal" or "low_rank".'
            )
        found, spreads = _inverse_mass_matrix(self, key, kind, rank, number)
        if is_sampled and not is_traced(spreads) and not spreads:
            raise TypeError(
                f"{type(self.guide).__name__} draws points, which have no spread to make a mass "
                "matrix of: take a guide that spreads, such as gx.AutoNormal."
            )
        return found

    def _target(self) -> Any:
        key = random.key(0)
        indices = whole_indices(self.guide, key, self.batch, _WHAT)
        return self.guide.target(key, self.batch, indices)

    def _require_sites(self, position: Any) -> None:
        names = {s.name for s in self.guide.family.sites}
        if not isinstance(position, dict) or position.keys() != names:
            found = sorted(position) if isinstance(position, dict) else type(position).__name__
            raise ValueError(
                f"a position is a dictionary of the sites {sorted(names)}; got {found}."
            )


class NeuTraDensity(AbstractSamplerDensity[Array]):
    """The posterior over the noise of a guide, `eps` with `z = T(eps)`.

    Its log density is `log p(data, T(eps)) + log |det T'(eps)|`. If the guide were the posterior,
    this would be a standard normal, whatever the shape of the posterior; the better the guide, the
    less of it is left to a sampler, whose mass matrix is then the identity.

    Args:
        guide: A fitted guide over one vector: a normal, or one bent by a flow.
        *args: The model's arguments, or one `gx.Batch`; all rows.
        **kwargs: The model's keyword arguments.

    Raises:
        TypeError: If the guide has no map from noise, or the arguments do not fit the model.
        ValueError: If a plate holds some of its rows.

    Source: Hoffman et al. 2019, "NeuTra-lizing bad geometry in Hamiltonian Monte Carlo using neural
    transport", section 3.
    """

    guide: AutoGuide
    batch: Batch

    def __init__(self, guide: AutoGuide, /, *args: Any, **kwargs: Any):
        self.guide, self.batch = _guide_and_batch(guide, args, kwargs)
        if not isinstance(self.guide.family, AbstractFlat):
            raise TypeError(
                f"{type(guide).__name__} has no map from noise to the latents. Take a guide over "
                "one vector, such as gx.AutoMultivariateNormal, gx.AutoIAFNormal or "
                "gx.AutoRealNVPNormal."
            )

    def log_density(self, position: Float[Array, "*dim"]) -> Float[Array, ""]:
        """Return the log density of the noise."""
        self._leading(position)
        return _log_density_of_noise(self, position)

    def to_latents(self, positions: Float[Array, "..."]) -> dict[str, Array]:
        """Return constrained latents and deterministic sites."""
        return _over_axes(_latents_of_noise, self._leading(positions))(self, positions)

    def initial(self, key: Key, num_chains: int | None = None) -> Array:
        """Draw standard normal noise."""
        require_key("initial", key)
        number = positive_or_none("num_chains", num_chains)
        shape = self._shape if number is None else (number, *self._shape)
        return random.normal(key, shape, dtype_of(self.guide.family.sites))

    @property
    def family(self) -> AbstractFlat:
        """The guide's family."""
        assert isinstance(self.guide.family, AbstractFlat)
        return self.guide.family

    @property
    def _shape(self) -> tuple[int, ...]:
        sites, ndim = self.family.sites, self.family.batch_ndim
        lead = sites[0].shape[:ndim]
        return (*lead, size_of(sites) // int(np.prod(lead)))

    def _leading(self, positions: Any) -> int:
        """Return how many axes stand before those of a position."""
        ndim = jnp.ndim(positions) - len(self._shape)
        if ndim < 0 or jnp.shape(positions)[ndim:] != self._shape:
            raise ValueError(
                f"a position is an array of shape {self._shape}; got {jnp.shape(positions)}."
            )
        return ndim


_WHAT = "a sampler moves in"


def _guide_and_batch(
    guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[AutoGuide, Batch]:
    """Return the guide that draws and the arguments, if they hold all rows."""
    if not isinstance(guide, AutoGuide):
        raise TypeError(f"a density for samplers takes a guide; got {type(guide).__name__}.")
    batch = guide.admit(as_batch(guide.model, args, kwargs))
    jax.eval_shape(lambda g, b: whole_indices(g, random.key(0), b, _WHAT), guide, batch)
    return guide.settled(batch), batch


def _over_axes(function: Any, ndim: int) -> Any:
    for _ in range(ndim):
        function = jax.vmap(function, in_axes=(None, 0))
    return function


@jax.jit
def _log_density(density: UnconstrainedDensity, position: dict[str, Array]) -> Float[Array, ""]:
    return density._target().score(Draw.of(position)).log_density


@jax.jit
def _latents(density: UnconstrainedDensity, position: dict[str, Array]) -> dict[str, Array]:
    return density._target().score(Draw.of(position)).values


@jax.jit
def _log_density_of_noise(density: NeuTraDensity, eps: Float[Array, "*dim"]) -> Float[Array, ""]:
    return _score_of_noise(density, eps)[0]


@jax.jit
def _latents_of_noise(density: NeuTraDensity, eps: Float[Array, "*dim"]) -> dict[str, Array]:
    return _score_of_noise(density, eps)[1]


def _score_of_noise(density: NeuTraDensity, eps: Array) -> tuple[Array, dict[str, Array]]:
    key = random.key(0)
    indices = whole_indices(density.guide, key, density.batch, _WHAT)
    transform: Any = density.family.transform()
    z, log_det = transform.forward_and_log_det(eps)
    target = density.guide.target(key, density.batch, indices)
    score = target.score(Draw.of(density.family.to_values(z, indices)))
    return score.log_density + jnp.sum(log_det), score.values


@functools.partial(jax.jit, static_argnames=("kind", "rank", "number"))
def _inverse_mass_matrix(
    density: UnconstrainedDensity, key: Key, kind: Kind, rank: int, number: int
) -> tuple[Float[Array, "..."] | LowRank, Bool[Array, ""]]:
    """Return the matrix, and whether every coordinate varies."""
    root = covariance_root(
        density.guide.family, density._target(), lambda: _draws(density, key, number)
    )
    if kind == "diagonal":
        return root.variances(), root.spreads
    found = root.covariance() if kind == "dense" else LowRank(*root.stretched(rank))
    return found, root.spreads


@eqx.filter_jit
def _draws(density: UnconstrainedDensity, key: Key, number: int | None) -> dict[str, Array]:
    """Return unconstrained draws of the guide."""
    target = density._target()

    def one(key: Key) -> dict[str, Array]:
        draw = density.guide.family.draw(key, target)
        if "constrained" not in dict(draw.space).values():
            return draw.values
        sites = target.run(draw).sites
        return {
            name: sites[name].known_bijection.inverse(x)
            if draw.space_of(name) == "constrained"
            else x
            for name, x in draw.values.items()
        }

    return one(key) if number is None else jax.vmap(one)(random.split(key, number))
