"""gRPC without an optimizer and without protobuf: the client stack and the server that Stepwell uses, bare bytes."""

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio

from stepwell._allocator import tune_allocator
from stepwell._blocking import CHANNEL_OPTIONS
from stepwell.wire import RANGE_BYTES
from stepwell_server.benchmarks.peers import announce

_SERVICE = "stepwell.Benchmark"
_SIZE = "size-bytes"
_QUEUED_MESSAGES_MAX = 4
_MESSAGE_BYTES_MAX = 4 << 20


class GrpcEcho:
    """The client. One long-lived stream carries all its exchanges; unary calls go beside it."""

    def __init__(self, address: str, outgoing: memoryview, incoming: memoryview) -> None:
        tune_allocator()
        self._outgoing, self._incoming = outgoing, incoming
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._unary: Any = self._channel.unary_unary(f"/{_SERVICE}/Echo")
        self._requests: queue.Queue[bytes | None] = queue.Queue(_QUEUED_MESSAGES_MAX)
        stream: Any = self._channel.stream_stream(f"/{_SERVICE}/Exchange")
        self._responses: Iterator[bytes] = stream(
            iter(self._requests.get, None), metadata=((_SIZE, str(len(outgoing))),)
        )

    def exchange(self) -> None:
        """Send everything in messages of 1 MiB, then receive everything in such messages."""
        for begin in range(0, len(self._outgoing), RANGE_BYTES):
            self._requests.put(bytes(self._outgoing[begin : begin + RANGE_BYTES]))
        at = 0
        while at < len(self._incoming):
            message = next(self._responses)
            self._incoming[at : at + len(message)] = message
            at += len(message)

    def call(self) -> None:
        """Send everything in one unary call and receive its echo; only for what fits one message."""
        self._incoming[:] = self._unary(bytes(self._outgoing))

    def close(self) -> None:
        self._requests.put(None)
        self._channel.close()


def serve() -> None:
    """Answer unary calls with what they carry, and exchanges with what they brought once all of it is there."""
    tune_allocator()
    asyncio.run(_serve())


async def _serve() -> None:
    server = grpc.aio.server(
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX)]
    )
    methods: dict[str, Any] = {
        "Echo": grpc.unary_unary_rpc_method_handler(_echo),
        "Exchange": grpc.stream_stream_rpc_method_handler(_exchange),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    announce(f"127.0.0.1:{port}")
    await server.wait_for_termination()


async def _echo(request: bytes, context: Any) -> bytes:
    return request


async def _exchange(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    size_bytes = int(dict(context.invocation_metadata())[_SIZE])
    vector = memoryview(bytearray(size_bytes))
    at = 0
    async for message in requests:
        vector[at : at + len(message)] = message
        at += len(message)
        if at == size_bytes:
            for begin in range(0, size_bytes, RANGE_BYTES):
                yield bytes(vector[begin : begin + RANGE_BYTES])
            at = 0
