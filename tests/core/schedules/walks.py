"""Every schedule, written from the catalogue a second time as a walk along the clock, one unit after the other.

A row of ROWS is how to draw arguments, and the walk that yields f(0), f(1), ... from them.
"""

import cmath
import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import chain, islice, pairwise, repeat
from random import Random
from typing import Any

import numpy as np

STEPS = 1000

ROWS: dict[str, tuple[Callable[[Random], dict[str, Any]], Callable[..., Iterator[float]]]] = {}


def row(draw: Callable[[Random], dict[str, Any]]) -> Callable[[Any], Any]:
    def enter(walk: Callable[..., Iterator[float]]) -> Callable[..., Iterator[float]]:
        ROWS[walk.__name__.removeprefix("walk_")] = (draw, walk)
        return walk

    return enter


@row(lambda r: {"factor": r.uniform(0, 2), "total_iters": r.randint(0, 1200)} if r.random() < 0.9 else {})
def walk_constant(lr, factor=1, total_iters=0):
    yield from [lr * factor] * total_iters
    while True:
        yield lr


@row(lambda r: {"step_size": r.randint(1, 300), "gamma": r.uniform(0.1, 1.1)})
def walk_step(lr, step_size, gamma):
    while True:
        yield from [lr] * step_size
        lr *= gamma


@row(lambda r: {"milestones": sorted(r.choices(range(1100), k=r.randint(0, 6))), "gamma": r.uniform(0.1, 1.5)})
def walk_multistep(lr, milestones, gamma):
    for t in range(STEPS):
        for milestone in milestones:
            if milestone == t:
                lr *= gamma
        yield lr


@row(lambda r: {"gamma": r.uniform(0.9, 1.01)} if r.random() < 0.5 else {"decay_lambda": r.uniform(-0.01, 0.1)})
def walk_exponential(lr, gamma=None, decay_lambda=None):
    while True:
        yield lr
        lr *= gamma if decay_lambda is None else math.e**-decay_lambda


@row(
    lambda r: (
        {
            "transition_steps": r.choice([0, *[r.randint(20, 300)] * 9]),
            "decay_rate": r.choice([0, *[r.uniform(0.5, 1.2)] * 9]),
        }
        | r.choice([{}, {"transition_begin": r.randint(0, 300), "staircase": r.random() < 0.5}])
        | r.choice([{}, {"end_value": r.uniform(0, 1)}])
    )
)
def walk_exponential_decay(lr, transition_steps, decay_rate, transition_begin=0, staircase=False, end_value=None):
    if not transition_steps or not decay_rate:
        yield from repeat(lr)
    bound = (max if decay_rate < 1 else min) if end_value is not None else lambda value, _: value
    for _ in range(transition_begin):
        yield bound(lr, end_value)
    while True:
        value = lr
        for _ in range(transition_steps):
            yield bound(value, end_value)
            value *= 1 if staircase else math.exp(math.log(decay_rate) / transition_steps)
        lr *= decay_rate


@row(lambda r: {"decay_steps": r.randint(1, 300), "decay_rate": r.uniform(0, 3), "staircase": r.random() < 0.5})
def walk_inverse_time(lr, decay_steps, decay_rate, staircase):
    inverse = 1 / lr
    while True:
        for k in range(decay_steps):
            yield 1 / (inverse + (0 if staircase else decay_rate / lr * k / decay_steps))
        inverse += decay_rate / lr


@row(lambda r: {"start_factor": r.random(), "end_factor": r.uniform(0, 2), "total_iters": r.randint(0, 1200)})
def walk_linear(lr, start_factor, end_factor, total_iters):
    value = lr * start_factor
    for _ in range(total_iters):
        yield value
        value += lr * (end_factor - start_factor) / total_iters
    while True:
        yield lr * end_factor


@row(lambda r: {"total_iters": r.randint(0, 1200), "power": r.uniform(0.1, 3)})
def walk_polynomial(lr, total_iters, power):
    for left in range(total_iters, 0, -1):
        yield lr
        lr *= ((left - 1) / left) ** power
    yield from repeat(0.0)


@row(
    lambda r: (
        {"decay_steps": r.randint(1, 300), "power": r.uniform(0.1, 3), "transition_begin": r.randint(0, 300)}
        | {"cycle": r.random() < 0.5}
        | r.choice([{}, {"end_value": r.uniform(-0.1, 0.1)}])
    )
)
def walk_polynomial_decay(lr, decay_steps, power, transition_begin, cycle, end_value=1e-4):
    yield from [lr] * (transition_begin + 1)
    c, end = 0, decay_steps
    while True:
        c += 1
        if c > end and cycle:
            end += decay_steps
        yield end_value + (lr - end_value) * (max(0, end - c) / end) ** power


@row(
    lambda r: {
        "swa_lr": r.random(),
        "anneal_epochs": r.randint(0, 1200),
        "anneal_strategy": r.choice(["cos", "linear"]),
    }
)
def walk_swa(lr, swa_lr, anneal_epochs, anneal_strategy):
    for k in range(anneal_epochs):
        a = k / anneal_epochs
        a = a if anneal_strategy == "linear" else math.sin(math.pi * a / 2) ** 2
        yield swa_lr * a + lr * (1 - a)
    yield from repeat(swa_lr)


@row(lambda r: {"t_max": r.randint(1, 1200), "eta_min": r.uniform(-0.1, 0.1), "hold": r.random() < 0.5})
def walk_cosine(lr, t_max, eta_min, hold):
    angle, turn = 1 + 0j, cmath.exp(1j * cmath.pi / t_max)
    for t in range(STEPS):
        yield (eta_min if hold and t >= t_max else eta_min + (lr - eta_min) * (1 + angle.real) / 2)
        angle *= turn


@row(
    lambda r: (
        {"decay_steps": r.randint(1, 1000), "alpha": r.random(), "exponent": r.uniform(0.2, 3)}
        | r.choice([{}, {"warmup_target": r.random(), "warmup_steps": r.randint(0, 500)}])
    )
)
def walk_cosine_decay(lr, decay_steps, alpha, exponent, warmup_target=None, warmup_steps=0):
    if warmup_target is not None:
        for k in range(warmup_steps):
            yield (lr * (warmup_steps - k) + warmup_target * k) / warmup_steps
        lr = warmup_target
    for k in range(decay_steps):
        yield lr * ((1 - alpha) * math.cos(math.pi * k / decay_steps / 2) ** (2 * exponent) + alpha)
    yield from repeat(lr * alpha)


@row(
    lambda r: (
        {"t_0": r.randint(1, 300), "t_mult": r.randint(1, 4), "m_mul": r.uniform(0.5, 1.0)}
        | r.choice([{}, {"eta_min": r.uniform(-0.1, 0.1)}, {"alpha": r.random()}])
    )
)
def walk_cosine_restarts(lr, t_0, t_mult, m_mul, eta_min=0.0, alpha=0.0):
    peak, share = lr, 1.0
    while True:
        for c in range(t_0):
            wave = math.cos(math.pi * c / t_0 / 2) ** 2
            yield lr * ((1 - alpha) * share * wave + alpha) if alpha else peak * wave + eta_min * (1 - wave)
        t_0, peak, share = t_0 * t_mult, peak * m_mul, share * m_mul


@row(lambda r: {"period": 2 * r.randint(1, 300), "eta_min": r.uniform(-1, 1), "eta_max": r.uniform(-1, 1)})
def walk_triangular(_, period, eta_min, eta_max):
    half = period // 2
    while True:
        for k in [*range(half), *range(half, 0, -1)]:
            yield eta_min + (eta_max - eta_min) * k / half


@row(lambda r: {"period": r.randint(1, 1200), "eta_min": r.uniform(-1, 1), "eta_max": r.uniform(-1, 1)})
def walk_triangular_literal(_, period, eta_min, eta_max):
    for k in range(period):
        yield eta_min + (eta_max - eta_min) * k / period
    while True:
        yield eta_min


@row(
    lambda r: (
        {"base_lr": r.uniform(0, 0.1), "max_lr": r.random(), "step_size_up": r.randint(1, 300), "gamma": r.random()}
        | {"mode": r.choice(["triangular", "triangular2", "exp_range"]), "output": r.choice(["lr", "momentum"])}
        | r.choice([{}, {"step_size_down": r.randint(1, 300)}])
        | r.choice([{}, {"base_momentum": r.random(), "max_momentum": r.random()}])
    )
)
def walk_cyclic(
    _, base_lr, max_lr, step_size_up, gamma, mode, output, step_size_down=None, base_momentum=0.8, max_momentum=0.9
):
    t, per_cycle, per_step = 0, 1.0, 1.0
    down = step_size_down or step_size_up
    while True:
        for height in [k / step_size_up for k in range(step_size_up)] + [k / down for k in range(down, 0, -1)]:
            height *= {"triangular": 1.0, "triangular2": per_cycle, "exp_range": per_step}[mode]
            low, high = (base_lr, max_lr) if output == "lr" else (max_momentum, base_momentum)
            yield low + (high - low) * height
            t, per_step = t + 1, per_step * gamma
        per_cycle /= 2


def walk_corners(corners, shape):
    """From corner to corner (t, value) along lines or half cosines; the last value holds."""
    t = 0
    for (begin, left), (end, right) in pairwise(corners):
        while t <= end:
            share = (t - begin) / (end - begin)
            share = share if shape == "linear" else math.sin(math.pi * share / 2) ** 2
            yield left * (1 - share) + right * share
            t += 1
    yield from repeat(corners[-1][1])


@row(
    lambda r: (
        {"max_lr": r.random(), "total_steps": r.randint(2, 1200), "anneal_strategy": r.choice(["cos", "linear"])}
        | {"three_phase": r.random() < 0.5, "output": r.choice(["lr", "momentum"])}
        | r.choice([{}, {"pct_start": r.uniform(0, 0.5), "div_factor": r.uniform(1, 50), "final_div_factor": 1e3}])
        | r.choice([{}, {"base_momentum": r.random(), "max_momentum": r.random()}])
    )
)
def walk_one_cycle(
    _,
    max_lr,
    total_steps,
    anneal_strategy,
    three_phase,
    output,
    pct_start=0.3,
    div_factor=25,
    final_div_factor=1e4,
    base_momentum=0.85,
    max_momentum=0.95,
):
    low = max_lr / div_factor
    start, peak, end = low, max_lr, low / final_div_factor
    if output == "momentum":
        start, peak, end = max_momentum, base_momentum, max_momentum
    corners = [(0, start), (pct_start * total_steps - 1, peak)]
    if three_phase:
        corners.append((2 * pct_start * total_steps - 2, start))
    yield from walk_corners([*corners, (total_steps - 1, end)], anneal_strategy)


@row(
    lambda r: (
        {"transition_steps": r.randint(20, 1200), "peak_value": r.random()}
        | r.choice([{}, {"pct_start": r.uniform(0.1, 0.5), "pct_final": r.uniform(0.6, 0.9)}])
        | r.choice([{}, {"div_factor": r.uniform(1, 50), "final_div_factor": r.uniform(1, 1e3)}])
    )
)
def walk_linear_onecycle(
    _, transition_steps, peak_value, pct_start=0.3, pct_final=0.85, div_factor=25, final_div_factor=1e4
):
    low, n = peak_value / div_factor, transition_steps
    times = [0, int(pct_start * n), int(pct_final * n), n]
    yield from np.interp(range(STEPS), times, [low, peak_value, low, low / final_div_factor])


@row(
    lambda r: (
        {"transition_steps": r.randint(20, 1200), "peak_value": r.random()}
        | r.choice([{}, {"pct_start": r.uniform(0.1, 0.9)}])
        | r.choice([{}, {"div_factor": r.uniform(1, 50), "final_div_factor": r.uniform(1, 1e3)}])
    )
)
def walk_cosine_onecycle(_, transition_steps, peak_value, pct_start=0.3, div_factor=25, final_div_factor=1e4):
    low, n = peak_value / div_factor, transition_steps
    yield from walk_corners([(0, low), (int(pct_start * n), peak_value), (n, low / final_div_factor)], "cosine")


def draw_boundaries(r: Random, count: int) -> list[int]:
    return sorted(r.sample(range(1, 1100), k=count))


@row(
    lambda r: (
        {"boundaries": (boundaries := draw_boundaries(r, r.randint(0, 6))), "inclusive": r.random() < 0.5}
        | r.choice(
            [
                {"scales": [r.uniform(0, 2) for _ in boundaries]},
                {"values": [r.uniform(-1, 1) for _ in [*boundaries, None]]},
            ]
        )
    )
)
def walk_piecewise_constant(lr, boundaries, inclusive, scales=None, values=None):
    if values:
        lr, *values = values
    for t in range(STEPS):
        for i, boundary in enumerate(boundaries):
            if t == boundary + (not inclusive):
                lr = values[i] if values else lr * scales[i]
        yield lr


@row(
    lambda r: {
        "boundaries": (boundaries := draw_boundaries(r, r.randint(0, 6))),
        "scales": [r.uniform(0, 2) for _ in boundaries],
        "interpolate_type": r.choice(["linear", "cosine"]),
    }
)
def walk_piecewise_interpolate(lr, boundaries, scales, interpolate_type):
    corners = [(0, lr)]
    for boundary, factor in zip(boundaries, scales, strict=True):
        corners.append((boundary, corners[-1][1] * factor))
    yield from walk_corners(corners, interpolate_type)


@row(lambda r: {"factor": [r.uniform(0.9, 1.1) for _ in range(r.randint(1, 1200))] + [r.uniform(0.99, 1)]})
def walk_multiplicative(lr, factor):
    for each in chain(factor, repeat(factor[-1])):
        yield lr
        lr *= each


@row(lambda r: {"values": [r.uniform(-1, 1) for _ in range(r.randint(1, 1200))]})
def walk_table(_, values):
    yield from values
    while True:
        yield values[-1]


def walk_ramp(low, high, length):
    for k in range(length):
        yield (low * (length - k) + high * k) / length


def draw_training(r: Random) -> dict[str, Any]:
    warmup = r.choice([0, r.randint(1, 500)])
    return {"num_warmup_steps": warmup, "num_training_steps": warmup + r.choice([0, 1, *[r.randint(2, 1000)] * 6])}


@row(lambda r: {"d_model": r.randint(1, 2048), "warmup": r.randint(0, 1200), "factor": r.uniform(0, 3)})
def walk_noam(_, d_model, warmup, factor):
    for s in range(1, warmup + 1):
        yield factor * s / math.sqrt(d_model * warmup**3)
    for s in range(warmup + 1, STEPS + 1):
        yield factor / math.sqrt(d_model * s)


@row(lambda r: {"num_warmup_steps": r.randint(0, 500)} | r.choice([{}, {"timescale": r.randint(1, 1000)}]))
def walk_inverse_sqrt(lr, num_warmup_steps, timescale=None):
    yield from walk_ramp(0, lr, num_warmup_steps)
    timescale = timescale or num_warmup_steps or 10_000
    for t in range(num_warmup_steps, STEPS):
        yield lr * math.sqrt(timescale / (t + timescale - num_warmup_steps))


@row(lambda r: {"num_warmup_steps": r.randint(0, 1200)})
def walk_constant_with_warmup(lr, num_warmup_steps):
    yield from walk_ramp(0, lr, num_warmup_steps)
    yield from repeat(lr)


@row(draw_training)
def walk_linear_with_warmup(lr, num_warmup_steps, num_training_steps):
    yield from walk_ramp(0, lr, num_warmup_steps)
    yield from walk_ramp(lr, 0, num_training_steps - num_warmup_steps)
    yield from repeat(0.0)


@row(lambda r: draw_training(r) | {"num_cycles": r.uniform(0, 3)})
def walk_cosine_with_warmup(lr, num_warmup_steps, num_training_steps, num_cycles, floor=0.0):
    yield from walk_ramp(0, lr, num_warmup_steps)
    angle = 1 + 0j
    turn = cmath.exp(2j * cmath.pi * num_cycles / max(1, num_training_steps - num_warmup_steps))
    while True:
        wave = (1 + angle.real) / 2
        yield lr * wave + floor * (1 - wave)
        angle *= turn


@row(
    lambda r: (
        draw_training(r)
        | {"num_cycles": r.uniform(0, 3)}
        | r.choice([{"min_lr": r.uniform(0, 0.1)}, {"min_lr_rate": r.uniform(0, 0.5)}])
    )
)
def walk_cosine_with_min_lr(lr, num_warmup_steps, num_training_steps, num_cycles, min_lr=None, min_lr_rate=None):
    floor = lr * min_lr_rate if min_lr is None else min_lr
    yield from walk_cosine_with_warmup(lr, num_warmup_steps, num_training_steps, num_cycles, floor)


@row(lambda r: draw_training(r) | {"num_cycles": r.choice([1, 2, 3, 49, 2.5])})
def walk_cosine_with_hard_restarts(lr, num_warmup_steps, num_training_steps, num_cycles):
    yield from walk_ramp(0, lr, num_warmup_steps)
    length = num_training_steps - num_warmup_steps
    for k in range(max(1, length)):
        share = Fraction(num_cycles) * k / max(1, length) % 1
        yield lr * math.cos(math.pi * float(share) / 2) ** 2
    yield from repeat(0.0)


@row(lambda r: draw_training(r) | {"power": r.uniform(0.1, 3)} | r.choice([{}, {"lr_end": r.uniform(0, 0.1)}]))
def walk_polynomial_with_warmup(lr, num_warmup_steps, num_training_steps, power, lr_end=1e-7):
    yield from walk_ramp(0, lr, num_warmup_steps)
    length = num_training_steps - num_warmup_steps
    for left in range(length, 0, -1):
        yield lr_end + (lr - lr_end) * math.exp(power * math.log(left / length))
    yield from repeat(lr_end)


@row(
    lambda r: (
        {"init_value": r.random(), "peak_value": r.random(), "warmup_steps": (w := r.randint(0, 500))}
        | {"decay_steps": w + r.randint(1, 600)}
        | r.choice([{}, {"end_value": r.random(), "exponent": r.uniform(0.2, 3)}])
    )
)
def walk_warmup_cosine_decay(_, init_value, peak_value, warmup_steps, decay_steps, end_value=0.0, exponent=1.0):
    yield from walk_ramp(init_value, peak_value, warmup_steps)
    length = decay_steps - warmup_steps
    for k in range(length):
        wave = math.cos(math.pi * k / length / 2) ** (2 * exponent)
        yield peak_value * wave + end_value * (1 - wave)
    yield from repeat(end_value)


@row(
    lambda r: (
        {"init_value": r.random(), "peak_value": r.random(), "warmup_steps": r.randint(0, 500)}
        | ROWS["exponential_decay"][0](r)
    )
)
def walk_warmup_exponential_decay(_, init_value, peak_value, warmup_steps, **decay):
    yield from walk_ramp(init_value, peak_value, warmup_steps)
    yield from walk_exponential_decay(peak_value, **decay)


SHAPES = {
    "linear": lambda x: x,
    "cosine": lambda x: math.sin(math.pi * x / 2) ** 2,
    "1-sqrt": lambda x: 1 - math.sqrt(1 - x),
}


@row(
    lambda r: (
        {"num_warmup_steps": r.randint(0, 400), "num_stable_steps": r.randint(0, 400)}
        | {"num_decay_steps": r.randint(0, 400), "min_lr_ratio": r.random()}
        | {"warmup_type": r.choice(list(SHAPES)), "decay_type": r.choice(list(SHAPES))}
        | r.choice([{}, {"num_cycles": r.uniform(0, 2)}])
    )
)
def walk_wsd(
    lr,
    num_warmup_steps,
    num_stable_steps,
    num_decay_steps,
    min_lr_ratio,
    warmup_type,
    decay_type,
    num_cycles=0.5,
):
    low = lr * min_lr_ratio
    for k in range(num_warmup_steps):
        yield low + (lr - low) * SHAPES[warmup_type](k / num_warmup_steps)
    yield from [lr] * num_stable_steps
    for k in range(num_decay_steps):
        x = k / num_decay_steps
        wave = math.cos(math.pi * num_cycles * x) ** 2
        yield low + (lr - low) * (wave if decay_type == "cosine" else SHAPES[decay_type](1 - x))
    yield from repeat(low)


@row(lambda r: r.choice([{}, {"mode": "max", "factor": r.random(), "patience": r.randint(0, 9)}]))
def walk_plateau(lr, **_):
    yield from repeat(lr)  # nothing was reported; test_plateau.py reports


COMPOSITIONS = ("chained", "clamp", "scale", "sequential", "shift", "warmup")

PROPORTIONAL = (
    "constant",
    "constant_with_warmup",
    "cosine_with_hard_restarts",
    "exponential",
    "inverse_sqrt",
    "inverse_time",
    "linear",
    "linear_with_warmup",
    "multiplicative",
    "multistep",
    "polynomial",
    "step",
    "wsd",
)
"""Schedules without an argument in the value's own unit: what may be chained."""


def draw_children(r: Random, count: int, names: Iterable[str] = ()) -> dict[str, Any]:
    names = sorted(names or ROWS.keys() - {*COMPOSITIONS, "plateau"})
    return {"schedules": [{"name": name, **ROWS[name][0](r)} for name in r.choices(names, k=count)]}


def walk(lr, name, **arguments):
    return ROWS[name][1](lr, **arguments)


@row(lambda r: {"num_warmup_steps": r.randint(0, 900), "start": r.random()} | draw_children(r, 1))
def walk_warmup(lr, num_warmup_steps, start, schedules):
    first = next(walk(lr, **schedules[0]))
    for t in range(num_warmup_steps):
        yield first * (start * (num_warmup_steps - t) + t) / num_warmup_steps
    yield from walk(lr, **schedules[0])


@row(lambda r: {"milestones": sorted(r.sample(range(1100), 3))} | draw_children(r, 4))
def walk_sequential(lr, milestones, schedules):
    bounds = [0, *milestones, milestones[-1] + STEPS]
    for child, begin, end in zip(schedules, bounds, bounds[1:], strict=False):
        yield from islice(walk(lr, **child), end - begin)


@row(lambda r: draw_children(r, r.randint(1, 3), PROPORTIONAL))
def walk_chained(lr, schedules):
    for values in zip(*[walk(lr, **child) for child in schedules], strict=False):
        yield math.prod(values) / lr ** (len(schedules) - 1)


@row(lambda r: {"factor": r.uniform(0, 3)} | draw_children(r, 1))
def walk_scale(lr, factor, schedules):
    for value in walk(lr, **schedules[0]):
        yield value * factor


@row(
    lambda r: (
        r.choice(
            [{"minimum": r.uniform(-1, 0.3)}, {"maximum": r.random()}, {"minimum": 0.1, "maximum": r.uniform(0.1, 1)}]
        )
        | draw_children(r, 1)
    )
)
def walk_clamp(lr, schedules, minimum=-math.inf, maximum=math.inf):
    for value in walk(lr, **schedules[0]):
        yield sorted([minimum, value, maximum])[1]


@row(lambda r: {"by": r.randint(-200, 500)} | draw_children(r, 1))
def walk_shift(lr, by, schedules):
    yield from [next(walk(lr, **schedules[0]))] * by
    yield from islice(walk(lr, **schedules[0]), max(0, -by), None)
