"""One step of a large run: gradients there, the update, parameters back."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

import stepwell
from stepwell._calls import Transport
from tests.benchmarks.contest import Baseline, Contestant, compete
from tests.benchmarks.grpc_echo import GrpcEcho
from tests.benchmarks.options import Floats, Options, as_bytes, as_tensors, has_torch, random_vector
from tests.benchmarks.peers import start, start_stepwell
from tests.benchmarks.report import Table
from tests.benchmarks.tcp_echo import TcpEcho, When

_BASELINES = (
    Baseline("tcp", "raw TCP"),
    Baseline("torch-rpc", "torch rpc"),
    Baseline("torch-local", "local"),
)
_TCP: dict[When, tuple[str, str]] = {
    "arriving": ("tcp", "raw TCP echo of the same bytes, echoed as they arrive; no update"),
    "whole": ("tcp-whole", "raw TCP echo, sent back only once all has come, as a step must; no update"),
}


def benchmark(options: Options) -> Table:
    """Every way to take the step, side by side."""
    grad = random_vector(options.size)
    incoming = np.zeros_like(grad)
    with ExitStack() as stack:
        contestants = [
            *_tcp(stack, grad, incoming),
            _grpc(stack, grad, incoming),
            *_stepwell(stack, options, grad),
            *(_torch(stack, grad) if has_torch() else ()),
        ]
        return compete(
            f"One step over loopback: {options.size:,} float32 parameters, {options.size_bytes / 1e6:.0f} MB each way",
            contestants,
            _BASELINES,
            rounds=options.rounds,
            warmup_rounds=2,
            notes=()
            if has_torch()
            else ("PyTorch is not installed, so its rows are missing; see docs/benchmarks.md.",),
        )


def _tcp(stack: ExitStack, grad: Floats, incoming: Floats) -> Iterator[Contestant]:
    for when, (key, words) in _TCP.items():
        peer = stack.enter_context(start("tcp_echo", grad.nbytes, when))
        echo = stack.enter_context(closing(TcpEcho(peer.address, as_bytes(grad), as_bytes(incoming))))
        _check(echo, grad, incoming)
        yield Contestant(key, words, echo.exchange)


def _grpc(stack: ExitStack, grad: Floats, incoming: Floats) -> Contestant:
    peer = stack.enter_context(start("grpc_echo"))
    echo = stack.enter_context(closing(GrpcEcho(peer.address, as_bytes(grad), as_bytes(incoming))))
    _check(echo, grad, incoming)
    return Contestant("grpc", "bare gRPC stream, 1 MiB messages, bytes copied in and out; no update", echo.exchange)


def _stepwell(stack: ExitStack, options: Options, grad: Floats) -> Iterator[Contestant]:
    peer = stack.enter_context(start_stepwell("--max-memory", options.server_memory()))
    grads = as_tensors(grad)

    def train(transport: Transport) -> stepwell.Run:
        client = stack.enter_context(stepwell.connect(peer.address, transport=transport))
        run = client.create_run(transport, as_tensors(random_vector(options.size)), optimizer="adam")
        return stack.enter_context(run)

    stream, shared = train("stream"), train("shared_memory")
    out = {name: np.empty_like(part) for name, part in grads.items()}
    kept: dict[str, object] = {}

    def fresh() -> None:
        # A trainer drops the old parameters when it has the new ones.
        kept["fresh"] = stream.step(grads)

    yield Contestant("stepwell", "Stepwell, stream: run.step(grads), Adam, finite check on", fresh)
    yield Contestant(
        "stepwell-out",
        "Stepwell, stream: run.step(grads, out=...) into arrays kept",
        lambda: stream.step(grads, out=out),
    )

    def copying() -> None:
        kept["copying"] = shared.step(grads)

    yield Contestant("shared", "Stepwell, shared memory: run.step(grads), ordinary arrays in and out", copying)
    # Another run, since the one above would let go of what the views show.
    client = stack.enter_context(stepwell.connect(peer.address, transport="shared_memory"))
    resident = stack.enter_context(
        client.create_run("resident", as_tensors(random_vector(options.size)), optimizer="adam")
    )
    own = resident.gradients()
    for name, part in grads.items():
        own[name][...] = part
    views: dict[str, Any] = {"now": resident.parameters()}

    def in_place() -> None:
        views["now"] = resident.step(own, out=views["now"])

    yield Contestant("resident", "Stepwell, shared memory: gradients() in, parameters() out, nothing copied", in_place)


def _torch(stack: ExitStack, grad: Floats) -> Iterator[Contestant]:
    # These import PyTorch, which may be missing.
    from tests.benchmarks.torch_adam import TorchAdam
    from tests.benchmarks.torch_rpc import TorchRpc

    rendezvous = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "rendezvous"
    stack.enter_context(start("torch_rpc", grad.size, rendezvous))
    worker = stack.enter_context(closing(TorchRpc(rendezvous, grad)))
    yield Contestant("torch-rpc", "torch.distributed.rpc (TensorPipe) with fused Adam; no finite check", worker.step)
    local = TorchAdam(random_vector(grad.size), grad, np.zeros_like(grad), np.zeros_like(grad), fused=True)
    yield Contestant("torch-local", "PyTorch fused Adam in the trainer itself; no service", local.step)


def _check(echo: TcpEcho | GrpcEcho, grad: Floats, incoming: Floats) -> None:
    """One exchange, to see that it brings back what was sent."""
    incoming.fill(0)
    echo.exchange()
    assert np.array_equal(incoming, grad), "the echo differs from what was sent"
