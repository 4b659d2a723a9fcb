"""One step of a small model: here the calls count, not the bytes."""

from contextlib import ExitStack, closing

import numpy as np

import stepwell
from stepwell_server.benchmarks.contest import Baseline, Contestant, compete
from stepwell_server.benchmarks.grpc_echo import GrpcEcho
from stepwell_server.benchmarks.options import ITEM_BYTES, Options, as_bytes, as_tensors, random_vector
from stepwell_server.benchmarks.peers import start, start_stepwell
from stepwell_server.benchmarks.report import Table

TENSORS = 200
ELEMENTS = 128
SIZE_BYTES = TENSORS * ELEMENTS * ITEM_BYTES

_BASELINES = (Baseline("unary", "unary echo"), Baseline("stream", "stream echo"))


def benchmark(options: Options) -> Table:
    """A step against bare calls that carry the same bytes."""
    grad = random_vector(TENSORS * ELEMENTS)
    incoming = np.zeros_like(grad)
    with ExitStack() as stack:
        peer = stack.enter_context(start("grpc_echo"))
        echo = stack.enter_context(closing(GrpcEcho(peer.address, as_bytes(grad), as_bytes(incoming))))
        server = stack.enter_context(start_stepwell())
        client = stack.enter_context(stepwell.connect(server.address, transport="stream"))
        sharing = stack.enter_context(stepwell.connect(server.address, transport="shared_memory"))
        grads = as_tensors(grad, TENSORS)
        shared = stack.enter_context(sharing.create_run("shared", grads, optimizer="adam"))
        run = stack.enter_context(client.create_run("small", grads, optimizer="adam"))
        tiny = stack.enter_context(client.create_run("tiny", {"w": grad[:1]}, optimizer="adam"))
        one = {"w": grad[:1]}
        contestants = [
            Contestant("unary", "bare unary gRPC call that echoes the same bytes; no update", echo.call),
            Contestant("stream", "bare gRPC stream, kept open, that echoes the same bytes; no update", echo.exchange),
            Contestant(
                "stepwell", f"Stepwell, stream: run.step(grads), Adam, {TENSORS} tensors", lambda: run.step(grads)
            ),
            Contestant("stepwell-shared", "Stepwell, shared memory: the same", lambda: shared.step(grads)),
            Contestant("stepwell-one", "Stepwell, stream: step(grads) of a single number", lambda: tiny.step(one)),
        ]
        return compete(
            f"One step of a small model over loopback: {TENSORS} tensors, {SIZE_BYTES / 1e3:.0f} KB each way",
            contestants,
            _BASELINES,
            rounds=options.small_rounds,
            warmup_rounds=min(50, options.small_rounds),
            unit="us",
        )
