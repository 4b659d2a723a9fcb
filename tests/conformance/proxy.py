"""A TCP proxy on loopback that can lose the answer to an update: the server has made it, and nobody hears of it."""

import contextlib
import socket
import threading

from google.protobuf.message import DecodeError

from stepwell.v1 import data_pb2

# HTTP/2 (RFC 9113, section 4.1): 24 bits of length, then type, flags and stream.
FRAME_HEADER_BYTES = 9
DATA_FRAME = 0
PADDED_FLAG = 0x08
# gRPC: a byte that says whether the message is compressed, then 32 bits of length.
MESSAGE_HEADER_BYTES = 5


class Proxy:
    """Forwards to the port of this machine that `target` has at the time; a context manager."""

    def __init__(self) -> None:
        self.target: tuple[str, int] | None = None
        self.lost_count = 0
        self._losing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        close(self._listener, *self._sockets)

    def lose_answer(self) -> None:
        """Cut the connection over which the next answer to an update comes, just before that answer."""
        self._losing.set()

    def reset(self) -> None:
        """Lose nothing any more, and count anew."""
        self._losing.clear()
        self.lost_count = 0

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(self.target or ("127.0.0.1", 0))
                except OSError:
                    close(client)  # the server is down: so is this
                    continue
                self._sockets += [client, server]
                for forward in (self._forward_requests, self._forward_responses):
                    threading.Thread(target=forward, args=(client, server), daemon=True).start()

    def _forward_requests(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                server.sendall(data)
        close(client, server)

    def _forward_responses(self, client: socket.socket, server: socket.socket) -> None:
        frames = Frames()
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                for frame, answers in frames.feed(data):
                    if answers and self._losing.is_set():
                        self._losing.clear()
                        self.lost_count += 1
                        close(client, server)
                        return
                    client.sendall(frame)
        close(client, server)


class Frames:
    """Cuts what a gRPC server sends over one connection into HTTP/2 frames."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._streams: dict[bytes, bytearray] = {}

    def feed(self, data: bytes) -> list[tuple[bytes, bool]]:
        """Every whole frame, and whether it ends a message that answers an update."""
        self._bytes += data
        frames = []
        while len(self._bytes) >= FRAME_HEADER_BYTES:
            size = FRAME_HEADER_BYTES + int.from_bytes(self._bytes[:3])
            if len(self._bytes) < size:
                break
            frame = bytes(self._bytes[:size])
            del self._bytes[:size]
            frames.append((frame, frame[3] == DATA_FRAME and self._answers(frame)))
        return frames

    def _answers(self, frame: bytes) -> bool:
        payload = frame[FRAME_HEADER_BYTES:]
        if frame[4] & PADDED_FLAG:
            payload = payload[1 : len(payload) - payload[0]]
        buffer = self._streams.setdefault(frame[5:9], bytearray())
        buffer += payload
        found = False
        while len(buffer) >= MESSAGE_HEADER_BYTES:
            size = MESSAGE_HEADER_BYTES + int.from_bytes(buffer[1:5])
            if len(buffer) < size:
                break
            found |= is_answer(bytes(buffer[MESSAGE_HEADER_BYTES:size]))
            del buffer[:size]
        return found


def is_answer(message: bytes) -> bool:
    """Whether it is a WorkResponse with an answer. No other response has a number first and then an outcome."""
    try:
        response = data_pb2.WorkResponse.FromString(message)
    except DecodeError:
        return False
    return response.exchange > 0 and response.answer.outcome != data_pb2.OUTCOME_UNSPECIFIED


def close(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
