"""What of the SDK is public: the names of its modules, and the members of their classes."""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any


def names_of(module: ModuleType) -> dict[str, Any]:
    """The public names of a module: its `__all__`, or what it defines itself."""
    if hasattr(module, "__all__"):
        return {name: getattr(module, name) for name in module.__all__}
    own = {name: value for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__}
    return {name: value for name, value in own.items() if not name.startswith("_")}


def members_of(kind: type) -> dict[str, Any]:
    """The public methods and properties that a class has from this project, inherited ones included."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.partition(".")[0] == "stepwell":
            described = {name: value for name, value in vars(base).items() if hasattr(value, "__get__")}
            found |= {name: getattr(kind, name) for name in described if not name.startswith("_")}
    return found


def arguments_of(function: Any) -> list[str]:
    """What a function takes, but for itself."""
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


def faults_of(module: ModuleType) -> Iterator[str]:
    """What of a module's documentation is missing, one line each."""
    for name, value in names_of(module).items():
        where = f"{module.__name__}.{name}"
        if not inspect.isclass(value):
            yield from _faults_of_function(where, value)
            continue
        if not vars(value).get("__doc__"):
            yield f"{where} has no docstring of its own"
        if dataclasses.is_dataclass(value):
            yield from (f"{where} does not say what {field} is" for field in _unexplained_fields(value))
        for member, function in members_of(value).items():
            yield from _faults_of_function(f"{where}.{member}", function)


def _faults_of_function(where: str, function: Any) -> Iterator[str]:
    text = inspect.getdoc(function) or ""
    if not text:
        yield f"{where} has no docstring"
    elif inspect.isroutine(function) and arguments_of(function) and "\n" not in text:
        yield f"{where} takes {', '.join(arguments_of(function))} and has a docstring of one line"


def _unexplained_fields(kind: type) -> Iterator[str]:
    """Fields that neither the class's docstring nor one of their own names."""
    source = inspect.getsource(kind)
    for field in dataclasses.fields(kind):
        in_class = re.search(rf"\b{field.name}\b[^.]*:\s", kind.__doc__ or "")
        own = re.search(rf'^    {field.name}: .*\n    """', source, re.MULTILINE)
        if not in_class and not own:
            yield field.name
