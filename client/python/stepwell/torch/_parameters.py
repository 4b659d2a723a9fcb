"""The model's parameters: their names, their groups, and where their gradients lie."""

import glob
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import torch

from stepwell.errors import InvalidValue

Array = np.ndarray[Any, Any]

_FLOATS: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Place:
    """One parameter that the run has.

    group: its index in param_groups. array, gradient: the memory from which its gradients go out, as NumPy and as
    PyTorch have it. present: the run's values, valid until the next step; version: PyTorch's count of writes to the
    parameter after they were copied to it. announce: called by backward with each gradient that it has made, while its
    object is still there: the parameter keeps this place, which shall not keep the optimizer.
    """

    def __init__(self, name: str, parameter: Any, group: int) -> None:
        if parameter.dtype not in _FLOATS:
            raise InvalidValue(
                f"parameter '{name}' is {parameter.dtype}, expected one of {', '.join(map(str, _FLOATS))}; leave it out"
            )
        self.name, self.parameter, self.group = name, parameter, group
        self.shape, self.dtype, self.device = parameter.shape, parameter.dtype, parameter.device
        self.array: Array | None = None
        self.gradient: Any = None
        self.present: Any = None
        self.version = 0
        self.announce: weakref.WeakMethod[Callable[[Place], None]] | None = None
        self._handle = parameter.register_post_accumulate_grad_hook(self._take)

    def check(self) -> None:
        """Raise InvalidValue where the parameter is no longer what the run was created with."""
        parameter = self.parameter
        for what in ("shape", "dtype", "device"):
            now, before = getattr(parameter, what), getattr(self, what)
            if now != before:
                raise InvalidValue(
                    f"parameter '{self.name}' has {what} {_shown(now)}, expected {_shown(before)}, as when the "
                    "optimizer was made; make another one, with a run of its own"
                )
        if self.written():
            raise InvalidValue(
                f"parameter '{self.name}' was written to since the last step, expected the run's values; call "
                "optimizer.send_parameters() to give the run yours, optimizer.pull() to get the run's"
            )

    def written(self) -> bool:
        """Whether the parameter has other values than the run's as of the last step."""
        parameter = self.parameter
        written: bool = parameter._version != self.version
        return written and not torch.equal(parameter.detach(), self.present.to(self.device))

    def outgoing(self) -> Array | None:
        """The gradient in the memory from which it goes out; None where there is none. Raises InvalidValue."""
        grad = self.parameter.grad
        if grad is None:
            return None
        if grad is not self.gradient:
            if grad.layout is not torch.strided:
                raise InvalidValue(
                    f"parameter '{self.name}' has a gradient of layout {grad.layout}, expected a dense one; make the "
                    "embedding with sparse=False, or keep it in a table of the run"
                )
            self.gradient.copy_(grad.detach())
        return self.array

    def lie_at(self, array: Array) -> None:
        """Let gradients go out from this memory from now on."""
        if array is not self.array:
            self.array, self.gradient = array, as_tensor(array)

    def show(self, values: Any) -> None:
        """Copy the run's values, which stay where they are until the next step, to the parameter."""
        self.present = values
        with torch.no_grad():
            self.parameter.copy_(values)
        self.version = self.parameter._version

    def forget_memory(self) -> None:
        """In a forked child: what the parent's server reads is the parent's."""
        if self.parameter.grad is self.gradient:
            self.parameter.grad = None
        self.array = self.gradient = None

    def release(self) -> None:
        """Follow the parameter no more."""
        self._handle.remove()

    def _take(self, parameter: Any) -> None:
        """Move a gradient that backward has just made to where it goes out; what is added to it then lands there.

        So zero_grad may set gradients to None, and those that backward does not reach stay None. It costs less than
        gradients that are there from the start: those are zeroed, then read and written once more to be added to.
        """
        grad, gradient = parameter.grad, self.gradient
        if grad is None or gradient is None:
            return
        movable = grad is not gradient and not grad.requires_grad and grad.layout is torch.strided
        if movable and grad.device == gradient.device and grad.dtype == gradient.dtype:
            if grad.data_ptr() != gradient.data_ptr():
                gradient.copy_(grad)
            parameter.grad = gradient
        announce = None if self.announce is None else self.announce()
        if announce is not None:
            announce(self)


def resolve(parameters: Any) -> tuple[list[dict[str, Any]], dict[Any, str]]:
    """Groups as torch.optim takes them, without what comes twice, and each tensor's name.

    parameters: a module, tensors, (name, tensor) pairs, or dictionaries with "params" of either. Names are the given
    ones, else "0", "1", ... in order. Raises InvalidValue where a name comes twice, and for no parameters at all.
    """
    if isinstance(parameters, torch.nn.Module):
        parameters = parameters.named_parameters()
    elif isinstance(parameters, torch.Tensor):
        raise TypeError("params is a tensor, expected a module, tensors, (name, tensor) pairs, or groups of them")
    items = list(parameters)
    groups = [dict(item) for item in items] if items and isinstance(items[0], Mapping) else [{"params": items}]
    names: dict[Any, str] = {}
    for group in groups:
        members = group["params"]
        kept = []
        for member in [members] if isinstance(members, torch.Tensor) else list(members):
            name, tensor = member if isinstance(member, tuple) else (str(len(names)), member)
            if tensor in names:
                continue  # tied: one parameter, under its first name
            names[tensor] = name
            kept.append(member)
        group["params"] = kept
    if len(set(names.values())) != len(names):
        twice = next(name for name in names.values() if list(names.values()).count(name) > 1)
        raise InvalidValue(f"got two parameters named '{twice}', expected a name for each; rename one of them")
    return groups, names


def pattern(name: str) -> str:
    """The glob that matches this name alone."""
    return glob.escape(name)


def as_tensor(array: Array) -> Any:
    """The array's memory as a tensor; NumPy and PyTorch have no bfloat16 in common."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def as_array(tensor: Any) -> Array:
    """A tensor's values as an array, over the CPU; shares memory where it can."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype is torch.bfloat16:
        import ml_dtypes  # noqa: PLC0415  # only who has such parameters needs it

        values: Array = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return values
    array: Array = tensor.numpy()
    return array


def _shown(value: Any) -> Any:
    return tuple(value) if isinstance(value, torch.Size) else value
