"""Schedules of two and three phases with a warmup of their own: a rise to a peak, perhaps a plain, a decay."""

import math

from stepwell_server.core.schedules.cosine import half_wave
from stepwell_server.core.schedules.decay import exponential_decay
from stepwell_server.core.schedules.definition import schedule


@schedule(
    reference="Vaswani et al. 2017, Attention is all you need, eq. 3, https://arxiv.org/abs/1706.03762",
    absolute=True,
)
def noam(t: float, initial: float, *, d_model: float, warmup: float = 4000.0, factor: float = 1.0) -> float:
    """Rise linearly, then fall like one over the root of the clock, as the first Transformer was trained.

    f(t) = factor * d_model^-½ * min(s^-½, s * w^-1.5), s = t + 1, so that the first update is not lost; w = warmup in
    clock units, 0 has none. The peak is at t = w - 1. The initial value is not used.
    """
    s = t + 1
    shape = 1 / math.sqrt(s)
    if warmup > 0:
        shape = min(shape, s / warmup / math.sqrt(warmup))
    return factor / math.sqrt(d_model) * shape


def check_warmup_cosine_decay(*, warmup_steps: float, decay_steps: float, **_: object) -> str | None:
    """Object to a decay that ends with its warmup."""
    if decay_steps <= warmup_steps:
        return (
            f"'decay_steps' is {decay_steps:g} and 'warmup_steps' {warmup_steps:g}, expected decay_steps > "
            "warmup_steps; it counts the warmup in"
        )
    return None


@schedule(
    reference="https://optax.readthedocs.io/en/latest/api/optimizer_schedules.html#optax.schedules.warmup_cosine_decay_schedule",
    matches="optax.warmup_cosine_decay_schedule",
    absolute=True,
    check=check_warmup_cosine_decay,
)
def warmup_cosine_decay(
    t: float,
    initial: float,
    *,
    init_value: float,
    peak_value: float,
    warmup_steps: float,
    decay_steps: float,
    end_value: float = 0.0,
    exponent: float = 1.0,
) -> float:
    """Rise linearly to a peak, then fall along a half cosine to an end value.

    f(t) goes from init_value to peak_value in w = warmup_steps, then f(t) = e + (peak_value - e) * ((1 + cos(π q)) /
    2)^exponent, q = min(1, (t - w) / (T - w)), e = end_value. T = decay_steps counts the warmup in; w and T in clock
    units, the values in the value's unit. The initial value is not used.
    """
    if t < warmup_steps:
        return init_value + (peak_value - init_value) * (t / warmup_steps)
    share = min(1.0, (t - warmup_steps) / (decay_steps - warmup_steps))
    return end_value + (peak_value - end_value) * math.pow(half_wave(share), exponent)


@schedule(
    reference="https://optax.readthedocs.io/en/latest/api/optimizer_schedules.html#optax.schedules.warmup_exponential_decay_schedule",
    matches="optax.warmup_exponential_decay_schedule",
    absolute=True,
)
def warmup_exponential_decay(
    t: float,
    initial: float,
    *,
    init_value: float,
    peak_value: float,
    warmup_steps: float,
    transition_steps: float,
    decay_rate: float,
    transition_begin: float = 0.0,
    staircase: bool = False,
    end_value: float | None = None,
) -> float:
    """Rise linearly to a peak, then decay exponentially.

    f(t) goes from init_value to peak_value in w = warmup_steps, then it is exponential_decay from peak_value, with its
    clock at t - w: transition_begin counts from the end of the warmup. Lengths in clock units, values in the value's
    unit. The initial value is not used.
    """
    if t < warmup_steps:
        return init_value + (peak_value - init_value) * (t / warmup_steps)
    return exponential_decay(
        t - warmup_steps,
        peak_value,
        transition_steps=transition_steps,
        decay_rate=decay_rate,
        transition_begin=transition_begin,
        staircase=staircase,
        end_value=end_value,
    )


SHAPES = ("linear", "cosine", "1-sqrt")


@schedule(
    reference="Hu et al. 2024, MiniCPM, section 4 (warmup, stable, decay), https://arxiv.org/abs/2404.06395",
    matches="transformers.get_wsd_schedule",
    choices={"warmup_type": SHAPES, "decay_type": SHAPES},
)
def wsd(
    t: float,
    initial: float,
    *,
    num_warmup_steps: float,
    num_stable_steps: float,
    num_decay_steps: float,
    warmup_type: str = "linear",
    decay_type: str = "cosine",
    min_lr_ratio: float = 0.0,
    num_cycles: float = 0.5,
) -> float:
    """Rise to the value, hold it, and fall: warmup, stable, decay.

    f(t) = initial * (m + (1 - m) * a), m = min_lr_ratio. In the warmup, with x = t / num_warmup_steps, a = x (linear),
    (1 - cos(π x)) / 2 (cosine) or 1 - sqrt(1 - x) (1-sqrt); then 1 for num_stable_steps; in the decay, with x from 0 to
    1 over num_decay_steps, a = 1 - x (linear), (1 + cos(2π * num_cycles * x)) / 2 (cosine) or 1 - sqrt(x) (1-sqrt);
    after that 0. Lengths in clock units. The warmup starts at m, too.
    """
    into_decay = t - num_warmup_steps - num_stable_steps
    if t < num_warmup_steps:
        left = 1 - t / num_warmup_steps
        shape = {"linear": 1 - left, "cosine": half_wave(left), "1-sqrt": 1 - math.sqrt(left)}[warmup_type]
    elif into_decay < 0:
        shape = 1.0
    elif into_decay < num_decay_steps:
        share = into_decay / num_decay_steps
        wave = half_wave(2 * num_cycles * share)
        shape = {"linear": 1 - share, "cosine": wave, "1-sqrt": 1 - math.sqrt(share)}[decay_type]
    else:
        shape = 0.0
    return initial * (min_lr_ratio + (1 - min_lr_ratio) * shape)
