"""The one place where the row numbers of plates come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from .._numerics import is_traced
from .._types import Key
from .batch import Batch
from .dependencies import dependencies
from .equivariance import equivariant_plates
from .model import AbstractModel, at_zero
from .rows import draw_rows
from .structure import describe
from .trace import Indices, Plate, Structure

CreatePlates = Callable[..., Any] | None


def admit(
    model: AbstractModel,
    known: Structure,
    known_plates: tuple[str, ...],
    batch: Batch,
    create_plates: CreatePlates = None,
) -> Batch:
    """Return the batch, marked with the plates whose rows may be drawn at random.

    A plate with latents qualifies if the model takes the rows of its data itself, by the numbers
    that the plate gives. That is found by running the model, so it is known for arguments of the
    structure at construction, and found out here for others if their values are known. Rows that
    `create_plates` takes from the arguments are those of the batch.

    Args:
        model: The model.
        known: Its structure at construction.
        known_plates: The plates that qualified at construction.
        batch: The arguments.
        create_plates: As of a guide.

    Raises:
        ValueError: If `at` names an unknown plate or a row that does not exist, or if another
            structure of the arguments is met only inside a transformation.
    """
    batch = with_named_rows(model, batch, create_plates)
    check_rows(model, batch)
    if known.local_shapes is None:
        return batch
    if known.local_shapes == batch.shapes:
        return batch.admit({*batch.admitted, *known_plates})
    structure = describe(model, batch, random.key(0))
    asked = [
        p
        for p in structure.local_plates
        if (p.rows < p.size or create_plates is not None)
        and p.name not in batch.rows
        and p.name not in batch.admitted
    ]
    if not asked:
        return batch
    if is_traced((model, batch)):
        raise ValueError(
            f"plate {asked[0].name!r} has latents and its rows would be drawn at random, but "
            "whether the model takes the matching rows of its data is known only for arguments of "
            "the structure that the guide was built on. These are others, and their values are not "
            "known inside this transformation: build the guide on arguments of this structure, or "
            f"say which rows they hold: gx.Batch(...).at({asked[0].name}=row_numbers)."
        )
    return batch.admit({*batch.admitted, *drawable_plates(model, batch, tuple(asked))})


def with_named_rows(model: AbstractModel, batch: Batch, create_plates: CreatePlates) -> Batch:
    """Return the batch at the rows that `create_plates` takes from the arguments.

    They are as good as those of `Batch.at`, which win.
    """
    named = plates_named(model, batch, create_plates)
    if create_plates is None or not named:
        return batch
    made = model.plate_rows(create_plates, batch.without_rows(), random.key(0))
    return batch.at(**{name: made[name] for name in named} | batch.rows)


def plates_named(model: AbstractModel, batch: Batch, create_plates: CreatePlates) -> frozenset[str]:
    """Return the plates whose rows `create_plates` takes from the arguments: no key is read."""
    if create_plates is None:
        return frozenset()

    def rows(inputs: dict[str, Any]) -> dict[str, Any]:
        given = batch.without_rows().with_arrays(inputs["arguments"])
        return dict(model.plate_rows(create_plates, given, inputs["key"]))

    reads = dependencies(rows, {"arguments": batch.arrays, "key": random.key(0)})
    return frozenset(name for name, paths in reads.items() if paths and "['key']" not in paths)


def drawable_plates(
    model: AbstractModel, batch: Batch, plates: tuple[Plate, ...]
) -> tuple[str, ...]:
    """Return which of the plates the model takes rows of by itself, on values that are known."""
    if not plates:
        return ()
    try:
        with jax.ensure_compile_time_eval():  # under a jit of the user's, the data are still known
            flags = equivariant_plates(model, batch.without_rows(), random.key(0), plates)
    except ValueError:
        if not batch.rows:
            raise
        return ()  # the data are no more than the rows that `at` names
    return tuple(p.name for p, flag in zip(plates, np.asarray(flags), strict=True) if flag)


def admit_all(model: AbstractModel, batch: Batch) -> Batch:
    """Return the batch, marked with every plate that the model can hold all rows of.

    Under a transformation, where values are not known, no more are marked.
    """
    if is_traced((model, batch)):
        return batch
    plates = describe(model, batch, random.key(0)).plates
    short = tuple(p for p in plates if p.rows < p.size and p.name not in batch.rows)
    return batch.admit({*batch.admitted, *drawable_plates(model, batch, short)})


def resolve_indices(
    model: AbstractModel,
    known: Structure,
    batch: Batch,
    key: Key,
    create_plates: CreatePlates = None,
    *,
    whole: bool = False,
) -> Indices:
    """Return the row numbers of each plate that does not hold all its rows.

    They come from the batch, else from `create_plates`, else they are drawn.

    Args:
        model: The model.
        known: Its structure at construction, whose latents have parameters.
        batch: The arguments, marked by `admit`.
        key: For rows that are drawn.
        create_plates: As of a guide.
        whole: Whether plates with latents hold all rows where nothing else is said.

    Returns:
        For each such plate, row numbers of shape `(rows,)`.

    Raises:
        ValueError: If a plate with latents has another size than at construction, or if its rows
            would be drawn though the model does not take the rows of its data by itself, or if all
            are asked for and the model does not run with them.
    """
    structure = describe(model, batch, key)
    sizes = {name: s.shape[axis] for s in known.latents for name, axis in s.plates}
    made = {} if create_plates is None else model.plate_rows(create_plates, batch, key)
    found, held_whole = {}, []
    for i, p in enumerate(structure.plates):
        if p.name in sizes:
            _check_local(p, batch, sizes[p.name], same=known.local_shapes == batch.shapes)
        if p.name in batch.rows:
            found[p.name] = batch.rows[p.name]
            continue
        if p.rows == p.size and p.name not in made:
            continue
        if p.name in sizes and p.name not in batch.admitted:
            raise _rows_unknown(p)
        if whole and p.name in sizes:
            found[p.name] = jnp.arange(p.size)
            held_whole.append(p)
        elif p.name in made:
            found[p.name] = made[p.name]
        else:
            found[p.name] = draw_rows(random.fold_in(key, i), p.size, p.rows)
    if held_whole and (error := refusal(model, batch.without_rows(), key, found)) is not None:
        p = held_whole[0]
        raise ValueError(
            f"plate {p.name!r} has latents, so all its {p.size} rows are asked for, but the model "
            f"does not run with them: {str(error).splitlines()[0]} Say which rows to hold: "
            f"gx.Batch(...).at({p.name}=row_numbers)."
        ) from error
    return found


def refusal(model: AbstractModel, batch: Batch, key: Key, rows: Indices) -> Exception | None:
    """Return the error of a run on these rows, if its observations are written for others."""
    try:
        for site in model.run(batch, key, at_zero, rows).of("observed").values():
            if site.log_prob is not None:
                jnp.multiply(site.log_prob(site.value), site.scale)
    except (TypeError, ValueError) as error:
        return error
    return None


def check_rows(model: AbstractModel, batch: Batch) -> None:
    """Check `at` against the plates, and its numbers where they are known."""
    if not batch.rows:
        return
    plates = {p.name: p for p in describe(model, batch, random.key(0)).plates}
    for name, rows in batch.rows.items():
        if name not in plates:
            raise ValueError(
                f"at({name}=...) names no plate of the model, which has {sorted(plates)}."
            )
        if is_traced(rows):
            continue
        numbers, size = np.asarray(rows), plates[name].size
        if not numbers.size:
            raise ValueError(f"at({name}=...) names no row, but a plate holds at least one.")
        if not (numbers.min() >= 0 and numbers.max() < size):
            raise ValueError(
                f"at({name}=...) holds row numbers from {numbers.min()} to {numbers.max()}, but "
                f"the plate has rows 0 to {size - 1}."
            )
        if numbers.size >= size and np.unique(numbers).size < numbers.size:
            raise ValueError(
                f"at({name}=...) has {numbers.size} row numbers for a plate of {size} rows, and "
                "names some of them twice. To hold all rows, name each once."
            )


def _check_local(p: Plate, batch: Batch, size: int, *, same: bool) -> None:
    if p.size != size:
        raise ValueError(
            f"plate {p.name!r} has size {p.size} here, but the guide was built with parameters "
            f"for {size} rows of it: build a guide on these arguments, or keep the plate's size "
            f"and say which rows the arguments hold: gx.Batch(...).at({p.name}=row_numbers)."
        )
    given = batch.rows.get(p.name)
    fixed = same and p.rows < p.size and p.name not in batch.admitted
    if given is not None and fixed and given.shape[0] != p.rows:
        raise ValueError(
            f"at({p.name}=...) has {given.shape[0]} row numbers, but the arguments hold {p.rows} "
            "rows: give one number for each row."
        )


def _rows_unknown(p: Plate) -> ValueError:
    return ValueError(
        f"plate {p.name!r} holds {p.rows} of {p.size} rows and has latents, but it is not known "
        "which rows the arguments hold, so parameters and data would not match. Either say so: "
        f"gx.Batch(...).at({p.name}=row_numbers); or give the model all rows and let it take those "
        "of the plate: gx.subsample(y), or y[rows] with the rows that entering the plate gives."
    )
