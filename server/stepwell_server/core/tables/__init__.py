"""Embedding tables: rows by 64-bit id, created when they are first touched. `table.py` is where to begin."""

from stepwell_server.core.tables.commit import TableCommit as TableCommit
from stepwell_server.core.tables.hold import Loading as Loading
from stepwell_server.core.tables.hold import TableHold as TableHold
from stepwell_server.core.tables.spec import TableSpec as TableSpec
from stepwell_server.core.tables.table import IDS_MAX as IDS_MAX
from stepwell_server.core.tables.table import Table as Table
from stepwell_server.core.tables.table import TableStatistics as TableStatistics
