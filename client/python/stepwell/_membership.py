"""A worker's membership of a run: joining, its lease, its place among the others, and barriers."""

import os
import re
import secrets
import socket
import weakref
from dataclasses import dataclass
from typing import Final

from stepwell._calls import END_SECONDS, Settings, ask, collect
from stepwell._descriptions import Place, describe_place
from stepwell._layout import Layout, LayoutPieces
from stepwell._methods import BARRIER, GET_LAYOUT, HEARTBEAT, JOIN, LEAVE
from stepwell._requests import Lost, Open, Receive, Repeat, Silent, Steps, Stream
from stepwell.errors import InvalidName, RunReplaced, RunRewound, UnknownWorker
from stepwell.v1 import control_pb2

NAME_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
HEARTBEATS_PER_LEASE: Final = 3


@dataclass
class Membership:
    """What Join gave, the last sequence that was answered in this epoch, and how many barriers were passed in it.

    waits_at: a barrier that was given up, where the server still has this worker.
    """

    generation: int
    epoch: int
    sequence: int = 0
    barriers: int = 0
    waits_at: str = ""


class Member:
    """One member of one run, or who may become one.

    name: under which it joins. uid and layout: of the run, once known. version: the newest that it was told of. place:
    among the live members, as it was told last.
    """

    def __init__(self, settings: Settings, run: str, uid: bytes = b"", version: int = 0) -> None:
        self.run, self.uid, self.version = run, uid, version
        self.name = settings.worker or default_name()
        self.layout: Layout | None = None
        self.place: Place | None = None
        self._settings = settings
        self._membership: Membership | None = None
        # The last update with an answer under this name, as the last join told: its epoch and sequence.
        self._last_answered = (0, 0)
        self._heartbeat: Stream | None = None

    def join(self, timeout: float | None = None) -> Steps[None]:
        """Become a worker of the run, in a new epoch.

        Raises RunRewound where the run is at an older version than this worker has been told of: what it is about to
        push belongs to a state that is gone.
        """
        request = control_pb2.JoinRequest(run=self.run, worker=self.name, lease_seconds=self._settings.lease_seconds)
        joined = yield from collect(self._settings, JOIN, request, JoinPieces, self._what("join"), timeout)
        self._know(joined.membership.run_uid, joined.layout)
        self._membership = Membership(joined.membership.generation, joined.membership.epoch)
        self._last_answered = joined.membership.last_epoch, joined.membership.last_sequence
        self.place = describe_place(joined.membership.place)
        yield from self._keep_lease(joined.membership)
        if joined.membership.version < self.version:
            raise self._went_back(joined.membership.version, joined=True)
        self.version = joined.membership.version

    def look_around(self) -> Steps[Place]:
        """Where this worker stands now; joins where that is due."""
        if self._membership is None:
            yield from self.join()
        assert self._membership is not None
        request = control_pb2.HeartbeatRequest(run=self.run, worker=self.name, epoch=self._membership.epoch)
        try:
            response = yield from ask(self._settings, HEARTBEAT, request, self._what("place"))
            self.place = describe_place(response.place)
        except UnknownWorker:
            yield from self.join()
        assert self.place is not None
        return self.place

    def barrier(self, name: str, timeout: float | None) -> Steps[None]:
        """Wait until all live workers wait at this barrier."""
        while True:
            if self._membership is None:
                yield from self.join(timeout)
            membership = self._membership
            assert membership is not None
            if membership.waits_at not in ("", name):
                membership.barriers += 1  # the number of that call is used up
            membership.waits_at = name
            request = control_pb2.BarrierRequest(
                run=self.run,
                worker=self.name,
                epoch=membership.epoch,
                barrier=name,
                call=membership.barriers + 1,
            )
            try:
                yield from collect(self._settings, BARRIER, request, Released, self._what(f"barrier '{name}'"), timeout)
            except UnknownWorker:
                self._membership = None  # the lease has run out
                continue
            membership.barriers += 1
            membership.waits_at = ""
            return

    def have_layout(self) -> Steps[Layout]:
        """The layout, fetched when it is first needed."""
        if self.layout is None:
            request = control_pb2.GetLayoutRequest(run=self.run)
            pieces = yield from collect(self._settings, GET_LAYOUT, request, GetLayoutPieces, self._what("layout"))
            self._know(pieces.uid, pieces.layout)
        assert self.layout is not None
        return self.layout

    def rewound(self, version: int) -> None:
        """The run went back, by our own doing or not: join anew before the next update."""
        self.version = version
        self._membership = None

    def leave(self) -> Steps[None]:
        """Give up the place in the run."""
        membership, self._membership = self._membership, None
        self._stop_heartbeat()
        if membership is not None:
            request = control_pb2.LeaveRequest(run=self.run, worker=self.name, epoch=membership.epoch)
            leaving = yield Open(LEAVE, request)
            try:
                yield Receive(leaving, END_SECONDS)
            except (Lost, Silent):
                pass  # the lease will run out
            finally:
                leaving.cancel()

    def drop(self) -> None:
        """Give no more signs of life, where nobody left."""
        self._stop_heartbeat()

    def start_over(self, *, forked: bool) -> None:
        """In another process or event loop: nothing that was opened there can be used here.

        In a forked child the place in the run is the parent's, to keep and to leave.
        """
        self._heartbeat = None
        if forked:
            self._membership = None

    def _keep_lease(self, membership: control_pb2.Membership) -> Steps[None]:
        """Give signs of life in the background, as long as this object lives; what comes back tells its place."""
        self._stop_heartbeat()
        if not membership.lease_seconds:
            return
        this = weakref.ref(self)

        def heard(response: control_pb2.HeartbeatResponse) -> None:
            member = this()
            if member is not None:
                member.place = describe_place(response.place)

        request = control_pb2.HeartbeatRequest(run=self.run, worker=self.name, epoch=membership.epoch)
        self._heartbeat = yield Repeat(HEARTBEAT, request, membership.lease_seconds / HEARTBEATS_PER_LEASE, heard)

    def _stop_heartbeat(self) -> None:
        heartbeat, self._heartbeat = self._heartbeat, None
        if heartbeat is not None:
            heartbeat.cancel()

    def _know(self, uid: bytes, pieces: LayoutPieces) -> None:
        if self.uid and uid != self.uid:
            raise RunReplaced(
                f"{self._what('join')}: got a run with another uid, expected the one that this object was made for: it "
                "was deleted and made anew; get it again with client.get_run",
                {"run": self.run},
            )
        if self.layout is None:
            self.uid, self.layout = uid, pieces.layout()

    def _went_back(self, version: int, *, joined: bool = False) -> RunRewound:
        acknowledged_version, membership = self.version, self._membership
        self.rewound(version)
        if joined:
            self._membership = membership
        return RunRewound(
            f"run '{self.run}': got version {version}, expected {acknowledged_version} or newer: the run went back to "
            "an older state; go on from its present parameters, pull() returns them",
            {"acknowledged_version": str(acknowledged_version), "version": str(version)},
        )

    def _what(self, call: str) -> str:
        return f"run '{self.run}': {call}"


class Released:
    """A collector for Barrier: the call ends when all have arrived."""

    def add(self, message: control_pb2.BarrierResponse) -> None:
        pass


class JoinPieces:
    """A collector for Join."""

    def __init__(self) -> None:
        self.membership = control_pb2.Membership()
        self.layout = LayoutPieces()

    def add(self, message: control_pb2.JoinResponse) -> None:
        if message.HasField("membership"):
            self.membership = message.membership
        self.layout.add(message.layout)


class GetLayoutPieces:
    """A collector for GetLayout."""

    def __init__(self) -> None:
        self.uid = b""
        self.layout = LayoutPieces()

    def add(self, message: control_pb2.GetLayoutResponse) -> None:
        self.uid = self.uid or message.run_uid
        self.layout.add(message.layout)


def check_name(worker: str) -> str:
    """A worker's name as it is; raises InvalidName."""
    if not re.fullmatch(NAME_PATTERN, worker):
        raise InvalidName(f"got the worker name {worker!r:.200}, expected {NAME_PATTERN}; choose another")
    return worker


def default_name() -> str:
    """A name that no other worker has, of host and process."""
    place = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).lstrip("._-") or "worker"
    return f"{place[:80]}-{os.getpid()}-{secrets.token_hex(4)}"
