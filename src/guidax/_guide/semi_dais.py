"""`AutoSemiDAIS`: any guide for the globals, DAIS for the latents of each row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
from jax import random
from jaxtyping import Array

from .._family.base import AbstractFamily
from .._family.dynamics import Dynamics, DynamicsOptions
from .._family.flat import AbstractFlat
from .._family.laplace import LaplacePoint
from .._family.local_dais import LocalDAIS, num_rows, row_width
from .._family.normal import MeanFieldNormal, raw_scale_of
from .._family.product import Product, leaves
from .._family.vector import dtype_of
from .._model.locality import require_local
from .._model.program import as_model
from .._model.start import Start
from .._model.strategies import Strategy, as_strategy, by_site, init_to_feasible
from .._model.target import Target
from .._model.trace import Indices, Structure
from .._types import Key
from .begin import begin
from .guide import AutoGuide
from .normal import AutoNormal
from .parts import Part, earlier_draw, family_of, given_strategy, strategy_of
from .program import program
from .sites import require_sites

_HIDE = "Build it on gx.handlers.block(model, expose=[...]), which hides the other sites."


class AutoSemiDAIS(AutoGuide):
    """Any guide for the global latents, and DAIS for the latents of one plate, row by row.

    For models with latents for each datum, which may be subsampled: `q(globals) prod_i q(z_i |
    globals)`, where row i's latents start from a base and move by `K` steps towards their own
    density given the globals, the model's terms in row i of the plate. So the bound is tighter than
    that of independent normals, and a row's posterior depends on the globals. It assumes that rows
    are independent given what is outside the plate, which construction checks, except inside a
    transformation, where values are not known. A step of training costs about `K` gradients of the
    model on the rows of the batch, and their derivatives.

    `batch.at(plate=indices)` draws the posterior of named rows:
    `guide.sample_posterior(key, gx.Batch(y).at(data=jnp.array([3, 7])))`.

    Args:
        model: A model: a callable in the model language, or what an adapter returns.
        *args: The model's arguments, or one `gx.Batch`.
        key: For the starting point.
        global_guide: What draws the latents outside the plate: a constructor, a guide over them (of
            which only the family is kept, as it is: fitted, if it was), or `gx.program(fn)`. None
            is `gx.AutoNormal` where there are any.
        local_guide: What draws where DAIS starts, with a density for each row: a constructor or a
            guide, as above, or an amortised one, `gx.program(fn)`, whose `fn` is written in the
            model language and may be a module: an encoder. A module may stand for its program. None
            is an independent normal for each coordinate of each row.
        K: Number of steps.
        eta_init: Starting step size; None for a tenth of `eta_max`. Noise may take one that is
            much closer to zero there, to stay.
        eta_max: Bound of the step sizes.
        gamma_init: Starting damping: the share of a momentum that is kept from step to step.
        init_loc_fn: Where the search starts, for all latents: a strategy, or a function of a site
            and a key that returns a constrained value; a `functools.partial` with an `init_loc_fn`
            of its own as a guide starts there instead. None starts those in the plate at zero in
            unconstrained space, and the others as their guide does by default.
        init_scale: Starting standard deviation of each coordinate of the base, in unconstrained
            space, where `local_guide` is None.
        subsample_plate: The plate. None is the only plate that is subsampled, or else the only one
            that holds latents.
        use_global_dais_params: Whether all rows share step sizes, temperatures, damping, speed and
            gain, rather than each having its own. The base's parameters are each row's own.
        **kwargs: The model's keyword arguments.

    Raises:
        TypeError: If the arguments do not fit the model, or a guide is none.
        ValueError: If an option is out of range; if the plate is not clear; if it holds no latent
            for DAIS, or a latent outside it is left out; if a term outside the plate reads a latent
            inside, or rows feed each other; if a guide lacks what it needs; if no start is found.

    Source: Geffner and Domke 2022, "Variational inference with locally enhanced bounds for
    hierarchical models"; Jankowiak and Phan 2022, "Surrogate likelihoods for variational annealed
    importance sampling".
    """

    def __init__(
        self,
        model: Any,
        /,
        *args: Any,
        key: Key,
        global_guide: Part | AutoGuide | None = None,
        local_guide: Part | AutoGuide | eqx.Module | None = None,
        K: int = 4,
        eta_init: float | None = None,
        eta_max: float = 0.1,
        gamma_init: float = 0.9,
        init_loc_fn: Strategy | None = None,
        init_scale: float = 0.1,
        subsample_plate: str | None = None,
        use_global_dais_params: bool = False,
        **kwargs: Any,
    ):
        raw_scale_of(init_scale)  # refuse what is out of range before the search
        options = DynamicsOptions(K, eta_init, eta_max, gamma_init)
        _refuse_local_model(model, kwargs)
        if isinstance(local_guide, eqx.Module) and not isinstance(local_guide, AutoGuide):
            local_guide = program(local_guide)
        guides = global_guide, local_guide

        def choose(structure: Structure, rows: Indices) -> Strategy:
            return _strategy(structure, rows, subsample_plate, guides, init_loc_fn)

        start = begin(AutoSemiDAIS, model, args, kwargs, key, init_loc_fn, choose=choose)
        plate = _find_plate(start.structure, start.batch.rows, subsample_plate)
        first, local = _share_out(start.structure, plate, global_guide)
        require_local(start, plate, local, key)
        keys = random.split(key)
        families = []
        if first:
            families.append(_global_family(start, first, global_guide, keys[0]))
        if local_guide is None:
            base = MeanFieldNormal(start.only(frozenset(local)), init_scale)
        else:
            base = _local_family(start, local, local_guide, families, plate, keys[1])
        leading = () if use_global_dais_params else (num_rows(base.sites, plate),)
        width = row_width(base.sites, plate)
        moves = Dynamics.start(leading, width, dtype_of(base.sites), options)
        families.append(LocalDAIS(base, moves, plate))
        super().__init__(start.model, Product(families), start.structure, start.admitted)

    @staticmethod
    def default_strategy(
        structure: Structure, rows: Indices, options: Mapping[str, Any]
    ) -> Strategy:
        """Return where it starts, alone or as a part of a list, if no `init_loc_fn` is given.

        Args:
            structure: The model's, with the latents of the guide.
            rows: Those of the batch, by plate.
            options: Of the constructor.
        """
        guides = options.get("global_guide"), options.get("local_guide")
        return _strategy(structure, rows, options.get("subsample_plate"), guides, None)

    def dynamics(self) -> dict[str, Array]:
        """Return how the rows move, constrained.

        Returns:
            `step_size` and `temperatures` by step, `damping`, and `speed` and `gain` by coordinate
            of a row in unconstrained space; first an axis for the rows, unless they share them.
        """
        return self._local.dynamics.values()

    @property
    def _local(self) -> LocalDAIS:
        assert isinstance(self.family, Product)
        local = self.family.parts[-1]
        assert isinstance(local, LocalDAIS)
        return local


def _strategy(
    structure: Structure,
    rows: Indices,
    subsample_plate: str | None,
    guides: tuple[Any, Any],
    init_loc_fn: Any,
) -> by_site:
    """Return where globals and locals start: as their guides say, as asked, or by default."""
    asked = None if init_loc_fn is None else as_strategy(init_loc_fn)
    global_guide, local_guide = guides
    plate = _find_plate(structure, rows, subsample_plate)
    first, local = _share_out(structure, plate, global_guide)
    if global_guide is None or isinstance(global_guide, AutoGuide):
        global_guide = AutoNormal
    of_globals = given_strategy(global_guide) or asked
    if of_globals is None:
        of_globals = strategy_of(global_guide, structure.only(frozenset(first)), rows)
    # Row by row, a far start costs more than it can teach.
    of_locals = given_strategy(local_guide) or asked or init_to_feasible()
    of_site = tuple((n, int(n in local)) for n in (*first, *local))
    return by_site((of_globals, of_locals), of_site)


def _global_family(start: Start, names: tuple[str, ...], guide: Any, key: Key) -> AbstractFamily:
    """Return the family of the globals.

    Raises:
        TypeError: If the guide is none.
        ValueError: If it trains as a point that something else takes the place of.
    """
    if isinstance(guide, AutoGuide):
        guide._require_one()
        family = guide.family
    else:
        family = family_of(start, names, AutoNormal if guide is None else guide, (), key)
    if any(isinstance(leaf, LaplacePoint) for leaf in leaves(family)):
        raise ValueError(
            "global_guide is a Laplace approximation, which trains as a point, and its curvature "
            "would be that of a posterior without the local latents. Use gx.AutoDelta, or a normal "
            "such as gx.AutoMultivariateNormal."
        )
    return family


def _local_family(
    start: Start,
    names: tuple[str, ...],
    guide: Any,
    earlier: list[AbstractFamily],
    plate: str,
    key: Key,
) -> AbstractFamily:
    """Return the family that draws where DAIS starts.

    Raises:
        TypeError: If the guide is none.
        ValueError: If it draws other latents, or has no density for each row.
    """
    if isinstance(guide, AutoGuide):
        guide._require_one()
        family = guide.family
        latents = start.structure.only(frozenset(names)).latents
        require_sites("local_guide", family.sites, latents, _HIDE)
    else:
        family = family_of(start, names, guide, earlier, key)
    lacking = (
        list(names)
        if isinstance(family, AbstractFlat)
        else _without_rows(start, family, earlier, plate)
    )
    if lacking:
        raise ValueError(
            f"local_guide has no density for each row of plate {plate!r} at the sites {lacking}: "
            "DAIS moves each row from a density of its own. Use gx.AutoNormal, or gx.program with "
            f"a function that samples them inside gx.plate({plate!r}, ...)."
        )
    return family


def _without_rows(
    start: Start, family: AbstractFamily, earlier: list[AbstractFamily], plate: str
) -> list[str]:
    """Return the sites that a family draws without a density for each row of the plate."""
    given = earlier_draw(start, earlier)
    target = Target(start.model, start.batch, random.key(0), start.rows, given)

    def log_q(target: Target) -> Any:
        draw = family.draw(random.key(0), target)
        return family.log_q(draw, target)

    blocks = jax.eval_shape(log_q, target) or {}
    held = {name for block in blocks if plate in block.plates for name in block.sites}
    return [s.name for s in family.sites if s.name not in held]


def _refuse_local_model(model: Any, kwargs: dict[str, Any]) -> None:
    """Explain that NumPyro's second argument has no use here."""
    if "local_model" not in kwargs or isinstance(model, Start):
        return
    signature = as_model(model).signature()
    parameters = () if signature is None else signature.parameters.values()
    if any(p.name == "local_model" or p.kind is p.VAR_KEYWORD for p in parameters):
        return
    raise TypeError(
        "AutoSemiDAIS takes no local_model: the local density is that of the model's own terms in "
        "the plate. Leave it out: gx.AutoSemiDAIS(model, *args, key=key)."
    )


def _find_plate(structure: Structure, rows: Indices, asked: str | None) -> str:
    """Return the plate whose latents DAIS draws.

    Raises:
        ValueError: If it is not clear which one.
    """
    known = [p.name for p in structure.plates]
    if asked is not None:
        if asked not in known:
            raise ValueError(
                f"subsample_plate={asked!r} names no plate of the model, which has {known}."
            )
        return asked
    found = [p.name for p in structure.plates if p.rows < p.size or p.name in rows]
    what = "subsampled plates"
    if not found:
        held = [set(s.plate_names) for s in structure.latents if s.plates]
        if not held:
            raise ValueError(
                "AutoSemiDAIS draws the latents of one plate, but no latent of the model is in a "
                f"plate; it has the plates {known}. Use gx.AutoDAIS or gx.AutoNormal."
            )
        found = sorted(set.intersection(*held))
        what = "plates that hold latents"
    if not found:
        raise ValueError(
            "AutoSemiDAIS draws the latents of one plate, but no plate holds all latents that are "
            f"in any; the model has the plates {known}. Say which with subsample_plate=; what is "
            "outside it counts as global."
        )
    if len(found) > 1:
        raise ValueError(
            f"AutoSemiDAIS draws the latents of one plate, but the model has the {what} {found}: "
            "say which with subsample_plate=."
        )
    return found[0]


def _share_out(
    structure: Structure, plate: str, global_guide: Any
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the global and of the local latents.

    Raises:
        ValueError: If there is no local one, or if one is neither in the plate nor in the guide.
    """
    latents = {s.name: s for s in structure.latents}
    if isinstance(global_guide, AutoGuide):
        sites = global_guide.family.sites
        require_sites("global_guide", sites, structure.latents, _HIDE, is_part=True)
        first = tuple(s.name for s in sites)
    else:
        first = tuple(n for n, s in latents.items() if plate not in s.plate_names)
        if global_guide is not None and not first:
            raise ValueError(
                f"global_guide is given, but the model has no latent outside plate {plate!r}: "
                "leave it out."
            )
    local = tuple(n for n in latents if n not in first)
    if not local:
        raise ValueError(
            f"no latent is left in plate {plate!r} for DAIS: the latents are {sorted(latents)}, of "
            f"which {sorted(first)} are global. Use gx.AutoDAIS or gx.AutoNormal where there are "
            "no local latents."
        )
    if outside := [n for n in local if plate not in latents[n].plate_names]:
        raise ValueError(
            f"the latents {outside} are not in plate {plate!r}, so DAIS cannot draw them row by "
            f"row, and global_guide draws {list(first)} only: let it draw them too."
        )
    return first, local
