"""The same bytes over plain TCP: two processes, one socket, default options, preallocated buffers, a sender thread."""

import socket
import threading
from typing import Literal

from stepwell_server.benchmarks.peers import announce

When = Literal["arriving", "whole"]

_PART_BYTES = 1 << 20


class TcpEcho:
    """The client. outgoing: what is sent; incoming: where the echo goes; both of the size that the peer was told."""

    def __init__(self, address: str, outgoing: memoryview, incoming: memoryview) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._outgoing, self._incoming = outgoing, incoming

    def exchange(self) -> None:
        """Send everything and receive everything; the thread lets both directions be on their way at once."""
        sender = threading.Thread(target=self._socket.sendall, args=(self._outgoing,))
        sender.start()
        _receive(self._socket, self._incoming)
        sender.join()

    def close(self) -> None:
        self._socket.close()


def serve(size_bytes: str, when: When) -> None:
    """Echo exchanges of a size to one client, each part as it arrives or all once the whole is there."""
    buffer = memoryview(bytearray(int(size_bytes)))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        announce("{}:{}".format(*listener.getsockname()))
        connection, _ = listener.accept()
    with connection:
        while _echo_arriving(connection, buffer) if when == "arriving" else _echo_whole(connection, buffer):
            pass


def _echo_arriving(connection: socket.socket, buffer: memoryview) -> bool:
    at = 0
    while at < len(buffer):
        count = connection.recv_into(buffer[at : at + _PART_BYTES])
        if not count:
            return False
        connection.sendall(buffer[at : at + count])
        at += count
    return True


def _echo_whole(connection: socket.socket, buffer: memoryview) -> bool:
    if not _receive(connection, buffer):
        return False
    connection.sendall(buffer)
    return True


def _receive(connection: socket.socket, buffer: memoryview) -> bool:
    """Fill the buffer; False if the peer has ended first."""
    at = 0
    while at < len(buffer):
        count = connection.recv_into(buffer[at : at + _PART_BYTES])
        if not count:
            return False
        at += count
    return True
