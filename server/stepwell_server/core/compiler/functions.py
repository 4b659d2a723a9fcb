"""The functions that an optimizer's body may call, on arrays and on Python floats.

On floats they answer with Python floats: a NumPy float64 scalar would silently promote float32 arrays.
`EMITTED` says how the fused kernels spell each one on elements.
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


FUNCTIONS = {function.__name__: function for function in (sqrt, exp, log, cbrt, abs, maximum, minimum, sign, where)}

# How many arguments each takes.
ARITIES = dict.fromkeys(FUNCTIONS, 1) | {"maximum": 2, "minimum": 2, "where": 3}

# Kernel expressions on elements, arguments by place. NaN propagates through maximum and minimum as in NumPy.
EMITTED = {
    "sqrt": "math.sqrt({0})",
    "exp": "math.exp({0})",
    "log": "math.log({0})",
    "cbrt": "np.cbrt({0})",
    "abs": "abs({0})",
    "maximum": "np.maximum({0}, {1})",
    "minimum": "np.minimum({0}, {1})",
    "sign": "np.sign({0})",
    "where": "({1} if {0} else {2})",
}
