"""Emitted CUDA text as a library of the machine's C++ compiler, and its kernels as Python functions.

`cuda_shim.h` says what this shows and what not. Many texts go into one translation unit, which is quicker; each lies in
a namespace, and its kernels bear its number.
"""

import ctypes
import itertools
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HEADER = Path(__file__).with_name("cuda_shim.h")

_KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\(\w+\) )?(\w+)\(([^)]*)\)')

# A float that silently becomes a double is an error: on a device it costs, and the bits differ.
_OPTIONS = ["-std=c++17", "-O0", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-Wdouble-promotion"]
_HARMLESS = ["unknown-pragmas", "unused-function", "unused-parameter", "unused-but-set-variable", "unused-variable"]

Kernel = Callable[..., None]


def compiler() -> str:
    found = shutil.which("g++") or shutil.which("c++")
    assert found, "no C++ compiler, expected g++; install it (Debian: apt-get install g++)"
    return found


def build(texts: Sequence[str], directory: Path, name: str) -> list[dict[str, Kernel]]:
    """For each text its kernels by name: each takes (blocks, threads, *arguments), arrays as NumPy arrays."""
    # Beside its first line, a comment, a text may be another's.
    bodies = [text.split("\n", 1)[1] for text in texts]
    numbers = {body: number for number, body in enumerate(dict.fromkeys(bodies))}
    shared = _shared(list(numbers))
    parts = [f'#include "{HEADER}"', shared, *(_wrapped(body[len(shared) :], n) for body, n in numbers.items())]
    source = directory / f"{name}.cpp"
    source.write_text("\n".join(parts))
    library = source.with_suffix(".so")
    options = [*_OPTIONS, *(f"-Wno-{each}" for each in _HARMLESS)]
    done = subprocess.run(
        [compiler(), *options, "-o", str(library), str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[:4000]
    loaded = ctypes.CDLL(str(library))
    return [
        {kernel: _function(loaded, f"launch_{numbers[body]}_{kernel}") for kernel, _ in _KERNEL.findall(body)}
        for body in bodies
    ]


def _shared(bodies: Sequence[str]) -> str:
    """The lines that all begin with, up to the last empty one: compiled once."""
    beginnings = zip(*(body[: body.index("extern")].split("\n\n")[:-1] for body in bodies), strict=False)
    same = itertools.takewhile(lambda parts: len(set(parts)) == 1, beginnings)
    return "".join(f"{parts[0]}\n\n" for parts in same)


def _wrapped(text: str, number: int) -> str:
    """The text in a namespace, each kernel with a launcher that takes its arguments as they are."""
    found = list(_KERNEL.finditer(text))
    renames = [f"#define {each[1]} kernel_{number}_{each[1]}" for each in found]
    launchers = []
    for each, end in zip(found, [*(following.start() for following in found[1:]), len(text)], strict=True):
        kernel, parameters = each[1], each[2].strip()
        names = ", ".join(re.findall(r"(\w+)\s*(?:,|$)", parameters))
        how = "LAUNCH_WITH_BARRIERS" if "join(" in text[each.end() : end] else "LAUNCH"
        launchers.append(
            f'extern "C" void launch_{number}_{kernel}(unsigned blocks, unsigned threads, {parameters}) {{\n'
            f"    {how}(blocks, threads, {kernel}({names}));\n}}"
        )
    forgotten = [f"#undef {each[1]}" for each in found]
    return "\n".join([f"namespace text_{number} {{", *renames, text, *launchers, *forgotten, "}"])


def _function(library: ctypes.CDLL, name: str) -> Kernel:
    function = getattr(library, name)
    function.restype = None

    def launch(blocks: int, threads: int, *arguments: Any) -> None:
        function(ctypes.c_uint(blocks), ctypes.c_uint(threads), *map(_argument, arguments))

    return launch


def _argument(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        assert value.flags.c_contiguous
        return ctypes.c_void_p(value.ctypes.data)
    return ctypes.c_longlong(value)
