"""The server process: from settings to a listening server, and from a signal to a clean end."""

import asyncio
import gc
import ipaddress
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from stepwell._allocator import tune_allocator
from stepwell.v1 import control_pb2, control_pb2_grpc, data_pb2
from stepwell_server.core.devices.device import open_device
from stepwell_server.core.errors import InvalidValue
from stepwell_server.core.memory import Memory
from stepwell_server.service.control import ControlService
from stepwell_server.service.data import DataService
from stepwell_server.service.errors import ErrorInterceptor
from stepwell_server.service.limits import Limits
from stepwell_server.service.machine import Machine
from stepwell_server.service.runs import Runs
from stepwell_server.service.sharing import Sharing
from stepwell_server.service.turns import Turns
from stepwell_server.service.update_log import UpdateLog
from stepwell_server.storage.directory import DataDirectory
from stepwell_server.storage.kernel_cache import private_directory

log = structlog.get_logger()

# After so many new objects the garbage collector looks at the youngest.
_COLLECTED_OBJECTS = 50_000

SERVICES = (
    control_pb2.DESCRIPTOR.services_by_name["ControlService"].full_name,
    data_pb2.DESCRIPTOR.services_by_name["DataService"].full_name,
)


@dataclass(frozen=True)
class ServerSettings:
    """How a server is started.

    address: HOST:PORT or unix:/path; port 0 lets the system choose. insecure: listen off loopback without TLS.
    snapshot_seconds: how often runs are written to data_directory, 0 for never. drain_seconds: how long a stop waits
    for calls in flight. threads: kernel threads, 0 for one per core that the process may use. device: cpu, cuda or
    cuda:N. shared_memory: whether workers of this machine may share memory; shared_memory_directory: where they find
    the socket for it, None for one of the user's own. update_log: a file to which what becomes of updates is appended.
    """

    address: str = "127.0.0.1:50051"
    data_directory: Path | None = None
    insecure: bool = False
    reflection: bool = False
    snapshot_seconds: float = 60.0
    snapshots_kept: int = 3
    drain_seconds: float = 20.0
    threads: int = 0
    kernel_cache: Path | None = None
    device: str = "cpu"
    shared_memory: bool = True
    shared_memory_directory: Path | None = None
    update_log: Path | None = None
    limits: Limits = field(default_factory=Limits)


async def serve(settings: ServerSettings, on_listening: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. `on_listening` gets the address once calls are answered.

    Raises DomainError for settings that cannot be: an address off loopback without `insecure`, a port that is taken, a
    data directory that another server holds. Raises DeviceUnavailable.
    """
    check_address(settings)
    tune_allocator()
    cores = settings.threads or len(os.sched_getaffinity(0))
    threads = ThreadPoolExecutor(cores + 2, thread_name_prefix="work")
    device = open_device(settings.device, cores, private_directory(settings.kernel_cache))
    device.check_holds(settings.limits.memory_bytes)
    machine = Machine(Memory(device, settings.limits.memory_bytes), threads, Turns(cores))
    sharing = Sharing(machine.memory, settings.shared_memory_directory)
    storage = None
    try:
        if settings.update_log is not None:
            machine.update_log = UpdateLog(settings.update_log)
        if settings.data_directory is not None:
            storage = DataDirectory(
                settings.data_directory,
                keep=settings.snapshots_kept,
                on_damaged=lambda path, error: runs.note_damage(path.parent.parent.name, path, error),
                access=device,
            )
        runs = Runs(machine, settings.limits, storage, sharing)
        await runs.restore_all()
        if settings.shared_memory:
            sharing.open()
        await _serve(settings, runs, on_listening)
    finally:
        await sharing.close()
        if storage is not None:
            storage.close()
        threads.shutdown()
        device.close()
        if machine.update_log is not None:
            machine.update_log.close()


def check_address(settings: ServerSettings) -> None:
    """Raise InvalidValue for an address off loopback unless the settings say that this is meant."""
    host = settings.address.rpartition(":")[0].strip("[]")
    if settings.insecure or settings.address.startswith("unix:") or host == "localhost":
        return
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise InvalidValue(
            f"address {settings.address!r} is not on loopback, expected 127.0.0.1, [::1] or localhost: anybody who "
            "reaches it could read and change the runs; give --insecure if its network is private"
        )


async def _serve(settings: ServerSettings, runs: Runs, on_listening: Callable[[str], None]) -> None:
    server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=_options(settings.limits))
    data = DataService(runs)
    control_pb2_grpc.add_ControlServiceServicer_to_server(ControlService(runs), server)
    data.add_to(server)
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    if settings.reflection:
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    address = _listen(server, settings.address)
    await server.start()
    stop = _stop_signal()
    for name in ("", *SERVICES):
        await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
    log.info("serving", address=address, runs=len(runs.names()), memory_bytes_max=settings.limits.memory_bytes)
    # What is there by now stays: the collector need not look at it again, nor so often at thousands of waiting calls.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECTED_OBJECTS, 50, 100)
    on_listening(address)
    snapshots = asyncio.create_task(_snapshots(runs, settings))
    await stop.wait()

    log.info("stopping", drain_seconds=settings.drain_seconds)
    snapshots.cancel()
    await healthy.enter_graceful_shutdown()
    data.drain()
    await server.stop(settings.drain_seconds)
    await runs.stop()
    log.info("stopped")


def _listen(server: grpc.aio.Server, address: str) -> str:
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise InvalidValue(
            f"address {address!r} cannot be listened on, expected a free port of this machine; stop what uses it, or "
            "give another (port 0 lets the system choose)"
        ) from error
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


def _options(limits: Limits) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # else a second server on the port would take half the calls
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_concurrent_streams", limits.streams_count),
    ]


def _stop_signal() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def _snapshots(runs: Runs, settings: ServerSettings) -> None:
    if settings.data_directory is None or not settings.snapshot_seconds:
        return
    while True:
        await asyncio.sleep(settings.snapshot_seconds)
        await runs.save_all()
