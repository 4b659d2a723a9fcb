"""SM3, whose second moments take no more memory than one vector for each axis."""

from functools import reduce
from itertools import accumulate
from typing import Any

from stepwell_server.core.arguments import DECAY_RATE
from stepwell_server.core.compiler.definition import tensorwise


@tensorwise(
    reference="Anil, Gupta, Koren & Singer 2019, Algorithm SM3-II, https://arxiv.org/abs/1901.11150",
    matches="optax.sm3",
    flavors={"optax": {}},
    slots={
        "exp_avg": lambda shape, values: shape,
        "accumulators": lambda shape, values: (sum(shape or (1,)),),
    },
    scratch=7,
    ranges={"momentum": DECAY_RATE},
)
def sm3(
    xp: Any,
    param: Any,
    grad: Any,
    exp_avg: Any,
    accumulators: Any,
    *,
    step: int,
    lr: float,
    momentum: float = 0.9,
    eps: float = 1e-8,
) -> Any:
    """SM3: AdaGrad with the least of what the sums of an element's row, column and so on allow in place of its own sum.

    accumulators holds one vector for each axis, end to end: the largest sum at each place. 0 / 0 is 0. A single number
    is a vector of one.
    """
    shape = grad.shape or (1,)
    axes = range(len(shape))
    ends = tuple(accumulate(shape))
    bounds = [
        accumulators[ends[axis] - shape[axis] : ends[axis]].reshape([shape[axis] if axis == at else 1 for at in axes])
        for axis in axes
    ]
    grad = grad.reshape(shape)
    total = grad * grad + reduce(xp.minimum, bounds)
    seen = total > 0
    direction = xp.where(seen, grad, 0.0) / xp.sqrt(xp.where(seen, total + eps, 1.0))
    largest = [
        total.max(axis=tuple(at for at in axes if at != axis)).ravel() if len(shape) > 1 else total for axis in axes
    ]
    exp_avg = momentum * exp_avg + (1 - momentum) * direction.reshape(param.shape)
    return param - lr * exp_avg, exp_avg, xp.concatenate(largest)
