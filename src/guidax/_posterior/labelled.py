"""Arrays with names for their axes: dims from plates and from the user, and their coordinates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from .._model.batch import Batch
from .._model.model import AbstractModel
from .._model.trace import Site
from .._types import Key
from .runs import first_run

SAMPLE_DIMS = ("chain", "draw")


class SiteAxes(eqx.Module):
    """What is static about the sites of a model on its arguments.

    Attributes:
        plates: Site to the plate of each of its axes, None where it is no plate's.
        sizes: Plate to its number of rows.
        latents: Names of the latents.
        flat: Those that cannot be drawn from their priors.
    """

    plates: tuple[tuple[str, tuple[str | None, ...]], ...] = eqx.field(static=True)
    sizes: tuple[tuple[str, int], ...] = eqx.field(static=True)
    latents: tuple[str, ...] = eqx.field(static=True)
    flat: tuple[str, ...] = eqx.field(static=True)


@jax.jit
def find_axes(
    model: AbstractModel, batch: Batch, key: Key
) -> tuple[SiteAxes, dict[str, Array], dict[str, Array]]:
    """Return the axes, the data by observed site, and the row numbers of plates."""
    trace, rows, _ = first_run(model, batch, key)
    latents = trace.of("latent")
    axes = SiteAxes(
        tuple((name, _plates_of(site)) for name, site in trace.sites.items()),
        tuple((p.name, p.size) for p in trace.plates.values()),
        tuple(latents),
        tuple(name for name, site in latents.items() if site.sample is None),
    )
    data = {n: s.value for n, s in trace.of("observed").items() if is_datum(s)}
    return axes, data, dict(rows)


def is_datum(site: Site) -> bool:
    """Say whether an observed site has a value: a `factor` has none."""
    return site.event_shape != (0,)


def _plates_of(site: Site) -> tuple[str | None, ...]:
    """Return the plate of each axis. A deterministic site has them in front, as a sample has."""
    shape = np.shape(site.value) if site.kind != "param" else ()
    ndim = len(site.batch_shape) or max((-p.dim for p in site.plates), default=0)
    names: list[str | None] = [None] * len(shape)
    for p in site.plates:
        axis = ndim + p.dim
        if ndim <= len(shape) and shape[axis] == p.rows:
            names[axis] = p.name
    return tuple(names)


class Labels:
    """Names and coordinates of the axes of variables.

    Args:
        axes: The sites' plates.
        rows: Row numbers of plates that do not hold all rows in order.
        dims: Variable to names of its axes: of all, or of those that are no plate's.
        coords: Dim to coordinate values; for a plate those of all its rows.
    """

    def __init__(
        self,
        axes: SiteAxes,
        rows: Mapping[str, Array],
        dims: Mapping[str, Sequence[str]] | None,
        coords: Mapping[str, Any] | None,
    ):
        self._plates = dict(axes.plates)
        self._sizes = dict(axes.sizes)
        self._rows = {name: np.asarray(x) for name, x in rows.items()}
        self._dims = {name: tuple(x) for name, x in (dims or {}).items()}
        self._coords = {name: np.asarray(x) for name, x in (coords or {}).items()}
        self._used: dict[str, tuple[str, int]] = {}  # dim -> the first variable that has it, size
        self._variables: set[str] = set()

    def dataset(
        self, variables: Mapping[str, Any], *, sampled: bool, constant: bool = False, attrs: Any
    ) -> Any:
        """Return an xarray dataset.

        Args:
            variables: Name to array; with `sampled`, one axis of draws comes first.
            sampled: Whether the variables are draws.
            constant: Whether they are arguments, which may have a site's name and another shape;
                they come after the sites.
            attrs: Attributes of the dataset.

        Raises:
            ValueError: If names of axes do not fit a variable, or coordinates their dim.
        """
        import xarray

        lead = SAMPLE_DIMS if sampled else ()
        data, coords = {}, {}
        for name, value in variables.items():
            value = np.asarray(value)[None] if sampled else np.asarray(value)
            dims = self._dims_of(name, value.shape[len(lead) :], constant)
            data[name] = ((*lead, *dims), value)
            coords |= {dim: self._coords_of(dim) for dim in dims}
            coords |= {dim: np.arange(n) for dim, n in zip(lead, value.shape, strict=False)}
        return xarray.Dataset(data, coords, attrs)

    def require_all_used(self) -> None:
        """Check that every name in `dims` and `coords` was of use.

        Raises:
            ValueError: If one was not.
        """
        for option, given, known in (
            ("dims", self._dims, self._variables),
            ("coords", self._coords, self._used.keys()),
        ):
            if unknown := sorted(given.keys() - known):
                what = "variables" if option == "dims" else "axes"
                raise ValueError(f"{option} names {unknown}; the {what} are {sorted(known)}.")

    def _dims_of(self, name: str, shape: tuple[int, ...], constant: bool) -> tuple[str, ...]:
        self._variables.add(name)
        plates = self._plates.get(name, (None,) * len(shape))
        given, stem = self._dims.get(name), name
        if constant and not self._fits(name, shape):
            plates, stem = (None,) * len(shape), f"{name}_constant"
            given = given if given is not None and len(given) == len(shape) else None
        free = [axis for axis, plate in enumerate(plates) if plate is None]
        names = {axis: plate for axis, plate in enumerate(plates) if plate is not None}
        if given is None:
            names |= {axis: f"{stem}_dim_{axis}" for axis in free}
        elif len(given) == len(shape):
            names = dict(enumerate(given))
        elif len(given) == len(free):
            names |= dict(zip(free, given, strict=True))
        else:
            raise ValueError(
                f"dims[{name!r}] has {len(given)} names, {given}, but {name!r} has shape {shape}, "
                f"of which {len(free)} axes are no plate's: name all axes, or those."
            )
        found = tuple(names[axis] for axis in range(len(shape)))
        if taken := [dim for i, dim in enumerate(found) if dim in (*SAMPLE_DIMS, *found[:i])]:
            raise ValueError(
                f"axes of {name!r} would be named {found}, but {taken} are names of other axes: "
                "one name is one axis. Name them apart with dims."
            )
        for dim, size in zip(found, shape, strict=True):
            first, known = self._used.setdefault(dim, (name, size))
            if known != size:
                raise ValueError(
                    f"dim {dim!r} has size {known} in {first!r} and size {size} in {name!r}: one "
                    "name is one axis. Name them apart with dims."
                )
        return found

    def _fits(self, name: str, shape: tuple[int, ...]) -> bool:
        """Say whether an argument has the axes of the site that it shares its name with, if any."""
        plates = self._plates.get(name, (None,) * len(shape))
        return len(plates) == len(shape) and all(
            plate not in self._used or self._used[plate][1] == size
            for plate, size in zip(plates, shape, strict=True)
            if plate is not None
        )

    def _coords_of(self, dim: str) -> np.ndarray:
        _, size = self._used[dim]
        rows = self._rows.get(dim, np.arange(size))
        given = self._coords.get(dim)
        if given is None:
            return rows
        if given.shape == (self._sizes.get(dim, size),) and len(rows) == size:
            return given[rows]
        if given.shape == (size,):
            return given
        raise ValueError(
            f"coords[{dim!r}] has shape {given.shape}, but the axis has size {size}: give one "
            "value for each entry."
        )


def named_arrays(model: AbstractModel, batch: Batch) -> dict[str, np.ndarray]:
    """Return the arrays among a model's arguments, by the names of its parameters."""
    args, kwargs = batch.unpack()
    signature = model.signature()
    tree = {**{f"arg_{i}": x for i, x in enumerate(args)}, **kwargs}
    if signature is not None:
        tree = dict(signature.bind(*args, **kwargs).arguments)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    found = {jax.tree_util.keystr(p, simple=True, separator="."): leaf for p, leaf in leaves}
    return {name: np.asarray(x) for name, x in found.items() if _is_numeric(x)}


def _is_numeric(x: Any) -> bool:
    if not isinstance(x, (jax.Array, np.ndarray)):
        return False
    return not jax.numpy.issubdtype(x.dtype, jax.dtypes.extended) and x.dtype.kind in "biufc"


def without(arrays: Mapping[str, np.ndarray], data: Iterable[Any]) -> dict[str, np.ndarray]:
    """Return the arrays that are none of the data."""
    known = [np.asarray(x) for x in data]

    def is_known(x: np.ndarray) -> bool:
        same_shape = (y for y in known if y.shape == x.shape)
        return any(np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for y in same_shape)

    return {name: x for name, x in arrays.items() if not is_known(x)}
