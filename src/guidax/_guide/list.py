"""`AutoGuideList`: several families over one model."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping
from types import EllipsisType
from typing import Any

from jax import random

from .._family.base import AbstractFamily
from .._family.flat import AbstractFlat
from .._family.laplace import LaplacePoint
from .._family.product import Product, leaves
from .._family.program import ProgramFamily
from .._model.batch import Batch, as_batch, options_of
from .._model.model import Restricted
from .._model.start import Start
from .._model.strategies import Strategy, as_strategy, by_site, init_to_uniform
from .._model.target import NOTHING, Target
from .._model.trace import Indices, Structure
from .._types import Key
from .begin import begin
from .guide import AutoContinuous, AutoGuide, key_or_fixed, ranks_of
from .laplace import normal_at
from .parts import Part, family_of, given_strategy, strategy_of
from .program import ProgramPart
from .sites import require_sites

Sites = str | tuple[str, ...] | EllipsisType


class AutoGuideList(AutoGuide):
    """Several guides for one model, each for some of its latents, drawn in order.

    `gx.AutoGuideList(model, X, y, key=key, parts={"coefs": gx.AutoDelta, ("a", "b"):
    functools.partial(gx.AutoMultivariateNormal, init_scale=0.05), ...: gx.AutoNormal})`

    One start is searched for the whole list, with each part's own `init_loc_fn` for its sites, and
    there is one copy of the model's parameters. `list[i]` is a part bound to the model, blocked to
    its sites; a part whose draws read the data or other parts' draws is no guide by itself.

    Args:
        model: A model: a callable in the model language, or what an adapter returns.
        *args: The model's arguments, or one `gx.Batch`.
        key: For the starting point.
        init_loc_fn: Where parts start that say nothing else (`functools.partial(gx.AutoNormal,
            init_loc_fn=...)` does): a strategy, or a function of a site and a key that returns a
            constrained value. None for the default of each part.
        parts: Which guide takes which latents: from a site, a tuple of sites or `...` (the rest) to
            a constructor, a `functools.partial` of one, or `gx.program(fn)`. They must cover every
            latent, each once. Left out, the list is empty: see `append`.
        create_plates: A function of the model's arguments that returns a `gx.plate`, or several,
            whose rows each evaluation holds. Rows that it takes from the arguments are those that
            the arguments hold. `Batch.at` overrides it.
        **kwargs: The model's keyword arguments.

    Raises:
        TypeError: If the arguments do not fit the model, or a part is no guide.
        ValueError: If the parts leave out a latent, name one twice, or name what is none, or if no
            start is found.
    """

    def __init__(
        self,
        model: Any,
        /,
        *args: Any,
        key: Key,
        init_loc_fn: Strategy | None = None,
        parts: Mapping[Sites, Part] | None = None,
        create_plates: Callable[..., Any] | None = None,
        **kwargs: Any,
    ):
        def choose(structure: Structure, rows: Indices) -> Strategy:
            return _strategy(_shares(parts, structure), init_loc_fn, structure, rows)

        if isinstance(model, Start):  # a part of another guide, which has found the start
            _require_no_wishes(_shares(parts, model.structure), init_loc_fn)
        start = begin(AutoGuideList, model, args, kwargs, key, None, create_plates, choose)
        shares = _shares(parts, start.structure)
        families: list[AbstractFamily] = []
        keys = random.split(key, len(shares))
        for (own, part), k in zip(shares, keys, strict=True):
            families.append(family_of(start, own, part, families, k))
        family = Product(families)
        super().__init__(start.model, family, start.structure, start.admitted, create_plates)

    @staticmethod
    def default_strategy(
        structure: Structure, rows: Indices, options: Mapping[str, Any]
    ) -> Strategy:
        """Return where a list starts, as a part of another guide, that says nothing itself.

        Args:
            structure: The model's, with the latents of the list.
            rows: Those of the batch, by plate.
            options: Of the constructor.
        """
        return _strategy(_shares(options.get("parts"), structure), None, structure, rows)

    def append(
        self, part: AutoGuide | ProgramPart, /, *args: Any, key: Key | None = None, **kwargs: Any
    ) -> AutoGuideList:
        """Return a new list with one more part. That no latent is left out is checked when used.

        Args:
            part: A guide built on the model with the other sites blocked:
                `gx.AutoDelta(gx.handlers.block(model, expose=["w"]), X, y, key=key)`. Only its
                family is kept. Or `gx.program(fn)`.
            *args: For a program, the model's arguments, or one `gx.Batch`.
            key: For the starting values of a program's `param` sites; None is `jax.random.key(0)`.
            **kwargs: For a program, the model's keyword arguments.

        Raises:
            TypeError: If the part is neither, if arguments stand beside a guide, which has seen
                them, or if those of a program do not fit the model.
            ValueError: If one of its sites has a part already, or is no latent of the model in
                that shape.
        """
        self._require_one()
        family = self._family_of(part, args, key, kwargs)
        advice = "Build it on gx.handlers.block(model, expose=[...])."
        require_sites("the part", family.sites, self.structure.latents, advice, is_part=True)
        own = {s.name for s in family.sites}
        if both := sorted(own & {s.name for s in self.family.sites}):
            raise ValueError(f"sites {both} have a part already.")
        return self._with_parts((*self.parts, family))

    def _family_of(
        self, part: Any, args: tuple[Any, ...], key: Key | None, kwargs: dict[str, Any]
    ) -> AbstractFamily:
        """Return the family of a part that is appended."""
        if isinstance(part, ProgramPart):
            options = options_of(AutoGuideList.append)
            batch = self.admit(as_batch(self.model, args, kwargs, options))
            key = key_or_fixed("append", key)
            start = Start(self.model, batch, {}, self.structure, self.admitted)
            target = Target(self.model, batch, key, start.rows)
            earlier = self.family.draw(key, target) if part.given else NOTHING
            return part.family(start, None, earlier, key)
        if not isinstance(part, AutoGuide):
            raise TypeError(
                "append takes a guide built on a blocked model, or gx.program(fn); got "
                f"{type(part).__name__}. Constructors go into parts=."
            )
        if args or kwargs or key is not None:
            raise TypeError(
                "append takes the model's arguments and a key beside a gx.program alone: a guide "
                "has been built on them."
            )
        part._require_one()
        return part.family

    def laplace(self, /, *args: Any, **kwargs: Any) -> AutoGuideList:
        """Return the list with normals in place of its Laplace parts.

        Each is that of the Hessian of its own block, with the other parts at their medians.

        Args:
            *args: The model's arguments, or one `gx.Batch`.
            **kwargs: The model's keyword arguments.

        Raises:
            ValueError: If the list has no Laplace part, or a Hessian is not positive definite.
        """
        batch, _ = self._request(args, kwargs, options_of(AutoGuideList.laplace), None)
        if not self._has_laplace():
            raise ValueError("the list has no Laplace parts to put normals in the place of.")
        return self.settled(batch)

    def _has_laplace(self) -> bool:
        return any(isinstance(leaf, LaplacePoint) for leaf in leaves(self.family))

    def settled(self, batch: Batch) -> AutoGuideList:
        missing = {s.name for s in self.structure.latents} - {s.name for s in self.family.sites}
        if missing:
            raise ValueError(
                f"no part of the list draws the latents {sorted(missing)}: append guides for them."
            )
        if not self._has_laplace():
            return self
        # A plain guide draws the points themselves, and a point's median is the point.
        plain = AutoGuide(self.model, self.family, self.structure, self.admitted, self._plates())
        medians = plain.median(batch)

        def settled(part: AbstractFamily) -> AbstractFamily:
            if isinstance(part, Product):
                return Product([settled(each) for each in part.parts])
            if not isinstance(part, LaplacePoint):
                return part
            others = {s.name for s in self.family.sites} - {s.name for s in part.sites}
            given = {name: medians[name] for name in others}
            # The point is the mode on average over the others, not at their medians.
            return normal_at(self, part, batch, given)[0]

        return self._with_parts([settled(part) for part in self.parts])

    def _plates(self) -> Callable[..., Any] | None:
        return None if self.create_plates is None else self.create_plates.value

    @property
    def parts(self) -> tuple[AbstractFamily, ...]:
        """The families of the parts."""
        assert isinstance(self.family, Product)
        return self.family.parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, i: int) -> AutoGuide:
        self._require_one()
        family = self.parts[operator.index(i)]
        names = [s.name for s in family.sites]
        if not _stands_alone(family):
            is_point = isinstance(family, LaplacePoint)
            instead = "list.laplace(...)[i]" if is_point else "the list, with sites= for some sites"
            raise ValueError(
                f"the part over {names} draws with the data, or with what other parts drew, which "
                f"a part alone does not have: use {instead}."
            )
        model = Restricted(self.model, expose=names)
        kind = AutoContinuous if isinstance(family, AbstractFlat) else AutoGuide
        structure = self.structure.only(frozenset(names))
        return kind(model, family, structure, self.admitted, self._plates())

    def __iter__(self) -> Iterator[AutoGuide]:
        return (self[i] for i in range(len(self)))

    def _with_parts(self, parts: Any) -> AutoGuideList:
        new = object.__new__(AutoGuideList)
        for field in dataclasses.fields(self):
            object.__setattr__(new, field.name, getattr(self, field.name))
        object.__setattr__(new, "family", Product(parts))
        object.__setattr__(new, "ranks", ranks_of(new.family))
        return new


def _shares(
    parts: Mapping[Sites, Part] | None, structure: Structure
) -> list[tuple[tuple[str, ...], Part]]:
    """Return each part's sites, in the order written.

    Raises:
        TypeError: If `parts` is no mapping.
        ValueError: If they do not cover each latent once.
    """
    if parts is None:
        return []
    if not isinstance(parts, Mapping):
        raise TypeError(
            "parts takes a dict from sites to constructors, such as "
            f'{{"a": gx.AutoDelta, ...: gx.AutoNormal}}; got {type(parts).__name__}.'
        )
    latents = tuple(s.name for s in structure.latents)
    named = {k: (k,) if isinstance(k, str) else tuple(k) for k in parts if k is not ...}
    asked = [name for names in named.values() for name in names]
    problems = {
        "named twice": {n for n in asked if asked.count(n) > 1},
        "no latents of the model": set(asked) - set(latents),
        "left out": set() if ... in parts else set(latents) - set(asked),
    }
    if any(problems.values()):
        said = "; ".join(f"{what}: {sorted(names)}" for what, names in problems.items() if names)
        raise ValueError(
            f"parts must cover each latent once. {said}. The latents are {list(latents)}, and the "
            "key ... stands for the rest."
        )
    rest = tuple(name for name in latents if name not in asked)
    shares = [(rest if k is ... else named[k], part) for k, part in parts.items()]
    return [(names, part) for names, part in shares if names]


def _strategy(
    shares: list[tuple[tuple[str, ...], Part]],
    init_loc_fn: Any,
    structure: Structure,
    rows: Indices,
) -> by_site:
    """Return one strategy for the whole list, which gives each site that of its part."""
    asked = None if init_loc_fn is None else as_strategy(init_loc_fn)
    wishes = [
        given_strategy(part) or asked or strategy_of(part, structure.only(frozenset(names)), rows)
        for names, part in shares
    ]
    strategies = (asked or init_to_uniform(), *wishes)
    part_of = {name: i + 1 for i, (names, _) in enumerate(shares) for name in names}
    of_site = ((s.name, part_of.get(s.name, 0)) for s in structure.latents)
    return by_site(strategies, tuple(of_site))


def _require_no_wishes(shares: list[tuple[tuple[str, ...], Part]], init_loc_fn: Any) -> None:
    """Refuse strategies of a list whose start is found already.

    Raises:
        ValueError: If there are any.
    """
    if init_loc_fn is not None or any(given_strategy(part) for _, part in shares):
        raise ValueError(
            "a list that is a part of another guide starts where that one does: give init_loc_fn "
            "to the whole, not to a part of the part."
        )


def _stands_alone(family: AbstractFamily) -> bool:
    """Say whether a family draws the same without the data and without other parts' draws."""
    return not any(
        leaf.given if isinstance(leaf, ProgramFamily) else leaf.reads_batch
        for leaf in leaves(family)
    )
