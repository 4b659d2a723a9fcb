"""Throws texts at the parser of optimizers, in a process of its own: python text_fuzzer.py SECONDS SEED FILE.

Texts are valid ones that were mutated, grammar's own trees with odd leaves, and heaps of tokens. Each goes the way
that CreateRun goes with it up to the kernel's source. Anything raised but a DomainError is a fault, and so is any
audited event (an import, a file, a process, compiled or executed code) but the parsing of the text and the running of
what `stages.function` made of an admitted tree. FILE holds the present text, should this process die.
"""

import ast
import faulthandler
import os
import sys
import time
import types
from random import Random
from typing import Any

from stepwell_server.core.compiler.definition import Definition
from stepwell_server.core.compiler.functions import FUNCTIONS
from stepwell_server.core.compiler.numba_emitter import emit
from stepwell_server.core.compiler.text import define_from_text, digest
from stepwell_server.core.errors import DomainError
from stepwell_server.core.settings import Moment, Settings, make_settings

EXAMPLE_SECONDS_MAX = 20.0

VALID = [
    """
def my_adam(param, grad, exp_avg, exp_avg_sq, *, step, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, eps_root=0.0):
    \"\"\"Adam: momentum, scaled by the root of a running mean of squared gradients.\"\"\"
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad**2
    corrected = exp_avg / (1 - beta1**step)
    scale = sqrt(exp_avg_sq / (1 - beta2**step) + eps_root) + eps
    return param - lr * corrected / scale, exp_avg, exp_avg_sq
""",
    """
def heavy_ball(param, grad, velocity, *, step, loss, lr=0.5, momentum=0.9, nesterov=False, mode="plain", floor=None):
    if not momentum and mode == "plain":
        return param - lr * grad, velocity
    elif nesterov:
        velocity = momentum * velocity + grad
    else:
        velocity = momentum * velocity + loss * grad
    if floor is not None:
        velocity = where(abs(velocity) < floor, 0, velocity)
    moves = (velocity > 0) & (lr < 1) | (step == 2)
    ahead = grad + momentum * velocity if nesterov else velocity
    return param - lr * where(moves, ahead, sign(ahead) * minimum(abs(ahead), 1)), velocity
""",
    """
def trust(param, grad, *, step, lr=1, rates=(0.1, 2), scale=-1.5):
    length = norm(param)
    ratio = length / (norm(grad) + 1e-6) if length > 0 and max_abs(grad) > 0 else 1.0
    return param - lr * ratio * (grad - sum_all(grad) / size(grad)) ** 3 * exp(-step / 10) % (7 - cbrt(scale))
""",
]
NAMES = ["param", "grad", "slot", "step", "lr", "loss", "beta1", "flag", "mode", "floor", "a", "infinity", "maximize"]
ODD = [
    "__import__",
    "__builtins__",
    "eval",
    "exec",
    "open",
    "print",
    "_c0",
    "_r0",
    "_size",
    "ｌｒ",
    "η",
    "host",
    "True",
]
TOKENS: list[str] = [
    *NAMES, *ODD, *FUNCTIONS, *"()[]{}:,.;@=+-*/%&|^~<>!\\'\"#$?`\n\t ",
    "**", "//", "->", ":=", "==", "!=", "<=", ">=", "<<", "\n    ", "\n        ", "\r\n", "\0", "\ud800", "\u2028",
    "def ", "return ", "if ", "elif ", "else ", "else:", "and ", "or ", "not ", "is ", "in ", "None", "lambda ",
    "for ", "while ", "import os", "class ", "async ", "await ", "yield ", "with ", "try:", "False", "global ", "del ",
    "match ", "case ", "pass", "f'{lr}'", "b'x'", "'''", '"""', "'a'", "...", "1", "0", "2", "4", "5", "-1", "1.0",
    "1e999", "1e-400", "9" * 50, "0xff", "1_0", "1j", "1if", "2**10**10", "().__class__", "[0]", "[g for g in grad]",
]  # fmt: skip
HYPERPARAMETERS: list[Any] = [
    0,
    1,
    -1,
    0.5,
    1e300,
    1e-300,
    1e9,
    True,
    False,
    None,
    "plain",
    "x" * 1000,
    [0.1, 2],
    float("nan"),
]


class Fault(BaseException):
    """Not an Exception, so that nothing on the way takes it for its own."""


class Watch:
    """Judges the events that Python's auditing reports while a text is worked on."""

    def __init__(self) -> None:
        self.on = False
        self.faults: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on or self._is_fair(event, arguments):
            return
        self.faults.append(f"{event} {arguments!r:.300}")

    def _is_fair(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "compile":
            # Text is parsed under these names; compiled trees are judged when they are executed.
            return isinstance(arguments[0], ast.AST) or arguments[1] in ("", "<unknown>")
        if event == "exec":
            return _is_admitted(arguments[0])
        if event == "open":
            # For the message of a SyntaxError Python looks into the file of the text's name, which is none.
            return bool(arguments[0] == "")
        # Copies of trees, a code object's positions, frames of warnings and tracebacks.
        return event in (
            "builtins.id",
            "object.__getattr__",
            "object.__setattr__",
            "object.__delattr__",
            "sys._getframe",
        )


def _is_admitted(code: types.CodeType) -> bool:
    """A module that defines one function and calls nothing, of which the functions read nothing but the whitelist."""
    inner = [part for part in code.co_consts if isinstance(part, types.CodeType)]
    return (
        code.co_filename in ("<host>", "<reference>", "<probe>")
        and set(code.co_names) == {code.co_filename.strip("<>")}
        and len(inner) == 1
        and set(inner[0].co_names) <= FUNCTIONS.keys()
        and not any(isinstance(part, types.CodeType) for part in inner[0].co_consts)
    )


def expression(chance: Random, depth: int) -> str:
    if depth <= 0 or chance.random() < 0.15:
        leaf = chance.random()
        if leaf < 0.75:
            return chance.choice(NAMES[:8])
        return chance.choice(["1", "0.5", "2", "1e-3", "3.0", chance.choice(NAMES), chance.choice(TOKENS)])

    def part() -> str:
        return expression(chance, depth - 1)

    def condition() -> str:
        return f"({part()} {chance.choice(['<', '<=', '>', '>=', '==', '!='])} {part()})"

    match chance.randrange(12):
        case 0 | 1 | 2 | 3:
            return f"({part()} {chance.choice(['+', '-', '*', '*', '/', '%'])} {part()})"
        case 4:
            return f"{part()}**{chance.choice(['2', '3', '4', '5', '0.5', '-1', part()])}"
        case 5:
            return f"-{part()}"
        case 6:
            wild = ["sqrt({})", "exp({})", "log({})", "cbrt({})", "abs({})", "sign({})"]
            tame = ["sqrt(abs({}))", "exp(-abs({}))", "log(abs({}) + 1)", "(1 / (abs({}) + 0.1))"]
            return str(chance.choice([*wild, *tame, *tame])).format(part())
        case 7:
            return f"{chance.choice(['maximum', 'minimum'])}({part()}, {part()})"
        case 8:
            joined = f" {chance.choice('&|')} ".join(condition() for _ in range(chance.randrange(1, 4)))
            return f"where({joined}, {part()}, {part()})"
        case 9:
            host = chance.choice(
                ["step == 1", "lr > 0.5", "flag", "not lr", "lr == 0.5", "floor is None", "mode == 'plain'"]
            )
            return f"({part()} if {host} else {part()})"
        case 10:
            return f"{chance.choice(['norm', 'sum_all', 'max_abs', 'size'])}({part()})"
    return condition()


def tree(chance: Random) -> str:
    """A text of the right form; its expressions are wild."""
    lines = ["def made(param, grad, slot, *, step, loss, lr=0.1, beta1=0.9, flag=False, mode='plain', floor=None):"]
    names = []
    for _ in range(chance.randrange(8)):
        indent = "    "
        if chance.random() < 0.25:
            tests = ["flag", "not flag", "lr", "floor is None", "mode == 'plain'", "flag and beta1", "step", "lr > 0"]
            lines.append(f"    if {chance.choice(tests)}:")
            indent = "        "
        names.append(chance.choice(["a", "b", "slot", "grad", "param"]))
        lines.append(f"{indent}{names[-1]} = {expression(chance, chance.randrange(1, 5))}")
    lines.append(f"    return {expression(chance, 3)}, {chance.choice([*names, 'slot'])}")
    return "\n".join(lines)


def mutated(chance: Random) -> str:
    text = chance.choice([*VALID, tree(chance)])
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        at, length = chance.randrange(len(text) + 1), chance.choice([0, 1, 3, 10, 100])
        match chance.randrange(4):
            case 0:
                text = text[:at] + chance.choice(TOKENS) + text[at + length :]
            case 1:
                text = text[:at] + text[at + length :]
            case 2:
                other = chance.randrange(len(text) + 1)
                text = text[:at] + text[other : other + length] + text[at:]
            case 3:
                # A heap of one thing: what recursion and backtracking fear.
                text = text[:at] + chance.choice(TOKENS) * chance.choice([10, 90, 3000]) + text[at:]
        text = text or " "
    return text


def heap(chance: Random) -> str:
    head = chance.choice(
        ["", "def made(param, grad, *, lr=0.1):\n    return ", "def made(", "def made(param, grad):\n    "]
    )
    return head + "".join(chance.choice(TOKENS) for _ in range(chance.choice([1, 5, 30, 300, 5000])))


def try_text(chance: Random, text: str) -> bool:
    """Whether the text was admitted; then its settings, its program and the kernels' source are made as well."""
    definition = define_from_text(text)
    digest(definition)
    given = {name: chance.choice(HYPERPARAMETERS) for name in definition.arguments if chance.random() < 0.2}
    made: list[Settings] = []
    for values in ({}, given):
        try:
            made.append(make_settings("", None, values, {}, Moment(0, 0.0, None), text=text))
        except DomainError:
            continue
    for settings in made:
        emit(settings.program, "float32")
        _run_host(definition, settings)
    return bool(made)


def _run_host(definition: Definition, settings: Settings) -> None:
    for step in (1, 2, 10**6, 2**53):
        for number, stage in enumerate(settings.program.stages):
            reductions = [1.5] * sum(len(before.reductions) for before in settings.program.stages[:number])
            values = settings.values_of(settings.own)
            try:
                settings.program.host(
                    step, values, (), stage=number, reductions=reductions, size=4.0, given={"loss": 0.5}
                )
            except DomainError:
                continue
            assert stage.coefficients >= 0, definition.name


def main(seconds: float, seed: int, path: str) -> None:
    chance = Random(seed)
    present = os.open(path, os.O_RDWR | os.O_CREAT)
    # What the first call imports and compiles of its own is not the text's doing.
    for text in (*VALID, "def", "\u03b7 = 1", "def made(param, grad):\n    return param / 0"):
        try:
            try_text(chance, text)
        except DomainError:
            continue
    watch = Watch()
    begin = time.monotonic()
    tried = admitted = 0
    slowest = 0.0
    while time.monotonic() - begin < seconds:
        text = chance.choice([tree, tree, mutated, mutated, heap])(chance)
        written = f"seed {seed}, text {tried}: {text!a}".encode()
        os.pwrite(present, written, 0)
        os.ftruncate(present, len(written))
        # Ends the process with a traceback, also where C code does not come back to the interpreter.
        faulthandler.dump_traceback_later(EXAMPLE_SECONDS_MAX, exit=True)
        started = time.monotonic()
        watch.on = True
        try:
            admitted += try_text(chance, text)
        except DomainError as error:
            # It must fit into the trailers of a call.
            if len(str(error)) > 4000:
                raise Fault(f"a message of {len(str(error))} characters\n{text!a}") from None
        finally:
            watch.on = False
            faulthandler.cancel_dump_traceback_later()
        slowest = max(slowest, time.monotonic() - started)
        if watch.faults:
            raise Fault(f"{watch.faults[:3]}\n{text!a}")
        tried += 1
    sys.stdout.write(f"{tried} texts, {admitted} admitted, slowest {slowest:.2f} s\n")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
