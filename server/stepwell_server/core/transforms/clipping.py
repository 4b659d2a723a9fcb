"""Transforms that bound a gradient's size.

`length` is the p-norm of the gradient, over one tensor or all of them: see `woven` in `compiler/definition.py`.
"""

from typing import Any

from stepwell_server.core.arguments import NON_NEGATIVE, POSITIVE, Range
from stepwell_server.core.compiler.functions import maximum, minimum, norm, size, sqrt
from stepwell_server.core.transforms.definition import array_transform, transform

_NORM_TYPE = Range(1.0)
_CLIPPING = {"max_norm": POSITIVE, "norm_type": _NORM_TYPE, "eps": NON_NEGATIVE}

length = 0.0  # the name that is woven in


@transform(
    reference="element by element",
    matches="torch.nn.utils.clip_grad_value_",
    ranges={"clip_value": POSITIVE},
)
def clip_by_value(grad: Any, *, clip_value: float) -> Any:
    """Keep every element between -clip_value and clip_value."""
    return minimum(maximum(grad, -clip_value), clip_value)


@transform(
    reference="Keras's clipnorm",
    matches="keras.optimizers.Optimizer(clipnorm=)",
    ranges=_CLIPPING,
    static=["norm_type"],
    infinite=["norm_type"],
    woven=["length"],
)
def clip_by_norm(grad: Any, *, max_norm: float, norm_type: float = 2.0) -> Any:
    """Shrink each tensor whose p-norm is above max_norm to it. norm_type is p: 1 or more, or infinity."""
    return grad * (max_norm / maximum(length, max_norm))


@transform(
    reference="Pascanu, Mikolov & Bengio 2013, https://arxiv.org/abs/1211.5063",
    matches="torch.nn.utils.clip_grad_norm_",
    scope="group",
    ranges=_CLIPPING,
    static=["norm_type"],
    infinite=["norm_type"],
    woven=["length"],
)
def clip_by_global_norm(grad: Any, *, max_norm: float, norm_type: float = 2.0, eps: float = 1e-6) -> Any:
    """Shrink all tensors together if their p-norm is above max_norm.

    eps is added to the norm: 1e-6 is PyTorch's, 0 is optax's. norm_type is p: 1 or more, or infinity.
    """
    return grad * (max_norm / (length + eps) if length + eps > max_norm else 1.0)


@transform(
    reference="Shazeer & Stern 2018, section 6, https://arxiv.org/abs/1804.04235",
    matches="optax.clip_by_block_rms",
    ranges={"threshold": POSITIVE},
)
def clip_by_block_rms(grad: Any, *, threshold: float) -> Any:
    """Shrink each tensor whose root mean square is above threshold to it."""
    return grad / maximum(1.0, norm(grad) / sqrt(size(grad)) / threshold)


@transform(
    reference="optax.normalize_by_update_norm",
    matches="optax.normalize_by_update_norm",
    scope="group",
    ranges={"scale_factor": POSITIVE, "eps": NON_NEGATIVE},
)
def normalize_by_update_norm(grad: Any, *, scale_factor: float = 1.0, eps: float = 1e-6) -> Any:
    """Scale all tensors together to a norm of scale_factor."""
    return grad / ((norm(grad) + eps) / scale_factor)


@array_transform(
    reference="Brock et al. 2021, https://arxiv.org/abs/2102.06171",
    matches="optax.adaptive_grad_clip",
    ranges={"clipping": POSITIVE, "eps": POSITIVE},
)
def adaptive_grad_clip(xp: Any, grad: Any, param: Any, *, clipping: float = 0.01, eps: float = 1e-3) -> Any:
    """Keep each unit's gradient below a share of its weights' norm.

    A unit is what ends in one output, with the outputs on the last axis (JAX's layout): the whole of a vector, a column
    of a matrix, a filter of a convolution. Axes of length 1 do not make a vector a matrix.
    """
    vector = sum(length > 1 for length in grad.shape) <= 1
    axes = None if vector else 0 if grad.ndim <= 3 else tuple(range(grad.ndim - 1))
    squares = [xp.sum(xp.square(each, dtype=xp.float64), axis=axes, keepdims=True) for each in (grad, param)]
    grad_norm, param_norm = (xp.sqrt(each) for each in squares)
    most = clipping * xp.maximum(param_norm, eps)
    share = xp.where(grad_norm <= most, 1.0, most / xp.maximum(grad_norm, 1e-6))
    return grad * share.astype(grad.dtype)
