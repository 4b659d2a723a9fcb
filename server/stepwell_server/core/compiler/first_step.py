"""What an optimizer from text gives on the first step, tried on ordinary values before a run has it."""

import ast
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from stepwell_server.core.arguments import Value
from stepwell_server.core.compiler.definition import Definition
from stepwell_server.core.compiler.program import specialise, straighten
from stepwell_server.core.compiler.stages import function
from stepwell_server.core.compiler.text import Source, refusing
from stepwell_server.core.errors import InvalidValue

# Parameters and gradients as they come, in all combinations of signs; the parameter may be zero, the gradient is not.
_PARAM = np.array([0.5, -1.5, 0.0, 0.0, 2.0, -0.25, 0.03])
_GRAD = np.array([0.1, -0.3, 0.25, -2.0, -1.0, 0.5, 0.007])


def check_first_step(definition: Definition, values: Mapping[str, Value], live: Iterable[str]) -> None:
    """Raise InvalidSpec, with line and column, if a definition from text gives a NaN or infinity on ordinary values.

    values: of the first step. live: numbers that may change.
    """
    if not definition.text:
        return
    live = frozenset(live)
    with refusing(definition):
        program = specialise(definition, values, live)
        statements, returned = straighten(definition, values, live)
    probe = _Probe(definition, statements, returned)
    with np.errstate(all="ignore"):
        fault = probe.run(values)
    if fault is not None:
        line, offset, what = fault
        raise Source(definition.text).error(
            f"at the first step {what}, with the hyperparameters {_describe(values)}, on parameters and gradients of "
            "ordinary size, expected finite values; mend the formula or the hyperparameters",
            line,
            offset,
        )
    if len(program.stages) == 1:
        try:
            program.host(1, values, (), given={"loss": 1.0})
        except InvalidValue as error:
            raise Source(definition.text).error(str(error), 0, 0) from None


class _Probe:
    """A variant of a definition that also gives every value on the way, to find where the first bad one comes from."""

    def __init__(self, definition: Definition, statements: list[ast.stmt], returned: Mapping[str, ast.expr]) -> None:
        self._definition = definition
        self._returned = returned
        self._statements = statements
        body: list[ast.stmt] = []
        seen = []
        for number, statement in enumerate(statements):
            assert isinstance(statement, ast.Assign)
            kept = f"_seen_{number}"
            value = ast.Name(_target(statement), ast.Load())
            body += [statement, ast.Assign([ast.Name(kept, ast.Store())], value, lineno=0)]
            seen.append(ast.Name(kept, ast.Load()))
        parts: list[ast.expr] = [
            ast.Tuple([*seen], ast.Load()),
            ast.Tuple(list(returned.values()), ast.Load()),
        ]
        body.append(ast.Return(ast.Tuple(parts, ast.Load())))
        names = ["param", "grad", *definition.state, "step", "loss", *definition.arguments]
        self._function = function("probe", names, body)

    def run(self, values: Mapping[str, Value]) -> tuple[int, int, str] | None:
        """The line, the offset and what is wrong, or None."""
        zeros = [np.zeros_like(_PARAM) for _ in self._definition.state]
        arguments = [values[name] for name in self._definition.arguments]
        try:
            seen, results = self._function(_PARAM, _GRAD, *zeros, 1, 1.0, *arguments)
        except (ArithmeticError, ValueError, TypeError) as error:
            return self._raised(error)
        bad = [name for name, result in zip(self._returned, results, strict=True) if not _is_finite(result)]
        if not bad:
            return None
        for statement, value in zip(self._statements, seen, strict=True):
            assert isinstance(statement, ast.Assign)
            if value is not None and not _is_finite(value):
                return *_place(statement), f"'{_target(statement)}' is no finite number"
        return *_place(self._returned[bad[0]]), f"the new '{bad[0]}' is no finite number"

    def _raised(self, error: Exception) -> tuple[int, int, str]:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code is not self._function.__code__:
            trace = trace.tb_next
        if trace is None:
            return 0, 0, f"the formula fails ({error})"
        places = list(trace.tb_frame.f_code.co_positions())
        line, _, offset, _ = places[trace.tb_lasti // 2]
        return line or 0, offset or 0, f"the formula fails ({error})"


def _target(statement: ast.stmt) -> str:
    assert isinstance(statement, ast.Assign)
    (target,) = statement.targets
    assert isinstance(target, ast.Name)
    return target.id


def _place(node: ast.AST) -> tuple[int, int]:
    return getattr(node, "lineno", 0), getattr(node, "col_offset", 0)


def _is_finite(value: Any) -> bool:
    # None, which a hyperparameter may be, makes objects, a root of a negative number is complex.
    array = np.asarray(value)
    return array.dtype.kind in "bf" and bool(np.all(np.isfinite(array)))


def _describe(values: Mapping[str, Value]) -> str:
    return ", ".join(f"{name}={value!r}"[:100] for name, value in values.items())[:400] or "(none)"
