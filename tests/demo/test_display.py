import io

import pytest
from rich.console import Console

from stepwell_server.demo.display import LineDisplay, LiveDisplay, make_display, staleness_lines
from stepwell_server.demo.options import DemoOptions
from stepwell_server.demo.record import Record, WorkerRecord
from stepwell_server.demo.report import Histogram
from tests.demo.records import make_record

OPTIONS = DemoOptions(workers=2, steps=50)


def make_console(*, terminal, term="xterm"):
    """A console and what it shows."""
    shown = io.StringIO()
    return Console(file=shown, force_terminal=terminal, width=110, _environ={"TERM": term}), shown


@pytest.mark.parametrize("terminal", [True, False])
def test_shows_all_workers_and_the_accuracy(terminal):
    console, output = make_console(terminal=terminal)
    with make_display(console, OPTIONS) as display:
        display.stage("Run 'digits' [at] 127.0.0.1:1")
        display.show(Record([WorkerRecord(), WorkerRecord()]))
        display.finish(make_record(OPTIONS))
    shown = output.getvalue()
    assert "Run 'digits' [at] 127.0.0.1:1" in shown
    assert "98.0%" in shown
    assert "100" in shown  # versions
    assert shown.count("50") >= 2  # steps of both


@pytest.mark.parametrize(
    ("console", "plain", "kind"),
    [
        ({"terminal": True}, False, LiveDisplay),
        ({"terminal": True}, True, LineDisplay),
        ({"terminal": False}, False, LineDisplay),
        ({"terminal": True, "term": "dumb"}, False, LineDisplay),
    ],
)
def test_is_live_where_the_terminal_allows_it(console, plain, kind):
    assert type(make_display(make_console(**console)[0], DemoOptions(plain=plain))) is kind


def test_lines_come_now_and_then():
    console, output = make_console(terminal=False)
    with make_display(console, OPTIONS) as display:
        for _ in range(1000):
            display.show(make_record(DemoOptions(workers=1, steps=1)))
    assert output.getvalue().count("\n") < 10


def test_the_histograms_make_a_table():
    record = Record([WorkerRecord(histogram=Histogram((1200, 3), 1)), WorkerRecord()])
    record.histogram = Histogram((1200, 3, 0, 17), 5)
    rows = [line.split() for line in staleness_lines(record)]
    assert rows == [
        ["staleness", "0", "1", "2–3", "4–7", "largest"],
        ["all", "1,200", "3", "0", "17", "5"],
        ["worker", "0", "1,200", "3", "0", "0", "1"],
    ]
    assert len({len(line) for line in staleness_lines(record)}) == 1
