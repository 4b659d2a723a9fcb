"""What a device is: memory for vectors, compiled kernels, and the ways in and out. `cpu` and `cuda` are the two."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # the command line asks for DeviceUnavailable alone, and should not load the compiler for that
    from stepwell_server.core.compiler.program import Program
    from stepwell_server.core.devices.shared import SharedVectors
    from stepwell_server.core.pieces import Pieces

# A flat array in the device's memory: NumPy's on the CPU, CuPy's on a GPU.
Vector = NDArray[Any]
Bytes = NDArray[np.uint8]
Offsets = NDArray[np.int64]

ALIGNMENT_BYTES = 64


class DeviceUnavailable(Exception):
    """The device that was asked for is not there, or what drives it is not installed; the message says what to do."""


class Kernel(Protocol):
    """A program compiled for one dtype. Launches of one device run in the order in which they are made."""

    def update(
        self, pieces: "Pieces", table: NDArray[Any], arrays: Mapping[str, Vector], out: Vector | None = None
    ) -> None:
        """Run the last stage. table: coefficients by row, of the vectors' type. out: where the new parameters go."""

    def reduce(
        self, stage: int, pieces: "Pieces", table: NDArray[Any], arrays: Mapping[str, Vector]
    ) -> Callable[[], NDArray[np.float64]]:
        """Run an earlier stage: what each row of the table gives for each reduction, before the root of a norm.

        The function that is returned waits for the result, so that several launches can be under way.
        """


class Access(Protocol):
    """The ways in and out of vectors, as far as files need them."""

    def read(self, vector: Vector, begin: int, end: int) -> memoryview:
        """Bytes of a vector, from `begin` to `end`; in the vector's own memory where that is the host's."""

    def write(self, vector: Vector, begin: int, values: NDArray[Any]) -> None:
        """Set the elements that start at `begin` to values in host memory."""


class HostMemory:
    """Vectors in the host's memory."""

    def read(self, vector: Vector, begin: int, end: int) -> memoryview:
        """Bytes of a vector, in its own memory."""
        return vector.view(np.uint8).data[begin:end]

    def write(self, vector: Vector, begin: int, values: NDArray[Any]) -> None:
        """Set the elements that start at `begin`."""
        vector[begin : begin + len(values)] = values


class Device(Access, Protocol):
    """Every method is safe on any thread. Where an array in host memory is given in place of a vector, it serves, too.

    What is enqueued is done in order; methods that return contents wait for them.
    """

    @property
    def xp(self) -> Any:
        """The module of array functions for array code. Ask for it on the thread that runs the code."""

    @property
    def shared(self) -> "SharedVectors | None":
        """Vectors that other processes can map; None where the device has no such memory."""

    def check_holds(self, bytes_max: int) -> None:
        """Raise DeviceUnavailable if the device has not so much memory free."""

    def allocate(self, elements: int, dtype: np.dtype[Any]) -> Vector:
        """A zeroed vector on a 64-byte boundary."""

    def compile(self, program: "Program", dtype: np.dtype[Any]) -> Kernel:
        """The program's kernel for a dtype, kept in memory and on disk."""

    def place(
        self,
        vector: Vector,
        packed: Bytes,
        begin: int,
        packed_offsets: Offsets,
        vector_offsets: Offsets,
        dtype: np.dtype[Any] | None = None,
    ) -> None:
        """Copy packed bytes, which begin at packed offset `begin`, to their places in a vector.

        dtype: what the bytes hold, where that is not the vector's type; they are converted. Offsets are in bytes, of
        the vector's type in both cases.
        """

    def gather(
        self,
        vector: Vector,
        packed: Bytes,
        begin: int,
        packed_offsets: Offsets,
        vector_offsets: Offsets,
        dtype: np.dtype[Any] | None = None,
    ) -> None:
        """The way back: fill `packed` with the elements that begin at packed offset `begin`, as `dtype`."""

    def is_finite(self, packed: Bytes, dtype: np.dtype[Any]) -> bool:
        """Whether no element in host memory is a NaN or an infinity; a whole number of elements of `dtype`."""

    def finite_pieces(self, vector: Vector, begins: Offsets, ends: Offsets) -> bool:
        """Whether no element from some begin to its end, in elements, is a NaN or an infinity; in host memory."""

    def copy(self, source: Vector, target: Vector) -> None:
        """Copy a whole vector."""

    def fill(self, vector: Vector, value: float) -> None:
        """Set every element."""

    def fold(
        self,
        target: Vector,
        source: Vector,
        begins: Offsets,
        ends: Offsets,
        kept: float,
        share: float,
        base: Vector | None = None,
    ) -> None:
        """Make the target's elements, from each begin to its end, kept * base + share * source.

        base: the target itself by default. With a factor of 0 what it stands before does not count, not even a NaN.
        """

    def close(self) -> None:
        """End the device's threads; it cannot be used any more."""


def open_device(name: str, threads: int, kernel_directory: Path | None = None) -> Device:
    """The device called cpu, cuda (the first GPU) or cuda:N. threads: of the CPU device.

    Raises DeviceUnavailable.
    """
    match = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", name)
    if match is None:
        raise DeviceUnavailable(f"there is no device {name!r}, expected cpu, cuda or cuda:N; choose one of them")
    # Each brings a compiler that takes long to import, and only one of them is needed.
    if name == "cpu":
        from stepwell_server.core.devices.cpu import CpuDevice  # noqa: PLC0415

        return CpuDevice(threads, kernel_directory)
    from stepwell_server.core.devices.cuda import CudaDevice  # noqa: PLC0415

    return CudaDevice(int(match[1] or 0), kernel_directory)
