"""What has become of a worker's updates, counted."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from stepwell_server.core.workers import Outcome


@dataclass
class Tally:
    """Of one worker, over all its joins, or of a run.

    commits, folded, skipped, dropped: answers of each outcome. refused: errors in place of an answer. withdrawn: gone
    before anything became of it. duplicates: tries to send what was answered, or staged, already. staleness_last,
    staleness_max: in versions, of those that had an effect; staleness_counts: how many of them had 0, 1, 2 to 3,
    4 to 7, ... versions. gradient_norm_last: the Euclidean norm of the last update's gradients, where the run reports
    norms.
    """

    commits: int = 0
    folded: int = 0
    skipped: int = 0
    dropped: int = 0
    refused: int = 0
    withdrawn: int = 0
    duplicates: int = 0
    staleness_last: int = 0
    staleness_max: int = 0
    staleness_counts: list[int] = field(default_factory=list)
    gradient_norm_last: float = 0.0

    def count(self, outcome: Outcome, staleness: int) -> None:
        """An update was answered."""
        if outcome is Outcome.COMMITTED:
            self.commits += 1
        elif outcome is Outcome.FOLDED:
            self.folded += 1
        elif outcome is Outcome.SKIPPED_NONFINITE:
            self.skipped += 1
            return
        else:
            self.dropped += 1
            return
        self.staleness_last = staleness
        self.staleness_max = max(self.staleness_max, staleness)
        # 0, 1, 2 to 3, 4 to 7, ... have 0, 1, 2, 3, ... binary digits.
        bucket = staleness.bit_length()
        self._widen(bucket + 1)
        self.staleness_counts[bucket] += 1

    def to_data(self) -> dict[str, Any]:
        """Plain data, for a snapshot."""
        return asdict(self)

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> "Tally":
        others = ("staleness_counts", "gradient_norm_last")
        counts = {name: int(value) for name, value in data.items() if name not in others}
        staleness_counts = [int(count) for count in data["staleness_counts"]]
        norm = float(data["gradient_norm_last"])
        return Tally(**counts, staleness_counts=staleness_counts, gradient_norm_last=norm)

    @staticmethod
    def total(tallies: Iterable["Tally"]) -> "Tally":
        """Of a whole run. staleness_last and gradient_norm_last mean nothing there and are 0."""
        total = Tally()
        for each in tallies:
            for name in ("commits", "folded", "skipped", "dropped", "refused", "withdrawn", "duplicates"):
                setattr(total, name, getattr(total, name) + getattr(each, name))
            total.staleness_max = max(total.staleness_max, each.staleness_max)
            total._widen(len(each.staleness_counts))
            for bucket, count in enumerate(each.staleness_counts):
                total.staleness_counts[bucket] += count
        return total

    def _widen(self, buckets: int) -> None:
        self.staleness_counts += [0] * (buckets - len(self.staleness_counts))
