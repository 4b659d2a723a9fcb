"""Embedding tables: rows by 64-bit id, created when they are first touched. `table.py` is where to begin."""

from stepwell_server.core.tables.commit import TableCommit as TableCommit
from stepwell_server.core.tables.hold import Loading as Loading
from stepwell_server.core.tables.hold import TableHold as TableHold
from stepwell_server.core.tables.spec import TableSpec as TableSpec
from stepwell_server.core.tables.stored import Reader as Reader
from stepwell_server.core.tables.stored import StoredArray as StoredArray
from stepwell_server.core.tables.table import IDS_MAX as IDS_MAX
from stepwell_server.core.tables.table import Table as Table
from stepwell_server.core.tables.table import TableStatistics as TableStatistics
from stepwell_server.core.tables.tables import Brought as Brought
from stepwell_server.core.tables.tables import Tables as Tables
from stepwell_server.core.tables.tables import TablesCommit as TablesCommit
from stepwell_server.core.tables.tables import make_tables as make_tables
from stepwell_server.core.tables.tables import table_sizes as table_sizes
