"""Optimizers that estimate how far the solution lies, and make the learning rate from that.

Distances and gradients are measured over all tensors together, except in ldog.
"""

from typing import Any

from stepwell_server.core.arguments import DECAY_RATE, NON_NEGATIVE, POSITIVE
from stepwell_server.core.compiler.definition import optimizer
from stepwell_server.core.compiler.functions import maximum, norm, sqrt, sum_all


@optimizer(
    reference="Ivgi, Hinder & Carmon 2023, https://arxiv.org/abs/2302.12022",
    matches="optax.contrib.dog",
    flavors={"optax": {}},
    scalars={"max_distance": 0.0, "grad_square_sum": 0.0},
    init={"x0": "param"},
    ranges={"reps_rel": NON_NEGATIVE},
    scope="group",
)
def dog(
    param: Any,
    grad: Any,
    x0: Any,
    max_distance: float,
    grad_square_sum: float,
    *,
    step: int,
    lr: float = 1.0,
    reps_rel: float = 1e-6,
    eps: float = 1e-8,
) -> Any:
    """DoG: the largest distance from the start so far, over the root of the sum of all squared gradients.

    The first distance is reps_rel (1 + ||x0||).
    """
    farthest = reps_rel * (1 + norm(x0)) if step == 1 else max_distance
    max_distance = maximum(farthest, norm(param - x0))
    grad_square_sum = grad_square_sum + norm(grad) ** 2
    return param - lr * max_distance / sqrt(grad_square_sum + eps) * grad, x0, max_distance, grad_square_sum


ldog = dog.variant(
    "ldog",
    "L-DoG: DoG for each tensor by itself.",
    reference="Ivgi, Hinder & Carmon 2023, https://arxiv.org/abs/2302.12022",
    matches="optax.contrib.dog, partitioned by tensor",
    flavors={"optax": {}},
    fixed={},
    scope="tensor",
)


@optimizer(
    reference="Khaled, Mishchenko & Jin 2023, Algorithm 1, https://arxiv.org/abs/2305.16284",
    matches="optax.contrib.dowg",
    flavors={"optax": {}},
    scalars={"max_square_distance": 0.0, "weighted_grad_square_sum": 0.0},
    init={"x0": "param"},
    ranges={"init_estim_sq_dist": NON_NEGATIVE},
    scope="group",
)
def dowg(
    param: Any,
    grad: Any,
    x0: Any,
    max_square_distance: float,
    weighted_grad_square_sum: float,
    *,
    step: int,
    lr: float = 1.0,
    init_estim_sq_dist: float | None = None,
    eps: float = 1e-4,
) -> Any:
    """DoWG: DoG with squared gradients that are weighted with the largest squared distance of their day.

    The first squared distance is init_estim_sq_dist, or eps where there is none.
    """
    start = eps if init_estim_sq_dist is None else init_estim_sq_dist
    farthest = start if step == 1 else max_square_distance
    max_square_distance = maximum(farthest, norm(param - x0) ** 2)
    weighted_grad_square_sum = weighted_grad_square_sum + max_square_distance * norm(grad) ** 2
    rate = lr * max_square_distance / (sqrt(weighted_grad_square_sum) + eps)
    return param - rate * grad, x0, max_square_distance, weighted_grad_square_sum


@optimizer(
    reference="Mishchenko & Defazio 2023, Algorithm 4, https://arxiv.org/abs/2306.06101",
    matches="optax.contrib.prodigy, prodigyopt.Prodigy",
    flavors={"optax": {"bias_correction": True}, "prodigyopt": {}},
    scalars={"d": 0.0, "numerator": 0.0, "count": 0.0},
    init={"x0": "param"},
    ranges={"beta3": DECAY_RATE, "d0": POSITIVE, "d_coef": NON_NEGATIVE},
    scope="group",
    decay=False,
)
def prodigy(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    grad_sum: Any,
    x0: Any,
    d: float,
    numerator: float,
    count: float,
    *,
    step: int,
    lr: float = 1.0,
    beta1: float = 0.9,
    beta2: float = 0.999,
    beta3: float | None = None,
    eps: float = 1e-8,
    d0: float = 1e-6,
    d_coef: float = 1.0,
    weight_decay: float = 0.0,
    bias_correction: bool = False,
    safeguard_warmup: bool = False,
) -> Any:
    """Prodigy: Adam times an estimate d of the distance to the solution, which can only grow.

    beta3 is the root of beta2 unless given. safeguard_warmup keeps lr out of the sum that d is divided by. The step is
    made with the old d, its eps with the new one. As in prodigyopt, a step with lr 0 is as if it had not been, and
    count, which the bias correction goes by, begins with the first gradient that is not zero.
    """
    moving = lr > 0
    before = d0 if step == 1 else d
    kept = sqrt(beta2) if beta3 is None else beta3
    if bias_correction:
        correction = sqrt(1 - beta2 ** (count + 1)) / (1 - beta1 ** (count + 1))
    else:
        correction = 1.0
    rate = before * lr * correction
    weight = before / d0 * (before if safeguard_warmup else rate)

    exp_avg = beta1 * exp_avg + (1 - beta1) * before * grad if moving else exp_avg
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * before**2 * grad**2 if moving else exp_avg_sq
    grad_sum = kept * grad_sum + weight * grad if moving else grad_sum
    gained = before / d0 * rate * sum_all(grad * (x0 - param))
    numerator = kept * numerator + gained if moving else numerator
    length = sum_all(abs(grad_sum))

    d = maximum(before, d_coef * numerator / length) if length > 0 else before
    rate = rate if length > 0 else 0.0
    if bias_correction:
        count = count + 1 if moving and length > 0 else count
    change = exp_avg / (sqrt(exp_avg_sq) + d * eps)
    if weight_decay:
        change = change + weight_decay * param
    return param - rate * change, exp_avg, exp_avg_sq, grad_sum, x0, d, numerator, count


@optimizer(
    reference="Defazio & Mishchenko 2023, Algorithm 5, https://arxiv.org/abs/2301.07733",
    matches="optax.contrib.dadapt_adamw",
    flavors={"optax": {}},
    scalars={"d": 0.0, "numerator": 0.0},
    ranges={"d0": POSITIVE},
    scope="group",
    decay=False,
)
def dadapt_adamw(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    grad_sum: Any,
    d: float,
    numerator: float,
    *,
    step: int,
    lr: float = 1.0,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    d0: float = 1e-6,
    weight_decay: float = 0.0,
) -> Any:
    """D-Adapted AdamW: AdamW times an estimate d of the distance to the solution, which can only grow.

    d is how far the gradients agree with where they have led, over how long their sum is. It stays as it is as long as
    that sum is zero, where optax divides by it.
    """
    before = d0 if step == 1 else d
    rate = before * lr * sqrt(1 - beta2**step) / (1 - beta1**step)
    agreement = sum_all(grad * grad_sum / (sqrt(exp_avg_sq) + eps))
    exp_avg = beta1 * exp_avg + (1 - beta1) * rate * grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad**2
    grad_sum = sqrt(beta2) * grad_sum + (1 - sqrt(beta2)) * rate * grad
    numerator = sqrt(beta2) * numerator + (1 - sqrt(beta2)) * rate * agreement
    length = sum_all(abs(grad_sum))
    d = maximum(before, numerator / ((1 - sqrt(beta2)) * length)) if length > 0 else before
    change = exp_avg / (sqrt(exp_avg_sq) + eps)
    if weight_decay:
        change = change + weight_decay * rate * param
    return param - change, exp_avg, exp_avg_sq, grad_sum, d, numerator
