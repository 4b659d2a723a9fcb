"""The Adam family: running means of the gradient and its square."""

from typing import Any

from stepwell_server.core.arguments import REQUIRED
from stepwell_server.core.compiler.definition import optimizer
from stepwell_server.core.compiler.functions import maximum, sqrt


@optimizer(
    reference="Kingma & Ba 2015, Algorithm 1, https://arxiv.org/abs/1412.6980",
    matches="torch.optim.Adam",
    flavors={
        "torch": {},
        "optax": {"lr": REQUIRED, "amsgrad_corrected": True},
        "keras": {"eps": 1e-7, "eps_hat": True},
        "lecture": {},
        "lecture_schedule": {"bias_correction": False, "eps": 0.0, "eps_root": 1e-8},
    },
)
def adam(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    max_exp_avg_sq: Any,
    *,
    step: int,
    lr: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    amsgrad: bool = False,
    amsgrad_corrected: bool = False,
    nesterov: bool = False,
    eps_hat: bool = False,
    bias_correction: bool = True,
) -> Any:
    """Adam: momentum, scaled by the root of a running mean of squared gradients.

    eps lies outside the root, as in Algorithm 1 and PyTorch; eps_root lies inside. eps_hat (Keras, and the paper's
    second form) adds eps before the bias correction. amsgrad takes the largest second moment so far, uncorrected, or
    with amsgrad_corrected (optax) corrected. nesterov is Dozat's look-ahead without a momentum schedule.
    """
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad**2
    correction1 = 1 - beta1**step if bias_correction else 1.0
    correction2 = 1 - beta2**step if bias_correction else 1.0
    direction = exp_avg / correction1
    if nesterov:
        ahead = 1 - beta1 ** (step + 1) if bias_correction else 1.0
        direction = beta1 / ahead * exp_avg + (1 - beta1) / correction1 * grad
    second = exp_avg_sq
    uncorrected = correction2
    if amsgrad:
        if amsgrad_corrected:
            second = exp_avg_sq / correction2
            uncorrected = 1.0
        max_exp_avg_sq = maximum(max_exp_avg_sq, second)
        second = max_exp_avg_sq
    if eps_hat:
        scale = (sqrt(second + eps_root) + eps) / sqrt(uncorrected)
    else:
        scale = sqrt(second / uncorrected + eps_root) + eps
    return param - lr * direction / scale, exp_avg, exp_avg_sq, max_exp_avg_sq


adamw = adam.variant(
    "adamw",
    "AdamW: Adam with weight decay that bypasses the moments.",
    reference="Loshchilov & Hutter 2019, Algorithm 2, https://arxiv.org/abs/1711.05101",
    matches="torch.optim.AdamW",
    flavors={
        "torch": {"weight_decay": 1e-2},
        "optax": {"lr": REQUIRED, "amsgrad_corrected": True, "weight_decay": 1e-4},
        "keras": {"eps": 1e-7, "eps_hat": True, "weight_decay": 4e-3},
    },
    fixed={"decoupled_weight_decay": True},
)

amsgrad = adam.variant(
    "amsgrad",
    "AMSGrad: Adam with the largest second moment so far, as optax has it.",
    reference="Reddi, Kale & Kumar 2018, https://arxiv.org/abs/1904.09237",
    matches="optax.amsgrad",
    flavors={"optax": {"lr": REQUIRED}},
    fixed={"amsgrad": True, "amsgrad_corrected": True},
)

sparse_adam = adam.variant(
    "sparse_adam",
    "SparseAdam: Adam for gradients with few rows, whose moments decay in the rows that a gradient has.",
    reference="PyTorch's lazy form of Kingma & Ba 2015, https://docs.pytorch.org/docs/stable/generated/"
    "torch.optim.SparseAdam.html",
    matches="torch.optim.SparseAdam",
    flavors={"torch": {}},
    fixed={"eps_hat": True},
    # Decay and a maximum over time would have to reach the rows that a gradient lacks.
    without=[
        "eps_root",
        "amsgrad",
        "amsgrad_corrected",
        "nesterov",
        "bias_correction",
        "weight_decay",
        "decoupled_weight_decay",
    ],
    # PyTorch counts the steps of the whole tensor, also those without any row.
    table_step=True,
)
