"""What one run of a program leaves behind: plates and sites, and what is static about them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .batch import Shapes

Kind = Literal["latent", "observed", "param", "deterministic"]
Indices = Mapping[str, Array]  # plate -> row numbers


@dataclasses.dataclass(frozen=True)
class Plate:
    """Rows that are independent given everything outside. Static.

    Attributes:
        name: Its name.
        size: How many rows there are.
        dim: Its axis in the batch shape, negative; 0 where that is not known, since no site is in
            the plate.
        rows: How many of the rows are present in this run.
    """

    name: str
    size: int
    dim: int
    rows: int


@dataclasses.dataclass(frozen=True)
class Bijection:
    """Unconstrained `u` to constrained `x` of a live site, and back.

    Attributes:
        forward: `u -> x`.
        inverse: `x -> u`.
        log_det: `(u, x) -> log |det dx/du|`, of the batch shape.
        monotone: 1 where it increases coordinate by coordinate, -1 where it decreases, else 0.
    """

    forward: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    log_det: Callable[[Array, Array], Array]
    monotone: int = 0


@dataclasses.dataclass(frozen=True)
class Site:
    """A site as it ran. It lives for one run and is never stored in a guide.

    Attributes:
        name: Its name.
        kind: What it is to the guide.
        value: Its constrained value in this run.
        distribution: The live distribution, in the language of the model.
        batch_shape: Batch shape, plates included.
        event_shape: Event shape of the constrained value.
        plates: The plates around it, in the order of their axes.
        scale: What handlers multiply the log density by; N/B of the plates is not in it.
        mask: None, `False` for a site without log density, or an array that broadcasts to
            `batch_shape` and is false where the entry is padding.
        log_prob: Constrained value to log density of the batch shape, unscaled and unmasked.
        sample: Key to a prior draw, or None where the prior cannot be drawn from.
        mean: Returns the prior mean, or raises NotImplementedError or AttributeError; None where
            there is none.
        bijection: For a latent or a param, its bijection; a string says why a latent has none.
        contains: Value to whether it lies in the support, or a param's constraint, entry by entry;
            None where that is not known, as for the latents of NumPyro models.
        feasible: Returns a value inside the support, of the shape `batch_shape + event_shape`, or
            raises NotImplementedError; None where none is known. It takes the place of a masked
            observation, so its density and gradient have to be finite.
        dtype: Of the constrained value.
    """

    name: str
    kind: Kind
    value: Any = None
    distribution: Any = None
    batch_shape: tuple[int, ...] = ()
    event_shape: tuple[int, ...] = ()
    plates: tuple[Plate, ...] = ()
    scale: Any = 1.0
    mask: Bool[Array, "..."] | Literal[False] | None = None
    log_prob: Callable[[Array], Array] | None = None
    sample: Callable[[Array], Array] | None = None
    mean: Callable[[], Array] | None = None
    bijection: Bijection | str | None = None
    contains: Callable[[Array], Array] | None = None
    feasible: Callable[[], Array] | None = None
    dtype: Any = None

    @property
    def has_bijection(self) -> bool:
        """Whether a guide can draw it through unconstrained space."""
        return isinstance(self.bijection, Bijection)

    @property
    def known_bijection(self) -> Bijection:
        """The bijection of a site that has one."""
        assert isinstance(self.bijection, Bijection), self.bijection
        return self.bijection

    @property
    def is_padded(self) -> bool:
        """Whether an array masks some of its entries."""
        return self.mask is not None and self.mask is not False

    @property
    def is_scaled(self) -> bool:
        """Whether handlers multiply its log density; by an array of ones, too."""
        return not (isinstance(self.scale, (int, float)) and self.scale == 1)

    @property
    def plate_scale(self) -> float:
        """N/B of its plates."""
        return math.prod(p.size / p.rows for p in self.plates)

    def zeros(self) -> Float[Array, "..."]:
        """Return unconstrained zeros in the shape of this run."""
        x = jax.ShapeDtypeStruct((*self.batch_shape, *self.event_shape), self.dtype)
        u = jax.eval_shape(self.known_bijection.inverse, x)
        return jnp.zeros(u.shape, u.dtype)


@dataclasses.dataclass(frozen=True)
class Trace:
    """The sites and plates of one run, in order, and what the program returned."""

    sites: dict[str, Site]
    plates: dict[str, Plate]
    result: Any = None

    def of(self, kind: Kind) -> dict[str, Site]:
        """Return the sites of one kind."""
        return {name: site for name, site in self.sites.items() if site.kind == kind}


@dataclasses.dataclass(frozen=True)
class LatentSpec:
    """Static facts about a latent: all that a family remembers of it.

    Attributes:
        name: The site's name.
        shape: Unconstrained shape with all rows of every plate.
        plates: For each plate around it, in the order of their axes, its name and its axis in
            `shape`.
        dtype: Of the unconstrained value.
    """

    name: str
    shape: tuple[int, ...]
    plates: tuple[tuple[str, int], ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of unconstrained coordinates."""
        return math.prod(self.shape)

    @property
    def plate_names(self) -> tuple[str, ...]:
        """Names of its plates, in the order of their axes."""
        return tuple(name for name, _ in self.plates)

    def take(self, full: Array, indices: Indices) -> Array:
        """Return the rows of a parameter that an evaluation holds.

        Along an axis that is shorter than the plate, the parameter holds those rows alone already
        (`map_rows` of a family).
        """
        for name, axis in self.plates:
            if name in indices and full.shape[axis] == self.shape[axis]:
                full = jnp.take(full, indices[name], axis=axis)
        return full

    def sum_to_plates(self, x: Array) -> Array:
        """Sum every axis that is not a plate."""
        kept = {axis for _, axis in self.plates}
        return jnp.sum(x, axis=tuple(a for a in range(jnp.ndim(x)) if a not in kept))


@dataclasses.dataclass(frozen=True)
class Structure:
    """Static facts about a model on arguments of given shapes.

    Plates and shapes of arguments take part in comparisons only where rows belong to parameters of
    a guide (`latents`, `local_shapes`), so that guides made on 10 and on 5 rows are one program
    otherwise.

    Attributes:
        latents: The latents that have a bijection, in site order.
        plates: All plates.
        params: Names of the `param` sites.
        deterministic: Names of the deterministic sites.
        obstacles: For each latent that no guide can draw, its name and why.
        padded: Names of the latents that an array masks.
        needs_arguments: Latents and deterministic sites whose value reads the arguments.
        coupled: Latents whose support reads other latents.
        local_shapes: `shapes` where a plate holds latents, else None.
        shapes: Shapes of the arguments.
    """

    latents: tuple[LatentSpec, ...]
    plates: tuple[Plate, ...] = dataclasses.field(compare=False)
    params: tuple[str, ...]
    deterministic: tuple[str, ...]
    obstacles: tuple[tuple[str, str], ...]
    padded: tuple[str, ...]
    needs_arguments: frozenset[str]
    coupled: frozenset[str]
    local_shapes: Shapes | None
    shapes: Shapes = dataclasses.field(compare=False)

    def only(self, names: frozenset[str]) -> Structure:
        """Return the structure of the model with all other sites hidden."""
        return dataclasses.replace(
            self,
            latents=tuple(s for s in self.latents if s.name in names),
            deterministic=tuple(n for n in self.deterministic if n in names),
        )

    @property
    def local_plates(self) -> tuple[Plate, ...]:
        """The plates that hold latents."""
        held = {name for s in self.latents for name in s.plate_names}
        return tuple(p for p in self.plates if p.name in held)
