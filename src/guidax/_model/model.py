"""A model is a program that scores: one abstract method runs it; the rest is shared code."""

from __future__ import annotations

import abc
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._numerics import strong
from .._types import Key
from .batch import Batch
from .handlers import AbstractHandler, block, is_hidden
from .static import Static
from .trace import Indices, Site, Trace

Choose = Callable[[Site], Array | None]  # live latent -> constrained value; None: draw the prior


class AbstractModel(eqx.Module):
    """Anything that can be run with chosen values for its latent sites.

    Its leaves are its trainable parameters: `params`, and the arrays of modules in it. An adapter
    for another model language implements `run`, `signature`, `name` and `plate_rows`.
    """

    params: eqx.AbstractVar[dict[str, Any]]  # unconstrained values of the `param` sites

    @abc.abstractmethod
    def run(self, batch: Batch, key: Key, choose: Choose, indices: Indices) -> Trace:
        """Run once.

        Args:
            batch: The arguments.
            key: For whatever is not chosen.
            choose: Called with each live latent; returns its constrained value, or None to draw
                it from its prior.
            indices: Row numbers for plates; they override the plate's own, and with them how many
                rows it holds.

        Returns:
            Sites and plates, in order.

        Raises:
            ValueError: If two sites have one name, or one plate has two sizes or dims.
        """

    @abc.abstractmethod
    def signature(self) -> inspect.Signature | None:
        """Return the signature that arguments are bound to, or None if there is none."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """What error messages call the model."""

    @property
    @abc.abstractmethod
    def has_module(self) -> bool:
        """Whether arrays of a module (a network) are among the leaves."""

    @abc.abstractmethod
    def plate_rows(self, create_plates: Callable[..., Any], batch: Batch, key: Key) -> Indices:
        """Return the row numbers that the plates made by `create_plates(*args)` hold."""

    def with_params(self, params: dict[str, Any]) -> AbstractModel:
        """Return the model with other values of its `param` sites."""
        return eqx.tree_at(lambda m: m.params, self, params, is_leaf=lambda x: x is self.params)


class _Parts(NamedTuple):
    """The static parts of a callable."""

    function: Callable[..., Any] | None  # None: the module itself is called
    rest: Any  # the module without its arrays, or None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class SplitCallable(eqx.Module):
    """A callable whose floating module arrays are leaves, and the rest one static holder.

    The arrays keep the module's own shape, so `arrays.decoder` is where `module.decoder` was.
    Arrays of a `functools.partial`, and those in handlers, are constants.
    """

    arrays: PyTree
    constant: Static = eqx.field(static=True)

    def __init__(self, fn: Callable[..., Any]):
        if not callable(fn):
            of_guide = isinstance(getattr(fn, "model", None), AbstractModel)
            got = "a guide: pass guide.model" if of_guide else f"{fn!r:.100}"
            raise TypeError(f"a model is something that can be called; got {got}.")
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        while isinstance(fn, functools.partial):
            args, kwargs = fn.args + args, fn.keywords | kwargs
            fn = fn.func
        if type(fn).__hash__ is None:  # a dataclass, say: its method is compared by identity
            fn = fn.__call__
        function, module = _method_of(fn)
        arrays, rest = eqx.partition(module, _trainable(module))
        self.arrays = jax.tree.map(strong, arrays)
        self.constant = Static(_Parts(function, rest, args, kwargs))

    @property
    def has_arrays(self) -> bool:
        """Whether there is anything to train."""
        return bool(jax.tree.leaves(self.arrays))

    def build(self) -> Callable[..., Any]:
        """Put the callable together again."""
        function, rest, args, kwargs = self.constant.value
        module = eqx.combine(self.arrays, rest)
        if function is None:
            call = module
        elif module is None:
            call = function
        else:
            call = functools.partial(function, module)
        return functools.partial(call, *args, **kwargs) if args or kwargs else call

    def signature(self) -> inspect.Signature | None:
        """Return the signature of the callable, seen through handlers."""
        return signature_of(self.build())

    @property
    def name(self) -> str:
        """Return the name of the function or class."""
        function, rest, _, _ = self.constant.value
        while isinstance(rest, AbstractHandler):
            function, rest = rest.fn, rest.fn
        if getattr(function, "__name__", None) == "__call__":
            rest, function = getattr(function, "__self__", rest), None
        return getattr(function, "__name__", None) or type(rest).__name__


class AbstractCallableModel(AbstractModel):
    """A model around a callable: what the adapters share."""

    fn: eqx.AbstractVar[SplitCallable]

    @property
    def arrays(self) -> Any:
        """The floating arrays of the module, in the module's own shape."""
        return self.fn.arrays

    @property
    def name(self) -> str:
        """The name of the function or class."""
        return self.fn.name

    @property
    def has_module(self) -> bool:
        """Whether a module's arrays are among the leaves."""
        return self.fn.has_arrays

    def signature(self) -> inspect.Signature | None:
        """Return the callable's signature."""
        return self.fn.signature()


def _method_of(fn: Any) -> tuple[Callable[..., Any] | None, Any]:
    """Return a function and the module that is its first argument."""
    owner, function = getattr(fn, "__self__", None), getattr(fn, "__func__", None)
    if isinstance(owner, eqx.Module) and function is not None:
        return function, owner
    if isinstance(fn, eqx.Module):
        return None, fn
    return fn, None


def _trainable(module: Any) -> Any:
    """Return a tree of bools: the floating arrays, except those that handlers hold."""

    def spec(node: Any) -> Any:
        if not isinstance(node, AbstractHandler):
            return eqx.is_inexact_array(node) and not np.iscomplexobj(node)
        nothing = jax.tree.map(lambda _: False, node)
        return eqx.tree_at(
            lambda h: h.fn, nothing, _trainable(node.fn), is_leaf=lambda x: x is None
        )

    return jax.tree.map(spec, module, is_leaf=lambda node: isinstance(node, AbstractHandler))


def signature_of(fn: Any) -> inspect.Signature | None:
    """Return the signature of a callable, seen through handlers; None if it has none."""
    while isinstance(fn, AbstractHandler):
        fn = fn.fn
    try:
        return inspect.signature(fn)
    except (TypeError, ValueError):
        return None


class Restricted(AbstractModel):
    """`block` for a model of any language: hidden latents are drawn, not scored.

    Args:
        inner: The model.
        hide: Names of hidden sites; None hides all that `expose` does not name.
        expose: Names of the sites that are not hidden.
    """

    params: dict[str, Any]
    inner: AbstractModel
    hide: tuple[str, ...] | None = eqx.field(static=True)
    expose: tuple[str, ...] | None = eqx.field(static=True)

    def __init__(
        self,
        inner: AbstractModel,
        hide: Iterable[str] | None = None,
        expose: Iterable[str] | None = None,
    ):
        self.params = inner.params
        self.inner = inner.with_params({})
        self.hide = None if hide is None else tuple(hide)
        self.expose = None if expose is None else tuple(expose)

    def run(self, batch: Batch, key: Key, choose: Choose, indices: Indices) -> Trace:
        """Run the inner model; hidden sites are drawn from their priors and left out."""

        def visible(site: Site) -> Array | None:
            return None if self._hides(site.name) else choose(site)

        trace = self.inner.with_params(self.params).run(batch, key, visible, indices)
        kept = {n: s for n, s in trace.sites.items() if s.kind == "param" or not self._hides(n)}
        return dataclasses.replace(trace, sites=kept)

    def _hides(self, name: str) -> bool:
        return is_hidden(name, self.hide, self.expose)

    def signature(self) -> inspect.Signature | None:
        """Return the inner model's."""
        return self.inner.signature()

    @property
    def name(self) -> str:
        """Return the inner model's name."""
        return self.inner.name

    @property
    def has_module(self) -> bool:
        """Whether the inner model has a module."""
        return self.inner.with_params(self.params).has_module

    def plate_rows(self, create_plates: Callable[..., Any], batch: Batch, key: Key) -> Indices:
        """Return what the inner model's language makes of the plates."""
        return self.inner.plate_rows(create_plates, batch, key)


def unblocked(handler: AbstractHandler) -> AbstractModel:
    """Return a handler over an `AbstractModel` as a model: `block` is the only one there is.

    Raises:
        TypeError: For another handler.
    """
    if not isinstance(handler, block):
        raise TypeError(
            f"gx.handlers.{type(handler).__name__} works on programs in the model language; this "
            "one wraps a model of another language. Apply that language's own handler inside, e.g. "
            "gx.from_numpyro(numpyro.handlers.scale(model, 2.0))."
        )
    assert isinstance(handler.fn, AbstractModel)
    return Restricted(handler.fn, handler.hide, handler.expose)


def at_zero(site: Site) -> Array | None:
    """Choose unconstrained zero for a latent that a guide can draw, zero where nobody can."""
    if site.has_bijection:
        return site.known_bijection.forward(site.zeros())
    if site.sample is None:
        return jnp.zeros((*site.batch_shape, *site.event_shape), site.dtype)
    return None
