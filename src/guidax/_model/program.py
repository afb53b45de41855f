"""A model in guidax's own language."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state
from jaxtyping import Array

from .._numerics import sum_trailing
from .._types import Key
from .batch import Batch
from .bijectors import biject_to, monotonicity
from .constraint_types import Constraint
from .constraints import real
from .feasible import feasible
from .handlers import AbstractHandler
from .improper import ImproperUniform
from .messages import KeySource, Message, Messenger, broadcast_sample, can_draw, isolated
from .model import AbstractCallableModel, AbstractModel, Choose, SplitCallable, unblocked
from .primitives import plate, starting_value
from .rows import draw_rows
from .supports import LIBRARIES, support
from .trace import Bijection, Indices, Plate, Site, Trace


class Program(AbstractCallableModel):
    """A callable in the model language: a function, a partial, an `eqx.Module` or a bound method.

    Args:
        fn: The callable.
    """

    params: dict[str, Any]
    fn: SplitCallable

    def __init__(self, fn: Callable[..., Any]):
        self.params = {}
        self.fn = SplitCallable(fn)

    def run(self, batch: Batch, key: Key, choose: Choose, indices: Indices) -> Trace:
        """Run the callable under one handler that gives values and records sites."""
        args, kwargs = batch.unpack()
        runner = _Runner(key, choose, self.params, indices)
        with isolated(runner), _numpyro_refused():
            result = self.fn.build()(*args, **kwargs)
        return Trace(runner.sites, runner.plates, result)

    def plate_rows(self, create_plates: Callable[..., Any], batch: Batch, key: Key) -> Indices:
        """Enter the plates and return their row numbers."""
        args, kwargs = batch.unpack()
        found = {}
        with isolated(_Runner(key, lambda site: None, {}, {})):
            made = create_plates(*args, **kwargs)
            for each in made if isinstance(made, (tuple, list)) else (made,):
                if not isinstance(each, plate):
                    raise TypeError(
                        "create_plates returns a gx.plate or several of them; it returned "
                        f"{each!r}."
                    )
                with each as rows:
                    found[each.name] = rows
        return found


def as_model(model: Any) -> AbstractModel:
    """Return a model behind the seam; a callable is taken for one in the model language.

    Raises:
        TypeError: If it cannot be called, or is a guidax handler around another language's model.
    """
    if isinstance(model, AbstractModel):
        return model
    if isinstance(model, AbstractHandler) and isinstance(model.fn, AbstractModel):
        return unblocked(model)
    return Program(model)


def _numpyro_refused() -> AbstractContextManager[Any]:
    """Refuse the sites of a NumPyro model that was not wrapped. NumPyro is not imported here."""
    if "numpyro" not in sys.modules:
        return contextlib.nullcontext()
    from .from_numpyro import refuse_sites

    return refuse_sites()


class _Runner(Messenger):
    """The outermost handler of a run: values in, sites out."""

    def __init__(self, key: Array, choose: Choose, params: dict[str, Any], indices: Indices):
        self._keys, self._choose = KeySource(key), choose
        self._params, self._indices = params, dict(indices)
        self.sites: dict[str, Site] = {}
        self.plates: dict[str, Plate] = {}
        self._trace_state = get_opaque_trace_state(convention="guidax")

    def process(self, msg: Message) -> None:
        self._require_in_the_open(msg)
        if msg.kind == "plate":
            self._choose_rows(msg)
        elif msg.kind == "param" and msg.value is None:
            msg.value = self._param(msg)
        elif msg.kind == "sample" and msg.value is None:
            msg.value = self._choose(native_site(msg))
        if msg.wants_key:
            msg.key = self._keys.next()

    def finish(self, msg: Message) -> None:
        for p in msg.plates:
            self._record_plate(p)
        if msg.kind == "sample":
            self._record_site(native_site(msg))
        elif msg.kind == "deterministic":
            plates = tuple(sorted(msg.plates, key=lambda p: p.dim))
            self._record_site(Site(msg.name, "deterministic", msg.value, plates=plates))
        elif msg.kind == "param":
            self._record_param(msg)

    def _require_in_the_open(self, msg: Message) -> None:
        """Refuse a site, plate or key inside a transformation that the program applies.

        Its value cannot leave that, and a second run, for which JAX may take the first one's
        program, would not see it.

        Raises:
            ValueError: If it is inside one.
        """
        if get_opaque_trace_state(convention="guidax") != self._trace_state:
            kind = {"prng_key": "gx.prng_key()", "plate": f"plate {msg.name!r}"}
            what = kind.get(msg.kind, f"site {msg.name!r}")
            raise ValueError(
                f"{what} is inside a JAX transformation that the model applies (jax.jit, jax.vmap, "
                "lax.scan, ...), which hides it. guidax compiles the model by itself, so take "
                "jax.jit off; in the place of jax.vmap write a gx.plate; and draw all steps of a "
                "scan as one site before it (NumPyro's own scan works in a NumPyro model)."
            )

    def _choose_rows(self, msg: Message) -> None:
        """Give each plate one set of rows for the whole run, by name."""
        size, rows = msg.info["size"], msg.info["rows"]
        if msg.name not in self._indices and rows < size:
            self._indices[msg.name] = draw_rows(self._keys.next(), size, rows)
        msg.value = self._indices.get(msg.name, msg.value)
        # A plate without sites is a plate too: `_record_plate` fills its dim in.
        self.plates.setdefault(msg.name, Plate(msg.name, size, 0, msg.value.shape[0]))

    def _param(self, msg: Message) -> Any:
        if msg.name in self.sites:
            return self.sites[msg.name].value
        if msg.name in self._params:
            return biject_to(msg.info["constraint"]).forward(self._params[msg.name])
        init = msg.fn(self._keys.next()) if callable(msg.fn) else msg.fn
        return starting_value(msg.name, init)

    def _record_param(self, msg: Message) -> None:
        """Record a parameter where it is first met; later it is only read."""
        constraint, known = msg.info["constraint"], self.sites.get(msg.name)
        if known is None or known.kind != "param":
            bijection = bijection_of(constraint, 0)
            self._record_site(
                Site(msg.name, "param", msg.value, bijection=bijection, contains=constraint)
            )
        elif constraint not in (real, known.contains):
            raise ValueError(
                f"param {msg.name!r} has the constraints {known.contains} and {constraint}: give "
                "one where it is first met."
            )

    def _record_plate(self, p: Plate) -> None:
        known = self.plates.get(p.name)
        if known is None or known.dim == 0:
            if known is not None and known.size != p.size:
                raise _two_plates(known, p)
            self.plates[p.name] = p
        elif known != p:
            raise _two_plates(known, p)

    def _record_site(self, site: Site) -> None:
        if site.name in self.sites:
            raise ValueError(f"two sites are named {site.name!r}: give each a name of its own.")
        self.sites[site.name] = site


def _two_plates(a: Plate, b: Plate) -> ValueError:
    return ValueError(
        f"plate {a.name!r} appears with size {a.size} at dim {a.dim} and with size {b.size} at dim "
        f"{b.dim}: one name is one plate. Give the second another name, or the same size and dim."
    )


def native_site(msg: Message) -> Site:
    """Return the site that a message describes.

    Raises:
        ValueError: If the value does not have the shape of the site.
    """
    fn, batch = msg.fn, msg.batch_shape
    event = tuple(fn.event_shape)
    known, dtype = _membership(fn), _dtype(fn)
    if msg.value is not None:
        batch = _batch_shape_of_value(msg, batch, event)
    return Site(
        name=msg.name,
        kind="observed" if msg.observed else "latent",
        value=msg.value,
        distribution=fn,
        batch_shape=batch,
        event_shape=event,
        plates=tuple(sorted(msg.plates, key=lambda p: p.dim)),
        scale=msg.scale,
        mask=msg.mask,
        log_prob=lambda x: jnp.broadcast_to(fn.log_prob(x), batch),
        sample=(lambda key: broadcast_sample(fn, key, batch)) if _is_drawable(fn) else None,
        mean=lambda: jnp.broadcast_to(fn.mean(), batch + event),
        bijection=None if msg.observed else _latent_bijection(fn, len(batch)),
        contains=known,
        feasible=None if known is None else lambda: feasible(known, batch + event, dtype),
        dtype=dtype,
    )


def _layers(fn: Any) -> Iterator[Any]:
    """Return the distribution and those that it is made of, from the outside in."""
    parts = ("distribution", "components_distribution")
    while fn is not None:
        yield fn
        fn = next((x for part in parts if (x := getattr(fn, part, None)) is not None), None)


def _is_drawable(fn: Any) -> bool:
    """Say whether a distribution has draws: a class of a user's own may have a density alone.

    Then `sample` may be there and raise: it is traced, which costs nothing later.
    """
    if isinstance(fn, ImproperUniform) or not hasattr(fn, "sample"):
        return False
    if all(type(each).__module__.startswith(LIBRARIES) for each in _layers(fn)):
        return True
    return can_draw(lambda key: fn.sample(seed=key, sample_shape=()))


def _dtype(fn: Any) -> Any:
    try:
        return fn.dtype
    except NotImplementedError:  # distrax asks a draw, which a user's own class may lack
        return jnp.result_type(float)


def _batch_shape_of_value(
    msg: Message, batch: tuple[int, ...], event: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the batch shape; independent observations may stand on further leading axes."""
    shape, full = jnp.shape(msg.value), batch + event
    lead = shape[: len(shape) - len(full)]
    if shape[len(lead) :] == full and (msg.observed or not lead):
        return lead + batch
    own_event = shape[len(shape) - len(event) :] == event
    own_batch = shape[: len(shape) - len(event)]
    fits = own_event and len(own_batch) <= len(batch)
    fits = fits and all(a in (1, b) for a, b in zip(own_batch[::-1], batch[::-1], strict=False))
    if fits and msg.observed:
        return batch
    what = "an observed value" if msg.observed else "a value"
    raise ValueError(
        f"site {msg.name!r} got {what} of shape {shape}, but its distribution and plates make it "
        f"{full} (batch {batch}, event {event})."
    )


def _membership(fn: Any) -> Constraint | None:
    """Return the support, where the table knows it."""
    try:
        return support(fn)
    except TypeError:
        return None


def _latent_bijection(fn: Any, batch_ndim: int) -> Bijection | str:
    """Return the bijection of a latent, or why it has none."""
    for inner in _layers(fn):
        if type(inner).__name__ == "Masked":
            return (
                "a Masked distribution leaves entries of its value without a density: use "
                "gx.handlers.mask, which a guide can see."
            )
        if getattr(inner, "input_output_cholesky", False) is True:
            name = type(inner).__name__
            factored = "factor the value with jnp.linalg.cholesky in the model"
            way = "use CholeskyLKJ" if name == "LKJ" else f"leave the flag out and {factored}"
            return (
                f"{name}(input_output_cholesky=True) scores the factor L with the density of the "
                f"matrix L L', which is not that of L: {way}."
            )
    try:
        return bijection_of(support(fn), batch_ndim)
    except (TypeError, ValueError) as error:
        return str(error)


def bijection_of(constraint: Constraint, batch_ndim: int) -> Bijection:
    """Return the bijection onto a constraint, with log-determinants of the batch shape.

    Raises:
        TypeError: If the constraint is discrete.
        ValueError: If it has no bijector.
    """
    bijector = biject_to(constraint)

    def log_det(u: Array, x: Array) -> Array:
        del x
        return sum_trailing(bijector.forward_log_det_jacobian(u), batch_ndim)

    # distrax annotates its results as NumPy's arrays too, which they never are here.
    return Bijection(
        bijector.forward,  # pyright: ignore[reportArgumentType]
        bijector.inverse,  # pyright: ignore[reportArgumentType]
        log_det,
        monotonicity(bijector),
    )
