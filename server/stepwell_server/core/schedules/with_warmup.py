"""Transformers' schedules: factors on the value that rise from 0 over num_warmup_steps, then hold or fall.

num_warmup_steps w and num_training_steps N are in clock units, and N counts the warmup in. Every one of them is 0 at
clock 0 if there is a warmup: the first update changes nothing. Transformers divides by max(1, w) and max(1, N - w);
here only a length of 0 counts as 1, so that half an epoch is a fair length. That is the same for whole numbers.
"""

import math

from stepwell_server.core.schedules.cosine import half_wave
from stepwell_server.core.schedules.definition import schedule

TRANSFORMERS = "https://huggingface.co/docs/transformers/main_classes/optimizer_schedules"


def check_training_steps(*, num_warmup_steps: float, num_training_steps: float, **_: object) -> str | None:
    """Object to a training that ends within its warmup."""
    if num_training_steps < num_warmup_steps:
        return (
            f"'num_training_steps' is {num_training_steps:g} and 'num_warmup_steps' {num_warmup_steps:g}, expected "
            "num_training_steps >= num_warmup_steps; it counts the warmup in"
        )
    return None


@schedule(reference=TRANSFORMERS, matches="transformers.get_constant_schedule_with_warmup")
def constant_with_warmup(t: float, initial: float, *, num_warmup_steps: float) -> float:
    """Rise linearly from 0 to the value, and hold it.

    f(t) = initial * t / w for t < w = num_warmup_steps, then initial. w in clock units.
    """
    return initial * (t / num_warmup_steps) if t < num_warmup_steps else initial


@schedule(reference=TRANSFORMERS, matches="transformers.get_linear_schedule_with_warmup", check=check_training_steps)
def linear_with_warmup(t: float, initial: float, *, num_warmup_steps: float, num_training_steps: float) -> float:
    """Rise linearly from 0 to the value, and fall linearly back to 0.

    f(t) = initial * t / w for t < w = num_warmup_steps, then initial * max(0, N - t) / (N - w), N =
    num_training_steps, both in clock units: 0 from N on. N = w is 0 at once after the warmup.
    """
    if t < num_warmup_steps:
        return initial * (t / num_warmup_steps)
    return initial * max(0.0, num_training_steps - t) / _length(num_warmup_steps, num_training_steps)


@schedule(reference=TRANSFORMERS, matches="transformers.get_cosine_schedule_with_warmup", check=check_training_steps)
def cosine_with_warmup(
    t: float, initial: float, *, num_warmup_steps: float, num_training_steps: float, num_cycles: float = 0.5
) -> float:
    """Rise linearly from 0 to the value, and swing down along a cosine.

    f(t) = initial * t / w for t < w = num_warmup_steps, then initial * (1 + cos(2π * cycles * q)) / 2, q = (t - w) /
    (N - w), N = num_training_steps, in clock units. It goes on after N, and with half a cycle rises again, as in
    transformers. cycles = num_cycles.
    """
    return _cosine(t, initial, 0.0, num_warmup_steps, num_training_steps, num_cycles)


def check_cosine_with_min_lr(*, min_lr: float | None, min_lr_rate: float | None, **steps: float) -> str | None:
    """Object to two floors, and to none."""
    if (min_lr is None) == (min_lr_rate is None):
        return (
            f"{'neither' if min_lr is None else 'both'} of 'min_lr' and 'min_lr_rate' given, expected exactly one; "
            "min_lr_rate is a share of the initial value"
        )
    return check_training_steps(**steps)


@schedule(
    reference=TRANSFORMERS,
    matches="transformers.optimization.get_cosine_with_min_lr_schedule_with_warmup",
    levels={"min_lr"},
    check=check_cosine_with_min_lr,
)
def cosine_with_min_lr(
    t: float,
    initial: float,
    *,
    num_warmup_steps: float,
    num_training_steps: float,
    num_cycles: float = 0.5,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
) -> float:
    """Rise linearly from 0 to the value, and swing down along a cosine to a floor.

    As cosine_with_warmup, but after the warmup f(t) = m + (initial - m) * (1 + cos(2π * cycles * q)) / 2, where m is
    min_lr, in the value's unit, or initial * min_lr_rate: exactly one is given. The warmup starts from 0, not from m.
    """
    floor = min_lr if min_lr is not None else initial * (min_lr_rate or 0.0)
    return _cosine(t, initial, floor, num_warmup_steps, num_training_steps, num_cycles)


@schedule(
    reference=TRANSFORMERS,
    matches="transformers.get_cosine_with_hard_restarts_schedule_with_warmup",
    check=check_training_steps,
)
def cosine_with_hard_restarts(
    t: float, initial: float, *, num_warmup_steps: float, num_training_steps: float, num_cycles: float = 1.0
) -> float:
    """Rise linearly from 0 to the value, fall along half a cosine, jump back up, and again.

    f(t) = initial * t / w for t < w = num_warmup_steps, then initial * (1 + cos(π * (cycles * q mod 1))) / 2, q = (t -
    w) / (N - w), N = num_training_steps, in clock units; 0 from N on. cycles = num_cycles.
    """
    if t < num_warmup_steps:
        return initial * (t / num_warmup_steps)
    since, length = t - num_warmup_steps, _length(num_warmup_steps, num_training_steps)
    if since >= length:
        return 0.0
    # The remainder before the division is exact for whole numbers: 49 * (1 / 49) rounds to below 1.
    return initial * half_wave(math.fmod(num_cycles * since, length) / length)


@schedule(
    reference=TRANSFORMERS,
    matches="transformers.get_polynomial_decay_schedule_with_warmup",
    levels={"lr_end"},
    check=check_training_steps,
)
def polynomial_with_warmup(
    t: float,
    initial: float,
    *,
    num_warmup_steps: float,
    num_training_steps: float,
    lr_end: float = 1e-7,
    power: float = 1.0,
) -> float:
    """Rise linearly from 0 to the value, and fall along a power to an end value.

    f(t) = initial * t / w for t < w = num_warmup_steps, then lr_end + (initial - lr_end) * ((N - t) / (N - w))^power
    until N = num_training_steps, then lr_end, in the value's unit. w and N in clock units. N = w is lr_end at once
    after the warmup, where transformers divides by 0.
    """
    if t < num_warmup_steps:
        return initial * (t / num_warmup_steps)
    if t > num_training_steps or num_training_steps == num_warmup_steps:
        return lr_end
    left = (num_training_steps - t) / (num_training_steps - num_warmup_steps)
    return lr_end + (initial - lr_end) * math.pow(left, power)


@schedule(reference=TRANSFORMERS, matches="transformers.get_inverse_sqrt_schedule")
def inverse_sqrt(t: float, initial: float, *, num_warmup_steps: float, timescale: float | None = None) -> float:
    """Rise linearly from 0 to the value, and fall like one over the root of the clock.

    f(t) = initial * t / w for t < w = num_warmup_steps, then initial / sqrt(1 + (t - w) / s), s = timescale, or none:
    w, or 10,000 without a warmup. w and s in clock units.
    """
    if t < num_warmup_steps:
        return initial * (t / num_warmup_steps)
    if timescale is None:
        timescale = num_warmup_steps or 10_000.0
    return initial / math.sqrt(1 + (t - num_warmup_steps) / timescale)


def _cosine(t: float, initial: float, floor: float, warmup: float, training: float, cycles: float) -> float:
    if t < warmup:
        return initial * (t / warmup)
    return floor + (initial - floor) * half_wave(2 * cycles * (t - warmup) / _length(warmup, training))


def _length(warmup: float, training: float) -> float:
    """What lies between the warmup and the end; 1 for nothing, as in transformers."""
    return (training - warmup) or 1.0
