"""Many workers that wait for each other in rounds: what each costs the server, and how long a round takes.

The floor is the same round over bare gRPC: the same clients, connections and streams, as many bytes each way, the
gradients summed once; no contract, no checks, no optimizer, nothing that would survive a broken connection.
"""

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc

import stepwell
from stepwell_server.benchmarks.bare_round import COUNT_METHOD
from stepwell_server.benchmarks.crew import Crew, together
from stepwell_server.benchmarks.memory import wait_for
from stepwell_server.benchmarks.options import ITEM_BYTES, SEED, Options, as_tensors, random_vector
from stepwell_server.benchmarks.peers import Peer, start, start_stepwell
from stepwell_server.benchmarks.report import Table

ELEMENTS = 25_000

_RUN = "waiting"
_WARMUP_RUN = "warmup"
_WARMUP_WORKERS = 8
_WARMUP_ROUNDS = 3
_TENSORS = 10
_CREWS = 2
# Of all workers, how many send at a time where the server's memory is looked at.
_ON_THEIR_WAY_SHARE = 0.01
_STAGED_BYTES = ELEMENTS * ITEM_BYTES


def benchmark(options: Options) -> Table:
    """First what those who wait cost, on a server that has just started; then rounds, ours and bare ones in turn."""
    workers = max(2, options.waiting)
    with ExitStack() as stack:
        server = stack.enter_context(start_stepwell("--max-memory", options.server_memory()))
        client = stack.enter_context(stepwell.connect(server.address))
        for name in (_WARMUP_RUN, _RUN):
            parameters = as_tensors(random_vector(ELEMENTS), _TENSORS)
            client.create_run(name, parameters, optimizer="adam", policy={"name": "sync"}).close()
        run = client.get_run(_RUN)
        others = _sockets(server)
        with _crews(server.address, _WARMUP_RUN, _WARMUP_WORKERS) as crews:
            together(crews, "connect")
            for _ in range(_WARMUP_ROUNDS):
                together(crews, "send")
                together(crews, "answers")
        # Their connections end at the server when it comes to it.
        wait_for(lambda: _sockets(server) <= others)
        ours = stack.enter_context(_crews(server.address, _RUN, workers))
        before = _look(server)
        rows = [_cost("before", "the server, warm, before they come", before)]
        together(ours, "connect")
        joined = f"{workers:,} have joined, each with a connection and a stream"
        rows.append(_cost("joined", joined, _look(server), before, workers))

        def waiting() -> int:
            return sum(worker.waits for worker in run.refresh().workers)

        for key, send, missing, how in (
            ("staged", _few_at_a_time, 0, "first in order, so that all others are staged"),
            ("folded", _few_at_a_time, -1, "last in order, so that all others are folded"),
            ("staged again", _all_but_one, 0, "first in order, in a later round; the others came all at once"),
        ):
            send(ours, waiting, workers, missing)
            what = f"{workers - 1:,} wait for the one that is {how}"
            rows.append(_cost(key, what, _look(server), before, workers, 0 if missing else workers - 1))
            _the_missing_one(ours, missing)

        bare = stack.enter_context(start("bare_round", workers))
        theirs = stack.enter_context(_crews(bare.address, "", workers))
        channel = stack.enter_context(grpc.insecure_channel(bare.address))
        count: Any = channel.unary_unary(COUNT_METHOD)
        together(theirs, "connect")
        _all_but_one(theirs, lambda: int(count(b"")), workers, 0)
        _the_missing_one(theirs, 0)
        sides: dict[str, tuple[Sequence[Crew], Callable[[], int]]] = {
            _BARE: (theirs, lambda: int(count(b""))),
            _OURS: (ours, waiting),
        }
        rows += _rounds(sides, workers, options.rounds)
    return Table(
        f"A round of {workers:,} workers, each with a connection of its own: {ELEMENTS:,} float32 parameters under "
        f"Adam, {_STAGED_BYTES / 1e3:.0f} KB each way and worker, policy sync; {options.rounds} rounds",
        rows,
        (
            (
                "KB each: private memory that was written to, more than before they came, less the staged gradients, "
                "divided by workers. After the first round it includes what the server and its allocator keep for the "
                "next one."
            ),
            (
                "Until: from the last one's message on. x bare: against the same round over bare gRPC, which sums the "
                "gradients once and does nothing else."
            ),
        ),
    )


@contextmanager
def _crews(address: str, run: str, workers: int) -> Iterator[list[Crew]]:
    """All workers, in a few processes."""
    with ExitStack() as stack:
        share = -(-workers // _CREWS)
        yield [
            stack.enter_context(Crew(address, run, first, min(share, workers - first), ELEMENTS))
            for first in range(0, workers, share)
        ]


def _all_but_one(crews: Sequence[Crew], waiting: Callable[[], int], workers: int, missing: int) -> None:
    """All but the first worker (missing 0) or the last (-1) send; ends once the server has all of that."""
    _send(crews, _places(crews, missing))
    _wait_until(waiting, workers - 1)


def _few_at_a_time(crews: Sequence[Crew], waiting: Callable[[], int], workers: int, missing: int) -> None:
    """The same, but hardly anybody sends before the server has what was sent before.

    So what the server takes is for those that wait, and not for what came faster than it could look at it.
    """
    few = max(1, round(_ON_THEIR_WAY_SHARE * workers / len(crews)))
    places, sent = _places(crews, missing), 0
    while any(places):
        now, places = [left[:few] for left in places], [left[few:] for left in places]
        _send(crews, now)
        sent += sum(map(len, now))
        _wait_until(waiting, sent)


def _send(crews: Sequence[Crew], places: Sequence[range]) -> None:
    sending = [(crew, chosen) for crew, chosen in zip(crews, places, strict=True) if chosen]
    for crew, chosen in sending:
        crew.begin("send", chosen.start, chosen.stop)
    for crew, _ in sending:
        crew.end()


def _wait_until(waiting: Callable[[], int], count: int) -> None:
    wait_for(lambda: waiting() == count)


def _places(crews: Sequence[Crew], missing: int) -> list[range]:
    """Of each crew, whom all but the missing one are."""
    places = [range(crew.count) for crew in crews]
    if missing == 0:
        places[0] = places[0][1:]
    else:
        places[-1] = places[-1][:-1]
    return places


def _the_missing_one(crews: Sequence[Crew], missing: int) -> tuple[float, float]:
    """The one that has not sent does: seconds until the first has its answer, and until all have."""
    crew = crews[missing]
    place = 0 if missing == 0 else crew.count - 1
    crew.begin("send", place, place + 1)
    began, _ = crew.end()
    first_answer, last_answer = together(crews, "answers")
    return first_answer - began, last_answer - began


_BARE, _OURS = "bare gRPC", "Stepwell"
# Which worker is missing before a timed turn; None: all send at once.
_TURNS = ((_BARE, 0), (_OURS, 0), (_OURS, -1), (_BARE, None), (_OURS, None))


def _rounds(
    sides: dict[str, tuple[Sequence[Crew], Callable[[], int]]], workers: int, rounds: int
) -> Iterator[dict[str, Any]]:
    seconds: dict[tuple[str, int | None], list[tuple[float, float]]] = {turn: [] for turn in _TURNS}
    turns = list(_TURNS)
    shuffle = random.Random(SEED).shuffle
    for number in range(rounds + 1):
        shuffle(turns)
        for side, missing in turns:
            crews, waiting = sides[side]
            if missing is None:
                began, _ = together(crews, "send")
                first, last = together(crews, "answers")
                found = first - began, last - began
            else:
                _all_but_one(crews, waiting, workers, missing)
                found = _the_missing_one(crews, missing)
            if number:  # the first round fills pools
                seconds[side, missing].append(found)
    words = {
        0: "the last to come is the first in order: all others are staged",
        -1: "the last to come is the last in order: all others are folded",
        None: "all come at once, from the first one's message on",
    }
    for what, at in (("the first has its answer", 0), ("all have their answers", 1)):
        for side, missing in _TURNS:
            samples = [times[at] * 1e3 for times in seconds[side, missing]]
            floor = [times[at] * 1e3 for times in seconds[_BARE, None if missing is None else 0]]
            yield {
                "what": f"{side}: until {what}; {words[missing]}",
                "median ms": statistics.median(samples),
                "min ms": min(samples),
                "max ms": max(samples),
                "x bare": statistics.median(samples) / statistics.median(floor),
                "key": f"{side} {missing} {at}",
                "samples": samples,
            }


def _sockets(server: Peer) -> set[str]:
    """Its sockets, each by a name that no other gets."""
    found = set()
    for descriptor in Path(f"/proc/{server.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.add(str(descriptor.readlink()))
    return {name for name in found if name.startswith("socket:")}


def _look(server: Peer) -> dict[str, int]:
    """Threads, descriptors, and memory in bytes.

    private: only what was written to. Pages of libraries count as private, too, from the moment on at which no other
    process has them mapped any more.
    """
    process = Path(f"/proc/{server.pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    rollup = [line.split() for line in (process / "smaps_rollup").read_text().splitlines()]
    return {
        "threads": int(status["Threads"]),
        "descriptors": len(list((process / "fd").iterdir())),
        "resident": int(status["VmRSS"].removesuffix("kB")) << 10,
        "private": sum(int(fields[1]) for fields in rollup if fields[0] == "Private_Dirty:") << 10,
    }


def _cost(
    key: str, what: str, found: dict[str, int], before: dict[str, int] | None = None, workers: int = 0, staged: int = 0
) -> dict[str, Any]:
    more = None if before is None else found["private"] - before["private"] - staged * _STAGED_BYTES
    return {
        "what": what,
        "threads": found["threads"],
        "descriptors": found["descriptors"],
        "resident MB": found["resident"] / 1e6,
        "staged MB": staged * _STAGED_BYTES / 1e6 if before is not None else None,
        "KB each": None if more is None else more / workers / 1e3,
        "median ms": None,
        "min ms": None,
        "max ms": None,
        "x bare": None,
        "key": key,
    }
