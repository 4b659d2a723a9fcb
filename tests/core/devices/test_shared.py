"""Memory that other processes map: what it may be used for, that it goes away, that commits leave gradients alone."""

import fcntl
import mmap
import os
import queue
import sys
import threading
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwell_server.core.devices.cpu import CpuDevice
from stepwell_server.core.devices.shared import SharedVectors
from stepwell_server.core.update import UpdateHeader
from tests.core.local import LocalRun
from tests.textbook.cases import CASES, Case, draw_run

SINGLE, DOUBLE = np.dtype("float32"), np.dtype("float64")


def descriptors() -> set[str]:
    """Those of this process that are shared memory; a link tells the inode by nothing but its number here."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if "memfd:stepwell" in str(entry.readlink()):
                found.add(entry.name)
    return found


def mapped(descriptor: int, size: int, protection: int) -> np.ndarray:
    return np.frombuffer(mmap.mmap(descriptor, size, mmap.MAP_SHARED, protection), SINGLE)


def test_a_vector_is_zeroed_aligned_and_told_from_all_others():
    shared = SharedVectors()
    vectors = [shared.allocate(1000, SINGLE, "a"), shared.allocate(7, DOUBLE, "b"), shared.allocate(0, SINGLE, "c")]
    assert [(len(vector), vector.dtype) for vector in vectors] == [(1000, SINGLE), (7, DOUBLE), (0, SINGLE)]
    assert not any(vector.any() for vector in vectors)
    assert all(vector.ctypes.data % mmap.PAGESIZE == 0 for vector in vectors)
    assert [shared.owner(vector) for vector in vectors] == ["a", "b", "c"]
    assert len({shared.number(vector) for vector in vectors}) == shared.count == 3
    assert shared.owner(np.zeros(3, SINGLE)) == ""
    # Views are the vector's own.
    assert shared.owner(vectors[0].view(np.uint8)) == "a"
    assert shared.owner(vectors[0][:10]) == "a"


def test_a_number_is_never_given_again():
    shared = SharedVectors()
    assert len({shared.number(shared.allocate(1, SINGLE, "a")) for _ in range(100)}) == 100


def test_both_sides_see_the_same_memory():
    shared = SharedVectors()
    vector = shared.allocate(1000, SINGLE, "a")
    theirs = mapped(shared.descriptor(vector, writable=True), vector.nbytes, mmap.PROT_READ | mmap.PROT_WRITE)
    vector[:] = 3
    assert (theirs == 3).all()
    theirs[7] = 5
    assert vector[7] == 5


@pytest.mark.parametrize("writable", [False, True])
def test_the_other_side_can_change_no_size_and_no_seal(writable: bool):
    shared = SharedVectors()
    vector = shared.allocate(1000, SINGLE, "a")
    descriptor = shared.descriptor(vector, writable=writable)
    for size in (0, 100, vector.nbytes + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    # Asked for again, it is what it was.
    assert shared.descriptor(vector, writable=not writable) == descriptor
    vector[:] = 1
    assert vector.sum() == 1000


def test_what_is_to_be_read_cannot_be_written():
    shared = SharedVectors()
    vector = shared.allocate(1000, SINGLE, "a")
    descriptor = shared.descriptor(vector, writable=False)
    for protection in (mmap.PROT_WRITE, mmap.PROT_READ | mmap.PROT_WRITE):
        with pytest.raises(PermissionError):
            mmap.mmap(descriptor, vector.nbytes, mmap.MAP_SHARED, protection)
    with pytest.raises(PermissionError):
        os.pwrite(descriptor, b"x", 0)
    # Opened anew, by whoever may look into /proc, it is the same memory under the same seals.
    again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            mmap.mmap(again, vector.nbytes, mmap.MAP_SHARED, mmap.PROT_WRITE)
    finally:
        os.close(again)
    theirs = mapped(descriptor, vector.nbytes, mmap.PROT_READ)
    assert not theirs.flags.writeable
    vector[:] = 2  # who made it writes on
    assert (theirs == 2).all()


def test_a_vector_goes_away_with_its_last_view():
    before = descriptors()
    shared = SharedVectors()
    vector = shared.allocate(1000, SINGLE, "a")
    view = vector.view(np.uint8)[40:80]
    theirs = mapped(shared.descriptor(vector, writable=False), vector.nbytes, mmap.PROT_READ)
    vector[:] = 4
    del vector
    assert shared.count == 1
    assert view.view(SINGLE)[0] == 4
    del view
    assert shared.count == 0
    # The other side has it as long as it likes.
    assert (theirs == 4).all()
    del theirs
    assert descriptors() == before


def test_vectors_that_go_away_on_another_thread():
    """Memory is unmapped without the interpreter's lock, so that its address may be a new vector's meanwhile."""
    shared = SharedVectors()
    boxes: queue.SimpleQueue[list[np.ndarray] | None] = queue.SimpleQueue()
    unraised: list[object] = []

    def drop() -> None:
        for box in iter(boxes.get, None):
            box.clear()

    before, hook, interval = descriptors(), sys.unraisablehook, sys.getswitchinterval()
    sys.unraisablehook = lambda failure: unraised.append(failure.exc_value)
    sys.setswitchinterval(1e-5)
    dropping = threading.Thread(target=drop)
    dropping.start()
    try:
        for number in range(500):
            boxes.put([shared.allocate(100_000, SINGLE, "old")])
            vectors = [shared.allocate(100_000, SINGLE, "new") for _ in range(3)]
            assert [shared.owner(vector) for vector in vectors] == ["new"] * 3, number
            assert len({shared.number(vector) for vector in vectors}) == 3
    finally:
        sys.setswitchinterval(interval)
        boxes.put(None)
        dropping.join()
        sys.unraisablehook = hook
    del vectors
    assert unraised == []
    assert shared.count == 0
    assert descriptors() == before


# One row for each optimizer and flavor; a variant's program is another, but reads gradients as this one does.
ROWS = [case for case in CASES if not case.variant]


@pytest.mark.parametrize("case", ROWS, ids=[case.id for case in ROWS])
def test_commits_leave_gradients_alone(case: Case, device):
    """A worker's own vectors are read where they lie: `keeps_gradients` must never say so of what writes to them."""
    drawn = draw_run(case, zlib.crc32(case.id.encode()), "float64", 3)
    lr = {} if case.name == "adadelta_ratio" else {"lr": {"name": "table", "values": list(drawn.lrs)}}
    local = LocalRun(
        drawn.params, case.name, flavor=case.flavor, hyperparameters=drawn.hyper, schedules=lr, device=device
    )
    changed = False
    for number, gradients in enumerate(drawn.grads):
        loss: dict[str, Any] = {} if drawn.losses is None else {"loss": drawn.losses[number]}
        staging = local.stage(gradients, **loss)
        before = [vector.tobytes() for vector in staging.vectors]
        vectors = staging.vectors
        local.commit(staging)
        local.sequence += 1
        changed |= before != [vector.tobytes() for vector in vectors]
    # Array code does write there, so that the test is seen to see it.
    assert changed != local.run.keeps_gradients


class Meddled(CpuDevice):
    """A device whose worker takes back what is not finite as soon as it has been copied."""

    def place(self, vector, packed, *more):
        super().place(vector, packed, *more)
        packed.view(vector.dtype)[:] = 0


def test_what_is_copied_is_what_is_tested(kernel_directory):
    local = LocalRun({"w": np.zeros(100)}, hyperparameters={"lr": 1.0}, device=Meddled(1, kernel_directory))
    header = UpdateHeader(local.identity(1))
    sizes = local.run.staging_sizes(header)
    staging = local.run.stage(
        header, dict(zip(sizes, local.memory.allocate(list(sizes.values()), "test"), strict=True))
    )
    theirs = {key: np.full(size.elements, np.nan) for key, size in sizes.items()}
    staging.take(local.memory.device, theirs)
    assert not any(vector[:100].any() for vector in theirs.values())
    assert all(np.isnan(vector[:100]).all() for vector in staging.vectors)
    assert staging.nonfinite is not None
