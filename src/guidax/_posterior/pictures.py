"""Pictures, thin over matplotlib: each returns the axes that it drew on and changes no setting."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from .._types import names_of, positive
from .diagnose import COVERS
from .pareto import tail_length

_PANELS = 24  # of `marginals`, at most
_COORDINATES = 8  # of `pairs`, at most
_POINTS = 2000  # in one panel of `pairs`, at most
_MEANS = 2000  # of `loss`, at most
_GUIDE, _REFERENCE = "C0", "0.15"


def loss(result: Any, *, smooth: int | None = None, ax: Any = None) -> Any:
    """Draw the loss over the steps of a fit, with its running mean.

    The axis leaves out the largest 5 % of the losses, since those of the first steps are often
    thousands of times larger, and the smallest 0.5 %; a line above tells the largest.

    Args:
        result: What `gx.fit` returned, or losses in nats, of shape `(steps,)`; those of an ensemble
            have shape `(members, steps)`.
        smooth: How many steps the running mean takes, centred; None for a fiftieth of them, and 1
            for no mean.
        ax: Matplotlib axes to draw on; None for a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If `smooth` is no integer.
        ValueError: If `smooth` is less than 1, or no loss is finite.
    """
    losses = np.atleast_2d(np.asarray(getattr(result, "losses", result), float))
    finite = losses[np.isfinite(losses)]
    if losses.ndim != 2 or not finite.size:
        raise ValueError(
            f"loss draws losses of shape (steps,) or (members, steps), of which some are finite; "
            f"got shape {losses.shape} with {finite.size} finite ones."
        )
    window = max(losses.shape[1] // 50, 1) if smooth is None else positive("smooth", smooth)
    ax = _new_axes(ax)
    steps = np.arange(losses.shape[1])
    for i, member in enumerate(losses):
        color = f"C{i % 10}"
        if window == 1:
            ax.plot(steps, member, color=color, lw=1)
            continue
        label = f"mean of {window} steps" if i == 0 else None
        ax.plot(steps, member, color=color, lw=0.6, alpha=0.35, zorder=1)
        ax.plot(*_running_mean(member, window), color=color, lw=1.6, label=label)
    low, high = np.quantile(finite, [0.005, 0.95])
    margin = 0.05 * (high - low) or 0.5
    ax.set_ylim(low - margin, high + margin)
    ax.set(xlabel="step", ylabel="loss (nats)")
    ax.margins(x=0.01)
    if finite.max() > high + 2 * (high - low):
        words = f"the largest loss, {finite.max():.3g}, is above the picture"
        ax.set_title(words, loc="left", color="0.35", fontsize="small")
    if window > 1:
        ax.legend(loc="upper right", frameon=False)
    return ax


def marginals(
    draws: Mapping[str, ArrayLike],
    reference: Mapping[str, ArrayLike] | None = None,
    *,
    sites: Iterable[str] | None = None,
    labels: tuple[str, str] = ("guide", "reference"),
    axes: Any = None,
) -> Any:
    """Draw the marginal of each coordinate, beside that of a reference where there is one.

    Args:
        draws: Site to draws, of shape `(draws, ...)`, as `guide.sample_posterior` returns them.
        reference: The same from elsewhere, such as MCMC; any number of draws, and sites that are
            missing are left out.
        sites: Names of the sites to draw; None for all.
        labels: What the legend calls the two.
        axes: Array of matplotlib axes, one for each coordinate; None for a new figure, with the
            first 24 coordinates.

    Returns:
        The axes, a vector with one for each coordinate.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If `sites` is a string.
        ValueError: If `sites` names a site that is not there, there is nothing to draw, or there
            are too few axes.
    """
    found = _some_coordinates(draws, sites)
    known = {} if reference is None else dict(_coordinates(reference, None))
    total = len(found)
    found = found if axes is not None else found[:_PANELS]
    panels = _grid(len(found), axes)
    for ax, (name, values) in zip(panels, found, strict=False):
        _histograms(ax, values, known.get(name))
        ax.set_title(name, fontsize="medium")
        for side in ("left", "top", "right"):
            ax.spines[side].set_visible(False)
    if any(name in known for name, _ in found):
        _legend(panels[0], labels)
    if axes is None and total > len(found):
        panels[0].figure.suptitle(f"the first {len(found)} of {total} coordinates")
    return panels


def pairs(
    draws: Mapping[str, ArrayLike],
    reference: Mapping[str, ArrayLike] | None = None,
    *,
    sites: Iterable[str] | None = None,
    labels: tuple[str, str] = ("guide", "reference"),
    axes: Any = None,
) -> Any:
    """Draw each coordinate against each other one, and its marginal on the diagonal.

    The axes leave out the outermost 0.2 % of draws on either side. A panel shows 2,000 of them at
    most.

    Args:
        draws: Site to draws, of shape `(draws, ...)`, as `guide.sample_posterior` returns them.
        reference: The same from elsewhere, such as MCMC, drawn beneath; it has the same sites.
        sites: Names of the sites to draw; None for all.
        labels: What the legend calls the two.
        axes: Square array of matplotlib axes; None for a new figure, with the first 8 coordinates.

    Returns:
        The axes, of shape `(coordinates, coordinates)`; those above the diagonal are switched off.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If `sites` is a string.
        ValueError: If `sites` names a site that is not there, there is nothing to draw, or the axes
            have another shape.
    """
    found = _some_coordinates(draws, sites)
    known = {} if reference is None else dict(_coordinates(reference, None))
    total = len(found)
    found = found if axes is not None else found[:_COORDINATES]
    names, n = [name for name, _ in found], len(found)
    if missing := [name for name in names if known and name not in known]:
        raise ValueError(f"the reference has no draws of {missing}: leave them out with sites=.")
    panels = _square(n, axes)
    limits = {name: _limits(x, known.get(name)) for name, x in found}
    for i, (below, y) in enumerate(found):
        for j, (across, x) in enumerate(found):
            ax = panels[i, j]
            if j > i:
                ax.set_axis_off()
                continue
            if i == j:
                _histograms(ax, x, known.get(across))
            else:
                if known:
                    _scatter(ax, known[across], known[below], _REFERENCE, 0.25)
                _scatter(ax, x, y, _GUIDE, 0.35)
                ax.set_ylim(limits[below])
            ax.set_xlim(limits[across])
            ax.tick_params(labelbottom=i == n - 1, labelleft=j == 0 and i > 0, labelsize="small")
            if i == n - 1:
                ax.set_xlabel(across)
            if j == 0 and i > 0:
                ax.set_ylabel(below)
    if known:
        _legend(panels[0, 0], labels)
    if axes is None and total > n:
        panels[0, 0].figure.suptitle(f"the first {n} of {total} coordinates")
    return panels


def khat(diagnoses: Any, *, ax: Any = None) -> Any:
    """Draw the importance weights from the largest down, whose tail k-hat is the shape of.

    On these axes a tail of shape k is a line of slope `-k`. A guide that fits well is flat: every
    draw has weight one. A dotted line shows the slope -0.7 from where a tail begins: estimates
    from weights that rise more steeply than it cannot be relied on (Vehtari et al. 2024, "Pareto
    smoothed importance sampling", section 3).

    Args:
        diagnoses: What `gx.diagnose` returned, or anything with the attributes `khat`, a number,
            and `log_weights`, a vector; or a dictionary of them, by label.
        ax: Matplotlib axes to draw on; None for a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there are no two finite log weights, or they are those of several members.
    """
    several = diagnoses if isinstance(diagnoses, Mapping) else {"": diagnoses}
    ax, bottom, top = _new_axes(ax), 0.0, 0.0
    for i, (label, diagnosis) in enumerate(several.items()):
        log_weights = np.asarray(diagnosis.log_weights, float)
        if log_weights.ndim != 1 or np.isfinite(log_weights).sum() < 2:
            raise ValueError(
                f"khat draws the log weights of one guide, a vector; got shape "
                f"{log_weights.shape} with {np.isfinite(log_weights).sum()} finite ones."
            )
        log_weights = np.sort(log_weights[np.isfinite(log_weights)])[::-1]
        size = len(log_weights)
        # Times the number of draws: an even weight is one. In base 10, which never overflows.
        largest = log_weights[0]
        log_mean = largest + np.log(np.mean(np.exp(log_weights - largest)))
        height = (log_weights - log_mean) / math.log(10)
        rank = np.log10(np.arange(1, size + 1))
        bottom = min(bottom, height[int(0.98 * (size - 1))])  # the least say nothing of the tail
        top = max(top, height[0])
        name = f"{label}: " if label else ""
        words = rf"{name}$\hat k$ = {float(np.asarray(diagnosis.khat)):.2f}"
        ax.plot(rank, height, color=f"C{i % 10}", lw=1.8, label=words)
        tail = tail_length(size) - 1
        limit = height[tail] + COVERS * (rank[tail] - rank[: tail + 1])
        slope = f"slope −{COVERS} from the start of the tail" if i == len(several) - 1 else None
        ax.plot(rank[: tail + 1], limit, color="0.4", ls=":", lw=1.2, label=slope)
    ax.axhline(0, color="0.7", lw=0.8, zorder=0)
    ax.set_ylim(max(bottom, -3.0) - 0.3, top + 0.3)
    _powers_of_ten(ax)
    ax.set(xlabel="draw, from the largest weight down", ylabel="weight, relative to an even one")
    ax.legend(frameon=False, loc="lower left")
    return ax


def _running_mean(x: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Return steps, and at each the mean of the finite values in a centred window, cut at the ends.

    At 2,000 steps at most: at all of them it would cost a window for each.
    """
    at = np.unique(np.linspace(0, len(x) - 1, min(len(x), _MEANS)).round().astype(int))
    window = min(window, len(x))
    finite = np.isfinite(x)
    kept = np.where(finite, x, 0.0)
    # No difference of cumulative sums: a huge first loss would drown all later ones.
    spans = [slice(max(i - window // 2, 0), i - window // 2 + window) for i in at]
    means = np.array([kept[span].sum() / max(finite[span].sum(), 1) for span in spans])
    return at, np.where(finite[at], means, np.nan)


def _powers_of_ten(ax: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
        axis.set_major_formatter(FuncFormatter(lambda x, _: rf"$10^{{{round(x)}}}$"))


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot
    except ImportError as error:
        raise ImportError('gx.plot needs matplotlib: pip install "guidax[plot]".') from error
    return matplotlib.pyplot


def _new_axes(ax: Any) -> Any:
    return _pyplot().subplots(layout="constrained")[1] if ax is None else ax


def _grid(count: int, axes: Any) -> np.ndarray:
    """Return a vector of axes: those given, or new ones, at most four in a row."""
    if axes is not None:
        panels = np.ravel(axes)
        if len(panels) < count:
            raise ValueError(f"there are {count} coordinates and {len(panels)} axes: give more.")
        return panels[:count]
    columns = min(count, 4)
    rows = math.ceil(count / columns)
    size = (2.6 * columns, 2.1 * rows)
    made = _pyplot().subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    panels = np.ravel(made[1])
    for ax in panels[count:]:
        ax.set_axis_off()
    return panels[:count]


def _square(count: int, axes: Any) -> np.ndarray:
    if axes is None:
        size = (1.9 * count + 0.6, 1.9 * count + 0.4)
        options = {"figsize": size, "squeeze": False, "layout": "constrained"}
        return _pyplot().subplots(count, count, **options)[1]
    panels = np.asarray(axes)
    if panels.shape != (count, count):
        raise ValueError(
            f"{count} coordinates need axes of shape {(count, count)}; got {panels.shape}."
        )
    return panels


def _some_coordinates(
    draws: Mapping[str, ArrayLike], sites: Iterable[str] | None
) -> list[tuple[str, np.ndarray]]:
    """Return name and draws of each coordinate, of which there is one at least.

    Raises:
        ValueError: If there is none, a site is not there, or has no axis of draws.
    """
    names = list(draws if sites is None else names_of("sites", sites))
    found = list(_coordinates(draws, names))
    if not found:
        raise ValueError(
            f"there is nothing to draw: the sites {names} have no coordinates; draws holds "
            f"{sorted(draws)}."
        )
    return found


def _coordinates(
    draws: Mapping[str, ArrayLike], sites: Iterable[str] | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and draws of each coordinate.

    Raises:
        ValueError: If a site is not there, or has no axis of draws.
    """
    names = list(draws if sites is None else names_of("sites", sites))
    if unknown := [name for name in names if name not in draws]:
        raise ValueError(f"there are no draws of {unknown}; there are {sorted(draws)}.")
    for name in names:
        values = np.asarray(draws[name], float)
        if values.ndim == 0 or not len(values):
            raise ValueError(f"site {name!r} has no draws: the first axis is that of draws.")
        for index in np.ndindex(values.shape[1:]):
            label = f"{name}[{','.join(map(str, index))}]" if index else name
            yield label, values[(slice(None), *index)]


def _limits(*samples: np.ndarray | None) -> tuple[float, float]:
    """Return bounds that hold all but the outermost draws of each sample."""
    kept = [x[np.isfinite(x)] for x in samples if x is not None]
    kept = [x for x in kept if x.size] or [np.zeros(1)]
    low = min(float(np.quantile(x, 0.002)) for x in kept)
    high = max(float(np.quantile(x, 0.998)) for x in kept)
    return (low, high) if high > low else (low - 0.5, high + 0.5)  # of a point


def _histograms(ax: Any, values: np.ndarray, other: np.ndarray | None) -> None:
    """Draw each sample over bins of its own: one may be far narrower than the other."""
    styles = {"color": _GUIDE, "alpha": 0.6}, {"color": _REFERENCE, "lw": 1.4, "histtype": "step"}
    for x, style in zip((values, other), styles, strict=True):
        if x is not None:
            low, high = _limits(x)
            inside = x[(x >= low) & (x <= high)]
            bins = int(np.clip(inside.size**0.5, 10, 50))
            ax.hist(inside, bins, range=(low, high), density=True, **style)
    ax.set_xlim(_limits(values, other))
    ax.set_yticks([])


def _scatter(ax: Any, x: np.ndarray, y: np.ndarray, color: str, alpha: float) -> None:
    take = slice(None, None, math.ceil(len(x) / _POINTS))
    ax.scatter(x[take], y[take], s=4, color=color, alpha=alpha, linewidths=0, rasterized=True)


def _legend(ax: Any, labels: tuple[str, str]) -> None:
    """Put the two names above the first panels, as a legend of the whole figure."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [Patch(color=_GUIDE, alpha=0.6), Line2D([], [], color=_REFERENCE, lw=1.4)]
    ax.figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
