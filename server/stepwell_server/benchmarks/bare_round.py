"""A round without a policy, an optimizer and a contract: each worker's bytes, once summed, and the sum to all."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import numpy as np

from stepwell._allocator import tune_allocator
from stepwell_server.benchmarks.crew import BARE_METHOD
from stepwell_server.benchmarks.options import Floats
from stepwell_server.benchmarks.peers import announce

COUNT_METHOD = "/stepwell.Benchmark/Count"


def serve(workers: str) -> None:
    """Answer each worker of a round once all have sent; a unary call says how many have."""
    tune_allocator()
    asyncio.run(_serve(int(workers)))


async def _serve(workers: int) -> None:
    rounds = _Rounds(workers)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    service, _, method = BARE_METHOD.strip("/").partition("/")
    methods: dict[str, Any] = {
        method: grpc.stream_stream_rpc_method_handler(rounds.take_part),
        COUNT_METHOD.rpartition("/")[2]: grpc.unary_unary_rpc_method_handler(rounds.count),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    announce(f"127.0.0.1:{port}")
    await server.wait_for_termination()


class _Rounds:
    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._arrived: list[bytes] = []
        self._summed: asyncio.Future[bytes] | None = None

    async def take_part(self, requests: Any, context: Any) -> None:
        while isinstance(message := await context.read(), bytes):
            if self._summed is None:
                self._summed = asyncio.get_running_loop().create_future()
            summed = self._summed
            self._arrived.append(message)
            del message
            if len(self._arrived) == self._workers:
                arrived, self._arrived, self._summed = self._arrived, [], None
                summed.set_result(_sum(arrived).tobytes())
                del arrived
            await context.write(await summed)

    async def count(self, request: bytes, context: Any) -> bytes:
        return str(len(self._arrived)).encode()


def _sum(messages: list[bytes]) -> Floats:
    total = np.frombuffer(messages[0], np.float32).copy()
    for message in messages[1:]:
        total += np.frombuffer(message, np.float32)
    return total
