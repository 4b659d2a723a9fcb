"""`stepwell demo-policies`: the same training under each policy, one of the workers slow, and what came of it.

Each policy has a server of its own, one after another, so that none takes the processors from another.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from rich.console import Console

from stepwell_server.benchmarks.report import Table, describe_host, print_footer, print_table
from stepwell_server.demo import comparison_picture, recipe
from stepwell_server.demo.display import make_display, say
from stepwell_server.demo.options import DemoOptions
from stepwell_server.demo.record import Record
from stepwell_server.demo.report import bucket_names
from stepwell_server.demo.session import Failed, supervise, train

LOG_NAME: Final = "updates.jsonl"


@dataclass(frozen=True)
class Contest:
    """One policy's training. lead_max: how many steps a worker was ahead of the slowest live one, at most."""

    options: DemoOptions
    record: Record
    lead_max: int


def run_comparison(options: DemoOptions) -> int:
    """Train under each policy, check bounds, print a table, draw a picture; return the exit code as `run_demo` does.

    The options' own policy makes no difference. Servers are started, since their update logs are read.
    """
    assert options.address is None
    console, errors = Console(), Console(stderr=True)

    def compare() -> int:
        host = describe_host()
        contests = [_train(dataclasses.replace(options, policy=policy), console) for policy in recipe.POLICIES]
        comparison_picture.draw([(each.options, each.record) for each in contests], options.picture)
        print_table(_table(contests, options))
        print_footer(host)
        say(console, f"\nPicture: {options.picture.resolve()}")
        return 0

    return supervise(compare, options, errors)


def largest_lead(lines: Iterable[str], run: str) -> int:
    """How far any worker was ahead of the slowest live one, as the update log tells.

    Steps are counted as the policy `bounded` does: a newcomer begins where the slowest then is.
    """
    steps: dict[str, int] = {}
    early: list[str] = []
    lead = 0
    for line in map(json.loads, lines):
        if line["run"] != run:
            continue
        match line["kind"]:
            case "join":
                steps.pop(line["worker"], None)
                steps[line["worker"]] = min(steps.values(), default=0)
            case "leave" | "expire":
                del steps[line["worker"]]
            case "early":  # no step yet: it waits for the rest of its round
                early += [worker for worker, *_ in line["contributions"]]
            case "commit" | "fold" | "skip":
                for worker in [*early, *(worker for worker, *_ in line["contributions"])]:
                    if worker in steps:
                        steps[worker] += 1
                early = []
                lead = max(lead, max(steps.values()) - min(steps.values()))
    return lead


def _train(options: DemoOptions, console: Console) -> Contest:
    with TemporaryDirectory(prefix="stepwell-") as directory:
        log = Path(directory) / LOG_NAME
        with make_display(console, options) as display:
            record = train(options, display, log)
        with log.open(encoding="utf-8") as lines:
            contest = Contest(options, record, largest_lead(lines, options.run))
    _check_bound(contest)
    return contest


def _check_bound(contest: Contest) -> None:
    """Raise Failed where `bounded` or `sync` has not kept its bound.

    Between two steps of a worker every other one makes at most 2 s: from s behind the first to s ahead of the last.
    """
    options, histogram = contest.options, contest.record.histogram
    assert histogram is not None, "a finished training has one"
    if options.policy == "async":
        return
    bound = options.bound if options.policy == "bounded" else 0
    stale = 2 * bound * (options.workers - 1)
    if contest.lead_max > bound or histogram.largest > stale:
        raise Failed(
            f"policy '{options.policy}': a worker was {contest.lead_max} steps ahead and an update {histogram.largest} "
            f"versions stale, expected at most {bound} and {stale}; this is a bug in Stepwell"
        )


def _table(contests: list[Contest], options: DemoOptions) -> Table:
    buckets = bucket_names(max(len(each.record.histogram.counts) for each in contests if each.record.histogram))
    rows = [_row(each, buckets) for each in contests]
    title = (
        f"{options.workers} workers, the last one {options.slow:g}× slower; {options.updates:,} steps in all of "
        f"{options.batch_size} images, {options.optimizer}, {options.schedule}; below staleness: share of the updates"
    )
    return Table(title, rows)


def _row(contest: Contest, buckets: Iterable[str]) -> Mapping[str, Any]:
    options, record, histogram = contest.options, contest.record, contest.record.histogram
    assert histogram is not None
    reached = record.seconds_to(options.target)
    counts = dict(zip(buckets, histogram.counts, strict=False))
    return {
        "policy": f"bounded, {options.bound}" if options.policy == "bounded" else options.policy,
        f"s to {options.target:.0%}": "never" if reached is None else reached,
        "steps/s": round(record.steps_per_second),
        "of the slow one": record.workers[-1].steps_per_second,
        "accuracy at the end": f"{record.accuracy:.1%}",
        "largest lead": contest.lead_max,
        "largest staleness": histogram.largest,
        **{name: f"{counts[name] / histogram.total:.1%}" if counts.get(name) else "" for name in buckets},
    }
