"""What the server's process takes, beside what it must."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

import stepwell
from tests.end_to_end.server import Server

ELEMENTS = 25_000_000


def test_memory_of_a_large_run(start: Callable[..., Server], connect: Callable[..., stepwell.Client]) -> None:
    """Parameters and slots, one staged update, and under 300 MB besides."""
    server = start()
    client = connect(server)
    parameters = {"w": np.zeros((5000, 5000), np.float32)}
    vector_bytes = parameters["w"].nbytes
    assert parameters["w"].size == ELEMENTS
    run = client.create_run("large", parameters, optimizer="adam", flavor="torch")
    gradients = {"w": np.ones((5000, 5000), np.float32)}
    for _ in range(5):
        run.push(gradients)
        got = run.pull(out=parameters)
        assert got is not None
    assert run.version == 5
    assert (parameters["w"] < 0).all()
    assert peak_bytes(server) < 3 * vector_bytes + vector_bytes + 300 * 10**6


def peak_bytes(server: Server) -> int:
    """The most memory that the process has had."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) << 10
