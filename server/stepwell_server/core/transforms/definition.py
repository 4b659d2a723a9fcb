"""What a transform is: a rule that makes the gradient anew, compiled like an optimizer or written as array code."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stepwell_server.core.arguments import Range, Value, read_arguments, unknown
from stepwell_server.core.compiler.definition import GIVEN, ArrayRule, Definition, read_rule, register
from stepwell_server.core.errors import InvalidSpec, UnknownTransform

TRANSFORMS: dict[str, Definition] = {}

# What array code is told beside its arguments.
_TOLD = (*GIVEN, "index")


@dataclass(frozen=True)
class Transforming:
    """A transform with its values."""

    definition: Definition
    values: Mapping[str, Value]

    @property
    def spec(self) -> dict[str, Value]:
        return {"name": self.definition.name, **self.values}

    @property
    def prefix(self) -> str:
        """What its state's names begin with."""
        return f"{self.definition.name}_"


def parse_transforms(specs: Iterable[Mapping[str, Any]]) -> tuple[Transforming, ...]:
    """Transforms from plain data, [{"name": ..., arguments}], in the order in which they run.

    Raises UnknownTransform, InvalidSpec and what values raise. unscale comes first, and what keeps state only once.
    """
    parsed: list[Transforming] = []
    for spec in specs:
        name = str(spec.get("name", ""))
        if name not in TRANSFORMS:
            raise unknown(UnknownTransform, "transform", name, TRANSFORMS)
        definition = TRANSFORMS[name]
        if name == "unscale" and parsed:
            raise InvalidSpec("transform 'unscale' follows another one, expected it first: the others see true sizes")
        if (definition.state or name == "unscale") and any(each.definition is definition for each in parsed):
            raise InvalidSpec(f"transform '{name}' keeps state and is given twice, expected once; leave one out")
        given = {key: value for key, value in spec.items() if key != "name"}
        parsed.append(Transforming(definition, definition.resolve("", given)))
    return tuple(parsed)


def transform(
    *,
    reference: str,
    matches: str = "",
    scope: Literal["tensor", "group"] = "tensor",
    ranges: Mapping[str, Range] | None = None,
    choices: Mapping[str, tuple[str, ...]] | None = None,
    static: Iterable[str] = (),
    woven: Iterable[str] = (),
    infinite: Iterable[str] = (),
) -> Callable[[Callable[..., Any]], Definition]:
    """Make the decorated function a transform: (grad, [param,] *slots, *, ...) -> grad, *slots.

    scope: what reductions run over, one tensor or, as "group", all tensors of the run.
    """

    def define(function: Callable[..., Any]) -> Definition:
        takes_param = list(function.__annotations__)[:2] == ["grad", "param"]
        definition = read_rule(
            function,
            reference=reference,
            matches=matches,
            flavors={"": {}},
            ranges=ranges,
            choices=choices,
            static=static,
            scope=scope,
            woven=woven,
            arrays=("grad", "param") if takes_param else ("grad",),
            target="grad",
            kind="transform",
            infinite=infinite,
        )
        return register(definition, TRANSFORMS)

    return define


def array_transform(
    *,
    reference: str,
    matches: str = "",
    ranges: Mapping[str, Range] | None = None,
    choices: Mapping[str, tuple[str, ...]] | None = None,
    integers: Iterable[str] = (),
) -> Callable[[Callable[..., Any]], Definition]:
    """Make the decorated function a transform of single tensors: (xp, grad, param, *, ...) -> grad.

    By keyword it may ask for `step`, a number that updates bring, and `index`, the parameter's place in the run.
    """

    def define(function: Callable[..., Any]) -> Definition:
        arguments = read_arguments(function, ranges or {}, choices=choices, integers=integers, skip=_TOLD)
        definition = Definition(
            name=function.__name__,
            summary=(function.__doc__ or "").strip().splitlines()[0],
            reference=reference,
            matches=matches,
            body=(),
            state=(),
            scalars={},
            arguments=arguments,
            flavors={"": {}},
            fixed={},
            init={},
            refuse={},
            kind="transform",
            given=tuple(name for name in _TOLD if name in function.__annotations__),
            target="grad",
            arrays=ArrayRule(function, {}, lambda shape: None, 2),
        )
        return register(definition, TRANSFORMS)

    return define
