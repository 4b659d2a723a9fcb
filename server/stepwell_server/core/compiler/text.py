'''An optimizer as text: what a client sends, read with `ast` and never evaluated.

    def heavy_ball(param, grad, velocity, *, step, lr=1e-2, momentum=0.9):
        """Polyak 1964: a velocity that remembers."""
        velocity = momentum * velocity + grad
        return param - lr * velocity, velocity

The whole function, in the form of `definition.py`: after param and grad come the slots, which start at zero; keywords
are step, loss if every update brings it, and the hyperparameters with their defaults. maximize and, where there is lr,
weight decay are woven in. One error says what is wrong: InvalidSpec, with the line and column of the text.

A text passes through, in this order: its size; `ast.parse`; depth, operations, literals and names; the signature; the
whitelist of `grammar.py`; the kinds of `kinds.py`. Only then is anything made of it.
'''

import ast
import copy
import hashlib
import re
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from stepwell_server.core.arguments import Kind
from stepwell_server.core.compiler.bounds import DEPTH_MAX, PRODUCT_MAX, check_bounds, without_docstring
from stepwell_server.core.compiler.definition import (
    CUSTOM,
    OPTIMIZERS,
    WOVEN_ARGUMENTS,
    Definition,
    find_optimizer,
    weave,
)
from stepwell_server.core.compiler.functions import ARITIES
from stepwell_server.core.compiler.grammar import Refused, check_body
from stepwell_server.core.compiler.kinds import KindChecker
from stepwell_server.core.compiler.signature import FORM, check_returns, read_signature
from stepwell_server.core.errors import InvalidSpec

TEXT_CHARACTERS_MAX = 16_384
_SUMMARY_CHARACTERS_MAX = 200
_REASON_CHARACTERS_MAX = 1000

_STATEMENTS = "'name = expression', 'if flag:' and 'return param, slots...' in the signature's order"
_EXPRESSIONS = (
    "names, numbers, + - * / % **, comparisons, and, or, not, & and |, 'x if c else y', and calls of "
    f"{', '.join(sorted(ARITIES))}"
)
_NO_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_NEWLINE = re.compile(r"\r\n|\r|\n")


@lru_cache(maxsize=128)
def define_from_text(text: str) -> Definition:
    """The definition that a text holds; not registered. Raises InvalidSpec with the line and column.

    The same text gives the same definition, and so the same kernels.
    """
    source = Source(text)
    with source.refusing():
        tree = source.parse()
        check_bounds(tree)
        slots, arguments, given = read_signature(tree)
        body = without_docstring(tree)
        check_body(body, ["param", "grad", *slots, *given, *arguments])
        kinds = {name: argument.kind for name, argument in arguments.items()}
        KindChecker(["param", "grad", *slots], kinds, [*given, *WOVEN_ARGUMENTS]).check(body)
        check_returns(tree, body, ["param", *slots])
    rule: list[ast.stmt] = [_Floats().visit(statement) for statement in body]
    decays = kinds.get("lr") is Kind.NUMBER
    woven, arguments = weave([], arguments, ["maximize", *(["weight_decay"] if decays else [])])
    return Definition(
        name=tree.name,
        summary=(ast.get_docstring(tree) or tree.name).strip().splitlines()[0][:_SUMMARY_CHARACTERS_MAX],
        reference="",
        matches="",
        body=(*(_placed(statement, tree) for statement in woven), *rule),
        state=slots,
        scalars={},
        arguments=arguments,
        flavors={CUSTOM: {}},
        fixed={},
        init={},
        refuse={},
        given=given,
        text=text,
    )


def find_definition(optimizer: str, text: str) -> Definition:
    """The optimizer of a name, or of a text, whose function then has that name, or no name is given."""
    if not text:
        return find_optimizer(optimizer)
    definition = define_from_text(text)
    if optimizer not in ("", definition.name):
        raise InvalidSpec(
            f"optimizer is '{optimizer[:128]}' and the definition's function is '{definition.name}', expected one "
            "name; leave optimizer out or give it the function's name",
            got=optimizer[:128],
            expected=definition.name,
        )
    if definition.name in OPTIMIZERS:
        raise InvalidSpec(
            f"definition: the function is called '{definition.name}', which is an optimizer of the server's, expected "
            "another name; rename it, or leave the definition out",
            got=definition.name,
            **Source(text).place(0, 0),
        )
    return definition


@lru_cache(maxsize=128)
def digest(definition: Definition) -> str:
    """The same for texts that differ in white space, comments and docstring only; "" where there is no text."""
    if not definition.text:
        return ""
    tree = Source(definition.text).parse()
    tree.body = without_docstring(tree)
    tree = _Floats().visit(tree)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


@contextmanager
def refusing(definition: Definition) -> Iterator[None]:
    """Turn what the compiler refuses of a definition from text into InvalidSpec; other definitions are not touched."""
    if not definition.text:
        yield
        return
    with Source(definition.text).refusing():
        yield


class Source:
    """A text with its places: lines and columns count from 1, in characters of what the client sent."""

    def __init__(self, text: str) -> None:
        self._length = len(text)
        self._sent = _NEWLINE.split(text[:TEXT_CHARACTERS_MAX])
        self._dedented = textwrap.dedent("\n".join(self._sent))
        self._lines = self._dedented.split("\n")
        first = next((number for number, line in enumerate(self._lines) if line.strip()), 0)
        self._margin = len(self._sent[first]) - len(self._lines[first])

    def parse(self) -> ast.FunctionDef:
        """The one function of the text; raises InvalidSpec."""
        if self._length > TEXT_CHARACTERS_MAX:
            reason = f"the text has {self._length} characters, expected at most {TEXT_CHARACTERS_MAX}; shorten it"
            raise self.error(reason, 1, -self._margin, in_bytes=False)
        self._check_characters()
        try:
            with warnings.catch_warnings():
                # About escapes in docstrings, say; there is nobody to read it.
                warnings.simplefilter("ignore")
                # For its message about a mistake Python looks into the file of this name; no file has none.
                module = ast.parse(self._dedented, filename="")
        except SyntaxError as error:
            offset = max((error.offset or 1) - 1, 0)
            raise self.error(f"{error.msg}, expected {FORM}", error.lineno or 1, offset, in_bytes=False) from None
        except (RecursionError, MemoryError):
            raise self.error(f"the text nests too deep, expected at most {DEPTH_MAX}; simplify it", 1, 0) from None
        except ValueError as error:
            raise self.error(f"{error}, expected {FORM}", 1, 0) from None
        functions = [node for node in module.body if isinstance(node, ast.FunctionDef)]
        odd: ast.stmt | None = next((node for node in module.body if not isinstance(node, ast.FunctionDef)), None)
        odd = odd or (functions[1] if len(functions) > 1 else None)
        if odd is not None or not functions:
            line, offset = (odd.lineno, odd.col_offset) if odd else (1, 0)
            raise self.error(f"one function and nothing else has a place in the text, expected {FORM}", line, offset)
        return functions[0]

    @contextmanager
    def refusing(self) -> Iterator[None]:
        try:
            yield
        except Refused as refused:
            reason = refused.reason
            if "expected" not in reason:
                allowed = _STATEMENTS if isinstance(refused.node, ast.stmt) else _EXPRESSIONS
                reason = f"{reason}, expected {allowed}"
            raise self.error(reason, refused.line or 0, refused.offset or 0) from None

    def error(self, reason: str, line: int, offset: int, *, in_bytes: bool = True) -> InvalidSpec:
        """line 0: the place is not known."""
        place = self.place(line, offset, in_bytes=in_bytes)
        reason = reason if len(reason) <= _REASON_CHARACTERS_MAX else f"{reason[:_REASON_CHARACTERS_MAX]}..."
        return InvalidSpec(
            f"definition, line {place['line']}, column {place['column']}: {reason}", argument="definition", **place
        )

    def place(self, line: int, offset: int, *, in_bytes: bool = True) -> dict[str, object]:
        if not line:
            found = next((number for number, text in enumerate(self._lines) if text.startswith("def ")), 0)
            return {"line": found + 1, "column": self._margin + 1}
        text = self._lines[line - 1] if 0 < line <= len(self._lines) else ""
        column = len(text.encode(errors="replace")[:offset].decode(errors="replace")) if in_bytes else offset
        return {"line": line, "column": self._margin + column + 1}

    def _check_characters(self) -> None:
        for number, line in enumerate(self._sent, 1):
            # NUL ends a text for the parser; half a surrogate pair cannot be encoded.
            odd = _NO_TEXT.search(line)
            if odd:
                reason = (
                    f"the character {odd[0]!a} has no place in the text, expected letters, signs and spaces; drop it"
                )
                raise self.error(reason, number, odd.start() - self._margin, in_bytes=False)


def _placed(statement: ast.stmt, tree: ast.FunctionDef) -> ast.stmt:
    """A woven statement, as if it stood at the head of the function."""
    statement = copy.deepcopy(statement)
    for node in ast.walk(statement):
        ast.copy_location(node, tree)
        if hasattr(node, "end_lineno"):
            node.end_lineno = tree.lineno
    return statement


class _Floats(ast.NodeTransformer):
    """Makes every number of the host a float: Python's integers grow without end, `2**10**10` for ever."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        match node:
            case ast.BinOp(op=ast.Pow(), right=ast.Constant(value=int(power))) if 1 <= power <= PRODUCT_MAX:
                node.left = self.visit(node.left)
                return node
        self.generic_visit(node)
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if isinstance(node.value, int) and not isinstance(node.value, bool):
            return ast.copy_location(ast.Constant(float(node.value)), node)
        return node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id != "step":
            return node
        step = ast.BinOp(ast.copy_location(ast.Constant(1.0), node), ast.Mult(), node)
        return ast.copy_location(step, node)
