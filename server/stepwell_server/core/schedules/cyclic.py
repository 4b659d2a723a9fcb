"""Schedules that go up and down between two absolute values."""

import math

from stepwell_server.core.schedules.definition import schedule

SMITH = "Smith 2017, Cyclical learning rates for training neural networks, https://arxiv.org/abs/1506.01186"


@schedule(reference=SMITH, matches="torch.optim.lr_scheduler.CyclicLR", absolute=True)
def triangular(t: float, initial: float, *, period: float, eta_min: float, eta_max: float) -> float:
    """Go up and down linearly between eta_min and eta_max once per period.

    f(t) = η_min + (η_max - η_min) * max(0, 1 - |2 (t mod period) / period - 1|). period in clock units, eta_min and
    eta_max in the value's unit; the initial value is not used. Equals cyclic with two step sizes of period / 2.
    """
    height = max(0.0, 1 - abs(2 * math.fmod(t, period) / period - 1))
    return eta_min + (eta_max - eta_min) * height


@schedule(
    reference="The lecture notes' triangular schedule as printed; not Smith's",
    absolute=True,
)
def triangular_literal(t: float, initial: float, *, period: float, eta_min: float, eta_max: float) -> float:
    """Follow the lecture notes' misprint: one ramp over one period, then eta_min for ever.

    f(t) = η_min + (η_max - η_min) * max(0, 1 - |x - 2⌊x⌋ - 1|), x = t / period. It never reaches eta_max and never
    repeats; triangular is what the notes mean. period in clock units; the initial value is not used.
    """
    x = t / period
    height = max(0.0, 1 - abs(x - 2 * math.floor(x) - 1))
    return eta_min + (eta_max - eta_min) * height


@schedule(
    reference=SMITH,
    matches="torch.optim.lr_scheduler.CyclicLR",
    absolute=True,
    choices={"mode": ("triangular", "triangular2", "exp_range"), "output": ("lr", "momentum")},
)
def cyclic(
    t: float,
    initial: float,
    *,
    base_lr: float,
    max_lr: float,
    step_size_up: float = 2000.0,
    step_size_down: float | None = None,
    mode: str = "triangular",
    gamma: float = 1.0,
    base_momentum: float = 0.8,
    max_momentum: float = 0.9,
    output: str = "lr",
) -> float:
    """Cycle the learning rate up and down, or the momentum against it.

    The height s goes from 0 to 1 in step_size_up and back in step_size_down (none: the same), in clock units. It is
    scaled by a = 1 (triangular), 2^-k in cycle k = 0, 1, ... (triangular2), or γ^t (exp_range).
    lr: f(t) = base_lr + (max_lr - base_lr) * s * a. momentum: f(t) = max_momentum - (max_momentum - base_momentum) *
    s * a. One schedule yields one number: set it twice, with output "lr" and "momentum". The initial value is not
    used. As in PyTorch, max_lr may be below base_lr.
    """
    down = step_size_up if step_size_down is None else step_size_down
    total = step_size_up + down
    since = math.fmod(t, total)
    height = since / step_size_up if since <= step_size_up else (total - since) / down
    if mode == "triangular2":
        height *= math.pow(2.0, -(t // total))
    elif mode == "exp_range":
        height *= math.pow(gamma, t)
    if output == "momentum":
        return max_momentum - (max_momentum - base_momentum) * height
    return base_lr + (max_lr - base_lr) * height
