"""Messages that primitives send, and the stack of handlers that they pass through."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .trace import Plate

_STACK: contextvars.ContextVar[tuple[Messenger, ...]] = contextvars.ContextVar(
    "guidax_handlers", default=()
)


@dataclasses.dataclass
class Message:
    """What a primitive says to the handlers around it; they may answer by changing it.

    Attributes:
        kind: sample, param, deterministic, plate, subsample or prng_key.
        name: Name of the site or plate.
        fn: The distribution of a sample site; the starting value of a param.
        value: The value, once it is known. For a plate, its row numbers.
        observed: Whether the value is data.
        plates: The plates around the site, innermost first.
        scale: What the log density is multiplied by.
        mask: None, `False`, or an array that is false where an entry is padding.
        key: A random key, once a handler has given one.
        info: What else the kind needs.
        stop: Whether the handlers further out do not see the message. Plates do.
    """

    kind: str
    name: str = ""
    fn: Any = None
    value: Any = None
    observed: bool = False
    plates: tuple[Plate, ...] = ()
    scale: Any = 1.0
    mask: Any = None
    key: Any = None
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    stop: bool = False

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Batch shape of a sample site: its distribution's, broadcast to the plates.

        Raises:
            ValueError: If the distribution does not fit a plate.
        """
        own = tuple(self.fn.batch_shape)
        shape = [1] * max((-p.dim for p in self.plates), default=0)
        for p in self.plates:
            shape[p.dim] = p.rows
            if len(own) >= -p.dim and own[p.dim] not in (1, p.rows):
                raise ValueError(
                    f"site {self.name!r} has a distribution of batch shape {own}, but plate "
                    f"{p.name!r} holds {p.rows} rows at dim {p.dim}: give it 1 or {p.rows} entries "
                    "there, or move the axis into the event (distrax.Independent)."
                )
        return jnp.broadcast_shapes(tuple(shape), own)

    @property
    def wants_key(self) -> bool:
        """Whether a random key is still missing."""
        random_kind = self.kind in ("sample", "prng_key", "plate")
        return random_kind and self.value is None and self.key is None


class Messenger:
    """The running side of a handler: made for one run, thrown away after it."""

    sees_hidden: bool = False  # messages that a handler further in has stopped

    @functools.cached_property
    def notes(self) -> dict[Any, Any]:
        """What is kept for the length of a run, of which this is the outermost messenger."""
        return {}

    def process(self, msg: Message) -> None:
        """See the message on its way out."""

    def finish(self, msg: Message) -> None:
        """See the message on its way back in, when its value is known."""

    def surround(self, messenger: Messenger) -> None:
        """See a messenger that is put on the stack further in."""


class Foreign(Messenger):
    """Refuses primitives and handlers of this language where another one is at work.

    Args:
        language: Its name.
        module: Where its primitives are.
    """

    def __init__(self, language: str, module: str):
        self._language, self._module = language, module

    def process(self, msg: Message) -> None:
        """Refuse a primitive.

        Raises:
            ValueError: Always.
        """
        word = f"{msg.kind} {msg.name!r}" if msg.name else msg.kind
        raise self._refusal(f"a primitive of guidax ({word})")

    def surround(self, messenger: Messenger) -> None:
        """Refuse a handler.

        Raises:
            ValueError: Always.
        """
        raise self._refusal("a handler of guidax")

    def _refusal(self, what: str) -> ValueError:
        return ValueError(
            f"the {self._language} model uses {what}, of which {self._language} would take no "
            f"notice: use that of {self._module}, or write the whole model in guidax's language."
        )


def enter(messenger: Messenger) -> None:
    """Put a messenger on the stack, innermost."""
    for outer in _STACK.get():
        outer.surround(messenger)
    _STACK.set((*_STACK.get(), messenger))


def outermost() -> Messenger | None:
    """Return the outermost messenger, which is made for one run: other runs have another."""
    return next(iter(_STACK.get()), None)


def leave() -> None:
    """Take the innermost messenger off the stack."""
    _STACK.set(_STACK.get()[:-1])


@contextlib.contextmanager
def isolated(messenger: Messenger) -> Iterator[None]:
    """Run with one messenger alone: handlers of the caller are not the model's."""
    token = _STACK.set((messenger,))
    try:
        yield
    finally:
        _STACK.reset(token)


def send(msg: Message) -> Message:
    """Pass a message outwards through the handlers, then back inwards.

    Raises:
        ValueError: If a sample site gets neither a value nor a key.
    """
    passed = []
    for messenger in reversed(_STACK.get()):
        if not msg.stop or messenger.sees_hidden:
            messenger.process(msg)
            passed.append(messenger)
    if msg.kind == "sample" and msg.value is None:
        msg.value = broadcast_sample(msg.fn, required_key(msg), msg.batch_shape)
    for messenger in reversed(passed):
        messenger.finish(msg)
    return msg


def key_of(msg: Message) -> Array:
    """Send a message that asks for a key alone, and return the key."""
    return required_key(send(msg))


def required_key(msg: Message) -> Array:
    """Return the key that a handler gave.

    Raises:
        ValueError: If none did.
    """
    if msg.key is None:
        raise ValueError(
            f"{msg.kind} {msg.name!r} needs a random key: run the program under "
            "gx.handlers.seed(model, key)."
        )
    return msg.key


def broadcast_sample(fn: Any, key: Array, batch_shape: tuple[int, ...]) -> Array:
    """Draw independently along every axis that a plate adds to the batch shape, or widens in it."""
    own = tuple(fn.batch_shape)
    pad = len(batch_shape) - len(own)
    wide = [i for i, n in enumerate(own) if n != batch_shape[pad + i]]
    extra = (*batch_shape[:pad], *(batch_shape[pad + i] for i in wide))
    x = fn.sample(seed=key, sample_shape=extra)
    # The axes of `extra` lead: move each widened one beside its axis of length 1, which goes.
    for done, i in enumerate(wide):
        to = pad + (len(wide) - done - 1) + i
        x = jnp.squeeze(jnp.moveaxis(x, pad, to), to + 1)
    return x


def can_draw(sample: Callable[[Array], Any]) -> bool:
    """Say whether a function of a key draws: of a user's distribution it may not be implemented."""
    try:
        jax.eval_shape(sample, jax.eval_shape(jax.random.key, 0))
    except NotImplementedError:
        return False
    except Exception:  # the user's own, which is raised where a draw is asked for
        return True
    return True


class KeySource:
    """Hands out one key after another."""

    def __init__(self, key: Array):
        self._key = key

    def next(self) -> Array:
        """Return a fresh key."""
        self._key, key = jax.random.split(self._key)
        return key
