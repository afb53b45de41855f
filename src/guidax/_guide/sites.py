"""Whether what is to draw latents draws those of the model."""

from __future__ import annotations

from collections.abc import Sequence

from .._model.trace import LatentSpec


def require_sites(
    what: str,
    drawn: Sequence[LatentSpec],
    latents: Sequence[LatentSpec],
    advice: str,
    *,
    facts: tuple[str, ...] = ("shape", "plates", "dtype"),
    is_part: bool = False,
) -> None:
    """Refuse what draws other sites than the latents, or the same ones otherwise.

    Args:
        what: What draws, as the user knows it: the name of an argument, say.
        drawn: What it draws.
        latents: What it is to draw.
        advice: What to do about it: a sentence.
        facts: What must agree, site by site.
        is_part: Whether it may leave out some.

    Raises:
        ValueError: If it does not draw them.
    """
    own, asked = ({s.name: s for s in sites} for sites in (drawn, latents))
    lacking, unknown = sorted(asked.keys() - own.keys()), sorted(own.keys() - asked.keys())
    problems = [f"it lacks {lacking}"] if lacking and not is_part else []
    problems += [f"{unknown} are not among them"] if unknown else []
    for name in (n for n in own if n in asked):
        for fact in facts:
            one, other = (getattr(sites[name], fact) for sites in (own, asked))
            if one != other:
                problems.append(f"in unconstrained space {name!r} has {fact} {one}, not {other}")
    if problems:
        raise ValueError(
            f"{what} must draw {'some of ' if is_part else ''}the latents {sorted(asked)}: "
            f"{'; '.join(problems)}. {advice}"
        )
