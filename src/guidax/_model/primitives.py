"""The words of the model language."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, NamedTuple, overload

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from .._numerics import as_array
from .._types import is_integer
from . import constraints
from .constraint_types import Constraint
from .messages import Message, Messenger, enter, key_of, leave, outermost, required_key, send
from .rows import draw_rows
from .trace import Plate


def sample(name: str, dist: Any, obs: ArrayLike | None = None) -> Array:
    """Draw a random variable, or score an observation.

    A value has the distribution's batch shape, with an axis for each plate around, and then its
    event shape. A plate's axis is counted from the right of the batch shape: in a plate of 10 rows
    `distrax.Normal(0.0, 1.0)` gives shape `(10,)`, and a normal over vectors of 3, as
    `distrax.Independent(distrax.Normal(jnp.zeros(3), 1.0), 1)`, gives `(10, 3)`. In a plate, an
    axis that is no plate's belongs to the event.

    Args:
        name: Name of the site, once in a model.
        dist: A distribution of distrax or of TFP's JAX substrate, as it is. It broadcasts to the
            plates around.
        obs: The observed value, of shape `batch + event`; it may have further leading axes of
            independent observations. None for a latent.

    Returns:
        The value.

    Raises:
        TypeError: If `name` is no string, `dist` no distribution, or `obs` no array.
        ValueError: If the shapes of distribution, observation and plates do not fit.
    """
    _require_name("sample", name)
    if isinstance(dist, type) or not (hasattr(dist, "log_prob") and hasattr(dist, "batch_shape")):
        raise TypeError(
            f"site {name!r}: {dist!r} is not a distribution. Give one of distrax's or of TFP's JAX "
            "substrate."
        )
    if not all(_is_shape(getattr(dist, attribute)) for attribute in ("batch_shape", "event_shape")):
        raise TypeError(
            f"site {name!r}: a site holds one array of known shape, but {type(dist).__name__} has "
            f"batch shape {dist.batch_shape} and event shape {dist.event_shape}. Write a site for "
            "each array."
        )
    if type(dist).__module__.startswith("numpyro."):
        raise TypeError(
            f"site {name!r} has a NumPyro distribution, {type(dist).__name__}. Use distrax's or "
            "TFP's here, or write the model in NumPyro and wrap it: gx.from_numpyro(model)."
        )
    value = None if obs is None else as_array(f"the observation of site {name!r}", obs)
    return send(Message("sample", name, dist, value, observed=obs is not None)).value


def _is_shape(shape: Any) -> bool:
    try:
        return all(hasattr(n, "__index__") for n in tuple(shape))
    except (TypeError, ValueError):
        return False


def param(
    name: str, init: ArrayLike | Callable[[Array], Array], constraint: Constraint = constraints.real
) -> Array:
    """Give a constant of the model that is trained with the guide.

    Args:
        name: Name of the site; the same parameter may be read several times.
        init: Starting value, in the constraint, or a function of a random key that returns it.
        constraint: Where the value must lie.

    Returns:
        The current value: `guide.param_values()` reads it back after a fit.

    Raises:
        TypeError: If the name is no string, `constraint` no constraint, or the value no array.
    """
    _require_name("param", name)
    if not isinstance(constraint, Constraint):
        raise TypeError(
            f"param {name!r}: constraint takes one of gx.constraints; got {constraint!r}."
        )
    msg = send(Message("param", name, fn=init, info={"constraint": constraint}))
    if msg.value is None:
        msg.value = starting_value(name, init)  # on the message, for a trace that recorded it
    return msg.value


def starting_value(name: str, init: Any) -> Array:
    """Return the starting value of a param, floating, from a value or from a function of a key."""
    given = init(prng_key()) if callable(init) else init
    value = as_array(f"the starting value of param {name!r}", given)
    return value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(float)


def deterministic(name: str, value: Any) -> Any:
    """Record a value under a name, so that it comes back with posterior draws.

    Args:
        name: Name of the site.
        value: An array computed from latents and arguments.

    Returns:
        The value.

    Raises:
        TypeError: If the name is no string, or the value no array.
    """
    _require_name("deterministic", name)
    return send(
        Message(
            "deterministic", name, value=as_array(f"the value of deterministic {name!r}", value)
        )
    ).value


def factor(name: str, log_factor: ArrayLike) -> None:
    """Add a term to the log density.

    For what no distribution expresses: a likelihood that is computed by hand, a penalty
    (`gx.factor("ridge", -0.1 * jnp.sum(weights**2))`), or a prior on a flat site. Inside a plate it
    broadcasts to the plate's rows, as an observation does.

    Args:
        name: Name of the site.
        log_factor: The term, a number or an array of the batch shape.

    Raises:
        TypeError: If the name is no string, or the term no array of real numbers.
    """
    _require_name("factor", name)
    value = as_array(f"the term of factor {name!r}", log_factor)
    if jnp.iscomplexobj(value):
        raise TypeError(f"the term of factor {name!r} is complex, and log densities are real.")
    term = Unit(value)
    send(Message("sample", name, term, jnp.zeros((*term.batch_shape, 0)), observed=True))


class Unit:
    """The distribution of an empty value, whose log density is given: what `factor` observes."""

    def __init__(self, log_factor: Array):
        self.log_factor = log_factor
        self.batch_shape = jnp.shape(log_factor)
        self.event_shape = (0,)
        self.dtype = jnp.result_type(log_factor, float)

    def log_prob(self, value: Array) -> Array:
        """Return the factor, whatever the value."""
        return jnp.broadcast_to(self.log_factor, jnp.shape(value)[:-1])

    def sample(self, *, seed: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Return the empty value."""
        del seed
        return jnp.zeros((*sample_shape, *self.batch_shape, 0), self.dtype)


@overload
def subsample(data: ArrayLike, event_dim: int = 0) -> Array: ...
@overload
def subsample(data: None, event_dim: int = 0) -> None: ...
def subsample(data: ArrayLike | None, event_dim: int = 0) -> Array | None:
    """Return the rows of `data` that the plates around hold.

    Args:
        data: An array with all rows of the plates, at the plates' dims counted from the left of its
            last `event_dim` axes; None for data that are left out, to be predicted.
        event_dim: How many trailing axes belong to one event.

    Returns:
        The rows. An axis of length 1 is left as it is, and so is None.

    Raises:
        ValueError: If the axis of a plate has another length than the plate.
    """
    if data is None:
        return None
    return send(Message("subsample", value=jnp.asarray(data), info={"event_dim": event_dim})).value


def prng_key() -> Array:
    """Return a random key of the run's own.

    For randomness in a model that is no latent, such as dropout or added noise:
    `jax.random.normal(gx.prng_key(), x.shape)`. Each run has another key, from that of its caller.

    Raises:
        ValueError: If no handler gives keys.
    """
    return key_of(Message("prng_key"))


class _Held(NamedTuple):
    """The rows of a plate in one run, and whether `subsample` takes them of what it gets."""

    frame: Plate
    indices: Array
    takes_rows: bool


class plate(Messenger):
    """Rows that are independent given everything outside: a context manager.

    Entering it gives the row numbers that this run holds, of shape `(rows,)`. One object may be
    entered several times, and holds the same rows each time in one run of the model.

    Args:
        name: Name of the plate.
        size: How many rows there are.
        subsample_size: How many of them a run holds, drawn at random without replacement; the
            log densities inside are multiplied by `size / subsample_size`. None for all.
        dim: Axis of the batch shape that the rows take, negative; None for the rightmost free one.

    Raises:
        TypeError: If a size or `dim` is not an integer.
        ValueError: If `size`, `subsample_size` or `dim` is out of range, or `dim` is taken.
    """

    sees_hidden = True  # a hidden site is in the plate all the same: it has as many rows

    def __init__(
        self, name: str, size: int, subsample_size: int | None = None, dim: int | None = None
    ):
        _require_name("plate", name)
        rows = size if subsample_size is None else subsample_size
        for label, number in (("size", size), ("subsample_size", rows)):
            if not is_integer(number):
                raise TypeError(
                    f"plate {name!r}: {label} must be a Python integer, since shapes depend on it; "
                    f"got {number!r}. An array's shape[0] is one, and gx.static(n) passes one on."
                )
        if size < 1:
            raise ValueError(
                f"plate {name!r} has no rows: its size is {size}. Is the array empty whose rows it "
                "counts? A plate that may be empty is left out of the run."
            )
        if not 1 <= rows <= size:
            raise ValueError(
                f"plate {name!r} holds {rows} of {size} rows: it needs 1 <= subsample_size <= size."
            )
        if dim is not None and not is_integer(dim):
            raise TypeError(f"plate {name!r}: dim is a Python integer, such as -1; got {dim!r}.")
        if dim is not None and dim >= 0:
            raise ValueError(
                f"plate {name!r}: dim counts batch axes from the right, so it is negative; got "
                f"{dim}."
            )
        self.name: str = name
        self.size: int = int(size)
        self.dim: int | None = None if dim is None else int(dim)
        self._rows = int(rows)

    def __enter__(self) -> Int[Array, " rows"]:
        run = outermost()
        held = None if run is None else run.notes.get(self)
        if held is None:
            held = self._choose_rows()
        enter(self)
        self._run.notes[self] = held
        return held.indices

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        leave()
        self.notes.clear()  # where it was outermost itself

    @property
    def _run(self) -> Messenger:
        """The outermost messenger. What it holds is gone after the run, but a plate may stay."""
        return outermost() or self

    @property
    def _held(self) -> _Held:
        return self._run.notes[self]

    def _choose_rows(self) -> _Held:
        msg = Message("plate", self.name, info={"size": self.size, "rows": self._rows})
        msg.value = None if self._rows < self.size else jnp.arange(self.size)
        everything = msg.value
        send(msg)
        takes_rows = msg.value is not everything or everything is None
        if msg.value is None:
            key = msg.key if msg.key is not None else required_key(msg)
            msg.value = draw_rows(key, self.size, self._rows)
        taken = {p.dim for p in msg.plates}
        dim = self.dim
        if dim is None:
            dim = next(d for d in range(-1, -len(taken) - 2, -1) if d not in taken)
        if dim in taken:
            raise ValueError(
                f"plate {self.name!r} takes dim {dim}, which a plate around it has already: leave "
                "dim out, or give another."
            )
        return _Held(Plate(self.name, self.size, dim, msg.value.shape[0]), msg.value, takes_rows)

    def process(self, msg: Message) -> None:
        """Tell the message that it is inside."""
        frame = self._held.frame
        if any(p.dim == frame.dim for p in msg.plates):
            raise ValueError(
                f"plate {self.name!r} at dim {frame.dim} surrounds another plate at the same "
                f"dim around {msg.name!r}: give one of them another dim."
            )
        msg.plates = (*msg.plates, frame)

    def finish(self, msg: Message) -> None:
        """Take the rows of `subsample`."""
        if msg.kind != "subsample":
            return
        held = self._held
        axis = jnp.ndim(msg.value) - msg.info["event_dim"] + held.frame.dim
        if axis < 0 or msg.value.shape[axis] == 1:
            return
        if msg.value.shape[axis] != self.size:
            raise ValueError(
                f"subsample inside plate {self.name!r} of size {self.size} got data of shape "
                f"{msg.value.shape}, which has {msg.value.shape[axis]} rows on that axis: give all "
                "rows, or leave subsample out where the data hold the right ones already."
            )
        if held.takes_rows:
            msg.value = jnp.take(msg.value, held.indices, axis)


def _require_name(word: str, name: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"{word} takes a name first, a string; got {name!r}.")
