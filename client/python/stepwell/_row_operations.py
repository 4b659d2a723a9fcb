"""What can be done with the rows of a run's tables."""

from collections.abc import Mapping
from typing import Any

from stepwell._exchange import Wanted
from stepwell._layout import Layout
from stepwell._operation import exclusive
from stepwell._requests import Steps
from stepwell._rows import ReceivedRows
from stepwell._run_base import Arrays, RunBase
from stepwell.errors import InvalidRows, RunRewound
from stepwell.v1 import data_pb2


class RowOperations(RunBase):
    """Operations on embedding tables: rows by id, of the tables that the run was created with."""

    @exclusive
    def push_rows(
        self,
        table: str | Mapping[str, Any],
        ids: Any = None,
        grads: Any = None,
        *,
        samples: float | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> Steps[int]:
        """Push gradients of rows alone: parameters, their slots and their steps stay as they are.

            run.push_rows("user", ids, grads)
            run.push_rows({"user": (ids, grads), "item": (other_ids, other_grads)})     # in one update

        ids: integers that int64 holds, of shape (n,); an id may come several times, and its gradients are summed. None
        at all are fine. Whoever has text hashes it. grads: of shape (n, width), in the table's dtype or a narrower
        float. samples, hyperparameters, timeout: see step; {"user": {"lr": 0.1}} is for one table.

        Returns the version that holds the update, as push does. What holds for steps holds here: it is applied once,
        and all of it or nothing. Raises UnknownTable, and InvalidRows, before anything is sent; TableFull,
        NonfiniteGradient, RunRewound and others.
        """
        rows = _by_table(table, (ids, grads), "push_rows", given=ids is not None or grads is not None)
        header = self._header(samples, None, hyperparameters, None, None)
        return (yield from self._push(None, None, header, "push_rows", timeout, rows))

    @exclusive
    def pull_rows(
        self,
        table: str | Mapping[str, Any],
        ids: Any = None,
        *,
        out: Any = None,
        timeout: float | None = None,
    ) -> Steps[Any]:
        """Return the values of rows, all at one version: `run.version`.

            run.pull_rows("user", ids)                            # an array (n, width)
            run.pull_rows({"user": ids, "item": other_ids})       # a dictionary of arrays, at one version

        ids: integers that int64 holds, of any shape; (a, b) gives (a, b, width). A row that does not exist has what it
        would begin with, and is not created. out: an array, or one for each table, to fill in place.

        The arrays belong to the caller. Raises UnknownTable, InvalidRows; LimitExceeded for more than 393,216 ids where
        no memory is shared with the server; RunRewound, see pull.
        """
        wanted = _by_table(table, ids, "pull_rows", given=ids is not None)
        alone = isinstance(table, str)
        into = {table: out} if isinstance(table, str) and out is not None else out
        try:
            found = yield from self._fetch_rows(wanted, into, timeout)
        except RunRewound as rewound:
            self._go_on(rewound)
            found = yield from self._fetch_rows(wanted, into, timeout)
        return next(iter(found.values())) if alone else found

    def _fetch_rows(
        self, ids: Mapping[str, Any], out: Mapping[str, Any] | None, timeout: float | None
    ) -> Steps[Arrays]:
        self._check_open()
        what = self._what("pull_rows")

        def select(layout: Layout) -> Wanted:
            selection = data_pb2.Selection(run=self.name, run_uid=self._worker.uid, rows_only=True)
            return Wanted(selection, rows=ReceivedRows(layout, ids, what, self._pool, out))

        exchange = yield from self._worker.fetch(select, what, timeout)
        assert exchange.rows is not None, "it was selected"
        return exchange.rows.arrays()


def _by_table(table: Any, value: Any, call: str, *, given: bool) -> Mapping[str, Any]:
    """What was given for one table or several, by name; raises InvalidRows."""
    if isinstance(table, str):
        return {table: value}
    if not isinstance(table, Mapping) or given:
        got = "ids beside a dictionary" if isinstance(table, Mapping) else f"{table!r:.100} for a table"
        raise InvalidRows(
            f"{call}: got {got}, expected a table's name and its rows, or one dictionary of rows by name; give one of "
            "the two"
        )
    if not table:
        raise InvalidRows(
            f"{call}: got no table, expected one or more; name the tables, with no ids where there are none"
        )
    return table
