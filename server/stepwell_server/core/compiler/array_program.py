"""An optimizer of array code, specialised: which slots it has, their shapes, and one call per tensor."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stepwell_server.core.arguments import Value
from stepwell_server.core.compiler.definition import Definition, read_rule
from stepwell_server.core.errors import InvalidSpec

_EXAMPLE = (2, 2)


@dataclass(frozen=True)
class ArrayProgram:
    """values: those that decide which slots there are and their shapes."""

    definition: Definition
    values: Mapping[str, Value]

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots of this variant, in the order of the signature."""
        return tuple(name for name in self.definition.state if self._shape(name, _EXAMPLE) is not None)

    def slot_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a slot beside a parameter of some shape."""
        found = self._shape(name, shape)
        assert found is not None, f"{self.definition.name}: '{name}' comes and goes with the shape; make it empty"
        return found

    def check_shape(self, parameter: str, shape: tuple[int, ...]) -> None:
        """Raise InvalidSpec for a parameter that the rule cannot take."""
        rule = self.definition.arrays
        assert rule is not None
        objection = rule.takes(shape)
        if objection:
            raise InvalidSpec(
                f"optimizer '{self.definition.name}': parameter '{parameter}' has shape {shape}, expected {objection}; "
                "put it into a group with another optimizer",
                parameter=parameter,
                expected=objection,
            )

    def run(
        self, xp: Any, param: Any, grad: Any, slots: Mapping[str, Any], step: int, values: Mapping[str, Value]
    ) -> tuple[Any, dict[str, Any]]:
        """The new parameter, and the new slots by name. Over a group: lists of arrays in place of each array."""
        rule = self.definition.arrays
        assert rule is not None
        if values["maximize"]:
            grad = [-each for each in grad] if rule.scope == "group" else -grad
        arguments = {name: values[name] for name in self.definition.arguments if name != "maximize"}
        given = (slots.get(name) for name in self.definition.state)
        new, *state = rule.function(xp, param, grad, *given, step=step, **arguments)
        return new, {name: value for name, value in zip(self.definition.state, state, strict=True) if name in slots}

    def _shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        rule = self.definition.arrays
        assert rule is not None
        return rule.slots[name](shape, self.values)


def _adopt(param: Any, grad: Any) -> Any:
    """Take the new parameters that array code has left in the gradients' place."""
    return grad


# What the compiler makes of this is the pass that follows array code: wrappers see the parameters before and after.
ADOPT: Definition = read_rule(_adopt, reference="", flavors={"": {}})
