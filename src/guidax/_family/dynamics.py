"""The learned parameters of the moves of annealed importance sampling."""

from __future__ import annotations

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, Int

from .._numerics import from_host, inverse_softplus_of
from .._types import is_count, is_positive_number
from .dais_kernel import Gradient, dais

_SHARPNESS = 50.0  # of the corners of the step size's clip


class Dynamics(eqx.Module):
    """Step sizes, temperatures, damping, speed and gain of `dais`, from parameters without bounds.

    Speed, gain and the temperatures' increments are softplus, and the temperatures the increments'
    running sum over their total, times the last temperature, which is an exponential; the damping
    is logistic. The step size is a smooth clip, of slope about one inside: a logistic map, flat
    near zero where step sizes start, hardly moves, and a clip has no gradient beyond its bounds.
    Leading axes, if there are any, are those of rows that have parameters of their own.

    The last temperature starts at one, as in Zhang et al. 2021, and is learned. Held at one, what
    the last step adds to the bound vanishes to first order in its size, so that the noise of the
    gradients shrinks the step to nothing. Geffner and Domke 2021 do not meet this: the last
    temperature at which they move is learned, below one.

    Attributes:
        raw_speed: Speed of each coordinate.
        raw_gain: Gain of each coordinate.
        raw_increments: Increment of the temperature at each step.
        raw_last: Logarithm of the last temperature.
        raw_step_size: Step size of each step, in units of `eta_max`.
        raw_damping: Share of a momentum that is kept from step to step.
        eta_max: Bound of the step sizes.
        max_kick: As of `dais`.
        recompute: As of `dais`.
    """

    raw_speed: Float[Array, "*rows dim"]
    raw_gain: Float[Array, "*rows dim"]
    raw_increments: Float[Array, "*rows steps"]
    raw_last: Float[Array, "*rows"]
    raw_step_size: Float[Array, "*rows steps"]
    raw_damping: Float[Array, "*rows"]
    eta_max: float = eqx.field(static=True)
    max_kick: float | None = eqx.field(static=True, default=None)
    recompute: bool = eqx.field(static=True, default=False)

    @classmethod
    def start(
        cls, rows: tuple[int, ...], dim: int, dtype: DTypeLike, options: DynamicsOptions
    ) -> Dynamics:
        """Return moves with speed and gain one and evenly spaced temperatures up to one.

        Args:
            rows: Leading axes of rows that have parameters of their own.
            dim: Coordinates of one row.
            dtype: Of the parameters.
            options: How many steps, and where the other parameters start.
        """
        eta_max, gamma = options.eta_max, options.gamma_init

        def full(shape: tuple[int, ...], value: float) -> Array:
            return from_host(np.full(rows + shape, value, dtype))

        one = inverse_softplus_of(1.0)
        share = 0.1 if options.eta_init is None else options.eta_init / eta_max
        return cls(
            raw_speed=full((dim,), one),
            raw_gain=full((dim,), one),
            raw_increments=full((options.K,), one),
            raw_last=full((), 0.0),
            raw_step_size=full((options.K,), _inverse_soft_clip_of(share)),
            raw_damping=full((), math.log(gamma / (1 - gamma))),
            eta_max=float(eta_max),
            max_kick=None if options.max_kick is None else float(options.max_kick),
            recompute=options.recompute,
        )

    @property
    def num_steps(self) -> int:
        """K: how many steps, and how many arrays of noise `run` takes."""
        return self.raw_step_size.shape[-1]

    def values(self) -> dict[str, Array]:
        """Return step sizes, temperatures, damping, speed and gain, as `dais` takes them.

        Axes of rows come first, that of steps or coordinates last.
        """
        increments = jnp.cumsum(jax.nn.softplus(self.raw_increments), axis=-1)
        shares = increments / increments[..., -1:]
        return {
            "step_size": self.eta_max * soft_clip(self.raw_step_size),
            "temperatures": shares * jnp.exp(self.raw_last)[..., None],
            "damping": jax.nn.sigmoid(self.raw_damping),
            "speed": jax.nn.softplus(self.raw_speed),
            "gain": jax.nn.softplus(self.raw_gain),
        }

    def at_rows(self, held: int, rows: Int[Array, " _held"] | None, size: int) -> Dynamics:
        """Return the parameters of some rows, each row's own or shared by all.

        Args:
            held: How many rows.
            rows: Their numbers; None for all, in order.
            size: How many rows there are. Where the parameters hold fewer, they hold those alone.
        """
        if not self.raw_damping.ndim:
            return jax.tree.map(lambda x: jnp.broadcast_to(x, (held, *x.shape)), self)
        if rows is None or self.raw_damping.shape[0] < size:
            return self
        return jax.tree.map(lambda x: jnp.take(x, rows, axis=0), self)

    def run(
        self,
        grad_log_target: Gradient,
        grad_log_base: Gradient,
        z: Float[Array, "*rows dim"],
        noise: Float[Array, "steps *rows dim"],
    ) -> tuple[Float[Array, "*rows dim"], Float[Array, "*rows"]]:
        """Run `dais` with these parameters: returns the moved draws and the log factor."""
        values = self.values()
        return dais(
            grad_log_target,
            grad_log_base,
            z,
            noise,
            jnp.moveaxis(values["step_size"], -1, 0),
            values["speed"],
            values["gain"],
            values["damping"],
            jnp.moveaxis(values["temperatures"], -1, 0),
            max_kick=self.max_kick,
            recompute=self.recompute,
        )


@dataclasses.dataclass(frozen=True)
class DynamicsOptions:
    """Options of the moves, which are made before the search of a start: a wrong one costs none.

    Attributes:
        K: Number of steps.
        eta_init: Starting step size; None for a tenth of `eta_max`.
        eta_max: Bound of the step sizes.
        gamma_init: Starting damping.
        max_kick: As of `dais`.
        recompute: As of `dais`.

    Raises:
        ValueError: If one is out of range.
    """

    K: int
    eta_init: float | None
    eta_max: float
    gamma_init: float
    max_kick: float | None = None
    recompute: bool = False

    def __post_init__(self):
        K, eta_init, eta_max = self.K, self.eta_init, self.eta_max
        gamma_init, max_kick = self.gamma_init, self.max_kick
        if not is_count(K):
            raise ValueError(f"K counts steps, so it is a positive integer; got {K!r}. Try 4.")
        if not is_positive_number(eta_max):
            raise ValueError(
                "eta_max bounds the step sizes, so it is a positive number; "
                f"got {eta_max!r}. Try 0.1."
            )
        if eta_init is not None and not (is_positive_number(eta_init) and eta_init < eta_max):
            raise ValueError(
                f"eta_init is a step size, so it lies between 0 and eta_max = {eta_max!r}, without "
                f"them, or is None for a tenth of it; got {eta_init!r}."
            )
        if not (is_positive_number(gamma_init) and gamma_init < 1):
            raise ValueError(
                "gamma_init is the share of a momentum that is kept, so it lies between 0 and 1, "
                f"without them; got {gamma_init!r}. Try 0.9."
            )
        if max_kick is not None and not is_positive_number(max_kick):
            raise ValueError(
                f"max_kick bounds a change of momentum, so it is a positive number, or None for no "
                f"bound; got {max_kick!r}. Try 5."
            )


def soft_clip(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Map the line onto (0, 1), smoothly, with slope about one inside."""
    low, high = jax.nn.softplus(_SHARPNESS * x), jax.nn.softplus(_SHARPNESS * (x - 1))
    return (low - high) / _SHARPNESS


def inverse_soft_clip(y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return `x` with `soft_clip(x) = y`, for y in (0, 1).

    With `c` the sharpness, `exp(c x) = (exp(c y) - 1) / (1 - exp(c (y - 1)))`.
    """
    ends = jnp.log(-jnp.expm1(-_SHARPNESS * y)) - jnp.log(-jnp.expm1(_SHARPNESS * (y - 1)))
    return y + ends / _SHARPNESS


def _inverse_soft_clip_of(y: float) -> float:
    """The same on the host, where it compiles nothing."""
    ends = math.log(-math.expm1(-_SHARPNESS * y)) - math.log(-math.expm1(_SHARPNESS * (y - 1)))
    return y + ends / _SHARPNESS
