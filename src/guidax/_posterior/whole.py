"""All rows of every plate, or an error: a part of the data has another posterior."""

from __future__ import annotations

from jaxtyping import Array

from .._guide.guide import AutoGuide
from .._model.batch import Batch
from .._types import Key


def whole_indices(guide: AutoGuide, key: Key, batch: Batch, what: str) -> dict[str, Array]:
    """Return the row numbers of plates, where every plate holds all its rows.

    Args:
        guide: The guide.
        key: For a model that draws rows.
        batch: The arguments, marked by `guide.admit`.
        what: Subject and verb of the error: "a diagnosis is of" the posterior of all data.

    Raises:
        ValueError: If a plate holds some of its rows.
    """
    indices = guide.indices(key, batch, whole=True)
    for p in guide.plates(batch):
        rows = indices[p.name].shape[0] if p.name in indices else p.rows
        if rows < p.size:
            raise ValueError(
                f"{what} the posterior of all data, but plate {p.name!r} holds {rows} of {p.size} "
                "rows. Where the model takes the rows of its data itself, ask for all of them: "
                f"gx.Batch(...).at({p.name}=jnp.arange({p.size})). Else pass arguments that hold "
                "all rows."
            )
    return indices
