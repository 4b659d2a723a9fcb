"""The functions that an optimizer's body may call, on arrays and on Python floats.

On floats they answer with Python floats: a NumPy float64 scalar would silently promote float32 arrays. Reductions turn
elements into one float. `EMITTED` says how the fused kernels spell each of the others on elements.
"""

import math
from typing import Any

import numpy as np


def _is_number(*values: Any) -> bool:
    # NumPy's float64 is a float by inheritance, but it is an array's element and follows NumPy's rules.
    return all(type(value) in (int, float) for value in values)


def sqrt(x: Any) -> Any:
    return math.sqrt(x) if _is_number(x) else np.sqrt(x)


def exp(x: Any) -> Any:
    return math.exp(x) if _is_number(x) else np.exp(x)


def log(x: Any) -> Any:
    return math.log(x) if _is_number(x) else np.log(x)


def cbrt(x: Any) -> Any:
    return math.cbrt(x) if _is_number(x) else np.cbrt(x)


def maximum(x: Any, y: Any) -> Any:
    return max(x, y) if _is_number(x, y) else np.maximum(x, y)


def minimum(x: Any, y: Any) -> Any:
    return min(x, y) if _is_number(x, y) else np.minimum(x, y)


def sign(x: Any) -> Any:
    return float((x > 0) - (x < 0)) if _is_number(x) else np.sign(x)


def where(condition: Any, x: Any, y: Any) -> Any:
    return (x if condition else y) if isinstance(condition, bool) else np.where(condition, x, y)


def sum_all(x: Any) -> float:
    """The sum of the elements, in float64 whatever their type."""
    return float(np.sum(x, dtype=np.float64))


def norm(x: Any) -> float:
    """The Euclidean norm, squared and summed in float64."""
    return math.sqrt(float(np.sum(np.square(x, dtype=np.float64))))


def max_abs(x: Any) -> float:
    """The largest absolute value, 0 where there are no elements."""
    return float(np.max(np.abs(x), initial=0.0))


def size(x: Any) -> float:
    """How many elements there are."""
    return float(np.size(x))


ELEMENTWISE = {function.__name__: function for function in (sqrt, exp, log, cbrt, abs, maximum, minimum, sign, where)}

# From elements to one number; over what, a tensor or a whole group, the definition says.
REDUCTIONS = {function.__name__: function for function in (sum_all, norm, max_abs, size)}

FUNCTIONS = ELEMENTWISE | REDUCTIONS

# How many arguments each takes.
ARITIES = dict.fromkeys(FUNCTIONS, 1) | {"maximum": 2, "minimum": 2, "where": 3}

# Kernel expressions on elements, arguments by place; `one` and `zero` are of the kernel's type. NaN propagates as in
# NumPy; that these are selections, and not NumPy's own functions, lets the loop vectorise.
EMITTED = {
    "sqrt": "math.sqrt({0})",
    "exp": "math.exp({0})",
    "log": "math.log({0})",
    "cbrt": "cbrt({0})",
    "abs": "abs({0})",
    "maximum": "({0} if ({0} > {1}) | ({0} != {0}) else {1})",
    "minimum": "({0} if ({0} < {1}) | ({0} != {0}) else {1})",
    "sign": "(one if {0} > zero else (-one if {0} < zero else {0}))",
    "where": "({1} if {0} else {2})",
}
