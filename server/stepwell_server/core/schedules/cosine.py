"""Schedules that follow a half wave of the cosine."""

import math

from stepwell_server.core.schedules.definition import schedule


@schedule(
    reference="Loshchilov & Hutter 2017, SGDR, eq. 5 without restarts, https://arxiv.org/abs/1608.03983",
    matches="torch.optim.lr_scheduler.CosineAnnealingLR",
    levels={"eta_min"},
)
def cosine(t: float, initial: float, *, t_max: float, eta_min: float = 0.0, hold: bool = False) -> float:
    """Fall along a half cosine to eta_min at t_max, then rise again, or hold.

    f(t) = η + (initial - η) * (1 + cos(π t / T)) / 2, η = eta_min in the value's unit, T = t_max in clock units.
    It goes back up after T, with period 2T, as in PyTorch; hold stays at eta_min from T on, as in optax and Keras.
    """
    # The remainder is exact, so that a late clock loses no digits in the cosine.
    t = min(t, t_max) if hold else math.fmod(t, 2 * t_max)
    return eta_min + (initial - eta_min) * half_wave(t / t_max)


def check_cosine_decay(*, warmup_target: float | None, warmup_steps: float, **_: object) -> str | None:
    """Object to a warmup that goes nowhere."""
    if warmup_steps and warmup_target is None:
        return (
            f"'warmup_steps' is {warmup_steps:g} and 'warmup_target' is none, expected both or no warmup; give the "
            "value that the warmup ends at"
        )
    return None


@schedule(
    reference="https://keras.io/api/optimizers/learning_rate_schedules/cosine_decay/",
    matches="keras.optimizers.schedules.CosineDecay",
    levels={"warmup_target"},
    check=check_cosine_decay,
)
def cosine_decay(
    t: float,
    initial: float,
    *,
    decay_steps: float,
    alpha: float = 0.0,
    exponent: float = 1.0,
    warmup_target: float | None = None,
    warmup_steps: float = 0.0,
) -> float:
    """Fall along a half cosine to a share of the start, and hold it; before that, perhaps, a warmup.

    f(t) = start * ((1 - α) * ((1 + cos(π min(t, T) / T)) / 2)^exponent + α), T = decay_steps in clock units. Without
    warmup_target, start is the initial value. With it, in the value's unit, f goes linearly from the initial value to
    warmup_target over warmup_steps; that is the start, and the clock of the decay counts from there. α = alpha is a
    share of the start. optax's cosine_decay_schedule has no warmup, Keras's CosineDecay no exponent.
    """
    start = initial
    if warmup_target is not None:
        if t < warmup_steps:
            return initial + (warmup_target - initial) * (t / warmup_steps)
        start, t = warmup_target, t - warmup_steps
    wave = half_wave(min(t, decay_steps) / decay_steps)
    return start * ((1 - alpha) * math.pow(wave, exponent) + alpha)


def check_cosine_restarts(*, eta_min: float, alpha: float, **_: object) -> str | None:
    """Object to two floors."""
    if eta_min and alpha:
        return f"'eta_min' is {eta_min:g} and 'alpha' is {alpha:g}, expected one floor; set the other to 0"
    return None


@schedule(
    reference="Loshchilov & Hutter 2017, SGDR, eq. 5, https://arxiv.org/abs/1608.03983",
    matches="torch.optim.lr_scheduler.CosineAnnealingWarmRestarts",
    levels={"eta_min"},
    check=check_cosine_restarts,
)
def cosine_restarts(
    t: float,
    initial: float,
    *,
    t_0: float,
    t_mult: int = 1,
    eta_min: float = 0.0,
    m_mul: float = 1.0,
    alpha: float = 0.0,
) -> float:
    """Fall along a half cosine, jump back up, and again with a longer or lower wave.

    f(t) = η + (initial * m_mul^i - η) * (1 + cos(π c / T_i)) / 2, where c is the clock since restart i and
    T_i = t_0 * t_mult^i, in clock units. At a restart c = 0. η is eta_min, in the value's unit. With Keras's alpha,
    a share of the initial value, f(t) = initial * ((1 - α) * m_mul^i * (1 + cos(π c / T_i)) / 2 + α) instead.
    Keras's CosineDecayRestarts is t_mult=2 with alpha.
    """
    restarts, since, length = _find_restart(t, t_0, t_mult)
    peak, wave = math.pow(m_mul, restarts), half_wave(since / length)
    if alpha:
        return initial * ((1 - alpha) * peak * wave + alpha)
    return eta_min + (initial * peak - eta_min) * wave


def half_wave(share: float) -> float:
    """Go along half a cosine from 1 at share 0 to 0 at share 1."""
    return (1 + math.cos(math.pi * share)) / 2


def _find_restart(t: float, t_0: float, t_mult: float) -> tuple[float, float, float]:
    """Return how many restarts lie behind t, the clock since the last one, and the length of the present wave."""
    if t_mult == 1:
        return t // t_0, math.fmod(t, t_0), t_0
    # By subtraction, not by a logarithm: rounding puts torch's step(epoch) into the wrong wave at t = 1210 with
    # t_0 = 10 and t_mult = 3.
    restarts, length = 0.0, t_0
    while t >= length:
        t -= length
        length *= t_mult
        restarts += 1.0
    return restarts, t, length
