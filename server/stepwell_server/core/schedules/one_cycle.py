"""Schedules of one cycle: up to a peak, and down far below the start."""

from itertools import pairwise

from stepwell_server.core.arguments import POSITIVE
from stepwell_server.core.schedules.cosine import half_wave
from stepwell_server.core.schedules.definition import schedule
from stepwell_server.core.schedules.piecewise import piecewise_interpolate

SMITH_TOPIN = "Smith & Topin 2018, Super-convergence, https://arxiv.org/abs/1708.07120"


@schedule(
    reference=SMITH_TOPIN,
    matches="torch.optim.lr_scheduler.OneCycleLR",
    absolute=True,
    choices={"anneal_strategy": ("cos", "linear"), "output": ("lr", "momentum")},
)
def one_cycle(
    t: float,
    initial: float,
    *,
    max_lr: float,
    total_steps: float,
    pct_start: float = 0.3,
    anneal_strategy: str = "cos",
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
    base_momentum: float = 0.85,
    max_momentum: float = 0.95,
    output: str = "lr",
) -> float:
    """Raise the learning rate to max_lr and lower it far below the start, or the momentum against it.

    lr goes from max_lr / div_factor up to max_lr at pct_start * N - 1, and down to max_lr / (div_factor *
    final_div_factor) at N - 1, N = total_steps in clock units; momentum from max_momentum to base_momentum and back.
    three_phase is back at the start at 2 * pct_start * N - 2, and only then goes below it. In between, f follows half
    a cosine (cos) or a line (linear). It holds from N - 1 on, where PyTorch jumps up at N and then fails. A phase
    without length is over at once. As with cyclic, set it twice, with output "lr" and "momentum". The initial value
    is not used.
    """
    last = total_steps - 1
    t = min(t, last)
    if output == "momentum":
        start, peak, end = max_momentum, base_momentum, max_momentum
    else:
        start, peak, end = max_lr / div_factor, max_lr, max_lr / div_factor / final_div_factor
    corners = [(0.0, start), (pct_start * total_steps - 1, peak), (last, end)]
    if three_phase:
        corners.insert(2, (2 * pct_start * total_steps - 2, start))
    left, right = next(phase for phase in pairwise(corners) if t <= phase[1][0])
    share = (t - left[0]) / (right[0] - left[0]) if right[0] > left[0] else 1.0
    rest = half_wave(share) if anneal_strategy == "cos" else 1 - share
    return right[1] + (left[1] - right[1]) * rest


def check_linear_onecycle(*, pct_start: float, pct_final: float, **_: object) -> str | None:
    """Object to a second phase that ends before the first."""
    if pct_final < pct_start:
        return f"'pct_final' is {pct_final:g} and 'pct_start' {pct_start:g}, expected pct_final >= pct_start; raise it"
    return None


@schedule(
    reference=SMITH_TOPIN,
    matches="optax.linear_onecycle_schedule",
    absolute=True,
    ranges={"transition_steps": POSITIVE},
    check=check_linear_onecycle,
)
def linear_onecycle(
    t: float,
    initial: float,
    *,
    transition_steps: float,
    peak_value: float,
    pct_start: float = 0.3,
    pct_final: float = 0.85,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> float:
    """Go along lines to a peak, back to the start, and far below it.

    The corners: peak_value / div_factor at 0, peak_value at ⌊pct_start * N⌋, the start again at ⌊pct_final * N⌋, and
    peak_value / (div_factor * final_div_factor) from N = transition_steps on, in clock units. peak_value in the
    value's unit; the initial value is not used. Against PyTorch's one_cycle, every corner is one unit later.
    """
    return piecewise_interpolate(
        t,
        peak_value / div_factor,
        boundaries=(pct_start * transition_steps // 1, pct_final * transition_steps // 1, transition_steps),
        scales=(div_factor, 1 / div_factor, 1 / final_div_factor),
    )


@schedule(
    reference=SMITH_TOPIN,
    matches="optax.cosine_onecycle_schedule",
    absolute=True,
    ranges={"transition_steps": POSITIVE},
)
def cosine_onecycle(
    t: float,
    initial: float,
    *,
    transition_steps: float,
    peak_value: float,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> float:
    """Go along half cosines to a peak and down far below the start.

    The corners: peak_value / div_factor at 0, peak_value at ⌊pct_start * N⌋, and peak_value / (div_factor *
    final_div_factor) from N = transition_steps on, in clock units. peak_value in the value's unit; the initial value
    is not used.
    """
    return piecewise_interpolate(
        t,
        peak_value / div_factor,
        boundaries=(pct_start * transition_steps // 1, transition_steps),
        scales=(div_factor, 1 / (div_factor * final_div_factor)),
        interpolate_type="cosine",
    )
