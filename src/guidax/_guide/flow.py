"""Guides that bend a normal by a normalizing flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
from jaxtyping import Array

from .._family.base import AbstractFamily
from .._family.diagonal import DiagonalNormal
from .._family.flat import AbstractFlatNormal
from .._family.flow import Flow
from .._family.laplace import LaplacePoint
from .._family.low_rank import LowRankNormal
from .._family.multivariate import MultivariateNormal
from .._family.normal import MeanFieldNormal, raw_scale_of
from .._family.vector import ravel, unravel
from .._flow.base import AbstractLayer
from .._flow.block_autoregressive import BlockAutoregressive
from .._flow.composition import Composition
from .._flow.coupling import AffineCoupling, SplineCoupling, moved_by, widths_between
from .._flow.inverse_autoregressive import InverseAutoregressive
from .._flow.network import make_networks
from .._flow.rearrangement import Reversal
from .._model.batch import Batch
from .._model.matrix_maps import ScaledUnitLowerCholesky
from .._model.start import Start
from .._model.strategies import Strategy, init_to_uniform
from .._types import Key, is_count
from .begin import begin
from .guide import AutoContinuous, AutoGuide
from .sites import require_sites

Self = TypeVar("Self", bound="AbstractAutoFlow")  # typing.Self stops run-time checks of types
Nonlinearity = Callable[[Array], Array]


class AbstractAutoFlow(AutoContinuous):
    """What the guides with flows share: `z = A(f(eps))` with a flow `f` and an affine map `A`.

    `A` carries `init_loc_fn` and `init_scale`. The flow starts as the identity, so that the guide
    starts as the normal `N(loc, init_scale^2 I)`.
    """

    def __init__(self, start: Start, layers: Sequence[AbstractLayer], init_scale: float):
        family = Flow(DiagonalNormal(start, init_scale), Composition(layers))
        super().__init__(start.model, family, start.structure, start.admitted)

    def warm_start(self: Self, guide: AutoGuide, /) -> Self:
        """Return this guide where a fitted normal is.

        The affine map becomes the normal's, the flow the identity again, and the model's parameters
        are those of the fitted guide. From there training goes on: a flow that does not have to
        find location, scales and correlations first needs fewer steps.

        Args:
            guide: A fitted `AutoNormal`, `AutoDiagonalNormal`, `AutoMultivariateNormal` or
                `AutoLowRankMultivariateNormal`, on the same model.

        Returns:
            A guide with the distribution of `guide`.

        Raises:
            TypeError: If `guide` is no such normal.
            ValueError: If it has other sites or another model, or either is a stack of guides.
        """
        family = self.family
        assert isinstance(family, Flow)
        given = getattr(guide, "family", None)
        if not isinstance(given, AbstractFamily):
            raise TypeError(f"warm_start takes a guide; got {guide!r}.")
        self._require_one()
        guide._require_one()
        advice = "Build the two guides on the same model."
        require_sites("the given guide", given.sites, family.sites, advice, facts=("shape",))
        if jax.tree.structure(guide.model) != jax.tree.structure(self.model):
            raise ValueError("the two guides are bound to different models: give both the same.")
        warm = Flow(_affine(guide), family.flow.restarted())
        return eqx.tree_at(lambda g: (g.model, g.family), self, (guide.model, warm))


def _affine(guide: AutoGuide) -> AbstractFlatNormal:
    """Return the normal of a guide, over the flat vector."""
    family = guide.family
    if isinstance(family, (DiagonalNormal, MultivariateNormal)) and not family.batch_ndim:
        return family
    if isinstance(family, MeanFieldNormal):
        normal = DiagonalNormal(_start(guide, family.loc))
        raw_scale = ravel(family.raw_scale, family.sites)
        return eqx.tree_at(lambda f: f.raw_scale, normal, raw_scale)
    if isinstance(family, LowRankNormal) and not family.batch_ndim:
        normal = MultivariateNormal(_start(guide, unravel(family.loc, family.sites)))
        raw = ScaledUnitLowerCholesky().inverse(family.scale_tril())
        return eqx.tree_at(lambda f: f.raw_scale_tril, normal, raw)
    hint = "call its .laplace(*args) first" if isinstance(family, LaplacePoint) else "fit one first"
    raise TypeError(
        "warm_start takes a fitted gx.AutoNormal, gx.AutoDiagonalNormal, gx.AutoMultivariateNormal "
        f"or gx.AutoLowRankMultivariateNormal; got {type(guide).__name__}: {hint}."
    )


def _start(guide: AutoGuide, location: dict[str, Array]) -> Start:
    return Start(guide.model, Batch(), location, guide.structure, guide.admitted)


class AutoIAFNormal(AbstractAutoFlow):
    """An inverse autoregressive flow over the flat vector.

    It draws in one pass. The density of points that are not its own draws takes `dim` passes.

    Args:
        model: A model: a callable in the model language, or what an adapter returns.
        *args: The model's arguments, or one `gx.Batch`.
        key: For the starting point, and for the weights.
        init_loc_fn: Where the location starts: a strategy, or a function of a site and a key that
            returns a constrained value.
        init_scale: Starting standard deviation of each unconstrained coordinate.
        num_flows: Number of layers; the order of the coordinates is reversed between them.
        hidden_dims: Widths of the hidden layers of each layer's network; None for two as wide as
            the vector is long.
        skip_connections: Whether inputs are connected to the network's outputs directly as well.
        nonlinearity: Of the networks: a function of an array, such as `jax.nn.elu`.
        **kwargs: The model's keyword arguments.

    Raises:
        TypeError: If the arguments do not fit the model.
        ValueError: If an option is out of range, a latent is discrete, or no start is found.

    Source: Kingma et al. 2016, "Improving variational inference with inverse autoregressive flow".
    """

    def __init__(
        self,
        model: Any,
        /,
        *args: Any,
        key: Key,
        init_loc_fn: Strategy = init_to_uniform(),
        init_scale: float = 0.1,
        num_flows: int = 3,
        hidden_dims: Sequence[int] | None = None,
        skip_connections: bool = False,
        nonlinearity: Nonlinearity = jax.nn.elu,
        **kwargs: Any,
    ):
        _check(init_scale, num_flows, hidden_dims=hidden_dims, nonlinearity=nonlinearity)
        start = begin(AutoIAFNormal, model, args, kwargs, key, init_loc_fn)
        dim, dtype = _dim_and_dtype(start)
        widths = (dim, *((dim, dim) if hidden_dims is None else hidden_dims), 2 * dim)
        networks = make_networks(
            key, [widths] * num_flows, nonlinearity, skips=skip_connections, dtype=dtype
        )
        layers: list[AbstractLayer] = []
        for network in networks:
            layers += [Reversal(dim), InverseAutoregressive(network)]
        super().__init__(start, layers[1:], init_scale)


class AutoBNAFNormal(AbstractAutoFlow):
    """A block neural autoregressive flow over the flat vector.

    Each coordinate passes through a monotone network of its own, which reads earlier coordinates.
    It draws in one pass; the density of points that are not its own draws takes a root find for
    each coordinate. One flow has no identity: it starts within 0.1 nat of the normal.

    Args:
        model: A model: a callable in the model language, or what an adapter returns.
        *args: The model's arguments, or one `gx.Batch`.
        key: For the starting point.
        init_loc_fn: Where the location starts: a strategy, or a function of a site and a key that
            returns a constrained value.
        init_scale: Starting standard deviation of each unconstrained coordinate.
        num_flows: Number of layers; all but the last have a gated residual connection, and the
            order of the coordinates is reversed between them.
        hidden_factors: Hidden units for each coordinate, in each hidden layer.
        **kwargs: The model's keyword arguments.

    Raises:
        TypeError: If the arguments do not fit the model.
        ValueError: If an option is out of range, a latent is discrete, or no start is found.

    Source: De Cao, Titov and Aziz 2019, "Block neural autoregressive flow".
    """

    def __init__(
        self,
        model: Any,
        /,
        *args: Any,
        key: Key,
        init_loc_fn: Strategy = init_to_uniform(),
        init_scale: float = 0.1,
        num_flows: int = 1,
        hidden_factors: Sequence[int] = (8, 8),
        **kwargs: Any,
    ):
        _check(init_scale, num_flows, hidden_factors=hidden_factors)
        start = begin(AutoBNAFNormal, model, args, kwargs, key, init_loc_fn)
        dim, dtype = _dim_and_dtype(start)
        layers: list[AbstractLayer] = []
        for i in range(num_flows):
            gated = i < num_flows - 1
            layer = BlockAutoregressive(dim, tuple(hidden_factors), gated=gated, dtype=dtype)
            layers += [Reversal(dim), layer]
        super().__init__(start, layers[1:], init_scale)


class AutoRealNVPNormal(AbstractAutoFlow):
    """A flow of affine coupling layers over the flat vector.

    It draws in one pass, and the density of any point takes one pass too.

    Args:
        model: A model: a callable in the model language, or what an adapter returns.
        *args: The model's arguments, or one `gx.Batch`.
        key: For the starting point, and for the weights.
        init_loc_fn: Where the location starts: a strategy, or a function of a site and a key that
            returns a constrained value.
        init_scale: Starting standard deviation of each unconstrained coordinate.
        num_flows: Number of layers, each of which moves about half of the coordinates.
        hidden_dims: Widths of the hidden layers of each layer's network.
        nonlinearity: Of the networks: a function of an array, such as `jax.nn.elu`.
        **kwargs: The model's keyword arguments.

    Raises:
        TypeError: If the arguments do not fit the model.
        ValueError: If an option is out of range, a latent is discrete, or no start is found.

    Source: Dinh, Sohl-Dickstein and Bengio 2017, "Density estimation using real NVP".
    """

    def __init__(
        self,
        model: Any,
        /,
        *args: Any,
        key: Key,
        init_loc_fn: Strategy = init_to_uniform(),
        init_scale: float = 0.1,
        num_flows: int = 4,
        hidden_dims: Sequence[int] = (32, 32),
        nonlinearity: Nonlinearity = jax.nn.elu,
        **kwargs: Any,
    ):
        _check(init_scale, num_flows, hidden_dims=hidden_dims, nonlinearity=nonlinearity)
        start = begin(AutoRealNVPNormal, model, args, kwargs, key, init_loc_fn)
        dim, dtype = _dim_and_dtype(start)
        sides = [moved_by(dim, i) for i in range(num_flows)]
        widths = [widths_between(moved, hidden_dims, 2) for moved in sides]
        networks = make_networks(key, widths, nonlinearity, dtype=dtype)
        layers = [AffineCoupling(*each) for each in zip(networks, sides, strict=True)]
        super().__init__(start, layers, init_scale)


class AutoNSFNormal(AbstractAutoFlow):
    """A neural spline flow over the flat vector: coupling layers with monotone splines.

    It draws in one pass, and the density of any point takes one pass too. Its layers bend more than
    affine ones, and cost more.

    Args:
        model: A model: a callable in the model language, or what an adapter returns.
        *args: The model's arguments, or one `gx.Batch`.
        key: For the starting point, and for the weights.
        init_loc_fn: Where the location starts: a strategy, or a function of a site and a key that
            returns a constrained value.
        init_scale: Starting standard deviation of each unconstrained coordinate.
        num_flows: Number of layers, each of which moves about half of the coordinates.
        hidden_dims: Widths of the hidden layers of each layer's network.
        num_bins: Pieces of each spline.
        nonlinearity: Of the networks: a function of an array, such as `jax.nn.elu`.
        **kwargs: The model's keyword arguments.

    Raises:
        TypeError: If the arguments do not fit the model.
        ValueError: If an option is out of range, a latent is discrete, or no start is found.

    Source: Durkan et al. 2019, "Neural spline flows".
    """

    def __init__(
        self,
        model: Any,
        /,
        *args: Any,
        key: Key,
        init_loc_fn: Strategy = init_to_uniform(),
        init_scale: float = 0.1,
        num_flows: int = 4,
        hidden_dims: Sequence[int] = (32, 32),
        num_bins: int = 8,
        nonlinearity: Nonlinearity = jax.nn.elu,
        **kwargs: Any,
    ):
        _check(
            init_scale,
            num_flows,
            hidden_dims=hidden_dims,
            num_bins=(num_bins,),
            nonlinearity=nonlinearity,
        )
        start = begin(AutoNSFNormal, model, args, kwargs, key, init_loc_fn)
        dim, dtype = _dim_and_dtype(start)
        sides = [moved_by(dim, i) for i in range(num_flows)]
        widths = [widths_between(moved, hidden_dims, 3 * num_bins + 1) for moved in sides]
        networks = make_networks(key, widths, nonlinearity, dtype=dtype)
        layers = [SplineCoupling(*each) for each in zip(networks, sides, strict=True)]
        super().__init__(start, layers, init_scale)


def _check(
    init_scale: float,
    num_flows: int,
    *,
    nonlinearity: Nonlinearity | None = None,
    **widths: Sequence[int] | None,
) -> None:
    """Refuse options that are out of range, before the search.

    Raises:
        TypeError: If the nonlinearity cannot be called.
        ValueError: If another option is out of range.
    """
    raw_scale_of(init_scale)
    if not is_count(num_flows):
        raise ValueError(f"num_flows counts layers, so it is 1 or more; got {num_flows!r}.")
    for name, given in widths.items():
        if given is not None and not _are_positive(given):
            raise ValueError(f"{name} counts units, so it takes positive integers; got {given!r}.")
    if not (nonlinearity is None or callable(nonlinearity)):
        raise TypeError(
            f"nonlinearity takes a function of an array, such as jax.nn.elu; got {nonlinearity!r}."
        )


def _are_positive(given: Any) -> bool:
    try:
        return all(map(is_count, given))
    except TypeError:
        return False


def _dim_and_dtype(start: Start) -> tuple[int, Any]:
    z = ravel(start.location, start.structure.latents)
    return z.shape[0], z.dtype
