"""What to try every optimizer with: random hyperparameters, gradients and learning rates; and how close is close.

`CASES` is the table: for each optimizer and flavor one row that draws everything at random, then rows that fix one flag
each, so that every branch is run whatever the dice say. `draw_run` makes a run from a row and a seed, `run_textbook`
says where it goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.textbook import common_rows, keras, lecture, optax, optax_joint, optax_tensors, others, torch
from tests.textbook.drawing import Case, Run, draw_run
from tests.textbook.loops import Array, Grads, Hyper, Params
from tests.textbook.optimizers import TEXTBOOK

__all__ = ["CASES", "Case", "Grads", "Hyper", "Params", "Run", "draw_run", "run_textbook"]

CASES: tuple[Case, ...] = (
    *common_rows.CASES,
    *torch.CASES,
    *optax.CASES,
    *optax_tensors.CASES,
    *optax_joint.CASES,
    *keras.CASES,
    *lecture.CASES,
    *others.CASES,
)


def run_textbook(
    case: Case,
    hyper: Mapping[str, object],
    params: Mapping[str, Array],
    grads: Sequence[Mapping[str, Array | None]],
    lrs: Sequence[float],
    losses: Sequence[float] | None = None,
) -> list[Params]:
    """The parameters after every step, by the textbook.

    A gradient of None leaves its parameter alone for that step. In the torch flavor, where each parameter counts its
    own steps, that is to leave the step out; the other flavors count for all at once and are not defined here.
    """
    for step, row in enumerate(grads):
        missing = [name for name, grad in row.items() if grad is None]
        if missing and case.flavor != "torch":
            raise ValueError(f"{case.id}: step {step} misses {missing}; only the torch flavor defines what follows")
    more = {} if losses is None else {"losses": losses}
    trajectory = TEXTBOOK[case.name, case.flavor](dict(params), list(map(dict, grads)), list(lrs), **hyper, **more)
    for after in trajectory:
        for name, param in params.items():
            assert after[name].dtype == param.dtype, f"{case.id}: {name!r} has become {after[name].dtype}"
            assert after[name].shape == param.shape, f"{case.id}: {name!r} has become {after[name].shape}"
    return trajectory
