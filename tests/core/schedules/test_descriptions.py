"""What ListSchedules says of each schedule, against the tables of the catalogue, copied here by hand."""

import math

import pytest

from stepwell_server.core.arguments import REQUIRED, Argument, Kind
from stepwell_server.core.schedules import list_schedules

SHAPES = "linear|cosine|1-sqrt"
TRAINING = "num_warmup_steps n ! >=0, num_training_steps n ! >=0"
ONECYCLE = "transition_steps n ! >0, peak_value n ! any, pct_start n 0.3 0..1"
FACTORS = "div_factor n 25 >0, final_div_factor n 1e4 >0"
DECAY = (
    "transition_steps n ! >=0, decay_rate n ! >=0, transition_begin n 0 >=0, staircase f false, end_value n none any"
)
PEAK = "init_value n ! any, peak_value n ! any, warmup_steps n ! >=0"
PERIOD = "period n ! >0, eta_min n ! any, eta_max n ! any"

# The arguments of section 8 in its order, each as `name kind default range`, with the defaults of section 3. `!` is an
# argument that must be given. Kinds: n number, i integer, f flag, l list of numbers, t text.
ARGUMENTS = {
    "constant": "factor n 1 >=0, total_iters n 0 >=0",
    "step": "step_size n ! >0, gamma n 0.1 >=0",
    "multistep": "milestones l ! >=0, gamma n 0.1 >=0",
    "exponential": "gamma n none >=0, decay_lambda n none any",
    "exponential_decay": DECAY,
    "inverse_time": "decay_steps n ! >0, decay_rate n ! >=0, staircase f false",
    "linear": f"start_factor n {1 / 3} >=0, end_factor n 1 >=0, total_iters n 5 >=0",
    "polynomial": "total_iters n 5 >=0, power n 1 >=0",
    "polynomial_decay": "end_value n 1e-4 any, decay_steps n ! >0, power n 1 >=0, cycle f false, "
    "transition_begin n 0 >=0",
    "cosine": "t_max n ! >0, eta_min n 0 any, hold f false",
    "cosine_decay": "decay_steps n ! >0, alpha n 0 any, exponent n 1 >=0, warmup_target n none any, "
    "warmup_steps n 0 >=0",
    "cosine_restarts": "t_0 n ! >0, t_mult i 1 >=1, eta_min n 0 any, m_mul n 1 >=0, alpha n 0 any",
    "triangular": PERIOD,
    "triangular_literal": PERIOD,
    "cyclic": "base_lr n ! any, max_lr n ! any, step_size_up n 2000 >0, step_size_down n none >0, "
    "mode t triangular triangular|triangular2|exp_range, gamma n 1 >=0, "
    "base_momentum n 0.8 any, max_momentum n 0.9 any, output t lr lr|momentum",
    "one_cycle": "max_lr n ! any, total_steps n ! >=1, pct_start n 0.3 0..1, anneal_strategy t cos cos|linear, "
    f"{FACTORS}, three_phase f false, base_momentum n 0.85 any, max_momentum n 0.95 any, output t lr lr|momentum",
    "linear_onecycle": f"{ONECYCLE}, pct_final n 0.85 0..1, {FACTORS}",
    "cosine_onecycle": f"{ONECYCLE}, {FACTORS}",
    "piecewise_constant": "boundaries l ! >=0, scales l none >=0, values l none any, inclusive f true",
    "piecewise_interpolate": "boundaries l ! >=0, scales l ! >=0, interpolate_type t linear linear|cosine",
    "noam": "d_model n ! >0, warmup n 4000 >=0, factor n 1 >=0",
    "inverse_sqrt": "num_warmup_steps n ! >=0, timescale n none >0",
    "constant_with_warmup": "num_warmup_steps n ! >=0",
    "linear_with_warmup": TRAINING,
    "cosine_with_warmup": f"{TRAINING}, num_cycles n 0.5 >=0",
    "cosine_with_hard_restarts": f"{TRAINING}, num_cycles n 1 >=0",
    "cosine_with_min_lr": f"{TRAINING}, num_cycles n 0.5 >=0, min_lr n none >=0, min_lr_rate n none >=0",
    "polynomial_with_warmup": f"{TRAINING}, lr_end n 1e-7 any, power n 1 >=0",
    "warmup_cosine_decay": f"{PEAK}, decay_steps n ! >0, end_value n 0 any, exponent n 1 >=0",
    "warmup_exponential_decay": f"{PEAK}, {DECAY}",
    "wsd": "num_warmup_steps n ! >=0, num_stable_steps n ! >=0, num_decay_steps n ! >=0, "
    f"warmup_type t linear {SHAPES}, decay_type t cosine {SHAPES}, min_lr_ratio n 0 >=0, num_cycles n 0.5 >=0",
    "swa": "swa_lr n ! any, anneal_epochs n 10 >=0, anneal_strategy t cos cos|linear",
    "multiplicative": "factor l ! >=0",
    "table": "values l ! any",
    "plateau": "mode t min min|max, factor n 0.1 0..<1, patience i 10 >=0, threshold n 1e-4 >=0, "
    "threshold_mode t rel rel|abs, cooldown i 0 >=0, min_lr n 0 >=0, eps n 1e-8 >=0, metric t",
    "sequential": "milestones l ! >=0",
    "chained": "",
    "scale": "factor n ! >=0",
    "clamp": "minimum n none any, maximum n none any",
    "shift": "by n ! any",
    "warmup": "num_warmup_steps n ! >=0, start n 0 >=0",
}

ABSOLUTE = {"triangular", "triangular_literal", "cyclic", "one_cycle", "linear_onecycle", "cosine_onecycle", "noam"}
ABSOLUTE |= {"warmup_cosine_decay", "warmup_exponential_decay", "table"}

CHILDREN = {"scale": 1, "clamp": 1, "shift": 1, "warmup": 1, "sequential": "many", "chained": "many"}

KINDS = {Kind.NUMBER: "n", Kind.INTEGER: "i", Kind.FLAG: "f", Kind.NUMBERS: "l", Kind.TEXT: "t"}


def describe(argument: Argument) -> str:
    """The argument as a row spells it."""
    assert argument.optional == (argument.default is None)
    default = "!" if argument.default is REQUIRED else str(argument.default).lower()
    low, high = argument.range.minimum, argument.range.maximum
    if argument.kind is Kind.FLAG:
        takes = ""
    elif argument.kind is Kind.TEXT:
        takes = "|".join(argument.choices)
    elif math.isfinite(high):
        takes = f"{low:g}..{'<' if argument.range.maximum_open else ''}{high:g}"
    else:
        takes = f">{'' if argument.range.minimum_open else '='}{low:g}" if math.isfinite(low) else "any"
    return f"{argument.name} {KINDS[argument.kind]} {default} {takes}".rstrip()


def read_row(row: str) -> list[str]:
    """The row's arguments, with numbers as Python prints them."""
    arguments = [argument.split() for argument in row.split(", ") if argument]
    for words in arguments:
        if words[1] in "ni" and words[2] not in ("!", "none"):
            words[2] = str(float(words[2]))
    return [" ".join(words) for words in arguments]


def test_every_schedule_has_a_row() -> None:
    assert sorted(ARGUMENTS) == [entry.name for entry in list_schedules()]


@pytest.mark.parametrize("entry", list_schedules(), ids=lambda entry: entry.name)
def test_description(entry) -> None:
    assert [describe(argument) for argument in entry.arguments] == read_row(ARGUMENTS[entry.name])
    assert entry.absolute == (entry.name in ABSOLUTE)
    assert entry.children == CHILDREN.get(entry.name)
