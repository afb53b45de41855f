"""Parameters of flows to and from NumPyro's.

NumPyro's flows have no affine map behind them, so on the way out it is folded into the last layer.
NumPyro clamps the log-scales of inverse autoregressive layers to [-5, 3]. Here they grow by their
logarithm beyond, so parameters are exchanged only where they stay within.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jaxtyping import Array

from .._family.diagonal import DiagonalNormal
from .._family.flow import Flow
from .._family.multivariate import MultivariateNormal
from .._flow.base import AbstractLayer
from .._flow.block_autoregressive import BlockAutoregressive
from .._flow.composition import Composition
from .._flow.inverse_autoregressive import LOG_SCALE_BOUNDS, InverseAutoregressive
from .._flow.masks import hidden_degrees
from .._flow.rearrangement import Reversal
from .._model.matrix_maps import ScaledUnitLowerCholesky
from .._numerics import filled_like, inverse_softplus_of, is_traced

_CHECKS = 1_000  # draws at which no log-scale may leave the bounds


def flow_outward(family: Flow, prefix: str) -> dict[str, Any]:
    """Return the parameters under NumPyro's names.

    Raises:
        TypeError: If NumPyro has no such flow, or the parameters are traced.
        ValueError: If NumPyro's flow of these options is another map.
    """
    layers = _exchangeable(family)
    if not isinstance(family.affine, DiagonalNormal):
        raise ValueError(
            "this flow was warm-started from a full covariance, and NumPyro's has nothing that "
            "could hold it: fit one that was not, or one that starts from gx.AutoNormal."
        )
    *rest, last = layers
    layers = [*rest, _folded(last, family.affine.loc, family.affine.marginal_scale())]
    _require_no_clamp(layers)
    return {_name(prefix, i): _layout(layer) for i, layer in enumerate(layers)}


def flow_inward(family: Flow, params: Mapping[str, Any], prefix: str) -> Flow:
    """Return the family with NumPyro's parameters, and no affine map behind the flow.

    Raises:
        TypeError: As `flow_outward`.
        ValueError: If a parameter is missing, or has another structure or shape.
    """
    layers = _exchangeable(family)
    read = [_read(layer, params, _name(prefix, i)) for i, layer in enumerate(layers)]
    _require_no_clamp(read)
    given = iter(read)
    assert isinstance(family.flow, Composition)
    placed = [x if isinstance(x, Reversal) else next(given) for x in family.flow.layers]
    return Flow(_identity(family.affine), Composition(placed))


def _name(prefix: str, i: int) -> str:
    return f"{prefix}_arn__{i}$params"


def _exchangeable(family: Flow) -> list[Any]:
    """Return the layers, if NumPyro has the like of them."""
    layers = family.flow.layers if isinstance(family.flow, Composition) else ()
    layers = [layer for layer in layers if not isinstance(layer, Reversal)]
    if not all(isinstance(x, (InverseAutoregressive, BlockAutoregressive)) for x in layers):
        raise TypeError("NumPyro has no guide with coupling layers: read them from guide.family.")
    if is_traced(family):
        raise TypeError(
            "whether NumPyro's flow is the same map depends on values, which are not known inside "
            "a transformation: exchange parameters outside of it."
        )
    dim = family.affine.loc.shape[0]
    if dim == 1:
        raise ValueError("NumPyro refuses flows over one latent coordinate.")
    for layer in layers:
        if isinstance(layer, InverseAutoregressive):
            _require_same_masks(layer, dim)
    return layers


def _require_same_masks(layer: InverseAutoregressive, dim: int) -> None:
    """Refuse widths for which NumPyro connects the hidden units otherwise."""
    for dense in layer.network.layers[:-1]:
        width = dense.shape[1]
        if width < dim:
            raise ValueError(
                f"NumPyro refuses hidden layers of {width} units for {dim} coordinates: give "
                f"hidden_dims of {dim} or more."
            )
        theirs = np.asarray(jnp.round(jnp.linspace(1, dim - 1, num=width)))
        if (theirs != hidden_degrees(dim, width)).any():
            raise ValueError(
                f"with {width} hidden units for {dim} coordinates NumPyro's rounding errors "
                "connect some units otherwise: choose other hidden_dims."
            )


def _folded(layer: Any, loc: Array, scale: Array) -> Any:
    """Return the layer followed by `y -> loc + scale y`."""
    if isinstance(layer, BlockAutoregressive):
        moved = (layer.log_scales[-1] + jnp.log(scale), scale * layer.biases[-1] + loc)
        return eqx.tree_at(lambda x: (x.log_scales[-1], x.biases[-1]), layer, moved)
    gain = jnp.concatenate([scale, jnp.ones_like(scale)])  # of locations, and of log-scales
    network, shift = layer.network, jnp.concatenate([loc, jnp.log(scale)])
    last = (network.layers[-1] * gain).at[-1].add(shift)
    network = eqx.tree_at(lambda x: x.layers[-1], network, last)
    if network.skip is not None:
        network = eqx.tree_at(lambda x: x.skip, network, network.skip * gain)
    return eqx.tree_at(lambda x: x.network, layer, network)


def _require_no_clamp(layers: list[Any]) -> None:
    """Refuse inverse autoregressive layers that NumPyro would clamp at a draw."""
    if not isinstance(layers[0], InverseAutoregressive):
        return
    first = layers[0].network.layers[0]
    x = random.normal(random.key(0), (_CHECKS, first.shape[0] - 1), first.dtype)
    for i, layer in enumerate(layers):
        x = x[:, ::-1] if i else x
        location, log_scale = jax.vmap(layer.location_and_log_scale)(x)
        low, high = float(log_scale.min()), float(log_scale.max())
        if low < LOG_SCALE_BOUNDS[0] or high > LOG_SCALE_BOUNDS[1]:
            raise ValueError(
                f"flow {i} has log-scales from {low:.3g} to {high:.3g}; NumPyro clamps them to "
                f"{list(LOG_SCALE_BOUNDS)}, and guidax does not, so the two flows would differ."
            )
        x = jnp.exp(log_scale) * x + location


def _layout(layer: Any) -> Any:
    """Return a layer's parameters as NumPyro nests them."""
    if isinstance(layer, BlockAutoregressive):
        triples = zip(layer.weights, layer.log_scales, layer.biases, strict=True)
        dense = _between(list(triples))
        return dense if layer.gate is None else [(), (dense, ()), layer.gate]
    network = layer.network
    dense = _between([(matrix[:-1], matrix[-1]) for matrix in network.layers])
    return dense if network.skip is None else [(), (dense, network.skip), ()]


def _from_layout(layer: Any, given: Any) -> AbstractLayer:
    """Return the layer with parameters that are nested as NumPyro does."""
    if isinstance(layer, BlockAutoregressive):
        dense, gate = (given, None) if layer.gate is None else (given[1][0], given[2])
        read = (*(tuple(x) for x in zip(*dense[::2], strict=True)), gate)
        return eqx.tree_at(
            lambda x: (x.weights, x.log_scales, x.biases, x.gate),
            layer,
            read,
            is_leaf=lambda x: x is None,
        )
    dense, skip = (given, None) if layer.network.skip is None else given[1]
    layers = tuple(jnp.concatenate([weight, bias[None]]) for weight, bias in dense[::2])
    return eqx.tree_at(
        lambda x: (x.network.layers, x.network.skip),
        layer,
        (layers, skip),
        is_leaf=lambda x: x is None,
    )


def _between(dense: list[Any]) -> list[Any]:
    """Put the empty parameters of a nonlinearity between layers."""
    return [x for layer in dense for x in (layer, ())][:-1]


def _read(layer: Any, params: Mapping[str, Any], name: str) -> AbstractLayer:
    """Return a layer with the parameters under a name."""
    if name not in params:
        raise ValueError(
            f"params lacks {name!r}; it has {sorted(params)}. Is prefix the right one?"
        )
    like = _layout(layer)
    given = jax.tree.map(jnp.asarray, params[name])
    own, theirs = (jax.tree.map(jnp.shape, x) for x in (like, given))
    if jax.tree.structure(like) != jax.tree.structure(given) or own != theirs:
        raise ValueError(f"{name!r} has shapes {theirs}; the guide's are {own}.")
    return _from_layout(layer, jax.tree.map(lambda x, at: x.astype(at.dtype), given, like))


def _identity(affine: Any) -> Any:
    """Return the normal at location zero, with the identity as its covariance."""
    loc = jnp.zeros_like(affine.loc)
    if isinstance(affine, DiagonalNormal):
        raw = filled_like(affine.raw_scale, inverse_softplus_of(1.0))
        return eqx.tree_at(lambda f: (f.loc, f.raw_scale), affine, (loc, raw))
    assert isinstance(affine, MultivariateNormal)
    raw = ScaledUnitLowerCholesky().inverse(jnp.eye(loc.shape[0], dtype=loc.dtype))
    return eqx.tree_at(lambda f: (f.loc, f.raw_scale_tril), affine, (loc, raw))
