"""The update log: what became of each run's updates, a line of JSON for each decision, in the order in which they came.

    {"time": 1796025600.25, "run": "mnist", "generation": 0, "version": 7, "kind": "commit", "damping": 1.0,
     "contributions": [["w-0", 1, 7, "committed", 6, 16.0], ["w-1", 1, 7, "committed", 6, 16.0]]}

time is in seconds since 1970, version the run's from then on. A contribution is its worker, epoch and sequence, its
outcome, the version that its gradients were taken at, and its samples; they stand in the order in which they were
averaged. Damping is what the learning rate was multiplied by.

| kind | what happened | further fields |
| --- | --- | --- |
| open | a run was created, or brought back at the server's start | uid, policy, live: [worker, epoch] of each |
| join | a worker is live, in a new epoch that fences its earlier ones | worker, epoch, lease_seconds |
| leave, expire | a worker went; its lease ran out, and it is fenced | worker, epoch |
| early | the first in order of a round are folded, and wait for the rest of it | damping, contributions |
| commit | a version was made, of what was folded since the last one and of these | damping, contributions |
| fold | these are folded, with the early ones, for a later version | damping, contributions |
| skip, drop | these have no effect: not finite; too late | damping, contributions |
| policy | another policy decides from now on | policy |
| rewind | the run went over to another state; nobody is live | |
| delete | the run is gone | |
| lost | so many lines before this one could not be written | lines |

What a worker got an error for is not here: it may send that again.
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

import structlog

from stepwell_server.core.errors import InvalidValue
from stepwell_server.core.policies import Commit
from stepwell_server.core.run import Run
from stepwell_server.core.workers import Answer, Identity, Outcome

log = structlog.get_logger()

_KINDS = {
    Outcome.COMMITTED: "commit",
    Outcome.FOLDED: "fold",
    Outcome.DROPPED_LATE: "drop",
    Outcome.SKIPPED_NONFINITE: "skip",
}


class UpdateLog:
    """Appends to a file, which grows without end: about 60 bytes a contribution.

    A line is with the operating system before any worker hears of what it says; so a kill of the server loses none,
    a crash of the machine may. Lines that cannot be written are counted, and training goes on.
    """

    def __init__(self, path: Path) -> None:
        """Raises InvalidValue where the file cannot be opened."""
        self._path = path
        self._lost = 0
        self._complained = False
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise InvalidValue(
                f"update log '{path}' cannot be opened: {error.strerror}; expected a file that can be written to"
            ) from error
        # A server that lost its disk may have left half a line.
        size = os.fstat(self._file).st_size
        self._torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"

    def event(self, run: Run, kind: str, **more: object) -> None:
        """Write what happened to a run."""
        place = {
            "time": round(time.time(), 6),
            "run": run.name,
            "generation": run.generation,
            "version": run.version,
        }
        if self._lost and self._append(place | {"kind": "lost", "lines": self._lost}):
            self._lost = 0
        if self._lost or not self._append(place | {"kind": kind} | more):
            self._lost += 1

    def answers(
        self,
        run: Run,
        commit: Commit,
        identities: Mapping[int, Identity],
        answers: Mapping[int, Answer],
    ) -> None:
        """Write what became of updates that were decided on together; nothing where they have failed.

        answers: by key. identities: likewise, of those that have no line yet.
        """
        if not answers:
            return
        outcomes = {answer.outcome for answer in answers.values()}
        kind = next(kind for outcome, kind in _KINDS.items() if outcome in outcomes)
        rows = [
            [
                each.worker,
                identities[each.key].epoch,
                identities[each.key].sequence,
                answers[each.key].outcome.value,
                each.base_version,
                each.samples,
            ]
            for each in commit.contributions
            if each.key in identities
        ]
        self.event(run, kind if commit.answers else "early", damping=commit.damping, contributions=rows)

    def close(self) -> None:
        os.close(self._file)

    def _append(self, line: Mapping[str, object]) -> bool:
        """Whether it is written whole. In one call, so that several servers may share a file."""
        text = ("\n" if self._torn else "") + json.dumps(line, separators=(",", ":")) + "\n"
        data = text.encode()
        try:
            written = os.write(self._file, data)
        except OSError as error:
            self._complain(error.strerror or str(error))
            return False
        self._torn = written < len(data)
        if self._torn:
            self._complain(f"{written} of {len(data)} bytes were written")
        return not self._torn

    def _complain(self, why: str) -> None:
        if not self._complained:
            self._complained = True
            log.error("update log has gaps; training goes on", path=str(self._path), error=why)
