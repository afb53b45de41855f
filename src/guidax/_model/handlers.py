"""Effect handlers: each, applied to a model, is an `eqx.Module` equal by value."""

from __future__ import annotations

import abc
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from .._types import Key, is_typed_key
from .messages import KeySource, Message, Messenger, enter, key_of, leave


class AbstractHandler(eqx.Module):
    """A handler, applied to a model or used as a context manager around a call of it.

    Nothing changes in it when it runs: what a run needs lives in a messenger made for that run.
    """

    fn: eqx.AbstractVar[Callable[..., Any] | None]

    @abc.abstractmethod
    def messenger(self) -> Messenger:
        """Return the running side, made anew for each run."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model under the handler."""
        if self.fn is None:
            raise TypeError(
                f"{type(self).__name__} was given no model to call: pass one first, or use it as a "
                "context manager."
            )
        enter(self.messenger())
        try:
            return self.fn(*args, **kwargs)
        finally:
            leave()

    def __enter__(self) -> Any:
        messenger = self.messenger()
        enter(messenger)
        return getattr(messenger, "sites", None)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        leave()


class trace(AbstractHandler):
    """Record the sites of a run.

    As a context manager it gives the dictionary that is filled: name to `Message`, with the
    attributes `kind`, `fn` (the distribution), `value`, `observed`, `plates`, `scale` and `mask`.
    """

    fn: Callable[..., Any] | None = None

    def messenger(self) -> Messenger:
        """Return a recorder."""
        return _Recorder()

    def get_trace(self, *args: Any, **kwargs: Any) -> dict[str, Message]:
        """Run the model and return its sites, in order.

        Raises:
            TypeError: If there is no model.
            ValueError: If two sites have one name, or one needs a random key and gets none.
        """
        if self.fn is None:
            raise TypeError("trace was given no model: gx.handlers.trace(model).get_trace(…)")
        with trace() as sites:
            self.fn(*args, **kwargs)
        return sites


class _Recorder(Messenger):
    def __init__(self) -> None:
        self.sites: dict[str, Message] = {}

    def finish(self, msg: Message) -> None:
        if not msg.name:
            return
        known = self.sites.get(msg.name)
        repeats = msg.kind in ("param", "plate") and known is not None and known.kind == msg.kind
        if known is not None and not repeats:
            raise ValueError(f"two sites are named {msg.name!r}: give each a name of its own.")
        self.sites[msg.name] = msg


class seed(AbstractHandler):
    """Give random keys to the sites that need one.

    Args:
        fn: The model.
        key: A key, or an integer, of Python, NumPy or JAX, from which one is made.
    """

    fn: Callable[..., Any] | None
    key: Key

    def __init__(self, fn: Callable[..., Any] | None = None, key: Key | ArrayLike | None = None):
        if key is None:
            raise TypeError("seed needs a key: gx.handlers.seed(model, jax.random.key(0)).")
        self.fn = fn
        is_typed = is_typed_key(key)
        self.key = jnp.asarray(key) if is_typed or jnp.ndim(key) else jax.random.key(key)

    def messenger(self) -> Messenger:
        """Return a giver of keys that starts over."""
        return _Seeder(self.key)


class _Seeder(Messenger):
    def __init__(self, key: Array):
        self._keys = KeySource(key)

    def process(self, msg: Message) -> None:
        if msg.wants_key:
            msg.key = self._keys.next()


class substitute(AbstractHandler):
    """Set the values of sites and params: a latent stays a latent, an observation observed.

    Where several handlers give a value, the outermost decides, as in NumPyro.

    Args:
        fn: The model.
        data: Values by site.
    """

    fn: Callable[..., Any] | None
    data: dict[str, Any]

    def __init__(
        self, fn: Callable[..., Any] | None = None, data: Mapping[str, ArrayLike] | None = None
    ):
        self.fn, self.data = fn, _values("substitute", data)

    def messenger(self) -> Messenger:
        """Return a giver of values."""
        return _Substituter(self.data, observe=False)


class condition(AbstractHandler):
    """Turn latents into observations, and give observations other values.

    Args:
        fn: The model.
        data: Observed values by site.
    """

    fn: Callable[..., Any] | None
    data: dict[str, Any]

    def __init__(
        self, fn: Callable[..., Any] | None = None, data: Mapping[str, ArrayLike] | None = None
    ):
        self.fn, self.data = fn, _values("condition", data)

    def messenger(self) -> Messenger:
        """Return a giver of observations."""
        return _Substituter(self.data, observe=True)


class replay(AbstractHandler):
    """Give the latents the values that they have in an earlier trace.

    Args:
        fn: The model.
        trace: What `trace(model).get_trace(…)` returned.
    """

    fn: Callable[..., Any] | None
    data: dict[str, Any]

    def __init__(
        self,
        fn: Callable[..., Any] | None = None,
        trace: Mapping[str, Message] | None = None,
    ):
        if trace is None:
            raise TypeError("replay needs trace=, the result of gx.handlers.trace(model).get_trace")
        self.fn = fn
        self.data = {n: m.value for n, m in trace.items() if m.kind == "sample" and not m.observed}

    def messenger(self) -> Messenger:
        """Return a giver of values."""
        return _Substituter(self.data, observe=False, latents_only=True)


class _Substituter(Messenger):
    def __init__(self, data: Mapping[str, Any], *, observe: bool, latents_only: bool = False):
        self._data, self._observe, self._latents_only = data, observe, latents_only

    def process(self, msg: Message) -> None:
        kinds = ("sample",) if self._observe or self._latents_only else ("sample", "param")
        if msg.kind not in kinds or msg.name not in self._data:
            return
        if self._latents_only and msg.observed:
            return
        msg.value = jnp.asarray(self._data[msg.name])
        msg.observed = msg.observed or self._observe


class block(AbstractHandler):
    """Hide sites from the handlers outside, so that they are drawn and not scored.

    Plates are never hidden: they are part of the sites inside them, hidden ones too.

    Args:
        fn: The model.
        hide: Names of the sites to hide; None hides all that `expose` does not name.
        expose: Names of the sites not to hide.
    """

    fn: Any  # a callable, or a model of another language
    hide: tuple[str, ...] | None = eqx.field(static=True)
    expose: tuple[str, ...] | None = eqx.field(static=True)

    def __init__(
        self,
        fn: Any = None,
        hide: Iterable[str] | None = None,
        expose: Iterable[str] | None = None,
    ):
        self.fn = fn
        self.hide, self.expose = names_to_hide(hide, expose)

    def messenger(self) -> Messenger:
        """Return what stops messages."""
        return _Blocker(self.hide, self.expose)


def names_to_hide(
    hide: Iterable[str] | None, expose: Iterable[str] | None
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Return the options of `block` as sorted tuples.

    Raises:
        TypeError: If a string stands for a list of names.
        ValueError: If both are given.
    """
    for option, names in (("hide", hide), ("expose", expose)):
        if isinstance(names, str):
            raise TypeError(f"block takes a list of names; got {option}={names!r}.")
    if hide is not None and expose is not None:
        raise ValueError("block takes hide= or expose=, not both.")
    return tuple(sorted(hide)) if hide is not None else None, (
        tuple(sorted(expose)) if expose is not None else None
    )


def is_hidden(name: str, hide: Iterable[str] | None, expose: Iterable[str] | None) -> bool:
    """Say whether a site is hidden: `hide` names what is, else `expose` what is not."""
    return name in hide if hide is not None else name not in (expose or ())


class _Blocker(Messenger):
    def __init__(self, hide: tuple[str, ...] | None, expose: tuple[str, ...] | None):
        self._hide, self._expose = hide, expose

    def process(self, msg: Message) -> None:
        structural = msg.kind in ("plate", "subsample", "prng_key")
        if structural or not is_hidden(msg.name, self._hide, self._expose):
            return
        msg.stop = True
        if msg.wants_key:
            # The stack still holds this handler, and lets a request for a key through.
            msg.key = key_of(Message("prng_key"))


class scale(AbstractHandler):
    """Multiply the log densities of the sites inside, latents and observations alike.

    Args:
        fn: The model.
        scale: A positive number, or an array of the batch shape.
    """

    fn: Callable[..., Any] | None
    scale: Any

    def __init__(self, fn: Callable[..., Any] | None = None, scale: ArrayLike = 1.0):
        if isinstance(scale, (int, float)) and not scale > 0:
            raise ValueError(f"scale multiplies log densities, so it is positive; got {scale}.")
        self.fn, self.scale = fn, scale

    def messenger(self) -> Messenger:
        """Return what multiplies."""
        return _Scaler(self.scale)


class _Scaler(Messenger):
    def __init__(self, factor: Any):
        self._factor = factor

    def process(self, msg: Message) -> None:
        if msg.kind == "sample":
            msg.scale = msg.scale * self._factor


class mask(AbstractHandler):
    """Leave entries out.

    An array that is false marks padding: a masked observation counts for nothing whatever its
    value, and a masked latent gets a standard normal density in unconstrained space, which changes
    no evidence and no other posterior. The Python value `False` drops the log densities alone, so
    that a `factor` can give a latent a prior of one's own.

    Args:
        fn: The model.
        mask: A bool, or an array of them that broadcasts to the batch shape.
    """

    fn: Callable[..., Any] | None
    mask: Any

    def __init__(self, fn: Callable[..., Any] | None = None, mask: ArrayLike = True):
        if not isinstance(mask, bool) and jnp.result_type(mask) != jnp.bool_:
            raise TypeError(
                f"mask takes a bool or an array of them; got dtype {jnp.result_type(mask)}. "
                "Compare, e.g. weights > 0."
            )
        self.fn, self.mask = fn, mask

    def messenger(self) -> Messenger:
        """Return what masks."""
        return _Masker(self.mask)


class _Masker(Messenger):
    def __init__(self, own: Any):
        self._own = own

    def process(self, msg: Message) -> None:
        if msg.kind != "sample" or self._own is True or msg.mask is False:
            return
        if self._own is False or msg.mask is None:
            msg.mask = self._own if self._own is False else jnp.asarray(self._own)
        else:
            msg.mask = msg.mask & jnp.asarray(self._own)


def _values(handler: str, data: Mapping[str, Any] | None) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise TypeError(f"{handler} needs data=, a dictionary from site to value; got {data!r}.")
    return dict(data)
