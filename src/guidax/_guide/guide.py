"""A guide: a family bound to a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax import random
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from .._family.base import AbstractFamily
from .._family.flat import AbstractFlat
from .._model.batch import Batch, as_batch, blank_batch, options_of
from .._model.indices import admit, plates_named, resolve_indices
from .._model.model import AbstractModel
from .._model.static import Static
from .._model.structure import describe
from .._model.target import Target
from .._model.trace import Plate, Structure
from .._numerics import all_finite, as_array, is_traced
from .._types import Key, is_integer, positive, positive_or_none, require_key
from . import evaluate


class AutoGuide(eqx.Module):
    """A family of distributions bound to a model, to be fitted to its posterior.

    It is a pytree whose leaves are its trainable parameters: the family's, and those of the model
    (`gx.param` sites and the arrays of modules). Every leaf is a strongly typed floating array, so
    plain `jax.jit`, `jax.grad`, `jax.vmap` and `jax.tree.map` work on it. Every method is pure.

    The methods take the model's arguments, `*args` and `**kwargs`, or one `gx.Batch` in their
    place. They may be left out where nothing that is asked for depends on them. The methods run
    through one jitted function each, so they are fast when called plainly. To jit a method yourself
    write `eqx.filter_jit(guide.sample_posterior)`, or a function of the guide: `jax.jit` cannot
    take a bound method of a pytree, which has no hash.

    Args:
        model: The model, with its parameters.
        family: The family over its latents.
        structure: What is static about the model.
        admitted: The plates with latents whose rows may be drawn at random.
        create_plates: A function of the model's arguments that returns a plate, or several, of the
            model's language, whose rows the guide then holds. Where it takes the rows from the
            arguments, it says which rows these hold, as `Batch.at` does.
    """

    model: AbstractModel
    family: AbstractFamily
    structure: Structure = eqx.field(static=True, repr=False)
    admitted: tuple[str, ...] = eqx.field(static=True)
    create_plates: Static | None = eqx.field(static=True)
    # Of the leaves of one family.
    ranks: tuple[tuple[str, int], ...] = eqx.field(static=True, repr=False)

    def __init__(
        self,
        model: AbstractModel,
        family: AbstractFamily,
        structure: Structure,
        admitted: tuple[str, ...] = (),
        create_plates: Callable[..., Any] | None = None,
    ):
        for name, value, kind in (
            ("model", model, AbstractModel),
            ("family", family, AbstractFamily),
            ("structure", structure, Structure),
        ):
            if not isinstance(value, kind):
                raise TypeError(
                    f"{type(self).__name__}: {name} is an instance of {kind.__name__}, such as "
                    f"another guide's {name}, gx.AutoNormal(model, ...).{name}; got {value!r:.100}."
                )
        self.model, self.family, self.structure = model, family, structure
        self.admitted = admitted
        self.create_plates = None if create_plates is None else Static(create_plates)
        self.ranks = ranks_of(family)

    def sample_posterior(
        self,
        key: Key,
        /,
        *args: Any,
        sample_shape: tuple[int, ...] = (),
        sites: Iterable[str] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Array]:
        """Draw from the guide.

        Plates with latents hold every row, unless the batch says which (`Batch.at`).

        Args:
            key: For the draws.
            *args: The model's arguments, or one `gx.Batch`.
            sample_shape: Leading shape of independent draws.
            sites: Names of the sites to return; None for all latents and deterministic sites.
            batch_size: How many draws to compute at a time, to bound memory; None for all.
            **kwargs: The model's keyword arguments.

        Returns:
            Site to constrained values of shape `sample_shape + site shape`.

        Raises:
            TypeError: If the first argument is not one random key, the others do not fit the model,
                or an option is of the wrong kind.
            ValueError: If a number is not positive, if `sites` names a site that the guide does not
                hold, if arguments are left out that are needed, or if a batch cannot hold every row
                of a plate.
        """
        require_key("sample_posterior", key)
        options = options_of(AutoGuide.sample_posterior)
        batch, names = self._request(args, kwargs, options, sites)
        shape = _shape(sample_shape)
        guide, size = self.settled(batch), positive_or_none("batch_size", batch_size)
        return evaluate.sample(guide, key, batch, shape, names, size)[0]

    def sample_and_log_prob(
        self,
        key: Key,
        /,
        *args: Any,
        sample_shape: tuple[int, ...] = (),
        sites: Iterable[str] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> tuple[dict[str, Array], Float[Array, "*sample_shape"]]:
        """Draw from the guide, with the log density of each draw.

        Arguments and errors are those of `sample_posterior`.

        Returns:
            The draws, and log q of each in constrained space, of shape `sample_shape`: the log
            importance weight is `gx.log_joint(guide.model, draws, *args) - log_q`. Sites that are
            drawn as points (`AutoDelta`) have no density and add zero, as in the ELBO: there is no
            such weight for them.
        """
        require_key("sample_and_log_prob", key)
        options = options_of(AutoGuide.sample_and_log_prob)
        batch, names = self._request(args, kwargs, options, sites)
        shape = _shape(sample_shape)
        guide, size = self.settled(batch), positive_or_none("batch_size", batch_size)
        return evaluate.sample(guide, key, batch, shape, names, size)

    def log_prob(
        self, latents: Mapping[str, ArrayLike], /, *args: Any, **kwargs: Any
    ) -> Float[Array, "..."]:
        """Return the guide's log density at constrained latents.

        Args:
            latents: Site to value; leading axes that all of them share are those of several points.
                Deterministic sites are ignored.
            *args: The model's arguments, or one `gx.Batch`.
            **kwargs: The model's keyword arguments.

        Returns:
            Log densities in constrained space, of the shape of the leading axes: minus infinity
            outside the support, but in a NumPyro model what its bijections make of such a point.

        Raises:
            TypeError: If the family has no density in closed form (annealed guides) or draws some
                sites as points (`AutoDelta`), also as part of a list; if `latents` is no dictionary
                of arrays; or if the arguments do not fit the model.
            ValueError: If a latent is missing or unknown, or has a shape that does not fit; if
                arguments are left out that are needed.
        """
        batch, _ = self._request(args, kwargs, options_of(AutoGuide.log_prob), self._held)
        return evaluate.log_prob(self.settled(batch), latents, batch)

    def median(
        self,
        /,
        *args: Any,
        key: Key | None = None,
        num_samples: int = 1000,
        **kwargs: Any,
    ) -> dict[str, Array]:
        """Return the marginal median of each coordinate of each latent and deterministic site.

        See `quantiles` for arguments and errors.

        Returns:
            Site to medians, of the site's shape.
        """
        batch, names = self._request(args, kwargs, options_of(AutoGuide.median), None)
        key, number = key_or_fixed("median", key), positive("num_samples", num_samples)
        level, guide = jnp.asarray(0.5, float), self.settled(batch)
        return evaluate.quantiles(guide, level, key, batch, names, number)

    def quantiles(
        self,
        q: ArrayLike | Sequence[float],
        /,
        *args: Any,
        key: Key | None = None,
        num_samples: int = 1000,
        **kwargs: Any,
    ) -> dict[str, Array]:
        """Return marginal quantiles of each coordinate of each latent and deterministic site.

        They are exact where the family has them in closed form, the map to the support is monotone
        coordinate by coordinate, and the support depends on no other latent. Elsewhere they are
        those of draws; of integers and flags, the nearest that was drawn.

        Args:
            q: Levels between 0 and 1.
            *args: The model's arguments, or one `gx.Batch`.
            key: For draws; None is `jax.random.key(0)`, so that two calls agree.
            num_samples: How many draws.
            **kwargs: The model's keyword arguments.

        Returns:
            Site to quantiles, of shape `q.shape + site shape`.

        Raises:
            TypeError: If `key` is not one random key, `num_samples` is no integer, a level is no
                number, a site holds complex numbers, or the arguments do not fit the model.
            ValueError: If a level is not between 0 and 1, `num_samples` is less than 1, or
                arguments are left out that are needed.
        """
        batch, names = self._request(args, kwargs, options_of(AutoGuide.quantiles), None)
        key, number = key_or_fixed("quantiles", key), positive("num_samples", num_samples)
        levels, guide = _levels(q), self.settled(batch)
        return evaluate.quantiles(guide, levels, key, batch, names, number)

    def param_values(self, /, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the current values of the `param` sites, of the model and of `gx.program`s.

        Args:
            *args: The model's arguments, or one `gx.Batch`; they may be left out.
            **kwargs: The model's keyword arguments.

        Returns:
            Site to constrained value.

        Raises:
            TypeError: If the arguments do not fit the model.
            ValueError: If this is a stack of guides.
        """
        batch = as_batch(self.model, args, kwargs, may_omit=True)
        if batch.is_empty:
            batch = blank_batch(self.structure.shapes)
        return evaluate.param_values(self, self.admit(batch))

    def is_finite(self) -> Bool[Array, ""]:
        """Say whether every parameter is finite."""
        return all_finite(self)

    @property
    def learning_rate(self) -> float:
        """The rate that `fit` starts its default optimizer with."""
        return min(self.family.learning_rate, 0.01 if self.model.has_module else 1.0)

    def admit(self, batch: Batch) -> Batch:
        """Return the batch, marked with the plates whose rows may be drawn at random.

        What uses a batch inside a transformation calls this outside, where values are known.

        Raises:
            ValueError: If the batch names rows or plates that do not exist, or this is a stack of
                guides.
        """
        self._require_one()
        function = None if self.create_plates is None else self.create_plates.value
        return admit(self.model, self.structure, self.admitted, batch, function)

    def _require_one(self) -> None:
        """Refuse several guides in one, whose densities would be added up."""
        ranks, then = ranks_of(self.family), dict(self.ranks)
        if ranks == self.ranks or then.keys() != dict(ranks).keys():  # the family has been replaced
            return
        if more := [name for name, rank in ranks if rank > then[name]]:
            which = "each leaf" if len(more) == len(ranks) else f"family{more[0]}"
            raise ValueError(
                f"{which} of this {type(self).__name__} has more axes than it was made with: it "
                "is a stack of guides, such as jax.vmap over a constructor or a fit returns. Map "
                "over it with jax.vmap, or take one out, jax.tree.map(lambda x: x[0], guide)."
            )

    def indices(self, key: Key, batch: Batch, *, whole: bool = False) -> dict[str, Array]:
        """Return the row numbers of each plate that does not hold all its rows.

        Args:
            key: For rows that are drawn.
            batch: The arguments, marked by `admit`.
            whole: Whether plates with latents hold all rows where nothing else is said.

        Returns:
            Plate to row numbers.

        Raises:
            ValueError: If parameters and rows of the arguments would not match.
        """
        function = None if self.create_plates is None else self.create_plates.value
        found = resolve_indices(self.model, self.structure, batch, key, function, whole=whole)
        return dict(found)

    def target(self, key: Key, batch: Batch, indices: dict[str, Array]) -> Target:
        """Return the unnormalised posterior that the family draws against."""
        return Target(self.model, batch, key, indices)

    def plates(self, batch: Batch) -> tuple[Plate, ...]:
        """Return the plates of the model on these arguments."""
        return describe(self.model, batch, random.key(0)).plates

    def settled(self, batch: Batch) -> AutoGuide:
        """Return the guide that draws: another one where curvature takes the place of training."""
        del batch
        return self

    @property
    def _held(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.family.sites)

    def _request(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: frozenset[str],
        sites: Iterable[str] | None,
    ) -> tuple[Batch, tuple[str, ...] | None]:
        """Return the batch, blank where it was left out, and the names of the sites to return."""
        if isinstance(sites, str):
            raise TypeError(f"sites takes a list of names; got {sites!r}.")
        names = None if sites is None else tuple(sites)
        batch = as_batch(self.model, args, kwargs, options, may_omit=True)
        shapes, needed = self.structure.shapes, self.structure.needs_arguments
        if not batch.is_empty or not (shapes.arrays or shapes.layout.constants):
            return self.admit(batch), names
        if self.family.reads_batch:
            raise ValueError("the draws of this guide depend on the model's arguments: pass them.")
        if missing := sorted(needed & {*self._held, *(names or ())}):
            raise ValueError(
                f"the sites {missing} depend on the model's arguments: pass them to this call."
            )
        if names is None:
            recorded = (*self._held, *self.structure.deterministic)
            names = tuple(n for n in recorded if n not in needed)
        blank = blank_batch(shapes).at(**batch.rows)
        function = None if self.create_plates is None else self.create_plates.value
        if named := sorted(plates_named(self.model, blank, function) - batch.rows.keys()):
            raise ValueError(
                f"create_plates takes the rows of the plates {named} from the model's arguments: "
                "pass them to this call."
            )
        return self.admit(blank), names


class AutoContinuous(AutoGuide):
    """The base of guides over one flat unconstrained vector.

    The vector holds the latents end to end, in the order of the sites.
    """

    def __init__(
        self,
        model: AbstractModel,
        family: AbstractFamily,
        structure: Structure,
        admitted: tuple[str, ...] = (),
        create_plates: Callable[..., Any] | None = None,
    ):
        # Written out for type checkers, which would else make one of the fields.
        super().__init__(model, family, structure, admitted, create_plates)

    def get_base_dist(self, /, *args: Any, **kwargs: Any) -> Any:
        """Return the distribution of the noise, a standard normal.

        Args:
            *args: The model's arguments, where the guide's distribution depends on them
                (`AutoLaplaceApproximation`).
            **kwargs: The model's keyword arguments.

        Returns:
            A distrax distribution over the flat vector.
        """
        return self._flat(args, kwargs).base_dist()

    def get_transform(self, /, *args: Any, **kwargs: Any) -> distrax.Bijector:
        """Return the map from noise to the flat vector; arguments as of `get_base_dist`.

        Returns:
            A distrax bijector. For a low-rank normal it forms a matrix of `dim^2` numbers.
        """
        return self._flat(args, kwargs).transform()

    def get_posterior(self, /, *args: Any, **kwargs: Any) -> Any:
        """Return the distribution of the flat vector; arguments as of `get_base_dist`.

        Returns:
            A distrax distribution; TFP's for a low-rank normal.
        """
        return self._flat(args, kwargs).posterior()

    def _flat(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AbstractFlat:
        family = self.family
        if self.family.reads_batch or args or kwargs:
            batch, _ = self._request(args, kwargs, frozenset(), ())
            family = self.settled(batch).family
        assert isinstance(family, AbstractFlat)
        return family


def ranks_of(family: AbstractFamily) -> tuple[tuple[str, int], ...]:
    """Return how many axes each leaf of one guide's family has, by where it is."""
    leaves = jax.tree_util.tree_leaves_with_path(family)
    return tuple((jax.tree_util.keystr(path), jnp.ndim(x)) for path, x in leaves)


def key_or_fixed(who: str, key: Key | None) -> Key:
    """Return the key of a method that needs none, so that two calls agree."""
    if key is None:
        return random.key(0)
    require_key(who, key, "key=, a random key")
    return key


def _shape(sample_shape: Any) -> tuple[int, ...]:
    if not (isinstance(sample_shape, Iterable) and all(map(is_integer, sample_shape))):
        raise TypeError(f"sample_shape is a tuple of sizes, like (1000,); got {sample_shape!r}.")
    shape = tuple(int(n) for n in sample_shape)
    if any(n < 0 for n in shape):
        raise ValueError(f"sample_shape is a tuple of sizes; got {shape}.")
    return shape


def _levels(q: ArrayLike | Sequence[float]) -> Array:
    levels = as_array("a quantile level", q).astype(float)
    if not is_traced(levels) and not bool(jnp.all((levels >= 0) & (levels <= 1))):
        raise ValueError(f"quantile levels lie between 0 and 1; got {q}.")
    return levels
