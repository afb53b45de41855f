"""What functions of a guide take first."""

from __future__ import annotations

from typing import Any

from .._guide.guide import AutoGuide
from .._types import require_key


def require_guide(who: str, guide: Any) -> None:
    """Check that a guide comes first.

    Raises:
        TypeError: If something else does.
    """
    if not isinstance(guide, AutoGuide):
        raise TypeError(f"{who} takes a guide first; got {type(guide).__name__}.")


def require_key_and_guide(who: str, key: Any, guide: Any) -> None:
    """Check that one random key comes first, then a guide.

    Raises:
        TypeError: If they do not.
    """
    if not isinstance(guide, AutoGuide):
        # By their types: the text of a guide, where the two are swapped, fills a page.
        raise TypeError(
            f"{who} takes a random key, then a guide; got {type(key).__name__} and "
            f"{type(guide).__name__}."
        )
    require_key(who, key)
