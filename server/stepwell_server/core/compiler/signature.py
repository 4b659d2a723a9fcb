"""What the signature of a text's function declares: slots, hyperparameters, and what the run gives."""

import ast

from stepwell_server.core.arguments import ANY, REQUIRED, Argument, Kind, Required, Value
from stepwell_server.core.compiler.definition import GIVEN, RANGES, WOVEN_ARGUMENTS
from stepwell_server.core.compiler.functions import ARITIES
from stepwell_server.core.compiler.grammar import INFINITY, Refused
from stepwell_server.core.errors import DomainError

# Each slot is as large as the parameters.
SLOTS_MAX = 16
HYPERPARAMETERS_MAX = 32
LIST_LENGTH_MAX = 64

FORM = "def name(param, grad, slots..., *, step, lr=1e-3, ...):"
# Names that mean something already: to bodies, to a run, or as an alias of hyperparameters.
_RESERVED = frozenset(
    {"param", "grad", *GIVEN, INFINITY, "betas", "lookahead_grad", "hessian", *WOVEN_ARGUMENTS, *ARITIES}
)
_TAKEN = ("step", "loss")


def read_signature(tree: ast.FunctionDef) -> tuple[tuple[str, ...], dict[str, Argument], tuple[str, ...]]:
    """The slots, the hyperparameters, and what the run gives."""
    given = tree.args
    _check_name(tree.name, tree)
    for part, what in (
        *((decorator, "a decorator") for decorator in tree.decorator_list),
        (tree.returns, "an annotation of what is returned"),
        *((part, "a type parameter") for part in getattr(tree, "type_params", [])),
        *((argument, "a positional-only argument") for argument in given.posonlyargs),
        (given.vararg, "*args"),
        (given.kwarg, "**kwargs"),
        *((default, "a default of param, grad or a slot") for default in given.defaults),
    ):
        if part is not None:
            raise Refused(f"{what} has no place in the signature, expected {FORM}", part)
    names = [argument.arg for argument in given.args]
    if names[:2] != ["param", "grad"]:
        odd = next((each for each, name in zip(given.args, ("param", "grad"), strict=False) if each.arg != name), tree)
        raise Refused(f"the arguments begin with {', '.join(names[:2]) or 'none'}, expected param, grad: {FORM}", odd)
    slots, keywords = given.args[2:], given.kwonlyargs
    for limit, what, listed in ((SLOTS_MAX, "slots", slots), (HYPERPARAMETERS_MAX, "hyperparameters", keywords)):
        if len(listed) > limit:
            raise Refused(f"there are {len(listed)} {what}, expected at most {limit}", listed[limit])
    seen: set[str] = set()
    for argument in (*slots, *keywords):
        own = argument in keywords and argument.arg in _TAKEN
        if not own:
            _check_name(argument.arg, argument)
        if argument.arg in seen:
            raise Refused(f"'{argument.arg}' stands twice in the signature, expected each name once", argument)
        seen.add(argument.arg)
    for argument in (*given.args, *keywords):
        if argument.annotation is not None and not isinstance(argument.annotation, ast.Name):
            raise Refused("an annotation is not read, expected none or one name", argument.annotation)
    arguments = {}
    for argument, default in zip(keywords, given.kw_defaults, strict=True):
        if argument.arg not in _TAKEN:
            arguments[argument.arg] = _read_argument(argument, default)
        elif default is not None:
            raise Refused(f"'{argument.arg}' is given by the run, expected no default", default)
    names = [argument.arg for argument in keywords]
    return tuple(each.arg for each in slots), arguments, tuple(name for name in _TAKEN if name in names)


def _check_name(name: str, node: ast.AST) -> None:
    if name in WOVEN_ARGUMENTS:
        raise Refused(f"'{name}' is woven in by the server, expected no argument of this name; leave it out", node)
    if name in _RESERVED or name.startswith("_"):
        raise Refused(f"'{name}' is a name of the server's own, expected another one", node)


def _read_argument(argument: ast.arg, default: ast.expr | None) -> Argument:
    name = argument.arg
    kind, value = Kind.NUMBER, _read_default(name, default)
    if isinstance(value, bool):
        kind = Kind.FLAG
    elif isinstance(value, str):
        kind = Kind.TEXT
    elif isinstance(value, tuple):
        kind = Kind.NUMBERS
    limits = RANGES.get(name, ANY) if kind in (Kind.NUMBER, Kind.NUMBERS) else ANY
    declared = Argument(name, kind, value, optional=value is None, range=limits)
    if not isinstance(value, Required):
        try:
            declared.check(value, "the signature")
        except DomainError as error:
            raise Refused(str(error), default) from None
    return declared


def _read_default(name: str, node: ast.expr | None) -> Value | Required:
    match node:
        case None:
            return REQUIRED
        case ast.Constant(value=bool() | str() | None as value):
            return value
        case ast.List(elts=parts) | ast.Tuple(elts=parts) if len(parts) <= LIST_LENGTH_MAX:
            return tuple(_read_number(name, part) for part in parts)
    return _read_number(name, node)


def _read_number(name: str, node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return float(number)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as number)):
            if not isinstance(number, bool):
                return -float(number) if isinstance(sign, ast.USub) else float(number)
    raise Refused(
        f"the default of '{name}' is no literal, expected a number, True or False, a text, None, or a list of up to "
        f"{LIST_LENGTH_MAX} numbers",
        node,
    )


def check_returns(tree: ast.FunctionDef, body: list[ast.stmt], names: list[str]) -> None:
    """Raise Refused for a return without one value for each name, and for a path that does not end in one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Return) and node.value is not None:
            count = len(node.value.elts) if isinstance(node.value, ast.Tuple) else 1
            if count != len(names):
                raise Refused(f"{count} values are returned, expected those of {', '.join(names)}; return all", node)
    if not _ends(body):
        raise Refused("a path ends without a return, expected one at its end", body[-1] if body else tree)


def _ends(body: list[ast.stmt]) -> bool:
    return any(
        isinstance(statement, ast.Return)
        or (isinstance(statement, ast.If) and _ends(statement.body) and _ends(statement.orelse))
        for statement in body
    )
