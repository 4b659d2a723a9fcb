"""What steps without a gradient make of a table's row: the companion that lets such a row wait until it is needed.

    def _coast(param, momentum_buffer, *, lr, momentum):
        return (
            param - idle_sum(lr * momentum, momentum) * momentum_buffer,
            idle_product(momentum) * momentum_buffer,
        )

It stands beside its optimizer and takes the same names. Two words run over the steps that the row has missed, each with
the hyperparameters of its own time, so that a schedule changes nothing about it:

- `idle_product(x)`: the product of x over them;
- `idle_sum(x, y)`: the sum of x, each times the product of y over the missed steps before it.

`last` is the step after which the values stand, 0 for a row that no gradient has reached. What the body gives for a row
that has missed nothing is the row. Numbers come as arrays, one for each row: decide on them by `where`.

Decoupled weight decay is woven in: with d = 1 - lr weight_decay, a rule that moves param by s = idle_sum(x, y) times
something gives idle_product(d) (param + ...) with idle_sum(x / d, y / d) in place of s.
"""

import ast
import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from stepwell_server.core.compiler.grammar import Refused

_DECAY = "1 - lr * weight_decay"


def idle_product(factor: Any) -> Any:
    """The product of a number over the steps that a row has missed; means something to the compiler alone."""
    raise NotImplementedError("idle_product stands in companions, which are compiled and not called")


def idle_sum(rate: Any, factor: Any) -> Any:
    """The sum over the missed steps of rate, each times the product of factor over those before it."""
    raise NotImplementedError("idle_sum stands in companions, which are compiled and not called")


@dataclass
class Missed:
    """What a companion asks of each step: pairs of a factor and a rate, both expressions of hyperparameters.

    A companion's body knows the product of the n-th pair's factor as `idle_product_n`, its sum as `idle_sum_n`.
    """

    pairs: list[tuple[ast.expr, ast.expr]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [f"idle_{word}_{number}" for number in range(len(self.pairs)) for word in ("product", "sum")]

    def of_product(self, factor: ast.expr) -> ast.expr:
        number = self._find(factor, None)
        return ast.Name(f"idle_product_{number}", ast.Load())

    def of_sum(self, rate: ast.expr, factor: ast.expr) -> ast.expr:
        number = self._find(factor, rate)
        return ast.Name(f"idle_sum_{number}", ast.Load())

    def _find(self, factor: ast.expr, rate: ast.expr | None) -> int:
        """A pair with this factor, and with this rate where one is asked for; products take any."""
        text = ast.unparse(factor)
        for number, (known, known_rate) in enumerate(self.pairs):
            free = isinstance(known_rate, ast.Constant)
            if ast.unparse(known) == text and (rate is None or free or ast.unparse(known_rate) == ast.unparse(rate)):
                if rate is not None:
                    self.pairs[number] = (known, rate)
                return number
        self.pairs.append((factor, ast.Constant(0.0) if rate is None else rate))
        return len(self.pairs) - 1


def extract(statements: Sequence[ast.stmt], decays: bool) -> tuple[list[ast.stmt], Missed]:
    """A straight body with names in place of the two words, and what they stand for.

    decays: whether decoupled weight decay is woven in. The last statement returns param and the state.
    """
    missed = Missed()
    taken = _Taken(missed, decays)
    found: list[ast.stmt] = [taken.visit(copy.deepcopy(statement)) for statement in statements]
    if decays:
        result = found[-1]
        assert isinstance(result, ast.Return)
        parts = list(result.value.elts) if isinstance(result.value, ast.Tuple) else [result.value]
        first = parts[0]
        assert first is not None
        decayed = ast.BinOp(missed.of_product(_decay()), ast.Mult(), first)
        rest = [part for part in parts[1:] if part is not None]
        found[-1] = ast.Return(ast.Tuple([decayed, *rest], ast.Load()))
    return found, missed


def needed(statements: Iterable[ast.stmt], expressions: Iterable[ast.expr]) -> list[ast.stmt]:
    """The assignments that the expressions depend on, in order."""
    wanted = {part.id for each in expressions for part in ast.walk(each) if isinstance(part, ast.Name)}
    kept: list[ast.stmt] = []
    for statement in reversed(list(statements)):
        if not isinstance(statement, ast.Assign):
            continue
        (target,) = statement.targets
        assert isinstance(target, ast.Name)
        if target.id in wanted:
            kept.append(statement)
            wanted |= {part.id for part in ast.walk(statement.value) if isinstance(part, ast.Name)}
    return kept[::-1]


class _Taken(ast.NodeTransformer):
    def __init__(self, missed: Missed, decays: bool) -> None:
        self._missed = missed
        self._decays = decays

    def visit_Call(self, node: ast.Call) -> ast.expr:
        assert isinstance(node.func, ast.Name)
        arguments = [self.visit(argument) for argument in node.args]
        match node.func.id, arguments:
            case "idle_product", [factor]:
                return self._missed.of_product(factor)
            case "idle_sum", [rate, factor]:
                if self._decays:
                    rate, factor = (ast.BinOp(part, ast.Div(), _decay()) for part in (rate, factor))
                return self._missed.of_sum(rate, factor)
            case "idle_product" | "idle_sum", _:
                raise Refused(f"{ast.unparse(node)}: takes another number of arguments", node)
        return ast.Call(node.func, arguments, [])


def _decay() -> ast.expr:
    return ast.parse(_DECAY, mode="eval").body
