"""An unmodified NumPyro model behind the seam: the one file that imports NumPyro.

Handlers, distributions and supports are NumPyro's own; this reads its trace.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro import distributions as dist
from numpyro import handlers
from numpyro import plate as numpyro_plate
from numpyro.distributions import biject_to, constraints, transforms
from numpyro.distributions.distribution import ExpandedDistribution, MaskedDistribution
from numpyro.primitives import Messenger

from .._numerics import as_array, is_traced, sum_trailing
from .._types import Key
from .batch import Batch
from .messages import Foreign, KeySource, can_draw, isolated
from .model import AbstractCallableModel, Choose, SplitCallable
from .trace import Bijection, Indices, Plate, Site, Trace


class NumPyroModel(AbstractCallableModel):
    """A NumPyro program. See `guidax.from_numpyro`."""

    params: dict[str, Any]
    fn: SplitCallable

    def __init__(self, fn: Callable[..., Any]):
        self.params = {}
        self.fn = SplitCallable(fn)

    @property
    def has_module(self) -> bool:
        """Whether arrays of a module, or a network that is a `param` site, are among the leaves."""
        return self.fn.has_arrays or any(map(_is_network, self.params.values()))

    def run(self, batch: Batch, key: Key, choose: Choose, indices: Indices) -> Trace:
        args, kwargs = batch.unpack()
        values = _Values(key, choose, self.params, indices)
        seeded = handlers.seed(rng_seed=values.keys.next())
        substituted = handlers.substitute(substitute_fn=values)
        found, quiet = handlers.trace(), warnings.catch_warnings()
        with found as messages, seeded, substituted, _ControlFlow(), quiet:
            # Rows that are given may be more or fewer than the model's subsample_size.
            warnings.filterwarnings("ignore", "subsample_size does not match", UserWarning)
            with isolated(Foreign("NumPyro", "numpyro")):
                result = self.fn.build()(*args, **kwargs)
        sites: dict[str, Site] = {}
        plates: dict[str, Plate] = {}
        for name, msg in messages.items():
            kind = msg["type"]
            if kind == "sample":
                site = _site(msg, values.sizes)
                sites[name] = site
                if site.kind == "deterministic" and _may_count(msg["fn"]):
                    sites[f"{name}.log_density"] = _term_of_point(msg, values.sizes)
                for p in site.plates:
                    _record(plates, p)
            elif kind == "deterministic":
                plates_around = _plates(msg, values.sizes)
                sites[name] = Site(name, "deterministic", _recorded(msg), plates=plates_around)
            elif kind == "param":
                value = values.params.get(name, msg["value"])
                if not _is_drawn(name, value, messages):
                    sites[name] = _param_site(msg, value)
            elif kind == "mutable":
                raise ValueError(
                    f"site {name!r} is numpyro's `mutable`: state that a run changes has no place "
                    "in a pure function. Pass the state as an argument of the model, and return it."
                )
        for name, size in values.sizes.items():
            plates.setdefault(name, Plate(name, size, 0, values.rows[name]))
        return Trace(sites, plates, result)

    def plate_rows(self, create_plates: Callable[..., Any], batch: Batch, key: Key) -> Indices:
        args, kwargs = batch.unpack()
        with handlers.seed(rng_seed=key):
            made = create_plates(*args, **kwargs)
        made = made if isinstance(made, (tuple, list)) else (made,)
        for each in made:
            if not isinstance(each, numpyro_plate):
                raise TypeError(
                    "create_plates returns a numpyro.plate or several of them; it returned "
                    f"{each!r}."
                )
        return {each.name: each._indices for each in made}


class _Values:
    """What NumPyro's `substitute` asks for each message."""

    def __init__(self, key: Array, choose: Choose, params: dict[str, Any], indices: Indices):
        self.keys = KeySource(key)
        self._choose, self._params, self._indices = choose, params, indices
        self.sizes: dict[str, int] = {}  # of the plates, as written
        self.rows: dict[str, int] = {}
        self.params: dict[str, Any] = {}  # full values: a plate keeps only its rows of them

    def __call__(self, msg: dict[str, Any]) -> Any:
        kind, name = msg["type"], msg["name"]
        if kind == "plate":
            return self._plate(name, *msg["args"])
        if kind == "param":
            return self._param(msg)
        if kind == "sample" and not msg["is_observed"] and not _is_delta(msg["fn"]):
            return self._choose(_site(msg, self.sizes))
        if kind == "deterministic":
            _recorded(msg)  # here, since NumPyro takes None for a value that is still to be found
        return None

    def _plate(self, name: str, size: int, rows: int | None) -> Any:
        if self.sizes.setdefault(name, size) != size:
            raise ValueError(
                f"plate {name!r} appears with size {self.sizes[name]} and with size {size}: one "
                "name is one plate."
            )
        given = self._indices.get(name)
        self.rows[name] = given.shape[0] if given is not None else rows or size
        return given

    def _param(self, msg: dict[str, Any]) -> Any:
        name, init = msg["name"], msg["args"][0] if msg["args"] else None
        if name in self._params:
            value = _param_bijection(msg).forward(self._params[name])
        elif init is None:  # a network asks whether its parameters are there already
            return self.params.get(name)
        else:
            value = init(self.keys.next()) if callable(init) else init
            value = self.params.get(name, value)
        self.params[name] = value
        return value


class _ControlFlow(Messenger):
    """Looks into the bodies of `scan` and `cond`, whose plates are not seen from outside."""

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "control_flow":
            bodies = (0,) if callable(msg["args"][0]) else (1, 2)  # of scan, or of cond
            pairs = enumerate(msg["args"])
            msg["args"] = tuple(_looked_into(x) if i in bodies else x for i, x in pairs)


def _looked_into(body: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        with _Inside():
            return body(*args)

    return run


class _Inside(_ControlFlow):
    """Refuses plates that hold some of their rows: which ones cannot be said from outside."""

    def process_message(self, msg: dict[str, Any]) -> None:
        super().process_message(msg)
        if msg["type"] != "plate":
            return
        name, (size, rows) = msg["name"], msg["args"]
        if rows not in (None, size):
            raise ValueError(
                f"plate {name!r} is made inside of numpyro's scan or cond and holds {rows} of its "
                f"{size} rows, which cannot be chosen there: make it outside, rows = "
                f"numpyro.plate({name!r}, ...), and enter it inside, with rows as indices."
            )


def _recorded(msg: dict[str, Any]) -> Array:
    """Return the value of a deterministic site as an array, or refuse it."""
    return as_array(f"the value of deterministic {msg['name']!r}", msg["value"])


def _record(plates: dict[str, Plate], p: Plate) -> None:
    if plates.setdefault(p.name, p) != p:
        raise ValueError(
            f"plate {p.name!r} appears at dim {plates[p.name].dim} and at dim {p.dim}: one name is "
            "one plate."
        )


def _param_site(msg: dict[str, Any], value: Any) -> Site:
    bijection = _param_bijection(msg)

    def contains(x: Any) -> Array:
        # NumPyro's own answer has a fixed tolerance, which a simplex in single precision may miss.
        return jnp.isfinite(bijection.inverse(x))

    is_array = jax.tree_util.treedef_is_leaf(jax.tree.structure(value))
    known = contains if is_array else None  # of networks, also of those without arrays
    return Site(msg["name"], "param", value, bijection=bijection, contains=known)


def _param_bijection(msg: dict[str, Any]) -> Bijection:
    """Return the bijection of a parameter, which may be a pytree."""
    transform = biject_to(msg["kwargs"].get("constraint", constraints.real))

    def over(function: Callable[[Array], Array]) -> Callable[[Any], Any]:
        return lambda tree: jax.tree.map(lambda x: function(_floating(x)), tree)

    return Bijection(over(transform), over(transform.inv), transform.log_abs_det_jacobian)


def _is_network(value: Any) -> bool:
    """Say whether the value of a `param` site is a pytree, with anything in it to train."""
    leaves, treedef = jax.tree.flatten(value)
    return bool(leaves) and not jax.tree_util.treedef_is_leaf(treedef)


def _is_drawn(name: str, value: Any, messages: dict[str, dict[str, Any]]) -> bool:
    """Say whether sample sites have taken the place of all arrays of a network.

    NumPyro's `random_eqx_module` leaves the arrays of the given module in a `param` site, where
    nothing reads them: there is nothing to train.
    """
    if not (name.endswith("$params") and _is_network(value)):
        return False
    # NumPyro's name of a weight: the network's, a divider of the user's choice, and the path to it.
    network = re.escape(name.removesuffix("$params")) + r"[\W_]+"
    drawn = [n for n, msg in messages.items() if msg["type"] == "sample"]
    leaves = jax.tree_util.tree_leaves_with_path(value)
    paths = [jax.tree_util.keystr(path)[1:] for path, _ in leaves]
    return all(any(re.fullmatch(network + re.escape(p), n) for n in drawn) for p in paths)


def _floating(x: Any) -> Array:
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)


def _site(msg: dict[str, Any], sizes: dict[str, int]) -> Site:
    """Return the site of a message, which is only read: NumPyro shares it with other handlers."""
    fn, sample_shape = msg["fn"], tuple(msg["kwargs"].get("sample_shape", ()))
    shape, observed = sample_shape + tuple(fn.batch_shape), msg["is_observed"]
    event = tuple(fn.event_shape)
    plates = _plates(msg, sizes)
    scale = 1.0 if msg["scale"] is None else msg["scale"]
    # NumPyro's scale holds N/B of each plate too. Multiplied in its order they are the same float,
    # so that a site whose scale nothing else has changed is left with one.
    by_plates = 1.0
    for frame in msg["cond_indep_stack"]:
        by_plates *= sizes.get(frame.name, frame.size) / frame.size
    scale = scale / by_plates
    if observed and msg["value"] is not None:
        # Observations may stand on further leading axes, which log_prob broadcasts to.
        value_batch = jnp.shape(msg["value"])[: jnp.ndim(msg["value"]) - len(event)]
        shape = jnp.broadcast_shapes(shape, value_batch)
    drawable, unmasked, known = _is_drawable(fn), _unmasked(fn), _membership(fn)
    is_delta = not observed and _is_delta(fn)
    return Site(
        name=msg["name"],
        kind="observed" if observed else "deterministic" if is_delta else "latent",
        value=msg["value"],
        distribution=fn,
        batch_shape=shape,
        event_shape=event,
        plates=plates,
        scale=scale,
        mask=_mask(fn),
        log_prob=lambda x: jnp.broadcast_to(unmasked.log_prob(x), shape),
        sample=(lambda key: fn.sample(key, sample_shape)) if drawable else None,
        mean=lambda: jnp.broadcast_to(fn.mean, shape + event),
        bijection=None if observed else _bijection(fn, len(shape)),
        contains=known if observed else None,
        feasible=None if known is None else lambda: known.feasible_like(jnp.zeros(shape + event)),
        dtype=_dtype(fn),
    )


def _plates(msg: dict[str, Any], sizes: dict[str, int]) -> tuple[Plate, ...]:
    """Return the plates around a site, in the order of their axes."""
    frames = sorted(msg["cond_indep_stack"], key=lambda f: f.dim)
    sizes = {f.name: f.size for f in frames} | sizes
    return tuple(Plate(f.name, sizes[f.name], f.dim, f.size) for f in frames)


def _base(fn: Any) -> Any:
    while isinstance(fn, (ExpandedDistribution, MaskedDistribution, dist.Independent)):
        fn = fn.base_dist
    return fn


def _is_drawable(fn: Any) -> bool:
    """Say whether a distribution has draws: a class of a user's own may have a density alone.

    NumPyro's classes have, if what they are made of has. A user's `sample` may be there and raise:
    it is traced, which costs nothing later.
    """
    if isinstance(fn, dist.ImproperUniform) or type(fn).sample is dist.Distribution.sample:
        return False
    if str(getattr(type(fn).sample, "__module__", "")).startswith("numpyro."):
        parts = jax.tree.leaves(list(vars(fn).values()), is_leaf=_is_distribution)
        return all(_is_drawable(part) for part in parts if _is_distribution(part))
    return can_draw(fn.sample)


def _is_distribution(x: Any) -> bool:
    return isinstance(x, dist.Distribution)


def _is_delta(fn: Any) -> bool:
    """A point has no density: its value is known."""
    return isinstance(_base(fn), dist.Delta)


def _may_count(fn: Any) -> bool:
    """Say whether a point may have a `log_density` that is not zero."""
    log_density = _base(fn).log_density
    return is_traced(log_density) or bool(np.any(log_density))


def _term_of_point(msg: dict[str, Any], sizes: dict[str, int]) -> Site:
    """Return the `log_density` of a point as a term of its own, as `numpyro.factor` adds one."""
    fn = dist.Unit(msg["fn"].log_prob(msg["value"]))
    name, value = f"{msg['name']}.log_density", fn.sample(None)
    return _site(msg | {"name": name, "fn": fn, "is_observed": True, "value": value}, sizes)


def _membership(fn: Any) -> Any:
    """Return the constraint of a whole value, or None where it is not known."""
    support, base = fn.support, _base(fn)
    if support is None:
        return None
    if isinstance(base, dist.MixtureSameFamily) and any(map(jnp.ndim, jax.tree.leaves(support))):
        return None  # its bounds are those of the components, with an axis for them
    return constraints.independent(support, max(len(fn.event_shape) - support.event_dim, 0))


def _mask(fn: Any) -> Any:
    mask = None
    while isinstance(fn, (ExpandedDistribution, MaskedDistribution)):
        if isinstance(fn, MaskedDistribution):
            own = fn._mask
            if own is False:
                return False
            if own is not True:
                own = jnp.asarray(own)
                mask = own if mask is None else mask & own
        fn = fn.base_dist
    return mask


def _unmasked(fn: Any) -> Any:
    """Return the distribution without the masks that `_mask` reads."""
    if isinstance(fn, MaskedDistribution):
        return _unmasked(fn.base_dist)
    if isinstance(fn, ExpandedDistribution) and _mask(fn) is not None:
        return _unmasked(fn.base_dist).expand(fn.batch_shape)
    return fn


def _dtype(fn: Any) -> Any:
    leaves = [x for x in jax.tree.leaves(fn) if jnp.issubdtype(jnp.result_type(x), jnp.floating)]
    return jnp.result_type(*(leaves or [float]))


def _is_masked_within(fn: Any) -> bool:
    """Say whether a mask lies inside of an event, whose entries are no longer apart."""
    inside = False
    while isinstance(fn, (ExpandedDistribution, MaskedDistribution, dist.Independent)):
        if inside and isinstance(fn, MaskedDistribution):
            return True
        inside = inside or isinstance(fn, dist.Independent)
        fn = fn.base_dist
    return False


def _bijection(fn: Any, batch_ndim: int) -> Bijection | str:
    """Return the bijection of a latent, or why it has none."""
    support = fn.support
    if _is_masked_within(fn):
        return (
            "a mask inside of to_event leaves entries of its value without a density. Mask the "
            "whole, after to_event, or leave to_event out and use a plate."
        )
    if support is None:
        return f"{type(fn).__name__} states no support"
    if support.is_discrete:
        return (
            f"{type(_base(fn)).__name__} is discrete; guides need continuous latents. Sum it out, "
            "or observe it."
        )
    if _base(support) is constraints.circular or support is constraints.circular:
        return (
            "its support is circular: mass cannot wrap around the ends of an interval. "
            "Reparameterise, e.g. numpyro.handlers.reparam with CircularReparam."
        )
    try:
        transform = biject_to(support)
    except NotImplementedError:
        return (
            f"its support {support} has no bijector. Reparameterise, e.g. numpyro.handlers.reparam "
            "with ProjectedNormalReparam for a sphere."
        )

    def log_det(u: Array, x: Array) -> Array:
        return sum_trailing(transform.log_abs_det_jacobian(u, x), batch_ndim)

    return Bijection(transform, transform.inv, log_det, _monotone(transform))


def _monotone(transform: Any) -> int:
    """Return 1 or -1 for coordinatewise increasing or decreasing, as far as its type says."""
    if isinstance(transform, transforms.IndependentTransform):
        return _monotone(transform.base_transform)
    if isinstance(transform, transforms.ComposeTransform):
        sign = 1
        for part in transform.parts:
            sign *= _monotone(part)
        return sign
    if isinstance(transform, transforms.AffineTransform):
        if isinstance(transform.domain, type(constraints.unit_interval)):
            return 1  # of an interval: its scale is a width
        scale = transform.scale
        return 0 if not isinstance(scale, (int, float)) or scale == 0 else 1 if scale > 0 else -1
    increasing = (
        transforms.IdentityTransform,
        transforms.ExpTransform,
        transforms.SigmoidTransform,
        transforms.SoftplusTransform,
    )
    return int(isinstance(transform, increasing))


class _Refuser(Messenger):
    def process_message(self, msg: dict[str, Any]) -> None:
        raise TypeError(
            f"the model calls numpyro.{msg['type']} (site {msg['name']!r}), but it was passed as "
            "one in guidax's own language: wrap it, gx.from_numpyro(model)."
        )


def refuse_sites() -> Messenger:
    """Return a context in which a NumPyro site is an error that says to wrap the model."""
    return _Refuser()
