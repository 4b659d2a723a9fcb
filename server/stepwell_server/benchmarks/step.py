"""One step of a large run: gradients there, the update, parameters back."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

import stepwell
from stepwell._calls import Transport
from stepwell_server.benchmarks.contest import Baseline, Contestant, compete
from stepwell_server.benchmarks.grpc_echo import GrpcEcho
from stepwell_server.benchmarks.options import (
    Floats,
    Options,
    as_bytes,
    as_tensors,
    has_ray,
    has_torch,
    missing,
    random_vector,
)
from stepwell_server.benchmarks.peers import start, start_stepwell
from stepwell_server.benchmarks.report import Table
from stepwell_server.benchmarks.tcp_echo import TcpEcho, When

_BASELINES = (
    Baseline("tcp", "raw TCP"),
    Baseline("torch-rpc", "torch rpc"),
    Baseline("ray", "Ray"),
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
            *(_ray(stack, grad) if has_ray() else ()),
        ]
        return compete(
            f"One step over loopback: {options.size:,} float32 parameters, {options.size_bytes / 1e6:.0f} MB each way",
            contestants,
            _BASELINES,
            rounds=options.rounds,
            warmup_rounds=2,
            notes=missing(),
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

    if "stream" in options.transports:
        yield from _streaming(stack, peer.address, grads)
    if "shared_memory" in options.transports:
        yield from _sharing(stack, peer.address, grads)


def _streaming(stack: ExitStack, address: str, grads: dict[str, Floats]) -> Iterator[Contestant]:
    run = _train(stack, address, "stream", "stream", grads)
    out = {name: np.empty_like(part) for name, part in grads.items()}
    kept: dict[str, object] = {}

    def fresh() -> None:
        # A trainer drops the old parameters when it has the new ones.
        kept["now"] = run.step(grads)

    yield Contestant("stepwell", "Stepwell, stream: run.step(grads), Adam, finite check on", fresh)
    yield Contestant(
        "stepwell-out",
        "Stepwell, stream: run.step(grads, out=...) into arrays kept",
        lambda: run.step(grads, out=out),
    )


def _sharing(stack: ExitStack, address: str, grads: dict[str, Floats]) -> Iterator[Contestant]:
    run = _train(stack, address, "shared_memory", "copied", grads)
    kept: dict[str, object] = {}

    def copying() -> None:
        kept["now"] = run.step(grads)

    yield Contestant("shared", "Stepwell, shared memory: run.step(grads), ordinary arrays in and out", copying)
    # Another run, since the one above would let go of what the views show.
    resident = _train(stack, address, "shared_memory", "resident", grads)
    own = resident.gradients()
    for name, part in grads.items():
        own[name][...] = part
    views: dict[str, Any] = {"now": resident.parameters()}

    def in_place() -> None:
        views["now"] = resident.step(own, out=views["now"])

    yield Contestant("resident", "Stepwell, shared memory: gradients() in, parameters() out, nothing copied", in_place)


def _train(stack: ExitStack, address: str, transport: Transport, name: str, like: dict[str, Floats]) -> stepwell.Run:
    client = stack.enter_context(stepwell.connect(address, transport=transport))
    return stack.enter_context(client.create_run(name, like, optimizer="adam"))


def _torch(stack: ExitStack, grad: Floats) -> Iterator[Contestant]:
    # These import PyTorch, which may be missing.
    from stepwell_server.benchmarks.torch_adam import TorchAdam
    from stepwell_server.benchmarks.torch_rpc import TorchRpc

    rendezvous = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "rendezvous"
    stack.enter_context(start("torch_rpc", grad.size, rendezvous))
    worker = stack.enter_context(closing(TorchRpc(rendezvous, grad)))
    yield Contestant("torch-rpc", "torch.distributed.rpc (TensorPipe) with fused Adam; no finite check", worker.step)
    local = TorchAdam(random_vector(grad.size), grad, np.zeros_like(grad), np.zeros_like(grad), fused=True)
    yield Contestant("torch-local", "PyTorch fused Adam in the trainer itself; no service", local.step)


def _ray(stack: ExitStack, grad: Floats) -> Iterator[Contestant]:
    from stepwell_server.benchmarks.ray_actor import RayActor  # imports Ray, which may be missing

    actor = stack.enter_context(closing(RayActor(grad)))
    yield Contestant(
        "ray", "a Ray actor with PyTorch's fused Adam, through its object store; no finite check", actor.step
    )


def _check(echo: TcpEcho | GrpcEcho, grad: Floats, incoming: Floats) -> None:
    """One exchange, to see that it brings back what was sent."""
    incoming.fill(0)
    echo.exchange()
    assert np.array_equal(incoming, grad), "the echo differs from what was sent"
