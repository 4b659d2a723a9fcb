"""The data service: the training loop over gRPC. Its messages with ranges are coded by `stepwell.payload`."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from stepwell.payload import (
    PULL_RESPONSE,
    PUSH_REQUEST,
    STEP_REQUEST,
    STEP_RESPONSE,
    WORK_REQUEST,
    WORK_RESPONSE,
    Incoming,
    Outgoing,
)
from stepwell.v1 import data_pb2
from stepwell_server.core.errors import MalformedRequest, RunReplaced
from stepwell_server.service.encode import encode_answer
from stepwell_server.service.errors import ENDED, encode_error
from stepwell_server.service.exchange import Exchange
from stepwell_server.service.runs import Runs
from stepwell_server.service.streams import Peer


class DataService:
    """Worker streams are long-lived: `drain` ends each one after the exchange at work."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._draining = False
        self._idle: set[asyncio.Task[Any]] = set()

    def drain(self) -> None:
        """End the worker streams; workers are told to come back."""
        self._draining = True
        for task in self._idle:
            task.cancel()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Answer the contract's calls; what protobuf's generated code does, with our codec where there are ranges."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Push": grpc.stream_unary_rpc_method_handler(
                self.Push, PUSH_REQUEST.decode, data_pb2.PushResponse.SerializeToString
            ),
            "Pull": grpc.unary_stream_rpc_method_handler(
                self.Pull, data_pb2.PullRequest.FromString, PULL_RESPONSE.encode
            ),
            "Step": grpc.stream_stream_rpc_method_handler(self.Step, STEP_REQUEST.decode, STEP_RESPONSE.encode),
            "ShareMemory": grpc.unary_unary_rpc_method_handler(
                self.ShareMemory,
                data_pb2.ShareMemoryRequest.FromString,
                data_pb2.ShareMemoryResponse.SerializeToString,
            ),
            "Work": grpc.stream_stream_rpc_method_handler(self.Work, WORK_REQUEST.decode, WORK_RESPONSE.encode),
        }
        service = data_pb2.DESCRIPTOR.services_by_name["DataService"]
        assert handlers.keys() == {method.name for method in service.methods}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))

    async def Push(self, requests: AsyncIterator[Incoming[Any]], context: Any) -> data_pb2.PushResponse:
        exchange = Exchange(self._runs)
        try:
            with self._peer(context) as peer:
                async for incoming in peer.messages(requests):
                    request = incoming.message
                    whole = request.HasField("commit")
                    if request.HasField("stage"):
                        await exchange.stage(request.stage, incoming.data, incoming.rows, whole=whole)
                        request = incoming.forget("stage")
                    if whole:
                        return data_pb2.PushResponse(answer=encode_answer(await exchange.commit(request.commit)))
            raise MalformedRequest("the update ended without a commit, expected one in its last message; send it")
        finally:
            exchange.close()

    async def Pull(self, request: data_pb2.PullRequest, context: Any) -> None:
        parameters = await Exchange(self._runs).select(request.selection)
        try:
            with self._peer(context) as peer:
                first = True
                async for response, _ in parameters.messages(data_pb2.PullResponse):
                    if first:
                        response.message.parameters.CopyFrom(parameters.header)
                    first = False
                    await peer.write(response)
        finally:
            parameters.close()

    async def Step(self, requests: AsyncIterator[Incoming[Any]], context: Any) -> None:
        with self._peer(context) as peer:
            stream = _Stream(self._runs, peer, data_pb2.StepResponse)
            try:
                async for incoming in peer.messages(requests):
                    await stream.take(incoming)
                    if incoming.message.HasField("commit"):
                        return
                raise MalformedRequest("the update ended without a commit, expected one in its last message; send it")
            finally:
                stream.exchange.close()

    async def Work(self, requests: AsyncIterator[Incoming[Any]], context: Any) -> None:
        with self._peer(context) as peer:
            await self._work(peer)

    async def _work(self, peer: Peer) -> None:
        stream = _Stream(self._runs, peer, data_pb2.WorkResponse)
        words = asyncio.create_task(stream.give_word(self._runs.limits.word_seconds))
        failed = 0
        try:
            while True:
                incoming = await self._next(peer, stream)
                if incoming is None:
                    return
                number, last, release = incoming.message.exchange, incoming.message.last, incoming.message.release
                if release:
                    self._runs.sharing.release(release)
                    continue
                if number <= failed and number:
                    continue  # the rest of an exchange that has failed
                ended = last
                try:
                    stream.number = number
                    if not number:
                        raise MalformedRequest("an exchange has number 0, expected 1, 2, ... in order; count so")
                    await stream.take(incoming, last=last)
                except ENDED:
                    raise
                except Exception as error:  # noqa: BLE001  # becomes the exchange's error
                    failed, ended = max(failed, number), True
                    stream.exchange.close()
                    await stream.write(Outgoing(data_pb2.WorkResponse(error=encode_error(error), done=True)))
                finally:
                    if ended:
                        stream.number = None
        finally:
            words.cancel()
            stream.exchange.close()

    async def ShareMemory(self, request: data_pb2.ShareMemoryRequest, context: Any) -> data_pb2.ShareMemoryResponse:
        hosted = self._runs.get(request.run)
        if request.run_uid != hosted.run.uid:
            raise RunReplaced(f"run '{request.run}' was made anew, expected the uid of the present one; get it again")
        token, path, session = await self._runs.sharing.share(hosted, tuple(request.inputs), request.rows_bytes)
        return data_pb2.ShareMemoryResponse(socket=path, token=token, vectors=session.own, rows=session.own_rows)

    def _peer(self, context: Any) -> Peer:
        return Peer(context, self._runs.limits.silence_seconds)

    async def _next(self, peer: Peer, stream: "_Stream") -> Incoming[data_pb2.WorkRequest] | None:
        """The stream's next message, None at its end. A worker may pause, but not long while an update is half here."""
        incoming: Incoming[data_pb2.WorkRequest] | None
        if stream.number is not None or stream.exchange.staging:
            incoming = await peer.read()
            return incoming
        if self._draining:
            self._runs.refuse()
        task = asyncio.current_task()
        assert task is not None
        self._idle.add(task)
        try:
            incoming = await peer.wait()
            return incoming
        except asyncio.CancelledError:
            if not self._draining:
                raise
            task.uncancel()
            self._runs.refuse()
        finally:
            self._idle.discard(task)


class _Stream:
    """The answering side of a step or a worker's stream. number: the exchange at work, None between exchanges."""

    def __init__(self, runs: Runs, peer: Peer, response: type[Any]) -> None:
        self.exchange = Exchange(runs)
        self.number: int | None = None
        self._peer = peer
        self._response = response

    async def take(self, incoming: Incoming[Any], last: bool = False) -> None:
        """Take a message's parts in order and answer them."""
        request = incoming.message
        answer: data_pb2.Answer | None = None
        if request.HasField("stage"):
            begins, whole = request.stage.HasField("header"), request.HasField("commit")
            await self.exchange.stage(request.stage, incoming.data, incoming.rows, whole=whole)
            # Who now waits for others keeps the staged gradients, and not the message that brought them.
            request = incoming.forget("stage")
            stored = self.exchange.stored
            if stored is not None and begins and not whole:
                # The rest of a large update need not be sent again.
                await self.write(Outgoing(self._response(answer=encode_answer(stored))))
        if request.HasField("commit"):
            answer = encode_answer(await self.exchange.commit(request.commit))
        if not request.HasField("selection"):
            if answer is not None or last:
                await self._write_last(Outgoing(self._response(answer=answer)), last)
            return
        parameters = await self.exchange.select(request.selection)
        try:
            header: data_pb2.ParametersHeader | None = parameters.header
            async for response, final in parameters.messages(self._response):
                if header is not None:
                    response.message.parameters.CopyFrom(header)
                    if answer is not None:
                        response.message.answer.CopyFrom(answer)
                header = None
                await self._write_last(response, last and final)
        finally:
            parameters.close()

    async def write(self, response: Outgoing[Any]) -> None:
        """Send a message; on a worker's stream, under the exchange's number."""
        if self.number is not None:
            response.message.exchange = self.number
        await self._peer.write(response)

    async def give_word(self, seconds: float) -> None:
        """Say now and then that the server is still at work."""
        while True:
            await asyncio.sleep(seconds)
            if self.number is not None:
                try:
                    await self._peer.say(Outgoing(data_pb2.WorkResponse(exchange=self.number)))
                except ENDED:
                    return  # whoever is at work on the exchange finds out, too

    async def _write_last(self, response: Outgoing[Any], done: bool) -> None:
        if done:
            response.message.done = True
        await self.write(response)
